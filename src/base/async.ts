/** Sync-on-hit, async-on-miss plumbing, and mutual exclusion. No I/O.
 *  Invariant: waiters of a Mutex are served in order of arrival. */

/** `undefined`: already done. A function that returns it may throw at once or reject, never both. */
export type Pending = Promise<void> | undefined;
export type MaybePromise<T> = T | Promise<T>;

export function isPromise<T>(value: MaybePromise<T>): value is Promise<T> {
  return value instanceof Promise;
}

/** Waits for every pending of a request before telling the first failure: a request has ended only when all that it
 *  started has ended, else its buffers would be reused under running I/O. */
export async function settleAll(pendings: readonly Pending[]): Promise<void> {
  // All are listened to from the first moment: one that fails while another still runs must not count as unhandled.
  for (const result of await Promise.allSettled(pendings)) if (result.status === 'rejected') throw result.reason;
}

/** Mutual exclusion over awaits; free of promises when uncontended. */
export class Mutex {
  #held = false;
  readonly #waiters: (() => void)[] = [];

  get held(): boolean {
    return this.#held;
  }

  /** Takes the lock; `undefined` when it was free. */
  acquire(): Pending {
    if (!this.#held) {
      this.#held = true;
      return undefined;
    }
    return new Promise<void>((resolve) => {
      this.#waiters.push(resolve);
    });
  }

  /** Hands the lock to the longest waiter. */
  release(): void {
    const next = this.#waiters.shift();
    if (next === undefined) this.#held = false;
    else next();
  }

  async run<T>(body: () => MaybePromise<T>): Promise<T> {
    const waiting = this.acquire();
    if (waiting !== undefined) await waiting;
    try {
      return await body();
    } finally {
      this.release();
    }
  }
}
