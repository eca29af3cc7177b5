import { describe, expect, it } from 'vitest';
import { openImage } from '../../src/image/open.ts';
import { convertImage } from '../../src/tools/convert.ts';
import { applySnapshot, createSnapshot, deleteSnapshot, listSnapshots } from '../../src/tools/snapshot.ts';
import { drivers, KiB, make, open } from '../image/support/fixtures.ts';
import { MemoryFiles } from '../image/support/memory-protocol.ts';

async function image(): Promise<MemoryFiles> {
  const files = new MemoryFiles();
  await make(files, 'a', { size: 64 * KiB }, [[0, 4 * KiB, 7]]);
  return files;
}

async function write(files: MemoryFiles, fill: number): Promise<void> {
  await using opened = await open(files, 'a', { readOnly: false });
  await opened.write(0, new Uint8Array(4 * KiB).fill(fill));
}

const DATE = new Date(Date.UTC(2026, 0, 2, 3, 4, 5, 678));

describe('the snapshots of an image', () => {
  it('are listed, made, applied and deleted by the name of the image', async () => {
    const files = await image();
    const options = drivers(files);
    const made = await createSnapshot('a', { name: 'first', date: DATE, icount: 3n }, options);
    expect(made).toMatchObject({ id: '1', name: 'first', dateSeconds: DATE.getTime() / 1000 - 0.678, icount: 3n });
    expect(made.dateNanoseconds).toBe(678_000_000);
    await write(files, 8);
    await applySnapshot('a', 'first', options);
    {
      await using opened = await open(files, 'a', {});
      expect((await opened.read(0, 1))[0]).toBe(7);
      expect(await listSnapshots(opened, options)).toEqual([made]);
    }
    expect(await listSnapshots('a', options)).toEqual([made]);
    await deleteSnapshot('a', { id: '1' }, options);
    expect(await listSnapshots('a', options)).toEqual([]);
  });

  it('are changed through an image that is open, which stays open', async () => {
    const files = await image();
    const options = drivers(files);
    await using opened = await open(files, 'a', { readOnly: false });
    await createSnapshot(opened, { name: 'x', date: DATE }, options);
    await opened.write(0, new Uint8Array(100));
    await applySnapshot(opened, 'x', options);
    expect((await opened.read(0, 1))[0]).toBe(7);
    await deleteSnapshot(opened, 'x', options);
    expect(opened.snapshots).toEqual([]);
  });

  it('can be converted, one by one', async () => {
    const files = await image();
    const options = drivers(files);
    await createSnapshot('a', { name: 'first', date: DATE }, options);
    await write(files, 8);
    await convertImage([{ name: 'a', snapshot: 'first' }], { name: 'copy', format: 'raw' }, options);
    expect(files.bytes('copy')[0]).toBe(7);
  });

  it('are opened for reading only, and where the format has some', async () => {
    const files = await image();
    const options = drivers(files);
    await createSnapshot('a', { name: 'first', date: DATE }, options);
    for (const [more, reason] of [
      [{ readOnly: false }, 'image.snapshot-read-only'],
      [{ forCheck: true }, 'image.snapshot-read-only'],
      [{ format: 'raw' }, 'image.snapshots'],
    ] as const) {
      await expect(openImage('a', { ...options, snapshot: 'first', ...more })).rejects.toMatchObject({ reason });
    }
    files.add('plain', new Uint8Array(4 * KiB));
    await expect(
      createSnapshot('plain', { name: 'x', date: DATE }, { ...options, format: 'raw' }),
    ).rejects.toMatchObject({
      code: 'UNSUPPORTED',
      reason: 'engine.snapshots',
    });
    await using plain = await openImage('plain', { ...options, format: 'raw', readOnly: false });
    expect(plain.snapshots).toEqual([]);
    await expect(plain.node.writeVmState(0, new Uint8Array(1))).rejects.toMatchObject({ reason: 'engine.vm-state' });
  });

  it('of a layer below are not meant by the choice of one', async () => {
    const files = await image();
    const options = { ...drivers(files), references: 'allow' as const };
    await createSnapshot('a', { name: 'first', date: DATE }, options);
    await make(files, 'top', { size: 64 * KiB, backing: { name: 'a', format: 'qcow2' } }, []);
    await createSnapshot('top', { name: 'first', date: DATE }, options);
    await write(files, 9);
    await using frozen = await openImage('top', { ...options, snapshot: 'first' });
    // the layers below are as they are now
    expect((await frozen.read(0, 1))[0]).toBe(9);
  });
});
