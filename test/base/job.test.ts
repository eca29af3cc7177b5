import { afterEach, describe, expect, it, vi } from 'vitest';
import { later, Pacer, throwIfAborted, yieldMacrotask } from '../../src/base/job.ts';

afterEach(() => {
  vi.restoreAllMocks();
});

describe('abort checks', () => {
  it('throw ABORTED with the reason as cause once the signal has fired', () => {
    const controller = new AbortController();
    throwIfAborted(undefined);
    throwIfAborted(controller.signal);
    controller.abort('stop');
    expect(() => throwIfAborted(controller.signal)).toThrow(
      expect.objectContaining({ code: 'ABORTED', cause: 'stop' }),
    );
  });
});

describe('a turn of the event loop', () => {
  it('lets everything else run first, which awaiting a settled promise does not', async () => {
    const order: string[] = [];
    setImmediate(() => order.push('other'));
    await Promise.resolve();
    expect(order).toEqual([]);
    await yieldMacrotask();
    expect(order).toEqual(['other']);
  });
});

describe('a task for later', () => {
  it('is run once when its time has come, and not when it was called off; times of months are cut', () => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
    try {
      let runs = 0;
      later(1000, () => runs++);
      const stop = later(500, () => runs++);
      stop();
      vi.advanceTimersByTime(999);
      expect(runs).toBe(0);
      vi.advanceTimersByTime(5000);
      expect(runs).toBe(1);
      // Without the cut a timer of that length would run at once.
      later(1000 * 2 ** 32, () => runs++);
      vi.advanceTimersByTime(1_000_000);
      expect(runs).toBe(1);
    } finally {
      vi.useRealTimers();
    }
  });
});

describe('a pacer', () => {
  it('is due when its time has passed, and not again right after the pause', async () => {
    let now = 100;
    vi.spyOn(performance, 'now').mockImplementation(() => now);
    const pacer = new Pacer(10);
    expect(pacer.due).toBe(false);
    now += 9;
    expect(pacer.due).toBe(false);
    now += 1;
    expect(pacer.due).toBe(true);
    await pacer.pause();
    expect(pacer.due).toBe(false);
  });

  it('notices an abort that came with the turn it gave away', async () => {
    const controller = new AbortController();
    setImmediate(() => controller.abort());
    await expect(new Pacer().pause(controller.signal)).rejects.toMatchObject({ code: 'ABORTED' });
  });
});
