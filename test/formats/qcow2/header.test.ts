import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { isBlockError } from '../../../src/base/errors.ts';
import { AUTOCLEAR, INCOMPATIBLE } from '../../../src/formats/qcow2/features.ts';
import {
  decodeHeader,
  encodeHeader,
  hasDataFile,
  headerGeometry,
  readHeader,
  writeHeader,
  writeIncompatible,
} from '../../../src/formats/qcow2/header.ts';
import { bytesOf, createInMemory, failureOf, storeOf } from './support.ts';

const ACCESS = { readOnly: true, forCheck: false };
const MiB = 1024 * 1024;

async function image(...args: Parameters<typeof createInMemory>): Promise<Uint8Array> {
  return bytesOf((await createInMemory(...args)).file);
}

/** Extensions as bytes, the end marker after them. */
function extensions(...records: readonly (readonly [magic: number, data: readonly number[]])[]): Uint8Array {
  const parts = records.map(([magic, data]) => {
    const part = new Uint8Array(8 + Math.ceil(data.length / 8) * 8);
    new DataView(part.buffer).setUint32(0, magic);
    new DataView(part.buffer).setUint32(4, data.length);
    part.set(data, 8);
    return part;
  });
  return Uint8Array.from([...parts.flatMap((part) => [...part]), 0, 0, 0, 0, 0, 0, 0, 0]);
}

describe('decodeHeader', () => {
  it('reads what create wrote', async () => {
    const bytes = await image(5 * MiB, { backingFile: 'base.img', backingFmt: 'raw', lazyRefcounts: true });
    const header = decodeHeader(bytes, 'x', ACCESS);
    expect(header).toMatchObject({
      version: 3,
      clusterBits: 16,
      virtualSize: 5 * MiB,
      encryption: 'none',
      l1Size: 1,
      l1Offset: 0x30000,
      refcountTableOffset: 0x10000,
      refcountTableClusters: 1,
      compatible: 1n,
      compressionType: 'deflate',
      backingFile: 'base.img',
      backingFormat: 'raw',
    });
    expect(hasDataFile(header)).toBe(false);
    expect(headerGeometry(header).clusterSize).toBe(65536);
  });

  it('cuts a size that is no multiple of 512 (Q-026)', async () => {
    const bytes = await image(4096);
    new DataView(bytes.buffer).setBigUint64(24, 1000n);
    expect(decodeHeader(bytes, 'x', ACCESS).virtualSize).toBe(512);
  });

  it('of version 2 takes nothing from behind byte 72 (Q-016)', async () => {
    const bytes = await image(4096, { compat: 'v2' });
    bytes.set(extensions([0x12345678, [1, 2, 3]]), 72);
    const header = decodeHeader(bytes, 'x', ACCESS);
    expect(header).toMatchObject({ version: 2, incompatible: 0n, refcountOrder: 4, compressionType: 'deflate' });
    expect(header.unknownExtensions).toEqual([{ magic: 0x12345678, data: Uint8Array.of(1, 2, 3) }]);
  });

  it('with a header length of 104 has extensions where the compression type would be', async () => {
    const bytes = await image(4096);
    new DataView(bytes.buffer).setUint32(100, 104);
    bytes.set(extensions([0xcafe, [9]]), 104);
    expect(decodeHeader(bytes, 'x', ACCESS).unknownExtensions).toHaveLength(1);
  });

  it('opened for check accepts the corrupt bit, a missing refcount table and a bad snapshot table (Q-027)', async () => {
    const bytes = await image(4096);
    const view = new DataView(bytes.buffer);
    view.setBigUint64(72, INCOMPATIBLE.corrupt);
    view.setUint32(56, 0);
    view.setUint32(60, 70000);
    const header = decodeHeader(bytes, 'x', { readOnly: false, forCheck: true });
    expect(header).toMatchObject({ refcountTableClusters: 0, snapshotCount: 70000 });
    expect((await failureOf(() => decodeHeader(bytes, 'x', { readOnly: false, forCheck: false }))).code).toBe('ACCESS');
  });

  it('tells stale bitmaps from valid ones', async () => {
    const bytes = await image(4096);
    const view = new DataView(bytes.buffer);
    const data = [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0, 0, 0, 0, 4, 0, 0];
    bytes.set(extensions([0x23852875, data]), 112);
    expect(decodeHeader(bytes, 'x', ACCESS)).toMatchObject({ bitmaps: undefined, staleBitmaps: true });
    view.setBigUint64(88, AUTOCLEAR.bitmaps);
    expect(decodeHeader(bytes, 'x', ACCESS)).toMatchObject({
      bitmaps: { count: 1, directorySize: 32, directoryOffset: 0x40000 },
      staleBitmaps: false,
    });
  });

  it('throws nothing but BlockError, whatever 4 KiB it is given', async () => {
    const healthy = (await image(64 * MiB, { clusterSize: 4096, backingFile: 'b', backingFmt: 'raw' })).slice(0, 4096);
    fc.assert(
      fc.property(fc.array(fc.tuple(fc.nat(160), fc.nat(255)), { minLength: 1, maxLength: 6 }), (changes) => {
        const bytes = healthy.slice();
        for (const [at, value] of changes) bytes[at] = value;
        try {
          decodeHeader(bytes, 'x', ACCESS);
        } catch (error) {
          if (!isBlockError(error)) throw error;
          expect(error.reason).toMatch(/^qcow2\./);
        }
      }),
      { numRuns: 2000 },
    );
  });
});

describe('encodeHeader', () => {
  it('keeps unknown fields, unknown extensions and names that are no UTF-8 (Q-019, Q-055)', async () => {
    const bytes = await image(4096);
    const view = new DataView(bytes.buffer);
    view.setUint32(100, 120);
    bytes.fill(0, 112, 1024);
    bytes.set([1, 2, 3, 4, 5, 6, 7, 8], 112);
    const area = extensions([0x11111111, [1]], [0x22222222, [1, 2, 3, 4, 5, 6, 7, 8]]);
    bytes.set(area, 120);
    bytes.set([0xff, 0xfe, 0x2e, 0x71], 600);
    view.setBigUint64(8, 600n);
    view.setUint32(16, 4);
    const header = decodeHeader(bytes, 'x', ACCESS);
    const again = decodeHeader(encodeHeader(header, 'x'), 'x', ACCESS);
    expect(again).toEqual(header);
    expect(again.unknownTail).toEqual(Uint8Array.of(1, 2, 3, 4, 5, 6, 7, 8));
    expect(again.unknownExtensions.map(({ magic }) => magic)).toEqual([0x11111111, 0x22222222]);
    expect(again.rawNames.backingFile).toEqual(Uint8Array.of(0xff, 0xfe, 0x2e, 0x71));
  });

  it('drops stale bitmaps', async () => {
    const bytes = await image(4096);
    bytes.set(extensions([0x23852875, new Array<number>(24).fill(0)]), 112);
    const again = decodeHeader(encodeHeader(decodeHeader(bytes, 'x', ACCESS), 'x'), 'x', ACCESS);
    expect(again.staleBitmaps).toBe(false);
  });

  it('has no feature names in version 2 and in clusters up to 4 KiB (Q-121)', async () => {
    const text = (bytes: Uint8Array) => Buffer.from(bytes).toString('latin1');
    expect(text(await image(4096))).toContain('lazy refcounts');
    expect(text(await image(4096, { compat: 'v2' }))).not.toContain('lazy refcounts');
    expect(text(await image(4096, { clusterSize: 4096 }))).not.toContain('lazy refcounts');
  });

  it('refuses what does not fit into the first cluster, and changes nothing (Q-056, Q-120)', async () => {
    const { file } = await createInMemory(4096, { clusterSize: 512 });
    const before = await bytesOf(file);
    const header = { ...(await readHeader(file, 'x', ACCESS)), backingFile: 'a'.repeat(400) };
    const refused = await failureOf(() => writeHeader(file, header, 'x'));
    expect(refused).toMatchObject({ code: 'NO_SPACE', reason: 'qcow2.header-space' });
    expect(await bytesOf(file)).toEqual(before);
  });
});

describe('readHeader', () => {
  it('reads a file that is shorter than its first cluster', async () => {
    const store = await storeOf((await image(4096)).slice(0, 600));
    expect((await readHeader(store, 'x', ACCESS)).virtualSize).toBe(4096);
  });

  it('finds names at the end of a 2 MiB cluster (Q-021)', async () => {
    const bytes = await image(4096, { clusterSize: 2 * MiB });
    const view = new DataView(bytes.buffer);
    view.setBigUint64(8, BigInt(2 * MiB - 4));
    view.setUint32(16, 4);
    bytes.set([0x62, 0x61, 0x73, 0x65], 2 * MiB - 4);
    expect((await readHeader(await storeOf(bytes), 'x', ACCESS)).backingFile).toBe('base');
  });

  it('says of an empty file that it is no qcow2 image (Q-013)', async () => {
    const refused = await failureOf(async () => readHeader(await storeOf(new Uint8Array(0)), 'x', ACCESS));
    expect(refused).toMatchObject({ code: 'WRONG_FORMAT', reason: 'qcow2.magic' });
  });
});

it('writeIncompatible changes 8 bytes and no others (Q-065)', async () => {
  const { file } = await createInMemory(4096);
  const before = await bytesOf(file);
  await writeIncompatible(file, INCOMPATIBLE.dirty);
  const after = await bytesOf(file);
  expect(after.subarray(72, 80)).toEqual(Uint8Array.of(0, 0, 0, 0, 0, 0, 0, 1));
  after.set(before.subarray(72, 80), 72);
  expect(after).toEqual(before);
});
