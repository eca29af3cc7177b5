import { describe, expect, it } from 'vitest';
import { MemoryStore } from '../../../src/storage/memory.ts';
import {
  closeAndCheck,
  l2Tables,
  newDisk,
  openDisk,
  pattern,
  peek,
  poke,
  readAll,
  runsOf,
} from '../../support/qcow2-parts.ts';

const KiB = 1024;
const SIZE = 32 * KiB;

function backing(): MemoryStore {
  return MemoryStore.from(pattern(SIZE, 9), { readOnly: true });
}

function kinds(runs: readonly string[]): string[] {
  return runs.map((run) => run.split('@')[0] as string);
}

describe('write zeroes', () => {
  it('marks whole clusters, hides the backing file, and writes the parts at both ends (Q-094, Q-160, Q-161)', async () => {
    const disk = await newDisk({ size: SIZE, clusterSize: 4096, backing: backing() });
    await disk.node.writeZeroes(1000, 14000);
    const wanted = pattern(SIZE, 9);
    wanted.fill(0, 1000, 15000);
    expect(await readAll(disk.node)).toEqual(wanted);
    expect(kinds(await runsOf(disk.node))).toEqual(['data 4096', 'zero 8192', 'data 4096', 'unallocated 16384']);
    expect(await closeAndCheck(disk)).toMatchObject({ lines: [], leaks: 0 });
  });

  it('gives the clusters back with unmap and keeps them without', async () => {
    const disk = await newDisk({ size: SIZE, clusterSize: 4096 });
    await disk.node.write(0, pattern(8192));
    await disk.node.writeZeroes(0, 4096);
    await disk.node.writeZeroes(4096, 4096, { unmap: true });
    expect((await runsOf(disk.node))[0]).toMatch(/^zero 4096@/);
    expect((await runsOf(disk.node))[1]).toBe('zero 4096');
    expect(await closeAndCheck(disk)).toMatchObject({ lines: [], leaks: 0 });
  });

  it('fills a zero cluster that kept its space in place, with zeros around the new bytes', async () => {
    const disk = await newDisk({ size: SIZE, clusterSize: 4096 });
    await disk.node.write(0, pattern(4096));
    const [before] = await runsOf(disk.node);
    await disk.node.writeZeroes(0, 4096);
    await disk.node.write(100, pattern(50, 3));
    const wanted = new Uint8Array(4096);
    wanted.set(pattern(50, 3), 100);
    expect(await readAll(disk.node, 0, 4096)).toEqual(wanted);
    expect((await runsOf(disk.node))[0]).toBe(before);
  });

  it('drops compressed clusters', async () => {
    const disk = await newDisk({ size: SIZE, clusterSize: 4096 });
    await disk.node.write(0, new Uint8Array(8192).fill(5), { compressed: true });
    await disk.node.writeZeroes(0, 4096);
    expect(kinds(await runsOf(disk.node))).toEqual(['zero 4096', 'encoded 4096', 'unallocated 24576']);
    expect(await closeAndCheck(disk)).toMatchObject({ lines: [], leaks: 0 });
  });

  it('marks subclusters, and writes zeros into part of a compressed cluster (M-03)', async () => {
    const disk = await newDisk({ size: 64 * KiB, extendedL2: true });
    await disk.node.write(0, pattern(16384));
    await disk.node.writeZeroes(1024, 2048);
    expect(kinds(await runsOf(disk.node, 0, 16384))).toEqual(['data 1024', 'zero 2048', 'data 13312']);
    await disk.node.write(16384, new Uint8Array(16384).fill(7), { compressed: true });
    await disk.node.writeZeroes(16384 + 512, 512);
    const wanted = new Uint8Array(16384).fill(7);
    wanted.fill(0, 512, 1024);
    expect(await readAll(disk.node, 16384, 16384)).toEqual(wanted);
    expect(await closeAndCheck(disk)).toMatchObject({ lines: [], leaks: 0 });
  });

  it('in version 2 unallocates where nothing lies below, and writes zeros over a backing file (Q-161)', async () => {
    const alone = await newDisk({ size: SIZE, clusterSize: 4096, compat: 'v2' });
    await alone.node.write(0, pattern(8192));
    await alone.node.writeZeroes(0, 8192);
    expect(kinds(await runsOf(alone.node))).toEqual(['unallocated 32768']);
    const over = await newDisk({ size: SIZE, clusterSize: 4096, compat: 'v2', backing: backing() });
    await over.node.writeZeroes(4096, 4096);
    expect(kinds(await runsOf(over.node))).toEqual(['unallocated 4096', 'data 4096', 'unallocated 24576']);
    expect(await readAll(over.node, 4096, 4096)).toEqual(new Uint8Array(4096));
  });

  it('of what reads as zero already changes nothing at the ends (Q-160)', async () => {
    const { node } = await newDisk({ size: SIZE, clusterSize: 4096 });
    await node.writeZeroes(100, 200);
    expect(kinds(await runsOf(node))).toEqual(['unallocated 32768']);
  });

  it('over a cluster whose entry is damaged forgets the entry, and reads as zero afterwards', async () => {
    const disk = await newDisk({ size: SIZE, clusterSize: 4096 });
    await disk.node.write(0, pattern(8192));
    const { file } = await closeAndCheck(disk);
    const [l2] = await l2Tables(file);
    await poke(file, l2 as number, (await peek(file, l2 as number)) + 512n);
    const { node } = await openDisk(file);
    await node.writeZeroes(0, 4096);
    expect(await readAll(node, 0, 4096)).toEqual(new Uint8Array(4096));
    expect((await runsOf(node))[0]).toBe('zero 4096');
  });
});

describe('discard', () => {
  it('makes whole clusters read as zero and never shows the backing file (Q-162)', async () => {
    const disk = await newDisk({ size: SIZE, clusterSize: 4096, backing: backing() });
    await disk.node.write(4096, pattern(8192));
    await disk.node.discard(4000, 13000);
    expect(kinds(await runsOf(disk.node))).toEqual(['unallocated 4096', 'zero 12288', 'unallocated 16384']);
    expect(await closeAndCheck(disk)).toMatchObject({ lines: [], leaks: 0 });
  });

  it('leaves parts of clusters alone (Q-162)', async () => {
    const { node } = await newDisk({ size: SIZE, clusterSize: 4096 });
    await node.write(0, pattern(4096));
    await node.discard(1, 4000);
    expect(await readAll(node, 0, 4096)).toEqual(pattern(4096));
  });

  it('takes a last cluster that the disk cuts short for a whole one', async () => {
    const disk = await newDisk({ size: 5 * 512, clusterSize: 1024 });
    await disk.node.write(2048, pattern(512));
    await disk.node.discard(2048, 512);
    expect(kinds(await runsOf(disk.node))).toEqual(['unallocated 2048', 'zero 512']);
    expect(await closeAndCheck(disk)).toMatchObject({ lines: [], leaks: 0 });
  });

  it('does nothing in version 2 over a backing file, which would show again (Q-162)', async () => {
    const { node } = await newDisk({ size: SIZE, clusterSize: 4096, compat: 'v2', backing: backing() });
    await node.write(0, pattern(4096));
    await node.discard(0, 4096);
    expect(await readAll(node, 0, 4096)).toEqual(pattern(4096));
  });

  it('makes room that later writes use again, once it is durable that nothing refers to it', async () => {
    const disk = await newDisk({ size: SIZE, clusterSize: 4096 });
    await disk.node.write(0, pattern(16384));
    await disk.node.flush();
    const size = disk.file.size;
    await disk.node.discard(0, 16384);
    await disk.node.flush();
    await disk.node.write(16384, pattern(16384, 2));
    expect(disk.file.size).toBe(size);
    expect(await closeAndCheck(disk)).toMatchObject({ lines: [], leaks: 0 });
  });
});
