/** The refcounts of the image as it will be: blocks that change are moved to new places, and nothing that the present refcount table names is
 *  touched. Spec: qcow2, "Host cluster management".
 *  Invariants: a block is moved once, when it is first needed, to a place that was reserved before; what is free here may hold something that
 *  the present image needs, so nothing is allocated from it before the switch;
 *  no promise and no allocation per cluster while the blocks are in memory. */
import type { Pending } from '../../base/async.ts';
import { BlockError } from '../../base/errors.ts';
import { MiB } from '../../base/sizes.ts';
import { divFloor } from '../../bytes/align.ts';
import { setU64 } from '../../bytes/ints.ts';
import { getRefcount, refcountBlockOffset, setRefcount } from './entries.ts';
import { TABLE_ENTRY_BYTES } from './geometry.ts';
import { hexOf, type Qcow2State } from './image-state.ts';

/** Blocks kept in memory: bytes at most, where the image's own limit is not lower, and so many in any case. */
const MEMORY = 16 * MiB;
const MIN_BLOCKS = 4;
/** log2 of the usual width, 16 bits. */
const USUAL_ORDER = 4;
/** Runs of freed clusters that are remembered, for discards: a hint need not be complete. */
const MAX_FREED_RUNS = 1_000_000;

interface Block {
  readonly index: number;
  /** The first cluster that it counts. */
  readonly base: number;
  readonly bytes: Uint8Array;
  readonly view: DataView;
}

export class NextRefcounts {
  readonly #state: Qcow2State;
  readonly #table: DataView;
  readonly #takePlace: () => number;
  readonly #perBlock: number;
  readonly #order: number;
  readonly #mostBlocks: number;
  /** By index of the block: where it has been moved to. */
  readonly #moved = new Map<number, number>();
  readonly #blocks = new Map<number, Block>();
  #last: Block | undefined;
  /** First cluster and count, by turns, of the clusters whose refcount has become 0. */
  readonly freed: number[] = [];
  lowestFreed = Number.POSITIVE_INFINITY;

  /** @param table the refcount table as it is; changed here @param takePlace host offset of a reserved cluster */
  constructor(state: Qcow2State, table: DataView, takePlace: () => number) {
    const { clusterSize, refcountBlockEntries, refcountOrder } = state.geometry;
    this.#state = state;
    this.#table = table;
    this.#takePlace = takePlace;
    this.#perBlock = refcountBlockEntries;
    this.#order = refcountOrder;
    this.#mostBlocks = Math.max(MIN_BLOCKS, divFloor(Math.min(MEMORY, state.refcountMemory), clusterSize));
  }

  /** Adds `delta` to the refcounts of `[first, first+count)`.
   *  @throws {@link BlockError} TOO_LARGE `qcow2.snapshot-refcount` above the largest refcount; CORRUPT `qcow2.refcount-range` below 0, and where
   *  something in use has no refcount to raise. */
  add(first: number, count: number, delta: number): Pending {
    const end = first + count;
    for (let at = first; at < end; ) {
      const index = divFloor(at, this.#perBlock);
      const block = this.#block(index);
      if (block === undefined) return this.#addLater(index, at, end - at, delta);
      const stop = Math.min(end, (index + 1) * this.#perBlock);
      this.#change(block, at, stop, delta);
      at = stop;
    }
    return undefined;
  }

  async #addLater(index: number, first: number, count: number, delta: number): Promise<void> {
    await this.#load(index, first, delta);
    await this.add(first, count, delta);
  }

  #change(block: Block, first: number, end: number, delta: number): void {
    if (this.#order === USUAL_ORDER) this.#changeUsual(block, first, end, delta);
    else this.#changeAny(block, first, end, delta);
  }

  /** As `#changeAny`, for the width that nearly all images have. */
  #changeUsual({ view, base }: Block, first: number, end: number, delta: number): void {
    for (let cluster = first, at = (first - base) * 2; cluster < end; cluster++, at += 2) {
      const old = view.getUint16(at);
      const value = old + delta;
      if (old === 0 || value < 0 || value > 0xffff) throw this.#outOfRange(cluster, old, delta);
      view.setUint16(at, value);
      if (value === 0) this.#noteFreed(cluster);
    }
  }

  #changeAny({ view, base }: Block, first: number, end: number, delta: number): void {
    const order = this.#order;
    const max = this.#state.geometry.refcountMax;
    for (let cluster = first; cluster < end; cluster++) {
      const index = cluster - base;
      const old = getRefcount(view, index, order);
      const value = old + delta;
      if (old === 0 || value < 0 || !(value <= max)) throw this.#outOfRange(cluster, old, delta);
      setRefcount(view, index, order, value);
      if (value === 0) this.#noteFreed(cluster);
    }
  }

  #noteFreed(cluster: number): void {
    const { freed } = this;
    if (cluster < this.lowestFreed) this.lowestFreed = cluster;
    const last = freed.length - 1;
    if (last > 0 && (freed[last - 1] as number) + (freed[last] as number) === cluster) {
      freed[last] = (freed[last] as number) + 1;
    } else if (freed.length < 2 * MAX_FREED_RUNS) {
      freed.push(cluster, 1);
    }
  }

  /** The refcount; -1 where its block must be loaded first. */
  known(cluster: number): number {
    const last = this.#last;
    const near = last !== undefined && cluster >= last.base && cluster < last.base + this.#perBlock;
    const block = near ? last : this.#block(divFloor(cluster, this.#perBlock));
    return block === undefined ? -1 : getRefcount(block.view, cluster - block.base, this.#order);
  }

  /** How many clusters of `[first, first+count)`, from the first on, are alike: all have one reference (positive), or none of them has
   *  (negative). As far as the block of the first one tells; 0 where that must be loaded first. */
  alike(first: number, count: number): number {
    const last = this.#last;
    const near = last !== undefined && first >= last.base && first < last.base + this.#perBlock;
    const block = near ? last : this.#block(divFloor(first, this.#perBlock));
    if (block === undefined) return 0;
    const { view, base } = block;
    const order = this.#order;
    const end = Math.min(first - base + count, this.#perBlock);
    const one = getRefcount(view, first - base, order) === 1;
    let index = first - base + 1;
    while (index < end && (getRefcount(view, index, order) === 1) === one) index++;
    return (index - (first - base)) * (one ? 1 : -1);
  }

  /** Loads what `known` and `alike` need. */
  async load(cluster: number): Promise<void> {
    await this.#load(divFloor(cluster, this.#perBlock), cluster, 0);
  }

  async get(cluster: number): Promise<number> {
    if (this.known(cluster) < 0) await this.load(cluster);
    return this.known(cluster);
  }

  #block(index: number): Block | undefined {
    if (this.#last?.index === index) return this.#last;
    const block = this.#blocks.get(index);
    if (block !== undefined) this.#last = block;
    return block;
  }

  /** @param cluster, delta for the message where no block counts it */
  async #load(index: number, cluster: number, delta: number): Promise<void> {
    const { file, geometry } = this.#state;
    const { clusterSize } = geometry;
    const offset = this.#offsetOf(index);
    if (offset === 0) throw this.#outOfRange(cluster, 0, delta);
    if (offset % clusterSize !== 0) {
      await this.#state.fatal(
        'refcount-block-offset',
        `Refblock offset ${hexOf(offset)} unaligned (reftable index: ${hexOf(index)})`,
      );
    }
    await this.#makeRoom();
    const bytes = new Uint8Array(clusterSize);
    await file.read(offset, bytes);
    const block: Block = { index, base: index * this.#perBlock, bytes, view: new DataView(bytes.buffer) };
    if (!this.#moved.has(index)) {
      this.#moved.set(index, offset);
      setU64(this.#table, index * TABLE_ENTRY_BYTES, this.#takePlace());
    }
    this.#blocks.set(index, block);
    this.#last = block;
  }

  #offsetOf(index: number): number {
    const at = index * TABLE_ENTRY_BYTES;
    if (!(at < this.#table.byteLength)) return 0;
    return refcountBlockOffset(this.#table.getUint32(at), this.#table.getUint32(at + 4));
  }

  async #makeRoom(): Promise<void> {
    while (this.#blocks.size >= this.#mostBlocks) {
      const oldest = this.#blocks.values().next().value as Block;
      this.#blocks.delete(oldest.index);
      if (this.#last === oldest) this.#last = undefined;
      await this.#write(oldest);
    }
  }

  async #write(block: Block): Promise<void> {
    await this.#state.file.write(this.#offsetOf(block.index), block.bytes);
  }

  /** Makes sure that the blocks for `[first, first+count)` have been moved: changes there take no further place. */
  async touch(first: number, count: number): Promise<void> {
    for (let index = divFloor(first, this.#perBlock); index * this.#perBlock < first + count; index++) {
      if (this.#block(index) === undefined) await this.#load(index, index * this.#perBlock, 0);
    }
  }

  /** Frees the places that the moved blocks had. */
  async freeOldBlocks(): Promise<void> {
    // Freeing one may move another, which is then met here as well.
    for (const offset of this.#moved.values()) await this.add(offset / this.#state.geometry.clusterSize, 1, -1);
  }

  /** Writes the blocks; the refcount table that names them is the caller's to write. */
  async writeBlocks(): Promise<void> {
    for (const block of this.#blocks.values()) await this.#write(block);
  }

  #outOfRange(cluster: number, value: number, delta: number): BlockError {
    const { geometry, name } = this.#state;
    const { clusterSize, refcountBits, refcountMax } = geometry;
    const details = { cluster, value, delta, bound: refcountMax, errno: 'EINVAL' };
    if (value > 0 && delta > 0) {
      return new BlockError(
        'TOO_LARGE',
        `qcow2 "${name}": refcounts of ${refcountBits} bits cannot count one more reference to the cluster at ${hexOf(cluster * clusterSize)}`,
        { reason: 'qcow2.snapshot-refcount', details },
      );
    }
    return new BlockError(
      'CORRUPT',
      `qcow2 "${name}": refcount ${value} of the cluster at ${hexOf(cluster * clusterSize)} cannot be changed by ${delta}; check the image`,
      { reason: 'qcow2.refcount-range', details },
    );
  }
}
