/** Slows a job down to so many bytes per second, evenly. */
import type { Pending } from '../base/async.ts';
import { sleep } from '../base/job.ts';

/** Shorter waits are not worth a timer, and are made up for by a later one. */
const SHORTEST_WAIT_MS = 5;
/** A pause of the job is not caught up by a burst longer than this. */
const BURST_MS = 100;

export class RateLimit {
  readonly #bytesPerMs: number;
  /** When the bytes taken so far are paid for, milliseconds. */
  #paid = performance.now();

  constructor(bytesPerSecond: number) {
    this.#bytesPerMs = bytesPerSecond / 1000;
  }

  /** Accounts for `bytes` about to be moved. @returns when to move them; `undefined`: now. */
  take(bytes: number, signal?: AbortSignal): Pending {
    const now = performance.now();
    const wait = this.#paid - now;
    this.#paid = Math.max(this.#paid, now - BURST_MS) + bytes / this.#bytesPerMs;
    return wait < SHORTEST_WAIT_MS ? undefined : sleep(wait, signal);
  }
}
