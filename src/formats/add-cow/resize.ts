/** Making the disk larger or smaller: the bitmap file first, and the image file only when that has succeeded. Spec: add-cow, row R3.
 *  Runs alone (MappedNode.exclusive).
 *  Order: everything dirty, durable → bitmap file and bits, durable → image file, durable. What a larger disk shows behind its old end is zeros:
 *  where the backing file goes on there, the new clusters are the image file's from the beginning.
 *  A cut in between leaves the old size; in a disk that was to become smaller, what was to go may show the backing file by then. */
import { BlockError, type ErrorCode } from '../../base/errors.ts';
import { alignDown, divCeil } from '../../bytes/align.ts';
import { RunList } from '../../core/run.ts';
import type { Preallocation } from '../../core/store.ts';
import { type KeptBits, keepBytes, putBack, writeBits } from './bitmap-file.ts';
import { fault, fileLength, headerSize, presenceGeometry, SECTOR } from './layout.ts';
import type { AddCowState } from './state.ts';

/** @param size bytes, a multiple of 512.
 *  @throws {@link BlockError} OPTION `add-cow.resize-unaligned`, `add-cow.resize-preallocation`; UNSUPPORTED `add-cow.resize-image`. */
export async function resizeDisk(
  state: AddCowState,
  size: number,
  preallocation: Preallocation | 'metadata',
): Promise<void> {
  const old = state.virtualSize;
  if (size % SECTOR !== 0) {
    throw refusal(state, 'unaligned', `the new size ${size} is not a multiple of ${SECTOR}`, size, 'OPTION');
  }
  if (preallocation === 'metadata' || (preallocation !== 'off' && size < old)) {
    throw refusal(state, 'preallocation', `preallocation=${preallocation} is not possible here`, size, 'OPTION');
  }
  if (size === old) return;
  if (!state.data.supports.truncate) {
    throw refusal(state, 'image', 'the size of its image file cannot be changed', size, 'UNSUPPORTED');
  }
  if (state.map === undefined) await resizeImage(state, size, preallocation);
  else if (size < old) await shrink(state, size);
  else await grow(state, size, preallocation);
  state.virtualSize = size;
}

async function resizeImage(state: AddCowState, size: number, preallocation: Preallocation): Promise<void> {
  await state.data.truncate(size, { preallocation });
  await state.data.flush();
}

async function grow(state: AddCowState, size: number, preallocation: Preallocation): Promise<void> {
  const { header, file, virtualSize: old } = state;
  const { bitmapOffset, bitmapLength, bits, unit } = presenceGeometry(header, size);
  await state.map?.flush();
  const length = fileLength(header, size);
  const before = Math.min(file.size, length);
  if (file.size < length && file.supports.truncate) await file.truncate(length);
  const oldBits = divCeil(old, unit);
  // What was left in the bitmap behind its old end must not count now; where the file had ended, there is nothing.
  const stale = Math.max(oldBits, (before - bitmapOffset) * 8);
  try {
    const shown = state.backing?.size ?? 0;
    if (shown > old) await takeLastCluster(state);
    const taken = Math.min(bits, Math.max(oldBits, divCeil(shown, unit)));
    if (taken < stale) await writeBits(file, bitmapOffset, taken, stale, false);
    if (oldBits < taken) await writeBits(file, bitmapOffset, oldBits, taken, true);
    await file.flush();
    await resizeImage(state, size, preallocation);
  } catch (error) {
    await undo(state, async () => await writeBits(file, bitmapOffset, oldBits, bitmapLength * 8, false));
    throw error;
  }
  await state.reshape(size);
}

/** The last cluster of the old disk, if it is a part of one and the backing file's: its rest would show what the backing file has there. */
async function takeLastCluster(state: AddCowState): Promise<void> {
  const { map, virtualSize: end, header, data, engine } = state;
  const start = alignDown(end, header.clusterSize);
  if (start === end || map === undefined) return;
  const runs = new RunList(1);
  runs.reset(start, end);
  await map.map(start, end - start, runs);
  if (runs.at(0).kind !== 'unallocated') return;
  const plan = await map.prepareWrite(start, end - start);
  try {
    const bytes = new Uint8Array(end - start);
    await engine?.readGuest(start, bytes);
    await data.write(plan.hostOffset, bytes);
  } catch (error) {
    map.abortWrite(plan);
    throw error;
  }
  map.commitWrite(plan);
  // The tables are read anew afterwards, and the bits of this one's byte changed in the file.
  await state.reshape(end);
}

async function shrink(state: AddCowState, size: number): Promise<void> {
  const { header, file, map } = state;
  const { bitmapOffset, bits } = presenceGeometry(header, size);
  const length = fileLength(header, size);
  await map?.flush();
  const end = Math.min(file.size, fileLength(header, state.virtualSize));
  const kept = await keepBytes(file, Math.min(end, bitmapOffset + Math.floor(bits / 8)), end);
  try {
    if (file.size > length && file.supports.truncate) await file.truncate(length);
    await writeBits(file, bitmapOffset, bits, (file.size - headerSize(header)) * 8, false);
    await file.flush();
    await resizeImage(state, size, 'off');
  } catch (error) {
    await undo(state, async () => await restore(state, kept, end));
    throw error;
  }
  await state.reshape(size);
}

async function restore({ file }: AddCowState, kept: KeptBits, length: number): Promise<void> {
  if (file.size < length && file.supports.truncate) await file.truncate(length);
  await putBack(file, kept);
}

/** After a failure: the bitmap is again what it was, as far as the file lets us. The failure itself is the one to tell. */
async function undo(state: AddCowState, restoreBits: () => Promise<void>): Promise<void> {
  try {
    await restoreBits();
    await state.file.flush();
    await state.reshape(state.virtualSize);
  } catch {
    // What was read of the bitmap may no longer be what is there.
    state.engine?.condemn(
      new BlockError('IO', `add-cow "${state.name}": a resize failed and could not be undone`, {
        reason: 'add-cow.resize-undo',
      }),
    );
  }
}

function refusal(state: AddCowState, finding: string, what: string, size: number, code: ErrorCode): BlockError {
  return fault(state.name, `resize-${finding}`, what, { size, old: state.virtualSize }, code);
}
