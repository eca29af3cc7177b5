/** A store whose requests end late and out of order, to show what code forgets to lock or to wait for.
 *  Owns the scheduler; the bytes are another store's.
 *  Invariants: nothing is copied when a request begins: a read takes bytes, and a write applies the caller's, at a later moment,
 *  in pieces of their own moments; the same seed and the same calls give the same order;
 *  a flush does not wait for requests that run, it covers what had ended before it was called. */
import type { Pending } from '../base/async.ts';
import { BlockError } from '../base/errors.ts';
import { yieldMacrotask } from '../base/job.ts';
import { alignUp } from '../bytes/align.ts';
import type { ExtentList } from '../core/extent.ts';
import type { BlockNode } from '../core/node.ts';
import {
  BaseStore,
  type IoOptions,
  type StoreLimits,
  type StoreStatus,
  type StoreSupports,
  type TruncateOptions,
  type WriteOptions,
  type ZeroOptions,
} from '../core/store.ts';
import { MemoryStore } from '../storage/memory.ts';
import { below, seededRandom } from './random.ts';

export interface LateOptions {
  /** Decides every order. */
  readonly seed: number;
  /** `macrotask`: requests go on by themselves, a few pieces a turn of the event loop. `step`: only by `step()` and `drain()`. */
  readonly mode?: 'macrotask' | 'step';
  /** Pieces of a request have a multiple of this many bytes, 512 by default; 0: each request is one piece. */
  readonly pieceSize?: number;
  /** Pieces at most that one turn applies, 8 by default. */
  readonly piecesPerTurn?: number;
}

/** Pieces of one request at most: larger requests have larger pieces. */
const MAX_PIECES = 64;

interface Request {
  readonly offset: number;
  readonly length: number;
  /** Bytes of a piece; Infinity for a request of one piece. */
  readonly piece: number;
  /** Starts of the pieces that are not applied yet, relative to `offset`. */
  readonly open: number[];
  readonly signal: AbortSignal | undefined;
  apply(start: number, length: number): Pending;
  resolve(): void;
  reject(error: unknown): void;
}

export class LateStore extends BaseStore {
  readonly inner: BlockNode;
  readonly limits: StoreLimits;
  readonly supports: StoreSupports;
  readonly #random: () => number;
  readonly #pieceSize: number;
  readonly #perTurn: number;
  readonly #requests: Request[] = [];
  #byItself: boolean;
  #pumping = false;
  /** Its end tells a `close` that waits for the last request. */
  #idle: (() => void) | undefined;

  /** @param inner a store that answers synchronously (`supports.sync`); an empty memory store by default
   *  @throws {@link BlockError} INVALID_ARGUMENT for one that does not. */
  constructor(options: LateOptions, inner: BlockNode = new MemoryStore({ pageSize: 512 })) {
    super(inner.name, 'late');
    if (!inner.supports.sync) {
      throw new BlockError('INVALID_ARGUMENT', `"${inner.name}": a late store needs a synchronous one behind it`);
    }
    this.inner = inner;
    this.limits = { ...inner.limits, maxInFlight: 16 };
    this.supports = { ...inner.supports, sync: false };
    this.#random = seededRandom(options.seed);
    this.#pieceSize = options.pieceSize ?? 512;
    this.#perTurn = options.piecesPerTurn ?? 8;
    this.#byItself = options.mode !== 'step';
  }

  get size(): number {
    return this.inner.size;
  }

  /** Requests that run. */
  get running(): number {
    return this.#requests.length;
  }

  status(): Promise<StoreStatus> {
    if (this.closed) return Promise.reject(new BlockError('CLOSED', `"${this.name}": status after close`));
    return this.inner.status?.() ?? Promise.resolve({});
  }

  /** Applies up to `count` pieces of running requests, chosen at random.
   *  @returns how many were applied. */
  step(count = 1): number {
    let applied = 0;
    while (applied < count && this.#requests.length > 0) {
      this.#applyOne();
      applied++;
    }
    return applied;
  }

  /** Goes on until nothing runs, requests that callers add meanwhile included. */
  async drain(): Promise<void> {
    while (this.#requests.length > 0) {
      this.step();
      await yieldMacrotask();
    }
  }

  override close(): Promise<void> {
    // closing waits for the end of what runs, so it must go on by itself from here
    this.#byItself = true;
    this.#pump();
    return super.close();
  }

  writev(offset: number, parts: readonly Uint8Array[], options?: WriteOptions): Pending {
    let total = 0;
    for (const part of parts) total += part.length;
    this.checkWrite('write', offset, total);
    if (total === 0) return undefined;
    return this.#later(offset, total, true, options?.signal, (start, length) => {
      let partStart = offset;
      for (const part of parts) {
        const from = Math.max(start, partStart);
        const to = Math.min(start + length, partStart + part.length);
        if (from < to) this.#now(this.inner.write(from, part.subarray(from - partStart, to - partStart)));
        partStart += part.length;
      }
      return undefined;
    });
  }

  protected _read(offset: number, into: Uint8Array, options: IoOptions | undefined): Pending {
    return this.#later(offset, into.length, true, options?.signal, (start, length) =>
      this.inner.read(start, into.subarray(start - offset, start - offset + length)),
    );
  }

  protected _write(offset: number, from: Uint8Array, options: WriteOptions | undefined): Pending {
    return this.#later(offset, from.length, true, options?.signal, (start, length) =>
      this.inner.write(start, from.subarray(start - offset, start - offset + length)),
    );
  }

  protected _writeZeroes(offset: number, length: number, options: ZeroOptions | undefined): Pending {
    return this.#later(offset, length, true, options?.signal, (start, piece) =>
      this.inner.writeZeroes(start, piece, options),
    );
  }

  protected _discard(offset: number, length: number, options: IoOptions | undefined): Pending {
    return this.#later(offset, length, true, options?.signal, (start, piece) => this.inner.discard(start, piece));
  }

  protected _extents(offset: number, length: number, into: ExtentList, options: IoOptions | undefined): Pending {
    return this.#later(offset, length, false, options?.signal, () => this.inner.extents(offset, length, into));
  }

  protected _flush(options: IoOptions | undefined): Pending {
    return this.#later(0, 0, false, options?.signal, () => this.inner.flush());
  }

  protected _truncate(size: number, options: TruncateOptions | undefined): Pending {
    return this.#later(0, 0, false, options?.signal, () => this.inner.truncate(size, options));
  }

  protected async _close(): Promise<void> {
    if (this.#requests.length > 0) {
      await new Promise<void>((resolve) => {
        this.#idle = resolve;
      });
    }
    await this.inner.close();
  }

  #later(
    offset: number,
    length: number,
    divide: boolean,
    signal: AbortSignal | undefined,
    apply: (start: number, length: number) => Pending,
  ): Promise<void> {
    const align = Math.max(this.#pieceSize, this.limits.requestAlign);
    const whole = !divide || this.#pieceSize === 0;
    const piece = whole ? Number.POSITIVE_INFINITY : alignUp(Math.max(Math.ceil(length / MAX_PIECES), align), align);
    const open: number[] = [];
    // pieces end at multiples of their size in the store, as sectors do
    for (let at = 0; at < length; at += piece - ((offset + at) % piece)) open.push(at);
    if (open.length === 0) open.push(0);
    return new Promise<void>((resolve, reject) => {
      this.#requests.push({ offset, length, piece, open, signal, apply, resolve, reject });
      if (this.#byItself) this.#pump();
    });
  }

  #applyOne(): void {
    const index = below(this.#random, this.#requests.length);
    const request = this.#requests[index] as Request;
    try {
      if (request.signal?.aborted === true) {
        throw new BlockError('ABORTED', 'interrupted', { cause: request.signal.reason });
      }
      const [start] = request.open.splice(below(this.#random, request.open.length), 1) as [number];
      const at = request.offset + start;
      const length = Math.min(request.piece - (at % request.piece), request.length - start);
      this.#now(request.apply(at, length));
      if (request.open.length > 0) return;
      this.#requests.splice(index, 1);
      request.resolve();
    } catch (error) {
      this.#requests.splice(index, 1);
      request.reject(error);
    }
    if (this.#requests.length === 0) this.#idle?.();
  }

  #now(pending: Pending): void {
    if (pending !== undefined) throw new BlockError('INTERNAL', `"${this.name}": the store behind is not synchronous`);
  }

  #pump(): void {
    if (this.#pumping || this.#requests.length === 0) return;
    this.#pumping = true;
    void this.#run();
  }

  async #run(): Promise<void> {
    while (this.#requests.length > 0) {
      await yieldMacrotask();
      this.step(1 + below(this.#random, this.#perTurn));
    }
    this.#pumping = false;
  }
}
