/** Bitmaps of an open image: what they refuse, what becomes of them with other operations, and images that lie about them. */
import { describe, expect, it } from 'vitest';
import type { BitmapFacet, ImageEvent } from '../../../src/core/format.ts';
import type { MappedNode } from '../../../src/core/mapped-node.ts';
import { readHeader } from '../../../src/formats/qcow2/header.ts';
import { openImage } from '../../../src/image/open.ts';
import { qcow2 } from '../../../src/node.ts';
import { MemoryStore } from '../../../src/storage/memory.ts';
import { FaultStore } from '../../../src/testing/fault-store.ts';
import { pattern } from '../../support/qcow2-parts.ts';
import { checkQcow2, createQcow2Bytes, openQcow2, type Qcow2Variant } from '../../support/qcow2-under-test.ts';
import { failureOf } from './support.ts';

const KiB = 1024;
const MiB = 1024 * KiB;
const SIZE = 4 * MiB;

const change = (node: MappedNode, make: (bitmaps: BitmapFacet) => Promise<void>): Promise<void> =>
  node.changeBitmaps(make);

async function rangesOf(node: MappedNode, name: string): Promise<string> {
  const ranges: string[] = [];
  for await (const { offset, length } of (node.format.bitmaps as BitmapFacet).dirty(name)) {
    ranges.push(`${offset}+${length}`);
  }
  return ranges.join(' ');
}

const listOf = (node: MappedNode) => (node.format.bitmaps as BitmapFacet).list();

/** An image with the bitmaps 'b', of 512 bytes and with a cluster of bits, and 'c', which is disabled and clean. */
async function image(variant: Qcow2Variant = {}): Promise<Uint8Array> {
  const file = await createQcow2Bytes(SIZE, variant, false);
  const node = await openQcow2(file);
  await change(node, async (bitmaps) => {
    await bitmaps.add({ name: 'b', granularity: 512 });
    await bitmaps.add({ name: 'c', granularity: 4096, enabled: false });
  });
  await node.write(10 * KiB, pattern(KiB));
  await node.close();
  return file.bytes();
}

/** Where things are: host offsets. */
async function placesOf(bytes: Uint8Array): Promise<{ directory: number; tables: number[] }> {
  const { bitmaps } = await readHeader(MemoryStore.from(bytes), 'x', { readOnly: true, forCheck: true });
  const directory = bitmaps?.directoryOffset ?? 0;
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  return { directory, tables: [0, 32].map((at) => Number(view.getBigUint64(directory + at))) };
}

async function soundAfterwards(bytes: Uint8Array): Promise<void> {
  expect(await checkQcow2(MemoryStore.from(bytes))).toMatchObject({ lines: [], leaks: 0, checkErrors: 0 });
}

describe('a bitmap', () => {
  it.each<[what: string, request: Parameters<BitmapFacet['add']>[0], reason: string]>([
    ['without a name', { name: '' }, 'name-empty'],
    ['of 1024 bytes of name', { name: 'ä'.repeat(512) }, 'name-length'],
    ['with a NUL in its name', { name: 'a\0b' }, 'name-length'],
    ['of a granularity that is no power of two', { name: 'x', granularity: 1000 }, 'granularity'],
    ['of a granularity below 512', { name: 'x', granularity: 256 }, 'granularity'],
    ['of a granularity above 2 GiB', { name: 'x', granularity: 2 ** 32 }, 'granularity'],
    ['of a name that is there', { name: 'b' }, 'exists'],
  ])('%s is not made, and nothing has changed', async (_, request, reason) => {
    const node = await openQcow2(MemoryStore.from(await image()));
    const before = await listOf(node);
    expect(await failureOf(() => change(node, (bitmaps) => bitmaps.add(request)))).toMatchObject({
      reason: `qcow2.bitmap-${reason}`,
    });
    expect(await listOf(node)).toEqual(before);
    await node.close();
  });

  it('has the granularity of a cluster, within 4 KiB and 64 KiB, when none is given', async () => {
    for (const [clusterSize, granularity] of [
      [512, 4096],
      [16 * KiB, 16 * KiB],
      [2 * MiB, 64 * KiB],
    ] as const) {
      const node = await openQcow2(await createQcow2Bytes(SIZE, { clusterSize }, false));
      await change(node, (bitmaps) => bitmaps.add({ name: 'x' }));
      expect(await listOf(node)).toMatchObject([{ granularity }]);
      await node.close();
    }
  });

  it('needs version 3 (M-12)', async () => {
    const node = await openQcow2(await createQcow2Bytes(SIZE, { compat: 'v2' }, false));
    expect(node.format.bitmaps?.available).toBe(false);
    expect(await failureOf(() => change(node, (bitmaps) => bitmaps.add({ name: 'x' })))).toMatchObject({
      code: 'UNSUPPORTED',
      reason: 'qcow2.bitmap-version',
    });
    await node.close();
  });

  it('of more than 512 MiB is refused, when it is made and when the disk grows', async () => {
    const file = await createQcow2Bytes(2 * 1024 ** 4, { clusterSize: 65536 }, false);
    const node = await openQcow2(file);
    await change(node, (bitmaps) => bitmaps.add({ name: 'largest', granularity: 512 }));
    const everything = async function* () {
      yield { offset: 0, length: node.size };
    };
    await change(node, (bitmaps) => bitmaps.merge('largest', everything()));
    expect(await rangesOf(node, 'largest')).toBe(`0+${node.size}`);
    expect(await failureOf(() => node.truncate(node.size + 4096))).toMatchObject({ reason: 'qcow2.bitmap-too-large' });
    await change(node, (bitmaps) => bitmaps.remove('largest'));
    await node.truncate(node.size + 4096);
    expect(
      await failureOf(() => change(node, (bitmaps) => bitmaps.add({ name: 'x', granularity: 512 }))),
    ).toMatchObject({
      code: 'TOO_LARGE',
      reason: 'qcow2.bitmap-too-large',
    });
    await node.close();
  });

  it('that nobody has is not changed, nor read', async () => {
    const node = await openQcow2(MemoryStore.from(await image()));
    const attempts: (() => unknown)[] = [
      () => change(node, (bitmaps) => bitmaps.remove('x')),
      () => change(node, (bitmaps) => bitmaps.clear('x')),
      () => change(node, (bitmaps) => bitmaps.setEnabled('x', true)),
      () => change(node, (bitmaps) => bitmaps.merge('x', bitmaps.dirty('b'))),
      () => change(node, (bitmaps) => bitmaps.merge('b', bitmaps.dirty('x'))),
      () => rangesOf(node, 'x'),
    ];
    for (const attempt of attempts) {
      expect(await failureOf(attempt)).toMatchObject({ code: 'NOT_FOUND', reason: 'qcow2.bitmap-missing' });
    }
    expect(await rangesOf(node, 'b')).toBe('10240+1024');
    await node.close();
  });

  it('is not marked by what is behind the disk: the state of a machine', async () => {
    const bytes = await image();
    const file = MemoryStore.from(bytes, { pageSize: 512 });
    const node = await openQcow2(file);
    await node.writeVmState(0, pattern(5 * KiB));
    expect(await rangesOf(node, 'b')).toBe('10240+1024');
    await node.close();
    await soundAfterwards(file.bytes());
  });

  it('stays in its place in the file while no bit of it changes', async () => {
    const bytes = await image();
    const file = MemoryStore.from(bytes, { pageSize: 512 });
    const before = await placesOf(bytes);
    await (await openQcow2(file)).close();
    expect(file.bytes()).toEqual(bytes);
    const node = await openQcow2(file.reopen());
    await change(node, (bitmaps) => bitmaps.setEnabled('c', true));
    await node.close();
    expect(await placesOf(file.bytes())).toEqual(before);
    await soundAfterwards(file.bytes());
  });
});

describe('an image with bitmaps', () => {
  it('is marked in use as long as it is open for writing (M-11)', async () => {
    const file = MemoryStore.from(await image(), { pageSize: 512 });
    const node = await openQcow2(file);
    const seen = await openQcow2(MemoryStore.from(file.bytes()), { readOnly: true });
    expect(await listOf(seen)).toMatchObject([{ inconsistent: true }, { inconsistent: true }]);
    expect(await failureOf(() => rangesOf(seen, 'b'))).toMatchObject({ reason: 'qcow2.bitmap-inconsistent' });
    await node.close();
    const after = await openQcow2(file.reopen(), { readOnly: true });
    expect(await rangesOf(after, 'b')).toBe('10240+1024');
  });

  it('that was not closed keeps its bitmaps to be removed, and keeps its size (M-11, M-12)', async () => {
    const file = MemoryStore.from(await image(), { pageSize: 512 });
    await openQcow2(file);
    const left = MemoryStore.from(file.bytes(), { pageSize: 512 });
    const node = await openQcow2(left);
    for (const attempt of [
      () => change(node, (bitmaps) => bitmaps.clear('b')),
      () => change(node, (bitmaps) => bitmaps.setEnabled('b', false)),
      () => change(node, (bitmaps) => bitmaps.merge('b', bitmaps.dirty('b'))),
      () => node.truncate(SIZE + 4096),
    ]) {
      expect(await failureOf(attempt)).toMatchObject({ code: 'CORRUPT', reason: 'qcow2.bitmap-inconsistent' });
    }
    expect(await failureOf(() => change(node, (bitmaps) => bitmaps.add({ name: 'b' })))).toMatchObject({
      reason: 'qcow2.bitmap-exists',
    });
    await node.write(0, pattern(KiB));
    await change(node, async (bitmaps) => {
      await bitmaps.remove('b');
      await bitmaps.add({ name: 'b' });
    });
    await node.close();
    const again = await openQcow2(left.reopen());
    expect(await listOf(again)).toMatchObject([
      { name: 'c', inconsistent: true },
      { name: 'b', inconsistent: false },
    ]);
    await again.close();
    await soundAfterwards(left.bytes());
  });

  it('is written to by a program that does not know them: they are void, and whoever opens it is told (M-11)', async () => {
    const bytes = await image();
    bytes[95] = 0; // the autoclear bit
    const file = MemoryStore.from(bytes, { pageSize: 512 });
    const events: ImageEvent[] = [];
    const options = { formats: [qcow2], protocols: [], onEvent: (event: ImageEvent) => void events.push(event) };
    const readOnly = await openImage(MemoryStore.from(bytes), options);
    expect(await readOnly.bitmaps()).toEqual([]);
    await readOnly.close();
    expect(events).toMatchObject([{ type: 'warning', reason: 'qcow2.bitmaps-stale' }]);
    await (await openImage(file, { ...options, readOnly: false })).close();
    const header = await readHeader(file.reopen(), 'x', { readOnly: true, forCheck: true });
    expect(header).toMatchObject({ bitmaps: undefined, staleBitmaps: false });
    const { lines, leaks } = await checkQcow2(MemoryStore.from(file.bytes()));
    expect(lines).toEqual([]);
    // the directory, two tables, and the bits of one
    expect(leaks).toBe(4);
  });

  it('makes and deletes snapshots, and applies none', async () => {
    const file = MemoryStore.from(await image(), { pageSize: 512 });
    const node = await openQcow2(file);
    await node.createSnapshot({ name: 's', dateSeconds: 1 });
    expect(await failureOf(() => node.applySnapshot('s'))).toMatchObject({ reason: 'qcow2.snapshot-bitmaps' });
    await node.write(0, pattern(KiB));
    await node.deleteSnapshot('s');
    expect(await rangesOf(node, 'b')).toBe('0+1024 10240+1024');
    await node.close();
    await soundAfterwards(file.bytes());
  });

  it('is closed with an error when they cannot be stored, and then they are void', async () => {
    for (const on of ['write', 'flush'] as const) {
      for (let nth = 1, stored = false; !stored; nth++) {
        const store = new FaultStore(MemoryStore.from(await image(), { pageSize: 512 }));
        const node = await openQcow2(store);
        await node.write(0, pattern(3 * KiB));
        await node.flush();
        const fault = store.fail({ on, nth });
        const failure = await node.close().then(
          () => undefined,
          (error: unknown) => error,
        );
        stored = fault.hits === 0;
        const left = (store.inner as MemoryStore).bytes();
        const seen = await openQcow2(MemoryStore.from(left), { readOnly: true });
        const [b] = await listOf(seen);
        if (failure === undefined) expect(await rangesOf(seen, 'b')).toBe('0+3072 10240+1024');
        else if (b?.inconsistent === false) expect(await rangesOf(seen, 'b')).toBe('0+3072 10240+1024');
        expect((await checkQcow2(MemoryStore.from(left))).lines, `${on} ${nth}`).toEqual([]);
      }
    }
  });
});

describe('an image that lies about its bitmaps', () => {
  const WORD = (value: bigint): number[] => [...new Uint8Array(new BigUint64Array([value]).buffer)].reverse();

  it.each<
    [what: string, patch: (places: { directory: number; tables: number[] }) => [number, number[]][], reason: string]
  >([
    ['a table behind the end of the file', ({ directory }) => [[directory, WORD(1n << 40n)]], 'table'],
    ['an entry that is not aligned', ({ tables }) => [[tables[0] as number, WORD(0x1100n)]], 'table'],
    ['an entry with reserved bits', ({ tables }) => [[tables[0] as number, WORD(1n << 60n)]], 'table'],
    ['a cluster that is all ones as well', ({ tables }) => [[tables[0] as number, WORD(0x1001n)]], 'table'],
    ['two of one name', ({ directory }) => [[directory + 32 + 24, [0x62]]], 'duplicate'],
    ['unknown flags', ({ directory }) => [[directory + 12, [0x80]]], 'constraints'],
  ])('%s is opened for reading, and not for writing', async (_, patch, reason) => {
    const bytes = await image();
    for (const [at, values] of patch(await placesOf(bytes))) bytes.set(values, at);
    const readOnly = await openQcow2(MemoryStore.from(bytes), { readOnly: true });
    await readOnly.read(0, new Uint8Array(512));
    if (reason === 'table' && !_.includes('behind')) {
      expect(await failureOf(() => rangesOf(readOnly, 'b'))).toMatchObject({ reason: 'qcow2.bitmap-table' });
    }
    const file = MemoryStore.from(bytes, { pageSize: 512 });
    expect(await failureOf(() => openQcow2(file))).toMatchObject({ code: 'CORRUPT', reason: `qcow2.bitmap-${reason}` });
    expect(file.bytes()).toEqual(bytes);
  });

  it('shares clusters of bits with tables of the disk, and loses no table for it', async () => {
    const bytes = await image();
    const { tables } = await placesOf(bytes);
    const { l1Offset } = await readHeader(MemoryStore.from(bytes), 'x', { readOnly: true, forCheck: true });
    const l2 = bytes.slice(l1Offset, l1Offset + 8);
    l2[0] = 0; // without the COPIED flag
    bytes.set(l2, tables[0] as number);
    const file = MemoryStore.from(bytes, { pageSize: 512 });
    const node = await openQcow2(file);
    await node.write(10 * KiB, pattern(KiB, 5));
    await change(node, (bitmaps) => bitmaps.clear('b'));
    await node.close();
    const again = await openQcow2(file.reopen());
    await again.write(500 * KiB, pattern(64 * KiB, 6));
    const read = new Uint8Array(KiB);
    await again.read(10 * KiB, read);
    expect(read).toEqual(pattern(KiB, 5));
    await again.close();
  });

  it('names the same table again and again, and takes neither time nor memory for it', async () => {
    // 2,000 bitmaps of the largest table each, all at one place: 16 GiB of tables, they say.
    const file = await createQcow2Bytes(SIZE, {}, false);
    const count = 2000;
    const directory = new Uint8Array(count * 32);
    const view = new DataView(directory.buffer);
    for (let i = 0; i < count; i++) {
      view.setBigUint64(i * 32, 0x200n);
      view.setUint32(i * 32 + 8, 2 ** 20);
      view.setUint8(i * 32 + 16, 1);
      view.setUint8(i * 32 + 17, 9);
      view.setUint16(i * 32 + 18, 4);
      directory.set(new TextEncoder().encode(i.toString(36).padStart(4, '0')), i * 32 + 24);
    }
    const at = Math.ceil(file.size / 512) * 512;
    await file.write(at, directory);
    const bytes = file.bytes();
    const head = new DataView(bytes.buffer, bytes.byteOffset);
    head.setUint32(112, 0x23852875);
    head.setUint32(116, 24);
    head.setUint32(120, count);
    head.setBigUint64(128, BigInt(directory.length));
    head.setBigUint64(136, BigInt(at));
    bytes[95] = 1;
    expect(await failureOf(() => openQcow2(MemoryStore.from(bytes)))).toMatchObject({ reason: 'qcow2.bitmap-table' });
    const readOnly = await openQcow2(MemoryStore.from(bytes), { readOnly: true });
    expect(await listOf(readOnly)).toHaveLength(count);
  });
});
