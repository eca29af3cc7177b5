/** A store whose requests end when the test says so, in the order the test says. Bytes move at that moment, not before.
 *  Invariant: without `hold`, everything ends before it returns. */
import type { Pending } from '../../src/base/async.ts';
import { EXTENT, type ExtentList } from '../../src/core/extent.ts';
import {
  BaseStore,
  type BlockEvent,
  DEFAULT_LIMITS,
  type StoreLimits,
  type StoreSupports,
} from '../../src/core/store.ts';

export type HeldKind = 'read' | 'write' | 'zero' | 'discard' | 'flush' | 'extents';

export interface Held {
  readonly kind: HeldKind;
  readonly offset: number;
  readonly length: number;
  finish(): void;
  fail(error?: Error): void;
}

export class ManualStore extends BaseStore {
  readonly limits: StoreLimits = DEFAULT_LIMITS;
  readonly supports: StoreSupports = {
    write: true,
    truncate: true,
    writeZeroes: 'fast',
    discard: true,
    extents: true,
    fua: false,
    sync: false,
    access: 'random',
  };
  /** Content; grows. */
  bytes: Uint8Array;
  /** Kinds whose requests wait. */
  hold = new Set<HeldKind>();
  /** Kinds that fail at once, by throwing. */
  failing = new Set<HeldKind>();
  held: Held[] = [];
  /** Every request as it arrives: `write 512+64`. */
  log: string[] = [];
  events: string[] = [];
  closes = 0;

  constructor(size = 0, name = 'manual') {
    super(name, 'manual');
    this.bytes = new Uint8Array(size);
  }

  get size(): number {
    return this.bytes.length;
  }

  /** The waiting requests of a kind. */
  of(kind: HeldKind): Held[] {
    return this.held.filter((request) => request.kind === kind);
  }

  /** Ends everything that waits, and what that starts, until nothing waits. */
  async drain(): Promise<void> {
    for (await turn(); this.held.length > 0; await turn()) for (const request of [...this.held]) request.finish();
  }

  count(kind: HeldKind): number {
    return this.log.filter((line) => line.startsWith(kind)).length;
  }

  event(name: BlockEvent): Pending {
    this.events.push(name);
    return undefined;
  }

  protected _read(offset: number, into: Uint8Array): Pending {
    return this.#do('read', offset, into.length, () => {
      into.fill(0);
      into.set(this.bytes.subarray(offset, offset + into.length));
    });
  }

  protected _write(offset: number, from: Uint8Array): Pending {
    return this.#do('write', offset, from.length, () => this.#put(offset, from));
  }

  protected _writeZeroes(offset: number, length: number): Pending {
    return this.#do('zero', offset, length, () => this.#put(offset, new Uint8Array(length)));
  }

  protected _discard(offset: number, length: number): Pending {
    return this.#do('discard', offset, length, () => this.#put(offset, new Uint8Array(length).fill(0xdd)));
  }

  protected _extents(offset: number, length: number, into: ExtentList): Pending {
    return this.#do('extents', offset, length, () => {
      into.add(length, EXTENT.present + EXTENT.data, offset, this.name);
    });
  }

  protected _flush(): Pending {
    return this.#do('flush', 0, 0, () => undefined);
  }

  protected _truncate(size: number): Pending {
    const grown = new Uint8Array(size);
    grown.set(this.bytes.subarray(0, size));
    this.bytes = grown;
    return undefined;
  }

  protected async _close(): Promise<void> {
    this.closes++;
  }

  #put(offset: number, from: Uint8Array): void {
    if (offset + from.length > this.bytes.length) void this._truncate(offset + from.length);
    this.bytes.set(from, offset);
  }

  #do(kind: HeldKind, offset: number, length: number, act: () => void): Pending {
    this.log.push(`${kind} ${offset}+${length}`);
    if (this.failing.has(kind)) throw new Error(`${kind} fails at ${offset}`);
    if (!this.hold.has(kind)) {
      act();
      return undefined;
    }
    return new Promise<void>((resolve, reject) => {
      const leave = (): void => void this.held.splice(this.held.indexOf(request), 1);
      const request: Held = {
        kind,
        offset,
        length,
        finish: () => {
          leave();
          act();
          resolve();
        },
        fail: (error = new Error(`${kind} failed at ${offset}`)) => {
          leave();
          reject(error);
        },
      };
      this.held.push(request);
    });
  }
}

/** One turn of the event loop: everything that could go on has gone on. */
export function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

/** Whether a promise has ended yet. */
export async function ended(promise: Promise<unknown> | undefined): Promise<boolean> {
  if (promise === undefined) return true;
  let settled = false;
  promise.then(
    () => {
      settled = true;
    },
    () => {
      settled = true;
    },
  );
  await turn();
  return settled;
}
