/** Compression whose bytes are the same on every machine and with every version of its libraries: runs of one byte are all that it finds. Owns
 *  the two encoders. Spec: RFC 1951, 3.2.6 (fixed Huffman codes); RFC 8878, 3.1.1.2 (blocks).
 *  Invariant: what it makes is read by every decoder. */
import type { Codecs, CompressedUnits, CompressionType } from './codecs.ts';

/** The codecs given, but that they compress plainly, and in this thread. */
export function plainCodecs(codecs: Codecs): Codecs {
  return {
    workers: codecs.workers,
    compress: async (type, input, unit) => compressPlainly(type, input, unit),
    decompress: (...args) => codecs.decompress(...args),
    sectors: (...args) => codecs.sectors(...args),
    digests: (...args) => codecs.digests(...args),
    digestsOfFile: (...args) => codecs.digestsOfFile(...args),
    close: () => codecs.close(),
  };
}

function compressPlainly(type: CompressionType, input: Uint8Array, unit: number): CompressedUnits {
  const count = input.length / unit;
  const starts = new Int32Array(count);
  const lengths = new Int32Array(count);
  const parts: Uint8Array[] = [];
  let end = 0;
  for (let i = 0; i < count; i++) {
    const plain = input.subarray(i * unit, (i + 1) * unit);
    const encoded = type === 'zstd' ? zstd(plain) : deflate(plain);
    starts[i] = end;
    if (encoded.length >= unit) continue;
    lengths[i] = encoded.length;
    parts.push(encoded);
    end += encoded.length;
  }
  const bytes = new Uint8Array(end);
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return { bytes, starts, lengths };
}

/** Where the run of equal bytes that begins at `at` ends. */
function endOfRun(bytes: Uint8Array, at: number): number {
  let end = at + 1;
  while (end < bytes.length && bytes[end] === bytes[at]) end++;
  return end;
}

const END_OF_BLOCK = 256;
/** The longest match, and its symbol; matches of 3 to 10 are the symbols from 257 on, without further bits. */
const LONGEST = 258;
const LONGEST_SYMBOL = 285;
const SHORTEST = 3;
const SHORT = 10;

class Bits {
  readonly bytes: number[] = [];
  #held = 0;
  #count = 0;

  /** The lowest bit first. */
  put(value: number, bits: number): void {
    for (let i = 0; i < bits; i++) {
      this.#held |= ((value >> i) & 1) << this.#count;
      if (++this.#count === 8) this.flush();
    }
  }

  /** A Huffman code: the highest bit first. */
  code(value: number, bits: number): void {
    for (let i = bits - 1; i >= 0; i--) this.put((value >> i) & 1, 1);
  }

  symbol(symbol: number): void {
    if (symbol < 144) this.code(0x30 + symbol, 8);
    else if (symbol < 256) this.code(0x190 + symbol - 144, 9);
    else if (symbol < 280) this.code(symbol - 256, 7);
    else this.code(0xc0 + symbol - 280, 8);
  }

  flush(): void {
    if (this.#count === 0) return;
    this.bytes.push(this.#held);
    this.#held = 0;
    this.#count = 0;
  }
}

/** One block with fixed codes; matches go one byte back. */
function deflate(plain: Uint8Array): Uint8Array {
  const bits = new Bits();
  bits.put(1, 1);
  bits.put(1, 2);
  for (let at = 0; at < plain.length; ) {
    const end = endOfRun(plain, at);
    bits.symbol(plain[at++] as number);
    while (end - at >= SHORTEST) {
      const length = end - at >= LONGEST ? LONGEST : Math.min(SHORT, end - at);
      bits.symbol(length === LONGEST ? LONGEST_SYMBOL : 257 + length - SHORTEST);
      bits.code(0, 5);
      at += length;
    }
  }
  bits.symbol(END_OF_BLOCK);
  bits.flush();
  return Uint8Array.from(bits.bytes);
}

const ZSTD_MAGIC = [0x28, 0xb5, 0x2f, 0xfd];
/** A single segment, the size of its content in 4 bytes. */
const DESCRIPTOR = 0xa0;
const MOST = 128 * 1024;
/** Below that a run is no block of its own. */
const RUN = 8;
const RAW = 0;
const RLE = 1;

function zstd(plain: Uint8Array): Uint8Array {
  const out = [...ZSTD_MAGIC, DESCRIPTOR, ...littleEndian(plain.length, 4)];
  for (let at = 0; at < plain.length; ) {
    const runEnd = Math.min(endOfRun(plain, at), at + MOST);
    const isRun = runEnd - at >= RUN;
    const end = isRun ? runEnd : endOfPlain(plain, at);
    const last = end === plain.length ? 1 : 0;
    out.push(...littleEndian(last + (isRun ? RLE : RAW) * 2 + (end - at) * 8, 3));
    if (isRun) out.push(plain[at] as number);
    else for (const byte of plain.subarray(at, end)) out.push(byte);
    at = end;
  }
  return Uint8Array.from(out);
}

/** Up to the next run, or as much as a block holds. */
function endOfPlain(plain: Uint8Array, at: number): number {
  let end = at;
  while (end < plain.length && end - at < MOST) {
    const next = endOfRun(plain, end);
    if (next - end >= RUN) break;
    end = next;
  }
  return Math.min(end, at + MOST);
}

function littleEndian(value: number, bytes: number): number[] {
  return Array.from({ length: bytes }, (_, i) => Math.floor(value / 256 ** i) % 256);
}
