/** Alignment and other limits, as blkdebug imposes them: from outside any byte goes, and inside every request keeps them. */
import { describe, expect, it } from 'vitest';
import { alignUp } from '../../src/bytes/align.ts';
import type { BlockNode } from '../../src/core/node.ts';
import { blkdebug } from '../../src/filters/blkdebug.ts';
import { MemoryStore } from '../../src/storage/memory.ts';
import { InterceptedStore, type Operation } from '../../src/testing/intercepted-store.ts';
import { LateStore } from '../../src/testing/late-store.ts';
import { below, noise, seededRandom } from '../../src/testing/random.ts';
import { storeSuite } from '../conformance/store.suite.ts';
import { openFilter } from '../support/filters.ts';

class Watched extends InterceptedStore {
  readonly seen: Operation[] = [];

  protected _around(operation: Operation, run: () => Promise<void> | undefined): Promise<void> | undefined {
    this.seen.push(operation);
    return run();
  }

  /** `kind offset+length`. */
  texts(): string[] {
    return this.seen.splice(0).map(({ kind, offset, length }) => `${kind} ${offset}+${length}`);
  }
}

function open(image: BlockNode, options: Record<string, string>): Promise<BlockNode> {
  return openFilter(blkdebug, { children: { image }, options });
}

storeSuite({
  name: 'blkdebug without limits',
  create: async () => ({ store: await open(new MemoryStore({ pageSize: 512 }), {}) }),
});

storeSuite({
  name: 'blkdebug with limits',
  create: async () => ({
    store: await open(new MemoryStore({ pageSize: 512 }), {
      align: '512',
      'max-transfer': '4k',
      'opt-write-zero': '1k',
      'max-write-zero': '3k',
      'opt-discard': '2k',
      'max-discard': '4k',
    }),
  }),
});

describe('a filter with limits', () => {
  it('widens reads', async () => {
    const below = new Watched(MemoryStore.from(noise(seededRandom(1), 8192)));
    const node = await open(below, { align: '1k' });
    const into = new Uint8Array(1000);
    await node.read(1500, into);
    const wanted = new Uint8Array(1000);
    await below.inner.read(1500, wanted);
    expect(into).toEqual(wanted);
    expect(below.texts()).toEqual(['read 1024+2048']);
  });

  it('reads what is around a write, and writes whole blocks', async () => {
    const below = new Watched(new MemoryStore({ size: 16384 }));
    const node = await open(below, { align: '1k' });
    await node.write(1024, new Uint8Array(2048));
    expect(below.texts()).toEqual(['write 1024+2048']);
    await node.write(1500, new Uint8Array(100));
    expect(below.texts()).toEqual(['read 1024+1024', 'write 1024+1024']);
    await node.write(1500, new Uint8Array(4000));
    expect(below.texts()).toEqual(['read 1024+1024', 'read 5120+1024', 'write 1024+5120']);
  });

  it('never grows a file by its blocks', async () => {
    const below = new Watched(new MemoryStore({ size: 1500 }));
    const node = await open(below, { align: '1k' });
    await node.write(1400, new Uint8Array(50).fill(1));
    expect(node.size).toBe(1500);
    await node.write(1600, new Uint8Array(100).fill(2));
    expect(node.size).toBe(1700);
    const found = new Uint8Array(300);
    await node.read(1400, found);
    expect([...found.filter((byte) => byte === 1)].length).toBe(50);
    expect(found[199]).toBe(0);
    expect(found[200]).toBe(2);
  });

  it('cuts transfers', async () => {
    const below = new Watched(new MemoryStore({ size: 16384 }));
    const node = await open(below, { 'max-transfer': '3000' });
    await node.read(5, new Uint8Array(7000));
    await node.write(5, new Uint8Array(3001));
    expect(below.texts()).toEqual(['read 5+3000', 'read 3005+3000', 'read 6005+1000', 'write 5+3000', 'write 3005+1']);
  });

  it('cuts zero requests at their unit, and writes what is less', async () => {
    const below = new Watched(new MemoryStore({ size: 65536 }));
    const node = await open(below, { align: '512', 'opt-write-zero': '4k', 'max-write-zero': '8k' });
    await node.writeZeroes(512, 20 * 1024);
    expect(below.texts()).toEqual(['write 512+3584', 'zeroes 4096+8192', 'zeroes 12288+8192', 'write 20480+512']);
    await expect((async () => node.writeZeroes(512, 512, { fastOnly: true }))()).rejects.toMatchObject({
      code: 'UNSUPPORTED',
    });
  });

  it('cuts discards, and leaves out what is less than a block', async () => {
    const below = new Watched(new MemoryStore({ size: 65536 }));
    const node = await open(below, { align: '512', 'opt-discard': '4k', 'max-discard': '8k' });
    await node.discard(100, 20 * 1024);
    expect(below.texts()).toEqual(['discard 512+3584', 'discard 4096+8192', 'discard 12288+8192']);
    await node.discard(100, 500);
    expect(below.texts()).toEqual([]);
  });

  it.each([1, 2, 3, 4, 5])('keeps every byte under concurrent requests that meet in blocks, seed %i', async (seed) => {
    const random = seededRandom(seed);
    const align = 512;
    const size = 8 * 1024 + 123;
    const inner = new MemoryStore({ size, pageSize: 512 });
    const late = new LateStore({ seed, piecesPerTurn: 4 }, inner);
    const node = await open(late, { align: String(align), 'max-transfer': '1k', 'opt-write-zero': '1k' });
    const model = new Uint8Array(size);
    for (let round = 0; round < 30; round++) {
      // Disjoint by bytes, not by blocks.
      const cuts = Array.from({ length: 9 }, () => below(random, size)).sort((a, b) => a - b);
      const running: unknown[] = [];
      for (let i = 0; i + 1 < cuts.length; i++) {
        const [start, end] = [cuts[i] as number, cuts[i + 1] as number];
        if (start === end) continue;
        if (below(random, 4) === 0) {
          model.fill(0, start, end);
          running.push(node.writeZeroes(start, end - start));
        } else {
          const bytes = noise(random, end - start);
          model.set(bytes, start);
          running.push(node.write(start, bytes));
        }
      }
      await Promise.all(running);
      const found = new Uint8Array(alignUp(size, align));
      await node.read(0, found);
      expect(Buffer.compare(found.subarray(0, size), model), `seed ${seed}, round ${round}`).toBe(0);
    }
    expect(node.size).toBe(size);
    await node.close();
  });
});
