/** The numbers of the NBD protocol, by the names of its specification (doc/proto.md of the NBD project). Data only. */

/** First and second word of a server's greeting; the second one begins every option of a client, too. */
export const NBD_MAGIC = {
  init: 0x4e42444d_41474943n,
  option: 0x49484156_454f5054n,
  optionReply: 0x0003e889_045565a9n,
};

export const REQUEST_MAGIC = 0x25609513;
export const EXTENDED_REQUEST_MAGIC = 0x21e41c71;
export const SIMPLE_REPLY_MAGIC = 0x67446698;
export const CHUNK_MAGIC = 0x668e33ef;
export const EXTENDED_CHUNK_MAGIC = 0x6e8a278c;

/** Of the greeting, and of the client's answer. */
export const HANDSHAKE_FLAG = { fixedNewstyle: 1, noZeroes: 2 } as const;

/** What an export can do. */
export const EXPORT_FLAG = {
  hasFlags: 1,
  readOnly: 2,
  flush: 4,
  fua: 8,
  rotational: 16,
  trim: 32,
  writeZeroes: 64,
  df: 128,
  multiConn: 256,
  resize: 512,
  cache: 1024,
  fastZero: 2048,
  blockStatusPayload: 4096,
} as const;

/** What a client asks for in the handshake. */
export const OPTION = {
  exportName: 1,
  abort: 2,
  list: 3,
  startTls: 5,
  info: 6,
  go: 7,
  structuredReply: 8,
  listMetaContext: 9,
  setMetaContext: 10,
  extendedHeaders: 11,
} as const;

const ERROR_BIT = 0x8000_0000;

/** What a server answers in the handshake. */
export const REPLY = {
  ack: 1,
  server: 2,
  info: 3,
  metaContext: 4,
  unsupported: ERROR_BIT + 1,
  policy: ERROR_BIT + 2,
  invalid: ERROR_BIT + 3,
  platform: ERROR_BIT + 4,
  tlsRequired: ERROR_BIT + 5,
  unknown: ERROR_BIT + 6,
  shutdown: ERROR_BIT + 7,
  blockSizeRequired: ERROR_BIT + 8,
  tooBig: ERROR_BIT + 9,
  extendedHeadersRequired: ERROR_BIT + 10,
} as const;

export function isErrorReply(type: number): boolean {
  return type >= ERROR_BIT;
}

/** Kinds of information about an export. */
export const INFO = { export: 0, name: 1, description: 2, blockSize: 3 } as const;

export const COMMAND = {
  read: 0,
  write: 1,
  disconnect: 2,
  flush: 3,
  trim: 4,
  cache: 5,
  writeZeroes: 6,
  blockStatus: 7,
  resize: 8,
} as const;

export const COMMAND_FLAG = { fua: 1, noHole: 2, df: 4, requestOne: 8, fastZero: 16, payloadLength: 32 } as const;

/** Kinds of structured replies. */
export const CHUNK = {
  none: 0,
  offsetData: 1,
  offsetHole: 2,
  blockStatus: 5,
  blockStatusExtended: 6,
  error: 0x8001,
  errorOffset: 0x8002,
} as const;

export const CHUNK_FLAG_DONE = 1;

/** Chunk types with this bit are errors, known or not. */
export function isErrorChunk(type: number): boolean {
  return type >= 0x8000;
}

/** Errors on the wire, by the names of the system's. */
export const WIRE_ERROR = {
  EPERM: 1,
  EIO: 5,
  ENOMEM: 12,
  EINVAL: 22,
  ENOSPC: 28,
  EOVERFLOW: 75,
  ENOTSUP: 95,
  ESHUTDOWN: 108,
} as const;

/** Status bits of `base:allocation`. */
export const ALLOCATION = { hole: 1, zero: 2 } as const;

/** Bytes. */
export const LIMITS = {
  /** Of a name or another text. */
  text: 4096,
  /** Data of one option that a server takes, and of one reply to it that a client takes. */
  optionData: 64 * 1024,
  /** What is safe to ask for where nothing was said about block sizes. */
  payload: 32 * 1024 * 1024,
} as const;
