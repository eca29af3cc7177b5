/** The hard tests of a cow header under one layout: what every file of that layout keeps to. Pure.
 *  Spec: "Detection", H1 to H6. H7 reads the bitmap: `bitmap-scan.ts`.
 *  Invariant: a header without blocking findings has a geometry that can be computed. */
import type { ErrorCode } from '../../base/errors.ts';
import { alignUp, isPowerOfTwo } from '../../bytes/align.ts';
import { COW_MAGIC, type CowHeader } from './header.ts';
import { COW_LAYOUTS, type CowGeometry, type CowLayout, layoutOf, QEMU_SECTOR } from './layouts.ts';

export type HardTest = 'H2' | 'H3' | 'H4' | 'H5' | 'H6' | 'H7';

/** What speaks against a layout. */
export interface Finding {
  readonly test: HardTest;
  /** Lower case, no full stop: follows the layout's name. */
  readonly text: string;
  /** Nothing can be read with such a header, whoever says which layout it is. */
  readonly blocking?: { readonly code: ErrorCode; readonly reason: string };
}

const MAX_SECTOR = 65536;
const MAX_ALIGNMENT = 2 ** 24;
/** Bytes that the kernel may write past the bitmap: it writes two of its words at a time. */
const BITMAP_SPILL = 16;

// ---- H1 --------------------------------------------------------------------------------------------------------------------------

/** The layouts that the first bytes are those of; a magic and a version, no more. Overlays are not among them: they look like what lies over.
 *  @returns `magic`: none, because of the magic; a number: none, because of that version. */
export function identify(head: Uint8Array): readonly CowLayout[] | 'magic' | number {
  const view = new DataView(head.buffer, head.byteOffset, head.length);
  const u32 = (at: number, littleEndian: boolean): number | undefined =>
    at + 4 <= head.length ? view.getUint32(at, littleEndian) : undefined;
  const littleEndian = u32(0, true) === COW_MAGIC;
  const version = u32(4, littleEndian);
  if (version === undefined || (!littleEndian && u32(0, false) !== COW_MAGIC)) return 'magic';
  const fitting = Object.values(COW_LAYOUTS).filter((layout) => {
    if (layout.overlay !== undefined || layout.littleEndian !== littleEndian) return false;
    if (layout.identityWidth === 4) return version === layout.version;
    return version === 0 && u32(8, littleEndian) === layout.version && u32(12, littleEndian) === 0;
  });
  return fitting.length === 0 ? version : fitting;
}

// ---- H2 to H6 --------------------------------------------------------------------------------------------------------------------

/** H2 to H5, in this order. */
export function headerFindings(header: CowHeader): Finding[] {
  return [...nameFindings(header), ...sizeFindings(header), ...timeFindings(header), ...alignmentFindings(header)];
}

function nameFindings({ layout, nameEnds, backingNameBytes }: CowHeader): Finding[] {
  if (!nameEnds) return [{ test: 'H2', text: 'the name of the backing file does not end inside its field' }];
  if (backingNameBytes.some((byte) => byte < 0x20)) {
    return [{ test: 'H2', text: 'the name of the backing file holds control characters' }];
  }
  if (backingNameBytes.length === 0 && !layoutOf(layout).qemu)
    return [{ test: 'H2', text: 'no backing file is named' }];
  return [];
}

function sizeFindings({ layout, size, sectorSize }: CowHeader): Finding[] {
  const { qemu } = layoutOf(layout);
  const found: Finding[] = [];
  if (qemu && sectorSize !== QEMU_SECTOR) {
    found.push({ test: 'H3', text: `sector size ${sectorSize}, not ${QEMU_SECTOR}` });
  } else if (!isPowerOfTwo(sectorSize) || sectorSize < 512 || sectorSize > MAX_SECTOR) {
    found.push({
      test: 'H3',
      text: `sector size ${sectorSize}, not a power of two from 512 to ${MAX_SECTOR}`,
      blocking: { code: 'CORRUPT', reason: 'cow.sector-size' },
    });
  }
  if (!Number.isFinite(size)) {
    found.push({ test: 'H3', text: 'disk size above 2^53-1', blocking: { code: 'TOO_LARGE', reason: 'cow.size' } });
  } else if (qemu && size % QEMU_SECTOR !== 0) {
    found.push({ test: 'H3', text: `disk size ${size}, not a multiple of ${QEMU_SECTOR}` });
  }
  return found;
}

function timeFindings({ layout, mtime, mtimeUpper }: CowHeader): Finding[] {
  if (mtimeUpper !== undefined && mtimeUpper !== 0) {
    return [{ test: 'H4', text: `the upper half of the backing file's time is ${mtimeUpper}, not 0` }];
  }
  if (layoutOf(layout).mtimeNeeded && mtime === 0) return [{ test: 'H4', text: `the backing file's time is 0` }];
  return [];
}

function alignmentFindings({ alignment, cowFormat }: CowHeader): Finding[] {
  const found: Finding[] = [];
  if (alignment !== undefined && !isPowerOfTwo(alignment)) {
    found.push({
      test: 'H5',
      text: `alignment ${alignment}, not a power of two`,
      blocking: { code: 'CORRUPT', reason: 'cow.alignment' },
    });
  } else if (alignment !== undefined && alignment > MAX_ALIGNMENT) {
    found.push({ test: 'H5', text: `alignment ${alignment}, more than ${MAX_ALIGNMENT}` });
  }
  if (cowFormat !== undefined && cowFormat !== 0) {
    found.push({ test: 'H5', text: `format ${cowFormat} of the data, not 0 (bitmap)` });
  }
  return found;
}

/** First byte that the kernel never writes behind the bitmap. */
export function bitmapSpillEnd({ bitmapOffset, sectors }: CowGeometry): number {
  return bitmapOffset + alignUp(sectors, 64) / 8 + BITMAP_SPILL;
}

/** H6: files are as long as their bitmap at least, and no longer than their data. */
export function lengthFindings(header: CowHeader, geometry: CowGeometry, fileSize: number): Finding[] {
  const { bitmapOffset, bitmapLength, dataOffset } = geometry;
  const least = bitmapOffset + bitmapLength;
  const most = Math.max(dataOffset + alignUp(header.size, header.sectorSize), bitmapSpillEnd(geometry));
  if (fileSize < least) return [{ test: 'H6', text: `the file has ${fileSize} bytes, its bitmap ends at ${least}` }];
  if (fileSize > most) return [{ test: 'H6', text: `the file has ${fileSize} bytes, its data end at ${most}` }];
  return [];
}
