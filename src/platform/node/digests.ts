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
