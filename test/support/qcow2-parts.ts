/** Small qcow2 images in memory, and a look at their tables, for the unit tests of the room. */
import { resolveOptions } from '../../src/base/options.ts';
import { ExtentList } from '../../src/core/extent.ts';
import type { DiscardMode, ImageEvent, OpenContext } from '../../src/core/format.ts';
import { type MappedNode, mappedNode } from '../../src/core/mapped-node.ts';
import type { BlockNode } from '../../src/core/node.ts';
import { RunList } from '../../src/core/run.ts';
import { secretsOf } from '../../src/core/secrets.ts';
import { CacheBudget } from '../../src/core/table-cache.ts';
import { qcow2 } from '../../src/formats/qcow2/driver.ts';
import { entryOffset } from '../../src/formats/qcow2/entries.ts';
import { type Qcow2Header, readHeader } from '../../src/formats/qcow2/header.ts';
import type { MemoryStore } from '../../src/storage/memory.ts';
import { checkQcow2, codecs, createQcow2Bytes, type Qcow2Variant } from './qcow2-under-test.ts';

export interface OpenedDisk {
  readonly file: MemoryStore;
  readonly node: MappedNode;
  readonly events: ImageEvent[];
}

export interface DiskOptions extends Qcow2Variant {
  readonly size: number;
  readonly backing?: BlockNode;
}

/** A new image, open for writing. */
export async function newDisk(options: DiskOptions): Promise<OpenedDisk> {
  const { size, backing, ...variant } = options;
  const file = await createQcow2Bytes(size, variant, backing !== undefined);
  return await openDisk(file, { ...(backing === undefined ? {} : { backing }) });
}

export interface OpenDiskOptions {
  readonly readOnly?: boolean;
  readonly backing?: BlockNode;
  readonly dataFile?: BlockNode;
  readonly forCheck?: boolean;
  readonly metadataOnly?: boolean;
  readonly discard?: DiscardMode;
  /** Between the image and its file. */
  readonly around?: (file: BlockNode) => BlockNode;
  readonly options?: Parameters<typeof resolveOptions<typeof qcow2.openOptions>>[1];
}

export async function openDisk(file: MemoryStore, options: OpenDiskOptions = {}): Promise<OpenedDisk> {
  const events: ImageEvent[] = [];
  const context: OpenContext = {
    file: options.around?.(file) ?? file,
    name: 'disk',
    readOnly: options.readOnly ?? false,
    forCheck: options.forCheck ?? false,
    metadataOnly: options.metadataOnly ?? false,
    unsafe: false,
    discard: options.discard,
    cache: new CacheBudget(1 << 20),
    codecs,
    secret: secretsOf(undefined),
    referenceStatus: () => Promise.resolve(undefined),
    openReference: ({ role }) => {
      const node = role === 'data' ? options.dataFile : options.backing;
      return node === undefined ? Promise.reject(new Error(`no ${role} file here`)) : Promise.resolve(node);
    },
    report: (event) => void events.push(event),
  };
  const format = await qcow2.open(context, resolveOptions(qcow2.openOptions, options.options ?? {}));
  return { file, node: mappedNode(format, { name: 'disk', discard: options.discard }), events };
}

/** Closes the disk, checks it, and gives its bytes back as a new store. */
export async function closeAndCheck(disk: OpenedDisk): Promise<{ file: MemoryStore; lines: string[]; leaks: number }> {
  await disk.node.close();
  const { lines, leaks } = await checkQcow2(disk.file.reopen());
  return { file: disk.file.reopen(), lines, leaks };
}

export function headerOf(file: MemoryStore): Promise<Qcow2Header> {
  return Promise.resolve(readHeader(file, 'disk', { readOnly: true, forCheck: true }));
}

export async function readAll(node: BlockNode, offset = 0, length = node.size - offset): Promise<Uint8Array> {
  const bytes = new Uint8Array(length);
  await node.read(offset, bytes);
  return bytes;
}

/** The runs of a range, as short texts: `data 512@0x5000`. */
export async function runsOf(node: MappedNode, offset = 0, length = node.size - offset): Promise<string[]> {
  const texts: string[] = [];
  const runs = new RunList();
  for (let at = offset; at < offset + length; at = runs.guestEnd) {
    runs.reset(at, offset + length);
    await node.format.map(at, offset + length - at, runs);
    for (let i = 0; i < runs.count; i++) {
      const run = runs.at(i);
      const where = run.hostOffset < 0 ? '' : `@0x${run.hostOffset.toString(16)}`;
      texts.push(`${run.kind} ${run.length}${where}${run.writable ? ' writable' : ''}`);
    }
  }
  return texts;
}

/** Host offsets of the file's active L2 tables. */
export async function l2Tables(file: MemoryStore): Promise<number[]> {
  const header = await headerOf(file);
  const l1 = new DataView(new ArrayBuffer(header.l1Size * 8));
  await file.read(header.l1Offset, new Uint8Array(l1.buffer));
  const tables: number[] = [];
  for (let i = 0; i < header.l1Size; i++) tables.push(entryOffset(l1.getUint32(i * 8), l1.getUint32(i * 8 + 4)));
  return tables;
}

/** Overwrites a 64-bit big-endian value. */
export async function poke(file: MemoryStore, offset: number, value: bigint): Promise<void> {
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setBigUint64(0, value);
  await file.write(offset, bytes);
}

export async function peek(file: MemoryStore, offset: number): Promise<bigint> {
  const bytes = new Uint8Array(8);
  await file.read(offset, bytes);
  return new DataView(bytes.buffer).getBigUint64(0);
}

/** `present`, `zero`, `data`, `compressed` of a range, as texts with depth. */
export async function extentsOf(node: BlockNode): Promise<string[]> {
  const list = new ExtentList(4096);
  list.reset(0);
  await node.extents(0, node.size, list);
  return [...list].map(
    ({ start, length, depth, present, zero, data, compressed }) =>
      `${start}+${length} d${depth}${present ? ' present' : ''}${zero ? ' zero' : ''}${data ? ' data' : ''}${compressed ? ' compressed' : ''}`,
  );
}

/** Bytes that differ from their neighbours and from one seed to another. */
export function pattern(length: number, seed = 1): Uint8Array {
  const bytes = new Uint8Array(length);
  for (let i = 0; i < length; i++) bytes[i] = ((i * 31 + seed * 7 + Math.floor(i / 256)) % 255) | 1;
  return bytes;
}
