import { describe, expect, it } from 'vitest';
import { noise, seededRandom } from '../../../src/testing/random.ts';
import {
  closeAndCheck,
  l2Tables,
  newDisk,
  openDisk,
  pattern,
  poke,
  readAll,
  runsOf,
} from '../../support/qcow2-parts.ts';

const KiB = 1024;

function compressible(length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  for (let i = 0; i < length; i++) bytes[i] = Math.floor(i / 97) % 256;
  return bytes;
}

describe('compressed clusters', () => {
  it('are packed behind each other, share clusters, and read back whole or in parts (Q-095, Q-172)', async () => {
    const disk = await newDisk({ size: 256 * KiB, clusterSize: 4096 });
    const data = compressible(128 * KiB);
    await disk.node.write(0, data, { compressed: true });
    expect(disk.file.size).toBeLessThan(64 * KiB);
    expect(await readAll(disk.node, 0, data.length)).toEqual(data);
    expect(await readAll(disk.node, 5000, 9000)).toEqual(data.subarray(5000, 14000));
    for (let at = 0; at < 8192; at += 700) {
      expect(await readAll(disk.node, at, 700)).toEqual(data.subarray(at, at + 700));
    }
    expect(await closeAndCheck(disk)).toMatchObject({ lines: [], leaks: 0 });
  });

  it('that would not become smaller are stored plain, and may be written in place (Q-171)', async () => {
    const disk = await newDisk({ size: 64 * KiB, clusterSize: 4096 });
    const data = noise(seededRandom(3), 8192);
    await disk.node.write(0, data, { compressed: true });
    expect((await runsOf(disk.node))[0]).toMatch(/^data 8192@.* writable$/);
    expect(await readAll(disk.node, 0, 8192)).toEqual(data);
    expect(await closeAndCheck(disk)).toMatchObject({ lines: [], leaks: 0 });
  });

  it('are copied out of their cluster when the guest writes into them', async () => {
    const disk = await newDisk({ size: 64 * KiB, clusterSize: 4096 });
    const data = compressible(16 * KiB);
    await disk.node.write(0, data, { compressed: true });
    await disk.node.write(5000, pattern(100));
    data.set(pattern(100), 5000);
    expect(await readAll(disk.node, 0, data.length)).toEqual(data);
    await disk.node.flush();
    expect(await readAll(disk.node, 0, data.length)).toEqual(data);
    expect(await closeAndCheck(disk)).toMatchObject({ lines: [], leaks: 0 });
  });

  it('may replace what was there before (Q-172)', async () => {
    const disk = await newDisk({ size: 64 * KiB, clusterSize: 4096 });
    await disk.node.write(0, pattern(8192));
    await disk.node.write(0, compressible(8192), { compressed: true });
    await disk.node.write(0, compressible(4096).fill(3), { compressed: true });
    expect(await readAll(disk.node, 0, 4096)).toEqual(new Uint8Array(4096).fill(3));
    expect(await closeAndCheck(disk)).toMatchObject({ lines: [], leaks: 0 });
  });

  it('at a disk end inside a cluster are filled up with zeros (Q-169)', async () => {
    const disk = await newDisk({ size: 4096 + 512, clusterSize: 4096 });
    await disk.node.write(0, compressible(4096 + 512), { compressed: true });
    expect(await readAll(disk.node)).toEqual(compressible(4096 + 512));
    expect(await closeAndCheck(disk)).toMatchObject({ lines: [], leaks: 0 });
  });

  it('must be whole clusters (Q-169)', async () => {
    const { node } = await newDisk({ size: 64 * KiB, clusterSize: 4096 });
    await expect(node.write(0, new Uint8Array(1000), { compressed: true })).rejects.toMatchObject({
      reason: 'engine.compress-align',
    });
  });

  it('that overlap in time end up in the file in the order of their requests', async () => {
    const files: Uint8Array[] = [];
    for (let round = 0; round < 2; round++) {
      const disk = await newDisk({ size: 256 * KiB, clusterSize: 4096 });
      const data = compressible(256 * KiB);
      const writes = [];
      for (let at = 0; at < data.length; at += 32 * KiB) {
        writes.push(disk.node.write(at, data.subarray(at, at + 32 * KiB), { compressed: true }));
        if (round === 1) await Promise.resolve();
      }
      await Promise.all(writes);
      await disk.node.close();
      files.push(disk.file.reopen().bytes());
    }
    expect(files[0]).toEqual(files[1]);
  });

  it('never share more of one cluster than its refcount can count', async () => {
    const disk = await newDisk({ size: 64 * KiB, clusterSize: 4096, refcountBits: 1 });
    await disk.node.write(0, new Uint8Array(64 * KiB).fill(1), { compressed: true });
    expect(await readAll(disk.node)).toEqual(new Uint8Array(64 * KiB).fill(1));
    expect(await closeAndCheck(disk)).toMatchObject({ lines: [], leaks: 0 });
  });

  it('whose bytes do not decode fail the read with their place, and only that read', async () => {
    const disk = await newDisk({ size: 64 * KiB, clusterSize: 4096 });
    await disk.node.write(0, compressible(8192), { compressed: true });
    const { file } = await closeAndCheck(disk);
    const { node } = await openDisk(file);
    const [run] = await runsOf(node, 0, 4096);
    const at = Number.parseInt((run as string).split('@')[1] as string, 16);
    await file.write(at, new Uint8Array(20).fill(0xff));
    await expect(async () => await node.read(0, new Uint8Array(4096))).rejects.toMatchObject({
      code: 'CORRUPT',
      reason: 'qcow2.compressed-data',
      details: { offset: at, guestOffset: 0 },
    });
    expect(await readAll(node, 4096, 4096)).toEqual(compressible(8192).subarray(4096));
  });

  it('of a descriptor that points past the end of the file are refused, not read as zeros', async () => {
    const disk = await newDisk({ size: 64 * KiB, clusterSize: 4096 });
    await disk.node.write(0, compressible(4096), { compressed: true });
    const { file } = await closeAndCheck(disk);
    const [l2] = await l2Tables(file);
    await poke(file, l2 as number, (1n << 62n) | 0x7fff_0000n);
    const { node } = await openDisk(file);
    await expect(async () => await node.read(0, new Uint8Array(512))).rejects.toMatchObject({
      reason: 'qcow2.compressed-data',
    });
  });
});
