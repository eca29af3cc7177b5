/** The differences of two disks: that they are those of the bytes, and that nothing is read for what is known to be equal. */
import { describe, expect, it, vi } from 'vitest';
import type { Image } from '../../src/image/image.ts';
import type { MemoryStore } from '../../src/storage/memory.ts';
import { FaultStore } from '../../src/testing/fault-store.ts';
import { LateStore } from '../../src/testing/late-store.ts';
import { type DiffOptions, type DiffSummary, diffImages } from '../../src/tools/diff.ts';
import type { DiffRange } from '../../src/tools/difference.ts';
import { KiB, MiB, make, makeOverlay, open } from '../image/support/fixtures.ts';
import { MemoryFiles } from '../image/support/memory-protocol.ts';
import { makePair, openDisk } from '../support/disk-pairs.ts';
import { everySeed } from '../support/seeds.ts';

interface Found {
  readonly ranges: DiffRange[];
  readonly summary: DiffSummary;
}

async function diff(a: Image, b: Image, options: DiffOptions = {}): Promise<Found> {
  const found = diffImages(a, b, options);
  const ranges: DiffRange[] = [];
  for (let next = await found.next(); ; next = await found.next()) {
    if (next.done === true) return { ranges, summary: next.value };
    ranges.push(next.value);
  }
}

async function diffOf(files: MemoryFiles, a: string, b: string, options: DiffOptions = {}): Promise<Found> {
  await using first = await open(files, a, { references: 'allow' });
  await using second = await open(files, b, { references: 'allow' });
  return await diff(first, second, options);
}

/** The definition, block by block. */
function defined(a: Uint8Array, b: Uint8Array, block: number): DiffRange[] {
  const size = Math.max(a.length, b.length);
  const [x, y] = [new Uint8Array(size), new Uint8Array(size)];
  x.set(a);
  y.set(b);
  const ranges: { offset: number; length: number; kind: DiffRange['kind'] }[] = [];
  const unit = Math.max(block, 512);
  for (let at = 0; at < size; at += block) {
    const end = Math.min(at + block, size);
    if (Buffer.compare(x.subarray(at, end), y.subarray(at, end)) === 0) continue;
    const around = [at - (at % unit), at - (at % unit) + unit] as const;
    const isEmpty = (bytes: Uint8Array): boolean => bytes.subarray(...around).every((byte) => byte === 0);
    const kind = isEmpty(x) ? 'filled' : isEmpty(y) ? 'cleared' : 'changed';
    const last = ranges.at(-1);
    if (last?.kind === kind && last.offset + last.length === at) last.length += end - at;
    else ranges.push({ offset: at, length: end - at, kind });
  }
  return ranges;
}

describe('the difference of two disks', () => {
  it('is that of their bytes, whatever formats, layers and snapshots they lie in, over files that answer in any order', async () => {
    const seen = new Set<string>();
    await everySeed(60, async (seed) => {
      let late = false;
      let count = seed * 1000;
      const wrap: (node: MemoryStore | LateStore) => LateStore = (node) => new LateStore({ seed: count++ }, node);
      const { files, what, a, b } = await makePair(seed, 300 * KiB, {
        wrap: (node) => (late ? wrap(node as MemoryStore) : node),
      });
      late = seed % 2 === 0;
      seen.add(what.slice(what.indexOf(':')));
      await using first = await openDisk(files, a);
      await using second = await openDisk(files, b);
      const block = 2 ** (seed % 18);
      const { ranges, summary } = await diff(first, second, { block });
      expect(ranges, what).toEqual(defined(a.content, b.content, block));
      const of = (kind?: string): number =>
        ranges.reduce((sum, range) => sum + (kind === undefined || range.kind === kind ? range.length : 0), 0);
      expect(summary, what).toMatchObject({
        equal: ranges.length === 0 && a.content.length === b.content.length,
        sizes: [a.content.length, b.content.length],
        ranges: ranges.length,
        bytes: of(),
        changed: of('changed'),
        filled: of('filled'),
        cleared: of('cleared'),
      });
    });
    expect(seen.size).toBeGreaterThan(10);
  });

  it('reads only what an overlay holds, compressed and plain, and nothing of what it shares with its base', async () => {
    const files = new MemoryFiles();
    await make(files, 'base', { size: 8 * MiB }, [[0, 4 * MiB, 7]]);
    await using base = await open(files, 'base', { readOnly: false });
    await base.node.write(4 * MiB, new Uint8Array(MiB).fill(8), { compressed: true });
    await base.close();
    await makeOverlay(files, 'a', 'base', [[64 * KiB, 10, 1]]);
    await makeOverlay(files, 'b', 'base', [[5 * MiB, 10, 1]]);
    const read = async (x: string, y: string): Promise<number> => (await diffOf(files, x, y)).summary.read;
    expect((await diffOf(files, 'a', 'base')).ranges).toEqual([{ offset: 64 * KiB, length: 4096, kind: 'changed' }]);
    expect(await read('a', 'base')).toBe(128 * KiB);
    expect(await read('base', 'a')).toBe(128 * KiB);
    // The second one's cluster lies where the base has nothing.
    expect(await read('a', 'b')).toBe(192 * KiB);
    expect(await read('a', 'a')).toBe(0);
  });

  it('reads only what was written since a snapshot', async () => {
    const files = new MemoryFiles();
    await make(files, 'a', { size: 8 * MiB }, [[0, 8 * MiB, 7]]);
    await using image = await open(files, 'a', { readOnly: false });
    await image.createSnapshot({ name: 'before', date: new Date(0) });
    await image.write(3 * MiB + 100, Uint8Array.of(1));
    await image.close();
    await using before = await open(files, 'a', { snapshot: 'before' });
    await using now = await open(files, 'a');
    const { ranges, summary } = await diff(before, now, { block: 1 });
    expect(ranges).toEqual([{ offset: 3 * MiB + 100, length: 1, kind: 'changed' }]);
    expect(summary.read).toBe(128 * KiB);
  });

  it('takes places for the same by the identity of the file, not by its name', async () => {
    const files = new MemoryFiles();
    await make(files, 'base', { size: MiB }, [[0, MiB, 7]]);
    await makeOverlay(files, 'a', 'base');
    await using a = await open(files, 'a', { references: 'allow' });
    // Another file takes the name while the first one is open.
    files.files.delete('base');
    await make(files, 'base', { size: MiB }, [[0, MiB, 8]]);
    await using b = await open(files, 'a', { references: 'allow' });
    expect((await diff(a, b)).ranges).toEqual([{ offset: 0, length: MiB, kind: 'changed' }]);
  });

  it('reads compressed clusters that lie elsewhere now, and data of another data file', async () => {
    const files = new MemoryFiles();
    await make(files, 'a', { size: MiB });
    {
      await using image = await open(files, 'a', { readOnly: false });
      await image.node.write(0, new Uint8Array(64 * KiB).fill(1), { compressed: true });
      await image.node.write(64 * KiB, new Uint8Array(64 * KiB).fill(1), { compressed: true });
      await image.createSnapshot({ name: 'before', date: new Date(0) });
      await image.node.writeZeroes(0, 64 * KiB, { unmap: true });
      await image.node.write(0, new Uint8Array(64 * KiB).fill(2), { compressed: true });
    }
    {
      await using before = await open(files, 'a', { snapshot: 'before' });
      await using now = await open(files, 'a');
      const { ranges, summary } = await diff(before, now);
      expect([ranges, summary.read]).toEqual([[{ offset: 0, length: 64 * KiB, kind: 'changed' }], 128 * KiB]);
    }
    await make(files, 'b', { size: MiB, options: { dataFile: 'b.data' } }, [[0, 100, 1]]);
    files.add('other.data', files.bytes('b.data').slice().fill(9, 0, 50));
    await using first = await open(files, 'b', { references: 'allow' });
    await using second = await open(files, 'b', { references: 'allow', dataFile: { name: 'other.data' } });
    expect((await diff(first, second, { block: 1 })).ranges).toEqual([{ offset: 0, length: 50, kind: 'changed' }]);
  });

  it('takes nothing for the same through windows of a file', async () => {
    const files = new MemoryFiles();
    const bytes = new Uint8Array(MiB).fill(1);
    bytes.fill(2, 64 * KiB, 128 * KiB);
    files.add('file', bytes);
    const window = (offset: number): Promise<Image> =>
      open(files, 'file', { format: 'raw', options: { offset, size: 128 * KiB } });
    await using a = await window(0);
    await using b = await window(64 * KiB);
    await using c = await window(0);
    expect((await diff(a, b)).ranges).toEqual([{ offset: 0, length: 128 * KiB, kind: 'changed' }]);
    expect((await diff(a, c)).summary).toMatchObject({ equal: true, read: 0 });
  });

  it('calls disks of different sizes different, and compares the rest with zeros', async () => {
    const files = new MemoryFiles();
    await make(files, 'a', { size: MiB }, [[0, 10, 1]]);
    await make(files, 'b', { size: 3 * MiB }, [[0, 10, 1]]);
    await make(files, 'c', { size: 3 * MiB }, [[2 * MiB + 5000, 10, 1]]);
    expect(await diffOf(files, 'a', 'b')).toMatchObject({
      ranges: [],
      summary: { equal: false, sizes: [MiB, 3 * MiB] },
    });
    expect((await diffOf(files, 'a', 'c')).ranges).toEqual([
      { offset: 0, length: 4096, kind: 'cleared' },
      { offset: 2 * MiB + 4096, length: 4096, kind: 'filled' },
    ]);
  });

  it('walks over two disks of petabytes that hold next to nothing', async () => {
    const files = new MemoryFiles();
    for (const [name, at] of [
      ['a', 2 ** 49],
      ['b', 2 ** 48],
    ] as const) {
      await make(files, name, { size: 2 ** 50, options: { clusterSize: 2 * MiB } });
      await using image = await open(files, name, { readOnly: false });
      await image.write(at, Uint8Array.of(1));
    }
    const { ranges, summary } = await diffOf(files, 'a', 'b');
    expect(ranges).toEqual([
      { offset: 2 ** 48, length: 4096, kind: 'filled' },
      { offset: 2 ** 49, length: 4096, kind: 'cleared' },
    ]);
    expect(summary.read).toBeLessThanOrEqual(4 * MiB);
  });

  it.each([0, 3, 2 * MiB, 1.5, Number.NaN])('refuses blocks of %d bytes', async (block) => {
    const files = new MemoryFiles();
    await make(files, 'a', { size: MiB });
    await expect(diffOf(files, 'a', 'a', { block })).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      reason: 'diff.block',
    });
  });

  it('tells its progress, and ends when it is aborted', async () => {
    const files = new MemoryFiles();
    await make(files, 'a', { size: 64 * MiB }, [
      [0, 8 * MiB, 1],
      [60 * MiB, 4 * MiB, 2],
    ]);
    await make(files, 'b', { size: 64 * MiB });
    const done: number[] = [];
    await diffOf(files, 'a', 'b', { onProgress: (progress) => done.push(progress.done) });
    expect(done).toEqual(done.toSorted((x, y) => x - y));
    expect(done.at(-1)).toBe(64 * MiB);
    const stop = new AbortController();
    const running = diffOf(files, 'a', 'b', { signal: stop.signal, onProgress: () => stop.abort() });
    await expect(running).rejects.toMatchObject({ code: 'ABORTED' });
  });

  it('has ended everything when it fails, or is left', async () => {
    let fault: FaultStore | undefined;
    const files = new MemoryFiles({
      wrap: (node) => {
        fault = new FaultStore(new LateStore({ seed: 3 }, node));
        return fault;
      },
    });
    files.add('a', new Uint8Array(8 * MiB).fill(1));
    files.add('b', new Uint8Array(8 * MiB).fill(2));
    const raw = { format: 'raw' };
    await using a = await open(files, 'a', raw);
    await using b = await open(files, 'b', raw);
    const reads = vi.spyOn(a.node, 'read');
    for await (const _ of diffImages(a, b)) break;
    const before = reads.mock.calls.length;
    expect(before).toBeGreaterThan(0);
    fault?.fail({ on: 'read', nth: 3, late: true });
    await expect(diff(a, b)).rejects.toMatchObject({ code: 'IO' });
    for (const { value } of reads.mock.results) await Promise.allSettled([value]);
  });
});
