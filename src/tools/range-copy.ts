/** Ranges copied and zeroed in order, for jobs that move parts of a disk into a writable image. Owns buffers, pace and the place of errors.
 *  Invariants: memory is bounded by the buffers; zeros are asked for in steps, so that progress and interruptions have their turn;
 *  when `finish` has ended, everything begun has ended. */
import type { Pending } from '../base/async.ts';
import { BlockError, isBlockError } from '../base/errors.ts';
import { type JobOptions, Pacer, throwIfAborted } from '../base/job.ts';
import { MiB } from '../base/sizes.ts';
import { alignUp } from '../bytes/align.ts';
import { BufferPool } from '../core/buffer-pool.ts';
import { Copier } from '../core/copier.ts';
import type { BlockNode } from '../core/node.ts';
import type { WriteOptions } from '../core/store.ts';
import type { Image } from '../image/image.ts';
import { RateLimit } from './rate-limit.ts';

const CHUNK = 2 * MiB;
const ZERO_STEP = 256 * MiB;
const BUFFERS = 8;

export interface RangeCopyOptions {
  /** Name of the job, for progress and for the reasons of errors (`commit.read`). */
  readonly job: 'commit' | 'detach';
  readonly source: BlockNode;
  readonly target: Image;
  /** Bytes that `total` of the progress says. */
  readonly total: number;
  /** Every write is durable when it ends. */
  readonly writeThrough: boolean;
  /** Bytes per second at most. */
  readonly rateLimit: number | undefined;
  readonly signal: AbortSignal | undefined;
  readonly onProgress: JobOptions['onProgress'] | undefined;
}

export class RangeCopy {
  /** Bytes. */
  readonly counts = { copied: 0, zeroed: 0 };
  readonly #options: RangeCopyOptions;
  readonly #chunk: number;
  readonly #copier: Copier;
  readonly #limit: RateLimit | undefined;
  readonly #pacer = new Pacer();
  readonly #writeOptions: WriteOptions;
  /** Where a guessed raw image looks at what is written to it. */
  readonly #target: Pick<BlockNode, 'write'>;

  constructor(options: RangeCopyOptions) {
    const { source, target, rateLimit, writeThrough, signal } = options;
    const unit = target.node.format?.unit ?? 1;
    this.#options = options;
    this.#chunk = alignUp(CHUNK, unit);
    this.#limit = rateLimit === undefined ? undefined : new RateLimit(rateLimit);
    this.#writeOptions = writeThrough ? { fua: true } : {};
    this.#target = target.probedRaw ? target : target.node;
    this.#copier = new Copier({
      buffers: new BufferPool({ size: this.#chunk, count: BUFFERS }),
      // Where the target allocates, the order of writes is the order of the disk: the same on every run.
      order: unit === 1 && !target.probedRaw ? 'started' : 'serial',
      read: (offset, into) => this.#guard('read', offset, () => source.read(offset, into)),
      write: (offset, from) => this.#guard('write', offset, () => this.#target.write(offset, from, this.#writeOptions)),
      signal,
    });
  }

  /** Copies `[start, end)`. */
  async copy(start: number, end: number): Promise<void> {
    const { signal } = this.#options;
    this.counts.copied += end - start;
    for (let at = start; at < end; ) {
      const length = Math.min(end, at - (at % this.#chunk) + this.#chunk) - at;
      const limited = this.#limit?.take(length, signal);
      if (limited !== undefined) await limited;
      const waiting = this.#copier.copy(at, length);
      if (waiting !== undefined) await waiting;
      at += length;
      await this.step(at);
    }
  }

  /** Makes `[start, end)` of the target read as zero. */
  async zero(start: number, end: number): Promise<void> {
    const { target } = this.#options;
    this.counts.zeroed += end - start;
    await this.#copier.finish();
    for (let at = start; at < end; ) {
      const length = Math.min(end - at, ZERO_STEP);
      const options = { ...this.#writeOptions, unmap: true };
      await this.#guard('write', at, () => target.node.writeZeroes(at, length, options));
      at += length;
      await this.step(at);
    }
  }

  /** Tells how far the job is, and lets others have their turn. */
  async step(done: number): Promise<void> {
    const { job, total, signal, onProgress } = this.#options;
    onProgress?.({ phase: job, done, total });
    if (this.#pacer.due) await this.#pacer.pause(signal);
    else throwIfAborted(signal);
  }

  /** Waits for everything that was begun.
   *  @throws the first failure. */
  finish(): Promise<void> {
    return this.#copier.finish();
  }

  #guard(what: 'read' | 'write', offset: number, run: () => Pending): Pending {
    try {
      const pending = run();
      return pending === undefined ? undefined : this.#told(pending, what, offset);
    } catch (error) {
      throw this.#error(error, what, offset);
    }
  }

  async #told(pending: Promise<void>, what: 'read' | 'write', offset: number): Promise<void> {
    try {
      await pending;
    } catch (error) {
      throw this.#error(error, what, offset);
    }
  }

  #error(cause: unknown, what: 'read' | 'write', offset: number): unknown {
    if (!isBlockError(cause) || cause.code === 'ABORTED' || cause.code === 'INTERNAL') return cause;
    const { job, source, target } = this.#options;
    const name = what === 'read' ? source.name : target.name;
    return new BlockError(cause.code, `"${name}": could not ${what} at offset ${offset}: ${cause.message}`, {
      reason: `${job}.${what}`,
      details: { name, offset, errno: cause.details['errno'] },
      cause,
    });
  }
}
