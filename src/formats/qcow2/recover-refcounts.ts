/** Refcounts as evidence: what the blocks count, and which blocks can be believed. Spec: qcow2, "Refcount tables and blocks".
 *  Invariants: each block is read once, whatever the table says; a block is believed only as long as it agrees with at least half of what is known to be
 *  used in its range; where no block can be believed, nothing is known. */
import { type JobOptions, Pacer } from '../../base/job.ts';
import type { BlockNode } from '../../core/node.ts';
import { getRefcount, refcountBlockOffset, refcountTableHasReserved } from './entries.ts';
import { type Geometry, MAX_REFCOUNT_TABLE_BYTES, TABLE_ENTRY_BYTES } from './geometry.ts';
import type { Qcow2Header } from './header.ts';
import { ClusterCounts, saturated } from './recover-counts.ts';

/** What is known of a cluster whose block is lost. */
export const UNKNOWN = -1;

/** Entries of the largest refcount table. */
const MAX_BLOCKS = MAX_REFCOUNT_TABLE_BYTES / TABLE_ENTRY_BYTES;

export class Evidence {
  readonly #file: BlockNode;
  readonly #geometry: Geometry;
  readonly #clusters: number;
  readonly #counts = new ClusterCounts();
  /** Host offset of the block of each range; 0: none. */
  readonly #blocks: Float64Array;
  readonly #believed: Uint8Array;
  /** The table was read from where the header says. */
  tableWhole = false;

  constructor(file: BlockNode, geometry: Geometry) {
    this.#file = file;
    this.#geometry = geometry;
    this.#clusters = Math.ceil(file.size / geometry.clusterSize);
    const ranges = Math.min(MAX_BLOCKS, Math.ceil(this.#clusters / geometry.refcountBlockEntries));
    this.#blocks = new Float64Array(ranges);
    this.#believed = new Uint8Array(ranges);
  }

  /** Blocks that are in use, by the table or by the look of them. */
  get blocks(): readonly number[] {
    return [...this.#blocks].filter((offset) => offset > 0);
  }

  /** @param candidates clusters that could be blocks, for ranges that the table has lost. */
  async load(
    header: Qcow2Header | undefined,
    candidates: readonly number[],
    notes: string[],
    options: JobOptions,
  ): Promise<void> {
    if (header !== undefined) await this.#readTable(header);
    const { clusterSize, refcountBlockEntries } = this.#geometry;
    if (!this.tableWhole) {
      if (header !== undefined)
        notes.push('the refcount table is lost or damaged; refcount blocks are taken where they look like ones');
      this.#blocks.fill(0);
      for (const offset of candidates) {
        const range = Math.floor(offset / clusterSize / refcountBlockEntries);
        if (range < this.#blocks.length && this.#blocks[range] === 0) this.#blocks[range] = offset;
      }
    }
    const pacer = new Pacer();
    const bytes = new Uint8Array(clusterSize);
    for (let range = 0; range < this.#blocks.length; range++) {
      const offset = this.#blocks[range] as number;
      if (offset === 0) continue;
      await this.#file.read(offset, bytes);
      this.#count(new DataView(bytes.buffer), range);
      if (pacer.due) await pacer.pause(options.signal);
    }
  }

  #count(view: DataView, range: number): void {
    const { refcountBlockEntries, refcountOrder } = this.#geometry;
    const first = range * refcountBlockEntries;
    const end = Math.min(refcountBlockEntries, this.#clusters - first);
    for (let i = 0; i < end; i++) {
      const count = getRefcount(view, i, refcountOrder);
      if (count > 0) this.#counts.add(first + i, saturated(count));
    }
  }

  async #readTable(header: Qcow2Header): Promise<void> {
    const { clusterSize, refcountTableEntriesPerCluster } = this.#geometry;
    const { refcountTableOffset: at, refcountTableClusters } = header;
    const size = this.#file.size;
    if (at === 0 || at >= size) return;
    const entries = Math.min(refcountTableClusters * refcountTableEntriesPerCluster, this.#blocks.length);
    const bytes = new Uint8Array(entries * TABLE_ENTRY_BYTES);
    await this.#file.read(at, bytes);
    const view = new DataView(bytes.buffer);
    const seen = new Set<number>();
    for (let i = 0; i < entries; i++) {
      const high = view.getUint32(i * TABLE_ENTRY_BYTES);
      const low = view.getUint32(i * TABLE_ENTRY_BYTES + 4);
      if (high === 0 && low === 0) continue;
      const offset = refcountBlockOffset(high, low);
      const fine = !refcountTableHasReserved(low) && offset % clusterSize === 0 && offset < size && !seen.has(offset);
      if (!fine) return;
      seen.add(offset);
      this.#blocks[i] = offset;
    }
    this.tableWhole = seen.size > 0;
  }

  /** Judges the blocks by what is known to be used. */
  judge(claims: ClusterCounts): void {
    const { refcountBlockEntries } = this.#geometry;
    const claimed = new Float64Array(this.#blocks.length);
    const agreed = new Float64Array(this.#blocks.length);
    for (const [cluster, count] of claims.entries()) {
      const range = Math.floor(cluster / refcountBlockEntries);
      if (range >= claimed.length) continue;
      claimed[range] = (claimed[range] as number) + 1;
      // One more: the table that would claim it, too, may be what is destroyed.
      const missing = this.#counts.get(cluster) - count;
      if (missing === 0 || missing === 1) agreed[range] = (agreed[range] as number) + 1;
    }
    for (let range = 0; range < claimed.length; range++) {
      const used = claimed[range] as number;
      // A range that has no block counts nothing; that is right only as long as nothing is there.
      const believed =
        this.#blocks[range] === 0 ? used === 0 && this.tableWhole : used > 0 && (agreed[range] as number) * 2 >= used;
      this.#believed[range] = believed ? 1 : 0;
    }
  }

  /** Every range has a block that can be believed, or needs none. */
  get complete(): boolean {
    return this.#believed.every((believed) => believed === 1);
  }

  /** What stands in the block, believed or not. */
  raw(cluster: number): number {
    return this.#counts.get(cluster);
  }

  /** Refcount of a cluster, saturated; {@link UNKNOWN}. */
  of(cluster: number): number {
    const range = Math.floor(cluster / this.#geometry.refcountBlockEntries);
    if (this.#believed[range] !== 1) return UNKNOWN;
    return this.#counts.get(cluster);
  }

  /** Every counted cluster whose block is believed. */
  *counted(): Generator<readonly [cluster: number, count: number]> {
    for (const entry of this.#counts.entries()) {
      if (this.#believed[Math.floor(entry[0] / this.#geometry.refcountBlockEntries)] === 1) yield entry;
    }
  }
}
