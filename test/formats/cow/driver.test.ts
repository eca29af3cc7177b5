/** Opening cow images: by what they look like or as the caller says; over the base that the header means, or another one. */
import { describe, expect, it } from 'vitest';
import type { ImageEvent } from '../../../src/core/format.ts';
import { cow } from '../../../src/formats/cow/driver.ts';
import { layoutOf } from '../../../src/formats/cow/layouts.ts';
import type { MemoryStore } from '../../../src/storage/memory.ts';
import { RecordingStore } from '../../../src/testing/recording-store.ts';
import { imageInfo } from '../../../src/tools/info.ts';
import { CowFiles } from '../../support/cow-files.ts';
import { type CowImageLayout, type CowImageSpec, cowAreas, cowImage, patternOf } from '../../support/cow-image.ts';
import {
  BASE_MTIME,
  BASE_NAME,
  baseStatus,
  checkCow,
  newCow,
  openCow,
  pattern,
  readAll,
  storeOf,
  zeros,
} from '../../support/cow-under-test.ts';

const KiB = 1024;
const SIZE = 128 * KiB;
const BASE = pattern(SIZE, 5);

const warnings = (events: readonly ImageEvent[]): string[] =>
  events.map((event) => (event.type === 'warning' ? `${event.reason}: ${event.message}` : event.type));

function image(layout: CowImageLayout, more: Partial<CowImageSpec> = {}): MemoryStore {
  return cowImage({ layout, size: SIZE, backingName: BASE_NAME, mtime: BASE_MTIME, present: [1], ...more });
}

describe('probing', () => {
  it('looks at magic, version and length, and never below 90 for a cow (C-001, C-002)', () => {
    const probe = (bytes: Uint8Array): number =>
      cow.probe({ head: bytes.subarray(0, 2048), fileSize: bytes.length, name: 'x' });
    const bytes = image('v3').bytes();
    expect(probe(bytes)).toBe(90);
    expect(probe(image('v1-le32').bytes())).toBe(90);
    expect(probe(bytes.subarray(0, 4127))).toBe(0);
    const other = bytes.slice();
    other[7] = 4;
    expect(probe(other)).toBe(0);
    other.set([0, 0, 0, 0], 0);
    expect(probe(other)).toBe(0);
    expect(probe(new Uint8Array(0))).toBe(0);
  });

  it('is left to the caller where he says so: a raw disk whose guest wrote a cow header stays raw', async () => {
    const files = new CowFiles();
    files.put('disk.raw', image('v3').bytes());
    await using named = await files.image('disk.raw', { format: 'raw' });
    expect(named.virtualSize).toBe(image('v3').size);
    await using probed = await files.image('disk.raw', { references: 'layer-only' });
    expect(probed.format).toBe('cow');
    const [, ...others] = files.drivers.formats;
    await using qemu = await files.image('disk.raw', { probed: others });
    expect(qemu.format).toBe('raw');
  });
});

describe('a base that is not as recorded', () => {
  const CASES = [
    [
      'another time',
      { modifiedSeconds: BASE_MTIME + 1 },
      /changed at 2001-09-09T01:46:41Z, the header says 2001-09-09T01:46:40Z/,
    ],
    ['a smaller size', { size: SIZE - 512 }, /it has 130560 bytes, the header says 131072/],
    ['a larger size', { size: SIZE + 1 }, /it has 131073 bytes, the header says 131072/],
  ] as const;

  it.each(CASES)('(%s) is a warning for readers', async (_name, changed, text) => {
    const status = baseStatus({ size: SIZE, ...changed });
    const { node, events } = await openCow(image('v3'), { readOnly: true, status, backing: storeOf(BASE) });
    expect(warnings(events)).toHaveLength(1);
    expect(warnings(events)[0]).toMatch(
      /^cow\.mismatch: cow "disk": backing file "\/images\/base.img" is not as recorded: /,
    );
    expect(warnings(events)[0]).toMatch(text);
    const model = BASE.slice();
    model.set(patternOf(1), 512);
    expect(await readAll(node)).toEqual(model);
  });

  it.each(CASES)('(%s) refuses writers, and leaves the file alone', async (_name, changed, text) => {
    const store = new RecordingStore(image('v3'));
    const status = baseStatus({ size: SIZE, ...changed });
    await expect(openCow(store, { status })).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      reason: 'cow.mismatch',
      message: expect.stringMatching(text) as string,
    });
    expect(store.entries).toEqual([]);
  });

  it.each(CASES)('(%s) is written over with ignore-mismatch, with a warning', async (_name, changed) => {
    const status = baseStatus({ size: SIZE, ...changed });
    const { node, events } = await openCow(image('v3'), {
      status,
      backing: storeOf(BASE),
      options: { ignoreMismatch: true },
    });
    expect(warnings(events)[0]).toMatch(/^cow\.mismatch/);
    await node.write(0, pattern(1000));
    expect(await readAll(node, 0, 1000)).toEqual(pattern(1000));
    await node.close();
  });

  it.each(CASES)('(%s) does not keep a check from looking, which tells it', async (_name, changed, text) => {
    const { result, findings } = await checkCow(image('v3'), { status: baseStatus({ size: SIZE, ...changed }) });
    expect(result.corruptions).toBe(1);
    expect(findings).toEqual([
      { kind: 'corruption', reason: 'cow.mismatch', message: expect.stringMatching(text) as string },
    ]);
  });

  it('is told by info, without a warning', async () => {
    const files = new CowFiles();
    files.put('/images/a.cow', image('v3').bytes());
    const facts = async (): Promise<unknown> => {
      const events: ImageEvent[] = [];
      const onEvent = (event: ImageEvent): number => events.push(event);
      const info = await imageInfo('/images/a.cow', { ...files.drivers, lookAt: 'allow', onEvent });
      expect(events).toEqual([]);
      return info.specific?.data['backing-as-recorded'];
    };
    expect(await facts()).toBe('not known');
    files.put(BASE_NAME, BASE, BASE_MTIME);
    expect(await facts()).toBe('yes');
    files.times.set(BASE_NAME, 5);
    expect(await facts()).toBe('no, it was changed since');
    files.put(BASE_NAME, BASE.subarray(1), BASE_MTIME);
    expect(await facts()).toBe('no, its size differs');
    // Who may not be looked at is not known.
    const denied = await imageInfo('/images/a.cow', files.drivers);
    expect(denied.specific?.data).toMatchObject({ 'backing-as-recorded': 'not known', 'backing-mtime': 'unknown' });
  });

  it('is told by seconds modulo 2^32, and by whole ones', async () => {
    for (const [recorded, actual, same] of [
      [BASE_MTIME, BASE_MTIME + 2 ** 32, true],
      [BASE_MTIME, BASE_MTIME + 0.999, true],
      [2 ** 32 - 10, -10, true],
      [0, 2 ** 32, true],
      [0, 5, false],
      [BASE_MTIME, BASE_MTIME - 0.001, false],
    ] as const) {
      const status = baseStatus({ modifiedSeconds: actual });
      const { events } = await openCow(image('v3', { mtime: recorded }), { readOnly: true, status });
      expect(warnings(events), `${recorded} and ${actual}`).toHaveLength(same ? 0 : 1);
    }
  });

  it.each(['v2-qemu-i386', 'v2-qemu-x86_64'] as const)(
    'is for QEMU (%s) one of another time, unless that is 0; never one of another size (C-006)',
    async (layout) => {
      const other = baseStatus({ size: SIZE * 3, modifiedSeconds: BASE_MTIME });
      const fine = await openCow(image(layout), { status: other });
      expect(fine.events).toEqual([]);
      await expect(openCow(image(layout), { status: baseStatus({ modifiedSeconds: 5 }) })).rejects.toMatchObject({
        reason: 'cow.mismatch',
      });
      const { events } = await openCow(image(layout, { mtime: 0 }), { status: baseStatus({ modifiedSeconds: 5 }) });
      expect(events).toEqual([]);
    },
  );

  it('is not known where nobody may look, and then written over', async () => {
    const { node, events } = await openCow(image('v3'), { status: undefined });
    await node.write(0, pattern(10));
    expect(events).toEqual([]);
  });

  it('whose time is not known is compared by size alone', async () => {
    const fine = await openCow(image('v3'), { status: baseStatus({ size: SIZE, modifiedSeconds: undefined }) });
    expect(fine.events).toEqual([]);
    await expect(
      openCow(image('v3'), { status: baseStatus({ size: 512, modifiedSeconds: undefined }) }),
    ).rejects.toMatchObject({ reason: 'cow.mismatch' });
  });
});

describe('the base that the caller names', () => {
  it('stands for the recorded one, and is compared with what the header says', async () => {
    const files = new CowFiles();
    files.put('my.cow', image('v3').bytes());
    files.put('copy.img', BASE, BASE_MTIME + 7);
    const backing = { name: 'copy.img', format: 'raw' };
    await expect(files.image('my.cow', { backing, readOnly: false })).rejects.toMatchObject({
      reason: 'cow.mismatch',
      message: expect.stringContaining('backing file "copy.img" is not as recorded') as string,
    });
    expect(files.open).toEqual([]);
    files.times.set('copy.img', BASE_MTIME);
    await using writable = await files.image('my.cow', { backing, readOnly: false });
    await writable.write(0, pattern(2000));
    const model = BASE.slice();
    model.set(patternOf(1), 512);
    model.set(pattern(2000));
    expect(await readAll(writable.node)).toEqual(model);
    expect(files.log).not.toContain(`open ${BASE_NAME}`);
  });
});

describe("UML's base", () => {
  it("is raw whatever it looks like, QEMU's is probed where the caller allows", async () => {
    const files = new CowFiles();
    await files.create(BASE_NAME, { format: 'qcow2', size: SIZE });
    const raw = files.bytes(BASE_NAME);
    files.put('uml.cow', image('v3', { size: raw.length, present: [] }).bytes());
    await using uml = await files.image('uml.cow', { references: 'allow', probeBacking: true });
    expect(await readAll(uml.node)).toEqual(raw);
    files.put('qemu.cow', image('v2-qemu-x86_64', { present: [] }).bytes());
    await using qemu = await files.image('qemu.cow', { references: 'allow', probeBacking: true });
    expect(await readAll(qemu.node)).toEqual(new Uint8Array(SIZE));
    await expect(files.image('qemu.cow', { references: 'allow' })).rejects.toMatchObject({
      reason: 'reference.unprobed',
    });
  });
});

describe('a layout that the caller names', () => {
  it('wins, and tells what speaks against it', async () => {
    const file = image('v2-qemu-x86_64');
    const { node, events } = await openCow(file, { readOnly: true, options: { layout: 'v2-qemu-i386' } });
    // Read four bytes too early, the size is its upper half.
    expect(node.size).toBe(0);
    expect(warnings(events).join()).toMatch(/^cow\.header: cow "disk": sector size 131072, not 512/);
    const right = await openCow(file, { readOnly: true, options: { layout: 'v2-qemu-x86_64' } });
    expect(right.events).toEqual([]);
    expect(String((await right.node.format.info()).specific?.data['layout-chosen'])).toMatch(/layout/);
  });

  it('reads sectors behind the end of a short file as zeros, with a warning', async () => {
    for (const layout of ['v3', 'v2-uml-32', 'v2-qemu-i386'] as const) {
      const { dataOffset } = cowAreas({ layout, size: SIZE });
      // Cut in the middle of sector 10; 20 is behind the end as well.
      const file = image(layout, { present: [1, 10, 20], fileSize: dataOffset + 255 * 512 });
      await file.truncate(dataOffset + 10 * 512 + 100);
      await expect(openCow(storeOf(file.bytes()), { readOnly: true })).rejects.toMatchObject({
        reason: 'cow.no-layout',
      });
      const { node, events } = await openCow(storeOf(file.bytes(), { readOnly: true }), {
        readOnly: true,
        options: { layout },
        backing: storeOf(BASE),
      });
      expect(warnings(events)).toEqual([
        expect.stringMatching(/^cow\.header: cow "disk": the bitmap claims sector 20 at 0x\w+, the file ends at 0x/),
      ]);
      const model = BASE.slice();
      model.set(patternOf(1), 512);
      model.fill(0, 10 * 512, 11 * 512).set(patternOf(10).subarray(0, 100), 10 * 512);
      model.fill(0, 20 * 512, 21 * 512);
      expect(await readAll(node)).toEqual(model);
    }
  });

  it('reads a file that ends inside its bitmap, and can write to it', async () => {
    const { bitmapOffset } = cowAreas({ layout: 'v3', size: SIZE });
    const file = storeOf(
      image('v3', { present: [1, 200] })
        .bytes()
        .subarray(0, bitmapOffset + 4),
    );
    const { node, events } = await openCow(file, { options: { layout: 'v3' }, backing: storeOf(BASE) });
    expect(warnings(events).join()).toMatch(/its bitmap ends at/);
    await node.write(SIZE - 100, pattern(100));
    const model = BASE.slice();
    model.fill(0, 512, 1024);
    model.set(pattern(100), SIZE - 100);
    expect(await readAll(node)).toEqual(model);
    await node.close();
    const again = await openCow(file.reopen({ readOnly: true }), { readOnly: true, backing: storeOf(BASE) });
    expect(await readAll(again.node)).toEqual(model);
  });

  it('can be read and written at offsets that the header does not say', async () => {
    const spec = { size: SIZE, backingName: BASE_NAME, mtime: BASE_MTIME } as const;
    const areas = cowAreas({ layout: 'v3', size: SIZE });
    const bytes = cowImage({ ...spec, layout: 'v3', present: [3] }).bytes();
    // The same, with bitmap and data 12,345 bytes further on.
    const moved = new Uint8Array(bytes.length + 12_345);
    moved.set(bytes.subarray(0, areas.bitmapOffset));
    moved.set(bytes.subarray(areas.bitmapOffset), areas.bitmapOffset + 12_345);
    const options = {
      layout: 'v3',
      bitmapOffset: areas.bitmapOffset + 12_345,
      dataOffset: areas.dataOffset + 12_345,
    } as const;
    const file = storeOf(moved);
    const { node } = await openCow(file, { options, backing: storeOf(BASE) });
    const model = BASE.slice();
    model.set(patternOf(3), 3 * 512);
    expect(await readAll(node)).toEqual(model);
    await node.write(100, pattern(9999));
    await node.write(SIZE - 1, Uint8Array.of(9));
    model.set(pattern(9999), 100);
    model[SIZE - 1] = 9;
    await node.close();
    expect(file.bytes().subarray(0, options.bitmapOffset)).toEqual(moved.subarray(0, options.bitmapOffset));
    const again = await openCow(file.reopen(), { options, backing: storeOf(BASE) });
    expect(await readAll(again.node)).toEqual(model);
  });
});

describe('options that cannot be meant', () => {
  const refused = async (
    options: NonNullable<Parameters<typeof openCow>[1]>['options'],
    reason: string,
    more: Parameters<typeof openCow>[1] & { readonly file?: MemoryStore } = {},
  ): Promise<void> => {
    const { file = image('v1-be64'), ...opening } = more;
    const store = new RecordingStore(file);
    await expect(openCow(store, { options: options ?? {}, ...opening })).rejects.toMatchObject({
      code: 'OPTION',
      reason,
    });
    expect(store.entries).toEqual([]);
  };

  it('offsets without a layout', async () => {
    await refused({ bitmapOffset: 4096 }, 'cow.offsets-need-layout');
    await refused({ dataOffset: 4096 }, 'cow.offsets-need-layout');
  });

  it('a bitmap of words that begins between two of them', async () => {
    await refused({ layout: 'v1-be64', bitmapOffset: 292, dataOffset: 4096 }, 'cow.bitmap-offset');
    const { node } = await openCow(image('v1-be32'), {
      options: { layout: 'v1-be32', bitmapOffset: 292, dataOffset: 4096 },
    });
    expect(node.size).toBe(SIZE);
  });

  it('areas that overlap, either way round', async () => {
    for (const options of [
      { bitmapOffset: 8192, dataOffset: 8192 },
      { bitmapOffset: 8192, dataOffset: 8192 + 31 },
      { bitmapOffset: 100 * KiB, dataOffset: 8192 },
    ]) {
      await refused({ layout: 'v3', ...options }, 'cow.overlap', { file: image('v3'), readOnly: true });
    }
    const before = await openCow(image('v3'), { options: { layout: 'v3', bitmapOffset: 8192, dataOffset: 8192 + 32 } });
    expect(before.node.size).toBe(SIZE);
    const behind = { layout: 'v3', bitmapOffset: 8192 + SIZE, dataOffset: 8192 } as const;
    const { node } = await openCow(image('v3'), { options: behind, backing: storeOf(BASE) });
    await node.write(0, pattern(SIZE));
    expect(await readAll(node)).toEqual(pattern(SIZE));
  });

  it('areas inside the header, for writing; for reading they are odd', async () => {
    const options = { layout: 'v3', bitmapOffset: 4096, dataOffset: 8192 } as const;
    await refused(options, 'cow.offsets-header', { file: image('v3') });
    await refused({ layout: 'v3', dataOffset: 0 }, 'cow.offsets-header', { file: image('v3', { alignment: 2 ** 20 }) });
    const { events } = await openCow(image('v3'), { readOnly: true, options });
    expect(warnings(events).join()).toMatch(/begin inside the header/);
  });

  it('a lenient tail, for writing', async () => {
    const file = image('v2-uml-32', { size: 61 * 512 });
    await refused({ tail: 'lenient' }, 'cow.tail-write', { file });
  });
});

describe('sectors without a bit (the rounding bug of v1 and v2)', () => {
  const size = 61 * 512;
  const bytes = pattern(size, 2);
  const file = (): MemoryStore => image('v2-uml-32', { size, present: [3, 57, 60] });

  it('come from the base, with a warning where the byte behind the bitmap claims them', async () => {
    const { node, events } = await openCow(file(), { readOnly: true, backing: storeOf(bytes) });
    expect(warnings(events)).toEqual([
      expect.stringMatching(/^cow\.tail: .*last 5 sectors have no place in the bitmap/),
    ]);
    const model = bytes.slice();
    model.set(patternOf(3), 3 * 512);
    expect(await readAll(node)).toEqual(model);
    const clean = await openCow(image('v2-uml-32', { size, present: [3] }), { backing: storeOf(bytes) });
    expect(clean.events).toEqual([]);
    // Bits behind the disk claim nothing.
    const behind = file();
    const { bitmapOffset, bitmapLength } = cowAreas({ layout: 'v2-uml-32', size });
    await behind.write(bitmapOffset + bitmapLength, Uint8Array.of(0b1110_0000));
    expect((await openCow(behind, { backing: storeOf(bytes) })).events).toEqual([]);
  });

  it('come from that byte with tail=lenient', async () => {
    const { node, events } = await openCow(file(), {
      readOnly: true,
      backing: storeOf(bytes),
      options: { tail: 'lenient' },
    });
    expect(events).toEqual([]);
    const model = bytes.slice();
    for (const sector of [3, 57, 60]) model.set(patternOf(sector), sector * 512);
    expect(await readAll(node)).toEqual(model);
  });

  it('come from the base either way where that byte would be the first of the data', async () => {
    // 488 bytes of bitmap end where the data begin; sector 0 begins with a byte that claims everything.
    const odd = 8 * 488 * 512 + 5 * 512;
    const disk = image('v2-uml-32', { size: odd, present: [0], data: () => new Uint8Array(512).fill(0xff) });
    for (const tail of ['strict', 'lenient'] as const) {
      const { node, events } = await openCow(disk, { readOnly: true, backing: zeros(odd), options: { tail } });
      expect(events).toEqual([]);
      expect(await readAll(node, odd - 5 * 512)).toEqual(new Uint8Array(5 * 512));
      expect(await readAll(node, 0, 512)).toEqual(new Uint8Array(512).fill(0xff));
    }
  });

  it('of a bitmap of big-endian words are all those of the last, incomplete word', async () => {
    const odd = (64 + 40) * 512;
    const { node } = await openCow(image('v1-be64', { size: odd, present: [63] }), { backing: zeros(odd) });
    await node.write(63 * 512, pattern(512));
    await expect((async () => await node.write(64 * 512, pattern(1)))()).rejects.toMatchObject({ reason: 'cow.tail' });
  });

  it('are never made by our own create', async () => {
    for (const layout of ['v1-le32', 'v2-uml-32'] as const) {
      expect(layoutOf(layout).bitmapRounding).toBe('down');
      await expect(newCow(size, { layout })).rejects.toMatchObject({ reason: 'cow.tail-create' });
    }
  });
});
