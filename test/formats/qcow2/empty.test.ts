/** Emptying an image: at once where only the disk has clusters, else cluster by cluster; at any cut it is the old image or an empty one. */
import { describe, expect, it } from 'vitest';
import { MemoryStore } from '../../../src/storage/memory.ts';
import { afterEveryCut, busyImage, headerOf } from '../../support/qcow2-cuts.ts';
import { closeAndCheck, newDisk, openDisk, pattern, readAll } from '../../support/qcow2-parts.ts';
import { checkQcow2, type Qcow2Variant } from '../../support/qcow2-under-test.ts';

const KiB = 1024;
const SIZE = 40 * KiB;
const BACKING = pattern(30 * KiB, 8);

function shown(): Uint8Array {
  const disk = new Uint8Array(SIZE);
  disk.set(BACKING);
  return disk;
}

describe('emptying an image', () => {
  it.each<[string, Qcow2Variant]>([
    ['clusters of 512 bytes', {}],
    ['clusters of 64 KiB', { clusterSize: 64 * KiB }],
    ['refcounts of one bit', { refcountBits: 1, clusterSize: 1024 }],
    ['refcounts of 64 bits', { refcountBits: 64, clusterSize: 4096 }],
    ['lazy refcounts', { lazyRefcounts: true }],
    ['subclusters', { extendedL2: true }],
  ])('puts its tables right behind the header and cuts the file, with %s (Q-174, Q-176)', async (_, variant) => {
    const before = await busyImage({ size: SIZE, variant, backing: BACKING });
    const disk = await openDisk(MemoryStore.from(before), { backing: MemoryStore.from(BACKING) });
    await disk.node.makeEmpty();
    expect(Buffer.compare(await readAll(disk.node), shown())).toBe(0);
    const unit = 2 ** (await headerOf(before)).clusterBits;
    const l1 = Math.ceil(((await headerOf(before)).l1Size * 8) / unit);
    expect(disk.file.size).toBe((3 + l1) * unit);
    expect(await headerOf(disk.file.bytes())).toMatchObject({ l1Offset: 3 * unit, refcountTableOffset: unit });
    // and it can be lived with
    await disk.node.write(1000, pattern(20 * KiB, 5));
    const wanted = shown();
    wanted.set(pattern(20 * KiB, 5), 1000);
    expect(Buffer.compare(await readAll(disk.node), wanted)).toBe(0);
    expect(await closeAndCheck(disk)).toMatchObject({ lines: [], leaks: 0 });
  });

  it.each<[string, Qcow2Variant, boolean]>([
    ['version 2', { compat: 'v2' }, false],
    ['snapshots', {}, true],
  ])('drops cluster by cluster with %s (Q-175, Q-176)', async (_, variant, snapshots) => {
    const before = await busyImage({ size: SIZE, variant, backing: BACKING, snapshots });
    const disk = await openDisk(MemoryStore.from(before), { backing: MemoryStore.from(BACKING) });
    expect(disk.node.format.makeEmpty).toBeUndefined();
    const kept = disk.node.format.snapshots?.list().length;
    await disk.node.makeEmpty();
    expect(Buffer.compare(await readAll(disk.node), shown())).toBe(0);
    expect(disk.node.format.snapshots?.list().length).toBe(kept);
    expect(await closeAndCheck(disk)).toMatchObject({ lines: [], leaks: 0 });
  });

  it('waits for running requests and holds later ones', async () => {
    const disk = await newDisk({ size: SIZE, clusterSize: 512, backing: MemoryStore.from(BACKING) });
    const first = disk.node.write(0, pattern(9000));
    const emptied = disk.node.makeEmpty();
    const later = disk.node.write(20 * KiB, pattern(700, 4));
    await Promise.all([first, emptied, later]);
    const wanted = shown();
    wanted.set(pattern(700, 4), 20 * KiB);
    expect(Buffer.compare(await readAll(disk.node), wanted)).toBe(0);
    expect(await closeAndCheck(disk)).toMatchObject({ lines: [], leaks: 0 });
  });

  it.each<[string, Qcow2Variant]>([
    ['clusters of 512 bytes', {}],
    ['refcounts of 64 bits, several blocks of them', { refcountBits: 64 }],
    ['lazy refcounts', { lazyRefcounts: true, clusterSize: 1024 }],
    ['subclusters', { extendedL2: true }],
  ])('leaves the old image or an empty one at any cut, with %s (Q-174)', async (_, variant) => {
    const before = await busyImage({ size: SIZE, variant, backing: BACKING });
    const after = await afterEveryCut({
      before,
      backing: BACKING,
      lazy: variant.lazyRefcounts === true,
      make: (node) => node.makeEmpty(),
    });
    expect(await checkQcow2(MemoryStore.from(after))).toMatchObject({ leaks: 0, lines: [] });
  });
});
