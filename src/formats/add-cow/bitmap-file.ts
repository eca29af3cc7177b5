/** The bitmap as the file has it, past the caches: setting, clearing and counting ranges of bits, and keeping a part to put it back.
 *  Spec: add-cow, "Bit of cluster c". For resize and check, which run alone; nothing may be dirty in a cache.
 *  Invariant: bits outside the range that is asked keep what they are. */
import type { JobOptions } from '../../base/job.ts';
import { Pacer, throwIfAborted } from '../../base/job.ts';
import { alignDown } from '../../bytes/align.ts';
import { clearBits, findRunEnd, getBit, setBits } from '../../bytes/bits.ts';
import { isZero } from '../../bytes/zeros.ts';
import type { ByteStore } from '../../core/store.ts';

const CHUNK = 64 * 1024;

/** Sets or clears bits `[first, end)` of the bitmap at `offset`. Bits that lie past the end of the file are clear without it. */
export async function writeBits(
  file: ByteStore,
  offset: number,
  first: number,
  end: number,
  value: boolean,
): Promise<void> {
  const stop = value ? end : Math.min(end, Math.max(0, file.size - offset) * 8);
  const firstWhole = Math.min(stop, Math.ceil(first / 8) * 8);
  const endWhole = Math.max(firstWhole, alignDown(stop, 8));
  if (first < firstWhole) await changeByte(file, offset, first, firstWhole, value);
  if (!value && firstWhole < endWhole) await file.writeZeroes(offset + firstWhole / 8, (endWhole - firstWhole) / 8);
  for (let at = firstWhole / 8; value && at < endWhole / 8; at += CHUNK) {
    await file.write(offset + at, new Uint8Array(Math.min(CHUNK, endWhole / 8 - at)).fill(0xff));
  }
  if (endWhole < stop) await changeByte(file, offset, endWhole, stop, value);
}

/** Bits of one byte. */
async function changeByte(file: ByteStore, offset: number, first: number, end: number, value: boolean): Promise<void> {
  const byte = new Uint8Array(1);
  const at = Math.floor(first / 8);
  await file.read(offset + at, byte);
  (value ? setBits : clearBits)(byte, first - at * 8, end - at * 8);
  await file.write(offset + at, byte);
}

/** How many of bits `[first, end)` are set. */
export async function countBits(
  file: ByteStore,
  offset: number,
  first: number,
  end: number,
  { signal, onProgress }: JobOptions,
): Promise<number> {
  const chunk = new Uint8Array(CHUNK);
  const view = new DataView(chunk.buffer);
  const pacer = new Pacer();
  let count = 0;
  for (let at = first; at < end; ) {
    throwIfAborted(signal);
    const base = alignDown(at, 8);
    const stop = Math.min(end, base + CHUNK * 8);
    await file.read(offset + base / 8, chunk.subarray(0, Math.ceil((stop - base) / 8)));
    while (at < stop) {
      const runEnd = findRunEnd(chunk, view, at - base, stop - base) + base;
      if (getBit(chunk, at - base)) count += runEnd - at;
      at = runEnd;
    }
    onProgress?.({ phase: 'bitmap', done: at - first, total: end - first });
    if (pacer.due) await pacer.pause(signal);
  }
  return count;
}

/** A part of the bitmap, to be put back. Blocks of zeros are not kept. */
export interface KeptBits {
  readonly blocks: readonly { readonly at: number; readonly bytes: Uint8Array }[];
}

/** Keeps bytes `[start, end)` of the file. */
export async function keepBytes(file: ByteStore, start: number, end: number): Promise<KeptBits> {
  const blocks: { at: number; bytes: Uint8Array }[] = [];
  for (let at = start; at < end; at += CHUNK) {
    const bytes = new Uint8Array(Math.min(CHUNK, end - at));
    await file.read(at, bytes);
    if (!isZero(bytes)) blocks.push({ at, bytes });
  }
  return { blocks };
}

/** Puts them back where everything was cleared or cut off. */
export async function putBack(file: ByteStore, { blocks }: KeptBits): Promise<void> {
  for (const { at, bytes } of blocks) await file.write(at, bytes);
}
