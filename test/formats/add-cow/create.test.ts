import { existsSync, readFileSync } from 'node:fs';
import { gunzipSync } from 'node:zlib';
import { describe, expect, it } from 'vitest';
import { type OptionsInput, resolveOptions } from '../../../src/base/options.ts';
import { KiB, MiB, TiB } from '../../../src/base/sizes.ts';
import type { CreateContext } from '../../../src/core/format.ts';
import { secretsOf } from '../../../src/core/secrets.ts';
import { createAddCow } from '../../../src/formats/add-cow/create.ts';
import { addCow } from '../../../src/formats/add-cow/driver.ts';
import { createOptions } from '../../../src/formats/add-cow/options.ts';
import { qcow2 } from '../../../src/formats/qcow2/driver.ts';
import { raw } from '../../../src/formats/raw/driver.ts';
import { type CreateImageOptions, createImage } from '../../../src/image/create.ts';
import { type OpenImageOptions, openImage } from '../../../src/image/open.ts';
import { fileProtocol } from '../../../src/storage/file.ts';
import { MemoryStore } from '../../../src/storage/memory.ts';
import { convertImage } from '../../../src/tools/convert.ts';
import { MemoryFiles } from '../../image/support/memory-protocol.ts';
import { STALE } from '../../support/add-cow-under-test.ts';
import { scratch } from '../../support/scratch.ts';
import { failureOf, filled, pattern } from './support.ts';

const FORMATS = [qcow2, addCow, raw];
const path = scratch();

function drivers(files: MemoryFiles) {
  return { formats: FORMATS, protocols: [files.protocol] };
}

function make(files: MemoryFiles, options: Partial<CreateImageOptions>): Promise<void> {
  return createImage('dir/new.add-cow', { ...drivers(files), format: 'add-cow', ...options });
}

function open(files: MemoryFiles, options: Partial<OpenImageOptions> = {}) {
  const common = { references: 'allow', probeBacking: true } as const;
  return openImage('dir/new.add-cow', { ...drivers(files), ...common, ...options });
}

function withBase(size = MiB): MemoryFiles {
  const files = new MemoryFiles();
  files.add('dir/base.img', pattern(size));
  return files;
}

function golden(name: string): Uint8Array {
  return new Uint8Array(gunzipSync(readFileSync(new URL(`../../golden/add-cow/${name}.gz`, import.meta.url))));
}

const BACKING = { name: 'base.img', format: 'raw' } as const;

describe('a new add-cow image', () => {
  it('V20 is byte for byte what the text of the format makes of the same names', async () => {
    const files = new MemoryFiles();
    files.add('dir/base-a.img', new Uint8Array(MiB));
    const backing = { name: 'base-a.img', format: 'raw' };
    await make(files, { backing, options: { imageFile: 'addcow-v20-64k.image.raw' } });
    const wanted = golden('addcow-v20-64k.add-cow');
    wanted.fill(0, 65536);
    expect(files.bytes('dir/new.add-cow')).toEqual(wanted);
    await make(files, { size: 256 * KiB, options: { imageFile: 'addcow-v20-nobacking.image.raw' } });
    expect(files.bytes('dir/new.add-cow')).toEqual(golden('addcow-v20-nobacking.add-cow'));
  });

  it('A-002, A-013: v9 is byte for byte what the text of the format makes of the same names', async () => {
    const files = new MemoryFiles();
    files.add('dir/base-a.img', new Uint8Array(MiB));
    const backing = { name: 'base-a.img', format: 'raw' };
    await make(files, { backing, options: { compat: 'v9', imageFile: 'addcow-v9.image.raw' } });
    const wanted = golden('addcow-v9.add-cow');
    wanted.fill(0, 2560);
    expect(files.bytes('dir/new.add-cow')).toEqual(wanted);
  });

  for (const compat of ['v9', 'v20']) {
    it(`makes the image file, of the size of the disk, and shows the backing file: ${compat}`, async () => {
      const files = withBase();
      await make(files, { backing: BACKING, size: 700 * KiB, options: { compat, imageFile: 'data.raw' } });
      expect(files.bytes('dir/data.raw')).toEqual(new Uint8Array(700 * KiB));
      await using disk = await open(files);
      expect(await disk.read(0, 700 * KiB)).toEqual(pattern(MiB).subarray(0, 700 * KiB));
    });

    it(`never shows what an image file held before: ${compat}`, async () => {
      const files = withBase(500 * KiB);
      files.add('dir/data.raw', filled(700 * KiB, STALE));
      await make(files, { backing: BACKING, size: 700 * KiB, options: { compat, imageFile: 'data.raw' } });
      const wanted = new Uint8Array(700 * KiB);
      wanted.set(pattern(500 * KiB));
      await using disk = await open(files, { readOnly: false });
      expect(await disk.read(0, 700 * KiB)).toEqual(wanted);
      for (const at of [10, 66 * KiB, 499 * KiB, 640 * KiB + 100, 700 * KiB - 3]) {
        await disk.write(at, Uint8Array.of(1, 2, 3));
        wanted.set([1, 2, 3], at);
      }
      expect(await disk.read(0, 700 * KiB)).toEqual(wanted);
    });
  }

  it('V20 gives an image file that is there the size of the disk', async () => {
    for (const [length, size] of [
      [300 * KiB, 700 * KiB],
      [900 * KiB, 700 * KiB],
    ] as const) {
      const files = withBase();
      files.add('dir/data.raw', filled(length, STALE));
      await make(files, { backing: BACKING, size, options: { imageFile: 'data.raw' } });
      expect(files.bytes('dir/data.raw').length).toBe(size);
    }
  });

  it('A-012: v9 has the size of the image file that is there, and another size that was asked for is refused', async () => {
    const files = withBase();
    files.add('dir/data.raw', filled(900 * KiB, STALE));
    const asked = make(files, { backing: BACKING, size: 700 * KiB, options: { compat: 'v9', imageFile: 'data.raw' } });
    const failure = await failureOf(() => asked);
    expect(failure).toMatchObject({ code: 'OPTION', reason: 'add-cow.image-size' });
    expect(failure.message).toContain('"data.raw" has 921600 bytes');
    expect(failure.message).toContain('not 716800');
    expect(files.names()).toEqual(['dir/base.img', 'dir/data.raw']);
    await make(files, { backing: BACKING, size: 900 * KiB, options: { compat: 'v9', imageFile: 'data.raw' } });
    await using disk = await open(files);
    expect(disk.virtualSize).toBe(900 * KiB);
  });

  it('A-012: v9 takes the length of the image file when no size was asked for', async () => {
    const image = MemoryStore.from(filled(900 * KiB + 100, STALE));
    const file = new MemoryStore();
    const options = { compat: 'v9', imageFile: 'data', backingFile: 'base', backingFmt: 'raw' } as const;
    await createAddCow(contextOf(file, image), 700 * KiB, resolveOptions(createOptions, options));
    expect(file.size).toBe(2560 + 2);
    expect(image.size).toBe(900 * KiB + 100);
  });

  it('without a backing file is its image file: what that held is the disk', async () => {
    const files = new MemoryFiles();
    files.add('dir/data.raw', pattern(300 * KiB));
    await make(files, { size: 300 * KiB, options: { imageFile: 'data.raw' } });
    await using disk = await open(files);
    expect(await disk.read(0, 300 * KiB)).toEqual(pattern(300 * KiB));
    expect((await disk.info()).specific?.data['all-allocated']).toBe(true);
    expect(addCow.capabilities.zeroInit).toBe(false);
  });

  it('R6: V20 has its bitmap at a multiple of 4 KiB, whatever its clusters are', async () => {
    for (const clusterSize of [4 * KiB, 8 * KiB, 64 * KiB, 2 * MiB]) {
      const files = withBase();
      await make(files, { backing: BACKING, options: { imageFile: 'data.raw', clusterSize } });
      const disk = await open(files, { readOnly: false });
      await disk.write(3 * clusterSize < MiB ? 3 * clusterSize : 0, Uint8Array.of(1));
      await disk.close();
      const bytes = files.bytes('dir/new.add-cow');
      const bitmapOffset = Math.max(4096, clusterSize);
      expect(bytes.length % clusterSize).toBe(0);
      expect(bytes[bitmapOffset]).toBe(3 * clusterSize < MiB ? 8 : 1);
    }
  });

  it('R12: V20 takes names that v9 has no room for', async () => {
    const files = new MemoryFiles();
    const base = `${'b'.repeat(1500)}.img`;
    files.add(`dir/${base}`, pattern(MiB));
    const options = { imageFile: `${'i'.repeat(2000)}.raw`, clusterSize: 4 * KiB };
    await make(files, { backing: { name: base, format: 'raw' }, options });
    await using disk = await open(files);
    expect(await disk.read(0, MiB)).toEqual(pattern(MiB));
    expect((await disk.info()).backing?.name).toBe(base);
  });

  it('leaves no file behind when it fails late', async () => {
    const files = withBase();
    const controller = new AbortController();
    const failing = new MemoryFiles({
      wrap: (node, name) => {
        if (name === 'dir/data.raw') controller.abort();
        return node;
      },
    });
    for (const [name, { content }] of files.files) failing.add(name, content);
    const made = make(failing, { backing: BACKING, options: { imageFile: 'data.raw' }, signal: controller.signal });
    expect((await failureOf(() => made)).code).toBe('ABORTED');
    expect(failing.names()).toEqual(['dir/base.img']);
    expect(failing.open).toEqual([]);
  });

  it('072: takes an image file of another format that is there (V20), and leaves it alone', async () => {
    const files = withBase();
    await createImage('dir/data.qcow2', { ...drivers(files), format: 'qcow2', size: MiB });
    const before = files.bytes('dir/data.qcow2');
    await make(files, { backing: BACKING, options: { imageFile: 'data.qcow2', imageFmt: 'qcow2' } });
    expect(files.bytes('dir/data.qcow2')).toEqual(before);
    const disk = await open(files, { readOnly: false });
    await disk.write(100 * KiB, filled(1000, 9));
    const wanted = pattern(MiB);
    wanted.fill(9, 100 * KiB, 100 * KiB + 1000);
    expect(await disk.read(0, MiB)).toEqual(wanted);
    await disk.close();
    await using again = await open(files);
    expect(await again.read(0, MiB)).toEqual(wanted);
    await using image = await openImage('dir/data.qcow2', drivers(files));
    expect(image.format).toBe('qcow2');
    expect(await image.read(64 * KiB, 64 * KiB)).toEqual(wanted.subarray(64 * KiB, 128 * KiB));
  });
});

describe('creating is refused', () => {
  const refused: readonly (readonly [string, Record<string, unknown>, string])[] = [
    ['A-012: v9 without an image file', { compat: 'v9', backingFile: 'b', backingFmt: 'raw' }, 'names'],
    ['A-012: v9 without a backing file', { compat: 'v9', imageFile: 'i' }, 'names'],
    ['V20 without an image file', { backingFile: 'b', backingFmt: 'raw' }, 'image-file'],
    ['clusters of 2 KiB', { imageFile: 'i', clusterSize: 2048 }, 'cluster-size'],
    ['clusters of 4 MiB', { imageFile: 'i', clusterSize: 4 * MiB }, 'cluster-size'],
    ['clusters that are no power of two', { imageFile: 'i', clusterSize: 12288 }, 'cluster-size'],
    ['v9 with other clusters', { compat: 'v9', imageFile: 'i', backingFile: 'b', clusterSize: 4096 }, 'cluster-size'],
    [
      'v9 with an image that is not raw',
      { compat: 'v9', imageFile: 'i', backingFile: 'b', imageFmt: 'qcow2' },
      'v9-format',
    ],
    ['an empty image name', { imageFile: '' }, 'image-name'],
    ['a NUL in a name', { imageFile: 'a\0b' }, 'image-name'],
    [
      'A-002: a v9 image name of 1024 bytes',
      { compat: 'v9', imageFile: 'é'.repeat(512), backingFile: 'b' },
      'image-name-long',
    ],
    [
      'A-002: a v9 backing name of 1024 bytes',
      { compat: 'v9', imageFile: 'i', backingFile: 'b'.repeat(1024) },
      'backing-name-long',
    ],
    ['a V20 name as large as the header', { imageFile: 'i'.repeat(4020), clusterSize: 4096 }, 'image-name-long'],
    [
      'V20 names that do not fit together',
      { imageFile: 'i'.repeat(2100), backingFile: 'b'.repeat(2100), clusterSize: 4096 },
      'names-space',
    ],
    [
      'a backing format of 16 bytes',
      { imageFile: 'i', backingFile: 'b', backingFmt: 'f'.repeat(16) },
      'backing-format',
    ],
    ['an image format of 16 bytes', { imageFile: 'i', imageFmt: 'f'.repeat(16) }, 'image-format'],
    ['an image format with a space', { imageFile: 'i', imageFmt: 'a b' }, 'image-format'],
    [
      'an image format that is not raw for an image that is not there',
      { imageFile: 'i', imageFmt: 'qcow2' },
      'image-format-new',
    ],
    ['two names that are the same', { imageFile: 'i', backingFile: 'i', backingFmt: 'raw' }, 'image-is-backing'],
    ['two sizes', { imageFile: 'i', size: 5 * MiB }, 'size-twice'],
  ];
  for (const [what, input, reason] of refused) {
    it(`for ${what}, and nothing is made`, async () => {
      const file = new MemoryStore();
      let made = 0;
      const context = contextOf(file, new MemoryStore());
      const counting = {
        ...context,
        createReference: (...asked: Parameters<CreateContext['createReference']>) => {
          made++;
          return context.createReference(...asked);
        },
      };
      const failure = await failureOf(() =>
        createAddCow(counting, MiB, resolveOptions(createOptions, input as OptionsInput<typeof createOptions>)),
      );
      expect(failure).toMatchObject({ code: 'OPTION', reason: `add-cow.${reason}` });
      expect(made).toBe(0);
      expect(file.size).toBe(0);
    });
  }

  it('for v9 in the words of its patch', async () => {
    const options = resolveOptions(createOptions, { compat: 'v9', imageFile: 'i' });
    const failure = await failureOf(() => createAddCow(contextOf(new MemoryStore(), new MemoryStore()), MiB, options));
    expect(failure.message).toContain('both backing_file and image_file should be given');
  });

  it('for an image file that is the backing file under another name', async () => {
    const files = withBase();
    files.link('dir/other', 'dir/base.img');
    const failure = await failureOf(() => make(files, { backing: BACKING, options: { imageFile: 'other' } }));
    expect(failure).toMatchObject({ code: 'OPTION', reason: 'add-cow.image-is-backing' });
    expect(files.bytes('dir/base.img')).toEqual(pattern(MiB));
    expect(files.names()).toEqual(['dir/base.img', 'dir/other']);
  });

  it('for an image file that is the add-cow file itself', async () => {
    const files = withBase();
    for (const there of [false, true]) {
      if (there) files.add('dir/new.add-cow', filled(100, 1));
      const failure = await failureOf(() => make(files, { backing: BACKING, options: { imageFile: 'new.add-cow' } }));
      expect(failure.code).toBe('OPTION');
      expect(failure.reason).toMatch(/^(create\.same-name|add-cow\.image-is-self)$/);
      expect(files.names()).toEqual(['dir/base.img', ...(there ? ['dir/new.add-cow'] : [])]);
    }
  });

  it('for an image file that is the add-cow file itself in another spelling, though neither is there yet', async () => {
    const options = { formats: FORMATS, protocols: [fileProtocol], size: MiB, format: addCow };
    const failure = await failureOf(() =>
      createImage(path('new.add-cow'), { ...options, options: { imageFile: './new.add-cow' } }),
    );
    expect(failure).toMatchObject({ code: 'OPTION', reason: 'add-cow.image-is-self' });
    expect(existsSync(path('new.add-cow'))).toBe(false);
  });
});

function contextOf(file: MemoryStore, image: MemoryStore): CreateContext {
  return {
    file,
    name: 'disk',
    createReference: () => Promise.resolve(image),
    secret: secretsOf(undefined),
    referenceStatus: () => Promise.resolve(undefined),
  };
}

describe('R11: convert', () => {
  it('writes into an add-cow image like into any other, with an image file that is named', async () => {
    for (const there of [false, true]) {
      const files = new MemoryFiles();
      const content = pattern(300 * KiB).fill(0, 100 * KiB, 230 * KiB);
      files.add('dir/base.img', content);
      if (there) files.add('dir/data.raw', filled(500 * KiB, STALE));
      const target = { name: 'dir/new.add-cow', format: 'add-cow', options: { imageFile: 'data.raw' } };
      await convertImage(['dir/base.img'], target, drivers(files));
      expect(files.names()).toEqual(['dir/base.img', 'dir/data.raw', 'dir/new.add-cow']);
      expect(files.bytes('dir/data.raw')).toEqual(content);
      await using disk = await open(files);
      expect(await disk.read(0, 300 * KiB)).toEqual(content);
    }
  });

  it('makes no image file of its own accord', async () => {
    const files = withBase(300 * KiB);
    const target = { name: 'dir/new.add-cow', format: 'add-cow' };
    expect((await failureOf(() => convertImage(['dir/base.img'], target, drivers(files)))).reason).toBe(
      'add-cow.image-file',
    );
    expect(files.names()).toEqual(['dir/base.img']);
  });

  it('reads an add-cow image', async () => {
    const files = withBase(300 * KiB);
    await make(files, { backing: BACKING, options: { imageFile: 'data.raw' } });
    const disk = await open(files, { readOnly: false });
    await disk.write(70 * KiB, filled(5000, 8));
    await disk.close();
    const target = { name: 'dir/out.qcow2', format: 'qcow2' };
    await convertImage(['dir/new.add-cow'], target, { ...drivers(files), references: 'allow' });
    const wanted = pattern(300 * KiB);
    wanted.fill(8, 70 * KiB, 70 * KiB + 5000);
    await using out = await openImage('dir/out.qcow2', drivers(files));
    expect(await out.read(0, 300 * KiB)).toEqual(wanted);
  });
});

describe('measure', () => {
  it('A-004: tells the length of the add-cow file, not of its image file', async () => {
    const measured = (virtualSize: number, input: OptionsInput<typeof createOptions>) =>
      addCow.measure?.(virtualSize, resolveOptions(createOptions, input));
    expect(await measured(TiB, { compat: 'v9' })).toEqual({ required: 2560 + 2 * MiB, fullyAllocated: 2560 + 2 * MiB });
    expect(await measured(TiB, {})).toEqual({ required: 64 * KiB + 2 * MiB, fullyAllocated: 64 * KiB + 2 * MiB });
    expect(await measured(1, { clusterSize: 4096 })).toEqual({ required: 8192, fullyAllocated: 8192 });
    expect(await measured(0, { compat: 'v9' })).toEqual({ required: 2560, fullyAllocated: 2560 });
    for (const compat of ['v9', 'v20'] as const) {
      const files = withBase();
      await make(files, { backing: BACKING, options: { compat, imageFile: 'data.raw' } });
      expect((await measured(MiB, { compat }))?.required).toBe(files.bytes('dir/new.add-cow').length);
    }
  });
});
