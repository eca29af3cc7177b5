/** cow under concurrent requests on late, unordered files, against a flat model. */
import { describe, expect, it } from 'vitest';
import { type ModelOptions, runModel } from '../../../src/testing/model.ts';
import { type CowVariant, cowUnderTest } from '../../support/cow-under-test.ts';
import { everySeed, SEED_TIMEOUT } from '../../support/seeds.ts';
import type { SegmentStore } from '../../support/segment-store.ts';

const KiB = 1024;
const SEEDS = 3;
const BASE = { size: 64 * KiB, operations: 40, weights: { discard: 10, zero: 12 } } as const;

type Variant = readonly [name: string, variant: CowVariant, options: Partial<ModelOptions>];

const VARIANTS: readonly Variant[] = [
  ['v3', {}, { backingSize: 64 * KiB }],
  ['v3-broken', { layout: 'v3-broken' }, { backingSize: 64 * KiB }],
  ['v2-uml-32', { layout: 'v2-uml-32' }, { backingSize: 64 * KiB }],
  ['v2-uml-64', { layout: 'v2-uml-64' }, { backingSize: 64 * KiB }],
  ['v2-uml-lp64long', { layout: 'v2-uml-lp64long' }, { backingSize: 64 * KiB }],
  ['v1-le32', { layout: 'v1-le32' }, { backingSize: 64 * KiB }],
  ['v1-le64', { layout: 'v1-le64' }, {}],
  ['v1-be32', { layout: 'v1-be32' }, { backingSize: 64 * KiB }],
  ['v1-be64', { layout: 'v1-be64' }, { backingSize: 64 * KiB }],
  ['v2-qemu-i386', { layout: 'v2-qemu-i386' }, { backingSize: 64 * KiB }],
  ['v2-qemu-x86_64 alone', { layout: 'v2-qemu-x86_64' }, { size: 50.5 * KiB }],
  ['v2-qemu-x86_64 over a shorter backing file', { layout: 'v2-qemu-x86_64' }, { backingSize: 40 * KiB }],
  ['v2-qemu-x86_64 over a longer backing file', { layout: 'v2-qemu-x86_64' }, { backingSize: 96 * KiB }],
  ['v3 with requests that are no multiples of sectors', {}, { cellSize: 64, longest: 60, backingSize: 64 * KiB }],
  ['v3 with many requests at once', {}, { concurrency: 24, longest: 40, backingSize: 64 * KiB }],
  ['v3 with a last sector that is short', {}, { cellSize: 64, size: 30 * KiB + 192, backingSize: 30 * KiB + 192 }],
  [
    'v3 that is committed into its backing file now and then',
    { commits: true },
    { weights: { share: 3, discard: 10 } },
  ],
  ['v2-qemu-x86_64 that is committed', { commits: true, layout: 'v2-qemu-x86_64' }, { weights: { share: 3 } }],
  ['v3 on failing files', {}, { faults: true, backingSize: 64 * KiB }],
  ['v2-qemu-x86_64 on failing files', { layout: 'v2-qemu-x86_64' }, { faults: true }],
];

describe('cow under concurrent requests on late, unordered files reads as the flat model says', () => {
  it.each(VARIANTS)(
    '%s',
    async (_name, variant, options) => {
      await everySeed(SEEDS, async (seed) => {
        const { failed } = await runModel(cowUnderTest(variant), { seed, leaks: false, ...BASE, ...options });
        expect(failed > 0).toBe(options.faults === true);
      });
    },
    SEED_TIMEOUT,
  );
});

describe('where the bitmap has more tables than memory has room for, cow reads as the flat model says', () => {
  const AT_BORDERS: readonly Variant[] = [
    ['v3', {}, { backingSize: 64 * KiB }],
    ['v2-qemu-x86_64', { layout: 'v2-qemu-x86_64' }, {}],
    ['v1-be64', { layout: 'v1-be64' }, { backingSize: 64 * KiB }],
    ['v3 with parts of sectors', {}, { cellSize: 64, longest: 60, backingSize: 64 * KiB }],
    ['v3 on failing files', {}, { faults: true, backingSize: 64 * KiB }],
  ];
  /** The borders lie between nine of them. */
  const TABLES = 9;

  it.each(AT_BORDERS)(
    '%s',
    async (_name, variant, options) => {
      await everySeed(SEEDS, async (seed) => {
        const files: SegmentStore[] = [];
        const format = cowUnderTest({ ...variant, borders: true, opened: (file) => files.push(file) });
        await runModel(format, { seed, leaks: false, ...BASE, operations: 60, rounds: 1, ...options });
        // A run whose tables all stayed in memory would prove little.
        const evicted = files.map(({ events }) => (events.get('bitmap_load') ?? 0) - TABLES);
        expect(Math.min(...evicted), `tables loaded again, seed ${seed}`).toBeGreaterThan(0);
      });
    },
    SEED_TIMEOUT,
  );
});
