/** What has come in and is not used yet. Owns the chunks.
 *  Invariants: bytes are copied only where a header or a payload lies in two chunks; chunks are the inbox's for good, so that payloads may be
 *  parts of them. */

/** Bytes of the longest header. */
const SCRATCH = 64;

export class Inbox {
  readonly #chunks: Uint8Array[] = [];
  #at = 0;
  #length = 0;
  readonly #scratch = new DataView(new ArrayBuffer(SCRATCH));
  #first: DataView | undefined;
  /** Where {@link header} found it. */
  view: DataView = this.#scratch;
  viewAt = 0;

  /** Bytes. */
  get length(): number {
    return this.#length;
  }

  push(chunk: Uint8Array): void {
    if (chunk.length === 0) return;
    this.#chunks.push(chunk);
    this.#length += chunk.length;
  }

  clear(): void {
    this.#chunks.length = 0;
    this.#at = 0;
    this.#length = 0;
    this.#first = undefined;
  }

  /** Takes `length` bytes, 64 at most, and shows them at `viewAt` of `view` until the next call. @returns false when they are not all there */
  header(length: number): boolean {
    if (this.#length < length) return false;
    const chunk = this.#chunks[0] as Uint8Array;
    if (chunk.length - this.#at < length) {
      this.drain(new Uint8Array(this.#scratch.buffer, 0, length));
      this.view = this.#scratch;
      this.viewAt = 0;
      return true;
    }
    this.#first ??= new DataView(chunk.buffer, chunk.byteOffset, chunk.length);
    this.view = this.#first;
    this.viewAt = this.#at;
    this.#advance(chunk, length);
    return true;
  }

  /** Takes `length` bytes that lie together; `undefined` when they do not. */
  together(length: number): Uint8Array | undefined {
    const chunk = this.#chunks[0];
    if (chunk === undefined || chunk.length - this.#at < length) return undefined;
    const bytes = chunk.subarray(this.#at, this.#at + length);
    this.#advance(chunk, length);
    return bytes;
  }

  /** Takes what fits, and puts it into `into`. @returns bytes */
  drain(into: Uint8Array): number {
    let done = 0;
    while (done < into.length && this.#length > 0) {
      const chunk = this.#chunks[0] as Uint8Array;
      const length = Math.min(into.length - done, chunk.length - this.#at);
      into.set(chunk.subarray(this.#at, this.#at + length), done);
      this.#advance(chunk, length);
      done += length;
    }
    return done;
  }

  /** Drops up to `length` bytes. @returns how many */
  skip(length: number): number {
    let done = 0;
    while (done < length && this.#length > 0) {
      const chunk = this.#chunks[0] as Uint8Array;
      const some = Math.min(length - done, chunk.length - this.#at);
      this.#advance(chunk, some);
      done += some;
    }
    return done;
  }

  #advance(chunk: Uint8Array, length: number): void {
    this.#at += length;
    this.#length -= length;
    if (this.#at < chunk.length) return;
    this.#chunks.shift();
    this.#at = 0;
    this.#first = undefined;
  }
}
