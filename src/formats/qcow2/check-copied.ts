/** The COPIED flags of the active L1 and L2 tables: set exactly where the refcount is one.
 *  Spec: qcow2, "L1 table entry", "L2 table entry", bit 63. Runs after the refcounts have been corrected, and on their basis.
 *  Invariant: a table is rewritten only when nothing else claims its place. */
import type { Pending } from '../../base/async.ts';
import { hex } from '../../base/errors.ts';
import { type L1Location, readL1 } from './check-l2.ts';
import { findOverlap, type OverlapRanges, refuseOverlap } from './check-overlap.ts';
import type { StoredRefcounts } from './check-refcounts.ts';
import { type CheckRun, entryHex } from './check-run.ts';
import { readTables } from './check-tables.ts';
import { entryOffset, hasOffset, isCopied, L2_NORMAL, L2_ZERO_ALLOCATED, l2Kind, setCopied } from './entries.ts';
import { TABLE_ENTRY_BYTES } from './geometry.ts';
import { hasDataFile } from './header.ts';
import { OVERLAP } from './options.ts';

/** Checks, and with `repair` corrects, the flags of the active tables. */
export async function checkCopied(
  run: CheckRun,
  stored: StoredRefcounts,
  overlaps: OverlapRanges,
  repair: boolean,
): Promise<void> {
  const { header, geometry } = run;
  const l1: L1Location = { offset: header.l1Offset, size: header.l1Size, active: true };
  const table = await readL1(run, l1);
  const pass = new CopiedPass(run, stored, overlaps, repair);
  run.phase('copied flags', header.l1Size * geometry.l2Coverage);
  let offsets: number[] = [];
  let reached = 0;
  const scanPending = async (upTo: number): Promise<void> => {
    const scanned = offsets;
    offsets = [];
    try {
      await readTables(run, scanned, geometry.clusterSize, (index, view, at) =>
        pass.table(view, at, scanned[index] as number),
      );
    } catch (cause) {
      throw run.ioFailure('ERROR: Could not read L2 table: Input/output error', cause);
    }
    run.advance((upTo - reached) * geometry.l2Coverage);
    reached = upTo;
  };
  for (let index = 0; index * TABLE_ENTRY_BYTES < table.byteLength; index++) {
    const at = index * TABLE_ENTRY_BYTES;
    const high = table.getUint32(at);
    const low = table.getUint32(at + 4);
    if (!hasOffset(high, low)) continue;
    const offset = entryOffset(high, low);
    const refcount = await pass.refcountAt(offset);
    if (refcount === undefined) continue;
    if ((refcount === 1) !== isCopied(high)) {
      // in table order: what precedes this entry is told first
      if (offsets.length > 0) await scanPending(index);
      await pass.l1Entry(table, index, refcount);
    }
    if (offset < run.file.size) offsets.push(offset);
    if (offsets.length >= BATCH) await scanPending(index + 1);
    if (run.restDue) await run.rest();
  }
  if (offsets.length > 0) await scanPending(header.l1Size);
}

const BATCH = 1024;

class CopiedPass {
  readonly #run: CheckRun;
  readonly #stored: StoredRefcounts;
  readonly #overlaps: OverlapRanges;
  readonly #repair: boolean;
  readonly #dataFile: boolean;

  constructor(run: CheckRun, stored: StoredRefcounts, overlaps: OverlapRanges, repair: boolean) {
    this.#run = run;
    this.#stored = stored;
    this.#overlaps = overlaps;
    this.#repair = repair;
    this.#dataFile = hasDataFile(run.header);
  }

  /** The refcount of the cluster that `offset` is in; no promise where it is known. */
  refcountAt(offset: number): number | undefined | Promise<number | undefined> {
    const cluster = Math.floor(offset / this.#run.geometry.clusterSize);
    const stored = this.#stored;
    if (cluster < stored.clusters && stored.isReadable(cluster)) return stored.counts[cluster] as number;
    return Number.isFinite(cluster) ? stored.lookUp(cluster) : 0;
  }

  /** Tells, and maybe corrects, L1 entry `index`. */
  async l1Entry(table: DataView, index: number, refcount: number): Promise<void> {
    const run = this.#run;
    const at = index * TABLE_ENTRY_BYTES;
    const entry = entryHex(table.getUint32(at), table.getUint32(at + 4));
    run.corruption(
      'copied-l1',
      `${this.#verb} OFLAG_COPIED L2 cluster: l1_index=${index} l1_entry=${entry} refcount=${refcount}`,
      { index, refcount },
    );
    if (!this.#repair) return;
    setCopied(table, at, refcount === 1);
    const offset = run.header.l1Offset + at;
    // a cluster of the L1 table that is referenced twice is something else as well
    const shared = (await this.refcountAt(offset)) !== 1;
    await this.#guard(offset, TABLE_ENTRY_BYTES, OVERLAP.activeL1, shared ? 'active L2 table' : undefined);
    await run.file.write(offset, new Uint8Array(table.buffer, at, TABLE_ENTRY_BYTES));
    run.mended();
  }

  get #verb(): string {
    return this.#repair ? 'Repairing' : 'ERROR';
  }

  table(view: DataView, at: number, offset: number): Pending {
    const stop = this.#entries(view, at, 0);
    return stop < 0 && this.#wrong === 0 ? undefined : this.#finish(view, at, offset, stop);
  }

  /** Entries of the present table that are wrong (and, with `repair`, corrected in memory). */
  #wrong = 0;

  /** Judges entries from `first` on.
   *  @returns the index of one whose refcount must be read first, -1 at the end. */
  #entries(view: DataView, at: number, first: number): number {
    const { l2Entries, l2EntrySize, clusterSize, extendedL2 } = this.#run.geometry;
    const { counts, clusters } = this.#stored;
    const plain = !extendedL2 && !this.#dataFile;
    for (let index = first; index < l2Entries; index++) {
      const entryAt = at + index * l2EntrySize;
      const high = view.getUint32(entryAt);
      const low = view.getUint32(entryAt + 4);
      if (high === 0 && low === 0) continue;
      const cluster = ((high % 0x8000_0000) * 0x1_0000_0000 + low) / clusterSize;
      if (
        plain &&
        high >= 0x8000_0000 &&
        cluster < clusters &&
        Number.isInteger(cluster) &&
        cluster > 0 &&
        counts[cluster] === 1
      )
        continue;
      const kind = l2Kind(high, low, extendedL2, this.#dataFile);
      if (kind !== L2_NORMAL && kind !== L2_ZERO_ALLOCATED) continue;
      if (this.#dataFile) {
        this.#judge(view, entryAt, 1);
        continue;
      }
      const refcount = this.refcountAt(entryOffset(high, low));
      if (refcount instanceof Promise) return index;
      if (refcount !== undefined) this.#judge(view, entryAt, refcount);
    }
    return -1;
  }

  #judge(view: DataView, at: number, refcount: number): void {
    const high = view.getUint32(at);
    if ((refcount === 1) === isCopied(high)) return;
    const entry = entryHex(high, view.getUint32(at + 4));
    this.#run.corruption(
      'copied-l2',
      `${this.#verb} OFLAG_COPIED data cluster: l2_entry=${entry} refcount=${refcount}`,
      { refcount },
    );
    this.#wrong++;
    if (this.#repair) setCopied(view, at, refcount === 1);
  }

  /** Reads the refcounts that are not at hand, and writes the table when it was corrected. */
  async #finish(view: DataView, at: number, offset: number, stop: number): Promise<void> {
    const run = this.#run;
    const { l2EntrySize, clusterSize } = run.geometry;
    for (let index = stop; index >= 0; index = this.#entries(view, at, index + 1)) {
      const entryAt = at + index * l2EntrySize;
      const refcount = await this.refcountAt(entryOffset(view.getUint32(entryAt), view.getUint32(entryAt + 4)));
      if (refcount !== undefined) this.#judge(view, entryAt, refcount);
    }
    const wrong = this.#wrong;
    this.#wrong = 0;
    if (!this.#repair || wrong === 0) return;
    await this.#guard(offset, clusterSize, OVERLAP.activeL2);
    await run.file.write(offset, new Uint8Array(view.buffer, view.byteOffset + at, clusterSize));
    for (let i = 0; i < wrong; i++) run.mended();
  }

  async #guard(offset: number, length: number, ignore: number, known?: string): Promise<void> {
    const run = this.#run;
    const hit = findOverlap(run, this.#overlaps, offset, length, ignore) ?? known;
    if (hit === undefined) return;
    await refuseOverlap(run, hit, offset, length);
    const l1 = ignore === OVERLAP.activeL1;
    const what = l1 ? 'L1 table' : 'L2 table';
    // qemu-img has no line for the L1 table
    run.obstacle(
      'overlap',
      `ERROR: Could not write ${what}; metadata overlap check failed: Input/output error`,
      l1 ? { silent: true } : undefined,
    );
    throw run.failure(`repairing the ${what} at ${hex(offset)} would overwrite the ${hit}`, 'EIO');
  }
}
