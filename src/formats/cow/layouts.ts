/** Every known layout of cow files, as data, and the arithmetic of their bitmap and data areas. Pure.
 *  Spec: "Header offset tables", "Bitmap and data formulas".
 *  Invariants: a layout is a row of the table and nothing else, so no other file compares layout names; all offsets and sizes are numbers of
 *  bytes; the sector size is a power of two, which makes the divisions exact up to 2^53-1. */
import { alignUp, divCeil, divFloor } from '../../bytes/align.ts';

/** Bytes: QEMU ignores the sector size of the header. */
export const QEMU_SECTOR = 512;

/** One way of laying out a cow file. Offsets and widths in bytes; `undefined`: the layout has no such field. */
export interface CowLayout {
  readonly id: CowLayoutId;
  /** Written by QEMU, else by User Mode Linux. QEMU's may be without a backing file, zero-fill the name, and have sectors of 512 bytes. */
  readonly qemu: boolean;
  /** What the version field says. */
  readonly version: 1 | 2 | 3;
  readonly littleEndian: boolean;
  /** Magic and version are this wide; of 8 bytes the first 4 count. */
  readonly identityWidth: 4 | 8;
  readonly nameAt: number;
  /** The name's field, terminating NUL included. */
  readonly nameLength: number;
  /** The 4 bytes that count. */
  readonly mtimeAt: number;
  /** The other half of an 8-byte time, where it must be zero. */
  readonly mtimeUpperAt: number | undefined;
  readonly sizeAt: number;
  readonly sectorSizeAt: number;
  readonly alignmentAt: number | undefined;
  readonly cowFormatAt: number | undefined;
  readonly headerSize: number;
  /** What the bitmap's offset is a multiple of: nothing (it follows the header), or the header's alignment. */
  readonly bitmapStart: 'header' | 'alignment';
  /** `down`: the rounding bug, by which up to seven last sectors have no bit. */
  readonly bitmapRounding: 'up' | 'down';
  /** What the data's offset is a multiple of. */
  readonly dataStart: 'sector' | 'alignment';
  /** Bits are numbered from the least significant one in big-endian words of this many bytes; 1: in bytes. */
  readonly wordBytes: 1 | 4 | 8;
  /** A time of 0 is taken for another layout's: the only thing that tells the two apart. */
  readonly mtimeNeeded: boolean;
  /** Not a layout that anything makes on purpose: a header of the one layout over the body of the other. */
  readonly overlay: { readonly header: CowLayoutId; readonly body: CowLayoutId } | undefined;
}

export type CowLayoutId = (typeof COW_LAYOUT_IDS)[number];

/** What `cow` can be made to be; the hybrid is an accident. */
export const CREATABLE_LAYOUT_IDS = [
  'v1-le32',
  'v1-le64',
  'v1-be32',
  'v1-be64',
  'v2-uml-32',
  'v2-uml-64',
  'v2-uml-lp64long',
  'v2-qemu-i386',
  'v2-qemu-x86_64',
  'v3',
  'v3-broken',
] as const;

export const COW_LAYOUT_IDS = [...CREATABLE_LAYOUT_IDS, 'hybrid-v3-over-v2-32'] as const;

const V1 = {
  qemu: false,
  version: 1,
  littleEndian: false,
  identityWidth: 4,
  nameAt: 8,
  nameLength: 256,
  mtimeAt: 264,
  mtimeUpperAt: undefined,
  alignmentAt: undefined,
  cowFormatAt: undefined,
  bitmapStart: 'header',
  bitmapRounding: 'down',
  dataStart: 'sector',
  wordBytes: 1,
  mtimeNeeded: false,
  overlay: undefined,
} as const;

const V2 = { ...V1, version: 2, nameLength: 4096, mtimeAt: 4104 } as const;
const V2_QEMU = { ...V2, qemu: true, nameLength: 1024, mtimeAt: 1032, bitmapRounding: 'up' } as const;
const V3 = {
  ...V2,
  version: 3,
  mtimeAt: 8,
  bitmapStart: 'alignment',
  bitmapRounding: 'up',
  dataStart: 'alignment',
} as const;

/** The packed one. */
const V3_PACKED = {
  ...V3,
  nameAt: 32,
  sizeAt: 12,
  sectorSizeAt: 20,
  alignmentAt: 24,
  cowFormatAt: 28,
  headerSize: 4128,
} as const;

export const COW_LAYOUTS: Readonly<Record<CowLayoutId, CowLayout>> = {
  'v1-le32': { ...V1, id: 'v1-le32', littleEndian: true, sizeAt: 268, sectorSizeAt: 276, headerSize: 280 },
  'v1-le64': {
    ...V1,
    id: 'v1-le64',
    littleEndian: true,
    mtimeUpperAt: 268,
    sizeAt: 272,
    sectorSizeAt: 280,
    headerSize: 288,
  },
  'v1-be32': { ...V1, id: 'v1-be32', sizeAt: 272, sectorSizeAt: 280, headerSize: 288, wordBytes: 4, mtimeNeeded: true },
  'v1-be64': {
    ...V1,
    id: 'v1-be64',
    mtimeAt: 268,
    mtimeUpperAt: 264,
    sizeAt: 272,
    sectorSizeAt: 280,
    headerSize: 288,
    wordBytes: 8,
  },
  'v2-uml-32': { ...V2, id: 'v2-uml-32', sizeAt: 4108, sectorSizeAt: 4116, headerSize: 4120 },
  'v2-uml-64': { ...V2, id: 'v2-uml-64', sizeAt: 4112, sectorSizeAt: 4120, headerSize: 4128 },
  'v2-uml-lp64long': {
    ...V2,
    id: 'v2-uml-lp64long',
    identityWidth: 8,
    nameAt: 16,
    mtimeAt: 4112,
    sizeAt: 4120,
    sectorSizeAt: 4128,
    headerSize: 4136,
  },
  'v2-qemu-i386': { ...V2_QEMU, id: 'v2-qemu-i386', sizeAt: 1036, sectorSizeAt: 1044, headerSize: 1048 },
  'v2-qemu-x86_64': { ...V2_QEMU, id: 'v2-qemu-x86_64', sizeAt: 1040, sectorSizeAt: 1048, headerSize: 1056 },
  v3: { ...V3_PACKED, id: 'v3' },
  'v3-broken': {
    ...V3,
    id: 'v3-broken',
    nameAt: 36,
    sizeAt: 16,
    sectorSizeAt: 24,
    alignmentAt: 28,
    cowFormatAt: 32,
    headerSize: 4136,
  },
  // UML rewrote the header when it was given another backing file, and left the rest where v2-uml-32 has it. The last 8 bytes of the new name
  // field lie over the bits of sectors 0 to 63: they are bits, as far as anybody can tell, and nothing here writes names into them.
  'hybrid-v3-over-v2-32': {
    ...V3_PACKED,
    id: 'hybrid-v3-over-v2-32',
    overlay: { header: 'v3', body: 'v2-uml-32' },
    nameLength: 4088,
    headerSize: 4120,
    bitmapStart: 'header',
    bitmapRounding: 'down',
    dataStart: 'sector',
  },
};

export function layoutOf(id: CowLayoutId): CowLayout {
  return COW_LAYOUTS[id];
}

/** Header fields that the areas follow from. */
export interface GeometryInput {
  /** Of the disk, at most 2^53-1. */
  readonly size: number;
  /** A power of two; layouts of QEMU go by 512 whatever it is. */
  readonly sectorSize: number;
  /** A power of two; layouts without the field ignore it. */
  readonly alignment: number | undefined;
}

/** Where the areas are. Offsets and lengths in bytes, and exact as long as they are safe integers. */
export interface CowGeometry {
  readonly bitmapOffset: number;
  readonly bitmapLength: number;
  /** Sector i is at `dataOffset + i * sectorSize`. */
  readonly dataOffset: number;
  /** Sectors of the disk; the last one may be partly past its end. */
  readonly sectors: number;
  /** Sectors that the bitmap has a bit for: 0 up to this. Where it ends inside a big-endian word, the whole words count. */
  readonly storedBits: number;
}

/** @param at where the areas are instead; the data follow a bitmap that lies elsewhere, unless they are told where to be as well. */
export function geometryOf(
  layout: CowLayout,
  input: GeometryInput,
  at: { readonly bitmapOffset?: number; readonly dataOffset?: number } = {},
): CowGeometry {
  const { size, alignment = 1 } = input;
  const sectorSize = layout.qemu ? QEMU_SECTOR : input.sectorSize;
  // Only whole sectors count for QEMU, and only those have a bit.
  const sectors = layout.qemu ? divFloor(size, sectorSize) : divCeil(size, sectorSize);
  const bitmapLength = layout.bitmapRounding === 'up' ? divCeil(sectors, 8) : divFloor(sectors, 8);
  const { bitmapStart, dataStart, headerSize, wordBytes } = layout;
  const bitmapOffset = at.bitmapOffset ?? alignUp(headerSize, bitmapStart === 'header' ? 1 : alignment);
  const dataOffset =
    at.dataOffset ?? alignUp(bitmapOffset + bitmapLength, dataStart === 'sector' ? sectorSize : alignment);
  const storedBits = Math.min(sectors, 8 * (bitmapLength - (bitmapLength % wordBytes)));
  return { bitmapOffset, bitmapLength, dataOffset, sectors, storedBits };
}
