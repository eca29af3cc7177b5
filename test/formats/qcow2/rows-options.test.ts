/** Rows about the options of an open image: what each does to the files below, and not only how it is read. */
import { describe, expect, it, vi } from 'vitest';
import type { BlockNode } from '../../../src/core/node.ts';
import { MemoryStore } from '../../../src/storage/memory.ts';
import { type LogEntry, RecordingStore } from '../../../src/testing/recording-store.ts';
import {
  closeAndCheck,
  headerOf,
  newDisk,
  type OpenDiskOptions,
  openDisk,
  pattern,
  peek,
  poke,
  readAll,
  runsOf,
} from '../../support/qcow2-parts.ts';
import { createQcow2Bytes } from '../../support/qcow2-under-test.ts';
import { createInMemory, failureOf } from './support.ts';

const KiB = 1024;
const CLUSTER = 4 * KiB;

async function recorded(file: MemoryStore, options: OpenDiskOptions = {}) {
  let store: RecordingStore | undefined;
  const around = (inner: BlockNode): BlockNode => {
    store = new RecordingStore(inner, { reads: true });
    return store;
  };
  const disk = await openDisk(file, { ...options, around });
  const log = (...kinds: readonly LogEntry['kind'][]) =>
    (store as RecordingStore).entries.filter(({ kind }) => kinds.includes(kind));
  const discards = () => log('discard').map(({ offset, length }) => [offset, length]);
  return { ...disk, log, discards };
}

/** Where the first clusters of the disk lie. */
async function hosts(node: Awaited<ReturnType<typeof openDisk>>['node'], clusters: number): Promise<number[]> {
  const found: number[] = [];
  for (let i = 0; i < clusters; i++) {
    const [run] = await runsOf(node, i * CLUSTER, CLUSTER);
    found.push(Number.parseInt((run as string).split('@')[1] as string, 16));
  }
  return found;
}

async function written(clusters: number, compat: 'v2' | 'v3' = 'v3'): Promise<MemoryStore> {
  const disk = await newDisk({ size: 256 * KiB, clusterSize: CLUSTER, compat });
  await disk.node.write(0, pattern(clusters * CLUSTER));
  return (await closeAndCheck(disk)).file;
}

describe('pass-discard-request', () => {
  const settings: readonly (readonly [string, OpenDiskOptions, boolean])[] = [
    ['not given, discards unmap', { discard: 'unmap' }, true],
    ['not given, nothing said of discards', {}, false],
    ['off, discards unmap', { discard: 'unmap', options: { passDiscardRequest: false } }, false],
    ['on, nothing said of discards', { options: { passDiscardRequest: true } }, true],
  ];
  it.each(settings)(
    '(Q-071) %s: what the guest discards is discarded below, once nothing refers to it',
    async (_, options, passed) => {
      const disk = await recorded(await written(4), options);
      const [, second, third] = await hosts(disk.node, 4);
      await disk.node.discard(CLUSTER, 2 * CLUSTER);
      expect(disk.discards()).toEqual([]);
      await disk.node.flush();
      expect(disk.discards()).toEqual(
        passed
          ? [
              [second, CLUSTER],
              [third, CLUSTER],
            ]
          : [],
      );
      expect(await closeAndCheck(disk)).toMatchObject({ lines: [], leaks: 0 });
    },
  );

  it('(Q-071) discard=ignore leaves the disk as it is', async () => {
    const disk = await recorded(await written(4), { discard: 'ignore' });
    await disk.node.discard(0, 4 * CLUSTER);
    await disk.node.flush();
    expect(await readAll(disk.node, 0, 4 * CLUSTER)).toEqual(pattern(4 * CLUSTER));
    expect(disk.log('write', 'discard')).toEqual([]);
  });

  it('(Q-071) never discards what a snapshot still has', async () => {
    const disk = await recorded(await written(2), { discard: 'unmap' });
    await disk.node.createSnapshot({ name: 'kept', dateSeconds: 1 });
    await disk.node.discard(0, 2 * CLUSTER);
    await disk.node.flush();
    expect(disk.discards()).toEqual([]);
    await disk.node.applySnapshot('kept');
    expect(await readAll(disk.node, 0, 2 * CLUSTER)).toEqual(pattern(2 * CLUSTER));
  });
});

describe('pass-discard-other', () => {
  it.each([true, false, undefined])(
    '(Q-073) %s: decides of space that a moved cluster or table leaves',
    async (value) => {
      const disk = await recorded(
        await written(1),
        value === undefined ? {} : { options: { passDiscardOther: value } },
      );
      await disk.node.write(0, new Uint8Array(CLUSTER).fill(3), { compressed: true });
      await disk.node.flush();
      expect(disk.discards()).toHaveLength(value === true ? 1 : 0);
      expect(await closeAndCheck(disk)).toMatchObject({ lines: [], leaks: 0 });
    },
  );
});

describe('discard-no-unref', () => {
  it('(M-24) keeps the clusters of what is discarded or zeroed, gives their content back, and writes there again', async () => {
    const file = await written(4);
    const size = file.size;
    const disk = await recorded(file, { discard: 'unmap', options: { discardNoUnref: true } });
    const places = await hosts(disk.node, 4);
    await disk.node.discard(0, 2 * CLUSTER);
    await disk.node.writeZeroes(2 * CLUSTER, CLUSTER, { unmap: true });
    expect(disk.discards()).toEqual([[places[0], 2 * CLUSTER]]);
    expect(disk.log('zeroes').map(({ offset, unmap }) => [offset, unmap])).toEqual([[places[2], true]]);
    expect(await readAll(disk.node, 0, 3 * CLUSTER)).toEqual(new Uint8Array(3 * CLUSTER));
    expect(await hosts(disk.node, 4)).toEqual(places);
    await disk.node.write(100, pattern(3 * CLUSTER - 200, 5));
    expect(await hosts(disk.node, 4)).toEqual(places);
    const wanted = new Uint8Array(3 * CLUSTER);
    wanted.set(pattern(3 * CLUSTER - 200, 5), 100);
    expect(await readAll(disk.node, 0, 3 * CLUSTER)).toEqual(wanted);
    const checked = await closeAndCheck(disk);
    expect(checked).toMatchObject({ lines: [], leaks: 0 });
    expect(checked.file.size).toBe(size);
  });

  it('(M-24) without passing discards on keeps cluster and content, which no one sees', async () => {
    const disk = await recorded(await written(2), { options: { discardNoUnref: true } });
    await disk.node.discard(0, 2 * CLUSTER);
    expect(disk.log('discard', 'zeroes')).toEqual([]);
    expect(await readAll(disk.node, 0, 2 * CLUSTER)).toEqual(new Uint8Array(2 * CLUSTER));
    expect((await runsOf(disk.node))[0]).toMatch(/^zero 8192@0x/);
  });

  it('(M-24) leaves the content that a snapshot has, and drops compressed clusters as ever', async () => {
    const disk = await recorded(await written(2), { discard: 'unmap', options: { discardNoUnref: true } });
    await disk.node.write(4 * CLUSTER, new Uint8Array(CLUSTER).fill(8), { compressed: true });
    await disk.node.createSnapshot({ name: 'kept', dateSeconds: 1 });
    await disk.node.discard(0, 8 * CLUSTER);
    await disk.node.flush();
    expect(disk.discards()).toEqual([]);
    expect(await readAll(disk.node, 0, 8 * CLUSTER)).toEqual(new Uint8Array(8 * CLUSTER));
    await disk.node.applySnapshot('kept');
    expect(await readAll(disk.node, 0, 2 * CLUSTER)).toEqual(pattern(2 * CLUSTER));
    expect(await readAll(disk.node, 4 * CLUSTER, CLUSTER)).toEqual(new Uint8Array(CLUSTER).fill(8));
    expect(await closeAndCheck(disk)).toMatchObject({ lines: [], leaks: 0 });
  });

  it('(M-24) keeps clusters with subclusters, too', async () => {
    const disk = await newDisk({ size: 64 * KiB, extendedL2: true });
    await disk.node.write(0, pattern(32 * KiB));
    const { file } = await closeAndCheck(disk);
    const again = await openDisk(file, { options: { discardNoUnref: true } });
    const before = await peek(file, (await headerOf(file)).l1Offset);
    await again.node.discard(0, 16 * KiB);
    await again.node.flush();
    expect(await readAll(again.node, 0, 32 * KiB)).toEqual(
      Uint8Array.from([...new Uint8Array(16 * KiB), ...pattern(32 * KiB).subarray(16 * KiB)]),
    );
    const l2 = Number(before % (1n << 56n));
    expect(await peek(file, l2)).not.toBe(0n);
    expect(await peek(file, l2 + 8)).toBe(0xffff_ffff_0000_0000n);
    await again.node.write(0, pattern(512, 3));
    expect(await closeAndCheck(again)).toMatchObject({ lines: [], leaks: 0 });
  });

  it('(M-24) needs version 3', async () => {
    const file = await written(1, 'v2');
    expect(await failureOf(() => openDisk(file, { options: { discardNoUnref: true } }))).toMatchObject({
      code: 'OPTION',
      reason: 'qcow2.discard-no-unref',
    });
  });
});

describe('lazy-refcounts', () => {
  it('(Q-070) switched off for one opening leaves no dirty bit, and refcounts right at every flush', async () => {
    const file = await createQcow2Bytes(64 * KiB, { clusterSize: CLUSTER, lazyRefcounts: true }, false);
    const disk = await openDisk(file, { options: { lazyRefcounts: false } });
    await disk.node.write(0, pattern(3 * CLUSTER));
    await disk.node.flush();
    expect((await headerOf(file)).incompatible).toBe(0n);
    expect(await closeAndCheck(disk)).toMatchObject({ lines: [], leaks: 0 });
  });

  it('(Q-070) switched off, an image that was left dirty is made clean first', async () => {
    const disk = await newDisk({ size: 64 * KiB, clusterSize: CLUSTER, lazyRefcounts: true });
    await disk.node.write(0, pattern(3 * CLUSTER));
    await disk.node.flush();
    const crashed = MemoryStore.from(disk.file.bytes());
    const again = await openDisk(crashed, { options: { lazyRefcounts: false } });
    expect((await headerOf(crashed)).incompatible).toBe(0n);
    expect(await closeAndCheck(again)).toMatchObject({ lines: [], leaks: 0 });
  });
});

describe('overlap-check', () => {
  it.each([
    ['none', 'L2 table', true],
    ['constant', 'L2 table', true],
    ['cached', 'L2 table', false],
    ['all', 'L2 table', false],
    ['none', 'refcount table', true],
    ['constant', 'refcount table', false],
    ['cached', 'refcount table', false],
    ['all', 'refcount table', false],
  ] as const)('(Q-074) %s: a write over the %s goes through: %s', async (overlapCheck, what, through) => {
    const file = await written(1);
    const { l1Offset, refcountTableOffset } = await headerOf(file);
    const l2 = Number((await peek(file, l1Offset)) % (1n << 56n));
    await poke(file, l2, (1n << 63n) | BigInt(what === 'L2 table' ? l2 : refcountTableOffset));
    const { node } = await openDisk(file, { options: { overlapCheck } });
    const writing = (async () => await node.write(0, pattern(512)))();
    if (through) await writing;
    else await expect(writing).rejects.toMatchObject({ reason: 'qcow2.overlap' });
  });

  it('(Q-076) one switch overrides the template, either way', async () => {
    const make = async (options: NonNullable<OpenDiskOptions['options']>) => {
      const file = await written(1);
      const { l1Offset, refcountTableOffset } = await headerOf(file);
      await poke(file, Number((await peek(file, l1Offset)) % (1n << 56n)), (1n << 63n) | BigInt(refcountTableOffset));
      const { node } = await openDisk(file, { options });
      return async () => await node.write(0, pattern(512));
    };
    await expect((await make({ overlapCheck: 'none', overlapRefcountTable: true }))()).rejects.toMatchObject({
      reason: 'qcow2.overlap',
    });
    await (await make({ overlapCheck: 'all', overlapRefcountTable: false }))();
  });
});

describe('cache-clean-interval', () => {
  it.each([
    [30, true],
    [0, false],
  ])('(Q-082) of %i seconds: tables that nobody used are read again: %s', async (cacheCleanInterval, cleaned) => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
    try {
      const disk = await recorded(await written(4), { readOnly: true, options: { cacheCleanInterval } });
      await readAll(disk.node, 0, 4 * CLUSTER);
      const loads = () => disk.log('read').length;
      let before = loads();
      await readAll(disk.node, 0, 4 * CLUSTER);
      // The data alone.
      expect(loads() - before).toBe(1);
      vi.advanceTimersByTime(60_000);
      before = loads();
      await readAll(disk.node, 0, 4 * CLUSTER);
      expect(loads() - before).toBe(cleaned ? 2 : 1);
      await disk.node.close();
      expect(vi.getTimerCount()).toBe(0);
    } finally {
      vi.useRealTimers();
    }
  });

  it('(Q-082) is 600 seconds unless it is given (M-24)', async () => {
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
    try {
      const disk = await recorded(await written(4), { readOnly: true });
      await readAll(disk.node, 0, CLUSTER);
      const loads = () => disk.log('read').length;
      vi.advanceTimersByTime(599_000);
      const before = loads();
      vi.advanceTimersByTime(2_000);
      await readAll(disk.node, 0, CLUSTER);
      expect(loads() - before).toBe(1);
      vi.advanceTimersByTime(1_200_000);
      await readAll(disk.node, 0, CLUSTER);
      expect(loads() - before).toBe(3);
      await disk.node.close();
    } finally {
      vi.useRealTimers();
    }
  });
});

describe('options that are wrong', () => {
  it('(Q-083) change nothing: the image is refused before it is touched', async () => {
    const disk = await newDisk({ size: 64 * KiB, clusterSize: CLUSTER, lazyRefcounts: true });
    await disk.node.write(0, pattern(CLUSTER));
    await disk.node.flush();
    const crashed = MemoryStore.from(disk.file.bytes());
    await poke(crashed, 88, 0x8000_0000n);
    const before = crashed.bytes();
    // Dirty, with unknown autoclear bits: both would be dealt with by an opening that succeeds.
    for (const options of [
      { l2CacheEntrySize: 5000 },
      { overlapCheck: 'all', overlapCheckTemplate: 'none' },
    ] as const) {
      expect(await failureOf(() => openDisk(crashed, { options }))).toMatchObject({ code: 'OPTION' });
      expect(crashed.bytes()).toEqual(before);
    }
  });
});

describe('a data file', () => {
  async function withDataFile(dataFileRaw: boolean, options: OpenDiskOptions = {}) {
    const { file, data } = await createInMemory(64 * KiB, { clusterSize: CLUSTER, dataFile: 'data', dataFileRaw });
    const log = new RecordingStore(data as MemoryStore);
    const disk = await openDisk(file, { ...options, dataFile: log });
    const bytes = async (): Promise<Uint8Array> => {
      const all = new Uint8Array(log.size);
      await log.read(0, all);
      return all;
    };
    const kinds = (...wanted: readonly LogEntry['kind'][]) =>
      log.entries.filter(({ kind }) => wanted.includes(kind)).map(({ kind, offset, length }) => [kind, offset, length]);
    return { disk, bytes, kinds };
  }

  it('(M-06) that is raw is the disk, byte by byte, through writes, zeroes and discards', async () => {
    const { disk, bytes } = await withDataFile(true, { discard: 'unmap' });
    const { node } = disk;
    await node.write(5, pattern(40 * KiB));
    expect(await bytes()).toEqual(await readAll(node));
    await node.writeZeroes(3 * KiB, 9 * KiB);
    expect(await bytes()).toEqual(await readAll(node));
    await node.writeZeroes(16 * KiB, 8 * KiB, { unmap: true });
    expect(await bytes()).toEqual(await readAll(node));
    await node.discard(28 * KiB, 4 * KiB);
    expect(await bytes()).toEqual(await readAll(node));
    expect((await readAll(node, 28 * KiB, 4 * KiB)).every((byte) => byte === 0)).toBe(true);
    expect(await closeAndCheck(disk)).toMatchObject({ lines: [], leaks: 0 });
  });

  it('(M-06) that is raw keeps its bytes where discards are not passed on, and so does the disk', async () => {
    const { disk, bytes, kinds } = await withDataFile(true);
    await disk.node.write(0, pattern(8 * KiB));
    await disk.node.discard(0, 8 * KiB);
    expect(await readAll(disk.node, 0, 8 * KiB)).toEqual(pattern(8 * KiB));
    expect(await bytes()).toEqual(await readAll(disk.node));
    expect(kinds('discard', 'zeroes')).toEqual([]);
  });

  it('(M-05) gets the discards of the guest where they are passed on, at the guest’s own offsets', async () => {
    const { disk, kinds } = await withDataFile(false, { discard: 'unmap' });
    await disk.node.write(0, pattern(20 * KiB));
    await disk.node.discard(4 * KiB, 8 * KiB);
    expect(kinds('discard')).toEqual([['discard', 4 * KiB, 8 * KiB]]);
    await disk.node.writeZeroes(16 * KiB, 4 * KiB, { unmap: true });
    expect(kinds('zeroes')).toEqual([['zeroes', 16 * KiB, 4 * KiB]]);
    const wanted = new Uint8Array(20 * KiB);
    wanted.set(pattern(20 * KiB).subarray(0, 4 * KiB));
    wanted.set(pattern(20 * KiB).subarray(12 * KiB, 16 * KiB), 12 * KiB);
    expect(await readAll(disk.node, 0, 20 * KiB)).toEqual(wanted);
    expect(await runsOf(disk.node, 4 * KiB, 8 * KiB)).toEqual(['zero 8192']);
    await disk.node.write(5 * KiB, pattern(10, 2));
    expect(await readAll(disk.node, 4 * KiB, KiB)).toEqual(new Uint8Array(KiB));
    expect(await closeAndCheck(disk)).toMatchObject({ lines: [], leaks: 0 });
  });

  it('(M-05) keeps what was discarded where it is not passed on; the disk reads as zero there', async () => {
    const { disk, kinds } = await withDataFile(false);
    await disk.node.write(0, pattern(8 * KiB));
    await disk.node.discard(0, 4 * KiB);
    await disk.node.writeZeroes(4 * KiB, 4 * KiB);
    expect(kinds('discard', 'zeroes')).toEqual([]);
    expect(await readAll(disk.node, 0, 8 * KiB)).toEqual(new Uint8Array(8 * KiB));
  });
});
