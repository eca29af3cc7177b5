/** Sends many requests of one size to an image, some at a time: what a guest's load would look like. Owns the pattern of offsets, the depth and
 *  the flushes; no clock: the caller measures.
 *  Invariants: never more than `depth` requests run; when it ends, everything begun has ended; a request lies within the disk as a whole. */
import { settleAll } from '../base/async.ts';
import { BlockError } from '../base/errors.ts';
import { type JobOptions, Pacer, throwIfAborted } from '../base/job.ts';
import type { Image } from '../image/image.ts';

export interface BenchOptions extends JobOptions {
  readonly kind: 'read' | 'write';
  /** Requests in all. */
  readonly count: number;
  /** Requests at a time, 1 to {@link MOST_DEPTH}. */
  readonly depth: number;
  /** Bytes of each. */
  readonly length: number;
  /** Bytes from the beginning of one to that of the next; past the end of the disk it begins again at its start. */
  readonly step: number;
  /** Where the first begins. Default 0. */
  readonly offset?: number | undefined;
  /** The byte that is written. Default 0. */
  readonly pattern?: number | undefined;
  /** A flush after so many writes; at least `depth`. Default: none. */
  readonly flushEvery?: number | undefined;
  /** Flushes wait for the requests that run, and later ones wait for them. Default true. */
  readonly drain?: boolean | undefined;
  /** Every write is durable when it ends. Default false. */
  readonly writeThrough?: boolean | undefined;
}

export const MOST_DEPTH = 65_536;

/** Runs the requests. @throws {@link BlockError} INVALID_ARGUMENT, reason `bench.argument`; IO, reason `bench.range`, when a request does not fit the
 *  disk; READ_ONLY and whatever a request fails with. */
export async function benchImage(image: Image, options: BenchOptions): Promise<void> {
  requireSense(image, options);
  const { count, depth, signal } = options;
  const load = new Load(image, options);
  const lanes: Promise<void>[] = [];
  for (let i = 0; i < Math.min(depth, count); i++) lanes.push(load.lane());
  await settleAll(lanes);
  throwIfAborted(signal);
}

function requireSense(image: Image, options: BenchOptions): void {
  const { count, depth, length, step, offset = 0, pattern = 0, flushEvery } = options;
  const numbers = { count, depth, length, step, offset, pattern, flushEvery: flushEvery ?? depth };
  for (const [name, value] of Object.entries(numbers)) {
    const least = name === 'depth' || name === 'length' || name === 'step' ? 1 : name === 'flushEvery' ? depth : 0;
    const most = name === 'depth' ? MOST_DEPTH : name === 'pattern' ? 255 : Number.MAX_SAFE_INTEGER;
    if (Number.isSafeInteger(value) && value >= least && value <= most) continue;
    throw new BlockError('INVALID_ARGUMENT', `${name} ${value} is not between ${least} and ${most}`, {
      reason: 'bench.argument',
      details: { name, value },
    });
  }
  if (count > 0 && offset + length > image.virtualSize) {
    throw new BlockError(
      'IO',
      `"${image.name}": a request of ${length} bytes at ${offset} does not fit a disk of ${image.virtualSize} bytes`,
      { reason: 'bench.range', details: { offset, length, size: image.virtualSize, errno: 'EIO' } },
    );
  }
}

class Load {
  readonly #image: Image;
  readonly #options: BenchOptions;
  /** One for all: what is read is not looked at, and what is written is all the same. */
  readonly #bytes: Uint8Array;
  readonly #pacer = new Pacer();
  #at: number;
  #begun = 0;
  #ended = 0;
  #failed = false;
  /** While a flush that drains waits or runs. */
  #barrier: Promise<void> | undefined;
  #idle: (() => void) | undefined;

  constructor(image: Image, options: BenchOptions) {
    this.#image = image;
    this.#options = options;
    this.#bytes = new Uint8Array(options.length).fill(options.pattern ?? 0);
    this.#at = options.offset ?? 0;
  }

  /** Sends one request after the other until none is left, or one of any lane failed. */
  async lane(): Promise<void> {
    const { count, signal } = this.#options;
    while (this.#begun < count && !this.#failed) {
      if (this.#barrier !== undefined) {
        await this.#barrier;
        continue;
      }
      try {
        throwIfAborted(signal);
        await this.#request();
        if (this.#pacer.due) await this.#pacer.pause(signal);
      } catch (error) {
        this.#failed = true;
        throw error;
      }
    }
  }

  /** @returns nothing when it has ended at once */
  #request(): Promise<void> | undefined {
    const { flushEvery, drain = true } = this.#options;
    const number = ++this.#begun;
    const offset = this.#at;
    this.#at = this.#next(offset);
    const flushes = flushEvery !== undefined && number % flushEvery === 0;
    let pending: Promise<void> | undefined;
    try {
      pending = this.#send(offset);
    } catch (error) {
      // It has ended as well: a flush that drains counts on it.
      this.#end();
      throw error;
    }
    if (pending === undefined && !flushes) {
      this.#end();
      return undefined;
    }
    return this.#finish(pending, flushes, drain);
  }

  async #finish(pending: Promise<void> | undefined, flushes: boolean, drain: boolean): Promise<void> {
    let opened = (): void => undefined;
    if (flushes && drain) {
      this.#barrier = new Promise((resolve) => {
        opened = resolve;
      });
    }
    try {
      try {
        await pending;
      } finally {
        this.#end();
      }
      if (!flushes) return;
      if (drain && this.#ended < this.#begun) {
        await new Promise<void>((resolve) => {
          this.#idle = resolve;
        });
      }
      await this.#image.node.flush();
    } finally {
      if (flushes && drain) this.#barrier = undefined;
      opened();
    }
  }

  #send(offset: number): Promise<void> | undefined {
    const { kind, writeThrough } = this.#options;
    const { node, probedRaw } = this.#image;
    if (kind === 'read') return node.read(offset, this.#bytes);
    const options = writeThrough === true ? { fua: true } : {};
    return (probedRaw ? this.#image : node).write(offset, this.#bytes, options);
  }

  #end(): void {
    this.#ended++;
    this.#options.onProgress?.({ phase: 'bench', done: this.#ended, total: this.#options.count });
    if (this.#ended === this.#begun) this.#idle?.();
  }

  #next(offset: number): number {
    const { step, length } = this.#options;
    const room = this.#image.virtualSize - length;
    const next = offset + step;
    return next <= room ? next : room === 0 ? 0 : next % room;
  }
}
