import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { isBlockError } from '../../../src/base/errors.ts';
import { decodeCowHeader, encodeCowHeader, patchBacking } from '../../../src/formats/cow/header.ts';
import { COW_LAYOUT_IDS, COW_LAYOUTS, CREATABLE_LAYOUT_IDS } from '../../../src/formats/cow/layouts.ts';
import { COW_IMAGE_LAYOUTS, cowHeaderBytes } from '../../support/cow-image.ts';
import { GOLDEN, goldenBytes } from '../../support/golden-cow.ts';

const utf8 = new TextEncoder();

/** Code and reason of what `run` throws. */
function refusal(run: () => unknown): string {
  try {
    run();
  } catch (error) {
    if (isBlockError(error)) return `${error.code} ${error.reason}`;
    throw error;
  }
  return 'nothing';
}

describe('decodeCowHeader', () => {
  it('reads every golden image as what it is', () => {
    for (const image of GOLDEN.images) {
      const header = decodeCowHeader(image.layout as keyof typeof COW_LAYOUTS, goldenBytes(image.file));
      expect(header, image.file).toMatchObject({
        layout: image.layout,
        backingName: image.storedBackingName === '' ? undefined : image.storedBackingName,
        mtime: image.mtime,
        size: image.virtualSize,
        sectorSize: image.sectorSize,
        alignment: image.alignment ?? undefined,
        nameEnds: true,
      });
      expect(header.cowFormat ?? 0).toBe(0);
      expect(header.mtimeUpper ?? 0).toBe(0);
    }
  });

  it('tells whether the name is filled up with zeros', () => {
    const filled = (file: string, id: keyof typeof COW_LAYOUTS) =>
      decodeCowHeader(id, goldenBytes(file)).nameZeroFilled;
    expect(filled('v3-packed-4096.cow', 'v3')).toBe(true);
    expect(filled('v3-packed-garbage.cow', 'v3')).toBe(false);
    // three bytes at its very end, of the kernel's memory
    expect(filled('uml-ext2.cow', 'v3')).toBe(false);
    expect(filled('qemu014-x86_64.cow', 'v2-qemu-x86_64')).toBe(true);
  });

  it('reads a size above 2^53-1 as Infinity, in both byte orders', () => {
    for (const layout of COW_IMAGE_LAYOUTS) {
      const { sizeAt, littleEndian } = COW_LAYOUTS[layout];
      const bytes = cowHeaderBytes({ layout, size: 0, backingName: '/b', mtime: 1 });
      const view = new DataView(bytes.buffer);
      view.setBigUint64(sizeAt, 2n ** 53n - 1n, littleEndian);
      expect(decodeCowHeader(layout, bytes).size).toBe(2 ** 53 - 1);
      view.setBigUint64(sizeAt, 2n ** 53n, littleEndian);
      expect(decodeCowHeader(layout, bytes).size).toBe(Number.POSITIVE_INFINITY);
    }
  });

  it('takes names as UTF-8, and byte by byte what is none', () => {
    const named = (name: Uint8Array) =>
      decodeCowHeader('v3', cowHeaderBytes({ layout: 'v3', size: 512, backingName: name, mtime: 1 }));
    expect(named(utf8.encode('/Länge/€')).backingName).toBe('/Länge/€');
    const latin = Uint8Array.of(0x2f, 0x4c, 0xe4, 0x6e, 0x67, 0x65);
    expect(named(latin).backingName).toBe('/Länge');
    expect(named(latin).backingNameBytes).toEqual(latin);
    expect(named(Uint8Array.of(0xef, 0xbb, 0xbf, 0x61)).backingName).toBe('\ufeffa');
  });

  it('takes the whole field for a name without end', () => {
    for (const layout of COW_LAYOUT_IDS) {
      const { headerSize, nameAt, nameLength } = COW_LAYOUTS[layout];
      const header = decodeCowHeader(layout, new Uint8Array(headerSize).fill(0x61, nameAt, nameAt + nameLength));
      expect(header).toMatchObject({ nameEnds: false, nameZeroFilled: false, backingName: 'a'.repeat(nameLength) });
    }
  });

  it('refuses every head that is shorter than the header, and no other', () => {
    for (const layout of COW_LAYOUT_IDS) {
      const { headerSize } = COW_LAYOUTS[layout];
      for (const length of [0, 1, 7, 8, 264, 1047, headerSize - 1]) {
        if (length >= headerSize) continue;
        expect(refusal(() => decodeCowHeader(layout, new Uint8Array(length)))).toBe('CORRUPT cow.header-short');
      }
      expect(decodeCowHeader(layout, new Uint8Array(headerSize))).toMatchObject({ size: 0, backingName: undefined });
    }
  });

  it('reads at an offset in a larger buffer', () => {
    const bytes = cowHeaderBytes({ layout: 'v2-uml-64', size: 12345 * 512, backingName: '/x', mtime: 77 });
    const larger = new Uint8Array(bytes.length + 3);
    larger.set(bytes, 3);
    expect(decodeCowHeader('v2-uml-64', larger.subarray(3))).toMatchObject({ size: 12345 * 512, mtime: 77 });
  });
});

const FIELDS = fc.record({
  layout: fc.constantFrom(...COW_IMAGE_LAYOUTS),
  backingName: fc.stringMatching(/^\/[a-zA-Z0-9äß€/._-]{0,60}$/),
  mtime: fc.nat(2 ** 32 - 1),
  size: fc.maxSafeNat(),
  sectorSize: fc.constantFrom(512, 1024, 65536),
  alignment: fc.constantFrom(512, 4096, 2 ** 24),
});

describe('encodeCowHeader', () => {
  it('writes what the tables say', () => {
    fc.assert(
      fc.property(FIELDS, ({ layout, ...fields }) => {
        expect(encodeCowHeader(layout, fields)).toEqual(cowHeaderBytes({ layout, ...fields }));
      }),
    );
  });

  it('is read again as it was written, in every layout', () => {
    for (const layout of COW_LAYOUT_IDS) {
      const fields = {
        backingName: '/srv/b.img',
        mtime: 4_000_000_000,
        size: 2 ** 43 + 512,
        sectorSize: 512,
        alignment: 512,
      };
      const bytes = encodeCowHeader(layout, fields);
      const { alignmentAt, headerSize } = COW_LAYOUTS[layout];
      expect(bytes.length).toBe(headerSize);
      expect(decodeCowHeader(layout, bytes)).toMatchObject({
        ...fields,
        alignment: alignmentAt === undefined ? undefined : 512,
        nameZeroFilled: true,
      });
    }
  });

  it('writes the headers of the golden images that were made without garbage', () => {
    let compared = 0;
    for (const image of GOLDEN.images) {
      if (!(CREATABLE_LAYOUT_IDS as readonly string[]).includes(image.layout)) continue;
      const layout = image.layout as (typeof CREATABLE_LAYOUT_IDS)[number];
      const golden = goldenBytes(image.file).subarray(0, image.headerSize);
      if (!decodeCowHeader(layout, golden).nameZeroFilled) continue;
      const bytes = encodeCowHeader(layout, {
        backingName: image.storedBackingName,
        mtime: image.mtime,
        size: image.virtualSize,
        sectorSize: image.sectorSize,
        alignment: image.alignment ?? undefined,
      });
      expect(bytes, image.file).toEqual(golden);
      compared++;
    }
    expect(compared).toBeGreaterThan(15);
  });

  it('lets only QEMU be without a backing file', () => {
    for (const layout of COW_LAYOUT_IDS) {
      for (const backingName of ['', undefined, new Uint8Array(0)]) {
        const made = refusal(() =>
          encodeCowHeader(layout, { backingName, mtime: 0, size: 512, sectorSize: 512, alignment: 4096 }),
        );
        expect(made).toBe(COW_LAYOUTS[layout].qemu ? 'nothing' : 'OPTION cow.name-empty');
      }
    }
  });
});

describe('patchBacking', () => {
  it('changes the name and the time, and nothing else', () => {
    for (const layout of COW_LAYOUT_IDS) {
      const { headerSize, nameAt, nameLength, mtimeAt, littleEndian } = COW_LAYOUTS[layout];
      const bytes = new Uint8Array(headerSize + 64).fill(0xaa);
      for (const patch of patchBacking(layout, { name: '/new', mtime: 0x01020304 }))
        bytes.set(patch.bytes, patch.offset);
      const expected = new Uint8Array(headerSize + 64).fill(0xaa);
      expected.fill(0, nameAt, nameAt + nameLength).set(utf8.encode('/new'), nameAt);
      new DataView(expected.buffer).setUint32(mtimeAt, 0x01020304, littleEndian);
      expect(bytes, layout).toEqual(expected);
    }
  });

  it('leaves the bitmap of a hybrid alone, which lies inside the field of the name', () => {
    const [name] = patchBacking('hybrid-v3-over-v2-32', { name: 'x'.repeat(4087), mtime: 0 });
    expect((name?.offset ?? 0) + (name?.bytes.length ?? 0)).toBe(4120);
  });

  it('changes the time alone when no name is given', () => {
    expect(patchBacking('v3', { mtime: 0x0a0b0c0d })).toEqual([{ offset: 8, bytes: Uint8Array.of(10, 11, 12, 13) }]);
    expect(patchBacking('v1-le64', { mtime: 0x0a0b0c0d })).toEqual([
      { offset: 264, bytes: Uint8Array.of(13, 12, 11, 10) },
    ]);
    expect(patchBacking('v1-be64', { mtime: 1 })).toEqual([{ offset: 268, bytes: Uint8Array.of(0, 0, 0, 1) }]);
  });

  it('takes the longest name with its NUL, and refuses one byte more', () => {
    for (const layout of COW_LAYOUT_IDS) {
      const bound = COW_LAYOUTS[layout].nameLength - 1;
      const [name] = patchBacking(layout, { name: 'n'.repeat(bound), mtime: 0 });
      expect(name?.bytes.at(-1)).toBe(0);
      expect(name?.bytes.at(-2)).toBe(0x6e);
      const error = refusal(() => patchBacking(layout, { name: 'n'.repeat(bound + 1), mtime: 0 }));
      expect(error).toBe('OPTION cow.name-long');
      expect(() => patchBacking(layout, { name: 'n'.repeat(bound + 1), mtime: 0 })).toThrow(String(bound));
    }
    // it is bytes that count
    expect(refusal(() => patchBacking('v2-qemu-i386', { name: 'é'.repeat(512), mtime: 0 }))).toBe(
      'OPTION cow.name-long',
    );
  });

  it('refuses names that detection would not believe', () => {
    expect(refusal(() => patchBacking('v3', { name: '/a\nb', mtime: 0 }))).toBe('OPTION cow.name-bytes');
    expect(refusal(() => patchBacking('v2-qemu-i386', { name: 'a\0b', mtime: 0 }))).toBe('OPTION cow.name-bytes');
    expect(refusal(() => patchBacking('v3', { name: '', mtime: 0 }))).toBe('OPTION cow.name-empty');
    expect(refusal(() => patchBacking('v2-qemu-i386', { name: '', mtime: 0 }))).toBe('nothing');
  });

  it('keeps the bytes of a name that is no UTF-8', () => {
    const raw = Uint8Array.of(0x2f, 0xff, 0xfe);
    const [name] = patchBacking('v1-le32', { name: raw, mtime: 0 });
    expect(name?.bytes.subarray(0, 4)).toEqual(Uint8Array.of(0x2f, 0xff, 0xfe, 0));
  });
});
