/** Raw deflate of one unit, as qcow and qcow2 store it: no header, window 2^12, memory level 9, level 6 (QEMU's own settings).
 *  Read with window 2^15: QEMU inflates with 2^12, but other writers use more and its output buffer hides it.
 *  One-shot calls: zlib's public API closes a stream with its first synchronous chunk, so a handle cannot be used twice.
 *  Invariant: memory is bounded by the unit, whatever the stream says. */
import type { ZlibOptions } from 'node:zlib';
import { builtin } from './builtin.ts';

/** A chunk of output is never filled to the last byte: zlib would then allocate another one to see that nothing follows. */
const SPARE = 64;

interface UnitOptions {
  readonly encode: ZlibOptions;
  readonly decode: ZlibOptions;
}

/** By unit: building and checking options is a tenth of the time of a small unit. */
const optionsByUnit = new Map<number, UnitOptions>();

function optionsOf(unit: number): UnitOptions {
  let options = optionsByUnit.get(unit);
  if (options === undefined) {
    // A job uses one unit, a chain a few; a caller with endless different ones must not fill the memory.
    if (optionsByUnit.size >= 64) optionsByUnit.clear();
    options = {
      encode: { windowBits: 12, memLevel: 9, chunkSize: unit + SPARE },
      decode: { windowBits: 15, chunkSize: unit + SPARE, maxOutputLength: unit },
    };
    optionsByUnit.set(unit, options);
  }
  return options;
}

/** The stream, which may be longer than `source`. */
export function deflateUnit(source: Uint8Array): Uint8Array {
  return builtin('node:zlib').deflateRawSync(source, optionsOf(source.length).encode);
}

/** Fills `into` with what the stream at the start of `encoded` holds; what follows the stream is ignored.
 *  @returns what is wrong with the data; `undefined` when it decodes to exactly `into.length` bytes. */
export function inflateUnit(encoded: Uint8Array, into: Uint8Array): string | undefined {
  let bytes: Uint8Array;
  try {
    bytes = builtin('node:zlib').inflateRawSync(encoded, optionsOf(into.length).decode);
  } catch (error) {
    const why = badData(error, into.length);
    if (why === undefined) throw error;
    return why;
  }
  if (bytes.length !== into.length) return `it holds ${bytes.length} bytes only`;
  into.set(bytes);
  return undefined;
}

/** Why zlib refused the data; `undefined` for failures that are not the data's. */
export function badData(error: unknown, unit: number): string | undefined {
  switch ((error as { code?: unknown }).code) {
    case 'ERR_BUFFER_TOO_LARGE':
      return `it holds more than ${unit} bytes`;
    case 'Z_DATA_ERROR':
    case 'Z_BUF_ERROR':
      return (error as Error).message;
    default:
      return undefined;
  }
}
