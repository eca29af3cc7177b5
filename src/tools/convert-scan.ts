/** The first of two passes over a disk whose image is written forward: which units hold data? Reads everything that may, keeps nothing.
 *  Invariants: what is said to be absent reads as zero, or shows the same through the backing file; the order of reads is that of the disk. */
import type { Pending } from '../base/async.ts';
import { type JobOptions, Pacer } from '../base/job.ts';
import { MiB } from '../base/sizes.ts';
import { alignUp } from '../bytes/align.ts';
import { isZero } from '../bytes/zeros.ts';
import { BufferPool } from '../core/buffer-pool.ts';
import { Copier } from '../core/copier.ts';
import { UnitMap } from '../core/forward.ts';
import { Planner, type Segment } from './convert-plan.ts';
import type { CopySource } from './convert-source.ts';

export interface ScanOptions extends JobOptions {
  /** Size of the new disk, bytes: at least that of the source, where there is no backing file. */
  readonly size: number;
  readonly unit: number;
  /** Bytes of the backing file, where there is one: zeros before that must be marked. */
  readonly backingSize: number;
  readonly marksZeroes: boolean;
  /** Bytes; 0: everything is data, and nothing is read. */
  readonly sparseSize: number;
  readonly parallel: number;
}

/** Bytes of the disk, by what will become of them. */
export interface ScanCounts {
  copied: number;
  zeroed: number;
  kept: number;
}

const CHUNK = 2 * MiB;

export class Scan {
  readonly units: UnitMap;
  readonly counts: ScanCounts = { copied: 0, zeroed: 0, kept: 0 };
  readonly #source: CopySource;
  readonly #options: ScanOptions;
  /** Zeros that are data when they turn out to be too few: the unit where they begin. */
  #zerosFrom: number | undefined;
  /** Where the data at hand begin: what lies before is zero anyway. */
  #dataFrom = 0;

  constructor(source: CopySource, options: ScanOptions) {
    this.#source = source;
    this.#options = options;
    this.units = new UnitMap(options.size, options.unit);
  }

  async run(): Promise<void> {
    const { unit, parallel, signal, sparseSize } = this.#options;
    const chunk = alignUp(CHUNK, unit);
    const planner = new Planner(this.#source, { unit, wholeUnits: true, chunk });
    const copier = new Copier({
      buffers: new BufferPool({ size: chunk, count: parallel }),
      order: 'serial',
      read: (offset, into) => this.#source.read(offset, into),
      write: (offset, from) => this.#look(offset, from),
      signal,
    });
    let failure: { readonly error: unknown } | undefined;
    try {
      const pacer = new Pacer();
      for (;;) {
        const waiting = planner.next();
        if (waiting !== undefined) await waiting;
        const segment = planner.current;
        if (segment === undefined) break;
        const { kind, start, end } = segment;
        if (kind === 'keep') this.counts.kept += end - start;
        else if (sparseSize === 0) this.#mark(start, end, 'data');
        else if (kind === 'zero') this.#mark(start, end, 'zero');
        else await this.#read(segment, copier, chunk, pacer);
        this.#progress(end);
        if (pacer.due) await pacer.pause(signal);
      }
    } catch (error) {
      failure = { error };
    }
    try {
      await copier.finish();
    } catch (error) {
      failure ??= { error };
    }
    if (failure !== undefined) throw failure.error;
  }

  async #read({ start, end }: Segment, copier: Copier, chunk: number, pacer: Pacer): Promise<void> {
    this.#dataFrom = start;
    for (let at = start; at < end; ) {
      const length = Math.min(end, at - (at % chunk) + chunk) - at;
      const full = copier.copy(at, length);
      if (full !== undefined) await full;
      at += length;
      this.#progress(at);
      if (pacer.due) await pacer.pause(this.#options.signal);
    }
    await copier.finish();
    if (this.#zerosFrom !== undefined) this.#mark(this.#zerosFrom, end, 'zero');
    this.#zerosFrom = undefined;
  }

  /** Looks at data, unit by unit. A run of zeros between data that is too short is data. */
  #look(offset: number, from: Uint8Array): Pending {
    const { unit, sparseSize } = this.#options;
    for (let at = 0; at < from.length; at += unit) {
      const end = Math.min(from.length, at + unit);
      const place = offset + at;
      if (isZero(from, at, end)) {
        this.#zerosFrom ??= place;
        continue;
      }
      const began = this.#zerosFrom;
      const short = began !== undefined && place - began < sparseSize && began > this.#dataFrom;
      if (began !== undefined) this.#mark(began, place, short ? 'data' : 'zero');
      this.#zerosFrom = undefined;
      this.#mark(place, offset + end, 'data');
    }
    return undefined;
  }

  /** Both ends are those of units, or of the disk. */
  #mark(start: number, end: number, kind: 'data' | 'zero'): void {
    if (start >= end) return;
    const { unit, backingSize, marksZeroes } = this.#options;
    const first = Math.floor(start / unit);
    const count = Math.ceil(end / unit) - first;
    const inSource = Math.max(0, Math.min(end, this.#source.size) - start);
    if (kind === 'data') {
      this.counts.copied += inSource;
      this.units.mark(first, count, 'data');
      return;
    }
    this.counts.zeroed += inSource;
    // Past the backing file nothing shows.
    const shown = Math.min(count, Math.ceil(backingSize / unit) - first);
    if (shown > 0) this.units.mark(first, shown, marksZeroes ? 'zero' : 'data');
  }

  #progress(done: number): void {
    const { size } = this.#source;
    this.#options.onProgress?.({ phase: 'convert', done: Math.floor(done / 2), total: size });
  }
}
