/** Random concurrent requests on the test format against a flat model: late and out-of-order stores, four tables of memory per cache. */
import { describe, expect, it } from 'vitest';
import { type ModelOptions, runModel } from '../../src/testing/model.ts';
import type { BitmapNode } from '../support/bitmap-format.ts';
import { type BitmapVariant, bitmapUnderTest } from '../support/bitmap-under-test.ts';
import { everySeed, SEED_TIMEOUT } from '../support/seeds.ts';

const KiB = 1024;
const WEIGHTS = { share: 2, compressed: 6 };

type Variant = readonly [name: string, variant: BitmapVariant, options: Partial<ModelOptions>];

const VARIANTS: readonly Variant[] = [
  ['alone', {}, {}],
  ['over a shorter backing file', {}, { backingSize: 48 * KiB }],
  ['over a longer backing file', {}, { backingSize: 128 * KiB }],
  ['of a size that is no multiple of the unit', { unit: 2048 }, { size: 78.5 * KiB, backingSize: 70.5 * KiB }],
  ['with requests that are no multiples of sectors', {}, { cellSize: 64, longest: 100 }],
  [
    'encrypted by guest offset',
    { transform: 'guest', unit: 2048 },
    { cellSize: 64, longest: 100, backingSize: 40 * KiB },
  ],
  ['encrypted by host offset', { transform: 'host' }, { backingSize: 40 * KiB }],
  ['with hardly any free space', { spare: 230 }, { weights: { zero: 20, discard: 20, share: 1, compressed: 10 } }],
  ['with many requests at once', { unit: 512 }, { concurrency: 20, longest: 40 }],
  ['with failing files', {}, { faults: true, weights: { compressed: 6 } }],
  ['with failing files, encrypted', { transform: 'host' }, { faults: true, weights: { compressed: 6 } }],
];

describe('a disk, used at random by several requests at once, reads as the flat model says', () => {
  it.each(VARIANTS)(
    '%s',
    async (_name, variant, options) => {
      const nodes: BitmapNode[] = [];
      const format = bitmapUnderTest({ ...variant, opened: (node) => nodes.push(node) });
      await everySeed(15, async (seed) => {
        nodes.length = 0;
        const { failed } = await runModel(format, {
          seed,
          size: 64 * KiB,
          leaks: options.faults === true,
          weights: WEIGHTS,
          ...options,
        });
        expect(failed > 0).toBe(options.faults === true);
        // A run whose tables all stayed in memory would prove little.
        const evictions = (cache: 'l2' | 'counts'): number =>
          nodes.reduce((sum, node) => sum + node[cache].stats.evictions, 0);
        expect(Math.min(evictions('l2'), evictions('counts'))).toBeGreaterThan(0);
      });
    },
    SEED_TIMEOUT,
  );
});
