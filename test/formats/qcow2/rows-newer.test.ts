/** Rows about what QEMU has since 7.2: data files that are kept, discards of parts of clusters. */
import { describe, expect, it } from 'vitest';
import { MemoryStore } from '../../../src/storage/memory.ts';
import { drivers, make, open } from '../../image/support/fixtures.ts';
import { MemoryFiles } from '../../image/support/memory-protocol.ts';
import { closeAndCheck, newDisk, openDisk, pattern, readAll, runsOf } from '../../support/qcow2-parts.ts';

const KiB = 1024;
const CLUSTER = 16 * KiB;

function kinds(runs: readonly string[]): string[] {
  return runs.map((run) => run.split('@')[0] as string);
}

describe('keep_data_file', () => {
  it('(M-08) makes what is in a raw data file the disk, and makes the file longer at most', async () => {
    const files = new MemoryFiles();
    files.add('data', pattern(48 * KiB));
    const options = { dataFile: 'data', dataFileRaw: true, keepDataFile: true };
    await make(files, 'a', { size: 64 * KiB, options, references: 'allow' });
    await using image = await open(files, 'a', { references: 'allow' });
    const wanted = new Uint8Array(64 * KiB);
    wanted.set(pattern(48 * KiB));
    expect(await image.read(0, 64 * KiB)).toEqual(wanted);
    files.add('long', pattern(96 * KiB));
    await make(files, 'b', { size: 64 * KiB, options: { ...options, dataFile: 'long' }, references: 'allow' });
    expect(files.bytes('long')).toEqual(pattern(96 * KiB));
  });

  it('(M-08) makes a data file that is not there, and empties one without it', async () => {
    const files = new MemoryFiles();
    await make(files, 'a', { size: 64 * KiB, options: { dataFile: 'new', keepDataFile: true }, references: 'allow' });
    expect(files.bytes('new')).toEqual(new Uint8Array(64 * KiB));
    files.add('old', pattern(64 * KiB));
    await make(files, 'b', { size: 64 * KiB, options: { dataFile: 'old', dataFileRaw: true }, references: 'allow' });
    expect(files.bytes('old')).toEqual(new Uint8Array(64 * KiB));
  });

  it('(M-08) needs a data file', async () => {
    const files = new MemoryFiles();
    const making = make(files, 'a', { ...drivers(files), size: 64 * KiB, options: { keepDataFile: true } });
    await expect(making).rejects.toMatchObject({ code: 'OPTION', reason: 'qcow2.keep-data-file-alone' });
  });
});

describe('a discard of parts of a cluster', () => {
  it('(M-29) makes whole subclusters read as zero, and leaves what it covers in part', async () => {
    const backing = MemoryStore.from(pattern(64 * KiB, 9), { readOnly: true });
    const disk = await newDisk({ size: 64 * KiB, extendedL2: true, backing });
    await disk.node.write(0, pattern(CLUSTER));
    await disk.node.discard(700, 2000);
    await disk.node.discard(CLUSTER + 512, 1024);
    const wanted = pattern(64 * KiB, 9);
    wanted.set(pattern(CLUSTER));
    wanted.fill(0, 1024, 2560);
    wanted.fill(0, CLUSTER + 512, CLUSTER + 1536);
    expect(await readAll(disk.node)).toEqual(wanted);
    expect(kinds(await runsOf(disk.node, 0, CLUSTER))).toEqual(['data 1024', 'zero 1536', 'data 13824']);
    expect(await closeAndCheck(disk)).toMatchObject({ lines: [], leaks: 0 });
  });

  it('(M-29) over several clusters drops those in the middle, and with its last data a cluster goes', async () => {
    const disk = await newDisk({ size: 64 * KiB, extendedL2: true });
    await disk.node.write(0, pattern(64 * KiB));
    await disk.node.discard(8 * KiB, 44 * KiB);
    expect(kinds(await runsOf(disk.node))).toEqual(['data 8192', 'zero 8192', 'zero 32768', 'zero 4096', 'data 12288']);
    await disk.node.discard(0, 8 * KiB);
    expect((await runsOf(disk.node, 0, CLUSTER))[0]).toBe('zero 16384');
    expect(await readAll(disk.node, 52 * KiB)).toEqual(pattern(64 * KiB).subarray(52 * KiB));
    const { file, lines, leaks } = await closeAndCheck(disk);
    expect({ lines, leaks }).toEqual({ lines: [], leaks: 0 });
    expect(await readAll((await openDisk(file, { readOnly: true })).node, 0, 52 * KiB)).toEqual(
      new Uint8Array(52 * KiB),
    );
  });

  it('(M-29) leaves compressed clusters, and without a backing file what is not there', async () => {
    const disk = await newDisk({ size: 64 * KiB, extendedL2: true });
    await disk.node.write(0, new Uint8Array(CLUSTER).fill(5), { compressed: true });
    await disk.node.discard(0, 512);
    await disk.node.discard(CLUSTER, 512);
    expect(await readAll(disk.node, 0, CLUSTER)).toEqual(new Uint8Array(CLUSTER).fill(5));
    expect(kinds(await runsOf(disk.node))).toEqual(['encoded 16384', 'unallocated 49152']);
    expect(await closeAndCheck(disk)).toMatchObject({ lines: [], leaks: 0 });
  });
});
