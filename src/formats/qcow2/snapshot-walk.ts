/** Passes over all L2 tables of an L1 table for a `TableChange`: counting what they refer to, and giving those whose COPIED flags must differ
 *  a new place. Spec: qcow2, "Cluster mapping".
 *  Invariants: entries are judged before they are counted, damaged ones end the change; no promise and no allocation per cluster;
 *  a table is never changed where it is. */
import { type JobOptions, Pacer } from '../../base/job.ts';
import { divFloor } from '../../bytes/align.ts';
import type { ByteStore } from '../../core/store.ts';
import { readTables, type TableReader } from './check-tables.ts';
import {
  clusterRun,
  compressedLength,
  compressedOffset,
  entryOffset,
  L2_COMPRESSED,
  L2_NORMAL,
  L2_UNALLOCATED,
  L2_ZERO_ALLOCATED,
  L2_ZERO_PLAIN,
  l2Kind,
  setCopiedRun,
  setL1Entry,
} from './entries.ts';
import { TABLE_ENTRY_BYTES } from './geometry.ts';
import { hexOf, type Qcow2State, unalignedCluster } from './image-state.ts';
import { l2OffsetAt, type TableChange } from './snapshot-change.ts';

export interface Pass {
  /** What the L1 table names. */
  readonly l1: DataView;
  /** Added to the refcount of everything it refers to, directly and through its L2 tables. */
  readonly delta: -1 | 0 | 1;
  /** COPIED flags of its L2 tables: `clear`: none is right; `count`: right where the refcount is 1; `leave`: nobody looks at them. */
  readonly flags: 'leave' | 'clear' | 'count';
  /** New L1 tables that are to name the same tables, at their new places. */
  readonly into: readonly DataView[];
  /** Where this L1 table has the same entry, what the two passes add cancels out: the table is not visited. */
  readonly same?: DataView;
}

/** L2 tables at new places are gathered to writes of this size, bytes. */
const WRITE = 256 * 1024;

export class TableWalk implements TableReader {
  readonly file: ByteStore;
  readonly #state: Qcow2State;
  readonly #change: TableChange;
  readonly #options: JobOptions;
  readonly #pacer = new Pacer();
  readonly #gather: Uint8Array;
  #gathered = 0;
  #gatheredAt = 0;
  #done = 0;
  #total = 0;
  /** The run that was found last. */
  #first = 0;
  #count = 0;
  /** COPIED flags of the present table that were changed. */
  #flagged = 0;

  constructor(state: Qcow2State, change: TableChange, options: JobOptions) {
    this.#state = state;
    this.#change = change;
    this.#options = options;
    this.file = state.file;
    this.#gather = new Uint8Array(Math.max(WRITE, state.geometry.clusterSize));
  }

  get restDue(): boolean {
    return this.#pacer.due;
  }

  async rest(): Promise<void> {
    this.#options.onProgress?.({ phase: 'tables', done: this.#done, total: this.#total });
    await this.#pacer.pause(this.#options.signal);
  }

  /** Bytes of tables that will be visited, for the progress. */
  expect(tables: number): void {
    this.#total += tables * this.#state.geometry.clusterSize;
  }

  /** @throws {@link BlockError} CORRUPT for entries that are not aligned (fatal); what the refcounts throw; ABORTED. */
  async run(pass: Pass): Promise<void> {
    const { clusterSize } = this.#state.geometry;
    const indexes: number[] = [];
    const offsets: number[] = [];
    for (let index = 0; index * TABLE_ENTRY_BYTES < pass.l1.byteLength; index++) {
      const offset = l2OffsetAt(pass.l1, index);
      if (offset === 0) continue;
      if (offset % clusterSize !== 0) await this.#badL2Offset(offset, index);
      if (pass.same !== undefined && l2OffsetAt(pass.same, index) === offset) {
        for (const l1 of pass.into) setL1Entry(l1, index * TABLE_ENTRY_BYTES, offset, false);
        this.#done += clusterSize;
        continue;
      }
      indexes.push(index);
      offsets.push(offset);
    }
    await readTables(this, offsets, clusterSize, (nth, view, at) =>
      this.#visit(pass, indexes[nth] as number, offsets[nth] as number, view, at),
    );
    await this.#writeGathered();
  }

  async #visit(pass: Pass, l1Index: number, offset: number, view: DataView, at: number): Promise<void> {
    const { refcounts } = this.#change;
    const { clusterSize, l2Entries } = this.#state.geometry;
    const cluster = offset / clusterSize;
    if (pass.delta !== 0) {
      const counting = refcounts.add(cluster, 1, pass.delta);
      if (counting !== undefined) await counting;
      for (let index = 0; index < l2Entries; ) {
        const next = this.#nextRun(view, at, index);
        if (next < 0) await this.#badEntry(view, at, -1 - next, offset);
        if (this.#count > 0) {
          const adding = refcounts.add(this.#first, this.#count, pass.delta);
          if (adding !== undefined) await adding;
        }
        index = next;
      }
    }
    if (pass.flags !== 'leave') await this.#settleFlags(pass, l1Index, offset, view, at);
    this.#done += clusterSize;
  }

  /** Finds the next run of neighbouring clusters from entry `index` on; into `#first` and `#count`, which is 0 at the end of the table.
   *  @returns the entry after it; `-1 - index` for an entry that is not aligned. */
  #nextRun(view: DataView, at: number, index: number): number {
    const { geometry, hasDataFile } = this.#state;
    const { clusterSize, l2Entries, l2EntrySize, extendedL2, csizeShift } = geometry;
    this.#count = 0;
    for (let i = index; i < l2Entries; i++) {
      const entryAt = at + i * l2EntrySize;
      const high = view.getUint32(entryAt);
      const low = view.getUint32(entryAt + 4);
      if (high === 0 && low === 0) continue;
      const kind = l2Kind(high, low, extendedL2, hasDataFile);
      if (kind === L2_UNALLOCATED || kind === L2_ZERO_PLAIN) continue;
      if (kind === L2_COMPRESSED) {
        // Each refers to its clusters for itself, neighbour or not.
        const start = compressedOffset(high, low, csizeShift);
        if (!Number.isFinite(start)) return -1 - i;
        const last = divFloor(start + compressedLength(high, low, csizeShift) - 1, clusterSize);
        this.#first = divFloor(start, clusterSize);
        this.#count = last - this.#first + 1;
        return i + 1;
      }
      const offset = entryOffset(high, low);
      if (offset % clusterSize !== 0) return -1 - i;
      this.#first = offset / clusterSize;
      this.#count = clusterRun(view, entryAt, l2EntrySize, l2Entries - i, clusterSize);
      return i + this.#count;
    }
    return l2Entries;
  }

  async #settleFlags(pass: Pass, l1Index: number, offset: number, view: DataView, at: number): Promise<void> {
    const { refcounts } = this.#change;
    const { clusterSize, l2Entries, l2EntrySize } = this.#state.geometry;
    // In a table that another L1 table names as well no cluster has one reference only, whatever a damaged refcount says.
    const byCount = pass.flags === 'count' && (await refcounts.get(offset / clusterSize)) === 1;
    if (byCount) {
      this.#flagged = 0;
      for (let index = this.#flagByCount(view, at, 0); index < l2Entries; index = this.#flagByCount(view, at, index)) {
        await refcounts.load(this.#first);
      }
    } else {
      this.#flagged = setCopiedRun(view, at, l2EntrySize, l2Entries, false);
    }
    const place = this.#flagged === 0 ? offset : await this.#move(offset, view, at, pass.into.length);
    const copied = (await refcounts.get(place / clusterSize)) === 1;
    for (const l1 of pass.into) setL1Entry(l1, l1Index * TABLE_ENTRY_BYTES, place, copied);
  }

  /** Makes the flags right from entry `index` on, as the refcounts say.
   *  @returns the entry whose refcount, that of cluster `#first`, must be loaded first; the number of entries at the end. */
  #flagByCount(view: DataView, at: number, index: number): number {
    const { refcounts } = this.#change;
    const { geometry, hasDataFile } = this.#state;
    const { clusterSize, l2Entries, l2EntrySize, extendedL2 } = geometry;
    for (let i = index; i < l2Entries; ) {
      const entryAt = at + i * l2EntrySize;
      const high = view.getUint32(entryAt);
      const low = view.getUint32(entryAt + 4);
      const kind = l2Kind(high, low, extendedL2, hasDataFile);
      const offset = entryOffset(high, low);
      if ((kind !== L2_NORMAL && kind !== L2_ZERO_ALLOCATED) || offset % clusterSize !== 0) {
        i++;
        continue;
      }
      this.#first = offset / clusterSize;
      const run = clusterRun(view, entryAt, l2EntrySize, l2Entries - i, clusterSize);
      const alike = refcounts.alike(this.#first, run);
      if (alike === 0) return i;
      const count = Math.abs(alike);
      this.#flagged += setCopiedRun(view, entryAt, l2EntrySize, count, alike > 0);
      i += count;
    }
    return l2Entries;
  }

  /** Gives the table a new place, which `users` L1 tables will name instead of the old one. */
  async #move(offset: number, view: DataView, at: number, users: number): Promise<number> {
    const { refcounts } = this.#change;
    const { clusterSize } = this.#state.geometry;
    const place = this.#change.takeL2();
    await refcounts.add(offset / clusterSize, 1, -users);
    if (users > 1) await refcounts.add(place / clusterSize, 1, users - 1);
    const follows = this.#gatheredAt + this.#gathered === place;
    if (!follows || this.#gathered + clusterSize > this.#gather.length) await this.#writeGathered();
    if (this.#gathered === 0) this.#gatheredAt = place;
    this.#gather.set(new Uint8Array(view.buffer, view.byteOffset + at, clusterSize), this.#gathered);
    this.#gathered += clusterSize;
    return place;
  }

  async #writeGathered(): Promise<void> {
    if (this.#gathered === 0) return;
    const bytes = this.#gather.subarray(0, this.#gathered);
    this.#gathered = 0;
    await this.file.write(this.#gatheredAt, bytes);
  }

  #badL2Offset(offset: number, index: number): Promise<never> {
    return this.#state.fatal('l2-offset', `L2 table offset ${hexOf(offset)} unaligned (L1 index: ${hexOf(index)})`, {
      offset: Number.isFinite(offset) ? offset : -1,
    });
  }

  #badEntry(view: DataView, at: number, index: number, l2Offset: number): Promise<never> {
    const entryAt = at + index * this.#state.geometry.l2EntrySize;
    const offset = entryOffset(view.getUint32(entryAt), view.getUint32(entryAt + 4));
    return this.#state.fatal('cluster-offset', unalignedCluster(offset, l2Offset, index), {
      offset: Number.isFinite(offset) ? offset : -1,
    });
  }
}
