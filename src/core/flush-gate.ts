/** Flushes of one store, shared: everybody who needs "what I wrote is durable" gets a ticket and waits for a flush begun after it.
 *  Invariant: a flush covers only what had ended before it began; one that was already running when the ticket was taken does not count. */
import type { Pending } from '../base/async.ts';
import type { ByteStore } from './store.ts';

export class FlushGate {
  readonly store: ByteStore;
  /** Never flush: the caller has asked for no durability before the end. */
  readonly unsafe: boolean;
  readonly #running = new Map<number, Promise<void>>();
  #begun = 0;
  #done = 0;

  constructor(store: ByteStore, unsafe = false) {
    this.store = store;
    this.unsafe = unsafe;
  }

  /** A claim on the first flush that begins from now on. Take it when the writes it stands for have ended. */
  ticket(): number {
    return this.#begun + 1;
  }

  settled(ticket: number): boolean {
    return this.unsafe || this.#done >= ticket;
  }

  /** Ends when a flush begun after `ticket` was taken has ended; starts one where none runs that would do. */
  settle(ticket: number): Pending {
    if (this.settled(ticket)) return undefined;
    for (const [number, promise] of this.#running) if (number >= ticket) return promise;
    return this.flush();
  }

  /** A new flush, from now. */
  flush(): Pending {
    if (this.unsafe) return undefined;
    const number = ++this.#begun;
    const pending = this.store.flush();
    if (pending === undefined) {
      this.#done = Math.max(this.#done, number);
      return undefined;
    }
    const promise = this.#follow(number, pending);
    this.#running.set(number, promise);
    return promise;
  }

  async #follow(number: number, pending: Promise<void>): Promise<void> {
    try {
      await pending;
      this.#done = Math.max(this.#done, number);
    } finally {
      this.#running.delete(number);
    }
  }
}
