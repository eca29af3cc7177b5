import { describe, expect, it } from 'vitest';
import { MemoryStore } from '../../../src/storage/memory.ts';
import { closeAndCheck, headerOf, newDisk, openDisk, pattern, readAll } from '../../support/qcow2-parts.ts';

const KiB = 1024;

describe('growing a disk', () => {
  it('moves the L1 table where it becomes too small, and keeps every byte (Q-167)', async () => {
    const disk = await newDisk({ size: 32 * KiB, clusterSize: 512 });
    await disk.node.write(0, pattern(32 * KiB));
    const before = await headerOf(disk.file);
    await disk.node.truncate(4096 * KiB);
    await disk.node.write(4096 * KiB - 700, pattern(700, 2));
    expect(await readAll(disk.node, 0, 32 * KiB)).toEqual(pattern(32 * KiB));
    const { file, lines, leaks } = await closeAndCheck(disk);
    expect({ lines, leaks }).toEqual({ lines: [], leaks: 0 });
    const after = await headerOf(file);
    expect(after.virtualSize).toBe(4096 * KiB);
    expect(after.l1Offset).not.toBe(before.l1Offset);
    const again = await openDisk(file, { readOnly: true });
    expect(await readAll(again.node, 4096 * KiB - 700)).toEqual(pattern(700, 2));
  });

  it('does not let a longer backing file show in what is new', async () => {
    const backing = MemoryStore.from(pattern(64 * KiB, 7), { readOnly: true });
    const disk = await newDisk({ size: 10 * KiB + 512, clusterSize: 4096, backing });
    await disk.node.truncate(40 * KiB);
    const wanted = new Uint8Array(40 * KiB);
    wanted.set(pattern(64 * KiB, 7).subarray(0, 10 * KiB + 512));
    expect(await readAll(disk.node)).toEqual(wanted);
    expect(await closeAndCheck(disk)).toMatchObject({ lines: [], leaks: 0 });
  });

  it('waits for running requests and holds later ones', async () => {
    const disk = await newDisk({ size: 32 * KiB, clusterSize: 512 });
    const first = disk.node.write(0, pattern(2048));
    const grown = disk.node.truncate(1024 * KiB);
    const later = disk.node.write(1024, pattern(512, 4));
    await Promise.all([first, grown, later]);
    const wanted = pattern(2048);
    wanted.set(pattern(512, 4), 1024);
    expect(await readAll(disk.node, 0, 2048)).toEqual(wanted);
    expect(await closeAndCheck(disk)).toMatchObject({ lines: [], leaks: 0 });
  });

  const refusals: readonly (readonly [string, number, string])[] = [
    ['a size that is no multiple of 512', 33 * KiB + 1, 'qcow2.resize-unaligned'],
    ['a size whose L1 table would exceed its bound', 2 ** 40, 'qcow2.resize-too-large'],
  ];
  for (const [name, size, reason] of refusals) {
    it(`refuses ${name} and changes nothing`, async () => {
      const disk = await newDisk({ size: 32 * KiB, clusterSize: 512 });
      await disk.node.flush();
      const before = disk.file.bytes();
      await expect(disk.node.truncate(size)).rejects.toMatchObject({ reason });
      expect(disk.file.bytes()).toEqual(before);
    });
  }
});

const MODES = ['metadata', 'falloc', 'full'] as const;

describe('growing with space for what is new', () => {
  const kinds: readonly (readonly [string, Parameters<typeof newDisk>[0]])[] = [
    ['clusters of 512 bytes', { size: 40 * KiB + 512, clusterSize: 512 }],
    ['version 2', { size: 40 * KiB + 512, clusterSize: 4096, compat: 'v2' }],
    ['a longer backing file', { size: 10 * KiB + 512, clusterSize: 4096, backing: longer() }],
    ['version 2 over a longer backing file', { size: 10 * KiB, clusterSize: 4096, compat: 'v2', backing: longer() }],
    ['subclusters', { size: 40 * KiB + 512, clusterSize: 16 * KiB, extendedL2: true }],
    [
      'subclusters over a longer backing file',
      { size: 9 * KiB, clusterSize: 16 * KiB, extendedL2: true, backing: longer() },
    ],
    ['refcounts of one bit', { size: 40 * KiB, clusterSize: 512, refcountBits: 1 }],
  ];
  function longer(): MemoryStore {
    return MemoryStore.from(pattern(300 * KiB, 7), { readOnly: true });
  }

  it.each(kinds.flatMap(([name, options]) => MODES.map((mode) => [name, mode, options] as const)))(
    'maps it all, with %s and mode %s, and reads as zeros there (M-19)',
    async (_, mode, options) => {
      const disk = await newDisk(options);
      const size = options.size as number;
      // space that was used before, and is free again
      await disk.node.write(0, pattern(size));
      await disk.node.discard(0, size);
      await disk.node.flush();
      await disk.node.write(0, pattern(size, 3));
      await disk.node.resize(300 * KiB, mode);
      const wanted = new Uint8Array(300 * KiB);
      wanted.set(pattern(size, 3));
      expect(Buffer.compare(await readAll(disk.node), wanted)).toBe(0);
      const used = disk.file.size;
      await disk.node.write(size, pattern(300 * KiB - size, 5));
      wanted.set(pattern(300 * KiB - size, 5), size);
      expect(Buffer.compare(await readAll(disk.node), wanted)).toBe(0);
      const { lines, leaks } = await closeAndCheck(disk);
      expect({ lines, leaks }).toEqual({ lines: [], leaks: 0 });
      // but for the last old cluster
      expect(disk.file.size - used).toBeLessThanOrEqual(2 * (options.clusterSize as number));
    },
  );

  it('is not for shrinking', async () => {
    const disk = await newDisk({ size: 40 * KiB, clusterSize: 512 });
    await expect(disk.node.truncate(20 * KiB, { preallocation: 'full' })).rejects.toMatchObject({
      reason: 'qcow2.resize-preallocation-shrink',
    });
  });
});

describe('shrinking a disk', () => {
  const kinds: readonly (readonly [string, Parameters<typeof newDisk>[0]])[] = [
    ['clusters of 512 bytes', { size: 400 * KiB, clusterSize: 512 }],
    ['version 2', { size: 400 * KiB, clusterSize: 4096, compat: 'v2' }],
    ['subclusters', { size: 400 * KiB, clusterSize: 16 * KiB, extendedL2: true }],
    ['refcounts of 64 bits', { size: 400 * KiB, clusterSize: 512, refcountBits: 64 }],
    ['lazy refcounts', { size: 400 * KiB, clusterSize: 1024, lazyRefcounts: true }],
    [
      'a backing file',
      { size: 400 * KiB, clusterSize: 512, backing: MemoryStore.from(pattern(500 * KiB, 7), { readOnly: true }) },
    ],
  ];

  it.each(kinds)(
    'gives back what is behind the end, with %s, and shows zeros when it grows again (M-18, Q-166)',
    async (_, options) => {
      const disk = await newDisk(options);
      const size = options.size as number;
      const packed = options.clusterSize as number;
      await disk.node.write(64 * KiB, pattern(packed, 8), { compressed: true });
      await disk.node.write(0, pattern(64 * KiB));
      await disk.node.write(64 * KiB + packed, pattern(size - 64 * KiB - packed, 2));
      const wanted = await readAll(disk.node);
      await disk.node.truncate(200 * KiB + 512);
      expect(disk.node.size).toBe(200 * KiB + 512);
      expect(Buffer.compare(await readAll(disk.node), wanted.subarray(0, 200 * KiB + 512))).toBe(0);
      await disk.node.flush();
      expect(disk.file.size).toBeLessThan(345 * KiB);
      await disk.node.truncate(150 * KiB);
      await disk.node.truncate(420 * KiB);
      const grown = new Uint8Array(420 * KiB);
      grown.set(wanted.subarray(0, 150 * KiB));
      expect(Buffer.compare(await readAll(disk.node), grown)).toBe(0);
      await disk.node.truncate(0);
      expect(disk.node.size).toBe(0);
      const { lines, leaks, file } = await closeAndCheck(disk);
      expect({ lines, leaks }).toEqual({ lines: [], leaks: 0 });
      expect(file.size).toBeLessThan(290 * KiB);
    },
  );

  it.each([0, 12, 20])(
    'and growing again over a backing file finds nothing of the tables that went (%d KiB left)',
    async (left) => {
      const backing = MemoryStore.from(pattern(160 * KiB, 7), { readOnly: true });
      const disk = await newDisk({ size: 160 * KiB, clusterSize: 512, backing });
      const wanted = new Uint8Array(160 * KiB);
      await disk.node.write(0, pattern(160 * KiB));
      await disk.node.truncate(left * KiB);
      wanted.set(pattern(160 * KiB).subarray(0, left * KiB));
      await disk.node.truncate(160 * KiB);
      for (const at of [40, 70, 100, 130, 159]) {
        await disk.node.write(at * KiB, pattern(700, at));
        wanted.set(pattern(700, at), at * KiB);
      }
      expect(await readAll(disk.node)).toEqual(wanted);
      const { file, lines, leaks } = await closeAndCheck(disk);
      expect({ lines, leaks }).toEqual({ lines: [], leaks: 0 });
      const again = await openDisk(file, { readOnly: true, backing });
      expect(await readAll(again.node)).toEqual(wanted);
    },
  );

  it('of a fresh opening leaves no table behind that a new one would be taken for', async () => {
    const backing = MemoryStore.from(pattern(160 * KiB, 7), { readOnly: true });
    const first = await newDisk({ size: 160 * KiB, clusterSize: 512, backing });
    await first.node.write(0, pattern(160 * KiB));
    const { file } = await closeAndCheck(first);
    const disk = await openDisk(file, { backing });
    await disk.node.truncate(0);
    await disk.node.truncate(160 * KiB);
    expect(await readAll(disk.node)).toEqual(new Uint8Array(160 * KiB));
    expect(await closeAndCheck(disk)).toMatchObject({ lines: [], leaks: 0 });
  });

  it('leaves snapshots what they hold, and their size (M-23)', async () => {
    const disk = await newDisk({ size: 200 * KiB, clusterSize: 512 });
    await disk.node.write(0, pattern(200 * KiB));
    await disk.node.createSnapshot({ name: 'large', dateSeconds: 1 });
    await disk.node.write(10 * KiB, pattern(20 * KiB, 2));
    await disk.node.truncate(21 * KiB);
    await disk.node.createSnapshot({ name: 'small', dateSeconds: 1 });
    await disk.node.truncate(100 * KiB);
    await disk.node.applySnapshot('large');
    expect(Buffer.compare(await readAll(disk.node), pattern(200 * KiB))).toBe(0);
    await disk.node.applySnapshot('small');
    expect(disk.node.size).toBe(21 * KiB);
    const wanted = pattern(200 * KiB).subarray(0, 21 * KiB);
    wanted.set(pattern(20 * KiB, 2).subarray(0, 11 * KiB), 10 * KiB);
    expect(Buffer.compare(await readAll(disk.node), wanted)).toBe(0);
    for (const name of ['large', 'small']) await disk.node.deleteSnapshot(name);
    expect(await closeAndCheck(disk)).toMatchObject({ lines: [], leaks: 0 });
  });

  it('drops the state of a machine', async () => {
    const disk = await newDisk({ size: 200 * KiB, clusterSize: 512 });
    await disk.node.write(0, pattern(200 * KiB));
    await disk.node.writeVmState(0, pattern(40 * KiB, 3));
    await disk.node.truncate(100 * KiB);
    const state = new Uint8Array(40 * KiB).fill(1);
    await disk.node.readVmState(0, state);
    expect(state.every((byte) => byte === 0)).toBe(true);
    await disk.node.writeVmState(0, pattern(40 * KiB, 3));
    await disk.node.truncate(200 * KiB);
    expect((await readAll(disk.node, 100 * KiB)).every((byte) => byte === 0)).toBe(true);
    expect(await closeAndCheck(disk)).toMatchObject({ lines: [], leaks: 0 });
  });
});
