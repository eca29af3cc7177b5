/** What the beginning of a disk must read as: bytes that are known, and ranges that are not. */

/** So much of a disk is looked at, bytes. */
export const LOOKED_AT = 512 * 1024;

export class Expected {
  readonly #bytes: Uint8Array;
  /** 1 where a byte is known. */
  readonly #known: Uint8Array;
  #size: number;

  constructor(size: number) {
    this.#size = size;
    this.#bytes = new Uint8Array(LOOKED_AT);
    this.#known = new Uint8Array(LOOKED_AT);
  }

  get size(): number {
    return this.#size;
  }

  set(at: number, bytes: Uint8Array): void {
    if (at >= LOOKED_AT) return;
    const part = bytes.subarray(0, LOOKED_AT - at);
    this.#bytes.set(part, at);
    this.#known.fill(1, at, at + part.length);
  }

  forget(at: number, length: number): void {
    this.#known.fill(0, Math.min(at, LOOKED_AT), Math.min(at + length, LOOKED_AT));
  }

  /** Behind the old end there are zeros. */
  resize(size: number): void {
    if (size > this.#size && this.#size < LOOKED_AT)
      this.set(this.#size, new Uint8Array(Math.min(size, LOOKED_AT) - this.#size));
    this.#size = size;
  }

  copy(): Expected {
    const copy = new Expected(this.#size);
    copy.#bytes.set(this.#bytes);
    copy.#known.set(this.#known);
    return copy;
  }

  /** What it was then; nothing is known of what nobody has looked at. */
  become(other: Expected | undefined, size: number): void {
    if (other === undefined) this.#known.fill(0);
    else {
      this.#bytes.set(other.#bytes);
      this.#known.set(other.#known);
    }
    this.#size = size;
  }

  /** @returns the first byte of `found`, which begins at `at`, that is another than expected. */
  firstWrong(at: number, found: Uint8Array): number | undefined {
    for (let i = 0; i < found.length && at + i < Math.min(LOOKED_AT, this.#size); i++) {
      if (this.#known[at + i] === 1 && this.#bytes[at + i] !== found[i]) return at + i;
    }
    return undefined;
  }
}
