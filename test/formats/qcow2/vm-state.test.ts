/** The state of a machine behind the disk: rows. */
import { describe, expect, it } from 'vitest';
import { MemoryStore } from '../../../src/storage/memory.ts';
import { RecordingStore } from '../../../src/testing/recording-store.ts';
import {
  closeAndCheck,
  headerOf,
  newDisk,
  type OpenedDisk,
  openDisk,
  pattern,
  readAll,
} from '../../support/qcow2-parts.ts';
import { createQcow2Bytes, openQcow2 } from '../../support/qcow2-under-test.ts';

const KiB = 1024;

async function state({ node }: Pick<OpenedDisk, 'node'>, offset: number, length: number): Promise<Uint8Array> {
  const bytes = new Uint8Array(length).fill(0xcc);
  await node.readVmState(offset, bytes);
  return bytes;
}

describe('VM state', () => {
  it.each([512, 4096])(
    'is written and read behind the disk, which keeps its size; clusters of %i bytes (Q-004, Q-123, Q-190, Q-191, Q-192)',
    async (clusterSize) => {
      const disk = await newDisk({ size: 40 * KiB, clusterSize });
      await disk.node.write(0, pattern(40 * KiB));
      expect((await state(disk, 0, 100)).every((byte) => byte === 0)).toBe(true);
      await disk.node.writeVmState(0, pattern(100 * KiB, 2));
      // in the middle of clusters that are there, and behind what is there
      await disk.node.writeVmState(777, pattern(5000, 3));
      await disk.node.writeVmState(300 * KiB + 1, pattern(10, 4));
      const wanted = new Uint8Array(300 * KiB + 11);
      wanted.set(pattern(100 * KiB, 2));
      wanted.set(pattern(5000, 3), 777);
      wanted.set(pattern(10, 4), 300 * KiB + 1);
      expect(await state(disk, 0, wanted.length)).toEqual(wanted);
      expect(disk.node.size).toBe(40 * KiB);
      expect(await readAll(disk.node)).toEqual(pattern(40 * KiB));
      const { file, lines, leaks } = await closeAndCheck(disk);
      expect({ lines, leaks }).toEqual({ lines: [], leaks: 0 });
      expect((await headerOf(file)).virtualSize).toBe(40 * KiB);
      expect(await state(await openDisk(file, { readOnly: true }), 0, wanted.length)).toEqual(wanted);
    },
  );

  it('announces itself to whoever counts events', async () => {
    const seen: string[] = [];
    const file = await createQcow2Bytes(64 * KiB, { clusterSize: 4096 }, false);
    const store = new RecordingStore(file);
    const announce = store.event.bind(store);
    Object.defineProperty(store, 'event', {
      value: (name: string) => {
        seen.push(name);
        return announce(name);
      },
    });
    const node = await openQcow2(store);
    await node.writeVmState(0, pattern(10));
    await node.readVmState(0, new Uint8Array(10));
    expect(seen).toEqual(expect.arrayContaining(['vmstate_save', 'vmstate_load']));
    await node.close();
  });

  it('goes to the snapshot that is made with it, comes back with it, and is gone with it', async () => {
    const disk = await newDisk({ size: 64 * KiB, clusterSize: 4096 });
    await disk.node.write(0, pattern(64 * KiB));
    await disk.node.writeVmState(0, pattern(50 * KiB, 2));
    await disk.node.createSnapshot({ name: 'running', dateSeconds: 1, vmStateSize: 50 * KiB });
    expect((await state(disk, 0, 50 * KiB)).every((byte) => byte === 0)).toBe(true);
    await disk.node.createSnapshot({ name: 'off', dateSeconds: 2 });
    await disk.node.writeVmState(0, pattern(100, 9));
    await disk.node.applySnapshot('running');
    expect(await state(disk, 0, 50 * KiB)).toEqual(pattern(50 * KiB, 2));
    await disk.node.applySnapshot('off');
    expect((await state(disk, 0, 100)).every((byte) => byte === 0)).toBe(true);
    const frozen = await openQcow2(MemoryStore.from(disk.file.bytes()), { readOnly: true, snapshot: 'running' });
    expect(await state({ node: frozen }, 0, 50 * KiB)).toEqual(pattern(50 * KiB, 2));
    await disk.node.deleteSnapshot('running');
    const { file, lines, leaks } = await closeAndCheck(disk);
    expect({ lines, leaks }).toEqual({ lines: [], leaks: 0 });
    const again = await openDisk(file);
    expect((await again.node.format.info()).snapshots).toMatchObject([{ name: 'off', vmStateSize: 0 }]);
  });

  it('without a size of it stays with the disk, too, as in QEMU', async () => {
    const disk = await newDisk({ size: 64 * KiB, clusterSize: 4096 });
    await disk.node.writeVmState(0, pattern(5000));
    await disk.node.createSnapshot({ name: 'a', dateSeconds: 1 });
    expect(await state(disk, 0, 5000)).toEqual(pattern(5000));
    await disk.node.writeVmState(100, pattern(50, 2));
    const changed = pattern(5000);
    changed.set(pattern(50, 2), 100);
    expect(await state(disk, 0, 5000)).toEqual(changed);
    await disk.node.applySnapshot('a');
    expect(await state(disk, 0, 5000)).toEqual(pattern(5000));
    expect(await closeAndCheck(disk)).toMatchObject({ lines: [], leaks: 0 });
  });

  it('does not show in a disk that grows over its place', async () => {
    const disk = await newDisk({ size: 64 * KiB, clusterSize: 512 });
    await disk.node.writeVmState(0, pattern(200 * KiB));
    await disk.node.truncate(2000 * KiB);
    expect((await readAll(disk.node)).every((byte) => byte === 0)).toBe(true);
    expect(await closeAndCheck(disk)).toMatchObject({ lines: [], leaks: 0 });
  });

  it('over a longer backing file reads as that file where it was never written (Q-191)', async () => {
    const backing = MemoryStore.from(pattern(512 * KiB, 5), { readOnly: true });
    const disk = await newDisk({ size: 8 * KiB, clusterSize: 512, backing });
    const start = disk.node.format.vmState?.offset as number;
    expect(await state(disk, 1000, 2000)).toEqual(pattern(512 * KiB, 5).slice(start + 1000, start + 3000));
  });

  it('waits for a change of snapshots, and finds its place afterwards', async () => {
    const disk = await newDisk({ size: 16 * KiB, clusterSize: 512 });
    await disk.node.writeVmState(0, pattern(3000));
    await disk.node.createSnapshot({ name: 'small', dateSeconds: 1 });
    await disk.node.truncate(1000 * KiB);
    const applied = disk.node.applySnapshot('small');
    const written = disk.node.writeVmState(100 * KiB, pattern(5000, 2));
    await Promise.all([applied, written]);
    expect(await state(disk, 0, 3000)).toEqual(pattern(3000));
    expect(await state(disk, 100 * KiB, 5000)).toEqual(pattern(5000, 2));
    expect(await closeAndCheck(disk)).toMatchObject({ lines: [], leaks: 0 });
  });

  it('has bounds', async () => {
    const disk = await newDisk({ size: 64 * KiB, clusterSize: 512 });
    await expect(disk.node.writeVmState(-1, pattern(1))).rejects.toMatchObject({ code: 'OUT_OF_RANGE' });
    await expect(state(disk, 0.5, 1)).rejects.toMatchObject({ code: 'OUT_OF_RANGE' });
    await expect(disk.node.writeVmState(2 ** 38, pattern(1))).rejects.toMatchObject({
      code: 'TOO_LARGE',
      reason: 'qcow2.vm-state-too-large',
    });
    expect(await closeAndCheck(disk)).toMatchObject({ lines: [], leaks: 0 });
  });
});
