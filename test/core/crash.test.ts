/** The test format, crashed at every moment of random runs in every way the store allows. */
import { describe, expect, it } from 'vitest';
import { type CrashTestOptions, runCrash } from '../../src/testing/crash.ts';
import { type BitmapVariant, bitmapUnderTest } from '../support/bitmap-under-test.ts';
import { everySeed, SEED_TIMEOUT } from '../support/seeds.ts';

const KiB = 1024;
const OPTIONS = { size: 16 * KiB, operations: 40, weights: { share: 2, compressed: 6, flush: 8 } };

type Variant = readonly [name: string, variant: BitmapVariant, options: Partial<CrashTestOptions>];

const VARIANTS: readonly Variant[] = [
  ['with tiny tables', {}, {}],
  ['with one table each', { tableSize: 256, countsTableSize: 256 }, {}],
  ['over a backing file', {}, { backingSize: 12 * KiB }],
  ['encrypted, in parts of sectors', { transform: 'host', unit: 2048 }, { cellSize: 128, longest: 40 }],
  [
    'that drops and reuses clusters all the time',
    { unit: 2048, spare: 230 },
    { weights: { write: 40, zero: 25, discard: 15, compressed: 10, flush: 10, read: 0 } },
  ],
  ['frozen again and again', { unit: 4096 }, { size: 14.5 * KiB, weights: { share: 8, flush: 8, read: 0 } }],
];

describe('after any crash every sector holds its last flushed value or a later one, and the image is sound: a disk', () => {
  it.each(VARIANTS)(
    '%s',
    async (_name, variant, options) => {
      let states = 0;
      let widest = 0;
      await everySeed(4, async (seed) => {
        const report = await runCrash(bitmapUnderTest(variant), { seed, ...OPTIONS, ...options });
        states += report.states;
        widest = Math.max(widest, report.widest);
      });
      // Both kinds of cut were there: few open writes, with all their subsets, and many.
      expect(states).toBeGreaterThan(1000);
      expect(widest).toBeGreaterThan(8);
    },
    SEED_TIMEOUT,
  );
});
