/** The cow header: decoding it under a given layout, encoding it, and changing what it says of the backing file.
 *  Spec: "Header offset tables", "mtime and size checks, backing name".
 *  Invariants: decoding judges nothing (`header-tests.ts` does) and never throws on what a field says; what is encoded here passes detection's
 *  tests; a patch touches the name and the time and not one byte more. */
import { assert, BlockError } from '../../base/errors.ts';
import { getU64, setU64 } from '../../bytes/ints.ts';
import { isZero } from '../../bytes/zeros.ts';
import { type CowLayout, type CowLayoutId, layoutOf } from './layouts.ts';

/** `OOOM`; files of little-endian hosts before version 2 have it the other way round. */
export const COW_MAGIC = 0x4f4f_4f4d;
const TWO_32 = 2 ** 32;

/** A header as read under one layout. Offsets and sizes in bytes. */
export interface CowHeader {
  readonly layout: CowLayoutId;
  /** As UTF-8 where the bytes are that, else byte by byte (Latin-1); `undefined` when empty: no backing file. */
  readonly backingName: string | undefined;
  /** The bytes up to the first NUL, or the whole field where there is none. */
  readonly backingNameBytes: Uint8Array;
  /** There is a NUL inside the field. */
  readonly nameEnds: boolean;
  /** The field is zero from the NUL to its end, as QEMU leaves it and UML may not. */
  readonly nameZeroFilled: boolean;
  /** Of the backing file, seconds since 1970 modulo 2^32. */
  readonly mtime: number;
  /** The other half of an 8-byte time, where the layout has one that must be zero. */
  readonly mtimeUpper: number | undefined;
  /** Of the disk; `Infinity` above 2^53-1. */
  readonly size: number;
  readonly sectorSize: number;
  readonly alignment: number | undefined;
  /** 0 is the bitmap; nothing else was ever defined. */
  readonly cowFormat: number | undefined;
}

/** @param head the first bytes of the file, at least the layout's `headerSize`.
 *  @throws {@link BlockError} CORRUPT, reason `cow.header-short`. */
export function decodeCowHeader(id: CowLayoutId, head: Uint8Array, name = 'image'): CowHeader {
  const layout = layoutOf(id);
  const { littleEndian, nameAt, nameLength, mtimeUpperAt, alignmentAt, cowFormatAt, headerSize } = layout;
  if (head.length < headerSize) {
    throw new BlockError(
      'CORRUPT',
      `cow "${name}": the header of layout ${id} has ${headerSize} bytes, the file has ${head.length}`,
      { reason: 'cow.header-short', details: { layout: id, length: head.length, bound: headerSize } },
    );
  }
  const view = new DataView(head.buffer, head.byteOffset, head.length);
  const u32 = (at: number): number => view.getUint32(at, littleEndian);
  const optional = (at: number | undefined): number | undefined => (at === undefined ? undefined : u32(at));
  const field = head.subarray(nameAt, nameAt + nameLength);
  const nul = field.indexOf(0);
  const backingNameBytes = field.slice(0, nul < 0 ? nameLength : nul);
  return {
    layout: id,
    backingName: backingNameBytes.length === 0 ? undefined : decodeName(backingNameBytes),
    backingNameBytes,
    nameEnds: nul >= 0,
    nameZeroFilled: nul >= 0 && isZero(field, nul),
    mtime: u32(layout.mtimeAt),
    mtimeUpper: optional(mtimeUpperAt),
    size: getU64(view, layout.sizeAt, littleEndian),
    sectorSize: u32(layout.sectorSizeAt),
    alignment: optional(alignmentAt),
    cowFormat: optional(cowFormatAt),
  };
}

/** Names have no charset: what is no UTF-8 is shown byte by byte, so that no two names look the same. */
function decodeName(bytes: Uint8Array): string {
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    return Array.from(bytes, (byte) => String.fromCharCode(byte)).join('');
  }
}

/** What a new header says. Sizes in bytes. */
export interface CowHeaderFields {
  /** Text is stored as UTF-8; empty or `undefined`: no backing file, for QEMU's layouts. */
  readonly backingName: string | Uint8Array | undefined;
  /** Seconds since 1970 modulo 2^32, an integer. */
  readonly mtime: number;
  readonly size: number;
  readonly sectorSize: number;
  /** For the layouts that have the field; they need it. */
  readonly alignment?: number | undefined;
}

/** The header, `headerSize` bytes, zero where nothing is.
 *  @throws {@link BlockError} OPTION, reasons `cow.name-long`, `cow.name-empty`, `cow.name-bytes`: detection would refuse such a file. */
export function encodeCowHeader(id: CowLayoutId, fields: CowHeaderFields): Uint8Array {
  const layout = layoutOf(id);
  const { littleEndian, version, identityWidth, sizeAt, sectorSizeAt, alignmentAt } = layout;
  const { backingName, mtime, size, sectorSize, alignment } = fields;
  assert(Number.isSafeInteger(size) && size >= 0, `cow header with size ${size}`);
  const header = new Uint8Array(layout.headerSize);
  const view = new DataView(header.buffer);
  view.setUint32(0, COW_MAGIC, littleEndian);
  view.setUint32(identityWidth, version, littleEndian);
  setU64(view, sizeAt, size, littleEndian);
  view.setUint32(sectorSizeAt, sectorSize, littleEndian);
  if (alignmentAt !== undefined) {
    assert(alignment !== undefined, `cow header of layout ${id} without alignment`);
    view.setUint32(alignmentAt, alignment, littleEndian);
  }
  for (const { offset, bytes } of patchBacking(id, { name: backingName ?? '', mtime })) header.set(bytes, offset);
  return header;
}

/** Bytes of a header to be written over. */
export interface HeaderPatch {
  readonly offset: number;
  readonly bytes: Uint8Array;
}

/** The ranges that change when another backing file is recorded, name first; the name's field is zero behind the name.
 *  @param backing `name` as for {@link encodeCowHeader}; `undefined`: stays as it is.
 *  @throws {@link BlockError} OPTION, as {@link encodeCowHeader}. */
export function patchBacking(
  id: CowLayoutId,
  backing: { readonly name?: string | Uint8Array | undefined; readonly mtime: number },
): HeaderPatch[] {
  const layout = layoutOf(id);
  const { name, mtime } = backing;
  assert(Number.isInteger(mtime) && mtime >= 0 && mtime < TWO_32, `cow header with mtime ${mtime}`);
  const time = new Uint8Array(4);
  new DataView(time.buffer).setUint32(0, mtime, layout.littleEndian);
  const times = { offset: layout.mtimeAt, bytes: time };
  return name === undefined ? [times] : [{ offset: layout.nameAt, bytes: nameField(layout, name) }, times];
}

function nameField(layout: CowLayout, name: string | Uint8Array): Uint8Array {
  const bytes = typeof name === 'string' ? new TextEncoder().encode(name) : name;
  const bound = layout.nameLength - 1;
  if (bytes.length > bound) {
    throw refuse(
      layout,
      'name-long',
      `the backing file's name has ${bytes.length} bytes, layout ${layout.id} has room for ${bound}`,
      {
        length: bytes.length,
        bound,
      },
    );
  }
  if (bytes.length === 0 && !layout.qemu) {
    throw refuse(layout, 'name-empty', `layout ${layout.id} cannot be without a backing file`);
  }
  if (bytes.some((byte) => byte < 0x20)) {
    throw refuse(layout, 'name-bytes', `the backing file's name holds a control character, which no cow header may`);
  }
  const field = new Uint8Array(layout.nameLength);
  field.set(bytes);
  return field;
}

function refuse(
  layout: CowLayout,
  reason: string,
  text: string,
  details: Readonly<Record<string, unknown>> = {},
): BlockError {
  return new BlockError('OPTION', `cow: ${text}`, {
    reason: `cow.${reason}`,
    details: { layout: layout.id, ...details },
  });
}
