/** The images that UML kernels and old QEMUs have left: each is read right, told right, and can be written to in the layout that it has. */
import { createHash } from 'node:crypto';
import { describe, expect, it } from 'vitest';
import type { ImageEvent } from '../../../src/core/format.ts';
import type { Image } from '../../../src/image/image.ts';
import type { OpenImageOptions } from '../../../src/image/open.ts';
import { below, noise, seededRandom } from '../../../src/testing/random.ts';
import { checkImage } from '../../../src/tools/check.ts';
import { imageInfo } from '../../../src/tools/info.ts';
import { CowFiles } from '../../support/cow-files.ts';
import { readAll } from '../../support/cow-under-test.ts';
import { GOLDEN, type GoldenCow, goldenBytes } from '../../support/golden-cow.ts';

const IMAGES = GOLDEN.images.map((image) => [image.file, image] as const);

const sha256 = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex');

/** The image and its base. */
function filesOf({ file, base }: GoldenCow): CowFiles {
  const files = new CowFiles();
  files.put(file, goldenBytes(file));
  if (base !== null) files.put(base, goldenBytes(base), GOLDEN.bases[base]?.mtime);
  return files;
}

function opening({ base }: GoldenCow, options: Partial<OpenImageOptions> = {}): Partial<OpenImageOptions> {
  return { ...(base === null ? {} : { backing: { name: base, format: 'raw' } }), ...options };
}

const open = (files: CowFiles, golden: GoldenCow, options: Partial<OpenImageOptions> = {}): Promise<Image> =>
  files.image(golden.file, opening(golden, options));

/** Sectors without a bit of their own. */
function tailOf({ layout, virtualSize, bitmapLength }: GoldenCow): number {
  return /^v1|^v2-uml|^hybrid/.test(layout) ? Math.ceil(virtualSize / 512) - 8 * bitmapLength : 0;
}

describe('a golden image', () => {
  it.each(IMAGES)('%s, found without an option, reads to what its maker read', async (_file, golden) => {
    const events: ImageEvent[] = [];
    const image = await open(filesOf(golden), golden, { onEvent: (event) => events.push(event) });
    expect([image.format, image.virtualSize]).toEqual(['cow', golden.virtualSize]);
    expect(sha256(await readAll(image.node))).toBe(golden.mergedSha256Strict ?? golden.mergedSha256);
    const reasons = events.map((event) => (event.type === 'warning' ? event.reason : event.type));
    const tail = golden.mergedSha256Strict === undefined ? [] : ['cow.tail'];
    expect(reasons).toEqual(golden.layout.startsWith('hybrid') ? ['cow.header'] : tail);
    await image.close();
  });

  it.each(IMAGES)(
    '%s, with tail=lenient, reads the last sectors by the byte behind the bitmap',
    async (_file, golden) => {
      const events: ImageEvent[] = [];
      const image = await open(filesOf(golden), golden, {
        options: { tail: 'lenient' },
        onEvent: (event) => events.push(event),
      });
      expect(sha256(await readAll(image.node))).toBe(golden.mergedSha256);
      expect(events).toHaveLength(golden.layout.startsWith('hybrid') ? 1 : 0);
      await image.close();
    },
  );

  it.each(IMAGES)('%s has the sectors that were written to it, and no others', async (_file, golden) => {
    await using image = await open(filesOf(golden), golden);
    const sectors: number[] = [];
    for await (const { start, length, depth, hostOffset, present } of image.extents()) {
      if (depth > 0 || !present) continue;
      expect(hostOffset).toBe(golden.dataOffset + start);
      for (let at = start; at < start + length; at += 512) sectors.push(at / 512);
    }
    expect(sectors).toEqual(golden.changedSectorsStrict ?? golden.changedSectors);
  });

  it.each(IMAGES)('%s tells its layout, areas and base', async (_file, golden) => {
    const files = filesOf(golden);
    const { layout, storedBackingName, bitmapOffset, dataOffset, mtime, base } = golden;
    // As `info` does it: the base is not opened, but looked at.
    const info = await imageInfo(golden.file, { ...files.drivers, ...opening(golden) });
    expect(info.backing?.name).toBe(storedBackingName || undefined);
    expect(info.specific?.type).toBe('cow');
    const time = new Date(mtime * 1000).toISOString().replace('.000', '');
    const size = GOLDEN.bases[base ?? '']?.size;
    expect(info.specific?.data).toMatchObject({
      layout,
      'sector-size': 512,
      'bitmap-offset': bitmapOffset,
      'data-offset': dataOffset,
      ...(base === null
        ? {}
        : {
            'backing-mtime-recorded': time,
            'backing-mtime': time,
            'backing-size': size,
            'backing-as-recorded': 'yes',
          }),
    });
    expect(String(info.specific?.data['layout-chosen'])).not.toBe('');
    expect(files.log.filter((line) => line !== `open ${golden.file}`)).toEqual([]);
  });

  it.each(IMAGES)('%s passes its check, which counts its sectors', async (_file, golden) => {
    const files = filesOf(golden);
    const told: string[] = [];
    const { result } = await checkImage(golden.file, {
      ...files.drivers,
      ...opening(golden),
      onFinding: ({ reason }) => told.push(reason),
    });
    const { changedSectorsStrict, changedSectors, virtualSize } = golden;
    expect({ told, ...result }).toMatchObject({
      told: [],
      corruptions: 0,
      leaks: 0,
      checkErrors: 0,
      totalClusters: Math.ceil(virtualSize / 512),
      allocatedClusters: (changedSectorsStrict ?? changedSectors).length,
    });
  });

  it.each(IMAGES)('%s is written in its own layout, header and gaps untouched', async (_file, golden) => {
    const files = filesOf(golden);
    const before = goldenBytes(golden.file);
    const random = seededRandom(golden.file.length);
    let image = await open(files, golden, { readOnly: false });
    const model = await readAll(image.node);
    const writable = golden.virtualSize - tailOf(golden) * 512;
    for (let i = 0; i < 80; i++) {
      const length = 1 + below(random, i % 4 === 0 ? 9000 : 700);
      // The first sector, and the last that can be written, whole and in part.
      const at = i === 0 ? 0 : i === 1 ? writable - length : below(random, writable - length + 1);
      const kind = below(random, 6);
      if (kind === 0) {
        await image.writeZeroes(at, length, { unmap: i % 2 === 0 });
        model.fill(0, at, at + length);
      } else {
        const bytes = noise(random, length);
        await image.write(at, bytes);
        model.set(bytes, at);
      }
      if (i % 20 === 7) await image.flush();
    }
    expect(await readAll(image.node)).toEqual(model);
    await image.close();
    image = await open(files, golden);
    expect(await readAll(image.node)).toEqual(model);
    expect((await image.info()).specific?.data).toMatchObject({ layout: golden.layout });
    await image.close();

    const after = files.bytes(golden.file);
    const { bitmapOffset, bitmapLength, dataOffset } = golden;
    expect(after.subarray(0, bitmapOffset)).toEqual(before.subarray(0, bitmapOffset));
    const behind = (bytes: Uint8Array): string =>
      Buffer.from(bytes.subarray(bitmapOffset + bitmapLength, dataOffset)).toString('hex');
    expect(behind(after).replace(/(00)+$/, '')).toBe(behind(before).replace(/(00)+$/, ''));
    expect(after.length).toBeLessThanOrEqual(
      Math.max(before.length, dataOffset + Math.ceil(golden.virtualSize / 512) * 512),
    );
    if (golden.base !== null) expect(sha256(files.bytes(golden.base))).toBe(GOLDEN.bases[golden.base]?.sha256);
  });

  it.each(IMAGES.filter(([, golden]) => tailOf(golden) > 0))(
    '%s refuses writes to the sectors that have no bit, and lenient writing',
    async (_file, golden) => {
      const files = filesOf(golden);
      const image = await open(files, golden, { readOnly: false });
      const first = golden.virtualSize - tailOf(golden) * 512;
      const refused = {
        code: 'UNSUPPORTED',
        reason: 'cow.tail',
        details: { layout: golden.layout, size: golden.virtualSize },
      };
      for (const offset of [first, golden.virtualSize - 1]) {
        await expect(image.write(offset, Uint8Array.of(1))).rejects.toMatchObject(refused);
        await expect(image.writeZeroes(offset, 1)).rejects.toMatchObject(refused);
      }
      await expect(image.writeZeroes(first, golden.virtualSize - first)).rejects.toMatchObject(refused);
      await image.discard(first, golden.virtualSize - first);
      await image.close();
      expect(files.bytes(golden.file)).toEqual(goldenBytes(golden.file));
      await expect(open(files, golden, { readOnly: false, options: { tail: 'lenient' } })).rejects.toMatchObject({
        code: 'OPTION',
        reason: 'cow.tail-write',
      });
    },
  );
});
