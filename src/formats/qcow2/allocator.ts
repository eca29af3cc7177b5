/** Choosing, reserving and freeing host clusters. Spec: qcow2, "Host cluster management".
 *  Every public method but `note…` runs under the metadata mutex.
 *  Invariants:
 *  - a cluster handed out has refcount 1 in memory; the table that will refer to it is ordered after that refcount;
 *  - dropped space goes through deferred frees (core/in-flight.ts) before its refcount falls;
 *  - no cluster of metadata is ever handed out as data, whatever the refcounts say. */
import { isBlockError } from '../../base/errors.ts';
import { alignDown, alignUp, divCeil, divFloor } from '../../bytes/align.ts';
import type { EpochSource } from '../../core/format.ts';
import { DeferredFrees, type Drop, type Durability } from '../../core/in-flight.ts';
import type { Qcow2State } from './image-state.ts';
import type { MetadataMap } from './metadata-map.ts';
import type { Refcounts } from './refcounts.ts';

/** Space that waits to be freed is looked at before the file grows, from this many clusters on: a flush each time would cost more. */
const REAP_BEFORE_GROWTH = 64;
/** At most this many clusters wait. */
const REAP_LIMIT = 1024;

/** Why space is dropped: the guest discarded it, or its content moved. */
export type DropCause = 'request' | 'other';

/** Whether what is freed for that cause is discarded in the file below. */
export interface PassDiscard {
  readonly request: boolean;
  readonly other: boolean;
}

export class Allocator {
  readonly #state: Qcow2State;
  readonly #refcounts: Refcounts;
  readonly #metadata: MetadataMap;
  /** Dropped by copy-on-write and the like; by guest discards; encoded bytes of compressed clusters. */
  #replaced: DeferredFrees;
  #discarded: DeferredFrees;
  #compressed: DeferredFrees;
  /** No cluster below it is free, as far as we have looked. */
  #nextFree = 0;
  /** No byte at or past it was ever handed out or held by the file. */
  #highWater = 0;
  /** Where the next compressed bytes go; 0: at a new cluster. */
  #nextByte = 0;
  /** Told when host space becomes free: what was decoded from it is stale. */
  onFreed: () => void = () => undefined;
  readonly #passDiscard: PassDiscard;

  constructor(state: Qcow2State, refcounts: Refcounts, metadata: MetadataMap, passDiscard: PassDiscard) {
    this.#state = state;
    this.#refcounts = refcounts;
    this.#metadata = metadata;
    this.#passDiscard = passDiscard;
    const none: EpochSource = { now: () => 0, ended: () => true };
    this.#replaced = new DeferredFrees(none);
    this.#discarded = new DeferredFrees(none);
    this.#compressed = new DeferredFrees(none, { join: false });
  }

  attach(epochs: EpochSource): void {
    const enabled = this.#state.rules.deferredFree;
    this.#replaced = new DeferredFrees(epochs, { enabled });
    this.#discarded = new DeferredFrees(epochs, { enabled });
    this.#compressed = new DeferredFrees(epochs, { enabled, join: false });
  }

  /** Reserves `count` clusters in a row. @returns the host offset of the first. */
  async allocate(count: number): Promise<number> {
    return (await this.reserve(count)).offset;
  }

  /** Reserves `count` clusters in a row, and tells whether they are fresh: past everything that the file ever held, so that what is not
   *  written of them reads as zero. */
  async reserve(count: number): Promise<{ readonly offset: number; readonly fresh: boolean }> {
    if (this.#waiting > REAP_LIMIT) await this.reapDurably();
    return await this.#reserve(0, count);
  }

  /** Reserves `count` clusters in a row, behind everything that the file ever held: as long as they are not written, they read as zero
   *  there. @returns the host offset of the first. */
  async allocateFresh(count: number): Promise<number> {
    const { geometry, file } = this.#state;
    const end = divCeil(Math.max(this.#highWater, file.size), geometry.clusterSize);
    return (await this.#reserve(end, count)).offset;
  }

  /** @param least no cluster below it; 0: the first that are free, from where we have looked last */
  async #reserve(least: number, count: number): Promise<{ readonly offset: number; readonly fresh: boolean }> {
    const { geometry, file } = this.#state;
    const announced = file.event?.('cluster_alloc');
    if (announced !== undefined) await announced;
    for (let reaped = false; ; ) {
      const first = await this.#refcounts.findFree(Math.max(this.#nextFree, least), count);
      const grows = (first + count) * geometry.clusterSize > file.size;
      if (grows && !reaped && this.#waiting >= REAP_BEFORE_GROWTH) {
        reaped = true;
        await this.reapDurably();
        continue;
      }
      if (await this.#cover(first, count)) continue;
      await this.#requireFree(first * geometry.clusterSize, count * geometry.clusterSize);
      await this.#state.markDirty();
      await this.#refcounts.add(first, count, 1);
      if (least === 0) this.#nextFree = first + count;
      const offset = first * geometry.clusterSize;
      // By what was handed out, not by the file's size: a failed write may have left bytes that the size does not show.
      this.#highWater = Math.max(this.#highWater, file.size);
      const fresh = offset >= this.#highWater;
      this.#highWater = Math.max(this.#highWater, offset + count * geometry.clusterSize);
      return { offset, fresh };
    }
  }

  /** Makes sure that refcount blocks count the range. @returns true when one had to be made: search again, it may lie in the range. */
  async #cover(first: number, count: number): Promise<boolean> {
    if (await this.#refcounts.counts(first, count)) return false;
    await this.#state.markDirty();
    const guard = (offset: number, length: number): Promise<void> => this.#requireFree(offset, length);
    for (const offset of await this.#refcounts.createBlocks(first, count, guard)) {
      this.#metadata.add(offset, 'refcount block');
    }
    return true;
  }

  /** @throws CORRUPT, fatal, when what the refcounts call free is metadata. */
  async #requireFree(offset: number, length: number): Promise<void> {
    await this.#metadata.requireNoOverlap(offset, length);
    // Whatever is watched: an entry that names cluster 0 names nothing, and the cluster would be handed out again and again.
    if (offset === 0) await this.#state.fatal('allocation-zero', 'Preventing invalid allocation at offset 0');
  }

  /** Reserves `length` bytes (at most one cluster) for compressed data: behind the last ones while there is room, or where the next
   *  cluster follows directly. Every cluster touched gains one reference. */
  async allocateBytes(length: number): Promise<number> {
    const { clusterSize, refcountMax } = this.#state.geometry;
    const announced = this.#state.file.event?.('cluster_alloc_bytes');
    if (announced !== undefined) await announced;
    let offset = this.#nextByte;
    if (offset !== 0 && (await this.#refcounts.get(divFloor(offset, clusterSize))) >= refcountMax) offset = 0;
    const room = offset === 0 ? 0 : clusterSize - (offset % clusterSize);
    if (room < length) {
      const fresh = await this.allocate(1);
      const follows = offset !== 0 && alignUp(offset, clusterSize) === fresh;
      if (follows) {
        // The new cluster has the reference of these bytes; the one before it gains it below.
        await this.#refcounts.add(divFloor(offset, clusterSize), 1, 1);
      } else {
        offset = fresh;
      }
    } else {
      await this.#state.markDirty();
      await this.#refcounts.add(divFloor(offset, clusterSize), 1, 1);
    }
    const end = offset + length;
    this.#nextByte = end % clusterSize === 0 ? 0 : end;
    return offset;
  }

  /** Gives back what was never published. */
  async release(offset: number, length: number): Promise<void> {
    await this.#free(offset, length);
  }

  /** Frees what no table on disk names any more and no request can touch, and gives it back to the file below. Wrong refcounts are told. */
  async freeNow(hostOffset: number, length: number): Promise<void> {
    const { clusterSize } = this.#state.geometry;
    const start = alignDown(hostOffset, clusterSize);
    if (this.#state.file.supports.discard) {
      await this.#discardHost(start, alignUp(hostOffset + length, clusterSize) - start).catch((error: unknown) => {
        // A hint: its failure costs space.
        if (!isBlockError(error)) throw error;
      });
    }
    await this.#freeDropped({ hostOffset, length });
  }

  /** Notes clusters that a table has just stopped referring to. */
  noteDropped(offset: number, length: number, tables: Durability, cause: DropCause): void {
    (cause === 'request' ? this.#discarded : this.#replaced).add(offset, length, tables);
  }

  /** Notes the encoded bytes of a compressed cluster that a table has just stopped referring to. */
  noteDroppedBytes(offset: number, length: number, tables: Durability): void {
    this.#compressed.add(offset, length, tables);
  }

  get #waiting(): number {
    return (this.#replaced.bytes + this.#discarded.bytes) / this.#state.geometry.clusterSize + this.#compressed.count;
  }

  get hasDropped(): boolean {
    return this.#replaced.count > 0 || this.#discarded.count > 0 || this.#compressed.count > 0;
  }

  /** The refcounts have been changed behind our back: what was noted is counted already.
   *  @param lowestFreed no cluster below it has become free */
  forget(lowestFreed = 0): void {
    this.#nextFree = Math.min(this.#nextFree, lowestFreed);
    this.#nextByte = 0;
    for (const list of [this.#replaced, this.#discarded, this.#compressed]) list.clear();
    this.onFreed();
  }

  /** Makes the drops durable, then frees what no request can touch any more. */
  async reapDurably(): Promise<void> {
    const { l1, l2 } = this.#state.caches;
    await l2.makeDurable(l2.generation);
    await l1.makeDurable(l1.generation);
    await this.reap();
  }

  /** Frees what may be freed now. */
  async reap(): Promise<void> {
    for (const drop of this.#compressed.takeReady()) await this.#freeDropped(drop);
    for (const drop of this.#discarded.takeReady()) {
      if (this.#passDiscard.request) await this.#discardHost(drop.hostOffset, drop.length);
      await this.#freeDropped(drop);
    }
    for (const drop of this.#replaced.takeReady()) {
      if (this.#passDiscard.other) await this.#discardHost(drop.hostOffset, drop.length);
      await this.#freeDropped(drop);
    }
  }

  /** Wrong refcounts must not make the image unusable for what is right: the space leaks, and the caller is told. */
  async #freeDropped(drop: Pick<Drop, 'hostOffset' | 'length'>): Promise<void> {
    try {
      await this.#free(drop.hostOffset, drop.length);
    } catch (error) {
      if (!isBlockError(error) || error.code !== 'CORRUPT') throw error;
      this.#state.corruption('refcount-range', error.message, {
        fatal: false,
        offset: drop.hostOffset,
        size: drop.length,
      });
    }
  }

  /** A hint to the store below. Only clusters that nobody else refers to; its failure costs space, not data. */
  async #discardHost(offset: number, length: number): Promise<void> {
    const { clusterSize } = this.#state.geometry;
    for (let at = offset; at < offset + length; at += clusterSize) {
      if ((await this.#refcounts.get(divFloor(at, clusterSize))) === 1) await this.#state.file.discard(at, clusterSize);
    }
  }

  async #free(offset: number, length: number): Promise<void> {
    const { geometry, file } = this.#state;
    const announced = file.event?.('cluster_free');
    if (announced !== undefined) await announced;
    const first = divFloor(offset, geometry.clusterSize);
    const count = divCeil(offset + length, geometry.clusterSize) - first;
    await this.#forgetTables(first, count);
    const freed = await this.#refcounts.add(first, count, -1);
    if (freed >= 0) {
      this.#nextFree = Math.min(this.#nextFree, freed);
      const packing = alignDown(this.#nextByte, geometry.clusterSize);
      if (
        this.#nextByte !== 0 &&
        packing >= freed * geometry.clusterSize &&
        packing < (first + count) * geometry.clusterSize
      ) {
        this.#nextByte = 0;
      }
    }
    this.onFreed();
  }

  /** L2 tables among what is freed must not be written any more. */
  async #forgetTables(first: number, count: number): Promise<void> {
    const { geometry, caches, l2SliceBytes } = this.#state;
    let quiet = false;
    for (let cluster = first; cluster < first + count; cluster++) {
      const offset = cluster * geometry.clusterSize;
      if (!this.#metadata.remove(offset)) continue;
      if (!quiet) await caches.l2.quiesce();
      quiet = true;
      for (let at = 0; at < geometry.clusterSize; at += l2SliceBytes) caches.l2.forget(offset + at);
    }
  }
}
