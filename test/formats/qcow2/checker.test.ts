import { describe, expect, it } from 'vitest';
import { headerOf, newDisk, openDisk, pattern, poke, readAll } from '../../support/qcow2-parts.ts';

const KiB = 1024;

describe('checking a disk that is open', () => {
  it('sees what is still in memory, and lets requests go on afterwards', async () => {
    const { node } = await newDisk({ size: 64 * KiB, clusterSize: 512 });
    await node.write(0, pattern(4096));
    const result = await node.format.check?.check({});
    expect(result).toMatchObject({
      corruptions: 0,
      leaks: 0,
      checkErrors: 0,
      allocatedClusters: 8,
      totalClusters: 128,
    });
    await node.write(512, pattern(512, 2));
    expect(await readAll(node, 512, 512)).toEqual(pattern(512, 2));
  });

  it('waits for requests that run and holds those that come', async () => {
    const { node } = await newDisk({ size: 64 * KiB, clusterSize: 512 });
    const writes = [node.write(0, pattern(2048)), node.write(8192, pattern(2048))];
    const checking = node.format.check?.check({});
    const later = node.write(1024, pattern(512, 3));
    expect(await checking).toMatchObject({ corruptions: 0, leaks: 0 });
    await Promise.all([...writes, later]);
    expect(await readAll(node, 1024, 512)).toEqual(pattern(512, 3));
  });

  it('after a repair uses nothing that was read before', async () => {
    const disk = await newDisk({ size: 64 * KiB, clusterSize: 512 });
    await disk.node.write(0, pattern(512));
    await disk.node.close();
    const file = disk.file.reopen();
    const header = await headerOf(file);
    const table = new DataView(new ArrayBuffer(8));
    await file.read(header.refcountTableOffset, new Uint8Array(table.buffer));
    // Everything the block counts looks free now.
    for (let at = 0; at < 512; at += 8) await poke(file, table.getUint32(4) + at, 0n);
    const again = await openDisk(file, { forCheck: true });
    const fixed = await again.node.format.check?.check({ fix: 'all' });
    expect(fixed).toMatchObject({ corruptions: 0 });
    await again.node.write(8192, pattern(4096, 5));
    expect(await readAll(again.node, 0, 512)).toEqual(pattern(512));
    expect(await again.node.format.check?.check({})).toMatchObject({ corruptions: 0, leaks: 0 });
  });
});
