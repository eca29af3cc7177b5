/** zstd frames of one unit (RFC 8878), level 3 as QEMU has it, by Node's own zstd where there is one (22.15 and later), else by WASM.
 *  Both make the same bytes of units up to 128 KiB; each is deterministic.
 *  A unit is written as one frame and read as QEMU reads it: frames follow each other, skippable ones between, until it is full.
 *  Invariants: a frame is given to a decoder only when its end is known and its window within bounds; no decoder may write past the unit. */
import type { ZlibOptions } from 'node:zlib';
import type * as Wasm from '@bokuweb/zstd-wasm';
import { BlockError } from '../../base/errors.ts';
import { builtin } from './builtin.ts';
import { scanZstdFrame } from './zstd-frame.ts';

const LEVEL = 3;
/** Encoders take at most 8 MiB without `--long`; QEMU's level takes 2 MiB. */
const WINDOW_LIMIT = 8 * 1024 * 1024;
/** Compiling the WASM takes 3 ms. Where the address space is limited it fails without telling, hence the limit. */
const WASM_START_LIMIT_MS = 10_000;

export interface ZstdEngine {
  readonly name: 'builtin' | 'wasm';
  encode(source: Uint8Array): Uint8Array;
  /** Decodes one frame. @returns its bytes, at most `limit`; or what is wrong with it. */
  decode(frame: Uint8Array, limit: number): Uint8Array | string;
}

let engine: ZstdEngine | undefined;
let starting: Promise<void> | undefined;

/** Loads zstd. @returns `undefined` when it is ready.
 *  @throws {@link BlockError} UNSUPPORTED, reason `codec.zstd`, when this Node can do neither. */
export function startZstd(): Promise<void> | undefined {
  if (engine !== undefined) return undefined;
  engine = builtinZstd();
  if (engine !== undefined) return undefined;
  starting ??= wasmZstd().then(
    (wasm) => {
      engine = wasm;
    },
    (error: unknown) => {
      starting = undefined;
      throw error;
    },
  );
  return starting;
}

/** The engine in use. Only after {@link startZstd} is done. */
export function zstdEngine(): ZstdEngine {
  if (engine === undefined) throw new BlockError('INTERNAL', 'internal error: zstd used before it was loaded');
  return engine;
}

/** Fills `into` from the frames at the start of `encoded`; what follows them is ignored.
 *  @returns what is wrong with the data; `undefined` when the frames end with exactly `into.length` bytes. */
export function decodeZstdUnit(
  encoded: Uint8Array,
  into: Uint8Array,
  by: ZstdEngine = zstdEngine(),
): string | undefined {
  const windowLimit = Math.max(into.length, WINDOW_LIMIT);
  let filled = 0;
  for (let at = 0; filled < into.length; ) {
    if (at === encoded.length) return `it holds ${filled} bytes only`;
    const frame = scanZstdFrame(encoded, at);
    if (typeof frame === 'string') return frame;
    if (!frame.skippable) {
      const room = into.length - filled;
      if (frame.contentSize > room) return `it holds more than ${into.length} bytes`;
      if (frame.window > windowLimit)
        return `the zstd frame needs a window of ${frame.window} bytes, over the limit of ${windowLimit}`;
      const bytes = by.decode(encoded.subarray(at, at + frame.length), room);
      if (typeof bytes === 'string') return bytes;
      into.set(bytes, filled);
      filled += bytes.length;
    }
    at += frame.length;
  }
  return undefined;
}

/** What `node:zlib` has from 22.15 on; the types here are older. */
interface ZstdOfZlib {
  zstdCompressSync(source: Uint8Array, options: ZlibOptions & { params: Record<number, number> }): Uint8Array;
  zstdDecompressSync(source: Uint8Array, options: ZlibOptions): Uint8Array;
  readonly constants: { readonly ZSTD_c_compressionLevel: number };
}

/** Node's own zstd; `undefined` before 22.15. */
export function builtinZstd(): ZstdEngine | undefined {
  const zlib = builtin('node:zlib') as unknown as ZstdOfZlib;
  if (typeof zlib.zstdCompressSync !== 'function') return undefined;
  const params = { [zlib.constants.ZSTD_c_compressionLevel]: LEVEL };
  return {
    name: 'builtin',
    encode: (source) => zlib.zstdCompressSync(source, { params, chunkSize: source.length + 1024 }),
    decode(frame, limit) {
      try {
        return zlib.zstdDecompressSync(frame, { chunkSize: limit + 64, maxOutputLength: limit });
      } catch (error) {
        const code = String((error as { code?: unknown }).code);
        if (code === 'ERR_BUFFER_TOO_LARGE') return `it holds more than ${limit} bytes`;
        if (code.startsWith('ZSTD_error_') && code !== 'ZSTD_error_memory_allocation') return (error as Error).message;
        if (code === 'Z_BUF_ERROR') return (error as Error).message;
        throw error;
      }
    },
  };
}

/** zstd in WASM. Contexts are kept: making one for each unit takes a third of the time. */
export async function wasmZstd(): Promise<ZstdEngine> {
  const wasm = await import('@bokuweb/zstd-wasm');
  await startWasm(wasm);
  const encoder = wasm.createCCtx();
  const decoder = wasm.createDCtx();
  if (encoder === 0 || decoder === 0) throw unavailable('out of memory');
  // The calls that reuse a context are those with a dictionary; an empty one is none, and the bytes are the same.
  const noDictionary = new Uint8Array(0);
  return {
    name: 'wasm',
    encode: (source) => wasm.compressUsingDict(encoder, source, noDictionary, LEVEL),
    decode(frame, limit) {
      try {
        // `defaultHeapSize` is the room for frames that do not tell their size; the others were compared with `limit`.
        return wasm.decompressUsingDict(decoder, frame, noDictionary, { defaultHeapSize: limit });
      } catch (error) {
        // The library has one text for zstd's own verdicts, compression or not; anything else is not the data's fault.
        const code = /^Failed to compress with code (-?\d+)$/.exec((error as Error).message)?.[1];
        if (code === undefined) throw error;
        return Number(code) === DESTINATION_TOO_SMALL
          ? `it holds more than ${limit} bytes`
          : `the zstd decoder refuses it with error ${code}`;
      }
    },
  };
}

/** `ZSTD_error_dstSize_tooSmall`, negated as zstd returns it. */
const DESTINATION_TOO_SMALL = -70;

function startWasm(wasm: typeof Wasm): Promise<void> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => {
      reject(unavailable('its WebAssembly module did not start; is the address space of the process limited?'));
    }, WASM_START_LIMIT_MS);
    wasm.init().then(
      () => {
        clearTimeout(timer);
        resolve();
      },
      (error: unknown) => {
        clearTimeout(timer);
        reject(unavailable((error as Error).message, error));
      },
    );
  });
}

function unavailable(why: string, cause?: unknown): BlockError {
  return new BlockError('UNSUPPORTED', `zstd is not available: ${why}`, { reason: 'codec.zstd', cause });
}
