import { describe, expect, it } from 'vitest';
import { ExtentList } from '../../src/core/extent.ts';
import { MemoryStore } from '../../src/storage/memory.ts';
import { LateStore } from '../../src/testing/late-store.ts';

const PIECE = 512;

/** Runs eight one-byte writes to one place; the byte that is there at the end and the order of the ends. */
async function race(seed: number): Promise<string> {
  const store = new LateStore({ seed });
  const order: number[] = [];
  const writes = Array.from({ length: 8 }, (_, i) =>
    (store.write(0, Uint8Array.of(i)) as Promise<void>).then(() => order.push(i)),
  );
  await Promise.all(writes);
  const into = new Uint8Array(1);
  await store.read(0, into);
  return `${order.join('')} ${into[0]}`;
}

describe('LateStore', () => {
  it('ends requests late and out of order, the same for the same seed', async () => {
    const results = await Promise.all([1, 2, 3, 4, 5].map((seed) => race(seed)));
    expect(await Promise.all([1, 2, 3, 4, 5].map((seed) => race(seed)))).toEqual(results);
    expect(new Set(results).size).toBeGreaterThan(3);
    expect(results.some((result) => !result.startsWith('01234567'))).toBe(true);
    // the last write to be applied is what stays
    for (const result of results) expect(result.at(7)).toBe(result.at(9));
  });

  it('applies the bytes a buffer has at the end, not those it had at the beginning', async () => {
    const store = new LateStore({ seed: 1, mode: 'step' });
    const bytes = Uint8Array.of(1);
    const pending = store.write(0, bytes);
    bytes[0] = 2;
    expect(store.step()).toBe(1);
    await pending;
    const into = new Uint8Array(1);
    const read = store.read(0, into);
    expect(into[0]).toBe(0);
    await Promise.all([read, store.drain()]);
    expect(into[0]).toBe(2);
  });

  it('lets a read see part of a write that runs beside it', async () => {
    let torn = 0;
    for (let seed = 0; seed < 10; seed++) {
      const store = new LateStore({ seed });
      await store.write(0, new Uint8Array(8 * PIECE).fill(1));
      const into = new Uint8Array(8 * PIECE);
      await Promise.all([store.write(0, new Uint8Array(8 * PIECE).fill(2)), store.read(0, into)]);
      const values = new Set(into);
      if (values.size === 2) torn++;
      for (let at = 0; at < into.length; at += PIECE) expect(new Set(into.subarray(at, at + PIECE)).size).toBe(1);
    }
    expect(torn).toBeGreaterThan(5);
  });

  it('keeps requests whole when asked', async () => {
    for (let seed = 0; seed < 10; seed++) {
      const store = new LateStore({ seed, pieceSize: 0 });
      await store.write(0, new Uint8Array(8 * PIECE).fill(1));
      const into = new Uint8Array(8 * PIECE);
      await Promise.all([store.write(0, new Uint8Array(8 * PIECE).fill(2)), store.read(0, into)]);
      expect(new Set(into).size).toBe(1);
    }
  });

  it('cuts pieces at sectors of the store, whatever the offset', async () => {
    const memory = new MemoryStore();
    const store = new LateStore({ seed: 1, mode: 'step' }, memory);
    const pending = store.write(100, new Uint8Array(1000).fill(1));
    const steps = [1, 2, 3].map(() => store.step());
    expect(steps).toEqual([1, 1, 1]);
    await pending;
    expect(store.step()).toBe(0);
    expect(
      memory
        .bytes()
        .subarray(100)
        .every((byte) => byte === 1),
    ).toBe(true);
    expect(memory.size).toBe(1100);
  });

  it('writes several buffers across pieces as one', async () => {
    for (let seed = 0; seed < 5; seed++) {
      const memory = new MemoryStore();
      const store = new LateStore({ seed }, memory);
      const parts = [700, 0, 3, 1, 2000, 512].map((length, i) => new Uint8Array(length).fill(i + 1));
      await store.writev(300, parts);
      expect(Buffer.compare(memory.bytes().subarray(300), Buffer.concat(parts))).toBe(0);
    }
  });

  it('does not let a flush wait for writes that run', async () => {
    const orders = new Set<string>();
    for (let seed = 0; seed < 10; seed++) {
      const store = new LateStore({ seed });
      const order: string[] = [];
      const both = [
        (store.write(0, Uint8Array.of(1)) as Promise<void>).then(() => order.push('write')),
        (store.flush() as Promise<void>).then(() => order.push('flush')),
      ];
      await Promise.all(both);
      orders.add(order.join());
    }
    expect(orders).toEqual(new Set(['flush,write', 'write,flush']));
  });

  it('does nothing by itself in step mode, and counts what runs', async () => {
    const store = new LateStore({ seed: 1, mode: 'step' });
    const pendings = [store.write(0, new Uint8Array(PIECE)), store.writeZeroes(0, PIECE), store.truncate(10)];
    for (let turn = 0; turn < 5; turn++) await new Promise(setImmediate);
    expect(store.running).toBe(3);
    expect(store.step(2)).toBe(2);
    expect(store.running).toBe(1);
    await Promise.all([...pendings, store.drain()]);
    expect(store.running).toBe(0);
  });

  it('closes when everything has ended, also in step mode', async () => {
    const memory = new MemoryStore();
    const store = new LateStore({ seed: 1, mode: 'step' }, memory);
    const pending = store.write(0, new Uint8Array(5000).fill(1));
    await store.close();
    await pending;
    expect(memory.closed).toBe(true);
    expect(memory.bytes().every((byte) => byte === 1)).toBe(true);
  });

  it('rejects what fails and what is aborted, and goes on', async () => {
    const store = new LateStore({ seed: 1 });
    const controller = new AbortController();
    const aborted = store.write(0, new Uint8Array(5000), { signal: controller.signal });
    const good = store.write(10_000, Uint8Array.of(1));
    controller.abort();
    await expect(aborted).rejects.toMatchObject({ code: 'ABORTED' });
    await good;
    await expect(store.truncate(5, { preallocation: 'full' })).rejects.toMatchObject({ code: 'INVALID_ARGUMENT' });
    expect(store.size).toBe(10_001);
  });

  it('is late with extents as well', async () => {
    const store = new LateStore({ seed: 1 }, MemoryStore.from(new Uint8Array(1000)));
    const list = new ExtentList();
    list.reset(0);
    const pending = store.extents(0, 1000, list);
    expect(list.count).toBe(0);
    await pending;
    expect(list.end).toBe(1000);
  });

  it('refuses a store that is not synchronous', () => {
    expect(() => new LateStore({ seed: 1 }, new LateStore({ seed: 2 }))).toThrow(
      expect.objectContaining({ code: 'INVALID_ARGUMENT' }),
    );
  });
});
