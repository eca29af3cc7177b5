import { describe, expect, it } from 'vitest';
import { BlockError } from '../../../src/base/errors.ts';
import type { CheckFinding, CheckOptions, CheckResult } from '../../../src/core/format.ts';
import { checkImageTables } from '../../../src/formats/qcow2/check.ts';
import { INCOMPATIBLE } from '../../../src/formats/qcow2/features.ts';
import { readHeader, writeIncompatible } from '../../../src/formats/qcow2/header.ts';
import { encodeSnapshotTable } from '../../../src/formats/qcow2/snapshot-table.ts';
import type { MemoryStore } from '../../../src/storage/memory.ts';
import { bytesOf, type CreateInput, createInMemory, failureOf } from './support.ts';

const MiB = 1024 * 1024;
const CLUSTER = 65536;
/** Places in an image of one L2 table whose clusters are all preallocated. */
const REFCOUNTS = 2 * CLUSTER;
const L1 = 3 * CLUSTER;
const L2 = 4 * CLUSTER;
const COPIED = 1n << 63n;

async function preallocated(input: CreateInput = {}): Promise<MemoryStore> {
  return (await createInMemory(MiB, { preallocation: 'metadata', ...input })).file;
}

async function poke64(file: MemoryStore, at: number, value: bigint): Promise<void> {
  const word = new Uint8Array(8);
  new DataView(word.buffer).setBigUint64(0, value);
  await file.write(at, word);
}

async function pokeRefcount(file: MemoryStore, cluster: number, value: number): Promise<void> {
  await file.write(REFCOUNTS + cluster * 2, Uint8Array.of(value >> 8, value & 255));
}

async function check(
  file: MemoryStore,
  options: CheckOptions = {},
  gentle = false,
): Promise<{ result: CheckResult; findings: CheckFinding[] }> {
  const findings: CheckFinding[] = [];
  const header = await readHeader(file, 'x', { readOnly: false, forCheck: true });
  const onFinding = (finding: CheckFinding) => findings.push(finding);
  return { result: await checkImageTables({ file, header, name: 'x', gentle }, { ...options, onFinding }), findings };
}

const SNAPSHOT = {
  id: '1',
  name: 's',
  vmStateSize: 0,
  diskSize: MiB,
  dateSeconds: 0,
  dateNanoseconds: 0,
  vmClockNanoseconds: 0n,
  icount: undefined,
  extra: new Uint8Array(24),
};
const CLEAN = { checkErrors: 0, corruptions: 0, leaks: 0, corruptionsFixed: 0, leaksFixed: 0 };

describe('checkImageTables', () => {
  it('of a healthy image finds nothing and writes nothing, whatever it may repair', async () => {
    const file = await preallocated();
    const before = await bytesOf(file);
    for (const fix of ['none', 'leaks', 'all'] as const) {
      const { result, findings } = await check(file, { fix });
      expect(findings).toEqual([]);
      expect(result).toEqual({
        ...CLEAN,
        imageEndOffset: 21 * CLUSTER,
        totalClusters: 16,
        allocatedClusters: 16,
        fragmentedClusters: 0,
        compressedClusters: 0,
      });
    }
    expect(Buffer.compare(await bytesOf(file), before)).toBe(0);
  });

  it('tells each finding with its reason, its line and its place (Q-230, Q-233)', async () => {
    const file = await preallocated();
    await pokeRefcount(file, 25, 3);
    const { result, findings } = await check(file);
    // past the end of the file a refcount wastes nothing
    expect(result).toMatchObject({ ...CLEAN, imageEndOffset: 21 * CLUSTER });
    expect(findings).toEqual([]);
    await file.truncate(26 * CLUSTER);
    expect((await check(file)).findings).toEqual([
      {
        kind: 'leak',
        reason: 'qcow2.leaked-cluster',
        message: 'Leaked cluster 25 refcount=3 reference=0',
        details: { cluster: 25, refcount: 3, references: 0 },
      },
    ]);
  });

  it('with fix leaks frees leaks and leaves corruptions (Q-231)', async () => {
    const file = await preallocated();
    await file.truncate(30 * CLUSTER);
    await pokeRefcount(file, 25, 3);
    await poke64(file, L2, COPIED | 0x1_0000_0000n);
    const { result } = await check(file, { fix: 'leaks' });
    expect(result).toMatchObject({ leaks: 0, leaksFixed: 2 });
    expect(result.corruptions).toBeGreaterThan(0);
  });

  it('clears the dirty and corrupt bits only when nothing is left to repair (Q-068, Q-069)', async () => {
    const file = await preallocated();
    const marks = INCOMPATIBLE.dirty | INCOMPATIBLE.corrupt;
    await writeIncompatible(file, marks);
    await poke64(file, L2, COPIED | 0x1_0000_0000n);
    const incompatible = async () => (await readHeader(file, 'x', { readOnly: true, forCheck: true })).incompatible;
    await check(file, { fix: 'all' }, true);
    expect(await incompatible()).toBe(marks);
    await poke64(file, L2, 0n);
    await check(file);
    expect(await incompatible()).toBe(marks);
    await check(file, { fix: 'all' });
    expect(await incompatible()).toBe(0n);
  });

  it('bounds its memory by the length of the file, not by what its tables say', async () => {
    const file = await preallocated({ refcountBits: 64 });
    for (let index = 0; index < 16; index++) await poke64(file, L2 + index * 8, COPIED | (BigInt(index + 1) << 47n));
    const before = process.memoryUsage().arrayBuffers;
    const { result } = await check(file);
    expect(result.corruptions).toBe(32);
    expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(64 * MiB);
  });

  it('does not grow the file to a refcount block that a broken entry puts terabytes away', async () => {
    const file = await preallocated();
    await poke64(file, CLUSTER + 8, 1n << 44n);
    const { result } = await check(file, { fix: 'all' });
    expect(file.size).toBeLessThan(4 * MiB);
    expect(result).toMatchObject({ corruptions: 0, checkErrors: 0 });
    expect((await check(file)).findings).toEqual([]);
  });

  it('tells a refcount that no number holds with all its digits, and repairs it', async () => {
    const file = await preallocated({ refcountBits: 64 });
    await poke64(file, REFCOUNTS + 20 * 8, (1n << 64n) - 1n);
    const { findings } = await check(file, { fix: 'all' });
    expect(findings.map(({ message }) => message)).toEqual([
      'Leaked cluster 20 refcount=18446744073709551615 reference=1',
      'Repairing cluster 20 refcount=18446744073709551615 reference=1',
    ]);
    expect((await check(file)).findings).toEqual([]);
  });

  it('leaves a refcount that no number holds alone when it repairs its neighbour past the end of the file', async () => {
    const file = await preallocated({ refcountBits: 64 });
    await poke64(file, REFCOUNTS + 5 * 8, 9n);
    await poke64(file, REFCOUNTS + 40 * 8, (1n << 64n) - 1n);
    await check(file, { fix: 'leaks' });
    const word = new Uint8Array(8);
    await file.read(REFCOUNTS + 40 * 8, word);
    expect(new DataView(word.buffer).getBigUint64(0)).toBe((1n << 64n) - 1n);
  });

  it('refuses to repair an L2 table that lies on other metadata, and marks the image', async () => {
    const file = await preallocated();
    // cluster 22 is both the L2 table of the disk and the L1 table of a snapshot; its one entry has a wrong flag
    await file.truncate(26 * CLUSTER);
    const snapshots = [{ l1Offset: 22 * CLUSTER, l1Size: 1, rawId: Uint8Array.of(0x31), rawName: Uint8Array.of(0x73) }];
    await file.write(21 * CLUSTER, encodeSnapshotTable(snapshots.map((change) => ({ ...SNAPSHOT, ...change }))));
    await file.write(60, Uint8Array.of(0, 0, 0, 1));
    await poke64(file, 64, BigInt(21 * CLUSTER));
    await poke64(file, 22 * CLUSTER, COPIED | BigInt(L2));
    await poke64(file, L1, BigInt(22 * CLUSTER));
    for (const cluster of [21, 22]) await pokeRefcount(file, cluster, 1);
    const refused = await failureOf(() => check(file, { fix: 'all' }));
    expect(refused).toMatchObject({ reason: 'qcow2.check-failed', details: { errno: 'EIO' } });
    const header = await readHeader(file, 'x', { readOnly: true, forCheck: true });
    expect(header.incompatible & INCOMPATIBLE.corrupt).toBe(INCOMPATIBLE.corrupt);
  });

  it('ends with check-failed when a table cannot be read, and says so first', async () => {
    const file = await preallocated();
    const header = await readHeader(file, 'x', { readOnly: true, forCheck: true });
    const read = file.read.bind(file);
    file.read = (offset, into, options) => {
      if (offset === L2) throw new BlockError('IO', 'bad sector', { details: { errno: 'EIO' } });
      return read(offset, into, options);
    };
    const lines: string[] = [];
    const checking = checkImageTables({ file, header, name: 'x' }, { onFinding: ({ message }) => lines.push(message) });
    await expect(checking).rejects.toMatchObject({
      reason: 'qcow2.check-failed',
      details: { errno: 'EIO', checkErrors: 1 },
    });
    expect(lines).toEqual(['ERROR: I/O error in check_refcounts_l2']);
  });

  it('counts what it cannot know when a refcount block cannot be read, and checks the rest', async () => {
    const file = await preallocated();
    const header = await readHeader(file, 'x', { readOnly: true, forCheck: true });
    const read = file.read.bind(file);
    file.read = (offset, into, options) => {
      if (offset === REFCOUNTS) throw new BlockError('IO', 'bad sector');
      return read(offset, into, options);
    };
    const result = await checkImageTables({ file, header, name: 'x' }, {});
    expect(result).toMatchObject({ checkErrors: 21, allocatedClusters: 16, corruptions: 0 });
  });

  it('reports progress that never falls within a phase and ends at its total', async () => {
    const { file } = await createInMemory(300 * MiB, { clusterSize: 512, preallocation: 'metadata' });
    const last = new Map<string, number>();
    await check(file, {
      onProgress: ({ phase, done, total }) => {
        expect(done).toBeGreaterThanOrEqual(last.get(phase) ?? 0);
        expect(done).toBeLessThanOrEqual(total);
        last.set(phase, done);
      },
    });
    expect(last.size).toBeGreaterThan(0);
  });

  it('lets others run while it works', async () => {
    const { file } = await createInMemory(300 * MiB, { clusterSize: 512, preallocation: 'metadata' });
    let turns = 0;
    let done = false;
    const tick = () => {
      turns++;
      if (!done) setImmediate(tick);
    };
    setImmediate(tick);
    await check(file);
    done = true;
    expect(turns).toBeGreaterThan(2);
  });
});
