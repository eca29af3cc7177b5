/** Requests of the transmission phase, compact and extended. Spec: NBD protocol, "Request message", "Extended request header".
 *  Invariant: nothing is allocated per request: headers are written into and read from buffers that the caller has. */
import { getU64, setU64 } from '../bytes/ints.ts';
import { EXTENDED_REQUEST_MAGIC, REQUEST_MAGIC } from './constants.ts';
import { nbdFault } from './fault.ts';

export const REQUEST_BYTES = 28;
export const EXTENDED_REQUEST_BYTES = 32;

export function requestBytes(extended: boolean): number {
  return extended ? EXTENDED_REQUEST_BYTES : REQUEST_BYTES;
}

/** A request, reused for the next one. */
export interface Request {
  /** {@link COMMAND_FLAG} bits. */
  flags: number;
  command: number;
  /** Told back in the reply: two words, opaque to the server. */
  cookieHigh: number;
  cookieLow: number;
  /** Bytes; infinite where no number holds it, which is outside every export. */
  offset: number;
  /** Bytes. */
  length: number;
}

export function newRequest(): Request {
  return { flags: 0, command: 0, cookieHigh: 0, cookieLow: 0, offset: 0, length: 0 };
}

/** @returns bytes written at `at` */
export function encodeRequest(request: Readonly<Request>, into: DataView, at: number, extended: boolean): number {
  into.setUint32(at, extended ? EXTENDED_REQUEST_MAGIC : REQUEST_MAGIC);
  into.setUint16(at + 4, request.flags);
  into.setUint16(at + 6, request.command);
  into.setUint32(at + 8, request.cookieHigh);
  into.setUint32(at + 12, request.cookieLow);
  setU64(into, at + 16, request.offset);
  if (extended) setU64(into, at + 24, request.length);
  else into.setUint32(at + 24, request.length);
  return requestBytes(extended);
}

/** @throws {@link BlockError} PROTOCOL, reason `nbd.request-magic`: where one request ends and the next begins is lost. */
export function decodeRequest(from: DataView, at: number, extended: boolean, into: Request): void {
  const magic = from.getUint32(at);
  if (magic !== (extended ? EXTENDED_REQUEST_MAGIC : REQUEST_MAGIC)) {
    throw nbdFault('request-magic', `a request begins with 0x${magic.toString(16)}`, { magic });
  }
  into.flags = from.getUint16(at + 4);
  into.command = from.getUint16(at + 6);
  into.cookieHigh = from.getUint32(at + 8);
  into.cookieLow = from.getUint32(at + 12);
  into.offset = getU64(from, at + 16);
  into.length = extended ? getU64(from, at + 24) : from.getUint32(at + 24);
}
