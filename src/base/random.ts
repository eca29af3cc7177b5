/** Seeded randomness, for tests and for the fuzzer: the same seed gives the same numbers on every machine. Nobody's secret is made of it. */

/** Numbers in [0, 1), by Mulberry32. */
export function seededRandom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 0x1_0000_0000;
  };
}

/** A seed of its own for one purpose: streams of different names have nothing to do with each other (FNV-1a over the name and the seed).
 *  @param seed an integer, 0 to 2^53-1 */
export function seedFor(name: string, seed: number): number {
  let hash = 0x811c_9dc5;
  for (const unit of `${name}:${seed}`) hash = Math.imul(hash ^ (unit.codePointAt(0) as number), 0x0100_0193) >>> 0;
  return hash;
}

/** An integer in [0, limit). */
export function below(random: () => number, limit: number): number {
  return Math.floor(random() * limit);
}

/** One of them. @param list not empty */
export function pick<T>(random: () => number, list: readonly T[]): T {
  return list[below(random, list.length)] as T;
}

/** `length` bytes that are hardly ever zero. */
export function noise(random: () => number, length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  for (let i = 0; i < length; i++) bytes[i] = 1 + below(random, 255);
  return bytes;
}
