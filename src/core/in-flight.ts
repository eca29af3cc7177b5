/** Which requests run, and which host space waits to be freed until nobody can touch it any more.
 *  Owns request epochs and the deferred frees of architecture section 4.12.
 *  Invariant: space is freed only when (1) every request that had begun when it was dropped has ended, and (2) the table change that
 *  dropped it is durable. A crash before that leaks space; it never shows another cluster's bytes. */
import { assert } from '../base/errors.ts';
import type { EpochSource } from './format.ts';

/** Counts running requests by the order in which they began. */
export class Epochs implements EpochSource {
  /** Ascending: a Set keeps the order of insertion. */
  readonly #running = new Set<number>();
  #last = 0;
  #idle: (() => void)[] = [];

  /** Registers a request; must happen before its first promise is handed out. */
  begin(): number {
    const id = ++this.#last;
    this.#running.add(id);
    return id;
  }

  end(id: number): void {
    assert(this.#running.delete(id), `request ${id} ended twice`);
    if (this.#running.size === 0 && this.#idle.length > 0) {
      const waiters = this.#idle;
      this.#idle = [];
      for (const wake of waiters) wake();
    }
  }

  get running(): number {
    return this.#running.size;
  }

  now(): number {
    return this.#last;
  }

  ended(stamp: number): boolean {
    for (const oldest of this.#running) return oldest > stamp;
    return true;
  }

  /** Ends when no request runs; a later one may have begun by then, unless the caller keeps new ones out. */
  async idle(): Promise<void> {
    while (this.#running.size > 0) {
      await new Promise<void>((resolve) => {
        this.#idle.push(resolve);
      });
    }
  }
}

/** What tells that a table change is durable: a table cache. */
export interface Durability {
  readonly generation: number;
  readonly durableGeneration: number;
}

/** Host space that a table has stopped referring to. Bytes. */
export interface Drop {
  readonly hostOffset: number;
  readonly length: number;
}

interface Noted extends Drop {
  readonly stamp: number;
  readonly tables: Durability;
  readonly generation: number;
}

/** The list of dropped host space of one image. */
export class DeferredFrees {
  readonly #epochs: EpochSource;
  readonly #enabled: boolean;
  readonly #join: boolean;
  #drops: Noted[] = [];
  #bytes = 0;

  /** @param options.join adjacent drops become one; false where each stands for a reference of its own (compressed clusters that share a cluster)
   *  @param options.enabled false frees at once: for the tests that prove the rule. */
  constructor(epochs: EpochSource, options: { readonly join?: boolean; readonly enabled?: boolean } = {}) {
    this.#epochs = epochs;
    this.#enabled = options.enabled ?? true;
    this.#join = options.join ?? true;
  }

  get count(): number {
    return this.#drops.length;
  }

  get bytes(): number {
    return this.#bytes;
  }

  /** Notes space dropped by a change that is already made in `tables` (its generation counts it). */
  add(hostOffset: number, length: number, tables: Durability): void {
    const last = this.#drops.at(-1);
    const stamp = this.#epochs.now();
    const generation = tables.generation;
    this.#bytes += length;
    if (
      this.#join &&
      last !== undefined &&
      last.hostOffset + last.length === hostOffset &&
      last.stamp === stamp &&
      last.tables === tables &&
      last.generation === generation
    ) {
      this.#drops[this.#drops.length - 1] = { ...last, length: last.length + length };
      return;
    }
    this.#drops.push({ hostOffset, length, stamp, tables, generation });
  }

  /** Forgets all: the space has been accounted for otherwise. */
  clear(): void {
    this.#drops = [];
    this.#bytes = 0;
  }

  /** Takes out what may be freed now. The caller frees it, and owns it from here on: what it fails to free is leaked. */
  takeReady(): Drop[] {
    const ready: Drop[] = [];
    const kept: Noted[] = [];
    for (const drop of this.#drops) {
      const safe = this.#epochs.ended(drop.stamp) && drop.tables.durableGeneration >= drop.generation;
      (safe || !this.#enabled ? ready : kept).push(drop);
    }
    if (ready.length > 0) {
      this.#drops = kept;
      for (const drop of ready) this.#bytes -= drop.length;
    }
    return ready;
  }
}
