/** What comes through a pipe, as a store: bytes that can be read once, in order. Owns the stream, its length, and what is remembered of it.
 *  At first everything read is remembered, up to a bound, so that an image's tables can be looked at in any order; after `release` what lies
 *  behind them is handed on and forgotten, but for a little.
 *  Invariants: memory is bounded by `HEAD_LIMIT` and the look-ahead that was asked for; a byte that is forgotten is never made up: reading it
 *  is an error; one request at a time touches the stream, in the order in which they were made. */
import { Mutex, type Pending } from '../base/async.ts';
import { BlockError, fromSystemError, hex } from '../base/errors.ts';
import { throwIfAborted } from '../base/job.ts';
import { MiB } from '../base/sizes.ts';
import { EXTENT, type ExtentList } from '../core/extent.ts';
import type { BlockNode } from '../core/node.ts';
import {
  BaseStore,
  DEFAULT_LIMITS,
  type IoOptions,
  type StoreLimits,
  type StoreSupports,
  UNKNOWN_SIZE,
} from '../core/store.ts';

/** As much of the beginning is remembered, bytes. */
export const HEAD_LIMIT = 64 * MiB;
/** What has been handed on is remembered for so long, bytes: compressed units share sectors. */
const TRAIL = 64 * 1024;

export interface StreamStoreOptions {
  /** What messages call it. */
  readonly name: string;
  /** Bytes that will come, where that is known. */
  readonly size?: number | undefined;
  /** Bytes of the beginning that are remembered at most. Default 64 MiB. */
  readonly headLimit?: number | undefined;
  readonly signal?: AbortSignal | undefined;
}

interface Piece {
  readonly start: number;
  readonly bytes: Uint8Array;
}

export class StreamStore extends BaseStore {
  readonly limits: StoreLimits = { ...DEFAULT_LIMITS, maxInFlight: 1 };
  readonly supports: StoreSupports = {
    write: false,
    truncate: false,
    writeZeroes: 'no',
    discard: false,
    extents: false,
    fua: false,
    sync: false,
    access: 'forward',
  };
  /** The furthest byte that was asked for since somebody has set it to 0: what a table wants behind the end is missing. */
  reach = 0;
  readonly #input: AsyncIterator<Uint8Array>;
  readonly #declared: number | undefined;
  readonly #headLimit: number;
  readonly #signal: AbortSignal | undefined;
  readonly #turn = new Mutex();
  /** Remembered for good, from 0 on without gaps. */
  readonly #head: Piece[] = [];
  #headEnd = 0;
  /** Behind the head, without gaps: what has been handed on last, and what was taken ahead. */
  #window: Piece[] = [];
  #windowStart = 0;
  /** Bytes taken from the stream. */
  #taken = 0;
  #released = false;
  #ended = false;
  #shown = false;
  #tooFar = false;
  #failure: unknown;

  constructor(input: AsyncIterable<Uint8Array>, options: StreamStoreOptions) {
    super(options.name, 'pipe');
    this.#input = input[Symbol.asyncIterator]();
    this.#declared = options.size;
    this.#headLimit = options.headLimit ?? HEAD_LIMIT;
    this.#signal = options.signal;
  }

  /** What was declared; else {@link UNKNOWN_SIZE}, but for the length of a stream that has ended, and may show it. */
  get size(): number {
    return this.#declared ?? (this.#ended && this.#shown ? this.#taken : UNKNOWN_SIZE);
  }

  /** The length may be seen once it is known. An image whose tables say how long it is had better not see it: what lies behind the end of
   *  a file is taken for empty, where in a stream it is missing. */
  showLength(): void {
    this.#shown = true;
  }

  /** Bytes that came, once all have come. */
  get length(): number | undefined {
    return this.#ended ? this.#taken : undefined;
  }

  /** A read was refused because it is further on than the beginning that is remembered. */
  get tooFar(): boolean {
    return this.#tooFar;
  }

  /** From now on what lies behind the bytes taken so far is read in order, and forgotten. */
  release(): void {
    this.#released = true;
    this.#windowStart = this.#headEnd;
  }

  /** Takes the stream ahead, to `end` or to its own end; what is taken is remembered until it is read.
   *  @returns `undefined` when that much is here. */
  lookAhead(end: number): Pending {
    if (this.#taken >= end || this.#ended) return undefined;
    return this.#turn.run(() => this.#takeTo(end));
  }

  /** Takes the rest and forgets it.
   *  @returns the length of the stream. */
  drain(): Promise<number> {
    return this.#turn.run(async () => {
      while (!this.#ended) {
        await this.#take();
        this.#window = [];
        this.#windowStart = this.#taken;
      }
      return this.#taken;
    });
  }

  /** Hands out everything from the first byte on; nothing else may have been forgotten before. */
  async *all(): AsyncGenerator<Uint8Array, void, undefined> {
    for (const { bytes } of this.#head.splice(0)) yield bytes;
    while (!this.#ended) {
      await this.#turn.run(() => this.#take());
      for (const { bytes } of [...this.#head.splice(0), ...this.#window.splice(0)]) yield bytes;
    }
  }

  protected _read(offset: number, into: Uint8Array, options: IoOptions | undefined): Pending {
    throwIfAborted(options?.signal);
    this.reach = Math.max(this.reach, offset + into.length);
    if (offset + into.length <= this.#headEnd) {
      copyFrom(this.#head, offset, into);
      return undefined;
    }
    return this.#turn.run(() => this.#readOn(offset, into));
  }

  async #readOn(offset: number, into: Uint8Array): Promise<void> {
    const end = offset + into.length;
    if (!this.#released) {
      if (end > this.#headLimit && !this.#ended) {
        // An image that ends before that is no reason to give up.
        await this.#takeTo(this.#headLimit);
        if (!this.#ended) throw this.#refuseFar(offset, into.length);
      }
      await this.#takeTo(end);
      this.#fill(this.#head, offset, into);
      return;
    }
    if (offset < this.#headEnd) {
      const inHead = this.#headEnd - offset;
      copyFrom(this.#head, offset, into.subarray(0, inHead));
      const rest = into.subarray(Math.min(inHead, into.length));
      if (rest.length === 0) return;
      await this.#takeTo(this.#headEnd + 1);
      if (this.#taken === this.#headEnd) rest.fill(0);
      else await this.#readOn(this.#headEnd, rest);
      return;
    }
    if (offset < this.#windowStart) throw this.#forgotten(offset, into.length);
    // What lies between is skipped.
    while (this.#taken <= offset && !this.#ended) {
      await this.#take();
      this.#forget(Math.min(offset, this.#taken));
    }
    await this.#takeTo(end);
    this.#fill(this.#window, offset, into);
    this.#forget(end);
  }

  /** Bytes behind the end are zeros; a request that begins there asks for what never came. */
  #fill(pieces: readonly Piece[], offset: number, into: Uint8Array): void {
    if (offset >= this.#taken) throw endsEarly(this.name, this.#taken, offset + into.length);
    const there = Math.min(into.length, this.#taken - offset);
    copyFrom(pieces, offset, into.subarray(0, there));
    into.fill(0, there);
  }

  #forget(before: number): void {
    const limit = before - TRAIL;
    let drop = 0;
    while (drop < this.#window.length && endOf(this.#window[drop] as Piece) <= limit) drop++;
    if (drop > 0) this.#window.splice(0, drop);
    this.#windowStart = this.#window[0]?.start ?? this.#taken;
  }

  async #takeTo(end: number): Promise<void> {
    while (this.#taken < end && !this.#ended) await this.#take();
  }

  /** One more piece of the stream. */
  async #take(): Promise<void> {
    if (this.#failure !== undefined) throw this.#failure;
    throwIfAborted(this.#signal);
    let next: IteratorResult<Uint8Array>;
    try {
      next = await this.#next();
    } catch (error) {
      this.#failure = fromSystemError(error, `could not read "${this.name}"`, { name: this.name });
      throw this.#failure;
    }
    if (next.done === true) {
      if (this.#declared !== undefined && this.#taken < this.#declared) {
        this.#failure = endsEarly(this.name, this.#taken, this.#declared);
        throw this.#failure;
      }
      this.#ended = true;
      return;
    }
    const bytes = next.value;
    if (bytes.length === 0) return;
    const piece = { start: this.#taken, bytes };
    this.#taken += bytes.length;
    if (this.#released) this.#window.push(piece);
    else {
      this.#head.push(piece);
      this.#headEnd = this.#taken;
    }
    if (this.#declared !== undefined && this.#taken > this.#declared) {
      this.#failure = new BlockError(
        'INVALID_ARGUMENT',
        `"${this.name}": gives more than the ${this.#declared} bytes that were announced`,
        {
          reason: 'stream.long',
          details: { size: this.#declared },
        },
      );
      throw this.#failure;
    }
  }

  /** The next piece, or the abort, whichever comes first: a pipe may be silent for ever. */
  #next(): Promise<IteratorResult<Uint8Array>> {
    const signal = this.#signal;
    if (signal === undefined) return this.#input.next();
    return new Promise((resolve, reject) => {
      const onAbort = (): void => {
        try {
          throwIfAborted(signal);
        } catch (error) {
          reject(error);
        }
      };
      signal.addEventListener('abort', onAbort, { once: true });
      const done = (): void => signal.removeEventListener('abort', onAbort);
      this.#input.next().then(
        (result) => {
          done();
          resolve(result);
        },
        (error: unknown) => {
          done();
          reject(error);
        },
      );
    });
  }

  #refuseFar(offset: number, length: number): BlockError {
    this.#tooFar = true;
    return new BlockError(
      'UNSUPPORTED',
      `"${this.name}": ${hex(length)} bytes at ${hex(offset)} are needed before what lies between, which is more than the ${hex(this.#headLimit)} bytes of a stream that are remembered`,
      { reason: 'stream.far', details: { offset, length, limit: this.#headLimit } },
    );
  }

  #forgotten(offset: number, length: number): BlockError {
    return new BlockError(
      'UNSUPPORTED',
      `"${this.name}": ${hex(length)} bytes at ${hex(offset)} have gone by, a pipe only goes forward`,
      { reason: 'stream.forgotten', details: { offset, length, position: this.#windowStart } },
    );
  }

  protected _write(): Pending {
    throw new BlockError('INTERNAL', 'internal error: write to a stream that is read');
  }

  protected _writeZeroes(): Pending {
    return this._write();
  }

  protected _discard(): Pending {
    return undefined;
  }

  protected _extents(_offset: number, length: number, into: ExtentList): Pending {
    into.add(length, EXTENT.present + EXTENT.data);
    return undefined;
  }

  protected _flush(): Pending {
    return undefined;
  }

  protected _truncate(): Pending {
    return this._write();
  }

  /** The stream outlives the image that is read from it: it may be needed for another attempt. */
  protected async _close(): Promise<void> {}

  /** Gives up the stream. */
  end(): void {
    this.#head.length = 0;
    this.#window = [];
    // A stream that is not at its end is told that nobody wants the rest; what it says to that is of no interest, and may take for ever.
    if (!this.#ended) void this.#input.return?.(undefined).catch(() => {});
  }
}

/** A stream that has been put into a file: read at any place, and as strict about its end.
 *  Owns the file: closing it closes the file. */
export class SpooledStore extends BaseStore {
  readonly limits: StoreLimits;
  readonly supports: StoreSupports;
  /** As {@link StreamStore.reach}. */
  reach = 0;
  readonly #file: BlockNode;
  #shown = false;

  /** @param file all of the stream, and nothing else */
  constructor(file: BlockNode, name: string) {
    super(name, 'pipe');
    this.#file = file;
    this.limits = file.limits;
    this.supports = { ...file.supports, write: false, truncate: false, writeZeroes: 'no', discard: false };
  }

  get size(): number {
    return this.#shown ? this.#file.size : UNKNOWN_SIZE;
  }

  get length(): number {
    return this.#file.size;
  }

  /** As that of {@link StreamStore}. */
  showLength(): void {
    this.#shown = true;
  }

  protected _read(offset: number, into: Uint8Array, options: IoOptions | undefined): Pending {
    if (offset >= this.length) throw endsEarly(this.name, this.length, offset + into.length);
    this.reach = Math.max(this.reach, offset + into.length);
    return this.#file.read(offset, into, options);
  }

  protected _extents(offset: number, length: number, into: ExtentList, options: IoOptions | undefined): Pending {
    const there = Math.min(length, this.length - offset);
    if (there > 0) return this.#file.extents(offset, there, into, options);
    into.add(length, EXTENT.present + EXTENT.data);
    return undefined;
  }

  protected _write(): Pending {
    throw new BlockError('INTERNAL', 'internal error: write to a stream that is read');
  }

  protected _writeZeroes(): Pending {
    return this._write();
  }

  protected _discard(): Pending {
    return undefined;
  }

  protected _flush(): Pending {
    return undefined;
  }

  protected _truncate(): Pending {
    return this._write();
  }

  protected _close(): Promise<void> {
    return this.#file.close();
  }
}

/** @returns the error of a stream that is shorter than what it holds says. */
export function endsEarly(name: string, length: number, needed: number): BlockError {
  return new BlockError('IO', `"${name}": ends after ${length} bytes, ${needed} at least belong to the image`, {
    reason: 'stream.short',
    details: { length, needed },
  });
}

function endOf(piece: Piece): number {
  return piece.start + piece.bytes.length;
}

/** Copies from pieces without gaps; all of it must be there. */
function copyFrom(pieces: readonly Piece[], offset: number, into: Uint8Array): void {
  if (into.length === 0) return;
  let low = 0;
  let high = pieces.length - 1;
  while (low < high) {
    const middle = Math.floor((low + high) / 2);
    if (endOf(pieces[middle] as Piece) > offset) high = middle;
    else low = middle + 1;
  }
  for (let at = 0; at < into.length; low++) {
    const piece = pieces[low] as Piece;
    const from = offset + at - piece.start;
    const part = piece.bytes.subarray(from, from + into.length - at);
    into.set(part, at);
    at += part.length;
  }
}
