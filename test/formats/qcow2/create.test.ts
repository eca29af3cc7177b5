import { describe, expect, it } from 'vitest';
import { resolveOptions } from '../../../src/base/options.ts';
import type { CreateContext } from '../../../src/core/format.ts';
import { secretsOf } from '../../../src/core/secrets.ts';
import { checkImageTables } from '../../../src/formats/qcow2/check.ts';
import { createQcow2 } from '../../../src/formats/qcow2/create.ts';
import { readHeader } from '../../../src/formats/qcow2/header.ts';
import { createOptions } from '../../../src/formats/qcow2/options.ts';
import { MemoryStore } from '../../../src/storage/memory.ts';
import { type CreateInput, createInMemory, failureOf } from './support.ts';

const KiB = 1024;
const MiB = 1024 * KiB;
const GiB = 1024 * MiB;

function contextOf(file: MemoryStore): CreateContext {
  return {
    file,
    name: 'x',
    createReference: () => Promise.resolve(new MemoryStore()),
    secret: secretsOf(undefined),
    referenceStatus: () => Promise.resolve(undefined),
  };
}

describe('createQcow2', () => {
  const refused: [input: CreateInput, reason: string, size?: number][] = [
    [{ compat: 'v2', extendedL2: true }, 'qcow2.extended-l2-version'],
    [{ clusterSize: 1000 }, 'qcow2.cluster-size'],
    [{ clusterSize: 256 }, 'qcow2.cluster-size'],
    [{ clusterSize: 4 * MiB }, 'qcow2.cluster-size'],
    [{ clusterSize: 8 * KiB, extendedL2: true }, 'qcow2.extended-l2-cluster-size'],
    [{ backingFile: 'b', preallocation: 'metadata' }, 'qcow2.preallocation-backing'],
    [{ backingFmt: 'raw' }, 'qcow2.format-without-backing'],
    [{ compat: 'v2', lazyRefcounts: true }, 'qcow2.lazy-refcounts-version'],
    [{ refcountBits: 0 }, 'qcow2.refcount-bits'],
    [{ refcountBits: 3 }, 'qcow2.refcount-bits'],
    [{ refcountBits: 128 }, 'qcow2.refcount-bits'],
    [{ compat: 'v2', refcountBits: 8 }, 'qcow2.refcount-bits-version'],
    [{ dataFileRaw: true }, 'qcow2.data-file-raw-alone'],
    [{ dataFile: 'd', dataFileRaw: true, backingFile: 'b' }, 'qcow2.data-file-raw-backing'],
    [{ compat: 'v2', dataFile: 'd' }, 'qcow2.data-file-version'],
    [{ compat: 'v2', compressionType: 'zstd' }, 'qcow2.compression-type-version'],
    [{ size: 4096 }, 'qcow2.size-twice'],
    [{ clusterSize: 512 }, 'qcow2.create-size', 128 * GiB + 512],
    [{ clusterSize: 512, refcountBits: 64, preallocation: 'metadata' }, 'qcow2.create-size', 64 * GiB],
    [{ backingFile: 'b'.repeat(1024), backingFmt: 'raw' }, 'qcow2.assign-backing'],
    [{ backingFile: 'b', backingFmt: 'f'.repeat(16) }, 'qcow2.assign-backing'],
    [{ backingFile: 'b'.repeat(390), backingFmt: 'raw', clusterSize: 512 }, 'qcow2.assign-backing'],
    [{ dataFile: 'd'.repeat(400), clusterSize: 512 }, 'qcow2.header-space'],
  ];
  it.each(refused.map(([input, reason, size]) => ({ input, reason, size: size ?? MiB })))(
    'refuses $input as $reason and leaves the file empty (Q-132, Q-135, Q-136, Q-137)',
    async ({ input, reason, size }) => {
      const file = new MemoryStore();
      const failure = await failureOf(() => createQcow2(contextOf(file), size, resolveOptions(createOptions, input)));
      expect(failure.reason).toBe(reason);
      expect(file.size).toBe(0);
    },
  );

  it('writes the header last, after a flush of everything else (Q-139)', async () => {
    const file = new MemoryStore();
    const steps: string[] = [];
    const write = file.write.bind(file);
    file.write = (offset, from, options) => {
      steps.push(offset === 0 ? 'header' : 'table');
      return write(offset, from, options);
    };
    const flush = file.flush.bind(file);
    file.flush = (options) => {
      steps.push('flush');
      return flush(options);
    };
    await createQcow2(contextOf(file), 10 * MiB, resolveOptions(createOptions, { preallocation: 'metadata' }));
    expect(steps.slice(-4)).toEqual(['table', 'flush', 'header', 'flush']);
    expect(steps.filter((step) => step === 'header')).toHaveLength(1);
  });

  it('does not leave an image behind when it is aborted (Q-139, Q-142)', async () => {
    const file = new MemoryStore();
    const signal = AbortSignal.abort();
    const creating = createQcow2({ ...contextOf(file), signal }, MiB, resolveOptions(createOptions, {}));
    await expect(creating).rejects.toMatchObject({ code: 'ABORTED' });
    await expect(async () => readHeader(file, 'x', { readOnly: true, forCheck: false })).rejects.toMatchObject({
      reason: 'qcow2.magic',
    });
  });

  it('needs a device that is large enough, and writes its tables over what was there', async () => {
    const device = (size: number) => {
      const store = new MemoryStore({ size });
      void store.write(0, new Uint8Array(size).fill(0xee));
      Object.defineProperty(store, 'supports', { value: { ...store.supports, truncate: false } });
      return store;
    };
    const small = await failureOf(() =>
      createQcow2(contextOf(device(192 * KiB)), MiB, resolveOptions(createOptions, {})),
    );
    expect(small).toMatchObject({ code: 'NO_SPACE', reason: 'qcow2.device-small' });
    const file = device(300 * KiB);
    await createQcow2(contextOf(file), MiB, resolveOptions(createOptions, {}));
    const header = await readHeader(file, 'x', { readOnly: true, forCheck: false });
    expect(await checkImageTables({ file, header, name: 'x' }, {})).toMatchObject({
      corruptions: 0,
      leaks: 0,
      checkErrors: 0,
    });
  });

  it('rounds the size up to 512 (Q-131)', async () => {
    const { file } = await createInMemory(1000);
    expect((await readHeader(file, 'x', { readOnly: true, forCheck: false })).virtualSize).toBe(1024);
  });

  it('sizes and closes the data file', async () => {
    const data = new MemoryStore();
    const context = { ...contextOf(new MemoryStore()), createReference: () => Promise.resolve(data) };
    await createQcow2(context, 100000, resolveOptions(createOptions, { dataFile: 'd', dataFileRaw: true }));
    expect(data.closed).toBe(true);
    expect(data.size).toBe(131072);
  });

  const matrix = [512, 4096, 65536, 2 * MiB].flatMap((clusterSize) =>
    [1, 2, 4, 8, 16, 32, 64].flatMap((refcountBits) =>
      (['off', 'metadata'] as const).map(
        (preallocation): CreateInput => ({ clusterSize, refcountBits, preallocation }),
      ),
    ),
  );
  it.each(matrix)('with %j makes an image whose check is clean', async (input) => {
    const { file } = await createInMemory(3 * MiB + 512, input);
    const header = await readHeader(file, 'x', { readOnly: true, forCheck: false });
    const findings: string[] = [];
    const result = await checkImageTables(
      { file, header, name: 'x' },
      { onFinding: ({ message }) => findings.push(message) },
    );
    expect(findings).toEqual([]);
    const clusters = input.preallocation === 'metadata' ? result.totalClusters : 0;
    expect(result).toMatchObject({
      corruptions: 0,
      leaks: 0,
      checkErrors: 0,
      allocatedClusters: clusters,
      fragmentedClusters: 0,
    });
  });
});
