import { describe, expect, it } from 'vitest';
import {
  closeAndCheck,
  headerOf,
  l2Tables,
  newDisk,
  openDisk,
  pattern,
  peek,
  poke,
  readAll,
} from '../../support/qcow2-parts.ts';

const KiB = 1024;
const COPIED = 1n << 63n;

/** Guest cluster 0 is made to lie on the metadata that `where` picks. */
async function overlapping(where: 'header' | 'l1' | 'l2' | 'refcount table' | 'refcount block') {
  const disk = await newDisk({ size: 64 * KiB, clusterSize: 4096 });
  await disk.node.write(0, pattern(4096));
  const { file } = await closeAndCheck(disk);
  const header = await headerOf(file);
  const [l2] = await l2Tables(file);
  const table = new DataView(new ArrayBuffer(8));
  await file.read(header.refcountTableOffset, new Uint8Array(table.buffer));
  const target = {
    header: 0,
    l1: header.l1Offset,
    l2: l2 as number,
    'refcount table': header.refcountTableOffset,
    'refcount block': table.getUint32(4),
  }[where];
  await poke(file, l2 as number, COPIED | BigInt(target === 0 ? 1 << 30 : target));
  return { file, l2: l2 as number, target };
}

describe('a guest write onto metadata', () => {
  const names = {
    l1: 'active L1 table',
    l2: 'active L2 table',
    'refcount table': 'refcount table',
    'refcount block': 'refcount block',
  } as const;
  for (const [where, name] of Object.entries(names)) {
    it(`is refused for the ${name}, and the image marked corrupt (Q-100)`, async () => {
      const { file, target } = await overlapping(where as keyof typeof names);
      const before = file.bytes().slice(target, target + 4096);
      const { node, events } = await openDisk(file);
      await expect(node.write(0, pattern(512))).rejects.toMatchObject({
        reason: 'qcow2.overlap',
        message: expect.stringContaining(`Preventing invalid write on metadata (overlaps with ${name})`),
      });
      expect(events).toMatchObject([{ type: 'corrupted', fatal: true }]);
      expect(file.bytes().slice(target, target + 4096)).toEqual(before);
      expect(((await headerOf(file)).incompatible / 2n) % 2n).toBe(1n);
    });
  }

  it('is let through where the caller switched the check off (Q-074)', async () => {
    const { file } = await overlapping('refcount table');
    const { node, events } = await openDisk(file, { options: { overlapCheck: 'none' } });
    await node.write(0, pattern(512));
    expect(events).toEqual([]);
  });
});

describe('an allocation', () => {
  it('never takes a cluster of metadata whose refcount is wrongly zero', async () => {
    const disk = await newDisk({ size: 64 * KiB, clusterSize: 4096 });
    await disk.node.write(0, pattern(4096));
    const { file } = await closeAndCheck(disk);
    const header = await headerOf(file);
    const table = new DataView(new ArrayBuffer(8));
    await file.read(header.refcountTableOffset, new Uint8Array(table.buffer));
    await file.write(table.getUint32(4), new Uint8Array(4096));
    const { node } = await openDisk(file);
    await expect(node.write(8192, pattern(100))).rejects.toMatchObject({ reason: 'qcow2.overlap' });
    await node.close();
    const readOnly = await openDisk(file.reopen(), { readOnly: true });
    expect(await readAll(readOnly.node, 0, 4096)).toEqual(pattern(4096));
  });

  it('never takes cluster 0, whatever is watched', async () => {
    const disk = await newDisk({ size: 64 * KiB, clusterSize: 4096 });
    const { file } = await closeAndCheck(disk);
    await poke(file, (await headerOf(file)).refcountTableOffset, 0n);
    const { node } = await openDisk(file, { options: { overlapCheck: 'none' } });
    await expect(node.write(0, pattern(100))).rejects.toMatchObject({ reason: 'qcow2.allocation-zero' });
    await node.close();
    expect((await headerOf(file.reopen())).virtualSize).toBe(64 * KiB);
  });

  it('puts no new refcount block over metadata', async () => {
    const disk = await newDisk({ size: 64 * KiB, clusterSize: 4096 });
    await disk.node.write(0, pattern(4096));
    const { file } = await closeAndCheck(disk);
    const before = file.bytes();
    await poke(file, (await headerOf(file)).refcountTableOffset, 0n);
    const { node } = await openDisk(file);
    await expect(node.write(8192, pattern(100))).rejects.toMatchObject({ reason: 'qcow2.overlap' });
    await node.close();
    expect(file.reopen().bytes().slice(0, 72)).toEqual(before.slice(0, 72));
  });
});

describe('a table that is written back', () => {
  it.each(['refcount table', 'refcount block'] as const)(
    'is not put over the %s, where a damaged L1 table leads it',
    async (kind) => {
      const disk = await newDisk({ size: 64 * KiB, clusterSize: 4096 });
      await disk.node.write(0, pattern(4096));
      const { file } = await closeAndCheck(disk);
      const { l1Offset, refcountTableOffset } = await headerOf(file);
      const target = kind === 'refcount table' ? refcountTableOffset : Number(await peek(file, refcountTableOffset));
      await poke(file, l1Offset, COPIED | BigInt(target));
      const before = file.bytes().slice(target, target + 4096);
      const { node, events } = await openDisk(file);
      const zeroed = async (): Promise<void> => {
        await node.writeZeroes(32 * KiB, 4096);
        await node.flush();
      };
      await expect(zeroed()).rejects.toMatchObject({
        reason: 'qcow2.overlap',
        message: expect.stringContaining(`overlaps with ${kind}`),
      });
      expect(events.at(-1)).toMatchObject({ type: 'corrupted', fatal: true });
      await node.close();
      expect(
        file
          .reopen()
          .bytes()
          .slice(target, target + 4096),
      ).toEqual(before);
    },
  );
});
