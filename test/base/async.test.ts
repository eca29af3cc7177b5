import { describe, expect, it } from 'vitest';
import { isPromise, Mutex, Semaphore, SingleFlight, settleAll } from '../../src/base/async.ts';
import { ended, turn } from '../support/manual-store.ts';

interface Gate {
  readonly promise: Promise<void>;
  open(): void;
  fail(error: Error): void;
}

function gate(): Gate {
  let open = (): void => undefined;
  let fail = (_error: Error): void => undefined;
  const promise = new Promise<void>((resolve, reject) => {
    open = resolve;
    fail = reject;
  });
  return { promise, open, fail };
}

describe('settling all', () => {
  it('ends when the last has ended, and tells the first failure in order', async () => {
    const gates = [gate(), gate(), gate()];
    const all = settleAll([undefined, ...gates.map(({ promise }) => promise)]);
    all.catch(() => undefined);
    gates[2]?.fail(new Error('third'));
    gates[1]?.fail(new Error('second'));
    expect(await ended(all)).toBe(false);
    gates[0]?.open();
    await expect(all).rejects.toThrow('second');
  });

  it('ends well when all do', async () => {
    await settleAll([]);
    await settleAll([undefined, Promise.resolve()]);
  });

  it('leaves no failure unhandled while it still waits for another', async () => {
    const unhandled: unknown[] = [];
    const note = (error: unknown): void => void unhandled.push(error);
    process.on('unhandledRejection', note);
    const slow = gate();
    const all = settleAll([slow.promise, Promise.reject(new Error('early'))]);
    all.catch(() => undefined);
    await turn();
    await turn();
    slow.open();
    await expect(all).rejects.toThrow('early');
    process.off('unhandledRejection', note);
    expect(unhandled).toEqual([]);
  });
});

describe('a mutex', () => {
  it('is free of promises when nobody holds it', () => {
    const mutex = new Mutex();
    expect(mutex.acquire()).toBeUndefined();
    expect(mutex.held).toBe(true);
    mutex.release();
    expect(mutex.held).toBe(false);
  });

  it('is handed on in order of arrival, and is never free in between', async () => {
    const mutex = new Mutex();
    void mutex.acquire();
    const order: number[] = [];
    const waiting = [1, 2, 3].map(async (number) => {
      await mutex.acquire();
      order.push(number);
      await turn();
      mutex.release();
    });
    mutex.release();
    expect(mutex.held).toBe(true);
    expect(mutex.acquire()).toBeInstanceOf(Promise);
    await Promise.all(waiting);
    expect(order).toEqual([1, 2, 3]);
  });

  it('is released when its body fails', async () => {
    const mutex = new Mutex();
    await expect(mutex.run(() => Promise.reject(new Error('no')))).rejects.toThrow('no');
    expect(mutex.held).toBe(false);
    expect(await mutex.run(() => 5)).toBe(5);
  });
});

describe('a semaphore', () => {
  it('lets so many in, and the next in order of arrival', async () => {
    const semaphore = new Semaphore(2);
    expect([semaphore.acquire(), semaphore.acquire()]).toEqual([undefined, undefined]);
    const third = semaphore.acquire();
    const fourth = semaphore.acquire();
    semaphore.release();
    expect(await ended(third)).toBe(true);
    expect(await ended(fourth)).toBe(false);
    semaphore.release();
    expect(await ended(fourth)).toBe(true);
    semaphore.release();
    semaphore.release();
    expect(semaphore.acquire()).toBeUndefined();
  });
});

describe('single flight', () => {
  it('runs once for all who ask while it runs', async () => {
    const flights = new SingleFlight<string, number>();
    let runs = 0;
    const start = async (): Promise<number> => {
      await turn();
      return ++runs;
    };
    const all = await Promise.all([flights.run('a', start), flights.run('a', start), flights.run('b', start)]);
    expect(all).toEqual([1, 1, 2]);
    expect(flights.get('a')).toBeUndefined();
    expect(await flights.run('a', start)).toBe(3);
  });

  it('forgets a failed run before it tells those who wait', async () => {
    const flights = new SingleFlight<string, number>();
    const failing = flights.run('a', async () => {
      await turn();
      throw new Error('no');
    });
    const retried = failing.catch(() => flights.run('a', () => Promise.resolve(7)));
    expect(await retried).toBe(7);
  });
});

it('promises are told from values', () => {
  expect([isPromise(Promise.resolve(1)), isPromise(1)]).toEqual([true, false]);
});
