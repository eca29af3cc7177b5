/** Hostile and damaged cow images: each is refused with a code, a reason and a message that says what and where, and nothing is written to it. */
import { describe, expect, it } from 'vitest';
import { type BlockError, isBlockError } from '../../../src/base/errors.ts';
import { ExtentList } from '../../../src/core/extent.ts';
import { COW_LAYOUT_IDS, type CowLayoutId, layoutOf } from '../../../src/formats/cow/layouts.ts';
import type { MemoryStore } from '../../../src/storage/memory.ts';
import { below, noise, seededRandom } from '../../../src/testing/random.ts';
import { RecordingStore } from '../../../src/testing/recording-store.ts';
import { CowFiles } from '../../support/cow-files.ts';
import {
  COW_IMAGE_LAYOUTS,
  type CowImageLayout,
  type CowImageSpec,
  cowAreas,
  cowImage,
} from '../../support/cow-image.ts';
import { BASE_MTIME, BASE_NAME, checkCow, openCow, pattern, readAll, storeOf } from '../../support/cow-under-test.ts';
import { SEED_TIMEOUT, scaled } from '../../support/seeds.ts';

const KiB = 1024;
/** No power of two: read four bytes off, it must be no sector size. */
const SIZE = 96 * KiB;

function image(layout: CowImageLayout, more: Partial<CowImageSpec> = {}): MemoryStore {
  return cowImage({ layout, size: SIZE, backingName: BASE_NAME, mtime: BASE_MTIME, present: [1, 100], ...more });
}

/** Sets a field of the header. */
function poked(file: MemoryStore, layout: CowLayoutId, at: number, value: bigint, width: 4 | 8 = 4): MemoryStore {
  const bytes = new Uint8Array(width);
  const view = new DataView(bytes.buffer);
  const { littleEndian } = layoutOf(layout);
  if (width === 8) view.setBigUint64(0, value, littleEndian);
  else view.setUint32(0, Number(value), littleEndian);
  void file.write(at, bytes);
  return file;
}

async function refusal(running: Promise<unknown>): Promise<BlockError> {
  try {
    await running;
  } catch (error) {
    if (isBlockError(error)) return error;
    throw error;
  }
  throw new Error('nothing was refused');
}

/** Refused for reading, writing and checking, whether the layout is named or found, and never written. */
async function expectRefused(
  file: MemoryStore,
  layout: CowLayoutId,
  found: { readonly code?: string; readonly reason: string; readonly message: RegExp },
  named: { readonly code: string; readonly reason: string; readonly message: RegExp },
): Promise<void> {
  for (const mode of [{ readOnly: true }, { readOnly: false }, { readOnly: false, forCheck: true }]) {
    for (const [expected, options] of [
      [{ code: 'WRONG_FORMAT', ...found }, {}],
      [named, { layout }],
    ] as const) {
      const store = new RecordingStore(storeOf(file.bytes()));
      const { code, reason, message } = await refusal(openCow(store, { ...mode, options }));
      expect({ code, reason }).toEqual({ code: expected.code, reason: expected.reason });
      expect(message).toMatch(expected.message);
      expect(message).toMatch(/^cow "disk": [a-z]/);
      expect(store.entries).toEqual([]);
    }
  }
}

const LAYOUTS = COW_IMAGE_LAYOUTS.map((layout) => [layout] as const);

describe('a header that says', () => {
  it.each(['v3', 'v3-broken'] as const)('alignment 0, or no power of two, is refused: %s', async (layout) => {
    const { alignmentAt = 0 } = layoutOf(layout);
    for (const alignment of [0n, 3n, 4097n, 0xffff_ffffn]) {
      const text = new RegExp(`alignment ${alignment}, not a power of two`);
      await expectRefused(
        poked(image(layout), layout, alignmentAt, alignment),
        layout,
        { reason: 'cow.no-layout', message: text },
        { code: 'CORRUPT', reason: 'cow.alignment', message: text },
      );
    }
  });

  it.each(LAYOUTS)(
    'a sector size of 0, 3, 256 or 2^31 is refused, or of no account where QEMU wrote it (C-005): %s',
    async (layout) => {
      for (const sectorSize of [0n, 3n, 256n, 2n ** 31n]) {
        const file = poked(image(layout), layout, layoutOf(layout).sectorSizeAt, sectorSize);
        if (layoutOf(layout).qemu) {
          // QEMU never looked at it.
          expect(await refusal(openCow(file))).toMatchObject({ reason: 'cow.no-layout' });
          const { node, events } = await openCow(file, { readOnly: true, options: { layout } });
          expect(node.size).toBe(SIZE);
          expect(events).toHaveLength(1);
          continue;
        }
        const text = new RegExp(`sector size ${sectorSize}, not a power of two from 512 to 65536`);
        await expectRefused(
          file,
          layout,
          { reason: 'cow.no-layout', message: text },
          { code: 'CORRUPT', reason: 'cow.sector-size', message: text },
        );
      }
    },
  );

  it.each(LAYOUTS)('a size beyond numbers, or whose data would end beyond them, is refused: %s', async (layout) => {
    const { sizeAt } = layoutOf(layout);
    await expectRefused(
      poked(image(layout), layout, sizeAt, 2n ** 53n, 8),
      layout,
      { reason: 'cow.no-layout', message: /disk size above 2\^53-1/ },
      { code: 'TOO_LARGE', reason: 'cow.size', message: /disk size above 2\^53-1/ },
    );
    await expectRefused(
      poked(image(layout), layout, sizeAt, 2n ** 53n - 512n, 8),
      layout,
      { reason: 'cow.no-layout', message: /its bitmap ends at/ },
      { code: 'TOO_LARGE', reason: 'cow.offsets', message: /end above 2\^53-1/ },
    );
  });

  it.each(LAYOUTS)(
    'a size whose bitmap is longer than the file is refused, unless the layout is named: %s',
    async (layout) => {
      const file = poked(image(layout), layout, layoutOf(layout).sizeAt, 2n ** 40n, 8);
      const store = new RecordingStore(file);
      const error = await refusal(openCow(store));
      expect(error).toMatchObject({ code: 'WRONG_FORMAT', reason: 'cow.no-layout' });
      expect(error.message).toMatch(/the file has \d+ bytes, its bitmap ends at \d+/);
      const { node, events } = await openCow(store, { readOnly: true, options: { layout } });
      expect(events.length).toBeGreaterThan(0);
      expect(await readAll(node, 2 ** 40 - 512, 512)).toEqual(new Uint8Array(512));
      expect(store.entries).toEqual([]);
    },
  );

  it.each(LAYOUTS)('a name without an end is refused, unless the layout is named: %s', async (layout) => {
    const { nameAt, nameLength } = layoutOf(layout);
    const file = image(layout);
    await file.write(nameAt, new Uint8Array(nameLength).fill(0x61));
    const store = new RecordingStore(file);
    const error = await refusal(openCow(store));
    expect(error.reason).toBe('cow.no-layout');
    expect(error.message).toMatch(/the name of the backing file does not end inside its field/);
    const { node, events } = await openCow(store, { readOnly: true, options: { layout } });
    expect(events.length).toBeGreaterThan(0);
    expect((await node.format.info()).backing?.name).toBe('a'.repeat(nameLength));
    expect(store.entries).toEqual([]);
  });

  it('another version, or no magic, is no cow (C-003, C-004)', async () => {
    const other = poked(image('v3'), 'v3', 4, 9n);
    await expectRefused(
      other,
      'v3',
      { code: 'UNSUPPORTED', reason: 'cow.version', message: /version 9; 1, 2 and 3 are known/ },
      { code: 'UNSUPPORTED', reason: 'cow.version', message: /version 9; 1, 2 and 3 are known/ },
    );
    const none = storeOf(new Uint8Array(8192));
    const missing = { code: 'WRONG_FORMAT', reason: 'cow.magic', message: /magic bytes are missing/ };
    await expectRefused(none, 'v3', missing, missing);
    await expectRefused(storeOf(new Uint8Array(3)), 'v3', missing, missing);
    const old = { code: 'WRONG_FORMAT', reason: 'cow.other-version', message: /begins like v1-le32, v1-le64/ };
    expect(await refusal(openCow(image('v1-le32'), { options: { layout: 'v3' } }))).toMatchObject({
      code: old.code,
      reason: old.reason,
    });
  });

  it('a file that is cut inside its header is refused, whoever names the layout', async () => {
    for (const [layout] of LAYOUTS) {
      const { headerSize } = layoutOf(layout);
      const file = storeOf(
        image(layout)
          .bytes()
          .subarray(0, headerSize - 1),
      );
      const error = await refusal(openCow(file, { options: { layout } }));
      expect(error).toMatchObject({ code: 'CORRUPT', reason: 'cow.header-short', details: { bound: headerSize } });
    }
  });
});

describe('a backing file', () => {
  it('that is the cow file itself is refused, by whatever name', async () => {
    const files = new CowFiles();
    for (const [layout] of LAYOUTS) {
      const store = image(layout, { backingName: '/images/self.cow', size: SIZE });
      files.put('/images/self.cow', store.bytes());
      files.link('/images/other.cow', '/images/self.cow');
      for (const name of ['/images/self.cow', '/images/other.cow']) {
        const error = await refusal(files.image(name, { references: 'allow', probeBacking: true }));
        expect(error).toMatchObject({ code: 'CHAIN', reason: 'chain.cycle' });
        expect(error.message).toContain('"/images/self.cow"');
      }
      expect(files.bytes('/images/self.cow')).toEqual(store.bytes());
      expect(files.open).toEqual([]);
    }
    // And so is one that the caller names.
    const backing = { name: '/images/other.cow', format: 'raw' };
    expect(await refusal(files.image('/images/self.cow', { backing }))).toMatchObject({ reason: 'chain.cycle' });
  });

  it('that comes back further down is refused', async () => {
    const files = new CowFiles();
    files.put('/a.cow', image('v2-qemu-x86_64', { backingName: '/b.cow', mtime: 0 }).bytes());
    files.put('/b.cow', image('v2-qemu-i386', { backingName: '/a.cow', mtime: 0 }).bytes());
    const error = await refusal(files.image('/a.cow', { references: 'allow', probeBacking: true }));
    expect(error).toMatchObject({ code: 'CHAIN', reason: 'chain.cycle' });
    expect(files.open).toEqual([]);
  });

  it('is neither opened nor looked at where the caller does not allow it', async () => {
    const files = new CowFiles();
    files.put('/images/a.cow', image('v3').bytes());
    files.put(BASE_NAME, pattern(SIZE), BASE_MTIME + 1);
    const error = await refusal(files.image('/images/a.cow'));
    expect(error).toMatchObject({ code: 'REFERENCE_DENIED', reason: 'reference.denied' });
    await using alone = await files.image('/images/a.cow', { references: 'layer-only' });
    await expect(alone.read(0, 512)).rejects.toMatchObject({ code: 'REFERENCE_DENIED' });
    expect(await alone.read(512, 512)).toHaveLength(512);
    expect(files.log.filter((line) => line.endsWith(BASE_NAME))).toEqual([]);
  });

  it('with a name that means nothing here is refused, not taken for something else', async () => {
    const files = new CowFiles();
    for (const [name, reason] of [
      ['json:{"driver":"raw"}', 'reference.json'],
      ['nbd:somewhere:10809', 'protocol.unknown'],
    ] as const) {
      files.put('/images/a.cow', image('v2-qemu-x86_64', { backingName: name }).bytes());
      const error = await refusal(files.image('/images/a.cow', { references: 'allow' }));
      expect(error.reason).toBe(reason);
      // Its facts can be told all the same.
      await using image_ = await files.image('/images/a.cow', { references: 'allow', openBacking: false });
      expect((await image_.info()).backing?.name).toBe(name);
    }
  });
});

describe('any header', () => {
  const CASES = scaled(1000);
  const VALUES = [
    0n,
    1n,
    2n,
    3n,
    255n,
    511n,
    512n,
    513n,
    1024n,
    4096n,
    65536n,
    65537n,
    2n ** 24n,
    2n ** 31n,
    2n ** 32n - 1n,
  ];
  const LARGE = [2n ** 32n, 2n ** 40n, 2n ** 41n, 2n ** 52n, 2n ** 53n - 512n, 2n ** 53n, 2n ** 63n, 2n ** 64n - 1n];

  function damaged(random: () => number): {
    readonly file: MemoryStore;
    readonly layout: CowImageLayout;
    readonly told: string[];
  } {
    const layout = pick(random, COW_IMAGE_LAYOUTS);
    const { mtimeAt, sizeAt, sectorSizeAt, alignmentAt, cowFormatAt, nameAt, nameLength, headerSize } =
      layoutOf(layout);
    const file = image(layout, {
      size: 512 * below(random, 300),
      present: [],
      sectorSize: random() < 0.8 ? 512 : 1024,
      alignment: 2 ** (9 + below(random, 5)),
    });
    const told: string[] = [layout];
    const fields = [4, mtimeAt, sectorSizeAt, alignmentAt, cowFormatAt].filter((at) => at !== undefined);
    for (let i = 0; i <= below(random, 3); i++) {
      const kind = below(random, 7);
      told.push(`kind ${kind}`);
      if (kind === 0) poked(file, layout, sizeAt, random() < 0.5 ? pick(random, LARGE) : pick(random, VALUES), 8);
      else if (kind === 1) poked(file, layout, pick(random, fields), pick(random, VALUES));
      else if (kind === 2) void file.write(nameAt, noise(random, below(random, nameLength + 1)));
      else if (kind === 3) void file.truncate(below(random, file.size + 1));
      else if (kind === 4) void file.truncate(file.size + 1 + below(random, 2000));
      else if (kind === 5) void file.write(8 + below(random, headerSize), noise(random, 1 + below(random, 9)));
      else void file.write(headerSize + below(random, 5000), noise(random, 1 + below(random, 40)));
    }
    return { file, layout, told };
  }

  /** What may be done with an image that was opened. */
  async function use(
    store: RecordingStore,
    options: Parameters<typeof openCow>[1],
    random: () => number,
  ): Promise<void> {
    const before = await headOf(store);
    const { node } = await openCow(store, { backing: storeOf(pattern(4096)), ...options });
    // Opening takes no more than a look at each bitmap that may be meant.
    const reads = store.entries.filter(({ kind }) => kind === 'read');
    expect(reads.length).toBeLessThan(200);
    expect(reads.reduce((sum, { length }) => sum + length, 0)).toBeLessThan(16 * store.size + 100_000);
    await node.format.info();
    const size = node.size;
    const length = Math.min(size, 4096);
    const list = new ExtentList(16);
    if (size > 0) {
      list.reset(0);
      await node.extents(0, size, list);
      await readAll(node, 0, length);
      await readAll(node, size - length, length);
    }
    // Every table of a disk of any size would take long, which is what it would be for an honest one.
    if (size < 2 ** 32) await node.format.check?.check({});
    if (options?.readOnly === true || length === 0) {
      await node.close();
      expect(store.entries.filter(({ kind }) => kind !== 'read' && kind !== 'flush')).toEqual([]);
      return;
    }
    const at = below(random, length);
    const bytes = noise(random, Math.min(1000, size - at));
    await node.write(at, bytes);
    await node.flush();
    expect(await readAll(node, at, bytes.length)).toEqual(bytes);
    await node.close();
    const layout = (await node.format.info()).specific?.data['layout'] as CowLayoutId;
    const { headerSize } = layoutOf(layout);
    expect((await headOf(store)).subarray(0, headerSize)).toEqual(before.subarray(0, headerSize));
  }

  /** The first bytes, before it is opened or after it was closed. */
  async function headOf(store: RecordingStore): Promise<Uint8Array> {
    const inner = store.inner as MemoryStore;
    const bytes = new Uint8Array(Math.min(inner.size, 8192));
    await (inner.closed ? inner.reopen({ readOnly: true }) : inner).read(0, bytes);
    return bytes;
  }

  it(
    `opens to what can be used, or is refused with a typed error (${CASES} cases)`,
    async () => {
      let opened = 0;
      let refused = 0;
      for (let seed = 1; seed <= CASES; seed++) {
        const random = seededRandom(seed);
        const { file, layout, told } = damaged(random);
        for (const named of [undefined, layout, pick(random, COW_LAYOUT_IDS)]) {
          const store = new RecordingStore(storeOf(file.bytes()), { reads: true });
          const readOnly = random() < 0.5;
          const tail = readOnly && random() < 0.3 ? ({ tail: 'lenient' } as const) : {};
          try {
            await use(
              store,
              { readOnly, options: { ...(named === undefined ? {} : { layout: named }), ...tail } },
              random,
            );
            opened++;
          } catch (error) {
            const fine =
              isBlockError(error) && error.code !== 'INTERNAL' && error.reason !== undefined && error.message !== '';
            if (!fine)
              throw new Error(`seed ${seed}, ${told.join(', ')}, as ${named ?? 'found'}: ${String(error)}`, {
                cause: error,
              });
            refused++;
            if (readOnly) expect(store.entries.filter(({ kind }) => kind !== 'read' && kind !== 'flush')).toEqual([]);
          }
        }
      }
      // Neither everything nor nothing.
      expect(opened).toBeGreaterThan(CASES / 3);
      expect(refused).toBeGreaterThan(CASES / 3);
    },
    SEED_TIMEOUT,
  );

  it('that is damaged and was repaired passes its check', async () => {
    let repaired = 0;
    for (let seed = 1; seed <= scaled(100); seed++) {
      const random = seededRandom(seed + 100_000);
      const { file, layout } = damaged(random);
      const options = { options: { layout }, fix: 'all' } as const;
      let first = storeOf(file.bytes());
      try {
        // A repair may make a file as long as its bits say, and then the bitmap of any disk is there to be looked at.
        const { node } = await openCow(storeOf(file.bytes(), { readOnly: true }), {
          readOnly: true,
          options: { layout },
        });
        if (node.size >= 2 ** 32) continue;
        const { result } = await checkCow(first, options);
        if (result.corruptions > 0) continue;
      } catch (error) {
        if (isBlockError(error)) continue;
        throw error;
      }
      first = first.reopen();
      const { result } = await checkCow(first, { options: { layout } });
      expect(result, `seed ${seed}`).toMatchObject({ corruptions: 0, checkErrors: 0 });
      repaired++;
    }
    expect(repaired).toBeGreaterThan(10);
  });
});

describe('areas', () => {
  it('of an image that is opened never overlap, whatever its header says', async () => {
    for (const [layout] of LAYOUTS) {
      const { bitmapOffset, bitmapLength, dataOffset } = cowAreas({ layout, size: SIZE });
      expect(bitmapOffset + bitmapLength).toBeLessThanOrEqual(dataOffset);
      const error = await refusal(
        openCow(image(layout), { readOnly: true, options: { layout, bitmapOffset: dataOffset } as const }).then(
          async (opened) => {
            // The data follow a bitmap that lies elsewhere.
            expect(Number((await opened.node.format.info()).specific?.data['data-offset'])).toBeGreaterThan(dataOffset);
            return openCow(image(layout), {
              readOnly: true,
              options: { layout, bitmapOffset: dataOffset, dataOffset },
            });
          },
        ),
      );
      expect(error).toMatchObject({ code: 'OPTION', reason: 'cow.overlap' });
    }
  });
});

function pick<T>(random: () => number, list: readonly T[]): T {
  return list[below(random, list.length)] as T;
}
