/** Comparing: content, sizes, strict allocation, and which error is told. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { MemoryStore } from '../../src/storage/memory.ts';
import { FaultStore } from '../../src/testing/fault-store.ts';
import { type CompareOptions, compareImages } from '../../src/tools/compare.ts';
import { contentOf, KiB, MiB, make, makeOverlay, open } from '../image/support/fixtures.ts';
import { MemoryFiles } from '../image/support/memory-protocol.ts';

async function compare(files: MemoryFiles, a: string, b: string, options: CompareOptions = {}) {
  await using first = await open(files, a, { references: 'allow' });
  await using second = await open(files, b, { references: 'allow' });
  return await compareImages(first, second, options);
}

describe('comparing images', () => {
  it('finds equal content whatever the formats and layers', async () => {
    const files = new MemoryFiles();
    const data = [[64 * KiB, 100 * KiB, 7]] as const;
    await make(files, 'a', { size: MiB }, data);
    await make(files, 'b', { size: MiB, format: 'raw' }, data);
    await makeOverlay(files, 'c', 'a', [[MiB - 512, 512, 0]]);
    for (const [x, y] of [
      ['a', 'b'],
      ['c', 'b'],
      ['a', 'c'],
      ['a', 'a'],
    ] as const) {
      expect(await compare(files, x, y)).toEqual({ result: 'identical', sizeMismatch: false });
    }
  });

  it('tells the first 512-byte sector that differs', async () => {
    const files = new MemoryFiles();
    await make(files, 'a', { size: 8 * MiB }, [[0, 8 * MiB, 7]]);
    await make(files, 'b', { size: 8 * MiB }, [
      [0, 8 * MiB, 7],
      [5 * MiB + 1234, 1, 8],
      [6 * MiB, 1, 8],
    ]);
    expect(await compare(files, 'a', 'b')).toEqual({
      result: 'different',
      kind: 'content',
      offset: 5 * MiB + 1024,
      sizeMismatch: false,
    });
  });

  it('compares what one side has with the zeros of the other', async () => {
    const files = new MemoryFiles();
    await make(files, 'a', { size: MiB }, [[300 * KiB, 1, 1]]);
    await make(files, 'b', { size: MiB });
    const found = { result: 'different', kind: 'content', offset: 300 * KiB, sizeMismatch: false };
    expect(await compare(files, 'a', 'b')).toEqual(found);
    expect(await compare(files, 'b', 'a')).toEqual(found);
  });

  it('lets sizes differ as long as the rest is zero', async () => {
    const files = new MemoryFiles();
    await make(files, 'a', { size: MiB }, [[0, KiB, 1]]);
    await make(files, 'b', { size: 3 * MiB }, [
      [0, KiB, 1],
      [2 * MiB, KiB, 0],
    ]);
    await make(files, 'c', { size: 3 * MiB }, [
      [0, KiB, 1],
      [2 * MiB + 600, 1, 1],
    ]);
    expect(await compare(files, 'a', 'b')).toEqual({ result: 'identical', sizeMismatch: true });
    expect(await compare(files, 'b', 'a')).toEqual({ result: 'identical', sizeMismatch: true });
    expect(await compare(files, 'a', 'c')).toEqual({
      result: 'different',
      kind: 'content',
      offset: 2 * MiB + 512,
      sizeMismatch: true,
    });
  });

  it('strict: sizes and allocation must agree', async () => {
    const files = new MemoryFiles();
    await make(files, 'a', { size: MiB });
    await make(files, 'b', { size: MiB }, [[128 * KiB, 64 * KiB, 0]]);
    await make(files, 'c', { size: 2 * MiB });
    expect(await compare(files, 'a', 'b')).toMatchObject({ result: 'identical' });
    expect(await compare(files, 'a', 'b', { strict: true })).toEqual({
      result: 'different',
      kind: 'status',
      offset: 128 * KiB,
      sizeMismatch: false,
    });
    expect(await compare(files, 'a', 'c', { strict: true })).toMatchObject({ kind: 'size', offset: undefined });
    expect(await compare(files, 'b', 'b', { strict: true })).toMatchObject({ result: 'identical' });
  });

  it('finds exactly the differences that the bytes have', async () => {
    const piece = fc.tuple(
      fc.integer({ min: 0, max: 255 }),
      fc.integer({ min: 1, max: 8 }),
      fc.integer({ min: 0, max: 2 }),
    );
    await fc.assert(
      fc.asyncProperty(fc.array(piece, { maxLength: 5 }), fc.array(piece, { maxLength: 5 }), async (x, y) => {
        const files = new MemoryFiles();
        for (const [name, pieces] of [
          ['a', x],
          ['b', y],
        ] as const) {
          const store = new MemoryStore({ size: 256 * KiB, pageSize: 4096 });
          for (const [at, length, fill] of pieces) {
            await store.write(at * 1000, new Uint8Array(length * 100).fill(fill));
          }
          files.add(name, store);
        }
        const [left, right] = [files.bytes('a'), files.bytes('b')];
        const first = left.findIndex((byte, i) => byte !== right[i]);
        const found = await compare(files, 'a', 'b');
        if (first < 0) expect(found).toEqual({ result: 'identical', sizeMismatch: false });
        else expect(found).toMatchObject({ kind: 'content', offset: first - (first % 512) });
      }),
      { numRuns: 60 },
    );
  });

  it.each([
    ['read', 'compare.read'],
    ['extents', 'compare.extents'],
  ] as const)('names the image and the offset when %s fails', async (on, reason) => {
    let ready = false;
    const files = new MemoryFiles({
      wrap: (node, name) => new FaultStore(node, ready && name === 'b' ? [{ on, always: true }] : []),
    });
    for (const name of ['a', 'b']) files.add(name, new Uint8Array(64 * KiB).fill(1));
    ready = true;
    await using a = await open(files, 'a', { format: 'raw' });
    await using b = await open(files, 'b', { format: 'raw' });
    await expect(compareImages(a, b)).rejects.toMatchObject({ code: 'IO', reason, details: { name: 'b', offset: 0 } });
  });

  it('tells how far it is, and stops when aborted', async () => {
    const files = new MemoryFiles();
    for (const name of ['a', 'b']) files.add(name, new Uint8Array(8 * MiB).fill(1));
    const done: number[] = [];
    await compare(files, 'a', 'b', { onProgress: ({ done: bytes, total }) => done.push(bytes / total) });
    expect(done.at(-1)).toBe(1);
    expect(done).toEqual([...done].sort((x, y) => x - y));
    const controller = new AbortController();
    const comparing = compare(files, 'a', 'b', { signal: controller.signal, onProgress: () => controller.abort() });
    await expect(comparing).rejects.toMatchObject({ code: 'ABORTED' });
  });

  it('is fit to verify a conversion', async () => {
    const files = new MemoryFiles();
    await make(files, 'a', { size: MiB }, [[1000, 70_000, 3]]);
    await using image = await open(files, 'a');
    files.add('b', await contentOf(image));
    expect(await compare(files, 'a', 'b')).toEqual({ result: 'identical', sizeMismatch: false });
  });
});
