/** Shared memory in which requests travel to worker threads: made when needed, used again, bounded.
 *  Invariants: slots in use and kept for reuse take at most `limit` bytes together, except one that is larger by itself and then alone;
 *  requests are served in order of arrival. */

import type { MaybePromise } from '../../base/async.ts';
import { assert, type BlockError } from '../../base/errors.ts';

/** Smallest slot: below it, slots of slightly different sizes would not be reused. */
const SMALLEST = 128 * 1024;

interface Waiter {
  readonly length: number;
  readonly resolve: (slot: Uint8Array) => void;
  readonly reject: (error: BlockError) => void;
}

export class SharedSlots {
  readonly #limit: number;
  /** In use and idle. */
  #bytes = 0;
  #inUse = 0;
  readonly #idle: Uint8Array[] = [];
  readonly #waiters: Waiter[] = [];

  /** @param limit bytes of shared memory at most. */
  constructor(limit: number) {
    this.#limit = limit;
  }

  /** Shared memory held at the moment, in bytes. */
  get bytes(): number {
    return this.#bytes;
  }

  /** A slot of at least `length` bytes with old content; a promise when the limit is reached and others must be given back first. */
  take(length: number): MaybePromise<Uint8Array> {
    const slot = this.#waiters.length === 0 ? this.#find(length) : undefined;
    if (slot !== undefined) return slot;
    return new Promise((resolve, reject) => {
      this.#waiters.push({ length, resolve, reject });
    });
  }

  give(slot: Uint8Array): void {
    assert(this.#inUse > 0, 'a slot came back that was not taken');
    this.#inUse--;
    if (slot.length > this.#limit) this.#bytes -= slot.length;
    else this.#idle.push(slot);
    while (this.#waiters.length > 0) {
      const next = this.#waiters[0] as Waiter;
      const found = this.#find(next.length);
      if (found === undefined) break;
      this.#waiters.shift();
      next.resolve(found);
    }
  }

  /** Refuses everybody who waits, and forgets the idle slots. */
  close(error: BlockError): void {
    for (const waiter of this.#waiters.splice(0)) waiter.reject(error);
    while (this.#idle.length > 0) this.#drop();
  }

  #find(length: number): Uint8Array | undefined {
    let best = -1;
    for (let i = 0; i < this.#idle.length; i++) {
      const size = (this.#idle[i] as Uint8Array).length;
      if (size >= length && (best < 0 || size < (this.#idle[best] as Uint8Array).length)) best = i;
    }
    if (best >= 0) {
      this.#inUse++;
      return this.#idle.splice(best, 1)[0] as Uint8Array;
    }
    const size = slotSize(length);
    while (this.#idle.length > 0 && this.#bytes + size > this.#limit) this.#drop();
    if (this.#bytes + size > this.#limit && this.#inUse > 0) return undefined;
    this.#inUse++;
    this.#bytes += size;
    return new Uint8Array(new SharedArrayBuffer(size));
  }

  #drop(): void {
    this.#bytes -= (this.#idle.pop() as Uint8Array).length;
  }
}

/** Whole powers of two up to 4 MiB, whole 4 MiB above: few sizes, so that slots fit again. */
function slotSize(length: number): number {
  const step = 4 * 1024 * 1024;
  if (length > step) return Math.ceil(length / step) * step;
  let size = SMALLEST;
  while (size < length) size *= 2;
  return size;
}
