/** Refcounts of host clusters: the two-level refcount structure, read, searched and changed through the table caches.
 *  Spec: qcow2, "Host cluster management". Every method runs under the metadata mutex of the image (Qcow2State.metadata).
 *  Invariants:
 *  - a refcount block is on disk before the refcount table points to it, and a new refcount table before the header points to it;
 *  - a new refcount block is counted by itself or by one made just before it. */
import { isPromise, type MaybePromise } from '../../base/async.ts';
import { BlockError } from '../../base/errors.ts';
import { alignDown, divCeil, divFloor } from '../../bytes/align.ts';
import { setU64 } from '../../bytes/ints.ts';
import { isZero } from '../../bytes/zeros.ts';
import type { Table } from '../../core/table-cache.ts';
import { getRefcount, refcountBlockOffset, setRefcount } from './entries.ts';
import { MAX_REFCOUNT_TABLE_BYTES, TABLE_ENTRY_BYTES } from './geometry.ts';
import { switchOrCondemn } from './header-switch.ts';
import { hexOf, type Qcow2State } from './image-state.ts';

/** @throws when bytes `[offset, offset+length)` of the file are in use for metadata. */
type Guard = (offset: number, length: number) => Promise<void>;

export class Refcounts {
  readonly #state: Qcow2State;
  #slice = 0;
  #perSlice = 0;
  #perBlock = 0;
  #order = 0;

  constructor(state: Qcow2State) {
    this.#state = state;
    this.remeasure();
  }

  /** The refcounts have another width. */
  remeasure(): void {
    const { geometry, caches } = this.#state;
    this.#slice = caches.refcountBlocks.tableSize;
    this.#order = geometry.refcountOrder;
    this.#perSlice = (this.#slice * 8) / geometry.refcountBits;
    this.#perBlock = geometry.refcountBlockEntries;
  }

  get #tableEntries(): number {
    const { header, geometry } = this.#state;
    return header.refcountTableClusters * geometry.refcountTableEntriesPerCluster;
  }

  /** Host offset of refcount block `index`; 0 where there is none: everything that it would count is free. */
  blockOffset(index: number): MaybePromise<number> {
    if (index >= this.#tableEntries) return 0;
    const { caches, header } = this.#state;
    const at = header.refcountTableOffset + index * TABLE_ENTRY_BYTES;
    const tableAt = alignDown(at, caches.refcountTable.tableSize);
    const table = caches.refcountTable.load(tableAt);
    return isPromise(table)
      ? table.then((loaded) => this.#checkedOffset(loaded, at - tableAt, index))
      : this.#checkedOffset(table, at - tableAt, index);
  }

  #checkedOffset(table: Table, at: number, index: number): MaybePromise<number> {
    const offset = refcountBlockOffset(table.view.getUint32(at), table.view.getUint32(at + 4));
    if (offset % this.#state.geometry.clusterSize === 0) return offset;
    return this.#state.fatal(
      'refcount-block-offset',
      `Refblock offset ${hexOf(offset)} unaligned (reftable index: ${hexOf(index)})`,
    );
  }

  /** The slice of a refcount block that counts `cluster`; `undefined` where there is no block. */
  #sliceOf(cluster: number): MaybePromise<Table | undefined> {
    const block = this.blockOffset(divFloor(cluster, this.#perBlock));
    if (isPromise(block)) return block.then((offset) => this.#loadSlice(offset, cluster));
    return this.#loadSlice(block, cluster);
  }

  #loadSlice(blockOffset: number, cluster: number): MaybePromise<Table | undefined> {
    if (blockOffset === 0) return undefined;
    const offset = blockOffset + divFloor(cluster % this.#perBlock, this.#perSlice) * this.#slice;
    return this.#state.caches.refcountBlocks.load(offset);
  }

  /** Refcount of one host cluster. */
  async get(cluster: number): Promise<number> {
    const found = this.#sliceOf(cluster);
    const slice = isPromise(found) ? await found : found;
    return slice === undefined ? 0 : getRefcount(slice.view, cluster % this.#perSlice, this.#order);
  }

  /** First of `count` free clusters in a row, at or after `from`. What no block counts is free. */
  async findFree(from: number, count: number): Promise<number> {
    let start = from;
    let at = from;
    while (at - start < count) {
      const found = this.#sliceOf(at);
      const slice = isPromise(found) ? await found : found;
      const sliceEnd = alignDown(at, this.#perSlice) + this.#perSlice;
      if (slice === undefined) {
        at = alignDown(at, this.#perBlock) + this.#perBlock;
        continue;
      }
      const { view } = slice;
      const order = this.#order;
      for (let index = at % this.#perSlice; at < sliceEnd && at - start < count; at++, index++) {
        if (getRefcount(view, index, order) !== 0) start = at + 1;
      }
    }
    return start;
  }

  /** Whether refcount blocks exist for all of `[first, first+count)`. */
  async counts(first: number, count: number): Promise<boolean> {
    for (let block = divFloor(first, this.#perBlock); block * this.#perBlock < first + count; block++) {
      const offset = this.blockOffset(block);
      if ((isPromise(offset) ? await offset : offset) === 0) return false;
    }
    return true;
  }

  /** Makes the refcount blocks that the free run `[first, first+count)` lacks, in the first clusters of that run: there they are counted
   *  by a block that exists, by one made just before, or by themselves. (At the start of the range that each of them counts they would
   *  cut every run of clusters into pieces.)
   *  @param guard throws where the bytes it is given are metadata: a damaged refcount structure calls anything free
   *  @returns host offsets of the blocks made. The run is shorter by them, or the refcount table had to grow first: search again. */
  async createBlocks(first: number, count: number, guard: Guard): Promise<readonly number[]> {
    const { clusterSize } = this.#state.geometry;
    const lastIndex = divFloor(first + count - 1, this.#perBlock);
    if (lastIndex >= this.#tableEntries) return await this.#growTable(lastIndex + 1, guard);
    await guard(first * clusterSize, count * clusterSize);
    const created: number[] = [];
    for (let index = divFloor(first, this.#perBlock); index <= lastIndex; index++) {
      if ((await this.blockOffset(index)) !== 0) continue;
      const cluster = first + created.length;
      await this.#createBlock(index, cluster);
      created.push(cluster * clusterSize);
    }
    return created;
  }

  /** Order: the refcount of the new block's own cluster is set before the table entry is, so that the entry is written after it. */
  async #createBlock(index: number, cluster: number): Promise<void> {
    const { caches, geometry, header, file } = this.#state;
    const offset = cluster * geometry.clusterSize;
    await file.event?.('refblock_alloc');
    const countsItself = divFloor(cluster, this.#perBlock) === index;
    const ownSlice = divFloor(cluster % this.#perBlock, this.#perSlice) * this.#slice;
    if (!countsItself) await this.add(cluster, 1, 1);
    await file.event?.('refblock_alloc_write');
    for (let at = 0; at < geometry.clusterSize; at += this.#slice) {
      const created = caches.refcountBlocks.leaseNew(offset + at);
      const lease = isPromise(created) ? await created : created;
      if (countsItself && at === ownSlice) setRefcount(lease.table.view, cluster % this.#perSlice, this.#order, 1);
      lease.release();
    }
    const entryAt = header.refcountTableOffset + index * TABLE_ENTRY_BYTES;
    const tableAt = alignDown(entryAt, caches.refcountTable.tableSize);
    await file.event?.('refblock_alloc_hookup');
    const leased = caches.refcountTable.lease(tableAt);
    const lease = isPromise(leased) ? await leased : leased;
    caches.refcountTable.writeAfter(caches.refcountBlocks);
    setU64(lease.table.view, entryAt - tableAt, offset);
    lease.markDirty(entryAt - tableAt, entryAt - tableAt + TABLE_ENTRY_BYTES);
    lease.release();
  }

  /** Adds `delta` to the refcounts of `[first, first+count)`, whose blocks exist.
   *  @throws CORRUPT, reason `qcow2.refcount-range`, when a refcount would leave its range; what was changed before stays changed.
   *  @returns the first cluster whose refcount became 0, or -1. */
  async add(first: number, count: number, delta: number): Promise<number> {
    const { caches, geometry } = this.#state;
    let freed = -1;
    for (let at = first; at < first + count; ) {
      const block = await this.blockOffset(divFloor(at, this.#perBlock));
      if (block === 0) throw this.#outOfRange(at, 0, delta);
      const sliceAt = block + divFloor(at % this.#perBlock, this.#perSlice) * this.#slice;
      const leased = caches.refcountBlocks.lease(sliceAt);
      const lease = isPromise(leased) ? await leased : leased;
      const end = Math.min(first + count, alignDown(at, this.#perSlice) + this.#perSlice);
      const begin = at;
      try {
        for (; at < end; at++) {
          const index = at % this.#perSlice;
          const value = getRefcount(lease.table.view, index, this.#order) + delta;
          if (!(value >= 0 && value <= geometry.refcountMax)) throw this.#outOfRange(at, value - delta, delta);
          setRefcount(lease.table.view, index, this.#order, value);
          if (value === 0 && freed < 0) freed = at;
        }
      } finally {
        const bits = geometry.refcountBits;
        const from = divFloor((begin % this.#perSlice) * bits, 8);
        const to = divCeil(((Math.max(begin + 1, at) - 1) % this.#perSlice) * bits + bits, 8);
        lease.markDirty(from, to);
        lease.release();
      }
    }
    return freed;
  }

  #outOfRange(cluster: number, value: number, delta: number): BlockError {
    return new BlockError(
      'CORRUPT',
      `qcow2 "${this.#state.name}": refcount ${value} of the cluster at ${hexOf(cluster * this.#state.geometry.clusterSize)} cannot be changed by ${delta}; check the image`,
      { reason: 'qcow2.refcount-range', details: { cluster, value, delta, bound: this.#state.geometry.refcountMax } },
    );
  }

  /** A larger refcount table, with the blocks that count it, at the first place that the old one could not count.
   *  Order: blocks and table, flush, header, flush; a cut before the header leaves the old table in force.
   *  @returns host offsets of the new blocks. */
  async #growTable(minimumEntries: number, guard: Guard): Promise<readonly number[]> {
    const { geometry, file, header, caches, name } = this.#state;
    const { clusterSize, refcountTableEntriesPerCluster } = geometry;
    const first = this.#tableEntries * this.#perBlock;
    const wanted = Math.max(minimumEntries, this.#tableEntries + divCeil(this.#tableEntries, 2)) + 1;
    let blocks = 1;
    let tableClusters = 0;
    for (let settled = -1; settled !== blocks; ) {
      settled = blocks;
      tableClusters = divCeil(wanted + blocks, refcountTableEntriesPerCluster);
      blocks = divCeil(tableClusters + blocks, this.#perBlock);
    }
    if (tableClusters * clusterSize > MAX_REFCOUNT_TABLE_BYTES) {
      throw new BlockError(
        'TOO_LARGE',
        `qcow2 "${name}": the refcount table would exceed ${MAX_REFCOUNT_TABLE_BYTES} bytes`,
        {
          reason: 'qcow2.refcount-table-limit',
          details: { bound: MAX_REFCOUNT_TABLE_BYTES, errno: 'EFBIG' },
        },
      );
    }
    const used = tableClusters + blocks;
    await file.event?.('reftable_grow');
    await guard(first * clusterSize, used * clusterSize);
    const tableOffset = (first + blocks) * clusterSize;
    const area = new Uint8Array(used * clusterSize);
    const view = new DataView(area.buffer);
    for (let i = 0; i < used; i++) {
      const block = divFloor(i, this.#perBlock);
      const blockView = new DataView(area.buffer, block * clusterSize, clusterSize);
      setRefcount(blockView, i % this.#perBlock, this.#order, 1);
    }
    await this.#copyTable(view, blocks * clusterSize);
    for (let i = 0; i < blocks; i++) {
      setU64(view, blocks * clusterSize + (this.#tableEntries + i) * TABLE_ENTRY_BYTES, (first + i) * clusterSize);
    }
    // Every block that the new table names must be on disk before the header names the table.
    await file.event?.('refblock_alloc_write_blocks');
    await caches.refcountBlocks.makeDurable(caches.refcountBlocks.generation);
    await file.event?.('refblock_alloc_write_table');
    await file.write(first * clusterSize, area);
    await this.#state.flushFile();
    await file.event?.('refblock_alloc_switch_table');
    const moved = { refcountTableOffset: tableOffset, refcountTableClusters: tableClusters };
    await switchOrCondemn(this.#state, { ...this.#state.header, ...moved });
    const old = { offset: header.refcountTableOffset, clusters: header.refcountTableClusters };
    await this.#state.moveRefcountTable(tableOffset, tableClusters);
    await this.add(old.offset / clusterSize, old.clusters, -1);
    const created: number[] = [];
    for (let i = 0; i < blocks; i++) created.push((first + i) * clusterSize);
    return created;
  }

  async #copyTable(into: DataView, at: number): Promise<void> {
    const { header, caches, geometry } = this.#state;
    const bytes = header.refcountTableClusters * geometry.clusterSize;
    const slice = caches.refcountTable.tableSize;
    for (let done = 0; done < bytes; done += slice) {
      const table = await caches.refcountTable.load(header.refcountTableOffset + done);
      new Uint8Array(into.buffer, at + done, slice).set(table.bytes);
    }
  }

  /** Whether at least `wanted` of the clusters below `end` are in use. What a damaged table hides is not. */
  async usesAtLeast(wanted: number, end: number): Promise<boolean> {
    const { caches, header, geometry } = this.#state;
    let used = 0;
    for (let at = 0; at < end; ) {
      const index = divFloor(at, this.#perBlock);
      if (index >= this.#tableEntries) return false;
      const entryAt = header.refcountTableOffset + index * TABLE_ENTRY_BYTES;
      const table = await caches.refcountTable.load(alignDown(entryAt, caches.refcountTable.tableSize));
      const word = entryAt - table.offset;
      const block = refcountBlockOffset(table.view.getUint32(word), table.view.getUint32(word + 4));
      const blockEnd = Math.min(end, (index + 1) * this.#perBlock);
      if (block === 0 || block % geometry.clusterSize !== 0) {
        at = blockEnd;
        continue;
      }
      while (at < blockEnd) {
        const slice = await this.#loadSlice(block, at);
        const sliceEnd = Math.min(blockEnd, alignDown(at, this.#perSlice) + this.#perSlice);
        for (; slice !== undefined && at < sliceEnd; at++) {
          if (getRefcount(slice.view, at % this.#perSlice, this.#order) !== 0 && ++used >= wanted) return true;
        }
        at = sliceEnd;
      }
    }
    return false;
  }

  /** Runs of clusters with equal refcounts, in order, up to `clusters`, and as far behind as anything is counted. What no block counts has 0.
   *  Refcounts that no number holds are infinite. */
  async *runs(clusters: number): AsyncGenerator<{ first: number; count: number; refcount: number }> {
    let first = 0;
    let refcount = 0;
    let at = 0;
    while (at < clusters || divFloor(at, this.#perBlock) < this.#tableEntries) {
      const found = this.#sliceOf(at);
      const slice = isPromise(found) ? await found : found;
      if (slice === undefined) {
        if (refcount !== 0) {
          yield { first, count: at - first, refcount };
          first = at;
          refcount = 0;
        }
        at = alignDown(at, this.#perBlock) + this.#perBlock;
        continue;
      }
      const { view } = slice;
      const end = alignDown(at, this.#perSlice) + this.#perSlice;
      for (let index = at % this.#perSlice; at < end; at++, index++) {
        const value = getRefcount(view, index, this.#order);
        if (value === refcount) continue;
        if (at > first) yield { first, count: at - first, refcount };
        first = at;
        refcount = value;
      }
    }
    const end = refcount === 0 ? clusters : at;
    if (end > first) yield { first, count: end - first, refcount };
  }

  /** One more than the last cluster in use; 0 where none is. */
  async end(): Promise<number> {
    for (let index = this.#tableEntries - 1; index >= 0; index--) {
      const block = await this.blockOffset(index);
      if (block === 0) continue;
      for (let slice = this.#perBlock / this.#perSlice - 1; slice >= 0; slice--) {
        const first = index * this.#perBlock + slice * this.#perSlice;
        const table = await this.#loadSlice(block, first);
        if (table === undefined) continue;
        for (let i = this.#perSlice - 1; i >= 0; i--) {
          if (getRefcount(table.view, i, this.#order) !== 0) return first + i + 1;
        }
      }
    }
    return 0;
  }

  /** Gives up the blocks that count nothing, or themselves only.
   *  Order: table entries → durable → refcounts of the blocks; a cut leaks them.
   *  @returns their host offsets. */
  async dropUnused(): Promise<readonly number[]> {
    const { header, caches, geometry } = this.#state;
    const dropped: number[] = [];
    const elsewhere: number[] = [];
    for (let index = 0; index < this.#tableEntries; index++) {
      const block = await this.blockOffset(index);
      if (block === 0) continue;
      const own = block / geometry.clusterSize;
      const countsItself = divFloor(own, this.#perBlock) === index;
      if (await this.#countsOther(block, index, countsItself ? own : -1)) continue;
      const entryAt = header.refcountTableOffset + index * TABLE_ENTRY_BYTES;
      const tableAt = alignDown(entryAt, caches.refcountTable.tableSize);
      const leased = caches.refcountTable.lease(tableAt);
      const lease = isPromise(leased) ? await leased : leased;
      setU64(lease.table.view, entryAt - tableAt, 0);
      lease.markDirty(entryAt - tableAt, entryAt - tableAt + TABLE_ENTRY_BYTES);
      lease.release();
      dropped.push(block);
      if (!countsItself) elsewhere.push(own);
    }
    if (dropped.length === 0) return dropped;
    await caches.refcountBlocks.makeDurable(caches.refcountBlocks.generation);
    await caches.refcountTable.makeDurable(caches.refcountTable.generation);
    await caches.refcountBlocks.quiesce();
    for (const block of dropped) {
      for (let at = 0; at < geometry.clusterSize; at += this.#slice) caches.refcountBlocks.forget(block + at);
    }
    // One that was counted by another one that is gone as well is free already.
    for (const own of elsewhere) {
      if ((await this.blockOffset(divFloor(own, this.#perBlock))) !== 0) await this.add(own, 1, -1);
    }
    return dropped;
  }

  async #countsOther(block: number, index: number, own: number): Promise<boolean> {
    for (let first = index * this.#perBlock; first < (index + 1) * this.#perBlock; first += this.#perSlice) {
      const table = await this.#loadSlice(block, first);
      if (table === undefined) continue;
      for (let i = 0; i < this.#perSlice; i++) {
        if (first + i !== own && getRefcount(table.view, i, this.#order) !== 0) return true;
      }
    }
    return false;
  }

  /** Every refcount block in use: host offsets, in table order. */
  async *blocks(): AsyncGenerator<number> {
    const { caches, header } = this.#state;
    const slice = caches.refcountTable.tableSize;
    for (let index = 0; index < this.#tableEntries; ) {
      const loaded = caches.refcountTable.load(header.refcountTableOffset + index * TABLE_ENTRY_BYTES);
      const table = isPromise(loaded) ? await loaded : loaded;
      if (isZero(table.bytes)) {
        index += slice / TABLE_ENTRY_BYTES;
        continue;
      }
      for (let at = 0; at < slice; at += TABLE_ENTRY_BYTES, index++) {
        if (table.view.getUint32(at + 4) === 0 && table.view.getUint32(at) === 0) continue;
        const offset = this.#checkedOffset(table, at, index);
        const known = isPromise(offset) ? await offset : offset;
        if (known !== 0) yield known;
      }
    }
  }
}
