/** Whether a repair would write over other metadata: the last guard before a write into a damaged image.
 *  Spec: none; QEMU's metadata overlap check with its default selection. Header, refcount table and blocks, active L1, snapshot table,
 *  snapshots' L1 tables and bitmap directory are guarded; L2 tables are not (what to ignore is the caller's). */
import type { CheckRun } from './check-run.ts';
import { refcountBlockOffset } from './entries.ts';
import { TABLE_ENTRY_BYTES } from './geometry.ts';
import { OVERLAP } from './options.ts';

/** What cannot be derived from the header alone. */
export interface OverlapRanges {
  /** Bytes of the snapshot table. */
  snapshotTableSize: number;
  snapshotL1: readonly { readonly offset: number; readonly size: number }[];
  /** The refcount table's content. */
  refcountTable: DataView;
}

/** QEMU's name of what `[offset, offset+length)`, widened to whole clusters, overlaps; `undefined` for nothing.
 *  @param ignore {@link OVERLAP} bits */
export function findOverlap(
  run: CheckRun,
  ranges: OverlapRanges,
  offset: number,
  length: number,
  ignore = 0,
): string | undefined {
  const { header, geometry } = run;
  const { clusterSize } = geometry;
  if (offset < clusterSize) return 'qcow2_header';
  const start = offset - (offset % clusterSize);
  const end = Math.ceil((offset + length) / clusterSize) * clusterSize;
  const hits = (at: number, size: number): boolean => size > 0 && at < end && start < at + size;
  if ((ignore & OVERLAP.activeL1) === 0 && hits(header.l1Offset, header.l1Size * TABLE_ENTRY_BYTES))
    return 'active L1 table';
  if (hits(header.refcountTableOffset, header.refcountTableClusters * clusterSize)) return 'refcount table';
  if (hits(header.snapshotsOffset, ranges.snapshotTableSize)) return 'snapshot table';
  for (const l1 of ranges.snapshotL1) if (hits(l1.offset, l1.size * TABLE_ENTRY_BYTES)) return 'inactive L1 table';
  const table = ranges.refcountTable;
  for (let at = 0; at < table.byteLength; at += TABLE_ENTRY_BYTES) {
    const block = refcountBlockOffset(table.getUint32(at), table.getUint32(at + 4));
    if (block !== 0 && hits(block, clusterSize)) return 'refcount block';
  }
  if (header.bitmaps !== undefined && hits(header.bitmaps.directoryOffset, header.bitmaps.directorySize))
    return 'bitmap directory';
  return undefined;
}

/** Marks the image corrupt, because a repair would have destroyed metadata: only a person can decide now. */
export async function refuseOverlap(run: CheckRun, hit: string, offset: number, length: number): Promise<void> {
  await run.markCorrupt();
  run.find(
    'note',
    'marked-corrupt',
    `qcow2: Marking image as corrupt: Preventing invalid write on metadata (overlaps with ${hit}); further corruption events will be suppressed`,
    { offset, length, overlaps: hit },
  );
}
