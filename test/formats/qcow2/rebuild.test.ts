import { describe, expect, it } from 'vitest';
import { checkImageTables } from '../../../src/formats/qcow2/check.ts';
import { readHeader } from '../../../src/formats/qcow2/header.ts';
import type { MemoryStore } from '../../../src/storage/memory.ts';
import { bytesOf, type CreateInput, createInMemory, storeOf } from './support.ts';

const MiB = 1024 * 1024;
const ACCESS = { readOnly: false, forCheck: true };

async function check(file: MemoryStore, fix: 'none' | 'all') {
  const header = await readHeader(file, 'x', ACCESS);
  return await checkImageTables({ file, header, name: 'x' }, { fix });
}

/** Where every guest cluster lies, COPIED left out: what a repair of refcounts must not change. */
async function mapping(file: MemoryStore): Promise<bigint[]> {
  const header = await readHeader(file, 'x', ACCESS);
  const l1 = new DataView((await bytesOf(file)).buffer);
  const table = Number(l1.getBigUint64(header.l1Offset) & 0x00ff_ffff_ffff_fe00n);
  return Array.from({ length: 16 }, (_, index) => l1.getBigUint64(table + index * 8) & 0x7fff_ffff_ffff_ffffn);
}

/** An image without any refcounts. */
async function ruined(input: CreateInput): Promise<MemoryStore> {
  const { file } = await createInMemory(MiB, { preallocation: 'metadata', ...input });
  const header = await readHeader(file, 'x', ACCESS);
  await file.write(header.refcountTableOffset, new Uint8Array(header.refcountTableClusters * 2 ** header.clusterBits));
  return file;
}

describe('rebuilding the refcounts', () => {
  const inputs = [1, 2, 4, 8, 16, 32, 64].flatMap((refcountBits) =>
    [512, 4096, 65536].map((clusterSize): CreateInput => ({ refcountBits, clusterSize })),
  );
  it.each(inputs)('of an image with %j makes its check clean and changes no mapping (M-26)', async (input) => {
    const file = await ruined(input);
    const before = await mapping(file);
    expect(await check(file, 'all')).toMatchObject({ corruptions: 0, leaks: 0, checkErrors: 0 });
    expect(await check(file, 'none')).toMatchObject({ corruptions: 0, leaks: 0, checkErrors: 0, corruptionsFixed: 0 });
    expect(await mapping(file)).toEqual(before);
  });

  it('may be cut off after any write: a later repair ends it', async () => {
    const file = await ruined({ clusterSize: 512 });
    const start = await bytesOf(file);
    const writes: [offset: number, bytes: Uint8Array][] = [];
    const write = file.write.bind(file);
    file.write = (offset, from, options) => {
      writes.push([offset, from.slice()]);
      return write(offset, from, options);
    };
    const mapped = await mapping(file);
    await check(file, 'all');
    expect(writes.length).toBeGreaterThan(10);
    for (let count = 0; count <= writes.length; count++) {
      const crashed = await storeOf(start);
      for (const [offset, bytes] of writes.slice(0, count)) await crashed.write(offset, bytes);
      await check(crashed, 'all');
      expect(await check(crashed, 'none')).toMatchObject({ corruptions: 0, leaks: 0, checkErrors: 0 });
      expect(await mapping(crashed)).toEqual(mapped);
    }
  });

  it('on a full device fails, and leaves header and mapping as they were', async () => {
    const file = await ruined({});
    const limited = await storeOf(await bytesOf(file));
    Object.defineProperty(limited, 'supports', { value: { ...limited.supports, truncate: false } });
    const before = { header: await readHeader(limited, 'x', ACCESS), mapping: await mapping(limited) };
    await expect(check(limited, 'all')).rejects.toMatchObject({ reason: 'qcow2.check-failed' });
    expect({ header: await readHeader(limited, 'x', ACCESS), mapping: await mapping(limited) }).toEqual(before);
  });
});
