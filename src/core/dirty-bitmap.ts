/** A dirty bitmap in memory: which parts of a disk were changed, one bit for `granularity` bytes. Pure; no I/O.
 *  Memory: pages of bits are made when a bit of them is set, and pages that are all ones are not kept either; a disk that was never written
 *  costs nothing, whatever its size. With every second bit set it is size / granularity / 8 bytes.
 *  Invariant: no bit behind the end of the disk is set. */

import { assert } from '../base/errors.ts';
import { divCeil, divFloor, isPowerOfTwo } from '../bytes/align.ts';
import { clearBits, findRunEnd, getBit, orBytes, setBits } from '../bytes/bits.ts';
import { isZero } from '../bytes/zeros.ts';
import type { ByteRange } from './format.ts';

export const MIN_BITMAP_GRANULARITY = 512;
export const MAX_BITMAP_GRANULARITY = 2 ** 31;

/** Bytes of one page of bits. */
const PAGE_BYTES = 4096;
const PAGE_BITS = PAGE_BYTES * 8;

interface Page {
  readonly bytes: Uint8Array;
  readonly view: DataView;
}

/** Every bit is set. */
const FULL: unique symbol = Symbol('full');

export class DirtyBitmap {
  /** Bytes for a bit; a power of two. */
  readonly granularity: number;
  #size: number;
  readonly #pages = new Map<number, Page | typeof FULL>();

  /** @param size bytes of the disk. @param granularity see {@link isBitmapGranularity}. */
  constructor(size: number, granularity: number) {
    assert(isBitmapGranularity(granularity), `granularity ${granularity}`);
    this.#size = size;
    this.granularity = granularity;
  }

  /** Bytes of the disk. */
  get size(): number {
    return this.#size;
  }

  get bits(): number {
    return divCeil(this.#size, this.granularity);
  }

  /** No bit is set. */
  get empty(): boolean {
    return this.nextDirty(0) === undefined;
  }

  /** Bytes of memory that the bits take. */
  get memory(): number {
    let pages = 0;
    for (const page of this.#pages.values()) if (page !== FULL) pages++;
    return pages * PAGE_BYTES;
  }

  /** Marks every unit that `[offset, offset+length)` touches; what lies behind the end of the disk is left out. */
  set(offset: number, length: number): void {
    const end = Math.min(offset + length, this.#size);
    if (offset >= end) return;
    this.#setBits(divFloor(offset, this.granularity), divCeil(end, this.granularity));
  }

  /** Clears every unit that lies in `[offset, offset+length)` as a whole; the last of the disk may be short. */
  clear(offset: number, length: number): void {
    const end = Math.min(offset + length, this.#size);
    const first = divCeil(offset, this.granularity);
    const last = end === this.#size ? this.bits : divFloor(end, this.granularity);
    this.#eachPage(first, last, (index, from, to) => {
      const page = this.#pages.get(index);
      if (page === undefined) return;
      if (to - from === PAGE_BITS) {
        this.#pages.delete(index);
        return;
      }
      clearBits(this.#own(index).bytes, from, to);
    });
  }

  clearAll(): void {
    this.#pages.clear();
  }

  isDirty(offset: number): boolean {
    const bit = divFloor(offset, this.granularity);
    const page = this.#pages.get(divFloor(bit, PAGE_BITS));
    return page === FULL || (page !== undefined && getBit(page.bytes, bit % PAGE_BITS));
  }

  /** Start of the first dirty unit at or after `offset`'s; at least `offset`. `undefined`: none before `end`. */
  nextDirty(offset: number, end = this.#size): number | undefined {
    return this.#next(offset, end, true);
  }

  /** As {@link nextDirty}, for what is clean. */
  nextClean(offset: number, end = this.#size): number | undefined {
    return this.#next(offset, end, false);
  }

  /** The first dirty range at or after `offset`, cut at `end`. */
  nextRange(offset: number, end = this.#size): ByteRange | undefined {
    const start = this.nextDirty(offset, end);
    if (start === undefined) return undefined;
    return { offset: start, length: (this.nextClean(start, end) ?? Math.min(end, this.#size)) - start };
  }

  /** All dirty ranges, in order, none touching the next. */
  *ranges(): Generator<ByteRange, void, undefined> {
    for (let at = 0; ; ) {
      const range = this.nextRange(at);
      if (range === undefined) return;
      yield range;
      at = range.offset + range.length;
    }
  }

  /** Dirty bytes; the last unit of the disk counts what there is of it. */
  get count(): number {
    let bytes = 0;
    for (const { length } of this.ranges()) bytes += length;
    return bytes;
  }

  /** Marks everything that `other` marks, whatever its granularity. */
  merge(other: DirtyBitmap): void {
    for (const { offset, length } of other.ranges()) this.set(offset, length);
  }

  /** The disk is larger or smaller now: what is new is clean. @param size bytes */
  resize(size: number): void {
    const bits = this.bits;
    this.#size = size;
    const left = this.bits;
    if (left >= bits) return;
    for (const index of [...this.#pages.keys()]) {
      if (index * PAGE_BITS >= left) this.#pages.delete(index);
      else if ((index + 1) * PAGE_BITS > left) clearBits(this.#own(index).bytes, left - index * PAGE_BITS, PAGE_BITS);
    }
  }

  /** Adds the bits from `firstBit` on to those of `into`, LSB first. Multiples of 8 both. @returns whether any was set there. */
  orInto(firstBit: number, into: Uint8Array): boolean {
    let any = false;
    this.#eachPage(firstBit, firstBit + into.length * 8, (index, from, to) => {
      const page = this.#pages.get(index);
      if (page === undefined) return;
      const at = (index * PAGE_BITS + from - firstBit) / 8;
      const length = (to - from) / 8;
      if (page === FULL) {
        into.fill(0xff, at, at + length);
        any = true;
        return;
      }
      if (orBytes(into, at, page.bytes, from / 8, length)) any = true;
    });
    return any;
  }

  /** The bits from `firstBit` on, LSB first; the rest of the last byte is clean. A multiple of 8. */
  serialise(firstBit: number, into: Uint8Array): void {
    into.fill(0);
    this.orInto(firstBit, into);
  }

  /** Marks what `from` marks, its first bit being `firstBit`, a multiple of 8; bits behind the end of the disk are left out. */
  deserialise(firstBit: number, from: Uint8Array): void {
    const bits = this.bits;
    this.#eachPage(firstBit, Math.min(firstBit + from.length * 8, bits), (index, first, last) => {
      const at = (index * PAGE_BITS + first - firstBit) / 8;
      const part = from.subarray(at, at + divCeil(last - first, 8));
      if (isZero(part)) return;
      if (this.#pages.get(index) === FULL) return;
      const { bytes } = this.#own(index);
      orBytes(bytes, first / 8, part, 0, part.length);
      const behind = bits - index * PAGE_BITS;
      if (behind < PAGE_BITS) clearBits(bytes, Math.max(0, behind), PAGE_BITS);
    });
  }

  #setBits(start: number, end: number): void {
    this.#eachPage(start, end, (index, from, to) => {
      if (to - from === PAGE_BITS) this.#pages.set(index, FULL);
      else if (this.#pages.get(index) !== FULL) setBits(this.#own(index).bytes, from, to);
    });
  }

  /** Calls `body` with each page that bits `[start, end)` touch, and the bits inside it. */
  #eachPage(start: number, end: number, body: (index: number, from: number, to: number) => void): void {
    for (let at = start; at < end; ) {
      const index = divFloor(at, PAGE_BITS);
      const pageStart = index * PAGE_BITS;
      const to = Math.min(end - pageStart, PAGE_BITS);
      body(index, at - pageStart, to);
      at = pageStart + to;
    }
  }

  /** A page that can be changed. */
  #own(index: number): Page {
    const page = this.#pages.get(index);
    if (page !== undefined && page !== FULL) return page;
    const bytes = new Uint8Array(PAGE_BYTES);
    if (page === FULL) bytes.fill(0xff);
    const made = { bytes, view: new DataView(bytes.buffer) };
    this.#pages.set(index, made);
    return made;
  }

  #next(offset: number, end: number, dirty: boolean): number | undefined {
    const limit = Math.min(end, this.#size);
    if (offset >= limit) return undefined;
    const lastBit = divCeil(limit, this.granularity);
    for (let bit = divFloor(offset, this.granularity); bit < lastBit; ) {
      const index = divFloor(bit, PAGE_BITS);
      const page = this.#pages.get(index);
      const pageEnd = Math.min((index + 1) * PAGE_BITS, lastBit);
      if (page === undefined || page === FULL) {
        if ((page === FULL) === dirty) return Math.max(offset, bit * this.granularity);
        bit = pageEnd;
        continue;
      }
      const from = bit - index * PAGE_BITS;
      if (getBit(page.bytes, from) === dirty) return Math.max(offset, bit * this.granularity);
      bit = index * PAGE_BITS + findRunEnd(page.bytes, page.view, from, pageEnd - index * PAGE_BITS);
    }
    return undefined;
  }
}

/** A power of two, 512 to 2 GiB: what QEMU takes. */
export function isBitmapGranularity(bytes: number): boolean {
  return bytes >= MIN_BITMAP_GRANULARITY && bytes <= MAX_BITMAP_GRANULARITY && isPowerOfTwo(bytes);
}
