/** Bit fields of table entries, on the two 32-bit words that a DataView gives: the only masks of the room.
 *  Spec: qcow2, "Cluster mapping", "Refcount tables", "Bitmap tables".
 *  Invariants: nothing here allocates; every mask works on one word (a JavaScript bit operator knows 32 bits), every offset comes
 *  back as a number, `Infinity` where it exceeds 2^53-1, so that no comparison with a bound lets it pass.
 *  `high` and `low` are always what `getUint32` returns: unsigned. */
import { highWord, joinU64, lowWord } from '../../bytes/ints.ts';

/** Bit 63: the refcount is exactly one, so an in-place write is allowed. */
const COPIED = 0x8000_0000;
/** Bit 62: the entry is a compressed cluster descriptor. */
const COMPRESSED = 0x4000_0000;
/** Bit 0 of a standard descriptor: reads as zero. */
const ZERO = 1;
/** Bits 9 to 55, in words. */
const OFFSET_HIGH = 0x00ff_ffff;
const OFFSET_LOW = 0xffff_fe00;
/** Bits 0 to 8 and 56 to 62 of an L1 entry. */
const L1_RESERVED_HIGH = 0x7f00_0000;
const L1_RESERVED_LOW = 0x0000_01ff;
/** Bits 1 to 8 and 56 to 61 of a standard L2 entry. */
const L2_RESERVED_HIGH = 0x3f00_0000;
const L2_RESERVED_LOW = 0x0000_01fe;

const SECTOR = 512;

// ---- L1 and standard L2 entries ------------------------------------------------------------------------------------------------

/** Bits 9 to 55 of an L1 entry, a standard L2 entry or a bitmap table entry: a host offset in bytes, 0 for none. */
export function entryOffset(high: number, low: number): number {
  return joinU64(high & OFFSET_HIGH, (low & OFFSET_LOW) >>> 0);
}

/** True when bits 9 to 55 are not all zero; cheaper than the offset. */
export function hasOffset(high: number, low: number): boolean {
  return (high & OFFSET_HIGH) !== 0 || (low & OFFSET_LOW) !== 0;
}

/** Bit 63 of an L1 or L2 entry. */
export function isCopied(high: number): boolean {
  return high >= COPIED;
}

/** Bit 62 of an L2 entry. */
export function isCompressed(high: number): boolean {
  return (high & COMPRESSED) !== 0;
}

/** Bit 0 of a standard L2 entry; without meaning (reserved) in compressed and in extended ones. */
export function isZeroFlag(low: number): boolean {
  return (low & ZERO) !== 0;
}

export function l1HasReserved(high: number, low: number): boolean {
  return (high & L1_RESERVED_HIGH) !== 0 || (low & L1_RESERVED_LOW) !== 0;
}

/** Reserved bits of a standard (not compressed) L2 entry, as QEMU knows them: bit 0 is not among them. */
export function l2HasReserved(high: number, low: number): boolean {
  return (high & L2_RESERVED_HIGH) !== 0 || (low & L2_RESERVED_LOW) !== 0;
}

/** What an L2 entry says about its cluster. */
export type L2Kind =
  | typeof L2_UNALLOCATED
  | typeof L2_ZERO_PLAIN
  | typeof L2_ZERO_ALLOCATED
  | typeof L2_NORMAL
  | typeof L2_COMPRESSED;
/** No cluster: the backing file decides. */
export const L2_UNALLOCATED = 0;
/** Reads as zero, no cluster. */
export const L2_ZERO_PLAIN = 1;
/** Reads as zero and keeps a cluster. */
export const L2_ZERO_ALLOCATED = 2;
/** A host cluster; with extended L2 entries the bitmaps say which subclusters of it are valid. */
export const L2_NORMAL = 3;
export const L2_COMPRESSED = 4;

/** Classifies an L2 entry.
 *  @param extended the image has extended L2 entries: bit 0 means nothing
 *  @param dataFile the image has an external data file: offset 0 is a real offset when COPIED is set */
export function l2Kind(high: number, low: number, extended: boolean, dataFile: boolean): L2Kind {
  if ((high & COMPRESSED) !== 0) return L2_COMPRESSED;
  const allocated = hasOffset(high, low);
  if ((low & ZERO) !== 0 && !extended) return allocated ? L2_ZERO_ALLOCATED : L2_ZERO_PLAIN;
  if (!allocated) return dataFile && high >= COPIED ? L2_NORMAL : L2_UNALLOCATED;
  return L2_NORMAL;
}

/** Writes an L1 entry; offset 0 without COPIED is "no table". */
export function setL1Entry(view: DataView, at: number, offset: number, copied: boolean): void {
  view.setUint32(at, highWord(offset) + (copied ? COPIED : 0));
  view.setUint32(at + 4, lowWord(offset));
}

/** Writes a standard L2 entry (the first word of an extended one). */
export function setL2Entry(view: DataView, at: number, offset: number, copied: boolean, zero: boolean): void {
  view.setUint32(at, highWord(offset) + (copied ? COPIED : 0));
  view.setUint32(at + 4, lowWord(offset) + (zero ? ZERO : 0));
}

/** Changes bit 63 of the entry at `at` alone. */
export function setCopied(view: DataView, at: number, copied: boolean): void {
  const high = view.getUint32(at);
  view.setUint32(at, copied ? high | COPIED : high & ~COPIED);
}

// ---- runs of L2 entries --------------------------------------------------------------------------------------------------------
// For passes over whole tables. The words are read signed: then they are small integers to V8 even before it has compiled the loop.

/** How many entries from the one at `at` on, `most` at most, name neighbouring clusters in the same way: all words equal but for the offset,
 *  which grows by one cluster each. At least 1; a run may end early where the offset passes a multiple of 4 GiB.
 *  @param size bytes of an entry */
export function clusterRun(view: DataView, at: number, size: number, most: number, clusterSize: number): number {
  const high = view.getInt32(at);
  let low = view.getInt32(at + 4);
  let count = 1;
  for (let next = at + size; count < most; count++, next += size) {
    const following = (low + clusterSize) | 0;
    if (low < 0 && following >= 0) break;
    if (view.getInt32(next + 4) !== following || view.getInt32(next) !== high) break;
    low = following;
  }
  return count;
}

/** Makes bit 63 of `count` entries from `at` on what `copied` says.
 *  @returns how many were changed. */
export function setCopiedRun(view: DataView, at: number, size: number, count: number, copied: boolean): number {
  let changed = 0;
  for (let i = 0; i < count; i++) {
    const word = view.getInt32(at + i * size);
    if (word < 0 === copied) continue;
    view.setInt32(at + i * size, copied ? word | COPIED : word & ~COPIED);
    changed++;
  }
  return changed;
}

/** True when the words differ in bit 63 at most. */
export function equalButCopied(high: number, low: number, otherHigh: number, otherLow: number): boolean {
  return low === otherLow && (high & ~COPIED) === (otherHigh & ~COPIED);
}

// ---- compressed cluster descriptors --------------------------------------------------------------------------------------------

/** First encoded byte; byte granular. `csizeShift` is `Geometry.csizeShift` (49 to 61). */
export function compressedOffset(high: number, low: number, csizeShift: number): number {
  return joinU64(high & ((1 << (csizeShift - 32)) - 1), low);
}

/** 512-byte sectors that the encoded bytes touch besides the first one. */
export function compressedExtraSectors(high: number, csizeShift: number): number {
  return (high & 0x3fff_ffff) >>> (csizeShift - 32);
}

/** Upper bound of the encoded length in bytes: up to the end of the last sector touched. */
export function compressedLength(high: number, low: number, csizeShift: number): number {
  return (compressedExtraSectors(high, csizeShift) + 1) * SECTOR - (low % SECTOR);
}

/** Writes a compressed descriptor (never COPIED) for `length` encoded bytes at `offset`. */
export function setCompressedEntry(
  view: DataView,
  at: number,
  offset: number,
  length: number,
  csizeShift: number,
): void {
  const extra = Math.floor((offset + length - 1) / SECTOR) - Math.floor(offset / SECTOR);
  view.setUint32(at, COMPRESSED + extra * 2 ** (csizeShift - 32) + highWord(offset));
  view.setUint32(at + 4, lowWord(offset));
}

// ---- extended L2 entries: subcluster bitmaps -----------------------------------------------------------------------------------
// An extended entry is 16 bytes: the standard words, then the "reads as zero" word (bits 63-32), then the "allocated" word (31-0).
// Bit i of each belongs to subcluster i.

/** Byte positions of the bitmap words inside an extended entry. */
export const ZERO_BITMAP_AT = 8;
export const ALLOCATED_BITMAP_AT = 12;

/** All 32 bits. */
export const ALL_SUBCLUSTERS = 0xffff_ffff;

/** Bits `[first, end)` of a subcluster bitmap word, unsigned. */
export function subclusterMask(first: number, end: number): number {
  const upTo = end >= 32 ? ALL_SUBCLUSTERS : (1 << end) - 1;
  return (upTo & ~((1 << first) - 1)) >>> 0;
}

export function hasSubcluster(word: number, index: number): boolean {
  return ((word >>> index) & 1) !== 0;
}

/** A subcluster is both allocated and zero: the entry is corrupt. */
export function subclustersConflict(allocated: number, zero: number): boolean {
  return (allocated & zero) !== 0;
}

/** `word` with the bits of `mask` set, or cleared; unsigned. */
export function withSubclusters(word: number, mask: number): number {
  return (word | mask) >>> 0;
}

export function withoutSubclusters(word: number, mask: number): number {
  return (word & ~mask) >>> 0;
}

/** True when every bit of `mask` is set in `word`. */
export function hasAllSubclusters(word: number, mask: number): boolean {
  return (word & mask) >>> 0 === mask;
}

export function hasAnySubcluster(word: number, mask: number): boolean {
  return (word & mask) !== 0;
}

/** End (exclusive, at most 32) of the run of subclusters that say the same as subcluster `first` in both words. */
export function subclusterRunEnd(allocated: number, zero: number, first: number): number {
  const a = hasSubcluster(allocated, first) ? ~allocated : allocated;
  const z = hasSubcluster(zero, first) ? ~zero : zero;
  // bits that differ from subcluster `first`, above it
  const different = (a | z) & ~subclusterMask(0, first + 1);
  return different === 0 ? 32 : lowestBit(different);
}

/** Index of the lowest bit set; 32 for none. */
export function lowestBit(word: number): number {
  return word === 0 ? 32 : 31 - Math.clz32(word & -word);
}

export function setSubclusters(view: DataView, at: number, allocated: number, zero: number): void {
  view.setUint32(at + ZERO_BITMAP_AT, zero);
  view.setUint32(at + ALLOCATED_BITMAP_AT, allocated);
}

// ---- refcount table and blocks -------------------------------------------------------------------------------------------------

/** Bits 9 to 63 of a refcount table entry: the refcount block, 0 for none. */
export function refcountBlockOffset(high: number, low: number): number {
  return joinU64(high, (low & OFFSET_LOW) >>> 0);
}

export function refcountTableHasReserved(low: number): boolean {
  return (low & 0x1ff) !== 0;
}

/** Refcount `index` of a block whose entries are `2 ** refcountOrder` bits wide; below a byte, the lowest bits come first.
 *  64-bit values above 2^53-1 come back as `Infinity`. */
export function getRefcount(view: DataView, index: number, refcountOrder: number): number {
  switch (refcountOrder) {
    case 0:
      return (view.getUint8(index >>> 3) >>> (index & 7)) & 1;
    case 1:
      return (view.getUint8(index >>> 2) >>> ((index & 3) * 2)) & 3;
    case 2:
      return (view.getUint8(index >>> 1) >>> ((index & 1) * 4)) & 15;
    case 3:
      return view.getUint8(index);
    case 4:
      return view.getUint16(index * 2);
    case 5:
      return view.getUint32(index * 4);
    default:
      return joinU64(view.getUint32(index * 8), view.getUint32(index * 8 + 4));
  }
}

/** Writes refcount `index`; `value` must be within `Geometry.refcountMax`. */
export function setRefcount(view: DataView, index: number, refcountOrder: number, value: number): void {
  switch (refcountOrder) {
    case 0:
    case 1:
    case 2: {
      const bits = 1 << refcountOrder;
      const perByte = 8 / bits;
      const at = Math.floor(index / perByte);
      const shift = (index % perByte) * bits;
      const mask = ((1 << bits) - 1) << shift;
      view.setUint8(at, (view.getUint8(at) & ~mask) | (value << shift));
      return;
    }
    case 3:
      view.setUint8(index, value);
      return;
    case 4:
      view.setUint16(index * 2, value);
      return;
    case 5:
      view.setUint32(index * 4, value);
      return;
    default:
      view.setUint32(index * 8, highWord(value));
      view.setUint32(index * 8 + 4, lowWord(value));
  }
}

// ---- bitmap tables -------------------------------------------------------------------------------------------------------------

/** A bitmap table entry without offset: do all its bits read as one? */
export function bitmapEntryAllOnes(low: number): boolean {
  return (low & ZERO) !== 0;
}

/** Bits 1 to 8 and 56 to 63 of a bitmap table entry, and bit 0 where there is an offset. */
export function bitmapEntryHasReserved(high: number, low: number): boolean {
  return (high & 0xff00_0000) !== 0 || (low & 0x1fe) !== 0 || (hasOffset(high, low) && (low & ZERO) !== 0);
}
