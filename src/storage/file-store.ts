/** A regular file as a store (Node). Owns size tracking, holes, zeroing, growing and preallocation; the transfers are FdIo's.
 *  What Node lacks (holes, punching, allocation) comes from platform/node/native, loaded at the first request that needs it;
 *  where a call is missing or the file system refuses it, zeros are written and everything is data.
 *  Invariants: `size` never lags behind a write that has ended; growing never cuts off what a write still running has
 *  written past the end; what a failed call left is never assumed, the size is asked again. */
import { fstatSync, ftruncate, ftruncateSync } from 'node:fs';
import { type Pending, settleAll } from '../base/async.ts';
import { BlockError, fromSystemError, hex } from '../base/errors.ts';
import { throwIfAborted } from '../base/job.ts';
import { EXTENT, type ExtentList } from '../core/extent.ts';
import {
  BaseStore,
  DEFAULT_LIMITS,
  type IoOptions,
  type Preallocation,
  type StoreLimits,
  type StoreStatus,
  type StoreSupports,
  type TruncateOptions,
  type WriteOptions,
  type ZeroOptions,
} from '../core/store.ts';
import { type Native, type NativeOutcome, NOT_AVAILABLE, native, type RangeCalls } from '../platform/node/native.ts';
import { FdIo, syncLimit } from './fd-io.ts';
import { FileLocks } from './file-locks.ts';

/** Native range calls longer than this run in the pool, bytes: punching works on extents and is quick for its length. */
const NATIVE_SYNC_LIMIT = 16 * 1024 * 1024;
/** Writes behind the end that are at least so long have their space reserved first, bytes. */
const RESERVE_FROM = 512 * 1024;

export interface FileStoreOptions {
  /** Without the `file:` prefix. */
  readonly name: string;
  readonly readOnly: boolean;
  /** Flushes do nothing, the one of `close` included. */
  readonly unsafe?: boolean | undefined;
  /** Of this `fd`; made here when not given. */
  readonly locks?: FileLocks | undefined;
  /** Where the native calls come from; the platform's by default. */
  readonly native?: () => Native;
}

/** Ways to make a range read as zero, best first for either wish. `reallocate`: punch, then allocate again. */
type ZeroMethod = 'punch' | 'range' | 'reallocate' | 'write';
const ZERO_KEEPING_SPACE: readonly ZeroMethod[] = ['range', 'reallocate', 'write'];
const ZERO_GIVING_SPACE: readonly ZeroMethod[] = ['punch', 'range', 'write'];

export class FileStore extends BaseStore {
  readonly limits: StoreLimits = DEFAULT_LIMITS;
  readonly supports: StoreSupports;
  readonly locks: FileLocks;
  readonly #io: FdIo;
  readonly #loadNative: () => Native;
  readonly #unsafe: boolean;
  readonly #missing = new Set<ZeroMethod | 'extents' | 'allocate' | 'reserve'>();
  #calls: Native | undefined;
  #size: number;
  /** Writes running in the pool that end past `size`, and the furthest end among them. */
  #extending = 0;
  #reach = 0;

  /** Takes over `fd`, an open regular file. */
  constructor(fd: number, options: FileStoreOptions) {
    super(options.name, 'file');
    this.#io = new FdIo(fd, options.name);
    this.#loadNative = options.native ?? native;
    this.locks = options.locks ?? new FileLocks(fd, { name: options.name, native: () => this.#native() });
    this.#size = fstatSync(fd).size;
    this.#unsafe = options.unsafe === true;
    const write = !options.readOnly;
    const can = (call: ZeroMethod | 'extents'): boolean => this.#native().available && !this.#missing.has(call);
    this.supports = {
      write,
      truncate: write,
      // asked for when they are needed: loading the native calls takes longer than opening the file
      get writeZeroes() {
        if (!write) return 'no';
        return can('range') || can('punch') ? 'fast' : 'emulated';
      },
      get discard() {
        return write && can('punch');
      },
      get extents() {
        return can('extents');
      },
      fua: write,
      sync: false,
      access: 'random',
    };
  }

  get size(): number {
    return this.#size;
  }

  get descriptor(): number | undefined {
    return this.closed ? undefined : this.#io.fd;
  }

  status(): Promise<StoreStatus> {
    return this.#io.run(async () => {
      if (this.closed) throw new BlockError('CLOSED', `"${this.name}": status after close`);
      const stat = fstatSync(this.#io.fd, { bigint: true });
      return {
        allocatedBytes: Number(stat.blocks * 512n),
        modifiedSeconds: Number(stat.mtimeNs / 1_000_000_000n),
        identity: `${stat.dev}:${stat.ino}`,
      };
    });
  }

  writev(offset: number, parts: readonly Uint8Array[], options?: WriteOptions): Pending {
    let total = 0;
    for (const part of parts) total += part.length;
    this.checkWrite('write', offset, total);
    if (total === 0) return undefined;
    return this.#written(offset, total, options, () => this.#io.writev(offset, parts, total, options));
  }

  protected _read(offset: number, into: Uint8Array, options: IoOptions | undefined): Pending {
    return this.#io.read(offset, into, options);
  }

  protected _write(offset: number, from: Uint8Array, options: WriteOptions | undefined): Pending {
    const length = from.length;
    if (length > syncLimit(options) || options?.fua === true) {
      return this.#written(offset, length, options, () => this.#io.write(offset, from, options));
    }
    throwIfAborted(options?.signal);
    if (length >= RESERVE_FROM && offset >= this.#size) this.#reserve(offset, length);
    try {
      this.#io.writeNow(offset, from);
    } catch (error) {
      this.#askSize();
      throw error;
    }
    if (offset + length > this.#size) this.#size = offset + length;
    return undefined;
  }

  /** Space for a long write behind the end in one piece: ext4 then takes half the time for the write. Only a favour; what is wrong with the
   *  file the write itself will tell. */
  #reserve(offset: number, length: number): void {
    if (this.#missing.has('reserve')) return;
    try {
      if (this.#native().allocate(this.#io.fd, offset, length) === NOT_AVAILABLE) this.#missing.add('reserve');
    } catch {
      this.#missing.add('reserve');
    }
  }

  protected _writeZeroes(offset: number, length: number, options: ZeroOptions | undefined): Pending {
    throwIfAborted(options?.signal);
    const inside = Math.min(offset + length, this.#size) - offset;
    if (inside > NATIVE_SYNC_LIMIT || options?.fua === true) return this.#zeroLater(offset, length, inside, options);
    if (inside > 0) {
      const written = this.#zeroNow(offset, inside, options);
      if (written !== undefined) return this.#thenExtend(written, offset + length);
    }
    this.#extend(offset + length);
    return undefined;
  }

  protected _discard(offset: number, length: number, options: IoOptions | undefined): Pending {
    throwIfAborted(options?.signal);
    const inside = Math.min(offset + length, this.#size) - offset;
    if (inside <= 0) return undefined;
    if (inside > NATIVE_SYNC_LIMIT) {
      return this.#io.run(async () => this.#punched(await this.#callLater('discard', 'punch', offset, inside)));
    }
    this.#punched(this.#callNow('discard', 'punch', offset, inside));
    return undefined;
  }

  protected _extents(offset: number, length: number, into: ExtentList): Pending {
    const stop = offset + length;
    const end = Math.min(stop, this.#size);
    for (let at = offset; at < end; ) {
      const data = Math.min(this.#seek('data', at, end), end);
      if (data > at && !into.add(data - at, EXTENT.present + EXTENT.zero, at, this.name)) return undefined;
      if (data >= end) break;
      // a hole punched between the two questions must not stop the walk
      const hole = Math.min(Math.max(this.#seek('hole', data, end), data + 1), end);
      if (!into.add(hole - data, EXTENT.present + EXTENT.data, data, this.name)) return undefined;
      at = hole;
    }
    const past = Math.max(offset, end);
    if (past < stop) into.add(stop - past, EXTENT.present + EXTENT.zero);
    return undefined;
  }

  protected _flush(options: IoOptions | undefined): Pending {
    throwIfAborted(options?.signal);
    return this.#unsafe ? undefined : this.#io.flush();
  }

  protected _truncate(size: number, options: TruncateOptions | undefined): Pending {
    throwIfAborted(options?.signal);
    const mode = options?.preallocation ?? 'off';
    if (size < this.#size) {
      if (mode === 'off') return this.#shrink(size);
      throw new BlockError(
        'INVALID_ARGUMENT',
        `"${this.name}": cannot preallocate when shrinking from ${hex(this.#size)} to ${hex(size)} bytes`,
        { reason: 'store.preallocation-shrink', details: { from: this.#size, to: size } },
      );
    }
    if (size > this.#size && mode !== 'off') return this.#preallocate(size, mode, options?.signal);
    this.#extend(size);
    return undefined;
  }

  protected _close(): Promise<void> {
    return this.#io.close(() => this.locks.release());
  }

  #native(): Native {
    this.#calls ??= this.#loadNative();
    return this.#calls;
  }

  /** Runs one write and keeps `size` and `reach` right around it. */
  #written(offset: number, length: number, options: WriteOptions | undefined, start: () => Pending): Pending {
    const end = offset + length;
    const growing = end > this.#size;
    let pending: Pending;
    try {
      pending = start();
    } catch (error) {
      this.#askSize();
      throw error;
    }
    if (pending === undefined) {
      if (growing) this.#size = end;
      return options?.fua === true ? this.#io.flush() : undefined;
    }
    if (growing) this.#reachTo(end);
    return this.#afterWrite(pending, end, growing, options?.fua === true);
  }

  async #afterWrite(pending: Promise<void>, end: number, growing: boolean, fua: boolean): Promise<void> {
    try {
      await pending;
      if (end > this.#size) this.#size = end;
    } catch (error) {
      this.#askSize();
      throw error;
    } finally {
      if (growing) this.#reached();
    }
    if (fua) await this.#io.flush();
  }

  /** Something that runs in the pool will make the file at least this long. */
  #reachTo(end: number): void {
    this.#extending++;
    this.#reach = Math.max(this.#reach, end);
  }

  #reached(): void {
    this.#extending--;
    if (this.#extending === 0) this.#reach = 0;
  }

  /** Grows the file to `end` where it is shorter, with a hole. */
  #extend(end: number): void {
    if (end <= this.#size) return;
    try {
      // a write that runs may have put data past `end` already, and setting the size would cut it off; one zero does not
      if (this.#reach > end) this.#io.writeNow(end - 1, new Uint8Array(1));
      else ftruncateSync(this.#io.fd, end);
    } catch (error) {
      throw this.#resizeFailure(error, end);
    }
    this.#size = end;
  }

  async #thenExtend(pending: Promise<void>, end: number): Promise<void> {
    await pending;
    this.#extend(end);
  }

  #resizeFailure(error: unknown, size: number): BlockError {
    const from = this.#size;
    this.#askSize();
    const doing = `could not resize "${this.name}" from ${hex(from)} to ${hex(size)} bytes`;
    return fromSystemError(error, doing, { name: this.name, size });
  }

  #askSize(): void {
    this.#size = fstatSync(this.#io.fd).size;
  }

  async #shrink(size: number): Promise<void> {
    try {
      await this.#io.run(() => resize(this.#io.fd, size));
    } catch (error) {
      throw this.#resizeFailure(error, size);
    }
    this.#size = size;
  }

  async #preallocate(
    size: number,
    mode: Exclude<Preallocation, 'off'>,
    signal: AbortSignal | undefined,
  ): Promise<void> {
    const from = this.#size;
    this.#reachTo(size);
    try {
      let allocated: NativeOutcome = NOT_AVAILABLE;
      if (mode === 'falloc' && !this.#missing.has('allocate')) {
        allocated = await this.#io.run(() => this.#native().later.allocate(this.#io.fd, from, size - from));
        if (allocated === NOT_AVAILABLE) this.#missing.add('allocate');
      }
      if (allocated === NOT_AVAILABLE) await this.#io.writeZeros(from, size - from, signal);
      this.#size = Math.max(this.#size, size);
    } catch (error) {
      const failure = this.#resizeFailure(error, size);
      // what was reserved so far is of no use to anyone
      if (this.#size > from) await settleAll([Promise.reject(failure), this.#shrink(from)]);
      throw failure;
    } finally {
      this.#reached();
    }
  }

  #zeroMethods(options: ZeroOptions | undefined): readonly ZeroMethod[] {
    return options?.unmap === true ? ZERO_GIVING_SPACE : ZERO_KEEPING_SPACE;
  }

  /** Zeroes a short range inside the file; a promise only where zeros are written in the pool. */
  #zeroNow(offset: number, length: number, options: ZeroOptions | undefined): Pending {
    for (const method of this.#zeroMethods(options)) {
      if (method === 'write') break;
      if (this.#missing.has(method)) continue;
      if (this.#callNow('zero', method, offset, length) === 'done') return undefined;
      this.#missing.add(method);
    }
    if (options?.fastOnly === true) throw this.#tooSlow(offset, length);
    return this.#io.writeZeros(offset, length, options?.signal);
  }

  async #zeroLater(offset: number, length: number, inside: number, options: ZeroOptions | undefined): Promise<void> {
    if (inside > 0) await this.#zeroInside(offset, inside, options);
    this.#extend(offset + length);
    if (options?.fua === true) await this.#io.flush();
  }

  async #zeroInside(offset: number, length: number, options: ZeroOptions | undefined): Promise<void> {
    for (const method of this.#zeroMethods(options)) {
      if (method === 'write') break;
      if (this.#missing.has(method)) continue;
      const outcome = await this.#io.run(() => this.#callLater('zero', method, offset, length));
      if (outcome === 'done') return;
      this.#missing.add(method);
    }
    if (options?.fastOnly === true) throw this.#tooSlow(offset, length);
    await this.#io.writeZeros(offset, length, options?.signal);
  }

  #tooSlow(offset: number, length: number): BlockError {
    return new BlockError('UNSUPPORTED', `"${this.name}": no fast way to zero ${hex(length)} bytes at ${hex(offset)}`, {
      reason: 'store.zeroes-slow',
      details: { offset, length },
    });
  }

  #callNow(verb: string, method: Exclude<ZeroMethod, 'write'>, offset: number, length: number): NativeOutcome {
    const calls: RangeCalls<NativeOutcome> = this.#native();
    const fd = this.#io.fd;
    try {
      if (method === 'range') return calls.zeroRange(fd, offset, length);
      const punched = calls.punchHole(fd, offset, length);
      if (punched !== 'done' || method === 'punch') return punched;
      return calls.allocate(fd, offset, length);
    } catch (error) {
      throw this.#io.failure(error, verb, offset, length);
    }
  }

  async #callLater(
    verb: string,
    method: Exclude<ZeroMethod, 'write'>,
    offset: number,
    length: number,
  ): Promise<NativeOutcome> {
    const calls = this.#native().later;
    const fd = this.#io.fd;
    try {
      if (method === 'range') return await calls.zeroRange(fd, offset, length);
      const punched = await calls.punchHole(fd, offset, length);
      if (punched !== 'done' || method === 'punch') return punched;
      return await calls.allocate(fd, offset, length);
    } catch (error) {
      throw this.#io.failure(error, verb, offset, length);
    }
  }

  #punched(outcome: NativeOutcome): void {
    // a discard is a hint: where holes cannot be made the data stays
    if (outcome === NOT_AVAILABLE) this.#missing.add('punch');
  }

  /** First data (hole) at or after `at`; `end` for a hole where holes are not known, so that all is data. */
  #seek(what: 'data' | 'hole', at: number, end: number): number {
    if (!this.#missing.has('extents')) {
      try {
        const calls = this.#native();
        const found = what === 'data' ? calls.seekData(this.#io.fd, at) : calls.seekHole(this.#io.fd, at);
        // -1: no data any more, or the file is shorter than we knew
        if (found !== NOT_AVAILABLE) return found < 0 ? end : found;
      } catch (error) {
        throw this.#io.failure(error, `find ${what} in`, at, end - at);
      }
      this.#missing.add('extents');
    }
    return what === 'data' ? at : end;
  }
}

function resize(fd: number, size: number): Promise<void> {
  return new Promise((resolve, reject) => {
    ftruncate(fd, size, (error) => {
      if (error === null || error === undefined) resolve();
      else reject(error);
    });
  });
}
