import { describe, expect, it } from 'vitest';
import { bitmapClusterAt, readBitmapDirectory } from '../../../src/formats/qcow2/bitmap-directory.ts';
import { failureOf, storeOf } from './support.ts';

const CLUSTER = 65536;
const GiB = 2 ** 30;

/** One directory entry with a one-entry table that covers 1 GiB. */
function entry(name: string, change: (view: DataView) => void = () => undefined): Uint8Array {
  const bytes = new Uint8Array(Math.ceil((24 + name.length) / 8) * 8);
  const view = new DataView(bytes.buffer);
  view.setBigUint64(0, 0x60000n);
  view.setUint32(8, 1);
  view.setUint32(12, 2);
  view.setUint8(16, 1);
  view.setUint8(17, 16);
  view.setUint16(18, name.length);
  bytes.set(new TextEncoder().encode(name), 24);
  change(view);
  return bytes;
}

async function read(entries: readonly Uint8Array[], count = entries.length, sizeChange = 0) {
  const size = entries.reduce((sum, { length }) => sum + length, 0);
  const bytes = new Uint8Array(CLUSTER + size);
  let at = CLUSTER;
  for (const one of entries) {
    bytes.set(one, at);
    at += one.length;
  }
  const pointer = { count, directoryOffset: CLUSTER, directorySize: size + sizeChange };
  return await readBitmapDirectory(await storeOf(bytes), pointer, GiB, CLUSTER, 'x');
}

describe('the bitmap directory', () => {
  it('lists its bitmaps', async () => {
    const second = entry('a longer name', (view) => {
      view.setUint32(12, 1);
      view.setUint8(17, 9);
    });
    expect(await read([entry('b0'), second])).toMatchObject([
      { name: 'b0', granularity: 65536, inUse: false, auto: true, tableOffset: 0x60000, tableSize: 1 },
      { name: 'a longer name', granularity: 512, inUse: true, auto: false, tableOffset: 0x60000, tableSize: 1 },
    ]);
  });

  it.each<[what: string, change: (view: DataView) => void]>([
    ['an unaligned table', (view) => view.setBigUint64(0, 0x60200n)],
    ['no table', (view) => view.setBigUint64(0, 0n)],
    ['an empty table', (view) => view.setUint32(8, 0)],
    ['a table of more than 512 MiB of bits', (view) => view.setUint32(8, 8193)],
    ['unknown flags', (view) => view.setUint32(12, 6)],
    ['another type', (view) => view.setUint8(16, 2)],
    ['a granularity below 512', (view) => view.setUint8(17, 8)],
    ['a granularity above 2 GiB', (view) => view.setUint8(17, 32)],
    ['too few bits for the disk', (view) => view.setUint8(17, 9)],
  ])('with %s is refused', async (_what, change) => {
    expect(await failureOf(() => read([entry('b', change)]))).toMatchObject({
      code: 'CORRUPT',
      reason: 'qcow2.bitmap-constraints',
    });
  });

  it('that does not end where it says is refused', async () => {
    expect((await failureOf(() => read([entry('b')], 1, 8))).reason).toBe('qcow2.bitmap-directory-broken');
    expect((await failureOf(() => read([entry('b')], 1, -8))).reason).toBe('qcow2.bitmap-directory-broken');
    expect((await failureOf(() => read([], 1))).reason).toBe('qcow2.bitmap-directory-empty');
    expect((await failureOf(() => read([entry('b')], 2))).reason).toBe('qcow2.bitmap-directory-less');
    expect((await failureOf(() => read([entry('b'), entry('c')], 1))).reason).toBe('qcow2.bitmap-directory-more');
    const extra = entry('b'.repeat(16), (view) => {
      view.setUint16(18, 8);
      view.setUint32(20, 8);
    });
    expect((await failureOf(() => read([extra]))).reason).toBe('qcow2.bitmap-extra');
  });

  it('of which the file holds only the beginning takes no memory for the rest', async () => {
    expect((await failureOf(() => read([entry('b')], 2, 60_000_000))).reason).toMatch(/^qcow2\.bitmap-/);
  });
});

it('a bitmap table entry is a cluster, nothing, or corrupt', () => {
  const table = new DataView(new ArrayBuffer(48));
  const entries = [0n, 1n, 0x30000n, 0x30001n, 0x30200n, 1n << 56n];
  for (const [index, value] of entries.entries()) table.setBigUint64(index * 8, value);
  expect(entries.map((_, index) => bitmapClusterAt(table, index, CLUSTER))).toEqual([
    0,
    0,
    0x30000,
    undefined,
    undefined,
    undefined,
  ]);
});
