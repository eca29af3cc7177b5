/** Writing persistent bitmaps: marking them in use when an image is opened for writing, storing them when it is closed.
 *  Spec: qcow2, "Bitmaps extension", "Bitmap directory", "Bitmap table", "Bitmap data".
 *  Order of marking: the in-use flags, in place, durable before the first write of a guest. Entries change by one bit each: whatever of it is
 *  torn, each is marked or is right.
 *  Order of storing: guest data and its tables are durable → bits, tables and directory to new clusters, refcounts → durable → the header (see
 *  bitmaps-record.ts) → the old clusters are freed. A cut before the header leaves the old directory, in which all are marked in use.
 *  Where no bit, name or size has changed, the flags alone are written, in place.
 *  Invariant: a cluster of bits that is referred to is never written to; those whose bits are the same go from the old table to the new one. */
import { isBlockError } from '../../base/errors.ts';
import { alignUp, divCeil } from '../../bytes/align.ts';
import { setU64 } from '../../bytes/ints.ts';
import type { Allocator } from './allocator.ts';
import { BitmapBits, type BitmapTable, type TrackedBitmap, tableSizeOf } from './bitmap-bits.ts';
import { type BitmapEntry, encodeBitmapDirectory } from './bitmap-directory.ts';
import { recordBitmaps } from './bitmaps-record.ts';
import type { BitmapsPointer } from './extensions.ts';
import { TABLE_ENTRY_BYTES } from './geometry.ts';
import type { Qcow2State } from './image-state.ts';
import type { MetadataMap } from './metadata-map.ts';

/** What storing needs of the open image. */
export interface BitmapHost {
  readonly state: Qcow2State;
  readonly allocator: Allocator;
  readonly metadata: MetadataMap;
}

/** Marks all entries in use: see above. */
export async function markInUse(
  state: Qcow2State,
  pointer: BitmapsPointer,
  entries: readonly BitmapEntry[],
): Promise<void> {
  if (entries.every(({ inUse }) => inUse)) return;
  await state.file.write(
    pointer.directoryOffset,
    encodeBitmapDirectory(entries.map((entry) => ({ ...entry, inUse: true }))),
  );
  await state.flushFile();
}

/** Stores the bitmaps of an image that is being closed; guest data is durable already.
 *  @param removed bitmaps that the directory in the file still has
 *  @throws {@link BlockError} what reading and writing throw: then all stay marked in use. */
export async function storeBitmaps(
  host: BitmapHost,
  bitmaps: readonly TrackedBitmap[],
  removed: readonly TrackedBitmap[],
): Promise<void> {
  const { state } = host;
  const { header, geometry } = state;
  if (bitmaps.length === 0 && header.bitmaps === undefined) return;
  const sameSet =
    header.bitmaps !== undefined && removed.length === 0 && bitmaps.every(({ entry }) => entry !== undefined);
  if (sameSet && bitmaps.every((bitmap) => isUnchanged(bitmap, geometry.clusterSize))) {
    await clearInUse(state, header.bitmaps as BitmapsPointer, bitmaps);
    return;
  }
  await state.metadata.run(() => new Storing(host).run(bitmaps, removed));
}

/** Its bits in the file are all that is to be stored. */
function isUnchanged(bitmap: TrackedBitmap, clusterSize: number): boolean {
  const { inconsistent, stored, storedSize, wasCut, changed } = bitmap;
  if (inconsistent) return true;
  return (
    stored !== undefined &&
    stored.size === tableSizeOf(bitmap, clusterSize) &&
    storedSize >= changed.size &&
    !wasCut &&
    changed.empty
  );
}

async function clearInUse(
  state: Qcow2State,
  pointer: BitmapsPointer,
  bitmaps: readonly TrackedBitmap[],
): Promise<void> {
  const entries = bitmaps.map((bitmap) => entryOf(bitmap, bitmap.stored as BitmapTable));
  await state.file.write(pointer.directoryOffset, encodeBitmapDirectory(entries));
  await state.flushFile();
}

function entryOf(bitmap: TrackedBitmap, { offset, size }: BitmapTable): BitmapEntry {
  const { name, rawName, granularity, inconsistent, enabled } = bitmap;
  return {
    name,
    rawName,
    granularity,
    inUse: inconsistent,
    auto: enabled,
    tableOffset: offset,
    tableSize: size,
  };
}

interface Space {
  readonly offset: number;
  readonly length: number;
}

class Storing {
  readonly #host: BitmapHost;
  readonly #clusterSize: number;
  /** Allocated here, and referred to by nothing yet. */
  readonly #taken: Space[] = [];
  /** Referred to by nothing once the header is written. */
  readonly #left: Space[] = [];

  constructor(host: BitmapHost) {
    this.#host = host;
    this.#clusterSize = host.state.geometry.clusterSize;
  }

  async run(bitmaps: readonly TrackedBitmap[], removed: readonly TrackedBitmap[]): Promise<void> {
    const { state } = this.#host;
    const old = state.header.bitmaps;
    let pointer: BitmapsPointer | undefined;
    try {
      for (const bitmap of removed) await this.#leaveAll(bitmap);
      const entries: BitmapEntry[] = [];
      for (const bitmap of bitmaps) entries.push(entryOf(bitmap, await this.#storeBits(bitmap)));
      pointer = await this.#writeDirectory(entries);
      await this.#makeDurable();
    } catch (error) {
      // What cannot be given back leaks; the failure itself is the one to tell.
      for (const { offset, length } of this.#taken) {
        await this.#host.allocator.release(offset, length).catch(() => undefined);
      }
      throw error;
    }
    await recordBitmaps(state, pointer);
    if (old !== undefined) this.#left.push({ offset: old.directoryOffset, length: old.directorySize });
    for (const { offset, length } of this.#left) await this.#free(offset, length);
  }

  async #writeDirectory(entries: readonly BitmapEntry[]): Promise<BitmapsPointer | undefined> {
    if (entries.length === 0) return undefined;
    const directory = encodeBitmapDirectory(entries);
    const directoryOffset = await this.#allocate(directory.length);
    await this.#host.state.file.write(directoryOffset, directory);
    return { count: entries.length, directorySize: directory.length, directoryOffset };
  }

  /** @returns the table that is to be referred to. */
  async #storeBits(bitmap: TrackedBitmap): Promise<BitmapTable> {
    const { stored } = bitmap;
    if (isUnchanged(bitmap, this.#clusterSize)) return stored as BitmapTable;
    const { file, name } = this.#host.state;
    const bits = await BitmapBits.open(file, bitmap, this.#clusterSize, name);
    const table = new DataView(new ArrayBuffer(bits.clusters * TABLE_ENTRY_BYTES));
    const buffer = new Uint8Array(this.#clusterSize);
    const kept = new Set<number>();
    for (let index = 0; index < bits.clusters; index++) {
      const same = bits.unchanged(index);
      if (same !== undefined) {
        if (same.offset !== 0) kept.add(index);
        setU64(table, index * TABLE_ENTRY_BYTES, same.ones ? 1 : same.offset);
        continue;
      }
      const kind = await bits.read(index, buffer);
      if (kind === 'full') setU64(table, index * TABLE_ENTRY_BYTES, 1);
      if (kind !== 'mixed') continue;
      const offset = await this.#allocate(this.#clusterSize);
      await file.write(offset, buffer);
      setU64(table, index * TABLE_ENTRY_BYTES, offset);
    }
    this.#leave(bitmap, bits, kept);
    // A cleared bitmap has no bits that count, and a table all the same.
    if (stored === undefined && bitmap.entry !== undefined) await this.#leaveAll(bitmap);
    const offset = await this.#allocate(table.byteLength);
    await file.write(offset, new Uint8Array(table.buffer));
    return { offset, size: bits.clusters };
  }

  /** The table of `bitmap` and its clusters are left, but those of entries `kept`. */
  #leave({ stored }: TrackedBitmap, bits: BitmapBits, kept: ReadonlySet<number>): void {
    if (stored === undefined) return;
    this.#left.push({ offset: stored.offset, length: stored.size * TABLE_ENTRY_BYTES });
    for (let index = 0; index < stored.size; index++) {
      const offset = bits.storedAt(index) ?? 0;
      if (offset !== 0 && !kept.has(index)) this.#left.push({ offset, length: this.#clusterSize });
    }
  }

  /** What the directory in the file has for a bitmap is left. A broken table leaks what it refers to. */
  async #leaveAll(bitmap: TrackedBitmap): Promise<void> {
    const { state } = this.#host;
    if (bitmap.entry === undefined) return;
    const stored = { offset: bitmap.entry.tableOffset, size: bitmap.entry.tableSize };
    try {
      const bits = await BitmapBits.open(state.file, { ...bitmap, stored }, this.#clusterSize, state.name);
      this.#leave({ ...bitmap, stored }, bits, new Set());
    } catch (error) {
      if (!isBlockError(error) || error.code !== 'CORRUPT') throw error;
      state.warn('qcow2.bitmap-leak', `clusters of bitmap '${bitmap.name}' stay behind: ${error.message}`);
    }
  }

  async #allocate(bytes: number): Promise<number> {
    const offset = await this.#host.allocator.allocate(divCeil(bytes, this.#clusterSize));
    this.#taken.push({ offset, length: alignUp(bytes, this.#clusterSize) });
    return offset;
  }

  async #makeDurable(): Promise<void> {
    const { state } = this.#host;
    if (!state.lazyRefcounts) {
      const { refcountBlocks, refcountTable } = state.caches;
      await refcountBlocks.makeDurable(refcountBlocks.generation);
      await refcountTable.makeDurable(refcountTable.generation);
    }
    await state.flushFile();
  }

  /** Wrong tables must not make the image unusable, nor free what is in use: the space leaks, and the caller is told. */
  async #free(offset: number, length: number): Promise<void> {
    const { state, allocator, metadata } = this.#host;
    try {
      await metadata.ensureBuilt();
      const over = metadata.overlap(offset, length);
      if (over === undefined) await allocator.release(offset, length);
      else
        state.corruption('bitmap-overlap', `Bitmap cluster overlaps with ${over}`, {
          fatal: false,
          offset,
          size: length,
        });
    } catch (error) {
      if (!isBlockError(error) || error.code !== 'CORRUPT') throw error;
      state.corruption('refcount-range', error.message, { fatal: false, offset, size: length });
    }
  }
}
