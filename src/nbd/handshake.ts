/** The messages of the handshake: greeting, options and their replies. Spec: NBD protocol, "Negotiation", "Option types", "Option reply types".
 *  Pure: bytes to values and back; who sends what when is the business of the two sides. What options and replies carry is in `option-data.ts`.
 *  Invariant: every length is checked against its bound before anything of that length is looked at. */
import { LIMITS, NBD_MAGIC } from './constants.ts';
import { nbdFault } from './fault.ts';
import { cutText, viewOf } from './fields.ts';

const NOTHING = new Uint8Array(0);

/** The view of a message of fixed length. @throws {@link BlockError} PROTOCOL, reason `nbd.short`. */
function wholeView(bytes: Uint8Array, length: number, what: string): DataView {
  if (bytes.length < length) {
    throw nbdFault('short', `${what}: ${length} bytes are wanted where ${bytes.length} are`, { length });
  }
  return viewOf(bytes);
}

// ── greeting ───────────────────────────────────────────────────────────────────────────────────

/** Bytes of a server's greeting, and of the client's answer. */
export const GREETING_BYTES = 18;
export const CLIENT_FLAGS_BYTES = 4;

export function encodeGreeting(flags: number): Uint8Array {
  const bytes = new Uint8Array(GREETING_BYTES);
  const view = viewOf(bytes);
  view.setBigUint64(0, NBD_MAGIC.init);
  view.setBigUint64(8, NBD_MAGIC.option);
  view.setUint16(16, flags);
  return bytes;
}

/** @returns the handshake flags
 *  @throws {@link BlockError} PROTOCOL, reasons `nbd.short`, `nbd.greeting`, `nbd.oldstyle`. */
export function decodeGreeting(bytes: Uint8Array): number {
  const view = wholeView(bytes, GREETING_BYTES, 'a greeting');
  if (view.getBigUint64(0) !== NBD_MAGIC.init) throw nbdFault('greeting', 'the other side is no NBD server');
  if (view.getBigUint64(8) !== NBD_MAGIC.option) {
    throw nbdFault('oldstyle', 'the server speaks the old handshake, which is not supported');
  }
  return view.getUint16(16);
}

export function encodeClientFlags(flags: number): Uint8Array {
  const bytes = new Uint8Array(CLIENT_FLAGS_BYTES);
  viewOf(bytes).setUint32(0, flags);
  return bytes;
}

/** @throws {@link BlockError} PROTOCOL, reason `nbd.short`. */
export function decodeClientFlags(bytes: Uint8Array): number {
  return wholeView(bytes, CLIENT_FLAGS_BYTES, "a client's flags").getUint32(0);
}

// ── options ────────────────────────────────────────────────────────────────────────────────────

export const OPTION_HEADER_BYTES = 16;

export interface OptionHeader {
  readonly option: number;
  /** Bytes that follow. */
  readonly length: number;
}

export function encodeOption(option: number, data: Uint8Array = NOTHING): Uint8Array {
  const bytes = new Uint8Array(OPTION_HEADER_BYTES + data.length);
  const view = viewOf(bytes);
  view.setBigUint64(0, NBD_MAGIC.option);
  view.setUint32(8, option);
  view.setUint32(12, data.length);
  bytes.set(data, OPTION_HEADER_BYTES);
  return bytes;
}

/** The length is not bounded here: a server skips what is too long and answers it.
 *  @throws {@link BlockError} PROTOCOL, reasons `nbd.short`, `nbd.option-magic`. */
export function decodeOptionHeader(bytes: Uint8Array): OptionHeader {
  const view = wholeView(bytes, OPTION_HEADER_BYTES, 'an option');
  if (view.getBigUint64(0) !== NBD_MAGIC.option) throw nbdFault('option-magic', 'an option does not begin as one');
  return { option: view.getUint32(8), length: view.getUint32(12) };
}

export const OPTION_REPLY_HEADER_BYTES = 20;

export interface OptionReplyHeader {
  readonly option: number;
  readonly type: number;
  /** Bytes that follow. */
  readonly length: number;
}

export function encodeOptionReply(option: number, type: number, data: Uint8Array = NOTHING): Uint8Array {
  const bytes = new Uint8Array(OPTION_REPLY_HEADER_BYTES + data.length);
  const view = viewOf(bytes);
  view.setBigUint64(0, NBD_MAGIC.optionReply);
  view.setUint32(8, option);
  view.setUint32(12, type);
  view.setUint32(16, data.length);
  bytes.set(data, OPTION_REPLY_HEADER_BYTES);
  return bytes;
}

/** An error with words for people. */
export function encodeOptionError(option: number, type: number, message: string): Uint8Array {
  return encodeOptionReply(option, type, cutText(message));
}

/** @throws {@link BlockError} PROTOCOL, reasons `nbd.short`, `nbd.reply-magic`, `nbd.reply-length`. */
export function decodeOptionReplyHeader(bytes: Uint8Array): OptionReplyHeader {
  const view = wholeView(bytes, OPTION_REPLY_HEADER_BYTES, 'a reply to an option');
  if (view.getBigUint64(0) !== NBD_MAGIC.optionReply) {
    throw nbdFault('reply-magic', 'a reply to an option does not begin as one');
  }
  const length = view.getUint32(16);
  if (length > LIMITS.optionData) {
    throw nbdFault('reply-length', `a reply to an option has ${length} bytes, at most ${LIMITS.optionData} are taken`, {
      length,
    });
  }
  return { option: view.getUint32(8), type: view.getUint32(12), length };
}
