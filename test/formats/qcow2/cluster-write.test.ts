import { describe, expect, it } from 'vitest';
import { MemoryStore } from '../../../src/storage/memory.ts';
import { closeAndCheck, l2Tables, newDisk, openDisk, pattern, peek, poke, readAll } from '../../support/qcow2-parts.ts';

const KiB = 1024;

async function plan(node: Awaited<ReturnType<typeof newDisk>>['node'], offset: number, length: number) {
  const made = await node.format.prepareWrite?.(offset, length);
  if (made === undefined) throw new Error('no plan');
  return made;
}

describe('the plan of a write', () => {
  it('into new clusters reaches to the ends of the first and the last', async () => {
    const backing = MemoryStore.from(pattern(64 * KiB), { readOnly: true });
    const { node } = await newDisk({ size: 64 * KiB, clusterSize: 4096, backing });
    expect(await plan(node, 5000, 8000)).toMatchObject({
      guestOffset: 5000,
      length: 8000,
      headLength: 904,
      tailLength: 3384,
    });
  });

  it('into fresh space over nothing has no edges', async () => {
    const { node } = await newDisk({ size: 64 * KiB, clusterSize: 4096 });
    expect(await plan(node, 5000, 8000)).toMatchObject({ length: 8000, headLength: 0, tailLength: 0 });
  });

  it('over a cluster that is ours alone is in place and changes no table', async () => {
    const { node } = await newDisk({ size: 64 * KiB, clusterSize: 4096 });
    await node.write(4096, pattern(4096));
    expect(await plan(node, 5000, 100)).toMatchObject({ length: 100, headLength: 0, tailLength: 0 });
  });

  it('publishes nothing: readers see the old content until it is committed (Q-099)', async () => {
    const disk = await newDisk({ size: 64 * KiB, clusterSize: 4096 });
    const made = await plan(disk.node, 0, 4096);
    await disk.file.write(made.hostOffset, pattern(4096));
    expect(await readAll(disk.node, 0, 4096)).toEqual(new Uint8Array(4096));
    await disk.node.format.commitWrite?.(made);
    expect(await readAll(disk.node, 0, 4096)).toEqual(pattern(4096));
  });

  it('stays within one L2 slice', async () => {
    const { node } = await newDisk({ size: 256 * KiB, clusterSize: 512 });
    expect((await plan(node, 31 * KiB, 64 * KiB)).length).toBe(KiB);
  });

  it('with subclusters reaches to the ends of the subclusters only', async () => {
    const backing = MemoryStore.from(pattern(64 * KiB), { readOnly: true });
    const { node } = await newDisk({ size: 64 * KiB, extendedL2: true, backing });
    expect(await plan(node, 1000, 100)).toMatchObject({ headLength: 488, tailLength: 436 });
  });

  it('that moves a cluster with subclusters takes all that holds data along', async () => {
    const backing = MemoryStore.from(pattern(64 * KiB, 8), { readOnly: true });
    const disk = await newDisk({ size: 64 * KiB, extendedL2: true, backing });
    await disk.node.write(2048, pattern(512, 2));
    await disk.node.write(10240, pattern(512, 3));
    const wanted = await readAll(disk.node);
    const { file } = await closeAndCheck(disk);
    const [l2] = await l2Tables(file);
    // Shared, as with a snapshot: the cluster may not be written any more.
    await poke(file, l2 as number, (await peek(file, l2 as number)) & ~(1n << 63n));
    const { node } = await openDisk(file, { backing: backing.reopen() });
    expect(await plan(node, 4096, 512)).toMatchObject({ headLength: 2048, tailLength: 6144 });
    await node.write(4096, pattern(512, 4));
    wanted.set(pattern(512, 4), 4096);
    expect(await readAll(node)).toEqual(wanted);
  });

  it('copies an L2 table that a snapshot shares before it changes it', async () => {
    const disk = await newDisk({ size: 64 * KiB, clusterSize: 4096 });
    await disk.node.write(0, pattern(8192));
    const { file } = await closeAndCheck(disk);
    const { headerOf } = await import('../../support/qcow2-parts.ts');
    const { l1Offset } = await headerOf(file);
    const before = (await l2Tables(file))[0];
    await poke(file, l1Offset, (await peek(file, l1Offset)) & ~(1n << 63n));
    const again = await openDisk(file);
    await again.node.write(8192, pattern(4096, 3));
    await again.node.flush();
    expect((await l2Tables(file))[0]).not.toBe(before);
    expect(await readAll(again.node, 0, 8192)).toEqual(pattern(8192));
  });
});
