import { describe, expect, it } from 'vitest';
import { isBlockError } from '../../../src/base/errors.ts';
import { explicitCow } from '../../../src/formats/cow/detect.ts';
import { COW_LAYOUT_IDS, COW_LAYOUTS, type CowLayoutId } from '../../../src/formats/cow/layouts.ts';
import { MemoryStore } from '../../../src/storage/memory.ts';
import { COW_IMAGE_LAYOUTS, cowAreas, cowImage } from '../../support/cow-image.ts';
import { GOLDEN, goldenCow, goldenStore } from '../../support/golden-cow.ts';
import { detect, failure, inputFor, MiB, NAMED, poke } from './detect-support.ts';

describe('explicitCow', () => {
  it('takes every golden image as what it is, without warnings', async () => {
    for (const image of GOLDEN.images) {
      const layout = image.layout as CowLayoutId;
      const found = await explicitCow(layout, inputFor(goldenStore(image.file)));
      expect(found).toMatchObject({ layout, why: 'named by the option layout' });
      expect(found.geometry).toEqual((await detect(goldenStore(image.file))).geometry);
      expect(found.warnings.length).toBe(layout === 'hybrid-v3-over-v2-32' ? 1 : 0);
      expect(found.candidates).toEqual([expect.objectContaining({ layout, passed: true })]);
    }
  });

  it('wins over what the file looks like', async () => {
    const file = goldenStore('v2-uml-32.cow');
    const found = await explicitCow('v2-qemu-i386', inputFor(poke(file, 1036, 4096n, 8)));
    expect(found.layout).toBe('v2-qemu-i386');
    expect(found.header.size).toBe(4096);
    expect(found.warnings).toEqual(['sector size 0, not 512', 'the file has 1053184 bytes, its data end at 5632']);
    expect(found.candidates[0]).toMatchObject({ passed: false, failedTest: 'H3', sectorSize: 0 });
  });

  it('reads a hybrid by the offsets that it is given', async () => {
    const { bitmapOffset, dataOffset } = goldenCow('hybrid-v3-over-v2-32.cow');
    const input = inputFor(goldenStore('hybrid-v3-over-v2-32.cow'));
    const found = await explicitCow('v3', input, { bitmapOffset, dataOffset });
    expect(found.geometry).toMatchObject({ bitmapOffset, dataOffset, bitmapLength: 256 });
    expect(found.warnings).toEqual(['bitmap or data begin inside the header of 4128 bytes']);
  });

  it('takes sectors of QEMU for what QEMU takes them', async () => {
    const file = cowImage({ layout: 'v2-qemu-i386', size: MiB, ...NAMED });
    poke(file, 1036, 1048577n, 8);
    poke(file, 1044, 4096n, 4);
    const found = await explicitCow('v2-qemu-i386', inputFor(file));
    expect(found.header).toMatchObject({ size: MiB, sectorSize: 512 });
    expect(found.geometry).toMatchObject({ sectors: 2048, dataOffset: 1536 });
    expect(found.warnings).toEqual(['sector size 4096, not 512', 'disk size 1048577, not a multiple of 512']);
  });

  it('warns of everything that detection would refuse', async () => {
    const warned = async (file: MemoryStore, layout: CowLayoutId) =>
      (await explicitCow(layout, inputFor(file))).warnings;
    const v3 = () => cowImage({ layout: 'v3', size: MiB, ...NAMED, present: [2047] });
    const endless = v3();
    void endless.write(32, new Uint8Array(4096).fill(0x61));
    expect(await warned(endless, 'v3')).toEqual(['the name of the backing file does not end inside its field']);
    expect(await warned(poke(v3(), 28, 7n, 4), 'v3')).toEqual(['format 7 of the data, not 0 (bitmap)']);
    const cut = v3();
    void cut.truncate(5000);
    expect(await warned(cut, 'v3')).toEqual(['the file has 5000 bytes, its bitmap ends at 8448']);
    const half = v3();
    void half.truncate(20000);
    expect(await warned(half, 'v3')).toEqual(['the bitmap claims sector 2047 at 0x102e00, the file ends at 0x4e20']);
    void half.truncate(8 * MiB);
    expect(await warned(half, 'v3')).toEqual(['the file has 8388608 bytes, its data end at 1060864']);
    const wide = poke(v3(), 24, 2n ** 25n, 4);
    expect((await warned(wide, 'v3'))[0]).toBe('alignment 33554432, more than 16777216');
  });

  it.each([
    ['sector size 0', 20, 0n, 4, 'CORRUPT', 'cow.sector-size'],
    ['sector size 1000', 20, 1000n, 4, 'CORRUPT', 'cow.sector-size'],
    ['sector size 256', 20, 256n, 4, 'CORRUPT', 'cow.sector-size'],
    ['alignment 0', 24, 0n, 4, 'CORRUPT', 'cow.alignment'],
    ['alignment 1000', 24, 1000n, 4, 'CORRUPT', 'cow.alignment'],
    ['size 2^53', 12, 2n ** 53n, 8, 'TOO_LARGE', 'cow.size'],
    ['size 2^64-1', 12, 2n ** 64n - 1n, 8, 'TOO_LARGE', 'cow.size'],
    ['data above 2^53', 12, 2n ** 53n - 512n, 8, 'TOO_LARGE', 'cow.offsets'],
    ['another version', 4, 2n, 4, 'WRONG_FORMAT', 'cow.other-version'],
    ['no known version', 4, 9n, 4, 'UNSUPPORTED', 'cow.version'],
    ['another magic', 0, 9n, 4, 'WRONG_FORMAT', 'cow.magic'],
  ] as const)('refuses %s, which nobody can read', async (_, at, value, width, code, reason) => {
    const file = poke(cowImage({ layout: 'v3', size: MiB, ...NAMED }), at, value, width);
    const error = await failure(explicitCow('v3', inputFor(file)));
    expect([error.code, error.reason]).toEqual([code, reason]);
    expect(error.message).toMatch(/^cow "a\.cow": /);
  });

  it('refuses areas that overlap', async () => {
    const input = inputFor(cowImage({ layout: 'v3', size: MiB, ...NAMED }));
    for (const at of [{ dataOffset: 8192 }, { dataOffset: 8447 }, { bitmapOffset: 20000, dataOffset: 8192 }]) {
      const error = await failure(explicitCow('v3', input, at));
      expect([error.code, error.reason]).toEqual(['OPTION', 'cow.overlap']);
    }
    expect((await explicitCow('v3', input, { dataOffset: 8448 })).geometry.dataOffset).toBe(8448);
    const behind = await explicitCow('v3', input, { bitmapOffset: 8192 + MiB, dataOffset: 8192 });
    expect(behind.geometry).toMatchObject({ bitmapOffset: 8192 + MiB, dataOffset: 8192 });
    const far = await failure(explicitCow('v3', input, { dataOffset: Number.MAX_SAFE_INTEGER }));
    expect(far.reason).toBe('cow.offsets');
  });
});

describe('damaged files', () => {
  const spec = { size: MiB, ...NAMED, present: [5, 100] };

  it('end in a typed error wherever they are cut off', async () => {
    for (const layout of COW_IMAGE_LAYOUTS) {
      const whole = cowImage({ layout, ...spec }).bytes();
      const { bitmapOffset, bitmapLength } = cowAreas({ layout, size: MiB });
      for (let length = 0; length <= 4200; length += length < 64 || length > 4090 ? 1 : 7) {
        const file = MemoryStore.from(whole.subarray(0, length));
        const found = await detect(file).catch((error: unknown) => error);
        if (isBlockError(found)) expect(found.reason).toMatch(/^cow\.(magic|version|no-layout)$/);
        else expect(length, layout).toBeGreaterThanOrEqual(bitmapOffset + bitmapLength);
        for (const id of COW_LAYOUT_IDS) {
          const named = await explicitCow(id, inputFor(file)).catch((error: unknown) => error);
          if (length < COW_LAYOUTS[id].headerSize) expect(isBlockError(named)).toBe(true);
          else expect(isBlockError(named) || (named as { layout: string }).layout === id).toBe(true);
        }
      }
    }
  });

  it('end in a typed error, or in areas that can be read, whatever a field says', async () => {
    const VALUES = [
      0n,
      1n,
      511n,
      512n,
      4096n,
      2n ** 24n,
      2n ** 31n,
      2n ** 32n - 1n,
      2n ** 41n,
      2n ** 53n - 1n,
      2n ** 53n,
      2n ** 64n - 1n,
    ];
    for (const layout of COW_IMAGE_LAYOUTS) {
      const { sizeAt, sectorSizeAt, alignmentAt, cowFormatAt, mtimeAt, littleEndian } = COW_LAYOUTS[layout];
      for (const [at, width] of [
        [sizeAt, 8],
        [sectorSizeAt, 4],
        [alignmentAt, 4],
        [cowFormatAt, 4],
        [mtimeAt, 4],
      ] as const) {
        if (at === undefined) continue;
        for (const value of VALUES) {
          const file = poke(cowImage({ layout, ...spec }), at, value % 2n ** BigInt(width * 8), width, littleEndian);
          for (const running of [detect(file), explicitCow(layout, inputFor(file))]) {
            const found = await running.catch((error: unknown) => error);
            if (isBlockError(found)) continue;
            const { geometry, header } = found as Awaited<ReturnType<typeof detect>>;
            const end = geometry.dataOffset + geometry.sectors * header.sectorSize;
            expect(Number.isSafeInteger(end)).toBe(true);
            expect(geometry.bitmapOffset + geometry.bitmapLength).toBeLessThanOrEqual(geometry.dataOffset);
          }
        }
      }
    }
  });
});
