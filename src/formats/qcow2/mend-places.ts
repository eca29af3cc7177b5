/** What the clusters of a damaged image are used for, as its pointers say: the question whether two of them say different things.
 *  Part of `check -r all`. Knows no repair.
 *  Invariant: its size follows the length of the file; the list of tables has each table once. */
import { allocateCounts, type CountArray } from './check-counts.ts';
import { type L1Location, readL1 } from './check-l2.ts';
import type { OverlapRanges } from './check-overlap.ts';
import { blockOffsetAt } from './check-refcounts.ts';
import type { References } from './check-references.ts';
import type { CheckRun } from './check-run.ts';
import { entryOffset } from './entries.ts';
import { TABLE_ENTRY_BYTES } from './geometry.ts';

/** Kinds of metadata; where two meet, the larger one is told. */
export const PLACE = { none: 0, l2: 1, inactiveL1: 2, block: 3, fixed: 4 } as const;
type Place = (typeof PLACE)[keyof typeof PLACE];

/** Owners are counted up to here; as many or more are not known. */
const MANY = 31;

/** An L2 table, and who names it first. */
export interface KnownTable {
  /** Host offset, bytes; a multiple of the cluster size, below the end of the file. */
  readonly offset: number;
  /** Guest offset of what it maps; `undefined` for a snapshot's. */
  readonly guest: number | undefined;
}

export class Places {
  readonly #run: CheckRun;
  /** Kind, and number of owners, in one byte. */
  readonly #clusters: CountArray;
  readonly #tables: KnownTable[] = [];
  #conflict = false;

  private constructor(run: CheckRun, clusters: number) {
    this.#run = run;
    this.#clusters = allocateCounts({ ...run.geometry, refcountOrder: 3 }, clusters, run.name);
  }

  static async survey(run: CheckRun, overlaps: OverlapRanges, l1Tables: readonly L1Location[]): Promise<Places> {
    const { header, geometry } = run;
    const { clusterSize } = geometry;
    const places = new Places(run, Math.ceil(run.file.size / clusterSize));
    places.#mark(PLACE.fixed, 0, clusterSize);
    places.#mark(PLACE.fixed, header.refcountTableOffset, header.refcountTableClusters * clusterSize);
    places.#mark(PLACE.fixed, header.snapshotsOffset, overlaps.snapshotTableSize);
    const { bitmaps, crypto } = header;
    if (bitmaps !== undefined) places.#mark(PLACE.fixed, bitmaps.directoryOffset, bitmaps.directorySize);
    if (crypto !== undefined) places.#mark(PLACE.fixed, crypto.offset, crypto.length);
    for (const { offset, size, active } of l1Tables) {
      places.#mark(active ? PLACE.fixed : PLACE.inactiveL1, offset, size * TABLE_ENTRY_BYTES);
    }
    const table = overlaps.refcountTable;
    for (let index = 0; index * TABLE_ENTRY_BYTES < table.byteLength; index++) {
      const block = blockOffsetAt(table, index);
      if (block !== 0 && block % clusterSize === 0) places.#mark(PLACE.block, block, clusterSize);
    }
    for (const l1 of l1Tables) await places.#markTables(l1);
    return places;
  }

  async #markTables(l1: L1Location): Promise<void> {
    const run = this.#run;
    const { clusterSize, l2Coverage } = run.geometry;
    const view = await readL1(run, l1);
    for (let index = 0; index * TABLE_ENTRY_BYTES < view.byteLength; index++) {
      const high = view.getUint32(index * TABLE_ENTRY_BYTES);
      const low = view.getUint32(index * TABLE_ENTRY_BYTES + 4);
      if (high === 0 && low === 0) continue;
      const offset = entryOffset(high, low);
      if (offset !== 0 && offset % clusterSize === 0 && offset < run.file.size) {
        const cluster = offset / clusterSize;
        if ((this.#clusters[cluster] as number) % (MANY + 1) === 0 || !this.#isTable(cluster)) {
          this.#tables.push({ offset, guest: l1.active ? index * l2Coverage : undefined });
          if ((this.#clusters[cluster] as number) !== 0) this.#listed.add(cluster);
        }
        this.#mark(PLACE.l2, offset, clusterSize);
      }
      if (run.restDue) await run.rest();
    }
  }

  /** Clusters that two structures claim which are no L2 tables; those are marked first. */
  readonly #contested = new Set<number>();

  /** Whether a cluster belongs to `kind` alone, but for wrong pointers to L2 tables, which give way. */
  isOwn(cluster: number, kind: Place): boolean {
    return this.kindOf(cluster) === kind && !this.#contested.has(cluster);
  }

  /** Clusters that are L2 tables and something else; few, because each is damage. */
  readonly #listed = new Set<number>();

  #isTable(cluster: number): boolean {
    return this.kindOf(cluster) === PLACE.l2 || this.#listed.has(cluster);
  }

  #mark(kind: Place, offset: number, length: number): void {
    const { clusterSize } = this.#run.geometry;
    if (!(length > 0) || !Number.isFinite(offset)) return;
    const end = Math.min(this.#clusters.length, Math.ceil((offset + length) / clusterSize));
    for (let cluster = Math.floor(offset / clusterSize); cluster < end; cluster++) {
      const before = this.kindOf(cluster);
      if (before !== PLACE.none && (before !== kind || kind !== PLACE.l2)) this.#conflict = true;
      if (before !== PLACE.none && kind !== PLACE.l2) this.#contested.add(cluster);
      const owners = Math.min(MANY, this.ownersOf(cluster) + 1);
      this.#clusters[cluster] = Math.max(before, kind) * (MANY + 1) + owners;
    }
  }

  /** Every L2 table, in the order of the disk. */
  get tables(): readonly KnownTable[] {
    return this.#tables;
  }

  /** Two structures claim one cluster. */
  get conflict(): boolean {
    return this.#conflict;
  }

  kindOf(cluster: number): Place {
    return Math.floor((this.#clusters[cluster] ?? 0) / (MANY + 1)) as Place;
  }

  /** How many pointers name this cluster as metadata, 31 at most. */
  ownersOf(cluster: number): number {
    return (this.#clusters[cluster] ?? 0) % (MANY + 1);
  }

  /** Whether something that is no metadata refers to a cluster of metadata. */
  hasForeign(references: References): boolean {
    const { counts } = references;
    for (let cluster = 0; cluster < this.#clusters.length; cluster++) {
      const owners = this.ownersOf(cluster);
      if (owners > 0 && owners < MANY && (counts[cluster] as number) > owners) return true;
    }
    return false;
  }
}
