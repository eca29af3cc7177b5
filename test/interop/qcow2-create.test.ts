/** Images made here against images made by qemu-img: the same bytes where the layout is the same, a clean check everywhere else. */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { isZero } from '../../src/bytes/zeros.ts';
import {
  bytesOf,
  type CreateInput,
  createInMemory,
  describeWithQemu,
  qemuImg,
  run,
  scratchDirectory,
} from '../formats/qcow2/support.ts';

const KiB = 1024;
const MiB = 1024 * KiB;
const GiB = 1024 * MiB;
const TiB = 1024 * GiB;

describeWithQemu('a created qcow2 image', () => {
  const directory = scratchDirectory();
  const path = (name: string) => join(directory, name);

  const identical: readonly [size: number, options: string, input: CreateInput][] = [
    [64 * MiB, '', {}],
    [0, '', {}],
    [1000, '', {}],
    [1000001, 'cluster_size=512', { clusterSize: 512 }],
    [64 * MiB, 'compat=0.10', { compat: 'v2' }],
    [64 * MiB, 'compat=v2', { compat: 'v2' }],
    [64 * MiB, 'lazy_refcounts=on', { lazyRefcounts: true }],
    [64 * MiB, 'compression_type=zstd', { compressionType: 'zstd' }],
    [64 * MiB, 'extended_l2=on', { extendedL2: true }],
    [64 * MiB, 'extended_l2=on,cluster_size=16k', { extendedL2: true, clusterSize: 16 * KiB }],
    [3 * TiB, 'extended_l2=on,cluster_size=2M', { extendedL2: true, clusterSize: 2 * MiB }],
    ...[512, 1024, 4096, 8192, 16384, 131072, 1048576, 2097152].map((clusterSize): [number, string, CreateInput] => [
      3 * MiB + 512,
      `cluster_size=${clusterSize}`,
      { clusterSize },
    ]),
    ...[1, 2, 4, 8, 16, 32, 64].map((refcountBits): [number, string, CreateInput] => [
      GiB,
      `refcount_bits=${refcountBits}`,
      { refcountBits },
    ]),
    [16 * MiB, 'refcount_bits=64,cluster_size=4096', { refcountBits: 64, clusterSize: 4096 }],
    [700 * KiB, 'refcount_bits=64,cluster_size=512', { refcountBits: 64, clusterSize: 512 }],
    [1 * MiB, 'refcount_bits=1,cluster_size=512', { refcountBits: 1, clusterSize: 512 }],
    [2 * TiB, '', {}],
    [100 * TiB, '', {}],
    [2048 * TiB, 'cluster_size=2M', { clusterSize: 2 * MiB }],
  ];
  it.each(identical)(
    'of %d bytes with "%s" has the bytes of qemu-img (M-27, Q-138, Q-144)',
    async (size, options, input) => {
      qemuImg(
        directory,
        'create',
        '-q',
        '-f',
        'qcow2',
        ...(options === '' ? [] : ['-o', options]),
        'theirs',
        String(size),
      );
      const { file } = await createInMemory(size, input);
      const ours = await bytesOf(file);
      expect(Buffer.compare(ours, readFileSync(path('theirs')))).toBe(0);
    },
  );

  it.each([
    ['qcow2', 64 * KiB],
    ['raw', 512],
    ['raw', 2 * MiB],
  ])(
    'with a backing file of format %s and clusters of %d has the bytes of qemu-img (Q-146)',
    async (format, clusterSize) => {
      const name = `some directory/bäse, ${clusterSize}.img`;
      const options = `cluster_size=${clusterSize},backing_fmt=${format},backing_file=${name.replace(',', ',,')}`;
      qemuImg(directory, 'create', '-q', '-u', '-f', 'qcow2', '-o', options, 'theirs', String(5 * MiB));
      const { file } = await createInMemory(5 * MiB, { clusterSize, backingFile: name, backingFmt: format });
      expect(Buffer.compare(await bytesOf(file), readFileSync(path('theirs')))).toBe(0);
    },
  );

  it.each([
    [1000000, 'data_file_raw=off', { dataFileRaw: false }],
    [1000000, 'data_file_raw=on', { dataFileRaw: true }],
    [1000000, 'data_file_raw=on,extended_l2=on', { dataFileRaw: true, extendedL2: true }],
    [3000000, 'preallocation=metadata,cluster_size=4096', { preallocation: 'metadata', clusterSize: 4096 }],
  ] as const)(
    'of %d bytes with a data file and %s has the bytes of qemu-img (M-05, M-06)',
    async (size, options, input) => {
      qemuImg(directory, 'create', '-q', '-f', 'qcow2', '-o', `data_file=d.raw,${options}`, 'theirs', String(size));
      const { file, data } = await createInMemory(size, { ...input, dataFile: 'd.raw' });
      expect(Buffer.compare(await bytesOf(file), readFileSync(path('theirs')))).toBe(0);
      expect(data?.size).toBe(readFileSync(path('d.raw')).length);
    },
  );

  const planned: readonly [size: number, options: string, input: CreateInput][] = [
    [0, 'preallocation=metadata', { preallocation: 'metadata' }],
    [1000000, 'preallocation=metadata', { preallocation: 'metadata' }],
    [40 * MiB, 'preallocation=falloc', { preallocation: 'falloc' }],
    [9 * MiB, 'preallocation=full', { preallocation: 'full' }],
    [5 * MiB, 'preallocation=full,cluster_size=512', { preallocation: 'full', clusterSize: 512 }],
    [
      5 * MiB,
      'preallocation=metadata,cluster_size=512,refcount_bits=64',
      { preallocation: 'metadata', clusterSize: 512, refcountBits: 64 },
    ],
    [
      5 * MiB,
      'preallocation=metadata,cluster_size=512,refcount_bits=1',
      { preallocation: 'metadata', clusterSize: 512, refcountBits: 1 },
    ],
    [40 * MiB, 'preallocation=metadata,extended_l2=on', { preallocation: 'metadata', extendedL2: true }],
    [200 * MiB, 'preallocation=metadata,refcount_bits=1', { preallocation: 'metadata', refcountBits: 1 }],
    [
      300 * MiB,
      'preallocation=metadata,cluster_size=4096,compat=v2',
      { preallocation: 'metadata', clusterSize: 4096, compat: 'v2' },
    ],
  ];
  it.each(planned)(
    'of %d bytes with "%s" checks clean, is as large as qemu-img makes it, and reads as zero (Q-133, Q-140, Q-141)',
    async (size, options, input) => {
      qemuImg(directory, 'create', '-q', '-f', 'qcow2', '-o', options, 'theirs', String(size));
      const theirs = JSON.parse(qemuImg(directory, 'check', '--output=json', 'theirs')) as Record<string, unknown>;
      const { file } = await createInMemory(size, input);
      await saveSparse(file, path('ours'));
      const ours = JSON.parse(qemuImg(directory, 'check', '--output=json', 'ours')) as Record<string, unknown>;
      expect(ours['check-errors']).toBe(0);
      expect({ ...ours, filename: '', 'fragmented-clusters': 0, 'image-end-offset': 0 }).toEqual({
        ...theirs,
        filename: '',
        'fragmented-clusters': 0,
        'image-end-offset': 0,
      });
      if (Number(options.match(/cluster_size=(\d+)/)?.[1] ?? 65536) >= 4096)
        expect(ours['image-end-offset']).toBe(theirs['image-end-offset']);
      expect(run('qemu-img', ['compare', 'theirs', 'ours'], directory).stdout).toBe('Images are identical.\n');
    },
  );

  it.each([
    [8 * GiB, 'cluster_size=512', { clusterSize: 512 }],
    [128 * GiB, 'cluster_size=512', { clusterSize: 512 }],
    [20 * GiB, 'cluster_size=512,refcount_bits=64', { clusterSize: 512, refcountBits: 64 }],
    [8 * TiB, 'cluster_size=4096', { clusterSize: 4096 }],
  ] as const)('of %d bytes with "%s", beyond one refcount block, checks clean', async (size, _options, input) => {
    const { file } = await createInMemory(size, input);
    await saveSparse(file, path('ours'));
    const checked = run('qemu-img', ['check', 'ours'], directory);
    expect(checked.stderr).toBe('');
    expect(checked.status).toBe(0);
    expect(JSON.parse(qemuImg(directory, 'info', '--output=json', 'ours'))['virtual-size']).toBe(size);
  });

  it.each([
    [128 * GiB + 512, 'cluster_size=512', { clusterSize: 512 }],
    [2049 * TiB, '', {}],
  ] as const)('of %d bytes with "%s" is refused, as by qemu-img', async (size, options, input) => {
    const theirs = run(
      'qemu-img',
      ['create', '-q', '-f', 'qcow2', ...(options === '' ? [] : ['-o', options]), 'theirs', String(size)],
      directory,
    );
    expect(theirs.stderr).toContain('The image size is too large for file format');
    await expect(createInMemory(size, input)).rejects.toMatchObject({ code: 'TOO_LARGE', reason: 'qcow2.create-size' });
  });
});

/** Writes a store to a file, holes as holes. */
async function saveSparse(
  store: { readonly size: number; read(offset: number, into: Uint8Array): unknown },
  to: string,
): Promise<void> {
  const { closeSync, ftruncateSync, openSync, writeSync } = await import('node:fs');
  writeFileSync(to, '');
  const fd = openSync(to, 'r+');
  try {
    ftruncateSync(fd, store.size);
    const chunk = Buffer.alloc(MiB);
    for (let at = 0; at < store.size; at += chunk.length) {
      await store.read(at, chunk);
      if (!isZero(chunk)) writeSync(fd, chunk, 0, Math.min(chunk.length, store.size - at), at);
    }
  } finally {
    closeSync(fd);
  }
}
