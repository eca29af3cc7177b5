import { describe, expect, it } from 'vitest';
import { ALL_RULES, type SafetyRules } from '../../../src/core/safety.ts';
import { findViolation, type ModelOptions, runModel } from '../../../src/testing/model.ts';
import { type Qcow2Variant, qcow2UnderTest } from '../../support/qcow2-under-test.ts';

const LONG = process.env.COWDISK_LONG === '1';
const SEEDS = LONG ? 40 : 4;

/** Nothing is compressed in an encrypted image. */
const PLAIN = { compressed: 0, discard: 10 };

const VARIANTS: Record<string, readonly [Qcow2Variant, Partial<ModelOptions>]> = {
  'small clusters': [{}, {}],
  'version 2': [{ compat: 'v2' }, {}],
  'a backing file shorter than the disk': [{}, { backingSize: 24 * 1024 }],
  'a backing file longer than the disk': [{}, { backingSize: 96 * 1024 }],
  'refcounts of 1 bit': [{ refcountBits: 1 }, {}],
  'refcounts of 2 bits': [{ refcountBits: 2, content: 'writes' }, {}],
  'refcounts of 4 bits': [{ refcountBits: 4 }, {}],
  'refcounts of 8 bits': [{ refcountBits: 8, clusterSize: 1024 }, {}],
  'refcounts of 32 bits': [{ refcountBits: 32 }, {}],
  'refcounts of 64 bits': [{ refcountBits: 64, content: 'writes' }, {}],
  'lazy refcounts': [{ lazyRefcounts: true }, {}],
  'clusters shared with a snapshot': [{ content: 'shared' }, {}],
  subclusters: [{ extendedL2: true }, { size: 128 * 1024 }],
  'subclusters over a backing file': [{ extendedL2: true }, { size: 128 * 1024, backingSize: 70 * 1024 }],
  'requests smaller than a sector': [{ clusterSize: 2048 }, { cellSize: 64, longest: 100 }],
  'a refcount table that must grow': [{ refcountBits: 64, spareClusters: 40 }, {}],
  'an L1 table that must grow': [{ grow: true }, { weights: { share: 4, compressed: 5 } }],
  'snapshots made, applied and deleted': [{ snapshots: true }, { weights: { share: 6, compressed: 6, discard: 10 } }],
  'snapshots over a backing file': [
    { snapshots: true, clusterSize: 1024 },
    { backingSize: 40 * 1024, weights: { share: 6 } },
  ],
  'snapshots with refcounts of 4 bits': [
    { snapshots: true, refcountBits: 4 },
    // compressed clusters share theirs, and each counts: 15 are soon reached
    { weights: { share: 6 } },
  ],
  'snapshots with lazy refcounts': [{ snapshots: true, lazyRefcounts: true }, { weights: { share: 6, compressed: 6 } }],
  'snapshots of subclusters': [
    { snapshots: true, extendedL2: true },
    { size: 128 * 1024, backingSize: 70 * 1024, weights: { share: 6, compressed: 6 } },
  ],
  'legacy AES': [{ encryption: 'aes' }, { weights: PLAIN, backingSize: 24 * 1024 }],
  'legacy AES and requests smaller than a sector': [
    { encryption: 'aes', clusterSize: 2048 },
    { cellSize: 64, longest: 100, weights: PLAIN },
  ],
  'LUKS, snapshots, a backing file': [
    { encryption: 'luks', snapshots: true, clusterSize: 4096 },
    { size: 128 * 1024, backingSize: 70 * 1024, weights: { ...PLAIN, share: 6 } },
  ],
  'LUKS and subclusters': [
    { encryption: 'luks', extendedL2: true, snapshots: true },
    { size: 128 * 1024, backingSize: 70 * 1024, cellSize: 64, weights: { ...PLAIN, share: 6 } },
  ],
  'LUKS, version 2': [{ encryption: 'luks', compat: 'v2', clusterSize: 4096 }, { weights: PLAIN }],
  'LUKS and failing files': [
    { encryption: 'luks', clusterSize: 4096 },
    { faults: true, weights: PLAIN },
  ],
  'failing files': [{}, { faults: true }],
  'failing files under shared clusters': [{ content: 'shared' }, { faults: true }],
};

const BASE = { size: 48 * 1024, operations: 40, weights: { compressed: 6, discard: 10 } } as const;

describe('qcow2 under concurrent requests on late, unordered files, with hardly any cache', () => {
  for (const [name, [variant, options]] of Object.entries(VARIANTS)) {
    it(`keeps to the model with ${name} (Q-103)`, async () => {
      // every image of them is unlocked anew
      const seeds = name.startsWith('LUKS') ? SEEDS / 2 : SEEDS;
      for (let seed = 1; seed <= seeds; seed++) await runModel(qcow2UnderTest(variant), { seed, ...BASE, ...options });
    });
  }
});

describe('the model test notices', () => {
  const rules: readonly (readonly [keyof SafetyRules, Qcow2Variant, Partial<ModelOptions>])[] = [
    ['rangeLock', { clusterSize: 4096 }, { weights: { write: 80, read: 10, zero: 5 } }],
    ['singleFlight', {}, {}],
    ['edgeFromOwnMapping', { clusterSize: 2048, content: 'writes' }, { weights: { compressed: 25 } }],
    ['drain', { snapshots: true }, { concurrency: 12, weights: { share: 12, write: 60 } }],
    ['deferredFree', {}, { concurrency: 16, weights: { discard: 30, flush: 15, read: 60 } }],
  ];
  for (const [rule, variant, options] of rules) {
    it(`the loss of the rule ${rule}`, async () => {
      const found = await findViolation(
        (seed) =>
          runModel(qcow2UnderTest(variant), { seed, ...BASE, ...options, rules: { ...ALL_RULES, [rule]: false } }),
        1,
        60,
      );
      expect(found, `no run failed without ${rule}`).toBeDefined();
    });
  }
});
