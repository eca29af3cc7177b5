/** The byte plane: random access to bytes, whatever holds them. Protocols, filters and opened images are all ByteStores.
 *  Owns the contract and `BaseStore`, which checks ranges, alignment, read-only and closed once for every store. No I/O.
 *  Invariants: the caller owns every buffer, and gets it back only when the Pending has ended;
 *  no method returns a byte count: a short transfer is an error or zero fill, by contract. */
import type { Pending } from '../base/async.ts';
import { BlockError, hex } from '../base/errors.ts';
import type { ExtentList } from './extent.ts';
import type { BlockNode, Child } from './node.ts';

export interface IoOptions {
  readonly signal?: AbortSignal;
  /** A hint to stores that can choose. `pool`: the caller has other work meanwhile, do it on another thread where that is worth its cost;
   *  `this`: the caller has none, do it here and now. Not given: by the length of the request. */
  readonly thread?: 'this' | 'pool';
}

export interface WriteOptions extends IoOptions {
  /** Durable when the Pending ends. */
  readonly fua?: boolean;
  /** Store it compressed where the format can: whole units only. */
  readonly compressed?: boolean;
}

export interface ZeroOptions extends WriteOptions {
  /** Space may be given back; the range reads as zero all the same. */
  readonly unmap?: boolean;
  /** Fail with UNSUPPORTED rather than write zeros one by one. */
  readonly fastOnly?: boolean;
}

/** How a grown file gets its space: `off` leaves a hole, `falloc` reserves without writing, `full` writes zeros. */
export type Preallocation = 'off' | 'falloc' | 'full';

export interface TruncateOptions extends IoOptions {
  readonly preallocation?: Preallocation;
}

/** Bytes, all of them. */
export interface StoreLimits {
  /** Offsets and lengths of requests must be multiples of it; 1 for most. */
  readonly requestAlign: number;
  /** Zero and discard requests do best at multiples of it. */
  readonly zeroAlign: number;
  readonly discardAlign: number;
  /** A good size for bulk transfers. */
  readonly preferredIo: number;
  /** No request may be longer. */
  readonly maxIo: number;
  /** How many requests at once make sense. */
  readonly maxInFlight: number;
}

export interface StoreSupports {
  readonly write: boolean;
  readonly truncate: boolean;
  /** `fast`: without transferring the zeros. */
  readonly writeZeroes: 'no' | 'emulated' | 'fast';
  /** `discard` gives space back to whoever holds the store. */
  readonly discard: boolean;
  /** `extents` tells holes from data; otherwise everything is data. */
  readonly extents: boolean;
  readonly fua: boolean;
  /** Every data request ends before it returns: `undefined`, never a promise. */
  readonly sync: boolean;
  /** `forward`: writes at growing offsets only, no reads (pipes). */
  readonly access: 'random' | 'forward';
}

export interface StoreStatus {
  /** Bytes really occupied; `undefined` where it is not known. */
  readonly allocatedBytes?: number;
  /** Modification time, seconds since 1970. */
  readonly modifiedSeconds?: number;
  /** Identity of the thing behind the store: two stores with equal identities are one file (`dev:ino`). */
  readonly identity?: string;
}

/** A named step of a format (`l2_load`, `cow_write`), announced beside its I/O; only fault-injecting filters act on it. */
export type BlockEvent = string;

export interface ByteStore extends AsyncDisposable {
  /** Bytes. */
  readonly size: number;
  readonly limits: StoreLimits;
  readonly supports: StoreSupports;
  /** Number of the open file that holds byte N of the store as its byte N: for threads that read by themselves. */
  readonly descriptor?: number | undefined;
  /** Fills `into` from `offset`; bytes past the end read as zero. */
  read(offset: number, into: Uint8Array, options?: IoOptions): Pending;
  /** Writes all of `from` or throws; a write past the end grows stores that support `truncate`. */
  write(offset: number, from: Uint8Array, options?: WriteOptions): Pending;
  /** One request out of several buffers, laid end to end. */
  writev?(offset: number, parts: readonly Uint8Array[], options?: WriteOptions): Pending;
  /** The range reads as zero afterwards. */
  writeZeroes(offset: number, length: number, options?: ZeroOptions): Pending;
  /** The range's content becomes undefined; a hint that may do nothing. */
  discard(offset: number, length: number, options?: IoOptions): Pending;
  /** Adds the status of the range to `into`, in order, from `offset` on; stops early when the list is full. Covers at least one byte. */
  extents(offset: number, length: number, into: ExtentList, options?: IoOptions): Pending;
  /** Everything completed before this call is durable after it. */
  flush(options?: IoOptions): Pending;
  /** Grows with zeros or cuts off. */
  truncate(size: number, options?: TruncateOptions): Pending;
  /** Flushes; idempotent. Every other call afterwards throws CLOSED. */
  close(): Promise<void>;
  status?(): Promise<StoreStatus>;
  event?(name: BlockEvent): Pending;
}

export const DEFAULT_LIMITS: StoreLimits = {
  requestAlign: 1,
  zeroAlign: 1,
  discardAlign: 1,
  preferredIo: 2 * 1024 * 1024,
  maxIo: 0x7fff_f000,
  maxInFlight: 16,
};

/** The size of a store whose end nobody knows yet, bytes: far above every real one, and a multiple of every unit. */
export const UNKNOWN_SIZE = 2 ** 52;

/** For formats in which the length of the file says how it is to be read.
 *  @throws {@link BlockError} UNSUPPORTED, reason `stream.length`. */
export function requireKnownSize({ size, name }: Pick<BlockNode, 'size' | 'name'>): void {
  if (size !== UNKNOWN_SIZE) return;
  throw new BlockError('UNSUPPORTED', `"${name}": how it is to be read depends on its length, which is not known`, {
    reason: 'stream.length',
  });
}

/** The checks every store owes its callers, once. Subclasses implement the `_` methods and see valid requests only:
 *  open, in range, aligned, writable; zero-length requests never reach them. */
export abstract class BaseStore implements BlockNode {
  abstract readonly size: number;
  abstract readonly limits: StoreLimits;
  abstract readonly supports: StoreSupports;
  /** What messages call it. */
  readonly name: string;
  readonly driver: string;
  readonly children: readonly Child[] = [];
  #closed: Promise<void> | undefined;

  constructor(name: string, driver: string) {
    this.name = name;
    this.driver = driver;
  }

  get closed(): boolean {
    return this.#closed !== undefined;
  }

  read(offset: number, into: Uint8Array, options?: IoOptions): Pending {
    this.#check('read', offset, into.length);
    return into.length === 0 ? undefined : this._read(offset, into, options);
  }

  write(offset: number, from: Uint8Array, options?: WriteOptions): Pending {
    this.checkWrite('write', offset, from.length);
    return from.length === 0 ? undefined : this._write(offset, from, options);
  }

  writeZeroes(offset: number, length: number, options?: ZeroOptions): Pending {
    this.checkWrite('write zeroes', offset, length);
    return length === 0 ? undefined : this._writeZeroes(offset, length, options);
  }

  discard(offset: number, length: number, options?: IoOptions): Pending {
    this.checkWrite('discard', offset, length);
    return length === 0 || !this.supports.discard ? undefined : this._discard(offset, length, options);
  }

  extents(offset: number, length: number, into: ExtentList, options?: IoOptions): Pending {
    this.#check('extents', offset, length);
    return length === 0 ? undefined : this._extents(offset, length, into, options);
  }

  flush(options?: IoOptions): Pending {
    this.#checkOpen('flush');
    return this.supports.write ? this._flush(options) : undefined;
  }

  truncate(size: number, options?: TruncateOptions): Pending {
    this.#checkOpen('truncate');
    if (!this.supports.write) throw this.#readOnly('truncate');
    if (!this.supports.truncate) {
      throw new BlockError('UNSUPPORTED', `"${this.name}": the size cannot be changed`, {
        reason: 'store.truncate',
        details: { size },
      });
    }
    if (!Number.isSafeInteger(size) || size < 0) {
      throw new BlockError('INVALID_ARGUMENT', `"${this.name}": truncate to invalid size ${size}`);
    }
    return this._truncate(size, options);
  }

  close(): Promise<void> {
    if (this.#closed === undefined) {
      const flushed = this.supports.write ? this.#flushAndClose() : this._close();
      this.#closed = flushed;
    }
    return this.#closed;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #flushAndClose(): Promise<void> {
    try {
      await this._flush(undefined);
    } finally {
      await this._close();
    }
  }

  protected abstract _read(offset: number, into: Uint8Array, options: IoOptions | undefined): Pending;
  protected abstract _write(offset: number, from: Uint8Array, options: WriteOptions | undefined): Pending;
  protected abstract _writeZeroes(offset: number, length: number, options: ZeroOptions | undefined): Pending;
  protected abstract _discard(offset: number, length: number, options: IoOptions | undefined): Pending;
  protected abstract _extents(
    offset: number,
    length: number,
    into: ExtentList,
    options: IoOptions | undefined,
  ): Pending;
  protected abstract _flush(options: IoOptions | undefined): Pending;
  protected abstract _truncate(size: number, options: TruncateOptions | undefined): Pending;
  protected abstract _close(): Promise<void>;

  #checkOpen(what: string): void {
    if (this.#closed !== undefined) throw new BlockError('CLOSED', `"${this.name}": ${what} after close`);
  }

  #check(what: string, offset: number, length: number): void {
    this.#checkOpen(what);
    if (
      !Number.isSafeInteger(offset) ||
      offset < 0 ||
      !Number.isSafeInteger(length) ||
      length < 0 ||
      !Number.isSafeInteger(offset + length)
    ) {
      throw new BlockError('OUT_OF_RANGE', `"${this.name}": ${what} of ${length} bytes at ${offset}`, {
        reason: 'store.range',
        details: { offset, length },
      });
    }
    const align = this.limits.requestAlign;
    if (align > 1 && (offset % align !== 0 || length % align !== 0)) {
      throw new BlockError(
        'INVALID_ARGUMENT',
        `"${this.name}": ${what} of ${hex(length)} bytes at ${hex(offset)} is not aligned to ${align}`,
        { reason: 'store.align', details: { offset, length, align } },
      );
    }
  }

  /** The checks of a write, for subclasses that have `writev`. */
  protected checkWrite(what: string, offset: number, length: number): void {
    this.#check(what, offset, length);
    if (!this.supports.write) throw this.#readOnly(what);
    if (!this.supports.truncate && offset + length > this.size) {
      throw new BlockError(
        'OUT_OF_RANGE',
        `"${this.name}": ${what} of ${hex(length)} bytes at ${hex(offset)} passes the end at ${hex(this.size)}`,
        { reason: 'store.range', details: { offset, length, size: this.size } },
      );
    }
  }

  #readOnly(what: string): BlockError {
    return new BlockError('READ_ONLY', `"${this.name}": ${what} on a read-only store`, { reason: 'store.read-only' });
  }
}
