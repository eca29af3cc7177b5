/** Rows about requests: what runs beside what, what a failure in the middle leaves, the order of flush and close, and the entry points. */
import { deflateRawSync, inflateRawSync, constants as zlib } from 'node:zlib';
import { describe, expect, it } from 'vitest';
import type { Pending } from '../../../src/base/async.ts';
import type { BlockNode } from '../../../src/core/node.ts';
import { qcow2 } from '../../../src/formats/qcow2/driver.ts';
import { vmStateOffset } from '../../../src/formats/qcow2/geometry.ts';
import { headerGeometry } from '../../../src/formats/qcow2/header.ts';
import { MemoryStore } from '../../../src/storage/memory.ts';
import { FaultStore } from '../../../src/testing/fault-store.ts';
import { InterceptedStore, type Operation } from '../../../src/testing/intercepted-store.ts';
import { noise, seededRandom } from '../../../src/testing/random.ts';
import { RecordingStore } from '../../../src/testing/recording-store.ts';
import {
  closeAndCheck,
  extentsOf,
  headerOf,
  l2Tables,
  newDisk,
  type OpenDiskOptions,
  type OpenedDisk,
  openDisk,
  pattern,
  peek,
  poke,
  readAll,
  runsOf,
} from '../../support/qcow2-parts.ts';
import { checkQcow2, createQcow2Bytes } from '../../support/qcow2-under-test.ts';
import { createInMemory } from './support.ts';

const KiB = 1024;
const CLUSTER = 4 * KiB;
const SIZE = 256 * KiB;

/** Holds chosen requests back until they are let go. */
class HoldingStore extends InterceptedStore {
  holds: (operation: Operation) => boolean = () => false;
  readonly held: (() => void)[] = [];

  protected _around(operation: Operation, run: () => Pending): Pending {
    if (!this.holds(operation)) return run();
    return new Promise<void>((resolve) => {
      this.held.push(resolve);
    }).then(() => run());
  }

  letGo(): void {
    this.holds = () => false;
    for (const go of this.held.splice(0)) go();
  }
}

async function holding(
  file: MemoryStore,
  options: OpenDiskOptions = {},
): Promise<OpenedDisk & { store: HoldingStore }> {
  let store: HoldingStore | undefined;
  const around = (inner: BlockNode): BlockNode => {
    store = new HoldingStore(inner);
    return store;
  };
  const disk = await openDisk(file, { ...options, around });
  return { ...disk, store: store as HoldingStore };
}

async function faulty(file: MemoryStore): Promise<OpenedDisk & { store: FaultStore }> {
  let store: FaultStore | undefined;
  const around = (inner: BlockNode): BlockNode => {
    store = new FaultStore(inner);
    return store;
  };
  const disk = await openDisk(file, { around });
  return { ...disk, store: store as FaultStore };
}

/** Ends when everything that does not wait for a held request has ended. */
async function settled(): Promise<void> {
  for (let i = 0; i < 50; i++) await new Promise((resolve) => setImmediate(resolve));
}

async function dataFile(clusters: number): Promise<MemoryStore> {
  const disk = await newDisk({ size: SIZE, clusterSize: CLUSTER });
  await disk.node.write(0, pattern(clusters * CLUSTER));
  return (await closeAndCheck(disk)).file;
}

async function hostOf(node: OpenedDisk['node'], offset: number): Promise<number> {
  const [run] = await runsOf(node, offset, CLUSTER);
  return Number.parseInt((run as string).split('@')[1] as string, 16);
}

describe('requests side by side', () => {
  it('(Q-098) a read whose data is late holds up neither reads, nor allocating writes, nor zeroes elsewhere', async () => {
    const disk = await holding(await dataFile(2));
    const slow = await hostOf(disk.node, 0);
    disk.store.holds = ({ kind, offset }) => kind === 'read' && offset === slow;
    const late = new Uint8Array(CLUSTER);
    let ended = false;
    const reading = (async () => {
      await disk.node.read(0, late);
      ended = true;
    })();
    expect(await readAll(disk.node, CLUSTER, CLUSTER)).toEqual(pattern(2 * CLUSTER).subarray(CLUSTER));
    await disk.node.write(8 * CLUSTER, pattern(CLUSTER, 2));
    await disk.node.writeZeroes(16 * CLUSTER, CLUSTER);
    await disk.node.flush();
    expect(ended).toBe(false);
    disk.store.letGo();
    await reading;
    expect(late).toEqual(pattern(2 * CLUSTER).subarray(0, CLUSTER));
  });

  it('(Q-098) a write whose data is late holds up no write to other clusters', async () => {
    const disk = await holding(await createQcow2Bytes(SIZE, { clusterSize: CLUSTER }, false));
    let first = true;
    disk.store.holds = ({ kind, length, parts }) => {
      const held = first && kind === 'write' && length === CLUSTER && parts[0]?.[0] === 0xaa;
      if (held) first = false;
      return held;
    };
    const late = disk.node.write(0, new Uint8Array(CLUSTER).fill(0xaa));
    await disk.node.write(4 * CLUSTER, pattern(CLUSTER));
    expect(await readAll(disk.node, 4 * CLUSTER, CLUSTER)).toEqual(pattern(CLUSTER));
    expect(await readAll(disk.node, 0, CLUSTER)).toEqual(new Uint8Array(CLUSTER));
    disk.store.letGo();
    await late;
    expect(await closeAndCheck(disk)).toMatchObject({ lines: [], leaks: 0 });
  });

  it('(Q-102, Q-103) two writes into one new cluster allocate it once; the later one waits, and finds the mapping of the first', async () => {
    const disk = await holding(await createQcow2Bytes(SIZE, { clusterSize: CLUSTER }, false));
    let held = 0;
    disk.store.holds = ({ kind, parts }) => kind === 'write' && parts.some((part) => part[0] === 0xaa) && held++ === 0;
    const first = disk.node.write(100, new Uint8Array(50).fill(0xaa));
    const second = disk.node.write(1000, new Uint8Array(50).fill(0xbb));
    let secondEnded = false;
    const watching = (async () => {
      await second;
      secondEnded = true;
    })();
    await settled();
    expect(secondEnded).toBe(false);
    disk.store.letGo();
    await Promise.all([first, watching]);
    const wanted = new Uint8Array(CLUSTER);
    wanted.fill(0xaa, 100, 150);
    wanted.fill(0xbb, 1000, 1050);
    expect(await readAll(disk.node, 0, CLUSTER)).toEqual(wanted);
    await disk.node.close();
    expect(await checkQcow2(disk.file.reopen())).toMatchObject({ allocatedClusters: 1, leaks: 0, lines: [] });
  });

  it('(Q-102) a waiter goes on when the first one fails, and allocates itself', async () => {
    const disk = await faulty(await createQcow2Bytes(SIZE, { clusterSize: CLUSTER }, false));
    // Header, refcount table, refcount block and L1 table; then the L2 table, then the data.
    disk.store.fail({ on: 'write', offset: 5 * CLUSTER, late: true });
    const [first, second] = await Promise.allSettled([
      (async () => await disk.node.write(0, pattern(CLUSTER)))(),
      (async () => await disk.node.write(0, pattern(CLUSTER, 2)))(),
    ]);
    expect([first.status, second.status]).toEqual(['rejected', 'fulfilled']);
    expect(await readAll(disk.node, 0, CLUSTER)).toEqual(pattern(CLUSTER, 2));
    expect(await closeAndCheck(disk)).toMatchObject({ lines: [], leaks: 0 });
  });

  it('(Q-103) a write over the end of one that runs writes what does not overlap once, and the rest after it', async () => {
    const disk = await holding(await createQcow2Bytes(SIZE, { clusterSize: CLUSTER }, false));
    let held = 0;
    disk.store.holds = ({ kind, parts }) => kind === 'write' && parts.some((part) => part[0] === 0xaa) && held++ === 0;
    const first = disk.node.write(2 * CLUSTER, new Uint8Array(2 * CLUSTER).fill(0xaa));
    const second = disk.node.write(0, new Uint8Array(3 * CLUSTER).fill(0xbb));
    await settled();
    disk.store.letGo();
    await Promise.all([first, second]);
    const wanted = new Uint8Array(4 * CLUSTER).fill(0xaa);
    wanted.fill(0xbb, 0, 3 * CLUSTER);
    expect(await readAll(disk.node, 0, 4 * CLUSTER)).toEqual(wanted);
    await disk.node.close();
    expect(await checkQcow2(disk.file.reopen())).toMatchObject({ allocatedClusters: 4, leaks: 0, lines: [] });
  });

  it('(Q-105) a request over allocated, shared, zeroed and missing clusters writes all of them', async () => {
    const disk = await newDisk({ size: SIZE, clusterSize: CLUSTER });
    await disk.node.write(0, pattern(4 * CLUSTER));
    await disk.node.createSnapshot({ name: 'a', dateSeconds: 1 });
    await disk.node.write(CLUSTER, pattern(CLUSTER, 2));
    await disk.node.writeZeroes(2 * CLUSTER, CLUSTER);
    await disk.node.write(6 * CLUSTER, new Uint8Array(CLUSTER).fill(3), { compressed: true });
    await disk.node.write(10, pattern(8 * CLUSTER, 5));
    expect(await readAll(disk.node, 10, 8 * CLUSTER)).toEqual(pattern(8 * CLUSTER, 5));
    expect(await readAll(disk.node, 0, 10)).toEqual(pattern(10));
    expect(await closeAndCheck(disk)).toMatchObject({ lines: [], leaks: 0 });
  });
});

describe('a failure in the middle of a write', () => {
  it.each([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11])(
    '(Q-104) of request %i to the file leaves the old content or the new in each sector, and leaks at most',
    async (nth) => {
      const file = await dataFile(4);
      const disk = await faulty(file);
      await disk.node.createSnapshot({ name: 'a', dateSeconds: 1 });
      const fault = disk.store.fail({ on: ['read', 'write', 'flush'], nth: nth + 1, errno: 'ENOSPC' });
      const old = pattern(4 * CLUSTER);
      const fresh = pattern(3 * CLUSTER, 2);
      const failed = await (async () => {
        await disk.node.write(512, fresh);
        await disk.node.flush();
      })().then(
        () => false,
        () => true,
      );
      expect(failed).toBe(fault.hits > 0);
      fault.cancel();
      const content = await readAll(disk.node, 0, 4 * CLUSTER);
      for (let at = 0; at < 4 * CLUSTER; at += 512) {
        const sector = content.slice(at, at + 512);
        const wanted = [old.slice(at, at + 512)];
        if (at >= 512 && at < 512 + fresh.length) wanted.push(fresh.slice(at - 512, at));
        expect(wanted).toContainEqual(sector);
      }
      await disk.node.write(512, fresh);
      expect(await readAll(disk.node, 512, fresh.length)).toEqual(fresh);
      await disk.node.applySnapshot('a');
      expect(await readAll(disk.node, 0, 4 * CLUSTER)).toEqual(old);
      expect((await closeAndCheck(disk)).lines).toEqual([]);
    },
  );
});

describe('events', () => {
  it('(Q-106) announce the steps under the names of QEMU', async () => {
    const seen = new Set<string>();
    const around = (inner: BlockNode): BlockNode =>
      new (class extends InterceptedStore {
        protected _around({ kind, event }: Operation, run: () => Pending): Pending {
          if (kind === 'event') seen.add(event as string);
          return run();
        }
      })(inner);
    const file = await createQcow2Bytes(SIZE, { clusterSize: 512, refcountBits: 64 }, false);
    const { node } = await openDisk(file, { around });
    await node.write(0, pattern(64 * KiB));
    await node.write(1000, new Uint8Array(0));
    await node.writeVmState(0, pattern(700));
    await node.readVmState(0, new Uint8Array(10));
    await node.write(128 * KiB, new Uint8Array(4 * KiB).fill(4), { compressed: true });
    await node.flush();
    await node.close();
    const wanted = ['l1_update', 'l2_update', 'l2_alloc_write', 'refblock_update_part', 'reftable_update'];
    for (const event of [...wanted, 'write_compressed', 'vmstate_save', 'vmstate_load']) expect(seen).toContain(event);
  });
});

describe('flush and close', () => {
  /** Which tables each step of the log wrote. */
  async function tables(lazyRefcounts: boolean) {
    const file = await createQcow2Bytes(SIZE, { clusterSize: CLUSTER, lazyRefcounts }, false);
    let log: RecordingStore | undefined;
    const around = (inner: BlockNode): BlockNode => {
      log = new RecordingStore(inner);
      return log;
    };
    const disk = await openDisk(file, { around });
    await disk.node.write(0, pattern(2 * CLUSTER));
    const [l2] = [4 * CLUSTER];
    const written = (from: number) =>
      (log as RecordingStore).entries.slice(from).flatMap(({ kind, offset }) => {
        if (kind === 'flush') return ['flush'];
        if (kind !== 'write') return [];
        if (offset < CLUSTER) return ['header'];
        if (offset >= 2 * CLUSTER && offset < 3 * CLUSTER) return ['refcounts'];
        if (offset >= 3 * CLUSTER && offset < 4 * CLUSTER) return ['L1'];
        return offset >= l2 && offset < l2 + CLUSTER ? ['L2'] : [];
      });
    return { disk, written, at: () => (log as RecordingStore).entries.length };
  }

  it('(Q-114, Q-115) a flush writes refcounts, then, after a flush below, the tables that need them', async () => {
    const { disk, written, at } = await tables(false);
    const from = at();
    await disk.node.flush();
    const steps = written(from);
    expect(steps.filter((step) => step !== 'flush').sort()).toEqual(['L1', 'L2', 'refcounts']);
    expect(steps.indexOf('refcounts')).toBeLessThan(steps.indexOf('flush'));
    expect(steps.indexOf('flush')).toBeLessThan(steps.indexOf('L2'));
    expect(steps.indexOf('flush')).toBeLessThan(steps.indexOf('L1'));
    expect(steps.at(-1)).toBe('flush');
  });

  it('(Q-114) with lazy refcounts a flush writes none, and the dirty bit stays', async () => {
    const { disk, written, at } = await tables(true);
    const from = at();
    await disk.node.flush();
    expect(
      written(from)
        .filter((step) => step !== 'flush')
        .sort(),
    ).toEqual(['L1', 'L2']);
    expect((await headerOf(disk.file)).incompatible).toBe(1n);
  });

  it('(Q-066, Q-110) a close writes tables, refcounts, flushes, and clears the dirty bit last', async () => {
    const { disk, written, at } = await tables(true);
    const from = at();
    await disk.node.close();
    const steps = written(from);
    const last = steps.lastIndexOf('header');
    expect(Math.max(steps.lastIndexOf('L2'), steps.lastIndexOf('L1'))).toBeLessThan(steps.indexOf('refcounts'));
    expect(steps.slice(0, last).at(-1)).toBe('flush');
    expect(steps.lastIndexOf('refcounts')).toBeLessThan(last - 1);
    expect(steps.filter((step) => step === 'header')).toHaveLength(1);
    expect((await headerOf(disk.file.reopen())).incompatible).toBe(0n);
  });

  it.each(['write', 'flush'] as const)(
    '(Q-110) a close whose %s fails is told, and leaves the dirty bit',
    async (on) => {
      const disk = await faulty(await createQcow2Bytes(SIZE, { clusterSize: CLUSTER, lazyRefcounts: true }, false));
      await disk.node.write(0, pattern(2 * CLUSTER));
      disk.store.fail({ on, always: true });
      await expect(disk.node.close()).rejects.toMatchObject({ code: 'IO' });
      expect((await headerOf(disk.file.reopen())).incompatible).toBe(1n);
    },
  );

  it('(Q-111) a close trips no overlap check, with all of them on', async () => {
    const file = await dataFile(8);
    const disk = await openDisk(file, { options: { overlapCheck: 'all' } });
    await disk.node.createSnapshot({ name: 'a', dateSeconds: 1 });
    await disk.node.write(0, pattern(4 * CLUSTER, 2));
    await disk.node.discard(8 * CLUSTER, 4 * CLUSTER);
    const checked = await closeAndCheck(disk);
    expect(disk.events).toEqual([]);
    expect(checked).toMatchObject({ lines: [], leaks: 0 });
  });
});

describe('clusters', () => {
  it('(Q-005) have a size of their own over a backing file with another', async () => {
    const base = await newDisk({ size: SIZE, clusterSize: 512 });
    await base.node.write(0, pattern(SIZE));
    const below = (await openDisk((await closeAndCheck(base)).file, { readOnly: true })).node;
    const disk = await newDisk({ size: SIZE, clusterSize: 32 * KiB, backing: below });
    await disk.node.write(40 * KiB, pattern(100, 3));
    const wanted = pattern(SIZE);
    wanted.set(pattern(100, 3), 40 * KiB);
    expect(await readAll(disk.node)).toEqual(wanted);
    expect(headerGeometry(await headerOf(disk.file))).toMatchObject({ clusterSize: 32 * KiB, l2Entries: 4096 });
    const checked = await closeAndCheck(disk);
    expect(checked).toMatchObject({ lines: [], leaks: 0 });
    // One cluster of data, one L2 table.
    const [l2] = await l2Tables(checked.file);
    expect((l2 as number) % (32 * KiB)).toBe(0);
  });

  it('(Q-145) of a new image read as zeros, in whatever it was made', async () => {
    for (const input of [{}, { preallocation: 'metadata' }, { extendedL2: true }, { compat: 'v2' }] as const) {
      const { file } = await createInMemory(SIZE, input);
      expect((await readAll((await openDisk(file, { readOnly: true })).node)).every((byte) => byte === 0)).toBe(true);
    }
    expect(qcow2.capabilities.zeroInit).toBe(true);
  });

  it('(Q-163) dropped altogether let the backing file show', async () => {
    const backing = MemoryStore.from(pattern(SIZE, 9), { readOnly: true });
    const disk = await newDisk({ size: SIZE, clusterSize: CLUSTER, backing });
    await disk.node.write(100, pattern(60 * KiB));
    await disk.node.writeZeroes(128 * KiB, 8 * CLUSTER);
    await disk.node.makeEmpty();
    expect(await readAll(disk.node)).toEqual(pattern(SIZE, 9));
    expect(await extentsOf(disk.node)).toEqual([`0+${SIZE} d1 present data`]);
  });

  it('(Q-164) make a disk whose size is a multiple of 512, and stays one', async () => {
    const disk = await newDisk({ size: SIZE, clusterSize: CLUSTER });
    await expect(disk.node.truncate(SIZE + 100)).rejects.toMatchObject({ reason: 'qcow2.resize-unaligned' });
    expect(disk.node.size).toBe(SIZE);
    await disk.node.truncate(SIZE + 512);
    expect(disk.node.size).toBe(SIZE + 512);
  });

  it('(Q-165) of version 2 with snapshots keep the size of the disk', async () => {
    const disk = await newDisk({ size: SIZE, clusterSize: CLUSTER, compat: 'v2' });
    await disk.node.createSnapshot({ name: 'a', dateSeconds: 1 });
    await expect(disk.node.truncate(2 * SIZE)).rejects.toMatchObject({ reason: 'qcow2.resize-v2-snapshots' });
    await disk.node.deleteSnapshot('a');
    await disk.node.truncate(2 * SIZE);
    expect(disk.node.size).toBe(2 * SIZE);
  });
});

describe('compressed data', () => {
  function text(length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    for (let i = 0; i < length; i++) bytes[i] = Math.floor(i / 61) % 256;
    return bytes;
  }

  async function encoded(file: MemoryStore, node: OpenedDisk['node']): Promise<Uint8Array> {
    const bytes = new Uint8Array(64 * KiB);
    await file.read(await hostOf(node, 0), bytes);
    return bytes;
  }

  it('(Q-170) is deflate without a header, readable with a window of 4 KiB', async () => {
    const disk = await newDisk({ size: SIZE, clusterSize: 64 * KiB });
    // Repeats at a distance that a larger window would reach.
    const data = noise(seededRandom(3), 64 * KiB);
    data.copyWithin(16 * KiB, 0, 16 * KiB);
    data.copyWithin(33 * KiB, 32 * KiB, 48 * KiB);
    data.fill(7, 50 * KiB);
    await disk.node.write(0, data, { compressed: true });
    const bytes = await encoded(disk.file, disk.node);
    const inflated = inflateRawSync(bytes, { windowBits: 12, finishFlush: zlib.Z_SYNC_FLUSH });
    expect(Buffer.compare(inflated.subarray(0, data.length), data)).toBe(0);
  });

  it('(Q-170) is read with any window', async () => {
    const disk = await newDisk({ size: SIZE, clusterSize: 64 * KiB });
    const data = noise(seededRandom(4), 64 * KiB);
    data.copyWithin(32 * KiB, 0, 30 * KiB);
    await disk.node.write(0, text(64 * KiB), { compressed: true });
    const { file } = await closeAndCheck(disk);
    const [l2] = await l2Tables(file);
    const bytes = deflateRawSync(data, { windowBits: 15 });
    const at = Math.ceil(file.size / (64 * KiB)) * 64 * KiB;
    const padded = new Uint8Array(Math.ceil(bytes.length / 512) * 512);
    padded.set(bytes);
    await file.write(at, padded);
    const sectors = BigInt(padded.length / 512 - 1);
    await poke(file, l2 as number, (1n << 62n) | (sectors << 54n) | BigInt(at));
    expect(await readAll((await openDisk(file, { readOnly: true })).node, 0, 64 * KiB)).toEqual(data);
  });

  it('(Q-173) goes nowhere where metadata lies', async () => {
    const file = await dataFile(1);
    const { refcountTableOffset } = await headerOf(file);
    // A refcount block that calls everything free but for the header.
    const block = new Uint8Array(CLUSTER);
    block[1] = 1;
    await file.write(Number(await peek(file, refcountTableOffset)), block);
    const before = file.bytes();
    const { node } = await openDisk(file);
    await expect((async () => await node.write(32 * KiB, text(CLUSTER), { compressed: true }))()).rejects.toMatchObject(
      { reason: 'qcow2.overlap' },
    );
    const after = file.bytes();
    // But for the corrupt bit.
    after.set(before.subarray(72, 80), 72);
    expect(after.subarray(0, before.length)).toEqual(before);
  });

  it('(M-02) of zstd is written and read, small, whole and in parts', async () => {
    const { file } = await createInMemory(SIZE, { compressionType: 'zstd', clusterSize: CLUSTER });
    const disk = await openDisk(file);
    await disk.node.write(0, text(64 * KiB), { compressed: true });
    expect(await readAll(disk.node, 0, 64 * KiB)).toEqual(text(64 * KiB));
    expect(await readAll(disk.node, 5000, 700)).toEqual(text(64 * KiB).subarray(5000, 5700));
    const bytes = await encoded(disk.file, disk.node);
    expect(new DataView(bytes.buffer).getUint32(0, true)).toBe(0xfd2f_b528);
    expect((await headerOf(file)).compressionType).toBe('zstd');
    expect(await closeAndCheck(disk)).toMatchObject({ lines: [], leaks: 0 });
  });
});

describe('subclusters', () => {
  const CLUSTER32 = 16 * KiB;

  it('(M-03) are written, zeroed, discarded and checked one by one, over a backing file', async () => {
    const backing = MemoryStore.from(pattern(64 * KiB, 9), { readOnly: true });
    const disk = await newDisk({ size: 64 * KiB, extendedL2: true, backing });
    const wanted = pattern(64 * KiB, 9);
    const random = seededRandom(11);
    for (let i = 0; i < 60; i++) {
      const offset = Math.floor(random() * 60 * KiB);
      const length = 1 + Math.floor(random() * 4000);
      const step = i % 4;
      if (step === 0) {
        await disk.node.writeZeroes(offset, length, { unmap: i % 8 === 0 });
        wanted.fill(0, offset, offset + length);
      } else {
        await disk.node.write(offset, pattern(length, i));
        wanted.set(pattern(length, i), offset);
      }
      if (i === 30) await disk.node.createSnapshot({ name: 'a', dateSeconds: 1 });
    }
    await disk.node.discard(CLUSTER32, CLUSTER32);
    wanted.fill(0, CLUSTER32, 2 * CLUSTER32);
    expect(await readAll(disk.node)).toEqual(wanted);
    expect(await closeAndCheck(disk)).toMatchObject({ lines: [], leaks: 0 });
  });

  it('(M-03) with both marks, and marks without a cluster, are found by check', async () => {
    const disk = await newDisk({ size: 64 * KiB, extendedL2: true });
    await disk.node.write(0, pattern(CLUSTER32));
    const { file } = await closeAndCheck(disk);
    const [l2] = await l2Tables(file);
    await poke(file, (l2 as number) + 8, (1n << 32n) | 0xffff_ffffn);
    expect((await checkQcow2(file)).corruptions).toBeGreaterThan(0);
  });

  it('(M-04) allow a backing file and preallocated metadata together: clusters have their place, and the backing file shows', async () => {
    const { file } = await createInMemory(64 * KiB, {
      extendedL2: true,
      clusterSize: CLUSTER32,
      backingFile: 'backing',
      backingFmt: 'raw',
      preallocation: 'metadata',
    });
    const backing = MemoryStore.from(pattern(64 * KiB, 9), { readOnly: true });
    const disk = await openDisk(file, { backing });
    expect(await readAll(disk.node)).toEqual(pattern(64 * KiB, 9));
    const size = disk.file.size;
    await disk.node.write(20 * KiB, pattern(100));
    const wanted = pattern(64 * KiB, 9);
    wanted.set(pattern(100), 20 * KiB);
    expect(await readAll(disk.node)).toEqual(wanted);
    await disk.node.flush();
    expect(disk.file.size).toBe(size);
    expect(await closeAndCheck(disk)).toMatchObject({ lines: [], leaks: 0 });
  });
});

describe('facts', () => {
  it('(Q-180) tell clusters, and where the state of a machine begins: at the first L2 table behind the disk', async () => {
    const disk = await newDisk({ size: 1024 * KiB, clusterSize: 64 * KiB });
    expect(await disk.node.format.info()).toMatchObject({ clusterSize: 64 * KiB });
    expect(disk.node.format.vmState?.offset).toBe(512 * 1024 * KiB);
    const { virtualSize } = await headerOf(disk.file);
    expect(vmStateOffset(headerGeometry(await headerOf(disk.file)), virtualSize)).toBe(512 * 1024 * KiB);
    expect(disk.node.supports.writeZeroes).toBe('fast');
  });

  it('(Q-181) of both versions', async () => {
    const of = async (input: Parameters<typeof createInMemory>[1]) => {
      const { file, data } = await createInMemory(SIZE, input);
      const { node } = await openDisk(file, { readOnly: true, ...(data === undefined ? {} : { dataFile: data }) });
      return (await node.format.info()).specific;
    };
    expect(await of({ compat: 'v2' })).toEqual({
      type: 'qcow2',
      data: { compat: '0.10', 'compression-type': 'zlib', 'refcount-bits': 16 },
    });
    const plain = { compat: '1.1', 'compression-type': 'zlib', 'lazy-refcounts': false, 'refcount-bits': 16 };
    expect((await of({}))?.data).toEqual({ ...plain, corrupt: false, 'extended-l2': false });
    expect((await of({ dataFile: 'd', lazyRefcounts: true, refcountBits: 8, extendedL2: true }))?.data).toEqual({
      ...plain,
      'lazy-refcounts': true,
      'refcount-bits': 8,
      corrupt: false,
      'extended-l2': true,
      'data-file': 'd',
      'data-file-raw': false,
    });
  });
});

describe('damage', () => {
  it('(Q-220, Q-225) that is not fatal is told, and leaves image and node as they are', async () => {
    const disk = await newDisk({ size: SIZE, clusterSize: CLUSTER });
    await disk.node.write(0, pattern(2 * CLUSTER));
    const { file } = await closeAndCheck(disk);
    const at = (await hostOf((await openDisk(file, { readOnly: true })).node, 0)) / CLUSTER;
    // The cluster of the first write is not counted: it cannot be counted down.
    await file.write(2 * CLUSTER + at * 2, new Uint8Array(2));
    const again = await openDisk(MemoryStore.from(file.bytes()));
    await again.node.discard(0, CLUSTER);
    await again.node.flush();
    expect(again.events).toMatchObject([{ type: 'corrupted', fatal: false }]);
    await again.node.write(CLUSTER, pattern(100, 3));
    expect(await readAll(again.node, CLUSTER, 100)).toEqual(pattern(100, 3));
    expect((await headerOf(again.file)).incompatible).toBe(0n);
  });

  it('(Q-221, Q-223) is told once, with node, words, place and whether it is fatal', async () => {
    const file = await dataFile(2);
    const [l2] = await l2Tables(file);
    await poke(file, l2 as number, (1n << 63n) | 0x5200n);
    const { node, events } = await openDisk(file, { readOnly: true });
    for (let i = 0; i < 3; i++) await expect(readAll(node, 0, CLUSTER)).rejects.toMatchObject({ code: 'CORRUPT' });
    expect(events).toEqual([
      {
        type: 'corrupted',
        node: 'disk',
        message: expect.stringContaining('Cluster allocation offset 0x5200 unaligned'),
        fatal: false,
        offset: 0x5200,
      },
    ]);
  });
});

describe('entry points', () => {
  it('(Q-240) read, write, flush, zero, discard, resize, compressed write, empty and close are there', async () => {
    const disk = await newDisk({ size: SIZE, clusterSize: CLUSTER });
    const { node } = disk;
    expect(qcow2.probe({ head: disk.file.bytes().subarray(0, 2048), fileSize: 1, name: '' })).toBe(100);
    await node.write(0, pattern(8 * CLUSTER));
    await node.write(16 * CLUSTER, new Uint8Array(CLUSTER).fill(1), { compressed: true });
    await node.flush();
    await node.writeZeroes(0, CLUSTER);
    await node.discard(CLUSTER, CLUSTER);
    await node.truncate(2 * SIZE);
    expect((await extentsOf(node)).slice(0, 2)).toEqual(['0+4096 d0 present zero', '4096+4096 d0 present zero']);
    await node.makeEmpty();
    expect((await readAll(node)).every((byte) => byte === 0)).toBe(true);
    expect(await closeAndCheck(disk)).toMatchObject({ lines: [], leaks: 0 });
  });

  it('(Q-242) facts, state of a machine, another backing file, limits, check and amend are there', async () => {
    const disk = await newDisk({ size: SIZE, clusterSize: CLUSTER });
    const { format } = disk.node;
    expect(await format.info()).toMatchObject({ clusterSize: CLUSTER });
    await disk.node.writeVmState(0, pattern(10));
    await disk.node.readVmState(0, new Uint8Array(10));
    await disk.node.changeBacking({ name: 'base', format: 'raw' });
    expect((await format.info()).backing).toEqual({ name: 'base', format: 'raw' });
    await disk.node.changeBacking(undefined);
    expect(disk.node.limits.discardAlign).toBe(CLUSTER);
    expect(await format.check?.check({})).toMatchObject({ corruptions: 0, leaks: 0 });
    expect(format.amend).toBeDefined();
  });
});
