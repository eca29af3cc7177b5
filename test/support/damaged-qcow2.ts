/** Images whose metadata get destroyed, and the comparison of what is recovered with what was there.
 *  What was there is known from the same image before the damage. */
import { resolveOptions } from '../../src/base/options.ts';
import { EXTENT, ExtentList } from '../../src/core/extent.ts';
import type { OpenContext, SnapshotSelector } from '../../src/core/format.ts';
import { type MappedNode, mappedNode } from '../../src/core/mapped-node.ts';
import type { BlockNode } from '../../src/core/node.ts';
import type { RecoveredRange, RecoveryRequest } from '../../src/core/recovery.ts';
import { secretsOf } from '../../src/core/secrets.ts';
import { CacheBudget } from '../../src/core/table-cache.ts';
import { qcow2 } from '../../src/formats/qcow2/driver.ts';
import { entryOffset, refcountBlockOffset } from '../../src/formats/qcow2/entries.ts';
import { headerGeometry, readHeader } from '../../src/formats/qcow2/header.ts';
import { readSnapshotTable } from '../../src/formats/qcow2/snapshot-table.ts';
import { MemoryStore } from '../../src/storage/memory.ts';
import { below, noise } from '../../src/testing/random.ts';
import { codecs } from './qcow2-under-test.ts';

export const KINDS = ['zeros', 'random', 'guest', 'stale', 'mixed'] as const;
export type Kind = (typeof KINDS)[number];

export interface Metadata {
  readonly clusterSize: number;
  /** Host offsets of all metadata clusters, by what they are. */
  readonly clusters: ReadonlyMap<number, 'header' | 'refcount table' | 'refcount block' | 'l1' | 'l2' | 'snapshots'>;
}

/** Where the metadata of a whole image are. */
export async function metadataOf(file: BlockNode): Promise<Metadata> {
  const header = await readHeader(file, 'disk', { readOnly: true, forCheck: false });
  const { clusterSize } = headerGeometry(header);
  const clusters = new Map<number, 'header' | 'refcount table' | 'refcount block' | 'l1' | 'l2' | 'snapshots'>();
  const add = (offset: number, bytes: number, what: Parameters<typeof clusters.set>[1]): void => {
    for (let at = offset; at < offset + bytes; at += clusterSize) clusters.set(at, what);
  };
  const words = async (offset: number, count: number): Promise<DataView> => {
    const bytes = new Uint8Array(count * 8);
    await file.read(offset, bytes);
    return new DataView(bytes.buffer);
  };
  add(0, clusterSize, 'header');
  add(header.refcountTableOffset, header.refcountTableClusters * clusterSize, 'refcount table');
  const table = await words(header.refcountTableOffset, (header.refcountTableClusters * clusterSize) / 8);
  for (let at = 0; at < table.byteLength; at += 8) {
    const block = refcountBlockOffset(table.getUint32(at), table.getUint32(at + 4));
    if (block > 0) add(block, clusterSize, 'refcount block');
  }
  const trees = [{ l1Offset: header.l1Offset, l1Size: header.l1Size }];
  if (header.snapshotCount > 0) {
    const snapshots = await readSnapshotTable(file, header, 'disk');
    add(header.snapshotsOffset, snapshots.size, 'snapshots');
    trees.push(...snapshots.entries);
  }
  for (const { l1Offset, l1Size } of trees) {
    add(l1Offset, l1Size * 8, 'l1');
    const l1 = await words(l1Offset, l1Size);
    for (let at = 0; at < l1.byteLength; at += 8) {
      const l2 = entryOffset(l1.getUint32(at), l1.getUint32(at + 4));
      if (l2 > 0) add(l2, clusterSize, 'l2');
    }
  }
  return { clusterSize, clusters };
}

/** Overwrites clusters of `file`.
 *  @param older the same image at an earlier time: what `stale` puts back; where it had nothing there, another metadata cluster's content goes there */
export async function destroy(
  file: MemoryStore,
  metadata: Metadata,
  victims: readonly number[],
  kind: Kind,
  random: () => number,
  older: MemoryStore,
): Promise<void> {
  const { clusterSize, clusters } = metadata;
  const places = [...clusters.keys()];
  const before = MemoryStore.from(file.bytes());
  for (const at of victims) {
    const how = kind === 'mixed' ? (KINDS[below(random, 4)] as Kind) : kind;
    const bytes = new Uint8Array(clusterSize);
    if (how === 'random') bytes.set(noise(random, clusterSize));
    else if (how === 'guest') bytes.set(guestLike(random, clusterSize));
    else if (how === 'stale') {
      await older.read(at, bytes);
      if (at >= older.size || bytes.every((byte) => byte === 0)) {
        await before.read(places[below(random, places.length)] as number, bytes);
      }
    }
    await file.write(at, bytes);
  }
}

/** What guests have in their clusters: text, records of small numbers, file system bitmaps, sparse things. */
function guestLike(random: () => number, length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  const view = new DataView(bytes.buffer);
  const style = below(random, 5);
  for (let at = 0; at + 8 <= length; at += 8) {
    if (style === 0) for (let i = 0; i < 8; i++) bytes[at + i] = 32 + below(random, 95);
    else if (style === 1) view.setUint32(at, below(random, 1000), true);
    else if (style === 2) view.setUint32(at + 4, below(random, 3));
    else if (style === 3 && below(random, 16) === 0)
      view.setUint32(at + below(random, 4), below(random, 1 << 16), true);
    else if (style === 4) bytes.fill(below(random, 3) === 0 ? 0 : 0xff, at, at + 8);
  }
  return bytes;
}

/** Some of the metadata clusters. */
export function pickVictims(
  metadata: Metadata,
  count: number,
  random: () => number,
  spare: readonly string[] = [],
): number[] {
  const places = [...metadata.clusters].filter(([, what]) => !spare.includes(what)).map(([at]) => at);
  const victims: number[] = [];
  while (victims.length < count && places.length > 0) victims.push(...places.splice(below(random, places.length), 1));
  return victims;
}

export interface RecoverChoice {
  readonly backing?: BlockNode;
  readonly dataFile?: BlockNode;
  readonly snapshot?: SnapshotSelector;
  readonly options?: Parameters<typeof resolveOptions<typeof qcow2.recoverOptions & object>>[1];
  readonly request?: Partial<RecoveryRequest>;
}

export interface Recovered {
  readonly node: MappedNode;
  readonly ranges: readonly RecoveredRange[];
  readonly notes: readonly string[];
}

/** Recovers from a store that nobody may write. */
export async function recover(file: MemoryStore, choice: RecoverChoice = {}): Promise<Recovered> {
  const context: OpenContext = {
    file,
    name: 'disk',
    readOnly: true,
    forCheck: false,
    unsafe: false,
    cache: new CacheBudget(1 << 20),
    codecs,
    snapshot: choice.snapshot,
    secret: secretsOf(undefined),
    referenceStatus: () => Promise.resolve(undefined),
    openReference: ({ role }) => {
      const node = role === 'data' ? choice.dataFile : choice.backing;
      return node === undefined ? Promise.reject(new Error(`no ${role} file here`)) : Promise.resolve(node);
    },
    report: () => undefined,
  };
  const format = await qcow2.recover?.(context, {
    options: resolveOptions(qcow2.recoverOptions ?? {}, choice.options ?? {}),
    doubtful: 'include',
    lost: 'zero',
    backing: 'recorded',
    ...choice.request,
  });
  if (format?.recovery === undefined) throw new Error('nothing recovers');
  const ranges: RecoveredRange[] = [];
  for await (const range of format.recovery.ranges()) ranges.push(range);
  return { node: mappedNode(format, { name: 'disk' }), ranges, notes: format.recovery.notes };
}

export interface Comparison {
  /** Guest bytes whose content the image had, and those of them that were recovered and are right. */
  existing: number;
  right: number;
  certain: number;
  /** Ranges called certain whose content is not what it was. */
  wrong: { readonly start: number; readonly length: number; readonly why: string }[];
}

/** Holds what was recovered against what was there. */
export async function compare(original: MappedNode, { node, ranges }: Recovered): Promise<Comparison> {
  const result: Comparison = { existing: 0, right: 0, certain: 0, wrong: [] };
  const list = new ExtentList(4096);
  let covered = 0;
  for (const range of ranges) {
    if (range.start !== covered) throw new Error(`a gap in the report at ${covered}`);
    covered = range.start + range.length;
    const end = Math.min(covered, original.size);
    for (let at = range.start; at < end; at = list.end) {
      list.reset(at);
      await original.extents(at, end - at, list);
      for (let i = 0; i < list.count; i++) {
        await comparePiece(
          original,
          node,
          range,
          list.startAt(i),
          list.lengthAt(i),
          list.flagsAt(i),
          list.depthAt(i),
          result,
        );
      }
    }
  }
  if (covered !== node.size) throw new Error(`the report ends at ${covered} of ${node.size}`);
  return result;
}

async function comparePiece(
  original: MappedNode,
  node: MappedNode,
  range: RecoveredRange,
  start: number,
  length: number,
  flags: number,
  depth: number,
  into: Comparison,
): Promise<void> {
  const isData = depth === 0 && Math.floor(flags / EXTENT.data) % 2 === 1;
  const isZero = Math.floor(flags / EXTENT.zero) % 2 === 1;
  if (isData) into.existing += length;
  if (range.state === 'certain') into.certain += length;
  if (range.state === 'lost' || (!isData && range.state !== 'certain')) return;
  // Without a backing file, what is mapped nowhere is zeros.
  const readsZero = range.content === 'zero' || (range.content === 'backing' && node.children.length === 1);
  if (isZero && readsZero) return;
  const STEP = 64 * 1024;
  for (let at = start; at < start + length; at += STEP) {
    const size = Math.min(STEP, start + length - at);
    const [there, here] = [new Uint8Array(size), new Uint8Array(size)];
    await original.read(at, there);
    await node.read(at, here);
    const unit = 512;
    for (let from = 0; from < size; from += unit) {
      const same = Buffer.compare(there.subarray(from, from + unit), here.subarray(from, from + unit)) === 0;
      if (same && isData) into.right += Math.min(unit, size - from);
      if (!same && range.state === 'certain') into.wrong.push({ start: at + from, length: unit, why: range.why });
    }
  }
}
