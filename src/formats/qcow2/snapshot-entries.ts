/** Snapshots as entries of the table: which one is meant, whether what it records can be used, and the id of a new one.
 *  Spec: qcow2, "Snapshots". Pure. */
import { BlockError } from '../../base/errors.ts';
import type { SnapshotSelector } from '../../core/format.ts';
import { type Geometry, l1EntriesFor, MAX_L1_BYTES, TABLE_ENTRY_BYTES } from './geometry.ts';
import { checkTable } from './header-checks.ts';
import type { SnapshotPlaces } from './metadata-map.ts';
import type { SnapshotEntry, SnapshotTable } from './snapshot-table.ts';

/** The largest number that an id can be. */
const MAX_ID = 0xffff_ffff_ffff_ffffn;

/** The first snapshot that is meant; QEMU's order: a text is an id before it is a name.
 *  @throws NOT_FOUND, reason `qcow2.snapshot-missing`. */
export function requireSnapshot(
  entries: readonly SnapshotEntry[],
  which: SnapshotSelector,
  name: string,
): SnapshotEntry {
  let found: SnapshotEntry | undefined;
  if (typeof which === 'string') {
    found = entries.find(({ id }) => id === which) ?? entries.find((entry) => entry.name === which);
  } else if (which.id !== undefined || which.name !== undefined) {
    found = entries.find((entry) => (which.id ?? entry.id) === entry.id && (which.name ?? entry.name) === entry.name);
  }
  if (found !== undefined) return found;
  const text =
    typeof which === 'string' ? which : [which.id, which.name].filter((part) => part !== undefined).join(' ');
  throw new BlockError('NOT_FOUND', `qcow2 "${name}": has no snapshot "${text}"`, {
    reason: 'qcow2.snapshot-missing',
    details: { snapshot: text, errno: 'ENOENT' },
  });
}

/** @throws TOO_LARGE `qcow2.snapshot-l1-size`, CORRUPT `qcow2.snapshot-l1-offset`. */
export function requireSnapshotL1(entry: SnapshotEntry, geometry: Geometry, name: string): void {
  checkTable(
    {
      finding: 'snapshot-l1',
      what: `L1 table of snapshot ${entry.id}`,
      offset: entry.l1Offset,
      entries: entry.l1Size,
      entryBytes: TABLE_ENTRY_BYTES,
      maxBytes: MAX_L1_BYTES,
    },
    geometry.clusterSize,
    name,
  );
}

/** @throws CORRUPT `qcow2.snapshot-disk-size`. */
export function requireDiskSize(entry: SnapshotEntry, geometry: Geometry, name: string): void {
  const { diskSize, id } = entry;
  if (diskSize % 512 === 0 && l1EntriesFor(geometry, diskSize) * TABLE_ENTRY_BYTES <= MAX_L1_BYTES) return;
  throw new BlockError('CORRUPT', `qcow2 "${name}": snapshot ${id} records a disk of ${diskSize} bytes`, {
    reason: 'qcow2.snapshot-disk-size',
    details: { id, value: diskSize },
  });
}

/** One more than the largest id; ids that are no numbers count as far as they begin with one. */
export function nextId(entries: readonly SnapshotEntry[]): string {
  let highest = 0n;
  for (const { id } of entries) {
    const digits = /^\s*\+?(\d+)/.exec(id)?.[1];
    const value = digits === undefined ? 0n : BigInt(digits);
    if (value > highest) highest = value;
  }
  if (highest < MAX_ID) return String(highest + 1n);
  // Behind the last number QEMU begins anew, with an id that may be taken.
  const taken = new Set(entries.map(({ id }) => id));
  let free = 1;
  while (taken.has(String(free))) free++;
  return String(free);
}

/** What the overlap checks look after. */
export function placesOf({ entries, size }: SnapshotTable): SnapshotPlaces {
  return { tableBytes: size, inactive: entries.filter(({ l1Size }) => l1Size > 0) };
}
