/** Worker threads behind one queue: order, failure, loss of a thread, closing. The workers run the compiled library. */
import { execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { afterEach, describe, expect, it } from 'vitest';
import { WorkerPool } from '../../../src/platform/node/pool.ts';

interface Tasks {
  readonly echo: { readonly request: unknown; readonly reply: { readonly value: unknown; readonly threadId: number } };
  readonly count: { readonly request: { readonly shared: Int32Array; readonly ms: number }; readonly reply: number };
  readonly fail: { readonly request: { readonly code?: string; readonly reason?: string }; readonly reply: never };
  readonly exit: { readonly request: number; readonly reply: never };
  readonly crash: { readonly request: undefined; readonly reply: never };
  readonly uncloneable: { readonly request: undefined; readonly reply: never };
}

const FILE = new URL('./fixtures/pool-worker.mjs', import.meta.url);
const pools: WorkerPool<Tasks>[] = [];

function pool(workers: number, file = FILE, delayMs?: number): WorkerPool<Tasks> {
  const made = new WorkerPool<Tasks>({ file, workers, delayMs });
  pools.push(made);
  return made;
}

function counter(): Int32Array {
  return new Int32Array(new SharedArrayBuffer(4));
}

afterEach(async () => {
  await Promise.all(pools.splice(0).map((made) => made.close()));
});

describe('WorkerPool', () => {
  it('starts no thread before there is a task, and then as many as tasks wait, up to its number', async () => {
    const workers = pool(3);
    expect(workers.started).toBe(0);
    await workers.run('echo', 1);
    expect(workers.started).toBe(1);
    const shared = counter();
    await Promise.all([1, 2, 3, 4, 5, 6, 7, 8].map(() => workers.run('count', { shared, ms: 5 })));
    expect(workers.started).toBe(3);
  });

  it('does each task once, on all of its threads, whatever the delays', async () => {
    const workers = pool(3, FILE, 4);
    const shared = counter();
    const counts = await Promise.all(Array.from({ length: 60 }, () => workers.run('count', { shared, ms: 0 })));
    expect([...counts].sort((a, b) => a - b)).toEqual(Array.from({ length: 60 }, (_, i) => i + 1));
    const echoes = await Promise.all(Array.from({ length: 30 }, (_, i) => workers.run('echo', i)));
    expect(echoes.map((echo) => echo.value)).toEqual(Array.from({ length: 30 }, (_, i) => i));
    expect(new Set(echoes.map((echo) => echo.threadId)).size).toBe(3);
  });

  it('gives a broadcast to every thread that runs, after what it has got before', async () => {
    const workers = pool(3);
    await workers.broadcast('echo', 'nobody there');
    expect(workers.started).toBe(0);
    const shared = counter();
    const running = Promise.all([1, 2, 3].map(() => workers.run('count', { shared, ms: 5 })));
    await workers.broadcast('count', { shared, ms: 0 });
    expect(shared[0]).toBe(6);
    await running;
    await workers.close();
    await workers.broadcast('count', { shared, ms: 0 });
    expect(shared[0]).toBe(6);
  });

  it('tells a failure of a task to its caller only, a BlockError with code and reason', async () => {
    const workers = pool(1);
    const bug = workers.run('fail', {});
    const foreseen = workers.run('fail', { code: 'UNSUPPORTED', reason: 'codec.zstd' });
    const fine = workers.run('echo', 'still there');
    await expect(bug).rejects.toMatchObject({ code: 'INTERNAL', reason: 'pool.task', message: /told to fail/ });
    await expect(foreseen).rejects.toMatchObject({
      code: 'UNSUPPORTED',
      reason: 'codec.zstd',
      message: 'told to fail',
    });
    await expect(fine).resolves.toMatchObject({ value: 'still there' });
  });

  it('refuses a request that cannot be sent, and goes on', async () => {
    const workers = pool(1);
    await expect(workers.run('echo', () => undefined)).rejects.toMatchObject({ code: 'INTERNAL' });
    await expect(workers.run('echo', 2)).resolves.toMatchObject({ value: 2 });
  });

  it.each([
    ['exits', 'exit', 3, /ended with status 3/],
    ['throws outside its task', 'crash', undefined, /told to crash/],
    ['answers with what cannot be sent', 'uncloneable', undefined, /could not be cloned/],
  ] as const)(
    'fails the tasks of a thread that %s, and does the others on a new one',
    async (_what, kind, request, message) => {
      const workers = pool(1);
      const before = await workers.run('echo', 'before');
      const lost = workers.run(kind, request as never);
      const alsoLost = workers.run('count', { shared: counter(), ms: 50 });
      const after = workers.run('echo', 'after');
      const [first, second] = await Promise.allSettled([lost, alsoLost]);
      expect(first).toMatchObject({ reason: { code: 'INTERNAL', reason: 'pool.worker', message } });
      expect(second).toMatchObject({ reason: { code: 'INTERNAL', reason: 'pool.worker' } });
      const reply = await after;
      expect(reply.value).toBe('after');
      expect(reply.threadId).not.toBe(before.threadId);
    },
  );

  it('fails every task when the threads cannot run their file', async () => {
    const workers = pool(2, new URL('./fixtures/no-such-file.mjs', import.meta.url));
    const outcomes = await Promise.allSettled([1, 2, 3, 4, 5].map((value) => workers.run('echo', value)));
    for (const outcome of outcomes) {
      expect(outcome).toMatchObject({ status: 'rejected', reason: { code: 'INTERNAL', reason: 'pool.worker' } });
    }
  });

  it('lets running tasks end when it is closed, refuses waiting and later ones, and ends its threads', async () => {
    const workers = pool(1);
    const shared = counter();
    const tasks = Array.from({ length: 5 }, () => workers.run('count', { shared, ms: 20 }));
    const closing = workers.close();
    expect(workers.close()).toBe(closing);
    const outcomes = await Promise.allSettled(tasks);
    expect(outcomes.map((outcome) => outcome.status)).toEqual([
      'fulfilled',
      'fulfilled',
      'rejected',
      'rejected',
      'rejected',
    ]);
    expect(outcomes[4]).toMatchObject({ reason: { code: 'CLOSED' } });
    await closing;
    expect(shared[0]).toBe(2);
    expect(workers.started).toBe(0);
    await expect(workers.run('echo', 1)).rejects.toMatchObject({ code: 'CLOSED' });
  });

  it('closes although its thread is lost meanwhile', async () => {
    const workers = pool(1);
    const lost = workers.run('exit', 1);
    const closing = workers.close();
    await expect(lost).rejects.toMatchObject({ reason: 'pool.worker' });
    await closing;
  });

  it('keeps the process alive for its tasks, and not for its idle threads', async () => {
    const script = `
      const { WorkerPool } = await import(${JSON.stringify(new URL('../../../dist/platform/node/pool.js', import.meta.url).href)});
      const workers = new WorkerPool({ file: new URL(${JSON.stringify(FILE.href)}), workers: 2 });
      const shared = new Int32Array(new SharedArrayBuffer(4));
      const count = () => workers.run('count', { shared, ms: 50 }).then((n) => console.log('counted', n));
      count().then(count);
    `;
    const { stdout } = await promisify(execFile)(process.execPath, ['--input-type=module', '-e', script], {
      timeout: 30_000,
    });
    expect(stdout).toBe('counted 1\ncounted 2\n');
  });
});
