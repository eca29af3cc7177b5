/** The one cache of metadata tables (L1 and L2 slices, refcount blocks, BATs, bitmaps) and the one implementation of ordered write-back.
 *  Invariants:
 *  - one table, one copy: N callers of an absent table share one read (single flight);
 *  - a table used across an await is leased; a leased or dirty table is never evicted;
 *  - a table is written only after everything it was ordered after is durable (`writeAfter`, `writeAfterFlush`), and the bytes written are
 *    those of the moment at which these orders were collected: they are copied first, so that a later change waits for its own orders;
 *  - a failed write leaves the table dirty, with its orders;
 *  - orders point one way only: table → what it refers to. The opposite order throws INTERNAL instead of deadlocking. */
import { isPromise, type MaybePromise, type Pending } from '../base/async.ts';
import { assert, BlockError, hex } from '../base/errors.ts';
import { later } from '../base/job.ts';
import { alignDown } from '../bytes/align.ts';
import type { FlushGate } from './flush-gate.ts';
import type { Durability } from './in-flight.ts';
import { ALL_RULES, type SafetyRules } from './safety.ts';
import type { BlockEvent, ByteStore } from './store.ts';

/** How much memory the tables of one image may take, shared by all its caches. Bytes.
 *  Every cache may hold MIN_TABLES whatever the budget says, so that work can always go on. */
export class CacheBudget {
  readonly limit: number;
  used = 0;

  constructor(limit: number) {
    this.limit = limit;
  }
}

const MIN_TABLES = 4;

/** A table in memory. Read it synchronously and drop it, or lease it. */
export interface Table {
  /** Host offset of its first byte. */
  readonly offset: number;
  readonly bytes: Uint8Array;
  readonly view: DataView;
}

/** A table pinned for use across awaits and for change; give it back with `release` (or `using`). */
export interface TableLease extends Disposable {
  readonly table: Table;
  /** Marks bytes `[start, end)` of the table as changed. Call it in the same synchronous stretch as the change. */
  markDirty(start: number, end: number): void;
  release(): void;
}

export interface CacheStats {
  readonly hits: number;
  readonly loads: number;
  readonly writes: number;
  readonly evictions: number;
}

export interface TableCacheOptions {
  /** For messages: `L2 tables`. */
  readonly name: string;
  readonly store: ByteStore;
  /** Flushes of `store`. */
  readonly gate: FlushGate;
  /** Bytes of one table; a slice of a larger one where the format's table is big. */
  readonly tableSize: number;
  /** Bytes outside `[regionStart, regionEnd)` are never written and read as zero. */
  readonly regionStart?: number;
  readonly regionEnd?: number;
  readonly budget: CacheBudget;
  /** Keep no orders: nothing need be durable before the final flush. */
  readonly unordered?: boolean;
  /** Throws CORRUPT for a table that cannot be right. */
  validate?(table: Table): void;
  /** Overlap check. */
  beforeWrite?(offset: number, length: number): Pending;
  /** Clean tables that nobody has asked for in this time, and twice that at most, are dropped, milliseconds; 0 or not given: never. */
  readonly cleanEveryMs?: number;
  readonly loadEvent?: BlockEvent;
  readonly writeEvent?: BlockEvent;
  readonly rules?: SafetyRules;
}

class Slot implements Table, TableLease {
  readonly offset: number;
  readonly bytes: Uint8Array;
  readonly view: DataView;
  dirtyStart = 0;
  /** 0: clean. */
  dirtyEnd = 0;
  generation = 0;
  pins = 0;
  recent = true;
  /** By index of the cache's order lists. */
  cacheOrders: number[] = [];
  gateOrders: number[] = [];
  readonly #cache: TableCache;

  constructor(cache: TableCache, offset: number, size: number) {
    this.#cache = cache;
    this.offset = offset;
    this.bytes = new Uint8Array(size);
    this.view = new DataView(this.bytes.buffer);
  }

  get table(): Table {
    return this;
  }

  markDirty(start: number, end: number): void {
    this.#cache.noteChange(this, start, end);
  }

  release(): void {
    assert(this.pins > 0, `table at ${hex(this.offset)} released twice`);
    this.pins--;
  }

  [Symbol.dispose](): void {
    this.release();
  }
}

interface Loading {
  cancelled: boolean;
  promise: Promise<Slot> | undefined;
}

interface Copy {
  readonly slot: Slot;
  readonly generation: number;
  readonly offset: number;
  readonly bytes: Uint8Array;
}

export class TableCache implements Durability {
  readonly name: string;
  readonly tableSize: number;
  readonly #options: TableCacheOptions;
  readonly #rules: SafetyRules;
  readonly #slots = new Map<number, Slot>();
  readonly #loading = new Map<number, Loading>();
  /** Caches and stores that changes are ordered after, and the mark that applies to changes made from now on. */
  readonly #afterCaches: { readonly cache: TableCache; mark: number }[] = [];
  readonly #afterGates: { readonly gate: FlushGate; mark: number }[] = [];
  readonly #cleanEveryMs: number;
  /** Set while there is something that could be dropped. */
  #stopCleaning: (() => void) | undefined;
  #hand: IterableIterator<Slot> | undefined;
  #generation = 0;
  #writtenGeneration = 0;
  #durableGeneration = 0;
  #writing: Promise<void> | undefined;
  #background: Promise<void> | undefined;
  #hits = 0;
  #loads = 0;
  #writes = 0;
  #evictions = 0;

  constructor(options: TableCacheOptions) {
    this.name = options.name;
    this.tableSize = options.tableSize;
    this.#options = options;
    this.#rules = options.rules ?? ALL_RULES;
    this.#cleanEveryMs = options.cleanEveryMs ?? 0;
  }

  /** Rises with every change. */
  get generation(): number {
    return this.#generation;
  }

  /** Every change up to it is durable. */
  get durableGeneration(): number {
    return this.#durableGeneration;
  }

  get stats(): CacheStats {
    return { hits: this.#hits, loads: this.#loads, writes: this.#writes, evictions: this.#evictions };
  }

  get dirty(): boolean {
    return this.#generation > this.#writtenGeneration;
  }

  /** The table, if it is in memory. Valid until the next await. */
  peek(offset: number): Table | undefined {
    const slot = this.#slots.get(offset);
    if (slot === undefined) return undefined;
    this.#hits++;
    slot.recent = true;
    return slot;
  }

  /** The table, from memory or the store. Never waits for a flush: it evicts clean tables only, and passes the budget where all are dirty. */
  load(offset: number): MaybePromise<Table> {
    const slot = this.#slots.get(offset);
    if (slot !== undefined) {
      this.#hits++;
      slot.recent = true;
      return slot;
    }
    return this.#load(offset);
  }

  /** The table, pinned. Makes room first: may write back and wait. */
  lease(offset: number): MaybePromise<TableLease> {
    const slot = this.#slots.get(offset);
    if (slot !== undefined) {
      this.#hits++;
      return pin(slot);
    }
    const room = this.#makeRoom();
    if (room !== undefined) return this.#leaseAfter(room, offset);
    const loaded = this.#load(offset);
    return isPromise(loaded) ? this.#pinLoaded(offset, loaded) : pin(loaded);
  }

  async #leaseAfter(room: Promise<void>, offset: number): Promise<TableLease> {
    await room;
    // Somebody else may have loaded it, and changed it, while we waited for room.
    const slot = this.#slots.get(offset);
    return slot === undefined ? await this.#pinLoaded(offset, this.#load(offset)) : pin(slot);
  }

  /** Between the end of a load and our turn the table may have been evicted, and changed by others since: look it up again. */
  async #pinLoaded(offset: number, loading: MaybePromise<Slot>): Promise<TableLease> {
    let loaded = await loading;
    for (;;) {
      const present = this.#slots.get(offset);
      if (present !== undefined) return pin(present);
      if (!this.#rules.singleFlight) return pin(loaded);
      loaded = await this.#load(offset);
    }
  }

  /** A new table of zeros at `offset`, dirty and pinned; what the store held there does not matter. */
  leaseNew(offset: number): MaybePromise<TableLease> {
    const room = this.#makeRoom();
    return room === undefined ? this.#newTable(offset) : this.#newAfter(room, offset);
  }

  async #newAfter(room: Promise<void>, offset: number): Promise<TableLease> {
    await room;
    return this.#newTable(offset);
  }

  #newTable(offset: number): TableLease {
    const loading = this.#loading.get(offset);
    if (loading !== undefined) loading.cancelled = true;
    this.#loading.delete(offset);
    const slot = this.#slots.get(offset) ?? this.#take(offset);
    slot.bytes.fill(0);
    this.#slots.set(offset, slot);
    this.noteChange(slot, 0, this.tableSize);
    return pin(slot);
  }

  /** Changes made from now on are written only after everything `other` holds changed now is durable. Call it BEFORE the change. */
  writeAfter(other: TableCache): void {
    if (this.#options.unordered === true || !this.#rules.refcountsFirst) return;
    if (other.#reaches(this)) {
      throw new BlockError(
        'INTERNAL',
        `internal error: ${this.name} ordered after ${other.name}, which is ordered after it`,
      );
    }
    const mark = other.#generation;
    const known = this.#afterCaches.find((after) => after.cache === other);
    if (known === undefined) this.#afterCaches.push({ cache: other, mark });
    else known.mark = mark;
  }

  /** Changes made from now on are written only after what `gate`'s store has completed by now is durable. Call it BEFORE the change. */
  writeAfterFlush(gate: FlushGate): void {
    if (this.#options.unordered === true || !this.#rules.dataFirst) return;
    const mark = gate.ticket();
    const known = this.#afterGates.find((after) => after.gate === gate);
    if (known === undefined) this.#afterGates.push({ gate, mark });
    else known.mark = mark;
  }

  #reaches(target: TableCache): boolean {
    return this === target || this.#afterCaches.some((after) => after.cache.#reaches(target));
  }

  /** Writes every dirty table, in its order; the store's own flush is the caller's. */
  writeBack(): Pending {
    return this.#writtenGeneration >= this.#generation ? undefined : this.#writeBackTo(this.#generation);
  }

  async #writeBackTo(generation: number): Promise<void> {
    while (this.#writtenGeneration < generation) {
      if (this.#writing !== undefined) {
        // Somebody's failure is told to them; our own turn meets it again if it lasts, because the tables stay dirty.
        await this.#writing.catch(() => undefined);
        continue;
      }
      const running = this.#writeOnce();
      this.#writing = running;
      try {
        await running;
      } finally {
        this.#writing = undefined;
      }
    }
  }

  /** Makes every change up to `generation` durable. */
  async makeDurable(generation: number): Promise<void> {
    if (this.#durableGeneration >= generation) return;
    if (this.#writtenGeneration < generation) await this.#writeBackTo(generation);
    const written = this.#writtenGeneration;
    await this.#options.gate.settle(this.#options.gate.ticket());
    this.noteFlushed(written);
  }

  /** For a caller that has flushed the store itself: what had been written up to `generation` before that flush is durable. */
  noteFlushed(generation: number): void {
    if (generation > this.#durableGeneration) this.#durableGeneration = generation;
  }

  /** Every change up to it has been written to the store, if not flushed. */
  get writtenGeneration(): number {
    return this.#writtenGeneration;
  }

  /** One pass over the dirty tables: copy, settle the orders, write, mark clean. */
  async #writeOnce(): Promise<void> {
    const upTo = this.#generation;
    const copies: Copy[] = [];
    const cacheOrders = this.#afterCaches.map(() => 0);
    const gateOrders = this.#afterGates.map(() => 0);
    for (const slot of this.#slots.values()) {
      if (slot.dirtyEnd === 0) continue;
      slot.cacheOrders.forEach((mark, i) => {
        cacheOrders[i] = Math.max(cacheOrders[i] ?? 0, mark);
      });
      slot.gateOrders.forEach((mark, i) => {
        gateOrders[i] = Math.max(gateOrders[i] ?? 0, mark);
      });
      const dirty = slot.bytes.subarray(slot.dirtyStart, slot.dirtyEnd);
      copies.push({
        slot,
        generation: slot.generation,
        offset: slot.offset + slot.dirtyStart,
        bytes: this.#rules.copyAtWriteBack ? dirty.slice() : dirty,
      });
    }
    copies.sort((a, b) => a.offset - b.offset);
    for (let i = 0; i < cacheOrders.length; i++) {
      await this.#afterCaches[i]?.cache.makeDurable(cacheOrders[i] as number);
    }
    for (let i = 0; i < gateOrders.length; i++) {
      const settled = this.#afterGates[i]?.gate.settle(gateOrders[i] as number);
      if (settled !== undefined) await settled;
    }
    for (const copy of copies) {
      // Forgotten while we waited: its space may hold something else by now.
      if (this.#slots.get(copy.slot.offset) !== copy.slot || copy.slot.generation < copy.generation) continue;
      await this.#writeCopy(copy);
      this.#writes++;
      if (copy.slot.generation === copy.generation) {
        copy.slot.dirtyStart = 0;
        copy.slot.dirtyEnd = 0;
      }
    }
    this.#writtenGeneration = Math.max(this.#writtenGeneration, upTo);
    if (copies.length > 0) this.#cleanLater();
  }

  async #writeCopy({ offset, bytes }: Copy): Promise<void> {
    const { store, regionStart = 0, regionEnd = Number.MAX_SAFE_INTEGER, beforeWrite, writeEvent } = this.#options;
    const start = Math.max(offset, regionStart);
    const end = Math.min(offset + bytes.length, regionEnd);
    if (start >= end) return;
    await beforeWrite?.(start, end - start);
    if (writeEvent !== undefined) await store.event?.(writeEvent);
    await store.write(start, bytes.subarray(start - offset, end - offset));
  }

  /** Drops the table at `offset`, changes included: its space is no table any more. A write of it may be under way: `quiesce` before
   *  the space is used for anything else. */
  forget(offset: number): void {
    const loading = this.#loading.get(offset);
    if (loading !== undefined) loading.cancelled = true;
    this.#loading.delete(offset);
    const slot = this.#slots.get(offset);
    if (slot === undefined) return;
    assert(slot.pins === 0, `${this.name}: table at ${hex(offset)} forgotten while in use`);
    this.#slots.delete(offset);
    this.#giveBack(slot);
  }

  /** Drops every table; changes that were not written are lost. */
  forgetAll(): void {
    for (const offset of [...this.#slots.keys()]) this.forget(offset);
    for (const loading of this.#loading.values()) loading.cancelled = true;
    this.#loading.clear();
    this.#writtenGeneration = this.#generation;
    this.stop();
  }

  /** Ends the cache's use: its tables have been replaced by others that are durable, so whatever was ordered after them is free to go. */
  retire(): void {
    this.forgetAll();
    this.#durableGeneration = this.#generation;
  }

  /** For `TableLease.markDirty` only. */
  noteChange(slot: Slot, start: number, end: number): void {
    slot.generation = ++this.#generation;
    if (slot.dirtyEnd === 0) {
      slot.dirtyStart = start;
      slot.dirtyEnd = end;
      slot.cacheOrders.length = 0;
      slot.gateOrders.length = 0;
    } else {
      slot.dirtyStart = Math.min(slot.dirtyStart, start);
      slot.dirtyEnd = Math.max(slot.dirtyEnd, end);
    }
    for (let i = 0; i < this.#afterCaches.length; i++) slot.cacheOrders[i] = this.#afterCaches[i]?.mark ?? 0;
    for (let i = 0; i < this.#afterGates.length; i++) slot.gateOrders[i] = this.#afterGates[i]?.mark ?? 0;
  }

  #load(offset: number): MaybePromise<Slot> {
    assert(alignDown(offset, this.tableSize) === offset, `${this.name}: ${hex(offset)} is no table offset`);
    const running = this.#loading.get(offset);
    if (running?.promise !== undefined && this.#rules.singleFlight) return running.promise;
    if (!this.#evictFor()) this.#startBackgroundWriteBack();
    const slot = this.#take(offset);
    const loading: Loading = { cancelled: false, promise: undefined };
    let pending: Pending;
    try {
      pending = this.#read(slot);
    } catch (error) {
      this.#giveBack(slot);
      throw error;
    }
    if (pending === undefined) return this.#loaded(slot);
    loading.promise = this.#finishLoad(slot, loading, pending);
    this.#loading.set(offset, loading);
    return loading.promise;
  }

  #read(slot: Slot): Pending {
    const { store, regionStart = 0, regionEnd = Number.MAX_SAFE_INTEGER, loadEvent } = this.#options;
    this.#loads++;
    const start = Math.max(0, regionStart - slot.offset);
    const end = Math.min(this.tableSize, regionEnd - slot.offset);
    if (start > 0 || end < this.tableSize) slot.bytes.fill(0);
    const into = start === 0 && end === this.tableSize ? slot.bytes : slot.bytes.subarray(start, Math.max(start, end));
    const announced = loadEvent === undefined ? undefined : store.event?.(loadEvent);
    if (announced !== undefined) return this.#readAfter(announced, slot.offset + start, into);
    return store.read(slot.offset + start, into);
  }

  async #readAfter(announced: Promise<void>, at: number, into: Uint8Array): Promise<void> {
    await announced;
    await this.#options.store.read(at, into);
  }

  async #finishLoad(slot: Slot, loading: Loading, pending: Promise<void>): Promise<Slot> {
    const { offset } = slot;
    try {
      await pending;
    } catch (error) {
      if (this.#loading.get(offset) === loading) this.#loading.delete(offset);
      this.#giveBack(slot);
      throw error;
    }
    if (this.#loading.get(offset) === loading) this.#loading.delete(offset);
    if (loading.cancelled) {
      // Forgotten or made anew while we read: what we read is history; the caller sees the present.
      const present = this.#slots.get(offset);
      this.#giveBack(slot);
      return present ?? (await this.#load(offset));
    }
    return this.#loaded(slot);
  }

  #loaded(slot: Slot): Slot {
    try {
      this.#options.validate?.(slot);
    } catch (error) {
      this.#giveBack(slot);
      throw error;
    }
    this.#slots.set(slot.offset, slot);
    slot.recent = true;
    this.#cleanLater();
    return slot;
  }

  /** Always a new one: whoever waits for a load may come to look at a table that has been evicted since, and must find the old bytes in it. */
  #take(offset: number): Slot {
    this.#options.budget.used += this.tableSize;
    return new Slot(this, offset, this.tableSize);
  }

  #giveBack(slot: Slot): void {
    this.#options.budget.used -= this.tableSize;
    slot.dirtyEnd = 0;
  }

  #cleanLater(): void {
    if (this.#cleanEveryMs > 0) this.#stopCleaning ??= later(this.#cleanEveryMs, () => this.#dropUnused());
  }

  #dropUnused(): void {
    this.#stopCleaning = undefined;
    let more = false;
    for (const slot of this.#slots.values()) {
      if (slot.recent || slot.pins > 0) slot.recent = false;
      else if (slot.dirtyEnd === 0) {
        this.#slots.delete(slot.offset);
        this.#giveBack(slot);
        this.#evictions++;
        continue;
      }
      more ||= slot.dirtyEnd === 0;
    }
    // Changed tables can only go once they have been written: that is when the next look is due.
    if (more) this.#cleanLater();
  }

  /** No look at what nobody uses is taken any more: the image is closed. */
  stop(): void {
    this.#stopCleaning?.();
    this.#stopCleaning = undefined;
  }

  get #overBudget(): boolean {
    const { budget } = this.#options;
    return this.#slots.size + this.#loading.size >= MIN_TABLES && budget.used + this.tableSize > budget.limit;
  }

  /** Evicts clean tables until one more fits (CLOCK: a hit gives a second chance). @returns false when the dirty ones are too many. */
  #evictFor(): boolean {
    let tries = 2 * this.#slots.size + 1;
    while (this.#overBudget) {
      if (tries-- <= 0) return false;
      let next = this.#hand?.next();
      if (next === undefined || next.done === true) {
        this.#hand = this.#slots.values();
        next = this.#hand.next();
        if (next.done === true) return false;
      }
      const slot: Slot = next.value;
      if (slot.pins > 0 || slot.dirtyEnd > 0) continue;
      if (slot.recent) {
        slot.recent = false;
        continue;
      }
      this.#slots.delete(slot.offset);
      this.#giveBack(slot);
      this.#evictions++;
    }
    return true;
  }

  /** Room for one more table, writing dirty ones back where that is what it takes. */
  #makeRoom(): Pending {
    if (this.#evictFor()) return undefined;
    return this.#writeBackTo(this.#generation);
  }

  /** Readers do not wait for it. A failure here is not lost: the tables stay dirty, and the next flush writes and fails again. */
  #startBackgroundWriteBack(): void {
    if (this.#background !== undefined || this.#writtenGeneration >= this.#generation) return;
    this.#background = this.#writeBackTo(this.#generation)
      .catch(() => undefined)
      .finally(() => {
        this.#background = undefined;
      });
  }

  /** Ends when nothing this cache started runs any more. */
  async quiesce(): Promise<void> {
    while (this.#background !== undefined) await this.#background;
    while (this.#writing !== undefined) await this.#writing.catch(() => undefined);
  }
}

function pin(slot: Slot): TableLease {
  slot.pins++;
  slot.recent = true;
  return slot;
}
