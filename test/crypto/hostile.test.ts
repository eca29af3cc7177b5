/** Headers from strangers: whatever they hold, there are typed errors only, no more rounds of PBKDF2 than allowed, and no reads beyond the slots. */
import { beforeAll, describe, expect, it } from 'vitest';
import { isBlockError } from '../../src/base/errors.ts';
import { createLuks } from '../../src/crypto/create-luks.ts';
import { roundsOf } from '../../src/crypto/key-derivation.ts';
import { openLuks } from '../../src/crypto/luks.ts';
import type { CryptoProvider } from '../../src/crypto/provider.ts';
import { nodeCrypto } from '../../src/platform/node/crypto.ts';
import { below, seededRandom } from '../../src/testing/random.ts';
import { scaled } from '../support/seeds.ts';
import { MemoryArea, quickCrypto, SUBJECT, utf8 } from './support.ts';

const PASSPHRASE = utf8('secret');
const AREA = 2_068_480;
/** Header, and the material of slot 0. */
const USED = 4096 + 256_000;
const LIMIT = 20_000;
const KNOWN = /^luks\.[a-z-]+$/;

/** Opens, tells, unlocks and changes a volume.
 *  @returns the reason of the error that ended it, or what went well */
async function exercise(bytes: Uint8Array): Promise<string> {
  let spent = 0;
  const watched: CryptoProvider = {
    ...quickCrypto(),
    pbkdf2: (hash, password, salt, iterations, length) => {
      spent += roundsOf(hash, iterations, length);
      return nodeCrypto.pbkdf2(hash, password, salt, iterations, length);
    },
  };
  let read = 0;
  const area = new MemoryArea(bytes);
  const counted = {
    get size() {
      return area.size;
    },
    read: (offset: number, into: Uint8Array) => {
      read += into.length;
      return area.read(offset, into);
    },
    write: area.write.bind(area),
    flush: area.flush.bind(area),
  };
  try {
    const volume = await openLuks(counted, watched, { subject: SUBJECT });
    volume.info();
    const key = await volume.unlock(PASSPHRASE, { roundLimit: LIMIT });
    const sector = new Uint8Array(512);
    volume.sectorCipher(key).decrypt(sector, 0);
    return `opened by ${key.slot}`;
  } catch (error) {
    if (!isBlockError(error)) throw error;
    expect(error.reason).toMatch(KNOWN);
    expect(error.code).not.toBe('INTERNAL');
    expect(error.message.startsWith(SUBJECT)).toBe(true);
    return error.reason as string;
  } finally {
    expect(spent).toBeLessThanOrEqual(LIMIT);
    expect(read).toBeLessThanOrEqual(4096 + 8 * 256_000);
  }
}

async function makeBase(): Promise<Uint8Array> {
  const area = new MemoryArea(AREA);
  await createLuks(area, quickCrypto(), { subject: SUBJECT, passphrase: PASSPHRASE, iterTime: 0 });
  // nothing lies behind the one active slot
  return area.bytes.slice(0, USED);
}

/** Offsets of all fields of 32 bits, by name. */
const FIELDS: readonly (readonly [string, number])[] = [
  ['magic and version', 4],
  ['payload sector', 104],
  ['key bytes', 108],
  ['digest iterations', 164],
  ...[0, 3, 7].flatMap((slot) =>
    (
      [
        ['state', 0],
        ['iterations', 4],
        ['material sector', 40],
        ['stripes', 44],
      ] as const
    ).map(([name, at]) => [`${name} of slot ${slot}`, 208 + slot * 48 + at] as const),
  ),
];
const TEXTS: readonly (readonly [string, number])[] = [
  ['cipher name', 8],
  ['cipher mode', 40],
  ['hash', 72],
  ['UUID', 168],
];

describe('a header from a stranger', () => {
  let base: Uint8Array;
  beforeAll(async () => {
    base = await makeBase();
  });

  it.each(FIELDS)('with any %s ends in a typed error, or opens', async (name, at) => {
    const own = new DataView(base.buffer).getUint32(at);
    const edges = [0, 1, 2, 3, 7, 8, 16, 31, 32, 33, 63, 64, 65, 128, 999, 3999, 4000, 4001, 4039, 4040, 4041];
    const powers = [0x7fff_ffff, 0x8000_0000, 0xffff_fff8, 0xffff_fffe, 0xffff_ffff, 0xdead, 0x00ac_71f3];
    const outcomes = new Set<string>();
    for (const value of [...edges, ...powers, own, (own + 1) % 2 ** 32, (own + 2 ** 32 - 1) % 2 ** 32]) {
      const bytes = base.slice();
      new DataView(bytes.buffer).setUint32(at, value);
      outcomes.add(await exercise(bytes));
    }
    expect(outcomes).toContain('opened by 0');
    // of an inactive slot nobody reads the iterations
    if (!/^iterations of slot [37]/.test(name)) expect(outcomes.size).toBeGreaterThan(1);
  });

  it.each(TEXTS)('with any %s ends in a typed error, or opens', async (_, at) => {
    const texts = [
      '',
      '-',
      ':',
      '--',
      '-:',
      'aes',
      'xts-',
      'xts-:',
      'cbc-essiv:',
      'xts-plain64:sha256:sha1',
      '\xff',
      '%s%n',
    ];
    for (const text of [...texts, 'a'.repeat(31), 'a'.repeat(32), '__proto__', 'hasOwnProperty', 'sha1']) {
      const bytes = base.slice();
      bytes.fill(0, at, at + 32);
      bytes.set(Buffer.from(text, 'latin1'), at);
      await exercise(bytes);
    }
  });

  it('cut anywhere ends in a typed error', async () => {
    const outcomes = new Set<string>();
    for (const length of [0, 1, 6, 7, 8, 103, 207, 255, 591, 592, 4095, 4096, 4097, 260_095]) {
      outcomes.add(await exercise(base.slice(0, length)));
    }
    expect(outcomes).not.toContain('opened by 0');
    expect(await exercise(base.slice())).toBe('opened by 0');
  });

  it('with bytes changed at random ends in a typed error, or opens', async () => {
    for (let seed = 1; seed <= scaled(200); seed++) {
      const random = seededRandom(seed);
      const bytes = base.slice();
      for (let i = below(random, 4); i >= 0; i--) bytes[below(random, 592)] = below(random, 256);
      await exercise(bytes).catch((error: unknown) => {
        throw new Error(`seed ${seed}`, { cause: error });
      });
    }
  });
});
