import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { findZeroRun, isZero } from '../../src/bytes/zeros.ts';

describe('the zero test', () => {
  it('finds a single byte wherever it is, in every length, and looks at nothing outside', () => {
    for (const length of [1, 2, 63, 64, 65, 127, 4096]) {
      const bytes = new Uint8Array(length + 20).fill(1);
      bytes.fill(0, 7, 7 + length);
      expect(isZero(bytes, 7, 7 + length)).toBe(true);
      for (const at of new Set([0, Math.min(1, length - 1), Math.floor(length / 2), length - 1])) {
        bytes[7 + at] = 5;
        expect([length, at, isZero(bytes, 7, 7 + length)]).toEqual([length, at, false]);
        bytes[7 + at] = 0;
      }
    }
  });

  it('works on parts of larger buffers', () => {
    const whole = new Uint8Array(1000).fill(9);
    const part = whole.subarray(100, 300).fill(0);
    expect(isZero(part)).toBe(true);
    expect(isZero(whole)).toBe(false);
    expect(isZero(part, 10, 10)).toBe(true);
    whole[299] = 1;
    expect(isZero(part)).toBe(false);
  });
});

describe('zero runs', () => {
  it('agree with a piece by piece test', () => {
    const piece = fc.tuple(fc.boolean(), fc.integer({ min: 1, max: 5 }));
    fc.assert(
      fc.property(fc.array(piece, { minLength: 1, maxLength: 10 }), fc.nat(3), (pieces, rest) => {
        const granularity = 128;
        const marks = pieces.flatMap(([zero, count]) => new Array<boolean>(count).fill(zero));
        const bytes = new Uint8Array(marks.length * granularity + rest * 10);
        marks.forEach((zero, i) => {
          if (!zero) bytes[i * granularity + (i % granularity)] = 1;
        });
        for (let at = 0; at < bytes.length; ) {
          const run = findZeroRun(bytes, at, bytes.length, granularity);
          const first = marks[at / granularity] ?? true;
          let count = 0;
          while (at + count * granularity < bytes.length && (marks[at / granularity + count] ?? true) === first)
            count++;
          expect(run).toEqual({ zero: first, length: Math.min(count * granularity, bytes.length - at) });
          at += run.length;
        }
      }),
    );
  });

  it('may end in a short piece', () => {
    const bytes = new Uint8Array(100);
    bytes[99] = 1;
    expect(findZeroRun(bytes, 0, 100, 64)).toEqual({ zero: true, length: 64 });
    expect(findZeroRun(bytes, 64, 100, 64)).toEqual({ zero: false, length: 36 });
    expect(findZeroRun(bytes, 0, 99, 64)).toEqual({ zero: true, length: 99 });
  });
});
