import { describe, expect, it } from 'vitest';
import { secretsOf } from '../../../src/core/secrets.ts';
import { MemoryStore } from '../../../src/storage/memory.ts';
import { RecordingStore } from '../../../src/testing/recording-store.ts';
import { closeAndCheck, extentsOf, newDisk, openDisk, pattern, readAll } from '../../support/qcow2-parts.ts';
import { createQcow2Bytes, openQcow2 } from '../../support/qcow2-under-test.ts';
import { createInMemory } from './support.ts';

const KiB = 1024;

describe('a qcow2 disk', () => {
  it('keeps what was written over flush, close and opening', async () => {
    const disk = await newDisk({ size: 300 * KiB, clusterSize: 4096 });
    const model = new Uint8Array(300 * KiB);
    for (const [offset, length] of [
      [0, 100],
      [5000, 20000],
      [299 * KiB, 1024],
      [4096, 4096],
    ] as const) {
      const bytes = pattern(length, offset);
      model.set(bytes, offset);
      await disk.node.write(offset, bytes);
    }
    expect(await readAll(disk.node)).toEqual(model);
    const { file, lines, leaks } = await closeAndCheck(disk);
    expect({ lines, leaks }).toEqual({ lines: [], leaks: 0 });
    expect(await readAll((await openDisk(file, { readOnly: true })).node)).toEqual(model);
  });

  it('reads a backing file that is shorter as zeros past its end (Q-092, Q-093)', async () => {
    const backing = MemoryStore.from(pattern(5000), { readOnly: true });
    const { node } = await newDisk({ size: 16 * KiB, clusterSize: 4096, backing });
    const wanted = new Uint8Array(16 * KiB);
    wanted.set(pattern(5000));
    expect(await readAll(node)).toEqual(wanted);
    await node.write(4100, pattern(10, 5));
    wanted.set(pattern(10, 5), 4100);
    expect(await readAll(node)).toEqual(wanted);
  });

  it('tells where every range comes from (Q-090)', async () => {
    const backing = MemoryStore.from(pattern(12 * KiB), { readOnly: true });
    const { node } = await newDisk({ size: 24 * KiB, clusterSize: 4096, backing });
    await node.write(0, pattern(4096));
    await node.writeZeroes(4096, 4096, { unmap: true });
    await node.write(16 * KiB, new Uint8Array(4096).fill(1), { compressed: true });
    expect(await extentsOf(node)).toEqual([
      '0+4096 d0 present data',
      '4096+4096 d0 present zero',
      '8192+4096 d1 present data',
      '12288+4096 d0 zero',
      '16384+4096 d0 present data compressed',
      '20480+4096 d0 zero',
    ]);
  });

  it('writes nothing when it is opened and closed, and nothing at all read-only', async () => {
    const file = await createQcow2Bytes(64 * KiB, {}, false);
    const before = file.bytes();
    await (await openDisk(file)).node.close();
    const after = file.reopen();
    expect(after.bytes()).toEqual(before);
    const readOnly = await openDisk(after, { readOnly: true });
    expect(() => readOnly.node.write(0, pattern(1))).toThrow(/read-only/);
    await readOnly.node.close();
    expect(after.reopen().bytes()).toEqual(before);
  });

  it('writes data before the table that points to it, with a flush between, and refcounts before that table (Q-101, Q-115)', async () => {
    const file = await createQcow2Bytes(64 * KiB, { clusterSize: 4096 }, false);
    const recording = new RecordingStore(file);
    const node = await openQcow2(recording);
    const first = recording.log.entries.length;
    await node.write(0, pattern(4096));
    await node.flush();
    const kinds = recording.log.entries.slice(first).map(({ kind }) => kind);
    const dataAt = kinds.indexOf('write');
    const firstFlush = kinds.indexOf('flush');
    const lastWrite = kinds.lastIndexOf('write');
    expect(dataAt).toBeLessThan(firstFlush);
    expect(firstFlush).toBeLessThan(lastWrite);
    expect(kinds.lastIndexOf('flush')).toBeGreaterThan(lastWrite);
    await node.close();
  });

  it('ends in whole sectors, whatever the compressed data came to (Q-168)', async () => {
    const disk = await newDisk({ size: 64 * KiB, clusterSize: 4096 });
    await disk.node.write(0, new Uint8Array(4096).fill(9), { compressed: true });
    const { file } = await closeAndCheck(disk);
    expect(file.size % 512).toBe(0);
  });

  it('does not write the zeros around a small write into space that is new', async () => {
    const disk = await newDisk({ size: 8 * 1024 * KiB, clusterSize: 1024 * KiB });
    const before = (await disk.file.status()).allocatedBytes as number;
    await disk.node.write(1024 * KiB + 5000, pattern(100));
    const after = (await disk.file.status()).allocatedBytes as number;
    // One data page and the L2 table.
    expect(after - before).toBeLessThan(2 * 1024 * KiB);
    expect(
      (await readAll(disk.node, 1024 * KiB, 1024 * KiB)).reduce((sum, byte) => sum + (byte === 0 ? 0 : 1), 0),
    ).toBe(100);
  });

  it('does write them into space that held something before', async () => {
    const disk = await newDisk({ size: 64 * KiB, clusterSize: 4096 });
    await disk.node.write(0, pattern(16 * KiB));
    await disk.node.flush();
    await disk.node.discard(0, 16 * KiB);
    await disk.node.flush();
    await disk.node.write(32 * KiB + 1000, pattern(10));
    const wanted = new Uint8Array(4096);
    wanted.set(pattern(10), 1000);
    expect(await readAll(disk.node, 32 * KiB, 4096)).toEqual(wanted);
  });

  it('keeps data in an external file at the guest offset, and counts none of it (M-05)', async () => {
    const { resolveOptions } = await import('../../../src/base/options.ts');
    const { qcow2 } = await import('../../../src/formats/qcow2/driver.ts');
    const file = new MemoryStore({ pageSize: 512 });
    const dataFile = new MemoryStore({ pageSize: 512 });
    await qcow2.create?.(
      {
        file,
        name: 'disk',
        createReference: () => Promise.resolve(dataFile),
        secret: secretsOf(undefined),
        referenceStatus: () => Promise.resolve(undefined),
      },
      64 * KiB,
      resolveOptions(qcow2.createOptions, { clusterSize: 4096, dataFile: 'data.raw' }),
    );
    const disk = await openDisk(file, { dataFile: dataFile.closed ? dataFile.reopen() : dataFile });
    await disk.node.write(20 * KiB + 5, pattern(5000));
    await disk.node.writeZeroes(24 * KiB, 4096);
    const content = await readAll(disk.node);
    const [, data] = disk.node.children;
    if (!(data?.node instanceof MemoryStore)) throw new Error('no data file');
    const stored = data.node.bytes();
    expect(stored.slice(20 * KiB + 5, 24 * KiB)).toEqual(content.slice(20 * KiB + 5, 24 * KiB));
    await expect(disk.node.write(0, new Uint8Array(4096), { compressed: true })).rejects.toMatchObject({
      reason: 'qcow2.data-file-compressed-write',
    });
    expect(await closeAndCheck(disk)).toMatchObject({ lines: [], leaks: 0 });
  });

  it('writes and reads the last cluster of a data file that ends within it', async () => {
    const { file, data } = await createInMemory(9 * 512, { clusterSize: 4096, dataFile: 'data' });
    const dataFile = data as MemoryStore;
    expect(dataFile.size).toBe(9 * 512);
    const { node } = await openDisk(file, { dataFile });
    await node.write(4096, pattern(100));
    await node.write(0, pattern(10, 2));
    const wanted = new Uint8Array(9 * 512);
    wanted.set(pattern(10, 2));
    wanted.set(pattern(100), 4096);
    expect(await readAll(node)).toEqual(wanted);
  });
});
