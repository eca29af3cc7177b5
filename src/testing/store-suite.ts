/** What every ByteStore promises, as tests: run it over a store of your own. Needs no test framework of its own: `describe` and
 *  `it` are passed in, failures are thrown. Parts that a store does not claim in `supports` are skipped.
 *  Invariant: each test has a fresh store and closes it; all randomness comes from the seed, which failures name. */
import { settleAll } from '../base/async.ts';
import { noise, seededRandom } from './random.ts';
import {
  BASE_SIZE,
  type Bench,
  type Case,
  ensure,
  type StoreSuiteOptions,
  type StoreUnderTest,
  type TestContextLike,
} from './store-bench.ts';
import { DATA_CASES } from './store-cases-data.ts';
import { LIFE_CASES } from './store-cases-life.ts';
import { SPACE_CASES } from './store-cases-space.ts';

export type { StoreSuiteOptions, StoreUnderTest, TestContextLike, TestFramework } from './store-bench.ts';

const CASES: readonly Case[] = [...DATA_CASES, ...SPACE_CASES, ...LIFE_CASES];

/** Defines the tests of the store contract. */
export function storeConformance(options: StoreSuiteOptions): void {
  options.describe(`${options.name} keeps the store contract`, () => {
    for (const testCase of CASES) {
      options.it(testCase[0], (context) => runCase(testCase, options, context));
    }
  });
}

async function runCase(
  [, needs, body]: Case,
  options: StoreSuiteOptions,
  context: TestContextLike | undefined,
): Promise<void> {
  const seed = options.seed ?? 1;
  const subject = await options.create();
  const applies = needs(subject.store, subject, options);
  try {
    if (applies) await body(await prepare(subject, seed, options));
  } catch (error) {
    const text = error instanceof Error ? error.message : String(error);
    throw new Error(`${options.name}, seed ${seed}: ${text}`, { cause: error });
  } finally {
    await settleAll([subject.store.close(), disposeAfter(subject)]);
  }
  // outside the try: frameworks skip by throwing
  if (!applies) context?.skip?.(`${options.name} does not claim it`);
}

async function disposeAfter(subject: StoreUnderTest): Promise<void> {
  // close is idempotent, so this waits for the same end; what it throws, the other call has thrown
  await subject.store.close().catch(() => undefined);
  await subject.dispose?.();
}

async function prepare(subject: StoreUnderTest, seed: number, options: StoreSuiteOptions): Promise<Bench> {
  const { store } = subject;
  ensure(store.supports.access === 'random', 'the suite is for stores of random access');
  ensure(store.supports.write, 'the suite needs a writable store');
  if (store.supports.truncate) {
    await store.truncate(0);
    await store.truncate(BASE_SIZE);
  }
  ensure(store.size >= BASE_SIZE, `the suite needs ${BASE_SIZE} bytes, the store has ${store.size}`);
  const random = seededRandom(seed);
  const model = noise(random, BASE_SIZE);
  await store.write(0, model);
  return { store, subject, size: store.size, align: store.limits.requestAlign, random, options, model };
}
