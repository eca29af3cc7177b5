/** L2 tables for writing: making new ones, copying those shared with a snapshot, leasing the slice of a guest offset, and telling what
 *  its old entries referred to. Spec: qcow2, "Cluster mapping".
 *  Invariants:
 *  - a new table is in the file before the L1 entry that names it is written: the entry is ordered after refcounts and a flush;
 *  - an L1 entry that is replaced drops its table only through deferred frees. */
import { isPromise } from '../../base/async.ts';
import { alignDown } from '../../bytes/align.ts';
import type { TableLease } from '../../core/table-cache.ts';
import type { Allocator, DropCause } from './allocator.ts';
import type { ClusterMap } from './cluster-map.ts';
import {
  compressedLength,
  compressedOffset,
  entryOffset,
  isCopied,
  L2_COMPRESSED,
  L2_NORMAL,
  L2_ZERO_ALLOCATED,
  l2Kind,
  setL1Entry,
} from './entries.ts';
import { TABLE_ENTRY_BYTES } from './geometry.ts';
import type { Qcow2State } from './image-state.ts';
import type { MetadataMap } from './metadata-map.ts';

/** A leased L2 slice that may be changed, and where the entry of a guest offset is in it. */
export interface L2Place {
  readonly lease: TableLease;
  /** Index of the first entry within the slice. */
  readonly index: number;
  /** Host offset of the L2 table. */
  readonly l2Offset: number;
}

export class L2Tables {
  readonly #state: Qcow2State;
  readonly #map: ClusterMap;
  readonly #allocator: Allocator;
  readonly #metadata: MetadataMap;

  constructor(state: Qcow2State, map: ClusterMap, allocator: Allocator, metadata: MetadataMap) {
    this.#state = state;
    this.#map = map;
    this.#allocator = allocator;
    this.#metadata = metadata;
  }

  /** Entries per slice. */
  get perSlice(): number {
    return this.#state.l2SliceBytes / this.#state.geometry.l2EntrySize;
  }

  /** Guest bytes from `offset` to the end of its L2 slice. */
  toSliceEnd(offset: number): number {
    const coverage = this.perSlice * this.#state.geometry.clusterSize;
    return coverage - (offset % coverage);
  }

  /** The slice for guest `offset`, in a table that is this image's own. Under the metadata mutex, because it may allocate. */
  async own(offset: number): Promise<L2Place> {
    const l1 = await this.#map.l1SliceFor(offset);
    const at = this.#map.l1EntryAt(offset) - l1.offset;
    const high = l1.view.getUint32(at);
    const old = entryOffset(high, l1.view.getUint32(at + 4));
    if (old % this.#state.geometry.clusterSize !== 0) await this.#map.badL2Offset(old, offset);
    const l2Offset = old !== 0 && isCopied(high) ? old : await this.#create(offset, old);
    return await this.#place(l2Offset, offset);
  }

  /** The slice for guest `offset`, if there is a table; shared ones are not copied. */
  async find(offset: number): Promise<L2Place | undefined> {
    const l1 = await this.#map.l1SliceFor(offset);
    const at = this.#map.l1EntryAt(offset) - l1.offset;
    const l2Offset = entryOffset(l1.view.getUint32(at), l1.view.getUint32(at + 4));
    if (l2Offset === 0) return undefined;
    if (l2Offset % this.#state.geometry.clusterSize !== 0) await this.#map.badL2Offset(l2Offset, offset);
    return await this.#place(l2Offset, offset);
  }

  async #place(l2Offset: number, offset: number): Promise<L2Place> {
    const leased = this.#state.caches.l2.lease(this.#map.l2SliceAt(l2Offset, offset));
    const lease = isPromise(leased) ? await leased : leased;
    return { lease, index: this.#map.l2IndexOf(offset) % this.perSlice, l2Offset };
  }

  /** A table of our own for guest `offset`: empty, or a copy of the shared one at `old`. */
  async #create(offset: number, old: number): Promise<number> {
    const { geometry, caches, file } = this.#state;
    const l2Offset = await this.#allocator.allocate(1);
    const content = new Uint8Array(geometry.clusterSize);
    if (old !== 0) {
      // The shared table may be newer in the cache than in the file.
      await file.event?.('l2_alloc_cow_read');
      for (let at = 0; at < geometry.clusterSize; at += this.#state.l2SliceBytes) {
        const slice = caches.l2.load(old + at);
        content.set((isPromise(slice) ? await slice : slice).bytes, at);
      }
    }
    await file.event?.('l2_alloc_write');
    await file.write(l2Offset, content);
    this.#metadata.add(l2Offset, 'active L2 table');
    const l1At = this.#map.l1EntryAt(offset);
    const leased = caches.l1.lease(alignDown(l1At, caches.l1.tableSize));
    const lease = isPromise(leased) ? await leased : leased;
    this.#state.orderAfterContent(caches.l1);
    caches.l1.writeAfterFlush(this.#state.fileGate);
    const at = l1At - lease.table.offset;
    setL1Entry(lease.table.view, at, l2Offset, true);
    lease.markDirty(at, at + TABLE_ENTRY_BYTES);
    lease.release();
    if (old !== 0) this.#allocator.noteDropped(old, geometry.clusterSize, caches.l1, 'other');
    return l2Offset;
  }

  /** Notes what the entry at `index` of the slice refers to as dropped. The entry has just been changed from `(high, low)`. */
  noteDropped(high: number, low: number, cause: DropCause): void {
    const { geometry, caches, hasDataFile } = this.#state;
    const kind = l2Kind(high, low, geometry.extendedL2, hasDataFile);
    if (kind === L2_COMPRESSED) {
      this.#allocator.noteDroppedBytes(
        compressedOffset(high, low, geometry.csizeShift),
        compressedLength(high, low, geometry.csizeShift),
        caches.l2,
      );
    } else if ((kind === L2_NORMAL || kind === L2_ZERO_ALLOCATED) && !hasDataFile) {
      const offset = entryOffset(high, low);
      // An offset that is none cannot be counted down; check reports what it leaks.
      if (offset % geometry.clusterSize === 0)
        this.#allocator.noteDropped(offset, geometry.clusterSize, caches.l2, cause);
    }
  }
}
