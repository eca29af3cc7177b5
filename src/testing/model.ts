/** The model test: random concurrent requests on a format, over stores that answer late and out of order, with hardly any memory for tables,
 *  against a flat model. Exported for people who write formats; the crash test drives its guest with the same operations.
 *  What is right: after concurrent overlapping writes have ended, each cell holds what one of them wrote; a read concurrent with writes may
 *  see old or new, cell by cell; everything else is exact. Each run is decided by its seed alone, and every failure names it. */
import { isBlockError } from '../base/errors.ts';
import { alignDown, alignUp } from '../bytes/align.ts';
import { isZero } from '../bytes/zeros.ts';
import { ExtentList } from '../core/extent.ts';
import type { BlockNode } from '../core/node.ts';
import { ALL_RULES, type SafetyRules } from '../core/safety.ts';
import { CacheBudget } from '../core/table-cache.ts';
import { MemoryStore } from '../storage/memory.ts';
import { FaultStore } from './fault-store.ts';
import { backingContent, GuestHistory, ZERO_ID } from './guest-history.ts';
import { LateStore } from './late-store.ts';
import { below, seededRandom } from './random.ts';

/** A format as the harness sees it. Files are stores; the first one is the image. */
export interface FormatUnderTest {
  readonly name: string;
  /** Bytes. */
  readonly unit: number;
  /** A new image of `size` bytes: the content of each of its files. */
  create(size: number, options: { readonly hasBacking: boolean }): Promise<readonly Uint8Array[]>;
  open(files: readonly BlockNode[], options: OpenUnderTest): Promise<OpenedUnderTest>;
  /** Consistency of a closed (or crashed) image. May repair what the format repairs at open. */
  check(files: readonly Uint8Array[]): Promise<{ readonly corruptions: readonly string[]; readonly leaks: number }>;
}

export interface OpenUnderTest {
  readonly rules: SafetyRules;
  readonly cache: CacheBudget;
  readonly readOnly: boolean;
  readonly backing: BlockNode | undefined;
}

export interface OpenedUnderTest {
  readonly node: BlockNode;
  /** Freezes the present content (a snapshot), where the format can. */
  share?(): Promise<void>;
  /** The content frozen last; `undefined` when there is none. */
  readShared?(): Promise<Uint8Array | undefined>;
}

export interface GuestWeights {
  readonly read?: number;
  readonly write?: number;
  readonly zero?: number;
  readonly discard?: number;
  readonly compressed?: number;
  readonly flush?: number;
  readonly share?: number;
}

export interface GuestOptions {
  /** Bytes of the disk; a multiple of `cellSize`. */
  readonly size: number;
  /** Requests are multiples of it, and it is the granularity of what is checked. 512 by default. */
  readonly cellSize?: number;
  /** Requests at once at most. 6 by default. */
  readonly concurrency?: number;
  readonly weights?: GuestWeights;
  /** Cells of the longest request. */
  readonly longest?: number;
  /** Bytes of the backing file, which may be shorter or longer than the disk; none by default. */
  readonly backingSize?: number;
  /** What a discard of whole units does: they read as zero (default), or it is a hint. */
  readonly discard?: 'zeroes' | 'hint';
  readonly rules?: SafetyRules;
  /** Bytes of tables in memory. 0 by default: the least that every cache is allowed. */
  readonly cacheBytes?: number;
}

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

/** Something that must not be. `message` names the seed. */
export class ModelFailure extends Error {
  override readonly name = 'ModelFailure';
}

/** The guest: begins random requests and knows what each may see. */
export class Guest {
  readonly history: GuestHistory;
  readonly #opened: OpenedUnderTest;
  readonly #options: GuestOptions;
  readonly #unit: number;
  readonly #random: () => number;
  readonly #running = new Set<Promise<void>>();
  readonly #faults: boolean;
  #failure: { error: unknown } | undefined;
  /** Requests that failed as they were allowed to. */
  failed = 0;
  /** Frozen contents, as they were when frozen. */
  readonly #frozen: FrozenContents;

  constructor(
    opened: OpenedUnderTest,
    options: GuestOptions & { readonly faults?: boolean },
    unit: number,
    history: GuestHistory,
    random: () => number,
    frozen: FrozenContents,
  ) {
    this.history = history;
    this.#opened = opened;
    this.#options = options;
    this.#unit = unit;
    this.#random = random;
    this.#frozen = frozen;
    this.#faults = options.faults === true;
  }

  /** Runs `count` requests, several at once, and waits for all of them. @throws the first failure. */
  async run(count: number): Promise<void> {
    const most = this.#options.concurrency ?? 6;
    for (let i = 0; i < count && this.#failure === undefined; i++) {
      this.#start();
      while (this.#running.size > below(this.#random, most) && this.#failure === undefined) {
        await Promise.race(this.#running);
      }
    }
    while (this.#running.size > 0) await Promise.all(this.#running);
    if (this.#failure !== undefined) throw this.#failure.error;
  }

  #start(): void {
    const running: Promise<void> = this.#request()
      .catch((error: unknown) => {
        this.#failure ??= { error };
      })
      .finally(() => this.#running.delete(running));
    this.#running.add(running);
  }

  async #request(): Promise<void> {
    const {
      read = 20,
      write = 45,
      zero = 10,
      discard = 8,
      compressed = 0,
      flush = 5,
      share = 0,
    } = this.#options.weights ?? {};
    const kinds = [
      [write, () => this.#write()],
      [read, () => this.#read()],
      [zero, () => this.#zero()],
      [discard, () => this.#discard()],
      [compressed, () => this.#compressed()],
      [flush, () => this.flush()],
      [share, () => this.#share()],
    ] as const;
    let choice = below(
      this.#random,
      kinds.reduce((sum, [weight]) => sum + weight, 0),
    );
    for (const [weight, begin] of kinds) {
      if (choice < weight) return await begin();
      choice -= weight;
    }
  }

  /** A range of cells: mostly short, some long, some ending at the disk's end. */
  #range(): { first: number; count: number } {
    const { cells } = this.history;
    const longest = Math.min(this.#options.longest ?? 12, cells);
    const count = 1 + below(this.#random, below(this.#random, 4) === 0 ? longest : Math.min(3, longest));
    const first = below(this.#random, 20) === 0 ? cells - count : below(this.#random, cells - count + 1);
    return { first, count };
  }

  async #write(): Promise<void> {
    const { first, count } = this.#range();
    await this.#change(first, count, 'data', async (bytes) => {
      await this.#opened.node.write(first * this.history.cellSize, bytes, { fua: below(this.#random, 25) === 0 });
    });
  }

  async #compressed(): Promise<void> {
    const { first, count } = this.#range();
    const { cellSize, cells } = this.history;
    const start = alignDown(first * cellSize, this.#unit);
    const end = Math.min(alignUp((first + count) * cellSize, this.#unit), cells * cellSize);
    await this.#change(start / cellSize, (end - start) / cellSize, 'data', async (bytes) => {
      await this.#opened.node.write(start, bytes, { compressed: true });
    });
  }

  async #zero(): Promise<void> {
    const { first, count } = this.#range();
    const { cellSize } = this.history;
    await this.#change(first, count, 'zero', async () => {
      const unmap = below(this.#random, 2) === 0;
      await this.#opened.node.writeZeroes(first * cellSize, count * cellSize, { unmap });
    });
  }

  async #discard(): Promise<void> {
    const { first, count } = this.#range();
    const { cellSize, cells } = this.history;
    const size = cells * cellSize;
    const end = (first + count) * cellSize;
    const innerStart = alignUp(first * cellSize, this.#unit);
    const innerEnd = end === size ? end : alignDown(end, this.#unit);
    const inner = Math.max(0, innerEnd - innerStart) / cellSize;
    const certain = this.#options.discard !== 'hint';
    await this.#change(
      innerStart / cellSize,
      inner,
      'zero',
      async () => {
        await this.#opened.node.discard(first * cellSize, count * cellSize);
      },
      certain,
    );
  }

  async #change(
    first: number,
    count: number,
    kind: 'data' | 'zero',
    make: (bytes: Uint8Array) => Promise<void>,
    certain = true,
  ): Promise<void> {
    const write = this.history.begin(first, count, kind, certain);
    const bytes = new Uint8Array(kind === 'data' ? count * this.history.cellSize : 0);
    if (kind === 'data') this.history.stamp(bytes, first, write.id);
    try {
      await make(bytes);
    } catch (error) {
      this.history.end(write, true);
      this.#acceptFailure(error);
      return;
    } finally {
      // The buffer is the guest's again: whoever still uses it writes this.
      bytes.fill(0xee);
    }
    this.history.end(write);
  }

  #acceptFailure(error: unknown): void {
    if (!this.#faults || !isBlockError(error) || error.code === 'INTERNAL') throw error;
    this.failed++;
  }

  async #read(): Promise<void> {
    const { first, count } = this.#range();
    await this.#compare(first, count);
  }

  async #compare(first: number, count: number): Promise<void> {
    const { history } = this;
    const bytes = new Uint8Array(count * history.cellSize).fill(0xcc);
    const from = history.now();
    try {
      await this.#opened.node.read(first * history.cellSize, bytes);
    } catch (error) {
      this.#acceptFailure(error);
      return;
    }
    const to = history.now();
    const wrong = history.findWrong(bytes, first, (cell) => history.allowed(cell, from, to));
    if (wrong !== undefined) throw new ModelFailure(`read: ${wrong}`);
  }

  async flush(): Promise<void> {
    const flush = this.history.beginFlush();
    try {
      await this.#opened.node.flush();
    } catch (error) {
      this.#acceptFailure(error);
      return;
    }
    this.history.endFlush(flush);
  }

  async #share(): Promise<void> {
    if (this.#opened.share === undefined || this.#opened.readShared === undefined) return;
    // One at a time: which of two concurrent ones was last could not be told.
    const turn = this.#frozen.begin();
    if (turn === undefined) return;
    const { history } = this;
    const from = history.now();
    await this.#opened.share();
    const to = history.now();
    const content = await this.#opened.readShared();
    if (content === undefined) throw new ModelFailure('share: nothing was frozen');
    const allowed = Array.from({ length: history.cells }, (_, cell) => history.allowed(cell, from, to));
    this.#frozen.end(turn, { content, allowed });
    const wrong = history.findWrong(content, 0, (cell) => allowed[cell] ?? []);
    if (wrong !== undefined) throw new ModelFailure(`share: ${wrong}`);
  }

  /** With nothing running: every cell against the model, the status against the cells, the frozen content against what was frozen. */
  async verify(): Promise<void> {
    const { history } = this;
    const { node } = this.#opened;
    const bytes = new Uint8Array(history.cells * history.cellSize);
    await node.read(0, bytes);
    const now = history.now();
    const wrong = history.findWrong(bytes, 0, (cell) => history.allowed(cell, now, now));
    if (wrong !== undefined) throw new ModelFailure(`after everything had ended: ${wrong}`);
    const frozen = await this.#opened.readShared?.();
    const wrongFrozen = this.#frozen.findChange(frozen);
    if (wrongFrozen !== undefined) throw new ModelFailure(wrongFrozen);
    await verifyExtents(node, bytes);
  }

  /** Takes the present content for the history of all cells. */
  async settle(): Promise<void> {
    const { history } = this;
    const bytes = new Uint8Array(history.cells * history.cellSize);
    await this.#opened.node.read(0, bytes);
    for (let cell = 0; cell < history.cells; cell++) {
      history.settle(cell, history.identify(bytes, cell * history.cellSize, cell) as number);
    }
  }
}

/** What a `share` froze. */
interface Frozen {
  readonly content: Uint8Array;
  /** By cell: whose values it may hold. */
  readonly allowed: readonly (readonly number[])[];
}

/** The contents that `share` froze, with the times in which each was made. */
export class FrozenContents {
  readonly #tick: () => number;
  readonly #all: { readonly startTick: number; endTick: number; frozen: Frozen | undefined }[] = [];

  constructor(tick: () => number = () => 0) {
    this.#tick = tick;
  }

  /** `undefined` while another one runs. */
  begin(): object | undefined {
    if (this.#all.at(-1)?.endTick === Number.POSITIVE_INFINITY) return undefined;
    const turn = { startTick: this.#tick(), endTick: Number.POSITIVE_INFINITY, frozen: undefined };
    this.#all.push(turn);
    return turn;
  }

  end(turn: object, frozen: Frozen): void {
    const last = this.#all.at(-1);
    if (last === undefined || last !== turn) throw new Error('not the running share');
    last.frozen = frozen;
    last.endTick = this.#tick();
  }

  /** How many had been made at `tick`. */
  doneBy(tick: number): number {
    return this.#all.filter(({ endTick }) => endTick <= tick).length;
  }

  /** With nothing running: the content is the last one, byte for byte. */
  findChange(found: Uint8Array | undefined): string | undefined {
    const wanted = this.#all.at(-1)?.frozen?.content;
    if (wanted === undefined || found === undefined)
      return wanted === found ? undefined : 'a frozen content is missing';
    const at = firstDifference(found, wanted);
    return at < 0 ? undefined : `the frozen content has changed at offset ${at}`;
  }

  /** After a crash at `tick`. Where writes overlapped, any of them may have been last in the store: values are compared, not bytes. */
  findWrong(found: Uint8Array | undefined, tick: number, history: GuestHistory): string | undefined {
    const lastDone = this.#all.findLastIndex(({ endTick }) => endTick <= tick);
    // One that had begun may be there or not, with a content that was never asked for.
    if (this.#all.slice(lastDone + 1).some(({ startTick }) => startTick <= tick)) return undefined;
    const wanted = this.#all[lastDone]?.frozen;
    if (wanted === undefined || found === undefined)
      return wanted === found ? undefined : 'a frozen content is missing';
    const wrong = history.findWrong(found, 0, (cell) => wanted.allowed[cell] ?? []);
    return wrong === undefined ? undefined : `frozen: ${wrong}`;
  }
}

/** Where two buffers first differ; -1: nowhere. */
export function firstDifference(a: Uint8Array, b: Uint8Array): number {
  const length = Math.min(a.length, b.length);
  for (let i = 0; i < length; i++) if (a[i] !== b[i]) return i;
  return a.length === b.length ? -1 : length;
}

/** The extents cover the disk, and what they call zero reads as zero. */
export async function verifyExtents(node: BlockNode, content: Uint8Array): Promise<void> {
  const list = new ExtentList(16);
  for (let at = 0; at < node.size; at = list.end) {
    list.reset(at);
    await node.extents(at, node.size - at, list);
    if (list.end <= at) throw new ModelFailure(`extents: nothing is told about offset ${at}`);
    for (const { start, length, zero } of list) {
      if (!zero) continue;
      if (!isZero(content, start, start + length)) {
        throw new ModelFailure(`extents: something in [${start}, ${start + length}) is called zero and is not`);
      }
    }
  }
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
