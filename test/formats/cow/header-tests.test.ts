import { describe, expect, it } from 'vitest';
import type { CowCandidate } from '../../../src/formats/cow/detect.ts';
import type { CowLayoutId } from '../../../src/formats/cow/layouts.ts';
import type { MemoryStore } from '../../../src/storage/memory.ts';
import { COW_IMAGE_LAYOUTS, cowAreas, cowImage } from '../../support/cow-image.ts';
import { detect, failure, MiB, NAMED, poke } from './detect-support.ts';

describe('the hard tests', () => {
  const spec = { size: MiB, ...NAMED } as const;
  const failedTest = async (file: MemoryStore, id: CowLayoutId) => {
    const { details } = await failure(detect(file));
    return (details['candidates'] as CowCandidate[]).find(({ layout }) => layout === id)?.failedTest;
  };

  it('H2: a name that ends, has no control characters, and is there for UML', async () => {
    const endless = cowImage({ layout: 'v2-uml-32', ...spec });
    void endless.write(8, new Uint8Array(4096).fill(0x61));
    expect(await failedTest(endless, 'v2-uml-32')).toBe('H2');
    expect(await failedTest(cowImage({ layout: 'v3', ...spec, backingName: '/a\x1fb' }), 'v3')).toBe('H2');
    expect(await failedTest(cowImage({ layout: 'v3', ...spec, backingName: '' }), 'v3')).toBe('H2');
    expect((await detect(cowImage({ layout: 'v2-qemu-i386', size: MiB, backingName: '', mtime: 0 }))).layout).toBe(
      'v2-qemu-i386',
    );
  });

  it('H3: a sector size that is a power of two from 512 to 65536, exactly 512 for QEMU', async () => {
    for (const size of [0n, 1n, 256n, 513n, 131072n, 0xffff_ffffn]) {
      expect(await failedTest(poke(cowImage({ layout: 'v3', ...spec }), 20, size, 4), 'v3')).toBe('H3');
    }
    const file = cowImage({ layout: 'v2-qemu-x86_64', ...spec });
    expect(await failedTest(poke(file, 1048, 1024n, 4), 'v2-qemu-x86_64')).toBe('H3');
    for (const sectorSize of [512, 1024, 65536]) {
      expect((await detect(cowImage({ layout: 'v3', ...spec, sectorSize }))).geometry.sectors).toBe(MiB / sectorSize);
    }
  });

  it('H3: a disk size that a number can say, in whole sectors for QEMU', async () => {
    for (const size of [2n ** 53n, 2n ** 63n, 2n ** 64n - 1n]) {
      expect(await failedTest(poke(cowImage({ layout: 'v3', ...spec }), 12, size, 8), 'v3')).toBe('H3');
    }
    const file = cowImage({ layout: 'v2-qemu-x86_64', ...spec });
    expect(await failedTest(poke(file, 1040, 1048577n, 8), 'v2-qemu-x86_64')).toBe('H3');
  });

  it('H4: a time whose upper half is zero', async () => {
    const file = cowImage({ layout: 'v1-le64', ...spec });
    expect(await failedTest(poke(file, 268, 1n, 4, true), 'v1-le64')).toBe('H4');
  });

  it('H5: an alignment that is a power of two up to 2^24, and bitmap format', async () => {
    for (const alignment of [0n, 3n, 4097n, 2n ** 25n, 2n ** 31n, 0xffff_ffffn]) {
      expect(await failedTest(poke(cowImage({ layout: 'v3', ...spec }), 24, alignment, 4), 'v3')).toBe('H5');
    }
    expect(await failedTest(poke(cowImage({ layout: 'v3', ...spec }), 28, 1n, 4), 'v3')).toBe('H5');
    for (const alignment of [1, 512, 8192, 65536, 2 ** 24]) {
      const found = await detect(cowImage({ layout: 'v3', ...spec, alignment }));
      expect(found.geometry.bitmapOffset).toBe(Math.ceil(4128 / alignment) * alignment);
    }
  });

  it('H6: a file that reaches past its bitmap, and not past its data', async () => {
    for (const layout of COW_IMAGE_LAYOUTS) {
      const { bitmapOffset, bitmapLength, dataOffset } = cowAreas({ layout, size: MiB });
      const of = (fileSize: number) => cowImage({ layout, ...spec, fileSize });
      for (const fits of [bitmapOffset + bitmapLength, dataOffset, dataOffset + MiB]) {
        expect((await detect(of(fits))).layout).toBe(layout);
      }
      for (const wrong of [bitmapOffset + bitmapLength - 1, dataOffset + MiB + 1]) {
        expect(await failedTest(of(wrong), layout), `${layout}, ${wrong}`).toBe('H6');
      }
    }
  });

  it('H7: bits of sectors that the disk has and the file reaches', async () => {
    for (const layout of COW_IMAGE_LAYOUTS) {
      const odd = { layout, ...spec, size: 513536 };
      const { dataOffset, sectors } = cowAreas(odd);
      // a bit for a sector behind the end of the file
      const short = cowImage({ ...odd, present: [10], fileSize: dataOffset + 10 * 512, data: () => undefined });
      expect(await failedTest(short, layout), layout).toBe('H7');
      const reached = cowImage({ ...odd, present: [10], fileSize: dataOffset + 10 * 512 + 1, data: () => undefined });
      expect((await detect(reached)).layout).toBe(layout);
      // a bit behind the last sector, in layouts whose bitmap has room for one
      if (cowAreas(odd).bitmapLength * 8 <= sectors) continue;
      const past = cowImage({ ...odd, present: [sectors], data: () => undefined, fileSize: dataOffset + 513536 });
      expect(await failedTest(past, layout), layout).toBe('H7');
      expect((await failure(detect(past))).message).toContain('the bitmap claims sector 1003 of 1003 (H7)');
    }
  });
});
