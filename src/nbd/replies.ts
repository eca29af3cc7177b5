/** Replies of the transmission phase: simple ones, and chunks of structured ones, compact and extended. Spec: NBD protocol, "Simple reply message",
 *  "Structured reply chunk message", "Extended reply chunk message", "Structured reply types".
 *  Invariant: nothing is allocated per reply of data. */
import { getU64, setU64 } from '../bytes/ints.ts';
import { CHUNK, CHUNK_MAGIC, EXTENDED_CHUNK_MAGIC, LIMITS, SIMPLE_REPLY_MAGIC, WIRE_ERROR } from './constants.ts';
import { nbdFault } from './fault.ts';
import { cutText, viewOf } from './fields.ts';

export const SIMPLE_REPLY_BYTES = 16;
export const CHUNK_BYTES = 20;
export const EXTENDED_CHUNK_BYTES = 32;

/** Bytes of the largest header of a reply. */
export const LARGEST_REPLY_HEADER = EXTENDED_CHUNK_BYTES;

/** The header of a reply, reused for the next one. */
export interface Reply {
  kind: 'simple' | 'chunk';
  /** Of a simple one: the error on the wire, 0 for none. */
  error: number;
  /** Of a chunk. */
  flags: number;
  type: number;
  cookieHigh: number;
  cookieLow: number;
  /** Of an extended chunk: the offset of its request. */
  offset: number;
  /** Bytes that follow a chunk's header. What follows a simple one is known from its request. */
  length: number;
}

export function newReply(): Reply {
  return { kind: 'simple', error: 0, flags: 0, type: 0, cookieHigh: 0, cookieLow: 0, offset: 0, length: 0 };
}

/** @returns bytes written at `at` */
export function encodeSimpleReply(
  into: DataView,
  at: number,
  error: number,
  cookieHigh: number,
  cookieLow: number,
): number {
  into.setUint32(at, SIMPLE_REPLY_MAGIC);
  into.setUint32(at + 4, error);
  into.setUint32(at + 8, cookieHigh);
  into.setUint32(at + 12, cookieLow);
  return SIMPLE_REPLY_BYTES;
}

/** @param chunk `kind` and `error` have no meaning here
 *  @returns bytes written at `at` */
export function encodeChunk(
  chunk: Readonly<Omit<Reply, 'kind' | 'error'>>,
  into: DataView,
  at: number,
  extended: boolean,
): number {
  into.setUint32(at, extended ? EXTENDED_CHUNK_MAGIC : CHUNK_MAGIC);
  into.setUint16(at + 4, chunk.flags);
  into.setUint16(at + 6, chunk.type);
  into.setUint32(at + 8, chunk.cookieHigh);
  into.setUint32(at + 12, chunk.cookieLow);
  if (!extended) {
    into.setUint32(at + 16, chunk.length);
    return CHUNK_BYTES;
  }
  setU64(into, at + 16, chunk.offset);
  setU64(into, at + 24, chunk.length);
  return EXTENDED_CHUNK_BYTES;
}

/** Bytes of the header that begins with this word.
 *  @param structured chunks were agreed on; `extended`: extended headers
 *  @throws {@link BlockError} PROTOCOL, reason `nbd.reply-magic`. */
export function replyHeaderBytes(magic: number, structured: boolean, extended: boolean): number {
  if (magic === SIMPLE_REPLY_MAGIC && !extended) return SIMPLE_REPLY_BYTES;
  if (magic === CHUNK_MAGIC && structured && !extended) return CHUNK_BYTES;
  if (magic === EXTENDED_CHUNK_MAGIC && extended) return EXTENDED_CHUNK_BYTES;
  throw nbdFault('reply-magic', `a reply begins with 0x${magic.toString(16)}`, { magic });
}

/** @param at where the whole header lies
 *  @throws {@link BlockError} PROTOCOL, reason `nbd.chunk-length`, for a chunk longer than the largest payload and what comes with it. */
export function decodeReply(from: DataView, at: number, into: Reply): void {
  const magic = from.getUint32(at);
  into.cookieHigh = from.getUint32(at + 8);
  into.cookieLow = from.getUint32(at + 12);
  into.offset = 0;
  if (magic === SIMPLE_REPLY_MAGIC) {
    into.kind = 'simple';
    into.error = from.getUint32(at + 4);
    into.flags = 0;
    into.type = 0;
    into.length = 0;
    return;
  }
  into.kind = 'chunk';
  into.error = 0;
  into.flags = from.getUint16(at + 4);
  into.type = from.getUint16(at + 6);
  if (magic === EXTENDED_CHUNK_MAGIC) {
    into.offset = getU64(from, at + 16);
    into.length = getU64(from, at + 24);
  } else {
    into.length = from.getUint32(at + 16);
  }
  if (into.length > LIMITS.payload + LIMITS.optionData) {
    throw nbdFault('chunk-length', `a chunk has ${into.length} bytes, more than any request asks for`, {
      length: into.length,
    });
  }
}

// ── what chunks carry ──────────────────────────────────────────────────────────────────────────

/** Bytes before the data of an {@link CHUNK}.offsetData chunk. */
export const OFFSET_BYTES = 8;
/** Bytes of an offsetHole chunk. */
export const HOLE_BYTES = 12;

export function encodeHole(into: DataView, at: number, offset: number, length: number): number {
  setU64(into, at, offset);
  into.setUint32(at + 8, length);
  return HOLE_BYTES;
}

/** @throws {@link BlockError} PROTOCOL, reason `nbd.hole`. */
export function decodeHole(bytes: Uint8Array): { readonly offset: number; readonly length: number } {
  if (bytes.length !== HOLE_BYTES) throw nbdFault('hole', `a hole is told in ${bytes.length} bytes`);
  const view = viewOf(bytes);
  return { offset: getU64(view, 0), length: view.getUint32(8) };
}

/** An error chunk. @param offset where it happened, where that is told */
export function encodeErrorChunk(error: number, message: string, offset?: number): Uint8Array {
  const text = cutText(message);
  const bytes = new Uint8Array(6 + text.length + (offset === undefined ? 0 : OFFSET_BYTES));
  const view = viewOf(bytes);
  view.setUint32(0, error);
  view.setUint16(4, text.length);
  bytes.set(text, 6);
  if (offset !== undefined) setU64(view, 6 + text.length, offset);
  return bytes;
}

/** @throws {@link BlockError} PROTOCOL, reason `nbd.error-chunk`. */
export function decodeErrorChunk(
  type: number,
  bytes: Uint8Array,
): { readonly error: number; readonly message: string; readonly offset: number | undefined } {
  const view = viewOf(bytes);
  const length = bytes.length >= 6 ? view.getUint16(4) : 0;
  const withOffset = type === CHUNK.errorOffset;
  // In this order: of less than six bytes nothing is looked at.
  if (bytes.length < 6 + length + (withOffset ? OFFSET_BYTES : 0) || view.getUint32(0) === 0) {
    throw nbdFault('error-chunk', `an error is told in ${bytes.length} bytes`);
  }
  return {
    error: view.getUint32(0),
    message: new TextDecoder().decode(bytes.subarray(6, 6 + length)),
    offset: withOffset ? getU64(view, 6 + length) : undefined,
  };
}

/** Part of a disk and its status in one metadata context. */
export interface StatusExtent {
  readonly length: number;
  readonly flags: number;
}

/** The payload of a block status chunk. Lengths of compact ones must fit 32 bits. */
export function encodeBlockStatus(context: number, extents: readonly StatusExtent[], extended: boolean): Uint8Array {
  const each = extended ? 16 : 8;
  const start = extended ? 8 : 4;
  const bytes = new Uint8Array(start + extents.length * each);
  const view = viewOf(bytes);
  view.setUint32(0, context);
  if (extended) view.setUint32(4, extents.length);
  extents.forEach(({ length, flags }, i) => {
    const at = start + i * each;
    if (extended) {
      setU64(view, at, length);
      setU64(view, at + 8, flags);
    } else {
      view.setUint32(at, length);
      view.setUint32(at + 4, flags);
    }
  });
  return bytes;
}

/** @throws {@link BlockError} PROTOCOL, reason `nbd.block-status`: no extent at all, an empty one or one past 2^53-1 bytes, or another number
 *  than announced. */
export function decodeBlockStatus(
  bytes: Uint8Array,
  extended: boolean,
): { readonly context: number; readonly extents: readonly StatusExtent[] } {
  const each = extended ? 16 : 8;
  const start = extended ? 8 : 4;
  const count = (bytes.length - start) / each;
  if (!Number.isInteger(count) || count < 1) {
    throw nbdFault('block-status', `a block status is told in ${bytes.length} bytes`);
  }
  const view = viewOf(bytes);
  if (extended && view.getUint32(4) !== count) {
    throw nbdFault('block-status', `a block status of ${count} extents announces ${view.getUint32(4)}`);
  }
  const extents = Array.from({ length: count }, (_, i) => {
    const at = start + i * each;
    const length = extended ? getU64(view, at) : view.getUint32(at);
    if (length === 0) throw nbdFault('block-status', 'a block status has an empty extent');
    if (length === Number.POSITIVE_INFINITY) {
      throw nbdFault('block-status', 'a block status has an extent longer than 2^53-1 bytes');
    }
    return { length, flags: extended ? getU64(view, at + 8) : view.getUint32(at + 4) };
  });
  return { context: view.getUint32(0), extents };
}

// ── errors ─────────────────────────────────────────────────────────────────────────────────────

/** What the protocol has another number for. */
const NEAREST: Readonly<Record<string, number>> = {
  EROFS: WIRE_ERROR.EPERM,
  EFBIG: WIRE_ERROR.ENOSPC,
  EDQUOT: WIRE_ERROR.ENOSPC,
  EOPNOTSUPP: WIRE_ERROR.ENOTSUP,
};
const NUMBERS = new Map<string, number>([...Object.entries(NEAREST), ...Object.entries(WIRE_ERROR)]);
const NAMES = new Map<number, string>(Object.entries(WIRE_ERROR).map(([name, value]) => [value, name]));

/** The number on the wire for an errno's name; what the protocol does not have is EINVAL, as the specification wants. */
export function wireError(errno: string): number {
  return NUMBERS.get(errno) ?? WIRE_ERROR.EINVAL;
}

/** The errno's name for a number on the wire. */
export function errnoOfWire(error: number): string {
  return NAMES.get(error) ?? 'EINVAL';
}
