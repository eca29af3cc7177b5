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
  runsOf,
} from '../../support/qcow2-parts.ts';

const KiB = 1024;

describe('the cluster map', () => {
  it('joins clusters that follow each other in guest and file into one run (Q-091)', async () => {
    const { node } = await newDisk({ size: 64 * KiB, clusterSize: 4096 });
    await node.write(8192, pattern(16384));
    const runs = await runsOf(node);
    expect(runs.map((run) => run.replace(/@\S+/, ''))).toEqual([
      'unallocated 8192',
      'data 16384 writable',
      'unallocated 40960',
    ]);
  });

  it('maps whole L1 entries without tables as unallocated, many in one call', async () => {
    const { node } = await newDisk({ size: 1024 * KiB, clusterSize: 512 });
    expect(await runsOf(node)).toEqual([`unallocated ${1024 * KiB}`]);
  });

  it('cuts runs at both ends of the range asked for', async () => {
    const { node } = await newDisk({ size: 64 * KiB, clusterSize: 4096 });
    await node.write(0, pattern(12288));
    const [run, ...rest] = await runsOf(node, 1000, 5000);
    expect(run).toMatch(/^data 5000@0x[0-9a-f]+3e8 writable$/);
    expect(rest).toEqual([]);
  });

  it('never calls a cluster writable that is shared, or when the image is read-only (Q-002)', async () => {
    const disk = await newDisk({ size: 16 * KiB, clusterSize: 4096 });
    await disk.node.write(0, pattern(4096));
    const { file } = await closeAndCheck(disk);
    const [l2] = await l2Tables(file);
    await poke(file, l2 as number, (await peek(file, l2 as number)) & ~(1n << 63n));
    const shared = await openDisk(file);
    expect((await runsOf(shared.node))[0]).not.toContain('writable');
    await shared.node.close();
    const readOnly = await openDisk(file.reopen(), { readOnly: true });
    expect((await runsOf(readOnly.node))[0]).not.toContain('writable');
  });

  it('gives zero clusters that keep their space their host offset, and plain ones none', async () => {
    const { node } = await newDisk({ size: 16 * KiB, clusterSize: 4096 });
    await node.write(0, pattern(8192));
    await node.writeZeroes(0, 4096);
    await node.writeZeroes(4096, 8192, { unmap: true });
    const runs = await runsOf(node);
    expect(runs[0]).toMatch(/^zero 4096@0x/);
    expect(runs[1]).toBe('zero 8192');
  });

  it('maps each compressed cluster on its own', async () => {
    const { node } = await newDisk({ size: 16 * KiB, clusterSize: 4096 });
    await node.write(0, new Uint8Array(8192), { compressed: true });
    expect((await runsOf(node)).map((run) => run.split('@')[0])).toEqual([
      'encoded 4096',
      'encoded 4096',
      'unallocated 8192',
    ]);
  });

  it('maps subclusters by both bitmaps (M-03)', async () => {
    const { node } = await newDisk({ size: 64 * KiB, extendedL2: true });
    await node.write(512, pattern(1024));
    await node.writeZeroes(4096, 512);
    const runs = (await runsOf(node, 0, 16384)).map((run) => run.replace(/@\S+/, ''));
    expect(runs).toEqual([
      'unallocated 512',
      'data 1024 writable',
      'unallocated 2560',
      'zero 512',
      'unallocated 11776',
    ]);
  });
});

/** An image with one allocated cluster whose L1 or L2 entry is then replaced. */
async function damaged(where: 'l1' | 'l2', value: bigint, version: 2 | 3 = 3): Promise<ReturnType<typeof openDisk>> {
  const disk = await newDisk({ size: 16 * KiB, clusterSize: 4096, compat: version === 2 ? 'v2' : 'v3' });
  await disk.node.write(0, pattern(4096));
  const { file } = await closeAndCheck(disk);
  const at = where === 'l1' ? (await headerOf(file)).l1Offset : ((await l2Tables(file))[0] as number);
  await poke(file, at, value);
  return await openDisk(file);
}

describe('a damaged table', () => {
  const COPIED = 1n << 63n;
  const cases: readonly (readonly [string, 'l1' | 'l2', bigint, RegExp, (2 | 3)?])[] = [
    ['an unaligned L2 table', 'l1', COPIED | 0x5200n, /L2 table offset 0x5200 unaligned \(L1 index: 0\)/],
    ['an L2 table beyond 2^53', 'l1', COPIED | (0xffn << 48n), /L2 table offset above 2\^53 unaligned/],
    [
      'an unaligned cluster',
      'l2',
      COPIED | 0x5200n,
      /Cluster allocation offset 0x5200 unaligned \(L2 offset: 0x[0-9a-f]+, L2 index: 0\)/,
    ],
    ['a cluster beyond 2^53', 'l2', COPIED | (0xf0n << 48n), /Cluster allocation offset above 2\^53 unaligned/],
    ['a zero flag in version 2', 'l2', 1n, /Zero cluster entry found in pre-v3 image/, 2],
  ];
  for (const [name, where, value, message, version] of cases) {
    it(`with ${name} fails the read, says where, marks the image corrupt and ends its use (M-25, Q-067, Q-096, Q-224)`, async () => {
      const { node, events, file } = await damaged(where, value, version);
      await expect(readAll(node)).rejects.toMatchObject({ code: 'CORRUPT', message: expect.stringMatching(message) });
      expect(events).toMatchObject([{ type: 'corrupted', fatal: true }]);
      expect(() => node.read(0, new Uint8Array(1))).toThrow(/refused after a fatal error/);
      if (version !== 2) expect(((await headerOf(file)).incompatible / 2n) % 2n).toBe(1n);
    });
  }

  it('of a read-only image fails the request and nothing else (Q-220, Q-221)', async () => {
    const { node, file } = await damaged('l2', COPIED | 0x5200n);
    await node.close();
    const again = file.reopen();
    const readOnly = await openDisk(again, { readOnly: true });
    for (let i = 0; i < 2; i++) await expect(readAll(readOnly.node)).rejects.toMatchObject({ code: 'CORRUPT' });
    expect(readOnly.events).toHaveLength(1);
    expect(await readAll(readOnly.node, 4096, 100)).toEqual(new Uint8Array(100));
  });

  it('with subclusters both allocated and zero is refused (M-03)', async () => {
    const disk = await newDisk({ size: 16 * KiB, extendedL2: true });
    await disk.node.write(0, pattern(16384));
    const { file } = await closeAndCheck(disk);
    const [l2] = await l2Tables(file);
    await poke(file, (l2 as number) + 8, (1n << 32n) | 1n);
    const { node } = await openDisk(file);
    await expect(readAll(node)).rejects.toThrow(/Invalid cluster entry found/);
  });
});
