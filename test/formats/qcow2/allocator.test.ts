import { describe, expect, it } from 'vitest';
import { closeAndCheck, headerOf, newDisk, pattern, readAll, runsOf } from '../../support/qcow2-parts.ts';

const KiB = 1024;
const SIZE = 256 * KiB;

function hostOf(run: string): number {
  return Number.parseInt((run.split('@')[1] as string).split(' ')[0] as string, 16);
}

describe('the allocator', () => {
  it('lays clusters written in order out in order', async () => {
    const { node } = await newDisk({ size: SIZE, clusterSize: 4096 });
    for (let at = 0; at < 64 * KiB; at += 4096) await node.write(at, pattern(4096));
    expect((await runsOf(node, 0, 64 * KiB)).length).toBe(1);
  });

  it('gives nothing that was dropped to anybody before the drop is durable', async () => {
    const disk = await newDisk({ size: SIZE, clusterSize: 4096 });
    await disk.node.write(0, pattern(4096));
    await disk.node.flush();
    const old = hostOf((await runsOf(disk.node))[0] as string);
    await disk.node.discard(0, 4096);
    await disk.node.write(8192, pattern(4096));
    expect(hostOf((await runsOf(disk.node, 8192, 4096))[0] as string)).not.toBe(old);
    await disk.node.flush();
    await disk.node.write(16384, pattern(4096));
    expect(hostOf((await runsOf(disk.node, 16384, 4096))[0] as string)).toBe(old);
    expect(await closeAndCheck(disk)).toMatchObject({ lines: [], leaks: 0 });
  });

  it('flushes and frees what was dropped before it lets the file grow for ever', async () => {
    const disk = await newDisk({ size: SIZE, clusterSize: 512 });
    for (let round = 0; round < 20; round++) {
      await disk.node.write(0, pattern(64 * KiB, round));
      await disk.node.discard(0, 64 * KiB);
    }
    expect(disk.file.size).toBeLessThan(4 * 64 * KiB);
    expect(await closeAndCheck(disk)).toMatchObject({ lines: [], leaks: 0 });
  });

  it('gives back what an aborted write had reserved', async () => {
    const disk = await newDisk({ size: SIZE, clusterSize: 4096 });
    await disk.node.write(0, pattern(4096));
    const plan = await disk.node.format.prepareWrite?.(8192, 8192);
    await disk.node.format.abortWrite?.(plan as NonNullable<typeof plan>);
    expect(await closeAndCheck(disk)).toMatchObject({ lines: [], leaks: 0 });
  });

  it('makes refcount blocks as the file grows, past what the first ones count', async () => {
    const disk = await newDisk({ size: 8 * 1024 * KiB, clusterSize: 512, refcountBits: 64 });
    const data = pattern(4 * 1024 * KiB);
    await disk.node.write(0, data);
    expect((await headerOf(disk.file)).refcountTableClusters).toBeGreaterThan(1);
    expect(await readAll(disk.node, 0, data.length)).toEqual(data);
    expect(await closeAndCheck(disk)).toMatchObject({ lines: [], leaks: 0 });
  });
});
