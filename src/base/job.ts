/** Long work: progress, cancellation, and giving the event loop its turn. No timers of its own except `yieldMacrotask`. */
import { BlockError } from './errors.ts';

/** `done` never falls within one phase; both are bytes of the guest disk unless the job says otherwise. */
export interface Progress {
  readonly phase: string;
  readonly done: number;
  readonly total: number;
}

export interface JobOptions {
  readonly signal?: AbortSignal;
  readonly onProgress?: (progress: Progress) => void;
}

/** @throws {@link BlockError} ABORTED when the signal has fired; the signal's reason is the cause. */
export function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted === true) throw new BlockError('ABORTED', 'interrupted', { cause: signal.reason });
}

/** One turn of the event loop. Awaiting a settled promise is not enough: signals, progress and other clients would starve. */
export function yieldMacrotask(): Promise<void> {
  return new Promise((resolve) => {
    if (typeof setImmediate === 'function') setImmediate(resolve);
    else setTimeout(resolve, 0);
  });
}

/** Waits `ms` milliseconds, less when the signal fires.
 *  @throws {@link BlockError} ABORTED. */
export async function sleep(ms: number, signal?: AbortSignal): Promise<void> {
  throwIfAborted(signal);
  let wake = (): void => undefined;
  const slept = new Promise<void>((resolve) => {
    wake = resolve;
  });
  const timer = setTimeout(wake, ms);
  signal?.addEventListener('abort', wake);
  await slept;
  clearTimeout(timer);
  signal?.removeEventListener('abort', wake);
  throwIfAborted(signal);
}

/** The longest time that a timer can be set to, milliseconds. */
const LONGEST_TIMER = 2 ** 31 - 1;

/** Time, for what must wait for it: given by the caller where it is to be another one than the system's. */
export interface Clock {
  /** Milliseconds since some moment; never goes back. */
  now(): number;
  /** Runs `task` once, not before `ms` milliseconds from now (or 24 days, if that is less). @returns stops it. */
  after(ms: number, task: () => void): () => void;
}

/** The system's clock. What waits for it keeps the process alive. */
export const SYSTEM_CLOCK: Clock = {
  now: () => performance.now(),
  after: (ms, task) => {
    const timer = setTimeout(task, Math.min(ms, LONGEST_TIMER));
    return () => clearTimeout(timer);
  },
};

/** Runs `task` once, `ms` milliseconds from now (24 days at most), unless the function returned is called before. Keeps no process alive. */
export function later(ms: number, task: () => void): () => void {
  const timer: unknown = setTimeout(task, Math.min(ms, LONGEST_TIMER));
  // Browsers have plain numbers.
  if (typeof timer === 'object' && timer !== null && 'unref' in timer && typeof timer.unref === 'function')
    timer.unref();
  return () => clearTimeout(timer as Parameters<typeof clearTimeout>[0]);
}

/** Tells when synchronous work has run long enough to owe the event loop a turn. */
export class Pacer {
  readonly #budgetMs: number;
  #since: number;

  constructor(budgetMs = 10) {
    this.#budgetMs = budgetMs;
    this.#since = performance.now();
  }

  get due(): boolean {
    return performance.now() - this.#since >= this.#budgetMs;
  }

  /** Counts from now again. */
  restart(): void {
    this.#since = performance.now();
  }

  /** Yields one macrotask and checks the signal. */
  async pause(signal?: AbortSignal): Promise<void> {
    await yieldMacrotask();
    throwIfAborted(signal);
    this.restart();
  }
}
