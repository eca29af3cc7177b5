/** Byte-range mutual exclusion: overlapping ranges queue in order of arrival, disjoint ones pass. Free of promises when uncontended.
 *  Invariant: a waiter runs only when no earlier range, held or waiting, overlaps it; so nobody starves and nothing deadlocks as long as
 *  a holder takes no second range. */
import type { Pending } from '../base/async.ts';
import { assert } from '../base/errors.ts';

/** One held or waiting range; give it back with `release`. */
export interface RangeTicket {
  readonly start: number;
  readonly end: number;
  /** `undefined`: held already. */
  readonly waiting: Pending;
}

interface Entry {
  readonly start: number;
  readonly end: number;
  waiting: Pending;
  /** Earlier overlapping entries not released yet. */
  blockers: number;
  grant: (() => void) | undefined;
}

export class RangeLock {
  /** In order of arrival. */
  readonly #entries: Entry[] = [];
  readonly #enabled: boolean;

  constructor(enabled = true) {
    this.#enabled = enabled;
  }

  get count(): number {
    return this.#entries.length;
  }

  /** Asks for `[start, end)`; hold it once `waiting` has ended. */
  acquire(start: number, end: number): RangeTicket {
    const entry: Entry = { start, end, waiting: undefined, blockers: 0, grant: undefined };
    if (this.#enabled) for (const other of this.#entries) if (other.start < end && start < other.end) entry.blockers++;
    this.#entries.push(entry);
    if (entry.blockers > 0) {
      entry.waiting = new Promise<void>((resolve) => {
        entry.grant = resolve;
      });
    }
    return entry;
  }

  release(ticket: RangeTicket): void {
    const index = this.#entries.indexOf(ticket as Entry);
    assert(index >= 0, 'a range was released twice');
    this.#entries.splice(index, 1);
    if (!this.#enabled) return;
    for (let i = index; i < this.#entries.length; i++) {
      const later = this.#entries[i] as Entry;
      if (later.start < ticket.end && ticket.start < later.end && --later.blockers === 0) later.grant?.();
    }
  }
}
