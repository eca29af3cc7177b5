import { describe, expect, it } from 'vitest';
import { GiB } from '../../../src/base/sizes.ts';
import { ALL_RULES, type SafetyRules } from '../../../src/core/safety.ts';
import { findViolation, type ModelOptions, runModel } from '../../../src/testing/model.ts';
import { folding } from '../../support/add-cow-folded.ts';
import { type AddCowVariant, addCowUnderTest } from '../../support/add-cow-under-test.ts';

const LONG = process.env.COWDISK_LONG === '1';
const SEEDS = LONG ? 40 : 4;

const V9: AddCowVariant = { compat: 'v9' };
/** Five and a bit clusters. */
const V9_SIZE: Partial<ModelOptions> = { size: 336 * 1024, longest: 300 };
/** What was the disk's end is not its end any more, so a discard up to there leaves a part of a cluster. */
const GROWING: Partial<ModelOptions> = { weights: { share: 5 }, discard: 'hint' };
/** Each region has tables of its own, and more than memory holds. */
const SPREAD: AddCowVariant = { folding: folding(7, 2 * GiB, 8192) };
const SPREAD_V9: AddCowVariant = { ...V9, folding: folding(6, 32 * GiB, 128 * 1024) };

const VARIANTS: Record<string, readonly [AddCowVariant, Partial<ModelOptions>]> = {
  'V20, everything allocated': [{}, {}],
  'V20, a bitmap without backing file': [{ allAllocated: false }, {}],
  'V20 over a backing file': [{}, { backingSize: 46 * 1024 }],
  'V20 over a backing file that is shorter': [{}, { backingSize: 21 * 1024 }],
  'V20 over a backing file that is longer': [{}, { backingSize: 96 * 1024 }],
  'V20 with larger clusters': [{ clusterSize: 16 * 1024 }, { backingSize: 40 * 1024 }],
  'V20, requests smaller than a sector': [{}, { cellSize: 64, longest: 100, backingSize: 40 * 1024 }],
  'V20, a disk that grows over a longer backing file': [
    { grow: true },
    { backingSize: 60 * 1024, size: 41 * 1024, ...GROWING },
  ],
  'v9 without backing file': [V9, V9_SIZE],
  'v9 over a backing file': [V9, { ...V9_SIZE, backingSize: 300 * 1024 }],
  'v9, a disk that grows over a longer backing file': [
    { ...V9, grow: true },
    { ...V9_SIZE, backingSize: 600 * 1024, ...GROWING },
  ],
  'tables that do not fit into memory (A-022, A-023)': [SPREAD, { size: 56 * 1024, backingSize: 56 * 1024 }],
  'A-020: v9 and a disk far larger than 32 GiB': [
    SPREAD_V9,
    { size: 768 * 1024, backingSize: 768 * 1024, longest: 300 },
  ],
  'failing files': [{}, { faults: true, backingSize: 46 * 1024 }],
  'R5: failing files, and tables that do not fit into memory': [
    SPREAD,
    { faults: true, size: 56 * 1024, backingSize: 56 * 1024 },
  ],
};

const BASE = { size: 46 * 1024 + 512, operations: 40, weights: { discard: 10 }, leaks: false } as const;

describe('add-cow under concurrent requests on late, unordered files, with hardly any cache', () => {
  for (const [name, [variant, options]] of Object.entries(VARIANTS)) {
    it(`keeps to the model with ${name}`, async () => {
      for (let seed = 1; seed <= SEEDS; seed++) await runModel(addCowUnderTest(variant), { seed, ...BASE, ...options });
    });
  }
});

describe('the model test notices', () => {
  const rules: readonly (readonly [string, keyof SafetyRules, AddCowVariant, Partial<ModelOptions>])[] = [
    [
      'R10, R4: the loss of the rule rangeLock',
      'rangeLock',
      { clusterSize: 16 * 1024 },
      { backingSize: 46 * 1024, weights: { write: 80, read: 10, zero: 5 } },
    ],
    ['R8: the loss of the rule singleFlight', 'singleFlight', SPREAD, { size: 56 * 1024, backingSize: 56 * 1024 }],
    [
      'R3: the loss of the rule drain, on which resizing rests',
      'drain',
      { grow: true },
      { backingSize: 96 * 1024, size: 41 * 1024, weights: { share: 12, write: 80 } },
    ],
  ];
  for (const [name, rule, variant, options] of rules) {
    it(name, async () => {
      const found = await findViolation(
        (seed) =>
          runModel(addCowUnderTest(variant), { seed, ...BASE, ...options, rules: { ...ALL_RULES, [rule]: false } }),
        1,
        60,
      );
      expect(found, `no run failed without ${rule}`).toBeDefined();
    });
  }
});
