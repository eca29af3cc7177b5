/** Where compression runs: a few units in this thread, bulk on worker threads over shared memory.
 *  Owns that choice, the cutting of requests into batches, and their way through shared memory.
 *  Invariants: units are compressed on their own, so that bytes are the same for every number of workers and every order of completion;
 *  a request ends when each of its batches has ended; shared memory stays under a bound whatever is asked at once. */
import {
  availableWorkers,
  type CodecPool,
  createCodecPool,
  decodeUnit,
  digestUnits,
  encodeUnit,
  SharedSlots,
  startCodec,
} from '#platform';
import type { Pending } from '../base/async.ts';
import { BlockError } from '../base/errors.ts';
import { Pacer } from '../base/job.ts';
import { KiB, MiB } from '../base/sizes.ts';
import type { SectorCipherSpec } from '../crypto/algorithms.ts';
import type { BulkSectors } from '../crypto/bulk.ts';
import type { Codecs, CompressedUnits, CompressionType } from './codecs.ts';
import { SectorWorkers } from './sector-workers.ts';

export interface CodecsOptions {
  /** Worker threads at most; 0 does everything in this thread. As many as there are CPUs, but no more than 16, where not given. */
  readonly workers?: number | undefined;
  /** For tests: each batch waits in its worker for a random time up to this, so that batches end in any order. */
  readonly delayMs?: number | undefined;
}

/** Compression for a library instance; nothing is started before there is bulk work.
 *  @throws {@link BlockError} INVALID_ARGUMENT when `workers` is no number of threads. */
export function createCodecs(options: CodecsOptions = {}): Codecs {
  const workers = options.workers ?? availableWorkers();
  if (!Number.isInteger(workers) || workers < 0 || workers > 1024) {
    throw new BlockError('INVALID_ARGUMENT', `workers: expected 0 to 1024, not ${workers}`, {
      reason: 'codec.workers',
    });
  }
  return new ThreadedCodecs(workers, options.delayMs);
}

/** Shared memory for batches on their way, in bytes; further batches wait. */
const SHARED_LIMIT = 64 * MiB;

/** Uncompressed bytes. A batch of `batch` bytes takes some milliseconds, and a message between threads a fiftieth of that. Below `here`
 *  it is not worth one. `cold` is what starting the threads costs: so much is done here before they are started. `smallest` is the least
 *  that is cut off to keep another worker busy. Compression takes seven times as long as decompression. */
const COMPRESS = { batch: 512 * KiB, smallest: 64 * KiB, here: 32 * KiB, cold: 1 * MiB } as const;
const DECOMPRESS = { batch: 1 * MiB, smallest: 256 * KiB, here: 256 * KiB, cold: 4 * MiB } as const;
/** Bytes hashed here before threads are started for it. */
const COLD_DIGEST = 16 * MiB;
/** Decompression done at once, in bytes: at most some milliseconds. */
const AT_ONCE = 2 * MiB;

interface Sizes {
  readonly batch: number;
  readonly smallest: number;
}

/** Units to decompress, as {@link Codecs.decompress} got them. */
interface Encoded {
  readonly type: CompressionType;
  readonly bytes: Uint8Array;
  readonly starts: Int32Array;
  readonly lengths: Int32Array;
  readonly unit: number;
  readonly into: Uint8Array;
}

class ThreadedCodecs implements Codecs {
  readonly workers: number;
  readonly #delayMs: number | undefined;
  readonly #slots = new SharedSlots(SHARED_LIMIT);
  readonly #sectors: SectorWorkers;
  #pool: CodecPool | undefined;
  #coldCompress: number = COMPRESS.cold;
  #coldDecompress: number = DECOMPRESS.cold;
  #coldDigest: number = COLD_DIGEST;
  #closing: Promise<void> | undefined;

  constructor(workers: number, delayMs: number | undefined) {
    this.workers = workers;
    this.#delayMs = delayMs;
    const running = (): CodecPool | undefined => this.#pool;
    this.#sectors = new SectorWorkers({
      workers,
      slots: this.#slots,
      get running() {
        return running();
      },
      started: () => this.#startedPool(),
    });
  }

  async compress(type: CompressionType, input: Uint8Array, unit: number): Promise<CompressedUnits> {
    this.#requireOpen();
    requireUnit(unit);
    if (input.length % unit !== 0) throw invalid(`${input.length} bytes are no whole number of units of ${unit}`);
    if (this.#compressesHere(input.length)) return compressHere(type, input, unit);
    const count = input.length / unit;
    const step = unitsPerBatch(count, unit, this.workers, COMPRESS);
    const batches: Promise<Packed>[] = [];
    for (let from = 0; from < count; from += step) {
      batches.push(this.#compressBatch(type, input.subarray(from * unit, Math.min(count, from + step) * unit), unit));
    }
    return join(await allOf(batches));
  }

  decompress(
    type: CompressionType,
    encoded: Uint8Array,
    starts: Int32Array,
    lengths: Int32Array,
    unit: number,
    into: Uint8Array,
  ): Pending {
    this.#requireOpen();
    const units: Encoded = { type, bytes: encoded, starts, lengths, unit, into };
    requireEncoded(units);
    if (this.#decompressesHere(starts.length, unit)) {
      const starting = startCodec(type);
      const atOnce = starts.length <= 2 || starts.length * unit <= AT_ONCE;
      if (starting !== undefined || !atOnce) return decompressPaced(units, starting);
      for (let i = 0; i < starts.length; i++) decodeHere(units, i);
      return undefined;
    }
    return this.#decompressAway(units);
  }

  async digests(input: Uint8Array, unit: number, prefix: number): Promise<Uint8Array> {
    this.#requireOpen();
    requireUnit(unit);
    if (input.length % unit !== 0) throw invalid(`${input.length} bytes are no whole number of units of ${unit}`);
    const isCold = this.#pool === undefined && input.length <= this.#coldDigest;
    if (isCold) this.#coldDigest -= input.length;
    if (this.workers === 0 || isCold) return digestUnits({ input, unit, prefix });
    const pool = this.#startedPool();
    if (isShared(input)) return await pool.run('digest', { input, unit, prefix });
    const slot = await this.#slots.take(input.length);
    try {
      slot.set(input);
      return await pool.run('digest', { input: slot.subarray(0, input.length), unit, prefix });
    } finally {
      this.#slots.give(slot);
    }
  }

  digestsOfFile(
    descriptor: number,
    offset: number,
    length: number,
    unit: number,
    prefix: number,
  ): Promise<Uint8Array> | undefined {
    this.#requireOpen();
    requireUnit(unit);
    if (length % unit !== 0) throw invalid(`${length} bytes are no whole number of units of ${unit}`);
    const isCold = this.#pool === undefined && length <= this.#coldDigest;
    if (this.workers === 0 || isCold) return undefined;
    return this.#startedPool().run('digestFile', { descriptor, offset, length, unit, prefix });
  }

  sectors(spec: SectorCipherSpec, key: Uint8Array): BulkSectors | undefined {
    this.#requireOpen();
    return this.#sectors.open(spec, key);
  }

  close(): Promise<void> {
    this.#closing ??= this.#end();
    return this.#closing;
  }

  async #end(): Promise<void> {
    this.#slots.close(closed());
    await this.#pool?.close();
  }

  #requireOpen(): void {
    if (this.#closing !== undefined) throw closed();
  }

  #compressesHere(bytes: number): boolean {
    if (this.workers === 0 || bytes <= COMPRESS.here) return true;
    if (this.#pool !== undefined || bytes > this.#coldCompress) return false;
    this.#coldCompress -= bytes;
    return true;
  }

  #decompressesHere(count: number, unit: number): boolean {
    const bytes = count * unit;
    if (this.workers === 0 || count <= 2 || bytes < DECOMPRESS.here) return true;
    if (this.#pool !== undefined || bytes > this.#coldDecompress) return false;
    this.#coldDecompress -= bytes;
    return true;
  }

  #startedPool(): CodecPool {
    this.#pool ??= createCodecPool(this.workers, this.#delayMs);
    return this.#pool;
  }

  /** One batch through a worker. Input in shared memory is read where it is; the compressed bytes are copied out, because the caller
   *  keeps them for as long as it likes. */
  async #compressBatch(type: CompressionType, input: Uint8Array, unit: number): Promise<Packed> {
    const pool = this.#startedPool();
    const staged = isShared(input) ? 0 : input.length;
    const slot = await this.#slots.take(staged + input.length);
    try {
      if (staged > 0) slot.set(input);
      const output = slot.subarray(staged, staged + input.length);
      const { lengths } = await pool.run('encode', {
        type,
        unit,
        input: staged > 0 ? slot.subarray(0, staged) : input,
        output,
      });
      let end = 0;
      for (const length of lengths) end += length;
      return { lengths, bytes: output.slice(0, end) };
    } finally {
      this.#slots.give(slot);
    }
  }

  async #decompressAway(units: Encoded): Promise<void> {
    const count = units.starts.length;
    const step = unitsPerBatch(count, units.unit, this.workers, DECOMPRESS);
    const batches: Promise<void>[] = [];
    for (let from = 0; from < count; from += step) {
      batches.push(this.#decompressBatch(units, from, Math.min(count, from + step)));
    }
    await allOf(batches);
  }

  /** Units `from … to-1` through a worker, which reads and writes the caller's own memory where that is shared. */
  async #decompressBatch(units: Encoded, from: number, to: number): Promise<void> {
    const pool = this.#startedPool();
    const { type, unit, bytes } = units;
    const into = units.into.subarray(from * unit, to * unit);
    let starts: Int32Array = units.starts.slice(from, to);
    const lengths = units.lengths.slice(from, to);
    const staging = isShared(bytes) ? undefined : packing(lengths);
    const outLength = isShared(into) ? 0 : into.length;
    const slotLength = (staging?.length ?? 0) + outLength;
    const slot = slotLength === 0 ? undefined : await this.#slots.take(slotLength);
    try {
      let input = bytes;
      let output = into;
      if (slot !== undefined && outLength > 0) output = slot.subarray(0, outLength);
      if (slot !== undefined && staging !== undefined) {
        input = slot.subarray(outLength, outLength + staging.length);
        for (let i = 0; i < starts.length; i++) {
          const start = starts[i] as number;
          input.set(bytes.subarray(start, start + (lengths[i] as number)), staging.starts[i] as number);
        }
        starts = staging.starts;
      }
      const { bad } = await pool.run('decode', { type, unit, input, starts, lengths, output });
      if (bad !== undefined) throw corrupt(type, unit, from + bad.index, bad.why);
      if (output !== into) into.set(output);
    } finally {
      if (slot !== undefined) this.#slots.give(slot);
    }
  }
}

/** Compressed units end to end. */
interface Packed {
  readonly bytes: Uint8Array;
  readonly lengths: Int32Array;
}

function join(batches: readonly Packed[]): CompressedUnits {
  let count = 0;
  let total = 0;
  for (const batch of batches) {
    count += batch.lengths.length;
    total += batch.bytes.length;
  }
  const bytes = batches.length === 1 ? (batches[0] as Packed).bytes : new Uint8Array(total);
  const lengths = new Int32Array(count);
  let unit = 0;
  let end = 0;
  for (const batch of batches) {
    if (batches.length > 1) bytes.set(batch.bytes, end);
    lengths.set(batch.lengths, unit);
    unit += batch.lengths.length;
    end += batch.bytes.length;
  }
  return { bytes, lengths, starts: packing(lengths).starts };
}

/** Where units lie that are laid end to end. */
function packing(lengths: Int32Array): { readonly starts: Int32Array; readonly length: number } {
  const starts = new Int32Array(lengths.length);
  let end = 0;
  for (let i = 0; i < lengths.length; i++) {
    starts[i] = end;
    end += lengths[i] as number;
  }
  return { starts, length: end };
}

async function compressHere(type: CompressionType, input: Uint8Array, unit: number): Promise<CompressedUnits> {
  const starting = startCodec(type);
  if (starting !== undefined) await starting;
  const pacer = new Pacer();
  const lengths = new Int32Array(input.length / unit);
  const parts: Uint8Array[] = [];
  let total = 0;
  for (let i = 0; i < lengths.length; i++) {
    if (pacer.due) await pacer.pause();
    const bytes = encodeUnit(type, input.subarray(i * unit, (i + 1) * unit));
    if (bytes === undefined) continue;
    parts.push(bytes);
    lengths[i] = bytes.length;
    total += bytes.length;
  }
  const bytes = new Uint8Array(total);
  let end = 0;
  for (const part of parts) {
    bytes.set(part, end);
    end += part.length;
  }
  return { bytes, lengths, starts: packing(lengths).starts };
}

async function decompressPaced(units: Encoded, starting: Pending): Promise<void> {
  if (starting !== undefined) await starting;
  const pacer = new Pacer();
  for (let i = 0; i < units.starts.length; i++) {
    if (pacer.due) await pacer.pause();
    decodeHere(units, i);
  }
}

function decodeHere({ type, bytes, starts, lengths, unit, into }: Encoded, i: number): void {
  const start = starts[i] as number;
  const encoded = bytes.subarray(start, start + (lengths[i] as number));
  const why = decodeUnit(type, encoded, into.subarray(i * unit, (i + 1) * unit));
  if (why !== undefined) throw corrupt(type, unit, i, why);
}

/** Whole batches, but small enough that every worker gets one. */
function unitsPerBatch(count: number, unit: number, workers: number, { batch, smallest }: Sizes): number {
  const most = Math.max(1, Math.floor(batch / unit));
  const fair = Math.max(Math.ceil(count / workers), Math.ceil(smallest / unit));
  return Math.min(most, fair);
}

/** Waits for all of them, then tells the first failure in their order: which one is told does not depend on timing. */
async function allOf<T>(promises: readonly Promise<T>[]): Promise<T[]> {
  const results: T[] = [];
  let failure: { readonly error: unknown } | undefined;
  for (const outcome of await Promise.allSettled(promises)) {
    if (outcome.status === 'fulfilled') results.push(outcome.value);
    else failure ??= { error: outcome.reason };
  }
  if (failure !== undefined) throw failure.error;
  return results;
}

function isShared(bytes: Uint8Array): boolean {
  return typeof SharedArrayBuffer === 'function' && bytes.buffer instanceof SharedArrayBuffer;
}

function requireUnit(unit: number): void {
  if (!Number.isInteger(unit) || unit < 1) throw invalid(`a unit of ${unit} bytes`);
}

function requireEncoded({ bytes, starts, lengths, unit, into }: Encoded): void {
  requireUnit(unit);
  if (starts.length !== lengths.length) throw invalid(`${starts.length} starts and ${lengths.length} lengths`);
  if (into.length < starts.length * unit)
    throw invalid(`${into.length} bytes do not hold ${starts.length} units of ${unit}`);
  for (let i = 0; i < starts.length; i++) {
    const start = starts[i] as number;
    const length = lengths[i] as number;
    if (start < 0 || length < 0 || start + length > bytes.length) {
      throw invalid(`unit ${i} lies at ${start}, ${length} bytes long, of ${bytes.length} bytes`);
    }
  }
}

function invalid(what: string): BlockError {
  return new BlockError('INVALID_ARGUMENT', `compression of units: ${what}`, { reason: 'codec.argument' });
}

function corrupt(type: CompressionType, unit: number, index: number, why: string): BlockError {
  return new BlockError('CORRUPT', `${type} data of unit ${index} does not decode to ${unit} bytes: ${why}`, {
    reason: 'codec.data',
    details: { index, type, unit },
  });
}

function closed(): BlockError {
  return new BlockError('CLOSED', 'compression is closed', { reason: 'codec.closed' });
}
