/** Finds the highest bit that is set in a cow bitmap. Spec: "Detection", H7.
 *  Invariants: reads from the end and stops at the first byte that is not zero; holes are stepped over; memory is bounded, whatever length a
 *  header claims, and positions pass 2^32. */
import { Pacer, throwIfAborted } from '../../base/job.ts';
import { isZero } from '../../bytes/zeros.ts';
import { ExtentList } from '../../core/extent.ts';
import type { ByteStore, IoOptions } from '../../core/store.ts';

/** Read at once, bytes. */
const CHUNK = 1024 * 1024;
/** Asked about at once, bytes: so that an abort is seen in time. */
const MAX_WINDOW = 2 ** 36;
/** Compared at once, bytes. */
const BLOCK = 4096;

export interface BitmapArea {
  readonly offset: number;
  /** Bytes. */
  readonly length: number;
  readonly wordBytes: 1 | 4 | 8;
}

/** @returns its number, -1 when none is set. @throws {@link BlockError} ABORTED, and what the store throws. */
export async function highestBit(file: ByteStore, area: BitmapArea, signal: AbortSignal | undefined): Promise<number> {
  const { offset, length, wordBytes } = area;
  const scan = new BackwardScan(file, signal);
  const last = await scan.lastNonZero(offset, offset + length);
  if (last < 0) return -1;
  // In a big-endian word the bits of the first byte are the highest.
  const wordAt = last - offset - ((last - offset) % wordBytes);
  const word = new Uint8Array(Math.min(wordBytes, length - wordAt));
  await file.read(offset + wordAt, word, scan.io);
  const first = word.findIndex((byte) => byte !== 0);
  const inWord = (wordBytes - 1 - first) * 8 + 31 - Math.clz32(word[first] as number);
  return wordAt * 8 + inWord;
}

class BackwardScan {
  readonly io: IoOptions;
  readonly #file: ByteStore;
  readonly #signal: AbortSignal | undefined;
  readonly #list = new ExtentList(256);
  readonly #pacer = new Pacer();
  #buffer = new Uint8Array(0);

  constructor(file: ByteStore, signal: AbortSignal | undefined) {
    this.#file = file;
    this.#signal = signal;
    this.io = signal === undefined ? {} : { signal };
  }

  /** Where the last byte of `[start, end)` that is not zero is, -1 when all are. */
  async lastNonZero(start: number, end: number): Promise<number> {
    let window = CHUNK;
    for (let stop = end; stop > start; ) {
      await this.#breathe();
      const from = Math.max(start, stop - window);
      if (!(await this.#listExtents(from, stop))) {
        // More extents than the list has room for: of a smaller window, or none at all.
        if (window > CHUNK) {
          window /= 2;
          continue;
        }
        this.#list.reset(from);
        this.#list.add(stop - from, 0);
      }
      for (let index = this.#list.count - 1; index >= 0; index--) {
        const { start: dataStart, length, zero } = this.#list.at(index);
        const found = zero ? -1 : await this.#readBack(dataStart, dataStart + length);
        if (found >= 0) return found;
      }
      stop = from;
      window = Math.min(window * 2, MAX_WINDOW);
    }
    return -1;
  }

  /** Lists the extents of `[from, stop)`; false when they do not fit. */
  async #listExtents(from: number, stop: number): Promise<boolean> {
    const list = this.#list;
    list.reset(from);
    while (list.end < stop) {
      const before = list.end;
      await this.#file.extents(before, stop - before, list, this.io);
      if (list.end === before) return false;
    }
    return true;
  }

  async #readBack(start: number, end: number): Promise<number> {
    if (this.#buffer.length === 0) this.#buffer = new Uint8Array(CHUNK);
    for (let stop = end; stop > start; ) {
      await this.#breathe();
      const from = Math.max(start, stop - CHUNK);
      const bytes = this.#buffer.subarray(0, stop - from);
      await this.#file.read(from, bytes, this.io);
      const found = lastNonZeroIn(bytes);
      if (found >= 0) return from + found;
      stop = from;
    }
    return -1;
  }

  async #breathe(): Promise<void> {
    throwIfAborted(this.#signal);
    if (this.#pacer.due) await this.#pacer.pause(this.#signal);
  }
}

function lastNonZeroIn(bytes: Uint8Array): number {
  for (let stop = bytes.length; stop > 0; ) {
    const from = Math.max(0, stop - BLOCK);
    if (!isZero(bytes, from, stop)) {
      let at = stop - 1;
      while (bytes[at] === 0) at--;
      return at;
    }
    stop = from;
  }
  return -1;
}
