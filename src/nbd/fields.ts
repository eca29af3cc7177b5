/** Fields of variable messages, read and written one after the other. Pure.
 *  Invariants: what a field announces is compared with what is there before it is looked at; texts are UTF-8, at most 4096 bytes. */
import { setU64 } from '../bytes/ints.ts';
import { LIMITS } from './constants.ts';
import { nbdFault } from './fault.ts';

const encoder = new TextEncoder();
const decoder = new TextDecoder('utf-8', { fatal: true });

export function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** A text as the wire carries it, cut at the end of a character where it is longer than a text may be. */
export function cutText(text: string): Uint8Array {
  const bytes = encoder.encode(text);
  if (bytes.length <= LIMITS.text) return bytes;
  const cut = new Uint8Array(LIMITS.text);
  return cut.subarray(0, encoder.encodeInto(text, cut).written);
}

/** Reads fields one after the other; what passes the end is the other side's mistake. */
export class Fields {
  readonly #bytes: Uint8Array;
  readonly #what: string;
  #at = 0;

  constructor(bytes: Uint8Array, what: string) {
    this.#bytes = bytes;
    this.#what = what;
  }

  get left(): number {
    return this.#bytes.length - this.#at;
  }

  u16(): number {
    return viewOf(this.take(2)).getUint16(0);
  }

  u32(): number {
    return viewOf(this.take(4)).getUint32(0);
  }

  take(length: number): Uint8Array {
    if (length > this.left) {
      throw nbdFault('short', `${this.#what}: ${length} bytes are announced where ${this.left} follow`, { length });
    }
    const bytes = this.#bytes.subarray(this.#at, this.#at + length);
    this.#at += length;
    return bytes;
  }

  /** A text with its length before it. */
  text(): string {
    return textOf(this.take(this.u32()), this.#what);
  }

  rest(): string {
    return textOf(this.take(this.left), this.#what);
  }

  end(): void {
    if (this.left > 0) throw nbdFault('long', `${this.#what}: ${this.left} bytes too many`);
  }
}

/** @throws {@link BlockError} PROTOCOL, reasons `nbd.text-length`, `nbd.text`. */
function textOf(bytes: Uint8Array, what: string): string {
  if (bytes.length > LIMITS.text) {
    throw nbdFault('text-length', `${what}: a text of ${bytes.length} bytes, at most ${LIMITS.text} are taken`);
  }
  try {
    return decoder.decode(bytes);
  } catch (error) {
    throw nbdFault('text', `${what}: a text is not UTF-8`, { cause: (error as Error).message });
  }
}

/** Puts fields one after the other. */
export class Bytes {
  readonly #parts: Uint8Array[] = [];

  u16(value: number): this {
    const bytes = new Uint8Array(2);
    viewOf(bytes).setUint16(0, value);
    this.#parts.push(bytes);
    return this;
  }

  u32(value: number): this {
    const bytes = new Uint8Array(4);
    viewOf(bytes).setUint32(0, value);
    this.#parts.push(bytes);
    return this;
  }

  u64(value: number): this {
    const bytes = new Uint8Array(8);
    setU64(viewOf(bytes), 0, value);
    this.#parts.push(bytes);
    return this;
  }

  text(text: string): this {
    const bytes = encoder.encode(text);
    this.u32(bytes.length);
    this.#parts.push(bytes);
    return this;
  }

  rest(text: string): this {
    this.#parts.push(encoder.encode(text));
    return this;
  }

  done(): Uint8Array {
    const bytes = new Uint8Array(this.#parts.reduce((sum, part) => sum + part.length, 0));
    let at = 0;
    for (const part of this.#parts) {
      bytes.set(part, at);
      at += part.length;
    }
    return bytes;
  }
}
