import { describe, expect, it } from 'vitest';
import { DirtyBitmap, isBitmapGranularity } from '../../src/core/dirty-bitmap.ts';
import { below, seededRandom } from '../../src/testing/random.ts';
import { everySeed } from '../support/seeds.ts';

const GRANULE = 512;
const TiB = 2 ** 40;

/** One boolean for each unit: what a bitmap ought to say. */
class Flat {
  readonly granularity: number;
  size: number;
  bits: boolean[];

  constructor(size: number, granularity: number) {
    this.size = size;
    this.granularity = granularity;
    this.bits = Array.from({ length: Math.ceil(size / granularity) }, () => false);
  }

  set(offset: number, length: number): void {
    this.bits.forEach((_, i) => {
      const start = i * this.granularity;
      if (start < offset + length && start + this.granularity > offset) this.bits[i] = true;
    });
  }

  clear(offset: number, length: number): void {
    this.bits.forEach((_, i) => {
      const start = i * this.granularity;
      const end = Math.min(start + this.granularity, this.size);
      if (start >= offset && end <= Math.min(offset + length, this.size)) this.bits[i] = false;
    });
  }

  resize(size: number): void {
    this.size = size;
    const count = Math.ceil(size / this.granularity);
    this.bits = Array.from({ length: count }, (_, i) => this.bits[i] ?? false);
  }

  ranges(): { offset: number; length: number }[] {
    const found: { offset: number; length: number }[] = [];
    this.bits.forEach((bit, i) => {
      if (!bit) return;
      const offset = i * this.granularity;
      const end = Math.min(offset + this.granularity, this.size);
      const last = found.at(-1);
      if (last !== undefined && last.offset + last.length === offset) last.length = end - last.offset;
      else found.push({ offset, length: end - offset });
    });
    return found;
  }
}

describe('a dirty bitmap', () => {
  it('says what a flat model says, whatever is done to it', async () => {
    await everySeed(30, async (seed) => {
      const random = seededRandom(seed);
      const granularity = GRANULE * 2 ** below(random, 4);
      // Several pages of bits, and an end that is no multiple of anything.
      let size = 512 * (1 + below(random, 200_000));
      const bitmap = new DirtyBitmap(size, granularity);
      const flat = new Flat(size, granularity);
      for (let step = 0; step < 12; step++) {
        const offset = below(random, size);
        const length = below(random, random() < 0.3 ? size : 200_000);
        const action = below(random, 6);
        if (action <= 2) {
          bitmap.set(offset, length);
          if (length > 0) flat.set(offset, length);
        } else if (action === 3) {
          bitmap.clear(offset, length);
          flat.clear(offset, length);
        } else if (action === 4) {
          size = 512 * (1 + below(random, 200_000));
          bitmap.resize(size);
          flat.resize(size);
        } else {
          const copy = new DirtyBitmap(size, granularity);
          const bytes = new Uint8Array(Math.ceil(Math.ceil(size / granularity) / 8));
          const half = Math.floor(bytes.length / 2);
          bitmap.serialise(0, bytes.subarray(0, half));
          bitmap.serialise(half * 8, bytes.subarray(half));
          copy.deserialise(half * 8, bytes.subarray(half));
          copy.deserialise(0, bytes.subarray(0, half));
          expect([...copy.ranges()]).toEqual([...bitmap.ranges()]);
        }
        const expected = flat.ranges();
        expect([...bitmap.ranges()]).toEqual(expected);
        expect(bitmap.count).toBe(expected.reduce((sum, range) => sum + range.length, 0));
        expect(bitmap.empty).toBe(expected.length === 0);
        expect(bitmap.isDirty(offset % size)).toBe(flat.bits[Math.floor((offset % size) / granularity)]);
      }
    });
  });

  it.each([
    [512, 4096],
    [4096, 512],
    [65536, 65536],
  ])('of granularity %i takes over one of %i', (own, other) => {
    const from = new DirtyBitmap(1_000_000, other);
    from.set(5000, 1);
    from.set(70_000, 200_000);
    from.set(999_999, 1);
    const into = new DirtyBitmap(1_000_000, own);
    into.set(500_000, 1);
    const flat = new Flat(1_000_000, own);
    flat.set(500_000, 1);
    for (const { offset, length } of from.ranges()) flat.set(offset, length);
    into.merge(from);
    expect([...into.ranges()]).toEqual(flat.ranges());
  });

  it('finds what is dirty and what is clean from the middle of a unit, up to a bound', () => {
    const bitmap = new DirtyBitmap(100_000, 4096);
    bitmap.set(8192, 8192);
    expect(bitmap.nextDirty(0)).toBe(8192);
    expect(bitmap.nextDirty(9000)).toBe(9000);
    expect(bitmap.nextDirty(0, 8192)).toBeUndefined();
    expect(bitmap.nextDirty(16_384)).toBeUndefined();
    expect(bitmap.nextClean(9000)).toBe(16_384);
    expect(bitmap.nextClean(9000, 16_384)).toBeUndefined();
    expect(bitmap.nextRange(9000, 10_000)).toEqual({ offset: 9000, length: 1000 });
    expect(bitmap.nextDirty(100_000)).toBeUndefined();
  });

  it('of a disk of 1 TiB takes memory for what was written, not for the disk', () => {
    const bitmap = new DirtyBitmap(TiB, 512);
    expect(bitmap.memory).toBe(0);
    for (let i = 0; i < 100; i++) bitmap.set(i * (TiB / 100), 1);
    expect(bitmap.memory).toBe(100 * 4096);
    bitmap.set(0, TiB);
    expect(bitmap.memory).toBe(0);
    expect(bitmap.count).toBe(TiB);
    bitmap.clear(4096, 512);
    expect(bitmap.memory).toBe(4096);
    expect(bitmap.count).toBe(TiB - 512);
    bitmap.clearAll();
    expect([bitmap.memory, bitmap.empty]).toEqual([0, true]);
  });

  it('has the granularities that QEMU has', () => {
    expect([512, 65536, 2 ** 31].every(isBitmapGranularity)).toBe(true);
    expect([0, 256, 1000, 2 ** 32, Number.NaN, 512.5].some(isBitmapGranularity)).toBe(false);
  });
});
