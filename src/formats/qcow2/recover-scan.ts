/** One pass over the file: which clusters hold anything, which can be L2 (or L1) tables, which can be refcount blocks.
 *  Invariants: holes are stepped over; one chunk is held at a time; what is remembered is one bit for each cluster that holds something, and a number
 *  for each cluster that can be a table. */
import { BlockError } from '../../base/errors.ts';
import { type JobOptions, Pacer, throwIfAborted } from '../../base/job.ts';
import { MiB } from '../../base/sizes.ts';
import { alignDown, alignUp } from '../../bytes/align.ts';
import { isZero } from '../../bytes/zeros.ts';
import { EXTENT, ExtentList } from '../../core/extent.ts';
import type { BlockNode } from '../../core/node.ts';
import { entryOffset, getRefcount, l1HasReserved } from './entries.ts';
import type { Geometry } from './geometry.ts';
import { ClusterCounts } from './recover-counts.ts';
import { BAD, EntryReader, type EntryRules } from './recover-entries.ts';

const CHUNK = 2 * MiB;
/** Tables and refcount blocks that are remembered; a file of nothing but tables is not an image. */
const MAX_FOUND = 4_194_304;
/** Refcounts above it are taken for something else when a block is looked for. */
const LARGEST_LIKELY = 255;

export interface Found {
  /** Clusters with anything but zeros. */
  readonly held: ClusterCounts;
  /** Host offsets of clusters whose every entry could be one of an L1 or L2 table, and that name at least one cluster; ascending. */
  readonly tables: readonly number[];
  /** Host offsets of clusters that could be refcount blocks and count themselves. */
  readonly refcountBlocks: readonly number[];
}

export interface ReadOptions extends JobOptions {
  readonly phase: string;
}

/** Hands out everything of the file that is not a hole, in order, in pieces that begin at multiples of `unit` and are whole units but for the last.
 *  The bytes are valid during the call only. */
export async function readDataOf(
  file: BlockNode,
  unit: number,
  { phase, signal, onProgress }: ReadOptions,
  each: (offset: number, bytes: Uint8Array) => void,
): Promise<void> {
  const list = new ExtentList(256);
  const buffer = new Uint8Array(Math.max(CHUNK, unit));
  const pacer = new Pacer();
  const { size } = file;
  let done = 0;
  for (let at = 0; at < size; ) {
    throwIfAborted(signal);
    list.reset(at);
    const pending = file.extents(at, size - at, list);
    if (pending !== undefined) await pending;
    if (list.end <= at) throw new BlockError('INTERNAL', `internal error: "${file.name}" has no status at ${at}`);
    for (let i = 0; i < list.count; i++) {
      const flags = list.flagsAt(i);
      if (Math.floor(flags / EXTENT.zero) % 2 === 1) continue;
      const end = list.startAt(i) + list.lengthAt(i);
      for (let from = Math.max(done, alignDown(list.startAt(i), unit)); from < end; from = done) {
        const length = Math.min(buffer.length, alignUp(end, unit) - from);
        const bytes = buffer.subarray(0, length);
        const reading = file.read(from, bytes);
        if (reading !== undefined) await reading;
        each(from, bytes);
        done = from + length;
        if (pacer.due) {
          onProgress?.({ phase, done: Math.min(done, size), total: size });
          await pacer.pause(signal);
        }
      }
    }
    at = list.end;
  }
  onProgress?.({ phase, done: size, total: size });
}

/** @throws TOO_LARGE, reason `qcow2.recover-memory`. */
export async function scan(file: BlockNode, rules: EntryRules, options: JobOptions): Promise<Found> {
  const { geometry } = rules;
  const { clusterSize } = geometry;
  const held = new ClusterCounts();
  const tables: number[] = [];
  const refcountBlocks: number[] = [];
  const shape = new TableShape(rules);
  await readDataOf(file, clusterSize, { ...options, phase: 'scanning' }, (offset, bytes) => {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    for (let at = 0; at < bytes.length; at += clusterSize) {
      if (isZero(bytes, at, at + clusterSize)) continue;
      const cluster = (offset + at) / clusterSize;
      held.add(cluster, 1);
      if (cluster === 0) continue;
      if (shape.isTable(view, at)) tables.push(offset + at);
      else if (isRefcountBlock(view, at, cluster, geometry)) refcountBlocks.push(offset + at);
    }
    if (tables.length + refcountBlocks.length > MAX_FOUND) {
      throw new BlockError('TOO_LARGE', `"${file.name}": has too many tables to be recovered`, {
        reason: 'qcow2.recover-memory',
        details: { bound: MAX_FOUND },
      });
    }
  });
  return { held, tables, refcountBlocks };
}

class TableShape {
  readonly #reader: EntryReader;
  readonly #geometry: Geometry;
  readonly #fileSize: number;

  constructor(rules: EntryRules) {
    this.#reader = new EntryReader(rules);
    this.#geometry = rules.geometry;
    this.#fileSize = rules.fileSize;
  }

  isTable(view: DataView, start: number): boolean {
    const { clusterSize, l2EntrySize } = this.#geometry;
    let claims = 0;
    for (let at = start; at < start + clusterSize; at += l2EntrySize) {
      if (this.#reader.read(view, at, -1) === BAD) return this.#isL1(view, start);
      if (this.#reader.host >= 0) claims++;
    }
    return claims > 0;
  }

  /** With extended L2 entries an L1 table looks like no L2 table: its entries have 8 bytes. */
  #isL1(view: DataView, start: number): boolean {
    const { clusterSize, extendedL2 } = this.#geometry;
    if (!extendedL2) return false;
    let claims = 0;
    for (let at = start; at < start + clusterSize; at += 8) {
      const high = view.getUint32(at);
      const low = view.getUint32(at + 4);
      if (high === 0 && low === 0) continue;
      const offset = entryOffset(high, low);
      if (l1HasReserved(high, low) || offset % clusterSize !== 0 || offset >= this.#fileSize) return false;
      claims++;
    }
    return claims > 0;
  }
}

/** Small counts only, and its own cluster among the counted ones: blocks are mostly allocated from the range that they count. */
function isRefcountBlock(view: DataView, start: number, cluster: number, geometry: Geometry): boolean {
  const { refcountOrder, refcountBlockEntries, clusterSize } = geometry;
  // Any bytes are refcounts of a few bits.
  if (refcountOrder < 3) return false;
  const block = new DataView(view.buffer, view.byteOffset + start, clusterSize);
  if (getRefcount(block, cluster % refcountBlockEntries, refcountOrder) === 0) return false;
  const likely = refcountOrder === 3 ? 4 : LARGEST_LIKELY;
  for (let i = 0; i < refcountBlockEntries; i++) {
    if (getRefcount(block, i, refcountOrder) > likely) return false;
  }
  return true;
}
