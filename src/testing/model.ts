/** The model test: random concurrent requests on a format, over stores that answer late and out of order, with hardly any memory for tables,
 *  against a flat model. Exported for people who write formats; the crash test drives its guest with the same operations.
 *  What is right: after concurrent overlapping writes have ended, each cell holds what one of them wrote; a read concurrent with writes may
 *  see old or new, cell by cell; everything else is exact. Each run is decided by its seed alone, and every failure names it. */
import { ALL_RULES } from '../core/safety.ts';
import { CacheBudget } from '../core/table-cache.ts';
import { MemoryStore } from '../storage/memory.ts';
import { FaultStore } from './fault-store.ts';
import { FrozenContents } from './frozen-contents.ts';
import { type FormatUnderTest, Guest, type GuestOptions, ModelFailure } from './guest.ts';
import { backingContent, GuestHistory, ZERO_ID } from './guest-history.ts';
import { LateStore } from './late-store.ts';
import { below, seededRandom } from './random.ts';

export {
  type FormatUnderTest,
  type GuestOptions,
  type GuestWeights,
  ModelFailure,
  type OpenedUnderTest,
  type OpenUnderTest,
} from './guest.ts';

export interface ModelOptions extends GuestOptions {
  readonly seed: number;
  /** Times that the image is closed, checked and opened again. 3 by default. */
  readonly sessions?: number;
  /** Requests between two comparisons with the model. 40 by default. */
  readonly operations?: number;
  /** Comparisons per session. 2 by default. */
  readonly rounds?: number;
  /** Some requests to the files fail; the guest's requests may then fail, and must be right all the same. */
  readonly faults?: boolean;
  /** Whether a closed image may have leaks. True by default: a format may leave what it dropped last for a repair. */
  readonly leaks?: boolean;
}

export interface ModelReport {
  readonly seed: number;
  readonly requests: number;
  /** Of these, how many failed because their files did. */
  readonly failed: number;
}

/** One run of the model test. @throws {@link ModelFailure} or whatever a request failed with; `message` begins with the seed. */
export async function runModel(format: FormatUnderTest, options: ModelOptions): Promise<ModelReport> {
  try {
    return await runSessions(format, options);
  } catch (error) {
    throw new ModelFailure(`${format.name}, seed ${options.seed}: ${String((error as Error).message)}`, {
      cause: error,
    });
  }
}

async function runSessions(format: FormatUnderTest, options: ModelOptions): Promise<ModelReport> {
  const { seed, size, cellSize = 512, sessions = 3, rounds = 2, operations = 40, backingSize } = options;
  const random = seededRandom(seed);
  const backing = backingSize === undefined ? undefined : backingContent(backingSize, cellSize, seed + 1);
  const history = new GuestHistory(size, cellSize, (cell) => backing?.id(cell) ?? ZERO_ID);
  const created = await format.create(size, { hasBacking: backing !== undefined });
  let files = created.map((bytes) => MemoryStore.from(bytes, { pageSize: 4096 }));
  const frozen = new FrozenContents();
  let failed = 0;
  for (let session = 0; session < sessions; session++) {
    const faults = files.map((file) => new FaultStore(new LateStore({ seed: below(random, 2 ** 31) }, file)));
    const cache = new CacheBudget(options.cacheBytes ?? 0);
    const late = backing && new LateStore({ seed: below(random, 2 ** 31) }, MemoryStore.from(backing.bytes));
    const rules = options.rules ?? ALL_RULES;
    const opened = await format.open(faults, { rules, cache, readOnly: false, backing: late });
    const guest = new Guest(opened, options, format.unit, history, random, frozen);
    try {
      for (let round = 0; round < rounds; round++) {
        if (options.faults === true) for (const store of faults) addFaults(store, random);
        await guest.run(operations);
        for (const store of faults) store.heal();
        await guest.verify();
        await guest.settle();
      }
    } finally {
      failed += guest.failed;
      await opened.node.close();
    }
    const { corruptions, leaks } = await format.check(files.map((file) => file.bytes()));
    if (corruptions.length > 0) throw new ModelFailure(`check: ${corruptions.join('; ')}`);
    if (leaks > 0 && options.leaks === false) throw new ModelFailure(`check: ${leaks} leaks after it was closed`);
    files = files.map((file) => file.reopen());
  }
  return { seed, requests: sessions * rounds * operations, failed };
}

function addFaults(store: FaultStore, random: () => number): void {
  const kinds = ['read', 'write', 'flush', 'discard'] as const;
  for (let i = 0; i < 6; i++) {
    const on = kinds[below(random, kinds.length)] as (typeof kinds)[number];
    store.fail({
      on,
      nth: 1 + below(random, on === 'flush' ? 4 : 40),
      late: random() < 0.5,
      carriedOut: random() < 0.3,
    });
  }
}

/** Tries seeds until one run fails: the proof that the harness would notice. @returns the failure, or `undefined` when none did. */
export async function findViolation(
  run: (seed: number) => Promise<unknown>,
  firstSeed: number,
  seeds: number,
): Promise<{ readonly seed: number; readonly error: Error } | undefined> {
  for (let seed = firstSeed; seed < firstSeed + seeds; seed++) {
    try {
      await run(seed);
    } catch (error) {
      return { seed, error: error as Error };
    }
  }
  return undefined;
}
