import { describe, expect, it, vi } from 'vitest';
import { isPromise } from '../../src/base/async.ts';
import { FlushGate } from '../../src/core/flush-gate.ts';
import { ALL_RULES } from '../../src/core/safety.ts';
import {
  CacheBudget,
  type Table,
  TableCache,
  type TableCacheOptions,
  type TableLease,
} from '../../src/core/table-cache.ts';
import { ended, ManualStore, turn } from '../support/manual-store.ts';

const SIZE = 64;

interface Rig {
  readonly store: ManualStore;
  readonly gate: FlushGate;
  readonly budget: CacheBudget;
  readonly cache: TableCache;
  another(options?: Partial<TableCacheOptions>): TableCache;
}

/** Table `i` of the store is filled with the byte `i + 1`. */
function rig(options: Partial<TableCacheOptions> & { limit?: number } = {}): Rig {
  const store = new ManualStore(64 * SIZE);
  for (let i = 0; i < 64; i++) store.bytes.fill(i + 1, i * SIZE, (i + 1) * SIZE);
  const gate = new FlushGate(store);
  const budget = new CacheBudget(options.limit ?? 1024 * SIZE);
  const another = (more: Partial<TableCacheOptions> = {}): TableCache =>
    new TableCache({ name: 'tables', store, gate, tableSize: SIZE, budget, ...options, ...more });
  return { store, gate, budget, another, cache: another() };
}

/** Changes one byte of a table. */
async function change(cache: TableCache, table: number, at: number, value: number): Promise<void> {
  using lease = await cache.lease(table * SIZE);
  lease.table.bytes[at] = value;
  lease.markDirty(at, at + 1);
}

describe('a table cache', () => {
  it('gives a table at once when it is in memory and when the store answers at once', () => {
    const { cache, store } = rig();
    expect(cache.peek(SIZE)).toBeUndefined();
    const table = cache.load(SIZE);
    expect(isPromise(table)).toBe(false);
    expect((table as Table).bytes[0]).toBe(2);
    expect(cache.peek(SIZE)).toBe(table);
    expect(cache.load(SIZE)).toBe(table);
    expect(cache.lease(SIZE)).toBe(table);
    expect(store.count('read')).toBe(1);
    expect(cache.stats.loads).toBe(1);
  });

  it('reads a table once however many ask for it at the same time', async () => {
    const { cache, store } = rig();
    store.hold.add('read');
    const asked = [cache.load(0), cache.load(0), cache.lease(0), cache.load(0)];
    await store.drain();
    const tables = await Promise.all(asked);
    expect(new Set(tables).size).toBe(1);
    expect(store.count('read')).toBe(1);
  });

  it('reads it twice, and loses a change, when single flight is switched off', async () => {
    const { cache, store } = rig({ rules: { ...ALL_RULES, singleFlight: false } });
    store.hold.add('read');
    const first = cache.lease(0);
    const second = cache.lease(0);
    expect(store.count('read')).toBe(2);
    store.of('read')[0]?.finish();
    const early = await first;
    early.table.bytes[0] = 99;
    early.markDirty(0, 1);
    store.of('read')[0]?.finish();
    expect((await second).table.bytes[0]).toBe(1);
    await cache.writeBack();
    expect(store.bytes[0]).toBe(1);
  });

  it('forgets a failed load before it tells those who wait, so that the next caller reads again', async () => {
    const { cache, store, budget } = rig();
    store.hold.add('read');
    const retried = Promise.resolve(cache.load(0)).catch(() => cache.load(0));
    const other = Promise.resolve(cache.load(0));
    other.catch(() => undefined);
    store.of('read')[0]?.fail();
    await expect(other).rejects.toThrow('read failed');
    await store.drain();
    expect((await retried).bytes[0]).toBe(1);
    expect(store.count('read')).toBe(2);
    expect(budget.used).toBe(SIZE);
  });

  it('takes no memory for loads that fail at once or do not validate', () => {
    const { store, budget, another } = rig();
    store.failing.add('read');
    const cache = another();
    expect(() => cache.load(0)).toThrow('read fails');
    store.failing.clear();
    const strict = another({
      validate: () => {
        throw new Error('bad table');
      },
    });
    expect(() => strict.load(0)).toThrow('bad table');
    expect(strict.peek(0)).toBeUndefined();
    expect(budget.used).toBe(0);
  });

  it('does not validate a table of a late store into the cache either', async () => {
    const { store, another } = rig();
    store.hold.add('read');
    const strict = another({
      validate: () => {
        throw new Error('bad table');
      },
    });
    const loading = Promise.resolve(strict.load(0));
    loading.catch(() => undefined);
    await store.drain();
    await expect(loading).rejects.toThrow('bad table');
    expect(strict.peek(0)).toBeUndefined();
  });

  it('refuses an offset that is no table offset', () => {
    const { cache } = rig();
    expect(() => cache.load(SIZE + 8)).toThrow('is no table offset');
  });

  it('announces loads and writes by their events', async () => {
    const { cache, store } = rig({ loadEvent: 'l2_load', writeEvent: 'l2_update' });
    await change(cache, 0, 0, 9);
    await cache.writeBack();
    expect(store.events).toEqual(['l2_load', 'l2_update']);
  });
});

describe('the memory of a table cache', () => {
  it('stays within the budget by evicting clean tables', () => {
    const { cache, budget } = rig({ limit: 6 * SIZE });
    for (let i = 0; i < 40; i++) void cache.load(i * SIZE);
    expect(budget.used).toBeLessThanOrEqual(6 * SIZE);
    expect(cache.stats.evictions).toBe(34);
  });

  it('keeps a table that is used again and again', () => {
    const { cache, store } = rig({ limit: 6 * SIZE });
    for (let i = 0; i < 40; i++) {
      void cache.load(i * SIZE);
      void cache.load(0);
    }
    // Once at first and once for CLOCK's first round, in which everything looks recent.
    expect(store.log.filter((line) => line === `read 0+${SIZE}`)).toHaveLength(2);
  });

  it('lets every cache hold four tables whatever the budget says', () => {
    const { cache, another, budget } = rig({ limit: 0 });
    const other = another();
    for (let i = 0; i < 10; i++) {
      void cache.load(i * SIZE);
      void other.load(i * SIZE);
    }
    expect(budget.used).toBe(8 * SIZE);
  });

  it('never evicts a leased or a dirty table', async () => {
    const { cache } = rig({ limit: 4 * SIZE });
    const lease = await cache.lease(0);
    await change(cache, 1, 0, 77);
    for (let i = 2; i < 20; i++) void cache.load(i * SIZE);
    expect(cache.peek(0)).toBe(lease.table);
    expect(cache.peek(SIZE)?.bytes[0]).toBe(77);
    lease.release();
  });

  it('lets readers pass the budget when all tables are dirty, and does not make them wait for a flush', async () => {
    const { cache, another, store, budget } = rig({ limit: 4 * SIZE });
    const after = another();
    after.writeAfter(cache);
    store.hold.add('flush');
    await change(cache, 30, 0, 1);
    for (let i = 0; i < 4; i++) {
      after.writeAfter(cache);
      await change(after, i, 0, 99);
    }
    // Write-back of these waits for a flush that never ends: readers must not care.
    const table = after.load(10 * SIZE);
    expect(isPromise(table)).toBe(false);
    expect(budget.used).toBeGreaterThan(4 * SIZE);
    await store.drain();
    await after.quiesce();
    expect(store.bytes[0]).toBe(99);
    for (let i = 11; i < 20; i++) void after.load(i * SIZE);
    expect(budget.used).toBeLessThanOrEqual(5 * SIZE);
  });

  it('loses nothing, and disturbs nobody, when the write-back that readers start fails', async () => {
    const { cache, store } = rig({ limit: 4 * SIZE });
    for (let i = 0; i < 4; i++) await change(cache, i, 0, 99);
    const unhandled: unknown[] = [];
    const note = (error: unknown): void => void unhandled.push(error);
    process.on('unhandledRejection', note);
    store.failing.add('write');
    expect(isPromise(cache.load(10 * SIZE))).toBe(false);
    await cache.quiesce();
    await turn();
    process.off('unhandledRejection', note);
    expect(unhandled).toEqual([]);
    await expect(cache.writeBack()).rejects.toThrow('write fails');
    store.failing.clear();
    await cache.writeBack();
    expect([0, 1, 2, 3].map((i) => store.bytes[i * SIZE])).toEqual([99, 99, 99, 99]);
  });

  it('refuses a lease that is given back twice', async () => {
    const { cache } = rig();
    const lease = await cache.lease(0);
    lease.release();
    expect(() => lease.release()).toThrow('released twice');
  });

  it('makes room for a lease by writing dirty tables back', async () => {
    const { cache, store, budget } = rig({ limit: 4 * SIZE });
    for (let i = 0; i < 20; i++) await change(cache, i, 0, 99);
    expect(budget.used).toBeLessThanOrEqual(5 * SIZE);
    expect(store.count('write')).toBeGreaterThan(10);
  });

  it('tells a lease that the room it needs could not be made', async () => {
    const { cache, store } = rig({ limit: 4 * SIZE });
    for (let i = 0; i < 4; i++) await change(cache, i, 0, 99);
    store.failing.add('write');
    await expect(Promise.resolve(cache.lease(8 * SIZE))).rejects.toThrow('write fails');
    store.failing.clear();
    expect((await cache.lease(8 * SIZE)).table.bytes[0]).toBe(9);
  });

  it('reads a table once for two leases that both had to wait for room', async () => {
    const { cache, store } = rig({ limit: 4 * SIZE });
    for (let i = 0; i < 4; i++) await change(cache, i, 0, 99);
    store.hold.add('write');
    const first = Promise.resolve(cache.lease(8 * SIZE)).then((lease) => {
      lease.table.bytes[0] = 55;
      lease.markDirty(0, 1);
      return lease;
    });
    const second = Promise.resolve(cache.lease(8 * SIZE));
    await store.drain();
    const [a, b] = await Promise.all([first, second]);
    expect(a).toBe(b);
    expect(b.table.bytes[0]).toBe(55);
  });

  it('never shows a waiter of one table the bytes of another, even when its table was evicted in between', async () => {
    const { cache, store } = rig({ limit: 4 * SIZE });
    store.hold.add('read');
    const seen: number[] = [];
    const waiting: Promise<void>[] = [];
    for (let i = 0; i < 24; i++) {
      const loading = cache.load(i * SIZE);
      const look = async (): Promise<void> => {
        const table = await loading;
        // More loads in the same turn evict what has just arrived.
        store.hold.delete('read');
        for (let j = 30; j < 50; j++) void cache.load(j * SIZE);
        seen.push(table.offset === i * SIZE && table.bytes[0] === i + 1 ? 1 : 0);
      };
      waiting.push(look(), look());
    }
    await store.drain();
    await Promise.all(waiting);
    expect(seen).toEqual(Array(48).fill(1));
  });

  it('gives a lease the present table when the loaded one was evicted before the lease could pin it', async () => {
    const { cache, store } = rig({ limit: 4 * SIZE });
    store.hold.add('read');
    const reader = Promise.resolve(cache.load(0)).then(() => {
      store.hold.delete('read');
      for (let j = 30; j < 50; j++) void cache.load(j * SIZE);
    });
    const leasing = Promise.resolve(cache.lease(0));
    await store.drain();
    await reader;
    const lease = await leasing;
    expect(lease.table.offset).toBe(0);
    expect(cache.peek(0)).toBe(lease.table);
  });
});

describe('write-back', () => {
  it('writes the dirty bytes only', async () => {
    const { cache, store } = rig();
    using lease = await cache.lease(SIZE);
    lease.table.bytes.fill(200);
    lease.markDirty(8, 16);
    lease.markDirty(24, 32);
    await cache.writeBack();
    expect(store.log.filter((line) => line.startsWith('write'))).toEqual([`write ${SIZE + 8}+24`]);
    expect([store.bytes[SIZE + 7], store.bytes[SIZE + 8], store.bytes[SIZE + 31], store.bytes[SIZE + 32]]).toEqual([
      2, 200, 200, 2,
    ]);
  });

  it('is done when nothing is dirty', async () => {
    const { cache, store } = rig();
    void cache.load(0);
    expect(cache.dirty).toBe(false);
    expect(cache.writeBack()).toBeUndefined();
    await change(cache, 0, 0, 9);
    expect(cache.dirty).toBe(true);
    await cache.writeBack();
    expect(cache.dirty).toBe(false);
    expect(cache.writeBack()).toBeUndefined();
    expect(store.count('write')).toBe(1);
  });

  it('neither reads nor writes outside the region', async () => {
    const { store, another } = rig();
    const cache = another({ regionStart: SIZE + 8, regionEnd: 3 * SIZE + 16 });
    const first = await cache.lease(SIZE);
    expect([...first.table.bytes.subarray(6, 10)]).toEqual([0, 0, 2, 2]);
    const last = await cache.lease(3 * SIZE);
    expect([...last.table.bytes.subarray(14, 18)]).toEqual([4, 4, 0, 0]);
    for (const lease of [first, last]) {
      lease.table.bytes.fill(9);
      lease.markDirty(0, SIZE);
      lease.release();
    }
    await cache.writeBack();
    expect(store.log).toEqual([
      `read ${SIZE + 8}+${SIZE - 8}`,
      `read ${3 * SIZE}+16`,
      `write ${SIZE + 8}+${SIZE - 8}`,
      `write ${3 * SIZE}+16`,
    ]);
  });

  it('asks for the overlap check of exactly what it writes', async () => {
    const asked: string[] = [];
    const { cache } = rig({
      beforeWrite: (offset, length) => {
        asked.push(`${offset}+${length}`);
        return undefined;
      },
    });
    await change(cache, 2, 5, 9);
    await cache.writeBack();
    expect(asked).toEqual([`${2 * SIZE + 5}+1`]);
  });

  it('writes the bytes of the moment at which its orders were collected; a later change is written later', async () => {
    const { cache, store, another } = rig();
    const counts = another({ name: 'counts' });
    await change(counts, 20, 0, 50);
    cache.writeAfter(counts);
    await change(cache, 0, 0, 101);
    store.hold.add('flush');
    const writing = cache.writeBack();
    await turn();
    await change(cache, 0, 1, 102);
    await store.drain();
    await writing;
    expect([store.bytes[0], store.bytes[1]]).toEqual([101, 1]);
    expect(cache.dirty).toBe(true);
    store.hold.clear();
    await cache.writeBack();
    expect([store.bytes[0], store.bytes[1]]).toEqual([101, 102]);
  });

  it('writes the later change too early when copying is switched off', async () => {
    const { cache, store, another } = rig({ rules: { ...ALL_RULES, copyAtWriteBack: false } });
    const counts = another({ name: 'counts' });
    await change(counts, 20, 0, 50);
    cache.writeAfter(counts);
    await change(cache, 0, 0, 101);
    await change(cache, 0, 1, 1);
    store.hold.add('flush');
    const writing = cache.writeBack();
    await turn();
    await change(cache, 0, 1, 102);
    await store.drain();
    await writing;
    expect(store.bytes[1]).toBe(102);
  });

  it('keeps a table that changes during its own write dirty', async () => {
    const { cache, store } = rig();
    await change(cache, 0, 0, 101);
    store.hold.add('write');
    const writing = cache.writeBack();
    await turn();
    await change(cache, 0, 0, 102);
    await store.drain();
    await writing;
    expect(store.bytes[0]).toBe(101);
    expect(cache.dirty).toBe(true);
    store.hold.clear();
    await cache.writeBack();
    expect(store.bytes[0]).toBe(102);
  });

  it('leaves a table dirty, with its orders, when its write fails', async () => {
    const { cache, store, another } = rig();
    const counts = another({ name: 'counts' });
    await change(counts, 20, 0, 50);
    cache.writeAfter(counts);
    await change(cache, 0, 0, 101);
    store.failing.add('flush');
    await expect(cache.writeBack()).rejects.toThrow('flush fails');
    expect(store.bytes[0]).toBe(1);
    store.failing = new Set(['write']);
    await expect(cache.writeBack()).rejects.toThrow('fails');
    expect(cache.dirty).toBe(true);
    store.failing = new Set(['flush']);
    await change(counts, 20, 0, 51);
    cache.writeAfter(counts);
    await change(cache, 0, 0, 102);
    await expect(cache.writeBack()).rejects.toThrow('flush fails');
    expect(store.bytes[0]).toBe(1);
    store.failing.clear();
    store.log = [];
    await cache.writeBack();
    expect(store.bytes[0]).toBe(102);
    expect(store.log).toEqual(['flush 0+0', 'write 0+1']);
  });

  it('tells each of two callers of the same failing write-back', async () => {
    const { cache, store } = rig();
    await change(cache, 0, 0, 101);
    store.hold.add('write');
    const both = [cache.writeBack(), cache.writeBack()].map((pending) => Promise.resolve(pending));
    for (const promise of both) promise.catch(() => undefined);
    await turn();
    store.of('write')[0]?.fail();
    await turn();
    store.of('write')[0]?.fail();
    for (const promise of both) await expect(promise).rejects.toThrow('write failed');
    store.hold.clear();
    await cache.writeBack();
    expect(store.bytes[0]).toBe(101);
  });

  it('shares one pass between callers where it covers them', async () => {
    const { cache, store } = rig();
    await change(cache, 0, 0, 101);
    store.hold.add('write');
    const both = [cache.writeBack(), cache.writeBack()];
    await store.drain();
    await Promise.all(both);
    expect(store.count('write')).toBe(1);
  });
});

describe('orders between tables', () => {
  it('makes the other cache durable before anything changed afterwards is written', async () => {
    const { cache, store, another } = rig();
    const counts = another({ name: 'counts' });
    await change(counts, 20, 0, 50);
    cache.writeAfter(counts);
    await change(cache, 0, 0, 101);
    store.log = [];
    await cache.writeBack();
    expect(store.log).toEqual([`write ${20 * SIZE}+1`, 'flush 0+0', 'write 0+1']);
    expect(counts.durableGeneration).toBe(counts.generation);
  });

  it('does not wait for changes that the other cache made after the order was given', async () => {
    const { cache, store, another } = rig();
    const counts = another({ name: 'counts' });
    await change(counts, 20, 0, 50);
    cache.writeAfter(counts);
    await change(cache, 0, 0, 101);
    await cache.writeBack();
    await change(counts, 20, 0, 51);
    await change(cache, 0, 0, 102);
    store.log = [];
    await cache.writeBack();
    expect(store.log).toEqual(['write 0+1']);
  });

  it('waits for a flush that begins after the order, not for one that was already running', async () => {
    const { cache, store, gate } = rig();
    store.hold.add('flush');
    const early = gate.flush();
    cache.writeAfterFlush(gate);
    await change(cache, 0, 0, 101);
    const writing = cache.writeBack();
    await turn();
    expect(store.of('flush')).toHaveLength(2);
    store.of('flush')[0]?.finish();
    await early;
    await turn();
    expect(store.count('write')).toBe(0);
    await store.drain();
    await writing;
    expect(store.bytes[0]).toBe(101);
  });

  it('shares the flush that somebody else has begun since', async () => {
    const { cache, store, gate } = rig();
    cache.writeAfterFlush(gate);
    await change(cache, 0, 0, 101);
    await gate.flush();
    await cache.writeBack();
    expect(store.count('flush')).toBe(1);
  });

  it('keeps no orders when it is unordered or the rule is off', async () => {
    const { store, gate, another } = rig();
    const counts = another({ name: 'counts' });
    for (const options of [{ unordered: true }, { rules: { ...ALL_RULES, refcountsFirst: false, dataFirst: false } }]) {
      const cache = another(options);
      await change(counts, 20, 0, 50);
      cache.writeAfter(counts);
      cache.writeAfterFlush(gate);
      await change(cache, 0, 0, 101);
      store.log = [];
      await cache.writeBack();
      expect(store.log).toEqual(['write 0+1']);
    }
  });

  it('throws INTERNAL when two caches are ordered after each other', () => {
    const { cache, another } = rig();
    const middle = another({ name: 'middle' });
    const last = another({ name: 'last' });
    cache.writeAfter(middle);
    middle.writeAfter(last);
    expect(() => last.writeAfter(cache)).toThrow(/last ordered after tables/);
    expect(() => cache.writeAfter(cache)).toThrow(/ordered after/);
  });

  it('says which changes are durable', async () => {
    const { cache, store } = rig();
    await change(cache, 0, 0, 101);
    const generation = cache.generation;
    await cache.writeBack();
    expect(cache.writtenGeneration).toBe(generation);
    expect(cache.durableGeneration).toBeLessThan(generation);
    await change(cache, 1, 0, 102);
    store.hold.add('flush');
    const durable = cache.makeDurable(generation);
    await turn();
    // What is written during the flush is not covered by it.
    const writing = cache.writeBack();
    await store.drain();
    await Promise.all([durable, writing]);
    store.hold.clear();
    expect(cache.durableGeneration).toBe(generation);
    await cache.makeDurable(cache.generation);
    expect(cache.durableGeneration).toBe(cache.generation);
  });

  it('says nothing is durable after a flush that failed', async () => {
    const { cache, store } = rig();
    await change(cache, 0, 0, 101);
    store.failing.add('flush');
    await expect(cache.makeDurable(cache.generation)).rejects.toThrow('flush fails');
    expect(cache.durableGeneration).toBe(0);
  });
});

describe('new and forgotten tables', () => {
  it('a new table is zero and dirty, and the store is not read', async () => {
    const { cache, store } = rig();
    const lease = await cache.leaseNew(SIZE);
    expect(lease.table.bytes.every((byte) => byte === 0)).toBe(true);
    lease.release();
    expect(store.count('read')).toBe(0);
    await cache.writeBack();
    expect(store.bytes.subarray(SIZE, 2 * SIZE).every((byte) => byte === 0)).toBe(true);
  });

  it('a new table wins over a load of the old one that is still running', async () => {
    const { cache, store, budget } = rig();
    store.hold.add('read');
    const old = Promise.resolve(cache.load(SIZE));
    const lease = (await cache.leaseNew(SIZE)) as TableLease;
    lease.table.bytes[0] = 42;
    lease.markDirty(0, 1);
    await store.drain();
    expect((await old).bytes[0]).toBe(42);
    expect(cache.peek(SIZE)).toBe(lease.table);
    expect(budget.used).toBe(SIZE);
    lease.release();
  });

  it('a forgotten table is gone with its changes and is read again', async () => {
    const { cache, store } = rig();
    await change(cache, 0, 0, 101);
    cache.forget(0);
    await cache.writeBack();
    expect(store.bytes[0]).toBe(1);
    expect((await cache.load(0)).bytes[0]).toBe(1);
  });

  it('a table forgotten while it loads is not cached; its waiters get one that is read anew', async () => {
    const { cache, store } = rig();
    store.hold.add('read');
    const loading = Promise.resolve(cache.load(0));
    cache.forget(0);
    store.bytes[0] = 33;
    await store.drain();
    expect((await loading).bytes[0]).toBe(33);
    expect(store.count('read')).toBe(2);
  });

  it('a table forgotten while its write waits for its orders is not written', async () => {
    const { cache, store, another } = rig();
    const counts = another({ name: 'counts' });
    await change(counts, 20, 0, 50);
    cache.writeAfter(counts);
    await change(cache, 0, 0, 101);
    store.hold.add('flush');
    const writing = cache.writeBack();
    await turn();
    cache.forget(0);
    // A new table elsewhere, and one at the same place, must not be mistaken for it.
    const fresh = await cache.leaseNew(5 * SIZE);
    fresh.release();
    await store.drain();
    await writing;
    expect(store.bytes[0]).toBe(1);
    expect(store.bytes[5 * SIZE]).toBe(6);
  });

  it('quiesce waits for a write that is under way', async () => {
    const { cache, store } = rig();
    await change(cache, 0, 0, 101);
    store.hold.add('write');
    const writing = cache.writeBack();
    await turn();
    cache.forget(0);
    const quiet = cache.quiesce();
    expect(await ended(quiet)).toBe(false);
    await store.drain();
    await quiet;
    await writing;
    expect(await ended(quiet)).toBe(true);
  });

  it('a table in use cannot be forgotten', async () => {
    const { cache } = rig();
    const lease = await cache.lease(0);
    expect(() => cache.forget(0)).toThrow('forgotten while in use');
    lease.release();
    cache.forget(0);
  });

  it('forgetting all gives all memory back and leaves nothing to write', async () => {
    const { cache, store, budget } = rig();
    for (let i = 0; i < 6; i++) await change(cache, i, 0, 101);
    store.hold.add('read');
    const loading = Promise.resolve(cache.load(9 * SIZE));
    cache.forgetAll();
    expect(cache.dirty).toBe(false);
    expect(cache.writeBack()).toBeUndefined();
    await store.drain();
    await loading;
    cache.forgetAll();
    expect(budget.used).toBe(0);
    expect(store.count('write')).toBe(0);
  });

  it('a retired cache holds nothing back', async () => {
    const { cache, store, another } = rig();
    const counts = another({ name: 'counts' });
    await change(counts, 20, 0, 50);
    cache.writeAfter(counts);
    await change(cache, 0, 0, 101);
    counts.retire();
    store.log = [];
    await cache.writeBack();
    expect(store.log).toEqual(['write 0+1']);
  });
});

describe('a table cache with a cleaning interval', () => {
  it('drops clean tables that nobody asked for in that time, and keeps changed and used ones (Q-082)', async () => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
    try {
      const { cache, budget } = rig({ cleanEveryMs: 1000 });
      const held = () => budget.used / SIZE;
      for (const table of [0, 1, 2, 3]) await cache.load(table * SIZE);
      await change(cache, 1, 0, 99);
      const lease = await cache.lease(3 * SIZE);
      vi.advanceTimersByTime(1000);
      expect(held()).toBe(4);
      cache.peek(2 * SIZE);
      vi.advanceTimersByTime(1000);
      expect(held()).toBe(3);
      lease.release();
      vi.advanceTimersByTime(1000);
      // The changed one is left: nothing to look at until it is written.
      expect(held()).toBe(1);
      expect(vi.getTimerCount()).toBe(0);
      expect(cache.peek(SIZE)?.bytes[0]).toBe(99);
      await cache.writeBack();
      vi.advanceTimersByTime(2000);
      expect(held()).toBe(0);
      expect(vi.getTimerCount()).toBe(0);
    } finally {
      vi.useRealTimers();
    }
  });

  it('of 0 never looks (Q-082)', async () => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
    try {
      const { cache } = rig({ cleanEveryMs: 0 });
      await cache.load(0);
      expect(vi.getTimerCount()).toBe(0);
    } finally {
      vi.useRealTimers();
    }
  });

  it('looks no more once it is stopped, or all its tables are forgotten (Q-082)', async () => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
    try {
      const { cache } = rig({ cleanEveryMs: 1000 });
      await cache.load(0);
      cache.stop();
      expect(vi.getTimerCount()).toBe(0);
      await cache.load(SIZE);
      expect(vi.getTimerCount()).toBe(1);
      cache.forgetAll();
      expect(vi.getTimerCount()).toBe(0);
    } finally {
      vi.useRealTimers();
    }
  });
});
