/** What must be done for a conversion, range by range: read and copy, make zero, or leave to the backing file. Reads status, no data.
 *  Invariants: segments are contiguous and cover the disk; a unit of the target that is part data, part zero is data, so that every
 *  unit is written once and whole; for compressed targets any mixed unit is. Looks ahead no further than one segment. */
import type { Pending } from '../base/async.ts';
import { alignDown, alignUp } from '../bytes/align.ts';
import type { CopySource, SegmentKind } from './convert-source.ts';

export interface Segment {
  readonly kind: SegmentKind;
  readonly start: number;
  readonly end: number;
}

export interface PlannerOptions {
  /** Bytes that the target writes best at once. */
  readonly unit: number;
  /** Units can be written whole only. */
  readonly wholeUnits: boolean;
  /** Data is handed out at multiples of this, before its end is known. A multiple of `unit`. */
  readonly chunk: number;
}

export class Planner {
  /** The segment at hand; `undefined` at the end. */
  current: Segment | undefined;
  readonly #source: CopySource;
  readonly #options: PlannerOptions;
  readonly #ready: Segment[] = [];
  /** The segment that may still grow. */
  #kind: SegmentKind = 'zero';
  #start = 0;
  #end = 0;

  constructor(source: CopySource, options: PlannerOptions) {
    this.#source = source;
    this.#options = options;
  }

  /** Moves on to the next segment. */
  next(): Pending {
    const waiting = this.#advance();
    return waiting === undefined ? undefined : this.#nextLater(waiting);
  }

  async #nextLater(first: Promise<void>): Promise<void> {
    for (let waiting: Pending = first; waiting !== undefined; waiting = this.#advance()) {
      await waiting;
      this.#take();
    }
  }

  /** Goes on until a segment is at hand, or a status must be waited for. */
  #advance(): Pending {
    for (;;) {
      const ready = this.#ready.shift();
      if (ready !== undefined) {
        this.current = ready;
        return undefined;
      }
      if (this.#end >= this.#source.size) {
        this.current = this.#start < this.#end ? this.#cut(this.#end) : undefined;
        return undefined;
      }
      const waiting = this.#source.seek(this.#end);
      if (waiting !== undefined) return waiting;
      this.#take();
    }
  }

  /** Adds what the source has just told of to the growing segment, or begins a new one. */
  #take(): void {
    const { kind, end } = this.#source;
    const { unit, wholeUnits, chunk } = this.#options;
    if (this.#start === this.#end) {
      this.#kind = kind;
      this.#end = end;
    } else if (kind === this.#kind) {
      this.#end = end;
    } else {
      const boundary = this.#end;
      const mixes = wholeUnits || (kind !== 'keep' && this.#kind !== 'keep');
      if (boundary % unit !== 0 && mixes) this.#mix(boundary, kind, end);
      else this.#begin(boundary, kind, end);
    }
    if (this.#kind === 'data' && this.#end - this.#start >= 2 * chunk) {
      const cut = alignDown(this.#end, chunk);
      if (cut > this.#start) this.#ready.push(this.#cut(cut));
    }
  }

  /** The unit around `boundary` has something of both sides: it becomes data. */
  #mix(boundary: number, kind: SegmentKind, end: number): void {
    const { unit } = this.#options;
    if (this.#kind !== 'data') {
      const low = Math.max(alignDown(boundary, unit), this.#start);
      if (low > this.#start) this.#ready.push(this.#cut(low));
      this.#kind = 'data';
    }
    const high = alignUp(boundary, unit);
    if (kind === 'data' || end <= high) this.#end = end;
    else this.#begin(high, kind, end);
  }

  /** Hands the growing segment out as far as `boundary`, and grows another from there. */
  #begin(boundary: number, kind: SegmentKind, end: number): void {
    this.#ready.push(this.#cut(boundary));
    this.#kind = kind;
    this.#end = end;
  }

  /** The growing segment's part before `at`; the rest goes on growing. */
  #cut(at: number): Segment {
    const segment = { kind: this.#kind, start: this.#start, end: at };
    this.#start = at;
    return segment;
  }
}
