/** Takes away what the tables map behind an offset: what a smaller disk does not have, and what a larger one must not find. Spec: qcow2, "Cluster
 *  mapping". Runs alone.
 *  Order: entries of the last table, L1 entries → durable → refcounts of what they named. A cut leaves leaks at most. */
import { isPromise } from '../../base/async.ts';
import { BlockError } from '../../base/errors.ts';
import { alignDown, alignUp, divCeil, divFloor } from '../../bytes/align.ts';
import type { Allocator } from './allocator.ts';
import {
  clusterRun,
  compressedLength,
  compressedOffset,
  entryOffset,
  hasOffset,
  L2_COMPRESSED,
  L2_NORMAL,
  L2_ZERO_ALLOCATED,
  l2Kind,
  setL1Entry,
  setL2Entry,
  setSubclusters,
} from './entries.ts';
import { TABLE_ENTRY_BYTES } from './geometry.ts';
import type { Qcow2State } from './image-state.ts';
import type { L2Tables } from './l2-tables.ts';

export interface DropParts {
  readonly state: Qcow2State;
  readonly allocator: Allocator;
  readonly tables: L2Tables;
}

/** @param from guest offset, a multiple of the cluster size
 *  @param shrinks whether the disk becomes smaller; else what an earlier one left is cleared */
export async function dropBehind(parts: DropParts, from: number, shrinks: boolean): Promise<void> {
  const { state } = parts;
  const { l2Coverage } = state.geometry;
  const tableEnd = Math.min(alignUp(from, l2Coverage), state.header.l1Size * l2Coverage);
  await state.markDirty();
  await dropEntries(parts, from, tableEnd);
  if (shrinks) await state.file.event?.('l1_shrink_write_table');
  const named = await state.metadata.run(() => dropL1(state, divFloor(alignUp(from, l2Coverage), l2Coverage)));
  const { l1, l2 } = state.caches;
  await l2.makeDurable(l2.generation);
  await l1.makeDurable(l1.generation);
  if (shrinks) await state.file.event?.('l1_shrink_free_l2_clusters');
  for (const l2Offset of named) await state.metadata.run(() => freeTable(parts, l2Offset));
}

/** The time that dropping takes is bounded by the size of the file.
 *  @throws {@link BlockError} CORRUPT, reason `qcow2.resize-l1-entries`. */
export async function requireBoundedL1(state: Qcow2State): Promise<void> {
  const { header, caches, geometry, file, name } = state;
  const slice = caches.l1.tableSize;
  const end = header.l1Offset + header.l1Size * TABLE_ENTRY_BYTES;
  const bound = divCeil(file.size, geometry.clusterSize);
  let tables = 0;
  for (let at = header.l1Offset; at < end && at < file.size; at += slice) {
    const loaded = caches.l1.load(at);
    const { view } = isPromise(loaded) ? await loaded : loaded;
    for (let i = 0; i < Math.min(slice, end - at); i += TABLE_ENTRY_BYTES) {
      if (hasOffset(view.getUint32(i), view.getUint32(i + 4))) tables++;
    }
  }
  if (tables <= bound) return;
  throw new BlockError(
    'CORRUPT',
    `qcow2 "${name}": the L1 table names ${tables} L2 tables, in a file of ${bound} clusters; check the image`,
    { reason: 'qcow2.resize-l1-entries', details: { value: tables, bound } },
  );
}

/** The last entries of a table that stays. */
async function dropEntries({ state, tables }: DropParts, from: number, end: number): Promise<void> {
  const { clusterSize } = state.geometry;
  for (let at = from; at < end; ) {
    const stop = Math.min(end, at + tables.toSliceEnd(at));
    const first = at;
    await state.metadata.run(async () => {
      const found = await tables.find(first);
      if (found === undefined) return;
      const count = (stop - first) / clusterSize;
      const { view } = found.lease.table;
      const empty = isEmpty(view, found.index, count, state);
      found.lease.release();
      // A shared table is not copied for nothing.
      if (empty) return;
      const place = await tables.own(first);
      clearEntries(state, tables, place.lease.table.view, place.index, count);
      const { l2EntrySize } = state.geometry;
      place.lease.markDirty(place.index * l2EntrySize, (place.index + count) * l2EntrySize);
      place.lease.release();
    });
    at = stop;
  }
}

function isEmpty(view: DataView, index: number, count: number, { geometry }: Qcow2State): boolean {
  const end = (index + count) * geometry.l2EntrySize;
  for (let at = index * geometry.l2EntrySize; at < end; at += 4) if (view.getUint32(at) !== 0) return false;
  return true;
}

function clearEntries(state: Qcow2State, tables: L2Tables, view: DataView, index: number, count: number): void {
  const { l2EntrySize, extendedL2 } = state.geometry;
  for (let i = index; i < index + count; i++) {
    const at = i * l2EntrySize;
    const high = view.getUint32(at);
    const low = view.getUint32(at + 4);
    setL2Entry(view, at, 0, false, false);
    if (extendedL2) setSubclusters(view, at, 0, 0);
    tables.noteDropped(high, low, 'request');
  }
}

/** Clears the L1 entries from `first` on. @returns the tables that they named. */
async function dropL1(state: Qcow2State, first: number): Promise<number[]> {
  const { header, caches, geometry } = state;
  const named: number[] = [];
  const slice = caches.l1.tableSize;
  const end = header.l1Offset + header.l1Size * TABLE_ENTRY_BYTES;
  for (let at = header.l1Offset + first * TABLE_ENTRY_BYTES; at < end; ) {
    const sliceAt = alignDown(at, slice);
    const stop = Math.min(end, sliceAt + slice);
    const leased = caches.l1.lease(sliceAt);
    const lease = isPromise(leased) ? await leased : leased;
    const { view } = lease.table;
    for (; at < stop; at += TABLE_ENTRY_BYTES) {
      const offset = entryOffset(view.getUint32(at - sliceAt), view.getUint32(at - sliceAt + 4));
      if (offset === 0) continue;
      setL1Entry(view, at - sliceAt, 0, false);
      lease.markDirty(at - sliceAt, at - sliceAt + TABLE_ENTRY_BYTES);
      // One that is not aligned, or lies behind the end of the file, names no table: check reports what it leaks.
      if (offset % geometry.clusterSize === 0 && offset < state.file.size) named.push(offset);
    }
    lease.release();
  }
  return named;
}

/** Takes one reference from a table that the disk does not name any more, and from everything in it. */
async function freeTable({ state, allocator }: DropParts, l2Offset: number): Promise<void> {
  const { geometry, caches, hasDataFile, l2SliceBytes } = state;
  const { clusterSize, l2EntrySize, extendedL2, csizeShift } = geometry;
  const bytes = new Uint8Array(clusterSize);
  for (let at = 0; at < clusterSize; at += l2SliceBytes) {
    const slice = caches.l2.load(l2Offset + at);
    bytes.set((isPromise(slice) ? await slice : slice).bytes, at);
  }
  const view = new DataView(bytes.buffer);
  const end = geometry.l2Entries;
  for (let i = 0; i < end; ) {
    const at = i * l2EntrySize;
    const high = view.getUint32(at);
    const low = view.getUint32(at + 4);
    const kind = l2Kind(high, low, extendedL2, hasDataFile);
    const offset = entryOffset(high, low);
    if (kind === L2_COMPRESSED) {
      const start = compressedOffset(high, low, csizeShift);
      if (Number.isFinite(start)) await allocator.freeNow(start, compressedLength(high, low, csizeShift));
      i++;
    } else if ((kind === L2_NORMAL || kind === L2_ZERO_ALLOCATED) && !hasDataFile && offset % clusterSize === 0) {
      const run = clusterRun(view, at, l2EntrySize, end - i, clusterSize);
      await allocator.freeNow(offset, run * clusterSize);
      i += run;
    } else {
      i++;
    }
  }
  // The allocator forgets the tables that it knows, and this one is named by nobody any more: a new table at its place would begin as the old one.
  await caches.l2.quiesce();
  for (let at = 0; at < clusterSize; at += l2SliceBytes) caches.l2.forget(l2Offset + at);
  await allocator.freeNow(l2Offset, clusterSize);
}
