import { describe, expect, it } from 'vitest';
import { KiB } from '../../../src/base/sizes.ts';
import { addCow } from '../../../src/formats/add-cow/driver.ts';
import { qcow2 } from '../../../src/formats/qcow2/driver.ts';
import { raw } from '../../../src/formats/raw/driver.ts';
import { createImage } from '../../../src/image/create.ts';
import { type OpenImageOptions, openImage } from '../../../src/image/open.ts';
import { imageInfo } from '../../../src/tools/info.ts';
import { MemoryFiles } from '../../image/support/memory-protocol.ts';
import { STALE } from '../../support/add-cow-under-test.ts';
import { failureOf, filled, pattern } from './support.ts';

const SIZE = 300 * KiB;
const FORMATS = [qcow2, addCow, raw];

interface Names {
  readonly image: string;
  readonly backing?: string;
  readonly compat?: 'v9' | 'v20';
}

/** Files as another tool left them: an add-cow file with these names, whatever they mean. */
async function filesWith({ image, backing = 'base.img', compat = 'v20' }: Names): Promise<MemoryFiles> {
  const files = new MemoryFiles();
  files.add('dir/base.img', pattern(SIZE));
  const options = { compat, imageFile: 'x'.repeat(image.length) };
  const below = { name: 'y'.repeat(backing.length), format: 'raw' };
  const drivers = { formats: FORMATS, protocols: [files.protocol] };
  await createImage('dir/disk.add-cow', {
    ...drivers,
    format: addCow,
    size: SIZE,
    backing: below,
    backingUnchecked: true,
    options,
  });
  files.files.delete(`dir/${options.imageFile}`);
  files.add('dir/data.raw', filled(SIZE, STALE));
  const { content } = files.files.get('dir/disk.add-cow') ?? {};
  const bytes = files.bytes('dir/disk.add-cow');
  const text = new TextDecoder('latin1').decode(bytes);
  await content?.write(text.indexOf(options.imageFile), new TextEncoder().encode(image));
  await content?.write(text.indexOf(below.name), new TextEncoder().encode(backing));
  files.log.length = 0;
  return files;
}

function open(files: MemoryFiles, options: Partial<OpenImageOptions> = {}) {
  return openImage('dir/disk.add-cow', {
    formats: FORMATS,
    protocols: [files.protocol],
    references: 'allow',
    probeBacking: true,
    readOnly: false,
    ...options,
  });
}

for (const compat of ['v9', 'v20'] as const) {
  describe(`the files of an add-cow image, ${compat}`, () => {
    it('A-015: are found relative to the add-cow file', async () => {
      const files = await filesWith({ image: 'data.raw', compat });
      await using disk = await open(files);
      expect(await disk.read(0, SIZE)).toEqual(pattern(SIZE));
      expect(new Set(files.open)).toEqual(new Set(['dir/base.img', 'dir/data.raw', 'dir/disk.add-cow']));
      expect(disk.backingName).toBe('dir/base.img');
    });

    it('are all closed again', async () => {
      const files = await filesWith({ image: 'data.raw', compat });
      await (await open(files)).close();
      expect(files.open).toEqual([]);
      files.files.delete('dir/base.img');
      expect((await failureOf(() => open(files))).reason).toBe('image.backing');
      expect(files.open).toEqual([]);
    });

    it('a missing image file is told by name', async () => {
      const files = await filesWith({ image: 'gone.raw', compat });
      const failure = await failureOf(() => open(files));
      expect(failure).toMatchObject({ code: 'NOT_FOUND', reason: 'image.data-file' });
      expect(failure.message).toContain('"gone.raw"');
    });

    it('069: a missing backing file is told by name', async () => {
      const files = await filesWith({ image: 'data.raw', backing: 'gone.img', compat });
      const failure = await failureOf(() => open(files));
      expect(failure).toMatchObject({ code: 'NOT_FOUND', reason: 'image.backing' });
      expect(failure.message).toContain('"gone.img"');
    });

    it('R15: a backing name with a prefix before any slash is a protocol name', async () => {
      const files = await filesWith({ image: 'data.raw', backing: 'memory:base', compat });
      files.add('memory:base', pattern(SIZE));
      await using disk = await open(files);
      expect(await disk.read(0, 100)).toEqual(pattern(100));
      const unknown = await filesWith({ image: 'data.raw', backing: 'nbd:base', compat });
      expect((await failureOf(() => open(unknown))).reason).toBe('protocol.unknown');
      const plain = await filesWith({ image: 'data.raw', backing: './nbd:base', compat });
      plain.add('dir/./nbd:base', pattern(SIZE));
      await using other = await open(plain);
      expect(await other.read(0, 100)).toEqual(pattern(100));
    });

    it('R15: an image name is a file name, whatever it looks like', async () => {
      for (const image of ['memory:data', 'nbd:data', 'json:{}']) {
        const files = await filesWith({ image, compat });
        files.add(`dir/./${image}`, filled(SIZE, STALE));
        await using disk = await open(files);
        await disk.write(0, filled(10, 1));
        await disk.flush();
        expect(files.bytes(`dir/./${image}`)[0]).toBe(1);
      }
    });

    const same: readonly (readonly [string, Names, (files: MemoryFiles) => void, string])[] = [
      ['is the add-cow file', { image: 'disk.add-cow' }, () => undefined, 'image-is-self'],
      [
        'is the add-cow file under another name',
        { image: 'other' },
        (files) => files.link('dir/other', 'dir/disk.add-cow'),
        'image-is-self',
      ],
      ['is the backing file', { image: 'base.img' }, () => undefined, 'image-is-backing'],
      [
        'is the backing file under another name',
        { image: 'other' },
        (files) => files.link('dir/other', 'dir/base.img'),
        'image-is-backing',
      ],
      [
        'and the backing file are not there, and the same',
        { image: 'a', backing: 'a' },
        () => undefined,
        'image-is-backing',
      ],
    ];
    for (const [what, names, prepare, reason] of same) {
      it(`an image file that ${what} is refused, and nothing is written`, async () => {
        const files = await filesWith({ ...names, compat });
        prepare(files);
        const before = files.names().map((name) => files.bytes(name));
        const failure = await failureOf(() => open(files));
        expect(failure).toMatchObject({ code: 'CORRUPT', reason: `add-cow.${reason}` });
        expect(failure.message).toContain(`"${names.image}"`);
        expect(files.names().map((name) => files.bytes(name))).toEqual(before);
        expect(files.open).toEqual([]);
      });
    }

    it('an image file that is the backing file is refused though nobody may look at either', async () => {
      const files = await filesWith({ image: 'other', compat });
      files.link('dir/other', 'dir/base.img');
      const failure = await failureOf(() => open(files, { lookAt: 'deny' }));
      expect(failure.reason).toBe('add-cow.image-is-backing');
    });

    it('are opened only as far as the caller allows', async () => {
      const files = await filesWith({ image: 'data.raw', compat });
      expect((await failureOf(() => open(files, { references: 'deny' }))).reason).toBe('reference.denied');
      expect(files.log).toEqual(['open dir/disk.add-cow']);
    });

    it('may stay closed for the facts, if the image file can be looked at: it decides the size', async () => {
      const files = await filesWith({ image: 'data.raw', compat });
      const options = { formats: FORMATS, protocols: [files.protocol] };
      const failure = await failureOf(() => imageInfo('dir/disk.add-cow', options));
      expect(failure).toMatchObject({ code: 'REFERENCE_DENIED', reason: 'add-cow.image-unopened' });
      expect(failure.message).toContain('"data.raw"');
      const info = await imageInfo('dir/disk.add-cow', { ...options, lookAt: 'allow' });
      expect(info.virtualSize).toBe(SIZE);
      expect(info.specific?.data['allocated-clusters']).toBe(0);
      expect(files.log).not.toContain('open dir/data.raw');
    });

    it('another backing file than the recorded one can be chosen', async () => {
      const files = await filesWith({ image: 'data.raw', backing: 'gone.img', compat });
      await using disk = await open(files, { backing: { name: 'dir/base.img', format: 'raw' } });
      expect(await disk.read(0, SIZE)).toEqual(pattern(SIZE));
    });
  });
}

describe('the backing file of an add-cow image', () => {
  it('A-013: is probed for v9, which does not record its format, if the caller allows that', async () => {
    const files = await filesWith({ image: 'data.raw', compat: 'v9' });
    expect((await failureOf(() => open(files, { probeBacking: false }))).reason).toBe('reference.unprobed');
    files.files.delete('dir/base.img');
    await createImage('dir/base.img', { formats: FORMATS, protocols: [files.protocol], format: 'qcow2', size: SIZE });
    await using disk = await open(files);
    expect(await disk.read(0, SIZE)).toEqual(new Uint8Array(SIZE));
  });

  it('is opened as recorded by V20', async () => {
    const files = await filesWith({ image: 'data.raw' });
    await using disk = await open(files, { probeBacking: false });
    expect(await disk.read(0, 100)).toEqual(pattern(100));
  });

  it('R1: and image files of odd lengths are whole sectors, as raw disks are', async () => {
    const files = await filesWith({ image: 'data.raw' });
    files.add('dir/data.raw', filled(1000, STALE));
    files.add('dir/base.img', pattern(600));
    const disk = await open(files);
    expect(disk.virtualSize).toBe(1024);
    const wanted = new Uint8Array(1024);
    wanted.set(pattern(600));
    expect(await disk.read(0, 1024)).toEqual(wanted);
    await disk.write(1010, filled(5, 1));
    wanted.fill(1, 1010, 1015);
    await disk.close();
    await using again = await open(files);
    expect(await again.read(0, 1024)).toEqual(wanted);
  });

  it('072: may be an add-cow image itself', async () => {
    const files = await filesWith({ image: 'data.raw' });
    files.add('dir/top.raw', filled(SIZE, STALE));
    await createImage('dir/top.add-cow', {
      formats: FORMATS,
      protocols: [files.protocol],
      format: addCow,
      size: SIZE,
      backing: { name: 'disk.add-cow', format: 'add-cow' },
      backingUnchecked: true,
      options: { imageFile: 'top.raw', compat: 'v20' },
    });
    const middle = await open(files);
    await middle.write(1000, filled(10, 5));
    await middle.close();
    const options = { formats: FORMATS, protocols: [files.protocol], references: 'allow', readOnly: false } as const;
    await using top = await openImage('dir/top.add-cow', options);
    await top.write(70 * KiB, filled(10, 6));
    const wanted = pattern(SIZE)
      .fill(5, 1000, 1010)
      .fill(6, 70 * KiB, 70 * KiB + 10);
    expect(await top.read(0, SIZE)).toEqual(wanted);
  });
});

describe('changing the recorded backing file', () => {
  it('is read by the next who opens', async () => {
    for (const compat of ['v9', 'v20'] as const) {
      const files = await filesWith({ image: 'data.raw', compat });
      files.add('dir/copy.img', pattern(SIZE));
      const disk = await open(files);
      await disk.node.changeBacking({ name: 'copy.img', format: 'raw' });
      await disk.close();
      files.files.delete('dir/base.img');
      await using again = await open(files);
      expect(await again.read(0, SIZE)).toEqual(pattern(SIZE));
      const format = compat === 'v9' ? {} : { format: 'raw' };
      expect((await again.info()).backing).toEqual({ name: 'copy.img', ...format });
    }
  });

  it('to none lets what is not allocated read as zero, and stale bytes stay unseen', async () => {
    for (const compat of ['v9', 'v20'] as const) {
      const files = await filesWith({ image: 'data.raw', compat });
      const disk = await open(files);
      await disk.write(64 * KiB, filled(64 * KiB, 1));
      await disk.node.changeBacking(undefined);
      await disk.close();
      await using again = await open(files);
      expect((await again.info()).backing).toBeUndefined();
      expect(await again.read(0, SIZE)).toEqual(new Uint8Array(SIZE).fill(1, 64 * KiB, 128 * KiB));
    }
  });

  it('is refused where the name cannot be recorded, and nothing changes', async () => {
    const cases = [
      ['v9', { name: 'b'.repeat(1024) }, 'OPTION', 'backing-name-long'],
      ['v9', { name: '' }, 'OPTION', 'backing-name'],
      ['v20', { name: 'a\0b', format: 'raw' }, 'OPTION', 'backing-name'],
      ['v20', { name: 'b'.repeat(65536), format: 'raw' }, 'OPTION', 'backing-name-long'],
      ['v20', { name: 'b', format: 'f'.repeat(16) }, 'OPTION', 'backing-format'],
      ['v20', { name: 'b'.repeat(65300), format: 'raw' }, 'NO_SPACE', 'backing-name-space'],
    ] as const;
    for (const [compat, record, code, reason] of cases) {
      const files = await filesWith({ image: 'data.raw', backing: 'b'.repeat(500), compat });
      files.add(`dir/${'b'.repeat(500)}`, pattern(SIZE));
      await using disk = await open(files);
      const before = files.bytes('dir/disk.add-cow');
      expect(await failureOf(() => disk.node.changeBacking(record))).toMatchObject({
        code,
        reason: `add-cow.${reason}`,
      });
      expect(files.bytes('dir/disk.add-cow')).toEqual(before);
    }
  });

  it('of v9 from one long name to another is refused: one sector cannot hold both', async () => {
    const files = await filesWith({ image: 'data.raw', backing: 'b'.repeat(600), compat: 'v9' });
    files.add(`dir/${'b'.repeat(600)}`, pattern(SIZE));
    await using disk = await open(files);
    const failure = await failureOf(() => disk.node.changeBacking({ name: 'c'.repeat(600) }));
    expect(failure).toMatchObject({ code: 'NO_SPACE', reason: 'add-cow.backing-name-space' });
    await disk.node.changeBacking({ name: 'c'.repeat(499) });
    await disk.node.changeBacking({ name: 'c'.repeat(600) });
    expect((await disk.info()).backing?.name).toBe('c'.repeat(600));
  });
});
