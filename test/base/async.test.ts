import { describe, expect, it } from 'vitest';
import { isPromise, Mutex, settleAll } from '../../src/base/async.ts';
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

it('promises are told from values', () => {
  expect([isPromise(Promise.resolve(1)), isPromise(1)]).toEqual([true, false]);
});
