import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { alignDown, alignUp, divCeil, divFloor, isPowerOfTwo, log2Exact } from '../../src/bytes/align.ts';

const offset = fc.maxSafeNat();
const unit = fc.integer({ min: 0, max: 40 }).map((bits) => 2 ** bits);

describe('offset arithmetic', () => {
  it('aligns down and up exactly, far beyond 32 bits', () => {
    fc.assert(
      fc.property(offset, unit, (value, step) => {
        const down = alignDown(value, step);
        expect(BigInt(down)).toBe((BigInt(value) / BigInt(step)) * BigInt(step));
        const up = (BigInt(value) + BigInt(step) - 1n) / BigInt(step);
        if (up * BigInt(step) <= BigInt(Number.MAX_SAFE_INTEGER)) {
          expect(BigInt(alignUp(value, step))).toBe(up * BigInt(step));
        }
      }),
    );
  });

  it('works with units that are no powers of two', () => {
    expect([alignDown(100, 30), alignUp(100, 30), alignUp(90, 30), alignDown(29, 30), alignUp(0, 30)]).toEqual([
      90, 120, 90, 0, 0,
    ]);
  });

  it('divides', () => {
    expect([divFloor(1023, 512), divCeil(1023, 512), divCeil(1024, 512), divFloor(2 ** 52 + 511, 512)]).toEqual([
      1,
      2,
      2,
      2 ** 43,
    ]);
  });

  it('knows powers of two and nothing else', () => {
    for (let bits = 0; bits <= 53; bits++) {
      expect(isPowerOfTwo(2 ** bits)).toBe(true);
      expect(log2Exact(2 ** bits)).toBe(bits);
    }
    for (const value of [0, -1, -2, 3, 6, 0.5, 1.5, 2 ** 32 + 1, 2 ** 52 + 2, Number.NaN, Number.POSITIVE_INFINITY]) {
      expect([value, isPowerOfTwo(value)]).toEqual([value, false]);
    }
  });
});
