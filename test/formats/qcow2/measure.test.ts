import { describe, expect, it } from 'vitest';
import { resolveOptions } from '../../../src/base/options.ts';
import { measureQcow2 } from '../../../src/formats/qcow2/measure.ts';
import { createOptions } from '../../../src/formats/qcow2/options.ts';
import { MemoryStore } from '../../../src/storage/memory.ts';
import { type CreateInput, failureOf } from './support.ts';

const MiB = 1024 * 1024;
const GiB = 1024 * MiB;

describe('measureQcow2', () => {
  it.each([
    [{}, 393216, 1074135040],
    [{ extendedL2: true }, 524288, 1074266112],
    [{ clusterSize: 4096, refcountBits: 64 }, 4222976, 1077964800],
    [{ preallocation: 'full' }, 1074135040, 1074135040],
  ] as [CreateInput, number, number][])(
    'of 1 GiB with %j is %d, fully allocated %d',
    async (input, required, fullyAllocated) => {
      expect(await measureQcow2(GiB, resolveOptions(createOptions, input))).toEqual({ required, fullyAllocated });
    },
  );

  it('of a source counts the target clusters its data touches, each once', async () => {
    const source = new MemoryStore({ pageSize: 512 });
    await source.truncate(10 * MiB);
    // one cluster with two pieces, one piece across two clusters
    for (const offset of [4096, 30000, 5 * 65536 - 512]) await source.write(offset, new Uint8Array(1024).fill(1));
    const options = resolveOptions(createOptions, {});
    const empty = await measureQcow2(10 * MiB, options);
    expect((await measureQcow2(0, options, source)).required).toBe(empty.required + 3 * 65536);
  });

  it('refuses what create refuses, and what the L1 table cannot map', async () => {
    const measure = (input: CreateInput, size = GiB) =>
      failureOf(() => measureQcow2(size, resolveOptions(createOptions, input)));
    expect((await measure({ clusterSize: 3 })).reason).toBe('qcow2.cluster-size');
    expect((await measure({ compat: 'v2', refcountBits: 8 })).reason).toBe('qcow2.refcount-bits-version');
    expect(await measure({ clusterSize: 512 }, 200 * GiB)).toMatchObject({
      code: 'TOO_LARGE',
      reason: 'qcow2.measure-size',
    });
  });

  it('ends when the signal fires', async () => {
    const source = new MemoryStore({ size: GiB });
    const measuring = measureQcow2(0, resolveOptions(createOptions, {}), source, AbortSignal.abort());
    await expect(measuring).rejects.toMatchObject({ code: 'ABORTED' });
  });
});
