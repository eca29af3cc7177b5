import { describe, expect, it } from 'vitest';
import { seededRandom } from '../../../src/base/random.ts';
import { shrink } from '../../../src/tools/fuzz/shrink.ts';

const all = Array.from({ length: 100 }, (_, i) => i);

describe('shrinking', () => {
  it('finds the one that fails', async () => {
    for (const one of [0, 1, 37, 50, 99]) {
      const { items, tries } = await shrink(all, async (some) => some.includes(one));
      expect(items).toEqual([one]);
      expect(tries).toBeLessThan(60);
    }
  });

  it('finds those that fail only together, in their order', async () => {
    const random = seededRandom(3);
    for (let run = 0; run < 30; run++) {
      const wanted = all.filter(() => random() < 0.04);
      if (wanted.length === 0) continue;
      const { items } = await shrink(all, async (some) => wanted.every((one) => some.includes(one)), 2000);
      expect(items).toEqual(wanted);
    }
  });

  it('gives up with what has failed, when the tries run out', async () => {
    const fails = async (some: readonly number[]): Promise<boolean> => some.length > 90;
    const { items, tries } = await shrink(all, fails, 7);
    expect(tries).toBe(7);
    expect(items.length).toBeGreaterThan(90);
  });

  it('leaves a single one alone', async () => {
    expect(await shrink([5], async () => false)).toEqual({ items: [5], tries: 0 });
  });
});
