/** The bits of one persistent bitmap: those in the file, and those marked since. Spec: qcow2, "Bitmap table", "Bitmap data".
 *  Bits in the file are never loaded as a whole nor written in place: they are read cluster by cluster where they are needed, and what was
 *  marked since lies over them. Memory is what guests have changed since, whatever the file holds.
 *  Invariant: bits of the file behind `storedSize` mean nothing; the disk was smaller meanwhile. */
import { BlockError, hex } from '../../base/errors.ts';
import { Pacer } from '../../base/job.ts';
import { divCeil } from '../../bytes/align.ts';
import { clearBits, findRunEnd, getBit } from '../../bytes/bits.ts';
import { isZero } from '../../bytes/zeros.ts';
import { DirtyBitmap } from '../../core/dirty-bitmap.ts';
import type { ByteRange } from '../../core/format.ts';
import type { ByteStore } from '../../core/store.ts';
import { type BitmapEntry, bitmapClusterAt, isAllOnes } from './bitmap-directory.ts';
import { TABLE_ENTRY_BYTES } from './geometry.ts';

/** Where a bitmap's clusters are: a table in the file. */
export interface BitmapTable {
  readonly offset: number;
  /** Entries, not bytes. */
  readonly size: number;
}

/** One bitmap of an open image. */
export interface TrackedBitmap {
  readonly name: string;
  readonly rawName: Uint8Array;
  readonly granularity: number;
  readonly inconsistent: boolean;
  enabled: boolean;
  /** Its entry in the directory of the file, where it has one. */
  entry: BitmapEntry | undefined;
  /** The table whose bits count; `undefined`: none do. */
  stored: BitmapTable | undefined;
  /** Bytes of the disk up to which they count. */
  storedSize: number;
  /** The disk has become smaller: the last cluster of bits has some behind its end. They go, because QEMU shows them when the disk grows. */
  wasCut: boolean;
  /** Marked since. Has the size of the disk. */
  readonly changed: DirtyBitmap;
}

/** As the directory has it. */
export function trackedBitmap(entry: BitmapEntry, virtualSize: number): TrackedBitmap {
  const { name, rawName, granularity, inUse, auto, tableOffset, tableSize } = entry;
  return {
    name,
    rawName,
    granularity,
    inconsistent: inUse,
    enabled: auto,
    entry,
    stored: { offset: tableOffset, size: tableSize },
    storedSize: virtualSize,
    wasCut: false,
    changed: new DirtyBitmap(virtualSize, granularity),
  };
}

/** Entries of the table that a bitmap needs. */
export function tableSizeOf(bitmap: TrackedBitmap, clusterSize: number): number {
  return Math.max(1, divCeil(bitmap.changed.bits, clusterSize * 8));
}

/** A table, read and checked.
 *  @throws {@link BlockError} CORRUPT, reason `qcow2.bitmap-table`, details `{ bitmap }`. */
export async function readBitmapTable(
  file: ByteStore,
  { offset, size }: BitmapTable,
  bitmap: string,
  clusterSize: number,
  name: string,
): Promise<DataView> {
  const table = new Uint8Array(size * TABLE_ENTRY_BYTES);
  await file.read(offset, table);
  const view = new DataView(table.buffer);
  for (let index = 0; index < size; index++) {
    if (bitmapClusterAt(view, index, clusterSize) !== undefined) continue;
    throw badTable(name, bitmap, `entry ${index} of the table of bitmap '${bitmap}' at ${hex(offset)} is corrupt`);
  }
  return view;
}

export function badTable(name: string, bitmap: string, what: string): BlockError {
  return new BlockError('CORRUPT', `qcow2 "${name}": ${what}`, {
    reason: 'qcow2.bitmap-table',
    details: { bitmap, errno: 'EINVAL' },
  });
}

/** What a cluster of bits holds. */
export type BitsKind = 'clean' | 'full' | 'mixed';

/** Reads one bitmap by the clusters of its table. */
export class BitmapBits {
  readonly #file: ByteStore;
  readonly #bitmap: TrackedBitmap;
  readonly #table: DataView | undefined;
  readonly #clusterSize: number;

  /** @param table that of `bitmap.stored` */
  constructor(file: ByteStore, bitmap: TrackedBitmap, table: DataView | undefined, clusterSize: number) {
    this.#file = file;
    this.#bitmap = bitmap;
    this.#table = table;
    this.#clusterSize = clusterSize;
  }

  static async open(file: ByteStore, bitmap: TrackedBitmap, clusterSize: number, name: string): Promise<BitmapBits> {
    const { stored } = bitmap;
    const table =
      stored === undefined ? undefined : await readBitmapTable(file, stored, bitmap.name, clusterSize, name);
    return new BitmapBits(file, bitmap, table, clusterSize);
  }

  /** Clusters of bits that the disk needs. */
  get clusters(): number {
    return tableSizeOf(this.#bitmap, this.#clusterSize);
  }

  /** Host offset of a cluster of the file's bits; 0: none, `undefined`: no such entry. */
  storedAt(index: number): number | undefined {
    if (this.#table === undefined || index * TABLE_ENTRY_BYTES >= this.#table.byteLength) return undefined;
    return bitmapClusterAt(this.#table, index, this.#clusterSize);
  }

  /** Host offsets of all clusters of the file's bits. */
  *storedClusters(): Generator<number, void, undefined> {
    for (let index = 0; ; index++) {
      const offset = this.storedAt(index);
      if (offset === undefined) return;
      if (offset !== 0) yield offset;
    }
  }

  /** What the file has for the cluster is all there is. @returns its table entry */
  unchanged(index: number): { readonly offset: number; readonly ones: boolean } | undefined {
    const { start, end, bits } = this.#reach(index);
    if (this.#bitmap.changed.nextDirty(start, end) !== undefined) return undefined;
    const offset = this.storedAt(index) ?? 0;
    const ones = this.#isOnes(index);
    if (!this.#fills(bits) && (ones || (this.#bitmap.wasCut && offset !== 0))) return undefined;
    const hasBits = offset !== 0 || ones;
    if (hasBits && this.#bitmap.storedSize < end) return undefined;
    return { offset, ones };
  }

  /** The bits of one cluster. @param into of the cluster size; filled unless clean */
  async read(index: number, into: Uint8Array): Promise<BitsKind> {
    const { start, end, bits } = this.#reach(index);
    const { changed, granularity, storedSize } = this.#bitmap;
    const offset = this.storedAt(index) ?? 0;
    const ones = this.#isOnes(index);
    if (offset === 0 && !ones && changed.nextDirty(start, end) === undefined) return 'clean';
    if (offset !== 0) await this.#file.read(offset, into);
    else into.fill(ones ? 0xff : 0);
    const known = Math.min(bits, divCeil(Math.max(0, Math.min(storedSize, end) - start), granularity));
    if (known < into.length * 8) clearBits(into, known, into.length * 8);
    changed.orInto(index * this.#clusterSize * 8, into);
    if (isZero(into)) return 'clean';
    const view = new DataView(into.buffer, into.byteOffset, into.length);
    return this.#fills(bits) && getBit(into, 0) && findRunEnd(into, view, 0, bits) >= bits ? 'full' : 'mixed';
  }

  /** The dirty parts of the disk. */
  async *ranges(): AsyncGenerator<ByteRange, void, undefined> {
    const buffer = new Uint8Array(this.#clusterSize);
    const view = new DataView(buffer.buffer);
    const { granularity } = this.#bitmap;
    const size = this.#bitmap.changed.size;
    const pacer = new Pacer();
    let from = -1;
    let to = -1;
    const clusters = this.clusters;
    for (let index = 0; index < clusters; index++) {
      const { start, bits } = this.#reach(index);
      if ((await this.read(index, buffer)) === 'clean') continue;
      for (let bit = 0; bit < bits; ) {
        const runEnd = findRunEnd(buffer, view, bit, bits);
        if (getBit(buffer, bit)) {
          const runStart = start + bit * granularity;
          if (runStart !== to) {
            if (from >= 0) yield { offset: from, length: to - from };
            from = runStart;
          }
          to = start + runEnd * granularity;
        }
        bit = runEnd;
      }
      if (pacer.due) await pacer.pause();
    }
    if (from >= 0 && from < size) yield { offset: from, length: Math.min(to, size) - from };
  }

  /** The part of the disk that a cluster of bits speaks of, and how many of its bits. */
  #reach(index: number): { readonly start: number; readonly end: number; readonly bits: number } {
    const { changed, granularity } = this.#bitmap;
    const perCluster = this.#clusterSize * 8;
    const bits = Math.max(0, Math.min(perCluster, changed.bits - index * perCluster));
    const start = index * perCluster * granularity;
    return { start, end: Math.min(changed.size, start + bits * granularity), bits };
  }

  /** A cluster that the disk needs every bit of. Only such a one may be stored as "all ones": of another, QEMU takes the bits past the end of the
   *  disk for set, too, and shows them when the disk grows. */
  #fills(bits: number): boolean {
    return bits === this.#clusterSize * 8;
  }

  #isOnes(index: number): boolean {
    const inside = this.#table !== undefined && index * TABLE_ENTRY_BYTES < this.#table.byteLength;
    return inside && isAllOnes(this.#table as DataView, index);
  }
}
