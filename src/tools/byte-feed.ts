/** Bytes in order, out of a store or a stream, so many at a time. Owns the buffer between pieces as they come and pieces as they are wanted.
 *  Invariant: memory is bounded by the largest piece asked for, and one piece of the stream. */
import { type JobOptions, throwIfAborted } from '../base/job.ts';
import { MiB } from '../base/sizes.ts';
import type { ByteStore } from '../core/store.ts';

/** Where bytes come from: a store is read from its beginning. */
export type ByteSource = ByteStore | AsyncIterable<Uint8Array>;

/** Streams have a `read`, too. */
export function isStore(source: ByteSource): source is ByteStore {
  return !(Symbol.asyncIterator in source);
}

/** Bytes of one read of a store. */
const PIECE = 1 * MiB;

export class ByteFeed {
  /** What messages call it. */
  readonly name: string;
  /** Bytes taken so far. */
  position = 0;
  readonly #pieces: AsyncIterator<Uint8Array>;
  readonly #signal: AbortSignal | undefined;
  #piece: Uint8Array = new Uint8Array(0);
  #used = 0;
  #joined = new Uint8Array(0);

  constructor(source: ByteSource, name: string, { signal }: JobOptions = {}) {
    this.name = name;
    this.#signal = signal;
    this.#pieces = (isStore(source) ? piecesOf(source) : source)[Symbol.asyncIterator]();
  }

  /** The next `length` bytes, fewer at the end. They are the feed's own, and of use until the next call. */
  async take(length: number): Promise<Uint8Array> {
    if (this.#piece.length - this.#used >= length) return this.#here(length);
    if (this.#joined.length < length) this.#joined = new Uint8Array(Math.max(length, 4096));
    let filled = 0;
    while (filled < length) {
      if (this.#used === this.#piece.length && !(await this.#more())) break;
      const part = this.#piece.subarray(this.#used, this.#used + length - filled);
      this.#joined.set(part, filled);
      this.#used += part.length;
      filled += part.length;
    }
    this.position += filled;
    return this.#joined.subarray(0, filled);
  }

  /** No more is wanted. */
  async close(): Promise<void> {
    await this.#pieces.return?.();
  }

  #here(length: number): Uint8Array {
    const bytes = this.#piece.subarray(this.#used, this.#used + length);
    this.#used += length;
    this.position += length;
    return bytes;
  }

  /** @returns whether there was another piece. */
  async #more(): Promise<boolean> {
    throwIfAborted(this.#signal);
    const next = await this.#pieces.next();
    if (next.done === true) return false;
    // A Buffer cuts without copying, which whoever keeps a part does not expect.
    const { buffer, byteOffset, length } = next.value;
    this.#piece = new Uint8Array(buffer, byteOffset, length);
    this.#used = 0;
    return true;
  }
}

async function* piecesOf(store: ByteStore): AsyncGenerator<Uint8Array, void, undefined> {
  const buffer = new Uint8Array(PIECE);
  for (let at = 0; at < store.size; ) {
    const piece = buffer.subarray(0, Math.min(PIECE, store.size - at));
    const reading = store.read(at, piece);
    if (reading !== undefined) await reading;
    at += piece.length;
    yield piece;
  }
}
