/** Each safety rule that a cow image depends on, switched off, makes the model test or the crash oracle fail: the proof that they would
 *  notice its loss. The same seeds pass with every rule on. */
import { describe, expect, it } from 'vitest';
import { ALL_RULES, type SafetyRules } from '../../../src/core/safety.ts';
import { type CrashTestOptions, runCrash } from '../../../src/testing/crash.ts';
import { findViolation, type ModelOptions, runModel } from '../../../src/testing/model.ts';
import { type CowVariant, cowUnderTest } from '../../support/cow-under-test.ts';
import { SEED_TIMEOUT } from '../../support/seeds.ts';

const KiB = 1024;

type Run = (seed: number, rules: SafetyRules) => Promise<unknown>;

const model =
  (variant: CowVariant, options: Partial<ModelOptions>): Run =>
  (seed, rules) =>
    runModel(cowUnderTest(variant), { seed, size: 64 * KiB, sessions: 1, ...options, rules });

const crash =
  (variant: CowVariant, options: Partial<CrashTestOptions>): Run =>
  (seed, rules) =>
    runCrash(cowUnderTest(variant), { seed, size: 16 * KiB, operations: 40, states: 600, ...options, rules });

const OVER_BASE = { backingSize: 64 * KiB };

const PROOFS: readonly (readonly [rule: keyof SafetyRules, how: string, run: Run])[] = [
  // Two writes into one sector that is not there yet each bring the rest of it from the backing file.
  ['rangeLock', 'the model test', model({}, { ...OVER_BASE, cellSize: 64, size: 16 * KiB, weights: { write: 80 } })],
  ['singleFlight', 'the model test', model({}, OVER_BASE)],
  // A commit while others write drops what they have written since it read.
  [
    'drain',
    'the model test',
    model({ commits: true }, { concurrency: 10, rounds: 4, weights: { share: 10, write: 60 } }),
  ],
  ['dataFirst', 'the crash oracle', crash({}, { backingSize: 16 * KiB })],
  ['copyAtWriteBack', 'the crash oracle', crash({}, { backingSize: 16 * KiB })],
];

describe('without the rule', () => {
  it.each(PROOFS)(
    '%s, %s fails on a cow image',
    async (rule, _how, run) => {
      const violation = await findViolation((seed) => run(seed, { ...ALL_RULES, [rule]: false }), 1, 40);
      expect(violation, `no seed of 1 to 40 has shown the loss of ${rule}`).toBeDefined();
      expect(violation?.error.message).toContain(`seed ${violation?.seed}`);
      await run(violation?.seed ?? 0, ALL_RULES);
    },
    SEED_TIMEOUT,
  );
});

describe('a rule that is about something a cow image does not have changes nothing:', () => {
  const IDLE: readonly (readonly [rule: keyof SafetyRules, why: string])[] = [
    ['edgeFromOwnMapping', 'a sector that needs edges is not there, so its old mapping is the backing file, always'],
    ['deferredFree', 'sectors have fixed places and are never given to others'],
    ['refcountsFirst', 'nothing is counted'],
  ];
  it.each(IDLE)(
    '%s (%s)',
    async (rule) => {
      const rules = { ...ALL_RULES, [rule]: false };
      for (let seed = 1; seed <= 2; seed++) {
        await model({}, { ...OVER_BASE, cellSize: 64 })(seed, rules);
        await crash({}, { backingSize: 16 * KiB, states: 200 })(seed, rules);
      }
    },
    SEED_TIMEOUT,
  );
});
