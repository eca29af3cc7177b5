/** Worker threads that take tasks from one queue. Knows nothing of what the tasks do: a kind names a handler in the worker file,
 *  and byte arrays in requests lie in shared memory, so that a message costs microseconds whatever it moves.
 *  Invariants: a task runs once, on one worker; its promise ends when it has ended, or when its worker is gone;
 *  workers without a task do not keep the process alive; order of completion is any, and no result depends on it. */
import type { Worker } from 'node:worker_threads';
import { BlockError, type ErrorCode } from '../../base/errors.ts';
import { builtin } from './builtin.ts';
import type { ReplyMessage, TaskMessage, WorkerSettings } from './worker-loop.ts';

/** A table of kinds: what is asked of a worker, and what comes back. Both are cloned on their way. */
export type TaskKinds<Kinds> = { readonly [K in keyof Kinds]: { readonly request: unknown; readonly reply: unknown } };

export interface WorkerPoolOptions {
  /** The file that workers run; it calls `serveTasks`. */
  readonly file: URL;
  /** Worker threads at most, 1 or more. They are started when tasks wait for them. */
  readonly workers: number;
  /** For tests: workers wait for a random time up to this before each task. */
  readonly delayMs?: number | undefined;
}

interface Task {
  readonly message: TaskMessage;
  readonly resolve: (reply: unknown) => void;
  readonly reject: (error: BlockError) => void;
}

interface Seat {
  readonly worker: Worker;
  readonly running: Map<number, Task>;
  cause: unknown;
}

/** Tasks at one worker: the one it runs, and the next, so that it need not wait for this thread in between. */
const TASKS_PER_WORKER = 2;

export class WorkerPool<Kinds extends TaskKinds<Kinds>> {
  readonly #options: WorkerPoolOptions;
  readonly #seats: Seat[] = [];
  readonly #queue: Task[] = [];
  #lastId = 0;
  #closing: Promise<void> | undefined;
  #drained: (() => void) | undefined;

  constructor(options: WorkerPoolOptions) {
    this.#options = options;
  }

  /** Worker threads that run at the moment. */
  get started(): number {
    return this.#seats.length;
  }

  /** Runs a task on some worker. Byte arrays of the request that are not in shared memory are copied.
   *  @throws {@link BlockError} what the handler threw, INTERNAL where that was no BlockError; INTERNAL or IO, reason `pool.worker`, when
   *  the worker ended; CLOSED when the pool is closed before the task began. */
  run<K extends keyof Kinds & string>(kind: K, request: Kinds[K]['request']): Promise<Kinds[K]['reply']> {
    return new Promise((resolve, reject) => {
      if (this.#closing !== undefined) {
        reject(closed());
        return;
      }
      this.#queue.push({ message: { id: ++this.#lastId, kind, request }, resolve, reject });
      this.#dispatch();
    });
  }

  /** Runs a task on every worker that is started, after what it has got before. Those that are lost meanwhile, or start later, miss it. */
  async broadcast<K extends keyof Kinds & string>(kind: K, request: Kinds[K]['request']): Promise<void> {
    if (this.#closing !== undefined) return;
    const asked = this.#seats.map((seat) => {
      return new Promise((resolve, reject) => {
        this.#assign(seat, { message: { id: ++this.#lastId, kind, request }, resolve, reject });
      });
    });
    await Promise.allSettled(asked);
  }

  /** Refuses tasks that wait, lets those at a worker end, and ends the workers. Idempotent. */
  close(): Promise<void> {
    this.#closing ??= this.#end();
    return this.#closing;
  }

  async #end(): Promise<void> {
    for (const task of this.#queue.splice(0)) task.reject(closed());
    if (this.#seats.some((seat) => seat.running.size > 0)) {
      await new Promise<void>((resolve) => {
        this.#drained = resolve;
      });
    }
    await Promise.all(this.#seats.splice(0).map((seat) => seat.worker.terminate()));
  }

  #dispatch(): void {
    while (this.#queue.length > 0) {
      let seat: Seat | undefined;
      try {
        seat = this.#chooseSeat();
      } catch (cause) {
        (this.#queue.shift() as Task).reject(workerGone(cause, 'could not be started'));
        continue;
      }
      if (seat === undefined) return;
      this.#assign(seat, this.#queue.shift() as Task);
    }
  }

  /** The least busy worker, a new one while all are busy and more are allowed; `undefined` when all have enough to do. */
  #chooseSeat(): Seat | undefined {
    let least: Seat | undefined;
    for (const seat of this.#seats) {
      if (least === undefined || seat.running.size < least.running.size) least = seat;
    }
    if (least?.running.size === 0) return least;
    if (this.#seats.length < this.#options.workers) return this.#start();
    return least !== undefined && least.running.size < TASKS_PER_WORKER ? least : undefined;
  }

  #assign(seat: Seat, task: Task): void {
    if (seat.running.size === 0) seat.worker.ref();
    seat.running.set(task.message.id, task);
    try {
      seat.worker.postMessage(task.message);
    } catch (cause) {
      this.#take(seat, task.message.id);
      task.reject(new BlockError('INTERNAL', `internal error: task ${task.message.kind} cannot be sent`, { cause }));
    }
  }

  #start(): Seat {
    const settings: WorkerSettings = { delayMs: this.#options.delayMs ?? 0 };
    const worker = new (builtin('node:worker_threads').Worker)(this.#options.file, {
      workerData: settings,
      execArgv: [],
    });
    const seat: Seat = { worker, running: new Map(), cause: undefined };
    worker.on('message', (message: ReplyMessage) => {
      this.#answered(seat, message);
    });
    worker.on('messageerror', (cause) => {
      // A reply is lost, and nobody knows whose: end the worker, so that every task it has is told.
      seat.cause = cause;
      void worker.terminate();
    });
    worker.on('error', (cause) => {
      seat.cause = cause;
    });
    worker.on('exit', (code) => {
      this.#lost(seat, code);
    });
    this.#seats.push(seat);
    return seat;
  }

  /** Takes a task off a worker's hands. */
  #take(seat: Seat, id: number): Task | undefined {
    const task = seat.running.get(id);
    if (task !== undefined) seat.running.delete(id);
    if (seat.running.size === 0) seat.worker.unref();
    return task;
  }

  #answered(seat: Seat, message: ReplyMessage): void {
    const task = this.#take(seat, message.id);
    // The next task leaves before the answer is worked on.
    this.#dispatch();
    if (task !== undefined) {
      if (message.failure === undefined) task.resolve(message.reply);
      else task.reject(failureOf(task.message.kind, message.failure));
    }
    this.#checkDrained();
  }

  /** A worker has ended. Its tasks cannot be repeated blindly (the task may be what ended it), so they fail; others start a new one. */
  #lost(seat: Seat, code: number): void {
    const at = this.#seats.indexOf(seat);
    if (at >= 0) this.#seats.splice(at, 1);
    const tasks = [...seat.running.values()];
    seat.running.clear();
    for (const task of tasks) task.reject(workerGone(seat.cause, `ended with status ${code}`));
    this.#dispatch();
    this.#checkDrained();
  }

  #checkDrained(): void {
    if (this.#drained !== undefined && this.#seats.every((seat) => seat.running.size === 0)) this.#drained();
  }
}

function closed(): BlockError {
  return new BlockError('CLOSED', 'the worker threads are closed', { reason: 'pool.closed' });
}

/** The system's refusals are IO; anything else that ends a worker is a bug. */
function workerGone(cause: unknown, what: string): BlockError {
  const { code, message } = (cause ?? {}) as { code?: unknown; message?: unknown };
  const ofSystem = code === 'ERR_WORKER_OUT_OF_MEMORY' || code === 'ERR_WORKER_INIT_FAILED';
  const why = typeof message === 'string' ? `: ${message}` : '';
  return new BlockError(ofSystem ? 'IO' : 'INTERNAL', `a worker thread ${what}${why}`, {
    reason: 'pool.worker',
    cause,
  });
}

function failureOf(kind: string, failure: NonNullable<ReplyMessage['failure']>): BlockError {
  const cause = new Error(failure.message);
  cause.stack = failure.stack;
  // Handlers throw BlockErrors for what is foreseen; those have a reason.
  if (typeof failure.reason === 'string' && typeof failure.code === 'string') {
    return new BlockError(failure.code as ErrorCode, failure.message, { reason: failure.reason, cause });
  }
  return new BlockError('INTERNAL', `task ${kind} failed in a worker thread: ${failure.message}`, {
    reason: 'pool.task',
    cause,
  });
}
