import { describe, expect, it, vi } from 'vitest';
import { ExtentList } from '../../src/core/extent.ts';
import { type MappedNode, mappedNode } from '../../src/core/mapped-node.ts';
import { RunList } from '../../src/core/run.ts';
import { CacheBudget } from '../../src/core/table-cache.ts';
import { MemoryStore } from '../../src/storage/memory.ts';
import { BitmapNode } from '../support/bitmap-format.ts';
import { createBitmapImage } from '../support/bitmap-layout.ts';
import { bytesAllocatedIn, promisesIn } from '../support/count.ts';

const UNIT = 512;
const UNITS = 8192;

/** A disk whose clusters all lie one after the other; every table is in memory. */
async function warmDisk(
  transform?: 'guest' | 'host',
): Promise<{ node: BitmapNode; disk: MappedNode; store: MemoryStore }> {
  const store = MemoryStore.from(createBitmapImage(UNITS * UNIT, { unit: UNIT, spare: 110 }));
  const node = await BitmapNode.open(store, {
    budget: new CacheBudget(2 ** 24),
    tableSize: 4096,
    countsTableSize: 4096,
    transform,
  });
  const disk = mappedNode(node, { name: 'disk' });
  await disk.write(0, new Uint8Array(UNITS * UNIT).fill(9));
  await disk.flush();
  return { node, disk, store };
}

it('the counters of this file count: an object and a promise for each of 10,000 are seen', () => {
  const kept: unknown[] = [];
  expect(
    promisesIn(() => {
      for (let i = 0; i < 10_000; i++) kept.push(Promise.resolve(i));
    }),
  ).toBe(10_000);
  expect(
    bytesAllocatedIn(() => {
      for (let i = 0; i < 10_000; i++) kept.push({ i });
    }),
  ).toBeGreaterThan(100_000);
});

describe('on tables in memory, over a store that answers at once', () => {
  it('mapping 8,192 clusters makes no promise and allocates nothing', async () => {
    const { node } = await warmDisk();
    const runs = new RunList();
    const map = (): void => {
      runs.reset(0, UNITS * UNIT);
      if (node.map(0, UNITS * UNIT, runs) !== undefined) throw new Error('must not wait');
    };
    map();
    expect(runs.bytes).toBe(UNITS * UNIT);
    expect(runs.count).toBe(1);
    expect(promisesIn(map)).toBe(0);
    const bytes = bytesAllocatedIn(() => {
      for (let i = 0; i < 20; i++) map();
    });
    // The smallest object or closure is 16 bytes. What the engine itself allocates while it compiles (some 100 KB) is none a cluster.
    expect(bytes / (20 * UNITS)).toBeLessThan(4);
  });

  it('reading them asks for one mapping and for the bytes once, and makes no promise', async () => {
    const { node, disk, store } = await warmDisk();
    const into = new Uint8Array(UNITS * UNIT);
    const read = (): void => {
      if (disk.read(0, into) !== undefined) throw new Error('must not wait');
    };
    read();
    expect(into.every((byte) => byte === 9)).toBe(true);
    const maps = vi.spyOn(node, 'map');
    const reads = vi.spyOn(store, 'read');
    read();
    expect([maps.mock.calls.length, reads.mock.calls.length]).toEqual([1, 1]);
    maps.mockRestore();
    reads.mockRestore();
    expect(promisesIn(read)).toBe(0);
  });

  it.each([
    ['plain', undefined],
    ['encrypted', 'host'],
  ] as const)('reading, and writing in place, cost no memory per request or per cluster: %s', async (_, transform) => {
    const { disk } = await warmDisk(transform);
    const into = new Uint8Array(64 * UNIT);
    const work = (): void => {
      for (let at = 0; at < UNITS; at += 64) {
        if (disk.read(at * UNIT, into) !== undefined) throw new Error('must not wait');
        if (disk.write(at * UNIT, into) !== undefined) throw new Error('must not wait');
      }
    };
    work();
    expect(promisesIn(work)).toBe(0);
    const requests = 10 * 2 * (UNITS / 64);
    const bytes = bytesAllocatedIn(() => {
      for (let i = 0; i < 10; i++) work();
    });
    // The store below may cut its pages by `subarray`: some bytes a request, nothing a cluster (64 times as many).
    expect(bytes / requests).toBeLessThan(1000);
  });

  it('the status of all of them takes a handful of mappings', async () => {
    const { node, disk } = await warmDisk();
    const list = new ExtentList();
    const maps = vi.spyOn(node, 'map');
    const tell = (): void => {
      list.reset(0);
      if (disk.extents(0, disk.size, list) !== undefined) throw new Error('must not wait');
    };
    tell();
    expect([...list]).toHaveLength(1);
    expect(maps.mock.calls.length).toBe(1);
    expect(promisesIn(tell)).toBe(0);
  });

  it('one allocating request over many clusters plans once, not once a cluster', async () => {
    const store = MemoryStore.from(createBitmapImage(UNITS * UNIT, { unit: UNIT, spare: 110 }));
    const node = await BitmapNode.open(store, {
      budget: new CacheBudget(2 ** 24),
      tableSize: 4096,
      countsTableSize: 4096,
    });
    const disk = mappedNode(node, { name: 'disk' });
    const plans = vi.spyOn(node, 'prepareWrite');
    const writes = vi.spyOn(store, 'write');
    await disk.write(0, new Uint8Array(512 * UNIT));
    // The tables hold 512 entries each, and the first does not begin at a table's beginning.
    expect(plans.mock.calls.length).toBeLessThanOrEqual(2);
    expect(writes.mock.calls.length).toBeLessThanOrEqual(2);
  });
});
