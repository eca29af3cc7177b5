import { describe, expect, it } from 'vitest';
import { below, noise, seededRandom } from '../../src/testing/random.ts';

describe('seededRandom', () => {
  it('gives the same numbers for the same seed, others for another, all in [0, 1)', () => {
    const numbers = (seed: number): number[] => {
      const random = seededRandom(seed);
      return Array.from({ length: 1000 }, random);
    };
    expect(numbers(1)).toEqual(numbers(1));
    expect(numbers(1)).not.toEqual(numbers(2));
    expect(numbers(3).every((number) => number >= 0 && number < 1)).toBe(true);
    const mean = numbers(4).reduce((sum, number) => sum + number, 0) / 1000;
    expect(Math.abs(mean - 0.5)).toBeLessThan(0.05);
  });

  it('makes integers below a limit and bytes that are not zero', () => {
    const random = seededRandom(1);
    const seen = new Set(Array.from({ length: 200 }, () => below(random, 5)));
    expect(seen).toEqual(new Set([0, 1, 2, 3, 4]));
    expect(noise(random, 10_000).includes(0)).toBe(false);
  });
});
