/** Mutation fuzz over images with all features on: damaged images, and a few of the things that can be done to an image, one after the other, in child
 *  processes of bounded memory (feature-exercise.ts says what is demanded). A tenth of the cases in the usual run; every case that ever failed, always.
 *  COWDISK_SEED takes another seed; the seed and the recipe of a failed case are part of the failure. */
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { compileInto } from './compile.ts';
import { FEATURES } from './features.ts';
import type { Recipe } from './mutate.ts';
import { type RunResult, runCases } from './runner.ts';

const LONG = process.env['COWDISK_LONG'] === '1';
const SEED = Number(process.env['COWDISK_SEED'] ?? 1);
const CASES = Number(process.env['COWDISK_FEATURE_CASES'] ?? (LONG ? 50_000 : 5_000));
const FIXTURES = fileURLToPath(new URL('../fixtures/hostile', import.meta.url));
const FAILURES = join(FIXTURES, 'feature-failures');
const PAST = readdirSync(FAILURES);
const CHILDREN = 2;
/** Processor time of one case. */
const LIMIT_MS = 1_000;
const PEAK_BYTES = 256 * 1024 * 1024;

/** A case that failed once. */
interface PastFailure {
  readonly was: string;
  readonly recipe: Recipe;
}

describe('whatever is done to a hostile image', () => {
  const code = mkdtempSync(join(tmpdir(), 'cowdisk-features-'));
  beforeAll(() => compileInto(code));
  afterAll(() => rmSync(code, { recursive: true, force: true }));

  const run = (options: { cases: number; recipes?: readonly Recipe[] }): Promise<RunResult> => {
    const directory = join(FIXTURES, 'bases');
    return runCases({
      code,
      directory,
      seed: SEED + 1_000_003,
      children: CHILDREN,
      limitMs: LIMIT_MS,
      suite: 'features',
      ...options,
    });
  };

  const expectFine = (result: RunResult): void => {
    const told = result.failures.slice(0, 5).map(({ index, recipe, what }) => {
      return `seed ${SEED}, case ${index}: ${what}\n  recipe ${JSON.stringify(recipe)}`;
    });
    expect(told, `${result.failures.length} failures`).toEqual([]);
    expect(result.peakBytes).toBeLessThan(PEAK_BYTES);
    expect(result.peakBytes).toBeGreaterThan(0);
  };

  it(`ends in right data or a clear error, and changes nothing else (${CASES} cases)`, {
    timeout: 3_600_000,
  }, async () => {
    const result = await run({ cases: CASES });
    expectFine(result);
    expect(result.cases).toBe(CASES);
    // every feature has its turn, and succeeds
    for (const { name } of FEATURES) {
      if (result.endings.has(`${name}: UNSUPPORTED qcow2.resize-shrink`)) continue;
      expect(result.endings.get(`${name}: ok`) ?? 0, name).toBeGreaterThan(CASES / 250);
    }
    for (const step of ['repair all', 'repair leaks', 'check', 'recheck']) {
      expect(result.endings.get(`${step}: ok`) ?? 0, step).toBeGreaterThan(CASES / 50);
    }
  });

  it('that failed once does not fail again', { timeout: 600_000 }, async () => {
    expect(PAST.length).toBeGreaterThan(0);
    const recipes = PAST.sort().map(
      (name) => (JSON.parse(readFileSync(join(FAILURES, name), 'utf8')) as PastFailure).recipe,
    );
    const result = await run({ cases: recipes.length, recipes });
    expectFine(result);
    expect(result.cases).toBe(recipes.length);
  });
});
