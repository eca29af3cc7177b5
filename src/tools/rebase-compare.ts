/** The comparison of a rebase: walks over what the image does not hold, and makes it hold what the new backing file would show differently.
 *  Invariants: what both say is zero, or both have from the same file, is not read; whole units of the image are compared and written;
 *  every range that was dealt with is held by the image, or shows the same over either file. */
import { BlockError, isBlockError } from '../base/errors.ts';
import { type JobOptions, Pacer, throwIfAborted } from '../base/job.ts';
import { MiB } from '../base/sizes.ts';
import { alignDown, alignUp } from '../bytes/align.ts';
import { areEqual } from '../bytes/equal.ts';
import { isZero } from '../bytes/zeros.ts';
import type { BlockNode } from '../core/node.ts';
import type { WriteOptions } from '../core/store.ts';
import type { Image } from '../image/image.ts';
import { layerCursor } from './held-layers.ts';
import { StatusCursor } from './status-cursor.ts';

const CHUNK = 2 * MiB;

export interface ComparisonOptions {
  /** Layers of the old chain from this depth on are those of the new one. */
  readonly keepDepth: number;
  /** Whole clusters are stored compressed. */
  readonly compressed: boolean;
  readonly writeOptions: WriteOptions;
  readonly signal: AbortSignal | undefined;
  readonly onProgress: JobOptions['onProgress'] | undefined;
  readonly counts: { copied: number; zeroed: number };
}

export class Comparison {
  readonly #image: Image;
  readonly #base: BlockNode | undefined;
  readonly #options: ComparisonOptions;
  readonly #size: number;
  readonly #unit: number;
  readonly #chunk: number;
  readonly #own: StatusCursor;
  readonly #old: StatusCursor;
  readonly #new: StatusCursor | undefined;
  readonly #pacer = new Pacer();
  readonly #oldBytes: Uint8Array;
  readonly #newBytes: Uint8Array;

  constructor(image: Image, base: BlockNode | undefined, options: ComparisonOptions) {
    const { unit, zeroUnit } = image.node.format;
    this.#image = image;
    this.#base = base;
    this.#options = options;
    this.#size = image.virtualSize;
    this.#unit = options.compressed ? unit : Math.min(unit, zeroUnit);
    this.#chunk = alignUp(CHUNK, unit);
    this.#own = layerCursor(image.node);
    this.#old = new StatusCursor(image.node);
    this.#new = base === undefined ? undefined : new StatusCursor(base);
    this.#oldBytes = new Uint8Array(this.#chunk);
    this.#newBytes = new Uint8Array(this.#chunk);
  }

  async run(): Promise<void> {
    for (let at = 0; at < this.#size; ) {
      await this.#own.seek(at);
      const end = this.#own.end;
      if (this.#own.present) at = end;
      else at = await this.#settle(at, end);
      const { signal, onProgress } = this.#options;
      onProgress?.({ phase: 'rebase', done: at, total: this.#size });
      if (this.#pacer.due) await this.#pacer.pause(signal);
      else throwIfAborted(signal);
    }
  }

  #chunkEnd(at: number): number {
    return at - (at % this.#chunk) + this.#chunk;
  }

  /** Deals with what the image does not hold from `at` on. @returns how far. */
  async #settle(at: number, limit: number): Promise<number> {
    const { isSame, end } = await this.#statusAt(at);
    if (isSame) {
      // A unit that is the same in part only is compared whole.
      const whole = end >= limit ? limit : alignDown(end, this.#unit);
      if (whole > at) return whole;
    }
    return await this.#compare(at, Math.min(limit, this.#chunkEnd(at), alignUp(end, this.#unit)));
  }

  /** Whether old and new are known to show the same without being read, and how far that, or its opposite, goes. */
  async #statusAt(at: number): Promise<{ readonly isSame: boolean; readonly end: number }> {
    const old = this.#old;
    await this.#guard('read', 'old', at, () => old.seek(at));
    if (old.depth >= this.#options.keepDepth) return { isSame: true, end: old.end };
    const base = this.#base;
    if (base === undefined || at >= base.size) return { isSame: old.zero, end: old.end };
    await this.#guard('read', 'new', at, () => this.#new?.seek(at));
    return { isSame: old.zero && this.#new?.zero === true, end: Math.min(old.end, this.#new?.end ?? old.end) };
  }

  /** Compares what both backing files show, and writes the old content where the new one is different. */
  async #compare(at: number, limit: number): Promise<number> {
    const length = limit - at;
    const [before, after] = [this.#oldBytes.subarray(0, length), this.#newBytes.subarray(0, length)];
    await this.#guard('read', 'old', at, () => this.#image.node.read(at, before));
    const base = this.#base;
    const inside = base === undefined ? 0 : Math.max(0, Math.min(length, base.size - at));
    after.fill(0, inside);
    if (base !== undefined && inside > 0) {
      await this.#guard('read', 'new', at, () => base.read(at, after.subarray(0, inside)));
    }
    for (let from = 0; from < length; ) {
      const isSame = this.#isSame(before, after, at, from, length);
      let to = this.#unitEnd(at, from, length);
      while (to < length && this.#isSame(before, after, at, to, length) === isSame) to = this.#unitEnd(at, to, length);
      if (!isSame) await this.#write(at + from, before.subarray(from, to));
      from = to;
    }
    return limit;
  }

  /** End of the image's unit that `from` lies in; both relative to `at`. */
  #unitEnd(at: number, from: number, length: number): number {
    return Math.min(length, alignDown(at + from, this.#unit) + this.#unit - at);
  }

  #isSame(a: Uint8Array, b: Uint8Array, at: number, from: number, length: number): boolean {
    return areEqual(a, b, from, this.#unitEnd(at, from, length));
  }

  async #write(offset: number, bytes: Uint8Array): Promise<void> {
    const { counts, writeOptions } = this.#options;
    if (isZero(bytes) && (await this.#zero(offset, bytes.length)) && (await this.#holds(offset, bytes.length))) {
      counts.zeroed += bytes.length;
      return;
    }
    counts.copied += bytes.length;
    for (const [start, end, compressed] of this.#parts(offset, offset + bytes.length)) {
      const part = bytes.subarray(start - offset, end - offset);
      await this.#guard('write', 'old', start, () =>
        this.#image.node.write(start, part, compressed ? { ...writeOptions, compressed } : writeOptions),
      );
    }
  }

  /** What of a range is stored compressed, and what before and after it is not. */
  #parts(start: number, end: number): (readonly [start: number, end: number, compressed: boolean])[] {
    const { unit } = this.#image.node.format;
    const from = alignUp(start, unit);
    const to = end === this.#size ? end : alignDown(end, unit);
    if (!this.#options.compressed || from >= to) return [[start, end, false]];
    const parts = [[start, from, false] as const, [from, to, true] as const, [to, end, false] as const];
    return parts.filter(([first, last]) => first < last);
  }

  /** Marks zeros, where the format has marks: an engine that sees zeros there already would write none.
   *  @returns false when they must be written. */
  async #zero(offset: number, length: number): Promise<boolean> {
    const { node } = this.#image;
    const { zeroUnit } = node.format;
    const isWhole = (at: number): boolean => at % zeroUnit === 0 || at === this.#size;
    if (node.format.mapZeroes === undefined || !isWhole(offset) || !isWhole(offset + length)) return false;
    try {
      const options = { ...this.#options.writeOptions, fastOnly: true };
      await this.#guard('write', 'old', offset, () => node.writeZeroes(offset, length, options));
      return true;
    } catch (error) {
      if (isBlockError(error) && error.code === 'UNSUPPORTED') return false;
      throw error;
    }
  }

  /** Whether this layer says what is in the range: it is another file that lies below from now on. */
  async #holds(offset: number, length: number): Promise<boolean> {
    const cursor = layerCursor(this.#image.node);
    for (let at = offset; at < offset + length; at = cursor.end) {
      await cursor.seek(at);
      if (!cursor.present) return false;
    }
    return true;
  }

  /** @param side `new`: it is the new backing file that is asked. */
  async #guard(
    what: 'read' | 'write',
    side: 'old' | 'new',
    offset: number,
    run: () => Promise<void> | undefined,
  ): Promise<void> {
    try {
      await run();
    } catch (error) {
      if (!isBlockError(error) || error.code === 'ABORTED' || error.code === 'INTERNAL') throw error;
      const name = side === 'new' ? this.#base?.name : this.#image.name;
      throw new BlockError(error.code, `"${name}": could not ${what} at offset ${offset}: ${error.message}`, {
        reason: `rebase.${what}`,
        details: { name, offset, side, errno: error.details['errno'] },
        cause: error,
      });
    }
  }
}
