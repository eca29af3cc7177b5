/** Data transfers on a file descriptor: what the file store and the block-device store have in common.
 *  Requests up to SYNC_LIMIT run at once on this thread (a call through Node's pool costs 8 to 20 times as much), longer
 *  ones in the pool. Knows neither sizes nor holes.
 *  Invariants: a transfer is whole or an error; bytes past the end read as zero; a failed flush makes all later ones fail,
 *  because the kernel forgets which pages it lost. */
import { close, fdatasync, read, readSync, write, writeSync, writev, writevSync } from 'node:fs';
import type { Pending } from '../base/async.ts';
import { type BlockError, fromSystemError, hex } from '../base/errors.ts';
import { throwIfAborted } from '../base/job.ts';
import type { IoOptions } from '../core/store.ts';

/** Longest request that is done synchronously, bytes: about here the pool's overhead becomes small against the copy. */
export const SYNC_LIMIT = 512 * 1024;
/** The same for callers that have nothing else to do, and for those that have. */
const SYNC_LIMIT_THIS = 4 * 1024 * 1024;
const SYNC_LIMIT_POOL = 96 * 1024;

/** Longest request that is done on this thread, bytes, for a caller with that hint. */
export function syncLimit(options: IoOptions | undefined): number {
  switch (options?.thread) {
    case 'this':
      return SYNC_LIMIT_THIS;
    case 'pool':
      return SYNC_LIMIT_POOL;
    default:
      return SYNC_LIMIT;
  }
}

/** Longest single call: Node takes lengths below 2^31, Linux transfers 0x7ffff000 at most. */
const CALL_LIMIT = 1024 * 1024 * 1024;
/** Most buffers in one writev (IOV_MAX of Linux and the BSDs). */
const VECTOR_LIMIT = 1024;
/** Bytes of zeros per call where zeros must be written. */
const ZERO_CALL = 2 * 1024 * 1024;

let zeros: Uint8Array | undefined;

/** Zeros to write from, shared by all; never written to. */
function sharedZeros(): Uint8Array {
  zeros ??= new Uint8Array(SYNC_LIMIT);
  return zeros;
}

export class FdIo {
  readonly fd: number;
  readonly #name: string;
  #running = 0;
  #onIdle: (() => void) | undefined;
  #lost: BlockError | undefined;

  /** Takes over `fd`; `name` is for messages. */
  constructor(fd: number, name: string) {
    this.fd = fd;
    this.#name = name;
  }

  read(offset: number, into: Uint8Array, options: IoOptions | undefined): Pending {
    const signal = options?.signal;
    throwIfAborted(signal);
    if (into.length > syncLimit(options)) return this.#readLater(offset, into, signal);
    try {
      let done = 0;
      while (done < into.length) {
        const count = readSync(this.fd, into, done, into.length - done, offset + done);
        if (count === 0) {
          into.fill(0, done);
          break;
        }
        done += count;
      }
    } catch (error) {
      throw this.failure(error, 'read', offset, into.length);
    }
    return undefined;
  }

  write(offset: number, from: Uint8Array, options: IoOptions | undefined): Pending {
    const signal = options?.signal;
    throwIfAborted(signal);
    if (from.length > syncLimit(options)) return this.#writeLater(offset, from, signal);
    this.writeNow(offset, from);
    return undefined;
  }

  /** Writes on this thread, whatever the length. */
  writeNow(offset: number, from: Uint8Array): void {
    try {
      let done = 0;
      while (done < from.length) done += moved(writeSync(this.fd, from, done, from.length - done, offset + done));
    } catch (error) {
      throw this.failure(error, 'write', offset, from.length);
    }
  }

  /** `total`: the sum of the parts' lengths. */
  writev(offset: number, parts: readonly Uint8Array[], total: number, options: IoOptions | undefined): Pending {
    const signal = options?.signal;
    throwIfAborted(signal);
    if (total > syncLimit(options)) return this.#writevLater(offset, parts, total, signal);
    try {
      const rest = new Vector(parts);
      let done = 0;
      while (done < total) {
        const count = moved(writevSync(this.fd, rest.next(), offset + done));
        rest.advance(count);
        done += count;
      }
    } catch (error) {
      throw this.failure(error, 'write', offset, total);
    }
    return undefined;
  }

  /** Writes zeros one by one: the last resort. */
  writeZeros(offset: number, length: number, signal: AbortSignal | undefined): Pending {
    if (length <= SYNC_LIMIT)
      return this.write(offset, sharedZeros().subarray(0, length), signal === undefined ? undefined : { signal });
    return this.#writeZerosLater(offset, length, signal);
  }

  /** Everything written before is durable when it ends. Always asynchronous. */
  async flush(): Promise<void> {
    if (this.#lost !== undefined) throw this.#lost;
    try {
      await this.run(() => promised((done) => fdatasync(this.fd, done)));
    } catch (error) {
      this.#lost ??= fromSystemError(error, `could not flush "${this.#name}"`, { name: this.#name });
      throw this.#lost;
    }
  }

  /** Closes the descriptor once nothing uses it (a number that is free is given to the next file opened). What was still
   *  being written when it was called is made durable as well.
   *  @param last what is done when nothing uses the descriptor any more */
  async close(last: () => void = () => undefined): Promise<void> {
    try {
      if (this.#running > 0) {
        await new Promise<void>((resolve) => {
          this.#onIdle = resolve;
        });
        await this.flush();
      }
    } finally {
      last();
      await this.#closeNow();
    }
  }

  async #closeNow(): Promise<void> {
    try {
      await promised((done) => close(this.fd, done));
    } catch (error) {
      throw fromSystemError(error, `could not close "${this.#name}"`, { name: this.#name });
    }
  }

  /** Runs asynchronous work on the descriptor; `close` waits for it. */
  async run<T>(body: () => Promise<T>): Promise<T> {
    this.#running++;
    try {
      return await body();
    } finally {
      this.#running--;
      if (this.#running === 0) this.#onIdle?.();
    }
  }

  failure(error: unknown, verb: string, offset: number, length: number): BlockError {
    const doing = `could not ${verb} ${hex(length)} bytes at ${hex(offset)} of "${this.#name}"`;
    return fromSystemError(error, doing, { name: this.#name, offset, length });
  }

  #readLater(offset: number, into: Uint8Array, signal: AbortSignal | undefined): Promise<void> {
    return this.#long('read', offset, into.length, async () => {
      let done = 0;
      while (done < into.length) {
        throwIfAborted(signal);
        const length = Math.min(into.length - done, CALL_LIMIT);
        const at = done;
        const count = await counted((callback) => read(this.fd, into, at, length, offset + at, callback));
        if (count === 0) {
          into.fill(0, done);
          return;
        }
        done += count;
      }
    });
  }

  #writeLater(offset: number, from: Uint8Array, signal: AbortSignal | undefined): Promise<void> {
    return this.#long('write', offset, from.length, async () => {
      let done = 0;
      while (done < from.length) {
        throwIfAborted(signal);
        const length = Math.min(from.length - done, CALL_LIMIT);
        const at = done;
        done += moved(await counted((callback) => write(this.fd, from, at, length, offset + at, callback)));
      }
    });
  }

  #writevLater(
    offset: number,
    parts: readonly Uint8Array[],
    total: number,
    signal: AbortSignal | undefined,
  ): Promise<void> {
    return this.#long('write', offset, total, async () => {
      const rest = new Vector(parts);
      let done = 0;
      while (done < total) {
        throwIfAborted(signal);
        const at = offset + done;
        const count = moved(await counted((callback) => writev(this.fd, rest.next(), at, callback)));
        rest.advance(count);
        done += count;
      }
    });
  }

  #writeZerosLater(offset: number, length: number, signal: AbortSignal | undefined): Promise<void> {
    const block = sharedZeros();
    return this.#long('write zeros', offset, length, async () => {
      let done = 0;
      while (done < length) {
        throwIfAborted(signal);
        const parts: Uint8Array[] = [];
        let rest = Math.min(length - done, ZERO_CALL);
        while (rest > 0) {
          const part = Math.min(rest, block.length);
          parts.push(part === block.length ? block : block.subarray(0, part));
          rest -= part;
        }
        const at = offset + done;
        done += moved(await counted((callback) => writev(this.fd, parts, at, callback)));
      }
    });
  }

  async #long(verb: string, offset: number, length: number, body: () => Promise<void>): Promise<void> {
    try {
      await this.run(body);
    } catch (error) {
      throw this.failure(error, verb, offset, length);
    }
  }
}

/** The part of several buffers that is not written yet, in pieces a system call takes. */
export class Vector {
  readonly #parts: readonly Uint8Array[];
  #index = 0;
  #skip = 0;

  constructor(parts: readonly Uint8Array[]) {
    this.#parts = parts;
    this.advance(0);
  }

  next(): Uint8Array[] {
    const first = this.#parts[this.#index] as Uint8Array;
    const chunk = this.#parts.slice(this.#index, this.#index + VECTOR_LIMIT);
    if (this.#skip > 0) chunk[0] = first.subarray(this.#skip);
    return chunk;
  }

  /** `count` more bytes are written. Empty parts are stepped over, so that no call transfers nothing. */
  advance(count: number): void {
    this.#skip += count;
    for (;;) {
      const part = this.#parts[this.#index];
      if (part === undefined || this.#skip < part.length) return;
      this.#skip -= part.length;
      this.#index++;
    }
  }
}

/** A write that transfers nothing and reports no error would be tried for ever. */
function moved(count: number): number {
  if (count > 0) return count;
  throw Object.assign(new Error('EIO: nothing was written'), { code: 'EIO' });
}

type Callback<T> = (error: NodeJS.ErrnoException | null, value: T) => void;

function counted(start: (callback: Callback<number>) => void): Promise<number> {
  return new Promise((resolve, reject) => {
    start((error, count) => {
      if (error === null) resolve(count);
      else reject(error);
    });
  });
}

/** A call of `node:fs` as a promise. (`node:fs/promises` takes a millisecond to load, at every start.) */
export function promised(start: (callback: (error: NodeJS.ErrnoException | null) => void) => void): Promise<void> {
  return new Promise((resolve, reject) => {
    start((error) => {
      if (error === null || error === undefined) resolve();
      else reject(error);
    });
  });
}
