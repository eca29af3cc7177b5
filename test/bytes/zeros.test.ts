import { describe, expect, it } from 'vitest';
import { isZero } from '../../src/bytes/zeros.ts';

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

  it('works on a few bytes at any place', () => {
    const bytes = new Uint8Array(32);
    for (let start = 0; start < 9; start++) {
      for (let length = 0; length < 9; length++) {
        expect([start, length, isZero(bytes, start, start + length)]).toEqual([start, length, true]);
        for (let at = start; at < start + length; at++) {
          bytes[at] = 1;
          expect([start, length, at, isZero(bytes, start, start + length)]).toEqual([start, length, at, false]);
          bytes[at] = 0;
        }
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
