/** A store that can only go forward: pipes, sockets, standard output. Owns the order and the gaps.
 *  Invariants: bytes reach the target once and in order, one `target.write` at a time; gaps become zeros; nothing is kept, so
 *  memory is bounded by the caller's own buffers; after a failed write nothing more is written, for the target's position
 *  is not known any more. */
import { Mutex, type Pending } from '../base/async.ts';
import { BlockError, fromSystemError, hex } from '../base/errors.ts';
import { throwIfAborted } from '../base/job.ts';
import { EXTENT, type ExtentList } from '../core/extent.ts';
import {
  BaseStore,
  DEFAULT_LIMITS,
  type StoreLimits,
  type StoreSupports,
  type TruncateOptions,
  type WriteOptions,
  type ZeroOptions,
} from '../core/store.ts';

/** Where the bytes go. */
export interface ForwardTarget {
  /** Takes all of `chunk`; the caller has its buffer back when the promise ends. */
  write(chunk: Uint8Array): Promise<void>;
  /** No more bytes will come. */
  end?(): Promise<void>;
  /** No more bytes will come, though there should: whoever reads must not take for whole what has come. `end` where it is not there. */
  abort?(reason: unknown): Promise<void>;
}

export interface ForwardSinkOptions {
  /** What messages call it. */
  readonly name: string;
}

/** Longest run of zeros handed over at once, bytes. */
const ZERO_CHUNK = 64 * 1024;

export class ForwardSink extends BaseStore {
  readonly limits: StoreLimits = { ...DEFAULT_LIMITS, maxInFlight: 1 };
  readonly supports: StoreSupports = {
    write: true,
    truncate: true,
    writeZeroes: 'emulated',
    discard: false,
    extents: false,
    fua: false,
    sync: false,
    access: 'forward',
  };
  readonly #target: ForwardTarget;
  readonly #turn = new Mutex();
  /** Bytes handed to the target, and bytes promised to requests that wait for their turn. */
  #sent = 0;
  #reserved = 0;
  #broken: unknown;
  #givenUp = false;
  #zeros: Uint8Array | undefined;

  constructor(target: ForwardTarget, options: ForwardSinkOptions) {
    super(options.name, 'pipe');
    this.#target = target;
  }

  /** Bytes accepted so far. */
  get size(): number {
    return this.#reserved;
  }

  writev(offset: number, parts: readonly Uint8Array[], options?: WriteOptions): Pending {
    let total = 0;
    for (const part of parts) total += part.length;
    this.checkWrite('write', offset, total);
    return total === 0 ? undefined : this.#send(offset, total, parts, options?.signal);
  }

  protected _read(offset: number, into: Uint8Array): Pending {
    throw new BlockError(
      'UNSUPPORTED',
      `"${this.name}": read of ${hex(into.length)} bytes at ${hex(offset)} from a pipe`,
      {
        reason: 'store.forward-read',
        details: { offset, length: into.length },
      },
    );
  }

  protected _write(offset: number, from: Uint8Array, options: WriteOptions | undefined): Pending {
    return this.#send(offset, from.length, [from], options?.signal);
  }

  protected _writeZeroes(offset: number, length: number, options: ZeroOptions | undefined): Pending {
    if (options?.fastOnly === true) {
      throw new BlockError('UNSUPPORTED', `"${this.name}": zeros can only be sent one by one`, {
        reason: 'store.zeroes-slow',
        details: { offset, length },
      });
    }
    return this.#send(offset, length, [], options?.signal);
  }

  protected _discard(): Pending {
    return undefined;
  }

  protected _extents(_offset: number, length: number, into: ExtentList): Pending {
    into.add(length, EXTENT.present + EXTENT.data);
    return undefined;
  }

  /** Ends when everything accepted so far has been taken by the target. */
  protected async _flush(): Promise<void> {
    await this.#turn.run(() => this.#requireWhole());
  }

  protected _truncate(size: number, options: TruncateOptions | undefined): Pending {
    if (size < this.#reserved) {
      throw new BlockError(
        'UNSUPPORTED',
        `"${this.name}": cannot cut a pipe to ${hex(size)} bytes, ${hex(this.#reserved)} are sent`,
        { reason: 'store.forward-order', details: { size, position: this.#reserved } },
      );
    }
    return size === this.#reserved ? undefined : this.#send(size, 0, [], options?.signal);
  }

  /** Closes after a failure, which is the one to tell: this one tells none. */
  async giveUp(reason: unknown): Promise<void> {
    const { abort } = this.#target;
    this.#givenUp = abort !== undefined;
    try {
      await abort?.call(this.#target, reason);
      await this.close();
    } catch {
      // Nobody reads any more.
    }
  }

  protected async _close(): Promise<void> {
    if (this.#givenUp) return;
    try {
      await this.#target.end?.();
    } catch (error) {
      // what broke before was told by the flush, and is why this fails as well
      if (this.#broken === undefined)
        throw fromSystemError(error, `could not close "${this.name}"`, { name: this.name });
    }
  }

  /** Zeros up to `offset`, the parts, zeros up to `offset + length`. */
  #send(offset: number, length: number, parts: readonly Uint8Array[], signal: AbortSignal | undefined): Promise<void> {
    throwIfAborted(signal);
    this.#requireWhole();
    if (offset < this.#reserved) {
      throw new BlockError(
        'UNSUPPORTED',
        `"${this.name}": write at ${hex(offset)} behind ${hex(this.#reserved)}, a pipe only goes forward`,
        { reason: 'store.forward-order', details: { offset, length, position: this.#reserved } },
      );
    }
    this.#reserved = offset + length;
    return this.#turn.run(async () => {
      this.#requireWhole();
      try {
        await this.#sendZeros(offset, signal);
        for (const part of parts) {
          if (part.length === 0) continue;
          await this.#target.write(part);
          this.#sent += part.length;
        }
        await this.#sendZeros(offset + length, signal);
      } catch (error) {
        this.#broken = error;
        throw fromSystemError(error, `could not write ${hex(length)} bytes at ${hex(offset)} of "${this.name}"`, {
          name: this.name,
          offset,
          length,
        });
      }
    });
  }

  async #sendZeros(until: number, signal: AbortSignal | undefined): Promise<void> {
    while (this.#sent < until) {
      throwIfAborted(signal);
      this.#zeros ??= new Uint8Array(ZERO_CHUNK);
      const length = Math.min(until - this.#sent, ZERO_CHUNK);
      await this.#target.write(length === ZERO_CHUNK ? this.#zeros : this.#zeros.subarray(0, length));
      this.#sent += length;
    }
  }

  #requireWhole(): void {
    if (this.#broken === undefined) return;
    throw fromSystemError(this.#broken, `"${this.name}": an earlier write failed`, { name: this.name });
  }
}

/** A Web stream as a target.
 *  @param keepOpen do not close the stream at the end */
export function webTarget(stream: WritableStream<Uint8Array>, keepOpen = false): ForwardTarget {
  const writer = stream.getWriter();
  return {
    async write(chunk) {
      await writer.ready;
      // A stream may hold on to what it is given.
      await writer.write(chunk.slice());
    },
    async end() {
      if (keepOpen) writer.releaseLock();
      else await writer.close();
    },
    abort: (reason) => writer.abort(reason),
  };
}

/** The part of a Node `Writable` the adaptor uses. */
export interface WritableLike {
  write(chunk: Uint8Array, done: (error?: Error | null) => void): boolean;
  end(done: (error?: Error | null) => void): unknown;
  on(event: 'error', listener: (error: Error) => void): unknown;
  once(event: 'close', listener: () => void): unknown;
}

/** A Node stream as a target. Chunks are copied: a stream that hands them on (PassThrough) answers before they are consumed.
 *  @param keepOpen do not end the stream at close (standard output) */
export function writableTarget(stream: WritableLike, keepOpen = false): ForwardTarget {
  let failure: Error | undefined;
  let closed = false;
  const waiting = new Set<() => void>();
  const wake = (): void => {
    for (const resume of waiting) resume();
    waiting.clear();
  };
  // without a listener an error would end the process; write callbacks report it to whoever waits
  stream.on('error', (error) => {
    failure ??= error;
    wake();
  });
  stream.once('close', () => {
    closed = true;
    wake();
  });
  const settle = (start: (done: (error?: Error | null) => void) => void): Promise<void> =>
    new Promise((resolve, reject) => {
      const check = (): void => {
        if (failure !== undefined) reject(failure);
        else reject(Object.assign(new Error('EPIPE: stream closed'), { code: 'EPIPE' }));
      };
      waiting.add(check);
      start((error) => {
        waiting.delete(check);
        if (error !== undefined && error !== null) reject(failure ?? error);
        else if (failure !== undefined) reject(failure);
        else resolve();
      });
    });
  return {
    async write(chunk) {
      if (failure !== undefined) throw failure;
      if (closed) throw Object.assign(new Error('EPIPE: stream closed'), { code: 'EPIPE' });
      await settle((done) => stream.write(chunk.slice(), done));
    },
    async end() {
      if (failure !== undefined) throw failure;
      if (keepOpen || closed) return;
      await settle((done) => stream.end(done));
    },
  };
}
