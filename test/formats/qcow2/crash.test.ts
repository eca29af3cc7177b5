import { describe, expect, it } from 'vitest';
import { ALL_RULES, type SafetyRules } from '../../../src/core/safety.ts';
import { type CrashTestOptions, runCrash } from '../../../src/testing/crash.ts';
import { findViolation } from '../../../src/testing/model.ts';
import { type Qcow2Variant, qcow2UnderTest } from '../../support/qcow2-under-test.ts';

const LONG = process.env.COWDISK_LONG === '1';
const SEEDS = LONG ? 20 : 2;

/** Nothing is compressed in an encrypted image. */
const PLAIN = { compressed: 0, flush: 8, discard: 12 };

const VARIANTS: Record<string, readonly [Qcow2Variant, Partial<CrashTestOptions>]> = {
  'new clusters': [{}, {}],
  'overwritten compressed clusters, zero marks and their reuse': [
    { content: 'writes' },
    { weights: { compressed: 15, discard: 20, zero: 15, flush: 8 } },
  ],
  'clusters shared with a snapshot': [{ content: 'shared' }, {}],
  'a backing file': [{}, { backingSize: 10 * 1024 }],
  'refcounts of 1 bit': [{ refcountBits: 1 }, {}],
  'refcounts of 64 bits': [{ refcountBits: 64 }, {}],
  'lazy refcounts': [{ lazyRefcounts: true }, { states: 800 }],
  'subclusters over a backing file': [{ extendedL2: true }, { size: 64 * 1024, backingSize: 40 * 1024 }],
  'snapshots made, applied and deleted': [{ snapshots: true }, { weights: { share: 8, flush: 8, compressed: 6 } }],
  'snapshots with refcounts of 64 bits over a backing file': [
    { snapshots: true, refcountBits: 64 },
    { backingSize: 10 * 1024, weights: { share: 8, flush: 8 } },
  ],
  'snapshots with lazy refcounts': [
    { snapshots: true, lazyRefcounts: true },
    { states: 800, weights: { share: 8, flush: 8 } },
  ],
  'growth of the L1 table': [{ grow: true }, { weights: { share: 5, flush: 8, compressed: 4 } }],
  'encryption by legacy AES': [{ encryption: 'aes' }, { weights: PLAIN, states: LONG ? 5000 : 600 }],
  'encryption by LUKS, and snapshots': [
    { encryption: 'luks', snapshots: true, clusterSize: 4096 },
    // every state is unlocked
    { size: 64 * 1024, weights: { ...PLAIN, share: 8 }, states: LONG ? 400 : 40 },
  ],
  'growth of the refcount table': [
    { refcountBits: 64, spareClusters: 24 },
    { states: LONG ? 3000 : 500, weights: { write: 80, flush: 8 } },
  ],
};

const BASE = {
  size: 16 * 1024,
  operations: 40,
  states: LONG ? 20_000 : 2500,
  weights: { compressed: 6, flush: 8, discard: 12 },
};

describe('after a cut at any moment, every sector holds its last flushed value or one written since, and check finds leaks at most', () => {
  for (const [name, [variant, options]] of Object.entries(VARIANTS)) {
    it(`with ${name} (Q-101, Q-115)`, async () => {
      for (let seed = 1; seed <= SEEDS; seed++) await runCrash(qcow2UnderTest(variant), { seed, ...BASE, ...options });
    });
  }
});

describe('the crash test notices', () => {
  const rules: readonly (readonly [keyof SafetyRules, Qcow2Variant, Partial<CrashTestOptions>])[] = [
    ['refcountsFirst', {}, {}],
    // Where refcounts are flushed first, that flush covers the data; with lazy refcounts nothing else does.
    ['dataFirst', { lazyRefcounts: true }, {}],
    ['copyAtWriteBack', {}, {}],
    ['drain', { snapshots: true }, { weights: { share: 15, write: 60, flush: 6 } }],
    ['deferredFree', {}, { weights: { discard: 30, compressed: 10, write: 50, flush: 6 } }],
  ];
  for (const [rule, variant, options] of rules) {
    it(`the loss of the rule ${rule}`, async () => {
      const found = await findViolation(
        (seed) =>
          runCrash(qcow2UnderTest(variant), { seed, ...BASE, ...options, rules: { ...ALL_RULES, [rule]: false } }),
        1,
        30,
      );
      expect(found, `no run failed without ${rule}`).toBeDefined();
    });
  }
});
