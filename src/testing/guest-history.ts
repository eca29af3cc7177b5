/** What a guest wrote, when, and what it may therefore read: the flat model behind the model test and the crash oracle.
 *  The disk is divided into cells; every write stamps each of its cells with its own number, so that a cell tells who wrote it, and that it
 *  lies where it belongs. Times are counted by a clock that ticks at each begin and end; `tick` is the store log's time, for crashes.
 *  Invariants: a write that began after another had ended comes after it; concurrent ones may come in any order, cell by cell. */
import { seededRandom } from './random.ts';

/** Words of a stamp: the write's number times this, plus the cell's number. */
const STAMP_CELLS = 4096;
/** The number of a cell that holds zeros. */
export const ZERO_ID = 0;

/** One change of some cells. */
export interface GuestWrite {
  /** What a cell reads as afterwards; `ZERO_ID` for zeros. */
  readonly id: number;
  readonly start: number;
  readonly startTick: number;
  /** Infinity while it runs. */
  end: number;
  /** False for what may have happened or not (failed requests, discards that are hints): it never rules out what was there before. */
  certain: boolean;
}

interface Flush {
  readonly start: number;
  endTick: number;
}

export class GuestHistory {
  readonly cellSize: number;
  readonly cells: number;
  readonly #writes: GuestWrite[][] = [];
  readonly #flushes: Flush[] = [];
  readonly #tick: () => number;
  #clock = 1;
  #nextId: number;

  /** @param size bytes, a multiple of `cellSize` @param initial what each cell holds at first @param tick time of the store log */
  constructor(size: number, cellSize: number, initial: (cell: number) => number, tick: () => number = () => 0) {
    this.cellSize = cellSize;
    this.cells = size / cellSize;
    if (!Number.isInteger(this.cells) || this.cells > STAMP_CELLS) {
      throw new RangeError(`a disk of ${size} bytes is not made of at most ${STAMP_CELLS} cells of ${cellSize}`);
    }
    this.#tick = tick;
    this.#nextId = 2;
    for (let cell = 0; cell < this.cells; cell++) {
      this.#writes.push([{ id: initial(cell), start: 0, startTick: 0, end: 0, certain: true }]);
    }
  }

  /** The present moment, later than every moment before. */
  now(): number {
    return this.#clock++;
  }

  /** Notes that a request begins to change cells `[first, first + count)`. */
  begin(first: number, count: number, kind: 'data' | 'zero', certain = true): GuestWrite {
    const write: GuestWrite = {
      id: kind === 'zero' ? ZERO_ID : this.#nextId++,
      start: this.now(),
      startTick: this.#tick(),
      end: Number.POSITIVE_INFINITY,
      certain,
    };
    for (let cell = first; cell < first + count; cell++) this.#writes[cell]?.push(write);
    return write;
  }

  /** @param failed it may have happened in part, or not at all. */
  end(write: GuestWrite, failed = false): void {
    write.end = this.now();
    if (failed) write.certain = false;
  }

  beginFlush(): Flush {
    const flush = { start: this.now(), endTick: Number.POSITIVE_INFINITY };
    this.#flushes.push(flush);
    return flush;
  }

  endFlush(flush: Flush): void {
    flush.endTick = this.#tick();
  }

  /** What a read that ran from `from` to `to` may have seen in a cell. */
  allowed(cell: number, from: number, to: number): number[] {
    return this.#possible(cell, (write) => write.start <= to, from);
  }

  /** What a cell may hold after a crash at `tick`: its last flushed value, or one written since. */
  allowedAfterCrash(cell: number, tick: number): number[] {
    return this.#possible(cell, (write) => write.startTick <= tick, this.flushedBy(tick));
  }

  /** Begin of the last flush that had ended at `tick`; it changes when more becomes certain. */
  flushedBy(tick: number): number {
    let flushed = 0;
    for (const flush of this.#flushes) if (flush.endTick <= tick) flushed = Math.max(flushed, flush.start);
    return flushed;
  }

  /** Values not ruled out by a write that came after them and had ended before `settled`. */
  #possible(cell: number, seen: (write: GuestWrite) => boolean, settled: number): number[] {
    const writes = this.#writes[cell] as GuestWrite[];
    const ids: number[] = [];
    for (const write of writes) {
      if (!seen(write)) continue;
      const ruledOut = writes.some((later) => later.certain && write.end < later.start && later.end < settled);
      if (!ruledOut && !ids.includes(write.id)) ids.push(write.id);
    }
    return ids;
  }

  /** With nothing running: the cell holds `id`, and everything else is history. */
  settle(cell: number, id: number): void {
    this.#writes[cell] = [{ id, start: 0, startTick: 0, end: 0, certain: true }];
  }

  /** Fills a buffer for cells from `first` on with the stamps of `id`. */
  stamp(into: Uint8Array, first: number, id: number): void {
    const view = new DataView(into.buffer, into.byteOffset, into.byteLength);
    for (let at = 0; at < into.length; at += this.cellSize) {
      const end = Math.min(at + this.cellSize, into.length);
      view.setUint32(at, stampOf(id, first + at / this.cellSize));
      for (let filled = 4; at + filled < end; filled *= 2) {
        into.copyWithin(at + filled, at, at + Math.min(filled, end - at - filled));
      }
    }
  }

  /** Whose stamp cell `cell` carries, its bytes being at `at` of `bytes`. A text says what is wrong with it. */
  identify(bytes: Uint8Array, at: number, cell: number): number | string {
    const end = at + this.cellSize;
    const word = new DataView(bytes.buffer, bytes.byteOffset + at, 4).getUint32(0);
    for (let i = at + 4; i < end; i++) {
      if (bytes[i] !== bytes[i - 4]) return `mixed content, from byte ${i - at} on, first word ${describe(word)}`;
    }
    if (word === 0) return ZERO_ID;
    if (word % STAMP_CELLS !== cell) return `content of another place: ${describe(word)}`;
    return Math.floor(word / STAMP_CELLS);
  }

  /** First cell of `bytes` (which begin at cell `first`) that holds none of its allowed values, in words. */
  findWrong(bytes: Uint8Array, first: number, allowed: (cell: number) => readonly number[]): string | undefined {
    for (let at = 0; at < bytes.length; at += this.cellSize) {
      const cell = first + at / this.cellSize;
      const found = this.identify(bytes, at, cell);
      const wanted = allowed(cell);
      if (typeof found === 'number' && wanted.includes(found)) continue;
      const what = typeof found === 'number' ? `write ${found}` : found;
      return `cell ${cell} (offset ${cell * this.cellSize}) holds ${what}; allowed: writes ${wanted.join(', ')}`;
    }
    return undefined;
  }
}

function stampOf(id: number, cell: number): number {
  return id === ZERO_ID ? 0 : id * STAMP_CELLS + cell;
}

function describe(word: number): string {
  return word === 0 ? 'zero' : `write ${Math.floor(word / STAMP_CELLS)} of cell ${word % STAMP_CELLS}`;
}

/** The number that cells of a backing file carry. */
export const BACKING_ID = 1;

/** Content of a backing file: about a quarter zeros, the rest stamped. */
export function backingContent(
  size: number,
  cellSize: number,
  seed: number,
): { readonly bytes: Uint8Array; id(cell: number): number } {
  const random = seededRandom(seed);
  const bytes = new Uint8Array(size);
  const history = new GuestHistory(size, cellSize, () => ZERO_ID);
  const ids: number[] = [];
  for (let cell = 0; cell < history.cells; cell++) {
    const id = random() < 0.25 ? ZERO_ID : BACKING_ID;
    ids.push(id);
    if (id !== ZERO_ID) history.stamp(bytes.subarray(cell * cellSize, (cell + 1) * cellSize), cell, id);
  }
  return { bytes, id: (cell) => ids[cell] ?? ZERO_ID };
}
