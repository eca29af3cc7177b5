/** L1 tables: that of the disk, those of the snapshots, and others that lie about in the file. Spec: qcow2, "Cluster mapping", "Snapshots".
 *  Invariant: no more L1 entries are held than `MAX_ENTRIES`, however many snapshots claim however large tables. */
import { isBlockError } from '../../base/errors.ts';
import type { JobOptions } from '../../base/job.ts';
import { Pacer } from '../../base/job.ts';
import type { BlockNode } from '../../core/node.ts';
import { entryOffset, hasOffset, isCopied, l1HasReserved } from './entries.ts';
import { type Geometry, l1EntriesFor, MAX_L1_BYTES, TABLE_ENTRY_BYTES } from './geometry.ts';
import type { Qcow2Header } from './header.ts';
import { readSnapshotTable, type SnapshotEntry } from './snapshot-table.ts';

/** 64 MiB of offsets. */
const MAX_ENTRIES = 8_388_608;
/** One entry of so many must lead to a table. */
const CREDIBLE = 8;
/** Share of the entries of an L1 table that nothing names that must lead to tables: many may be destroyed. */
const LIKELY_L1 = 0.2;
/** An entry of an L1 table that no writer makes. */
export const BAD_TABLE = -1;

/** One L1 table. */
export interface Tree {
  readonly l1Offset: number;
  /** Host offset of the L2 table of each slot; 0: none; {@link BAD_TABLE}. */
  readonly tables: Float64Array;
  /** Bit 63 of each entry. */
  readonly copied: Uint8Array;
  /** Entries that cannot be meant. */
  readonly bad: number;
}

export interface Trees {
  readonly active: Tree | undefined;
  readonly snapshots: readonly { readonly entry: SnapshotEntry; readonly tree: Tree }[];
  /** Bytes of the snapshot table; 0 without one. */
  readonly snapshotTableBytes: number;
  /** Some snapshot, or all, cannot be read. */
  readonly snapshotsLost: boolean;
}

export async function readTrees(
  file: BlockNode,
  header: Qcow2Header,
  geometry: Geometry,
  name: string,
  notes: string[],
): Promise<Trees> {
  const active = await readTree(file, geometry, header.l1Offset, header.l1Size);
  const snapshots: { entry: SnapshotEntry; tree: Tree }[] = [];
  let lost = false;
  let entries: readonly SnapshotEntry[] = [];
  let snapshotTableBytes = 0;
  if (header.snapshotCount > 0) {
    try {
      const table = await readSnapshotTable(file, header, name);
      entries = table.entries;
      snapshotTableBytes = table.size;
    } catch (error) {
      if (!isBlockError(error) || error.code === 'IO' || error.code === 'ABORTED') throw error;
      notes.push(`the snapshot table is lost: ${error.message}`);
      lost = true;
    }
  }
  let room = MAX_ENTRIES - active.tables.length;
  for (const entry of entries) {
    if (!isLikely(entry, geometry, file.size) || entry.l1Size > room) {
      if (!lost)
        notes.push(`the snapshot table is damaged: snapshot "${entry.id}" records nothing that could be meant`);
      lost = true;
      continue;
    }
    room -= entry.l1Size;
    snapshots.push({ entry, tree: await readTree(file, geometry, entry.l1Offset, entry.l1Size) });
  }
  return { active, snapshots, snapshotTableBytes, snapshotsLost: lost };
}

function isLikely(entry: SnapshotEntry, geometry: Geometry, fileSize: number): boolean {
  const { l1Offset, l1Size, diskSize, rawId } = entry;
  return (
    rawId.length > 0 &&
    l1Size * TABLE_ENTRY_BYTES <= MAX_L1_BYTES &&
    l1Offset % geometry.clusterSize === 0 &&
    (l1Size === 0 || (l1Offset > 0 && l1Offset + l1Size * TABLE_ENTRY_BYTES <= fileSize + geometry.clusterSize)) &&
    diskSize % 512 === 0 &&
    l1EntriesFor(geometry, diskSize) <= l1Size
  );
}

/** @param entries of the table; what lies behind the end of the file is empty. */
export async function readTree(file: BlockNode, geometry: Geometry, l1Offset: number, entries: number): Promise<Tree> {
  const tables = new Float64Array(entries);
  const copied = new Uint8Array(entries);
  const present = Math.max(0, Math.min(entries, Math.ceil((file.size - l1Offset) / TABLE_ENTRY_BYTES)));
  const bytes = new Uint8Array(present * TABLE_ENTRY_BYTES);
  if (present > 0) await file.read(l1Offset, bytes);
  const view = new DataView(bytes.buffer);
  let bad = 0;
  for (let i = 0; i < present; i++) {
    const high = view.getUint32(i * TABLE_ENTRY_BYTES);
    const low = view.getUint32(i * TABLE_ENTRY_BYTES + 4);
    if (high === 0 && low === 0) continue;
    const offset = entryOffset(high, low);
    copied[i] = isCopied(high) ? 1 : 0;
    const fine =
      !l1HasReserved(high, low) && hasOffset(high, low) && offset % geometry.clusterSize === 0 && offset < file.size;
    tables[i] = fine ? offset : BAD_TABLE;
    if (!fine) bad++;
  }
  return { l1Offset, tables, copied, bad };
}

/** What remains of an L1 table when its destroyed clusters are taken out: one whose entries hardly ever lead to what can be L2 tables was overwritten,
 *  however likely each entry looks. Tables that hold nothing do not count: they may be destroyed themselves.
 *  @param isTable what can be an L2 table
 *  @param isHeld clusters that hold anything */
export function discredit(
  tree: Tree,
  geometry: Geometry,
  isTable: (offset: number) => boolean,
  isHeld: (offset: number) => boolean,
): Tree {
  const perCluster = geometry.clusterSize / TABLE_ENTRY_BYTES;
  const tables = tree.tables.slice();
  let { bad } = tree;
  for (let first = 0; first < tables.length; first += perCluster) {
    const end = Math.min(tables.length, first + perCluster);
    let hits = 0;
    let misses = 0;
    for (let slot = first; slot < end; slot++) {
      const offset = tables[slot] as number;
      if (offset === 0) continue;
      if (offset !== BAD_TABLE && isTable(offset)) hits++;
      else if (offset === BAD_TABLE || isHeld(offset)) misses++;
    }
    if (misses === 0 || hits * CREDIBLE >= hits + misses) continue;
    for (let slot = first; slot < end; slot++) {
      if (tables[slot] !== BAD_TABLE) bad++;
      tables[slot] = BAD_TABLE;
    }
  }
  return { ...tree, tables, bad };
}

export interface FoundTrees {
  readonly trees: Tree[];
  /** Clusters that lead to refcount blocks only. */
  readonly refcountTables: readonly number[];
}

/** L1 tables that nothing names: runs of clusters many of whose entries lead to what can be L2 tables.
 *  @param candidates clusters that can be tables, ascending
 *  @param blocks clusters that can be refcount blocks. */
export async function findTrees(
  file: BlockNode,
  geometry: Geometry,
  candidates: readonly number[],
  blocks: readonly number[],
  options: JobOptions,
): Promise<FoundTrees> {
  const { clusterSize } = geometry;
  const known = new Set(candidates);
  const counting = new Set(blocks);
  const refcountTables: number[] = [];
  const starts: { offset: number; clusters: number }[] = [];
  const pacer = new Pacer();
  const bytes = new Uint8Array(clusterSize);
  const view = new DataView(bytes.buffer);
  for (const offset of candidates) {
    await file.read(offset, bytes);
    if (pacer.due) await pacer.pause(options.signal);
    if (hitsAmong(view, counting) === 1) refcountTables.push(offset);
    if (hitsAmong(view, known) < LIKELY_L1) continue;
    const last = starts.at(-1);
    const continues = last !== undefined && last.offset + last.clusters * clusterSize === offset;
    if (continues && last.clusters * clusterSize < MAX_L1_BYTES) last.clusters++;
    else starts.push({ offset, clusters: 1 });
  }
  const trees: Tree[] = [];
  let room = MAX_ENTRIES;
  for (const { offset, clusters } of starts) {
    const entries = (clusters * clusterSize) / TABLE_ENTRY_BYTES;
    if (entries > room) break;
    room -= entries;
    trees.push(await readTree(file, geometry, offset, entries));
  }
  return { trees, refcountTables };
}

/** Share of the entries that lead to one of `known`. */
function hitsAmong(view: DataView, known: ReadonlySet<number>): number {
  let entries = 0;
  let hits = 0;
  for (let at = 0; at < view.byteLength; at += TABLE_ENTRY_BYTES) {
    const high = view.getUint32(at);
    const low = view.getUint32(at + 4);
    if (high === 0 && low === 0) continue;
    if (l1HasReserved(high, low)) return 0;
    entries++;
    if (known.has(entryOffset(high, low))) hits++;
  }
  return hits === 0 ? 0 : hits / entries;
}

/** The table that most likely was the disk's: snapshots' tables have no COPIED entries, or fewer. */
export function likeliestActive(trees: readonly Tree[], isCounted: (tree: Tree) => boolean): Tree | undefined {
  let best: Tree | undefined;
  let bestScore = -1;
  for (const tree of trees) {
    let copied = 0;
    let tables = 0;
    for (let i = 0; i < tree.tables.length; i++) {
      if (tree.tables[i] === 0) continue;
      tables++;
      copied += tree.copied[i] as number;
    }
    const score = (isCounted(tree) ? 1e9 : 0) + copied * 2 + tables;
    if (score > bestScore) {
      best = tree;
      bestScore = score;
    }
  }
  return best;
}
