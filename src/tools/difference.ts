/** Walks over two disks side by side and finds the blocks in which they differ. Owns what is read at all, reading ahead, and the comparison.
 *  Invariants: what both know to be zero and what both take from the same place is not read; windows come in the order of the disk; memory is
 *  bounded by the windows on their way; a walk that ends early has ended everything that it began.
 *  Disks of different sizes are compared as if the smaller one went on with zeros. */
import { type Pending, settleAll } from '../base/async.ts';
import { BlockError } from '../base/errors.ts';
import { type JobOptions, Pacer, throwIfAborted } from '../base/job.ts';
import { MiB } from '../base/sizes.ts';
import { alignDown, alignUp } from '../bytes/align.ts';
import { areEqual } from '../bytes/equal.ts';
import { isZero } from '../bytes/zeros.ts';
import type { Image } from '../image/image.ts';
import { LayerPlaces, SharedPlaces } from './shared-places.ts';
import { StatusCursor } from './status-cursor.ts';

/** `changed`: both hold something; `filled`: only the second one does; `cleared`: only the first one. */
export type DifferenceKind = 'changed' | 'filled' | 'cleared';

export interface DiffRange {
  /** Bytes. */
  readonly offset: number;
  readonly length: number;
  readonly kind: DifferenceKind;
}

export interface WalkOptions extends JobOptions {
  /** Bytes: differences are told in whole blocks of it. */
  readonly block: number;
  /** Where to stop, at most the size of the larger disk. */
  readonly end: number;
}

/** A part of both disks that was read. */
export interface Window {
  /** In order, none touching the next of the same kind; cut at the ends of the window. */
  readonly ranges: readonly DiffRange[];
  /** Where the window begins; `bytes` are those of the second disk, of use until the next window is asked for. `undefined`: all zeros. */
  readonly start: number;
  readonly bytes: Uint8Array | undefined;
}

export const DEFAULT_BLOCK = 4096;
export const MAX_BLOCK = 1 * MiB;
/** Bytes of a window: a whole number of blocks of any size. */
export const WINDOW = 1 * MiB;
/** Windows that are read at once. */
const AHEAD = 4;
/** Whether something was cleared or filled is told for no less than this. */
const SECTOR = 512;

/** @throws {@link BlockError} INVALID_ARGUMENT. */
export function requireBlock(block: number): void {
  if (Number.isInteger(block) && block >= 1 && block <= MAX_BLOCK && Number.isInteger(Math.log2(block))) return;
  throw new BlockError('INVALID_ARGUMENT', `block of ${block} bytes: expected a power of two, 1 to ${MAX_BLOCK}`, {
    reason: 'diff.block',
    details: { block, most: MAX_BLOCK },
  });
}

class Side {
  readonly size: number;
  /** What is known of the place where `seek` went. */
  zero = false;
  end = 0;
  readonly places: LayerPlaces;
  readonly #image: Image;
  readonly #cursor: StatusCursor;
  readonly #free: Uint8Array[] = [];

  private constructor(image: Image, places: LayerPlaces) {
    this.#image = image;
    this.size = image.virtualSize;
    this.places = places;
    this.#cursor = new StatusCursor(image.node);
  }

  static async of(image: Image): Promise<Side> {
    return new Side(image, await LayerPlaces.of(image.node));
  }

  get depth(): number {
    return this.#cursor.depth;
  }

  /** `undefined`: done. */
  seek(offset: number): Pending {
    if (offset >= this.size) {
      this.zero = true;
      this.end = Number.POSITIVE_INFINITY;
      return undefined;
    }
    const seeking = this.#cursor.seek(offset);
    if (seeking !== undefined) return seeking.then(() => this.#note());
    this.#note();
    return undefined;
  }

  #note(): void {
    const { present, zero, end } = this.#cursor;
    this.zero = zero || !present;
    // Behind its end there are zeros: a disk that ends with them has one stretch of them.
    this.end = this.zero && end >= this.size ? Number.POSITIVE_INFINITY : end;
  }

  take(length: number): Uint8Array {
    return (this.#free.pop() ?? new Uint8Array(WINDOW)).subarray(0, length);
  }

  give(bytes: Uint8Array): void {
    this.#free.push(new Uint8Array(bytes.buffer));
  }

  /** Fills `into`, with zeros behind the end of the disk. @returns how many bytes are being read. */
  read(offset: number, into: Uint8Array): { readonly pending: Pending; readonly bytes: number } {
    const inside = Math.min(into.length, this.size - offset);
    if (inside < into.length) into.fill(0, inside);
    return {
      pending: this.#image.node.read(offset, inside < into.length ? into.subarray(0, inside) : into),
      bytes: inside,
    };
  }
}

interface Reading {
  readonly start: number;
  readonly end: number;
  /** `undefined`: all zeros. */
  readonly a: Uint8Array | undefined;
  readonly b: Uint8Array | undefined;
  /** Never rejects before it is waited for. */
  readonly done: Promise<void>;
}

/** What is to be done from some place on. */
interface Plan {
  readonly end: number;
  readonly readA: boolean;
  readonly readB: boolean;
}

export class DifferenceWalk {
  /** Bytes read of both disks. */
  read = 0;
  readonly #a: Side;
  readonly #b: Side;
  readonly #shared: SharedPlaces;
  readonly #options: WalkOptions;
  readonly #pacer = new Pacer();
  readonly #readings: Reading[] = [];
  /** Everything before is equal, read, or being read. */
  #at = 0;

  private constructor(a: Side, b: Side, options: WalkOptions) {
    this.#a = a;
    this.#b = b;
    this.#shared = new SharedPlaces(a.places, b.places);
    this.#options = options;
  }

  static async of(a: Image, b: Image, options: WalkOptions): Promise<DifferenceWalk> {
    requireBlock(options.block);
    return new DifferenceWalk(await Side.of(a), await Side.of(b), options);
  }

  /** The windows in which something differs; each is of use until the next one is asked for.
   *  @throws {@link BlockError} whatever reading fails with; ABORTED. */
  async *windows(): AsyncGenerator<Window, void, undefined> {
    const readings = this.#readings;
    try {
      for (;;) {
        while (readings.length < AHEAD) {
          const reading = await this.#next();
          if (reading === undefined) break;
          readings.push(reading);
        }
        const [first] = readings;
        if (first === undefined) break;
        await first.done;
        const ranges = differences(first, this.#options.block);
        if (ranges.length > 0) yield { start: first.start, ranges, bytes: first.b };
        readings.shift();
        if (first.a !== undefined) this.#a.give(first.a);
        if (first.b !== undefined) this.#b.give(first.b);
        await this.#step();
      }
    } finally {
      await Promise.allSettled(readings.map(({ done }) => done));
    }
  }

  async #step(): Promise<void> {
    const { signal, onProgress, end } = this.#options;
    onProgress?.({ phase: 'diff', done: this.#readings[0]?.start ?? this.#at, total: end });
    if (this.#pacer.due) await this.#pacer.pause(signal);
    else throwIfAborted(signal);
  }

  /** Begins to read the next window. @returns `undefined` at the end. */
  async #next(): Promise<Reading | undefined> {
    const { end: total, block } = this.#options;
    while (this.#at < total) {
      const at = this.#at;
      const equal = await this.#equalUntil(at);
      const until = equal >= total ? total : alignDown(equal, block);
      if (until === at) {
        const plan = await this.#toRead(at);
        this.#at = plan.end;
        return this.#begin(at, plan);
      }
      this.#at = until;
      await this.#step();
    }
    return undefined;
  }

  /** How far the two are known to be equal without being read; `at` where they are not. */
  async #equalUntil(at: number): Promise<number> {
    const [a, b] = [this.#a, this.#b];
    const seekA = a.seek(at);
    if (seekA !== undefined) await seekA;
    const seekB = b.seek(at);
    if (seekB !== undefined) await seekB;
    const end = Math.min(a.end, b.end);
    if (a.zero && b.zero) return end;
    if (a.zero || b.zero) return at;
    const shared = this.#shared;
    await shared.seek(at, a.depth, b.depth);
    return shared.same ? Math.min(end, shared.end) : at;
  }

  /** What is to be read from `at` on: whole blocks, up to where the two are known to be equal for at least another one, one window at most. */
  async #toRead(at: number): Promise<Plan> {
    const { end: total, block } = this.#options;
    const [a, b] = [this.#a, this.#b];
    const most = Math.min(total, at + WINDOW);
    let [readA, readB] = [false, false];
    let end = at;
    while (end < most) {
      const equal = await this.#equalUntil(end);
      const aligned = Math.min(alignUp(end, block), total);
      const isOver = end > at && equal > end && (equal >= aligned + block || equal >= total);
      if (isOver && end === aligned) break;
      readA ||= !a.zero;
      readB ||= !b.zero;
      end = isOver ? aligned : Math.min(equal > end ? equal : this.#unequalUntil(), most);
      if (isOver) break;
    }
    return { end, readA, readB };
  }

  /** How far what is known of the present place holds, where that is not equality. */
  #unequalUntil(): number {
    const end = Math.min(this.#a.end, this.#b.end);
    return this.#a.zero || this.#b.zero ? end : Math.min(end, this.#shared.end);
  }

  #begin(start: number, { end, readA, readB }: Plan): Reading {
    const a = readA ? this.#a.take(end - start) : undefined;
    const b = readB ? this.#b.take(end - start) : undefined;
    const pendings: Pending[] = [];
    for (const [side, into] of [
      [this.#a, a],
      [this.#b, b],
    ] as const) {
      if (into === undefined) continue;
      try {
        const { pending, bytes } = side.read(start, into);
        this.read += bytes;
        pendings.push(pending);
      } catch (error) {
        pendings.push(Promise.reject(error));
      }
    }
    const done = settleAll(pendings);
    // It is waited for when its turn comes; a failure until then must not count as unhandled.
    done.catch(() => undefined);
    return { start, end, a, b, done };
  }
}

/** The differing blocks of a window, neighbours of one kind joined. */
function differences({ start, end, a, b }: Reading, block: number): DiffRange[] {
  const length = end - start;
  const ranges: { offset: number; length: number; kind: DifferenceKind }[] = [];
  if (a !== undefined && b !== undefined ? areEqual(a, b, 0, length) : isZero((a ?? b) as Uint8Array, 0, length))
    return ranges;
  const add = (from: number, to: number, kind: DifferenceKind): void => {
    const last = ranges.at(-1);
    if (last !== undefined && last.kind === kind && last.offset + last.length === start + from)
      last.length += to - from;
    else ranges.push({ offset: start + from, length: to - from, kind });
  };
  const unit = Math.max(block, SECTOR);
  for (let at = 0; at < length; at += unit) {
    const to = Math.min(at + unit, length);
    const kind = kindOf(a, b, at, to);
    if (kind === undefined) continue;
    if (block >= SECTOR) add(at, to, kind);
    else
      for (let i = at; i < to; i += block)
        if (differs(a, b, i, Math.min(i + block, to))) add(i, Math.min(i + block, to), kind);
  }
  return ranges;
}

function differs(a: Uint8Array | undefined, b: Uint8Array | undefined, from: number, to: number): boolean {
  if (a === undefined || b === undefined) return !isZero((a ?? b) as Uint8Array, from, to);
  return !areEqual(a, b, from, to);
}

function kindOf(
  a: Uint8Array | undefined,
  b: Uint8Array | undefined,
  from: number,
  to: number,
): DifferenceKind | undefined {
  if (!differs(a, b, from, to)) return undefined;
  if (a === undefined || isZero(a, from, to)) return 'filled';
  return b === undefined || isZero(b, from, to) ? 'cleared' : 'changed';
}
