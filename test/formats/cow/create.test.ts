/** New cow images: what is recorded, what is refused, what a crash leaves; and how converting makes and reads them. */
import { describe, expect, it } from 'vitest';
import { BlockError, isBlockError } from '../../../src/base/errors.ts';
import { secretsOf } from '../../../src/core/secrets.ts';
import { cow } from '../../../src/formats/cow/driver.ts';
import { CREATABLE_LAYOUT_IDS, layoutOf } from '../../../src/formats/cow/layouts.ts';
import type { CreateImageOptions } from '../../../src/image/create.ts';
import { MemoryStore } from '../../../src/storage/memory.ts';
import { noise, seededRandom } from '../../../src/testing/random.ts';
import { durableEntries, type LogEntry, RecordingStore, replay } from '../../../src/testing/recording-store.ts';
import { checkImage } from '../../../src/tools/check.ts';
import { convertImage } from '../../../src/tools/convert.ts';
import { imageInfo } from '../../../src/tools/info.ts';
import { measureImage } from '../../../src/tools/measure.ts';
import { CowFiles } from '../../support/cow-files.ts';
import {
  BASE_MTIME,
  baseStatus,
  cowGeometry,
  newCow,
  openCow,
  pattern,
  readAll,
  storeOf,
  zeros,
} from '../../support/cow-under-test.ts';

const KiB = 1024;
const MiB = 1024 * KiB;
const SIZE = 256 * KiB;
const BASE = pattern(SIZE, 9);

function withBase(bytes = BASE, mtime = BASE_MTIME): CowFiles {
  const files = new CowFiles();
  files.put('/images/base.img', bytes, mtime);
  return files;
}

const OVER_RAW = { backing: { name: 'base.img', format: 'raw' } } as const;

async function refusal(running: Promise<unknown>): Promise<BlockError> {
  try {
    await running;
  } catch (error) {
    if (isBlockError(error)) return error;
    throw error;
  }
  throw new Error('nothing was refused');
}

describe('a new image', () => {
  it.each(CREATABLE_LAYOUT_IDS)('of layout %s is found again, empty, over its base', async (layout) => {
    const files = withBase();
    await files.create('/images/new.cow', { ...OVER_RAW, options: { layout } });
    const absolute = layoutOf(layout).qemu ? 'base.img' : '/images/base.img';
    const info = await imageInfo('/images/new.cow', { ...files.drivers, lookAt: 'allow' });
    expect(info).toMatchObject({ format: 'cow', virtualSize: SIZE, backing: { name: absolute } });
    expect(info.specific?.data).toMatchObject({
      layout,
      'sector-size': 512,
      'backing-mtime-recorded': '2001-09-09T01:46:40Z',
      'backing-as-recorded': 'yes',
    });
    await using image = await files.image('/images/new.cow', { references: 'allow', probeBacking: true });
    expect(await readAll(image.node)).toEqual(BASE);
    expect(files.bytes('/images/new.cow')).toHaveLength(
      layoutOf(layout).qemu
        ? cowGeometry(layout, SIZE).bitmapOffset + cowGeometry(layout, SIZE).bitmapLength
        : cowGeometry(layout, SIZE).dataOffset + SIZE,
    );
  });

  it('is v3 as UML writes it today: aligned to 4096, name absolute and filled up with zeros', async () => {
    const files = withBase();
    await files.create('/images/new.cow', OVER_RAW);
    const bytes = files.bytes('/images/new.cow');
    const view = new DataView(bytes.buffer);
    expect([0, 4, 8, 12, 16, 20, 24, 28].map((at) => view.getUint32(at))).toEqual([
      0x4f4f4f4d,
      3,
      BASE_MTIME,
      0,
      SIZE,
      512,
      4096,
      0,
    ]);
    const name = '/images/base.img';
    expect(Buffer.from(bytes.subarray(32, 32 + name.length)).toString()).toBe(name);
    expect(bytes.subarray(32 + name.length)).toEqual(new Uint8Array(bytes.length - 32 - name.length));
    expect(bytes.length).toBe(12288 + SIZE);
  });

  it("is QEMU's for x86_64 without a backing file, and then as long as header and bitmap (C-016)", async () => {
    const files = new CowFiles();
    await files.create('new.cow', { size: SIZE });
    const bytes = files.bytes('new.cow');
    const view = new DataView(bytes.buffer);
    expect(bytes.length).toBe(1056 + SIZE / 512 / 8);
    expect([
      view.getUint32(0),
      view.getUint32(4),
      view.getUint32(1032),
      view.getUint32(1044),
      view.getUint32(1048),
    ]).toEqual([0x4f4f4f4d, 2, 0, SIZE, 512]);
    await using image = await files.image('new.cow');
    expect(await readAll(image.node)).toEqual(new Uint8Array(SIZE));
    expect((await image.info()).backing).toBeUndefined();
  });

  it("has the size of its base to the byte in UML's layouts, whole sectors in QEMU's", async () => {
    const base = pattern(100 * KiB + 100, 3);
    const files = withBase(base);
    await files.create('/images/uml.cow', OVER_RAW);
    await files.create('/images/qemu.cow', { ...OVER_RAW, options: { layout: 'v2-qemu-i386' } });
    await using uml = await files.image('/images/uml.cow', { references: 'allow' });
    expect(uml.virtualSize).toBe(base.length);
    expect(await readAll(uml.node)).toEqual(base);
    await using qemu = await files.image('/images/qemu.cow', { references: 'allow', probeBacking: true });
    expect(qemu.virtualSize).toBe(100 * KiB + 512);
    expect((await readAll(qemu.node)).subarray(0, base.length)).toEqual(base);
  });

  it('of QEMU may be larger or smaller than its base', async () => {
    const files = withBase();
    for (const size of [SIZE - 512, SIZE + 8 * KiB]) {
      await files.create('q.cow', {
        backing: { name: '/images/base.img', format: 'raw' },
        size,
        options: { layout: 'v2-qemu-x86_64' },
      });
      await using image = await files.image('q.cow', { references: 'allow', probeBacking: true });
      const expected = new Uint8Array(size);
      expected.set(BASE.subarray(0, size));
      expect(await readAll(image.node)).toEqual(expected);
    }
  });

  it('records the time 0 where the base has none or is not looked at (C-016)', async () => {
    const files = withBase();
    files.times.clear();
    await files.create('/images/a.cow', { ...OVER_RAW, options: { layout: 'v2-qemu-x86_64' } });
    await files.create('/images/b.cow', {
      backing: { name: '/nowhere/else.img', format: 'raw' },
      backingUnchecked: true,
      size: SIZE,
    });
    expect(new DataView(files.bytes('/images/a.cow').buffer).getUint32(1032)).toBe(0);
    expect(new DataView(files.bytes('/images/b.cow').buffer).getUint32(8)).toBe(0);
    const info = await imageInfo('/images/b.cow', files.drivers);
    expect(info.backing?.name).toBe('/nowhere/else.img');
  });

  it('takes times before 1970 and after 2106 modulo 2^32', async () => {
    for (const [mtime, recorded] of [
      [2 ** 32 + 5.9, 5],
      [-1, 2 ** 32 - 1],
    ] as const) {
      const files = withBase(BASE, mtime);
      await files.create('/images/new.cow', OVER_RAW);
      expect(new DataView(files.bytes('/images/new.cow').buffer).getUint32(8)).toBe(recorded);
      await using image = await files.image('/images/new.cow', { references: 'allow', readOnly: false });
      expect((await image.info()).specific?.data['backing-as-recorded']).toBe('yes');
    }
  });
});

describe('what cannot be made', () => {
  const OLD_LAYOUTS = CREATABLE_LAYOUT_IDS.filter((id) => layoutOf(id).bitmapRounding === 'down');

  async function expectRefused(
    files: CowFiles,
    options: Partial<CreateImageOptions>,
    code: string,
    reason: string,
    message: RegExp,
  ): Promise<void> {
    const before = files.names();
    const error = await refusal(files.create('/images/new.cow', options));
    expect({ code: error.code, reason: error.reason }).toEqual({ code, reason });
    expect(error.message).toMatch(message);
    expect(files.names(), 'nothing is left').toEqual(before);
    expect(files.open).toEqual([]);
  }

  it('UML without a backing file', async () => {
    await expectRefused(
      new CowFiles(),
      { size: SIZE, options: { layout: 'v3' } },
      'OPTION',
      'cow.backing-needed',
      /needs a backing file/,
    );
  });

  it('UML over anything but raw', async () => {
    const files = withBase();
    await files.create('/images/base.qcow2', { format: 'qcow2', size: SIZE });
    const backing = { name: '/images/base.qcow2', format: 'qcow2' };
    await expectRefused(files, { backing }, 'OPTION', 'cow.backing-format', /raw backing file, not qcow2/);
    await files.create('/images/new.cow', { backing, options: { layout: 'v2-qemu-x86_64' } });
  });

  it('UML of another size than its base', async () => {
    for (const size of [SIZE - 512, SIZE + 512]) {
      const text = new RegExp(`size of its backing file, ${SIZE} bytes, not ${size}`);
      await expectRefused(withBase(), { ...OVER_RAW, size }, 'OPTION', 'cow.backing-size', text);
    }
  });

  it('UML over a relative name that is not there to make absolute', async () => {
    const options = { backing: { name: 'gone.img', format: 'raw' }, backingUnchecked: true, size: SIZE };
    await expectRefused(new CowFiles(), options, 'OPTION', 'cow.backing-relative', /"gone.img" is not there/);
  });

  it('anything over a base that is not there (069)', async () => {
    const options = { backing: { name: '/images/gone.img', format: 'raw' } };
    const both = /"\/images\/new.cow": could not open the backing image: .*"\/images\/gone.img"/;
    await expectRefused(new CowFiles(), options, 'NOT_FOUND', 'create.backing-open', both);
  });

  it.each(OLD_LAYOUTS)('%s with sectors that have no bit; the size that the message advises works', async (layout) => {
    const size = 65 * 512;
    const files = withBase(pattern(size));
    const error = await refusal(files.create('/images/new.cow', { ...OVER_RAW, options: { layout } }));
    expect(error).toMatchObject({ code: 'OPTION', reason: 'cow.tail-create', details: { layout, size } });
    const multiple = Number(/multiple of (\d+)/.exec(error.message)?.[1]);
    const good = withBase(pattern(Math.ceil(size / multiple) * multiple));
    await good.create('/images/new.cow', { ...OVER_RAW, options: { layout } });
  });

  it.each(CREATABLE_LAYOUT_IDS)(
    '%s with a name longer than its field, though one byte less is fine (C-016)',
    async (layout) => {
      const room = layoutOf(layout).nameLength - 1;
      const name = (length: number): string => `/${'d/'.repeat(length)}`.slice(0, length - 1).padEnd(length, 'x');
      const files = new CowFiles();
      const create = (length: number): Promise<void> => {
        files.put(name(length), BASE, BASE_MTIME);
        return files.create('/images/new.cow', { backing: { name: name(length), format: 'raw' }, options: { layout } });
      };
      await create(room);
      expect((await imageInfo('/images/new.cow', files.drivers)).backing?.name).toBe(name(room));
      const error = await refusal(create(room + 1));
      expect(error).toMatchObject({
        code: 'OPTION',
        reason: 'cow.name-long',
        details: { length: room + 1, bound: room },
      });
    },
  );

  it('a name with control characters', async () => {
    const files = new CowFiles();
    files.put('/images/a\nb', BASE, BASE_MTIME);
    const backing = { name: '/images/a\nb', format: 'raw' };
    await expectRefused(files, { backing }, 'OPTION', 'cow.name-bytes', /control character/);
  });

  it('a disk that ends past 2^53 in its file', async () => {
    const options = { size: Number.MAX_SAFE_INTEGER - 511 };
    await expectRefused(new CowFiles(), options, 'TOO_LARGE', 'cow.size', /does not fit into a file/);
  });

  it('a layout that is only an accident, or none', async () => {
    for (const layout of ['hybrid-v3-over-v2-32', 'v4']) {
      const error = await refusal(withBase().create('/images/new.cow', { ...OVER_RAW, options: { layout } }));
      expect(error.code).toBe('OPTION');
    }
  });
});

describe('a crash while an image is made', () => {
  it.each(CREATABLE_LAYOUT_IDS)('leaves no cow at all or a whole one: %s', async (layout) => {
    const { nameLength, qemu } = layoutOf(layout);
    const size = 64 * KiB;
    const backingName = `/images/${'very-long/'.repeat(400)}`.slice(0, Math.min(nameLength - 1, 3000));
    const store = new RecordingStore(new MemoryStore({ pageSize: 512 }));
    await cow.create?.(
      {
        file: store,
        name: 'disk',
        createReference: () => Promise.reject(new Error('no references here')),
        secret: secretsOf(undefined),
        referenceStatus: () => Promise.resolve(baseStatus({ absolute: backingName })),
      },
      size,
      { layout, backingFile: backingName, backingFormat: undefined, size: undefined },
    );
    const { entries } = store;
    const whole = replay(entries, new Uint8Array(0), () => true);
    const last = Math.max(...entries.map(({ ended }) => ended as number)) + 1;
    let states = 0;
    let found = 0;
    for (let tick = 0; tick <= last; tick++) {
      const durable = durableEntries(entries, tick);
      const open = entries.filter((e) => e.kind !== 'flush' && e.began < tick && !durable.has(e));
      for (const kept of subsets(open)) {
        const state = replay(entries, new Uint8Array(0), (entry) => durable.has(entry) || (kept.get(entry) ?? false));
        states++;
        if (await isCow(state)) {
          found++;
          expect(state).toEqual(whole);
        } else {
          expect(cow.probe({ head: state.subarray(0, 2048), fileSize: state.length, name: 'disk' })).toBe(0);
        }
      }
    }
    // Headers of one sector have few states, the others hundreds.
    expect(states).toBeGreaterThan(layoutOf(layout).headerSize > 512 ? 16 : 4);
    expect(found).toBeGreaterThan(0);
    const { node } = await openCow(storeOf(whole, { readOnly: true }), { readOnly: true, backing: zeros() });
    expect(await node.format.info()).toMatchObject({ backing: { name: backingName }, specific: { data: { layout } } });
    expect(node.size).toBe(size);
    expect(qemu).toBe(layout.startsWith('v2-qemu'));
  });

  async function isCow(state: Uint8Array): Promise<boolean> {
    try {
      await openCow(storeOf(state, { readOnly: true }), { readOnly: true });
      return true;
    } catch (error) {
      if (error instanceof BlockError && error.reason === 'cow.magic') return false;
      throw error;
    }
  }

  /** Each entry lost, kept, or torn in every way, by sectors. */
  function* subsets(open: readonly LogEntry[]): Generator<Map<LogEntry, (sector: number) => boolean>> {
    const [entry, ...rest] = open;
    if (entry === undefined) {
      yield new Map();
      return;
    }
    const first = Math.floor(entry.offset / 512);
    const sectors = entry.kind === 'truncate' ? 1 : Math.floor((entry.offset + entry.length - 1) / 512) - first + 1;
    for (let mask = 0; mask < 2 ** sectors; mask++) {
      for (const others of subsets(rest)) {
        const kept = new Map(others);
        if (mask > 0) kept.set(entry, (sector) => Math.floor(mask / 2 ** (sector - first)) % 2 === 1);
        yield kept;
      }
    }
  }
});

describe('converting', () => {
  const random = seededRandom(7);
  const DISK = new Uint8Array(MiB + 5 * 512);
  DISK.set(noise(random, 100 * KiB), 3000);
  DISK.set(noise(random, 40 * KiB), 700 * KiB + 17);
  DISK.set(noise(random, 512), MiB + 4 * 512);

  async function contentOf(files: CowFiles, name: string): Promise<Uint8Array> {
    await using image = await files.image(name, { references: 'allow', probeBacking: true });
    return await readAll(image.node);
  }

  const convert = (files: CowFiles, source: string, target: Parameters<typeof convertImage>[1]) =>
    convertImage([source], target, { ...files.drivers, references: 'allow', probeBacking: true });

  async function expectSound(files: CowFiles, name: string): Promise<void> {
    const { result } = await checkImage(name, { ...files.drivers, references: 'allow' });
    expect(result).toMatchObject({ corruptions: 0, leaks: 0, checkErrors: 0 });
  }

  it("raw to cow makes QEMU's layout for x86_64, in which zeros take no sectors", async () => {
    const files = new CowFiles();
    files.put('disk.raw', DISK);
    const result = await convert(files, 'disk.raw', { name: 'disk.cow', format: 'cow' });
    expect(result.virtualSize).toBe(DISK.length);
    expect(await contentOf(files, 'disk.cow')).toEqual(DISK);
    expect((await imageInfo('disk.cow', files.drivers)).specific?.data).toMatchObject({ layout: 'v2-qemu-x86_64' });
    await using image = await files.image('disk.cow');
    let present = 0;
    for await (const extent of image.extents()) if (extent.present && extent.depth === 0) present += extent.length;
    expect(present).toBeGreaterThanOrEqual(140 * KiB);
    expect(present).toBeLessThan(160 * KiB);
    await expectSound(files, 'disk.cow');
  });

  it('cow to raw gives the disk back', async () => {
    const files = new CowFiles();
    files.put('disk.raw', DISK);
    await convert(files, 'disk.raw', { name: 'disk.cow', format: 'cow', options: { layout: 'v2-qemu-i386' } });
    await convert(files, 'disk.cow', { name: 'again.raw', format: 'raw' });
    expect(files.bytes('again.raw')).toEqual(DISK);
  });

  it.each(['v3', 'v3-broken', 'v2-qemu-x86_64', 'v2-uml-64'] as const)(
    'qcow2 to %s over a base stores what differs from the base and no more',
    async (layout) => {
      const size = DISK.length - (DISK.length % 4096);
      const files = withBase(DISK.slice(0, size));
      await files.create('/images/changed.qcow2', { format: 'qcow2', ...OVER_RAW });
      const changed = DISK.slice(0, size);
      {
        await using image = await files.image('/images/changed.qcow2', { references: 'allow', readOnly: false });
        await image.write(64 * KiB, pattern(8192, 4));
        changed.set(pattern(8192, 4), 64 * KiB);
        await image.writeZeroes(704 * KiB, 64 * KiB);
        changed.fill(0, 704 * KiB, 768 * KiB);
      }
      const result = await convert(files, '/images/changed.qcow2', {
        name: '/images/changed.cow',
        format: 'cow',
        options: { layout },
        backing: { name: 'base.img', format: 'raw' },
      });
      expect(result.kept).toBeGreaterThan(size / 2);
      expect(await contentOf(files, '/images/changed.cow')).toEqual(changed);
      expect(files.bytes('/images/base.img')).toEqual(DISK.slice(0, size));
      await expectSound(files, '/images/changed.cow');
    },
  );

  it('a chain of cow files to qcow2 merges it', async () => {
    const files = withBase();
    await files.create('/images/one.cow', OVER_RAW);
    const model = BASE.slice();
    const write = async (name: string, at: number, bytes: Uint8Array): Promise<void> => {
      await using image = await files.image(name, { references: 'allow', probeBacking: true, readOnly: false });
      await image.write(at, bytes);
      model.set(bytes, at);
    };
    await write('/images/one.cow', 1000, pattern(5000, 2));
    // A cow over a cow is something that only QEMU ever did.
    await files.create('/images/two.cow', {
      backing: { name: '/images/one.cow', format: 'cow' },
      options: { layout: 'v2-qemu-x86_64' },
    });
    await write('/images/two.cow', 3000, pattern(9000, 3));
    await convert(files, '/images/two.cow', { name: '/images/all.qcow2', format: 'qcow2' });
    expect(await contentOf(files, '/images/two.cow')).toEqual(model);
    expect(await contentOf(files, '/images/all.qcow2')).toEqual(model);
    expect((await imageInfo('/images/all.qcow2', files.drivers)).backing).toBeUndefined();
  });

  it('into a cow that is there already overwrites it', async () => {
    const files = new CowFiles();
    files.put('disk.raw', DISK);
    await files.create('there.cow', { size: 2 * MiB });
    {
      await using image = await files.image('there.cow', { readOnly: false });
      await image.write(0, pattern(2 * MiB));
    }
    await convert(files, 'disk.raw', { name: 'there.cow', format: 'cow', existing: true });
    const expected = pattern(2 * MiB);
    expected.set(DISK);
    expect((await contentOf(files, 'there.cow')).subarray(0, DISK.length)).toEqual(expected.subarray(0, DISK.length));
  });

  it('of compressed data into cow is refused before anything is touched', async () => {
    const files = new CowFiles();
    files.put('disk.raw', DISK);
    await expect(
      convertImage(['disk.raw'], { name: 'disk.cow', format: 'cow' }, { ...files.drivers, compressed: true }),
    ).rejects.toMatchObject({ reason: 'convert.compress-unsupported' });
    expect(files.names()).toEqual(['disk.raw']);
  });
});

describe('measuring', () => {
  it('tells the length of the file, which is the same whatever the disk holds', async () => {
    const files = new CowFiles();
    const measure = (size: number, options = {}) => measureImage({ ...files.drivers, format: 'cow', size, options });
    expect(await measure(MiB)).toEqual({ required: 1536 + MiB, fullyAllocated: 1536 + MiB });
    expect(await measure(MiB, { backingFile: 'x' })).toEqual({ required: 12288 + MiB, fullyAllocated: 12288 + MiB });
    expect((await measure(MiB, { layout: 'v1-le32' })).required).toBe(1024 + MiB);
    expect((await measure(1000)).required).toBe(1536 + 1024);
    // What converting makes is no longer.
    files.put('disk.raw', pattern(MiB));
    await convertImage(['disk.raw'], { name: 'disk.cow', format: 'cow' }, files.drivers);
    expect(files.bytes('disk.cow').length).toBe(1536 + MiB);
  });

  it('agrees with what is created', async () => {
    for (const layout of CREATABLE_LAYOUT_IDS) {
      const file = await newCow(MiB, { layout });
      const { required } = await measureImage({ formats: [cow], format: 'cow', size: MiB, options: { layout } });
      await file.close();
      const again = file.reopen();
      const { node } = await openCow(again, { backing: zeros() });
      await node.write(0, pattern(MiB));
      await node.close();
      expect(again.size).toBe(required);
    }
  });
});
