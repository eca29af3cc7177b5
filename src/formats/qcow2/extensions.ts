/** Header extensions: the records between the header and the backing file name.
 *  Spec: qcow2, "Header extensions", "Bitmaps extension", "Full disk encryption header pointer".
 *  Invariants: decoding never looks past the area it is given; extensions this library does not know are kept byte for byte and
 *  in their order; the feature name table is not kept, it is written anew. */
import { BlockError, type ErrorDetails, hex } from '../../base/errors.ts';
import { struct, u32, u64 } from '../../bytes/struct.ts';
import { AUTOCLEAR, cString, encodeFeatureNames } from './features.ts';
import { hex64 } from './header-fields.ts';

const MAGIC_END = 0;
const MAGIC_BACKING_FORMAT = 0xe279_2aca;
const MAGIC_FEATURE_NAMES = 0x6803_f857;
const MAGIC_CRYPTO = 0x0537_be77;
const MAGIC_BITMAPS = 0x2385_2875;
const MAGIC_DATA_FILE = 0x4441_5441;

export const MAX_BITMAPS = 65535;
/** Fixed entry, longest name, 1 KiB: times the number of bitmaps. */
export const MAX_BITMAP_DIRECTORY_BYTES = MAX_BITMAPS * 1024;
/** A backing format name is shorter than this. */
const BACKING_FORMAT_LIMIT = 16;

const ExtensionHead = struct('qcow2 header extension', 8, { magic: [0, u32], length: [4, u32] });
const BitmapsExtension = struct('qcow2 bitmaps extension', 24, {
  count: [0, u32],
  reserved: [4, u32],
  directorySize: [8, u64],
  directoryOffset: [16, u64],
});
const CryptoExtension = struct('qcow2 crypto extension', 16, { offset: [0, u64], length: [8, u64] });

/** Where the bitmap directory is; offsets and sizes in bytes. */
export interface BitmapsPointer {
  readonly count: number;
  readonly directorySize: number;
  readonly directoryOffset: number;
}

/** Where the LUKS header is, bytes. */
export interface CryptoPointer {
  readonly offset: number;
  readonly length: number;
}

export interface UnknownExtension {
  readonly magic: number;
  readonly data: Uint8Array;
}

/** Raw bytes of the names, because not every file name is valid UTF-8 and a rewrite must not change it. */
export interface RawNames {
  readonly backingFile?: Uint8Array;
  readonly backingFormat?: Uint8Array;
  readonly dataFile?: Uint8Array;
}

export interface Extensions {
  readonly backingFormat: string | undefined;
  readonly dataFile: string | undefined;
  readonly crypto: CryptoPointer | undefined;
  readonly bitmaps: BitmapsPointer | undefined;
  /** A bitmaps extension is there whose autoclear bit is not: its bitmaps are stale and go with the next rewrite. */
  readonly staleBitmaps: boolean;
  readonly unknown: readonly UnknownExtension[];
  readonly rawNames: RawNames;
}

/** What the known extensions are called by. */
export const EXTENSION = {
  backingFormat: MAGIC_BACKING_FORMAT,
  featureNames: MAGIC_FEATURE_NAMES,
  crypto: MAGIC_CRYPTO,
  bitmaps: MAGIC_BITMAPS,
  dataFile: MAGIC_DATA_FILE,
} as const;

/** An extension as it stands in the header area. */
export interface ExtensionRecord {
  readonly magic: number;
  readonly at: number;
  readonly data: Uint8Array;
}

/** The records of `area[start, end)` up to the end marker, or to the first that is broken, and where they end. Judges nothing. */
export function wholeRecords(
  area: Uint8Array,
  start: number,
  end: number,
): { readonly records: readonly ExtensionRecord[]; readonly end: number; readonly broken: boolean } {
  const found: ExtensionRecord[] = [];
  let at = start;
  try {
    for (const record of records(area, start, end, '')) {
      found.push(record);
      at = record.at + ExtensionHead.size + Math.ceil(record.data.length / 8) * 8;
    }
  } catch {
    // whoever decodes the header tells what is wrong
    return { records: found, end: at, broken: true };
  }
  return { records: found, end: Math.min(end, at + ExtensionHead.size), broken: false };
}

type Record = ExtensionRecord;

/** Walks the records in `[start, end)` up to the end marker. */
function* records(area: Uint8Array, start: number, end: number, name: string): Generator<Record> {
  let at = start;
  while (at < end) {
    const room = end - at - ExtensionHead.size;
    const head = room < 0 ? undefined : ExtensionHead.decode(area, at);
    if (head === undefined || head.length > room) {
      throw extensionError(
        name,
        'extension-too-large',
        `header extension at ${hex(at)} passes the end of the header area at ${hex(end)}`,
        {
          offset: at,
          value: head?.length,
          bound: Math.max(room, 0),
        },
      );
    }
    const dataAt = at + ExtensionHead.size;
    if (head.magic === MAGIC_END) return;
    yield { magic: head.magic, at, data: area.slice(dataAt, dataAt + head.length) };
    at = dataAt + Math.ceil(head.length / 8) * 8;
  }
}

/** Where the records of `area[start, end)` end, the end marker included. */
export function extensionsEnd(area: Uint8Array, start: number, end: number): number {
  let at = start;
  for (const record of records(area, start, end, '')) {
    at = record.at + ExtensionHead.size + Math.ceil(record.data.length / 8) * 8;
  }
  return Math.min(end, at + ExtensionHead.size);
}

/** Where the bitmaps extension of `area[start, end)` is, if there is one, and where the list of records ends: at its end marker, or at `end`. */
export function findBitmapsRecord(
  area: Uint8Array,
  start: number,
  end: number,
): { readonly at: number | undefined; readonly listEnd: number } {
  let at: number | undefined;
  let listEnd = start;
  for (const record of records(area, start, end, '')) {
    if (record.magic === MAGIC_BITMAPS) at ??= record.at;
    listEnd = record.at + ExtensionHead.size + Math.ceil(record.data.length / 8) * 8;
  }
  return { at, listEnd };
}

/** Bytes of a bitmaps extension, its head included, and of the end marker. */
export const BITMAPS_RECORD_BYTES = ExtensionHead.size + BitmapsExtension.size;
export const END_MARKER_BYTES = ExtensionHead.size;

export function encodeBitmapsRecord(pointer: BitmapsPointer): Uint8Array {
  const record = new Uint8Array(BITMAPS_RECORD_BYTES);
  ExtensionHead.encode({ magic: MAGIC_BITMAPS, length: BitmapsExtension.size }, record);
  BitmapsExtension.encode({ ...pointer, reserved: 0 }, record, ExtensionHead.size);
  return record;
}

/** The last feature name table before the end or before the first broken record: it only serves to explain another error. */
export function findFeatureNames(area: Uint8Array, start: number, end: number): Uint8Array | undefined {
  let found: Uint8Array | undefined;
  try {
    for (const record of records(area, start, end, '')) {
      if (record.magic === MAGIC_FEATURE_NAMES) found = record.data;
    }
  } catch {
    // the caller reports the unknown features; a second finding would hide them
  }
  return found;
}

export interface ExtensionContext {
  readonly name: string;
  readonly autoclear: bigint;
  readonly luks: boolean;
  readonly clusterSize: number;
}

/** Decodes the extensions in `area[start, end)`.
 *  @throws {@link BlockError} CORRUPT, reasons `qcow2.extension-…`, `qcow2.bitmaps-…`, `qcow2.crypto-…`, `qcow2.backing-format-length`. */
export function decodeExtensions(area: Uint8Array, start: number, end: number, context: ExtensionContext): Extensions {
  const result: { -readonly [K in keyof Extensions]: Extensions[K] } = {
    backingFormat: undefined,
    dataFile: undefined,
    crypto: undefined,
    bitmaps: undefined,
    staleBitmaps: false,
    unknown: [],
    rawNames: {},
  };
  const unknown: UnknownExtension[] = [];
  for (const record of records(area, start, end, context.name)) {
    switch (record.magic) {
      case MAGIC_BACKING_FORMAT:
        if (record.data.length >= BACKING_FORMAT_LIMIT) {
          throw extensionError(
            context.name,
            'backing-format-length',
            `backing format name of ${record.data.length} bytes at ${hex(record.at)}; at most ${BACKING_FORMAT_LIMIT - 1} are allowed`,
            { offset: record.at, value: record.data.length, bound: BACKING_FORMAT_LIMIT },
          );
        }
        result.backingFormat = cString(record.data) || undefined;
        result.rawNames = { ...result.rawNames, backingFormat: untilNul(record.data) };
        break;
      case MAGIC_FEATURE_NAMES:
        break;
      case MAGIC_CRYPTO:
        result.crypto = decodeCrypto(record, context);
        break;
      case MAGIC_BITMAPS:
        checkBitmapsLength(record, context.name);
        if ((context.autoclear & AUTOCLEAR.bitmaps) === 0n) result.staleBitmaps = true;
        else result.bitmaps = decodeBitmaps(record, context);
        break;
      case MAGIC_DATA_FILE:
        result.dataFile = cString(record.data) || undefined;
        result.rawNames = { ...result.rawNames, dataFile: untilNul(record.data) };
        break;
      default:
        unknown.push({ magic: record.magic, data: record.data });
    }
  }
  result.unknown = unknown;
  return result;
}

function decodeCrypto(record: Record, context: ExtensionContext): CryptoPointer {
  const { name, clusterSize } = context;
  if (!context.luks) {
    throw extensionError(
      name,
      'crypto-unexpected',
      `encryption header extension at ${hex(record.at)}, but the encryption method is not luks`,
      {
        offset: record.at,
      },
    );
  }
  if (record.data.length !== CryptoExtension.size) {
    throw extensionError(
      name,
      'crypto-length',
      `encryption header extension at ${hex(record.at)} has ${record.data.length} bytes, not ${CryptoExtension.size}`,
      { offset: record.at, value: record.data.length, bound: CryptoExtension.size },
    );
  }
  const crypto = CryptoExtension.decode(record.data);
  if (crypto.offset % clusterSize !== 0) {
    throw extensionError(
      name,
      'crypto-offset',
      `encryption header at ${hex64(crypto.offset)} is not a multiple of the cluster size ${hex(clusterSize)}`,
      {
        offset: record.at,
        value: crypto.offset,
        bound: clusterSize,
      },
    );
  }
  return crypto;
}

function checkBitmapsLength(record: Record, name: string): void {
  if (record.data.length === BitmapsExtension.size) return;
  throw extensionError(
    name,
    'bitmaps-length',
    `bitmaps extension at ${hex(record.at)} has ${record.data.length} bytes, not ${BitmapsExtension.size}`,
    { offset: record.at, value: record.data.length, bound: BitmapsExtension.size },
  );
}

function decodeBitmaps(record: Record, context: ExtensionContext): BitmapsPointer {
  const { name, clusterSize } = context;
  const { count, reserved, directorySize, directoryOffset } = BitmapsExtension.decode(record.data);
  const offset = record.at;
  if (reserved !== 0) {
    throw extensionError(
      name,
      'bitmaps-reserved',
      `reserved field of the bitmaps extension is ${hex(reserved)}, not 0`,
      {
        offset,
        value: reserved,
      },
    );
  }
  if (count > MAX_BITMAPS) {
    throw extensionError(name, 'bitmaps-count', `${count} bitmaps; at most ${MAX_BITMAPS} are supported`, {
      offset,
      value: count,
      bound: MAX_BITMAPS,
    });
  }
  if (count === 0)
    throw extensionError(name, 'bitmaps-none', 'bitmaps extension without bitmaps', { offset, value: 0 });
  if (directoryOffset % clusterSize !== 0) {
    throw extensionError(
      name,
      'bitmaps-offset',
      `bitmap directory at ${hex64(directoryOffset)} is not a multiple of the cluster size ${hex(clusterSize)}`,
      { offset, value: directoryOffset, bound: clusterSize },
    );
  }
  if (directorySize > MAX_BITMAP_DIRECTORY_BYTES) {
    throw extensionError(
      name,
      'bitmaps-size',
      `bitmap directory of ${hex64(directorySize)} bytes; at most ${MAX_BITMAP_DIRECTORY_BYTES} are supported`,
      {
        offset,
        value: directorySize,
        bound: MAX_BITMAP_DIRECTORY_BYTES,
      },
    );
  }
  return { count, directorySize, directoryOffset };
}

/** What `encodeExtensions` writes; names as raw bytes. */
export interface ExtensionsToWrite {
  readonly backingFormat: Uint8Array | undefined;
  readonly dataFile: Uint8Array | undefined;
  readonly crypto: CryptoPointer | undefined;
  readonly featureNames: boolean;
  readonly bitmaps: BitmapsPointer | undefined;
  readonly unknown: readonly UnknownExtension[];
}

/** Writes the extensions and the end marker from `start` on, in QEMU's order.
 *  @returns the offset after the end marker, or `undefined` when `into` is too small. */
export function encodeExtensions(extensions: ExtensionsToWrite, into: Uint8Array, start: number): number | undefined {
  let at = start;
  const add = (magic: number, data: Uint8Array): boolean => {
    const next = at + ExtensionHead.size + Math.ceil(data.length / 8) * 8;
    if (next > into.length) return false;
    ExtensionHead.encode({ magic, length: data.length }, into, at);
    into.set(data, at + ExtensionHead.size);
    at = next;
    return true;
  };
  const { backingFormat, dataFile, crypto, bitmaps } = extensions;
  if (backingFormat !== undefined && !add(MAGIC_BACKING_FORMAT, backingFormat)) return undefined;
  if (dataFile !== undefined && !add(MAGIC_DATA_FILE, dataFile)) return undefined;
  if (crypto !== undefined && !add(MAGIC_CRYPTO, CryptoExtension.encode(crypto))) return undefined;
  if (extensions.featureNames && !add(MAGIC_FEATURE_NAMES, encodeFeatureNames())) return undefined;
  if (bitmaps !== undefined && !add(MAGIC_BITMAPS, BitmapsExtension.encode({ ...bitmaps, reserved: 0 })))
    return undefined;
  for (const { magic, data } of extensions.unknown) if (!add(magic, data)) return undefined;
  return add(MAGIC_END, new Uint8Array(0)) ? at : undefined;
}

function untilNul(data: Uint8Array): Uint8Array {
  const end = data.indexOf(0);
  return end < 0 ? data : data.subarray(0, end);
}

function extensionError(name: string, finding: string, what: string, details: ErrorDetails): BlockError {
  return new BlockError('CORRUPT', `qcow2 "${name}": ${what}`, { reason: `qcow2.${finding}`, details });
}
