import { describe, expect, it } from 'vitest';
import type { SnapshotRequest } from '../../../src/core/format.ts';
import { CacheBudget } from '../../../src/core/table-cache.ts';
import { INCOMPATIBLE } from '../../../src/formats/qcow2/features.ts';
import { type Qcow2Header, writeHeader } from '../../../src/formats/qcow2/header.ts';
import {
  encodeSnapshotTable,
  newSnapshotEntry,
  readSnapshotTable,
  type SnapshotEntry,
} from '../../../src/formats/qcow2/snapshot-table.ts';
import { MemoryStore } from '../../../src/storage/memory.ts';
import { FaultStore } from '../../../src/testing/fault-store.ts';
import { RecordingStore } from '../../../src/testing/recording-store.ts';
import {
  closeAndCheck,
  headerOf,
  l2Tables,
  newDisk,
  type OpenedDisk,
  openDisk,
  pattern,
  peek,
  poke,
  readAll,
  runsOf,
} from '../../support/qcow2-parts.ts';
import { checkQcow2, createQcow2Bytes, openQcow2 } from '../../support/qcow2-under-test.ts';

const KiB = 1024;
const COPIED = 1n << 63n;
const AT = { dateSeconds: 1_700_000_000 };

function make(disk: Pick<OpenedDisk, 'node'>, name: string, more: Partial<SnapshotRequest> = {}) {
  return disk.node.createSnapshot({ name, ...AT, ...more });
}

function listed({ node }: Pick<OpenedDisk, 'node'>): string[] {
  return (node.format.snapshots?.list() ?? []).map(({ id, name }) => `${id} ${name}`);
}

async function tableOf(file: MemoryStore): Promise<readonly SnapshotEntry[]> {
  return (await readSnapshotTable(file, await headerOf(file), 'disk')).entries;
}

/** An image whose snapshot table is this one, in a place that nothing counts. */
async function withTable(file: MemoryStore, table: Uint8Array, snapshotCount: number): Promise<MemoryStore> {
  const header = await headerOf(file);
  const clusterSize = 2 ** header.clusterBits;
  const snapshotsOffset = Math.ceil(file.size / clusterSize) * clusterSize;
  await file.write(snapshotsOffset, table);
  await file.truncate(Math.ceil(file.size / clusterSize) * clusterSize);
  await writeHeader(file, { ...header, snapshotsOffset, snapshotCount }, 'disk');
  await checkQcow2(file, 'all');
  return file;
}

function entry(id: string, more: Partial<SnapshotEntry> = {}): SnapshotEntry {
  const made = newSnapshotEntry({
    id,
    name: `name ${id}`,
    l1Offset: 0,
    l1Size: 0,
    vmStateSize: 0,
    diskSize: 64 * KiB,
    dateSeconds: 1,
    dateNanoseconds: 2,
    vmClockNanoseconds: 3n,
    icount: 4n,
  });
  return { ...made, ...more };
}

describe('a new snapshot', () => {
  it('records what it was given, and the size of the disk (Q-241)', async () => {
    const disk = await newDisk({ size: 64 * KiB, clusterSize: 4096 });
    const facts = { dateNanoseconds: 123_456_000, vmClockNanoseconds: 2n ** 60n, icount: 77n };
    expect(await make(disk, 'first', facts)).toEqual({
      id: '1',
      name: 'first',
      dateSeconds: 1_700_000_000,
      ...facts,
      vmStateSize: 0,
      diskSize: 64 * KiB,
    });
    await make(disk, 'zweiter ✓');
    const { file } = await closeAndCheck(disk);
    const [first, second] = await tableOf(file);
    expect(first).toMatchObject({ id: '1', name: 'first', diskSize: 64 * KiB, l1Size: 1, ...facts });
    expect(first?.extra.length).toBe(24);
    expect(second).toMatchObject({ id: '2', name: 'zweiter ✓', icount: undefined });
  });

  it('has the number after the largest there is, whatever the others are called (Q-246)', async () => {
    const ids = ['7', 'x9', '12abc', ' 3', '', '007'];
    const file = await createQcow2Bytes(64 * KiB, { clusterSize: 4096 }, false);
    await withTable(file, encodeSnapshotTable(ids.map((id) => entry(id))), ids.length);
    const disk = await openDisk(file);
    expect((await make(disk, 'a')).id).toBe('13');
    expect((await make(disk, 'a')).id).toBe('14');
    await closeAndCheck(disk);
  });

  it('has a free number where the largest one has none after it', async () => {
    const file = await createQcow2Bytes(64 * KiB, { clusterSize: 4096 }, false);
    const ids = [String(2n ** 64n - 1n), '1'];
    await withTable(file, encodeSnapshotTable(ids.map((id) => entry(id))), ids.length);
    expect((await make(await openDisk(file), 'a')).id).toBe('2');
  });

  it('keeps what other entries record, known or not, and completes them (M-22)', async () => {
    const unknown = pattern(100, 3);
    const short = [
      entry('1', { extra: new Uint8Array(0) }),
      entry('2', { extra: unknown, vmStateSize: 5, icount: 2n ** 63n }),
    ];
    const bytes = encodeSnapshotTable(short);
    const view = new DataView(bytes.buffer);
    // The first one without extra data, as version 2 may have it: its names move up.
    const first = bytes.slice(0, 40);
    new DataView(first.buffer).setUint32(36, 0);
    const names = bytes.slice(64, 64 + 7);
    const rest = bytes.slice(Math.ceil((64 + 7) / 8) * 8);
    expect(view.getUint32(36)).toBe(24);
    const table = new Uint8Array(48 + rest.length);
    table.set(first);
    table.set(names, 40);
    table.set(rest, 48);
    const file = await createQcow2Bytes(64 * KiB, { clusterSize: 4096, compat: 'v2' }, false);
    await withTable(file, table, 2);
    const before = await tableOf(file);
    expect(before[0]?.extra.length).toBe(0);
    const disk = await openDisk(file);
    await make(disk, 'new');
    const after = await tableOf((await closeAndCheck(disk)).file);
    expect(after).toHaveLength(3);
    const plain = ({ extra: _, ...facts }: SnapshotEntry) => facts;
    expect(after.slice(0, 2).map(plain)).toEqual(before.map(plain));
    expect(after[0]?.extra.length).toBe(24);
    expect(after[1]?.extra.subarray(24)).toEqual(unknown.subarray(24));
    expect(after[1]?.extra.length).toBe(100);
  });

  it('leaves no cluster that may be written in place, and its deletion gives them back (Q-002, Q-243, Q-245)', async () => {
    const disk = await newDisk({ size: 64 * KiB, clusterSize: 4096 });
    await disk.node.write(0, pattern(16 * KiB));
    await disk.node.write(20 * KiB, new Uint8Array(4096).fill(5), { compressed: true });
    await disk.node.writeZeroes(4096, 4096);
    const own = await runsOf(disk.node);
    expect(own.some((run) => run.includes('writable'))).toBe(true);
    await make(disk, 'a');
    expect((await runsOf(disk.node)).filter((run) => run.includes('writable'))).toEqual([]);
    await disk.node.deleteSnapshot('a');
    expect(await runsOf(disk.node)).toEqual(own);
    expect(await closeAndCheck(disk)).toMatchObject({ lines: [], leaks: 0 });
  });

  it('of a disk without a byte has no table', async () => {
    const disk = await newDisk({ size: 0, clusterSize: 4096 });
    await make(disk, 'empty');
    await disk.node.truncate(64 * KiB);
    await disk.node.write(0, pattern(5000));
    await make(disk, 'full');
    await disk.node.applySnapshot('empty');
    expect(disk.node.size).toBe(0);
    await disk.node.applySnapshot('full');
    expect(await readAll(disk.node, 0, 5000)).toEqual(pattern(5000));
    const { file, lines, leaks } = await closeAndCheck(disk);
    expect({ lines, leaks }).toEqual({ lines: [], leaks: 0 });
    expect(await tableOf(file)).toMatchObject([{ l1Offset: 0, l1Size: 0 }, { l1Size: 1 }]);
  });
});

describe('which snapshot is meant', () => {
  it('is told by id, else by name, else by both; the first one counts (Q-246)', async () => {
    const disk = await newDisk({ size: 64 * KiB, clusterSize: 4096 });
    // 1 '2', 2 'x', 3 'x', 4 '9'
    for (const [at, name] of ['2', 'x', 'x', '9'].entries()) {
      await disk.node.write(0, new Uint8Array(512).fill(at + 1));
      await make(disk, name);
    }
    const content = async (which: Parameters<typeof disk.node.applySnapshot>[0]): Promise<number> => {
      await disk.node.applySnapshot(which);
      return (await readAll(disk.node, 0, 1))[0] as number;
    };
    expect(await content('2')).toBe(2);
    expect(await content({ name: '2' })).toBe(1);
    expect(await content('x')).toBe(2);
    expect(await content({ id: '3', name: 'x' })).toBe(3);
    expect(await content('9')).toBe(4);
    for (const which of ['7', '', { id: 'x' }, { id: '1', name: 'x' }, {}]) {
      await expect(disk.node.applySnapshot(which)).rejects.toMatchObject({
        code: 'NOT_FOUND',
        reason: 'qcow2.snapshot-missing',
      });
      await expect(disk.node.deleteSnapshot(which)).rejects.toMatchObject({ reason: 'qcow2.snapshot-missing' });
    }
    await disk.node.deleteSnapshot('x');
    expect(listed(disk)).toEqual(['1 2', '3 x', '4 9']);
    expect(await closeAndCheck(disk)).toMatchObject({ lines: [], leaks: 0 });
  });
});

describe('applying a snapshot', () => {
  it('brings its size back, larger or smaller (M-23, Q-244)', async () => {
    const disk = await newDisk({ size: 16 * KiB, clusterSize: 512 });
    await disk.node.write(0, pattern(16 * KiB));
    await make(disk, 'small');
    await disk.node.truncate(3000 * KiB);
    await disk.node.write(2999 * KiB, pattern(1024, 2));
    await make(disk, 'large');
    await disk.node.applySnapshot('small');
    expect(disk.node.size).toBe(16 * KiB);
    expect(await readAll(disk.node)).toEqual(pattern(16 * KiB));
    await disk.node.applySnapshot('large');
    expect(disk.node.size).toBe(3000 * KiB);
    expect(await readAll(disk.node, 2999 * KiB)).toEqual(pattern(1024, 2));
    await disk.node.applySnapshot('small');
    const { file, lines, leaks } = await closeAndCheck(disk);
    expect({ lines, leaks }).toEqual({ lines: [], leaks: 0 });
    expect((await headerOf(file)).virtualSize).toBe(16 * KiB);
  });

  it('shows nothing of a longer backing file in a disk that has grown since', async () => {
    const backing = MemoryStore.from(pattern(64 * KiB, 7), { readOnly: true });
    const disk = await newDisk({ size: 8 * KiB, clusterSize: 4096, backing });
    await make(disk, 'small');
    await disk.node.truncate(32 * KiB);
    const grown = await readAll(disk.node);
    await make(disk, 'grown');
    await disk.node.applySnapshot('small');
    await disk.node.applySnapshot('grown');
    expect(await readAll(disk.node)).toEqual(grown);
  });

  it('drops what the disk held since, and discards it in the file below', async () => {
    const disk = await newDisk({ size: 256 * KiB, clusterSize: 4096 });
    await make(disk, 'empty');
    await disk.node.write(0, pattern(200 * KiB));
    await disk.node.flush();
    const full = (await disk.file.status()).allocatedBytes as number;
    await disk.node.applySnapshot('empty');
    expect((await disk.file.status()).allocatedBytes).toBeLessThan(full - 180 * KiB);
    expect(await closeAndCheck(disk)).toMatchObject({ lines: [], leaks: 0 });
  });
});

describe('deleting a snapshot', () => {
  for (const [passDiscardSnapshot, gives] of [
    [true, 'gives'],
    [false, 'does not give'],
  ] as const) {
    it(`${gives} its space back to the file below with pass-discard-snapshot=${passDiscardSnapshot} (Q-072)`, async () => {
      const file = await createQcow2Bytes(256 * KiB, { clusterSize: 4096 }, false);
      const disk = await openDisk(file, { options: { passDiscardSnapshot } });
      await disk.node.write(0, pattern(200 * KiB));
      await make(disk, 'full');
      await disk.node.write(0, pattern(200 * KiB, 2));
      await disk.node.flush();
      const before = (await disk.file.status()).allocatedBytes as number;
      await disk.node.deleteSnapshot('full');
      const after = (await disk.file.status()).allocatedBytes as number;
      if (passDiscardSnapshot) expect(after).toBeLessThan(before - 180 * KiB);
      else expect(after).toBeGreaterThanOrEqual(before);
      expect(await closeAndCheck(disk)).toMatchObject({ lines: [], leaks: 0 });
    });
  }

  it('ends well when the file below cannot discard, and says so', async () => {
    const file = await createQcow2Bytes(64 * KiB, { clusterSize: 4096 }, false);
    const faulty = new FaultStore(file);
    const disk = await openDisk(faulty as unknown as MemoryStore);
    await disk.node.write(0, pattern(20 * KiB));
    await make(disk, 'a');
    await disk.node.write(0, pattern(20 * KiB, 2));
    faulty.fail({ on: 'discard', always: true });
    await disk.node.deleteSnapshot('a');
    expect(disk.events).toMatchObject([{ type: 'warning', reason: 'qcow2.snapshot-discard' }]);
    expect(await readAll(disk.node, 0, 20 * KiB)).toEqual(pattern(20 * KiB, 2));
  });

  it('of three without anything in them leaves two', async () => {
    const file = await createQcow2Bytes(64 * KiB, { clusterSize: 4096, compat: 'v2' }, false);
    const three = encodeSnapshotTable(['1', '2', '3'].map((id) => entry(id)));
    await withTable(file, three, 3);
    // Emptied after its place has been counted: a repair leaves no such entries.
    await file.write((await headerOf(file)).snapshotsOffset, new Uint8Array(three.length));
    const disk = await openDisk(file);
    await disk.node.deleteSnapshot({ id: '' });
    expect(listed(disk)).toEqual([' ', ' ']);
    expect(await closeAndCheck(disk)).toMatchObject({ lines: [], leaks: 0 });
  });

  it('is done after the last one without a snapshot table', async () => {
    const disk = await newDisk({ size: 64 * KiB, clusterSize: 4096 });
    await make(disk, 'a');
    await disk.node.deleteSnapshot('a');
    const { file } = await closeAndCheck(disk);
    expect(await headerOf(file)).toMatchObject({ snapshotCount: 0, snapshotsOffset: 0 });
  });
});

describe('many snapshots, one after the other', () => {
  it('find room in what earlier ones have left (Q-001)', async () => {
    const disk = await newDisk({ size: 32 * KiB, clusterSize: 512 });
    await disk.node.write(0, pattern(25 * KiB));
    const sizes: number[] = [];
    for (let i = 0; i < 60; i++) {
      await make(disk, 'a');
      await disk.node.write(((i * 7) % 40) * 512, pattern(6 * KiB, i));
      if (i % 3 === 0) await disk.node.applySnapshot('a');
      await disk.node.deleteSnapshot('a');
      await disk.node.flush();
      sizes.push(disk.file.size);
    }
    expect(sizes.at(-1)).toBe(sizes[29]);
    expect(await closeAndCheck(disk)).toMatchObject({ lines: [], leaks: 0 });
  });
});

describe('an image that holds snapshots', () => {
  it('can be repaired while it is open, and lists them afterwards', async () => {
    const disk = await newDisk({ size: 64 * KiB, clusterSize: 4096 });
    await disk.node.write(0, pattern(20 * KiB));
    await make(disk, 'a');
    await make(disk, 'b');
    await disk.node.format.check?.check({ fix: 'all' });
    await disk.node.deleteSnapshot('a');
    await disk.node.write(0, pattern(20 * KiB, 2));
    expect(listed(disk)).toEqual(['2 b']);
    expect(await closeAndCheck(disk)).toMatchObject({ lines: [], leaks: 0 });
  });

  it('keeps its tables in view of the overlap checks after each change', async () => {
    const disk = await newDisk({ size: 64 * KiB, clusterSize: 4096 });
    await disk.node.write(0, pattern(8192));
    await make(disk, 'a');
    const { snapshotsOffset, refcountTableOffset, l1Offset } = await headerOf(disk.file);
    const frozen = (await tableOf(disk.file))[0]?.l1Offset as number;
    for (const [offset, what] of [
      [snapshotsOffset, 'snapshot table'],
      [frozen, 'inactive L1 table'],
      [refcountTableOffset, 'refcount table'],
      [l1Offset, 'active L1 table'],
    ] as const) {
      await expect(disk.node.format.checkDataWrite?.(0, offset, 512)).rejects.toThrow(what);
    }
  });

  it('writes nothing before the switch but to new places, and switches with one write of one sector (Q-243)', async () => {
    const file = await createQcow2Bytes(64 * KiB, { clusterSize: 512 }, false);
    const first = await openDisk(file);
    await first.node.write(0, pattern(40 * KiB));
    await make(first, 'a');
    await first.node.write(0, pattern(9 * KiB, 2));
    await first.node.close();
    const before = file.bytes();
    const { refcountTableOffset } = await headerOf(MemoryStore.from(before));
    const block = Number(await peek(MemoryStore.from(before), refcountTableOffset));
    const store = new RecordingStore(MemoryStore.from(before, { pageSize: 512 }));
    const node = await openQcow2(store);
    await node.deleteSnapshot('a');
    await node.close();
    const writes = store.log.entries.filter(({ kind }) => kind === 'write');
    const switches = writes.filter(({ offset }) => offset < 512);
    expect(switches.map(({ offset, length }) => [offset, length])).toEqual([[24, 48]]);
    const at = writes.indexOf(switches[0] as (typeof writes)[0]);
    const overwritten = writes.slice(0, at).filter(({ offset, length }) => {
      const old = before.subarray(offset, offset + length);
      // Reserving counts in place: refcount blocks that are in use, and only they.
      return old.some((byte) => byte !== 0) && !(offset >= block && offset < block + 4 * 512);
    });
    expect(overwritten).toEqual([]);
  });
});

describe('with hardly any memory for tables', () => {
  it('refcounts that are far apart are all changed, and changed back', async () => {
    // A refcount block counts 32 KiB of the file: there are some twenty of them, and four are kept.
    const file = await createQcow2Bytes(600 * KiB, { refcountBits: 64 }, false);
    const node = await openQcow2(file, { cache: new CacheBudget(0) });
    const bytes = new Uint8Array(600 * KiB);
    const write = async (at: number, length: number, seed: number): Promise<void> => {
      bytes.set(pattern(length, seed), at);
      await node.write(at, pattern(length, seed));
    };
    // every cluster in another place than its neighbours
    for (let i = 0; i < 1200; i++) await write(((i * 487) % 1200) * 512, 512, i);
    await node.createSnapshot({ name: 'a', ...AT });
    for (let i = 0; i < 60; i++) await write(((i * 131) % 590) * KiB, 3000, i + 7);
    await node.createSnapshot({ name: 'b', ...AT });
    await node.deleteSnapshot('a');
    expect(await readAll(node)).toEqual(bytes);
    await node.applySnapshot('b');
    await node.deleteSnapshot('b');
    expect(await readAll(node)).toEqual(bytes);
    await node.close();
    const { lines, leaks } = await checkQcow2(file.reopen());
    expect({ lines, leaks }).toEqual({ lines: [], leaks: 0 });
  });
});

describe('an image so full that the refcount table is too small for what must be reserved', () => {
  it('has a larger one, and a snapshot', async () => {
    const disk = await newDisk({ size: 2000 * KiB, refcountBits: 64 });
    await disk.node.write(0, pattern(1950 * KiB));
    await disk.node.flush();
    const before = await headerOf(disk.file);
    await make(disk, 'a');
    const after = await headerOf(disk.file);
    expect(after.refcountTableClusters).toBeGreaterThan(before.refcountTableClusters);
    await disk.node.write(0, pattern(30 * KiB, 2));
    await disk.node.applySnapshot('a');
    expect(await readAll(disk.node, 0, 1950 * KiB)).toEqual(pattern(1950 * KiB));
    expect(await closeAndCheck(disk)).toMatchObject({ lines: [], leaks: 0 });
  });
});

describe('limits', () => {
  it('65,536 snapshots are the last (Q-029)', async () => {
    const file = await createQcow2Bytes(64 * KiB, { clusterSize: 65536 }, false);
    const blank = encodeSnapshotTable([entry('1', { rawName: new Uint8Array(0) })]);
    const size = Math.ceil(blank.length / 8) * 8;
    const table = new Uint8Array(65_536 * size);
    for (let i = 0; i < 65_536; i++) table.set(blank, i * size);
    await withTable(file, table, 65_536);
    const disk = await openDisk(file);
    await expect(make(disk, 'one more')).rejects.toMatchObject({
      code: 'TOO_LARGE',
      reason: 'qcow2.snapshot-count',
      details: { errno: 'EFBIG' },
    });
    await disk.node.deleteSnapshot('1');
    expect((await make(disk, 'again')).id).toBe('2');
    await disk.node.close();
  });

  it('64 MiB of snapshot table are the most', async () => {
    const file = await createQcow2Bytes(64 * KiB, { clusterSize: 65536 }, false);
    const long = new Uint8Array(65_535).fill(0x61);
    const entries = Array.from({ length: 1022 }, (_, index) => entry(String(index), { rawName: long }));
    await withTable(file, encodeSnapshotTable(entries), entries.length);
    const disk = await openDisk(file);
    await make(disk, 'b'.repeat(40_000));
    await expect(make(disk, 'c'.repeat(65_535))).rejects.toMatchObject({
      code: 'TOO_LARGE',
      reason: 'qcow2.snapshot-table-limit',
      details: { errno: 'EFBIG' },
    });
    expect(listed(disk)).toHaveLength(1023);
    await disk.node.close();
  }, 60_000);

  for (const [refcountBits, most] of [
    [1, 0],
    [2, 2],
    [4, 14],
  ] as const) {
    it(`refcounts of ${refcountBits} bits allow ${most} snapshots of one cluster, and the next one changes nothing`, async () => {
      const disk = await newDisk({ size: 64 * KiB, clusterSize: 512, refcountBits });
      await disk.node.write(0, pattern(9000));
      for (let i = 0; i < most; i++) await make(disk, `s${i}`);
      await disk.node.flush();
      const before = await headerOf(disk.file);
      await expect(make(disk, 'one more')).rejects.toMatchObject({
        code: 'TOO_LARGE',
        reason: 'qcow2.snapshot-refcount',
        details: { errno: 'EINVAL', bound: 2 ** refcountBits - 1 },
      });
      expect(await headerOf(disk.file)).toEqual(before);
      expect(listed(disk)).toHaveLength(most);
      await disk.node.write(100, pattern(3000, 2));
      expect(await readAll(disk.node, 100, 3000)).toEqual(pattern(3000, 2));
      expect(await closeAndCheck(disk)).toMatchObject({ lines: [], leaks: 0 });
    });
  }
});

describe('what is refused', () => {
  it('is everything on an image with an external data file (M-05)', async () => {
    const { createInMemory } = await import('./support.ts');
    const { file, data } = await createInMemory(64 * KiB, { dataFile: 'data' });
    const disk = await openDisk(file, { dataFile: data as MemoryStore });
    const refusal = { code: 'UNSUPPORTED', reason: 'qcow2.snapshot-data-file' };
    await expect(make(disk, 'a')).rejects.toMatchObject(refusal);
    await expect(disk.node.applySnapshot('a')).rejects.toMatchObject(refusal);
    await expect(disk.node.deleteSnapshot('a')).rejects.toMatchObject(refusal);
    expect(listed(disk)).toEqual([]);
    expect(disk.node.format.vmState).toBeUndefined();
  });

  it('are changes of an image that is open for reading or for a check', async () => {
    const file = await createQcow2Bytes(64 * KiB, {}, false);
    const reader = await openDisk(MemoryStore.from(file.bytes()), { readOnly: true });
    for (const change of [
      () => make(reader, 'a'),
      () => reader.node.applySnapshot('a'),
      () => reader.node.deleteSnapshot('a'),
      () => reader.node.writeVmState(0, pattern(1)),
    ]) {
      await expect(change()).rejects.toMatchObject({ code: 'READ_ONLY' });
    }
    const checked = await openDisk(MemoryStore.from(file.bytes()), { forCheck: true });
    await expect(make(checked, 'a')).rejects.toMatchObject({ reason: 'engine.snapshots' });
  });

  const requests: readonly (readonly [string, Partial<SnapshotRequest>])[] = [
    ['a name that is too long', { name: 'x'.repeat(65_536) }],
    ['a name with a NUL', { name: 'a\0b' }],
    ['a date before 1970', { dateSeconds: -1 }],
    ['a date after 2106', { dateSeconds: 2 ** 32 }],
    ['a date in pieces of a second', { dateSeconds: 1.5 }],
    ['nanoseconds that are a second', { dateNanoseconds: 1e9 }],
    ['a negative clock', { vmClockNanoseconds: -1n }],
    ['a count that 64 bits do not hold', { icount: 2n ** 64n }],
    ['a negative size of VM state', { vmStateSize: -1 }],
  ];
  it.each(requests)('is %s', async (_, request) => {
    const disk = await newDisk({ size: 64 * KiB });
    await expect(make(disk, 'a', request)).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      reason: 'qcow2.snapshot-request',
    });
    expect(listed(disk)).toEqual([]);
  });

  it('is a snapshot of another size in version 2', async () => {
    const file = await createQcow2Bytes(64 * KiB, { clusterSize: 4096, compat: 'v2' }, false);
    await withTable(file, encodeSnapshotTable([entry('1', { diskSize: 32 * KiB })]), 1);
    const disk = await openDisk(file);
    await expect(disk.node.applySnapshot('1')).rejects.toMatchObject({
      code: 'UNSUPPORTED',
      reason: 'qcow2.resize-v2-snapshots',
    });
    await disk.node.deleteSnapshot('1');
    expect(await closeAndCheck(disk)).toMatchObject({ lines: [], leaks: 0 });
  });

  const damaged: readonly (readonly [string, Partial<SnapshotEntry>, string])[] = [
    ['an L1 table that is not aligned', { l1Offset: 0x1200, l1Size: 1 }, 'qcow2.snapshot-l1-offset'],
    ['an L1 table that is too large', { l1Size: 5_000_000 }, 'qcow2.snapshot-l1-size'],
    [
      'an L1 table that lies behind every file',
      { l1Offset: Number.POSITIVE_INFINITY, l1OffsetExact: 2n ** 60n, l1Size: 1 },
      'qcow2.snapshot-l1-offset',
    ],
    ['a disk that is no multiple of 512 bytes', { diskSize: 1000 }, 'qcow2.snapshot-disk-size'],
    ['a disk that is too large', { diskSize: 2 ** 50 }, 'qcow2.snapshot-disk-size'],
    ['a disk whose size no number holds', { diskSize: Number.POSITIVE_INFINITY }, 'qcow2.snapshot-disk-size'],
  ];
  it.each(damaged)('is a snapshot that records %s', async (_, change, reason) => {
    const file = await createQcow2Bytes(64 * KiB, { clusterSize: 4096 }, false);
    const header = await headerOf(file);
    const table = encodeSnapshotTable([entry('1', change)]);
    if (change.diskSize === Number.POSITIVE_INFINITY) new DataView(table.buffer).setBigUint64(48, 2n ** 60n);
    const snapshotsOffset = Math.ceil(file.size / 4096) * 4096;
    await file.write(snapshotsOffset, table);
    await writeHeader(file, { ...header, snapshotsOffset, snapshotCount: 1 } satisfies Qcow2Header, 'disk');
    const before = file.bytes();
    const disk = await openDisk(file);
    await expect(disk.node.applySnapshot('1')).rejects.toMatchObject({ reason });
    await expect(openQcow2(MemoryStore.from(before), { readOnly: true, snapshot: '1' })).rejects.toMatchObject({
      reason,
    });
    await disk.node.close();
    expect(file.reopen().bytes()).toEqual(before);
  });

  it('is a cluster in use that has no refcount; nothing has changed', async () => {
    const disk = await newDisk({ size: 64 * KiB, clusterSize: 4096 });
    await disk.node.write(0, pattern(8192));
    const { file } = await closeAndCheck(disk);
    const [l2] = await l2Tables(file);
    await poke(file, l2 as number, COPIED | BigInt(60 * 4096));
    const before = file.bytes();
    const again = await openDisk(file);
    await expect(make(again, 'a')).rejects.toMatchObject({ code: 'CORRUPT', reason: 'qcow2.refcount-range' });
    expect(listed(again)).toEqual([]);
    await again.node.close();
    expect((await headerOf(file.reopen())).refcountTableOffset).toBe(
      (await headerOf(MemoryStore.from(before))).refcountTableOffset,
    );
  });

  it('is an offset that is none; the image is marked corrupt, as by every other use of it', async () => {
    const disk = await newDisk({ size: 64 * KiB, clusterSize: 4096 });
    await disk.node.write(0, pattern(8192));
    const { file } = await closeAndCheck(disk);
    const [l2] = await l2Tables(file);
    const good = (await peek(file, l2 as number)) & ~COPIED;
    await poke(file, (l2 as number) + 8, COPIED | (good + 512n));
    const again = await openDisk(file);
    await expect(make(again, 'a')).rejects.toMatchObject({ code: 'CORRUPT', reason: 'qcow2.cluster-offset' });
    expect((await headerOf(again.file)).incompatible & INCOMPATIBLE.corrupt).not.toBe(0n);
    expect(() => again.node.read(0, new Uint8Array(1))).toThrow(/fatal/);
  });
});

describe('the content of a snapshot', () => {
  it('is opened as a disk of its own, for reading (Q-241)', async () => {
    const backing = MemoryStore.from(pattern(20 * KiB, 8), { readOnly: true });
    const disk = await newDisk({ size: 48 * KiB, clusterSize: 4096, backing });
    await disk.node.write(4096, pattern(9000));
    await disk.node.write(24 * KiB, new Uint8Array(4096).fill(6), { compressed: true });
    const wanted = await readAll(disk.node);
    await make(disk, 'first');
    await disk.node.truncate(200 * KiB);
    await disk.node.write(0, pattern(60 * KiB, 3));
    await disk.node.close();
    const bytes = disk.file.bytes();
    const below = MemoryStore.from(pattern(20 * KiB, 8));
    const frozen = await openQcow2(MemoryStore.from(bytes), { readOnly: true, backing: below, snapshot: 'first' });
    expect(frozen.size).toBe(48 * KiB);
    expect(await readAll(frozen)).toEqual(wanted);
    expect((await frozen.format.info()).snapshots).toHaveLength(1);
    expect(frozen.format.snapshots).toBeUndefined();
    expect(frozen.format.check).toBeUndefined();
    expect(() => frozen.write(0, pattern(1))).toThrow(/read-only/);
    await expect(
      openQcow2(MemoryStore.from(bytes), { readOnly: true, backing: below, snapshot: 'x' }),
    ).rejects.toMatchObject({
      reason: 'qcow2.snapshot-missing',
    });
  });

  it('reads as nothing where its L1 table ends before its disk does', async () => {
    const file = await createQcow2Bytes(64 * KiB, { clusterSize: 512 }, false);
    const node = await openQcow2(file);
    await node.write(0, pattern(64 * KiB));
    await node.close();
    await withTable(file.reopen(), encodeSnapshotTable([entry('1')]), 1);
    const frozen = await openQcow2(file.reopen(), { readOnly: true, snapshot: '1' });
    expect((await readAll(frozen)).every((byte) => byte === 0)).toBe(true);
  });
});
