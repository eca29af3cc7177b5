/** Bytes in memory: a growable store of sparse pages. Every request ends before it returns.
 *  Invariants: a page that is not there reads as zero; bytes of a page at or past `size` are zero, so that growing again
 *  shows zeros and never old data; holes are whole pages. */
import type { Pending } from '../base/async.ts';
import { BlockError } from '../base/errors.ts';
import { throwIfAborted } from '../base/job.ts';
import { alignUp, isPowerOfTwo } from '../bytes/align.ts';
import { EXTENT, type ExtentList } from '../core/extent.ts';
import {
  BaseStore,
  DEFAULT_LIMITS,
  type IoOptions,
  type StoreLimits,
  type StoreStatus,
  type StoreSupports,
  type TruncateOptions,
  type WriteOptions,
  type ZeroOptions,
} from '../core/store.ts';

export interface MemoryStoreOptions {
  /** What messages call it; `memory` by default. */
  readonly name?: string;
  /** Size at first, bytes, reading as zero. */
  readonly size?: number;
  /** Granularity of holes, bytes: a power of two, 64 KiB by default. */
  readonly pageSize?: number;
  readonly readOnly?: boolean;
  /** Refuse requests that are not multiples of it, as a device opened for direct I/O does; 1 by default. */
  readonly requestAlign?: number;
}

const DEFAULT_PAGE_SIZE = 64 * 1024;

export class MemoryStore extends BaseStore {
  readonly limits: StoreLimits;
  readonly supports: StoreSupports;
  readonly #pageSize: number;
  /** By page number; a Map, because offsets may lie anywhere below 2^53. */
  #pages = new Map<number, Uint8Array>();
  #size: number;

  /** @throws {@link BlockError} INVALID_ARGUMENT for a page size that is no power of two. */
  constructor(options: MemoryStoreOptions = {}) {
    super(options.name ?? 'memory', 'memory');
    const pageSize = options.pageSize ?? DEFAULT_PAGE_SIZE;
    if (!isPowerOfTwo(pageSize)) {
      throw new BlockError('INVALID_ARGUMENT', `"${this.name}": page size ${pageSize} is not a power of two`);
    }
    this.#pageSize = pageSize;
    this.#size = options.size ?? 0;
    const write = options.readOnly !== true;
    this.limits = {
      ...DEFAULT_LIMITS,
      requestAlign: options.requestAlign ?? 1,
      zeroAlign: pageSize,
      discardAlign: pageSize,
      maxInFlight: 1,
    };
    this.supports = {
      write,
      truncate: write,
      writeZeroes: write ? 'fast' : 'no',
      discard: write,
      extents: true,
      fua: write,
      sync: true,
      access: 'random',
    };
  }

  /** A store that holds a copy of `bytes`; pages that are all zero are data all the same. */
  static from(bytes: Uint8Array, options: Omit<MemoryStoreOptions, 'size'> = {}): MemoryStore {
    const store = new MemoryStore({ ...options, size: bytes.length });
    store.#put(0, bytes);
    return store;
  }

  get size(): number {
    return this.#size;
  }

  /** A store over the content this one had when it was closed, as opening a file again gives one.
   *  @throws {@link BlockError} BUSY while this one is open. */
  reopen(options: { readonly readOnly?: boolean } = {}): MemoryStore {
    if (!this.closed) throw new BlockError('BUSY', `"${this.name}": still open`);
    const store = new MemoryStore({
      name: this.name,
      size: this.#size,
      pageSize: this.#pageSize,
      requestAlign: this.limits.requestAlign,
      ...options,
    });
    store.#pages = this.#pages;
    return store;
  }

  /** A copy of everything, `size` bytes; also after close. */
  bytes(): Uint8Array {
    const all = new Uint8Array(this.#size);
    this.#get(0, all);
    return all;
  }

  status(): Promise<StoreStatus> {
    if (this.closed) return Promise.reject(new BlockError('CLOSED', `"${this.name}": status after close`));
    return Promise.resolve({ allocatedBytes: this.#pages.size * this.#pageSize });
  }

  writev(offset: number, parts: readonly Uint8Array[], options?: WriteOptions): Pending {
    let total = 0;
    for (const part of parts) total += part.length;
    this.checkWrite('write', offset, total);
    throwIfAborted(options?.signal);
    let at = offset;
    for (const part of parts) {
      this.#put(at, part);
      at += part.length;
    }
    if (total > 0 && at > this.#size) this.#size = at;
    return undefined;
  }

  protected _read(offset: number, into: Uint8Array, options: IoOptions | undefined): Pending {
    throwIfAborted(options?.signal);
    this.#get(offset, into);
    return undefined;
  }

  protected _write(offset: number, from: Uint8Array, options: WriteOptions | undefined): Pending {
    throwIfAborted(options?.signal);
    this.#put(offset, from);
    if (offset + from.length > this.#size) this.#size = offset + from.length;
    return undefined;
  }

  protected _writeZeroes(offset: number, length: number, options: ZeroOptions | undefined): Pending {
    throwIfAborted(options?.signal);
    const end = offset + length;
    this.#clear(offset, Math.min(end, this.#size), true);
    if (end > this.#size) this.#size = end;
    return undefined;
  }

  protected _discard(offset: number, length: number, options: IoOptions | undefined): Pending {
    throwIfAborted(options?.signal);
    this.#clear(offset, Math.min(offset + length, this.#size), false);
    return undefined;
  }

  protected _extents(offset: number, length: number, into: ExtentList): Pending {
    const stop = offset + length;
    const end = Math.min(stop, this.#size);
    for (let at = offset; at < end; ) {
      const page = Math.floor(at / this.#pageSize);
      const next = Math.min((page + 1) * this.#pageSize, end);
      const flags = this.#pages.has(page) ? EXTENT.present + EXTENT.data : EXTENT.present + EXTENT.zero;
      if (!into.add(next - at, flags, at, this.name)) return undefined;
      at = next;
    }
    const past = Math.max(offset, end);
    if (past < stop) into.add(stop - past, EXTENT.present + EXTENT.zero);
    return undefined;
  }

  protected _flush(): Pending {
    return undefined;
  }

  protected _truncate(size: number, options: TruncateOptions | undefined): Pending {
    throwIfAborted(options?.signal);
    const preallocate = (options?.preallocation ?? 'off') !== 'off';
    if (size < this.#size) {
      if (preallocate) throw shrinkWithPreallocation(this.name, this.#size, size);
      this.#clear(size, alignUp(this.#size, this.#pageSize), true);
    } else if (preallocate) {
      for (let page = Math.floor(this.#size / this.#pageSize); page * this.#pageSize < size; page++) this.#page(page);
    }
    this.#size = size;
    return undefined;
  }

  protected _close(): Promise<void> {
    return Promise.resolve();
  }

  #get(offset: number, into: Uint8Array): void {
    const size = this.#pageSize;
    let done = 0;
    while (done < into.length) {
      const at = offset + done;
      const inPage = at % size;
      const length = Math.min(size - inPage, into.length - done);
      const page = this.#pages.get((at - inPage) / size);
      if (page === undefined) into.fill(0, done, done + length);
      else if (inPage === 0 && length === size) into.set(page, done);
      else into.set(page.subarray(inPage, inPage + length), done);
      done += length;
    }
  }

  #put(offset: number, from: Uint8Array): void {
    const size = this.#pageSize;
    let done = 0;
    while (done < from.length) {
      const at = offset + done;
      const inPage = at % size;
      const length = Math.min(size - inPage, from.length - done);
      const page = this.#page((at - inPage) / size);
      page.set(done === 0 && length === from.length ? from : from.subarray(done, done + length), inPage);
      done += length;
    }
  }

  #page(number: number): Uint8Array {
    let page = this.#pages.get(number);
    if (page === undefined) {
      page = new Uint8Array(this.#pageSize);
      this.#pages.set(number, page);
    }
    return page;
  }

  /** Drops the whole pages of `[start, end)`; `edges`: parts of pages are filled with zeros, else left alone. */
  #clear(start: number, end: number, edges: boolean): void {
    const size = this.#pageSize;
    // the last page is whole when the range covers all of it that counts
    const stop = end === this.#size ? alignUp(end, size) : end;
    const pages = Math.ceil((stop - start) / size) + 1;
    if (pages > this.#pages.size * 2) {
      for (const number of this.#pages.keys()) this.#clearPage(number, start, stop, edges);
    } else {
      for (let number = Math.floor(start / size); number * size < stop; number++) {
        this.#clearPage(number, start, stop, edges);
      }
    }
  }

  #clearPage(number: number, start: number, stop: number, edges: boolean): void {
    const size = this.#pageSize;
    const page = this.#pages.get(number);
    const pageStart = number * size;
    if (page === undefined || pageStart >= stop || pageStart + size <= start) return;
    if (start <= pageStart && pageStart + size <= stop) this.#pages.delete(number);
    else if (edges) page.fill(0, Math.max(start - pageStart, 0), Math.min(stop - pageStart, size));
  }
}

/** What every store answers when space is to be preallocated while it is cut off. */
function shrinkWithPreallocation(name: string, from: number, to: number): BlockError {
  return new BlockError(
    'INVALID_ARGUMENT',
    `"${name}": cannot preallocate when shrinking from ${from} to ${to} bytes`,
    {
      reason: 'store.preallocation-shrink',
      details: { from, to },
    },
  );
}
