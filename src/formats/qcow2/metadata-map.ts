/** Where metadata lies, so that no write of guest data and no allocation ever lands on it. Spec: none; it is QEMU's "overlap check".
 *  Owns the set of metadata clusters of an image that is open for writing; built at the first write, kept up to date by whoever makes or
 *  frees a table.
 *  Invariant: holds the header, both refcount levels, the active L1 and L2 tables, the snapshot table and its L1 tables, the bitmap
 *  directory and the LUKS header. */
import { isPromise } from '../../base/async.ts';
import { alignDown, alignUp } from '../../bytes/align.ts';
import { entryOffset } from './entries.ts';
import { TABLE_ENTRY_BYTES } from './geometry.ts';
import type { Qcow2State } from './image-state.ts';
import { OVERLAP } from './options.ts';
import type { Refcounts } from './refcounts.ts';

type Kind =
  | 'qcow2_header'
  | 'LUKS header'
  | 'active L1 table'
  | 'active L2 table'
  | 'refcount block'
  | 'refcount table'
  | 'snapshot table'
  | 'inactive L1 table'
  | 'inactive L2 table'
  | 'bitmap directory';

/** As an OVERLAP bit, where there is none: the LUKS header that is written to its place. */
export const LUKS_HEADER = 2 ** 20;

/** A snapshot's L1 table: host offset in bytes, entries. */
export interface InactiveL1 {
  readonly l1Offset: number;
  readonly l1Size: number;
}

/** What there is of snapshots. */
export interface SnapshotPlaces {
  /** Bytes that the snapshot table occupies. */
  readonly tableBytes: number;
  readonly inactive: readonly InactiveL1[];
}

/** An image with more metadata clusters than this is checked against its fixed ranges only: the set would cost too much memory. */
const MAX_TRACKED = 1_000_000;
/** Bytes of a snapshot's L1 table read at a time. */
const INACTIVE_CHUNK = 64 * 1024;

export class MetadataMap {
  readonly #state: Qcow2State;
  readonly #refcounts: Refcounts;
  /** Union of OVERLAP bits: which structures are looked after. */
  readonly #overlapCheck: number;
  #snapshots: SnapshotPlaces;
  /** Host offset of every tracked metadata cluster, and what it is. */
  #tables: Map<number, Kind> | undefined;
  #tooMany = false;

  /** @param overlapCheck union of OVERLAP bits: which structures are looked after */
  constructor(state: Qcow2State, refcounts: Refcounts, overlapCheck: number, snapshots: SnapshotPlaces) {
    this.#state = state;
    this.#refcounts = refcounts;
    this.#overlapCheck = overlapCheck;
    this.#snapshots = snapshots;
  }

  /** The snapshots are others now. */
  setSnapshots(snapshots: SnapshotPlaces): void {
    this.#snapshots = snapshots;
    this.forget();
  }

  /** A table has been made. */
  add(offset: number, kind: 'active L2 table' | 'refcount block'): void {
    this.#tables?.set(offset, kind);
  }

  /** @returns whether `offset` was a table. */
  remove(offset: number): boolean {
    // Not known: it may be a table; the caller then does what a table needs, which harms nothing else.
    return this.#tables === undefined || this.#tooMany ? true : this.#tables.delete(offset);
  }

  /** Built anew when it is needed next. */
  forget(): void {
    this.#tables = undefined;
  }

  async build(): Promise<void> {
    const tables = new Map<number, Kind>();
    for await (const block of this.#refcounts.blocks()) {
      tables.set(block, 'refcount block');
      if (this.#full(tables)) break;
    }
    const { header, caches, file } = this.#state;
    const slice = caches.l1.tableSize;
    const end = header.l1Offset + header.l1Size * TABLE_ENTRY_BYTES;
    for (let at = header.l1Offset; at < end && !this.#full(tables); at += slice) {
      // behind the end of the file there are zeros, unless somebody is about to write there
      const loaded = at < file.size ? caches.l1.load(at) : caches.l1.peek(at);
      if (loaded === undefined) continue;
      const { view } = isPromise(loaded) ? await loaded : loaded;
      this.#addL2Tables(tables, view, Math.min(slice, end - at), 'active L2 table');
    }
    if (this.#watches(OVERLAP.inactiveL2)) await this.#addInactive(tables);
    this.#tooMany = this.#full(tables);
    this.#tables = tables;
  }

  async #addInactive(tables: Map<number, Kind>): Promise<void> {
    const chunk = new Uint8Array(INACTIVE_CHUNK);
    const view = new DataView(chunk.buffer);
    for (const { l1Offset, l1Size } of this.#snapshots.inactive) {
      const end = l1Offset + l1Size * TABLE_ENTRY_BYTES;
      for (let at = l1Offset; at < end && !this.#full(tables); at += chunk.length) {
        await this.#state.file.read(at, chunk);
        this.#addL2Tables(tables, view, Math.min(chunk.length, end - at), 'inactive L2 table');
      }
    }
  }

  #addL2Tables(tables: Map<number, Kind>, view: DataView, bytes: number, kind: Kind): void {
    for (let i = 0; i < bytes; i += TABLE_ENTRY_BYTES) {
      const offset = entryOffset(view.getUint32(i), view.getUint32(i + 4));
      if (offset !== 0 && !tables.has(offset)) tables.set(offset, kind);
    }
  }

  #full(tables: Map<number, Kind>): boolean {
    return tables.size > MAX_TRACKED;
  }

  #watches(bit: number): boolean {
    return Math.floor(this.#overlapCheck / bit) % 2 === 1;
  }

  async ensureBuilt(): Promise<void> {
    if (this.#tables === undefined) await this.build();
  }

  /** Synchronous test, once built.
   *  @param own an OVERLAP bit: structures of that kind do not count
   *  @returns what lies there, or `undefined`. */
  overlap(offset: number, length: number, own = 0): Kind | undefined {
    const { header, geometry } = this.#state;
    const { clusterSize } = geometry;
    const end = offset + length;
    const over = (bit: number, start: number, bytes: number): boolean =>
      bytes > 0 && bit !== own && start < end && offset < start + alignUp(bytes, clusterSize) && this.#watches(bit);
    if (over(OVERLAP.mainHeader, 0, clusterSize)) return 'qcow2_header';
    if (over(OVERLAP.activeL1, header.l1Offset, header.l1Size * TABLE_ENTRY_BYTES)) return 'active L1 table';
    if (over(OVERLAP.refcountTable, header.refcountTableOffset, header.refcountTableClusters * clusterSize)) {
      return 'refcount table';
    }
    if (over(OVERLAP.snapshotTable, header.snapshotsOffset, this.#snapshots.tableBytes)) return 'snapshot table';
    const { bitmaps, crypto } = header;
    // QEMU does not watch over it; without it nothing can be read any more
    if (crypto !== undefined && own !== LUKS_HEADER && over(OVERLAP.mainHeader, crypto.offset, crypto.length)) {
      return 'LUKS header';
    }
    if (bitmaps !== undefined && over(OVERLAP.bitmapDirectory, bitmaps.directoryOffset, bitmaps.directorySize)) {
      return 'bitmap directory';
    }
    for (const { l1Offset, l1Size } of this.#snapshots.inactive) {
      if (over(OVERLAP.inactiveL1, l1Offset, l1Size * TABLE_ENTRY_BYTES)) return 'inactive L1 table';
    }
    return this.#tableOverlap(alignDown(offset, clusterSize), end, own);
  }

  #tableOverlap(start: number, end: number, own: number): Kind | undefined {
    if (this.#tables === undefined) return undefined;
    const { clusterSize } = this.#state.geometry;
    for (let at = start; at < end; at += clusterSize) {
      const kind = this.#tables.get(at);
      if (kind === 'active L2 table' && own !== OVERLAP.activeL2 && this.#watches(OVERLAP.activeL2)) return kind;
      if (kind === 'refcount block' && own !== OVERLAP.refcountBlock && this.#watches(OVERLAP.refcountBlock))
        return kind;
      if (kind === 'inactive L2 table') return kind;
    }
    return undefined;
  }

  /** @throws CORRUPT, fatal, reason `qcow2.overlap`, when the range touches metadata. */
  async requireNoOverlap(offset: number, length: number): Promise<void> {
    await this.ensureBuilt();
    const kind = this.overlap(offset, length);
    if (kind !== undefined) await this.#refuse(kind, offset, length);
  }

  /** As `requireNoOverlap`, for the data path. */
  check(offset: number, length: number): Promise<void> | undefined {
    if (this.#tables === undefined) return this.requireNoOverlap(offset, length);
    const kind = this.overlap(offset, length);
    return kind === undefined ? undefined : this.#refuse(kind, offset, length);
  }

  /** As `check`, for a table of the kind `own` (an OVERLAP bit) that is written to its place. */
  checkTable(offset: number, length: number, own: number): Promise<void> | undefined {
    if (this.#tables === undefined) return this.#buildAndCheck(offset, length, own);
    const kind = this.overlap(offset, length, own);
    return kind === undefined ? undefined : this.#refuse(kind, offset, length);
  }

  async #buildAndCheck(offset: number, length: number, own: number): Promise<void> {
    await this.build();
    const kind = this.overlap(offset, length, own);
    if (kind !== undefined) await this.#refuse(kind, offset, length);
  }

  #refuse(kind: Kind, offset: number, length: number): Promise<never> {
    return this.#state.fatal('overlap', `Preventing invalid write on metadata (overlaps with ${kind})`, {
      offset,
      size: length,
    });
  }
}
