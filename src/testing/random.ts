/** Seeded randomness for tests: the same seed gives the same run on every machine. */

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

/** An integer in [0, limit). */
export function below(random: () => number, limit: number): number {
  return Math.floor(random() * limit);
}

/** `length` bytes that are hardly ever zero. */
export function noise(random: () => number, length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  for (let i = 0; i < length; i++) bytes[i] = 1 + below(random, 255);
  return bytes;
}
