/** compress: writes become compressed clusters, whatever their offsets. */
import { describe, expect, it } from 'vitest';
import { compress } from '../../src/filters/compress.ts';
import { MemoryStore } from '../../src/storage/memory.ts';
import { openFilter } from '../support/filters.ts';
import { extentsOf, newDisk, pattern, readAll } from '../support/qcow2-parts.ts';
import { checkQcow2 } from '../support/qcow2-under-test.ts';

const KiB = 1024;

describe('compress', () => {
  it('stores what is written compressed, with what is around it', async () => {
    const { file, node: disk } = await newDisk({ size: 40 * KiB + 512, clusterSize: 4096 });
    const node = await openFilter(compress, { children: { file: disk } });
    const model = new Uint8Array(disk.size);
    const put = async (offset: number, length: number, seed: number): Promise<void> => {
      const bytes = pattern(length, seed);
      model.set(bytes, offset);
      await node.write(offset, bytes);
    };
    await put(100, 10 * KiB, 1);
    await put(200, 5, 2);
    await put(40 * KiB, 512, 3);
    expect(Buffer.compare(await readAll(node), model)).toBe(0);
    expect(await extentsOf(disk)).toEqual([
      '0+12288 d0 present data compressed',
      '12288+28672 d0 zero',
      '40960+512 d0 present data compressed',
    ]);
    await node.writeZeroes(0, 8192);
    model.fill(0, 0, 8192);
    expect(Buffer.compare(await readAll(node), model)).toBe(0);
    await node.close();
    await disk.close();
    expect((await checkQcow2(file.reopen())).lines).toEqual([]);
  });

  it('is refused over what cannot store compressed data', async () => {
    await expect(openFilter(compress, { children: { file: new MemoryStore() } })).rejects.toMatchObject({
      code: 'UNSUPPORTED',
      reason: 'compress.format',
    });
  });
});
