/** Consistency check and repair of an image, on its file: what `qemu-img check` does and says.
 *  Spec: qcow2, "Host cluster management"; order, counters and wording of the findings are QEMU's.
 *  It works on the file alone. Whoever has caches above it flushes them before, and after a repair reads the header again and forgets
 *  every table.
 *  Write order of a repair: refcounts, then COPIED flags, then the snapshot table, then the header's dirty and corrupt bits; each step
 *  leaves an image that a later check can repair. Raised refcounts and leaks are safe at any time; a COPIED flag is set only on the
 *  basis of refcounts that are right. */
import { ERRNO_TEXT, errnoOf, isBlockError } from '../../base/errors.ts';
import type { CheckOptions, CheckResult } from '../../core/format.ts';
import { bitmapClusterAt, type LocatedBitmapEntry, readBitmapDirectory } from './bitmap-directory.ts';
import { compareRefcounts } from './check-compare.ts';
import { checkCopied } from './check-copied.ts';
import { MAX_CLUSTERS } from './check-counts.ts';
import { countL1 } from './check-l2.ts';
import type { OverlapRanges } from './check-overlap.ts';
import { countRefcountBlocks, readRefcountTable, StoredRefcounts } from './check-refcounts.ts';
import { References } from './check-references.ts';
import { type CheckInput, CheckRun, type Counters } from './check-run.ts';
import { type CheckedSnapshots, readSnapshotsForCheck, rewriteSnapshots } from './check-snapshots.ts';
import { INCOMPATIBLE } from './features.ts';
import { MAX_L1_BYTES, TABLE_ENTRY_BYTES } from './geometry.ts';
import { hasDataFile, writeIncompatible } from './header.ts';
import { mendTables } from './mend.ts';
import { dropBitmaps, invalidateBitmap, isUsable } from './mend-bitmaps.ts';
import { rebuildRefcounts } from './rebuild.ts';
import type { SnapshotEntry } from './snapshot-table.ts';

export type { CheckInput } from './check-run.ts';

/** Checks an image and, as `options.fix` says, repairs it. One look: the second one after a repair is the caller's.
 *  Offsets in findings are host offsets in bytes.
 *  @throws {@link BlockError} reason `qcow2.check-failed` when the check could not be finished; `details.errno` is what qemu-img prints
 *  after `Check failed:`, the other details are the counters so far. ABORTED when the signal fired: a repair then stays half done,
 *  and safe. */
export async function checkImageTables(input: CheckInput, options: CheckOptions): Promise<CheckResult> {
  const run = new CheckRun(input, options);
  const { clusterSize } = run.geometry;
  const snapshots = await readSnapshotsForCheck(run);
  if (run.file.size / clusterSize > MAX_CLUSTERS) {
    run.counts.checkErrors++;
    throw run.failure(`the file has more than ${MAX_CLUSTERS} clusters`, 'EFBIG');
  }
  const references = new References(run);
  const overlaps: OverlapRanges = {
    snapshotTableSize: snapshots.size,
    snapshotL1: snapshots.entries
      .filter(isUsableL1(clusterSize))
      .map(({ l1Offset, l1Size }) => ({ offset: l1Offset, size: l1Size })),
    refcountTable: await readRefcountTable(run),
  };
  const untouched = { ...run.counts };
  let broken = await countAll(run, references, overlaps, snapshots);
  if (run.mends) broken = await mend(run, references, overlaps, snapshots, { broken, untouched });
  const beforeComparison = { ...run.counts };
  let stored = await StoredRefcounts.load(run, overlaps.refcountTable, references.clusters);
  let { highest, rebuild } = await compareRefcounts(run, references, stored, { leaks: false, errors: false });
  rebuild ||= broken;
  if (rebuild && run.fixErrors) {
    ({ stored, highest } = await rebuildAndRecount(run, references, overlaps, snapshots, beforeComparison.checkErrors));
  } else if (run.fixLeaks) {
    if (rebuild) {
      run.obstacle('rebuild-needed', 'ERROR need to rebuild refcount structures');
      throw run.failure('the refcount structures must be rebuilt, which needs fix all', 'EIO');
    }
    if (run.counts.leaks > 0 || run.counts.corruptions > 0) {
      run.counts = beforeComparison;
      ({ highest } = await compareRefcounts(run, references, stored, { leaks: true, errors: run.fixErrors }));
      await run.file.flush();
    }
  }
  await checkCopied(run, stored, overlaps, mayRepairCopied(run));
  await mendSnapshots(run, stored, snapshots);
  await finish(run);
  return run.result((highest + 1) * clusterSize);
}

/** What qemu-img does not repair is mended, and everything counted again.
 *  @returns true when the refcount structures must be built anew. */
async function mend(
  run: CheckRun,
  references: References,
  overlaps: OverlapRanges,
  snapshots: CheckedSnapshots,
  before: { readonly broken: boolean; readonly untouched: Counters },
): Promise<boolean> {
  const mended = await mendTables(run, references, overlaps);
  if (mended === 0) return before.broken;
  const found = run.counts.corruptions;
  run.counts.corruptions = before.untouched.corruptions;
  references.clear();
  const broken = await countAll(run, references, overlaps, snapshots);
  run.counts.corruptionsFixed += Math.max(mended, found - run.counts.corruptions);
  return broken;
}

/** With `-r leaks` only when everything else is right: the flags are then known to be wrong, and not the refcounts. */
function mayRepairCopied(run: CheckRun): boolean {
  const { checkErrors, corruptions, leaks } = run.counts;
  return run.fixErrors || (run.fixLeaks && checkErrors === 0 && corruptions === 0 && leaks === 0);
}

/** Counts all references in the image.
 *  @returns true when the refcount structures must be built anew. */
async function countAll(
  run: CheckRun,
  references: References,
  overlaps: OverlapRanges,
  snapshots: CheckedSnapshots,
): Promise<boolean> {
  const { header, geometry } = run;
  run.allocation = { allocated: 0, fragmented: 0, compressed: 0 };
  run.phase('references', header.l1Size * geometry.l2Coverage);
  references.add(0, geometry.clusterSize);
  await countL1(run, references, overlaps, { offset: header.l1Offset, size: header.l1Size, active: true });
  await countSnapshots(run, references, overlaps, snapshots.entries);
  snapshots.tableCounted = references.covers(header.snapshotsOffset, snapshots.size);
  references.add(header.snapshotsOffset, snapshots.size);
  references.add(header.refcountTableOffset, header.refcountTableClusters * geometry.clusterSize);
  if (header.crypto !== undefined) references.add(header.crypto.offset, header.crypto.length);
  await countBitmaps(run, references);
  return countRefcountBlocks(run, references, overlaps.refcountTable);
}

function isUsableL1(clusterSize: number): (entry: SnapshotEntry) => boolean {
  return ({ l1Offset, l1Size }) => l1Offset % clusterSize === 0 && l1Size <= MAX_L1_BYTES / TABLE_ENTRY_BYTES;
}

async function countSnapshots(
  run: CheckRun,
  references: References,
  overlaps: OverlapRanges,
  entries: readonly SnapshotEntry[],
): Promise<void> {
  const { clusterSize } = run.geometry;
  if (hasDataFile(run.header) && entries.length > 0) {
    run.corruption('snapshots-data-file', `ERROR ${entries.length} snapshots in image with data file`, {
      count: entries.length,
    });
  }
  for (const { id, name, l1Offset, l1OffsetExact, l1Size } of entries) {
    const exact = l1OffsetExact ?? BigInt(l1Offset);
    const text = exact.toString(16);
    const what = `ERROR snapshot ${id} (${name})`;
    if (exact % BigInt(clusterSize) !== 0n) {
      run.corruption(
        'snapshot-l1-offset',
        `${what} l1_offset=0x${text}: L1 table is not cluster aligned; snapshot table entry corrupted`,
        { id, offset: l1Offset },
      );
    } else if (l1Size > MAX_L1_BYTES / TABLE_ENTRY_BYTES) {
      run.corruption(
        'snapshot-l1-size',
        `${what} l1_size=0x${l1Size.toString(16)}: L1 table is too large; snapshot table entry corrupted`,
        { id, size: l1Size },
      );
    } else if (Number.isFinite(l1Offset)) {
      await countL1(run, references, overlaps, { offset: l1Offset, size: l1Size, active: false });
    } else {
      // freeing what this snapshot refers to would be the end of it
      references.add(l1Offset, l1Size * TABLE_ENTRY_BYTES, text);
      run.obstacle('check-io', 'ERROR: I/O error in check_refcounts_l1', { id });
      throw run.failure(`the L1 table of snapshot ${id} lies beyond every file`, 'EIO');
    }
  }
}

async function countBitmaps(run: CheckRun, references: References): Promise<void> {
  const { bitmaps, virtualSize } = run.header;
  if (bitmaps === undefined) return;
  const { clusterSize } = run.geometry;
  let entries: readonly LocatedBitmapEntry[];
  try {
    entries = await readBitmapDirectory(run.file, bitmaps, virtualSize, clusterSize, run.name);
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    if (run.mends && isBlockError(error) && error.code === 'CORRUPT') return await dropBitmaps(run, why);
    // qemu-img prints no line for it
    run.corruption('bitmap-directory', why, { silent: true });
    throw run.failure('the bitmap directory cannot be read', 'EINVAL', error);
  }
  if (run.mends && !entries.every((entry) => references.covers(entry.tableOffset, entry.tableSize * TABLE_ENTRY_BYTES)))
    return await dropBitmaps(run, 'a bitmap table lies past the end of the file');
  references.add(bitmaps.directoryOffset, bitmaps.directorySize);
  for (const entry of entries) await countBitmap(run, references, entry);
}

async function countBitmap(run: CheckRun, references: References, entry: LocatedBitmapEntry): Promise<void> {
  const { clusterSize } = run.geometry;
  const { name, tableOffset, tableSize } = entry;
  references.add(tableOffset, tableSize * TABLE_ENTRY_BYTES);
  const table = new Uint8Array(tableSize * TABLE_ENTRY_BYTES);
  await run.file.read(tableOffset, table);
  const view = new DataView(table.buffer);
  if (run.mends) {
    let usable = true;
    for (let index = 0; usable && index < tableSize; index++) usable = isUsable(run, view, index);
    if (!usable) await invalidateBitmap(run, entry, view);
  }
  for (let index = 0; index < tableSize; index++) {
    const offset = bitmapClusterAt(view, index, clusterSize);
    if (offset === undefined) {
      run.corruption('bitmap-table', `entry ${index} in the table of bitmap '${name}' is corrupt`, {
        silent: true,
        index,
      });
      throw run.failure(`the table of bitmap '${name}' is corrupt`, 'EINVAL');
    }
    if (offset !== 0) references.add(offset, clusterSize);
    if (run.restDue) await run.rest();
  }
}

/** New refcount structures, then everything counted again, then the old structures freed. */
async function rebuildAndRecount(
  run: CheckRun,
  references: References,
  overlaps: OverlapRanges,
  snapshots: CheckedSnapshots,
  checkErrors: number,
): Promise<{ stored: StoredRefcounts; highest: number }> {
  const before = { ...run.counts };
  run.find('note', 'rebuilding', 'Rebuilding refcount structure');
  try {
    await rebuildRefcounts(run, references, overlaps.refcountTable);
  } catch (cause) {
    throw run.ioFailure(`ERROR writing refblock: ${ERRNO_TEXT[errnoOf(cause)]}`, cause, { reported: true });
  }
  run.counts.corruptions = 0;
  run.counts.leaks = 0;
  // refcounts that could not be read are no longer needed
  run.counts.checkErrors = checkErrors;
  references.clear();
  overlaps.refcountTable = await readRefcountTable(run);
  // nothing of what is left is repaired in this round
  const looking = run.withoutRepair();
  const broken = await countAll(looking, references, overlaps, snapshots);
  run.adopt(looking);
  const stored = await StoredRefcounts.load(run, overlaps.refcountTable, references.clusters);
  // the old structures are leaked now; only those that cannot be freed count
  const saved = run.counts;
  run.counts = { checkErrors: 0, corruptions: 0, leaks: 0, corruptionsFixed: 0, leaksFixed: 0 };
  const { highest, rebuild } = await compareRefcounts(run, references, stored, { leaks: true, errors: false });
  if (rebuild || broken) run.find('error', 'rebuild-failed', 'ERROR rebuilt refcount structure is still broken');
  const freshLeaks = run.counts.leaks;
  run.counts = saved;
  run.counts.corruptionsFixed += Math.max(0, before.corruptions - run.counts.corruptions);
  run.counts.leaksFixed += Math.max(0, before.leaks - run.counts.leaks);
  run.counts.leaks += freshLeaks;
  await run.file.flush();
  return { stored, highest };
}

async function mendSnapshots(run: CheckRun, stored: StoredRefcounts, snapshots: CheckedSnapshots): Promise<void> {
  if (snapshots.toMend === 0) return;
  if (!run.fixErrors) {
    run.counts.corruptions += snapshots.toMend;
    return;
  }
  await rewriteSnapshots(run, stored, snapshots);
  run.counts.corruptionsFixed += snapshots.toMend;
}

/** A repaired image is neither dirty nor corrupt. */
async function finish(run: CheckRun): Promise<void> {
  if (!run.fixLeaks) return;
  await run.file.flush();
  const { checkErrors, corruptions } = run.counts;
  const marks = INCOMPATIBLE.dirty | INCOMPATIBLE.corrupt;
  if (checkErrors > 0 || corruptions > 0 || (run.header.incompatible & marks) === 0n) return;
  run.header = { ...run.header, incompatible: run.header.incompatible & ~marks };
  await writeIncompatible(run.file, run.header.incompatible);
  await run.file.flush();
}
