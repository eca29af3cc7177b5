/** Transfer buffers, made once and used again. Owns their memory; whoever takes one gives it back when its I/O has ended.
 *  Invariant: never more than `count` buffers exist. */
import { assert } from '../base/errors.ts';

export interface BufferPoolOptions {
  /** Bytes of one buffer. */
  readonly size: number;
  readonly count: number;
  /** Over SharedArrayBuffers, so that worker threads read them without a copy. */
  readonly shared?: boolean;
}

export class BufferPool {
  readonly size: number;
  readonly count: number;
  readonly #shared: boolean;
  readonly #free: Uint8Array[] = [];
  #made = 0;
  #taken = 0;

  constructor(options: BufferPoolOptions) {
    this.size = options.size;
    this.count = options.count;
    this.#shared = options.shared === true && typeof SharedArrayBuffer === 'function';
  }

  /** Buffers out at the moment. */
  get taken(): number {
    return this.#taken;
  }

  /** A buffer with old content; `undefined` when all are taken. */
  take(): Uint8Array | undefined {
    let buffer = this.#free.pop();
    if (buffer === undefined) {
      if (this.#made >= this.count) return undefined;
      this.#made++;
      buffer = new Uint8Array(this.#shared ? new SharedArrayBuffer(this.size) : new ArrayBuffer(this.size));
    }
    this.#taken++;
    return buffer;
  }

  give(buffer: Uint8Array): void {
    assert(buffer.length === this.size && this.#taken > 0, 'a buffer came back that was not taken');
    this.#taken--;
    this.#free.push(buffer);
  }
}
