/** Recording in the header where the bitmap directory is. Spec: qcow2, "Bitmaps extension", autoclear bit 0.
 *  Runs alone, on an image whose directory, tables and bits are written and durable.
 *  Order, so that a torn write too leaves the old directory, the new one, or an extension that is known to be stale (its autoclear bit off):
 *  - another directory: the extension's sector alone; where it lies in two sectors, the autoclear bit goes off before and on after;
 *  - the first directory: a backing file name that is in the way is copied behind, and pointed to, first; then the sectors of the extension from
 *    the last one down, because the old list of extensions ends before them, the first sector with the autoclear bit at the end;
 *  - no directory any more: the first sector with the autoclear bit off, then the others upwards.
 *  Every step is durable before the next. What does not fit into this (other extensions behind, no room) is one write of the first cluster. */
import { alignUp } from '../../bytes/align.ts';
import {
  BITMAPS_RECORD_BYTES,
  type BitmapsPointer,
  END_MARKER_BYTES,
  encodeBitmapsRecord,
  findBitmapsRecord,
} from './extensions.ts';
import { AUTOCLEAR } from './features.ts';
import { encodeHeader, type Qcow2Header } from './header.ts';
import { HEADER_V3_AT, HeaderV2, HeaderV3 } from './header-fields.ts';
import type { Qcow2State } from './image-state.ts';

const SECTOR = 512;

/** @param pointer `undefined`: the image has no bitmaps any more.
 *  @throws {@link BlockError} NO_SPACE, reason `qcow2.header-space`. */
export async function recordBitmaps(state: Qcow2State, pointer: BitmapsPointer | undefined): Promise<void> {
  const { header, name, file } = state;
  const autoclear =
    pointer === undefined ? header.autoclear & ~AUTOCLEAR.bitmaps : header.autoclear | AUTOCLEAR.bitmaps;
  const next: Qcow2Header = { ...header, autoclear, bitmaps: pointer, staleBitmaps: false };
  const old = new Uint8Array(2 ** header.clusterBits);
  await file.read(0, old);
  const done = await new Switch(state, old, autoclear).run(pointer);
  if (!done) {
    await file.write(0, encodeHeader(next, name));
    await state.flushFile();
  }
  state.header = next;
}

class Switch {
  readonly #state: Qcow2State;
  /** The first cluster as it is. */
  #now: Uint8Array;
  readonly #autoclear: bigint;

  constructor(state: Qcow2State, now: Uint8Array, autoclear: bigint) {
    this.#state = state;
    this.#now = now;
    this.#autoclear = autoclear;
  }

  /** @returns false when nothing was done: there is no way in steps. */
  async run(pointer: BitmapsPointer | undefined): Promise<boolean> {
    const { backingFileOffset } = HeaderV2.decode(this.#now);
    const end = backingFileOffset === 0 ? this.#now.length : backingFileOffset;
    const { headerLength } = HeaderV3.decode(this.#now, HEADER_V3_AT);
    const { at, listEnd } = findBitmapsRecord(this.#now, headerLength, end);
    // Without a marker the list ends where the name begins: neither can move.
    if (listEnd + END_MARKER_BYTES > end) return false;
    if (pointer === undefined) return at === undefined ? false : await this.#remove(at, listEnd);
    return at === undefined ? await this.#insert(pointer, listEnd) : await this.#replace(pointer, at);
  }

  async #replace(pointer: BitmapsPointer, at: number): Promise<boolean> {
    const target = withAutoclear(this.#now, this.#autoclear);
    target.set(encodeBitmapsRecord(pointer), at);
    if (this.#differing(target).length > 1) {
      const stale = this.#autoclear & ~AUTOCLEAR.bitmaps;
      await this.#write(withAutoclear(this.#now, stale), 'upwards');
      await this.#write(withAutoclear(target, stale), 'upwards');
    }
    await this.#write(target, 'upwards');
    return true;
  }

  async #insert(pointer: BitmapsPointer, at: number): Promise<boolean> {
    const fields = HeaderV2.decode(this.#now);
    const { backingFileOffset: nameAt, backingFileSize: nameLength } = fields;
    const recordEnd = at + BITMAPS_RECORD_BYTES + END_MARKER_BYTES;
    let freeFrom = this.#now.length;
    if (nameAt !== 0) {
      freeFrom = nameAt;
      if (recordEnd > nameAt) {
        freeFrom = alignUp(Math.max(recordEnd, nameAt + nameLength), 8);
        if (freeFrom + nameLength > this.#now.length) return false;
        const copied = this.#now.slice();
        copied.copyWithin(freeFrom, nameAt, nameAt + nameLength);
        await this.#write(copied, 'upwards');
        const moved = copied.slice();
        HeaderV2.encode({ ...fields, backingFileOffset: freeFrom }, moved);
        await this.#write(moved, 'upwards');
      }
    }
    if (recordEnd > freeFrom) return false;
    const target = withAutoclear(this.#now, this.#autoclear);
    target.fill(0, at, freeFrom);
    target.set(encodeBitmapsRecord(pointer), at);
    await this.#write(target, 'downwards');
    return true;
  }

  async #remove(at: number, listEnd: number): Promise<boolean> {
    if (at + BITMAPS_RECORD_BYTES !== listEnd) return false;
    const target = withAutoclear(this.#now, this.#autoclear);
    target.fill(0, at, listEnd + END_MARKER_BYTES);
    await this.#write(target, 'upwards');
    return true;
  }

  #differing(target: Uint8Array): number[] {
    const sectors: number[] = [];
    for (let at = 0; at < target.length; at += SECTOR) {
      if (target.subarray(at, at + SECTOR).some((byte, i) => byte !== this.#now[at + i])) sectors.push(at);
    }
    return sectors;
  }

  /** Writes the sectors in which `target` is another, each durable before the next. */
  async #write(target: Uint8Array, order: 'upwards' | 'downwards'): Promise<void> {
    const sectors = this.#differing(target);
    if (order === 'downwards') sectors.reverse();
    for (const at of sectors) {
      await this.#state.file.write(at, target.subarray(at, at + SECTOR));
      await this.#state.flushFile();
    }
    this.#now = target;
  }
}

function withAutoclear(cluster: Uint8Array, autoclear: bigint): Uint8Array {
  const copy = cluster.slice();
  // The field alone: a header may end before the last ones of version 3.
  new DataView(copy.buffer).setBigUint64(HEADER_V3_AT + HeaderV3.fields.autoclear[0], autoclear);
  return copy;
}
