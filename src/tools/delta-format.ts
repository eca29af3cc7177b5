/** The delta file as bytes: its header, its records, the chain of digests, and reading it from front to back.
 *  Spec: docs/formats/delta.md, version 1.
 *  Invariants of reading: every number is checked before it is used; no record is handed over before its digest is right; memory is bounded by
 *  one record; what is handed over lies in order and inside the disk. */
import { BlockError, hex } from '../base/errors.ts';
import { MiB } from '../base/sizes.ts';
import { getU64, setU64 } from '../bytes/ints.ts';
import type { CompressionType } from '../codec/codecs.ts';
import { platformCrypto } from '../crypto/runtime.ts';
import type { ByteFeed } from './byte-feed.ts';

const MAGIC = new TextEncoder().encode('cowdelta');
const VERSION = 1;
export const HEADER_BYTES = 128;
export const RECORD_BYTES = 56;
const DIGEST_BYTES = 32;
/** Bytes of the disk in one record of data, at most. */
export const MAX_DATA = 1 * MiB;
const FLAG_CHECKSUMS = 1;
const AT = { version: 8, flags: 12, oldSize: 16, newSize: 24, oldHash: 32, newHash: 64, digest: 96 } as const;
const RECORD_AT = { type: 0, encoding: 1, reserved: 2, stored: 4, offset: 8, length: 16, digest: 24 } as const;
const TYPE = { data: 1, zero: 2, end: 3 } as const;
const ENCODINGS: readonly (CompressionType | undefined)[] = [undefined, 'deflate', 'zstd'];
/** In front of what is hashed, apart from those of the checksum of a disk. */
const PREFIX = { header: Uint8Array.of(4), record: Uint8Array.of(5) } as const;

export interface DeltaHeader {
  /** Bytes of the disk before and after. */
  readonly oldSize: number;
  readonly newSize: number;
  /** Checksums of the disk before and after, 32 bytes each; `undefined` where the delta was made without. */
  readonly checksums: { readonly old: Uint8Array; readonly new: Uint8Array } | undefined;
}

export interface DeltaRecord {
  readonly kind: 'data' | 'zero';
  /** Bytes of the disk. */
  readonly offset: number;
  readonly length: number;
  /** How `stored` is compressed; `undefined`: not at all. */
  readonly encoding: CompressionType | undefined;
  /** Empty for zeros. Of use until the next record is asked for. */
  readonly stored: Uint8Array;
}

export function encodeHeader({ oldSize, newSize, checksums }: DeltaHeader): Uint8Array {
  const bytes = new Uint8Array(HEADER_BYTES);
  const view = new DataView(bytes.buffer);
  bytes.set(MAGIC);
  view.setUint32(AT.version, VERSION);
  view.setUint32(AT.flags, checksums === undefined ? 0 : FLAG_CHECKSUMS);
  setU64(view, AT.oldSize, oldSize);
  setU64(view, AT.newSize, newSize);
  if (checksums !== undefined) {
    bytes.set(checksums.old, AT.oldHash);
    bytes.set(checksums.new, AT.newHash);
  }
  bytes.set(headerDigest(bytes), AT.digest);
  return bytes;
}

/** Makes the heads of records, each with the digest of all that stands before it. */
export class RecordEncoder {
  #digest: Uint8Array;
  #count = 0;

  /** @param header what {@link encodeHeader} made. */
  constructor(header: Uint8Array) {
    this.#digest = header.subarray(AT.digest);
  }

  /** @returns what stands in front of `record.stored`. */
  head(record: DeltaRecord): Uint8Array {
    this.#count++;
    const type = record.kind === 'data' ? TYPE.data : TYPE.zero;
    return this.#head(type, record.encoding, record.offset, record.length, record.stored);
  }

  /** The last record. @param covered bytes of the disk in all records. */
  end(covered: number): Uint8Array {
    return this.#head(TYPE.end, undefined, this.#count, covered, new Uint8Array(0));
  }

  #head(
    type: number,
    encoding: CompressionType | undefined,
    offset: number,
    length: number,
    stored: Uint8Array,
  ): Uint8Array {
    const head = new Uint8Array(RECORD_BYTES);
    const view = new DataView(head.buffer);
    head[RECORD_AT.type] = type;
    head[RECORD_AT.encoding] = ENCODINGS.indexOf(encoding);
    view.setUint32(RECORD_AT.stored, stored.length);
    setU64(view, RECORD_AT.offset, offset);
    setU64(view, RECORD_AT.length, length);
    this.#digest = recordDigest(this.#digest, head, stored);
    head.set(this.#digest, RECORD_AT.digest);
    return head;
  }
}

function headerDigest(header: Uint8Array): Uint8Array {
  return platformCrypto.digest('sha256', [PREFIX.header, header.subarray(0, AT.digest)]);
}

function recordDigest(before: Uint8Array, head: Uint8Array, stored: Uint8Array): Uint8Array {
  return platformCrypto.digest('sha256', [PREFIX.record, before, head.subarray(0, RECORD_AT.digest), stored]);
}

/** Reads a delta from front to back. */
export class DeltaReader {
  readonly header: DeltaHeader;
  readonly #feed: ByteFeed;
  #digest: Uint8Array;
  #count = 0;
  #covered = 0;
  /** First byte of the disk that a record may still speak of. */
  #free = 0;

  private constructor(feed: ByteFeed, header: DeltaHeader, digest: Uint8Array) {
    this.#feed = feed;
    this.header = header;
    this.#digest = digest;
  }

  /** @throws {@link BlockError} WRONG_FORMAT `delta.magic`; UNSUPPORTED `delta.version`, `delta.flags`; CORRUPT `delta.truncated`,
   *  `delta.digest`, `delta.size`. */
  static async open(feed: ByteFeed): Promise<DeltaReader> {
    const bytes = (await feed.take(HEADER_BYTES)).slice();
    const fail = failure(feed.name);
    if (bytes.length < MAGIC.length || MAGIC.some((byte, i) => bytes[i] !== byte)) {
      throw fail('WRONG_FORMAT', 'magic', 'does not begin as a delta does', {});
    }
    if (bytes.length < HEADER_BYTES) throw truncated(feed);
    const view = new DataView(bytes.buffer);
    const version = view.getUint32(AT.version);
    if (version !== VERSION) {
      throw fail('UNSUPPORTED', 'version', `has version ${version}, and only ${VERSION} is known here`, { version });
    }
    const flags = view.getUint32(AT.flags);
    if (flags !== 0 && flags !== FLAG_CHECKSUMS) {
      throw fail('UNSUPPORTED', 'flags', `has flags ${hex(flags)}, and only 0x1 is known here`, { flags });
    }
    const digest = bytes.subarray(AT.digest);
    if (!areSame(digest, headerDigest(bytes))) throw damaged(feed, 0, 'the header');
    const [oldSize, newSize] = [getU64(view, AT.oldSize), getU64(view, AT.newSize)];
    if (!Number.isSafeInteger(oldSize) || !Number.isSafeInteger(newSize)) {
      throw fail('CORRUPT', 'size', 'has a disk of 2^53 bytes or more', {});
    }
    const checksums =
      flags === FLAG_CHECKSUMS
        ? { old: bytes.slice(AT.oldHash, AT.newHash), new: bytes.slice(AT.newHash, AT.digest) }
        : undefined;
    return new DeltaReader(feed, { oldSize, newSize, checksums }, digest);
  }

  /** @returns `undefined` behind the last record, when nothing else follows.
   *  @throws {@link BlockError} CORRUPT `delta.truncated`, `delta.digest`, `delta.record`, `delta.trailing`. */
  async next(): Promise<DeltaRecord | undefined> {
    const feed = this.#feed;
    const at = feed.position;
    const head = (await feed.take(RECORD_BYTES)).slice();
    if (head.length < RECORD_BYTES) throw truncated(feed);
    const view = new DataView(head.buffer);
    const storedLength = view.getUint32(RECORD_AT.stored);
    // Before anything is read or kept for it.
    if (storedLength > MAX_DATA) throw this.#invalid(at, `stores ${storedLength} bytes, more than ${MAX_DATA}`);
    const stored = storedLength === 0 ? new Uint8Array(0) : await feed.take(storedLength);
    if (stored.length < storedLength) throw truncated(feed);
    const digest = recordDigest(this.#digest, head, stored);
    if (!areSame(head.subarray(RECORD_AT.digest), digest)) throw damaged(feed, at, 'a record');
    this.#digest = digest;
    const type = head[RECORD_AT.type] as number;
    const encoding = head[RECORD_AT.encoding] as number;
    const offset = getU64(view, RECORD_AT.offset);
    const length = getU64(view, RECORD_AT.length);
    if (view.getUint16(RECORD_AT.reserved) !== 0) throw this.#invalid(at, 'has reserved bytes that are not zero');
    if (type === TYPE.end) {
      await this.#end(at, encoding, storedLength, offset, length);
      return undefined;
    }
    if (type !== TYPE.data && type !== TYPE.zero) throw this.#invalid(at, `is of the unknown type ${type}`);
    this.#requirePlace(at, offset, length);
    if (type === TYPE.data) requireData(encoding, storedLength, length, (what) => this.#invalid(at, what));
    else if (encoding !== 0 || storedLength !== 0) throw this.#invalid(at, 'stores bytes for zeros');
    this.#count++;
    this.#covered += length;
    this.#free = offset + length;
    return { kind: type === TYPE.data ? 'data' : 'zero', offset, length, encoding: ENCODINGS[encoding], stored };
  }

  #requirePlace(at: number, offset: number, length: number): void {
    const { newSize } = this.header;
    // Both may be infinite, and then so is their sum.
    if (length === 0 || !(offset + length <= newSize)) {
      throw this.#invalid(at, `is about ${hex(length)} bytes at ${hex(offset)} of a disk of ${hex(newSize)}`);
    }
    if (offset < this.#free) {
      throw this.#invalid(at, `goes back to ${hex(offset)} behind one that ended at ${hex(this.#free)}`);
    }
  }

  async #end(at: number, encoding: number, stored: number, count: number, covered: number): Promise<void> {
    if (encoding !== 0 || stored !== 0) throw this.#invalid(at, 'is the last one and stores bytes');
    if (count !== this.#count || covered !== this.#covered) {
      throw this.#invalid(
        at,
        `ends ${count} records of ${covered} bytes, and there were ${this.#count} of ${this.#covered}`,
      );
    }
    const end = this.#feed.position;
    if ((await this.#feed.take(1)).length === 0) return;
    throw failure(this.#feed.name)('CORRUPT', 'trailing', `goes on behind its end at ${hex(end)}`, { offset: end });
  }

  #invalid(at: number, what: string): BlockError {
    return failure(this.#feed.name)('CORRUPT', 'record', `the record at ${hex(at)} ${what}`, { offset: at });
  }
}

function requireData(encoding: number, stored: number, length: number, invalid: (what: string) => BlockError): void {
  if (encoding >= ENCODINGS.length) throw invalid(`is compressed in the unknown way ${encoding}`);
  if (length > MAX_DATA) throw invalid(`holds ${hex(length)} bytes of data, more than ${hex(MAX_DATA)}`);
  const fits = encoding === 0 ? stored === length : stored > 0 && stored < length;
  if (!fits) throw invalid(`stores ${stored} bytes for ${length}`);
}

function areSame(a: Uint8Array, b: Uint8Array): boolean {
  for (let i = 0; i < DIGEST_BYTES; i++) if (a[i] !== b[i]) return false;
  return true;
}

type Fail = (
  code: 'CORRUPT' | 'UNSUPPORTED' | 'WRONG_FORMAT',
  finding: 'magic' | 'version' | 'flags' | 'size' | 'truncated' | 'digest' | 'record' | 'trailing',
  what: string,
  details: Readonly<Record<string, number>>,
) => BlockError;

function failure(name: string): Fail {
  return (code, finding, what, details) =>
    new BlockError(code, `delta "${name}": ${what}`, { reason: `delta.${finding}`, details: { ...details, name } });
}

function truncated(feed: ByteFeed): BlockError {
  const { position } = feed;
  return failure(feed.name)('CORRUPT', 'truncated', `is cut off at ${hex(position)}`, { offset: position });
}

function damaged(feed: ByteFeed, at: number, what: string): BlockError {
  const text = `is damaged: ${what} at ${hex(at)} does not have the digest that is written there`;
  return failure(feed.name)('CORRUPT', 'digest', text, { offset: at });
}
