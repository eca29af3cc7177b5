/** The worker's end of a pool: takes tasks from its port one after the other and answers each, once.
 *  Invariant: a handler that fails answers with its error; only what happens outside a handler ends the thread. */

import type { MaybePromise } from '../../base/async.ts';
import { builtin } from './builtin.ts';
import type { TaskKinds } from './pool.ts';

export type TaskHandlers<Kinds extends TaskKinds<Kinds>> = {
  readonly [K in keyof Kinds]: (request: Kinds[K]['request']) => MaybePromise<Kinds[K]['reply']>;
};

/** Main thread to worker. */
export interface TaskMessage {
  readonly id: number;
  readonly kind: string;
  readonly request: unknown;
}

/** Worker to main thread. Errors lose their class on the way, so `failure` carries what is needed to make one. */
export interface ReplyMessage {
  readonly id: number;
  readonly reply?: unknown;
  readonly failure?: {
    readonly code: unknown;
    readonly reason: unknown;
    readonly message: string;
    readonly stack: string;
  };
}

/** What a pool gives each worker at its start. */
export interface WorkerSettings {
  /** For tests: each task waits for a random time up to this first. */
  readonly delayMs: number;
}

/** Serves the pool that started this thread, until it is terminated. */
export function serveTasks<Kinds extends TaskKinds<Kinds>>(handlers: TaskHandlers<Kinds>): void {
  const { parentPort, workerData } = builtin('node:worker_threads');
  if (parentPort === null) throw new Error('this file runs in a worker thread only');
  const { delayMs } = workerData as WorkerSettings;
  const serve = async (message: TaskMessage): Promise<void> => {
    if (delayMs > 0) sleep(Math.random() * delayMs);
    let answer: ReplyMessage;
    try {
      const handler = handlers[message.kind as keyof Kinds];
      if (handler === undefined) throw new Error(`no task is called ${message.kind}`);
      answer = { id: message.id, reply: await handler(message.request) };
    } catch (error) {
      answer = { id: message.id, failure: describe(error) };
    }
    parentPort.postMessage(answer);
  };
  parentPort.on('message', (message: TaskMessage) => {
    // What is thrown here (an answer that cannot be cloned) is a bug of a handler: it ends the thread, and the pool tells whose tasks it had.
    void serve(message);
  });
}

function describe(error: unknown): NonNullable<ReplyMessage['failure']> {
  const { code, reason, message, stack } = error as Partial<Record<'code' | 'reason' | 'message' | 'stack', unknown>>;
  return { code, reason, message: String(message ?? error), stack: String(stack ?? '') };
}

function sleep(ms: number): void {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms);
}
