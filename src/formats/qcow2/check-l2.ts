/** The pass over L1 and L2 tables: counts the clusters they refer to and judges every entry.
 *  Spec: qcow2, "Cluster mapping", "Extended L2 entries".
 *  Invariants: no promise and no allocation per entry; an entry is changed only under `-r all`, and only one that holds no data. */
import type { Pending } from '../../base/async.ts';
import { hex } from '../../base/errors.ts';
import { findOverlap, type OverlapRanges, refuseOverlap } from './check-overlap.ts';
import type { References } from './check-references.ts';
import { offsetText } from './check-references.ts';
import { type CheckRun, entryHex } from './check-run.ts';
import { readTables } from './check-tables.ts';
import {
  ALL_SUBCLUSTERS,
  ALLOCATED_BITMAP_AT,
  compressedLength,
  compressedOffset,
  entryOffset,
  hasAnySubcluster,
  isCopied,
  isZeroFlag,
  L2_COMPRESSED,
  L2_UNALLOCATED,
  L2_ZERO_PLAIN,
  l1HasReserved,
  l2HasReserved,
  l2Kind,
  setL2Entry,
  setSubclusters,
  subclustersConflict,
  withSubclusters,
  ZERO_BITMAP_AT,
} from './entries.ts';
import { TABLE_ENTRY_BYTES } from './geometry.ts';
import { hasDataFile } from './header.ts';
import { OVERLAP } from './options.ts';

export interface L1Location {
  readonly offset: number;
  /** Entries, not bytes. */
  readonly size: number;
  /** The table of the disk as it is now, not a snapshot's: its clusters make the fragmentation figures. */
  readonly active: boolean;
}

/** Reads an L1 table whole, as far as the file has it: behind its end there are only zeros, however many entries the header claims. */
export async function readL1(run: CheckRun, l1: L1Location): Promise<DataView> {
  const present = Math.max(0, run.file.size - l1.offset);
  const table = new Uint8Array(Math.min(l1.size, Math.ceil(present / TABLE_ENTRY_BYTES)) * TABLE_ENTRY_BYTES);
  try {
    await run.file.read(l1.offset, table);
  } catch (cause) {
    throw run.ioFailure('ERROR: I/O error in check_refcounts_l1', cause);
  }
  return new DataView(table.buffer);
}

/** Counts the L1 table, its L2 tables and their clusters. */
export async function countL1(
  run: CheckRun,
  references: References,
  overlaps: OverlapRanges,
  l1: L1Location,
): Promise<void> {
  if (l1.size === 0) return;
  references.add(l1.offset, l1.size * TABLE_ENTRY_BYTES);
  const table = await readL1(run, l1);
  const { clusterSize, l2Coverage } = run.geometry;
  const scan = new L2Scan(run, references, overlaps, l1.active);
  /** L1 indexes whose tables are to be read; their entries are judged in order, each before its table. */
  let pending: number[] = [];
  let reached = 0;
  const scanPending = async (end: number): Promise<void> => {
    const indexes = pending;
    pending = [];
    const offsets = indexes.map((index) => l2OffsetAt(table, index));
    try {
      await readTables(run, offsets, clusterSize, (at, view, start) => {
        countL2Table(run, references, table, indexes[at] as number);
        return scan.table(view, start, offsets[at] as number);
      });
    } catch (cause) {
      throw run.ioFailure('ERROR: I/O error in check_refcounts_l2', cause);
    }
    if (l1.active) run.advance((end - reached) * l2Coverage);
    reached = end;
  };
  for (let index = 0; index * TABLE_ENTRY_BYTES < table.byteLength; index++) {
    const at = index * TABLE_ENTRY_BYTES;
    if (table.getUint32(at) === 0 && table.getUint32(at + 4) === 0) continue;
    if (l2OffsetAt(table, index) < references.fileSize) {
      pending.push(index);
      if (pending.length >= BATCH) await scanPending(index + 1);
    } else {
      // a table past the end of the file reads as zero and refers to nothing
      if (pending.length > 0) await scanPending(index);
      countL2Table(run, references, table, index);
      if (run.restDue) await run.rest();
    }
  }
  await scanPending(l1.size);
}

function l2OffsetAt(table: DataView, index: number): number {
  const at = index * TABLE_ENTRY_BYTES;
  return entryOffset(table.getUint32(at), table.getUint32(at + 4));
}

/** Judges L1 entry `index` and counts the L2 table it names. */
function countL2Table(run: CheckRun, references: References, table: DataView, index: number): void {
  const { clusterSize } = run.geometry;
  const high = table.getUint32(index * TABLE_ENTRY_BYTES);
  const low = table.getUint32(index * TABLE_ENTRY_BYTES + 4);
  if (l1HasReserved(high, low)) {
    run.corruption('l1-reserved', `ERROR found L1 entry with reserved bits set: ${entryHex(high, low)}`, { index });
  }
  const offset = entryOffset(high, low);
  const offsetLow = low - (low % 512);
  references.add(offset, clusterSize, offsetText(offset, high % 0x100_0000, offsetLow));
  if (offsetLow % clusterSize !== 0) {
    run.corruption(
      'l2-unaligned',
      `ERROR l2_offset=${entryHex(high % 0x100_0000, offsetLow)}: Table is not cluster aligned; L1 entry corrupted`,
      { index, offset },
    );
  }
}

/** L2 tables judged in one go; bounds memory and keeps progress moving. */
const BATCH = 1024;

class L2Scan {
  readonly #run: CheckRun;
  readonly #references: References;
  readonly #overlaps: OverlapRanges;
  readonly #active: boolean;
  readonly #extended: boolean;
  readonly #dataFile: boolean;
  /** Where the next cluster lies if it continues the last one; 0 at the start of a table. */
  #contiguous = 0;
  /** The cluster that was found to hold nothing but L2 entries; -1 for none. */
  #clearCluster = -1;

  constructor(run: CheckRun, references: References, overlaps: OverlapRanges, active: boolean) {
    this.#run = run;
    this.#references = references;
    this.#overlaps = overlaps;
    this.#active = active;
    this.#extended = run.geometry.extendedL2;
    this.#dataFile = hasDataFile(run.header);
  }

  /** Judges the table at byte `at` of `view`, which lies at `offset` in the file. */
  table(view: DataView, at: number, offset: number): Pending {
    this.#contiguous = 0;
    const repair = this.#entries(view, at, 0);
    return repair < 0 ? undefined : this.#repairFrom(view, at, offset, repair);
  }

  /** Judges entries from `first` on.
   *  @returns the index of an entry that is to be repaired, -1 at the end. */
  #entries(view: DataView, at: number, first: number): number {
    const { l2Entries, l2EntrySize, clusterSize } = this.#run.geometry;
    const references = this.#references;
    const { counts, max, fileClusters } = references;
    const plain = !this.#extended && !this.#dataFile;
    const active = this.#active;
    const { allocation } = this.#run;
    let contiguous = this.#contiguous;
    for (let index = first; index < l2Entries; index++) {
      const high = view.getUint32(at + index * l2EntrySize);
      const low = view.getUint32(at + index * l2EntrySize + 4);
      if (high === 0 && low === 0 && plain) continue;
      // the common case first: COPIED or shared, aligned, no other bits, within the file
      const offset = (high % 0x8000_0000) * 0x1_0000_0000 + low;
      const cluster = offset / clusterSize;
      if (plain && cluster < fileClusters && Number.isInteger(cluster) && cluster > 0) {
        if (active) {
          allocation.allocated++;
          if (contiguous !== 0 && offset !== contiguous) allocation.fragmented++;
          contiguous = offset + clusterSize;
        }
        const count = counts[cluster] as number;
        if (count >= max) references.overflow(cluster);
        else counts[cluster] = count + 1;
        continue;
      }
      this.#contiguous = contiguous;
      const repair = this.#entry(view, at + index * l2EntrySize, index, high, low);
      contiguous = this.#contiguous;
      if (repair) return index;
      // counting past the end may have replaced the array
      if (references.counts !== counts) return this.#entries(view, at, index + 1);
    }
    this.#contiguous = contiguous;
    return -1;
  }

  /** Judges one entry, whatever it is.
   *  @returns true when it is to be repaired. */
  #entry(view: DataView, at: number, index: number, high: number, low: number): boolean {
    const run = this.#run;
    const allocated = this.#extended ? view.getUint32(at + ALLOCATED_BITMAP_AT) : 0;
    const zero = this.#extended ? view.getUint32(at + ZERO_BITMAP_AT) : 0;
    const kind = l2Kind(high, low, this.#extended, this.#dataFile);
    if (kind !== L2_COMPRESSED && l2HasReserved(high, low)) {
      run.corruption('l2-reserved', `ERROR found l2 entry with reserved bits set: ${entryHex(high, low)}`, { index });
    }
    if (kind === L2_COMPRESSED) this.#compressed(index, high, low, allocated !== 0 || zero !== 0);
    else if (kind === L2_UNALLOCATED) {
      if (allocated !== 0) {
        run.corruption(
          'subclusters-without-cluster',
          'ERROR: Unallocated cluster has non-zero subcluster allocation map',
          { index },
        );
      }
    } else if (kind !== L2_ZERO_PLAIN) return this.#normal(index, high, low, allocated, zero);
    return false;
  }

  #compressed(index: number, high: number, low: number, hasBitmap: boolean): void {
    const run = this.#run;
    const { csizeShift } = run.geometry;
    const offset = compressedOffset(high, low, csizeShift);
    // the offset's own bits, for the message: exact where the number is not
    const offsetHigh = high % 2 ** (csizeShift - 32);
    let entryHigh = high;
    if (isCopied(high)) {
      run.corruption(
        'compressed-copied',
        `ERROR: coffset=0x${entryHex(offsetHigh, low)}: copied flag must never be set for compressed clusters`,
        { index, offset },
      );
      entryHigh -= 0x8000_0000;
    }
    if (this.#dataFile) {
      run.corruption(
        'compressed-data-file',
        `ERROR compressed cluster ${index} with data file, entry=0x${entryHex(entryHigh, low)}`,
        { index },
      );
      return;
    }
    if (hasBitmap) {
      run.corruption(
        'compressed-subclusters',
        `ERROR compressed cluster ${index} with non-zero subcluster allocation bitmap, entry=0x${entryHex(entryHigh, low)}`,
        { index },
      );
      return;
    }
    this.#references.add(offset, compressedLength(high, low, csizeShift), offsetText(offset, offsetHigh, low));
    if (this.#active) {
      const { allocation } = run;
      allocation.allocated++;
      allocation.compressed++;
      // each needs its own read, neighbour or not
      allocation.fragmented++;
    }
  }

  #normal(index: number, high: number, low: number, allocated: number, zero: number): boolean {
    const run = this.#run;
    const { clusterSize } = run.geometry;
    const offset = entryOffset(high, low);
    const offsetHigh = high % 0x100_0000;
    const offsetLow = low - (low % 512);
    if (subclustersConflict(allocated, zero)) {
      run.corruption(
        'subclusters-conflict',
        `ERROR offset=${entryHex(offsetHigh, offsetLow)}: Allocated cluster has corrupted subcluster allocation bitmap`,
        { index, offset },
      );
    }
    if (offsetLow % clusterSize !== 0) {
      const holdsData = this.#extended ? hasAnySubcluster(allocated, ALL_SUBCLUSTERS) : !isZeroFlag(low);
      const text = entryHex(offsetHigh, offsetLow);
      if (holdsData) {
        run.corruption(
          'cluster-unaligned',
          `ERROR offset=${text}: Data cluster is not properly aligned; L2 entry corrupted.`,
          { index, offset },
        );
      } else {
        const verb = run.fixErrors ? 'Repairing' : 'ERROR';
        run.corruption(
          'preallocated-unaligned',
          `${verb} offset=${text}: Preallocated cluster is not properly aligned; L2 entry corrupted.`,
          {
            index,
            offset,
          },
        );
        if (run.fixErrors) return true;
      }
    }
    this.#countNormal(offset, offsetHigh, offsetLow);
    return false;
  }

  #countNormal(offset: number, offsetHigh: number, offsetLow: number): void {
    const { clusterSize } = this.#run.geometry;
    if (this.#active) {
      const { allocation } = this.#run;
      allocation.allocated++;
      // offsets that no number holds follow nothing
      if (this.#contiguous !== 0 && (offset !== this.#contiguous || !Number.isFinite(offset))) allocation.fragmented++;
      this.#contiguous = offset + clusterSize;
    }
    if (!this.#dataFile) this.#references.add(offset, clusterSize, offsetText(offset, offsetHigh, offsetLow));
  }

  /** Repairs entry `index` and goes on with the rest of the table. */
  async #repairFrom(view: DataView, at: number, offset: number, index: number): Promise<void> {
    const { l2EntrySize } = this.#run.geometry;
    for (let next = index; next >= 0; next = this.#entries(view, at, next + 1)) {
      await this.#makeZero(view, at + next * l2EntrySize, offset + next * l2EntrySize);
    }
  }

  /** The entry holds no data: it loses its cluster and reads as zero, as before. */
  async #makeZero(view: DataView, at: number, fileOffset: number): Promise<void> {
    const run = this.#run;
    const { l2EntrySize, clusterSize } = run.geometry;
    if (this.#extended) {
      const zero = withSubclusters(view.getUint32(at + ZERO_BITMAP_AT), view.getUint32(at + ALLOCATED_BITMAP_AT));
      setL2Entry(view, at, 0, false, false);
      setSubclusters(view, at, 0, zero);
    } else {
      setL2Entry(view, at, 0, false, true);
    }
    // the test goes by whole clusters and looks through the refcount table: once for all entries of a table
    const cluster = fileOffset - (fileOffset % clusterSize);
    const ignore = this.#active ? OVERLAP.activeL2 : OVERLAP.inactiveL2;
    const hit =
      cluster === this.#clearCluster ? undefined : findOverlap(run, this.#overlaps, fileOffset, l2EntrySize, ignore);
    this.#clearCluster = cluster;
    if (hit !== undefined) {
      await refuseOverlap(run, hit, fileOffset, l2EntrySize);
      run.obstacle('overlap', 'ERROR: Overlap check failed');
      throw run.failure(`repairing the L2 entry at ${hex(fileOffset)} would overwrite the ${hit}`, 'EIO');
    }
    await run.file.write(fileOffset, new Uint8Array(view.buffer, view.byteOffset + at, l2EntrySize));
    await run.file.flush();
    run.mended();
  }
}
