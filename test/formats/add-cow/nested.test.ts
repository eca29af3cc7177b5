/** What QEMU's tests 069 and 072 ask of every format: a file that is missing is a clean error, and images lie inside images. */
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { createImage, type Image, openImage } from '../../../src/node.ts';
import { seededRandom } from '../../../src/testing/random.ts';
import { scratch } from '../../support/scratch.ts';

const SIZE = 1024 * 1024;
const CLUSTER = 65536;
const at = scratch();

function bytes(length: number, seed: number): Uint8Array {
  const random = seededRandom(seed);
  return Uint8Array.from({ length }, () => Math.floor(random() * 256));
}

const VERSIONS = ['v9', 'v20'] as const;

/** An add-cow over a base, with one cluster and a bit of its own. @returns what it reads as. */
async function make(name: string, compat: (typeof VERSIONS)[number]): Promise<Uint8Array> {
  const model = bytes(SIZE, 1);
  writeFileSync(at('base.img'), model);
  await createImage(at(name), {
    format: 'add-cow',
    backing: { name: 'base.img', format: 'raw' },
    options: { compat, imageFile: `${name}.raw` },
  });
  await using image = await openImage(at(name), {
    format: 'add-cow',
    readOnly: false,
    references: 'allow',
    probeBacking: true,
  });
  for (const [offset, length] of [
    [3 * CLUSTER, CLUSTER],
    [7 * CLUSTER + 100, 1000],
  ] as const) {
    const part = bytes(length, offset);
    await image.write(offset, part);
    model.set(part, offset);
  }
  return model;
}

async function readAll(image: Image): Promise<Uint8Array> {
  return await image.read(0, image.virtualSize);
}

describe('a file that is missing (069)', () => {
  it.each(VERSIONS)(
    'the backing file or the image file: an error that names both files; nothing is written, %s',
    async (compat) => {
      await make('a.add-cow', compat);
      const before = readFileSync(at('a.add-cow'));
      const image = readFileSync(at('a.add-cow.raw'));
      const open = (backing: string): Promise<Image> =>
        openImage(at('a.add-cow'), {
          readOnly: false,
          references: 'allow',
          backing: { name: at(backing), format: 'raw' },
        });
      await expect(open('gone.img')).rejects.toMatchObject({
        code: 'NOT_FOUND',
        reason: 'image.backing',
        message: expect.stringContaining(
          `"${at('a.add-cow')}": could not open backing file "${at('gone.img')}"`,
        ) as string,
      });
      expect(readFileSync(at('a.add-cow'))).toEqual(before);
      const renamed = at('b.add-cow');
      const patched = Buffer.from(before);
      patched.write('b.add-cow.raw', patched.indexOf('a.add-cow.raw'));
      writeFileSync(renamed, patched);
      await expect(
        openImage(renamed, { readOnly: false, references: 'allow', probeBacking: true }),
      ).rejects.toMatchObject({
        code: 'NOT_FOUND',
        reason: 'image.data-file',
        message: expect.stringContaining(`"${renamed}"`) as string,
      });
      expect(existsSync(at('b.add-cow.raw'))).toBe(false);
      expect(readFileSync(at('a.add-cow.raw'))).toEqual(image);
    },
  );
});

describe('images inside images (072)', () => {
  it.each(VERSIONS)('an add-cow file on the disk of a qcow2, its files beside it: %s', async (compat) => {
    const model = await make('c.add-cow', compat);
    const inner = readFileSync(at('c.add-cow'));
    await createImage(at('outer.qcow2'), { format: 'qcow2', size: 4 * SIZE });
    await using outer = await openImage(at('outer.qcow2'), { readOnly: false });
    await outer.write(0, inner);
    const nested = (readOnly: boolean): Promise<Image> =>
      openImage(outer.node, {
        format: 'add-cow',
        name: at('c.add-cow'),
        readOnly,
        references: 'allow',
        probeBacking: true,
      });
    const image = await nested(false);
    expect(await readAll(image)).toEqual(model);
    const part = bytes(5000, 99);
    await image.write(12 * CLUSTER - 2000, part);
    model.set(part, 12 * CLUSTER - 2000);
    await image.flush();
    expect(await readAll(image)).toEqual(model);
    // The bits went to the disk of the qcow2, not to the file of that name.
    expect(readFileSync(at('c.add-cow'))).toEqual(inner);
    const header = compat === 'v9' ? 2560 : CLUSTER;
    const [first = 0, second = 0] = await outer.read(header, 2);
    expect([first, second]).toEqual([(1 << 3) + (1 << 7), (1 << 3) + (1 << 4)]);
    await image.close();
  });

  it('a qcow2 as the image file, and a qcow2 on the disk of an add-cow', async () => {
    await createImage(at('data.qcow2'), { format: 'qcow2', size: SIZE });
    const model = bytes(SIZE, 2);
    writeFileSync(at('base2.img'), model);
    await createImage(at('d.add-cow'), {
      format: 'add-cow',
      size: SIZE,
      backing: { name: 'base2.img', format: 'raw' },
      options: { imageFile: 'data.qcow2', imageFmt: 'qcow2' },
    });
    const part = bytes(2 * CLUSTER, 3);
    {
      await using image = await openImage(at('d.add-cow'), { readOnly: false, references: 'allow' });
      await image.write(CLUSTER / 2, part);
      model.set(part, CLUSTER / 2);
      expect(await readAll(image)).toEqual(model);
    }
    {
      await using again = await openImage(at('d.add-cow'), { references: 'allow' });
      expect(await readAll(again)).toEqual(model);
    }

    await createImage(at('small.qcow2'), { format: 'qcow2', size: 4 * SIZE });
    {
      await using image = await openImage(at('small.qcow2'), { readOnly: false });
      await image.write(CLUSTER, part);
    }
    await using writer = await openImage(at('d.add-cow'), { readOnly: false, references: 'allow' });
    await writer.write(0, readFileSync(at('small.qcow2')));
    await using inner = await openImage(writer.node, { format: 'qcow2', name: 'inner' });
    expect(await inner.read(CLUSTER, part.length)).toEqual(part);
  });
});
