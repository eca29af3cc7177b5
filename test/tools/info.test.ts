/** Facts of images and chains. */
import { describe, expect, it } from 'vitest';
import { chainInfo, imageInfo } from '../../src/tools/info.ts';
import { drivers, KiB, MiB, make, makeOverlay, open } from '../image/support/fixtures.ts';
import { MemoryFiles } from '../image/support/memory-protocol.ts';

async function chain(): Promise<MemoryFiles> {
  const files = new MemoryFiles();
  await make(files, 'dir/c1', { size: MiB }, [[0, 64 * KiB, 1]]);
  await makeOverlay(files, 'dir/c2', 'c1');
  await makeOverlay(files, 'dir/c3', 'c2');
  return files;
}

describe('info', () => {
  it('tells what an image is', async () => {
    const files = await chain();
    const info = await imageInfo('dir/c3', drivers(files));
    expect(info).toMatchObject({
      name: 'dir/c3',
      format: 'qcow2',
      virtualSize: MiB,
      clusterSize: 64 * KiB,
      encrypted: false,
      dirty: false,
      backing: { name: 'c2', format: 'qcow2', resolved: 'dir/c2' },
      snapshots: [],
      specific: { type: 'qcow2', data: { compat: '1.1' } },
      probedRaw: false,
    });
    expect(info.actualSize).toBe(await allocated(files, 'dir/c3'));
    expect(info.children.map(({ role, node }) => [role, node])).toEqual([['file', 'dir/c3']]);
    expect(files.open).toEqual([]);
  });

  it('needs no backing file, whatever became of it', async () => {
    const files = await chain();
    files.files.delete('dir/c2');
    files.log.length = 0;
    expect((await imageInfo('dir/c3', drivers(files))).backing?.name).toBe('c2');
    expect(files.log).toEqual(['open dir/c3']);
  });

  it('counts data files as disk size where they may be opened', async () => {
    const files = new MemoryFiles();
    await make(files, 'a', { size: MiB, options: { dataFile: 'a.data' } }, [[0, 64 * KiB, 1]]);
    const sum = ((await allocated(files, 'a')) ?? 0) + ((await allocated(files, 'a.data')) ?? 0);
    const info = await imageInfo('a', { ...drivers(files), references: 'allow' });
    expect(info.actualSize).toBe(sum);
    expect(info.children.map(({ role }) => role)).toEqual(['file', 'data']);
    expect((await imageInfo('a', drivers(files))).actualSize).toBeUndefined();
  });

  it('takes an open image and leaves it open', async () => {
    const files = await chain();
    await using image = await open(files, 'dir/c3', { references: 'allow' });
    expect((await imageInfo(image, drivers(files))).backing?.resolved).toBe('dir/c2');
    expect((await image.read(0, 1))[0]).toBe(1);
  });

  it('says when raw was a guess', async () => {
    const files = new MemoryFiles();
    files.add('a', new Uint8Array(1000));
    expect(await imageInfo('a', drivers(files))).toMatchObject({ format: 'raw', probedRaw: true, virtualSize: 1024 });
  });

  async function allocated(files: MemoryFiles, name: string): Promise<number | undefined> {
    return (await files.files.get(name)?.content.status?.())?.allocatedBytes;
  }
});

describe('info of a chain', () => {
  it('lists every layer, top first, each opened by itself', async () => {
    const files = await chain();
    files.log.length = 0;
    const infos = await chainInfo('dir/c3', { ...drivers(files), references: 'allow' });
    expect(infos.map(({ name, backing }) => [name, backing?.name])).toEqual([
      ['dir/c3', 'c2'],
      ['dir/c2', 'c1'],
      ['dir/c1', undefined],
    ]);
    expect(files.log).toEqual(['open dir/c3', 'open dir/c2', 'open dir/c1']);
  });

  it('follows the policy', async () => {
    const files = await chain();
    const names = async (references: 'layer-only' | 'same-directory') =>
      (await chainInfo('dir/c3', { ...drivers(files), references })).map(({ name }) => name);
    expect(await names('layer-only')).toEqual(['dir/c3']);
    expect((await names('same-directory')).length).toBe(3);
    await expect(chainInfo('dir/c3', drivers(files))).rejects.toMatchObject({ code: 'REFERENCE_DENIED' });
    expect((await chainInfo('dir/c1', drivers(files))).length).toBe(1);
  });

  it('goes through the backing file that the caller chose, and what was said of the top is not said of what lies below', async () => {
    const files = await chain();
    await makeOverlay(files, 'moved', 'dir/c1');
    const options = {
      ...drivers(files),
      references: 'allow',
      format: 'qcow2',
      options: { lazyRefcounts: true },
    } as const;
    const infos = await chainInfo('dir/c3', { ...options, backing: { name: 'moved', format: 'qcow2' } });
    expect(infos.map(({ name, backing }) => [name, backing?.name, backing?.resolved, backing?.opensAs])).toEqual([
      ['dir/c3', 'c2', 'moved', 'qcow2'],
      ['moved', 'dir/c1', 'dir/c1', 'qcow2'],
      ['dir/c1', undefined, undefined, undefined],
    ]);
    await expect(
      chainInfo('dir/c1', { ...options, backing: { name: 'moved', format: 'qcow2' } }),
    ).rejects.toMatchObject({
      reason: 'image.backing-override',
    });
  });

  it('refuses loops and chains past the depth', async () => {
    const files = await chain();
    files.link('dir/c1', 'dir/c3');
    const options = { ...drivers(files), references: 'allow' } as const;
    await expect(chainInfo('dir/c3', options)).rejects.toMatchObject({ code: 'CHAIN', reason: 'chain.cycle' });
    const straight = await chain();
    const shallow = { ...drivers(straight), references: 'allow', maxDepth: 2 } as const;
    await expect(chainInfo('dir/c3', shallow)).rejects.toMatchObject({ reason: 'chain.depth' });
    expect(files.open).toEqual([]);
  });

  it('tells which file is missing', async () => {
    const files = await chain();
    files.files.delete('dir/c1');
    const failing = chainInfo('dir/c3', { ...drivers(files), references: 'allow' });
    await expect(failing).rejects.toMatchObject({ code: 'NOT_FOUND', message: expect.stringContaining('dir/c1') });
  });
});
