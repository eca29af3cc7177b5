/** The mapping plane's currency: where a guest range lives. Internal to formats and the engine.
 *  Invariants: a RunList is contiguous from `guestStart`; neighbours that continue each other are one run;
 *  one list belongs to one request until everything that request started has ended. */
import { assert } from '../base/errors.ts';

/** `data`: host bytes, read as they are (or through the transform). `zero`: reads as zero, backing not asked.
 *  `unallocated`: the backing file decides. `encoded`: the format decodes it (compressed clusters). */
export type RunKind = 'data' | 'zero' | 'unallocated' | 'encoded';

/** One shape, always all fields, so that the engine's loops stay monomorphic. Bytes. */
export interface Run {
  kind: RunKind;
  guestOffset: number;
  length: number;
  /** Index into the node's children. */
  child: number;
  /** -1: none. A zero run that keeps its cluster carries it. For encoded runs: where the encoded bytes begin. */
  hostOffset: number;
  /** Upper bound of the encoded bytes; 0 for other kinds. */
  encodedLength: number;
  /** May be overwritten in place. */
  writable: boolean;
}

export class RunList {
  readonly #runs: Run[] = [];
  #count = 0;
  #start = 0;
  #end = 0;
  #limit = 0;
  readonly capacity: number;

  constructor(capacity = 64) {
    this.capacity = capacity;
  }

  get count(): number {
    return this.#count;
  }

  get guestStart(): number {
    return this.#start;
  }

  /** First guest offset not covered yet. */
  get guestEnd(): number {
    return this.#end;
  }

  /** End of the range that was asked. */
  get limit(): number {
    return this.#limit;
  }

  /** Bytes covered. */
  get bytes(): number {
    return this.#end - this.#start;
  }

  /** True when the asked range is covered. */
  get complete(): boolean {
    return this.#end >= this.#limit;
  }

  /** Empties the list for the range; runs pushed past its end are cut. */
  reset(guestStart: number, guestEnd: number): void {
    this.#count = 0;
    this.#start = guestStart;
    this.#end = guestStart;
    this.#limit = guestEnd;
  }

  at(index: number): Run {
    assert(index >= 0 && index < this.#count, `run ${index} of ${this.#count}`);
    return this.#runs[index] as Run;
  }

  /** Adds the next `length` guest bytes; joins them with the last run where they continue it.
   *  @returns false when the list is full or the asked range is covered: stop mapping. */
  push(kind: RunKind, length: number, child: number, hostOffset: number, writable: boolean): boolean {
    const clipped = Math.min(length, this.#limit - this.#end);
    if (clipped <= 0) return false;
    const last = this.#count > 0 ? (this.#runs[this.#count - 1] as Run) : undefined;
    if (
      last !== undefined &&
      last.kind === kind &&
      kind !== 'encoded' &&
      last.child === child &&
      last.writable === writable &&
      (hostOffset < 0 ? last.hostOffset < 0 : last.hostOffset >= 0 && last.hostOffset + last.length === hostOffset)
    ) {
      last.length += clipped;
      this.#end += clipped;
      return this.#end < this.#limit;
    }
    if (!this.#add(kind, clipped, child, hostOffset, 0, writable)) return false;
    return this.#end < this.#limit;
  }

  /** Adds (part of) one encoded unit; encoded runs never join. */
  pushEncoded(length: number, child: number, hostOffset: number, encodedLength: number): boolean {
    const clipped = Math.min(length, this.#limit - this.#end);
    if (clipped <= 0 || !this.#add('encoded', clipped, child, hostOffset, encodedLength, false)) return false;
    return this.#end < this.#limit;
  }

  #add(
    kind: RunKind,
    length: number,
    child: number,
    hostOffset: number,
    encodedLength: number,
    writable: boolean,
  ): boolean {
    if (this.#count >= this.capacity) return false;
    const slot = this.#runs[this.#count];
    if (slot === undefined) {
      this.#runs.push({ kind, guestOffset: this.#end, length, child, hostOffset, encodedLength, writable });
    } else {
      slot.kind = kind;
      slot.guestOffset = this.#end;
      slot.length = length;
      slot.child = child;
      slot.hostOffset = hostOffset;
      slot.encodedLength = encodedLength;
      slot.writable = writable;
    }
    this.#count++;
    this.#end += length;
    return true;
  }
}
