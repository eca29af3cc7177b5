/** Another width of refcounts: the whole structure is written anew at a new place, and one write of the header's first sector switches to it.
 *  Spec: qcow2, "Host cluster management", "Header" (refcount_order). Runs alone, under the metadata mutex, on an image whose tables are
 *  written back.
 *  Order: every count is looked at → place reserved (leaked by a cut) → blocks and table → durable → header → durable.
 *  Invariants: nothing is reserved for a width that cannot hold every count; until the switch nothing is written but to reserved places;
 *  memory: the two refcount tables, two blocks. */
import { BlockError } from '../../base/errors.ts';
import { Pacer } from '../../base/job.ts';
import { divCeil, divFloor } from '../../bytes/align.ts';
import { setU64 } from '../../bytes/ints.ts';
import type { PartRun } from './amend.ts';
import { getRefcount, refcountBlockOffset, setRefcount } from './entries.ts';
import { type Geometry, geometryOf, MAX_REFCOUNT_TABLE_BYTES, TABLE_ENTRY_BYTES } from './geometry.ts';
import { switchFields, UnknownState } from './header-switch.ts';
import { hexOf, type Qcow2State } from './image-state.ts';
import type { ChangeParts } from './snapshot-change.ts';

/** @param order log2 of the new width. The caches are the caller's to reset afterwards.
 *  @throws {@link BlockError} UNSUPPORTED, reason `qcow2.amend-refcount-overflow`; TOO_LARGE `qcow2.refcount-table-limit`; then nothing has
 *  changed. */
export async function changeRefcountWidth(parts: ChangeParts, order: number, run: PartRun): Promise<void> {
  await new WidthChange(parts, order, run).run();
}

/** Times that the present counts are read. */
const PASSES = 3;

/** The new structure: its table, then its blocks, in the order of their indexes. */
interface Layout {
  readonly tableClusters: number;
  /** Indexes in the table of the blocks. */
  readonly indexes: readonly number[];
  readonly clusters: number;
}

class WidthChange {
  readonly #parts: ChangeParts;
  readonly #state: Qcow2State;
  readonly #run: PartRun;
  readonly #from: Geometry;
  readonly #to: Geometry;
  readonly #pacer = new Pacer();
  #done = 0;
  #total = 1;
  /** Offsets of the present blocks, by index in the table; 0: none. */
  #blocks = new Float64Array(0);
  /** Indexes of the blocks that are needed. */
  #indexes: number[] = [];
  /** Clusters of the present structure, in order: nothing refers to them afterwards. */
  #given = new Float64Array(0);

  constructor(parts: ChangeParts, order: number, run: PartRun) {
    this.#parts = parts;
    this.#state = parts.state;
    this.#run = run;
    this.#from = parts.state.geometry;
    const { clusterBits, extendedL2 } = this.#from;
    this.#to = geometryOf({ clusterBits, extendedL2, refcountOrder: order });
  }

  async run(): Promise<void> {
    const { allocator } = this.#parts;
    await this.#readTable();
    this.#total = PASSES * Math.max(1, this.#blocks.length);
    this.#run.progress(0, this.#total);
    await this.#survey();
    // Reserving may make blocks, or a larger table, which need places themselves.
    for (let clusters = this.#layout(0).clusters; ; ) {
      const offset = await allocator.allocate(clusters);
      let wanted: number;
      try {
        wanted = await this.#writeAt(offset, clusters);
      } catch (error) {
        // Of the two headers the one may be there that needs it.
        if (!(error instanceof UnknownState)) await this.#release(offset, clusters).catch(() => undefined);
        throw error;
      }
      if (wanted === 0) return;
      await this.#release(offset, clusters);
      clusters = wanted;
    }
  }

  /** @returns how many clusters it takes instead; 0: the switch is made. */
  async #writeAt(offset: number, clusters: number): Promise<number> {
    const { clusterSize } = this.#from;
    await this.#writeBack();
    await this.#readTable();
    this.#done = divFloor(this.#total, PASSES);
    await this.#survey();
    const layout = this.#layout(offset / clusterSize + clusters);
    if (layout.clusters > clusters) return layout.clusters;
    await this.#release(offset + layout.clusters * clusterSize, clusters - layout.clusters);
    await this.#writeBack();
    await this.#write(offset, layout);
    return 0;
  }

  async #release(offset: number, clusters: number): Promise<void> {
    if (clusters > 0) await this.#parts.allocator.release(offset, clusters * this.#from.clusterSize);
  }

  async #writeBack(): Promise<void> {
    const { refcountBlocks, refcountTable } = this.#state.caches;
    await refcountBlocks.writeBack();
    await refcountTable.writeBack();
  }

  async #readTable(): Promise<void> {
    const { header, file } = this.#state;
    const { clusterSize } = this.#from;
    const table = new Uint8Array(header.refcountTableClusters * clusterSize);
    await file.read(header.refcountTableOffset, table);
    const view = new DataView(table.buffer);
    let end = table.length / TABLE_ENTRY_BYTES;
    const offsetAt = (index: number): number =>
      refcountBlockOffset(view.getUint32(index * TABLE_ENTRY_BYTES), view.getUint32(index * TABLE_ENTRY_BYTES + 4));
    while (end > 0 && offsetAt(end - 1) === 0) end--;
    this.#blocks = Float64Array.from({ length: end }, (_, index) => offsetAt(index));
    for (const [index, offset] of this.#blocks.entries()) {
      if (offset % clusterSize === 0) continue;
      await this.#state.fatal(
        'refcount-block-offset',
        `Refblock offset ${hexOf(offset)} unaligned (reftable index: ${hexOf(index)})`,
      );
    }
    const first = header.refcountTableOffset / clusterSize;
    const own = Float64Array.from({ length: header.refcountTableClusters }, (_, i) => first + i);
    const blocks = this.#blocks.filter((offset) => offset !== 0).map((offset) => offset / clusterSize);
    this.#given = new Float64Array(own.length + blocks.length);
    this.#given.set(own);
    this.#given.set(blocks, own.length);
    this.#given.sort();
    this.#requireSeparate();
  }

  /** Each block is there once, so that there are no more of them than the file has clusters: the time that this takes is bounded. */
  #requireSeparate(): void {
    const given = this.#given;
    for (let i = 1; i < given.length; i++) {
      if (given[i] !== given[i - 1]) continue;
      const offset = (given[i] as number) * this.#from.clusterSize;
      throw new BlockError(
        'CORRUPT',
        `qcow2 "${this.#state.name}": the refcount structure names the cluster at ${hexOf(offset)} twice; check the image`,
        { reason: 'qcow2.amend-refcount-blocks', details: { offset } },
      );
    }
  }

  /** Visits every cluster that is in use, in order. */
  async #each(visit: (cluster: number, refcount: number) => Promise<void> | void): Promise<void> {
    const { clusterSize, refcountBlockEntries, refcountOrder } = this.#from;
    const bytes = new Uint8Array(clusterSize);
    const view = new DataView(bytes.buffer);
    for (const [index, offset] of this.#blocks.entries()) {
      // Behind the end of the file nothing is counted.
      const isThere = offset !== 0 && offset < this.#state.file.size;
      if (isThere) await this.#state.file.read(offset, bytes);
      for (let i = 0; isThere && i < refcountBlockEntries; i++) {
        const refcount = getRefcount(view, i, refcountOrder);
        if (refcount === 0) continue;
        const waiting = visit(index * refcountBlockEntries + i, refcount);
        if (waiting !== undefined) await waiting;
      }
      this.#done = Math.min(this.#total, this.#done + 1);
      this.#run.progress(this.#done, this.#total);
      if (this.#pacer.due) await this.#pacer.pause(this.#run.signal);
    }
  }

  /** Which blocks are needed, and whether they can hold every count. */
  async #survey(): Promise<void> {
    const { refcountMax, refcountBits, refcountBlockEntries } = this.#to;
    this.#indexes = [];
    await this.#each((cluster, refcount) => {
      const index = divFloor(cluster, refcountBlockEntries);
      if (this.#indexes.at(-1) !== index) this.#indexes.push(index);
      if (refcount <= refcountMax) return;
      const offset = cluster * this.#to.clusterSize;
      throw new BlockError(
        'UNSUPPORTED',
        `qcow2 "${this.#state.name}": the cluster at ${hexOf(offset)} has a refcount of ${refcount}, which ${refcountBits} bits do not hold`,
        { reason: 'qcow2.amend-refcount-overflow', details: { offset, value: refcount, bits: refcountBits } },
      );
    });
  }

  /** What the new structure consists of: a block wherever something is in use, and a table that counts all below cluster `end` as well.
   *  @throws TOO_LARGE */
  #layout(end: number): Layout {
    const perNew = this.#to.refcountBlockEntries;
    const { refcountTableEntriesPerCluster, clusterSize } = this.#to;
    const indexes = this.#indexes;
    const counted = Math.max(((indexes.at(-1) ?? 0) + 1) * perNew, end);
    const tableClusters = Math.max(1, divCeil(divCeil(counted, perNew), refcountTableEntriesPerCluster));
    if (tableClusters * clusterSize > MAX_REFCOUNT_TABLE_BYTES) {
      throw new BlockError(
        'TOO_LARGE',
        `qcow2 "${this.#state.name}": the refcount table would exceed ${MAX_REFCOUNT_TABLE_BYTES} bytes`,
        { reason: 'qcow2.refcount-table-limit', details: { bound: MAX_REFCOUNT_TABLE_BYTES, errno: 'EFBIG' } },
      );
    }
    return { tableClusters, indexes, clusters: tableClusters + indexes.length };
  }

  async #write(offset: number, { tableClusters, indexes }: Layout): Promise<void> {
    const { file, header } = this.#state;
    const { clusterSize, refcountOrder, refcountBlockEntries } = this.#to;
    const table = new Uint8Array(tableClusters * clusterSize);
    const tableView = new DataView(table.buffer);
    const block = new Uint8Array(clusterSize);
    const view = new DataView(block.buffer);
    let nth = 0;
    const writeUpTo = async (index: number): Promise<void> => {
      for (; nth < indexes.length && (indexes[nth] as number) < index; nth++) {
        const at = offset + (tableClusters + nth) * clusterSize;
        setU64(tableView, (indexes[nth] as number) * TABLE_ENTRY_BYTES, at);
        await file.write(at, block);
        block.fill(0);
      }
    };
    const set = (cluster: number, refcount: number): void =>
      setRefcount(view, cluster % refcountBlockEntries, refcountOrder, refcount);
    let given = 0;
    this.#done = divFloor(this.#total * (PASSES - 1), PASSES);
    await this.#each((cluster, refcount) => {
      while ((this.#given[given] as number) < cluster) given++;
      let left = refcount;
      for (; this.#given[given] === cluster; given++) left--;
      if (left <= 0) return undefined;
      const index = divFloor(cluster, refcountBlockEntries);
      if (index === indexes[nth]) return set(cluster, left);
      return writeUpTo(index).then(() => set(cluster, left));
    });
    await writeUpTo(Number.POSITIVE_INFINITY);
    await file.write(offset, table);
    await this.#state.flushFile();
    const next = {
      ...header,
      refcountTableOffset: offset,
      refcountTableClusters: tableClusters,
      refcountOrder,
    };
    await switchFields(this.#state, next);
  }
}
