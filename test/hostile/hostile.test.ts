/** Hostile input: thousands of damaged images, each opened, mapped, read, checked, written and repaired in a child process of bounded
 *  memory. A tenth of the cases in the usual run, all of them in the long one; every case that ever failed, always.
 *  COWDISK_SEED takes another seed; the seed and the recipe of a failed case are part of the failure. */
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { loadBases } from './bases.ts';
import { compileInto } from './compile.ts';
import { Mutator, type Recipe } from './mutate.ts';
import { type RunResult, runCases } from './runner.ts';

const LONG = process.env['COWDISK_LONG'] === '1';
const SEED = Number(process.env['COWDISK_SEED'] ?? 1);
const CASES = LONG ? 20_000 : 2_000;
/** Each kind of field, at least. */
const HITS = LONG ? 100 : 10;
const FIXTURES = fileURLToPath(new URL('../fixtures/hostile', import.meta.url));
const BASES = join(FIXTURES, 'bases');
const FAILURES = join(FIXTURES, 'failures');
const CHILDREN = 2;
/** Processor time of one case: everything from opening to the last look after a repair. */
const LIMIT_MS = 1_000;
const PEAK_BYTES = 256 * 1024 * 1024;

/** A case that failed once. */
interface PastFailure {
  /** What went wrong then. */
  readonly was: string;
  readonly recipe: Recipe;
}

function pastFailures(): PastFailure[] {
  return readdirSync(FAILURES)
    .sort()
    .map((name) => JSON.parse(readFileSync(join(FAILURES, name), 'utf8')) as PastFailure);
}

describe('a hostile image', () => {
  const code = mkdtempSync(join(tmpdir(), 'cowdisk-hostile-'));
  beforeAll(() => compileInto(code));
  afterAll(() => rmSync(code, { recursive: true, force: true }));

  const run = (options: { cases: number; recipes?: readonly Recipe[] }): Promise<RunResult> =>
    runCases({ code, directory: BASES, seed: SEED, children: CHILDREN, limitMs: LIMIT_MS, ...options });

  const expectFine = (result: RunResult): void => {
    const told = result.failures.slice(0, 5).map(({ index, recipe, what }) => {
      return `seed ${SEED}, case ${index}: ${what}\n  recipe ${JSON.stringify(recipe)}`;
    });
    expect(told, `${result.failures.length} failures`).toEqual([]);
    expect(result.peakBytes).toBeLessThan(PEAK_BYTES);
    expect(result.peakBytes).toBeGreaterThan(0);
  };

  it(`gives right data or a clear error, in bounded time and memory (${CASES} cases)`, {
    timeout: 3_600_000,
  }, async () => {
    const { kinds } = new Mutator(loadBases(BASES), SEED);
    const result = await run({ cases: CASES });
    expectFine(result);
    expect(result.cases).toBe(CASES);
    // half of them set one field, each kind as often as the others
    const hits = kinds.map((kind) => [kind, result.hits.get(kind) ?? 0] as const);
    const rare = hits.filter(([, count]) => count < HITS);
    expect(rare).toEqual([]);
    expect(hits.reduce((sum, [, count]) => sum + count, 0)).toBe(CASES / 2);
    expect(kinds.length).toBe(77);
    // and the cases are not all refused at the door
    for (const step of [
      'open',
      'info',
      'map',
      'read',
      'check',
      'rw',
      'write',
      'zero',
      'discard',
      'compressed',
      'repair',
    ]) {
      expect(result.endings.get(`${step}: ok`) ?? 0, step).toBeGreaterThan(CASES / 50);
    }
  });

  it('that failed once does not fail again', { timeout: 600_000 }, async () => {
    const recipes = pastFailures().map(({ recipe }) => recipe);
    expect(recipes.length).toBeGreaterThan(0);
    const result = await run({ cases: recipes.length, recipes });
    expectFine(result);
    expect(result.cases).toBe(recipes.length);
  });

  it('is the same for the same seed, and another for another', () => {
    const bases = loadBases(BASES);
    const recipes = (seed: number): Recipe[] => {
      const mutator = new Mutator(bases, seed);
      return Array.from({ length: 200 }, (_, index) => mutator.recipe(index));
    };
    expect(recipes(7)).toEqual(recipes(7));
    expect(recipes(7)).not.toEqual(recipes(8));
  });
});
