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
    ['a smaller size', 16 * KiB, 'qcow2.resize-shrink'],
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
