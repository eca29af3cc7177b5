/** A damaged or unsupported image is never read wrongly in silence: each feature bit, each bad offset, each unknown type and each bound has
 *  its own refusal, with a code, a reason and a message that says what and where. */
import { describe, expect, it } from 'vitest';
import type { BlockError } from '../../../src/base/errors.ts';
import type { Qcow2CreateOptions } from '../../../src/formats/qcow2/options.ts';
import { MemoryStore } from '../../../src/storage/memory.ts';
import {
  closeAndCheck,
  headerOf,
  l2Tables,
  newDisk,
  type OpenDiskOptions,
  openDisk,
  pattern,
  peek,
  poke,
  readAll,
} from '../../support/qcow2-parts.ts';
import { checkQcow2 } from '../../support/qcow2-under-test.ts';
import { createInMemory, failureOf } from './support.ts';

const KiB = 1024;
const COPIED = 1n << 63n;
const COMPRESSED = 1n << 62n;
/** Bytes of header fields. */
const AT = {
  version: 4,
  backingOffset: 8,
  backingSize: 16,
  clusterBits: 20,
  size: 24,
  encryption: 32,
  l1Size: 36,
  l1Offset: 40,
  refcountTableOffset: 48,
  refcountTableClusters: 56,
  snapshots: 60,
  snapshotsOffset: 64,
  incompatible: 72,
  autoclear: 88,
  refcountOrder: 96,
  headerLength: 100,
  compressionType: 104,
  extensions: 112,
} as const;

const CONTENT = pattern(12 * KiB);

/** An image of clusters of 4 KiB (16 KiB with subclusters): three of data at its start. */
async function sample(options: { compat?: 'v2'; extendedL2?: true } = {}): Promise<MemoryStore> {
  const disk = await newDisk({ size: 256 * KiB, clusterSize: 4096, ...options });
  await disk.node.write(0, CONTENT);
  return (await closeAndCheck(disk)).file;
}

async function set32(file: MemoryStore, at: number, value: number): Promise<void> {
  const bytes = new Uint8Array(4);
  new DataView(bytes.buffer).setUint32(0, value);
  await file.write(at, bytes);
}

/** Puts a header extension before all others; there is room, because the feature names are left out of small clusters. */
async function setExtension(file: MemoryStore, magic: number, data: Uint8Array): Promise<void> {
  await set32(file, AT.extensions, magic);
  await set32(file, AT.extensions + 4, data.length);
  await file.write(AT.extensions + 8, data);
}

function words(...values: bigint[]): Uint8Array {
  const view = new DataView(new ArrayBuffer(values.length * 8));
  values.forEach((value, i) => {
    view.setBigUint64(i * 8, value);
  });
  return new Uint8Array(view.buffer);
}

/** The refusal must name format and image, and say something in lower case. */
function expectRefusal(error: BlockError, code: string, reason: string, message: RegExp): void {
  expect({ code: error.code, reason: error.reason }).toEqual({ code, reason: `qcow2.${reason}` });
  expect(error.message).toMatch(message);
  expect(error.message).toMatch(/^qcow2 "disk": \S/);
}

async function expectNotOpened(
  file: MemoryStore,
  code: string,
  reason: string,
  message: RegExp,
  options: OpenDiskOptions = { readOnly: true },
): Promise<void> {
  const before = file.bytes();
  expectRefusal(await failureOf(() => openDisk(file, options)), code, reason, message);
  expect(file.bytes(), 'a refused image is left as it was').toEqual(before);
}

describe('an incompatible feature bit', () => {
  it.each(Array.from({ length: 59 }, (_, i) => 5 + i))('%d, which is unknown, is refused (Q-060)', async (bit) => {
    const file = await sample();
    await poke(file, AT.incompatible, 1n << BigInt(bit));
    const named = new RegExp(`unsupported feature: unknown incompatible feature ${(1n << BigInt(bit)).toString(16)}$`);
    await expectNotOpened(file, 'UNSUPPORTED', 'incompatible-features', named);
    await expectNotOpened(file, 'UNSUPPORTED', 'incompatible-features', named, { readOnly: false });
    await expectNotOpened(file, 'UNSUPPORTED', 'incompatible-features', named, { forCheck: true });
  });

  it('that is unknown is called what the image calls it (Q-054, Q-060)', async () => {
    const file = await sample();
    await poke(file, AT.incompatible, (1n << 7n) | (1n << 9n));
    const name = new Uint8Array(48);
    name.set([0, 7, ...new TextEncoder().encode('quantum clusters')]);
    await setExtension(file, 0x6803_f857, name);
    const message = /unsupported feature: quantum clusters, unknown incompatible feature 200$/;
    await expectNotOpened(file, 'UNSUPPORTED', 'incompatible-features', message);
  });

  it('0, dirty, lets it be read, and is repaired before it is written', async () => {
    const file = await sample();
    await poke(file, AT.incompatible, 1n);
    const reader = await openDisk(file, { readOnly: true });
    expect(await readAll(reader.node, 0, CONTENT.length)).toEqual(CONTENT);
    await reader.node.close();
    const { node, events } = await openDisk(file.reopen());
    expect(events).toMatchObject([{ type: 'repaired' }]);
    expect(await readAll(node, 0, CONTENT.length)).toEqual(CONTENT);
  });

  it('0, dirty, is refused for writing where the repair cannot make it right', async () => {
    const file = await sample();
    await poke(file, AT.incompatible, 1n);
    const header = await headerOf(file);
    await poke(file, header.l1Offset, COPIED | 0x5200n);
    const error = await failureOf(() => openDisk(file));
    expectRefusal(error, 'CORRUPT', 'dirty-repair', /was not closed cleanly and could not be repaired/);
  });

  it('1, corrupt, lets it be read, and is refused for writing (Q-063)', async () => {
    const file = await sample();
    await poke(file, AT.incompatible, 2n);
    await expectNotOpened(file, 'ACCESS', 'corrupt', /marked as corrupt, so it opens read-only/, { readOnly: false });
    const { node } = await openDisk(file, { readOnly: true });
    expect(await readAll(node, 0, CONTENT.length)).toEqual(CONTENT);
  });

  it('2, external data file, is refused where no file is named', async () => {
    const file = await sample();
    await poke(file, AT.incompatible, 4n);
    await expectNotOpened(file, 'CORRUPT', 'data-file-missing', /needs an external data file and names none/);
  });

  it('3, compression type, is refused where the type is the old one (M-01)', async () => {
    const file = await sample();
    await poke(file, AT.incompatible, 8n);
    await expectNotOpened(
      file,
      'CORRUPT',
      'compression-bit',
      /compression type 0 needs the compression feature bit clear/,
    );
  });

  it('4, extended L2 entries, is refused where clusters are too small for subclusters', async () => {
    const file = await sample();
    await poke(file, AT.incompatible, 16n);
    await expectNotOpened(file, 'CORRUPT', 'subcluster-size', /subclusters of 128 bytes; at least 512 are needed/);
  });
});

describe('an autoclear bit', () => {
  it('for a raw data file is refused where there is no data file', async () => {
    const file = await sample();
    await poke(file, AT.autoclear, 2n);
    await expectNotOpened(file, 'CORRUPT', 'data-file-raw', /says that its data file is raw, but has no data file/);
  });
});

describe('a compression type', () => {
  it.each([2, 3, 127, 255])('%d, which is unknown, is refused', async (type) => {
    const file = await sample();
    await poke(file, AT.incompatible, 8n);
    await file.write(AT.compressionType, Uint8Array.of(type));
    await expectNotOpened(file, 'UNSUPPORTED', 'compression-type', new RegExp(`unknown compression type ${type}$`));
  });

  it('other than the old one is refused without its feature bit (M-01)', async () => {
    const file = await sample();
    await file.write(AT.compressionType, Uint8Array.of(1));
    await expectNotOpened(
      file,
      'CORRUPT',
      'compression-bit',
      /compression type 1 needs the compression feature bit set/,
    );
  });

  it('that is not the one the data was made with fails the read of compressed clusters', async () => {
    const disk = await newDisk({ size: 64 * KiB, clusterSize: 4096 });
    await disk.node.write(0, new Uint8Array(4096).fill(3), { compressed: true });
    const { file } = await closeAndCheck(disk);
    await poke(file, AT.incompatible, 8n);
    await file.write(AT.compressionType, Uint8Array.of(1));
    const { node } = await openDisk(file, { readOnly: true });
    const error = await failureOf(() => readAll(node));
    expectRefusal(
      error,
      'CORRUPT',
      'compressed-data',
      /the compressed cluster at 0x[0-9a-f]+ \(guest offset 0x0\) does not/,
    );
  });
});

describe('an encryption method', () => {
  it('of AES without a key lets facts be told, and no data be read (Q-155)', async () => {
    const file = await sample();
    await set32(file, AT.encryption, 1);
    await expectNotOpened(file, 'ENCRYPTED', 'encrypted', /encrypted \(aes\); its data needs a key/);
    await expectNotOpened(file, 'ENCRYPTED', 'encrypted', /encrypted \(aes\)/, { readOnly: false });
    const { node } = await openDisk(file, { readOnly: true, metadataOnly: true });
    expectRefusal(await failureOf(() => readAll(node)), 'ENCRYPTED', 'encrypted', /its data needs a key/);
  });

  it('of LUKS without a LUKS header is refused', async () => {
    const file = await sample();
    await set32(file, AT.encryption, 2);
    const facts = { readOnly: true, metadataOnly: true };
    await expectNotOpened(file, 'CORRUPT', 'crypto-missing', /names no place of the LUKS header/, facts);
  });

  it.each([3, 0xffff_ffff])('%d, which is unknown, is refused', async (method) => {
    const file = await sample();
    await set32(file, AT.encryption, method);
    await expectNotOpened(file, 'UNSUPPORTED', 'encryption-method', new RegExp(`unknown encryption method ${method}$`));
  });
});

describe('a header', () => {
  type Change = (file: MemoryStore) => Promise<void>;
  const cases: readonly (readonly [name: string, code: string, reason: string, message: RegExp, Change])[] = [
    ['of another format', 'WRONG_FORMAT', 'magic', /not a qcow2 image: magic 0x0/, (file) => set32(file, 0, 0)],
    ...[0, 1, 4, 0xffff_ffff].map((version): (typeof cases)[number] => [
      `of version ${version}`,
      'UNSUPPORTED',
      'version',
      new RegExp(`version ${version}; 2 and 3 are known`),
      (file) => set32(file, AT.version, version),
    ]),
    ...[0, 8, 22, 63, 0xffff_ffff].map((bits): (typeof cases)[number] => [
      `with clusters of 2^${bits}`,
      'CORRUPT',
      'cluster-bits',
      new RegExp(`cluster size 2\\^${bits} is not within 2\\^9 to 2\\^21`),
      (file) => set32(file, AT.clusterBits, bits),
    ]),
    [
      'of 103 bytes',
      'CORRUPT',
      'header-length-short',
      /header of 103 bytes/,
      (file) => set32(file, AT.headerLength, 103),
    ],
    [
      'longer than a cluster',
      'CORRUPT',
      'header-length-long',
      /header of 4104 bytes exceeds the cluster size 0x1000/,
      (file) => set32(file, AT.headerLength, 4104),
    ],
    [
      'with refcounts of 128 bits',
      'CORRUPT',
      'refcount-order',
      /refcounts of 2\^7 bits; at most 64 bits/,
      (file) => set32(file, AT.refcountOrder, 7),
    ],
    [
      'without a refcount table',
      'CORRUPT',
      'refcount-table-missing',
      /has no refcount table/,
      (file) => set32(file, AT.refcountTableClusters, 0),
    ],
    [
      'with a refcount table of more than 8 MiB',
      'TOO_LARGE',
      'refcount-table-size',
      /refcount table of 2049 entries; at most 2048/,
      (file) => set32(file, AT.refcountTableClusters, 2049),
    ],
    [
      'with an L1 table of more than 32 MiB',
      'TOO_LARGE',
      'l1-size',
      /L1 table of 4194305 entries; at most 4194304/,
      (file) => set32(file, AT.l1Size, 4_194_305),
    ],
    [
      'with an L1 table too small for the disk',
      'CORRUPT',
      'l1-too-small',
      /L1 table of 0 entries; the virtual size 0x40000 needs 1/,
      (file) => set32(file, AT.l1Size, 0),
    ],
    [
      'with a disk too large for its L1 table',
      'CORRUPT',
      'l1-too-small',
      /L1 table of 1 entries; the virtual size 0x200001 needs 2/,
      (file) => poke(file, AT.size, 0x20_0001n),
    ],
    ...[1n << 53n, (1n << 63n) - 1n, (1n << 64n) - 1n].map((size): (typeof cases)[number] => [
      `with a disk of 0x${size.toString(16)} bytes`,
      'TOO_LARGE',
      'image-too-big',
      /virtual size above 2\^53-1 is beyond what clusters of 0x1000 can map/,
      (file) => poke(file, AT.size, size),
    ]),
    [
      'with more than 65536 snapshots',
      'TOO_LARGE',
      'snapshots-size',
      /snapshot table of 65537 entries; at most 65536/,
      (file) => set32(file, AT.snapshots, 65_537),
    ],
  ];
  it.each(cases)('%s is refused', async (_name, code, reason, message, change) => {
    const file = await sample();
    await change(file);
    await expectNotOpened(file, code, reason, message);
  });
});

describe('an offset in the header', () => {
  const tables: readonly (readonly [name: string, at: number, reason: string, what: string])[] = [
    ['L1 table', AT.l1Offset, 'l1-offset', 'L1 table'],
    ['refcount table', AT.refcountTableOffset, 'refcount-table-offset', 'refcount table'],
    ['snapshot table', AT.snapshotsOffset, 'snapshots-offset', 'snapshot table'],
  ];
  const wrong: readonly (readonly [value: bigint, text: string])[] = [
    [0x3001n, '0x3001'],
    [0x3200n, '0x3200'],
    [1n << 53n, 'above 2\\^53-1'],
    [(1n << 63n) - 4096n, 'above 2\\^53-1'],
    [(1n << 64n) - 1n, 'above 2\\^53-1'],
  ];
  const all = tables.flatMap((table) => wrong.map((value) => [...table, ...value] as const));
  it.each(all)(
    'of the %s (byte %d of the header) is refused: %4$s (Q-028, Q-030, Q-034, Q-035)',
    async (_name, at, reason, what, value, text) => {
      const file = await sample();
      await poke(file, at, value);
      const message = new RegExp(`${what} at ${text} is not a multiple of the cluster size 0x1000`);
      await expectNotOpened(file, 'CORRUPT', reason, message);
    },
  );

  it.each([4097n, 1n << 32n, (1n << 64n) - 1n])(
    'of the backing file name past the first cluster is refused: %d (Q-020)',
    async (value) => {
      const file = await sample();
      await poke(file, AT.backingOffset, value);
      await expectNotOpened(
        file,
        'CORRUPT',
        'backing-offset',
        /backing file name at .* is past the first cluster of 0x1000/,
      );
    },
  );

  it.each([
    [200n, 1024, 1023],
    [4000n, 97, 96],
    [4096n, 1, 0],
  ])(
    'of the backing file name with a length that does not fit is refused: %d (Q-020, Q-038)',
    async (offset, length, bound) => {
      const file = await sample();
      await poke(file, AT.backingOffset, offset);
      await set32(file, AT.backingSize, length);
      const message = new RegExp(`backing file name of ${length} bytes at 0x[0-9a-f]+; at most ${bound} fit`);
      await expectNotOpened(file, 'CORRUPT', 'backing-name-length', message);
    },
  );
});

describe('a header extension', () => {
  it.each([4096, 0x7fff_ffff, 0xffff_ffff])('of %d bytes is refused (Q-051)', async (length) => {
    const file = await sample();
    await set32(file, AT.extensions, 0x1234);
    await set32(file, AT.extensions + 4, length);
    await expectNotOpened(
      file,
      'CORRUPT',
      'extension-too-large',
      /header extension at 0x70 passes the end of the header area/,
    );
  });

  it('with a backing format name of 16 bytes is refused (Q-053)', async () => {
    const file = await sample();
    await setExtension(file, 0xe279_2aca, new Uint8Array(16).fill(0x61));
    await expectNotOpened(
      file,
      'CORRUPT',
      'backing-format-length',
      /backing format name of 16 bytes at 0x70; at most 15/,
    );
  });

  const bitmaps: readonly (readonly [name: string, reason: string, message: RegExp, data: Uint8Array])[] = [
    ['of the wrong length', 'bitmaps-length', /bitmaps extension at 0x70 has 16 bytes, not 24/, words(1n << 32n, 0n)],
    [
      'with its reserved field set',
      'bitmaps-reserved',
      /reserved field of the bitmaps extension/,
      words((1n << 32n) + 1n, 32n, 0n),
    ],
    ['without bitmaps', 'bitmaps-none', /bitmaps extension without bitmaps/, words(0n, 32n, 0n)],
    ['with 65536 bitmaps', 'bitmaps-count', /65536 bitmaps; at most 65535/, words(65536n << 32n, 32n, 0n)],
    [
      'with an unaligned directory',
      'bitmaps-offset',
      /bitmap directory at 0x3200 is not a multiple/,
      words(1n << 32n, 32n, 0x3200n),
    ],
    [
      'with a directory beyond 2^53',
      'bitmaps-offset',
      /bitmap directory at above 2\^53-1 is not/,
      words(1n << 32n, 32n, 1n << 60n),
    ],
    [
      'with a huge directory',
      'bitmaps-size',
      /bitmap directory of 0x10000000000 bytes; at most/,
      words(1n << 32n, 1n << 40n, 0n),
    ],
  ];
  it.each(bitmaps)('for bitmaps, %s, is refused (M-10)', async (_name, reason, message, data) => {
    const file = await sample();
    await poke(file, AT.autoclear, 1n);
    await setExtension(file, 0x2385_2875, data);
    await expectNotOpened(file, 'CORRUPT', reason, message);
  });

  it('for encryption is refused where the image is not encrypted so', async () => {
    const file = await sample();
    await setExtension(file, 0x0537_be77, words(0x3000n, 512n));
    await expectNotOpened(file, 'CORRUPT', 'crypto-unexpected', /the encryption method is not luks/);
  });

  it.each([
    ['an unaligned header', 'crypto-offset', /encryption header at 0x3200 is not a multiple/, words(0x3200n, 512n)],
    ['the wrong length', 'crypto-length', /encryption header extension at 0x70 has 8 bytes, not 16/, words(0x3000n)],
  ])('for encryption with %s is refused', async (_name, reason, message, data) => {
    const file = await sample();
    await set32(file, AT.encryption, 2);
    await setExtension(file, 0x0537_be77, data);
    await expectNotOpened(file, 'CORRUPT', reason, message, { readOnly: true, metadataOnly: true });
  });
});

describe('a table entry', () => {
  /** Where the first entry of the kind is. */
  async function placeOf(file: MemoryStore, kind: 'l1' | 'l2' | 'refcount table'): Promise<number> {
    if (kind === 'l2') return (await l2Tables(file))[0] as number;
    const header = await headerOf(file);
    return kind === 'l1' ? header.l1Offset : header.refcountTableOffset;
  }

  const unreadable: readonly (readonly [name: string, kind: 'l1' | 'l2', value: bigint, reason: string, RegExp])[] = [
    [
      'of an L2 table that is not aligned',
      'l1',
      COPIED | 0x5200n,
      'l2-offset',
      /L2 table offset 0x5200 unaligned \(L1 index: 0\)/,
    ],
    ['of an L2 table beyond 2^53', 'l1', COPIED | (1n << 55n), 'l2-offset', /L2 table offset above 2\^53/],
    [
      'of a cluster that is not aligned',
      'l2',
      COPIED | 0x5200n,
      'cluster-offset',
      /Cluster allocation offset 0x5200 unaligned/,
    ],
    ['of a cluster beyond 2^53', 'l2', COPIED | (1n << 55n), 'cluster-offset', /Cluster allocation offset above 2\^53/],
    [
      'of a zero cluster that is not aligned',
      'l2',
      0x5201n,
      'cluster-offset',
      /Cluster allocation offset 0x5200 unaligned/,
    ],
    ['of a compressed cluster beyond 2^53', 'l2', COMPRESSED | (1n << 56n), 'compressed-offset', /lies at above 2\^53/],
    ['of a compressed cluster past the end', 'l2', COMPRESSED | (1n << 40n), 'compressed-data', /does not decompress/],
    ['of a compressed cluster that is none', 'l2', COMPRESSED | 0x1000n, 'compressed-data', /does not decompress/],
  ];
  it.each(unreadable)('%s is no data', async (_name, kind, value, reason, message) => {
    const file = await sample();
    await poke(file, await placeOf(file, kind), value);
    const { node, events } = await openDisk(file, { readOnly: true });
    expectRefusal(await failureOf(() => readAll(node)), 'CORRUPT', reason, message);
    if (!reason.startsWith('compressed')) expect(events).toMatchObject([{ type: 'corrupted', fatal: false }]);
    // what the entry does not speak of is read all the same
    if (kind === 'l2') expect(await readAll(node, 4096, 8192)).toEqual(CONTENT.slice(4096, 12288));
  });

  it('past the end of the file reads as zero, like everything there', async () => {
    const file = await sample();
    await poke(file, await placeOf(file, 'l2'), COPIED | (1n << 40n));
    const { node } = await openDisk(file, { readOnly: true });
    expect(await readAll(node, 0, 4096)).toEqual(new Uint8Array(4096));
    expect((await checkQcow2(file)).lines.join()).toMatch(/region exceeding the end of the file/);
  });

  it('with the zero flag is refused in version 2', async () => {
    const file = await sample({ compat: 'v2' });
    await poke(file, await placeOf(file, 'l2'), 1n);
    const { node } = await openDisk(file, { readOnly: true });
    expectRefusal(
      await failureOf(() => readAll(node)),
      'CORRUPT',
      'zero-in-v2',
      /Zero cluster entry found in pre-v3 image/,
    );
  });

  it.each([
    ['both allocated and zero', 0x0000_0001_0000_0001n],
    ['allocated without a cluster', 0x0000_0000_0000_0001n],
  ])('with subclusters %s is refused', async (name, bitmaps) => {
    const file = await sample({ extendedL2: true });
    const at = await placeOf(file, 'l2');
    if (name.startsWith('allocated')) await poke(file, at, 0n);
    await poke(file, at + 8, bitmaps);
    const { node } = await openDisk(file, { readOnly: true });
    const error = await failureOf(() => readAll(node));
    expectRefusal(
      error,
      'CORRUPT',
      'subcluster-bitmap',
      /Invalid cluster entry found {2}\(L2 offset: 0x[0-9a-f]+, L2 index: 0\)/,
    );
  });

  it('of the refcount table that is not aligned is refused at the first allocation', async () => {
    const file = await sample();
    const at = await placeOf(file, 'refcount table');
    await poke(file, at, (await peek(file, at)) + 512n);
    const { node, events } = await openDisk(file);
    const error = await failureOf(() => node.write(128 * KiB, pattern(10)));
    expectRefusal(
      error,
      'CORRUPT',
      'refcount-block-offset',
      /Refblock offset 0x[0-9a-f]+ unaligned \(reftable index: 0\)/,
    );
    expect(events).toMatchObject([{ type: 'corrupted', fatal: true }]);
  });

  it('that names no refcount block where the header lies is refused at the first allocation', async () => {
    const file = await sample();
    await poke(file, await placeOf(file, 'refcount table'), 0n);
    const { node } = await openDisk(file);
    const error = await failureOf(() => node.write(128 * KiB, pattern(10)));
    expectRefusal(error, 'CORRUPT', 'overlap', /Preventing invalid write on metadata \(overlaps with qcow2_header\)/);
    await node.close();
    const again = await openDisk(file.reopen(), { readOnly: true });
    expect(await readAll(again.node, 0, CONTENT.length)).toEqual(CONTENT);
  });

  describe('of an image with a data file', () => {
    const withDataFile = async (input: Partial<Qcow2CreateOptions>, value: bigint): Promise<() => Promise<unknown>> => {
      const { file, data } = await createInMemory(64 * KiB, { ...input, clusterSize: 4096, dataFile: 'data' });
      const { node } = await openDisk(file, { dataFile: data as MemoryStore });
      await node.write(0, pattern(4096));
      await node.flush();
      const image = MemoryStore.from(file.bytes());
      await poke(image, (await l2Tables(image))[0] as number, value);
      const opened = await openDisk(image, { readOnly: true, dataFile: data as MemoryStore });
      return () => readAll(opened.node);
    };

    it('is refused where it is not at the guest’s own offset', async () => {
      const read = await withDataFile({}, COPIED | 0x2000n);
      const message = /External data file host cluster offset 0x2000 does not match guest cluster offset: 0/;
      expectRefusal(await failureOf(read), 'CORRUPT', 'data-file-offset', message);
    });

    it('is refused where it is compressed', async () => {
      const read = await withDataFile({}, COMPRESSED | 0x2000n);
      const message = /Compressed cluster entry found in image with external data file/;
      expectRefusal(await failureOf(read), 'CORRUPT', 'data-file-compressed', message);
    });
  });
});

describe('a snapshot table', () => {
  /** One entry at the end of the file. */
  async function withSnapshot(change: (entry: DataView) => void): Promise<MemoryStore> {
    const file = await sample();
    const at = Math.ceil(file.size / 4096) * 4096;
    const entry = new DataView(new ArrayBuffer(4096));
    entry.setUint16(12, 1);
    entry.setUint16(14, 4);
    entry.setUint32(36, 16);
    change(entry);
    await file.write(at, new Uint8Array(entry.buffer));
    await set32(file, AT.snapshots, 1);
    await poke(file, AT.snapshotsOffset, BigInt(at));
    return file;
  }

  it('with too much extra data is refused (M-22)', async () => {
    const file = await withSnapshot((entry) => entry.setUint32(36, 1025));
    const message = /snapshot table entry 0 has 1025 bytes of extra data; at most 1024/;
    await expectNotOpened(file, 'TOO_LARGE', 'snapshot-extra', message);
  });

  it.each([
    ['not aligned', 0x5200n, 1, /l1_offset=0x5200: L1 table is not cluster aligned/],
    ['too large', 0x5000n, 4_194_305, /l1_size=0x400001: L1 table is too large/],
  ])(
    'with an L1 table that is %s is a corruption to check, and leaves the disk readable',
    async (_name, offset, size, line) => {
      const file = await withSnapshot((entry) => {
        entry.setBigUint64(0, offset);
        entry.setUint32(8, size);
      });
      const { lines, corruptions } = await checkQcow2(file);
      expect(corruptions).toBeGreaterThan(0);
      expect(lines.join('\n')).toMatch(line);
      const { node } = await openDisk(file, { readOnly: true });
      expect(await readAll(node, 0, CONTENT.length)).toEqual(CONTENT);
    },
  );
});
