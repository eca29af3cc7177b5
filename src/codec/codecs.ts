/** Compression of allocation units: what format rooms ask for, whoever runs it (this thread or the worker pool).
 *  Owns the contract and the choice of thread; `#platform` owns the codecs themselves.
 *  Invariant: each unit is compressed on its own, so the bytes are the same for every number of workers. */
import type { Pending } from '../base/async.ts';
import type { SectorCipherSpec } from '../crypto/algorithms.ts';
import type { BulkSectors } from '../crypto/bulk.ts';

/** `deflate`: raw deflate, window 2^12, as qcow and qcow2 store it; read with any window. `zstd`: one frame per unit. */
export type CompressionType = 'deflate' | 'zstd';

/** Result of compressing units: unit `i` is `bytes[starts[i], starts[i] + lengths[i])`; length 0 means that it would not have become smaller. */
export interface CompressedUnits {
  readonly bytes: Uint8Array;
  readonly starts: Int32Array;
  readonly lengths: Int32Array;
}

export interface Codecs {
  /** Worker threads at most; 0 means that everything runs here. */
  readonly workers: number;
  /** Compresses the units of `unit` bytes laid end to end in `input` (a whole number of them). `input` may be reused when the promise ends.
   *  Where it lies over a SharedArrayBuffer, workers read it in place. */
  compress(type: CompressionType, input: Uint8Array, unit: number): Promise<CompressedUnits>;
  /** Decompresses `starts.length` units: unit `i` is encoded in `encoded[starts[i], starts[i]+lengths[i])` (bytes after its end are ignored)
   *  and fills `into[i*unit, (i+1)*unit)`. A few units are done at once, in this thread; many go to the workers.
   *  `encoded` and `into` over SharedArrayBuffers are used in place. After a failure the content of `into` is undefined.
   *  @throws {@link BlockError} CORRUPT, reason `codec.data`, details `{ index }` when a unit does not decode to exactly `unit` bytes. */
  decompress(
    type: CompressionType,
    encoded: Uint8Array,
    starts: Int32Array,
    lengths: Int32Array,
    unit: number,
    into: Uint8Array,
  ): Pending;
  /** Makes a key of disk encryption ready for bulk on the workers. The key may be wiped afterwards; the result must be closed.
   *  @returns `undefined` where there are no workers. */
  sectors(spec: SectorCipherSpec, key: Uint8Array): BulkSectors | undefined;
  /** SHA-256 of each of the units of `unit` bytes laid end to end in `input` (a whole number of them), with the byte `prefix` in front of it;
   *  32 bytes each, end to end. `input` may be reused when the promise ends; over a SharedArrayBuffer, workers read it in place. */
  digests(input: Uint8Array, unit: number, prefix: number): Promise<Uint8Array>;
  /** As {@link digests}, of `length` bytes of an open file, which the workers read themselves; it stays open until the promise ends.
   *  @returns `undefined` where there are no workers, or too little has been hashed yet to start them. */
  digestsOfFile(
    descriptor: number,
    offset: number,
    length: number,
    unit: number,
    prefix: number,
  ): Promise<Uint8Array> | undefined;
  /** Ends the workers; idempotent. Idle workers never keep the process alive. */
  close(): Promise<void>;
}
