/** Makes cow files in every layout, for tests: written from the tables of the format alone, so that a mistake in the library's tables is not
 *  repeated here. Sparse: disks of many TiB cost what their present sectors cost. */
import { MemoryStore } from '../../src/storage/memory.ts';

interface Row {
  readonly endian: 'little' | 'big';
  readonly version: number;
  readonly versionAt: number;
  readonly name: readonly [at: number, length: number];
  readonly mtime: number;
  readonly size: number;
  readonly sectorSize: number;
  readonly align?: number;
  readonly sizeof: number;
  readonly kind: 'v1' | 'v2-uml' | 'v2-qemu' | 'v3';
  /** Bytes of the bitmap's words, where bits are numbered in big-endian words. */
  readonly word?: 1 | 4 | 8;
}

const ROWS = {
  'v1-le32': {
    endian: 'little',
    version: 1,
    versionAt: 4,
    name: [8, 256],
    mtime: 264,
    size: 268,
    sectorSize: 276,
    sizeof: 280,
    kind: 'v1',
  },
  'v1-le64': {
    endian: 'little',
    version: 1,
    versionAt: 4,
    name: [8, 256],
    mtime: 264,
    size: 272,
    sectorSize: 280,
    sizeof: 288,
    kind: 'v1',
  },
  'v1-be32': {
    endian: 'big',
    version: 1,
    versionAt: 4,
    name: [8, 256],
    mtime: 264,
    size: 272,
    sectorSize: 280,
    sizeof: 288,
    kind: 'v1',
    word: 4,
  },
  'v1-be64': {
    endian: 'big',
    version: 1,
    versionAt: 4,
    name: [8, 256],
    mtime: 268,
    size: 272,
    sectorSize: 280,
    sizeof: 288,
    kind: 'v1',
    word: 8,
  },
  'v2-uml-32': {
    endian: 'big',
    version: 2,
    versionAt: 4,
    name: [8, 4096],
    mtime: 4104,
    size: 4108,
    sectorSize: 4116,
    sizeof: 4120,
    kind: 'v2-uml',
  },
  'v2-uml-64': {
    endian: 'big',
    version: 2,
    versionAt: 4,
    name: [8, 4096],
    mtime: 4104,
    size: 4112,
    sectorSize: 4120,
    sizeof: 4128,
    kind: 'v2-uml',
  },
  'v2-uml-lp64long': {
    endian: 'big',
    version: 2,
    versionAt: 8,
    name: [16, 4096],
    mtime: 4112,
    size: 4120,
    sectorSize: 4128,
    sizeof: 4136,
    kind: 'v2-uml',
  },
  'v2-qemu-i386': {
    endian: 'big',
    version: 2,
    versionAt: 4,
    name: [8, 1024],
    mtime: 1032,
    size: 1036,
    sectorSize: 1044,
    sizeof: 1048,
    kind: 'v2-qemu',
  },
  'v2-qemu-x86_64': {
    endian: 'big',
    version: 2,
    versionAt: 4,
    name: [8, 1024],
    mtime: 1032,
    size: 1040,
    sectorSize: 1048,
    sizeof: 1056,
    kind: 'v2-qemu',
  },
  v3: {
    endian: 'big',
    version: 3,
    versionAt: 4,
    name: [32, 4096],
    mtime: 8,
    size: 12,
    sectorSize: 20,
    align: 24,
    sizeof: 4128,
    kind: 'v3',
  },
  'v3-broken': {
    endian: 'big',
    version: 3,
    versionAt: 4,
    name: [36, 4096],
    mtime: 8,
    size: 16,
    sectorSize: 24,
    align: 28,
    sizeof: 4136,
    kind: 'v3',
  },
} as const satisfies Record<string, Row>;

export type CowImageLayout = keyof typeof ROWS;
export const COW_IMAGE_LAYOUTS = Object.keys(ROWS) as CowImageLayout[];

export interface CowImageSpec {
  readonly layout: CowImageLayout;
  /** Of the disk, bytes. */
  readonly size: number;
  /** Text is stored as UTF-8; empty: none. */
  readonly backingName: string | Uint8Array;
  readonly mtime: number;
  /** 512 where not given. */
  readonly sectorSize?: number;
  /** 4096 where not given; v3 alone has it. */
  readonly alignment?: number;
  /** Sectors that the file holds. One that the bitmap has no bit for gets its bit behind it, as UML does, unless data begin there. */
  readonly present?: Iterable<number>;
  /** What a present sector holds; nothing (a hole) when `undefined`. A pattern with the sector's number where the function is not given. */
  readonly data?: (sector: number) => Uint8Array | undefined;
  /** What stands behind the name's NUL, byte by byte: offset in the file → byte. Zero where it is not given. */
  readonly garbage?: (at: number) => number;
  /** What the four bytes of padding hold that v3-broken has after its time. */
  readonly padding?: number;
  /** Length of the file, where it is not what the format's writer would have left. */
  readonly fileSize?: number;
}

export interface CowAreas {
  readonly bitmapOffset: number;
  readonly bitmapLength: number;
  readonly dataOffset: number;
  readonly sectors: number;
}

const up = (value: number, unit: number): number => Math.ceil(value / unit) * unit;

export function cowAreas(spec: Pick<CowImageSpec, 'layout' | 'size' | 'sectorSize' | 'alignment'>): CowAreas {
  const { kind, sizeof }: Row = ROWS[spec.layout];
  const { size, sectorSize = 512, alignment = 4096 } = spec;
  const sectors = Math.ceil(size / sectorSize);
  if (kind === 'v3') {
    const bitmapOffset = up(sizeof, alignment);
    const bitmapLength = Math.ceil(sectors / 8);
    return { bitmapOffset, bitmapLength, dataOffset: up(bitmapOffset + bitmapLength, alignment), sectors };
  }
  const bitmapLength =
    kind === 'v2-qemu' ? Math.ceil(size / 512 / 8) : Math.floor((size + sectorSize - 1) / (8 * sectorSize));
  return {
    bitmapOffset: sizeof,
    bitmapLength,
    dataOffset: up(sizeof + bitmapLength, kind === 'v2-qemu' ? 512 : sectorSize),
    sectors,
  };
}

/** Byte of the bitmap and bit in it. */
export function cowBit(layout: CowImageLayout, sector: number): { readonly byte: number; readonly mask: number } {
  const { word = 1 }: Row = ROWS[layout];
  const bitsPerWord = word * 8;
  const inWord = sector % bitsPerWord;
  const byteInWord = Math.floor(inWord / 8);
  const wordAt = Math.floor(sector / bitsPerWord) * word;
  return { byte: wordAt + (word === 1 ? 0 : word - 1 - byteInWord), mask: 1 << (inWord % 8) };
}

export function patternOf(sector: number, sectorSize = 512): Uint8Array {
  const bytes = new Uint8Array(sectorSize).fill(0x80 + (sector % 97));
  bytes.set(new TextEncoder().encode(`sector ${sector}`));
  return bytes;
}

/** The header, with everything around the fields. */
export function cowHeaderBytes(spec: CowImageSpec): Uint8Array<ArrayBuffer> {
  const row: Row = ROWS[spec.layout];
  const { size, sectorSize = 512, alignment = 4096, mtime, garbage, padding = 0 } = spec;
  const header = new Uint8Array(row.sizeof);
  const view = new DataView(header.buffer);
  const little = row.endian === 'little';
  view.setUint32(0, 0x4f4f4f4d, little);
  view.setUint32(row.versionAt, row.version, little);
  const name = typeof spec.backingName === 'string' ? new TextEncoder().encode(spec.backingName) : spec.backingName;
  const [nameAt, nameLength] = row.name;
  if (name.length >= nameLength) throw new Error(`a name of ${name.length} bytes in a field of ${nameLength}`);
  if (spec.layout === 'v3-broken') view.setUint32(12, padding);
  if (garbage !== undefined) {
    for (let at = nameAt + name.length + 1; at < nameAt + nameLength; at++) header[at] = garbage(at);
  }
  header.set(name, nameAt);
  view.setUint32(row.mtime, mtime, little);
  view.setBigUint64(row.size, BigInt(size), little);
  view.setUint32(row.sectorSize, sectorSize, little);
  if (row.align !== undefined) view.setUint32(row.align, alignment, little);
  return header;
}

/** Length that the writer of the layout leaves. */
function naturalLength(spec: CowImageSpec, areas: CowAreas, present: readonly number[]): number {
  const { kind, sizeof }: Row = ROWS[spec.layout];
  const { size, sectorSize = 512 } = spec;
  const dataEnd = present.reduce((end, sector) => Math.max(end, areas.dataOffset + (sector + 1) * sectorSize), 0);
  if (kind === 'v3') return Math.max(areas.dataOffset + size, dataEnd);
  const long = /64/.test(spec.layout) ? 8 : 4;
  const bitmap = kind === 'v2-qemu' ? areas.bitmapLength : up(areas.bitmapLength, long);
  return Math.max(sizeof + bitmap, dataEnd);
}

/** The image as a sparse store, writable. */
export function cowImage(spec: CowImageSpec, name = 'image.cow'): MemoryStore {
  const areas = cowAreas(spec);
  const { sectorSize = 512, data = (sector: number) => patternOf(sector, sectorSize) } = spec;
  const present = [...(spec.present ?? [])];
  // the bitmap of a large disk is a large hole
  const store = new MemoryStore({ name, pageSize: spec.size > 2 ** 36 ? 65536 : 4096 });
  void store.truncate(spec.fileSize ?? naturalLength(spec, areas, present));
  void store.write(0, cowHeaderBytes(spec).subarray(0, store.size));
  const bits = new Map<number, number>();
  for (const sector of present) {
    const { byte, mask } = cowBit(spec.layout, sector);
    const at = areas.bitmapOffset + byte;
    if (at < areas.dataOffset) bits.set(at, (bits.get(at) ?? 0) | mask);
    const bytes = data(sector);
    if (bytes !== undefined) void store.write(areas.dataOffset + sector * sectorSize, bytes);
  }
  for (const [at, value] of bits) void store.write(at, Uint8Array.of(value));
  return store;
}

/** What UML makes of a v2-uml-32 file when it is given another backing file: a v3 header over it, the rest left where it was.
 *  @param memory what stood behind the new name in the kernel's memory: the old header, which is usual, or nothing. */
export function hybridImage(
  spec: Omit<CowImageSpec, 'layout' | 'alignment'>,
  newName: string,
  memory: 'old header' | 'nothing' = 'old header',
): MemoryStore {
  const store = cowImage({ ...spec, layout: 'v2-uml-32' });
  const name = new TextEncoder().encode(newName);
  const header = cowHeaderBytes({ ...spec, layout: 'v3', alignment: 512, backingName: newName });
  void store.write(0, memory === 'nothing' ? header : header.subarray(0, 32 + name.length + 1));
  if (store.size < header.length) void store.truncate(header.length);
  return store;
}
