/** Mending persistent bitmaps; a part of `check -r all`, where qemu-img gives up. Bitmaps say what has changed since some moment: nothing of the disk is
 *  lost with them.
 *  Spec: qcow2, "Bitmaps extension", "Bitmap directory", "Bitmap table".
 *  Write order: a bitmap is marked as not to be trusted → flush → its bad table entries are cleared. A directory that makes no sense goes as a
 *  whole: the feature bit is cleared → flush → the extension leaves the header. */
import { bitmapClusterAt, type LocatedBitmapEntry } from './bitmap-directory.ts';
import type { CheckRun } from './check-run.ts';
import { AUTOCLEAR } from './features.ts';
import { TABLE_ENTRY_BYTES } from './geometry.ts';
import { HEADER_V3_AT, HeaderV3 } from './header-fields.ts';
import { switchHeader } from './header-switch.ts';

/** Lets all bitmaps go: their directory cannot be read. */
export async function dropBitmaps(run: CheckRun, why: string): Promise<void> {
  const { header } = run;
  const autoclear = header.autoclear & ~AUTOCLEAR.bitmaps;
  const word = new Uint8Array(8);
  new DataView(word.buffer).setBigUint64(0, autoclear);
  await run.file.write(HEADER_V3_AT + HeaderV3.fields.autoclear[0], word);
  await run.file.flush();
  run.header = { ...header, autoclear };
  await switchHeader(run, { ...run.header, bitmaps: undefined, staleBitmaps: false });
  run.counts.corruptionsFixed++;
  run.find('corruption', 'bitmaps-dropped', `Discarding all bitmaps: ${why}`);
}

/** A bitmap whose table names places that cannot be: it becomes inconsistent, as one that was not written back.
 *  @param table its content; changed */
export async function invalidateBitmap(run: CheckRun, bitmap: LocatedBitmapEntry, table: DataView): Promise<void> {
  const { clusterSize } = run.geometry;
  const flags = new Uint8Array(4);
  await run.file.read(bitmap.flagsAt, flags);
  const lowest = flags[3] as number;
  flags[3] = lowest - (lowest % 2) + 1;
  await run.file.write(bitmap.flagsAt, flags);
  await run.file.flush();
  let cleared = 0;
  for (let index = 0; index < bitmap.tableSize; index++) {
    if (isUsable(run, table, index)) continue;
    table.setBigUint64(index * TABLE_ENTRY_BYTES, 0n);
    cleared++;
  }
  await run.file.write(bitmap.tableOffset, new Uint8Array(table.buffer));
  await run.file.flush();
  run.counts.corruptionsFixed++;
  run.find(
    'corruption',
    'bitmap-invalidated',
    `Repairing bitmap '${bitmap.name}': ${cleared} entries of its table (clusters of ${clusterSize} bytes) are cleared, it is inconsistent now`,
    { bitmap: bitmap.name, cleared },
  );
}

/** Whether a table entry names a cluster within the file, or none. */
export function isUsable(run: CheckRun, table: DataView, index: number): boolean {
  const offset = bitmapClusterAt(table, index, run.geometry.clusterSize);
  return offset !== undefined && offset < run.file.size;
}
