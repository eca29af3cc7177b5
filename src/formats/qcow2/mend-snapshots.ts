/** Mending the snapshot table beyond what qemu-img does; a part of `check -r all`. Snapshots that cannot be found any more are let go.
 *  Spec: qcow2, "Snapshots".
 *  Invariant: nothing is written here: the caller writes the table anew, complete, in another place. */
import type { CheckRun } from './check-run.ts';
import { entryOffset, hasOffset, l1HasReserved } from './entries.ts';
import { l1EntriesFor, MAX_L1_BYTES, TABLE_ENTRY_BYTES } from './geometry.ts';
import { readSnapshotTable, type SnapshotEntry, type SnapshotTable } from './snapshot-table.ts';

/** Snapshots with whose entries something was wrong, in all. */
export interface MendedSnapshots {
  readonly entries: readonly SnapshotEntry[];
  readonly mended: number;
}

/** Brings every entry to an L1 table that lies within the file, or lets it go. */
export async function mendSnapshotEntries(run: CheckRun, table: SnapshotTable): Promise<MendedSnapshots> {
  const entries: SnapshotEntry[] = [];
  let mended = 0;
  const drop = ({ id, name }: SnapshotEntry, why: string): void => {
    mended++;
    run.find('corruption', 'snapshot-dropped', `Discarding snapshot ${id} (${name}): ${why}`, { id, name });
  };
  let blank = 0;
  for (const entry of table.entries) {
    if (entry.id === '' && entry.l1Size === 0) {
      blank++;
      continue;
    }
    const found = await locateL1(run, entry);
    if (found === undefined) drop(entry, 'its L1 table is lost');
    else {
      if (found !== entry) {
        mended++;
        const { l1Offset, l1Size } = found;
        run.find(
          'corruption',
          'snapshot-l1',
          `Repairing snapshot ${entry.id} (${entry.name}): L1 table of ${l1Size} entries at 0x${l1Offset.toString(16)}`,
          { id: entry.id, name: entry.name, l1Offset, l1Size },
        );
      }
      entries.push(found);
    }
    if (run.restDue) await run.rest();
  }
  if (blank > 0) {
    mended += blank;
    run.find('corruption', 'snapshot-dropped', `Discarding ${blank} snapshots that are empty entries`, {
      count: blank,
    });
  }
  return { entries, mended };
}

/** The entry with a place and a size of its L1 table that can be; `undefined` when there is none. */
async function locateL1(run: CheckRun, entry: SnapshotEntry): Promise<SnapshotEntry | undefined> {
  const { clusterSize } = run.geometry;
  const sized = entry.l1Size * TABLE_ENTRY_BYTES <= MAX_L1_BYTES;
  const aligned = entry.l1Offset % clusterSize === 0;
  if (sized && aligned) {
    // a table is there, or in part; what is not is no table
    return entry.l1Size === 0 || entry.l1Offset < run.file.size ? entry : undefined;
  }
  if (!Number.isFinite(entry.l1Offset)) return undefined;
  const l1Offset = entry.l1Offset - (entry.l1Offset % clusterSize);
  const l1Size = sized ? entry.l1Size : l1EntriesFor(run.geometry, entry.diskSize);
  const place = { ...entry, l1Offset, l1Size };
  return (await isL1(run, place)) ? place : undefined;
}

/** Whether the entries at that place can be those of an L1 table that has some. */
async function isL1(run: CheckRun, { l1Offset, l1Size }: SnapshotEntry): Promise<boolean> {
  const { clusterSize } = run.geometry;
  const bytes = l1Size * TABLE_ENTRY_BYTES;
  if (!(l1Offset > 0 && l1Size > 0 && bytes <= MAX_L1_BYTES && l1Offset + bytes <= run.file.size + clusterSize)) {
    return false;
  }
  const table = new Uint8Array(bytes);
  await run.file.read(l1Offset, table);
  const view = new DataView(table.buffer);
  let found = 0;
  for (let at = 0; at < bytes; at += TABLE_ENTRY_BYTES) {
    const high = view.getUint32(at);
    const low = view.getUint32(at + 4);
    if (!hasOffset(high, low)) continue;
    const offset = entryOffset(high, low);
    if (l1HasReserved(high, low) || offset % clusterSize !== 0 || offset >= run.file.size) return false;
    found++;
  }
  return found > 0;
}

/** Where the snapshot table is, when the header says the middle of a cluster: at its beginning, if a table is there; else `undefined`. */
export async function locateSnapshotTable(run: CheckRun, snapshotCount: number): Promise<number | undefined> {
  const { clusterSize } = run.geometry;
  const { snapshotsOffset, virtualSize } = run.header;
  const place = snapshotsOffset - (snapshotsOffset % clusterSize);
  if (!(snapshotsOffset % clusterSize !== 0 && place > 0 && place < run.file.size)) return undefined;
  const table = await readSnapshotTable(
    run.file,
    { snapshotCount, snapshotsOffset: place, virtualSize },
    run.name,
    // damage of its own is no reason to believe in it
    { extraCut: () => undefined, tableCut: () => undefined },
  );
  const isTable =
    table.entries.length === snapshotCount &&
    table.entries.every(({ id, l1Offset }) => id !== '' && l1Offset % clusterSize === 0 && l1Offset < run.file.size);
  return isTable ? place : undefined;
}
