import { describe, expect, it } from 'vitest';
import { secretsOf } from '../../../src/core/secrets.ts';
import { CacheBudget } from '../../../src/core/table-cache.ts';
import { Qcow2State } from '../../../src/formats/qcow2/image-state.ts';
import { Refcounts } from '../../../src/formats/qcow2/refcounts.ts';
import type { MemoryStore } from '../../../src/storage/memory.ts';
import { headerOf, newDisk, openDisk, pattern, poke, readAll } from '../../support/qcow2-parts.ts';
import { codecs, createQcow2Bytes } from '../../support/qcow2-under-test.ts';

const WIDTHS = [1, 2, 4, 8, 16, 32, 64];
const noGuard = (): Promise<void> => Promise.resolve();

async function open(
  refcountBits: number,
  clusterSize = 512,
): Promise<{ refcounts: Refcounts; state: Qcow2State; file: MemoryStore }> {
  const file = await createQcow2Bytes(64 * 1024, { clusterSize, refcountBits }, false);
  const context = {
    file,
    name: 'disk',
    readOnly: false,
    forCheck: false,
    unsafe: false,
    cache: new CacheBudget(1 << 16),
    codecs,
    openReference: () => Promise.reject(new Error('none')),
    secret: secretsOf(undefined),
    referenceStatus: () => Promise.resolve(undefined),
    report: () => undefined,
  };
  const state = new Qcow2State(await headerOf(file), context, undefined, { lazyRefcounts: false });
  return { refcounts: new Refcounts(state), state, file };
}

describe('refcounts', () => {
  for (const bits of WIDTHS) {
    it(`of ${bits} bits count each cluster on its own, up to their largest value (Q-023)`, async () => {
      const { refcounts } = await open(bits);
      const max = bits >= 53 ? 1000 : Math.min(2 ** bits - 1, 1000);
      await refcounts.add(20, 5, 1);
      if (max > 1) await refcounts.add(22, 1, max - 1);
      const found = [];
      for (let cluster = 19; cluster < 26; cluster++) found.push(await refcounts.get(cluster));
      expect(found).toEqual([0, 1, 1, max > 1 ? max : 1, 1, 1, 0]);
      if (bits < 16) await expect(refcounts.add(22, 1, 1)).rejects.toMatchObject({ reason: 'qcow2.refcount-range' });
    });
  }

  it('never fall below zero', async () => {
    const { refcounts } = await open(16);
    await expect(refcounts.add(30, 1, -1)).rejects.toMatchObject({ code: 'CORRUPT', reason: 'qcow2.refcount-range' });
  });

  it('find the first run of free clusters that is long enough', async () => {
    const { refcounts } = await open(16);
    const first = await refcounts.findFree(0, 1);
    await refcounts.add(first + 3, 2, 1);
    expect(await refcounts.findFree(0, 3)).toBe(first);
    expect(await refcounts.findFree(0, 4)).toBe(first + 5);
    expect(await refcounts.findFree(first + 1, 2)).toBe(first + 1);
  });

  it('take what no block counts for free, and make blocks inside the run that needs them', async () => {
    const { refcounts, state } = await open(64);
    const perBlock = state.geometry.refcountBlockEntries;
    const first = 10 * perBlock - 5;
    expect(await refcounts.findFree(first, 20)).toBe(first);
    expect(await refcounts.counts(first, 20)).toBe(false);
    const blocks = await refcounts.createBlocks(first, 20, noGuard);
    expect(blocks).toEqual([first * 512, (first + 1) * 512]);
    expect(await refcounts.counts(first, 20)).toBe(true);
    expect(await refcounts.get(first)).toBe(1);
    expect(await refcounts.get(first + 1)).toBe(1);
    expect(await refcounts.findFree(first, 5)).toBe(first + 2);
  });

  it('grow their table, whose old clusters become free, and the header names the new one', async () => {
    const { refcounts, state, file } = await open(64);
    const counted = state.geometry.refcountTableEntriesPerCluster * state.geometry.refcountBlockEntries;
    const old = state.header.refcountTableOffset;
    await refcounts.createBlocks(counted, 1, noGuard);
    expect(state.header.refcountTableOffset).toBeGreaterThan(counted * 512 - 1);
    expect(await headerOf(file)).toMatchObject({
      refcountTableOffset: state.header.refcountTableOffset,
      refcountTableClusters: state.header.refcountTableClusters,
    });
    expect(await refcounts.get(old / 512)).toBe(0);
    expect(await refcounts.get(state.header.refcountTableOffset / 512)).toBe(1);
  });

  it('refuse a block at an offset that is none, and say which', async () => {
    const disk = await newDisk({ size: 64 * 1024, clusterSize: 512 });
    await disk.node.close();
    const file = disk.file.reopen();
    await poke(file, (await headerOf(file)).refcountTableOffset, 0x700n);
    const again = await openDisk(file);
    await poke(file, (await headerOf(file)).refcountTableOffset, 0xff00_0000_0000_0000n);
    await expect(again.node.write(0, pattern(512))).rejects.toMatchObject({ reason: 'qcow2.refcount-block-offset' });
  });
});

describe('a disk whose refcounts are too low', () => {
  it('keeps its data when a dropped cluster cannot be counted down, and tells', async () => {
    const disk = await newDisk({ size: 64 * 1024, clusterSize: 512 });
    await disk.node.write(0, pattern(512));
    await disk.node.close();
    const file = disk.file.reopen();
    const header = await headerOf(file);
    const again = await openDisk(file);
    const table = new DataView(new ArrayBuffer(8));
    await file.read(header.refcountTableOffset, new Uint8Array(table.buffer));
    const block = table.getUint32(4);
    await file.write(block, new Uint8Array(512));
    await again.node.discard(0, 512);
    await again.node.flush();
    expect(again.events).toMatchObject([{ type: 'corrupted', fatal: false }]);
    expect(await readAll(again.node, 0, 512)).toEqual(new Uint8Array(512));
  });
});
