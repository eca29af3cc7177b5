/** Anti-forensic splitting: a key stored in thousands of stripes, all of which are needed to put it together, so that overwriting any one of
 *  them destroys it. Spec: LUKS on-disk format 1.2.3, section 2.4 (TKS1). The diffusion is a hash of each digest-long piece with its number. */
import { digestBytes } from './algorithms.ts';
import type { CryptoProvider } from './provider.ts';

/** Splits `key` into `stripes` stripes, as long as the key each, end to end in the result. */
export function splitKey(key: Uint8Array, stripes: number, hash: string, provider: CryptoProvider): Uint8Array {
  const length = key.length;
  const split = new Uint8Array(length * stripes);
  const last = split.subarray(length * (stripes - 1));
  provider.fillRandom(split.subarray(0, length * (stripes - 1)));
  fold(split, length, stripes, hash, provider, last);
  xorInto(last, key);
  return split;
}

/** Puts the key together again; nothing tells whether it is the right one. */
export function mergeKey(
  split: Uint8Array,
  length: number,
  stripes: number,
  hash: string,
  provider: CryptoProvider,
): Uint8Array {
  const key = new Uint8Array(length);
  fold(split, length, stripes, hash, provider, key);
  xorInto(key, split.subarray(length * (stripes - 1), length * stripes));
  return key;
}

/** What all stripes but the last come to. */
function fold(
  split: Uint8Array,
  length: number,
  stripes: number,
  hash: string,
  provider: CryptoProvider,
  into: Uint8Array,
): void {
  const block = new Uint8Array(length);
  for (let stripe = 0; stripe < stripes - 1; stripe++) {
    xorInto(block, split.subarray(stripe * length, (stripe + 1) * length));
    diffuse(block, hash, provider);
  }
  into.set(block);
  block.fill(0);
}

/** Replaces each piece by its digest; the last piece may be shorter, and keeps as much of it. */
function diffuse(block: Uint8Array, hash: string, provider: CryptoProvider): void {
  const step = digestBytes(hash);
  const number = new Uint8Array(4);
  const view = new DataView(number.buffer);
  for (let at = 0; at < block.length; at += step) {
    view.setUint32(0, at / step);
    const piece = block.subarray(at, at + step);
    const digest = provider.digest(hash, [number, piece]);
    piece.set(digest.subarray(0, piece.length));
    digest.fill(0);
  }
}

function xorInto(into: Uint8Array, from: Uint8Array): void {
  for (let i = 0; i < into.length; i++) into[i] = (into[i] as number) ^ (from[i] as number);
}
