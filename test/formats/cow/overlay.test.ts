import { describe, expect, it } from 'vitest';
import { explicitCow } from '../../../src/formats/cow/detect.ts';
import { cowAreas, cowImage, hybridImage } from '../../support/cow-image.ts';
import { detect, failure, GiB, inputFor, MiB, NAMED } from './detect-support.ts';

describe('a header of UML version 3 over a body of version 2', () => {
  const HYBRID = 'hybrid-v3-over-v2-32';
  const spec = { ...NAMED, data: () => undefined };

  it('is found when the header does not fit the length of the file', async () => {
    const found = await detect(hybridImage({ ...spec, size: MiB, present: [2047, 64] }, '/new'));
    expect(found.layout).toBe(HYBRID);
    expect(found.header).toMatchObject({ backingName: '/new', size: MiB, alignment: 512 });
    expect(found.geometry).toMatchObject({ bitmapOffset: 4120, bitmapLength: 256, dataOffset: 4608 });
    expect(found.warnings).toEqual([expect.stringContaining('first 64 sectors')]);
  });

  it('is found by the length of its file, which is too short for a v3', async () => {
    const hybrid = { ...spec, size: MiB, present: [100] };
    expect((await detect(hybridImage({ ...hybrid, fileSize: 4608 + MiB }, '/new', 'nothing'))).layout).toBe(HYBRID);
    const shorter = hybridImage({ ...hybrid, fileSize: 4608 + MiB - 512 }, '/new', 'nothing');
    expect((await failure(detect(shorter))).reason).toBe('cow.ambiguous');
  });

  // Of disks of whole 2 MiB the data are at the same place for both, and the one bitmap inside the room of the other.
  for (const size of [2 * MiB, 64 * MiB, 8 * GiB]) {
    const fileSize = cowAreas({ layout: 'v2-uml-32', size }).dataOffset + size;

    it(`is found by what the kernel leaves of the old header, with ${size} bytes`, async () => {
      const file = hybridImage({ ...spec, size, fileSize, present: [3904] }, '/new');
      const { layout, candidates } = await detect(file, { '/new': size });
      expect(layout).toBe(HYBRID);
      expect(candidates.find((one) => one.layout === 'v3')).toMatchObject({ passed: false, failedTest: 'H7' });
    });

    it(`is found by bits where no v3 has any, with ${size} bytes`, async () => {
      const file = hybridImage({ ...spec, size, fileSize, present: [200] }, '/new', 'nothing');
      expect((await detect(file)).layout).toBe(HYBRID);
    });

    it(`is not taken for granted, with ${size} bytes`, async () => {
      const last = size / 512 - 1;
      const v3 = { ...spec, layout: 'v3', size, alignment: 512 } as const;
      expect((await detect(cowImage({ ...v3, present: [0, last] }))).layout).toBe('v3');
      expect((await detect(cowImage(v3))).layout).toBe('v3');
    });

    it(`is nothing that is guessed, with ${size} bytes`, async () => {
      const file = hybridImage({ ...spec, size, fileSize, present: [3905] }, '/n', 'nothing');
      const error = await failure(detect(file, { '/n': size }));
      expect(error.reason).toBe('cow.ambiguous');
      expect(error.message).toContain(HYBRID);
      expect((await explicitCow(HYBRID, inputFor(file))).geometry.bitmapOffset).toBe(4120);
      expect((await explicitCow('v3', inputFor(file))).geometry.bitmapOffset).toBe(4608);
    });
  }

  it('is not looked for where the alignment is that of a page', async () => {
    const { candidates } = await detect(cowImage({ ...spec, layout: 'v3', size: 2 * MiB }));
    expect(candidates.map(({ layout }) => layout)).toEqual(['v3', 'v3-broken']);
  });
});
