/** Headers from strangers: whatever is changed in one, opening ends soon, with the disk as it was or with an error that says why. */
import { describe, expect, it } from 'vitest';
import { isBlockError } from '../../../src/base/errors.ts';
import { luks } from '../../../src/formats/luks/driver.ts';
import { type Image, openImage } from '../../../src/index.ts';
import { MemoryStore } from '../../../src/storage/memory.ts';
import { below, seededRandom } from '../../../src/testing/random.ts';
import { luksFile, openLuksNode, PASSWORD } from '../../support/luks-under-test.ts';

const SIZE = 8192;
const CASES = process.env['COWDISK_LONG'] === '1' ? 5000 : 250;
/** Fields of the header by offset and length; slots follow. */
const FIELDS: readonly (readonly [at: number, length: number])[] = [
  [0, 6],
  [6, 2],
  [8, 32],
  [40, 32],
  [72, 32],
  [104, 4],
  [108, 4],
  [112, 20],
  [132, 32],
  [164, 4],
  [168, 40],
  ...Array.from({ length: 8 }, (_, slot) => 208 + slot * 48).flatMap((at) => [
    [at, 4] as const,
    [at + 4, 4] as const,
    [at + 8, 32] as const,
    [at + 40, 4] as const,
    [at + 44, 4] as const,
  ]),
];
const NUMBERS = [
  0, 1, 2, 7, 8, 9, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 0x00ac_71f3, 0xdead, 4000, 4001, 64, 32, 1000,
];
const TEXTS = [
  '',
  'aes',
  'serpent',
  'sm4',
  'xts-plain64',
  'cbc-essiv:sha256',
  'xts-essiv:md5',
  'ctr-plain',
  'ecb-plain64',
  'sha1',
  'sha512',
  'x-y:z',
  '\u00ff\u00ff',
];

function mutate(head: Uint8Array, random: () => number): string {
  const view = new DataView(head.buffer, head.byteOffset, head.byteLength);
  const log: string[] = [];
  for (let n = 1 + below(random, 3); n > 0; n--) {
    const [at, length] = FIELDS[below(random, FIELDS.length)] as readonly [number, number];
    const kind = below(random, 3);
    if (kind === 0) {
      const place = at + below(random, length);
      head[place] = (head[place] as number) ^ (1 << below(random, 8));
      log.push(`bit of ${place}`);
    } else if (length === 4) {
      const value = NUMBERS[below(random, NUMBERS.length)] as number;
      view.setUint32(at, value);
      log.push(`${at} = ${value}`);
    } else {
      const text = TEXTS[below(random, TEXTS.length)] as string;
      head.fill(kind === 1 ? 0 : 0x41, at, at + length);
      head.set(Buffer.from(text, 'latin1').subarray(0, length), at);
      log.push(`${at} = "${text}"`);
    }
  }
  return log.join(', ');
}

describe('a luks header from a stranger', () => {
  it('opens to the disk that it had, or fails with a reason', async () => {
    const base = await luksFile(SIZE);
    const whole = base.bytes();
    const node = await openLuksNode(base);
    const plain = new Uint8Array(SIZE);
    await node.read(0, plain);
    await node.close();
    const random = seededRandom(11);
    const reasons = new Map<string, number>();
    let opened = 0;
    for (let i = 0; i < CASES; i++) {
      const bytes = whole.slice();
      const what = `seed 11, case ${i}: ${mutate(bytes.subarray(0, 592), random)}`;
      if (below(random, 10) === 0) bytes.copyWithin(4096, 8192, 12_288);
      const length = below(random, 12) === 0 ? below(random, bytes.length) : bytes.length;
      const store = MemoryStore.from(bytes.subarray(0, length), { name: 'a.luks' });
      // What asks for hours is refused; a test must not take the minutes that are allowed.
      const asked = asksForMuch(bytes);
      let image: Image | undefined;
      try {
        const options = asked ? { metadataOnly: true } : { secrets: { key: PASSWORD } };
        image = await openImage(store, {
          formats: [luks],
          protocols: [],
          format: 'luks',
          options: { keySecret: 'key' },
          ...options,
        });
        await image.info();
        opened++;
        if (asked) continue;
        const found = await image.read(0, Math.min(512, image.virtualSize));
        expect(found.length, what).toBe(Math.min(512, image.virtualSize));
      } catch (error) {
        if (!isBlockError(error) || error.code === 'INTERNAL') throw new Error(what, { cause: error });
        expect(error.reason, what).toMatch(/^luks\./);
        expect(error.message, what).toMatch(/^luks "a\.luks": [ -~]+$/);
        reasons.set(error.reason as string, (reasons.get(error.reason as string) ?? 0) + 1);
      } finally {
        await image?.close();
      }
    }
    expect(opened).toBeGreaterThan(CASES / 20);
    expect(reasons.size).toBeGreaterThan(10);
  });

  it('that asks for hours of key derivation is refused before any of it is done', async () => {
    const file = await luksFile(SIZE);
    const bytes = file.bytes();
    new DataView(bytes.buffer).setUint32(212, 0xffff_ffff);
    const store = MemoryStore.from(bytes, { name: 'a.luks' });
    const secrets = { key: PASSWORD };
    await expect(
      openImage(store, { formats: [luks], protocols: [], secrets, options: { keySecret: 'key' } }),
    ).rejects.toMatchObject({
      code: 'UNSUPPORTED',
      reason: 'luks.rounds',
    });
  });

  it('whose payload lies past the end is a disk of no bytes, and one whose key does is refused', async () => {
    const file = await luksFile(SIZE);
    const bytes = file.bytes();
    const view = new DataView(bytes.buffer);
    view.setUint32(104, 0xffff_ffff);
    const open = (): Promise<Image> =>
      openImage(MemoryStore.from(bytes, { name: 'a.luks' }), {
        formats: [luks],
        protocols: [],
        secrets: { key: PASSWORD },
        options: { keySecret: 'key' },
        readOnly: false,
      });
    {
      await using image = await open();
      expect(image.virtualSize).toBe(0);
      await expect(async () => image.node.write(0, new Uint8Array(512))).rejects.toMatchObject({
        code: 'OUT_OF_RANGE',
      });
    }
    view.setUint32(248, 0x7fff_ffff);
    await expect(open()).rejects.toMatchObject({ code: 'CORRUPT', reason: 'luks.truncated' });
  });
});

/** Iterations that would take longer than a test should. */
function asksForMuch(bytes: Uint8Array): boolean {
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const iterations = [164, ...Array.from({ length: 8 }, (_, slot) => 212 + slot * 48)].map((at) => view.getUint32(at));
  return iterations.some((count) => count > 100_000);
}
