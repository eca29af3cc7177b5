/** An open cow image: reading, writing, emptying, recording its base, in every layout and with other sectors than the usual ones. */
import { describe, expect, it } from 'vitest';
import { ExtentList } from '../../../src/core/extent.ts';
import { CacheBudget } from '../../../src/core/table-cache.ts';
import { CREATABLE_LAYOUT_IDS, layoutOf } from '../../../src/formats/cow/layouts.ts';
import { MemoryStore } from '../../../src/storage/memory.ts';
import { LateStore } from '../../../src/testing/late-store.ts';
import { below, noise, seededRandom } from '../../../src/testing/random.ts';
import { RecordingStore } from '../../../src/testing/recording-store.ts';
import { bytesAllocatedIn, promisesIn } from '../../support/count.ts';
import { cowAreas, cowImage, patternOf } from '../../support/cow-image.ts';
import {
  BASE_MTIME,
  BASE_NAME,
  baseStatus,
  checkCow,
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
const SIZE = 128 * KiB;
const BASE = pattern(SIZE, 5);

const base = (bytes = BASE): MemoryStore => MemoryStore.from(bytes, { name: 'base', readOnly: true, pageSize: 512 });

const changes = (store: RecordingStore): string[] =>
  store.entries
    .filter(({ kind }) => kind !== 'read')
    .map(({ kind, offset, length }) => (kind === 'flush' ? 'flush' : `${kind} ${offset}+${length}`));

describe('a disk', () => {
  it.each(CREATABLE_LAYOUT_IDS)(
    'of layout %s shows its own sectors, and the base where it has none (C-007, C-014)',
    async (layout) => {
      const present = [0, 7, 8, 100, 101, 102, 255];
      const file = cowImage({ layout, size: SIZE, backingName: BASE_NAME, mtime: BASE_MTIME, present });
      const { node } = await openCow(file, { readOnly: true, backing: base() });
      const model = BASE.slice();
      for (const sector of present) model.set(patternOf(sector), sector * 512);
      expect(await readAll(node)).toEqual(model);
      expect(await readAll(node, 1000, 70_001)).toEqual(model.subarray(1000, 71_001));
    },
  );

  it.each(CREATABLE_LAYOUT_IDS)('of layout %s stores bits and sectors where that layout has them', async (layout) => {
    const sectors = [3, 64, 65, 66, 67, 68, 69, 70, 71, 200, 255];
    const made = await newCow(SIZE, { layout });
    const { node } = await openCow(made, { backing: base() });
    for (const sector of sectors) await node.write(sector * 512, patternOf(sector));
    await node.close();
    const wanted = cowImage({
      layout,
      size: SIZE,
      backingName: BASE_NAME,
      mtime: BASE_MTIME,
      present: sectors,
    });
    const { dataOffset } = cowGeometry(layout, SIZE);
    expect(made.bytes().subarray(0, dataOffset + 256 * 512)).toEqual(wanted.bytes().subarray(0, made.size));
  });

  it.each(
    (['v3', 'v3-broken', 'v2-uml-32', 'v1-le64', 'v1-be32'] as const).flatMap((layout) =>
      [1024, 4096, 65536].map((sectorSize) => [layout, sectorSize] as const),
    ),
  )('of layout %s with sectors of %i bytes is read and written like any other', async (layout, sectorSize) => {
    const sectors = 64;
    const size = sectors * sectorSize;
    const bytes = pattern(size, 3);
    const file = cowImage({ layout, size, sectorSize, backingName: BASE_NAME, mtime: BASE_MTIME, present: [5, 63] });
    const { node } = await openCow(file, { backing: base(bytes) });
    expect(node.format.unit).toBe(sectorSize);
    const model = bytes.slice();
    for (const sector of [5, 63]) model.set(patternOf(sector, sectorSize), sector * sectorSize);
    const random = seededRandom(sectorSize);
    for (let i = 0; i < 30; i++) {
      const length = 1 + below(random, 3 * sectorSize);
      const at = below(random, size - length + 1);
      const written = noise(random, length);
      await node.write(at, written);
      model.set(written, at);
    }
    expect(await readAll(node)).toEqual(model);
    await node.close();
    const again = await openCow(file.reopen({ readOnly: true }), { readOnly: true, backing: base(bytes) });
    expect(await readAll(again.node)).toEqual(model);
    const areas = cowAreas({ layout, size, sectorSize });
    const info = (await again.node.format.info()).specific?.data;
    expect(info).toMatchObject({ 'sector-size': sectorSize, 'data-offset': areas.dataOffset, layout });
  });

  it('of UML may end in the middle of a sector, which is written whole or in part and never past its end', async () => {
    const size = 10 * KiB + 100;
    const bytes = pattern(size, 8);
    const file = await newCow(size);
    const { node } = await openCow(file, { backing: base(bytes) });
    await node.write(size - 1, Uint8Array.of(1));
    expect(file.size).toBe(cowGeometry('v3', size).dataOffset + size);
    const model = bytes.slice();
    model[size - 1] = 1;
    expect(await readAll(node)).toEqual(model);
    await node.discard(10 * KiB, 100);
    model.fill(0, 10 * KiB);
    expect(await readAll(node)).toEqual(model);
    await node.close();
    expect(file.size).toBe(cowGeometry('v3', size).dataOffset + size);
    const again = await openCow(file.reopen(), { backing: base(bytes) });
    expect(await readAll(again.node)).toEqual(model);
    expect((await checkCow(storeOf(file.bytes()))).result.corruptions).toBe(0);
  });

  it('of nothing at all can be opened', async () => {
    for (const layout of ['v3', 'v2-qemu-x86_64', 'v2-uml-32'] as const) {
      const file = cowImage({ layout, size: 0, backingName: BASE_NAME, mtime: BASE_MTIME });
      const { node } = await openCow(file, { options: { layout } });
      expect(node.size).toBe(0);
      await node.close();
    }
  });

  it('tells where a sector lies only when it is there, and otherwise the layer below (C-012)', async () => {
    const file = cowImage({ layout: 'v3', size: SIZE, backingName: BASE_NAME, mtime: BASE_MTIME, present: [2, 3] });
    const { node } = await openCow(file, { readOnly: true, backing: base() });
    const list = new ExtentList();
    list.reset(0);
    await node.extents(0, SIZE, list);
    const { dataOffset } = cowGeometry('v3', SIZE);
    const told = [...list].map(({ start, length, depth, hostOffset }) => [start, length, depth, hostOffset]);
    expect(told).toContainEqual([1024, 1024, 0, dataOffset + 1024]);
    expect(told.filter(([, , depth]) => depth === 0)).toHaveLength(1);
  });

  it('cannot be resized, and nothing can be stored compressed (C-018)', async () => {
    const { node } = await openCow(await newCow(SIZE));
    expect(() => node.truncate(SIZE * 2)).toThrow(
      expect.objectContaining({ code: 'UNSUPPORTED', reason: 'store.truncate' }),
    );
    await expect((async () => await node.write(0, new Uint8Array(512), { compressed: true }))()).rejects.toMatchObject({
      code: 'UNSUPPORTED',
    });
    expect(node.format.resize).toBeUndefined();
    expect(node.supports).toMatchObject({ truncate: false, discard: true, writeZeroes: 'fast' });
  });

  it('that is only read, checked and asked for its facts is never written, and neither is one that is opened for nothing', async () => {
    const made = cowImage({ layout: 'v2-uml-32', size: SIZE, backingName: BASE_NAME, mtime: BASE_MTIME, present: [1] });
    for (const readOnly of [true, false]) {
      const store = new RecordingStore(storeOf(made.bytes()));
      const { node } = await openCow(store, { readOnly, backing: base() });
      await readAll(node);
      await node.format.info();
      await node.format.check?.check({});
      await node.close();
      expect(changes(store).filter((change) => change !== 'flush')).toEqual([]);
      if (readOnly) expect(changes(store)).toEqual([]);
    }
  });

  it('holds more than 2^32 sectors', async () => {
    const size = 2 ** 41 + 2 ** 30;
    const file = await newCow(size, { pageSize: 65536 });
    const { node } = await openCow(file, { backing: zeros() });
    const places = [0, 2 ** 40, 2 ** 41 - 512, 2 ** 41, size - 512];
    for (const at of places) await node.write(at + 100, pattern(300, at % 91));
    await node.close();
    const { bitmapOffset } = cowGeometry('v3', size);
    const bits = new Uint8Array(2);
    await file.reopen().read(bitmapOffset + 2 ** 29 - 1, bits);
    expect([...bits]).toEqual([0x80, 0x01]);
    const again = await openCow(file.reopen({ readOnly: true }), { readOnly: true, backing: zeros() });
    for (const at of places) {
      const expected = new Uint8Array(512);
      expected.set(pattern(300, at % 91), 100);
      expect(await readAll(again.node, at, 512)).toEqual(expected);
    }
  });

  it('of a TiB is opened and mapped with no more tables in memory than the budget allows', async () => {
    const size = 2 ** 40;
    const file = await newCow(size, { pageSize: 65536 });
    const cache = new CacheBudget(512 * KiB);
    const { node } = await openCow(file, { cache, backing: zeros() });
    for (let i = 0; i < 20; i++) await node.write(Math.floor((size * i) / 20 / 512) * 512, pattern(512));
    await node.flush();
    const list = new ExtentList();
    let found = 0;
    let most = 0;
    for (let at = 0; at < size; at = list.end) {
      list.reset(at);
      await node.extents(at, size - at, list);
      for (const { depth } of list) if (depth === 0) found++;
      most = Math.max(most, cache.used);
    }
    expect(found).toBe(20);
    expect(most).toBeGreaterThan(0);
    expect(most).toBeLessThanOrEqual(cache.limit);
  });

  it('without a backing file holds no zeros that nobody needs', async () => {
    const file = await newCow(SIZE, { layout: 'v2-qemu-x86_64', backing: false });
    const store = new RecordingStore(file);
    const { node } = await openCow(store);
    await node.writeZeroes(0, SIZE);
    await node.discard(0, SIZE);
    await node.flush();
    expect(changes(store).filter((change) => change !== 'flush')).toEqual([]);
    await node.write(512, pattern(512));
    await node.writeZeroes(0, SIZE);
    expect(await readAll(node)).toEqual(new Uint8Array(SIZE));
    expect((await node.format.check?.check({}))?.allocatedClusters).toBe(1);
  });

  it('that need not be durable is written without a single flush', async () => {
    const store = new RecordingStore(await newCow(SIZE, { layout: 'v2-qemu-x86_64' }));
    const { node } = await openCow(store, { unsafe: true, backing: base() });
    await node.write(100, pattern(10_000));
    await node.writeZeroes(20_000, 5000);
    await node.flush();
    expect(changes(store).length).toBeGreaterThan(0);
    expect(changes(store)).not.toContain('flush');
  });
});

describe('emptying a disk', () => {
  it.each(CREATABLE_LAYOUT_IDS)(
    'of layout %s shows its base again and gives the space back, header and length as they were',
    async (layout) => {
      const file = await newCow(SIZE, { layout });
      const { node } = await openCow(file, { backing: base() });
      await node.write(0, pattern(SIZE));
      await node.flush();
      await node.write(300, pattern(99));
      const length = file.size;
      const before = file.bytes().subarray(0, layoutOf(layout).headerSize);
      const space = async (): Promise<number> => (await file.status()).allocatedBytes ?? 0;
      const full = await space();
      await node.makeEmpty();
      expect(await readAll(node)).toEqual(BASE);
      expect(file.size).toBe(length);
      expect(file.bytes().subarray(0, before.length)).toEqual(before);
      expect(await space()).toBeLessThan(full - SIZE + 4096);
      // And it can be written again.
      await node.write(5000, pattern(1000, 2));
      await node.close();
      const again = await openCow(file.reopen({ readOnly: true }), { readOnly: true, backing: base() });
      const model = BASE.slice();
      model.set(pattern(1000, 2), 5000);
      expect(await readAll(again.node)).toEqual(model);
    },
  );

  it('works where space cannot be given back cheaply', async () => {
    const file = await newCow(SIZE);
    const { writeZeroes } = file;
    file.writeZeroes = (offset, length, options) => {
      if (options?.fastOnly !== true) return writeZeroes.call(file, offset, length, options);
      throw Object.assign(new Error('not here'), { [Symbol.for('cowdisk.BlockError')]: true, code: 'UNSUPPORTED' });
    };
    const { node } = await openCow(file, { backing: base() });
    await node.write(0, pattern(SIZE));
    await node.makeEmpty();
    expect(await readAll(node)).toEqual(BASE);
  });

  it('waits for what runs, and drops that too', async () => {
    const { node } = await openCow(new LateStore({ seed: 4 }, await newCow(SIZE)), { backing: base() });
    const running = Array.from({ length: 8 }, (_, i) => node.write(i * 9000, pattern(5000)));
    await Promise.all([...running, node.makeEmpty()]);
    expect(await readAll(node)).toEqual(BASE);
    await node.write(10_000, pattern(500));
    expect(await readAll(node, 10_000, 500)).toEqual(pattern(500));
    await node.close();
  });
});

describe('recording the base', () => {
  it.each(CREATABLE_LAYOUT_IDS)(
    'with the same name changes the four bytes of the time, in one sector: %s',
    async (layout) => {
      const store = new RecordingStore(await newCow(SIZE, { layout }));
      const { node } = await openCow(store, {
        backing: base(),
        status: baseStatus({ modifiedSeconds: 5, size: SIZE }),
        options: { ignoreMismatch: true },
      });
      await node.changeBacking({ name: BASE_NAME });
      const { mtimeAt } = layoutOf(layout);
      expect(changes(store)).toEqual([`write ${mtimeAt}+4`, 'flush']);
      expect(Math.floor(mtimeAt / 512)).toBe(Math.floor((mtimeAt + 3) / 512));
      expect((await node.format.info()).specific?.data).toMatchObject({
        'backing-mtime-recorded': '1970-01-01T00:00:05Z',
        'backing-as-recorded': 'yes',
      });
      await node.close();
    },
  );

  it('with another name fills the whole field, and keeps everything else', async () => {
    for (const layout of ['v3', 'v1-le32', 'v2-qemu-i386', 'v3-broken'] as const) {
      const { nameAt, nameLength } = layoutOf(layout);
      const file = cowImage({
        layout,
        size: SIZE,
        backingName: '/a/long/name/of/a/base.img',
        mtime: 77,
        garbage: () => 0xaa,
        present: [4],
      });
      const before = file.bytes();
      const { node } = await openCow(file, {
        backing: base(),
        status: baseStatus({ absolute: '/b.img' }),
        options: { layout, ignoreMismatch: true },
      });
      await node.changeBacking({ name: '/b.img', format: 'raw' });
      expect(await node.format.info()).toMatchObject({ backing: { name: '/b.img' } });
      await node.close();
      const field = new Uint8Array(nameLength);
      field.set(new TextEncoder().encode('/b.img'));
      const expected = before.slice();
      expected.set(field, nameAt);
      new DataView(expected.buffer).setUint32(layoutOf(layout).mtimeAt, BASE_MTIME, layoutOf(layout).littleEndian);
      expect(file.bytes()).toEqual(expected);
    }
  });

  it("to none is for QEMU's layouts", async () => {
    const uml = await openCow(await newCow(SIZE));
    await expect(uml.node.changeBacking(undefined)).rejects.toMatchObject({
      code: 'OPTION',
      reason: 'cow.backing-needed',
    });
    const file = await newCow(SIZE, { layout: 'v2-qemu-x86_64' });
    const qemu = await openCow(file, { backing: base() });
    await qemu.node.write(0, BASE);
    await qemu.node.changeBacking(undefined);
    expect((await qemu.node.format.info()).backing).toBeUndefined();
    await qemu.node.close();
    const again = await openCow(file.reopen());
    expect(again.node.children).toHaveLength(1);
    expect(await readAll(again.node)).toEqual(BASE);
  });

  it('that cannot be recorded leaves the file as it was', async () => {
    const file = await newCow(SIZE);
    const before = file.bytes();
    const { node } = await openCow(file, { backing: base() });
    const refused = [
      [{ name: 'relative.img' }, 'cow.backing-relative'],
      [{ name: '/b.qcow2', format: 'qcow2' }, 'cow.backing-format'],
      [{ name: `/${'x'.repeat(4096)}` }, 'cow.name-long'],
      [{ name: '/a\nb' }, 'cow.name-bytes'],
    ] as const;
    for (const [record, reason] of refused) {
      await expect(node.changeBacking(record)).rejects.toMatchObject({ code: 'OPTION', reason });
    }
    await node.close();
    expect(file.bytes()).toEqual(before);
    const other = await openCow(file.reopen(), {
      backing: base(),
      status: baseStatus({ size: SIZE - 512 }),
      options: { ignoreMismatch: true },
    });
    await expect(other.node.changeBacking({ name: '/b.img' })).rejects.toMatchObject({ reason: 'cow.backing-size' });
    expect(file.bytes()).toEqual(before);
  });

  it('of an image that is open read-only is refused', async () => {
    const { node } = await openCow(storeOf((await newCow(SIZE)).bytes(), { readOnly: true }), { readOnly: true });
    await expect(node.changeBacking({ name: '/b.img' })).rejects.toMatchObject({ code: 'READ_ONLY' });
    await expect(node.makeEmpty()).rejects.toMatchObject({ code: 'READ_ONLY' });
  });
});

describe('a disk with every sector in its file, over a store that answers at once', () => {
  const DISK = 64 * MiB;

  it.each([
    ['v3', 4 * KiB],
    ['v3', 2 * MiB],
    ['v2-qemu-x86_64', 4 * KiB],
    ['v2-qemu-x86_64', 2 * MiB],
  ] as const)(
    'of layout %s is read by %i bytes without a promise, and without an object per sector',
    async (layout, length) => {
      const file = await newCow(DISK, { layout, pageSize: 65536 });
      const { bitmapOffset, bitmapLength } = cowGeometry(layout, DISK);
      await file.truncate(cowGeometry(layout, DISK).dataOffset + DISK);
      await file.write(bitmapOffset, new Uint8Array(bitmapLength).fill(0xff));
      await file.close();
      const { node } = await openCow(file.reopen({ readOnly: true }), { readOnly: true, backing: zeros() });
      expect(node.supports.sync).toBe(true);
      const into = new Uint8Array(length);
      const requests = DISK / length;
      const work = (): void => {
        for (let at = 0; at < DISK; at += length) {
          if (node.read(at, into) !== undefined) throw new Error('must not wait');
        }
      };
      work();
      expect(promisesIn(work)).toBe(0);
      // 8 sectors a request, or 4096: a single object for each would be hundreds of bytes, or tens of thousands.
      expect(bytesAllocatedIn(work) / requests).toBeLessThan(length === 4 * KiB ? 300 : 4 * KiB);
    },
  );

  it('is overwritten in place without a promise', async () => {
    const file = await newCow(MiB);
    const { node } = await openCow(file, { backing: zeros() });
    await node.write(0, pattern(MiB));
    await node.flush();
    const bytes = pattern(4096, 3);
    const work = (): void => {
      for (let at = 0; at < MiB; at += 4096) {
        if (node.write(at, bytes) !== undefined) throw new Error('must not wait');
      }
    };
    expect(promisesIn(work)).toBe(0);
  });
});
