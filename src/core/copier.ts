/** Moves ranges through reused buffers with several requests in flight. Knows offsets and buffers, not what is copied.
 *  Sync on hit: as long as reads and writes end at once, no promise is made and one buffer serves all.
 *  Invariants: in ordered mode a write begins when the one before it has ended; after a failure nothing more is written;
 *  `finish` ends when everything that was started has ended. */
import type { Pending } from '../base/async.ts';
import { assert } from '../base/errors.ts';
import { throwIfAborted } from '../base/job.ts';
import type { BufferPool } from './buffer-pool.ts';

export interface CopierOptions {
  /** As many requests are in flight as the pool has buffers. */
  readonly buffers: BufferPool;
  /** `serial`: writes one after the other, in the order of the ranges. `started`: they begin in that order and run together.
   *  `free`: each as soon as its data is there. */
  readonly order: 'serial' | 'started' | 'free';
  /** Fills `into` with the range. */
  read(offset: number, into: Uint8Array): Pending;
  /** Stores the range; `from` is the copier's again when the Pending ends. */
  write(offset: number, from: Uint8Array): Pending;
  readonly signal?: AbortSignal | undefined;
}

export class Copier {
  readonly #options: CopierOptions;
  #running = 0;
  #failure: { readonly error: unknown } | undefined;
  /** Ends when the newest task's turn to write has passed; `undefined` when nobody is before the next one. Never rejects. */
  #turn: Promise<void> | undefined;
  /** Told whenever a task has ended. */
  #waiters: (() => void)[] = [];

  constructor(options: CopierOptions) {
    this.#options = options;
  }

  /** Requests that run now. */
  get inFlight(): number {
    return this.#running;
  }

  /** Copies `[offset, offset + length)`, at most one buffer long. One caller at a time.
   *  @returns `undefined` when the next range may be given at once, else when to give it.
   *  @throws the first failure of any range. */
  copy(offset: number, length: number): Pending {
    this.#throwFailure();
    const buffer = this.#options.buffers.take();
    if (buffer === undefined) return this.#copyLater(offset, length);
    this.#begin(offset, length, buffer);
    return undefined;
  }

  /** Waits for all ranges.
   *  @throws the first failure of any range. */
  async finish(): Promise<void> {
    while (this.#running > 0) await this.#ended();
    this.#throwFailure();
  }

  async #copyLater(offset: number, length: number): Promise<void> {
    const { buffers } = this.#options;
    let buffer = buffers.take();
    while (buffer === undefined) {
      assert(this.#running > 0, 'the copier waits for a buffer that nobody will give back');
      await this.#ended();
      this.#throwFailure();
      buffer = buffers.take();
    }
    this.#begin(offset, length, buffer);
  }

  #ended(): Promise<void> {
    return new Promise((resolve) => {
      this.#waiters.push(resolve);
    });
  }

  #begin(offset: number, length: number, buffer: Uint8Array): void {
    const { read, write, buffers, order, signal } = this.#options;
    const part = length === buffer.length ? buffer : buffer.subarray(0, length);
    let reading: Pending;
    let writing: Pending;
    let written = false;
    try {
      throwIfAborted(signal);
      reading = read(offset, part);
      if (reading === undefined && (this.#turn === undefined || order === 'free')) {
        writing = write(offset, part);
        written = true;
      }
    } catch (error) {
      buffers.give(buffer);
      this.#failure ??= { error };
      throw error;
    }
    if (written && writing === undefined) {
      buffers.give(buffer);
      return;
    }
    let pass = (): void => {};
    const before = this.#turn;
    const passed = new Promise<void>((resolve) => {
      pass = resolve;
    });
    if (order !== 'free' && !(written && order === 'started')) this.#turn = passed;
    this.#running++;
    void this.#task(buffer, passed, pass, async () => {
      if (writing !== undefined) return writing;
      if (reading !== undefined) await reading;
      if (before !== undefined && order !== 'free') await before;
      if (this.#failure !== undefined) return;
      throwIfAborted(signal);
      const late = write(offset, part);
      if (order === 'started') pass();
      if (late !== undefined) await late;
    });
  }

  /** Runs one range to its end; never rejects. */
  async #task(buffer: Uint8Array, passed: Promise<void>, pass: () => void, body: () => Promise<void>): Promise<void> {
    try {
      await body();
    } catch (error) {
      this.#failure ??= { error };
    }
    this.#options.buffers.give(buffer);
    this.#running--;
    pass();
    if (this.#turn === passed) this.#turn = undefined;
    const waiters = this.#waiters;
    this.#waiters = [];
    for (const wake of waiters) wake();
  }

  #throwFailure(): void {
    if (this.#failure !== undefined) throw this.#failure.error;
  }
}
