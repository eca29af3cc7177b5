/** The snapshot table in a check: reading it leniently where it may be repaired, and writing it anew.
 *  Spec: qcow2, "Snapshots". Order and wording of the findings are QEMU's.
 *  Write order: refcounts of the new place, flush, the table, flush, the header's pointer, flush, then the old place's refcounts. */
import { isBlockError } from '../../base/errors.ts';
import { setU64 } from '../../bytes/ints.ts';
import type { StoredRefcounts } from './check-refcounts.ts';
import { blockOffsetAt } from './check-refcounts.ts';
import type { CheckRun } from './check-run.ts';
import { MAX_SNAPSHOTS, SNAPSHOT_HEADER_BYTES } from './geometry.ts';
import { hasDataFile } from './header.ts';
import { checkTable } from './header-checks.ts';
import { HeaderV2 } from './header-fields.ts';
import { locateSnapshotTable, mendSnapshotEntries } from './mend-snapshots.ts';
import {
  encodeSnapshotTable,
  MAX_EXTRA_BYTES,
  MIN_V3_EXTRA_BYTES,
  readSnapshotTable,
  type SnapshotTable,
} from './snapshot-table.ts';

export interface CheckedSnapshots extends SnapshotTable {
  /** Findings that only a new table mends; they are counted when it is written, or at the end. */
  readonly toMend: number;
  /** The clusters of the table have been counted as references: it lies within the file. */
  tableCounted: boolean;
}

/** Reads the snapshot table. Under `-r all`, entries that cannot be kept are dropped from the header's count at once.
 *  @throws check-failed, when the table cannot be read. */
export async function readSnapshotsForCheck(run: CheckRun): Promise<CheckedSnapshots> {
  let { snapshotCount } = run.header;
  let dropped = 0;
  let cut = 0;
  if (snapshotCount > MAX_SNAPSHOTS && run.fixErrors) {
    dropped = snapshotCount - MAX_SNAPSHOTS;
    run.find('note', 'snapshots-dropped', `Discarding ${dropped} overhanging snapshots`, { dropped });
    snapshotCount = MAX_SNAPSHOTS;
  }
  if (run.mends && snapshotCount > 0 && hasDataFile(run.header)) {
    dropped += snapshotCount;
    run.find(
      'note',
      'snapshots-dropped',
      `Discarding ${snapshotCount} snapshots (an image with a data file has none)`,
      {
        dropped: snapshotCount,
      },
    );
    snapshotCount = 0;
    run.header = { ...run.header, snapshotsOffset: 0 };
  }
  const moved = run.mends ? await locateSnapshotTable(run, snapshotCount) : undefined;
  if (moved !== undefined) {
    run.header = { ...run.header, snapshotsOffset: moved };
    run.find('corruption', 'snapshot-table', `Repairing the offset of the snapshot table: 0x${moved.toString(16)}`, {
      offset: moved,
    });
  }
  checkPointer(run, snapshotCount);
  const { snapshotsOffset, virtualSize } = run.header;
  const table = await readOrFail(
    run,
    { snapshotCount, snapshotsOffset, virtualSize },
    (index, length) => {
      cut++;
      run.find(
        'note',
        'snapshot-extra-cut',
        `Discarding too much extra metadata in snapshot table entry ${index} (${length} > ${MAX_EXTRA_BYTES})`,
        { index, length },
      );
    },
    (index) => {
      const rest = snapshotCount - index;
      dropped += rest;
      run.find('note', 'snapshots-dropped', `Discarding ${rest} overhanging snapshots (snapshot table is too big)`, {
        dropped: rest,
      });
    },
  );
  if (dropped > 0) {
    // the counts of references must be those of the snapshots that stay; what the others held becomes a leak
    const pointer = new Uint8Array(12);
    const view = new DataView(pointer.buffer);
    view.setUint32(0, table.entries.length);
    setU64(view, 4, snapshotsOffset);
    await run.file.write(HeaderV2.fields.snapshotCount[0], pointer);
    await run.file.flush();
    run.header = { ...run.header, snapshotCount: table.entries.length };
    run.counts.corruptionsFixed += dropped;
  }
  const incomplete = countIncomplete(run, table);
  const { entries, mended } = run.mends ? await mendSnapshotEntries(run, table) : { entries: table.entries, mended: 0 };
  const toMend = cut + incomplete + mended + (moved === undefined ? 0 : 1);
  return { entries, size: table.size, toMend, tableCounted: false };
}

function checkPointer(run: CheckRun, snapshotCount: number): void {
  try {
    checkTable(
      {
        finding: 'snapshots',
        what: 'snapshot table',
        offset: run.header.snapshotsOffset,
        entries: snapshotCount,
        entryBytes: SNAPSHOT_HEADER_BYTES,
        maxBytes: SNAPSHOT_HEADER_BYTES * MAX_SNAPSHOTS,
      },
      run.geometry.clusterSize,
      run.name,
    );
  } catch (error) {
    const large = isBlockError(error) && error.reason === 'qcow2.snapshots-size';
    const what = large ? 'snapshot table too large' : 'snapshot table offset invalid';
    run.obstacle('snapshot-table', `ERROR ${what}`, { reported: true });
    if (large) {
      const remaining = snapshotCount - MAX_SNAPSHOTS;
      run.find(
        'note',
        'snapshots-remedy',
        `You can force-remove all ${remaining} overhanging snapshots with qemu-img check -r all`,
      );
    }
    throw run.failure(what, large ? 'EFBIG' : 'EINVAL', error);
  }
}

async function readOrFail(
  run: CheckRun,
  pointer: Parameters<typeof readSnapshotTable>[1],
  extraCut: (index: number, length: number) => void,
  tableCut: (index: number) => void,
): Promise<SnapshotTable> {
  try {
    return await readSnapshotTable(run.file, pointer, run.name, run.fixErrors ? { extraCut, tableCut } : undefined);
  } catch (error) {
    if (!isBlockError(error) || error.code !== 'TOO_LARGE')
      throw run.ioFailure('ERROR failed to read the snapshot table: Input/output error', error);
    const { index, remaining } = error.details as { index: number; remaining?: number };
    if (error.reason === 'qcow2.snapshot-extra') {
      run.obstacle(
        'snapshot-table',
        `ERROR failed to read the snapshot table: Too much extra metadata in snapshot table entry ${index}`,
        { reported: true },
      );
      run.find('note', 'snapshots-remedy', 'You can force-remove this extra metadata with qemu-img check -r all');
    } else {
      run.obstacle('snapshot-table', 'ERROR failed to read the snapshot table: Snapshot table is too big', {
        reported: true,
      });
      run.find(
        'note',
        'snapshots-remedy',
        `You can force-remove all ${remaining} overhanging snapshots with qemu-img check -r all`,
      );
    }
    throw run.failure('the snapshot table cannot be read', 'EFBIG', error);
  }
}

/** Version 3 wants VM state size and disk size in every entry. */
function countIncomplete(run: CheckRun, table: SnapshotTable): number {
  if (run.header.version < 3) return 0;
  let incomplete = 0;
  table.entries.forEach((entry, index) => {
    if (entry.extra.length >= MIN_V3_EXTRA_BYTES) return;
    incomplete++;
    const verb = run.fixErrors ? 'Repairing' : 'ERROR';
    run.find('corruption', 'snapshot-incomplete', `${verb} snapshot table entry ${index} is incomplete`, { index });
  });
  return incomplete;
}

/** Writes the table anew, complete, in a new place. The refcounts are right by now. */
export async function rewriteSnapshots(run: CheckRun, stored: StoredRefcounts, table: CheckedSnapshots): Promise<void> {
  const { clusterSize } = run.geometry;
  const bytes = encodeSnapshotTable(table.entries);
  const old = { offset: run.header.snapshotsOffset, size: table.size };
  const clusters = Math.ceil(bytes.length / clusterSize);
  const oldFirst = Math.floor(old.offset / clusterSize);
  const oldEnd = Math.ceil((old.offset + old.size) / clusterSize);
  const gap = clusters === 0 ? 0 : findFree(run, stored, clusters, oldFirst, oldEnd);
  const first = gap ?? (await stored.extend(clusters));
  if (first === undefined) {
    run.obstacle('snapshot-table', 'ERROR failed to update snapshot table: No space left on device');
    throw run.failure('the refcount table has no room for the new snapshot table', 'ENOSPC');
  }
  if (gap !== undefined && clusters > 0) await setRefcounts(run, stored, first, clusters, () => 1);
  await run.file.flush();
  const offset = first * clusterSize;
  await run.file.write(offset, bytes);
  await run.file.flush();
  const pointer = new Uint8Array(12);
  const view = new DataView(pointer.buffer);
  view.setUint32(0, table.entries.length);
  setU64(view, 4, offset);
  await run.file.write(HeaderV2.fields.snapshotCount[0], pointer);
  await run.file.flush();
  run.header = { ...run.header, snapshotsOffset: offset, snapshotCount: table.entries.length };
  // a table that was not counted has no refcounts of its own: those in its range are others'
  if (!table.tableCounted) return;
  await setRefcounts(run, stored, oldFirst, oldEnd - oldFirst, (count) => Math.max(0, count - 1));
}

async function setRefcounts(
  run: CheckRun,
  stored: StoredRefcounts,
  first: number,
  count: number,
  change: (refcount: number) => number,
): Promise<void> {
  for (let cluster = first; cluster < first + count; cluster++) {
    const now = cluster < stored.clusters ? (stored.counts[cluster] as number) : 0;
    stored.set(cluster, 1, change(now));
  }
  const { refcountBlockEntries } = run.geometry;
  const lastBlock = Math.floor((first + count - 1) / refcountBlockEntries);
  for (let block = Math.floor(first / refcountBlockEntries); block <= lastBlock; block++) await stored.write(block);
}

/** The first `count` neighbouring clusters without refcount that existing refcount blocks can count, outside `[oldFirst, oldEnd)`. */
function findFree(
  run: CheckRun,
  stored: StoredRefcounts,
  count: number,
  oldFirst: number,
  oldEnd: number,
): number | undefined {
  const { refcountBlockEntries } = run.geometry;
  let free = 0;
  for (let cluster = 0; ; cluster++) {
    if (cluster % refcountBlockEntries === 0 && blockOffsetAt(stored.table, cluster / refcountBlockEntries) === 0) {
      if (cluster >= stored.clusters) return undefined;
      free = 0;
      cluster += refcountBlockEntries - 1;
      continue;
    }
    const refcount = cluster < stored.clusters ? (stored.counts[cluster] as number) : 0;
    free = refcount === 0 && !(cluster >= oldFirst && cluster < oldEnd) ? free + 1 : 0;
    if (free === count) return cluster - count + 1;
  }
}
