/** The header of v9: two names in fixed places, big-endian. Spec: add-cow, "v9".
 *  Invariant: what lies in the reserved bytes is never read and never changed. */
import { bytes, struct, u32 } from '../../bytes/struct.ts';
import { fault, RAW, V9_CLUSTER, V9_HEADER, V9_NAME_BYTES } from './layout.ts';
import { type AddCowHeader, cutAtNul, type RecordedName, recordedName } from './record.ts';

const MAGIC = Uint8Array.of(0x41, 0x44, 0x44, 0x5f, 0x43, 0x4f, 0x57, 0xff);
const V9_VERSION = 1;
const VERSION_AT = 8;

export const HeaderV9 = struct('add-cow v9 header', V9_HEADER, {
  magic: [0, bytes(8)],
  version: [VERSION_AT, u32],
  backingFile: [12, bytes(V9_NAME_BYTES)],
  imageFile: [1036, bytes(V9_NAME_BYTES)],
  reserved: [2060, bytes(500)],
});

export function hasV9Magic(head: Uint8Array): boolean {
  return head.length >= MAGIC.length && MAGIC.every((byte, i) => head[i] === byte);
}

/** For probing: magic and version. */
export function isV9(head: Uint8Array): boolean {
  if (head.length < VERSION_AT + 4 || !hasV9Magic(head)) return false;
  return new DataView(head.buffer, head.byteOffset, head.byteLength).getUint32(VERSION_AT) === V9_VERSION;
}

/** @param head bytes of the file from its beginning @throws UNSUPPORTED, CORRUPT: see `readHeader`. */
export function decodeV9(head: Uint8Array, fileSize: number, name: string): AddCowHeader {
  if (fileSize < V9_HEADER) {
    throw fault(name, 'header-short', `the file has ${fileSize} bytes, the header ${V9_HEADER}`, {
      value: fileSize,
      bound: V9_HEADER,
    });
  }
  const fields = HeaderV9.decode(head);
  const { version } = fields;
  if (version !== V9_VERSION) {
    throw fault(
      name,
      'version',
      `unsupported feature: ADD-COW version ${version}; ${V9_VERSION} is known`,
      { field: 'version', offset: VERSION_AT, value: version, bound: V9_VERSION },
      'UNSUPPORTED',
    );
  }
  const image = nameIn(fields.imageFile, 'imageFile', 'image', name);
  if (image === undefined) {
    throw fault(name, 'image-missing', 'names no image file', {
      field: 'imageFile',
      offset: HeaderV9.fields.imageFile[0],
      errno: 'ENOENT',
    });
  }
  return {
    version: 'v9',
    clusterSize: V9_CLUSTER,
    image,
    imageFormat: RAW,
    backing: nameIn(fields.backingFile, 'backingFile', 'backing', name),
    backingFormat: undefined,
    compatible: 0n,
  };
}

function nameIn(
  field: Uint8Array,
  key: 'backingFile' | 'imageFile',
  what: 'backing' | 'image',
  name: string,
): RecordedName | undefined {
  const offset = HeaderV9.fields[key][0];
  if (!field.includes(0)) {
    throw fault(name, `${what}-name-end`, `the ${what} file name does not end within ${V9_NAME_BYTES} bytes`, {
      field: key,
      offset,
      value: field.length,
      bound: V9_NAME_BYTES - 1,
    });
  }
  const recorded = cutAtNul(field);
  return recorded.length === 0 ? undefined : recordedName(recorded, offset);
}

/** A whole header. The names fit. */
export function encodeV9(header: AddCowHeader): Uint8Array {
  return HeaderV9.encode({
    magic: MAGIC,
    version: V9_VERSION,
    backingFile: padded(header.backing?.bytes),
    imageFile: padded(header.image.bytes),
    reserved: new Uint8Array(500),
  });
}

function padded(name: Uint8Array | undefined): Uint8Array {
  const field = new Uint8Array(V9_NAME_BYTES);
  if (name !== undefined) field.set(name);
  return field;
}

/** Where a name of `length` bytes and the NUL behind it end. */
export function v9BackingEnd(length: number): number {
  return HeaderV9.fields.backingFile[0] + length + 1;
}

/** End of the whole place of the backing file's name. */
export const V9_BACKING_LIMIT = HeaderV9.fields.imageFile[0];
