/** Persistent dirty bitmaps of an open image: listed, made, changed, read; recording while the image is open for writing.
 *  Spec: qcow2, "Bitmaps extension", "Bitmap directory entry" (in_use, auto).
 *  Invariants: while an image is open for writing its directory marks every bitmap in use, so that a crash leaves none that looks right and is
 *  not; a bitmap that was found in use is never read, only listed, kept and removed; a change of guest data is marked before it is made. */
import { BlockError, type ErrorCode, type ErrorDetails } from '../../base/errors.ts';
import { alignUp, divCeil } from '../../bytes/align.ts';
import { DirtyBitmap, isBitmapGranularity } from '../../core/dirty-bitmap.ts';
import type { BitmapFacet, BitmapInfo, BitmapRequest, ByteRange } from '../../core/format.ts';
import { BitmapBits, badTable, readBitmapTable, type TrackedBitmap, trackedBitmap } from './bitmap-bits.ts';
import {
  type BitmapEntry,
  directoryEntryBytes,
  MAX_BITMAP_BYTES,
  MAX_BITMAP_NAME_BYTES,
  MAX_BITMAP_TABLE_SIZE,
  readBitmapDirectory,
} from './bitmap-directory.ts';
import { type BitmapHost, markInUse, storeBitmaps } from './bitmap-store.ts';
import { MAX_BITMAP_DIRECTORY_BYTES, MAX_BITMAPS } from './extensions.ts';
import { TABLE_ENTRY_BYTES } from './geometry.ts';
import type { Qcow2State } from './image-state.ts';

/** A cluster, but at least and at most so many bytes: what a bit stands for when nothing else is asked. */
const DEFAULT_GRANULARITY = { least: 4096, most: 65536 };

export class Bitmaps implements BitmapFacet {
  readonly #state: Qcow2State;
  /** Loaded: at once where the image is open for writing, else when they are asked for. */
  #tracked: TrackedBitmap[] | undefined;
  /** In the directory of the file, and not here any more. */
  #removed: TrackedBitmap[] = [];
  /** Those that record. */
  #recording: DirtyBitmap[] = [];

  constructor(state: Qcow2State) {
    this.#state = state;
  }

  /** What a writer owes the image before its first write: everything is looked at, and marked in use, durably.
   *  @throws {@link BlockError} CORRUPT as `readBitmapDirectory`, and reasons `qcow2.bitmap-table`, `qcow2.bitmap-duplicate`. */
  static async takeOver(state: Qcow2State): Promise<Bitmaps> {
    const bitmaps = new Bitmaps(state);
    const { bitmaps: pointer } = state.header;
    const entries = await bitmaps.#readDirectory();
    await requireTables(state, entries);
    if (pointer !== undefined) await markInUse(state, pointer, entries);
    bitmaps.#adopt(entries);
    return bitmaps;
  }

  // ── recording ────────────────────────────────────────────────────────────────────────────────

  /** Marks a change of the guest's disk. */
  readonly record = (offset: number, length: number): void => {
    for (const bitmap of this.#recording) bitmap.set(offset, length);
  };

  #changed(): void {
    const tracked = this.#tracked ?? [];
    this.#recording = tracked
      .filter(({ enabled, inconsistent }) => enabled && !inconsistent)
      .map(({ changed }) => changed);
  }

  // ── the facet ────────────────────────────────────────────────────────────────────────────────

  get available(): boolean {
    return this.#state.header.version >= 3;
  }

  /** There is a bitmap, inconsistent ones included. */
  get any(): boolean {
    return this.#tracked === undefined ? this.#state.header.bitmaps !== undefined : this.#tracked.length > 0;
  }

  async list(): Promise<readonly BitmapInfo[]> {
    return (await this.#load()).map(({ name, granularity, enabled, inconsistent }) => ({
      name,
      granularity,
      enabled,
      inconsistent,
    }));
  }

  async add(request: BitmapRequest): Promise<void> {
    const tracked = await this.#load();
    const { name, enabled = true } = request;
    const { virtualSize } = this.#state.header;
    const granularity = request.granularity ?? this.#defaultGranularity;
    if (name === '') throw this.#fault('INVALID_ARGUMENT', 'name-empty', 'a bitmap needs a name');
    if (!isBitmapGranularity(granularity)) {
      throw this.#fault(
        'INVALID_ARGUMENT',
        'granularity',
        `granularity ${granularity} is not a power of two between 512 and 2147483648`,
        { value: granularity },
      );
    }
    this.#requireSupport(name);
    const rawName = new TextEncoder().encode(name);
    if (rawName.length > MAX_BITMAP_NAME_BYTES || name.includes('\0')) {
      throw this.#fault(
        'INVALID_ARGUMENT',
        'name-length',
        `bitmap name of ${rawName.length} bytes; at most ${MAX_BITMAP_NAME_BYTES} can be recorded, none of them NUL`,
        { bitmap: name, value: rawName.length, bound: MAX_BITMAP_NAME_BYTES },
      );
    }
    this.#requireRoom(name, granularity, virtualSize);
    this.#requireCount(tracked, rawName);
    if (tracked.some((bitmap) => bitmap.name === name)) {
      throw this.#fault('INVALID_ARGUMENT', 'exists', `has a bitmap '${name}' already`, { bitmap: name });
    }
    tracked.push({
      name,
      rawName,
      granularity,
      inconsistent: false,
      enabled,
      entry: undefined,
      stored: undefined,
      storedSize: virtualSize,
      wasCut: false,
      changed: new DirtyBitmap(virtualSize, granularity),
    });
    this.#changed();
  }

  async remove(name: string): Promise<void> {
    const tracked = await this.#load();
    const bitmap = await this.#find(name);
    tracked.splice(tracked.indexOf(bitmap), 1);
    if (bitmap.entry !== undefined) this.#removed.push(bitmap);
    this.#changed();
  }

  async clear(name: string): Promise<void> {
    const bitmap = await this.#usable(name);
    bitmap.stored = undefined;
    bitmap.changed.clearAll();
  }

  async setEnabled(name: string, enabled: boolean): Promise<void> {
    const bitmap = await this.#usable(name);
    bitmap.enabled = enabled;
    this.#changed();
  }

  async merge(name: string, ranges: AsyncIterable<ByteRange>): Promise<void> {
    const bitmap = await this.#usable(name);
    // Aside first: the ranges may fail to come, or be those of this very bitmap.
    const marks = new DirtyBitmap(bitmap.changed.size, bitmap.granularity);
    for await (const { offset, length } of ranges) marks.set(offset, length);
    bitmap.changed.merge(marks);
  }

  async *dirty(name: string): AsyncGenerator<ByteRange, void, undefined> {
    const { file, geometry, name: image } = this.#state;
    const bitmap = await this.#usable(name);
    const bits = await BitmapBits.open(file, bitmap, geometry.clusterSize, image);
    yield* bits.ranges();
  }

  // ── what the rest of the room asks ───────────────────────────────────────────────────────────

  /** Before the size of the disk changes.
   *  @throws {@link BlockError} CORRUPT, reason `qcow2.bitmap-inconsistent`, where there is one that cannot follow; TOO_LARGE, reason
   *  `qcow2.bitmap-too-large`. */
  async requireResizable(virtualSize: number): Promise<void> {
    for (const { name, inconsistent, granularity } of await this.#load()) {
      if (inconsistent) throw this.#inconsistent(name);
      this.#requireRoom(name, granularity, virtualSize);
    }
  }

  /** The disk has another size now; what is new is clean. */
  resize(virtualSize: number): void {
    for (const bitmap of this.#tracked ?? []) {
      bitmap.wasCut ||= virtualSize < bitmap.changed.size;
      bitmap.changed.resize(virtualSize);
      bitmap.storedSize = Math.min(bitmap.storedSize, virtualSize);
    }
  }

  /** The directory in the file has changed behind our back, by a repair. */
  async reload(): Promise<void> {
    if (this.#tracked === undefined) return;
    const entries = new Map((await this.#readDirectory()).map((entry) => [entry.name, entry]));
    const isThere = ({ name, entry }: TrackedBitmap): boolean => entry === undefined || entries.has(name);
    this.#tracked = this.#tracked.filter(isThere);
    this.#removed = this.#removed.filter(isThere);
    for (const bitmap of [...this.#tracked, ...this.#removed]) {
      if (bitmap.entry === undefined) continue;
      const entry = entries.get(bitmap.name) as BitmapEntry;
      bitmap.entry = entry;
      if (bitmap.stored !== undefined) bitmap.stored = { offset: entry.tableOffset, size: entry.tableSize };
    }
    this.#changed();
  }

  /** The image is being closed; guest data is durable.
   *  @throws {@link BlockError} reason `qcow2.bitmaps-lost`: they stay marked in use. */
  async store(host: BitmapHost): Promise<void> {
    if (this.#tracked === undefined) return;
    try {
      await storeBitmaps(host, this.#tracked, this.#removed);
    } catch (cause) {
      const code = cause instanceof BlockError ? cause.code : 'IO';
      throw new BlockError(
        code,
        `qcow2 "${this.#state.name}": the bitmaps could not be stored and are lost: ${cause instanceof Error ? cause.message : String(cause)}`,
        { reason: 'qcow2.bitmaps-lost', cause },
      );
    }
  }

  // ── inside ───────────────────────────────────────────────────────────────────────────────────

  async #load(): Promise<TrackedBitmap[]> {
    return this.#tracked ?? this.#adopt(await this.#readDirectory());
  }

  #adopt(entries: readonly BitmapEntry[]): TrackedBitmap[] {
    const { virtualSize } = this.#state.header;
    const tracked = entries.map((entry) => trackedBitmap(entry, virtualSize));
    this.#tracked = tracked;
    this.#changed();
    return tracked;
  }

  async #readDirectory(): Promise<readonly BitmapEntry[]> {
    const { header, file, geometry, name } = this.#state;
    const { bitmaps, virtualSize } = header;
    if (bitmaps === undefined) return [];
    const entries = await readBitmapDirectory(file, bitmaps, virtualSize, geometry.clusterSize, name);
    requireNames(entries, name);
    return entries;
  }

  async #find(name: string): Promise<TrackedBitmap> {
    const bitmap = (await this.#load()).find((candidate) => candidate.name === name);
    if (bitmap !== undefined) return bitmap;
    throw this.#fault('NOT_FOUND', 'missing', `has no bitmap '${name}'`, { bitmap: name });
  }

  async #usable(name: string): Promise<TrackedBitmap> {
    const bitmap = await this.#find(name);
    if (bitmap.inconsistent) throw this.#inconsistent(name);
    return bitmap;
  }

  #inconsistent(name: string): BlockError {
    return this.#fault(
      'CORRUPT',
      'inconsistent',
      `bitmap '${name}' was not stored when the image was last written to, and cannot be used; remove it`,
      { bitmap: name },
    );
  }

  get #defaultGranularity(): number {
    const { least, most } = DEFAULT_GRANULARITY;
    return Math.min(most, Math.max(least, this.#state.geometry.clusterSize));
  }

  #requireSupport(bitmap: string): void {
    if (this.available) return;
    throw this.#fault('UNSUPPORTED', 'version', 'a version 2 image cannot hold bitmaps', { bitmap });
  }

  #requireRoom(bitmap: string, granularity: number, virtualSize: number): void {
    const bytes = divCeil(divCeil(virtualSize, granularity), 8);
    const bound = Math.min(MAX_BITMAP_BYTES, MAX_BITMAP_TABLE_SIZE * this.#state.geometry.clusterSize);
    if (bytes <= bound) return;
    throw this.#fault(
      'TOO_LARGE',
      'too-large',
      `bitmap '${bitmap}' would need ${bytes} bytes for a disk of ${virtualSize}; at most ${bound} can be recorded; take a larger granularity`,
      { bitmap, value: bytes, bound },
    );
  }

  #requireCount(tracked: readonly TrackedBitmap[], rawName: Uint8Array): void {
    if (tracked.length >= MAX_BITMAPS) {
      throw this.#fault('TOO_LARGE', 'count', `has ${tracked.length} bitmaps; more are not supported`, {
        bound: MAX_BITMAPS,
      });
    }
    const bytes = [...tracked.map((bitmap) => bitmap.rawName), rawName].reduce(
      (sum, { length }) => sum + directoryEntryBytes(length),
      0,
    );
    if (bytes <= MAX_BITMAP_DIRECTORY_BYTES) return;
    throw this.#fault('TOO_LARGE', 'directory-limit', `the bitmap directory would need ${bytes} bytes`, {
      value: bytes,
      bound: MAX_BITMAP_DIRECTORY_BYTES,
    });
  }

  #fault(code: ErrorCode, finding: string, what: string, details: ErrorDetails = {}): BlockError {
    const { name } = this.#state;
    return new BlockError(code, `qcow2 "${name}": ${what}`, {
      reason: `qcow2.bitmap-${finding}`,
      details: { ...details, image: name },
    });
  }
}

/** @throws {@link BlockError} CORRUPT, reason `qcow2.bitmap-duplicate`. */
function requireNames(entries: readonly BitmapEntry[], name: string): void {
  const names = new Set<string>();
  for (const { name: bitmap } of entries) {
    if (names.has(bitmap)) {
      throw new BlockError('CORRUPT', `qcow2 "${name}": two bitmaps are called '${bitmap}'`, {
        reason: 'qcow2.bitmap-duplicate',
        details: { bitmap },
      });
    }
    names.add(bitmap);
  }
}

/** All tables that will be read: whole, in the file, and together no larger than it, which bounds the time that opening takes.
 *  @throws {@link BlockError} CORRUPT, reason `qcow2.bitmap-table`. */
async function requireTables(state: Qcow2State, entries: readonly BitmapEntry[]): Promise<void> {
  const { file, geometry, name } = state;
  const { clusterSize } = geometry;
  const end = alignUp(file.size, clusterSize);
  let bytes = 0;
  for (const { name: bitmap, inUse, tableOffset: offset, tableSize: size } of entries) {
    if (inUse) continue;
    bytes += alignUp(size * TABLE_ENTRY_BYTES, clusterSize);
    if (offset + size * TABLE_ENTRY_BYTES > end || bytes > end) {
      throw badTable(name, bitmap, `the table of bitmap '${bitmap}' does not lie in the file`);
    }
    await readBitmapTable(file, { offset, size }, bitmap, clusterSize, name);
  }
}
