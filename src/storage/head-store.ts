/** An image that is created in memory and goes on through a pipe: for formats whose data follow a header that is written once for all.
 *  Owns the moment in between: until `release` every byte can be written and read again, afterwards what was written is sent, and all else goes
 *  to the sink in order.
 *  Invariants: memory is bounded by the header: what is too long for one is refused; the sink stays open when the image closes, for only the
 *  caller knows whether it is whole. */
import type { Pending } from '../base/async.ts';
import { BlockError, hex } from '../base/errors.ts';
import { MiB } from '../base/sizes.ts';
import { EXTENT, type ExtentList } from '../core/extent.ts';
import {
  BaseStore,
  DEFAULT_LIMITS,
  type IoOptions,
  type StoreLimits,
  type StoreSupports,
  type WriteOptions,
  type ZeroOptions,
} from '../core/store.ts';
import type { ForwardSink } from './forward-sink.ts';
import { MemoryStore } from './memory.ts';

/** Headers longer than this are none, bytes. */
const HEADER_LIMIT = 64 * MiB;

export class HeadStore extends BaseStore {
  readonly limits: StoreLimits = { ...DEFAULT_LIMITS, maxInFlight: 1 };
  readonly #sink: ForwardSink;
  readonly #head: MemoryStore;
  /** Where the sink begins, once it has begun. */
  #headEnd: number | undefined;

  constructor(sink: ForwardSink) {
    super(sink.name, 'pipe');
    this.#sink = sink;
    this.#head = new MemoryStore({ name: sink.name });
  }

  get supports(): StoreSupports {
    return { ...this.#sink.supports, access: this.#headEnd === undefined ? 'random' : 'forward' };
  }

  get size(): number {
    return this.#head.size;
  }

  /** Sends the first `headEnd` bytes; what follows them goes straight on. */
  async release(headEnd: number): Promise<void> {
    const head = new Uint8Array(Math.min(headEnd, HEADER_LIMIT));
    await this.#head.read(0, head);
    this.#headEnd = headEnd;
    if (headEnd > 0) await this.#sink.write(0, head);
  }

  protected _read(offset: number, into: Uint8Array, options: IoOptions | undefined): Pending {
    if (this.#headEnd === undefined || offset + into.length <= this.#headEnd) {
      return this.#head.read(offset, into, options);
    }
    return this.#sink.read(offset, into, options);
  }

  protected _write(offset: number, from: Uint8Array, options: WriteOptions | undefined): Pending {
    if (this.#headEnd !== undefined) return this.#sink.write(offset, from, options);
    this.#requireHeader(offset, from.length);
    return this.#head.write(offset, from, options);
  }

  protected _writeZeroes(offset: number, length: number, options: ZeroOptions | undefined): Pending {
    if (this.#headEnd !== undefined) return this.#sink.writeZeroes(offset, length, options);
    this.#requireHeader(offset, length);
    return this.#head.writeZeroes(offset, length, options);
  }

  #requireHeader(offset: number, length: number): void {
    if (offset + length <= HEADER_LIMIT) return;
    throw new BlockError('INTERNAL', `internal error: ${hex(length)} bytes at ${hex(offset)} are no header`);
  }

  protected _discard(): Pending {
    return undefined;
  }

  protected _extents(_offset: number, length: number, into: ExtentList): Pending {
    into.add(length, EXTENT.present + EXTENT.data);
    return undefined;
  }

  protected _flush(options: IoOptions | undefined): Pending {
    return this.#headEnd === undefined ? undefined : this.#sink.flush(options);
  }

  protected _truncate(size: number): Pending {
    return this.#head.truncate(size);
  }

  protected async _close(): Promise<void> {
    await this.#head.close();
  }
}
