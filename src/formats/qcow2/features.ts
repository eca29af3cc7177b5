/** Feature bits of the version 3 header: which this library knows, and what to call the ones it does not.
 *  Spec: qcow2, "Header" (incompatible, compatible, autoclear features) and "Feature name table".
 *  Invariant: flag sets are bigint, because unknown bits up to 63 must survive a rewrite of the header. */

export const INCOMPATIBLE = {
  /** Refcounts may be stale. */
  dirty: 1n << 0n,
  /** Some structure may be corrupt: not to be written to. */
  corrupt: 1n << 1n,
  /** Guest data lies in an external data file. */
  dataFile: 1n << 2n,
  /** The compression type is not deflate. */
  compressionType: 1n << 3n,
  extendedL2: 1n << 4n,
} as const;
export const INCOMPATIBLE_KNOWN = 0x1fn;

export const COMPATIBLE = { lazyRefcounts: 1n << 0n } as const;

export const AUTOCLEAR = {
  /** The bitmaps extension is consistent with the image. */
  bitmaps: 1n << 0n,
  /** The external data file is a raw image of the disk. */
  dataFileRaw: 1n << 1n,
} as const;
export const AUTOCLEAR_KNOWN = 0x3n;

const TYPE_INCOMPATIBLE = 0;
const TYPE_COMPATIBLE = 1;
const TYPE_AUTOCLEAR = 2;
/** Type, bit number, name padded with NULs to 46 bytes. */
const ENTRY_BYTES = 48;
const NAME_BYTES = 46;

/** What QEMU 7.2 writes, in its order. */
const NAMES: readonly (readonly [type: number, bit: number, name: string])[] = [
  [TYPE_INCOMPATIBLE, 0, 'dirty bit'],
  [TYPE_INCOMPATIBLE, 1, 'corrupt bit'],
  [TYPE_INCOMPATIBLE, 2, 'external data file'],
  [TYPE_INCOMPATIBLE, 3, 'compression type'],
  [TYPE_INCOMPATIBLE, 4, 'extended L2 entries'],
  [TYPE_COMPATIBLE, 0, 'lazy refcounts'],
  [TYPE_AUTOCLEAR, 0, 'bitmaps'],
  [TYPE_AUTOCLEAR, 1, 'raw external data'],
];

/** Content of the feature name table extension. */
export function encodeFeatureNames(): Uint8Array {
  const table = new Uint8Array(NAMES.length * ENTRY_BYTES);
  NAMES.forEach(([type, bit, name], index) => {
    const at = index * ENTRY_BYTES;
    table[at] = type;
    table[at + 1] = bit;
    for (let i = 0; i < name.length; i++) table[at + 2 + i] = name.charCodeAt(i);
  });
  return table;
}

/** Names the incompatible features of `mask` by the image's own table; the table ends at the first empty name.
 *  @returns the names found, and the bits that nothing names. */
export function nameIncompatible(
  mask: bigint,
  table: Uint8Array | undefined,
): { readonly names: readonly string[]; readonly unnamed: bigint } {
  const names: string[] = [];
  let unnamed = mask;
  const entries = table === undefined ? 0 : Math.ceil(table.length / ENTRY_BYTES);
  for (let index = 0; index < entries && table !== undefined; index++) {
    const entry = table.subarray(index * ENTRY_BYTES, (index + 1) * ENTRY_BYTES);
    const name = cString(entry.subarray(2, 2 + NAME_BYTES));
    if (name === '') break;
    const bit = entry[1] as number;
    if (entry[0] !== TYPE_INCOMPATIBLE || bit > 63) continue;
    const flag = 1n << BigInt(bit);
    if ((unnamed & flag) === 0n) continue;
    names.push(name);
    unnamed &= ~flag;
  }
  return { names, unnamed };
}

const decoder = new TextDecoder('utf-8', { ignoreBOM: true });

/** Text up to the first NUL. */
export function cString(bytes: Uint8Array): string {
  const end = bytes.indexOf(0);
  return decoder.decode(end < 0 ? bytes : bytes.subarray(0, end));
}
