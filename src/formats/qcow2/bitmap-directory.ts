/** The bitmap directory: which persistent dirty bitmaps an image has, and where their tables are. Codec and bounds; where it is written, and
 *  in which order, is the business of bitmap-store.ts.
 *  Spec: qcow2, "Bitmaps extension", "Bitmap directory", "Bitmap table".
 *  Invariant: an entry that is returned satisfies every constraint; one bad entry makes the whole directory bad, as in QEMU. */
import { BlockError, hex } from '../../base/errors.ts';
import { alignUp, log2Exact } from '../../bytes/align.ts';
import { struct, u8, u16, u32, u64 } from '../../bytes/struct.ts';
import type { ByteStore } from '../../core/store.ts';
import { bitmapEntryHasReserved, entryOffset, hasOffset } from './entries.ts';
import type { BitmapsPointer } from './extensions.ts';
import { cString } from './features.ts';
import { TABLE_ENTRY_BYTES } from './geometry.ts';

const DirectoryEntry = struct('qcow2 bitmap directory entry', 24, {
  tableOffset: [0, u64],
  tableSize: [8, u32],
  flags: [12, u32],
  type: [16, u8],
  granularityBits: [17, u8],
  nameLength: [18, u16],
  extraLength: [20, u32],
});

const FLAG_IN_USE = 1;
const FLAG_AUTO = 2;
const KNOWN_FLAGS = FLAG_IN_USE + FLAG_AUTO;
const DIRTY_TRACKING = 1;
const MIN_GRANULARITY_BITS = 9;
const MAX_GRANULARITY_BITS = 31;
export const MAX_BITMAP_NAME_BYTES = 1023;
/** Entries of one bitmap table. */
export const MAX_BITMAP_TABLE_SIZE = 0x800_0000;
/** All clusters of one bitmap. */
export const MAX_BITMAP_BYTES = 0x2000_0000;

export interface BitmapEntry {
  readonly name: string;
  /** As it is recorded: not every name is valid UTF-8, and a rewrite must not change it. */
  readonly rawName: Uint8Array;
  /** Guest bytes per bit. */
  readonly granularity: number;
  /** Was not written back: its bits are not to be trusted. */
  readonly inUse: boolean;
  /** Records writes as soon as the image is open. */
  readonly auto: boolean;
  readonly tableOffset: number;
  /** Entries, not bytes. */
  readonly tableSize: number;
}

/** An entry that was read. */
export interface LocatedBitmapEntry extends BitmapEntry {
  /** Where its flags are: offset in the file, bytes. */
  readonly flagsAt: number;
}

/** @throws {@link BlockError} CORRUPT, reasons `qcow2.bitmap-directory-empty`, `qcow2.bitmap-directory-broken`, `qcow2.bitmap-directory-more`,
 *  `qcow2.bitmap-directory-less`, `qcow2.bitmap-extra`, `qcow2.bitmap-constraints` (details `{ bitmap }`). */
export async function readBitmapDirectory(
  file: ByteStore,
  pointer: BitmapsPointer,
  virtualSize: number,
  clusterSize: number,
  name: string,
): Promise<LocatedBitmapEntry[]> {
  const { directoryOffset, directorySize, count } = pointer;
  if (directorySize === 0) throw fault(name, 'directory-empty', 'bitmap directory of size 0');
  // a directory that claims to be larger than the file is zeros from there on: an entry of zeros breaks a constraint
  const present = Math.max(0, Math.min(directorySize, file.size - directoryOffset));
  const directory = new Uint8Array(Math.min(directorySize, present + DirectoryEntry.size));
  await file.read(directoryOffset, directory);
  const entries: LocatedBitmapEntry[] = [];
  let at = 0;
  while (at < directorySize) {
    if (at + DirectoryEntry.size > directorySize) throw broken(name, directoryOffset + at);
    if (entries.length >= count)
      throw fault(name, 'directory-more', `bitmap directory has more than ${count} entries`, { bound: count });
    if (at + DirectoryEntry.size > directory.length) throw broken(name, directoryOffset + at);
    const fixed = DirectoryEntry.decode(directory, at);
    const length = alignUp(DirectoryEntry.size + fixed.nameLength + fixed.extraLength, 8);
    if (at + length > directorySize) throw broken(name, directoryOffset + at);
    if (fixed.extraLength !== 0) {
      throw fault(name, 'extra', `bitmap directory entry at ${hex(directoryOffset + at)} has extra data`, {
        value: fixed.extraLength,
      });
    }
    const nameAt = at + DirectoryEntry.size;
    const rawName = directory.slice(nameAt, nameAt + fixed.nameLength);
    const bitmap = cString(rawName);
    if (!isAcceptable(fixed, virtualSize, clusterSize)) {
      throw fault(
        name,
        'constraints',
        `bitmap '${bitmap}' at ${hex(directoryOffset + at)} breaks the format's constraints`,
        { bitmap },
      );
    }
    entries.push({
      name: bitmap,
      rawName,
      granularity: 2 ** fixed.granularityBits,
      inUse: fixed.flags % 2 === FLAG_IN_USE,
      auto: fixed.flags >= FLAG_AUTO,
      tableOffset: fixed.tableOffset,
      tableSize: fixed.tableSize,
      flagsAt: directoryOffset + at + DirectoryEntry.fields.flags[0],
    });
    at += length;
  }
  if (entries.length !== count) {
    throw fault(name, 'directory-less', `bitmap directory has ${entries.length} entries, not ${count}`, {
      value: entries.length,
      bound: count,
    });
  }
  return entries;
}

function isAcceptable(
  entry: ReturnType<typeof DirectoryEntry.decode>,
  virtualSize: number,
  clusterSize: number,
): boolean {
  const bytes = entry.tableSize * clusterSize;
  return (
    entry.tableSize > 0 &&
    entry.tableSize <= MAX_BITMAP_TABLE_SIZE &&
    entry.tableOffset > 0 &&
    entry.tableOffset % clusterSize === 0 &&
    entry.granularityBits >= MIN_GRANULARITY_BITS &&
    entry.granularityBits <= MAX_GRANULARITY_BITS &&
    entry.flags <= KNOWN_FLAGS &&
    entry.nameLength <= MAX_BITMAP_NAME_BYTES &&
    entry.type === DIRTY_TRACKING &&
    bytes <= MAX_BITMAP_BYTES &&
    // an inconsistent bitmap may have been left behind by a resize
    (entry.flags % 2 === FLAG_IN_USE || virtualSize <= bytes * 8 * 2 ** entry.granularityBits)
  );
}

/** Bytes of one entry in the directory. */
export function directoryEntryBytes(nameBytes: number): number {
  return alignUp(DirectoryEntry.size + nameBytes, 8);
}

/** The directory of `entries`, as it is written. */
export function encodeBitmapDirectory(entries: readonly BitmapEntry[]): Uint8Array {
  const directory = new Uint8Array(entries.reduce((sum, { rawName }) => sum + directoryEntryBytes(rawName.length), 0));
  let at = 0;
  for (const { rawName, granularity, inUse, auto, tableOffset, tableSize } of entries) {
    const fixed = {
      tableOffset,
      tableSize,
      flags: (inUse ? FLAG_IN_USE : 0) + (auto ? FLAG_AUTO : 0),
      type: DIRTY_TRACKING,
      granularityBits: log2Exact(granularity),
      nameLength: rawName.length,
      extraLength: 0,
    };
    DirectoryEntry.encode(fixed, directory, at);
    directory.set(rawName, at + DirectoryEntry.size);
    at += directoryEntryBytes(rawName.length);
  }
  return directory;
}

/** Offset of the cluster that entry `index` of a bitmap table names; 0 for none, `undefined` when the entry is corrupt. */
export function bitmapClusterAt(table: DataView, index: number, clusterSize: number): number | undefined {
  const high = table.getUint32(index * TABLE_ENTRY_BYTES);
  const low = table.getUint32(index * TABLE_ENTRY_BYTES + 4);
  if (bitmapEntryHasReserved(high, low)) return undefined;
  if (!hasOffset(high, low)) return 0;
  const offset = entryOffset(high, low);
  return offset % clusterSize === 0 ? offset : undefined;
}

/** Whether entry `index`, which names no cluster, stands for bits that are all set. */
export function isAllOnes(table: DataView, index: number): boolean {
  const high = table.getUint32(index * TABLE_ENTRY_BYTES);
  const low = table.getUint32(index * TABLE_ENTRY_BYTES + 4);
  return !hasOffset(high, low) && low % 2 === 1;
}

function broken(name: string, offset: number): BlockError {
  return fault(name, 'directory-broken', `bitmap directory entry at ${hex(offset)} passes the end of the directory`, {
    offset,
  });
}

function fault(name: string, finding: string, what: string, details: Record<string, unknown> = {}): BlockError {
  return new BlockError('CORRUPT', `qcow2 "${name}": ${what}`, { reason: `qcow2.bitmap-${finding}`, details });
}
