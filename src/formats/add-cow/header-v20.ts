/** The header of V20: fields, then names wherever the fields say, little-endian. Spec: add-cow, "V20"; every rule of its table is a check.
 *  Invariants: unknown compatible bits are kept; a header that was decoded has passed every check. */
import { hex } from '../../base/errors.ts';
import { alignUp, log2Exact } from '../../bytes/align.ts';
import { bytes, flags64, struct, u32 } from '../../bytes/struct.ts';
import {
  fault,
  headerSize,
  MAX_CLUSTER_BITS,
  MIN_CLUSTER_BITS,
  SECTOR,
  V20_FIELDS,
  V20_FORMAT_BYTES,
} from './layout.ts';
import { type AddCowHeader, cutAtNul, type RecordedName, recordedName } from './record.ts';

const MAGIC = Uint8Array.of(0x41, 0x43, 0x4f, 0x57);

export const HeaderV20 = struct(
  'add-cow header',
  V20_FIELDS,
  {
    magic: [0, bytes(4)],
    backingOffset: [4, u32],
    backingSize: [8, u32],
    imageOffset: [12, u32],
    imageSize: [16, u32],
    clusterBits: [20, u32],
    features: [24, flags64],
    compatible: [32, flags64],
    headerSize: [40, u32],
    backingFormat: [44, bytes(V20_FORMAT_BYTES)],
    imageFormat: [60, bytes(V20_FORMAT_BYTES)],
  },
  { littleEndian: true },
);
type Fields = ReturnType<typeof HeaderV20.decode>;
type Key = keyof typeof HeaderV20.fields;

/** Where the compatible features stand in the file, and their size. */
export const COMPATIBLE_AT = HeaderV20.fields.compatible[0];

export function hasV20Magic(head: Uint8Array): boolean {
  return head.length >= MAGIC.length && MAGIC.every((byte, i) => head[i] === byte);
}

/** For probing: magic, and room for the fields. */
export function isV20(head: Uint8Array): boolean {
  return head.length >= V20_FIELDS && hasV20Magic(head);
}

/** The fields, checked, and how many bytes of the file `decodeV20` needs.
 *  @throws UNSUPPORTED, CORRUPT: see `readHeader`. */
export function checkV20(
  head: Uint8Array,
  fileSize: number,
  name: string,
): { readonly fields: Fields; readonly needed: number } {
  if (fileSize < V20_FIELDS) throw short(name, fileSize, V20_FIELDS);
  const fields = HeaderV20.decode(head);
  if (fields.features !== 0n) {
    throw fault(
      name,
      'features',
      `unsupported feature: unknown feature bits ${fields.features.toString(16)}`,
      { ...field('features'), value: fields.features, bound: 0n },
      'UNSUPPORTED',
    );
  }
  const { clusterBits } = fields;
  if (clusterBits < MIN_CLUSTER_BITS || clusterBits > MAX_CLUSTER_BITS) {
    throw fault(
      name,
      'cluster-bits',
      `cluster size 2^${clusterBits} is not within 2^${MIN_CLUSTER_BITS} to 2^${MAX_CLUSTER_BITS}`,
      { ...field('clusterBits'), value: clusterBits, bound: [MIN_CLUSTER_BITS, MAX_CLUSTER_BITS] },
    );
  }
  const size = headerSize({ version: 'v20', clusterSize: 2 ** clusterBits });
  if (fields.headerSize !== size) {
    throw fault(name, 'header-size', `header of ${hex(fields.headerSize)} bytes, not ${hex(size)}`, {
      ...field('headerSize'),
      value: fields.headerSize,
      bound: size,
    });
  }
  if (fileSize < size) throw short(name, fileSize, size);
  checkPlace(fields, 'backing', size, name);
  checkPlace(fields, 'image', size, name);
  const { backingOffset, backingSize, imageOffset, imageSize } = fields;
  return { fields, needed: Math.max(V20_FIELDS, backingOffset + backingSize, imageOffset + imageSize) };
}

function short(name: string, fileSize: number, bound: number): Error {
  return fault(name, 'header-short', `the file has ${fileSize} bytes, the header ${bound}`, { value: fileSize, bound });
}

/** Rules of a name's offset and size. */
function checkPlace(fields: Fields, what: 'backing' | 'image', bound: number, name: string): void {
  const [offsetKey, sizeKey] =
    what === 'backing' ? (['backingOffset', 'backingSize'] as const) : (['imageOffset', 'imageSize'] as const);
  const offset = fields[offsetKey];
  const size = fields[sizeKey];
  if (what === 'backing' && (offset === 0) !== (size === 0)) {
    throw fault(name, 'backing-half', `the backing file name at ${hex(offset)} has ${size} bytes; both or none are 0`, {
      ...field(sizeKey),
      value: size,
      bound: 0,
    });
  }
  if (what === 'backing' && offset === 0) return;
  if (what === 'image' && size === 0) {
    throw fault(name, 'image-missing', 'names no image file', { ...field(sizeKey), value: 0, errno: 'ENOENT' });
  }
  if (offset < V20_FIELDS || offset > bound - 2) {
    throw fault(
      name,
      `${what}-offset`,
      `the ${what} file name at ${hex(offset)} is not within ${hex(V20_FIELDS)} to ${hex(bound - 2)}`,
      { ...field(offsetKey), value: offset, bound: [V20_FIELDS, bound - 2] },
    );
  }
  if (size >= bound - V20_FIELDS) {
    throw fault(
      name,
      `${what}-size`,
      `the ${what} file name has ${size} bytes, the header room for less than ${bound - V20_FIELDS}`,
      { ...field(sizeKey), value: size, bound: bound - V20_FIELDS },
    );
  }
  if (offset + size > bound) {
    throw fault(
      name,
      `${what}-end`,
      `the ${what} file name at ${hex(offset)}, ${size} bytes, passes the end of the header at ${hex(bound)}`,
      { ...field(offsetKey), value: offset + size, bound },
    );
  }
}

/** @param head the first `needed` bytes at least @param fields from `checkV20`. */
export function decodeV20(head: Uint8Array, fields: Fields, name: string): AddCowHeader {
  const { backingOffset, backingSize, imageOffset, imageSize } = fields;
  const backing = backingOffset === 0 ? undefined : nameIn(head, backingOffset, backingSize, 'backing', name);
  const backingFormat = formatName(fields.backingFormat, 'backing', name);
  if (backing === undefined && backingFormat !== '') {
    throw fault(name, 'backing-format-alone', `has the backing format '${backingFormat}' and no backing file`, {
      ...field('backingFormat'),
      value: backingFormat,
    });
  }
  const imageFormat = formatName(fields.imageFormat, 'image', name);
  if (imageFormat === '') {
    throw fault(name, 'image-format-missing', 'does not say which format its image file has', field('imageFormat'));
  }
  return {
    version: 'v20',
    clusterSize: 2 ** fields.clusterBits,
    image: nameIn(head, imageOffset, imageSize, 'image', name),
    imageFormat,
    backing,
    backingFormat: backingFormat === '' ? undefined : backingFormat,
    compatible: fields.compatible,
  };
}

function nameIn(head: Uint8Array, at: number, length: number, what: 'backing' | 'image', name: string): RecordedName {
  const recorded = head.slice(at, at + length);
  const nul = recorded.indexOf(0);
  if (nul >= 0) {
    throw fault(name, `${what}-name-nul`, `the ${what} file name at ${hex(at)} has a zero byte in it`, {
      ...field(what === 'backing' ? 'backingOffset' : 'imageOffset'),
      value: at + nul,
    });
  }
  return recordedName(recorded, at);
}

function formatName(raw: Uint8Array, what: 'backing' | 'image', name: string): string {
  const where = field(what === 'backing' ? 'backingFormat' : 'imageFormat');
  if (!raw.includes(0)) {
    throw fault(name, `${what}-format-end`, `the ${what} format does not end within ${V20_FORMAT_BYTES} bytes`, {
      ...where,
      value: raw.length,
      bound: V20_FORMAT_BYTES - 1,
    });
  }
  const recorded = cutAtNul(raw);
  if (raw.subarray(recorded.length).some((byte) => byte !== 0)) {
    throw fault(name, `${what}-format-padding`, `the ${what} format is not padded with zeros`, where);
  }
  const odd = recorded.find((byte) => !isPrintable(byte));
  if (odd !== undefined) {
    throw fault(
      name,
      `${what}-format-text`,
      `the ${what} format has the byte ${hex(odd)} in it, which is not ASCII text`,
      {
        ...where,
        value: odd,
      },
    );
  }
  return String.fromCharCode(...recorded);
}

export function isPrintable(byte: number): boolean {
  return byte > 0x20 && byte < 0x7f;
}

function field(key: Key): { readonly field: string; readonly offset: number } {
  return { field: key, offset: HeaderV20.fields[key][0] };
}

/** The header up to its last name, whole sectors. The names fit where they say they are. */
export function encodeV20(header: AddCowHeader): Uint8Array {
  const { image, backing } = header;
  const end = Math.max(image.at + image.bytes.length, backing === undefined ? 0 : backing.at + backing.bytes.length);
  const into = new Uint8Array(alignUp(Math.max(end, V20_FIELDS), SECTOR));
  HeaderV20.encode(
    {
      magic: MAGIC,
      backingOffset: backing?.at ?? 0,
      backingSize: backing?.bytes.length ?? 0,
      imageOffset: image.at,
      imageSize: image.bytes.length,
      clusterBits: log2Exact(header.clusterSize),
      features: 0n,
      compatible: header.compatible,
      headerSize: headerSize(header),
      backingFormat: padded(header.backing === undefined ? undefined : header.backingFormat),
      imageFormat: padded(header.imageFormat),
    },
    into,
  );
  if (backing !== undefined) into.set(backing.bytes, backing.at);
  into.set(image.bytes, image.at);
  return into;
}

function padded(format: string | undefined): Uint8Array {
  const raw = new Uint8Array(V20_FORMAT_BYTES);
  for (let i = 0; i < (format?.length ?? 0); i++) raw[i] = format?.charCodeAt(i) ?? 0;
  return raw;
}
