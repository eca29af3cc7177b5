/** Creating an image: checks the options, plans the layout, writes the metadata.
 *  Spec: qcow2, all table formats; the bytes are those of `qemu-img create` as far as its layout is the same (see layout.ts).
 *  Write order: everything the header points to, then a flush, then the header, then a flush. Until the header is there the file
 *  has no magic, so a half-created image does not look like one. */
import { BlockError, type ErrorCode, type ErrorDetails, hex, isBlockError } from '../../base/errors.ts';
import { Pacer, throwIfAborted } from '../../base/job.ts';
import { MiB } from '../../base/sizes.ts';
import { alignUp, isPowerOfTwo, log2Exact } from '../../bytes/align.ts';
import { setU64 } from '../../bytes/ints.ts';
import type { CreateContext } from '../../core/format.ts';
import type { ByteStore, Preallocation } from '../../core/store.ts';
import { setL1Entry, setL2Entry, setRefcount } from './entries.ts';
import { AUTOCLEAR, COMPATIBLE, INCOMPATIBLE } from './features.ts';
import {
  type Geometry,
  geometryOf,
  MAX_CLUSTER_BITS,
  MAX_L1_BYTES,
  MAX_REFCOUNT_TABLE_BYTES,
  MIN_CLUSTER_BITS,
  TABLE_ENTRY_BYTES,
} from './geometry.ts';
import { encodeHeader, type Qcow2Header } from './header.ts';
import { type Layout, planLayout } from './layout.ts';
import { type NewEncryption, newPassphrase, planEncryption, writeLuksHeader } from './new-encryption.ts';
import type { Qcow2CreateOptions } from './options.ts';

const SECTOR = 512;
const MAX_BACKING_NAME_BYTES = 1023;
const MAX_BACKING_FORMAT_BYTES = 15;
const WRITE_CHUNK = MiB;

/** Where tables are written to. */
export type TableContext = Pick<CreateContext, 'file' | 'signal'>;

type Settings = Pick<Qcow2CreateOptions, 'compat' | 'clusterSize' | 'extendedL2' | 'refcountBits'>;

/** Geometry for the options that decide it. Used by `create` and `measure`.
 *  @throws {@link BlockError} OPTION, reasons `qcow2.extended-l2-version`, `qcow2.cluster-size`, `qcow2.extended-l2-cluster-size`,
 *  `qcow2.refcount-bits`, `qcow2.refcount-bits-version`. */
export function geometryFromOptions(options: Settings, name: string): Geometry {
  const { compat, clusterSize, extendedL2, refcountBits } = options;
  if (extendedL2 && compat === 'v2') throw needsV3(name, 'extended-l2-version', 'extended_l2');
  const min = 2 ** MIN_CLUSTER_BITS;
  const max = 2 ** MAX_CLUSTER_BITS;
  if (clusterSize < min || clusterSize > max || !isPowerOfTwo(clusterSize)) {
    throw refusal(name, 'cluster-size', `cluster_size ${clusterSize} is not a power of two between ${min} and ${max}`, {
      value: clusterSize,
      bound: [min, max],
    });
  }
  if (extendedL2 && clusterSize < min * 32) {
    throw refusal(
      name,
      'extended-l2-cluster-size',
      `extended_l2 needs clusters of at least ${min * 32} bytes, not ${clusterSize}`,
      {
        value: clusterSize,
        bound: min * 32,
      },
    );
  }
  if (refcountBits > 64 || !isPowerOfTwo(refcountBits)) {
    throw refusal(name, 'refcount-bits', `refcount_bits ${refcountBits} is not a power of two up to 64`, {
      value: refcountBits,
      bound: 64,
    });
  }
  if (compat === 'v2' && refcountBits !== 16)
    throw needsV3(name, 'refcount-bits-version', `refcount_bits ${refcountBits}`);
  return geometryOf({ clusterBits: log2Exact(clusterSize), extendedL2, refcountOrder: log2Exact(refcountBits) });
}

/** Contradictions between options.
 *  @throws {@link BlockError} OPTION, reasons `qcow2.preallocation-backing`, `qcow2.format-without-backing`, `qcow2.lazy-refcounts-version`,
 *  `qcow2.data-file-raw-alone`, `qcow2.data-file-raw-backing`, `qcow2.data-file-version`, `qcow2.compression-type-version`. */
export function checkCombination(options: Qcow2CreateOptions, name: string): void {
  const v2 = options.compat === 'v2';
  const { backingFile, dataFile } = options;
  if (backingFile !== undefined && options.preallocation !== 'off' && !options.extendedL2) {
    throw refusal(name, 'preallocation-backing', 'a backing file and preallocation go together with extended_l2 only', {
      preallocation: options.preallocation,
    });
  }
  if (options.backingFmt !== undefined && backingFile === undefined) {
    throw refusal(name, 'format-without-backing', 'backing_fmt without backing_file', { value: options.backingFmt });
  }
  if (v2 && options.lazyRefcounts) throw needsV3(name, 'lazy-refcounts-version', 'lazy_refcounts');
  if (options.dataFileRaw && dataFile === undefined) {
    throw refusal(name, 'data-file-raw-alone', 'data_file_raw without data_file', {});
  }
  if (options.dataFileRaw && backingFile !== undefined) {
    throw refusal(name, 'data-file-raw-backing', 'data_file_raw and a backing file exclude each other', {});
  }
  if (options.keepDataFile && dataFile === undefined) {
    throw refusal(name, 'keep-data-file-alone', 'keep_data_file without data_file', {});
  }
  if (v2 && dataFile !== undefined) throw needsV3(name, 'data-file-version', 'data_file');
  if (v2 && options.compressionType !== 'zlib') {
    throw needsV3(name, 'compression-type-version', `compression_type ${options.compressionType}`);
  }
}

/** Creates an image of `virtualSize` bytes, rounded up to 512, in `context.file`, which is empty.
 *  The data file, where there is one, is made through `context.createReference`, sized here and closed.
 *  @throws {@link BlockError} OPTION for options that contradict each other; TOO_LARGE, reason `qcow2.create-size`, when the L1 table or
 *  the refcount table would exceed its bound; NO_SPACE when names do not fit into the first cluster, or the store is full; as `planEncryption`,
 *  `newPassphrase` and `createLuks`. */
export async function createQcow2(
  context: CreateContext,
  virtualSize: number,
  options: Qcow2CreateOptions,
): Promise<void> {
  const { file, name, signal } = context;
  const encryption = planEncryption(options, name);
  const geometry = geometryFromOptions(options, name);
  checkCombination(options, name);
  checkPreallocated(encryption, options, name);
  const size = alignUp(virtualSize, SECTOR);
  checkSizeOption(options.size, size, name);
  // a raw data file must be mapped one to one from the beginning
  const preallocation = options.dataFileRaw && options.preallocation === 'off' ? 'metadata' : options.preallocation;
  const external = options.dataFile !== undefined;
  const layout = planLayout(
    geometry,
    size,
    preallocation === 'off' ? 'nothing' : external ? 'metadata' : 'metadata-and-data',
    encryption?.headerBytes,
  );
  checkLimits(layout, geometry, size, name);
  const header = newHeader(geometry, layout, size, options, encryption);
  const cluster = encodeNewHeader(header, name);
  throwIfAborted(signal);
  const passphrase =
    encryption === undefined ? undefined : newPassphrase(context, encryption, options.encryptKeySecret);
  try {
    if (options.dataFile !== undefined) {
      const space = preallocation === 'off' ? size : alignUp(size, geometry.subclusterSize);
      await createDataFile(context, options.dataFile, space, preallocation, options.keepDataFile);
    }
    await reserve(file, layout.fileSize, external ? 'off' : preallocation, name);
    await writeRefcounts(context, geometry, layout);
    await writeL1(context, geometry, layout);
    await writeL2(context, geometry, layout, header, external);
    if (header.crypto !== undefined && passphrase !== undefined) {
      await writeLuksHeader(context, header.crypto, geometry.clusterSize, passphrase, options);
    }
    await file.flush();
    throwIfAborted(signal);
    await file.write(0, cluster);
    await file.flush();
  } finally {
    passphrase?.fill(0);
  }
}

/** What is preallocated reads as zeros by its flag: the bytes that are there would decrypt to anything.
 *  @throws {@link BlockError} UNSUPPORTED, reasons `qcow2.encrypt-preallocation` (there are no such flags) and `qcow2.encrypt-keep-data-file`. */
function checkPreallocated(encryption: NewEncryption | undefined, options: Qcow2CreateOptions, name: string): void {
  if (encryption === undefined) return;
  if (options.keepDataFile) {
    const what = 'the content of a data file that is kept is not encrypted';
    throw refusal(name, 'encrypt-keep-data-file', what, {}, 'UNSUPPORTED');
  }
  if (options.preallocation === 'off' || options.compat !== 'v2') return;
  const what = 'preallocation of an encrypted image needs compat=v3: without zero flags its content would be arbitrary';
  throw refusal(name, 'encrypt-preallocation', what, { preallocation: options.preallocation }, 'UNSUPPORTED');
}

export function checkSizeOption(given: number | undefined, size: number, name: string): void {
  if (given === undefined || alignUp(given, SECTOR) === size) return;
  throw refusal(name, 'size-twice', `option size is ${given}, but the image is to have ${size} bytes`, {
    value: given,
    size,
  });
}

export function checkLimits(layout: Layout, geometry: Geometry, size: number, name: string): void {
  const fits =
    layout.l1Entries * TABLE_ENTRY_BYTES <= MAX_L1_BYTES &&
    layout.refcountTableClusters * geometry.clusterSize <= MAX_REFCOUNT_TABLE_BYTES &&
    Number.isSafeInteger(layout.usedClusters * geometry.clusterSize);
  if (fits) return;
  throw refusal(
    name,
    'create-size',
    `${hex(size)} bytes are too large for clusters of ${hex(geometry.clusterSize)}; larger clusters reach further`,
    { value: size, clusterSize: geometry.clusterSize },
    'TOO_LARGE',
  );
}

export function newHeader(
  geometry: Geometry,
  layout: Layout,
  size: number,
  options: Qcow2CreateOptions,
  encryption: NewEncryption | undefined,
): Qcow2Header {
  let incompatible = 0n;
  if (options.dataFile !== undefined) incompatible |= INCOMPATIBLE.dataFile;
  if (options.compressionType === 'zstd') incompatible |= INCOMPATIBLE.compressionType;
  if (options.extendedL2) incompatible |= INCOMPATIBLE.extendedL2;
  return {
    version: options.compat === 'v2' ? 2 : 3,
    clusterBits: geometry.clusterBits,
    virtualSize: size,
    encryption: encryption?.method ?? 'none',
    l1Size: layout.l1Entries,
    l1Offset: layout.l1Offset,
    refcountTableOffset: layout.refcountTableOffset,
    refcountTableClusters: layout.refcountTableClusters,
    snapshotCount: 0,
    snapshotsOffset: 0,
    incompatible,
    compatible: options.lazyRefcounts ? COMPATIBLE.lazyRefcounts : 0n,
    autoclear: options.dataFileRaw ? AUTOCLEAR.dataFileRaw : 0n,
    refcountOrder: geometry.refcountOrder,
    compressionType: options.compressionType === 'zstd' ? 'zstd' : 'deflate',
    unknownTail: new Uint8Array(0),
    backingFile: options.backingFile,
    backingFormat: options.backingFmt,
    dataFile: options.dataFile,
    crypto: encryption?.method === 'luks' ? { offset: layout.cryptoOffset, length: encryption.headerBytes } : undefined,
    bitmaps: undefined,
    staleBitmaps: false,
    unknownExtensions: [],
    rawNames: {},
  };
}

/** The first cluster, with the names checked: an image that could not be opened again must not be made. */
export function encodeNewHeader(header: Qcow2Header, name: string): Uint8Array {
  const { backingFile, backingFormat } = header;
  const details = { backingFile, backingFormat };
  if (backingFile !== undefined && new TextEncoder().encode(backingFile).length > MAX_BACKING_NAME_BYTES) {
    throw refusal(name, 'assign-backing', `the backing file name has more than ${MAX_BACKING_NAME_BYTES} bytes`, {
      ...details,
      errno: 'EINVAL',
    });
  }
  if (backingFormat !== undefined && new TextEncoder().encode(backingFormat).length > MAX_BACKING_FORMAT_BYTES) {
    throw refusal(name, 'assign-backing', `the backing format name has more than ${MAX_BACKING_FORMAT_BYTES} bytes`, {
      ...details,
      errno: 'EINVAL',
    });
  }
  try {
    return encodeHeader(header, name);
  } catch (error) {
    if (backingFile === undefined || !isBlockError(error)) throw error;
    throw new BlockError(error.code, error.message, {
      reason: 'qcow2.assign-backing',
      details: { ...details, errno: 'ENOSPC' },
      cause: error,
    });
  }
}

/** @param size bytes that must be there: what is mapped, the last unit whole
 *  @param keep a file that is there keeps its bytes, and is made longer at most. */
async function createDataFile(
  context: CreateContext,
  dataFile: string,
  size: number,
  preallocation: Preallocation | 'metadata',
  keep: boolean,
): Promise<void> {
  const reference = { role: 'data', name: dataFile, readOnly: false } as const;
  const store = await context.createReference(reference, keep ? 'keep' : 'replace');
  try {
    if (!keep || store.size < size) await reserve(store, size, preallocation, dataFile);
    await store.flush();
  } finally {
    await store.close();
  }
}

/** Gives the file its length, and its space where that was asked. A store that cannot change its size must be large enough. */
async function reserve(
  store: ByteStore,
  size: number,
  preallocation: Preallocation | 'metadata',
  name: string,
): Promise<void> {
  if (store.supports.truncate) {
    await store.truncate(size, { preallocation: preallocation === 'metadata' ? 'off' : preallocation });
  } else if (store.size < size) {
    throw new BlockError('NO_SPACE', `qcow2 "${name}": needs ${size} bytes, the device has ${store.size}`, {
      reason: 'qcow2.device-small',
      details: { size, deviceSize: store.size, errno: 'ENOSPC' },
    });
  }
}

export async function writeRefcounts(context: TableContext, geometry: Geometry, layout: Layout): Promise<void> {
  const { clusterSize, refcountBlockEntries, refcountOrder } = geometry;
  const table = new Uint8Array(layout.refcountTableClusters * clusterSize);
  const view = new DataView(table.buffer);
  for (let i = 0; i < layout.refcountBlocks; i++) {
    setU64(view, i * TABLE_ENTRY_BYTES, layout.refcountBlocksOffset + i * clusterSize);
  }
  await context.file.write(layout.refcountTableOffset, table);
  await writeTables(context, layout.refcountBlocksOffset, layout.refcountBlocks, clusterSize, (block, index) => {
    const end = Math.min(refcountBlockEntries, layout.usedClusters - index * refcountBlockEntries);
    for (let i = 0; i < end; i++) setRefcount(block, i, refcountOrder, 1);
  });
}

async function writeL1(context: CreateContext, geometry: Geometry, layout: Layout): Promise<void> {
  if (layout.l1Entries === 0) return;
  const table = new Uint8Array(layout.l1Entries * TABLE_ENTRY_BYTES);
  const view = new DataView(table.buffer);
  for (let i = 0; i < layout.l2Tables; i++) {
    setL1Entry(view, i * TABLE_ENTRY_BYTES, layout.l2Offset + i * geometry.clusterSize, true);
  }
  await context.file.write(layout.l1Offset, table);
}

/** Maps the guest clusters in order. Subcluster bitmaps stay empty: the space is there, the content is still the backing file's. */
async function writeL2(
  context: CreateContext,
  geometry: Geometry,
  layout: Layout,
  header: Qcow2Header,
  external: boolean,
): Promise<void> {
  const { clusterSize, l2Entries, l2EntrySize, extendedL2 } = geometry;
  const guestClusters = Math.ceil(header.virtualSize / clusterSize);
  const zero = header.encryption !== 'none' && !extendedL2;
  const dataOffset = external ? 0 : layout.dataOffset;
  await writeTables(context, layout.l2Offset, layout.l2Tables, clusterSize, (table, index) => {
    const first = index * l2Entries;
    const end = Math.min(l2Entries, guestClusters - first);
    for (let i = 0; i < end; i++)
      setL2Entry(table, i * l2EntrySize, dataOffset + (first + i) * clusterSize, true, zero);
  });
}

/** Writes `count` one-cluster tables from `offset` on, many in one request. */
export async function writeTables(
  context: TableContext,
  offset: number,
  count: number,
  clusterSize: number,
  fill: (table: DataView, index: number) => void,
): Promise<void> {
  const perChunk = Math.max(1, WRITE_CHUNK / clusterSize);
  const pacer = new Pacer();
  for (let first = 0; first < count; first += perChunk) {
    const tables = Math.min(perChunk, count - first);
    const chunk = new Uint8Array(tables * clusterSize);
    for (let i = 0; i < tables; i++) fill(new DataView(chunk.buffer, i * clusterSize, clusterSize), first + i);
    await context.file.write(offset + first * clusterSize, chunk);
    if (pacer.due) await pacer.pause(context.signal);
  }
}

function needsV3(name: string, finding: string, what: string): BlockError {
  return refusal(name, finding, `${what} needs compat=v3`, { compat: 'v2' });
}

function refusal(
  name: string,
  finding: string,
  what: string,
  details: ErrorDetails,
  code: ErrorCode = 'OPTION',
): BlockError {
  return new BlockError(code, `qcow2 "${name}": ${what}`, { reason: `qcow2.${finding}`, details });
}
