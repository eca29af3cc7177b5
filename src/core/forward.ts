/** Images written from their first byte to their last: what a format must know before it can do so, and what it says then.
 *  Owns the contract and the map of units, which is filled in one pass over the disk and asked in the next one. No I/O.
 *  Invariant: memory follows what is stored, not the size of the disk: a stretch of the disk without anything costs nothing. */
import { divCeil } from '../bytes/align.ts';
import type { Reference, ReferenceStatus } from './format.ts';
import type { ByteStore } from './store.ts';

/** What a unit of the disk becomes. `absent`: nothing is stored: it reads as zero, or shows the backing file. `zero`: marked as zero, where a
 *  backing file would show. `data`: its bytes follow. */
export type UnitState = 'absent' | 'zero' | 'data';

/** States by their two bits. */
const STATES: readonly UnitState[] = ['absent', 'zero', 'data'];
/** Units that one page of the map holds, four of them in a byte. */
const PAGE_UNITS = 64 * 1024;

/** The state of every unit of a disk. */
export class UnitMap {
  /** Bytes of a unit; the last one of the disk may be short. */
  readonly unit: number;
  readonly count: number;
  /** Units that are data. */
  dataCount = 0;
  readonly #pages = new Map<number, Uint8Array>();
  /** Behind this page there is none. */
  #lastPage = -1;

  constructor(size: number, unit: number) {
    this.unit = unit;
    this.count = divCeil(size, unit);
  }

  /** Marks units that were absent. */
  mark(first: number, count: number, state: 'zero' | 'data'): void {
    const bits = STATES.indexOf(state);
    for (let index = first; index < first + count; index++) {
      const number = Math.floor(index / PAGE_UNITS);
      let page = this.#pages.get(number);
      if (page === undefined) {
        page = new Uint8Array(PAGE_UNITS / 4);
        this.#pages.set(number, page);
        this.#lastPage = Math.max(this.#lastPage, number);
      }
      const at = index % PAGE_UNITS;
      const place = Math.floor(at / 4);
      page[place] = (page[place] as number) + bits * 4 ** (at % 4);
    }
    if (state === 'data') this.dataCount += count;
  }

  state(index: number): UnitState {
    const page = this.#pages.get(Math.floor(index / PAGE_UNITS));
    if (page === undefined) return 'absent';
    const at = index % PAGE_UNITS;
    const byte = page[Math.floor(at / 4)] as number;
    return STATES[Math.floor(byte / 4 ** (at % 4)) % 4] as UnitState;
  }

  /** The first unit from `index` on that is not absent; `count` when there is none. */
  next(index: number): number {
    let at = index;
    while (at < this.count && at < (this.#lastPage + 1) * PAGE_UNITS) {
      const page = this.#pages.get(Math.floor(at / PAGE_UNITS));
      const end = Math.min(this.count, at - (at % PAGE_UNITS) + PAGE_UNITS);
      if (page !== undefined) {
        for (; at < end; at++) if (this.state(at) !== 'absent') return at;
      }
      at = end;
    }
    return this.count;
  }

  /** The units in a row from `index` on that are data, `most` at most. */
  dataRun(index: number, most: number): number {
    let end = index;
    while (end < this.count && end - index < most && this.state(end) === 'data') end++;
    return end - index;
  }
}

export interface ForwardContext {
  /** What messages call the image, and where the names in it start from. */
  readonly name: string;
  referenceStatus(reference: Reference): Promise<ReferenceStatus | undefined>;
  readonly signal?: AbortSignal | undefined;
}

/** Where the data of a forward image lie. Bytes. */
export interface ForwardData {
  /** Where the first unit is, or would be. */
  readonly start: number;
  /** `packed`: the units that are data one behind the other; `in-place`: each as far from `start` as it is from the beginning of the disk. */
  readonly order: 'packed' | 'in-place';
  /** Length of the file, at least. */
  readonly fileSize: number;
}

/** An image that can be written forward: all tables first, then the data in the order of the disk. */
export interface ForwardImage {
  /** Of the disk, as the format rounds it. */
  readonly virtualSize: number;
  /** What is stored or not as one, bytes. */
  readonly unit: number;
  /** Units can be marked as zero over a backing file. */
  readonly marksZeroes: boolean;
  /** Writes everything that comes before the data.
   *  @param units of `unit` bytes each, all of the disk
   *  @throws {@link BlockError} TOO_LARGE and as the creation of an image. */
  writeTables(sink: ByteStore, units: UnitMap): Promise<ForwardData>;
}

/** How images of a format are written forward. `data-follows`: what `create` writes goes before, the data of the disk follow in order, all of
 *  them, and nothing depends on how many they are. `tables`: the tables go before, and say which data follow. */
export type ForwardWriting<O = Readonly<Record<string, unknown>>> =
  | { readonly kind: 'data-follows' }
  | {
      readonly kind: 'tables';
      /** Whether these create options can be had. */
      accepts(options: O): boolean;
      plan(context: ForwardContext, virtualSize: number, options: O): Promise<ForwardImage>;
    };
