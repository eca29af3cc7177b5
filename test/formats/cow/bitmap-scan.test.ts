import { describe, expect, it } from 'vitest';
import { type CowCandidate, detectCow } from '../../../src/formats/cow/detect.ts';
import type { MemoryStore } from '../../../src/storage/memory.ts';
import { COW_IMAGE_LAYOUTS, cowAreas, cowImage } from '../../support/cow-image.ts';
import { detect, failure, GiB, inputFor, MiB, NAMED, TiB } from './detect-support.ts';

describe('the scan of the bitmap', () => {
  const highest = async (file: MemoryStore): Promise<string | undefined> =>
    ((await failure(detect(file))).details['candidates'] as CowCandidate[])[0]?.failure;

  it('is right about bits past 2^32, and steps over holes', async () => {
    const size = 5 * TiB;
    const last = size / 512 - 1;
    expect(last).toBeGreaterThan(2 ** 32);
    for (const layout of COW_IMAGE_LAYOUTS) {
      const { dataOffset } = cowAreas({ layout, size });
      const spec = { layout, size, ...NAMED, present: [0, last], data: () => undefined };
      const whole = cowImage({ ...spec, fileSize: dataOffset + size });
      expect((await detect(whole)).geometry.storedBits).toBe(size / 512);
      const short = cowImage({ ...spec, fileSize: dataOffset + last * 512 });
      const error = await failure(detect(short));
      const told = (error.details['candidates'] as CowCandidate[]).find((one) => one.layout === layout);
      expect(told?.failure).toBe(
        `the bitmap claims sector ${last} at 0x${(dataOffset + last * 512).toString(16)}, the file ends at 0x${(dataOffset + last * 512).toString(16)}`,
      );
    }
  });

  it('finds every bit of a word, in either order of bytes', async () => {
    for (const layout of COW_IMAGE_LAYOUTS) {
      for (let sector = 0; sector < 130; sector++) {
        const { dataOffset } = cowAreas({ layout, size: MiB });
        const at = dataOffset + sector * 512;
        const file = cowImage({
          layout,
          size: MiB,
          ...NAMED,
          present: [0, sector],
          data: () => undefined,
          fileSize: Math.max(at, dataOffset - 1),
        });
        const candidates = (await failure(detect(file))).details['candidates'] as CowCandidate[];
        const told = candidates.find((one) => one.layout === layout);
        expect(told?.failure, `${layout} ${sector}`).toContain(`claims sector ${sector} at`);
      }
    }
  });

  it('reads no more than 1 MiB at a time, and nothing of holes', async () => {
    const PAGE = 65536;
    const size = 4 * TiB;
    const file = cowImage({ layout: 'v3', size, ...NAMED, present: [100_000_000], data: () => undefined });
    const reads: [number, number][] = [];
    const { bitmapOffset } = cowAreas({ layout: 'v3', size });
    const read = file.read.bind(file);
    // zeros that are data, in more pieces than a list of extents has room for
    for (let page = 0; page < 1000; page++)
      void file.write(bitmapOffset + 20 * MiB + page * 4 * PAGE, new Uint8Array(1));
    void file.write(bitmapOffset + 500 * MiB, new Uint8Array(5 * MiB));
    const input = inputFor(file);
    file.read = (offset, into, options) => {
      reads.push([offset, into.length]);
      return read(offset, into, options);
    };
    expect((await detectCow(input)).layout).toBe('v3');
    expect(Math.max(...reads.map(([, length]) => length))).toBe(MiB);
    const total = reads.reduce((sum, [, length]) => sum + length, 0);
    expect(total).toBeGreaterThanOrEqual(5 * MiB + 1000 * PAGE);
    expect(total).toBeLessThan(6 * MiB + 1001 * PAGE);
    expect(reads.every(([offset]) => offset >= bitmapOffset)).toBe(true);
  });

  it('works where a file says little about its holes', async () => {
    const { dataOffset } = cowAreas({ layout: 'v3', size: 64 * GiB });
    const make = () =>
      cowImage({
        layout: 'v3',
        size: 64 * GiB,
        ...NAMED,
        present: [50_000_000],
        data: () => undefined,
        fileSize: dataOffset + 50_000_000 * 512,
      });
    const piecewise = make();
    const extents = piecewise.extents.bind(piecewise);
    piecewise.extents = (offset, length, into, options) => extents(offset, Math.min(length, 100_000), into, options);
    const silent = make();
    silent.extents = (_offset, length, into) => void into.add(length, 0);
    for (const file of [piecewise, silent]) expect(await highest(file)).toContain('claims sector 50000000 at');
  });
});
