/** Damaged deltas, and deltas that nobody would write: each is refused with a clear error, within bounds of time and memory, and one in a file
 *  before the disk is touched. */
import { beforeAll, describe, expect, it } from 'vitest';
import { isBlockError } from '../../src/base/errors.ts';
import { MemoryStore } from '../../src/storage/memory.ts';
import { below, seededRandom } from '../../src/testing/random.ts';
import { applyDelta } from '../../src/tools/apply.ts';
import { KiB, MiB, make, open } from '../image/support/fixtures.ts';
import { MemoryFiles } from '../image/support/memory-protocol.ts';
import { type Crafted, type CraftedRecord, crafted, madeDelta, piped } from '../support/delta-files.ts';
import { scaled } from '../support/seeds.ts';

const SIZE = 256 * KiB;
let good: Uint8Array;
let files: MemoryFiles;
let before: Uint8Array;

beforeAll(async () => {
  files = new MemoryFiles();
  await make(files, 'old', { format: 'raw', size: SIZE }, [[0, 50_000, 1]]);
  await make(files, 'new', { format: 'raw', size: SIZE }, [
    [0, 20_000, 1],
    [100_000, 300, 5],
    [200_000, 10_000, 6],
  ]);
  await using first = await open(files, 'old', { format: 'raw' });
  await using second = await open(files, 'new', { format: 'raw' });
  good = (await madeDelta(first, second)).bytes;
  before = files.bytes('old').slice();
});

/** What becomes of it, through a file and through a pipe. */
async function outcomes(delta: Uint8Array, seed: number): Promise<unknown[]> {
  const random = seededRandom(seed);
  const sources = [MemoryStore.from(delta), piped(delta, () => 1 + below(random, 1000))];
  const found: unknown[] = [];
  for (const [i, source] of sources.entries()) {
    const fresh = new MemoryFiles();
    fresh.add('old', before.slice());
    await using image = await open(fresh, 'old', { format: 'raw', readOnly: false });
    // Without checksums: it is the digests of the file that must find the damage.
    const result = await applyDelta(image, source, { verify: false }).catch((error: unknown) => error);
    found.push(result);
    if (i === 0 && result instanceof Error) expect(fresh.bytes('old')).toEqual(before);
    if (i === 1 && isBlockError(result) && result.reason === 'delta.incomplete') found[1] = result.cause;
  }
  return found;
}

async function expectRefused(delta: Uint8Array, seed: number, reason: unknown): Promise<void> {
  for (const outcome of await outcomes(delta, seed)) {
    expect(isBlockError(outcome), `${seed}: ${String(outcome)}`).toBe(true);
    expect(outcome).toMatchObject({ reason });
  }
}

describe('a damaged delta', () => {
  it('is refused whatever byte of it was changed', async () => {
    const random = seededRandom(1);
    for (let i = 0; i < scaled(60); i++) {
      const bytes = good.slice();
      // The first bytes are those with the most to say.
      const at = i < 20 ? i * 6 : below(random, bytes.length);
      bytes[at] = (bytes[at] as number) + 1 + below(random, 255);
      await expectRefused(bytes, at, expect.stringMatching(/^delta\.(magic|version|flags|digest|record|truncated)$/));
    }
  });

  it('is refused wherever it was cut off', async () => {
    const random = seededRandom(2);
    for (let i = 0; i < scaled(25); i++) {
      const length = i < 8 ? i * 18 : below(random, good.length);
      await expectRefused(good.subarray(0, length), length, length < 8 ? 'delta.magic' : 'delta.truncated');
    }
    await expectRefused(good.subarray(0, good.length - 1), 0, 'delta.truncated');
  });

  it('is refused when parts of it are left out, doubled, or follow its end', async () => {
    const random = seededRandom(3);
    for (let i = 0; i < scaled(15); i++) {
      const from = 128 + below(random, good.length - 128);
      const to = Math.min(good.length, from + 1 + below(random, 200));
      const parts =
        i % 2 === 0 ? [good.subarray(0, from), good.subarray(to)] : [good.subarray(0, to), good.subarray(from)];
      const wanted = expect.stringMatching(/^delta\.(digest|record|truncated|trailing)$/);
      await expectRefused(new Uint8Array(Buffer.concat(parts)), i, wanted);
    }
    await expectRefused(new Uint8Array(Buffer.concat([good, Buffer.alloc(1)])), 0, 'delta.trailing');
  });
});

const end = (count: bigint, length: bigint): CraftedRecord => ({ type: 3, offset: count, length });
const data = (offset: bigint, length: bigint, more: Partial<CraftedRecord> = {}): CraftedRecord => ({
  type: 1,
  offset,
  length,
  stored: new Uint8Array(Number(length)).fill(7),
  ...more,
});
const zeros = (offset: bigint, length: bigint, more: Partial<CraftedRecord> = {}): CraftedRecord => ({
  type: 2,
  offset,
  length,
  ...more,
});
const size = BigInt(SIZE);
const huge = 2n ** 64n - 1n;
const bytes = (length: number): Uint8Array => new Uint8Array(length).fill(200);

const CASES: readonly (readonly [what: string, reason: string, delta: Partial<Crafted>])[] = [
  ['of version 2', 'delta.version', { version: 2 }],
  ['with unknown flags', 'delta.flags', { flags: 2 }],
  ['of an endless old disk', 'delta.size', { oldSize: huge }],
  ['to an endless new disk', 'delta.size', { newSize: 2n ** 53n }],
  ['of another size', 'delta.target-size', { oldSize: 512n, newSize: 1024n }],
  ['without a last record', 'delta.truncated', { records: [data(0n, 10n)] }],
  ['with nothing at all', 'delta.truncated', { records: [] }],
  ['with an unknown type', 'delta.record', { records: [data(0n, 10n, { type: 4 }), end(1n, 10n)] }],
  ['with an unknown compression', 'delta.record', { records: [data(0n, 10n, { encoding: 3 }), end(1n, 10n)] }],
  ['with reserved bytes set', 'delta.record', { records: [data(0n, 10n, { reserved: 1 }), end(1n, 10n)] }],
  ['with data behind the end', 'delta.record', { records: [data(size - 9n, 10n), end(1n, 10n)] }],
  ['with data far behind the end', 'delta.record', { records: [zeros(huge, 1n), end(1n, 1n)] }],
  ['with a sum that wraps around', 'delta.record', { records: [zeros(2n, huge), end(1n, 1n)] }],
  ['with zeros of no length', 'delta.record', { records: [zeros(0n, 0n), end(1n, 0n)] }],
  ['with data of no length', 'delta.record', { records: [data(0n, 0n), end(1n, 0n)] }],
  ['that goes back', 'delta.record', { records: [zeros(100n, 100n), zeros(199n, 1n), end(2n, 101n)] }],
  ['with zeros that store bytes', 'delta.record', { records: [zeros(0n, 9n, { stored: bytes(9) }), end(1n, 9n)] }],
  ['with compressed zeros', 'delta.record', { records: [zeros(0n, 9n, { encoding: 2 }), end(1n, 9n)] }],
  ['that stores too little', 'delta.record', { records: [data(0n, 10n, { stored: bytes(9) }), end(1n, 10n)] }],
  ['that stores too much', 'delta.record', { records: [data(0n, 10n, { stored: bytes(11) }), end(1n, 10n)] }],
  [
    'that would need gigabytes',
    'delta.record',
    { records: [data(0n, 10n, { storedLength: 0xffff_ffff, stored: bytes(10) })] },
  ],
  [
    'that compresses to more',
    'delta.record',
    { records: [data(0n, 10n, { encoding: 1, stored: bytes(10) }), end(1n, 10n)] },
  ],
  [
    'with data of more than 1 MiB',
    'delta.record',
    { newSize: 4n * BigInt(MiB), records: [data(0n, BigInt(MiB) + 1n, { encoding: 2, stored: bytes(9) })] },
  ],
  [
    'that is no deflate',
    'delta.data',
    { records: [data(0n, 100n, { encoding: 1, stored: bytes(50) }), end(1n, 100n)] },
  ],
  ['that is no zstd', 'delta.data', { records: [data(0n, 100n, { encoding: 2, stored: bytes(50) }), end(1n, 100n)] }],
  ['that counts its records wrong', 'delta.record', { records: [data(0n, 10n), end(2n, 10n)] }],
  ['that counts its bytes wrong', 'delta.record', { records: [data(0n, 10n), end(1n, 11n)] }],
  ['whose end stores bytes', 'delta.record', { records: [{ ...end(0n, 0n), stored: bytes(1) }] }],
  ['that goes on', 'delta.trailing', { records: [end(0n, 0n), data(0n, 10n)] }],
];

describe('a delta with right digests', () => {
  it.each(CASES)('%s is refused: %s', async (_, reason, delta) => {
    // One that wants another size of the disk must not get it either.
    const whole = { oldSize: size, newSize: size, records: [end(0n, 0n)], ...delta };
    await expectRefused(crafted(whole), 1, reason);
  });

  it('is applied, and zeros of any length are', async () => {
    const records = [zeros(0n, 2n ** 40n), data(2n ** 40n + 5n, 10n), end(2n, 2n ** 40n + 10n)];
    const delta = crafted({ oldSize: 2n ** 42n, newSize: 2n ** 42n, records });
    const fresh = new MemoryFiles();
    await make(fresh, 'disk', { size: 2 ** 42, options: { clusterSize: 2 * MiB } }, [[1000, 10, 3]]);
    await using image = await open(fresh, 'disk', { readOnly: false });
    expect(await applyDelta(image, MemoryStore.from(delta))).toEqual({
      outcome: 'applied',
      verified: false,
      oldSize: 2 ** 42,
      newSize: 2 ** 42,
      records: 2,
      dataBytes: 10,
      zeroBytes: 2 ** 40,
    });
    expect(await image.read(1000, 10)).toEqual(new Uint8Array(10));
    expect(await image.read(2 ** 40 + 4, 2)).toEqual(Uint8Array.of(0, 7));
  });
});
