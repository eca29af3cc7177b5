/** What options of the handshake and the replies to them carry. Spec: NBD protocol, "Option types", "Option reply types". Pure.
 *  Invariant: whatever the bytes are, reading them takes time and memory by their number alone, and ends in a value or a typed error. */
import { getU64 } from '../bytes/ints.ts';
import { INFO, LIMITS, REPLY } from './constants.ts';
import { nbdFault } from './fault.ts';
import { Bytes, Fields, viewOf } from './fields.ts';

/** NBD_OPT_INFO and NBD_OPT_GO. */
export interface InfoRequest {
  readonly name: string;
  /** {@link INFO} numbers. */
  readonly wanted: readonly number[];
}

export function encodeInfoRequest({ name, wanted }: InfoRequest): Uint8Array {
  const bytes = new Bytes().text(name).u16(wanted.length);
  for (const info of wanted) bytes.u16(info);
  return bytes.done();
}

/** @throws {@link BlockError} PROTOCOL. */
export function decodeInfoRequest(bytes: Uint8Array): InfoRequest {
  const fields = new Fields(bytes, 'a request for information');
  const name = fields.text();
  const count = fields.u16();
  const wanted: number[] = [];
  // Each takes two bytes: a lie about their number ends here soon.
  for (let i = 0; i < count; i++) wanted.push(fields.u16());
  fields.end();
  return { name, wanted };
}

/** One reply of the kind NBD_REP_INFO. Sizes in bytes. */
export type ExportInfo =
  | { readonly type: 'export'; readonly size: number; readonly flags: number }
  | { readonly type: 'block-size'; readonly minimum: number; readonly preferred: number; readonly maximum: number }
  | { readonly type: 'name' | 'description'; readonly text: string }
  | { readonly type: 'unknown'; readonly kind: number };

export function encodeInfo(info: Exclude<ExportInfo, { readonly type: 'unknown' }>): Uint8Array {
  switch (info.type) {
    case 'export':
      return new Bytes().u16(INFO.export).u64(info.size).u16(info.flags).done();
    case 'block-size':
      return new Bytes().u16(INFO.blockSize).u32(info.minimum).u32(info.preferred).u32(info.maximum).done();
    case 'name':
      return new Bytes().u16(INFO.name).rest(info.text).done();
    case 'description':
      return new Bytes().u16(INFO.description).rest(info.text).done();
  }
}

/** @throws {@link BlockError} PROTOCOL, also for a size past 2^53-1 (`nbd.export-size`) and block sizes that cannot be (`nbd.block-size`). */
export function decodeInfo(bytes: Uint8Array): ExportInfo {
  const fields = new Fields(bytes, 'information about an export');
  const kind = fields.u16();
  switch (kind) {
    case INFO.export: {
      const size = exportSize(fields.take(8));
      const flags = fields.u16();
      fields.end();
      return { type: 'export', size, flags };
    }
    case INFO.blockSize: {
      const [minimum, preferred, maximum] = [fields.u32(), fields.u32(), fields.u32()];
      fields.end();
      requireBlockSizes(minimum, preferred, maximum);
      return { type: 'block-size', minimum, preferred, maximum };
    }
    case INFO.name:
      return { type: 'name', text: fields.rest() };
    case INFO.description:
      return { type: 'description', text: fields.rest() };
    default:
      return { type: 'unknown', kind };
  }
}

function exportSize(bytes: Uint8Array): number {
  const size = getU64(viewOf(bytes), 0);
  if (Number.isSafeInteger(size)) return size;
  throw nbdFault('export-size', 'the export is larger than 2^53-1 bytes');
}

function requireBlockSizes(minimum: number, preferred: number, maximum: number): void {
  const isPower = (value: number): boolean => value > 0 && 2 ** Math.round(Math.log2(value)) === value;
  const isSound =
    isPower(minimum) &&
    minimum <= 64 * 1024 &&
    isPower(preferred) &&
    preferred >= minimum &&
    maximum >= preferred &&
    (maximum === 0xffff_ffff || maximum % minimum === 0);
  if (isSound) return;
  throw nbdFault('block-size', `block sizes ${minimum}, ${preferred}, ${maximum} are not possible`, {
    minimum,
    preferred,
    maximum,
  });
}

/** The answer to NBD_OPT_EXPORT_NAME, which has no header. @param zeroes the client did not do without the 124 zero bytes */
export function encodeExportNameReply(size: number, flags: number, zeroes: boolean): Uint8Array {
  const bytes = new Bytes().u64(size).u16(flags).done();
  if (!zeroes) return bytes;
  const padded = new Uint8Array(bytes.length + 124);
  padded.set(bytes);
  return padded;
}

/** An entry of a list of exports. */
export interface ListedExport {
  readonly name: string;
  /** Text for people, as servers append it. */
  readonly details: string;
}

export function encodeListed({ name, details }: ListedExport): Uint8Array {
  return new Bytes().text(name).rest(details).done();
}

/** @throws {@link BlockError} PROTOCOL. */
export function decodeListed(bytes: Uint8Array): ListedExport {
  const fields = new Fields(bytes, 'an entry of the list of exports');
  return { name: fields.text(), details: fields.rest() };
}

/** NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT. */
export interface MetaContextRequest {
  readonly name: string;
  readonly queries: readonly string[];
}

export function encodeMetaContextRequest({ name, queries }: MetaContextRequest): Uint8Array {
  const bytes = new Bytes().text(name).u32(queries.length);
  for (const query of queries) bytes.text(query);
  return bytes.done();
}

/** @throws {@link BlockError} PROTOCOL. */
export function decodeMetaContextRequest(bytes: Uint8Array): MetaContextRequest {
  const fields = new Fields(bytes, 'a request for metadata contexts');
  const name = fields.text();
  const count = fields.u32();
  const queries: string[] = [];
  // Each query takes four bytes at least: a lie about their number ends here soon.
  for (let i = 0; i < count; i++) queries.push(fields.text());
  fields.end();
  return { name, queries };
}

export interface MetaContext {
  readonly id: number;
  readonly name: string;
}

export function encodeMetaContext({ id, name }: MetaContext): Uint8Array {
  return new Bytes().u32(id).rest(name).done();
}

/** @throws {@link BlockError} PROTOCOL. */
export function decodeMetaContext(bytes: Uint8Array): MetaContext {
  const fields = new Fields(bytes, 'a metadata context');
  return { id: fields.u32(), name: fields.rest() };
}

/** The words that come with an error. */
export function decodeErrorText(bytes: Uint8Array): string {
  return new TextDecoder().decode(bytes.subarray(0, LIMITS.text));
}

/** The words of an error reply, where the server has sent none. */
export const REPLY_WORDS: Readonly<Record<number, string>> = {
  [REPLY.unsupported]: 'the option is not supported',
  [REPLY.policy]: 'the server does not allow it',
  [REPLY.invalid]: 'the request was not understood',
  [REPLY.platform]: 'the server cannot do that where it runs',
  [REPLY.tlsRequired]: 'the server wants TLS first',
  [REPLY.unknown]: 'there is no such export',
  [REPLY.shutdown]: 'the server is shutting down',
  [REPLY.blockSizeRequired]: 'the server wants its block sizes to be kept',
  [REPLY.tooBig]: 'the request is too long',
  [REPLY.extendedHeadersRequired]: 'the server wants extended headers first',
};
