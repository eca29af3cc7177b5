/** Rows about the header: fields out of bounds one by one, the order of the checks, and what an opening that fails leaves behind. The
 *  sentences of QEMU for them are compared in test/interop/qcow2-header.test.ts. */
import { describe, expect, it } from 'vitest';
import type { BlockNode } from '../../../src/core/node.ts';
import { encodeHeader, type Qcow2Header, writeHeader } from '../../../src/formats/qcow2/header.ts';
import { MemoryStore } from '../../../src/storage/memory.ts';
import { FaultStore } from '../../../src/testing/fault-store.ts';
import { RecordingStore } from '../../../src/testing/recording-store.ts';
import {
  closeAndCheck,
  headerOf,
  newDisk,
  type OpenDiskOptions,
  openDisk,
  pattern,
  poke,
  readAll,
} from '../../support/qcow2-parts.ts';
import { createQcow2Bytes } from '../../support/qcow2-under-test.ts';
import { failureOf } from './support.ts';

const KiB = 1024;
const CLUSTER = 4 * KiB;

const image = (variant: Parameters<typeof createQcow2Bytes>[1] = {}) =>
  createQcow2Bytes(256 * KiB, { clusterSize: CLUSTER, ...variant }, false);

async function put32(file: MemoryStore, at: number, value: number): Promise<void> {
  const bytes = new Uint8Array(4);
  new DataView(bytes.buffer).setUint32(0, value);
  await file.write(at, bytes);
}

/** What an opening says to a header field of that value. */
async function refusalOf(at: number, value: number | bigint, options: OpenDiskOptions = {}): Promise<string> {
  const file = await image();
  if (typeof value === 'bigint') await poke(file, at, value);
  else await put32(file, at, value);
  const before = file.bytes();
  const opened = await openDisk(file, { readOnly: true, ...options }).catch((error: unknown) => error);
  expect(file.bytes(), 'written to').toEqual(before);
  return opened instanceof Error && 'reason' in opened ? String(opened.reason) : 'opens';
}

describe('a header field at its bounds', () => {
  it('(Q-014) version: 2 and 3', async () => {
    expect(await refusalOf(4, 3)).toBe('opens');
    for (const version of [0, 1, 4, 9, 0xffff_ffff]) expect(await refusalOf(4, version)).toBe('qcow2.version');
    expect((await failureOf(async () => openDisk(await with32(4, 9)))).message).toContain('version 9');
  });

  it('(Q-015) cluster bits: 9 to 21', async () => {
    for (const bits of [0, 8, 22, 255, 0xffff_ffff]) expect(await refusalOf(20, bits)).toBe('qcow2.cluster-bits');
    for (const clusterSize of [512, 2 ** 21]) {
      expect((await openDisk(await image({ clusterSize }))).node.format.unit).toBe(clusterSize);
    }
  });

  it('(Q-017) header length: 104 at least', async () => {
    for (const length of [0, 72, 103]) expect(await refusalOf(100, length)).toBe('qcow2.header-length-short');
    const file = await image();
    await put32(file, 100, 104);
    await file.write(104, new Uint8Array(8));
    expect((await openDisk(file)).node.size).toBe(256 * KiB);
  });

  it('(Q-018) header length: one cluster at most', async () => {
    expect(await refusalOf(100, CLUSTER + 8)).toBe('qcow2.header-length-long');
    expect(await refusalOf(100, 0xffff_fff8)).toBe('qcow2.header-length-long');
  });

  it('(Q-022) refcount order: 6 at most', async () => {
    for (const order of [7, 64, 0xffff_ffff]) expect(await refusalOf(96, order)).toBe('qcow2.refcount-order');
    for (const refcountBits of [1, 64])
      expect((await openDisk(await image({ refcountBits }))).node.size).toBe(256 * KiB);
  });

  it('(Q-024) encryption method: unknown ones are refused by number, known ones mark the image encrypted', async () => {
    for (const method of [3, 0xffff_ffff]) {
      const error = await failureOf(async () => openDisk(await with32(32, method), { readOnly: true }));
      expect(error).toMatchObject({ code: 'UNSUPPORTED', reason: 'qcow2.encryption-method' });
      expect(error.message).toContain(String(method));
    }
    const { node } = await openDisk(await with32(32, 1), { readOnly: true, metadataOnly: true });
    expect((await node.format.info()).encrypted).toBe(true);
  });

  it('(Q-027) refcount table: 8 MiB at most, one cluster at least unless it is to be checked', async () => {
    const most = (8 * 1024 * KiB) / CLUSTER;
    expect(await refusalOf(56, most + 1)).toBe('qcow2.refcount-table-size');
    expect(await refusalOf(56, most)).toBe('opens');
    expect(await refusalOf(56, 0)).toBe('qcow2.refcount-table-missing');
    expect(await refusalOf(56, 0, { forCheck: true })).toBe('opens');
  });

  it('(Q-031) L1 entries: 32 MiB at most', async () => {
    expect(await refusalOf(36, 4 * 1024 * KiB + 1)).toBe('qcow2.l1-size');
    expect(await refusalOf(36, 4 * 1024 * KiB)).toBe('opens');
  });

  it('(Q-032) virtual size: no L1 index past 2^31', async () => {
    const coverage = BigInt(CLUSTER * (CLUSTER / 8));
    expect(await refusalOf(24, coverage * ((1n << 31n) - 1n) + 512n)).toBe('qcow2.image-too-big');
    expect(await refusalOf(24, coverage * ((1n << 31n) - 1n))).toBe('qcow2.l1-too-small');
    for (const size of [1n << 62n, (1n << 64n) - 1n]) expect(await refusalOf(24, size)).toBe('qcow2.image-too-big');
  });

  it('(Q-033) L1 entries: enough for the disk; more are legal', async () => {
    expect(await refusalOf(36, 0)).toBe('qcow2.l1-too-small');
    expect(await refusalOf(36, 1)).toBe('opens');
    expect(await refusalOf(36, 200)).toBe('opens');
  });

  it('(Q-034) L1 table: nowhere, where the disk has no byte', async () => {
    const file = await createQcow2Bytes(0, { clusterSize: CLUSTER }, false);
    await put32(file, 36, 0);
    await poke(file, 40, 0n);
    const { node } = await openDisk(file, { readOnly: true });
    expect(node.size).toBe(0);
  });

  async function with32(at: number, value: number): Promise<MemoryStore> {
    const file = await image();
    await put32(file, at, value);
    return file;
  }
});

describe('reading the header', () => {
  it('(Q-011) begins at byte 0, and tells what cannot be read', async () => {
    const file = await image();
    const around = (inner: BlockNode): BlockNode => {
      const faulty = new FaultStore(inner);
      faulty.fail({ on: 'read', offset: 0, length: 1 });
      return faulty;
    };
    expect(await failureOf(() => openDisk(file, { around }))).toMatchObject({ code: 'IO', details: { errno: 'EIO' } });
  });

  it('(Q-052) fails with its extensions, where those cannot be read', async () => {
    const file = await createQcow2Bytes(256 * KiB, { clusterSize: 2 ** 21 }, false);
    const around = (inner: BlockNode): BlockNode => {
      const faulty = new FaultStore(inner);
      // What lies behind the fixed fields, of the second, longer read.
      faulty.fail({ on: 'read', offset: 1024 * KiB });
      return faulty;
    };
    expect(await failureOf(() => openDisk(file, { around }))).toMatchObject({ code: 'IO', details: { errno: 'EIO' } });
  });

  it('(Q-050) takes extensions padded to 8 bytes up to the end marker, and nothing behind that', async () => {
    const file = await image();
    const area = new Uint8Array(56);
    const view = new DataView(area.buffer);
    view.setUint32(0, 0x1111_1111);
    view.setUint32(4, 3);
    area.set([1, 2, 3], 8);
    view.setUint32(16, 0x2222_2222);
    view.setUint32(20, 8);
    area.set([1, 2, 3, 4, 5, 6, 7, 8], 24);
    // The end; what follows is nothing.
    view.setUint32(40, 0x3333_3333);
    await file.write(112, area);
    const { unknownExtensions } = await headerOf(file);
    expect(unknownExtensions.map(({ magic, data }) => [magic, data.length])).toEqual([
      [0x1111_1111, 3],
      [0x2222_2222, 8],
    ]);
  });

  it('(Q-050) needs no end marker where the name of the backing file, or the cluster, ends them', async () => {
    const file = await image({ clusterSize: 512 });
    const length = 512 - 112 - 8;
    await put32(file, 112, 0x1111_1111);
    await put32(file, 116, length);
    await file.write(120, new Uint8Array(length).fill(1));
    expect((await headerOf(file)).unknownExtensions).toMatchObject([{ magic: 0x1111_1111 }]);
  });

  it('(Q-057) knows the extensions for bitmaps, encryption and data files, and does not take them for unknown ones', async () => {
    const make = async (magic: number, data: Uint8Array, change: (file: MemoryStore) => Promise<void>) => {
      const file = await image();
      await put32(file, 112, magic);
      await put32(file, 116, data.length);
      await file.write(120, data);
      await put32(file, 120 + Math.ceil(data.length / 8) * 8, 0);
      await change(file);
      return await headerOf(file);
    };
    const words = (...values: bigint[]) => {
      const view = new DataView(new ArrayBuffer(values.length * 8));
      values.forEach((value, i) => {
        view.setBigUint64(i * 8, value);
      });
      return new Uint8Array(view.buffer);
    };
    const bitmaps = await make(0x2385_2875, words(1n << 32n, 32n, 0x4000n), (file) => poke(file, 88, 1n));
    expect(bitmaps).toMatchObject({ bitmaps: { count: 1, directoryOffset: 0x4000 }, unknownExtensions: [] });
    const crypto = await make(0x0537_be77, words(0x4000n, 4096n), (file) => put32(file, 32, 2));
    expect(crypto).toMatchObject({ crypto: { offset: 0x4000, length: 4096 }, unknownExtensions: [] });
    const data = await make(0x4441_5441, new TextEncoder().encode('data.raw'), (file) => poke(file, 72, 4n));
    expect(data).toMatchObject({ dataFile: 'data.raw', unknownExtensions: [] });
  });

  it('(M-09) takes the name of a data file for a plain name, whatever it looks like', async () => {
    const name = 'json:{"driver":"nbd"}';
    const file = await image();
    await poke(file, 72, 4n);
    await put32(file, 112, 0x4441_5441);
    await put32(file, 116, name.length);
    await file.write(120, new TextEncoder().encode(name));
    await put32(file, 120 + Math.ceil(name.length / 8) * 8, 0);
    expect((await headerOf(file)).dataFile).toBe(name);
    const { node } = await openDisk(file, { readOnly: true, metadataOnly: true, dataFile: file });
    expect((await node.format.info()).specific?.data['data-file']).toBe(name);
  });
});

describe('opening', () => {
  it('(Q-036) reads L1 tables that the file ends before as zeros, and fails the read where one cannot be read', async () => {
    const disk = await newDisk({ size: 4096 * KiB, clusterSize: 512 });
    await disk.node.write(0, pattern(512));
    const { file } = await closeAndCheck(disk);
    const { l1Offset } = await headerOf(file);
    const faulty = await openDisk(file, {
      readOnly: true,
      around: (inner) => {
        const store = new FaultStore(inner);
        store.fail({ on: 'read', offset: l1Offset, length: 1024, nth: 2 });
        return store;
      },
    });
    expect(await failureOf(() => readAll(faulty.node, 0, 512))).toMatchObject({ code: 'IO' });
    // Tried again, it is read again.
    expect(await readAll(faulty.node, 0, 512)).toEqual(pattern(512));
    const cut = MemoryStore.from(file.bytes());
    await cut.truncate(l1Offset);
    const { node } = await openDisk(cut, { readOnly: true });
    expect((await readAll(node)).every((byte) => byte === 0)).toBe(true);
  });

  it('(Q-037) tells bad options before bad snapshots, and both before it repairs', async () => {
    const file = await image();
    await put32(file, 60, 1);
    await poke(file, 64, 0x10_0000n);
    await poke(file, 72, 1n);
    const wrong = { l2CacheEntrySize: 5000 };
    expect(await failureOf(() => openDisk(file, { options: wrong }))).toMatchObject({ code: 'OPTION' });
    await poke(file, 64, 0x1001n);
    expect(await failureOf(() => openDisk(file, { options: wrong }))).toMatchObject({
      reason: 'qcow2.snapshots-offset',
    });
  });

  it('(Q-039) that fails has written nothing', async () => {
    const damages: readonly ((file: MemoryStore) => Promise<void>)[] = [
      (file) => put32(file, 4, 7),
      (file) => put32(file, 60, 70_000),
      (file) => put32(file, 116, 0xffff_ffff),
      (file) => poke(file, 72, 1n << 60n),
      // A snapshot table of one entry with more extra data than there may be.
      async (file) => {
        await put32(file, 60, 1);
        await poke(file, 64, 0x4000n);
        await put32(file, 0x4000 + 36, 5000);
      },
    ];
    for (const damage of damages) {
      const file = await image();
      await poke(file, 88, 0x8000_0000n);
      await damage(file);
      let log: RecordingStore | undefined;
      const around = (inner: BlockNode): BlockNode => {
        log = new RecordingStore(inner);
        return log;
      };
      await failureOf(() => openDisk(file, { around }));
      expect(log?.entries).toEqual([]);
    }
  });

  it('(Q-040) says how requests do best: zeroes in clusters or subclusters, discards in clusters', async () => {
    expect((await newDisk({ size: 256 * KiB, clusterSize: CLUSTER })).node.limits).toMatchObject({
      zeroAlign: CLUSTER,
      discardAlign: CLUSTER,
    });
    expect((await newDisk({ size: 256 * KiB, extendedL2: true })).node.limits).toMatchObject({ zeroAlign: 512 });
  });
});

describe('rewriting the header', () => {
  const header = async (): Promise<{ file: MemoryStore; header: Qcow2Header }> => {
    const file = await image();
    return { file, header: await headerOf(file) };
  };

  it('(Q-125) is one write of the first cluster', async () => {
    const { file, header: read } = await header();
    const log = new RecordingStore(file);
    await writeHeader(log, { ...read, backingFile: 'another' }, 'x');
    expect(log.entries.map(({ kind, offset, length }) => [kind, offset, length])).toEqual([['write', 0, CLUSTER]]);
  });

  it('(Q-122) puts the name behind the extensions, without NUL, and zeros where there is none', async () => {
    const { header: read } = await header();
    const named = encodeHeader({ ...read, backingFile: 'base', backingFormat: 'raw' }, 'x');
    const view = new DataView(named.buffer);
    const at = Number(view.getBigUint64(8));
    expect(view.getUint32(16)).toBe(4);
    expect(new TextDecoder().decode(named.subarray(at, at + 4))).toBe('base');
    // The marker that ends the extensions is right before it.
    expect(view.getBigUint64(at - 8)).toBe(0n);
    const plain = new DataView(encodeHeader({ ...read, backingFile: undefined, backingFormat: undefined }, 'x').buffer);
    expect([plain.getBigUint64(8), plain.getUint32(16)]).toEqual([0n, 0]);
  });

  it('(Q-124) knows versions 2 and 3 only, by type and by what create and amend take', async () => {
    const { header: read } = await header();
    for (const version of [2, 3] as const) {
      expect(new DataView(encodeHeader({ ...read, version }, 'x').buffer).getUint32(4)).toBe(version);
    }
    const create = (compat: string) => createQcow2Bytes(KiB, { compat: compat as 'v3' }, false);
    for (const compat of ['v1', 'v4', '1.2']) {
      expect(await failureOf(() => create(compat))).toMatchObject({ code: 'OPTION', reason: 'qcow2.compat' });
    }
  });
});
