/** qcow2 as the model and crash harness wants it: images in memory, made by our own create, some of them with a snapshot that shares
 *  every cluster, or with a file so full that the refcount table must grow. */
import { resolveOptions } from '../../src/base/options.ts';
import { createCodecs } from '../../src/codec/create.ts';
import type { CheckFix, CheckResult, OpenContext, SnapshotSelector } from '../../src/core/format.ts';
import { type MappedNode, mappedNode } from '../../src/core/mapped-node.ts';
import type { BlockNode } from '../../src/core/node.ts';
import { ALL_RULES } from '../../src/core/safety.ts';
import { secretsOf } from '../../src/core/secrets.ts';
import { CacheBudget } from '../../src/core/table-cache.ts';
import { checkImageTables } from '../../src/formats/qcow2/check.ts';
import { qcow2 } from '../../src/formats/qcow2/driver.ts';
import {
  entryOffset,
  getRefcount,
  isCompressed,
  refcountBlockOffset,
  setCopied,
  setRefcount,
} from '../../src/formats/qcow2/entries.ts';
import { headerGeometry, readHeader, writeHeader } from '../../src/formats/qcow2/header.ts';
import { encodeSnapshotTable } from '../../src/formats/qcow2/snapshot-table.ts';
import { MemoryStore } from '../../src/storage/memory.ts';
import type { FormatUnderTest, OpenedUnderTest, OpenUnderTest } from '../../src/testing/model.ts';
import { below, seededRandom } from '../../src/testing/random.ts';

export const codecs = createCodecs({ workers: 0 });

export interface Qcow2Variant {
  readonly clusterSize?: number;
  readonly compat?: 'v2' | 'v3';
  readonly refcountBits?: number;
  readonly lazyRefcounts?: boolean;
  readonly extendedL2?: boolean;
  /** `writes`: the disk is half full of data, zeroes and compressed clusters; `shared`: and a snapshot holds all of it. */
  readonly content?: 'writes' | 'shared';
  /** Clusters at the end of what the refcount table counts that are left free; the rest of it is taken (leaked). */
  readonly spareClusters?: number;
  /** `share` of the harness grows the disk, which takes a larger L1 table each time. */
  readonly grow?: boolean;
  /** `share` of the harness makes a snapshot, and now and then deletes an older one or applies the newest. */
  readonly snapshots?: boolean;
  /** Encrypted, with {@link PASSWORD}. LUKS takes 550 KiB for its header. */
  readonly encryption?: 'aes' | 'luks';
}

export const PASSWORD = 'correct horse';
const SECRETS = secretsOf({ key: PASSWORD });

export interface OpenQcow2 extends Partial<OpenUnderTest> {
  /** The content of this snapshot instead of the disk. */
  readonly snapshot?: SnapshotSelector;
}

/** With the key of encrypted ones. */
export async function openQcow2(file: BlockNode, options: OpenQcow2 = {}): Promise<MappedNode> {
  const context: OpenContext = {
    file,
    name: 'disk',
    readOnly: options.readOnly ?? false,
    forCheck: false,
    unsafe: false,
    rules: options.rules ?? ALL_RULES,
    snapshot: options.snapshot,
    cache: options.cache ?? new CacheBudget(1 << 20),
    codecs,
    secret: SECRETS,
    referenceStatus: () => Promise.resolve(undefined),
    openReference: () => {
      if (options.backing === undefined) throw new Error('the image has no backing file');
      return Promise.resolve(options.backing);
    },
    report: () => undefined,
  };
  const node = await qcow2.open(context, resolveOptions(qcow2.openOptions, { encryptKeySecret: 'key' }));
  return mappedNode(node, { name: 'disk', rules: options.rules ?? ALL_RULES });
}

const encrypted = new Map<string, Promise<MemoryStore>>();

/** Making a LUKS header takes a measurement of the machine: equal images are made once. */
export async function createQcow2Bytes(size: number, variant: Qcow2Variant, hasBacking: boolean): Promise<MemoryStore> {
  if (variant.encryption !== 'luks') return newImage(size, variant, hasBacking);
  const key = JSON.stringify([size, variant, hasBacking]);
  const made = encrypted.get(key) ?? newImage(size, variant, hasBacking);
  encrypted.set(key, made);
  return MemoryStore.from((await made).bytes());
}

async function newImage(size: number, variant: Qcow2Variant, hasBacking: boolean): Promise<MemoryStore> {
  const file = new MemoryStore({ pageSize: 512 });
  const { clusterSize = 512, compat = 'v3', refcountBits = 16, lazyRefcounts = false, extendedL2 = false } = variant;
  await qcow2.create?.(
    {
      file,
      name: 'disk',
      createReference: () => Promise.reject(new Error('no references here')),
      secret: SECRETS,
      referenceStatus: () => Promise.resolve(undefined),
    },
    size,
    resolveOptions(qcow2.createOptions, {
      clusterSize: extendedL2 ? Math.max(clusterSize, 16384) : clusterSize,
      compat,
      refcountBits,
      lazyRefcounts,
      extendedL2,
      ...(variant.encryption === undefined ? {} : { encryptFormat: variant.encryption, encryptKeySecret: 'key' }),
      ...(variant.encryption === 'luks' ? { encryptIterTime: 0, encryptCipherAlg: 'aes-128' } : {}),
      ...(hasBacking ? { backingFile: 'backing', backingFmt: 'raw' } : {}),
    }),
  );
  return file;
}

export async function checkQcow2(
  file: MemoryStore,
  fix: CheckFix = 'none',
): Promise<CheckResult & { lines: string[] }> {
  const lines: string[] = [];
  const header = await readHeader(file, 'disk', { readOnly: true, forCheck: true });
  const result = await checkImageTables(
    { file, header, name: 'disk' },
    { fix, onFinding: ({ kind, message }) => (kind === 'leak' ? undefined : lines.push(message)) },
  );
  return { ...result, lines };
}

export function qcow2UnderTest(variant: Qcow2Variant = {}): FormatUnderTest {
  const unit = variant.extendedL2 === true ? 16384 : (variant.clusterSize ?? 512);
  let firstSize = 0;
  return {
    name: `qcow2 ${JSON.stringify(variant)}`,
    unit,
    create: async (size, { hasBacking }) => {
      firstSize = size;
      let file = await createQcow2Bytes(size, variant, hasBacking);
      // Content that reads as the disk would without it: what the guest's model expects at first is zeros, or the backing file.
      if (variant.content !== undefined && !hasBacking) file = await fillWithZeros(file, size, unit);
      if (variant.content === 'shared') await shareEverything(file);
      if (variant.spareClusters !== undefined) await leak(file, variant.spareClusters);
      return [file.bytes()];
    },
    open: async ([file], options) => {
      const node = await openQcow2(file as BlockNode, options);
      if (variant.snapshots === true) return { node, ...sharing(node, file as BlockNode, options) };
      if (variant.grow !== true) return { node };
      let size = node.size;
      return {
        // The harness knows the disk by its first size.
        node: withSize(node, firstSize),
        share: async () => {
          size += 64 * 1024;
          await node.truncate(size);
        },
        // Nothing is frozen but the fact that the disk has grown.
        readShared: () => Promise.resolve(node.size > firstSize ? new Uint8Array(0) : undefined),
      };
    },
    check: async ([image]) => {
      let file = MemoryStore.from(image as Uint8Array);
      // Lazy refcounts may be stale after a crash; opening for writing repairs them, as the format asks.
      if (variant.lazyRefcounts === true) {
        await (await openQcow2(file)).close();
        file = file.reopen();
      }
      const { corruptions, leaks, checkErrors, lines } = await checkQcow2(file);
      return { corruptions: corruptions + checkErrors > 0 ? lines : [], leaks };
    },
  };
}

/** Snapshots, as the harness has them: the newest one is what `readShared` reads. */
function sharing(node: MappedNode, file: BlockNode, options: OpenUnderTest): Omit<OpenedUnderTest, 'node'> {
  const { snapshots } = node.format;
  if (snapshots === undefined) throw new Error('no snapshots');
  let made = 0;
  return {
    share: () =>
      // One section: what the guest sees stays the same, applied or not.
      node.exclusive(async () => {
        const { id } = await snapshots.create({ name: 'shared', dateSeconds: 1 });
        const older = snapshots.list().slice(0, -1);
        made++;
        if (older.length > 2 || made % 3 === 0) {
          const gone = older[(made * 7) % Math.max(1, older.length)];
          if (gone !== undefined) await snapshots.delete({ id: gone.id });
        }
        if (made % 2 === 0) await snapshots.apply({ id });
      }),
    readShared: async () => {
      const id = snapshots.list().at(-1)?.id;
      if (id === undefined) return undefined;
      const backing = options.backing && keptOpen(options.backing);
      const frozen = await openQcow2(keptOpen(file), { ...options, readOnly: true, backing, snapshot: { id } });
      const content = new Uint8Array(frozen.size);
      await frozen.read(0, content);
      await frozen.close();
      return content;
    },
  };
}

/** The same store, which somebody else closes. */
function keptOpen(store: BlockNode): BlockNode {
  return new Proxy(store, {
    get(target, key) {
      if (key === 'close') return () => Promise.resolve();
      const value = Reflect.get(target, key, target) as unknown;
      return typeof value === 'function' ? (value as (...args: unknown[]) => unknown).bind(target) : value;
    },
  });
}

function withSize(node: MappedNode, size: number): BlockNode {
  return new Proxy(node, {
    get(target, key) {
      if (key === 'size') return size;
      const value = Reflect.get(target, key, target) as unknown;
      return typeof value === 'function' ? (value as (...args: unknown[]) => unknown).bind(target) : value;
    },
  });
}

/** Clusters of data, of zero marks and of compressed data, all reading as zero. */
async function fillWithZeros(file: MemoryStore, size: number, unit: number): Promise<MemoryStore> {
  const node = await openQcow2(file);
  const random = seededRandom(5);
  for (let at = 0; at < size; at += unit) {
    const zeros = new Uint8Array(Math.min(unit, size - at));
    const kind = below(random, 5);
    if (kind === 0) await node.write(at, zeros);
    else if (kind === 1) await node.writeZeroes(at, zeros.length);
    else if (kind === 2 || kind === 3) await node.write(at, zeros, { compressed: true });
  }
  await node.close();
  return file.reopen();
}

/** An internal snapshot of the whole disk, made offline: the L1 table is copied, every cluster gains a reference, no entry is COPIED. */
async function shareEverything(file: MemoryStore): Promise<void> {
  const header = await readHeader(file, 'disk', { readOnly: true, forCheck: true });
  const geometry = headerGeometry(header);
  const { clusterSize, refcountBlockEntries, refcountOrder, csizeShift } = geometry;
  const at = async (offset: number, length: number): Promise<DataView> => {
    const bytes = new Uint8Array(length);
    await file.read(offset, bytes);
    return new DataView(bytes.buffer);
  };
  const add = async (cluster: number): Promise<void> => {
    const table = await at(header.refcountTableOffset, header.refcountTableClusters * clusterSize);
    const entry = Math.floor(cluster / refcountBlockEntries) * 8;
    const block = refcountBlockOffset(table.getUint32(entry), table.getUint32(entry + 4));
    if (block === 0) throw new Error(`no refcount block for cluster ${cluster}`);
    const view = await at(block, clusterSize);
    const index = cluster % refcountBlockEntries;
    setRefcount(view, index, refcountOrder, getRefcount(view, index, refcountOrder) + 1);
    await file.write(block, new Uint8Array(view.buffer));
  };
  const l1 = await at(header.l1Offset, header.l1Size * 8);
  for (let i = 0; i < header.l1Size; i++) {
    const l2Offset = entryOffset(l1.getUint32(i * 8), l1.getUint32(i * 8 + 4));
    if (l2Offset === 0) continue;
    await add(l2Offset / clusterSize);
    setCopied(l1, i * 8, false);
    const l2 = await at(l2Offset, clusterSize);
    for (let entry = 0; entry < clusterSize; entry += 8) {
      const high = l2.getUint32(entry);
      const low = l2.getUint32(entry + 4);
      if (isCompressed(high)) {
        const offset = (high % 2 ** (csizeShift - 32)) * 2 ** 32 + low;
        const sectors = Math.floor((high % 2 ** 30) / 2 ** (csizeShift - 32));
        const end = (Math.floor(offset / 512) + sectors + 1) * 512;
        for (let c = Math.floor(offset / clusterSize); c * clusterSize < end; c++) await add(c);
      } else if (entryOffset(high, low) !== 0) {
        await add(entryOffset(high, low) / clusterSize);
        setCopied(l2, entry, false);
      }
    }
    await file.write(l2Offset, new Uint8Array(l2.buffer));
  }
  await file.write(header.l1Offset, new Uint8Array(l1.buffer));
  const l1Copy = Math.ceil(file.size / clusterSize) * clusterSize;
  await file.write(l1Copy, new Uint8Array(l1.buffer));
  const tableAt = Math.ceil(file.size / clusterSize) * clusterSize;
  const name = new TextEncoder().encode('1');
  const table = encodeSnapshotTable([
    {
      id: '1',
      name: '1',
      l1Offset: l1Copy,
      l1Size: header.l1Size,
      vmStateSize: 0,
      diskSize: header.virtualSize,
      dateSeconds: 0,
      dateNanoseconds: 0,
      vmClockNanoseconds: 0n,
      icount: undefined,
      extra: new Uint8Array(0),
      rawId: name,
      rawName: name,
    },
  ]);
  await file.write(tableAt, table);
  await file.truncate(Math.ceil(file.size / clusterSize) * clusterSize);
  for (let c = l1Copy / clusterSize; c * clusterSize < file.size; c++) await add(c);
  await writeHeader(file, { ...header, snapshotCount: 1, snapshotsOffset: tableAt }, 'disk');
}

/** Takes (and so leaks) all that the refcount table can count, but for the last `spare` clusters. */
async function leak(file: MemoryStore, spare: number): Promise<void> {
  const header = await readHeader(file, 'disk', { readOnly: true, forCheck: true });
  const { clusterSize, refcountBlockEntries, refcountOrder, refcountTableEntriesPerCluster } = headerGeometry(header);
  const table = new DataView(new ArrayBuffer(header.refcountTableClusters * clusterSize));
  await file.read(header.refcountTableOffset, new Uint8Array(table.buffer));
  const limit = header.refcountTableClusters * refcountTableEntriesPerCluster * refcountBlockEntries - spare;
  const firstFree = Math.ceil(file.size / clusterSize);
  // Blocks for everything come first, in the clusters after the end of the file, and are counted like the rest.
  let next = firstFree;
  for (let index = 0; index * refcountBlockEntries < limit; index++) {
    const known = refcountBlockOffset(table.getUint32(index * 8), table.getUint32(index * 8 + 4));
    const block = known === 0 ? next++ * clusterSize : known;
    if (known === 0) table.setUint32(index * 8 + 4, block);
    const view = new DataView(new ArrayBuffer(clusterSize));
    await file.read(block, new Uint8Array(view.buffer));
    for (let i = 0; i < refcountBlockEntries; i++) {
      const cluster = index * refcountBlockEntries + i;
      if (cluster >= firstFree && cluster < limit) setRefcount(view, i, refcountOrder, 1);
    }
    await file.write(block, new Uint8Array(view.buffer));
  }
  await file.write(header.refcountTableOffset, new Uint8Array(table.buffer));
  await file.truncate(limit * clusterSize);
}
