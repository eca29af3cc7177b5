import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { getU64, highWord, joinU64, lowWord, setU64 } from '../../src/bytes/ints.ts';

describe('64-bit integers', () => {
  it('keep every safe value, in both byte orders', () => {
    fc.assert(
      fc.property(fc.maxSafeNat(), fc.boolean(), (value, littleEndian) => {
        const view = new DataView(new ArrayBuffer(10));
        setU64(view, 1, value, littleEndian);
        expect(view.getBigUint64(1, littleEndian)).toBe(BigInt(value));
        expect(getU64(view, 1, littleEndian)).toBe(value);
        expect(joinU64(highWord(value), lowWord(value))).toBe(value);
      }),
    );
  });

  it('above 2^53-1 are infinite, never rounded, so that no bound lets them pass', () => {
    expect(joinU64(0x1f_ffff, 0xffff_ffff)).toBe(Number.MAX_SAFE_INTEGER);
    expect(joinU64(0x20_0000, 0)).toBe(Number.POSITIVE_INFINITY);
    expect(joinU64(0xffff_ffff, 0xffff_ffff)).toBe(Number.POSITIVE_INFINITY);
    const view = new DataView(new ArrayBuffer(8));
    view.setBigUint64(0, 2n ** 63n + 1n);
    expect(getU64(view, 0)).toBe(Number.POSITIVE_INFINITY);
  });
});
