/** The copying of a conversion: takes the plan's segments, reads, looks for zeros, writes. Owns buffers and the order of writes.
 *  Invariants: memory is bounded by the buffers, whatever the size of the disk; whole units of the target are written where data
 *  touches them; a range that the target shows as zero already is not written; at the end everything begun has ended. */
import { type Pending, settleAll } from '../base/async.ts';
import { type JobOptions, Pacer, throwIfAborted } from '../base/job.ts';
import { MiB } from '../base/sizes.ts';
import { alignUp } from '../bytes/align.ts';
import { isZero } from '../bytes/zeros.ts';
import { BufferPool } from '../core/buffer-pool.ts';
import { Copier, type CopierOptions } from '../core/copier.ts';
import type { BlockNode } from '../core/node.ts';
import type { IoOptions, WriteOptions } from '../core/store.ts';
import type { Image } from '../image/image.ts';
import { Planner, type Segment } from './convert-plan.ts';
import type { CopySource } from './convert-source.ts';
import { writeError } from './convert-target.ts';
import { RateLimit } from './rate-limit.ts';

export interface CopySettings extends JobOptions {
  readonly target: BlockNode;
  /** What messages call it. */
  readonly targetName: string;
  /** Set where the target's format was guessed: the image itself looks at what is written to its beginning. */
  readonly guard: Image | undefined;
  readonly compressed: boolean;
  /** Bytes; 0: everything is written. */
  readonly sparseSize: number;
  /** Ranges that were not written read as zero. */
  readonly targetIsZero: boolean;
  /** Past this offset, what was not written reads as zero even with a backing file. */
  readonly backingSize: number;
  readonly parallel: number;
  readonly outOfOrder: boolean;
  /** Every write is made durable. */
  readonly writeThrough: boolean;
  readonly rateLimit: number | undefined;
  /** Makes room for the disk up to `end`, where its size is not known before. */
  readonly makeRoom?: ((end: number) => Pending) | undefined;
  /** Buffers that worker threads can use without copying them. */
  readonly sharedBuffers: boolean;
}

/** Bytes of the disk by what became of them. */
export interface CopyCounts {
  copied: number;
  zeroed: number;
  kept: number;
}

const CHUNK = 2 * MiB;
/** Zeros are asked for in pieces, so that progress and interruptions have their turn. */
const ZERO_STEP = 256 * MiB;

export class DiskCopy {
  readonly counts: CopyCounts = { copied: 0, zeroed: 0, kept: 0 };
  readonly #source: CopySource;
  readonly #settings: CopySettings;
  readonly #planner: Planner;
  readonly #copier: Copier;
  readonly #chunk: number;
  /** Pieces that are looked at for zeros, bytes: aligned to their own size. */
  readonly #piece: number;
  /** Zeros shorter than that are data; 0: all are. */
  readonly #sparseSize: number;
  readonly #limit: RateLimit | undefined;
  readonly #pacer = new Pacer();
  readonly #writeOptions: WriteOptions;
  /** The writes of one buffer run together. */
  readonly #together: boolean;

  constructor(source: CopySource, settings: CopySettings) {
    const { compressed, target, writeThrough, rateLimit } = settings;
    this.#source = source;
    this.#settings = settings;
    const unit = targetUnit(target, compressed);
    this.#chunk = alignUp(CHUNK, unit);
    // Where zeros must be written like anything else, it is of no use to look for them.
    this.#sparseSize = settings.targetIsZero || target.supports.writeZeroes === 'fast' ? settings.sparseSize : 0;
    this.#piece = compressed ? unit : Math.max(unit, 2 ** Math.floor(Math.log2(Math.max(this.#sparseSize, 512))));
    this.#planner = new Planner(source, { unit, wholeUnits: compressed, chunk: this.#chunk });
    this.#limit = rateLimit === undefined ? undefined : new RateLimit(rateLimit);
    const order = orderOf(settings, unit);
    // Two threads are busy where one of the two runs elsewhere: the writes where many may run at once, else the reads.
    const writesElsewhere = order !== 'serial';
    this.#writeOptions = {
      ...(compressed ? { compressed: true } : { thread: writesElsewhere ? 'pool' : 'this' }),
      ...(writeThrough ? { fua: true } : {}),
    };
    this.#together = order === 'started';
    const readOptions: IoOptions = { thread: writesElsewhere && !compressed ? 'this' : 'pool' };
    this.#copier = new Copier({
      buffers: new BufferPool({ size: this.#chunk, count: settings.parallel, shared: settings.sharedBuffers }),
      order,
      read: (offset, into) => source.read(offset, into, readOptions),
      write: (offset, from) => this.#store(offset, from),
      signal: settings.signal,
    });
  }

  /** Copies everything. When it fails, everything begun has ended, too. */
  async run(): Promise<void> {
    let failure: { readonly error: unknown } | undefined;
    try {
      await this.#segments();
    } catch (error) {
      failure = { error };
    }
    try {
      await this.#copier.finish();
    } catch (error) {
      failure ??= { error };
    }
    if (failure !== undefined) throw failure.error;
  }

  async #segments(): Promise<void> {
    this.#progress(0);
    for (;;) {
      const waiting = this.#planner.next();
      if (waiting !== undefined) await waiting;
      const segment = this.#planner.current;
      if (segment === undefined) break;
      // Without sparse detection everything is to be allocated: zeros are read and written like any data.
      const isData = segment.kind === 'data' || (segment.kind === 'zero' && this.#sparseSize === 0);
      if (isData) await this.#data(segment);
      else if (segment.kind === 'zero') await this.#zero(segment);
      else this.counts.kept += segment.end - segment.start;
      this.#progress(segment.end);
      if (this.#pacer.due) await this.#pacer.pause(this.#settings.signal);
    }
    // Of a stream the size is known now.
    this.#progress(this.#source.size);
  }

  async #data({ start, end }: Segment): Promise<void> {
    const { signal } = this.#settings;
    for (let at = start; at < end; ) {
      const length = Math.min(end, at - (at % this.#chunk) + this.#chunk) - at;
      const limited = this.#limit?.take(length, signal);
      if (limited !== undefined) await limited;
      const room = this.#settings.makeRoom?.(at + length);
      if (room !== undefined) await room;
      const waiting = this.#copier.copy(at, length);
      if (waiting !== undefined) await waiting;
      at += length;
      this.#progress(at);
      if (this.#pacer.due) await this.#pacer.pause(signal);
    }
  }

  async #zero({ start, end }: Segment): Promise<void> {
    this.counts.zeroed += end - start;
    const stop = this.#isZeroAlready(end - 1) ? Math.max(start, Math.min(end, this.#settings.backingSize)) : end;
    if (this.#isZeroAlready(start)) return;
    // In order: a pipe takes nothing else, and images are the same on every run.
    if (!this.#settings.outOfOrder) await this.#copier.finish();
    for (let at = start; at < stop; ) {
      throwIfAborted(this.#settings.signal);
      const length = Math.min(stop - at, ZERO_STEP);
      const pending = this.#writeZeroes(at, length);
      if (pending !== undefined) await pending;
      at += length;
      this.#progress(at);
      if (this.#pacer.due) await this.#pacer.pause(this.#settings.signal);
    }
  }

  /** Whether the target reads as zero at `offset` when nothing is written there. */
  #isZeroAlready(offset: number): boolean {
    const { targetIsZero, backingSize } = this.#settings;
    return targetIsZero && offset >= backingSize;
  }

  /** One buffer's worth of data, without its zeros. */
  #store(offset: number, from: Uint8Array): Pending {
    if (this.#together) return this.#storeTogether(offset, from);
    const pending = this.#storeFrom(offset, from, 0);
    return pending === undefined ? undefined : this.#storeRest(pending, offset, from);
  }

  /** Begins every write now: what is compressed is stored in the order in which its writes began, whatever time each of them takes. */
  #storeTogether(offset: number, from: Uint8Array): Pending {
    const pendings: Pending[] = [];
    try {
      for (let at = 0; at < from.length; at = this.#storedTo) {
        const pending = this.#storeFrom(offset, from, at);
        if (pending !== undefined) pendings.push(pending);
      }
    } catch (error) {
      if (pendings.length === 0) throw error;
      pendings.push(Promise.reject(error));
    }
    return pendings.length === 0 ? undefined : settleAll(pendings);
  }

  /** Goes on after a write that had to be waited for, one after the other. */
  async #storeRest(first: Promise<void>, offset: number, from: Uint8Array): Promise<void> {
    let waiting: Pending = first;
    while (waiting !== undefined) {
      const next = this.#storedTo;
      await waiting;
      waiting = next < from.length ? this.#storeFrom(offset, from, next) : undefined;
    }
  }

  /** How far the last call of `#storeFrom` came. Read it before anything else runs. */
  #storedTo = 0;

  /** Writes run after run until something must be waited for. */
  #storeFrom(offset: number, from: Uint8Array, start: number): Pending {
    for (let at = start; at < from.length; ) {
      const end = this.#runEnd(offset, from, at);
      const whole = at === 0 && end === from.length;
      const pending = this.#runIsZero
        ? this.#zeroPiece(offset + at, end - at)
        : this.#write(offset + at, whole ? from : from.subarray(at, end));
      at = end;
      this.#storedTo = at;
      if (pending !== undefined) return pending;
    }
    return undefined;
  }

  /** What the last call of `#runEnd` found. */
  #runIsZero = false;

  /** End of the run of zero pieces, or of others, that begins at `start`. A zero run between data that is too short is data;
   *  at the ends of the buffer any zero piece is zero. */
  #runEnd(offset: number, from: Uint8Array, start: number): number {
    const sparseSize = this.#sparseSize;
    this.#runIsZero = false;
    if (sparseSize === 0) return from.length;
    let at = this.#pieceEnd(offset, from, start);
    if (isZero(from, start, at)) {
      this.#runIsZero = true;
      return this.#zeroEnd(offset, from, at);
    }
    while (at < from.length) {
      const next = this.#pieceEnd(offset, from, at);
      if (isZero(from, at, next)) {
        const end = this.#zeroEnd(offset, from, next);
        if (end === from.length || end - at >= sparseSize) return at;
        at = end;
      } else at = next;
    }
    return at;
  }

  #zeroEnd(offset: number, from: Uint8Array, start: number): number {
    let at = start;
    while (at < from.length) {
      const next = this.#pieceEnd(offset, from, at);
      if (!isZero(from, at, next)) break;
      at = next;
    }
    return at;
  }

  #pieceEnd(offset: number, from: Uint8Array, at: number): number {
    const piece = this.#piece;
    return Math.min(from.length, at + piece - ((offset + at) % piece));
  }

  #zeroPiece(offset: number, length: number): Pending {
    this.counts.zeroed += length;
    return this.#isZeroAlready(offset) ? undefined : this.#writeZeroes(offset, length);
  }

  #write(offset: number, from: Uint8Array): Pending {
    this.counts.copied += from.length;
    try {
      const { target, guard } = this.#settings;
      const pending = (guard !== undefined && offset < CHUNK ? guard : target).write(offset, from, this.#writeOptions);
      return pending === undefined ? undefined : this.#told(pending, offset);
    } catch (error) {
      throw writeError(this.#settings.targetName, offset, error);
    }
  }

  #writeZeroes(offset: number, length: number): Pending {
    const { target, writeThrough } = this.#settings;
    const options = { unmap: true, ...(writeThrough ? { fua: true } : {}) };
    try {
      const pending = target.writeZeroes(offset, length, options);
      return pending === undefined ? undefined : this.#told(pending, offset);
    } catch (error) {
      throw writeError(this.#settings.targetName, offset, error);
    }
  }

  async #told(pending: Promise<void>, offset: number): Promise<void> {
    try {
      await pending;
    } catch (error) {
      throw writeError(this.#settings.targetName, offset, error);
    }
  }

  #progress(done: number): void {
    this.#settings.onProgress?.({ phase: 'convert', done, total: this.#source.size });
  }
}

/** Without units nothing is allocated, so that writes may run together; else they decide where things lie, and the image is to be the same
 *  on every run. A pipe takes its bytes in order. */
function orderOf(settings: CopySettings, unit: number): CopierOptions['order'] {
  if (settings.target.supports.access === 'forward') return 'serial';
  if (settings.outOfOrder) return 'free';
  if (settings.compressed) return 'started';
  // A guarded target may refuse the first write: nothing else is to be written by then.
  const together = unit === 1 && settings.guard === undefined;
  return together ? 'started' : 'serial';
}

/** What the target writes best at once: what it marks as zero, or for compression what it compresses. */
function targetUnit(target: BlockNode, compressed: boolean): number {
  const format = target.format;
  if (format === undefined) return 1;
  // What is encrypted is written in whole sectors: a pipe cannot give the rest of one back.
  if (target.supports.access === 'forward') return format.transform?.sector ?? 1;
  return compressed ? format.unit : Math.min(format.zeroUnit, CHUNK);
}
