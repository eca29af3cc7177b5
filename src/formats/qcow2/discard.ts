/** Zero marks and discards: what is zeroed, what is dropped, what is kept. Spec: qcow2, "Cluster mapping" (zero flag, subclusters).
 *  Invariants: entries change in one synchronous stretch per slice; host clusters that lose their last entry are dropped through deferred
 *  frees; a zero mark that keeps its cluster needs no order, because both contents are the guest's own. Space that keeps its place (in an
 *  external data file, or under `discard-no-unref`) is given back at once, under the range lock of the request: later it may hold data again. */
import type { Pending } from '../../base/async.ts';
import { isBlockError } from '../../base/errors.ts';
import { alignDown, alignUp, divCeil, divFloor } from '../../bytes/align.ts';
import type { ZeroOptions } from '../../core/store.ts';
import {
  ALL_SUBCLUSTERS,
  ALLOCATED_BITMAP_AT,
  entryOffset,
  isCopied,
  L2_COMPRESSED,
  L2_NORMAL,
  L2_UNALLOCATED,
  L2_ZERO_ALLOCATED,
  L2_ZERO_PLAIN,
  l2Kind,
  setL2Entry,
  setSubclusters,
  subclusterMask,
  withoutSubclusters,
  withSubclusters,
  ZERO_BITMAP_AT,
} from './entries.ts';
import type { Qcow2State } from './image-state.ts';
import type { L2Place, L2Tables } from './l2-tables.ts';

export interface DiscardOptions {
  readonly hasBacking: boolean;
  /** Whether what the guest gives back is given back below. */
  readonly passRequest: boolean;
  /** Clusters stay with their entries, zeroed or not. */
  readonly keepClusters: boolean;
  /** Overlap check of a range of the image file. */
  check(offset: number, length: number): Pending;
}

/** What becomes of host space whose content is no longer wanted, and which stays where it is. Bytes of the file that holds guest data. */
type Given = { readonly offset: number; length: number }[];

export class Discard {
  readonly #state: Qcow2State;
  readonly #tables: L2Tables;
  readonly #options: DiscardOptions;

  constructor(state: Qcow2State, tables: L2Tables, options: DiscardOptions) {
    this.#state = state;
    this.#tables = tables;
    this.#options = options;
  }

  /** @see FormatNode.mapZeroes */
  async mapZeroes(offset: number, length: number, options: ZeroOptions): Promise<'done' | 'unsupported'> {
    if (this.#state.rawDataFile) {
      // Whoever reads the data file alone must see the zeros too: they are written there, and the mapping stays.
      await this.#state.data.writeZeroes(offset, length, options);
      return 'done';
    }
    if (this.#state.header.version < 3) {
      if (this.#options.hasBacking || offset % this.#state.geometry.clusterSize !== 0) return 'unsupported';
      return await this.unmap(offset, length, 'zero');
    }
    const end = offset + length;
    if ((await this.#cutsCompressed(offset)) || (await this.#cutsCompressed(end))) return 'unsupported';
    for (let at = offset; at < end; ) {
      const stop = Math.min(end, at + this.#tables.toSliceEnd(at));
      const given: Given = [];
      await this.#inSlice(at, true, (place) => {
        this.#zeroSlice(place, at, stop, options.unmap === true, given);
      });
      // Zeros and not a discard: until the mark is durable, a crash shows what is there.
      const { data } = this.#state;
      if (given.length > 0 && data.supports.writeZeroes === 'fast') {
        await this.#giveBack(given, (host, bytes) => data.writeZeroes(host, bytes, { unmap: true }));
      }
      at = stop;
    }
    return 'done';
  }

  /** A compressed cluster has no subclusters that could be marked: its part is zeroed by writing. */
  async #cutsCompressed(offset: number): Promise<boolean> {
    const { geometry, hasDataFile } = this.#state;
    if (!geometry.extendedL2 || offset % geometry.clusterSize === 0) return false;
    return await this.#state.metadata.run(async () => {
      const place = await this.#tables.find(offset);
      if (place === undefined) return false;
      const { view } = place.lease.table;
      const at = place.index * geometry.l2EntrySize;
      place.lease.release();
      return l2Kind(view.getUint32(at), view.getUint32(at + 4), true, hasDataFile) === L2_COMPRESSED;
    });
  }

  /** @see FormatNode.unmap */
  async unmap(offset: number, length: number, reveal: 'zero' | 'backing'): Promise<'done' | 'unsupported'> {
    const { header } = this.#state;
    const { hasBacking, passRequest } = this.#options;
    if (this.#state.rawDataFile) {
      if (reveal === 'backing' || !passRequest) return 'unsupported';
      const { data } = this.#state;
      const bytes = Math.min(length, data.size - offset);
      if (bytes > 0) await data.writeZeroes(offset, bytes, { unmap: true });
      return 'done';
    }
    if (header.version < 3 && hasBacking && reveal === 'zero') return 'unsupported';
    const end = offset + length;
    const { clusterSize, extendedL2 } = this.#state.geometry;
    const inParts = extendedL2 && reveal === 'zero';
    for (let at = offset; at < end; ) {
      const clusterEnd = alignDown(at, clusterSize) + clusterSize;
      if (inParts && (at % clusterSize !== 0 || end < clusterEnd)) {
        const partEnd = Math.min(end, clusterEnd);
        await this.#dropPart(at, partEnd);
        at = partEnd;
        continue;
      }
      const stop = Math.min(inParts ? alignDown(end, clusterSize) : end, at + this.#tables.toSliceEnd(at));
      const given: Given = [];
      // Where nothing is allocated and nothing lies below, there is nothing to hide: no table is made for it.
      await this.#inSlice(at, hasBacking && reveal === 'zero', (place) => {
        this.#dropSlice(place, at, stop, reveal, given);
      });
      if (given.length > 0) await this.#giveBack(given, (host, bytes) => this.#state.data.discard(host, bytes));
      at = stop;
    }
    return 'done';
  }

  /** Whether the entry stays with its cluster (`discard-no-unref`), so that the next write goes to the same place. */
  #keeps(kind: number, host: number): boolean {
    const { geometry, hasDataFile } = this.#state;
    if (!this.#options.keepClusters || hasDataFile || host % geometry.clusterSize !== 0) return false;
    return kind === L2_NORMAL || kind === L2_ZERO_ALLOCATED;
  }

  /** Notes that the content of a cluster that keeps its place is no longer wanted. One that a snapshot has, too, is wanted. */
  #give(given: Given, kind: number, host: number, copied: boolean): void {
    const { geometry, hasDataFile } = this.#state;
    if (!this.#options.passRequest || (kind !== L2_NORMAL && kind !== L2_ZERO_ALLOCATED)) return;
    if (!hasDataFile && !copied) return;
    const last = given.at(-1);
    if (last !== undefined && last.offset + last.length === host) last.length += geometry.clusterSize;
    else given.push({ offset: host, length: geometry.clusterSize });
  }

  /** Gives space back to the file below. A failure costs space and no data. */
  async #giveBack(given: Given, release: (offset: number, length: number) => Pending): Promise<void> {
    for (const { offset, length } of given) {
      if (!this.#state.hasDataFile) await this.#options.check(offset, length);
      // A data file may end within its last cluster.
      const bytes = Math.min(length, this.#state.data.size - offset);
      try {
        if (bytes > 0) await release(offset, bytes);
      } catch (error) {
        if (!isBlockError(error)) throw error;
        this.#state.warn('qcow2.discard', `discarded space was not given back: ${error.message}`);
        return;
      }
    }
  }

  async #inSlice(offset: number, create: boolean, change: (place: L2Place) => void): Promise<void> {
    await this.#state.metadata.run(async () => {
      if (!create) {
        const found = await this.#tables.find(offset);
        if (found === undefined) return;
        found.lease.release();
      }
      await this.#state.markDirty();
      const place = await this.#tables.own(offset);
      try {
        change(place);
      } finally {
        place.lease.release();
      }
    });
  }

  #zeroSlice(place: L2Place, start: number, end: number, unmap: boolean, given: Given): void {
    const { geometry, hasDataFile } = this.#state;
    const { clusterSize, l2EntrySize, extendedL2, subclusterSize } = geometry;
    const { view } = place.lease.table;
    const first = alignDown(start, clusterSize);
    const count = divCeil(end - first, clusterSize);
    const dropped: number[] = [];
    for (let i = 0; i < count; i++) {
      const at = (place.index + i) * l2EntrySize;
      const high = view.getUint32(at);
      const low = view.getUint32(at + 4);
      const kind = l2Kind(high, low, extendedL2, hasDataFile);
      const cluster = first + i * clusterSize;
      const from = Math.max(0, start - cluster);
      const to = Math.min(clusterSize, alignUp(end - cluster, subclusterSize));
      if (extendedL2 && (from > 0 || to < clusterSize)) {
        this.#zeroSubclusters(view, at, from, to);
        continue;
      }
      const allocated = kind !== L2_UNALLOCATED && kind !== L2_ZERO_PLAIN;
      const host = entryOffset(high, low);
      // A damaged entry is not kept: the cluster reads as zero from now on, and not as an error.
      const misplaced = host % clusterSize !== 0 || (hasDataFile && allocated && host !== cluster);
      const drop = kind === L2_COMPRESSED || (unmap && allocated && !this.#keeps(kind, host)) || misplaced;
      if (drop) dropped.push(high, low);
      if (unmap && !misplaced && (hasDataFile || !drop)) this.#give(given, kind, host, isCopied(high));
      setL2Entry(view, at, drop ? 0 : host, !drop && allocated && isCopied(high), !extendedL2);
      if (extendedL2) setSubclusters(view, at, 0, ALL_SUBCLUSTERS);
    }
    this.#finish(place, count, dropped);
  }

  /** Subclusters within one cluster read as zero afterwards. The last one that held data takes the cluster with it. Compressed data stays: it
   *  has no parts that could be dropped, and a discard is a hint. */
  async #dropPart(start: number, end: number): Promise<void> {
    const { geometry, hasDataFile } = this.#state;
    const { clusterSize, l2EntrySize } = geometry;
    const { hasBacking, keepClusters } = this.#options;
    await this.#inSlice(start, hasBacking, (place) => {
      const { view } = place.lease.table;
      const at = place.index * l2EntrySize;
      const high = view.getUint32(at);
      const low = view.getUint32(at + 4);
      const kind = l2Kind(high, low, true, hasDataFile);
      if (kind === L2_COMPRESSED || (kind === L2_UNALLOCATED && !hasBacking)) return;
      const cluster = alignDown(start, clusterSize);
      this.#zeroSubclusters(view, at, start - cluster, end - cluster);
      const dropped: number[] = [];
      const isEmpty = view.getUint32(at + ALLOCATED_BITMAP_AT) === 0;
      if (kind === L2_NORMAL && isEmpty && !keepClusters) {
        dropped.push(high, low);
        setL2Entry(view, at, 0, false, false);
      }
      this.#finish(place, 1, dropped);
    });
  }

  /** Part of a cluster with subclusters, and not compressed: see `#cutsCompressed`. */
  #zeroSubclusters(view: DataView, at: number, from: number, to: number): void {
    const { subclusterSize } = this.#state.geometry;
    const mask = subclusterMask(divFloor(from, subclusterSize), divCeil(to, subclusterSize));
    const allocated = view.getUint32(at + ALLOCATED_BITMAP_AT);
    const zero = view.getUint32(at + ZERO_BITMAP_AT);
    setSubclusters(view, at, withoutSubclusters(allocated, mask), withSubclusters(zero, mask));
  }

  #dropSlice(place: L2Place, start: number, end: number, reveal: 'zero' | 'backing', given: Given): void {
    const { geometry, hasDataFile, header } = this.#state;
    const { clusterSize, l2EntrySize, extendedL2 } = geometry;
    const { view } = place.lease.table;
    const count = divCeil(end - start, clusterSize);
    const dropped: number[] = [];
    for (let i = 0; i < count; i++) {
      const at = (place.index + i) * l2EntrySize;
      const high = view.getUint32(at);
      const low = view.getUint32(at + 4);
      const kind = l2Kind(high, low, extendedL2, hasDataFile);
      const allocated = kind !== L2_UNALLOCATED && kind !== L2_ZERO_PLAIN;
      if (!allocated && reveal === 'zero' && !this.#options.hasBacking) continue;
      const zero = reveal === 'zero' && header.version >= 3;
      const host = entryOffset(high, low);
      const keep = zero && this.#keeps(kind, host);
      if (allocated && !keep) dropped.push(high, low);
      const inPlace = hasDataFile && host === start + i * clusterSize;
      if (zero && (keep || inPlace)) this.#give(given, kind, host, isCopied(high));
      setL2Entry(view, at, keep ? host : 0, keep && isCopied(high), zero && !extendedL2);
      if (extendedL2) setSubclusters(view, at, 0, zero ? ALL_SUBCLUSTERS : 0);
    }
    this.#finish(place, count, dropped);
  }

  #finish(place: L2Place, count: number, dropped: readonly number[]): void {
    const { l2EntrySize } = this.#state.geometry;
    place.lease.markDirty(place.index * l2EntrySize, (place.index + count) * l2EntrySize);
    for (let i = 0; i < dropped.length; i += 2) {
      this.#tables.noteDropped(dropped[i] as number, dropped[i + 1] as number, 'request');
    }
  }
}
