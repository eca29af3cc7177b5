/** Rows about what counts the file: runs of equal refcounts, against a count of our own. */
import { describe, expect, it } from 'vitest';
import { openImage } from '../../../src/image/open.ts';
import { mapReferences } from '../../../src/tools/map.ts';
import { drivers, MiB, make } from '../../image/support/fixtures.ts';
import { MemoryFiles } from '../../image/support/memory-protocol.ts';
import { headerOf, newDisk, type OpenedDisk, openDisk, pattern, poke } from '../../support/qcow2-parts.ts';
import { createQcow2Bytes } from '../../support/qcow2-under-test.ts';

const KiB = 1024;
const CLUSTER = 4 * KiB;

async function runsOfFile({
  node,
}: OpenedDisk): Promise<(readonly [at: number, clusters: number, refcount: number])[]> {
  const runs: (readonly [number, number, number])[] = [];
  const references = node.format.references?.() as AsyncIterable<{ offset: number; length: number; refcount: number }>;
  for await (const { offset, length, refcount } of references) {
    runs.push([offset / CLUSTER, length / CLUSTER, refcount]);
  }
  return runs;
}

describe('the refcounts of a file', () => {
  it('(Q-247) come as runs of equal ones, from the first byte to the last, free clusters included', async () => {
    const disk = await newDisk({ size: 256 * KiB, clusterSize: CLUSTER });
    // Header, refcount table, refcount block, L1 table; then an L2 table and five clusters.
    expect(await runsOfFile(disk)).toEqual([[0, 4, 1]]);
    await disk.node.write(0, pattern(5 * CLUSTER));
    await disk.node.flush();
    expect(await runsOfFile(disk)).toEqual([[0, 10, 1]]);
    await disk.node.discard(CLUSTER, 2 * CLUSTER);
    await disk.node.flush();
    expect(await runsOfFile(disk)).toEqual([
      [0, 6, 1],
      [6, 2, 0],
      [8, 2, 1],
    ]);
    await disk.node.createSnapshot({ name: 'a', dateSeconds: 1 });
    const shared = (await runsOfFile(disk)).filter(([, , refcount]) => refcount === 2);
    expect(shared.reduce((sum, [, clusters]) => sum + clusters, 0)).toBe(4);
  });

  it('(Q-247) behind the end of the file are told, too, and so is what no block counts', async () => {
    const file = await createQcow2Bytes(64 * KiB, { clusterSize: CLUSTER }, false);
    const { refcountTableOffset } = await headerOf(file);
    const block = 2 * CLUSTER;
    // Cluster 100 is far behind the end; 16 bits each.
    await poke(file, block + 200, 7n << 48n);
    expect(await runsOfFile(await openDisk(file, { readOnly: true }))).toEqual([
      [0, 4, 1],
      [4, 96, 0],
      [100, 1, 7],
    ]);
    await poke(file, refcountTableOffset, 0n);
    expect(await runsOfFile(await openDisk(file, { readOnly: true }))).toEqual([[0, 4, 0]]);
  });

  it('(Q-247) that no number holds are infinite', async () => {
    const file = await createQcow2Bytes(64 * KiB, { clusterSize: CLUSTER, refcountBits: 64 }, false);
    await poke(file, 2 * CLUSTER + 8, (1n << 64n) - 1n);
    expect(await runsOfFile(await openDisk(file, { readOnly: true }))).toEqual([
      [0, 1, 1],
      [1, 1, Number.POSITIVE_INFINITY],
      [2, 2, 1],
    ]);
  });

  it('(Q-247) are those of an opened image, and none of one without', async () => {
    const files = new MemoryFiles();
    await make(files, 'a', { size: MiB });
    await make(files, 'b', { size: MiB, format: 'raw' });
    await using image = await openImage('a', drivers(files));
    const runs = [];
    for await (const run of mapReferences(image)) runs.push(run);
    expect(runs).toEqual([{ offset: 0, length: 4 * 64 * KiB, refcount: 1 }]);
    await using plain = await openImage('b', { ...drivers(files), format: 'raw' });
    await expect(mapReferences(plain).next()).rejects.toMatchObject({ code: 'UNSUPPORTED', reason: 'map.references' });
    const stopped = mapReferences(image, { signal: AbortSignal.abort() });
    await expect(stopped.next()).rejects.toMatchObject({ code: 'ABORTED' });
  });
});
