/** Hashes of equal units, each on its own: what checksums are made of. Runs in workers and in the main thread. */
import { builtin } from './builtin.ts';

/** Bytes of one digest. */
export const DIGEST_BYTES = 32;

export interface DigestRequest {
  /** Units laid end to end. */
  readonly input: Uint8Array;
  /** Bytes of one. */
  readonly unit: number;
  /** A byte in front of each unit, which keeps hashes of data apart from hashes of hashes. */
  readonly prefix: number;
}

/** Units that lie in a file one after the other. */
export interface FileDigestRequest {
  /** Number of the open file, which stays open meanwhile. */
  readonly descriptor: number;
  /** Bytes. */
  readonly offset: number;
  /** Bytes, a whole number of units; past the end of the file there are zeros. */
  readonly length: number;
  readonly unit: number;
  readonly prefix: number;
}

/** Bytes that are read at once: few enough to be in the processor's cache still when they are hashed. */
const PIECE = 128 * 1024;

let piece: Uint8Array | undefined;

/** @returns as {@link digestUnits} @throws the system's error. */
export function digestFile({ descriptor, offset, length, unit, prefix }: FileDigestRequest): Uint8Array {
  const { createHash } = builtin('node:crypto');
  const { readSync } = builtin('node:fs');
  piece ??= new Uint8Array(PIECE);
  const first = Uint8Array.of(prefix);
  const digests = new Uint8Array((length / unit) * DIGEST_BYTES);
  for (let at = 0; at < length; at += unit) {
    const hash = createHash('sha256').update(first);
    for (let done = 0; done < unit; ) {
      const wanted = Math.min(PIECE, unit - done);
      const got = readSync(descriptor, piece, 0, wanted, offset + at + done);
      if (got === 0) piece.fill(0, 0, wanted);
      const taken = got === 0 ? wanted : got;
      hash.update(taken === PIECE ? piece : piece.subarray(0, taken));
      done += taken;
    }
    digests.set(hash.digest(), (at / unit) * DIGEST_BYTES);
  }
  return digests;
}

/** @returns the SHA-256 of every unit, end to end. */
export function digestUnits({ input, unit, prefix }: DigestRequest): Uint8Array {
  const { createHash } = builtin('node:crypto');
  const first = Uint8Array.of(prefix);
  const count = input.length / unit;
  const digests = new Uint8Array(count * DIGEST_BYTES);
  for (let i = 0; i < count; i++) {
    const hash = createHash('sha256').update(first);
    digests.set(hash.update(input.subarray(i * unit, (i + 1) * unit)).digest(), i * DIGEST_BYTES);
  }
  return digests;
}
