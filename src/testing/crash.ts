/** The crash oracle: runs a random guest over recording stores, then crashes it at every moment and in every way the stores allow, and opens
 *  what is left. Exported for people who write formats.
 *  What is right after any cut: every cell holds its last flushed value or one written since; the image checks with leaks at most;
 *  what was frozen and flushed reads as it was. Ways: of the writes that no flush covers, all subsets when they are few, else all but one,
 *  only one, and seeded subsets; writes torn at 512 bytes. Discards that reach the disk leave bytes that mean nothing.
 *  Each run is decided by its seed alone, and every failure names it. */
import type { BlockNode } from '../core/node.ts';
import { ALL_RULES } from '../core/safety.ts';
import { CacheBudget } from '../core/table-cache.ts';
import { MemoryStore } from '../storage/memory.ts';
import { FrozenContents, firstDifference } from './frozen-contents.ts';
import {
  type FormatUnderTest,
  Guest,
  type GuestOptions,
  ModelFailure,
  type OpenedUnderTest,
  verifyExtents,
} from './guest.ts';
import { BACKING_ID, backingContent, GuestHistory, ZERO_ID } from './guest-history.ts';
import { LateStore } from './late-store.ts';
import { below, seededRandom } from './random.ts';
import { type LogEntry, RecordingStore, SECTOR, WriteLog } from './recording-store.ts';

export interface CrashTestOptions extends GuestOptions {
  readonly seed: number;
  /** Guest requests of the run. 60 by default. */
  readonly operations?: number;
  /** States at most that are opened; where there would be more, cuts are skipped evenly. 4,000 by default. */
  readonly states?: number;
  /** One in so many states is also written to afterwards, closed and checked. 40 by default. */
  readonly lifeGoesOn?: number;
}

export interface CrashReport {
  readonly seed: number;
  readonly cuts: number;
  readonly states: number;
  /** Most writes that were open at one cut. */
  readonly widest: number;
}

/** Up to so many open writes, all their subsets are tried. */
const EXHAUSTIVE = 8;
const SEEDED_SUBSETS = 50;

/** One crash run. @throws {@link ModelFailure}; `message` names seed, cut and state. */
export async function runCrash(format: FormatUnderTest, options: CrashTestOptions): Promise<CrashReport> {
  try {
    const recorded = await record(format, options);
    return await new CrashExplorer(format, options, recorded).explore();
  } catch (error) {
    throw new ModelFailure(`${format.name}, seed ${options.seed}: ${String((error as Error).message)}`, {
      cause: error,
    });
  }
}

interface Recorded {
  readonly bases: readonly Uint8Array[];
  readonly stores: readonly RecordingStore[];
  readonly log: WriteLog;
  readonly history: GuestHistory;
  readonly frozen: FrozenContents;
  readonly backing: Uint8Array | undefined;
}

/** Runs the guest, and ends without closing anything: the crash comes first. */
async function record(format: FormatUnderTest, options: CrashTestOptions): Promise<Recorded> {
  const { seed, size, cellSize = 512, backingSize, operations = 60 } = options;
  const random = seededRandom(seed);
  const backing = backingSize === undefined ? undefined : backingContent(backingSize, cellSize, seed + 1);
  const log = new WriteLog();
  const history = new GuestHistory(
    size,
    cellSize,
    (cell) => backing?.id(cell) ?? ZERO_ID,
    () => log.tick,
  );
  const frozen = new FrozenContents(() => log.tick);
  const bases = await format.create(size, { hasBacking: backing !== undefined });
  const stores = bases.map((bytes) => {
    const late = new LateStore({ seed: below(random, 2 ** 31) }, MemoryStore.from(bytes, { pageSize: 4096 }));
    return new RecordingStore(late, { log });
  });
  const opened = await format.open(stores, {
    rules: options.rules ?? ALL_RULES,
    cache: new CacheBudget(options.cacheBytes ?? 0),
    readOnly: false,
    backing: backing === undefined ? undefined : MemoryStore.from(backing.bytes),
  });
  const guest = new Guest(opened, options, format.unit, history, random, frozen);
  await guest.run(operations);
  await guest.verify();
  await opened.node.close();
  return { bases, stores, log, history, frozen, backing: backing?.bytes };
}

/** Whether an entry of the log reaches the disk: `true`, or which of its sectors do. */
type Kept = true | ((sector: number) => boolean);
type State = ReadonlyMap<LogEntry, Kept>;

class CrashExplorer {
  readonly #format: FormatUnderTest;
  readonly #options: CrashTestOptions;
  readonly #recorded: Recorded;
  readonly #random: () => number;
  /** Changes of all files, in the order they began. */
  readonly #changes: readonly LogEntry[];
  /** Content of each file after the first `#settled` changes, which are all durable. */
  readonly #images: GrowingImage[];
  #settled = 0;
  /** Flushes in the order they ended, how many of them had ended at the cut, and the latest begin of those. */
  readonly #flushes: readonly LogEntry[];
  #flushesEnded = 0;
  readonly #covered = new Map<RecordingStore, number>();
  #states = 0;
  #widest = 0;

  constructor(format: FormatUnderTest, options: CrashTestOptions, recorded: Recorded) {
    this.#format = format;
    this.#options = options;
    this.#recorded = recorded;
    this.#random = seededRandom(options.seed + 77);
    this.#changes = recorded.log.entries.filter(({ kind }) => kind !== 'flush' && kind !== 'read');
    this.#flushes = recorded.log.entries
      .filter(({ kind, ended, failed }) => kind === 'flush' && ended !== undefined && !failed)
      .sort((a, b) => (a.ended as number) - (b.ended as number));
    this.#images = recorded.bases.map((bytes) => new GrowingImage(bytes));
  }

  async explore(): Promise<CrashReport> {
    const { log, history, frozen } = this.#recorded;
    const { states: most = 4000 } = this.#options;
    const cuts = this.#changes.length + 1;
    let before = '';
    for (let cut = 0; cut < cuts; cut++) {
      // The last moment before the next change begins: what had ended by then has ended.
      const tick = this.#changes[cut]?.began ?? log.tick;
      const open = this.#openAt(cut, tick);
      this.#widest = Math.max(this.#widest, open.length);
      const certain = `${cut - open.length} ${history.flushedBy(tick)} ${frozen.doneBy(tick)}`;
      if (this.#states > (most * cut) / cuts) {
        before = '';
        continue;
      }
      // With nothing more certain than at the last cut, states without the newest change are those of that cut.
      const newest = certain === before ? this.#changes[cut - 1] : undefined;
      before = certain;
      const allowed = this.#allowedAt(tick);
      for (const state of this.#subsets(open, newest)) await this.#try(cut, tick, open, state, allowed);
    }
    return { seed: this.#options.seed, cuts, states: this.#states, widest: this.#widest };
  }

  /** The changes begun before the cut that no flush makes certain; moves on what is certain and has nothing open before it. */
  #openAt(cut: number, tick: number): LogEntry[] {
    for (; this.#flushes[this.#flushesEnded]?.ended !== undefined; this.#flushesEnded++) {
      const { ended, began, store } = this.#flushes[this.#flushesEnded] as LogEntry;
      if ((ended as number) > tick) break;
      this.#covered.set(store, Math.max(this.#covered.get(store) ?? -1, began));
    }
    const open: LogEntry[] = [];
    for (let i = this.#settled; i < cut; i++) {
      const entry = this.#changes[i] as LogEntry;
      const { ended, failed, fua, store } = entry;
      const done = ended !== undefined && ended <= tick && !failed;
      if (!done || (!fua && ended >= (this.#covered.get(store) ?? -1))) open.push(entry);
      else if (open.length === 0) {
        this.#apply(this.#images, entry, true);
        this.#settled = i + 1;
      }
    }
    return open;
  }

  #allowedAt(tick: number): (cell: number) => readonly number[] {
    const cells: (readonly number[])[] = [];
    return (cell) => {
      cells[cell] ??= this.#recorded.history.allowedAfterCrash(cell, tick);
      return cells[cell];
    };
  }

  /** @param newest where given, states without it are left out. */
  *#subsets(open: readonly LogEntry[], newest: LogEntry | undefined): Generator<State> {
    if (open.length <= EXHAUSTIVE) {
      for (let mask = 0; mask < 2 ** open.length; mask++) {
        const state = new Map<LogEntry, Kept>();
        open.forEach((entry, i) => {
          if (Math.floor(mask / 2 ** i) % 2 === 1) state.set(entry, true);
        });
        if (newest === undefined || state.has(newest)) yield state;
      }
      if (open.some(isTearable)) for (let i = 0; i < 4; i++) yield this.#seeded(open);
      return;
    }
    const all = new Map<LogEntry, Kept>(open.map((entry) => [entry, true]));
    yield all;
    // Shuffled, because a run with very many states stops early.
    for (const entry of this.#shuffled(open)) {
      const without = new Map(all);
      without.delete(entry);
      yield without;
      yield new Map([[entry, true]]);
      yield this.#seeded(open);
    }
    for (let i = open.length; i < SEEDED_SUBSETS; i++) yield this.#seeded(open);
  }

  #shuffled(open: readonly LogEntry[]): LogEntry[] {
    const entries = [...open];
    for (let i = entries.length - 1; i > 0; i--) {
      const j = below(this.#random, i + 1);
      [entries[i], entries[j]] = [entries[j] as LogEntry, entries[i] as LogEntry];
    }
    return entries;
  }

  /** A random subset in which writes may be torn. */
  #seeded(open: readonly LogEntry[]): State {
    const state = new Map<LogEntry, Kept>();
    for (const entry of open) {
      const choice = this.#random();
      if (choice < 0.4) continue;
      if (choice < 0.7 || !isTearable(entry)) {
        state.set(entry, true);
        continue;
      }
      const sectors = new Set<number>();
      for (let at = entry.offset; at < entry.offset + entry.length; at += SECTOR - (at % SECTOR)) {
        if (this.#random() < 0.5) sectors.add(Math.floor(at / SECTOR));
      }
      state.set(entry, (sector) => sectors.has(sector));
    }
    return state;
  }

  #apply(images: readonly GrowingImage[], entry: LogEntry, kept: Kept): void {
    images[this.#recorded.stores.indexOf(entry.store)]?.apply(entry, kept);
  }

  async #try(
    cut: number,
    tick: number,
    open: readonly LogEntry[],
    state: State,
    allowed: (cell: number) => readonly number[],
  ): Promise<void> {
    this.#states++;
    const images = this.#images.map((image) => image.copy());
    for (let i = this.#settled; i < cut; i++) {
      const entry = this.#changes[i] as LogEntry;
      const kept = open.includes(entry) ? state.get(entry) : true;
      if (kept !== undefined) this.#apply(images, entry, kept);
    }
    try {
      await this.#examine(images, tick, allowed);
    } catch (error) {
      const kept = [...state].map(([entry, how]) => `${entry.index}${how === true ? '' : ' torn'}`).join(', ');
      throw new ModelFailure(
        `cut before change ${cut} of ${this.#changes.length}, with open writes [${kept}]: ${String((error as Error).message)}`,
        { cause: error },
      );
    }
  }

  /** Opens what the crash has left and looks at all of it. */
  async #examine(
    images: readonly GrowingImage[],
    tick: number,
    allowed: (cell: number) => readonly number[],
  ): Promise<void> {
    const { history, frozen } = this.#recorded;
    const contents = images.map((image) => image.bytes());
    await this.#check(contents);
    const readOnly = await this.#open(contents, true);
    const bytes = new Uint8Array(history.cells * history.cellSize);
    await readOnly.node.read(0, bytes);
    const wrong = history.findWrong(bytes, 0, allowed);
    if (wrong !== undefined) throw new ModelFailure(wrong);
    const wrongFrozen = frozen.findWrong(await readOnly.readShared?.(), tick, history);
    if (wrongFrozen !== undefined) throw new ModelFailure(wrongFrozen);
    await verifyExtents(readOnly.node, bytes);
    await readOnly.node.close();
    if (this.#states % (this.#options.lifeGoesOn ?? 40) === 0) await this.#goOn(contents, bytes);
  }

  async #check(contents: readonly Uint8Array[]): Promise<void> {
    const { corruptions } = await this.#format.check(contents);
    if (corruptions.length > 0) throw new ModelFailure(`check: ${corruptions.join('; ')}`);
  }

  /** After the crash life goes on: the image is written to again, and must still be sound and right. */
  async #goOn(contents: readonly Uint8Array[], expected: Uint8Array): Promise<void> {
    const { history } = this.#recorded;
    const files = contents.map((content) => MemoryStore.from(content, { pageSize: 4096 }));
    const opened = await this.#open(files, false);
    for (let i = 0; i < 4; i++) {
      const cell = below(this.#random, history.cells);
      const at = cell * history.cellSize;
      history.stamp(expected.subarray(at, at + history.cellSize), cell, BACKING_ID);
      await opened.node.write(at, expected.subarray(at, at + history.cellSize));
    }
    await opened.node.flush();
    const found = new Uint8Array(expected.length);
    await opened.node.read(0, found);
    await opened.node.close();
    const wrong = firstDifference(found, expected);
    if (wrong >= 0) throw new ModelFailure(`written to after the crash: offset ${wrong} is wrong`);
    await this.#check(files.map((file) => file.bytes()));
  }

  #open(contents: readonly (Uint8Array | MemoryStore)[], readOnly: boolean): Promise<OpenedUnderTest> {
    const { backing } = this.#recorded;
    const files: BlockNode[] = contents.map((content) =>
      content instanceof MemoryStore ? content : MemoryStore.from(content, { pageSize: 4096 }),
    );
    return this.#format.open(files, {
      rules: ALL_RULES,
      cache: new CacheBudget(1024 * 1024),
      readOnly,
      backing: backing === undefined ? undefined : MemoryStore.from(backing),
    });
  }
}

function isTearable(entry: LogEntry): boolean {
  return (
    entry.kind !== 'truncate' &&
    Math.floor(entry.offset / SECTOR) < Math.floor((entry.offset + entry.length - 1) / SECTOR)
  );
}

/** What a discard leaves. */
const JUNK = 0xdb;

class GrowingImage {
  #bytes: Uint8Array;
  #size: number;

  constructor(content: Uint8Array, size = content.length) {
    this.#bytes = content.slice();
    this.#size = size;
  }

  copy(): GrowingImage {
    return new GrowingImage(this.#bytes, this.#size);
  }

  bytes(): Uint8Array {
    return this.#bytes.subarray(0, this.#size);
  }

  apply(entry: LogEntry, kept: Kept): void {
    if (entry.kind === 'truncate') {
      this.#resize(entry.offset);
      return;
    }
    // A discard never makes a file longer.
    const end =
      entry.kind === 'discard' ? Math.min(entry.offset + entry.length, this.#size) : entry.offset + entry.length;
    for (let at = entry.offset; at < end; ) {
      const next = kept === true ? end : Math.min(at - (at % SECTOR) + SECTOR, end);
      if (kept === true || kept(Math.floor(at / SECTOR))) this.#put(entry, at, next);
      at = next;
    }
  }

  #put(entry: LogEntry, start: number, end: number): void {
    if (end > this.#size) this.#resize(end);
    if (entry.data !== undefined) this.#bytes.set(entry.data.subarray(start - entry.offset, end - entry.offset), start);
    else this.#bytes.fill(entry.kind === 'discard' ? JUNK : 0, start, end);
  }

  #resize(size: number): void {
    if (size > this.#bytes.length) {
      const grown = new Uint8Array(Math.max(size, this.#bytes.length * 2));
      grown.set(this.#bytes);
      this.#bytes = grown;
    }
    if (size < this.#size) this.#bytes.fill(0, size, this.#size);
    this.#size = size;
  }
}
