/** The write transaction: prepare (reserve clusters), commit (link L2 entries), abort. Spec: qcow2, "Cluster mapping".
 *  Invariants:
 *  - prepare publishes nothing but, at most, an empty or copied L2 table;
 *  - commit changes entries only after the engine has written data and edges, and orders the slice after refcounts and a flush of the
 *    data; what the entries referred to before is dropped, never freed at once;
 *  - a plan stays within one L2 slice, and its clusters either all need new host space or all lie in clusters that are ours already. */
import type { MaybePromise, Pending } from '../../base/async.ts';
import { BlockError } from '../../base/errors.ts';
import { alignDown, alignUp, divCeil, divFloor } from '../../bytes/align.ts';
import type { WritePlan } from '../../core/format.ts';
import type { Allocator } from './allocator.ts';
import {
  ALL_SUBCLUSTERS,
  ALLOCATED_BITMAP_AT,
  entryOffset,
  hasAllSubclusters,
  isCopied,
  L2_COMPRESSED,
  L2_NORMAL,
  L2_UNALLOCATED,
  L2_ZERO_ALLOCATED,
  L2_ZERO_PLAIN,
  l2Kind,
  lowestBit,
  setL2Entry,
  setSubclusters,
  subclusterMask,
  withoutSubclusters,
  withSubclusters,
  ZERO_BITMAP_AT,
} from './entries.ts';
import type { Qcow2State } from './image-state.ts';
import { unalignedCluster } from './image-state.ts';
import type { L2Place, L2Tables } from './l2-tables.ts';

/** `own`: the clusters are ours and hold what matters; `fill`: ours, but (partly) without valid content; `new`: to be linked. */
type PlanKind = 'own' | 'fill' | 'new';

interface Qcow2Plan extends WritePlan {
  readonly kind: PlanKind;
  /** Guest offset of the first cluster, and how many. */
  readonly firstCluster: number;
  readonly clusters: number;
  /** Host offset of the first cluster. */
  readonly hostCluster: number;
}

/** The raw words of one entry. */
interface Entry {
  readonly high: number;
  readonly low: number;
  readonly allocated: number;
  readonly zero: number;
}

export class ClusterWrite {
  readonly #state: Qcow2State;
  readonly #tables: L2Tables;
  readonly #allocator: Allocator;
  readonly #dataChild: number;
  readonly #backingSize: number;

  /** @param backingSize bytes; 0 without a backing file. */
  constructor(state: Qcow2State, tables: L2Tables, allocator: Allocator, backingSize: number) {
    this.#backingSize = backingSize;
    this.#state = state;
    this.#tables = tables;
    this.#allocator = allocator;
    this.#dataChild = state.hasDataFile ? 1 : 0;
  }

  /** @see FormatNode.prepareWrite */
  async prepare(offset: number, length: number): Promise<Qcow2Plan> {
    const { metadata } = this.#state;
    const waiting = metadata.acquire();
    if (waiting !== undefined) await waiting;
    try {
      const place = await this.#tables.own(offset);
      try {
        return await this.#plan(place, offset, Math.min(length, this.#tables.toSliceEnd(offset)));
      } finally {
        place.lease.release();
      }
    } finally {
      metadata.release();
    }
  }

  async #plan(place: L2Place, offset: number, length: number): Promise<Qcow2Plan> {
    const { clusterSize } = this.#state.geometry;
    const firstCluster = alignDown(offset, clusterSize);
    const wanted = divCeil(offset + length - firstCluster, clusterSize);
    const kind = this.#kindAt(place, 0);
    let clusters = 1;
    if (kind === 'new') {
      while (clusters < wanted && this.#kindAt(place, clusters) === 'new') clusters++;
    } else {
      const host = this.#hostAt(place, 0);
      if (host % clusterSize !== 0) {
        await this.#state.fatal('cluster-offset', unalignedCluster(host, place.l2Offset, place.index), {
          offset: host,
        });
      }
      // With subclusters, one cluster at a time: each has its own holes.
      while (clusters < wanted && !this.#state.geometry.extendedL2 && this.#kindAt(place, clusters) === kind) {
        if (this.#hostAt(place, clusters) !== host + clusters * clusterSize) break;
        clusters++;
      }
    }
    const end = Math.min(offset + length, firstCluster + clusters * clusterSize);
    const edges = this.#edges(place, kind, offset, end, firstCluster, clusters);
    // Last: from here on nothing fails, so nothing that was reserved is lost.
    const own = kind === 'new' ? undefined : { offset: this.#hostAt(place, 0), fresh: false };
    const { offset: hostCluster, fresh } = own ?? (await this.#reserve(firstCluster, clusters));
    if (fresh && this.#readsAsZero(place, 0, firstCluster)) edges.headLength = 0;
    if (fresh && this.#readsAsZero(place, clusters - 1, firstCluster)) edges.tailLength = 0;
    return {
      guestOffset: offset,
      length: end - offset,
      child: this.#dataChild,
      hostOffset: hostCluster + (offset - firstCluster),
      ...edges,
      kind,
      firstCluster,
      clusters,
      hostCluster,
    };
  }

  #reserve(firstCluster: number, clusters: number): MaybePromise<{ offset: number; fresh: boolean }> {
    // In an external data file a cluster lies where the guest has it; the file is not counted.
    return this.#state.hasDataFile ? { offset: firstCluster, fresh: false } : this.#allocator.reserve(clusters);
  }

  /** The whole cluster reads as zero under its old mapping: fresh host space needs no edge then. Subclusters keep their edges: those
   *  that are not written stay unallocated anyway. */
  #readsAsZero(place: L2Place, nth: number, firstCluster: number): boolean {
    const { geometry, hasDataFile, header } = this.#state;
    if (geometry.extendedL2 || header.encryption !== 'none') return false;
    const { high, low } = this.#entry(place, nth);
    const kind = l2Kind(high, low, false, hasDataFile);
    if (kind === L2_ZERO_PLAIN || kind === L2_ZERO_ALLOCATED) return true;
    return kind === L2_UNALLOCATED && firstCluster + nth * geometry.clusterSize >= this.#backingSize;
  }

  #entry(place: L2Place, nth: number): Entry {
    const { geometry } = this.#state;
    const { view } = place.lease.table;
    const at = (place.index + nth) * geometry.l2EntrySize;
    return {
      high: view.getUint32(at),
      low: view.getUint32(at + 4),
      allocated: geometry.extendedL2 ? view.getUint32(at + ALLOCATED_BITMAP_AT) : ALL_SUBCLUSTERS,
      zero: geometry.extendedL2 ? view.getUint32(at + ZERO_BITMAP_AT) : 0,
    };
  }

  #hostAt(place: L2Place, nth: number): number {
    const { high, low } = this.#entry(place, nth);
    return entryOffset(high, low);
  }

  #kindAt(place: L2Place, nth: number): PlanKind {
    const { geometry, hasDataFile } = this.#state;
    const { high, low, allocated } = this.#entry(place, nth);
    const kind = l2Kind(high, low, geometry.extendedL2, hasDataFile);
    if (kind === L2_NORMAL && isCopied(high)) return allocated === ALL_SUBCLUSTERS ? 'own' : 'fill';
    return kind === L2_ZERO_ALLOCATED && isCopied(high) ? 'fill' : 'new';
  }

  /** How far the write must reach to the left and right of `[offset, end)`. */
  #edges(
    place: L2Place,
    kind: PlanKind,
    offset: number,
    end: number,
    firstCluster: number,
    clusters: number,
  ): { headLength: number; tailLength: number } {
    if (kind === 'own') return { headLength: 0, tailLength: 0 };
    const { clusterSize, extendedL2, subclusterSize } = this.#state.geometry;
    const lastCluster = firstCluster + (clusters - 1) * clusterSize;
    if (!extendedL2) return { headLength: offset - firstCluster, tailLength: lastCluster + clusterSize - end };
    const first = this.#entry(place, 0);
    const last = this.#entry(place, clusters - 1);
    let start = alignDown(offset, subclusterSize);
    let stop = alignUp(end, subclusterSize);
    if (kind === 'fill') {
      // Subclusters that hold data already are overwritten in place: their edges stay as they are.
      const { allocated } = first;
      const startSub = divFloor(start - firstCluster, subclusterSize);
      const stopSub = divFloor(stop - firstCluster, subclusterSize) - 1;
      if (hasAllSubclusters(allocated, subclusterMask(startSub, startSub + 1))) start = offset;
      if (hasAllSubclusters(allocated, subclusterMask(stopSub, stopSub + 1))) stop = end;
    } else {
      // The whole cluster moves: whatever of it holds data moves along.
      start = Math.min(start, firstCluster + this.#movedFrom(first));
      stop = Math.max(stop, lastCluster + this.#movedTo(last));
    }
    return { headLength: offset - start, tailLength: stop - end };
  }

  /** Offset in the cluster of the first byte that must move with it; `clusterSize` for none. */
  #movedFrom(entry: Entry): number {
    const { geometry, hasDataFile } = this.#state;
    const kind = l2Kind(entry.high, entry.low, true, hasDataFile);
    if (kind === L2_COMPRESSED) return 0;
    return kind === L2_NORMAL ? lowestBit(entry.allocated) * geometry.subclusterSize : geometry.clusterSize;
  }

  /** Offset in the cluster of the end of what must move with it; 0 for none. */
  #movedTo(entry: Entry): number {
    const { geometry, hasDataFile } = this.#state;
    const kind = l2Kind(entry.high, entry.low, true, hasDataFile);
    if (kind === L2_COMPRESSED) return geometry.clusterSize;
    return kind === L2_NORMAL ? (32 - Math.clz32(entry.allocated)) * geometry.subclusterSize : 0;
  }

  /** @see FormatNode.commitWrite */
  commit(plan: WritePlan): Pending {
    const qcow2Plan = plan as Qcow2Plan;
    return qcow2Plan.kind === 'own' ? undefined : this.#link(qcow2Plan);
  }

  async #link(plan: Qcow2Plan): Promise<void> {
    const { geometry, caches } = this.#state;
    const place = await this.#tables.find(plan.firstCluster);
    if (place === undefined)
      throw new BlockError('INTERNAL', 'internal error: the L2 table of a prepared write is gone');
    const { lease, index } = place;
    const { view } = lease.table;
    try {
      this.#state.orderAfterContent(caches.l2);
      const { l2EntrySize, clusterSize } = geometry;
      const olds: Entry[] = [];
      for (let i = 0; i < plan.clusters; i++) {
        const old = this.#entry(place, i);
        const at = (index + i) * l2EntrySize;
        setL2Entry(view, at, plan.hostCluster + i * clusterSize, true, false);
        if (geometry.extendedL2) this.#markSubclusters(view, at, plan, i, old);
        if (plan.kind === 'new') olds.push(old);
      }
      lease.markDirty(index * l2EntrySize, (index + plan.clusters) * l2EntrySize);
      for (const old of olds) this.#tables.noteDropped(old.high, old.low, 'other');
    } finally {
      lease.release();
    }
  }

  /** Subclusters that were written hold data now; others keep what they said. */
  #markSubclusters(view: DataView, at: number, plan: Qcow2Plan, nth: number, old: Entry): void {
    const { clusterSize, subclusterSize } = this.#state.geometry;
    const cluster = plan.firstCluster + nth * clusterSize;
    const start = Math.max(0, plan.guestOffset - plan.headLength - cluster);
    const end = Math.min(clusterSize, plan.guestOffset + plan.length + plan.tailLength - cluster);
    const written = subclusterMask(divFloor(start, subclusterSize), divCeil(end, subclusterSize));
    // A cluster that moves takes its data along within `written`; bitmaps of compressed entries mean nothing.
    const compressed = l2Kind(old.high, old.low, true, this.#state.hasDataFile) === L2_COMPRESSED;
    const allocated = plan.kind === 'fill' ? old.allocated : 0;
    const zero = compressed ? 0 : old.zero;
    setSubclusters(view, at, withSubclusters(allocated, written), withoutSubclusters(zero, written));
  }

  /** @see FormatNode.abortWrite */
  async abort(plan: WritePlan): Promise<void> {
    const { kind, hostCluster, clusters } = plan as Qcow2Plan;
    if (kind !== 'new' || this.#state.hasDataFile) return;
    await this.#state.metadata.run(() =>
      this.#allocator.release(hostCluster, clusters * this.#state.geometry.clusterSize),
    );
  }
}
