/** Compression of units, synchronous, in the calling thread: what both the worker threads and small requests run.
 *  Invariant: a unit's bytes depend on its content, the type and the unit alone, never on what was done before or where. */
import { deflateUnit, inflateUnit } from './deflate.ts';
import { decodeZstdUnit, startZstd, zstdEngine } from './zstd.ts';

export type CodecName = 'deflate' | 'zstd';

/** Makes a codec ready in this thread. @returns `undefined` when it is.
 *  @throws {@link BlockError} UNSUPPORTED, reason `codec.zstd`, when this runtime cannot do zstd. */
export function startCodec(type: CodecName): Promise<void> | undefined {
  return type === 'zstd' ? startZstd() : undefined;
}

/** Compresses one unit; the codec must be ready. @returns `undefined` when it would not become smaller. */
export function encodeUnit(type: CodecName, source: Uint8Array): Uint8Array | undefined {
  const bytes = type === 'zstd' ? zstdEngine().encode(source) : deflateUnit(source);
  return bytes.length < source.length ? bytes : undefined;
}

/** Decompresses one unit; bytes after its end are ignored; the codec must be ready.
 *  @returns what is wrong with the data; `undefined` when it decodes to exactly `into.length` bytes. */
export function decodeUnit(type: CodecName, encoded: Uint8Array, into: Uint8Array): string | undefined {
  return type === 'zstd' ? decodeZstdUnit(encoded, into) : inflateUnit(encoded, into);
}

/** Units to compress: `input` holds them end to end. Both arrays lie in shared memory. */
export interface EncodeRequest {
  readonly type: CodecName;
  readonly unit: number;
  readonly input: Uint8Array;
  /** At least as long as `input`. Gets the compressed units end to end. */
  readonly output: Uint8Array;
}

/** Compressed bytes of each unit; 0: not smaller, nothing stored. */
export interface EncodeReply {
  readonly lengths: Int32Array;
}

/** Units to decompress: unit `i` is encoded in `input[starts[i], starts[i]+lengths[i])`. Both byte arrays lie in shared memory. */
export interface DecodeRequest {
  readonly type: CodecName;
  readonly unit: number;
  readonly input: Uint8Array;
  readonly starts: Int32Array;
  readonly lengths: Int32Array;
  readonly output: Uint8Array;
}

/** The first unit that does not decode, where there is one; the units after it are not done. */
export interface DecodeReply {
  readonly bad: { readonly index: number; readonly why: string } | undefined;
}

export async function encodeUnits(request: EncodeRequest): Promise<EncodeReply> {
  const { type, unit, input, output } = request;
  const starting = startCodec(type);
  if (starting !== undefined) await starting;
  const lengths = new Int32Array(input.length / unit);
  let end = 0;
  for (let i = 0; i < lengths.length; i++) {
    const bytes = encodeUnit(type, input.subarray(i * unit, (i + 1) * unit));
    if (bytes === undefined) continue;
    output.set(bytes, end);
    lengths[i] = bytes.length;
    end += bytes.length;
  }
  return { lengths };
}

export async function decodeUnits(request: DecodeRequest): Promise<DecodeReply> {
  const { type, unit, input, starts, lengths, output } = request;
  const starting = startCodec(type);
  if (starting !== undefined) await starting;
  for (let index = 0; index < starts.length; index++) {
    const start = starts[index] as number;
    const encoded = input.subarray(start, start + (lengths[index] as number));
    const why = decodeUnit(type, encoded, output.subarray(index * unit, (index + 1) * unit));
    if (why !== undefined) return { bad: { index, why } };
  }
  return { bad: undefined };
}
