import { describe, expect, it } from 'vitest';
import { DeferredFrees, Epochs } from '../../src/core/in-flight.ts';
import { ended } from '../support/manual-store.ts';

describe('epochs', () => {
  it('say whether every request that had begun at a moment has ended', () => {
    const epochs = new Epochs();
    const first = epochs.begin();
    const second = epochs.begin();
    const stamp = epochs.now();
    const third = epochs.begin();
    expect(epochs.ended(stamp)).toBe(false);
    epochs.end(second);
    expect(epochs.ended(stamp)).toBe(false);
    epochs.end(first);
    expect(epochs.ended(stamp)).toBe(true);
    expect(epochs.ended(epochs.now())).toBe(false);
    epochs.end(third);
    expect(epochs.ended(epochs.now())).toBe(true);
    expect(epochs.running).toBe(0);
  });

  it('a moment before all requests has ended at once', () => {
    const epochs = new Epochs();
    const stamp = epochs.now();
    epochs.begin();
    expect(epochs.ended(stamp)).toBe(true);
  });

  it('refuse to end a request twice', () => {
    const epochs = new Epochs();
    const id = epochs.begin();
    epochs.end(id);
    expect(() => epochs.end(id)).toThrow('ended twice');
  });

  it('are idle when nothing runs, not merely when what ran has ended', async () => {
    const epochs = new Epochs();
    await epochs.idle();
    const first = epochs.begin();
    const idle = epochs.idle();
    epochs.end(first);
    const second = epochs.begin();
    expect(await ended(idle)).toBe(false);
    epochs.end(second);
    expect(await ended(idle)).toBe(true);
  });

  it('wake everybody who waits for idleness', async () => {
    const epochs = new Epochs();
    const id = epochs.begin();
    const all = [epochs.idle(), epochs.idle()];
    epochs.end(id);
    await Promise.all(all);
  });
});

describe('deferred frees', () => {
  const tables = (): { generation: number; durableGeneration: number } => ({ generation: 1, durableGeneration: 0 });

  it('come out when the older requests have ended and the change is durable, not before', () => {
    const epochs = new Epochs();
    const frees = new DeferredFrees(epochs);
    const cache = tables();
    const reader = epochs.begin();
    frees.add(4096, 512, cache);
    epochs.begin();
    expect(frees.takeReady()).toEqual([]);
    cache.durableGeneration = 1;
    expect(frees.takeReady()).toEqual([]);
    cache.durableGeneration = 0;
    epochs.end(reader);
    expect(frees.takeReady()).toEqual([]);
    cache.durableGeneration = 1;
    expect(frees.takeReady()).toMatchObject([{ hostOffset: 4096, length: 512 }]);
    expect(frees.takeReady()).toEqual([]);
    expect([frees.count, frees.bytes]).toEqual([0, 0]);
  });

  it('join neighbours of one moment, and keep those of different moments apart', () => {
    const epochs = new Epochs();
    const frees = new DeferredFrees(epochs);
    const cache = tables();
    frees.add(4096, 512, cache);
    frees.add(4608, 512, cache);
    expect([frees.count, frees.bytes]).toEqual([1, 1024]);
    frees.add(8192, 512, cache);
    cache.generation = 2;
    frees.add(8704, 512, cache);
    epochs.begin();
    frees.add(9216, 512, cache);
    frees.add(9728, 512, tables());
    expect([frees.count, frees.bytes]).toEqual([5, 1024 + 4 * 512]);
  });

  it('keep every reference of its own where they do not join', () => {
    const frees = new DeferredFrees(new Epochs(), { join: false });
    const cache = tables();
    frees.add(4096, 512, cache);
    frees.add(4608, 512, cache);
    expect(frees.count).toBe(2);
  });

  it('come out in the order they went in, the ready ones only', () => {
    const epochs = new Epochs();
    const frees = new DeferredFrees(epochs);
    const late = tables();
    const soon = { generation: 1, durableGeneration: 1 };
    frees.add(0, 512, soon);
    frees.add(4096, 512, late);
    frees.add(8192, 512, soon);
    expect(frees.takeReady().map(({ hostOffset }) => hostOffset)).toEqual([0, 8192]);
    expect([frees.count, frees.bytes]).toEqual([1, 512]);
  });

  it('come out at once when the rule is off', () => {
    const epochs = new Epochs();
    epochs.begin();
    const frees = new DeferredFrees(epochs, { enabled: false });
    frees.add(0, 512, tables());
    expect(frees.takeReady()).toHaveLength(1);
  });
});
