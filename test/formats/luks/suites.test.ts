/** luks under the suites that every format runs: the contract, the model, and the crash oracle. */
import { describe, expect, it } from 'vitest';
import { KiB } from '../../../src/base/sizes.ts';
import { ALL_RULES } from '../../../src/core/safety.ts';
import { type CrashTestOptions, runCrash } from '../../../src/testing/crash.ts';
import { formatConformance } from '../../../src/testing/format-suite.ts';
import { LateStore } from '../../../src/testing/late-store.ts';
import { findViolation, runModel } from '../../../src/testing/model.ts';
import { type LuksVariant, luksImage, luksUnderTest } from '../../support/luks-under-test.ts';

const LONG = process.env['COWDISK_LONG'] === '1';

/** Headers never change here; apart, they need not be copied for every state of a disk. */
const APART: LuksVariant = { detached: true, cipherAlg: 'aes-128' };
const CBC: LuksVariant = { cipherAlg: 'aes-128', cipherMode: 'cbc', ivgenAlg: 'essiv', ivgenHashAlg: 'sha256' };

formatConformance({ describe, it, name: 'luks', abilities: { discard: 'hint' }, unit: 4096, create: luksImage() });
formatConformance({
  describe,
  it,
  name: 'luks with CBC and ESSIV over a late store',
  abilities: { discard: 'hint' },
  unit: 4096,
  seed: 2,
  create: luksImage(CBC, (file) => new LateStore({ seed: 5, piecesPerTurn: 64 }, file)),
});

const MODEL = { size: 46 * KiB + 512, operations: 40, discard: 'hint', weights: { discard: 5 } } as const;

describe('luks under concurrent requests on late, unordered files', () => {
  it.each([
    ['whole sectors', {}],
    ['parts of sectors', { cellSize: 64, longest: 100 }],
    ['failing files', { faults: true }],
  ])('keeps to the model with %s', async (_, options) => {
    for (let seed = 1; seed <= (LONG ? 40 : 3); seed++) {
      await runModel(luksUnderTest(APART), { seed, ...MODEL, ...options });
    }
  });

  it('would be found out without the lock on sectors that are written in part', async () => {
    const run = (seed: number): Promise<unknown> =>
      runModel(luksUnderTest(APART), {
        seed,
        ...MODEL,
        cellSize: 64,
        longest: 12,
        weights: { write: 90 },
        rules: { ...ALL_RULES, rangeLock: false },
      });
    expect(await findViolation(run, 1, 40)).toBeDefined();
  });
});

describe('after a cut at any moment', () => {
  const base: Omit<CrashTestOptions, 'seed'> = {
    size: 12 * KiB + 512,
    operations: 40,
    states: LONG ? 20_000 : 80,
    discard: 'hint',
    weights: { flush: 8 },
  };

  it('every sector of a luks image holds its last flushed value or one written since', async () => {
    for (let seed = 1; seed <= (LONG ? 20 : 1); seed++) await runCrash(luksUnderTest(APART), { seed, ...base });
  });
});
