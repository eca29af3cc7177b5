import { describe, expect, it } from 'vitest';
import { ExtentList } from '../../src/core/extent.ts';
import { MemoryStore } from '../../src/storage/memory.ts';
import { FaultStore } from '../../src/testing/fault-store.ts';

const one = Uint8Array.of(1);
const io = expect.objectContaining({ code: 'IO', details: expect.objectContaining({ errno: 'EIO' }) as unknown });

/** Which of `count` one-byte writes at 0, 1, … fail. */
function failing(store: FaultStore, count: number): number[] {
  const failed: number[] = [];
  for (let offset = 0; offset < count; offset++) {
    try {
      if (store.write(offset, one) !== undefined) throw new Error('a promise');
    } catch {
      failed.push(offset);
    }
  }
  return failed;
}

describe('FaultStore', () => {
  it('fails the n-th call of a kind once, or always from there on', () => {
    expect(failing(new FaultStore(new MemoryStore(), [{ on: 'write', nth: 3 }]), 6)).toEqual([2]);
    expect(failing(new FaultStore(new MemoryStore(), [{ on: 'write', nth: 3, always: true }]), 6)).toEqual([
      2, 3, 4, 5,
    ]);
    expect(failing(new FaultStore(new MemoryStore(), [{ on: 'read' }]), 3)).toEqual([]);
  });

  it('fails calls that touch a range', () => {
    const store = new FaultStore(MemoryStore.from(new Uint8Array(100)), [{ offset: 10, length: 5, always: true }]);
    expect(failing(store, 20)).toEqual([10, 11, 12, 13, 14]);
    expect(() => store.read(0, new Uint8Array(11))).toThrow(io);
    expect(store.read(0, new Uint8Array(10))).toBeUndefined();
    expect(() => store.writeZeroes(14, 100)).toThrow(io);
    expect(store.writeZeroes(15, 100)).toBeUndefined();
  });

  it('fails after an event, once for each announcement', () => {
    const store = new FaultStore(new MemoryStore(), [{ event: 'l2_load', on: 'write', nth: 2 }]);
    expect(failing(store, 3)).toEqual([]);
    expect(store.event('l2_load')).toBeUndefined();
    expect(failing(store, 4)).toEqual([1]);
    expect(store.event('cow_write')).toBeUndefined();
    expect(failing(store, 4)).toEqual([]);
    expect(store.event('l2_load')).toBeUndefined();
    expect(failing(store, 4)).toEqual([1]);
  });

  it('fails the announcement itself', () => {
    const store = new FaultStore(new MemoryStore(), [{ on: 'event', event: 'l2_load' }]);
    expect(store.event('l1_load')).toBeUndefined();
    expect(() => store.event('l2_load')).toThrow(io);
    expect(store.event('l2_load')).toBeUndefined();
  });

  it('fails every kind of call, with the errno asked for', async () => {
    const memory = new MemoryStore();
    const calls = {
      read: (store: FaultStore) => store.read(0, new Uint8Array(1)),
      write: (store: FaultStore) => store.writev?.(0, [one]),
      zeroes: (store: FaultStore) => store.writeZeroes(0, 1),
      discard: (store: FaultStore) => store.discard(0, 1),
      extents: (store: FaultStore) => store.extents(0, 1, new ExtentList()),
      flush: (store: FaultStore) => store.flush(),
      truncate: (store: FaultStore) => store.truncate(5),
    } as const;
    for (const [kind, call] of Object.entries(calls)) {
      const store = new FaultStore(memory, [{ on: kind as keyof typeof calls, errno: 'ENOSPC' }]);
      expect(() => call(store)).toThrow(expect.objectContaining({ code: 'NO_SPACE' }));
      expect(call(store)).toBeUndefined();
    }
    expect(memory.size).toBe(5);
    const store = new FaultStore(memory, [{ on: 'close' }]);
    await expect(store.close()).rejects.toEqual(io);
    expect(memory.closed).toBe(false);
  });

  it('rejects instead of throwing when asked', async () => {
    const store = new FaultStore(new MemoryStore(), [{ late: true }]);
    const pending = store.write(0, one);
    expect(pending).toBeInstanceOf(Promise);
    await expect(pending).rejects.toEqual(io);
    expect(store.size).toBe(0);
  });

  it('carries a call out, or part of a write, and reports it as failed', async () => {
    const memory = new MemoryStore();
    const store = new FaultStore(memory, [
      { nth: 1, carriedOut: true },
      { nth: 1, partial: 2 },
    ]);
    await expect(store.write(0, Uint8Array.of(1, 2, 3))).rejects.toEqual(io);
    await expect(store.writev?.(3, [Uint8Array.of(4), Uint8Array.of(5, 6)])).rejects.toEqual(io);
    expect([...memory.bytes()]).toEqual([1, 2, 3, 4, 5]);
  });

  it('counts hits, and stops when cancelled or healed', () => {
    const store = new FaultStore(new MemoryStore());
    const fault = store.fail({ on: 'write', always: true });
    expect(failing(store, 3)).toEqual([0, 1, 2]);
    expect(fault.hits).toBe(3);
    fault.cancel();
    expect(failing(store, 3)).toEqual([]);
    store.fail({ on: 'write', always: true });
    store.heal();
    expect(failing(store, 3)).toEqual([]);
    expect(fault.hits).toBe(3);
  });
});
