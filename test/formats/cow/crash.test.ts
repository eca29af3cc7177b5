/** cow, crashed at every moment of random runs in every way the stores allow: after writing, zeroing, discarding, and after commits, which
 *  empty the layer and record the time of its backing file; and while an image is created. */
import { describe, expect, it } from 'vitest';
import { type CrashTestOptions, runCrash } from '../../../src/testing/crash.ts';
import { type CowVariant, cowUnderTest } from '../../support/cow-under-test.ts';
import { everySeed, SEED_TIMEOUT } from '../../support/seeds.ts';

const KiB = 1024;
const LONG = process.env['COWDISK_LONG'] === '1';

const BASE: Omit<CrashTestOptions, 'seed'> = {
  size: 16 * KiB,
  operations: 40,
  states: LONG ? 10_000 : 700,
  weights: { flush: 8, discard: 12, zero: 12 },
};

type Variant = readonly [name: string, variant: CowVariant, options: Partial<CrashTestOptions>];

const VARIANTS: readonly Variant[] = [
  ['v3', {}, { backingSize: 16 * KiB }],
  ['v3 with a last sector that is short', {}, { cellSize: 64, size: 8 * KiB + 64, backingSize: 8 * KiB + 64 }],
  ['v3 written in parts of sectors', {}, { cellSize: 128, longest: 40, backingSize: 16 * KiB }],
  ['v2-uml-32', { layout: 'v2-uml-32' }, { backingSize: 16 * KiB }],
  ['v1-le32', { layout: 'v1-le32' }, { backingSize: 16 * KiB }],
  ['v1-be64', { layout: 'v1-be64' }, { size: 32 * KiB, backingSize: 32 * KiB }],
  ['v2-qemu-x86_64, which grows', { layout: 'v2-qemu-x86_64' }, {}],
  ['v2-qemu-i386 over a shorter backing file', { layout: 'v2-qemu-i386' }, { backingSize: 10 * KiB }],
  ['v3 with commits', { commits: true }, { weights: { flush: 8, share: 6, discard: 8 } }],
  [
    'v2-qemu-x86_64 with commits',
    { commits: true, layout: 'v2-qemu-x86_64' },
    { weights: { flush: 8, share: 6, discard: 8 } },
  ],
];

describe('after a cut at any moment every sector holds its last flushed value or one written since, and the image is sound: cow', () => {
  it.each(VARIANTS)(
    '%s',
    async (_name, variant, options) => {
      let states = 0;
      let widest = 0;
      await everySeed(1, async (seed) => {
        const report = await runCrash(cowUnderTest(variant), { seed, ...BASE, ...options });
        states += report.states;
        widest = Math.max(widest, report.widest);
      });
      // Both kinds of cut were there: few open writes, with all their subsets, and many.
      expect(states).toBeGreaterThan(300);
      expect(widest).toBeGreaterThan(8);
    },
    SEED_TIMEOUT,
  );
});
