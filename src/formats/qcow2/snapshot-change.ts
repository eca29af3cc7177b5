/** One change of many tables at once: new L1 tables, L2 tables with other COPIED flags, refcounts and snapshot table are all written to new
 *  places, and one write of header fields switches to them. Spec: qcow2, "Header", "Host cluster management", bit 63 of L1 and L2 entries.
 *  A COPIED flag and the refcount it speaks of lie in different sectors: however they are ordered, a cut between them leaves an image that a
 *  check calls corrupt. So neither is changed in place.
 *  Runs alone (MappedNode.exclusive), under the metadata mutex, on an image whose L1 and L2 tables are written back.
 *  Order: places reserved (leaked by a cut) → everything into them → durable → header fields, in one sector → durable.
 *  Invariant: until the switch nothing is written but to reserved places; what fails before it leaves the image as it was. */
import { BlockError } from '../../base/errors.ts';
import { alignUp, divCeil } from '../../bytes/align.ts';
import type { Allocator } from './allocator.ts';
import { entryOffset, hasOffset } from './entries.ts';
import { TABLE_ENTRY_BYTES } from './geometry.ts';
import type { Qcow2Header } from './header.ts';
import { switchFields } from './header-switch.ts';
import type { Qcow2State } from './image-state.ts';
import type { Refcounts } from './refcounts.ts';
import { NextRefcounts } from './snapshot-refcounts.ts';

/** What the switch changes. */
export type SwitchedFields = Partial<
  Pick<Qcow2Header, 'virtualSize' | 'l1Size' | 'l1Offset' | 'snapshotCount' | 'snapshotsOffset'>
>;

/** What a change is made of. */
export interface ChangeParts {
  readonly state: Qcow2State;
  readonly allocator: Allocator;
  readonly refcounts: Refcounts;
}

/** Sizes of the tables to be written, bytes; 0: none. */
export interface ChangeSizes {
  /** New L1 tables. */
  readonly l1: readonly number[];
  readonly snapshotTable: number;
  /** L2 tables that may get a new place, at most. */
  readonly l2Tables: number;
}

interface Place {
  readonly offset: number;
  /** Bytes, whole clusters. */
  readonly length: number;
}

export class TableChange {
  readonly #parts: ChangeParts;
  readonly #space: Place;
  readonly #refcountTable: { readonly place: Place; readonly view: DataView };
  readonly #l2Places: Place;
  #l2Taken = 0;
  readonly #blockPlaces: Place;
  #blocksTaken = 0;
  /** Where the new L1 tables and the new snapshot table go; 0 for an empty one. */
  readonly l1Offsets: readonly number[];
  readonly snapshotsOffset: number;
  /** The refcounts after the switch. What is freed there must not be written before it. */
  readonly refcounts: NextRefcounts;

  private constructor(parts: ChangeParts, space: Place, sizes: ChangeSizes, blocks: number, table: DataView) {
    const { clusterSize } = parts.state.geometry;
    this.#parts = parts;
    this.#space = space;
    let at = space.offset;
    const take = (bytes: number): Place => {
      const place = { offset: at, length: alignUp(bytes, clusterSize) };
      at += place.length;
      return place;
    };
    this.#refcountTable = { place: take(table.byteLength), view: table };
    this.l1Offsets = sizes.l1.map((bytes) => (bytes === 0 ? 0 : take(bytes).offset));
    this.snapshotsOffset = sizes.snapshotTable === 0 ? 0 : take(sizes.snapshotTable).offset;
    this.#l2Places = take(sizes.l2Tables * clusterSize);
    this.#blockPlaces = take(blocks * clusterSize);
    this.refcounts = new NextRefcounts(parts.state, table, () => this.#takeBlock());
  }

  /** Reserves the places that the change can need. */
  static async begin(parts: ChangeParts, sizes: ChangeSizes): Promise<TableChange> {
    const { state, allocator, refcounts } = parts;
    const { clusterSize } = state.geometry;
    const fixed = [...sizes.l1, sizes.snapshotTable, sizes.l2Tables * clusterSize];
    const clusters = fixed.reduce((sum, bytes) => sum + divCeil(bytes, clusterSize), 0);
    for (let reserved = 0; ; ) {
      const blocks = Math.max(reserved, await countBlocks(refcounts));
      const { refcountTableClusters } = state.header;
      const total = clusters + refcountTableClusters + blocks;
      const space = { offset: await allocator.allocate(total), length: total * clusterSize };
      try {
        // Reserving may have made blocks, or a larger table.
        reserved = await countBlocks(refcounts);
        if (reserved <= blocks && state.header.refcountTableClusters === refcountTableClusters) {
          await state.caches.refcountBlocks.writeBack();
          await state.caches.refcountTable.writeBack();
          const table = new Uint8Array(refcountTableClusters * clusterSize);
          await state.file.read(state.header.refcountTableOffset, table);
          const change = new TableChange(parts, space, sizes, blocks, new DataView(table.buffer));
          await change.refcounts.touch(space.offset / clusterSize, total);
          return change;
        }
      } catch (error) {
        await allocator.release(space.offset, space.length).catch(() => undefined);
        throw error;
      }
      await allocator.release(space.offset, space.length);
    }
  }

  #takeBlock(): number {
    const offset = this.#blockPlaces.offset + this.#blocksTaken * this.#clusterSize;
    this.#blocksTaken++;
    if (offset < this.#blockPlaces.offset + this.#blockPlaces.length) return offset;
    throw new BlockError('INTERNAL', 'internal error: more refcount blocks were moved than there are');
  }

  get #clusterSize(): number {
    return this.#parts.state.geometry.clusterSize;
  }

  /** The next place for an L2 table; consecutive ones follow each other. Its refcount is 1. */
  takeL2(): number {
    const offset = this.#l2Places.offset + this.#l2Taken * this.#clusterSize;
    this.#l2Taken++;
    if (offset < this.#l2Places.offset + this.#l2Places.length) return offset;
    throw new BlockError('INTERNAL', 'internal error: more L2 tables were moved than there are');
  }

  /** Takes one reference from the clusters of a table of `bytes`. */
  async free(offset: number, bytes: number): Promise<void> {
    const count = divCeil(bytes, this.#clusterSize);
    if (count > 0) await this.refcounts.add(offset / this.#clusterSize, count, -1);
  }

  /** Makes the change. The caches are the caller's to reset afterwards.
   *  @param onSwitched called when the header in memory has become the new one, and before anything can fail */
  async commit(fields: SwitchedFields, onSwitched: () => void): Promise<void> {
    const { state } = this.#parts;
    const { file } = state;
    const { place, view } = this.#refcountTable;
    const { header } = state;
    await this.free(header.refcountTableOffset, header.refcountTableClusters * this.#clusterSize);
    await this.#freeUntaken(this.#l2Places, this.#l2Taken);
    await this.refcounts.freeOldBlocks();
    await this.#freeUntaken(this.#blockPlaces, this.#blocksTaken);
    await this.refcounts.writeBlocks();
    await file.write(place.offset, new Uint8Array(view.buffer));
    await state.flushFile();
    await switchFields(state, { ...header, ...fields, refcountTableOffset: place.offset }, onSwitched);
  }

  async #freeUntaken({ offset, length }: Place, taken: number): Promise<void> {
    const used = taken * this.#clusterSize;
    await this.free(offset + used, length - used);
  }

  /** Gives everything back after a failure. Never after the switch. */
  async abort(): Promise<void> {
    const { offset, length } = this.#space;
    await this.#parts.allocator.release(offset, length);
  }
}

async function countBlocks(refcounts: Refcounts): Promise<number> {
  let count = 0;
  for await (const _ of refcounts.blocks()) count++;
  return count;
}

/** L2 tables that an L1 table names. */
export function countL2Tables(l1: DataView): number {
  let count = 0;
  for (let at = 0; at < l1.byteLength; at += TABLE_ENTRY_BYTES) {
    if (hasOffset(l1.getUint32(at), l1.getUint32(at + 4))) count++;
  }
  return count;
}

/** Offset in L1 entry `index`; 0 for none, and past the table's end. */
export function l2OffsetAt(l1: DataView, index: number): number {
  const at = index * TABLE_ENTRY_BYTES;
  return at < l1.byteLength ? entryOffset(l1.getUint32(at), l1.getUint32(at + 4)) : 0;
}
