/** Space estimates against those of qemu-img measure. */
import { closeSync, ftruncateSync, openSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { resolveOptions } from '../../src/base/options.ts';
import type { FormatNode } from '../../src/core/format.ts';
import type { BlockNode } from '../../src/core/node.ts';
import { measureQcow2 } from '../../src/formats/qcow2/measure.ts';
import { createOptions } from '../../src/formats/qcow2/options.ts';
import { measureImage, openImage } from '../../src/node.ts';
import { MemoryStore } from '../../src/storage/memory.ts';
import { type CreateInput, describeWithQemu, qemuImg, qemuIo, scratchDirectory } from '../formats/qcow2/support.ts';

const KiB = 1024;
const MiB = 1024 * KiB;
const GiB = 1024 * MiB;

const MATRIX: readonly [options: string, input: CreateInput][] = [
  ['', {}],
  ['extended_l2=on', { extendedL2: true }],
  ['cluster_size=512', { clusterSize: 512 }],
  ['cluster_size=4k,refcount_bits=64', { clusterSize: 4 * KiB, refcountBits: 64 }],
  ['cluster_size=2M,refcount_bits=1', { clusterSize: 2 * MiB, refcountBits: 1 }],
  ['preallocation=metadata', { preallocation: 'metadata' }],
  ['preallocation=falloc', { preallocation: 'falloc' }],
  ['preallocation=full,cluster_size=16k', { preallocation: 'full', clusterSize: 16 * KiB }],
  ['compat=0.10', { compat: 'v2' }],
  ['backing_file=x', { backingFile: 'x' }],
];

function theirs(text: string): Record<string, number | undefined> {
  const { required, 'fully-allocated': fullyAllocated, bitmaps } = JSON.parse(text) as Record<string, number>;
  return { required, fullyAllocated, ...(bitmaps === undefined ? {} : { bitmaps }) };
}

describeWithQemu('measure', () => {
  const directory = scratchDirectory();

  for (const size of [0, 1, 1001, 1000000, 3 * MiB, GiB, 100 * GiB, 4 * 1024 * GiB]) {
    it.each(MATRIX)(`of ${size} bytes with "%s" gives qemu-img's numbers (M-21)`, async (options, input) => {
      if (size > 100 * GiB && options.includes('512')) return;
      const args = ['--output=json', '-O', 'qcow2', ...(options === '' ? [] : ['-o', options]), '--size', String(size)];
      const expected = theirs(qemuImg(directory, 'measure', ...args));
      expect(await measureQcow2(size, resolveOptions(createOptions, input))).toEqual(expected);
    });
  }

  it('refuses a size that the clusters cannot map', async () => {
    await expect(measureQcow2(200 * GiB, resolveOptions(createOptions, { clusterSize: 512 }))).rejects.toMatchObject({
      reason: 'qcow2.measure-size',
    });
  });

  const pieces: readonly [offset: number, length: number][] = [
    [0, 4096],
    [200 * KiB, 12 * KiB],
    [252 * KiB, 8 * KiB],
    [3 * MiB, MiB],
    [9 * MiB + 64 * KiB - 4096, 8192],
    [10 * MiB - 4096, 4096],
  ];
  it.each(MATRIX)('of a raw source with holes and "%s" gives qemu-img\'s numbers', async (options, input) => {
    const size = 10 * MiB + 512;
    const store = new MemoryStore({ pageSize: 4096 });
    await store.truncate(size);
    const fd = openSync(join(directory, 'holes.raw'), 'w');
    ftruncateSync(fd, size);
    for (const [offset, length] of pieces) {
      const data = new Uint8Array(length).fill(0xaa);
      await store.write(offset, data);
      writeSync(fd, data, 0, length, offset);
    }
    closeSync(fd);
    const args = ['--output=json', '-O', 'qcow2', ...(options === '' ? [] : ['-o', options]), '-f', 'raw', 'holes.raw'];
    const expected = theirs(qemuImg(directory, 'measure', ...args));
    expect(await measureQcow2(0, resolveOptions(createOptions, input), store)).toEqual(expected);
  });

  it.each(MATRIX)('of a source with bitmaps and "%s" gives qemu-img\'s numbers', async (options, input) => {
    qemuImg(directory, 'create', '-q', '-f', 'qcow2', 'bitmaps.qcow2', '10G');
    qemuImg(directory, 'bitmap', '--add', 'bitmaps.qcow2', 'b0');
    qemuImg(directory, 'bitmap', '--add', '-g', '512', 'bitmaps.qcow2', 'ein längerer Name');
    const args = ['--output=json', '-O', 'qcow2', ...(options === '' ? [] : ['-o', options]), 'bitmaps.qcow2'];
    const expected = theirs(qemuImg(directory, 'measure', ...args));
    const bitmaps = [
      { name: 'b0', granularity: 65536, flags: ['auto'] },
      { name: 'ein längerer Name', granularity: 512, flags: ['auto'] },
    ];
    const source = sourceWith(10 * GiB, { compat: '1.1', bitmaps });
    expect(await measureQcow2(0, resolveOptions(createOptions, input), source)).toEqual(expected);
  });

  const sources: readonly [name: string, make: () => void][] = [
    [
      'qcow2',
      () => {
        qemuImg(directory, 'create', '-q', '-f', 'qcow2', 'source.qcow2', '10M');
        qemuIo(directory, 'source.qcow2', 'write 0 100k', 'write -z 1M 1M', 'write -c 3M 64k', 'write 9M 4k');
      },
    ],
    [
      'qcow2 with extended L2 entries and small clusters',
      () => {
        qemuImg(
          directory,
          'create',
          '-q',
          '-f',
          'qcow2',
          '-o',
          'extended_l2=on,cluster_size=16k',
          'source.qcow2',
          '5M',
        );
        qemuIo(directory, 'source.qcow2', 'write 1k 3k', 'write 1M 130k', 'write -z 1100k 4k');
      },
    ],
    [
      'qcow2 with a backing file',
      () => {
        qemuImg(directory, 'create', '-q', '-f', 'qcow2', 'base.qcow2', '5M');
        qemuIo(directory, 'base.qcow2', 'write 0 300k', 'write 4M 1M');
        qemuImg(directory, 'create', '-q', '-f', 'qcow2', '-b', 'base.qcow2', '-F', 'qcow2', 'source.qcow2', '12M');
        qemuIo(directory, 'source.qcow2', 'write 200k 300k', 'write -z 4M 100k', 'write 11M 64k');
      },
    ],
  ];
  for (const [name, make] of sources) {
    it.each(MATRIX)(`of a source that is ${name}, with "%s", gives qemu-img's numbers`, async (options, input) => {
      make();
      const args = ['--output=json', '-O', 'qcow2', ...(options === '' ? [] : ['-o', options]), 'source.qcow2'];
      const expected = theirs(qemuImg(directory, 'measure', ...args));
      const source = await openImage(join(directory, 'source.qcow2'), { readOnly: true, references: 'allow' });
      try {
        expect(await measureImage({ format: 'qcow2', options: { ...input }, source })).toEqual(expected);
      } finally {
        await source.close();
      }
    });
  }

  it('has no bitmaps number for a version 2 source, and 0 for a version 3 source without bitmaps', async () => {
    const options = resolveOptions(createOptions, {});
    expect(await measureQcow2(0, options, sourceWith(MiB, { compat: '0.10' }))).not.toHaveProperty('bitmaps');
    expect(await measureQcow2(0, options, sourceWith(MiB, { compat: '1.1' }))).toHaveProperty('bitmaps', 0);
  });
});

/** An empty qcow2 source that tells `data` about itself. */
function sourceWith(size: number, data: Record<string, unknown>): BlockNode {
  const store = new MemoryStore();
  void store.truncate(size);
  const format = { format: 'qcow2', info: () => ({ specific: { type: 'qcow2', data } }) } as unknown as FormatNode;
  return Object.defineProperty(store, 'format', { value: format }) as unknown as BlockNode;
}
