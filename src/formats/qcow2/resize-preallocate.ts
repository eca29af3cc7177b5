/** Gives the new part of a growing disk its clusters. Spec: qcow2, "Cluster mapping"; QEMU's preallocation modes. Runs alone.
 *  Order: the space, behind everything that the file ever held, so that it reads as zeros → refcounts → durable → L2 entries. The size in the
 *  header is the caller's, afterwards: until then nobody sees what is mapped here.
 *  Invariant: what is mapped already stays. */
import { BlockError } from '../../base/errors.ts';
import type { Preallocation } from '../../core/store.ts';
import type { Allocator } from './allocator.ts';
import { ALL_SUBCLUSTERS, L2_UNALLOCATED, L2_ZERO_PLAIN, l2Kind, setL2Entry, setSubclusters } from './entries.ts';
import type { Qcow2State } from './image-state.ts';
import type { L2Place, L2Tables } from './l2-tables.ts';

export interface PreallocationParts {
  readonly state: Qcow2State;
  readonly allocator: Allocator;
  readonly tables: L2Tables;
}

export interface PreallocatedRange {
  /** Guest offsets, whole clusters. */
  readonly start: number;
  readonly end: number;
  /** Something else than zeros would show there: the backing file, or what cannot be decrypted. */
  readonly hide: boolean;
}

/** @throws {@link BlockError} NO_SPACE, where the file cannot grow; TOO_LARGE. */
export async function preallocate(
  parts: PreallocationParts,
  range: PreallocatedRange,
  mode: Preallocation | 'metadata',
): Promise<void> {
  const { state, allocator } = parts;
  const { clusterSize } = state.geometry;
  if (state.hasDataFile) {
    await link(parts, range, range.start);
    return;
  }
  const clusters = (range.end - range.start) / clusterSize;
  if (clusters === 0) return;
  const offset = await state.metadata.run(() => allocator.allocateFresh(clusters));
  await reserve(state, offset, clusters * clusterSize, mode);
  await link(parts, range, offset);
}

/** Space in the file, behind everything in it, which reads as zeros. */
async function reserve(
  state: Qcow2State,
  offset: number,
  length: number,
  mode: Preallocation | 'metadata',
): Promise<void> {
  const { file, name } = state;
  const end = offset + length;
  if (file.supports.truncate) {
    if (file.size < end) await file.truncate(end, { preallocation: mode === 'metadata' ? 'off' : mode });
    return;
  }
  if (file.size < end) {
    throw new BlockError('NO_SPACE', `qcow2 "${name}": needs ${end} bytes, the device has ${file.size}`, {
      reason: 'qcow2.device-small',
      details: { size: end, deviceSize: file.size, errno: 'ENOSPC' },
    });
  }
  await file.writeZeroes(offset, length, {});
}

async function link({ state, tables }: PreallocationParts, range: PreallocatedRange, host: number): Promise<void> {
  const { clusterSize } = state.geometry;
  for (let at = range.start; at < range.end; ) {
    const stop = Math.min(range.end, at + tables.toSliceEnd(at));
    const first = at;
    await state.metadata.run(async () => {
      const place = await tables.own(first);
      try {
        linkSlice(state, place, (stop - first) / clusterSize, host + (first - range.start), range.hide);
      } finally {
        place.lease.release();
      }
    });
    at = stop;
  }
}

function linkSlice(state: Qcow2State, place: L2Place, count: number, host: number, hide: boolean): void {
  const { geometry, hasDataFile, caches } = state;
  const { clusterSize, l2EntrySize, extendedL2 } = geometry;
  const { view } = place.lease.table;
  const zero = hide && state.header.version >= 3;
  state.orderAfterContent(caches.l2);
  for (let i = 0; i < count; i++) {
    const at = (place.index + i) * l2EntrySize;
    const kind = l2Kind(view.getUint32(at), view.getUint32(at + 4), extendedL2, hasDataFile);
    if (kind !== L2_UNALLOCATED && kind !== L2_ZERO_PLAIN) continue;
    setL2Entry(view, at, host + i * clusterSize, true, zero && !extendedL2);
    if (extendedL2) setSubclusters(view, at, 0, zero ? ALL_SUBCLUSTERS : 0);
  }
  place.lease.markDirty(place.index * l2EntrySize, (place.index + count) * l2EntrySize);
}
