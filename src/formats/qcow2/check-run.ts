/** One run of a check: its counters, its findings, its turns of the event loop. Shared by the passes; no knowledge of tables.
 *  Invariant: a counter changes only together with the finding it counts. */
import type { Pending } from '../../base/async.ts';
import { BlockError, errnoOf, isBlockError } from '../../base/errors.ts';
import { Pacer, throwIfAborted } from '../../base/job.ts';
import type { CheckFinding, CheckOptions, CheckResult } from '../../core/format.ts';
import type { ByteStore } from '../../core/store.ts';
import { INCOMPATIBLE } from './features.ts';
import type { Geometry } from './geometry.ts';
import { headerGeometry, type Qcow2Header, writeIncompatible } from './header.ts';

export interface CheckInput {
  /** Repair only what qemu-img repairs too: what is done without being asked, when a dirty image is opened. */
  readonly gentle?: boolean;
  /** The image file itself: caches above it have been flushed, and are reloaded after a repair. */
  readonly file: ByteStore;
  readonly header: Qcow2Header;
  readonly name: string;
}

export interface Counters {
  checkErrors: number;
  corruptions: number;
  leaks: number;
  corruptionsFixed: number;
  leaksFixed: number;
}

export interface AllocationCounters {
  allocated: number;
  fragmented: number;
  compressed: number;
}

const NO_COUNTS: Counters = { checkErrors: 0, corruptions: 0, leaks: 0, corruptionsFixed: 0, leaksFixed: 0 };

export class CheckRun {
  readonly file: ByteStore;
  readonly name: string;
  readonly geometry: Geometry;
  /** Repair leaked clusters. */
  readonly fixLeaks: boolean;
  /** Repair corruptions too. */
  readonly fixErrors: boolean;
  /** Repair what qemu-img leaves, too. */
  readonly mends: boolean;
  /** Replaced when a repair moves a table. */
  header: Qcow2Header;
  counts: Counters = { ...NO_COUNTS };
  /** Of the corruptions told so far, without the name of the format. */
  readonly reasons = new Set<string>();
  allocation: AllocationCounters = { allocated: 0, fragmented: 0, compressed: 0 };
  readonly #options: CheckOptions;
  readonly #pacer = new Pacer();
  #phase = '';
  #done = 0;
  #total = 0;

  constructor(input: CheckInput, options: CheckOptions) {
    this.file = input.file;
    this.name = input.name;
    this.header = input.header;
    this.geometry = headerGeometry(input.header);
    this.fixErrors = options.fix === 'all';
    this.fixLeaks = options.fix === 'all' || options.fix === 'leaks';
    this.mends = this.fixErrors && input.gentle !== true;
    this.#options = options;
  }

  /** The same run, repairing nothing; `adopt` takes its counters back. */
  withoutRepair(): CheckRun {
    const { fix: _fix, ...options } = this.#options;
    const run = new CheckRun({ file: this.file, header: this.header, name: this.name }, options);
    run.adopt(this);
    return run;
  }

  adopt(other: CheckRun): void {
    this.counts = other.counts;
    this.allocation = other.allocation;
  }

  /** Tells one finding. `message` is the line qemu-img prints; `details.reported`: with its name in front. */
  find(kind: CheckFinding['kind'], reason: string, message: string, details?: Readonly<Record<string, unknown>>): void {
    this.#options.onFinding?.({
      kind,
      reason: `qcow2.${reason}`,
      message,
      ...(details === undefined ? {} : { details }),
    });
  }

  /** A corruption that stays. */
  corruption(reason: string, message: string, details?: Readonly<Record<string, unknown>>): void {
    this.counts.corruptions++;
    this.reasons.add(reason);
    this.find('corruption', reason, message, details);
  }

  /** The corruption counted last is mended. */
  mended(): void {
    this.counts.corruptions--;
    this.counts.corruptionsFixed++;
  }

  /** Something kept the check from looking: counted, told, and the check goes on. */
  obstacle(reason: string, message: string, details?: Readonly<Record<string, unknown>>): void {
    this.counts.checkErrors++;
    this.find('error', reason, message, details);
  }

  /** Sets the corrupt bit, where the version has one: the image is not to be written to before a repair. */
  async markCorrupt(): Promise<void> {
    if (this.header.version < 3) return;
    this.header = { ...this.header, incompatible: this.header.incompatible | INCOMPATIBLE.corrupt };
    await writeIncompatible(this.file, this.header.incompatible);
    await this.file.flush();
  }

  /** The check cannot go on.
   *  @returns the error to throw; its errno is what qemu-img prints after `Check failed:`. */
  failure(what: string, errno: string, cause?: unknown): BlockError {
    return new BlockError(errno === 'EFBIG' ? 'TOO_LARGE' : 'CORRUPT', `qcow2 "${this.name}": check failed: ${what}`, {
      reason: 'qcow2.check-failed',
      details: { errno, ...this.counts },
      cause,
    });
  }

  /** As `failure`, after an error of the store that is told with `message` first. */
  ioFailure(message: string, cause: unknown, details?: Readonly<Record<string, unknown>>): unknown {
    // only what the store says is an I/O error: an abort, a bug or a failure that was told already goes through
    if (!isBlockError(cause) || cause.code === 'ABORTED' || cause.code === 'INTERNAL') return cause;
    if (cause.reason === 'qcow2.check-failed') return cause;
    this.obstacle('check-io', message, details);
    return new BlockError('IO', `qcow2 "${this.name}": check failed: ${cause.message}`, {
      reason: 'qcow2.check-failed',
      details: { errno: errnoOf(cause), ...this.counts },
      cause,
    });
  }

  /** Begins a stretch of work of `total` bytes.
   *  @throws {@link BlockError} ABORTED when the caller's signal has fired. */
  phase(name: string, total: number): void {
    throwIfAborted(this.#options.signal);
    this.#phase = name;
    this.#done = 0;
    this.#total = total;
  }

  flushFile(): Pending {
    return this.file.flush();
  }

  advance(bytes: number): void {
    this.#done = Math.min(this.#total, this.#done + bytes);
  }

  /** True when `rest` is to be awaited. */
  get restDue(): boolean {
    return this.#pacer.due;
  }

  /** Reports progress, gives the event loop its turn, and ends here when the caller's signal fired. */
  async rest(): Promise<void> {
    this.#options.onProgress?.({ phase: this.#phase, done: this.#done, total: this.#total });
    await this.#pacer.pause(this.#options.signal);
  }

  result(imageEndOffset: number): CheckResult {
    const { virtualSize } = this.header;
    return {
      ...this.counts,
      imageEndOffset,
      totalClusters: Math.ceil(virtualSize / this.geometry.clusterSize),
      allocatedClusters: this.allocation.allocated,
      fragmentedClusters: this.allocation.fragmented,
      compressedClusters: this.allocation.compressed,
    };
  }
}

/** A 64-bit table entry in hexadecimal, as C's `%lx`. */
export function entryHex(high: number, low: number): string {
  return high === 0 ? low.toString(16) : high.toString(16) + low.toString(16).padStart(8, '0');
}
