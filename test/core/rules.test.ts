/** Each safety rule, switched off, makes the model test or the crash oracle fail: the proof that they would notice its loss. The same
 *  seeds pass with every rule on. */
import { describe, expect, it } from 'vitest';
import { ALL_RULES, type SafetyRules } from '../../src/core/safety.ts';
import { runCrash } from '../../src/testing/crash.ts';
import { findViolation, runModel } from '../../src/testing/model.ts';
import { bitmapUnderTest } from '../support/bitmap-under-test.ts';
import { SEED_TIMEOUT } from '../support/seeds.ts';

const KiB = 1024;
const MODEL = { size: 64 * KiB, weights: { share: 3, compressed: 6 } };
const CRASH = { size: 16 * KiB, operations: 40, weights: { share: 2, compressed: 6, flush: 8 } };

type Run = (seed: number, rules: SafetyRules) => Promise<unknown>;
const model: Run = (seed, rules) => runModel(bitmapUnderTest(), { seed, ...MODEL, rules });
const crash: Run = (seed, rules) =>
  runCrash(bitmapUnderTest({ tableSize: 64, countsTableSize: 32 }), { seed, ...CRASH, rules });
/** Long requests in place, while the disk is frozen over and over. */
const freezing: Run = (seed, rules) =>
  runModel(bitmapUnderTest({ unit: 4096 }), {
    seed,
    size: 32 * KiB,
    concurrency: 10,
    longest: 24,
    cacheBytes: 64 * KiB,
    sessions: 1,
    rounds: 6,
    weights: { write: 60, share: 12, read: 5, zero: 2, discard: 0 },
    rules,
  });

const PROOFS: readonly (readonly [rule: keyof SafetyRules, how: string, run: Run])[] = [
  ['rangeLock', 'the model test', model],
  ['drain', 'the model test', freezing],
  ['deferredFree', 'the crash oracle', crash],
  ['refcountsFirst', 'the crash oracle', crash],
  ['dataFirst', 'the crash oracle', crash],
  ['singleFlight', 'the model test', model],
  ['edgeFromOwnMapping', 'the model test', model],
  ['copyAtWriteBack', 'the crash oracle', crash],
];

describe('without the rule', () => {
  it.each(PROOFS)(
    '%s, %s fails',
    async (rule, _how, run) => {
      const violation = await findViolation((seed) => run(seed, { ...ALL_RULES, [rule]: false }), 1, 40);
      expect(violation, `no seed of 1 to 40 has shown the loss of ${rule}`).toBeDefined();
      expect(violation?.error.message).toContain(`seed ${violation?.seed}`);
      await run(violation?.seed ?? 0, ALL_RULES);
    },
    SEED_TIMEOUT,
  );
});
