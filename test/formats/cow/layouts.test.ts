import { describe, expect, it } from 'vitest';
import {
  COW_LAYOUT_IDS,
  COW_LAYOUTS,
  CREATABLE_LAYOUT_IDS,
  geometryOf,
  layoutOf,
} from '../../../src/formats/cow/layouts.ts';
import { COW_IMAGE_LAYOUTS, cowAreas } from '../../support/cow-image.ts';
import { GOLDEN } from '../../support/golden-cow.ts';

const MiB = 1024 * 1024;

describe('the layouts of cow files', () => {
  // id, order, version, name (length), mtime, size, sector size, alignment, format, size of the header
  it.each([
    ['v1-le32', 'le', 1, 8, 256, 264, 268, 276, undefined, undefined, 280],
    ['v1-le64', 'le', 1, 8, 256, 264, 272, 280, undefined, undefined, 288],
    ['v1-be32', 'be', 1, 8, 256, 264, 272, 280, undefined, undefined, 288],
    ['v1-be64', 'be', 1, 8, 256, 268, 272, 280, undefined, undefined, 288],
    ['v2-uml-32', 'be', 2, 8, 4096, 4104, 4108, 4116, undefined, undefined, 4120],
    ['v2-uml-64', 'be', 2, 8, 4096, 4104, 4112, 4120, undefined, undefined, 4128],
    ['v2-uml-lp64long', 'be', 2, 16, 4096, 4112, 4120, 4128, undefined, undefined, 4136],
    ['v2-qemu-i386', 'be', 2, 8, 1024, 1032, 1036, 1044, undefined, undefined, 1048],
    ['v2-qemu-x86_64', 'be', 2, 8, 1024, 1032, 1040, 1048, undefined, undefined, 1056],
    ['v3', 'be', 3, 32, 4096, 8, 12, 20, 24, 28, 4128],
    ['v3-broken', 'be', 3, 36, 4096, 8, 16, 24, 28, 32, 4136],
    // The new name may not reach the old bitmap, which begins at 4120.
    ['hybrid-v3-over-v2-32', 'be', 3, 32, 4088, 8, 12, 20, 24, 28, 4120],
  ] as const)('have the fields of %s where the table has them', (id, order, ...row) => {
    const layout = layoutOf(id);
    expect(layout.id).toBe(id);
    expect(layout.littleEndian).toBe(order === 'le');
    expect([
      layout.version,
      layout.nameAt,
      layout.nameLength,
      layout.mtimeAt,
      layout.sizeAt,
      layout.sectorSizeAt,
      layout.alignmentAt,
      layout.cowFormatAt,
      layout.headerSize,
    ]).toEqual(row);
  });

  it('number their bits in bytes, but for the two of big-endian hosts', () => {
    const others = COW_LAYOUT_IDS.filter((id) => COW_LAYOUTS[id].wordBytes !== 1);
    expect(others.map((id) => [id, COW_LAYOUTS[id].wordBytes])).toEqual([
      ['v1-be32', 4],
      ['v1-be64', 8],
    ]);
  });

  it('can all be created but the hybrid', () => {
    expect(COW_LAYOUT_IDS.filter((id) => !(CREATABLE_LAYOUT_IDS as readonly string[]).includes(id))).toEqual([
      'hybrid-v3-over-v2-32',
    ]);
    expect(Object.keys(COW_LAYOUTS)).toEqual([...COW_LAYOUT_IDS]);
  });

  it('keep their fields inside the header and apart from each other', () => {
    for (const layout of Object.values(COW_LAYOUTS)) {
      const fields: [number, number][] = [
        [0, layout.identityWidth],
        [layout.identityWidth, layout.identityWidth],
        [layout.nameAt, layout.nameLength],
        [layout.mtimeAt, 4],
        [layout.sizeAt, 8],
        [layout.sectorSizeAt, 4],
      ];
      for (const at of [layout.mtimeUpperAt, layout.alignmentAt, layout.cowFormatAt]) {
        if (at !== undefined) fields.push([at, 4]);
      }
      fields.sort(([a], [b]) => a - b);
      let end = 0;
      for (const [at, length] of fields) {
        expect(at, layout.id).toBeGreaterThanOrEqual(end);
        end = at + length;
      }
      expect(end, layout.id).toBeLessThanOrEqual(layout.headerSize);
    }
  });
});

describe('geometryOf', () => {
  it.each([
    ['v1-le32', undefined, 280, 256, 1024],
    ['v1-le64', undefined, 288, 256, 1024],
    ['v1-be32', undefined, 288, 256, 1024],
    ['v1-be64', undefined, 288, 256, 1024],
    ['v2-uml-32', undefined, 4120, 256, 4608],
    ['v2-uml-64', undefined, 4128, 256, 4608],
    ['v2-uml-lp64long', undefined, 4136, 256, 4608],
    ['v2-qemu-i386', undefined, 1048, 256, 1536],
    ['v2-qemu-x86_64', undefined, 1056, 256, 1536],
    ['v3', 4096, 8192, 256, 12288],
    ['v3', 512, 4608, 256, 5120],
    ['v3', 65536, 65536, 256, 131072],
    ['v3-broken', 4096, 8192, 256, 12288],
    ['v3-broken', 512, 4608, 256, 5120],
    ['hybrid-v3-over-v2-32', 512, 4120, 256, 4608],
  ] as const)(
    'puts %s with alignment %s for 1 MiB at %i, %i, %i',
    (id, alignment, bitmapOffset, bitmapLength, dataOffset) => {
      const geometry = geometryOf(layoutOf(id), { size: MiB, sectorSize: 512, alignment });
      expect(geometry).toEqual({ bitmapOffset, bitmapLength, dataOffset, sectors: 2048, storedBits: 2048 });
    },
  );

  it('agrees with every golden image', () => {
    for (const image of GOLDEN.images) {
      const layout = layoutOf(image.layout as keyof typeof COW_LAYOUTS);
      const { virtualSize: size, sectorSize, alignment } = image;
      expect(geometryOf(layout, { size, sectorSize, alignment: alignment ?? undefined }), image.file).toMatchObject({
        bitmapOffset: image.bitmapOffset,
        bitmapLength: image.bitmapLength,
        dataOffset: image.dataOffset,
      });
    }
  });

  it.each([
    ['v1-le32', 125, 1000],
    ['v2-uml-32', 125, 1000],
    ['v2-uml-lp64long', 125, 1000],
    ['hybrid-v3-over-v2-32', 125, 1000],
    // 31 words of 4 bytes, 15 of 8
    ['v1-be32', 125, 992],
    ['v1-be64', 125, 960],
    ['v2-qemu-i386', 126, 1003],
    ['v2-qemu-x86_64', 126, 1003],
    ['v3', 126, 1003],
    ['v3-broken', 126, 1003],
  ] as const)('gives %s a bitmap of %i bytes and %i bits for 1003 sectors', (id, bitmapLength, storedBits) => {
    const geometry = geometryOf(layoutOf(id), { size: 1003 * 512, sectorSize: 512, alignment: 512 });
    expect(geometry).toMatchObject({ bitmapLength, sectors: 1003, storedBits });
  });

  it('counts a partial last sector for UML, and not for QEMU', () => {
    const input = { size: 7 * 512 + 1, sectorSize: 512, alignment: 4096 };
    expect(geometryOf(COW_LAYOUTS['v3'], input)).toMatchObject({ sectors: 8, bitmapLength: 1, storedBits: 8 });
    expect(geometryOf(COW_LAYOUTS['v2-uml-32'], input)).toMatchObject({ sectors: 8, bitmapLength: 1, storedBits: 8 });
    expect(geometryOf(COW_LAYOUTS['v2-qemu-i386'], input)).toMatchObject({
      sectors: 7,
      bitmapLength: 1,
      storedBits: 7,
    });
  });

  it('goes by the recorded sector size for UML, and by 512 for QEMU', () => {
    const input = { size: MiB, sectorSize: 4096, alignment: 4096 };
    expect(geometryOf(COW_LAYOUTS['v2-uml-32'], input)).toEqual({
      bitmapOffset: 4120,
      bitmapLength: 32,
      dataOffset: 8192,
      sectors: 256,
      storedBits: 256,
    });
    expect(geometryOf(COW_LAYOUTS['v2-qemu-i386'], input)).toMatchObject({ bitmapLength: 256, dataOffset: 1536 });
  });

  it('is exact up to the largest disk that a number can say', () => {
    for (const layout of COW_IMAGE_LAYOUTS) {
      for (const size of [2 ** 53 - 512, 2 ** 52 + 4096 * 3, 2 ** 43, 0, 512]) {
        const areas = cowAreas({ layout, size, alignment: 4096 });
        expect(geometryOf(layoutOf(layout), { size, sectorSize: 512, alignment: 4096 }), layout).toMatchObject(areas);
      }
    }
    const last = geometryOf(COW_LAYOUTS['v2-uml-32'], { size: 2 ** 53 - 1, sectorSize: 512, alignment: undefined });
    expect(last.sectors).toBe(2 ** 44);
    expect(last.bitmapLength).toBe(2 ** 41);
  });

  it('puts the areas where it is told, the data behind a bitmap that was moved', () => {
    const input = { size: MiB, sectorSize: 512, alignment: 512 };
    expect(geometryOf(COW_LAYOUTS['v3'], input, { bitmapOffset: 4120 })).toMatchObject({
      bitmapOffset: 4120,
      dataOffset: 4608,
    });
    expect(geometryOf(COW_LAYOUTS['v3'], input, { bitmapOffset: 300, dataOffset: 70000 })).toMatchObject({
      bitmapOffset: 300,
      dataOffset: 70000,
    });
  });
});
