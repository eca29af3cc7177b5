import { describe, expect, it } from 'vitest';
import { type CowCandidate, detectCow, probeCow } from '../../../src/formats/cow/detect.ts';
import { MemoryStore } from '../../../src/storage/memory.ts';
import { COW_IMAGE_LAYOUTS, type CowImageSpec, cowImage } from '../../support/cow-image.ts';
import { GOLDEN, goldenStore } from '../../support/golden-cow.ts';
import { detect, failure, GiB, inputFor, MiB, NAMED, poke, TIME, TiB } from './detect-support.ts';

/** A QEMU disk whose dirty sectors look like the rest of a v2-uml-32 header. Holes are present, so that nothing else is read as a bitmap. */
function collision(spec: Partial<CowImageSpec> & { readonly umlSize: number; readonly umlTime: number }): MemoryStore {
  const { umlSize, umlTime, ...rest } = spec;
  const file = cowImage({
    layout: 'v2-qemu-i386',
    size: 29742592,
    ...NAMED,
    fileSize: 1536 + 7168 + 29742592,
    ...rest,
  });
  poke(file, 4104, BigInt(umlTime), 4);
  poke(file, 4108, BigInt(umlSize), 8);
  return poke(file, 4116, 512n, 4);
}

describe('detectCow over the golden images', () => {
  const images = GOLDEN.images.map((image) => [image.file, image] as const);

  it.each(images)('finds the layout of %s by its header alone', async (file, image) => {
    const found = await detect(goldenStore(file));
    expect(found.layout).toBe(image.layout);
    expect(found.why).toBe('the only layout that fits the file');
    expect(found.header).toMatchObject({ size: image.virtualSize, mtime: image.mtime });
    expect(found.geometry).toMatchObject({
      bitmapOffset: image.bitmapOffset,
      bitmapLength: image.bitmapLength,
      dataOffset: image.dataOffset,
    });
  });

  it.each(images)('finds the layout of %s when its base is there', async (file, image) => {
    const found = await detect(goldenStore(file), { [image.storedBackingName]: image.virtualSize });
    expect(found.layout).toBe(image.layout);
  });

  it('has a warning for the hybrid alone', async () => {
    for (const image of GOLDEN.images) {
      const { warnings } = await detect(goldenStore(image.file));
      expect(warnings.length, image.file).toBe(image.layout === 'hybrid-v3-over-v2-32' ? 1 : 0);
    }
  });

  it('asks for no backing file where one layout fits', async () => {
    for (const image of GOLDEN.images) {
      const input = inputFor(goldenStore(image.file));
      await detectCow({ ...input, backingStatus: () => Promise.reject(new Error(`${image.file} was asked for`)) });
    }
  });

  it('wants no other layout for the images than their own', async () => {
    for (const image of GOLDEN.images) {
      const { candidates } = await detect(goldenStore(image.file));
      for (const { layout, passed, failedTest, failure: text } of candidates) {
        expect(passed, `${image.file} as ${layout}`).toBe(layout === image.layout);
        if (!passed) expect([failedTest, text]).toEqual([expect.stringMatching(/^H[2-7]$/), expect.any(String)]);
      }
    }
  });
});

describe('detectCow', () => {
  it('tells the two layouts of big-endian version 1 apart by where the time is', async () => {
    for (const layout of ['v1-be32', 'v1-be64'] as const) {
      const found = await detect(cowImage({ layout, size: MiB, ...NAMED, present: [0, 31, 32, 63, 64, 2047] }));
      expect(found.layout).toBe(layout);
      expect(found.header.mtime).toBe(TIME);
    }
  });

  it('finds disks of every size in every layout, empty ones too', async () => {
    for (const layout of COW_IMAGE_LAYOUTS) {
      for (const size of [512, 4096, 40 * 512, MiB, 12 * MiB, 5 * GiB, 300 * GiB, 2 * TiB]) {
        const found = await detect(cowImage({ layout, size, ...NAMED }));
        expect([found.layout, found.header.size]).toEqual([layout, size]);
      }
    }
  });

  it('prefers a disk with something in it (T0)', async () => {
    // 64-bit, 512 bytes: read as 32-bit it has size 0 and its sector size is 512.
    const file = cowImage({ layout: 'v2-qemu-x86_64', size: 512, ...NAMED });
    const found = await detect(file);
    expect(found.layout).toBe('v2-qemu-x86_64');
    const other = found.candidates.find(({ layout }) => layout === 'v2-qemu-i386');
    expect(other).toMatchObject({ size: 0, sectorSize: 512, passed: true });
    expect(found.why).toBe('its disk is not empty');
  });

  describe('with a QEMU disk whose dirty sectors look like a header of UML', () => {
    const umlSize = 29745152;

    it('believes the backing file (T1)', async () => {
      const file = collision({ umlSize, umlTime: TIME });
      const found = await detect(file, { '/srv/base.img': 29742592 });
      expect(found.layout).toBe('v2-qemu-i386');
      expect(found.why).toBe('its backing file exists with the recorded size');
      expect(found.warnings).toEqual([]);
      expect(found.candidates.filter(({ passed }) => passed).map(({ layout }) => layout)).toEqual([
        'v2-uml-32',
        'v2-qemu-i386',
      ]);
      // whichever it is that it speaks for
      expect((await detect(file, { '/srv/base.img': umlSize })).layout).toBe('v2-uml-32');
    });

    it('asks once for a name that both have', async () => {
      const asked: string[] = [];
      const input = inputFor(collision({ umlSize, umlTime: TIME }));
      await detectCow({
        ...input,
        backingStatus: async (name) => {
          asked.push(name);
          return undefined;
        },
      });
      expect(asked).toEqual(['/srv/base.img']);
    });

    it('believes a plausible time (T2), and says that it was no more', async () => {
      const found = await detect(collision({ umlSize, umlTime: 4 }));
      expect(found.layout).toBe('v2-qemu-i386');
      expect(found.why).toBe('the recorded time of its backing file is plausible');
      expect(found.warnings).toEqual([expect.stringContaining('v2-uml-32 would fit as well')]);
    });

    it('believes QEMU, which fills up its names (T3)', async () => {
      const found = await detect(collision({ umlSize, umlTime: TIME }));
      expect(found.layout).toBe('v2-qemu-i386');
      expect(found.why).toBe('the name of its backing file is filled up as that writer does');
    });

    it('believes UML where the name is not filled up (T3)', async () => {
      const file = collision({ umlSize, umlTime: TIME });
      void file.write(200, Uint8Array.of(1));
      expect((await detect(file)).layout).toBe('v2-uml-32');
    });

    it('chooses nothing where time and name contradict each other', async () => {
      const error = await failure(detect(collision({ umlSize, umlTime: TIME, mtime: 0 })));
      expect([error.code, error.reason]).toEqual(['WRONG_FORMAT', 'cow.ambiguous']);
      const candidates = error.details['candidates'] as CowCandidate[];
      expect(candidates.filter(({ passed }) => passed)).toEqual([
        expect.objectContaining({
          layout: 'v2-uml-32',
          size: umlSize,
          speaksFor: ['its disk is not empty', 'the recorded time of its backing file is plausible'],
        }),
        expect.objectContaining({
          layout: 'v2-qemu-i386',
          size: 29742592,
          speaksFor: ['its disk is not empty', 'the name of its backing file is filled up as that writer does'],
        }),
      ]);
      for (const { layout } of candidates) expect(error.message).toContain(layout);
      expect(error.message).toMatch(/^cow "a\.cow": more than one layout fits: .*; name one with option layout$/);
    });
  });

  describe('with a 32-bit header that reads as the 64-bit one as well', () => {
    /** Of sectors 0 to 31 only 17 is dirty, and the file is long enough for the bitmap that the other size needs. */
    const shifted = (size: number): MemoryStore =>
      cowImage({ layout: 'v2-uml-32', size, ...NAMED, present: [17], data: () => undefined, fileSize: 1.5 * GiB });

    it('believes the backing file (T1)', async () => {
      const size = 4 * GiB + 512;
      const found = await detect(shifted(size), { '/srv/base.img': size });
      expect(found.layout).toBe('v2-uml-32');
      expect(found.candidates.filter(({ passed }) => passed)).toEqual([
        expect.objectContaining({ layout: 'v2-uml-32', size }),
        expect.objectContaining({ layout: 'v2-uml-64', size: 2 ** 41 + 512 }),
      ]);
    });

    it('takes the smaller disk (T4)', async () => {
      const found = await detect(shifted(4 * GiB + 512));
      expect(found.layout).toBe('v2-uml-32');
      expect(found.why).toBe('its disk is the smallest');
      expect(found.warnings.length).toBe(1);
    });

    it.each([
      ['the larger', 4 * TiB + 512],
      ['the larger, and in no whole sectors', 4 * TiB + 17],
      ['hardly smaller', 4 * GiB + 1],
    ])('chooses nothing where the true disk is %s', async (_, size) => {
      expect((await failure(detect(shifted(size)))).reason).toBe('cow.ambiguous');
      expect((await detect(shifted(size), { '/srv/base.img': size })).layout).toBe('v2-uml-32');
    });
  });

  it('says what is wrong with every layout when none fits', async () => {
    const file = cowImage({ layout: 'v3', size: MiB, ...NAMED });
    poke(file, 24, 0n, 4);
    const error = await failure(detect(file));
    expect([error.code, error.reason]).toEqual(['WRONG_FORMAT', 'cow.no-layout']);
    expect(error.message).toMatch(
      /v3: alignment 0, not a power of two \(H5\); v3-broken: .*; to read it all the same, name one with option layout$/,
    );
    expect(error.details['candidates']).toEqual([
      expect.objectContaining({ layout: 'v3', passed: false, failedTest: 'H5', size: MiB }),
      expect.objectContaining({ layout: 'v3-broken', passed: false }),
    ]);
  });

  it('refuses what is no cow at all, and versions that nobody knows', async () => {
    const none = await failure(detect(MemoryStore.from(new Uint8Array(8192))));
    expect([none.code, none.reason]).toEqual(['WRONG_FORMAT', 'cow.magic']);
    const version = await failure(detect(poke(cowImage({ layout: 'v3', size: MiB, ...NAMED }), 4, 4n, 4)));
    expect([version.code, version.reason, version.details]).toEqual(['UNSUPPORTED', 'cow.version', { version: 4 }]);
    // a little-endian header has no other version than 1
    const little = await failure(detect(poke(cowImage({ layout: 'v1-le32', size: MiB, ...NAMED }), 4, 2n, 4, true)));
    expect(little.details).toEqual({ version: 2 });
  });

  it('stops when it is told to', async () => {
    const controller = new AbortController();
    controller.abort();
    const input = { ...inputFor(cowImage({ layout: 'v3', size: MiB, ...NAMED })), signal: controller.signal };
    expect((await failure(detectCow(input))).code).toBe('ABORTED');
  });
});

describe('probeCow', () => {
  it('knows every golden image by its first 2 KiB', () => {
    for (const image of GOLDEN.images) {
      const file = goldenStore(image.file);
      const head = new Uint8Array(2048);
      void file.read(0, head);
      expect(probeCow(head, file.size)).toBe(90);
      // magic and version are enough
      expect(probeCow(head.subarray(0, 16), file.size)).toBe(90);
    }
  });

  it('knows nothing else', () => {
    expect(probeCow(new Uint8Array(0), 0)).toBe(0);
    expect(probeCow(new Uint8Array(2048), 1e6)).toBe(0);
    const head = new Uint8Array(2048);
    void cowImage({ layout: 'v3', size: MiB, ...NAMED }).read(0, head);
    for (const length of [0, 3, 4, 7]) expect(probeCow(head.subarray(0, length), 1e6)).toBe(0);
    expect(probeCow(head, 4127)).toBe(0);
    expect(probeCow(head, 4128)).toBe(90);
    head[7] = 4;
    expect(probeCow(head, 1e6)).toBe(0);
    head[7] = 0;
    expect(probeCow(head, 1e6)).toBe(0);
    // version 2 in a slot of eight bytes
    head.set([0, 0, 0, 2, 0, 0, 0, 0], 8);
    expect(probeCow(head, 1e6)).toBe(90);
    head[12] = 1;
    expect(probeCow(head, 1e6)).toBe(0);
  });
});
