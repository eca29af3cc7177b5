/** What QEMU's tests 069 and 072 ask of every format: a backing file that is missing is a clean error, and images lie inside images. */
import { utimesSync, writeFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { createCodecs } from '../../../src/codec/create.ts';
import { createImage } from '../../../src/image/create.ts';
import type { Image } from '../../../src/image/image.ts';
import { openImage } from '../../../src/image/open.ts';
import { fileProtocol } from '../../../src/storage/file.ts';
import { checkImage } from '../../../src/tools/check.ts';
import { convertImage } from '../../../src/tools/convert.ts';
import { imageInfo } from '../../../src/tools/info.ts';
import { CowFiles, FORMATS } from '../../support/cow-files.ts';
import { cowImage } from '../../support/cow-image.ts';
import { BASE_MTIME, pattern, readAll } from '../../support/cow-under-test.ts';
import { scratch } from '../../support/scratch.ts';

const KiB = 1024;
const MiB = 1024 * KiB;
const at = scratch();

describe('a backing file that is missing (069)', () => {
  it.each(['v3', 'v1-le32', 'v2-uml-64', 'v2-qemu-x86_64'] as const)(
    'is an error that names both files, and leaves nothing open: %s',
    async (layout) => {
      const files = new CowFiles();
      const image = cowImage({ layout, size: MiB, backingName: '/images/gone.img', mtime: BASE_MTIME, present: [1] });
      files.put('/images/a.cow', image.bytes());
      for (const readOnly of [true, false]) {
        const opening = files.image('/images/a.cow', { references: 'allow', probeBacking: true, readOnly });
        await expect(opening).rejects.toMatchObject({
          code: 'NOT_FOUND',
          reason: 'image.backing',
          message: expect.stringMatching(
            /^"\/images\/a.cow": could not open backing file "\/images\/gone.img": could not open "\/images\/gone.img"/,
          ) as string,
          details: { name: '/images/gone.img', file: '/images/a.cow', errno: 'ENOENT' },
        });
        expect(files.open).toEqual([]);
      }
      expect(files.bytes('/images/a.cow')).toEqual(image.bytes());
    },
  );

  it('is one in the file system as well', async () => {
    const image = cowImage({ layout: 'v3', size: MiB, backingName: at('gone.img'), mtime: BASE_MTIME });
    writeFileSync(at('a.cow'), image.bytes());
    const options = { formats: FORMATS, protocols: [fileProtocol], references: 'allow' } as const;
    await expect(openImage(at('a.cow'), options)).rejects.toMatchObject({
      code: 'NOT_FOUND',
      reason: 'image.backing',
      message: expect.stringContaining(`"${at('a.cow')}": could not open backing file "${at('gone.img')}"`) as string,
    });
  });

  it('keeps nobody from its facts, its check, this layer alone, and another base', async () => {
    const files = new CowFiles();
    const spec = { layout: 'v3', size: MiB, backingName: '/images/gone.img', mtime: BASE_MTIME, present: [1] } as const;
    files.put('/images/a.cow', cowImage(spec).bytes());
    const info = await imageInfo('/images/a.cow', { ...files.drivers, lookAt: 'allow' });
    expect(info).toMatchObject({ virtualSize: MiB, backing: { name: '/images/gone.img' } });
    expect(info.specific?.data['backing-as-recorded']).toBe('not known');
    const told: string[] = [];
    const { result } = await checkImage('/images/a.cow', {
      ...files.drivers,
      references: 'allow',
      onFinding: ({ kind, reason }) => told.push(`${kind} ${reason}`),
    });
    expect(result.corruptions).toBe(0);
    expect(told).toEqual(['note cow.backing-unseen']);
    await using alone = await files.image('/images/a.cow', { references: 'layer-only' });
    expect(await alone.read(512, 8)).toEqual(new TextEncoder().encode('sector 1'));
    files.put('/elsewhere/base.img', pattern(MiB), BASE_MTIME);
    await using other = await files.image('/images/a.cow', { backing: { name: '/elsewhere/base.img', format: 'raw' } });
    expect((await readAll(other.node)).subarray(1024)).toEqual(pattern(MiB).subarray(1024));
  });
});

describe('an image inside an image (072)', () => {
  /** `outer` holds, as its guest's data, an image of the other format. */
  async function nest(files: CowFiles, outer: 'cow' | 'qcow2', inner: 'cow' | 'qcow2'): Promise<Uint8Array> {
    const model = pattern(256 * KiB, 6);
    model.fill(0, 64 * KiB, 128 * KiB);
    files.put('content.raw', model);
    await convertImage(['content.raw'], { name: `content.${inner}`, format: inner }, files.drivers);
    // Only raw shows an image as bytes.
    await convertImage(
      [{ name: `content.${inner}`, format: 'raw' }],
      { name: `nested.${outer}`, format: outer, options: { size: MiB } },
      files.drivers,
    );
    return model;
  }

  it.each([
    ['cow', 'qcow2'],
    ['qcow2', 'cow'],
    ['cow', 'cow'],
  ] as const)('a %s whose guest data are a %s is opened through its node, read and written', async (outer, inner) => {
    const files = new CowFiles();
    const model = await nest(files, outer, inner);
    const open = async (readOnly: boolean) => {
      const below = await files.image(`nested.${outer}`, { format: outer, readOnly });
      const options = { ...files.drivers, format: inner, readOnly, options: namedLayout(inner) };
      return { below, nested: await openImage(below.node, options) };
    };
    const first = await open(false);
    expect(first.nested.virtualSize).toBe(model.length);
    expect(await readAll(first.nested.node)).toEqual(model);
    await first.nested.write(70_000, pattern(9000, 2));
    model.set(pattern(9000, 2), 70_000);
    await first.nested.writeZeroes(1000, 700);
    model.fill(0, 1000, 1700);
    await first.nested.close();
    await first.below.close();
    const second = await open(true);
    expect(await readAll(second.nested.node)).toEqual(model);
    const { corruptions, checkErrors } = await second.nested.check();
    expect({ corruptions, checkErrors }).toEqual({ corruptions: 0, checkErrors: 0 });
    await second.nested.close();
    await second.below.close();
    // What probing sees is the outer image, and reading it gives the inner one's bytes.
    await using probed = await files.image(`nested.${outer}`);
    expect(probed.format).toBe(outer);
    expect((await probed.read(0, 4)).join()).toBe(inner === 'cow' ? '79,79,79,77' : '81,70,73,251');
  });

  /** The file that a nested image sees ends with the outer disk: too long for a cow of that size, which only its owner can know. */
  function namedLayout(inner: string): Record<string, unknown> {
    return inner === 'cow' ? { layout: 'v2-qemu-x86_64' } : {};
  }

  it('a cow is found inside a qcow2 whose disk is exactly as long as the cow', async () => {
    const files = new CowFiles();
    const image = cowImage({ layout: 'v2-qemu-i386', size: MiB, backingName: '', mtime: 0, present: [5, 2047] });
    files.put('inner.raw', image.bytes());
    await convertImage([{ name: 'inner.raw', format: 'raw' }], { name: 'outer.qcow2', format: 'qcow2' }, files.drivers);
    await using outer = await files.image('outer.qcow2');
    await using inner = await openImage(outer.node, { ...files.drivers, codecs: createCodecs({ workers: 0 }) });
    expect(inner.format).toBe('cow');
    expect(await inner.read(2047 * 512, 11)).toEqual(new TextEncoder().encode('sector 2047'));
  });

  it('a qcow2 backed by a cow backed by a raw file shows all three', async () => {
    const files = new CowFiles();
    files.put('/images/base.img', pattern(MiB), BASE_MTIME);
    await files.create('/images/mid.cow', { backing: { name: 'base.img', format: 'raw' } });
    {
      await using image = await files.image('/images/mid.cow', { references: 'allow', readOnly: false });
      await image.write(300 * KiB, pattern(3000, 3));
    }
    await files.create('/images/top.qcow2', { format: 'qcow2', backing: { name: 'mid.cow', format: 'cow' } });
    await using top = await files.image('/images/top.qcow2', { references: 'allow', readOnly: false });
    await top.write(101 * KiB, pattern(500, 4));
    const model = pattern(MiB);
    model.set(pattern(3000, 3), 300 * KiB);
    model.set(pattern(500, 4), 101 * KiB);
    expect(await readAll(top.node)).toEqual(model);
    const depths = new Set<number>();
    for await (const { depth } of top.extents()) depths.add(depth);
    expect([...depths].sort()).toEqual([0, 1, 2]);
  });
});

describe('in the file system', () => {
  it('a base that was changed is noticed by its time', async () => {
    writeFileSync(at('base.img'), pattern(MiB));
    utimesSync(at('base.img'), BASE_MTIME, BASE_MTIME);
    const options = { formats: FORMATS, protocols: [fileProtocol], references: 'allow' } as const;
    await createImage(at('b.cow'), { ...options, format: 'cow', backing: { name: 'base.img', format: 'raw' } });
    {
      await using image = await openImage(at('b.cow'), { ...options, readOnly: false });
      await image.write(0, pattern(512, 9));
      expect((await image.info()).backing?.name).toBe(at('base.img'));
    }
    utimesSync(at('base.img'), BASE_MTIME + 1, BASE_MTIME + 1);
    await expect(openImage(at('b.cow'), { ...options, readOnly: false })).rejects.toMatchObject({
      reason: 'cow.mismatch',
    });
    await using image = await openImage(at('b.cow'), options);
    expect(await image.read(0, 512)).toEqual(pattern(512, 9));
  });

  it.each(['v2-qemu-x86_64', 'v3'] as const)(
    'a cow that is zeroed and discarded behind its end is found again, and reads as it should: %s',
    async (layout) => {
      const options = { formats: FORMATS, protocols: [fileProtocol], references: 'allow', probeBacking: true } as const;
      writeFileSync(at('under.img'), pattern(MiB));
      const name = at(`${layout}.cow`);
      await createImage(name, {
        ...options,
        format: 'cow',
        backing: { name: 'under.img', format: 'raw' },
        options: { layout },
      });
      const model = pattern(MiB);
      const act = async (change: (image: Image) => Promise<void>): Promise<void> => {
        {
          await using image = await openImage(name, { ...options, readOnly: false });
          await change(image);
        }
        await using image = await openImage(name, options);
        expect(image.format).toBe('cow');
        expect(await readAll(image.node)).toEqual(model);
      };
      await act((image) => image.discard(300 * KiB, 8 * KiB).then(() => void model.fill(0, 300 * KiB, 308 * KiB)));
      await act((image) =>
        image.writeZeroes(500 * KiB, 5000).then(() => void model.fill(0, 500 * KiB, 500 * KiB + 5000)),
      );
      await act(async (image) => {
        await image.writeZeroes(MiB - 512, 512, { unmap: true });
        model.fill(0, MiB - 512);
        await image.write(MiB - 1024, pattern(700, 3));
        model.set(pattern(700, 3), MiB - 1024);
      });
      await act(async (image) => {
        await image.discard(0, MiB);
        model.fill(0);
      });
      const { result } = await checkImage(name, options);
      expect(result).toMatchObject({ corruptions: 0, checkErrors: 0 });
    },
  );
});
