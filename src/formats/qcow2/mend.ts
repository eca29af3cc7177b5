/** Repairs that qemu-img does not make, or makes worse; a part of `check -r all` only. What qemu-img calls a corruption and leaves is brought to the
 *  nearest sound state, without taking from the disk anything that can still be read:
 *  - bits that mean nothing are cleared; entries that end in the middle of a cluster are taken for the one before, where that one is free;
 *  - a file that is too short for clusters that were counted is made long enough (holes read as zeros, as they did);
 *  - what cannot be reached at all reads as zeros;
 *  - guest data that lies on metadata is copied out.
 *  Spec: qcow2, "Cluster mapping", "Extended L2 entries".
 *  Write order: L1 entries → flush → copies and their refcounts → flush → the entries that name them → flush → other entries → flush. Every entry is
 *  written in place and is right on its own, so a cut anywhere leaves an image that a second repair ends.
 *  Invariants: a table is written only where nothing but tables of its kind claims its place; new clusters are taken behind the end of the file,
 *  so that nothing that lost its pointer is overwritten. */
import type { L1Location } from './check-l2.ts';
import { readL1 } from './check-l2.ts';
import type { OverlapRanges } from './check-overlap.ts';
import { blockOffsetAt, StoredRefcounts } from './check-refcounts.ts';
import type { References } from './check-references.ts';
import type { CheckRun } from './check-run.ts';
import { readTables } from './check-tables.ts';
import {
  entryOffset,
  hasOffset,
  isCopied,
  L2_NORMAL,
  L2_ZERO_ALLOCATED,
  l1HasReserved,
  l2Kind,
  setL1Entry,
  setL2Entry,
} from './entries.ts';
import { TABLE_ENTRY_BYTES } from './geometry.ts';
import { hasDataFile } from './header.ts';
import { EntryMender, isPlausibleTable } from './mend-entries.ts';
import { type KnownTable, PLACE, Places } from './mend-places.ts';

/** Findings of the count that are mended here; the others have repairs of their own. */
const MENDABLE = new Set([
  'l1-reserved',
  'l2-unaligned',
  'l2-reserved',
  'reference-past-end',
  'cluster-unaligned',
  'compressed-copied',
  'compressed-data-file',
  'compressed-subclusters',
  'subclusters-conflict',
  'subclusters-without-cluster',
  'refcount-overflow',
]);
/** A file is made longer to so many times its length at most, whatever it refers to. */
const MOST_GROWTH = 16;

/** Looks whether there is something to mend, and mends it.
 *  @returns how many things were mended; then everything is to be counted again. */
export async function mendTables(run: CheckRun, references: References, overlaps: OverlapRanges): Promise<number> {
  const found = [...MENDABLE].some((reason) => run.reasons.has(reason));
  const l1Tables = locate(run, overlaps);
  const places = await Places.survey(run, overlaps, l1Tables);
  if (!found && !places.conflict && !places.hasForeign(references)) return 0;
  const mender = new TableMender(run, references, overlaps, l1Tables, places);
  return await mender.mend();
}

function locate(run: CheckRun, overlaps: OverlapRanges): L1Location[] {
  const { l1Offset, l1Size } = run.header;
  return [
    { offset: l1Offset, size: l1Size, active: true },
    ...overlaps.snapshotL1.map(({ offset, size }) => ({ offset, size, active: false })),
  ].filter(({ size }) => size > 0);
}

class TableMender {
  readonly #run: CheckRun;
  readonly #references: References;
  readonly #overlaps: OverlapRanges;
  readonly #l1Tables: readonly L1Location[];
  #places: Places;
  #mended = 0;
  /** Refcounts as they are in the file, and the next cluster to take. */
  #stored: StoredRefcounts | undefined;
  #next = 0;
  readonly #dirtyBlocks = new Set<number>();

  constructor(
    run: CheckRun,
    references: References,
    overlaps: OverlapRanges,
    l1Tables: readonly L1Location[],
    places: Places,
  ) {
    this.#run = run;
    this.#references = references;
    this.#overlaps = overlaps;
    this.#l1Tables = l1Tables;
    this.#places = places;
  }

  async mend(): Promise<number> {
    const run = this.#run;
    this.#stored = await StoredRefcounts.load(run, this.#overlaps.refcountTable, this.#references.clusters, 'quiet');
    await this.#extendFile();
    await this.#mendL1();
    this.#places = await Places.survey(run, this.#overlaps, this.#l1Tables);
    this.#next = Math.ceil(run.file.size / run.geometry.clusterSize);
    if (!hasDataFile(run.header)) await this.#copyOut();
    this.#references.grow(this.#next);
    await this.#mendEntries();
    await run.file.flush();
    return this.#mended;
  }

  // ---- a file that is too short ---------------------------------------------------------------------------------------------------

  /** Makes the file long enough for everything that is referred to and has been counted: it was cut off. */
  async #extendFile(): Promise<void> {
    const run = this.#run;
    const { clusterSize, extendedL2 } = run.geometry;
    const { fileSize } = this.#references;
    if (!run.reasons.has('reference-past-end') || !run.file.supports.truncate) return;
    const limit = fileSize * MOST_GROWTH;
    const past = new Set<number>();
    const note = (offset: number): void => {
      if (offset >= fileSize && offset < limit && offset % clusterSize === 0) past.add(offset);
    };
    for (const l1 of this.#l1Tables) {
      const view = await readL1(run, l1);
      for (let at = 0; at < view.byteLength; at += TABLE_ENTRY_BYTES) {
        note(entryOffset(view.getUint32(at), view.getUint32(at + 4)));
      }
    }
    const dataFile = hasDataFile(run.header);
    await this.#eachTable((view, at) => {
      if (dataFile) return;
      for (let entry = at; entry < at + clusterSize; entry += run.geometry.l2EntrySize) {
        const high = view.getUint32(entry);
        const low = view.getUint32(entry + 4);
        const kind = l2Kind(high, low, extendedL2, false);
        if (kind === L2_NORMAL || kind === L2_ZERO_ALLOCATED) note(entryOffset(high, low));
      }
    });
    let end = 0;
    for (const offset of [...past].sort((a, b) => b - a)) {
      if (((await this.#stored?.lookUp(offset / clusterSize)) ?? 0) === 0) continue;
      end = offset + clusterSize;
      break;
    }
    if (end <= fileSize) return;
    await run.file.truncate(end);
    await run.file.flush();
    this.#references.grow(end / clusterSize);
    this.#tell('file-extended', `Repairing the length of the file: 0x${end.toString(16)} bytes, as its refcounts say`, {
      fileSize,
      length: end,
    });
  }

  // ---- L1 tables -------------------------------------------------------------------------------------------------------------------

  async #mendL1(): Promise<void> {
    const run = this.#run;
    const strange = await this.#strangeTables();
    for (const l1 of this.#l1Tables) {
      if (!this.#isOwn(l1)) continue;
      const view = await readL1(run, l1);
      for (let index = 0; index * TABLE_ENTRY_BYTES < view.byteLength; index++) {
        const at = index * TABLE_ENTRY_BYTES;
        if (view.getUint32(at) === 0 && view.getUint32(at + 4) === 0) continue;
        if (!(await this.#mendL1Entry(view, index, strange))) continue;
        await run.file.write(l1.offset + at, new Uint8Array(view.buffer, view.byteOffset + at, TABLE_ENTRY_BYTES));
      }
    }
    await run.file.flush();
  }

  /** Whether nothing else claims the clusters of an L1 table: only then it is written. */
  #isOwn({ offset, size, active }: L1Location): boolean {
    const { clusterSize } = this.#run.geometry;
    const end = offset + size * TABLE_ENTRY_BYTES;
    for (let at = offset; at < end; at += clusterSize) {
      if (!this.#places.isOwn(at / clusterSize, active ? PLACE.fixed : PLACE.inactiveL1)) return false;
    }
    return true;
  }

  /** Offsets that L1 entries name and that hold no L2 table. */
  async #strangeTables(): Promise<ReadonlySet<number>> {
    const strange = new Set<number>();
    const { clusterSize } = this.#run.geometry;
    await this.#eachTable((view, at, { offset }) => {
      const kind = this.#places.kindOf(offset / clusterSize);
      // on a refcount block there must be more of a table than of refcounts
      const few = kind === PLACE.block ? 0 : undefined;
      if (kind === PLACE.fixed || !isPlausibleTable(this.#run, this.#references, view, at, few)) strange.add(offset);
    });
    return strange;
  }

  /** @returns true when the entry was changed. */
  async #mendL1Entry(view: DataView, index: number, strange: ReadonlySet<number>): Promise<boolean> {
    const run = this.#run;
    const { clusterSize, l2Coverage } = run.geometry;
    const at = index * TABLE_ENTRY_BYTES;
    const high = view.getUint32(at);
    const low = view.getUint32(at + 4);
    const offset = entryOffset(high, low);
    let place = offset;
    if (offset % clusterSize !== 0) place = await this.#tableBefore(offset);
    else if (offset >= run.file.size || strange.has(offset)) place = 0;
    if (place === offset && !l1HasReserved(high, low)) return false;
    setL1Entry(view, at, place, place !== 0 && isCopied(high));
    const details = { index, offset, guestOffset: index * l2Coverage, length: l2Coverage };
    if (place !== 0) {
      this.#tell('l1-entry', `Repairing L1 entry ${index}: L2 table at 0x${place.toString(16)}`, details);
    } else {
      this.#tell('l1-entry-lost', `Repairing L1 entry ${index}: there is no L2 table, what it mapped is lost`, details);
    }
    return true;
  }

  /** The table that an unaligned offset meant: the one in whose cluster it ends, where nothing else claims that and it looks like one; else 0. */
  async #tableBefore(offset: number): Promise<number> {
    const run = this.#run;
    const { clusterSize } = run.geometry;
    const cluster = Math.floor(offset / clusterSize);
    const place = cluster * clusterSize;
    if (!(place > 0 && place < run.file.size)) return 0;
    if (this.#places.kindOf(cluster) !== PLACE.none || (this.#references.counts[cluster] as number) > 1) return 0;
    const table = new Uint8Array(clusterSize);
    await run.file.read(place, table);
    return isPlausibleTable(run, this.#references, new DataView(table.buffer), 0) ? place : 0;
  }

  // ---- guest data on metadata -----------------------------------------------------------------------------------------------------

  async #copyOut(): Promise<void> {
    const run = this.#run;
    const { clusterSize, l2EntrySize, extendedL2, refcountMax } = run.geometry;
    const overflows = run.reasons.has('refcount-overflow') ? new Set<number>() : undefined;
    const moved = (cluster: number): boolean => {
      if (this.#places.kindOf(cluster) !== PLACE.none) return true;
      // narrow refcounts: each further reference gets a cluster of its own
      if (overflows === undefined || refcountMax > 1) return false;
      if (overflows.has(cluster)) return true;
      overflows.add(cluster);
      return false;
    };
    await this.#eachTable((view, at, table) => {
      if (!this.#mayWrite(table)) return;
      const entries: number[] = [];
      for (let index = 0; index < clusterSize / l2EntrySize; index++) {
        const high = view.getUint32(at + index * l2EntrySize);
        const low = view.getUint32(at + index * l2EntrySize + 4);
        if (!hasOffset(high, low)) continue;
        const kind = l2Kind(high, low, extendedL2, false);
        if (kind !== L2_NORMAL && kind !== L2_ZERO_ALLOCATED) continue;
        const offset = entryOffset(high, low);
        if (offset % clusterSize === 0 && offset < run.file.size && moved(offset / clusterSize)) entries.push(index);
      }
      return entries.length === 0 ? undefined : this.#copyEntries(view, at, table, entries);
    });
  }

  async #copyEntries(view: DataView, at: number, table: KnownTable, entries: readonly number[]): Promise<void> {
    const run = this.#run;
    const { clusterSize, l2EntrySize } = run.geometry;
    const data = new Uint8Array(clusterSize);
    let counted = true;
    for (const index of entries) {
      const entryAt = at + index * l2EntrySize;
      const from = entryOffset(view.getUint32(entryAt), view.getUint32(entryAt + 4));
      const zero = l2Kind(view.getUint32(entryAt), view.getUint32(entryAt + 4), run.geometry.extendedL2, false);
      const cluster = this.#allocate();
      counted = cluster.counted && counted;
      data.fill(0);
      await run.file.read(from, data);
      await run.file.write(cluster.offset, data);
      setL2Entry(view, entryAt, cluster.offset, true, zero === L2_ZERO_ALLOCATED);
      this.#tell(
        'copied-out',
        `Repairing L2 entry ${index} of the table at 0x${table.offset.toString(16)}: data at 0x${from.toString(16)} copied to 0x${cluster.offset.toString(16)}`,
        { index, offset: from, copy: cluster.offset, ...guestOf(run, table, index) },
      );
    }
    await this.#writeRefcounts();
    // without a refcount the copies are safe only from those who see the mark; the end of the repair clears it
    if (!counted) await run.markCorrupt();
    await run.file.flush();
    await run.file.write(table.offset, new Uint8Array(view.buffer, view.byteOffset + at, clusterSize));
    await run.file.flush();
  }

  /** The next cluster behind the end of the file, with a refcount of one where there is a block for it. */
  #allocate(): { readonly offset: number; readonly counted: boolean } {
    const { clusterSize, refcountBlockEntries } = this.#run.geometry;
    const stored = this.#stored as StoredRefcounts;
    const cluster = this.#next++;
    const index = Math.floor(cluster / refcountBlockEntries);
    const block = blockOffsetAt(stored.table, index);
    const own = block % clusterSize === 0 && this.#isOnlyBlock(block / clusterSize);
    const counted = block !== 0 && own && stored.isReadable(cluster);
    if (counted) {
      stored.set(cluster, 1, 1);
      this.#dirtyBlocks.add(index);
    }
    return { offset: cluster * clusterSize, counted };
  }

  #isOnlyBlock(cluster: number): boolean {
    const { counts } = this.#references;
    return (
      this.#places.kindOf(cluster) === PLACE.block && this.#places.ownersOf(cluster) === 1 && counts[cluster] === 1
    );
  }

  async #writeRefcounts(): Promise<void> {
    for (const index of this.#dirtyBlocks) await this.#stored?.write(index);
    this.#dirtyBlocks.clear();
  }

  // ---- L2 entries ------------------------------------------------------------------------------------------------------------------

  async #mendEntries(): Promise<void> {
    const run = this.#run;
    const { clusterSize } = run.geometry;
    const isFree = (cluster: number): boolean =>
      this.#places.kindOf(cluster) === PLACE.none && (this.#references.counts[cluster] as number) <= 1;
    const mender = new EntryMender(run, this.#references, isFree, (finding, message, details) =>
      this.#tell(finding, message, details),
    );
    await this.#eachTable((view, at, table) => {
      if (!this.#mayWrite(table)) return;
      const { changed, blanks } = mender.table(view, at, table);
      return changed ? this.#writeTable(view, at, table, blanks) : undefined;
    });
    await run.file.flush();
    // made longer by what was written last
    if (run.file.size % clusterSize !== 0 && run.file.supports.truncate && this.#next * clusterSize > run.file.size)
      await run.file.truncate(this.#next * clusterSize);
  }

  /** @param blanks entries that are to read as zeros and cannot say so: they get clusters of zeros */
  async #writeTable(view: DataView, at: number, table: KnownTable, blanks: readonly number[]): Promise<void> {
    const run = this.#run;
    const { clusterSize, l2EntrySize } = run.geometry;
    if (blanks.length > 0) {
      const zeros = new Uint8Array(clusterSize);
      let counted = true;
      for (const index of blanks) {
        const cluster = this.#allocate();
        counted = cluster.counted && counted;
        await run.file.write(cluster.offset, zeros);
        setL2Entry(view, at + index * l2EntrySize, cluster.offset, true, false);
      }
      await this.#writeRefcounts();
      if (!counted) await run.markCorrupt();
      await run.file.flush();
    }
    await run.file.write(table.offset, new Uint8Array(view.buffer, view.byteOffset + at, clusterSize));
  }

  /** Nothing but L2 tables is in its place, or a refcount block that is to be built anew. */
  #mayWrite({ offset }: KnownTable): boolean {
    const kind = this.#places.kindOf(offset / this.#run.geometry.clusterSize);
    return kind === PLACE.l2 || kind === PLACE.block;
  }

  async #eachTable(
    visit: (view: DataView, at: number, table: KnownTable) => Promise<void> | undefined | void,
  ): Promise<void> {
    const { tables } = this.#places;
    const offsets = tables.map(({ offset }) => offset);
    try {
      await readTables(
        this.#run,
        offsets,
        this.#run.geometry.clusterSize,
        (index, view, at) => visit(view, at, tables[index] as KnownTable) ?? undefined,
      );
    } catch (cause) {
      throw this.#run.ioFailure('ERROR: I/O error in check_refcounts_l2', cause);
    }
  }

  #tell(finding: string, message: string, details: Readonly<Record<string, unknown>>): void {
    this.#mended++;
    this.#run.find('corruption', finding, message, details);
  }
}

function guestOf(run: CheckRun, { guest }: KnownTable, index: number): { guestOffset?: number } {
  return guest === undefined ? {} : { guestOffset: guest + index * run.geometry.clusterSize };
}
