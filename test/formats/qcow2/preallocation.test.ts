import { describe, expect, it } from 'vitest';
import { MemoryStore } from '../../../src/storage/memory.ts';
import { extentsOf, openDisk, pattern, poke } from '../../support/qcow2-parts.ts';
import { type CreateInput, createInMemory } from './support.ts';

const KiB = 1024;
const SIZE = 512 * KiB;

/** An image in a store that knows its holes: what was never written is none of its pages. */
async function image(input: CreateInput): Promise<MemoryStore> {
  const { file } = await createInMemory(SIZE, { clusterSize: 4096, ...input });
  return file;
}

/** How many bytes the file occupies is what the store says, or `bytes`. */
function occupying(file: MemoryStore, bytes: number | undefined): MemoryStore {
  file.status = () => Promise.resolve(bytes === undefined ? {} : { allocatedBytes: bytes });
  return file;
}

describe('the holes of the file below', () => {
  it('are asked for where metadata was preallocated: what it maps and nobody wrote reads as zero', async () => {
    const { node } = await openDisk(await image({ preallocation: 'metadata' }), { readOnly: true });
    expect(await extentsOf(node)).toEqual([`0+${SIZE} d0 present zero data`]);
    expect(node.format.recurse).toBe('zero');
  });

  it('are not asked for where the file occupies what its refcounts say', async () => {
    const disk = await openDisk(await image({}));
    await disk.node.write(0, pattern(64 * KiB));
    await disk.node.close();
    const file = disk.file.reopen();
    const { node } = await openDisk(occupying(file, file.size), { readOnly: true });
    expect((await extentsOf(node))[0]).toBe(`0+${64 * KiB} d0 present data`);
    expect(node.format.recurse).toBe('none');
  });

  it('are not asked for where nobody knows how much the file occupies', async () => {
    const { node } = await openDisk(occupying(await image({ preallocation: 'metadata' }), undefined), {
      readOnly: true,
    });
    expect(await extentsOf(node)).toEqual([`0+${SIZE} d0 present data`]);
  });

  it('are asked for where more clusters are in use than a ninth above what the file occupies, by every width of refcounts', async () => {
    for (const refcountBits of [1, 2, 4, 8, 16, 32, 64]) {
      const file = await image({ preallocation: 'metadata', refcountBits, clusterSize: 512 });
      const used = Math.ceil(file.size / 512);
      const enough = Math.floor((used * 9) / 10);
      const full = await openDisk(occupying(MemoryStore.from(file.bytes()), enough * 512), { readOnly: true });
      await extentsOf(full.node);
      const sparse = await openDisk(occupying(MemoryStore.from(file.bytes()), used * 512), { readOnly: true });
      await extentsOf(sparse.node);
      expect([refcountBits, full.node.format.recurse, sparse.node.format.recurse]).toEqual([
        refcountBits,
        'zero',
        'none',
      ]);
    }
  });

  it('are looked for once, whoever asks, and not at the cost of a damaged refcount table', async () => {
    const file = await image({ preallocation: 'metadata' });
    await poke(file, 4096, 0x2200n);
    const { node, events } = await openDisk(occupying(file, 4096));
    await Promise.all([extentsOf(node), extentsOf(node), node.read(0, new Uint8Array(10))]);
    expect(node.format.recurse).toBe('none');
    expect(events).toEqual([]);
  });
});
