/** L1 and L2 look-ups: guest offset → runs. Spec: qcow2, "Cluster mapping". Reads tables only; never changes them.
 *  Invariants: a call needs one L1 slice and one L2 slice at most, so at most one table is loaded before the first run is known;
 *  nothing is allocated per cluster: entries are read as two words, and equal neighbours are joined before they are pushed. */
import { isPromise, type MaybePromise, type Pending } from '../../base/async.ts';
import { alignDown, divFloor } from '../../bytes/align.ts';
import type { RunList } from '../../core/run.ts';
import type { Table } from '../../core/table-cache.ts';
import {
  ALL_SUBCLUSTERS,
  ALLOCATED_BITMAP_AT,
  compressedLength,
  compressedOffset,
  entryOffset,
  hasSubcluster,
  isCopied,
  L2_COMPRESSED,
  L2_NORMAL,
  L2_UNALLOCATED,
  L2_ZERO_ALLOCATED,
  L2_ZERO_PLAIN,
  l2Kind,
  subclusterRunEnd,
  subclustersConflict,
  ZERO_BITMAP_AT,
} from './entries.ts';
import { TABLE_ENTRY_BYTES } from './geometry.ts';
import { hexOf, type Qcow2State, unalignedCluster } from './image-state.ts';

type BadEntry = 'fine' | 'unaligned' | 'misplaced' | 'zero in version 2';

export class ClusterMap {
  readonly #state: Qcow2State;
  readonly #dataChild: number;
  readonly #entriesPerSlice: number;

  constructor(state: Qcow2State) {
    this.#state = state;
    this.#dataChild = state.hasDataFile ? 1 : 0;
    this.#entriesPerSlice = state.l2SliceBytes / state.geometry.l2EntrySize;
  }

  /** Maps `[offset, …)` into `into` as far as one L2 slice goes. @see FormatNode.map */
  map(offset: number, into: RunList): Pending {
    const { caches, file } = this.#state;
    const entryAt = this.l1EntryAt(offset);
    const sliceAt = alignDown(entryAt, caches.l1.tableSize);
    const cached = caches.l1.peek(sliceAt);
    if (cached !== undefined) return this.#mapInL1(cached, offset, into);
    if (sliceAt >= file.size) return this.#mapPastEnd(entryAt, sliceAt, offset, into);
    const l1 = caches.l1.load(sliceAt);
    if (isPromise(l1)) return this.#mapAfterL1(l1, offset, into);
    return this.#mapInL1(l1, offset, into);
  }

  /** A slice of the L1 table that the file ends before is zeros: a header may claim 32 MiB of them, and they need not be in memory. */
  #mapPastEnd(entryAt: number, sliceAt: number, offset: number, into: RunList): Pending {
    const { caches, geometry } = this.#state;
    const entries = (sliceAt + caches.l1.tableSize - entryAt) / TABLE_ENTRY_BYTES;
    into.push('unallocated', entries * geometry.l2Coverage - (offset % geometry.l2Coverage), 0, -1, false);
    return undefined;
  }

  async #mapAfterL1(loading: Promise<Table>, offset: number, into: RunList): Promise<void> {
    await loading;
    const l1 = this.l1SliceFor(offset);
    await this.#mapInL1(isPromise(l1) ? await l1 : l1, offset, into);
  }

  /** The slice of the active L1 table with the entry for `offset`. */
  l1SliceFor(offset: number): MaybePromise<Table> {
    const { l1 } = this.#state.caches;
    return l1.load(alignDown(this.l1EntryAt(offset), l1.tableSize));
  }

  /** Host offset of the L1 entry for guest `offset`. */
  l1EntryAt(offset: number): number {
    const { header, geometry } = this.#state;
    return header.l1Offset + divFloor(offset, geometry.l2Coverage) * TABLE_ENTRY_BYTES;
  }

  #mapInL1(l1: Table, offset: number, into: RunList): Pending {
    const { geometry } = this.#state;
    const { view } = l1;
    const slice = view.byteLength;
    let at = this.l1EntryAt(offset) - l1.offset;
    let guest = offset;
    for (;;) {
      const l2Offset = entryOffset(view.getUint32(at), view.getUint32(at + 4));
      if (l2Offset !== 0) {
        // What was mapped so far is enough when this table is yet to be loaded.
        return guest === offset ? this.#mapInL2(l2Offset, guest, into) : this.#mapCached(l2Offset, guest, into);
      }
      const next = alignDown(guest, geometry.l2Coverage) + geometry.l2Coverage;
      if (!into.push('unallocated', next - guest, 0, -1, false)) return undefined;
      guest = next;
      at += TABLE_ENTRY_BYTES;
      if (at >= slice) return undefined;
    }
  }

  #mapCached(l2Offset: number, offset: number, into: RunList): Pending {
    if (l2Offset % this.#state.geometry.clusterSize !== 0) return undefined;
    const slice = this.#state.caches.l2.peek(this.l2SliceAt(l2Offset, offset));
    return slice === undefined ? undefined : this.#mapSlice(slice, l2Offset, offset, into);
  }

  /** Host offset of the slice of the L2 table at `l2Offset` with the entry for guest `offset`. */
  l2SliceAt(l2Offset: number, offset: number): number {
    return l2Offset + divFloor(this.l2IndexOf(offset), this.#entriesPerSlice) * this.#state.l2SliceBytes;
  }

  /** Index of the entry for guest `offset` in its L2 table. */
  l2IndexOf(offset: number): number {
    const { geometry } = this.#state;
    return divFloor(offset % geometry.l2Coverage, geometry.clusterSize);
  }

  #mapInL2(l2Offset: number, offset: number, into: RunList): Pending {
    const { geometry, caches } = this.#state;
    if (l2Offset % geometry.clusterSize !== 0) return this.badL2Offset(l2Offset, offset);
    const slice = caches.l2.load(this.l2SliceAt(l2Offset, offset));
    if (isPromise(slice)) return this.#mapAfterL2(slice, l2Offset, offset, into);
    return this.#mapSlice(slice, l2Offset, offset, into);
  }

  badL2Offset(l2Offset: number, offset: number): Promise<never> {
    const index = divFloor(offset, this.#state.geometry.l2Coverage);
    return this.#state.fatal('l2-offset', `L2 table offset ${hexOf(l2Offset)} unaligned (L1 index: ${hexOf(index)})`, {
      offset: Number.isFinite(l2Offset) ? l2Offset : -1,
    });
  }

  async #mapAfterL2(loading: Promise<Table>, l2Offset: number, offset: number, into: RunList): Promise<void> {
    await this.#mapSlice(await loading, l2Offset, offset, into);
  }

  #mapSlice(slice: Table, l2Offset: number, offset: number, into: RunList): Pending {
    if (this.#state.geometry.extendedL2) return this.#mapExtended(slice, l2Offset, offset, into);
    return this.#mapStandard(slice, l2Offset, offset, into);
  }

  /** The hot loop. `kind`, `host` and `length` describe the run being joined; it is pushed when the next entry does not continue it. */
  #mapStandard(slice: Table, l2Offset: number, offset: number, into: RunList): Pending {
    const { geometry, hasDataFile, readOnly } = this.#state;
    const { clusterSize, csizeShift } = geometry;
    const { view } = slice;
    const first = this.l2IndexOf(offset) % this.#entriesPerSlice;
    const { limit } = into;
    let guest = offset;
    let kind = -1;
    let host = -1;
    let writable = false;
    let length = 0;
    for (let index = first; index < this.#entriesPerSlice; index++) {
      const high = view.getUint32(index * 8);
      const low = view.getUint32(index * 8 + 4);
      const entryKind = l2Kind(high, low, false, hasDataFile);
      const skip = guest % clusterSize;
      const span = clusterSize - skip;
      if (entryKind === L2_COMPRESSED) {
        if (kind >= 0 && !this.#push(into, kind, length, host, writable)) return undefined;
        kind = -1;
        if (hasDataFile) return into.count > 0 ? undefined : this.#compressedWithDataFile(l2Offset, guest);
        const encodedAt = compressedOffset(high, low, csizeShift);
        if (!into.pushEncoded(span, 0, encodedAt, compressedLength(high, low, csizeShift))) return undefined;
        guest += span;
        continue;
      }
      const bad = this.#badStandard(entryKind, high, low, guest - skip);
      if (bad !== 'fine') {
        // What lies before it is told first; the next call begins here, and says what is wrong.
        if (kind >= 0) this.#push(into, kind, length, host, writable);
        return into.count > 0 ? undefined : this.#refuseEntry(bad, high, low, l2Offset, guest);
      }
      let entryHost = -1;
      let entryWritable = false;
      if (entryKind === L2_NORMAL || entryKind === L2_ZERO_ALLOCATED) {
        entryHost = entryOffset(high, low) + skip;
        entryWritable = !readOnly && entryKind === L2_NORMAL && isCopied(high);
      }
      const continues =
        kind === entryKind && writable === entryWritable && (entryHost < 0 ? host < 0 : host + length === entryHost);
      if (continues) {
        length += span;
      } else {
        if (kind >= 0 && !this.#push(into, kind, length, host, writable)) return undefined;
        kind = entryKind;
        host = entryHost;
        writable = entryWritable;
        length = span;
      }
      guest += span;
      if (guest >= limit) break;
    }
    if (kind >= 0) this.#push(into, kind, length, host, writable);
    return undefined;
  }

  /** What is wrong with a standard entry that is not compressed. */
  #badStandard(kind: number, high: number, low: number, cluster: number): BadEntry {
    const { geometry, hasDataFile, header } = this.#state;
    if (kind === L2_NORMAL || kind === L2_ZERO_ALLOCATED) {
      const offset = entryOffset(high, low);
      if (offset % geometry.clusterSize !== 0) return 'unaligned';
      if (hasDataFile && offset !== cluster) return 'misplaced';
    }
    if ((kind === L2_ZERO_ALLOCATED || kind === L2_ZERO_PLAIN) && header.version < 3) return 'zero in version 2';
    return 'fine';
  }

  #refuseEntry(bad: BadEntry, high: number, low: number, l2Offset: number, guest: number): Promise<never> {
    const offset = entryOffset(high, low);
    if (bad === 'unaligned') return this.#badCluster(offset, l2Offset, guest);
    if (bad === 'misplaced') return this.#badDataFileOffset(offset, alignDown(guest, this.#state.geometry.clusterSize));
    return this.#zeroInV2(l2Offset, guest);
  }

  #push(into: RunList, kind: number, length: number, host: number, writable: boolean): boolean {
    switch (kind) {
      case L2_NORMAL:
        return into.push('data', length, this.#dataChild, host, writable);
      case L2_UNALLOCATED:
        return into.push('unallocated', length, 0, -1, false);
      default:
        return into.push('zero', length, this.#dataChild, host, false);
    }
  }

  #mapExtended(slice: Table, l2Offset: number, offset: number, into: RunList): Pending {
    const { geometry, hasDataFile, readOnly } = this.#state;
    const { clusterSize, csizeShift, subclusterSize } = geometry;
    const { view } = slice;
    let guest = offset;
    for (let index = this.l2IndexOf(offset) % this.#entriesPerSlice; index < this.#entriesPerSlice; index++) {
      const at = index * 16;
      const high = view.getUint32(at);
      const low = view.getUint32(at + 4);
      const kind = l2Kind(high, low, true, hasDataFile);
      const skip = guest % clusterSize;
      if (kind === L2_COMPRESSED) {
        if (hasDataFile) return into.count > 0 ? undefined : this.#compressedWithDataFile(l2Offset, guest);
        const encodedAt = compressedOffset(high, low, csizeShift);
        if (!into.pushEncoded(clusterSize - skip, 0, encodedAt, compressedLength(high, low, csizeShift)))
          return undefined;
        guest += clusterSize - skip;
        continue;
      }
      const cluster = kind === L2_NORMAL ? entryOffset(high, low) : -1;
      const bad = kind === L2_NORMAL ? this.#badStandard(kind, high, low, guest - skip) : 'fine';
      if (bad !== 'fine') return into.count > 0 ? undefined : this.#refuseEntry(bad, high, low, l2Offset, guest);
      const allocated = view.getUint32(at + ALLOCATED_BITMAP_AT);
      const zero = view.getUint32(at + ZERO_BITMAP_AT);
      if (subclustersConflict(allocated, zero) || (cluster < 0 && allocated !== 0)) {
        return into.count > 0 ? undefined : this.#badSubclusters(l2Offset, guest);
      }
      const writable = !readOnly && isCopied(high);
      let from = skip;
      while (from < clusterSize) {
        const sub = divFloor(from, subclusterSize);
        const end =
          allocated === ALL_SUBCLUSTERS ? clusterSize : subclusterRunEnd(allocated, zero, sub) * subclusterSize;
        const host = cluster < 0 ? -1 : cluster + from;
        const isData = hasSubcluster(allocated, sub);
        const runKind = isData ? 'data' : hasSubcluster(zero, sub) ? 'zero' : 'unallocated';
        if (!into.push(runKind, end - from, this.#dataChild, host, isData && writable)) return undefined;
        from = end;
      }
      guest += clusterSize - skip;
    }
    return undefined;
  }

  #badCluster(cluster: number, l2Offset: number, guest: number): Promise<never> {
    return this.#state.fatal('cluster-offset', unalignedCluster(cluster, l2Offset, this.l2IndexOf(guest)), {
      offset: Number.isFinite(cluster) ? cluster : -1,
    });
  }

  #badDataFileOffset(cluster: number, guest: number): Promise<never> {
    return this.#state.fatal(
      'data-file-offset',
      `External data file host cluster offset ${hexOf(cluster)} does not match guest cluster offset: ${hexOf(guest)}`,
      { offset: cluster },
    );
  }

  #compressedWithDataFile(l2Offset: number, guest: number): Promise<never> {
    return this.#state.fatal(
      'data-file-compressed',
      `Compressed cluster entry found in image with external data file (L2 offset: ${hexOf(l2Offset)}, L2 index: ${hexOf(this.l2IndexOf(guest))})`,
    );
  }

  #zeroInV2(l2Offset: number, guest: number): Promise<never> {
    return this.#state.fatal(
      'zero-in-v2',
      `Zero cluster entry found in pre-v3 image (L2 offset: ${hexOf(l2Offset)}, L2 index: ${hexOf(this.l2IndexOf(guest))})`,
    );
  }

  #badSubclusters(l2Offset: number, guest: number): Promise<never> {
    // The two spaces are QEMU's.
    return this.#state.fatal(
      'subcluster-bitmap',
      `Invalid cluster entry found  (L2 offset: ${hexOf(l2Offset)}, L2 index: ${hexOf(this.l2IndexOf(guest))})`,
    );
  }
}
