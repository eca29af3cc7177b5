/** Where a zstd frame ends and what it asks for: the headers of RFC 8878, section 3.1, and nothing else of it. Pure.
 *  A compressed cluster is stored in whole sectors, so other bytes follow its frame, and decoders refuse those: the end has to be
 *  found first. The same walk sees the window a frame asks for before a decoder allocates it.
 *  Invariant: nothing outside `bytes` is read, and the walk moves forward with every block. */

/** What a frame's headers say; lengths in bytes. */
export interface ZstdFrame {
  /** All of it: header, blocks and checksum. */
  readonly length: number;
  /** User data that decoders must skip. */
  readonly skippable: boolean;
  /** Bytes it decodes to, where the header tells; -1 where not (QEMU and streaming encoders may leave it out). */
  readonly contentSize: number;
  /** Memory of past bytes that a streaming decoder needs. */
  readonly window: number;
}

const MAGIC = 0xfd2fb528;
const SKIPPABLE = 0x184d2a5;
const DICTIONARY_ID_LENGTHS = [0, 1, 2, 4] as const;
const BLOCK_RLE = 1;
const BLOCK_RESERVED = 3;

const TRUNCATED = 'the zstd frame is truncated';

/** Reads the frame at `at`.
 *  @returns the frame, or what is wrong with it. */
export function scanZstdFrame(bytes: Uint8Array, at: number): ZstdFrame | string {
  const end = bytes.length;
  if (end - at < 8) return TRUNCATED;
  const magic = readLittleEndian(bytes, at, 4);
  if (Math.floor(magic / 16) === SKIPPABLE) {
    const length = 8 + readLittleEndian(bytes, at + 4, 4);
    return length > end - at ? TRUNCATED : { length, skippable: true, contentSize: 0, window: 0 };
  }
  if (magic !== MAGIC) return `no zstd frame: magic number 0x${magic.toString(16)}`;

  const descriptor = bytes[at + 4] as number;
  if ((descriptor & 0x08) !== 0) return 'the reserved bit of a zstd frame header is set';
  const singleSegment = (descriptor & 0x20) !== 0;
  const windowLength = singleSegment ? 0 : 1;
  const dictionaryIdLength = DICTIONARY_ID_LENGTHS[(descriptor & 3) as 0 | 1 | 2 | 3];
  const sizeFlag = descriptor >> 6;
  const sizeLength = sizeFlag === 0 ? (singleSegment ? 1 : 0) : 2 ** sizeFlag;
  let next = at + 5 + windowLength + dictionaryIdLength + sizeLength;
  if (next > end) return TRUNCATED;
  if (readLittleEndian(bytes, at + 5 + windowLength, dictionaryIdLength) !== 0)
    return 'the zstd frame needs a dictionary';
  const contentSize =
    sizeLength === 0 ? -1 : readLittleEndian(bytes, next - sizeLength, sizeLength) + (sizeLength === 2 ? 256 : 0);
  const window = singleSegment ? contentSize : windowOf(bytes[at + 5] as number);

  for (let last = false; !last; ) {
    if (next + 3 > end) return TRUNCATED;
    const header = readLittleEndian(bytes, next, 3);
    const type = (header >> 1) & 3;
    if (type === BLOCK_RESERVED) return 'the zstd frame has a block of the reserved type';
    last = (header & 1) !== 0;
    next += 3 + (type === BLOCK_RLE ? 1 : header >> 3);
  }
  if ((descriptor & 0x04) !== 0) next += 4;
  return next > end ? TRUNCATED : { length: next - at, skippable: false, contentSize, window };
}

function windowOf(descriptor: number): number {
  const base = 2 ** (10 + (descriptor >> 3));
  return base + (base / 8) * (descriptor & 7);
}

/** Up to eight bytes; above 2^53 the value is rounded, which is far beyond every bound it is compared with. */
function readLittleEndian(bytes: Uint8Array, at: number, length: number): number {
  let value = 0;
  for (let i = length - 1; i >= 0; i--) value = value * 256 + (bytes[at + i] as number);
  return value;
}
