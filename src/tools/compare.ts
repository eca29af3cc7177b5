/** Compares the contents of two images as `qemu-img compare` does.
 *  Invariants: what both say reads as zero is not read; a difference is told by the first 512-byte sector that has one. */
import { settleAll } from '../base/async.ts';
import { BlockError, isBlockError } from '../base/errors.ts';
import { type JobOptions, Pacer, throwIfAborted } from '../base/job.ts';
import { MiB } from '../base/sizes.ts';
import { areEqual } from '../bytes/equal.ts';
import { isZero } from '../bytes/zeros.ts';
import type { Image } from '../image/image.ts';
import { StatusCursor } from './status-cursor.ts';

export interface CompareOptions extends JobOptions {
  /** Sizes and allocation must be equal too. */
  readonly strict?: boolean;
}

export type CompareResult =
  | {
      readonly result: 'identical';
      /** The sizes differ, and the larger one's rest reads as zero. */
      readonly sizeMismatch: boolean;
    }
  | {
      readonly result: 'different';
      /** `content`: bytes differ in the 512-byte sector at `offset`; `status` (strict): allocation differs; `size` (strict): sizes differ. */
      readonly kind: 'content' | 'status' | 'size';
      /** Bytes; `undefined` for `size`. */
      readonly offset: number | undefined;
      /** The sizes differ, and that was found before the difference (QEMU prints its warning first). */
      readonly sizeMismatch: boolean;
    };

const CHUNK = 2 * MiB;
const SECTOR = 512;

/** Compares what a guest would read.
 *  @throws {@link BlockError} of reads with reason `compare.read`, of extents with reason `compare.extents`; details `{ name, offset }`, the error
 *  itself is `cause`; ABORTED. */
export async function compareImages(a: Image, b: Image, options: CompareOptions = {}): Promise<CompareResult> {
  const mismatch = a.virtualSize !== b.virtualSize;
  if (options.strict === true && mismatch) {
    return { result: 'different', kind: 'size', offset: undefined, sizeMismatch: true };
  }
  const comparison = new Comparison(new Side(a), new Side(b), options);
  return (await comparison.common()) ?? (await comparison.rest()) ?? { result: 'identical', sizeMismatch: mismatch };
}

/** One of the two images. */
class Side {
  readonly image: Image;
  readonly cursor: StatusCursor;
  #buffer: Uint8Array | undefined;

  constructor(image: Image) {
    this.image = image;
    this.cursor = new StatusCursor(image.node);
  }

  get size(): number {
    return this.image.virtualSize;
  }

  /** The first `length` bytes of this side's buffer. */
  bytes(length: number): Uint8Array {
    this.#buffer ??= new Uint8Array(CHUNK);
    return length === CHUNK ? this.#buffer : this.#buffer.subarray(0, length);
  }

  async seek(offset: number): Promise<void> {
    try {
      const pending = this.cursor.seek(offset);
      if (pending !== undefined) await pending;
    } catch (error) {
      throw this.#failure('compare.extents', 'could not find out what is allocated', offset, error);
    }
  }

  async read(offset: number, length: number): Promise<void> {
    try {
      const pending = this.image.node.read(offset, this.bytes(length));
      if (pending !== undefined) await pending;
    } catch (error) {
      throw this.#failure('compare.read', 'could not read', offset, error);
    }
  }

  #failure(reason: string, what: string, offset: number, cause: unknown): unknown {
    if (!isBlockError(cause) || cause.code === 'ABORTED') return cause;
    const { name } = this.image;
    return new BlockError(cause.code, `"${name}": ${what} at offset ${offset}: ${cause.message}`, {
      reason,
      details: { name, offset, errno: cause.details.errno },
      cause,
    });
  }
}

class Comparison {
  readonly #a: Side;
  readonly #b: Side;
  readonly #options: CompareOptions;
  readonly #total: number;
  readonly #pacer = new Pacer();

  constructor(a: Side, b: Side, options: CompareOptions) {
    this.#a = a;
    this.#b = b;
    this.#options = options;
    this.#total = Math.max(a.size, b.size);
  }

  /** The part that both have. */
  async common(): Promise<CompareResult | undefined> {
    const [a, b] = [this.#a, this.#b];
    const end = Math.min(a.size, b.size);
    for (let at = 0; at < end; ) {
      await a.seek(at);
      await b.seek(at);
      const [x, y] = [a.cursor, b.cursor];
      if (this.#options.strict === true && (x.flags !== y.flags || x.hasOffset !== y.hasOffset)) {
        return different('status', at, false);
      }
      let length = Math.min(x.end, y.end, end) - at;
      if (!(x.zero && y.zero) && (x.present || y.present)) {
        length = Math.min(length, CHUNK);
        const offset = await this.#firstDifference(at, length);
        if (offset !== undefined) return different('content', offset, false);
      }
      at += length;
      await this.#step(at);
    }
    return undefined;
  }

  /** The part that only the larger one has must read as zero. */
  async rest(): Promise<CompareResult | undefined> {
    const [a, b] = [this.#a, this.#b];
    const side = a.size > b.size ? a : b;
    for (let at = Math.min(a.size, b.size); at < side.size; ) {
      await side.seek(at);
      const { end, present, zero } = side.cursor;
      let length = end - at;
      if (present && !zero) {
        length = Math.min(length, CHUNK);
        await side.read(at, length);
        const offset = firstNonZeroSector(side.bytes(length));
        if (offset !== undefined) return different('content', at + offset, true);
      }
      at += length;
      await this.#step(at);
    }
    return undefined;
  }

  /** What reads as zero by its status is compared with zeros. */
  async #firstDifference(at: number, length: number): Promise<number | undefined> {
    const [a, b] = [this.#a, this.#b];
    const one = reads(a) ? (reads(b) ? undefined : a) : b;
    if (one === undefined) {
      await settleAll([a.read(at, length), b.read(at, length)]);
      const offset = firstDifferentSector(a.bytes(length), b.bytes(length));
      return offset === undefined ? undefined : at + offset;
    }
    await one.read(at, length);
    const offset = firstNonZeroSector(one.bytes(length));
    return offset === undefined ? undefined : at + offset;
  }

  async #step(done: number): Promise<void> {
    const { signal, onProgress } = this.#options;
    onProgress?.({ phase: 'compare', done, total: this.#total });
    if (this.#pacer.due) await this.#pacer.pause(signal);
    else throwIfAborted(signal);
  }
}

function reads(side: Side): boolean {
  return side.cursor.present && !side.cursor.zero;
}

function different(kind: 'content' | 'status', offset: number, sizeMismatch: boolean): CompareResult {
  return { result: 'different', kind, offset, sizeMismatch };
}

/** Offset of the first sector with a byte that is not zero. */
function firstNonZeroSector(bytes: Uint8Array): number | undefined {
  if (isZero(bytes)) return undefined;
  for (let at = 0; at < bytes.length; at += SECTOR) {
    if (!isZero(bytes, at, Math.min(at + SECTOR, bytes.length))) return at;
  }
  return undefined;
}

/** Offset of the first sector in which the two differ. */
function firstDifferentSector(a: Uint8Array, b: Uint8Array): number | undefined {
  if (areEqual(a, b, 0, a.length)) return undefined;
  let [start, end] = [0, a.length];
  while (end - start > SECTOR) {
    const middle = start + Math.ceil((end - start) / SECTOR / 2) * SECTOR;
    if (areEqual(a, b, start, middle)) start = middle;
    else end = middle;
  }
  return start;
}
