/** Files whose header was rewritten in another layout than their body has: whether it is one, or really what its header says. Pure.
 *  Spec: "How the UML kernel writes" (switching the backing file), "Known failure cases" 5.
 *  Invariant: where only the header's layout fits, or only the body's, nothing is asked here; where both fit, signs decide, and contradicting or
 *  missing ones leave both. */
import { isZero } from '../../bytes/zeros.ts';
import { type CowHeader, decodeCowHeader } from './header.ts';
import { bitmapSpillEnd } from './header-tests.ts';
import { COW_LAYOUTS, type CowGeometry, type CowLayout, type CowLayoutId } from './layouts.ts';

/** The sector size that UML took for an alignment where the old header had none. No page is as small. */
const SIGN = 512;

/** One reading of a file that passes every hard test. */
export interface Reading {
  readonly header: CowHeader;
  readonly geometry: CowGeometry;
  /** -1: none. */
  readonly highestBit: number;
}

/** What may hide behind `header`. */
export function overlaysOf(header: CowHeader): CowLayout[] {
  if (header.alignment !== SIGN || header.sectorSize !== SIGN) return [];
  return Object.values(COW_LAYOUTS).filter(({ overlay }) => overlay?.header === header.layout);
}

/** @param plain what the header says. @param overlay the body of another layout below that header. @param bodyLayout that layout.
 *  @param head at least up to the plain reading's bitmap. @returns what to drop. */
export function unlikelier(
  plain: Reading,
  overlay: Reading,
  bodyLayout: CowLayoutId,
  head: Uint8Array,
  fileSize: number,
): 'plain' | 'overlay' | 'neither' {
  const forOverlay =
    hasOldHeader(overlay.header, bodyLayout, head) ||
    hasBitsBeforeBitmap(plain, head) ||
    isAsLongAs(overlay, plain, fileSize);
  const forPlain = hasBitsBehindBitmap(plain, overlay);
  if (forOverlay !== forPlain) return forOverlay ? 'plain' : 'overlay';
  // Without a single bit both are the same disk, and the header's layout is the one that others read as well.
  return !forOverlay && plain.highestBit < 0 && overlay.highestBit < 0 ? 'overlay' : 'neither';
}

/** The new header came out of the memory that the old one had been read into, so its last fields are still there. */
function hasOldHeader({ size, sectorSize }: CowHeader, bodyLayout: CowLayoutId, head: Uint8Array): boolean {
  const old = decodeCowHeader(bodyLayout, head);
  return old.size === size && old.sectorSize === sectorSize;
}

/** Nobody writes between header and bitmap. */
function hasBitsBeforeBitmap({ geometry }: Reading, head: Uint8Array): boolean {
  const longestHeader = Math.max(...Object.values(COW_LAYOUTS).map(({ headerSize }) => headerSize));
  return !isZero(head, longestHeader, Math.min(head.length, geometry.bitmapOffset));
}

/** Files of the plain layout are as long as their data from the beginning. */
function isAsLongAs(overlay: Reading, plain: Reading, fileSize: number): boolean {
  const { size } = plain.header;
  return fileSize === overlay.geometry.dataOffset + size && fileSize < plain.geometry.dataOffset + size;
}

/** Nor does the kernel write between the older body's bitmap and its data. */
function hasBitsBehindBitmap(plain: Reading, overlay: Reading): boolean {
  if (plain.highestBit < 0) return false;
  const at = plain.geometry.bitmapOffset + Math.floor(plain.highestBit / 8);
  return at >= bitmapSpillEnd(overlay.geometry) && at < overlay.geometry.dataOffset;
}
