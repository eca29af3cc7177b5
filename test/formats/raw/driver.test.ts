/** raw: window, rounding to sectors, status from the file, creation, resizing. */
import { describe, expect, it } from 'vitest';
import { raw } from '../../../src/formats/raw/driver.ts';
import { createImage } from '../../../src/image/create.ts';
import type { Image } from '../../../src/image/image.ts';
import { openImage } from '../../../src/image/open.ts';
import { MemoryStore } from '../../../src/storage/memory.ts';
import { MemoryFiles } from '../../image/support/memory-protocol.ts';

function bytes(length: number, fill: (i: number) => number = (i) => (i % 255) + 1): Uint8Array {
  return Uint8Array.from({ length }, (_, i) => fill(i));
}

function open(
  files: MemoryFiles,
  name: string,
  options: Record<string, unknown> = {},
  readOnly = true,
): Promise<Image> {
  return openImage(name, { formats: [raw], protocols: [files.protocol], format: 'raw', readOnly, options });
}

async function extentsOf(image: Image): Promise<string[]> {
  const lines: string[] = [];
  for await (const { start, length, zero, data, present, hostOffset } of image.extents()) {
    lines.push(`${start}+${length} ${present ? 'p' : '-'}${zero ? 'z' : '-'}${data ? 'd' : '-'} @${hostOffset}`);
  }
  return lines;
}

describe('raw', () => {
  it('shows a file of 1000 bytes as a disk of 1024 that ends in zeros', async () => {
    const files = new MemoryFiles();
    files.add('a.raw', bytes(1000));
    await using image = await open(files, 'a.raw');
    expect(image.virtualSize).toBe(1024);
    expect(await image.read(0, 1024)).toEqual(new Uint8Array([...bytes(1000), ...new Uint8Array(24)]));
  });

  it('grows the file when the part of the last sector past its end is written', async () => {
    const files = new MemoryFiles();
    files.add('a.raw', bytes(1000));
    await using image = await open(files, 'a.raw', {}, false);
    await image.write(1020, bytes(4));
    await expect(image.write(1021, bytes(4))).rejects.toMatchObject({ code: 'OUT_OF_RANGE' });
    expect(files.bytes('a.raw')).toEqual(new Uint8Array([...bytes(1000), ...new Uint8Array(20), ...bytes(4)]));
  });

  it('reads and writes inside its window only', async () => {
    const files = new MemoryFiles();
    files.add('a.raw', bytes(4096));
    await using image = await open(files, 'a.raw', { offset: 1000, size: 1024 }, false);
    expect(image.virtualSize).toBe(1024);
    expect(await image.read(0, 1024)).toEqual(bytes(4096).slice(1000, 2024));
    await image.write(1020, new Uint8Array(4).fill(0xee));
    await image.writeZeroes(0, 10);
    const expected = bytes(4096);
    expected.fill(0xee, 2020, 2024).fill(0, 1000, 1010);
    expect(files.bytes('a.raw')).toEqual(expected);
    await expect(image.write(1024, new Uint8Array(1))).rejects.toMatchObject({ code: 'OUT_OF_RANGE' });
  });

  it('goes to the end of the file, rounded up, when only an offset is given', async () => {
    const files = new MemoryFiles();
    files.add('a.raw', bytes(4096));
    await using image = await open(files, 'a.raw', { offset: 3000 });
    expect(image.virtualSize).toBe(1536);
    expect((await image.read(1096, 440)).every((byte) => byte === 0)).toBe(true);
  });

  it.each([
    [{ offset: 4097 }, 'raw.window'],
    [{ offset: 4096, size: 512 }, 'raw.window'],
    [{ offset: 3584, size: 1024 }, 'raw.window'],
    [{ size: 8192 }, 'raw.window'],
    [{ size: 1000 }, 'raw.window-size'],
    [{ size: -1 }, 'option.size'],
    [{ sise: 512 }, 'option.unknown'],
  ])('refuses the window %o', async (options, reason) => {
    const files = new MemoryFiles();
    files.add('a.raw', bytes(4096));
    await expect(open(files, 'a.raw', options)).rejects.toMatchObject({ code: 'OPTION', reason });
    expect(files.open).toEqual([]);
  });

  it('tells holes of the file as zeros, with their place, window included', async () => {
    const files = new MemoryFiles();
    const store = new MemoryStore({ size: 16 * 1024, pageSize: 4096 });
    await store.write(4096, bytes(4096));
    files.add('a.raw', store);
    await using image = await open(files, 'a.raw');
    expect(await extentsOf(image)).toEqual(['0+4096 pz- @0', '4096+4096 p-d @4096', '8192+8192 pz- @8192']);
    await using window = await open(files, 'a.raw', { offset: 2048, size: 4096 });
    expect(await extentsOf(window)).toEqual(['0+2048 pz- @2048', '2048+2048 p-d @4096']);
  });

  it('gives discarded space back to the file and reads zeros there', async () => {
    const files = new MemoryFiles();
    files.add('a.raw', MemoryStore.from(bytes(16 * 1024), { pageSize: 4096 }));
    await using image = await open(files, 'a.raw', {}, false);
    await image.discard(4096, 4096);
    expect(await extentsOf(image)).toEqual(['0+4096 p-d @0', '4096+4096 pz- @4096', '8192+8192 p-d @8192']);
    expect((await image.read(4096, 4096)).every((byte) => byte === 0)).toBe(true);
  });

  it('can be opened when it is empty', async () => {
    const files = new MemoryFiles();
    files.add('a.raw', new Uint8Array(0));
    await using image = await open(files, 'a.raw');
    expect(image.virtualSize).toBe(0);
    expect(await extentsOf(image)).toEqual([]);
  });

  describe('creating', () => {
    const create = (files: MemoryFiles, size: number, options: Record<string, unknown> = {}) =>
      createImage('n.raw', { format: raw, formats: [raw], protocols: [files.protocol], size, options });

    it('makes a file of the size, rounded up to sectors', async () => {
      const files = new MemoryFiles();
      await create(files, 1000);
      expect(files.bytes('n.raw')).toEqual(new Uint8Array(1024));
    });

    it('refuses to preallocate metadata, which raw does not have, and leaves no file', async () => {
      const files = new MemoryFiles();
      await expect(create(files, 1024, { preallocation: 'metadata' })).rejects.toMatchObject({
        reason: 'raw.preallocation',
      });
      await expect(create(files, 1024, { preallocation: 'foo' })).rejects.toMatchObject({ reason: 'option.choice' });
      expect(files.names()).toEqual([]);
    });

    it('takes a store of fixed size when it is large enough', async () => {
      const device = new FixedStore(4096);
      await createImage(device, { format: raw, formats: [raw], protocols: [], size: 4096 });
      await expect(
        createImage(device, { format: raw, formats: [raw], protocols: [], size: 4097 }),
      ).rejects.toMatchObject({ code: 'TOO_LARGE', reason: 'raw.device-small' });
    });
  });

  describe('resizing', () => {
    it('grows with zeros and cuts off', async () => {
      const files = new MemoryFiles();
      files.add('a.raw', bytes(1024));
      await using image = await open(files, 'a.raw', {}, false);
      await image.node.truncate(2048);
      expect(image.virtualSize).toBe(2048);
      expect((await image.read(1024, 1024)).every((byte) => byte === 0)).toBe(true);
      await image.node.truncate(512);
      expect(files.bytes('a.raw')).toEqual(bytes(1024).slice(0, 512));
    });

    it('keeps what lies before the window, and refuses where the window is fixed', async () => {
      const files = new MemoryFiles();
      files.add('a.raw', bytes(1024));
      await using image = await open(files, 'a.raw', { offset: 512 }, false);
      await image.node.truncate(1024);
      expect(files.bytes('a.raw').length).toBe(1536);
      await using fixed = await open(files, 'a.raw', { offset: 512, size: 512 }, false);
      await expect(fixed.node.truncate(1024)).rejects.toMatchObject({
        code: 'UNSUPPORTED',
        reason: 'raw.window-fixed',
      });
    });
  });

  it('says how much space it needs: all of it', async () => {
    const { measure } = raw;
    expect(await measure?.(1000, { size: undefined, preallocation: 'off' })).toEqual({
      required: 1024,
      fullyAllocated: 1024,
    });
  });
});

/** As a device: its size cannot be changed. */
class FixedStore extends MemoryStore {
  override readonly supports = { ...new MemoryStore().supports, truncate: false };
  constructor(size: number) {
    super({ size });
  }
}
