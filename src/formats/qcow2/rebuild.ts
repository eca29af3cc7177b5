/** Builds refcount table and blocks anew from the references found, when the old ones are beyond correction.
 *  Spec: qcow2, "Refcount tables, blocks"; places are found as QEMU finds them.
 *  Write order: blocks and table into free clusters, flush, then the header's pointer to the table, flush. Until then the image is as
 *  it was; afterwards the old structures are leaked clusters, which the caller frees.
 *  Invariant: nothing that is referenced is written over, nor any place the old table names. */
import { setU64 } from '../../bytes/ints.ts';
import { blockOffsetAt } from './check-refcounts.ts';
import type { References } from './check-references.ts';
import type { CheckRun } from './check-run.ts';
import { setRefcount } from './entries.ts';
import { MAX_REFCOUNT_TABLE_BYTES, TABLE_ENTRY_BYTES } from './geometry.ts';
import { HeaderV2 } from './header-fields.ts';

/** Writes new structures that hold `references`, themselves included, and points the header (also `run.header`) at them. */
export async function rebuildRefcounts(run: CheckRun, references: References, oldTable: DataView): Promise<void> {
  const { clusterSize } = run.geometry;
  const rebuild = new Rebuild(run, references, oldTable);
  let grown = await rebuild.writeBlocks(0, references.clusters);
  let tableCluster = 0;
  let tableClusters = 0;
  // writing the table's own refcounts may make the table longer; the shorter one then stays behind as a leak
  while (grown) {
    tableClusters = Math.ceil((rebuild.entries * TABLE_ENTRY_BYTES) / clusterSize);
    if (tableClusters * clusterSize > MAX_REFCOUNT_TABLE_BYTES)
      throw run.failure('the refcount table would be too large', 'EFBIG');
    tableCluster = rebuild.allocate(tableClusters, 0);
    grown = await rebuild.writeBlocks(tableCluster, tableCluster + tableClusters);
  }
  const table = new Uint8Array(tableClusters * clusterSize);
  const view = new DataView(table.buffer);
  for (const [index, cluster] of rebuild.blocks) setU64(view, index * TABLE_ENTRY_BYTES, cluster * clusterSize);
  const offset = tableCluster * clusterSize;
  await run.file.write(offset, table);
  await run.file.flush();
  const pointer = new Uint8Array(12);
  const pointerView = new DataView(pointer.buffer);
  setU64(pointerView, 0, offset);
  pointerView.setUint32(8, tableClusters);
  await run.file.write(HeaderV2.fields.refcountTableOffset[0], pointer);
  await run.file.flush();
  run.header = { ...run.header, refcountTableOffset: offset, refcountTableClusters: tableClusters };
}

class Rebuild {
  readonly #run: CheckRun;
  readonly #references: References;
  /** Clusters that the old table names as blocks. A broken entry's block is referenced by nothing, yet is in use until the header changes. */
  readonly #oldBlocks = new Set<number>();
  /** Cluster of each new block, by table index. */
  readonly blocks = new Map<number, number>();
  /** Entries of the new table: whole clusters of them. */
  entries = 0;
  /** Where the last search found its first gap. */
  #firstGap = 0;

  constructor(run: CheckRun, references: References, oldTable: DataView) {
    this.#run = run;
    this.#references = references;
    const { clusterSize } = run.geometry;
    for (let index = 0; index * TABLE_ENTRY_BYTES < oldTable.byteLength; index++) {
      const offset = blockOffsetAt(oldTable, index);
      if (offset === 0 || !Number.isFinite(offset)) continue;
      this.#oldBlocks.add(Math.floor(offset / clusterSize));
      this.#oldBlocks.add(Math.floor((offset + clusterSize - 1) / clusterSize));
    }
  }

  /** Writes the blocks for the clusters `[first, end)` that are in use, placing those that have no place yet.
   *  @returns true when the table grew. */
  async writeBlocks(first: number, end: number): Promise<boolean> {
    const run = this.#run;
    const references = this.#references;
    const { refcountBlockEntries, refcountTableEntriesPerCluster } = run.geometry;
    let grown = false;
    let upTo = end;
    this.#firstGap = 0;
    for (let cluster = first; cluster < upTo; cluster++) {
      if (references.counts[cluster] === 0) continue;
      const index = Math.floor(cluster / refcountBlockEntries);
      const start = index * refcountBlockEntries;
      let place = this.blocks.get(index);
      if (place === undefined) {
        // not in a block that is written already: its content is settled
        place = this.allocate(1, Math.max(this.#firstGap, start));
        upTo = Math.max(upTo, place + 1);
        if (index >= this.entries) {
          this.entries = Math.ceil((index + 1) / refcountTableEntriesPerCluster) * refcountTableEntriesPerCluster;
          grown = true;
        }
        this.blocks.set(index, place);
      }
      await this.#writeBlock(place, start);
      cluster = start + refcountBlockEntries - 1;
      if (run.restDue) await run.rest();
    }
    return grown;
  }

  async #writeBlock(place: number, start: number): Promise<void> {
    const { clusterSize, refcountBlockEntries, refcountOrder } = this.#run.geometry;
    const block = new Uint8Array(clusterSize);
    const view = new DataView(block.buffer);
    const { counts, clusters } = this.#references;
    const entries = Math.min(refcountBlockEntries, clusters - start);
    for (let i = 0; i < entries; i++) setRefcount(view, i, refcountOrder, counts[start + i] as number);
    await this.#run.file.write(place * clusterSize, block);
  }

  /** Takes `count` neighbouring clusters that nothing refers to, from cluster `from` on, or at the end of the file.
   *  @returns the first one. */
  allocate(count: number, from: number): number {
    const references = this.#references;
    let free = 0;
    let gap = -1;
    let cluster = from;
    for (; cluster < references.clusters && free < count; cluster++) {
      if (references.counts[cluster] !== 0 || this.#oldBlocks.has(cluster)) free = 0;
      else {
        free++;
        if (gap < 0) gap = cluster;
      }
    }
    if (gap >= 0) this.#firstGap = gap;
    const start = cluster - free;
    if (free < count) references.grow(start + count);
    for (let i = 0; i < count; i++) references.counts[start + i] = 1;
    return start;
  }
}
