/** Mending the entries of one L2 table, in memory; a part of `check -r all`. What an entry can still be read as, it stays.
 *  Spec: qcow2, "Standard Cluster Descriptor", "Compressed Clusters Descriptor", "Extended L2 Entries".
 *  Invariant: no entry names anything outside the file afterwards, nor has bits that mean nothing. */
import type { References } from './check-references.ts';
import type { CheckRun } from './check-run.ts';
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
  L2_NORMAL,
  L2_UNALLOCATED,
  L2_ZERO_ALLOCATED,
  L2_ZERO_PLAIN,
  l2HasReserved,
  l2Kind,
  setCopied,
  setL2Entry,
  setSubclusters,
  subclustersConflict,
  withoutSubclusters,
  ZERO_BITMAP_AT,
} from './entries.ts';
import { hasDataFile } from './header.ts';
import type { KnownTable } from './mend-places.ts';

/** Wrong entries that are no sign of anything: a table with few entries may have as many. */
const FEW = 4;

/** Whether the cluster at byte `at` of `view` can be an L2 table: more of its entries make sense than not. */
export function isPlausibleTable(
  run: CheckRun,
  references: References,
  view: DataView,
  at: number,
  few = FEW,
): boolean {
  const { clusterSize, l2EntrySize, extendedL2, csizeShift } = run.geometry;
  const dataFile = hasDataFile(run.header);
  let right = 0;
  let wrong = 0;
  for (let entry = at; entry < at + clusterSize; entry += l2EntrySize) {
    const high = view.getUint32(entry);
    const low = view.getUint32(entry + 4);
    if (high === 0 && low === 0) continue;
    const kind = l2Kind(high, low, extendedL2, dataFile);
    let fine = kind === L2_ZERO_PLAIN;
    if (kind === L2_COMPRESSED) {
      fine = references.covers(compressedOffset(high, low, csizeShift), compressedLength(high, low, csizeShift));
    } else if (kind !== L2_ZERO_PLAIN && kind !== L2_UNALLOCATED) {
      const offset = entryOffset(high, low);
      fine = offset % clusterSize === 0 && (dataFile || offset < references.fileSize);
    }
    if (fine && (kind === L2_COMPRESSED || !l2HasReserved(high, low))) right++;
    else wrong++;
  }
  return wrong <= Math.max(right, few);
}

type Teller = (finding: string, message: string, details: Readonly<Record<string, unknown>>) => void;

export interface MendedTable {
  readonly changed: boolean;
  /** Indexes of entries that must read as zeros and cannot say so (version 2 with a backing file): they need a cluster. */
  readonly blanks: readonly number[];
}

export class EntryMender {
  readonly #run: CheckRun;
  readonly #references: References;
  /** Whether nothing but one broken entry refers to a cluster. */
  readonly #isFree: (cluster: number) => boolean;
  readonly #tell: Teller;
  readonly #extended: boolean;
  readonly #dataFile: boolean;
  #table: KnownTable = { offset: 0, guest: undefined };
  #index = 0;
  #blanks: number[] = [];

  constructor(run: CheckRun, references: References, isFree: (cluster: number) => boolean, tell: Teller) {
    this.#run = run;
    this.#references = references;
    this.#isFree = isFree;
    this.#tell = tell;
    this.#extended = run.geometry.extendedL2;
    this.#dataFile = hasDataFile(run.header);
  }

  /** Mends the table at byte `at` of `view`, which lies at `table.offset` in the file. */
  table(view: DataView, at: number, table: KnownTable): MendedTable {
    const { l2Entries, l2EntrySize } = this.#run.geometry;
    this.#table = table;
    this.#blanks = [];
    let changed = false;
    for (let index = 0; index < l2Entries; index++) {
      const entry = at + index * l2EntrySize;
      const high = view.getUint32(entry);
      const low = view.getUint32(entry + 4);
      if (high === 0 && low === 0 && !this.#extended) continue;
      this.#index = index;
      if (this.#entry(view, entry, high, low)) changed = true;
    }
    return { changed, blanks: this.#blanks };
  }

  /** @returns true when it was changed. */
  #entry(view: DataView, at: number, high: number, low: number): boolean {
    const kind = l2Kind(high, low, this.#extended, this.#dataFile);
    if (kind === L2_COMPRESSED) return this.#compressed(view, at, high, low);
    let changed = false;
    if (l2HasReserved(high, low)) {
      const zero = !this.#extended && isZeroFlag(low);
      setL2Entry(view, at, entryOffset(high, low), isCopied(high), zero);
      this.#say('l2-entry', 'bits that mean nothing are cleared');
      changed = true;
    }
    const allocated = this.#extended ? view.getUint32(at + ALLOCATED_BITMAP_AT) : 0;
    const zeros = this.#extended ? view.getUint32(at + ZERO_BITMAP_AT) : 0;
    if (kind === L2_UNALLOCATED) {
      if (allocated === 0) return changed;
      setSubclusters(view, at, 0, withoutSubclusters(zeros, allocated));
      this.#say('l2-entry', 'subclusters without a cluster are not allocated');
      return true;
    }
    if (kind !== L2_NORMAL && kind !== L2_ZERO_ALLOCATED) return changed;
    if (subclustersConflict(allocated, zeros)) {
      setSubclusters(view, at, allocated, withoutSubclusters(zeros, allocated));
      this.#say('l2-entry', 'subclusters that are allocated and zero keep their data');
      changed = true;
    }
    return this.#place(view, at, kind === L2_ZERO_ALLOCATED) || changed;
  }

  /** The cluster itself: aligned, and in the file. */
  #place(view: DataView, at: number, isZero: boolean): boolean {
    if (this.#dataFile) return false;
    const { clusterSize } = this.#run.geometry;
    const high = view.getUint32(at);
    const offset = entryOffset(high, view.getUint32(at + 4));
    if (offset % clusterSize === 0 && this.#references.covers(offset, clusterSize)) return false;
    const holdsData = this.#extended
      ? hasAnySubcluster(view.getUint32(at + ALLOCATED_BITMAP_AT), ALL_SUBCLUSTERS)
      : !isZero;
    const cluster = Math.floor(offset / clusterSize);
    const before = cluster * clusterSize;
    const isBefore = offset % clusterSize !== 0 && before > 0 && before < this.#references.fileSize;
    if (holdsData && isBefore && this.#isFree(cluster)) {
      setL2Entry(view, at, before, isCopied(high), false);
      this.#say('l2-entry', `data cluster at 0x${before.toString(16)}`);
      return true;
    }
    this.#lose(
      view,
      at,
      holdsData ? 'its data is nowhere in the file: it reads as zeros' : 'it reads as zeros, without a cluster',
    );
    return true;
  }

  #compressed(view: DataView, at: number, high: number, low: number): boolean {
    const { csizeShift } = this.#run.geometry;
    if (this.#dataFile) {
      const { guest } = this.#table;
      // such an image has a cluster where the disk has it
      if (guest === undefined) return false;
      setL2Entry(view, at, guest + this.#index * this.#run.geometry.clusterSize, true, false);
      if (this.#extended) setSubclusters(view, at, ALL_SUBCLUSTERS, 0);
      this.#say('l2-entry', 'no compressed clusters with a data file; what the data file has there counts');
      return true;
    }
    let changed = false;
    if (isCopied(high)) {
      setCopied(view, at, false);
      this.#say('l2-entry', 'the copied flag of a compressed cluster is cleared');
      changed = true;
    }
    if (this.#extended && (view.getUint32(at + 8) !== 0 || view.getUint32(at + 12) !== 0)) {
      setSubclusters(view, at, 0, 0);
      this.#say('l2-entry', 'the subclusters of a compressed cluster are cleared');
      changed = true;
    }
    const offset = compressedOffset(high, low, csizeShift);
    if (this.#references.covers(offset, compressedLength(high, low, csizeShift))) return changed;
    this.#lose(view, at, 'its compressed data is nowhere in the file: it reads as zeros');
    return true;
  }

  /** The entry reads as zeros from now on. */
  #lose(view: DataView, at: number, why: string): void {
    const { version, backingFile } = this.#run.header;
    if (this.#extended) {
      setL2Entry(view, at, 0, false, false);
      setSubclusters(view, at, 0, ALL_SUBCLUSTERS);
    } else {
      setL2Entry(view, at, 0, false, version >= 3);
      if (version < 3 && backingFile !== undefined) this.#blanks.push(this.#index);
    }
    this.#say('l2-entry-lost', why);
  }

  #say(finding: string, what: string): void {
    const { offset, guest } = this.#table;
    const { clusterSize } = this.#run.geometry;
    this.#tell(finding, `Repairing L2 entry ${this.#index} of the table at 0x${offset.toString(16)}: ${what}`, {
      index: this.#index,
      table: offset,
      ...(guest === undefined ? {} : { guestOffset: guest + this.#index * clusterSize, length: clusterSize }),
    });
  }
}
