import { describe, expect, it } from 'vitest';
import { ExtentList } from '../../src/core/extent.ts';
import { MemoryStore } from '../../src/storage/memory.ts';

async function holes(store: MemoryStore): Promise<string> {
  const list = new ExtentList();
  list.reset(0);
  await store.extents(0, store.size, list);
  return [...list].map((extent) => `${extent.data ? 'data' : 'hole'} ${extent.start}+${extent.length}`).join(', ');
}

describe('MemoryStore', () => {
  it('allocates the pages that are written, and no others', async () => {
    const store = new MemoryStore({ pageSize: 4096, size: 40_960 });
    await store.write(5000, new Uint8Array(10).fill(1));
    expect(await holes(store)).toBe('hole 0+4096, data 4096+4096, hole 8192+32768');
    expect(await store.status()).toEqual({ allocatedBytes: 4096 });
  });

  it('gives pages back when they are zeroed or discarded whole', async () => {
    const store = MemoryStore.from(new Uint8Array(20_000).fill(1), { pageSize: 4096 });
    await store.writeZeroes(4000, 5000);
    expect(await holes(store)).toBe('data 0+4096, hole 4096+4096, data 8192+11808');
    await store.discard(8192, 4100);
    expect(await holes(store)).toBe('data 0+4096, hole 4096+8192, data 12288+7712');
    // the short page at the end is whole, too
    await store.discard(16_384, 3616);
    expect(await store.status()).toEqual({ allocatedBytes: 8192 });
    expect([...store.bytes().subarray(12_288, 12_300)]).toEqual(new Array(12).fill(1));
  });

  it('leaves the edges of a discard alone', async () => {
    const store = MemoryStore.from(new Uint8Array(12_288).fill(1), { pageSize: 4096 });
    await store.discard(100, 12_000);
    const bytes = store.bytes();
    expect([bytes[4095], bytes[4096], bytes[8191], bytes[8192]]).toEqual([1, 0, 0, 1]);
  });

  it('takes time by what is there, not by the length, when a huge range is cleared', async () => {
    const store = new MemoryStore({ size: 2 ** 50 });
    await store.write(2 ** 49, Uint8Array.of(1));
    await store.writeZeroes(0, 2 ** 50);
    await store.truncate(0);
    expect(store.size).toBe(0);
  });

  it('allocates what is preallocated', async () => {
    const store = new MemoryStore({ pageSize: 4096 });
    await store.truncate(10_000, { preallocation: 'falloc' });
    expect(await holes(store)).toBe('data 0+10000');
    expect(await store.status()).toEqual({ allocatedBytes: 12_288 });
  });

  it('keeps a copy of the bytes it is made from', async () => {
    const bytes = Uint8Array.of(1, 2, 3);
    const store = MemoryStore.from(bytes, { name: 'copy' });
    bytes[0] = 9;
    expect([...store.bytes()]).toEqual([1, 2, 3]);
    expect(store.name).toBe('copy');
  });

  it('opens again with its content once it is closed, not before', async () => {
    const store = MemoryStore.from(Uint8Array.of(1, 2, 3), { requestAlign: 1, pageSize: 512 });
    expect(() => store.reopen()).toThrow(expect.objectContaining({ code: 'BUSY' }));
    await store.close();
    const again = store.reopen({ readOnly: true });
    expect([...again.bytes()]).toEqual([1, 2, 3]);
    expect(again.limits).toEqual(store.limits);
    expect(() => again.write(0, Uint8Array.of(1))).toThrow(expect.objectContaining({ code: 'READ_ONLY' }));
  });

  it('refuses a page size that is no power of two', async () => {
    expect(() => new MemoryStore({ pageSize: 1000 })).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
  });
});
