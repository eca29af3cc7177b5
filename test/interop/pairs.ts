/** Choosing few combinations of options that hold every pair of values, or making all of them.
 *  A rule says which combinations cannot be; it is asked about incomplete ones too, and must then say no only when nothing can help. */
import { seededRandom } from '../../src/testing/random.ts';

export type Dimensions = Readonly<Record<string, readonly unknown[]>>;
export type Combination<D extends Dimensions> = { readonly [K in keyof D]: D[K][number] };
export type Rule<D extends Dimensions> = (combination: Partial<Combination<D>>) => boolean;

/** Every allowed combination. */
export function fullProduct<D extends Dimensions>(dimensions: D, allowed: Rule<D>): Combination<D>[] {
  let partial: Partial<Combination<D>>[] = [{}];
  for (const key of Object.keys(dimensions)) {
    partial = partial.flatMap((known) =>
      (dimensions[key] as readonly unknown[])
        .map((value) => ({ ...known, [key]: value }) as Partial<Combination<D>>)
        .filter(allowed),
    );
  }
  return partial as Combination<D>[];
}

/** Combinations that together hold every pair of values that is allowed at all. The same for the same seed.
 *  @param given combinations that are taken anyway; the result begins with them */
export function allPairs<D extends Dimensions>(
  dimensions: D,
  allowed: Rule<D>,
  seed: number,
  given: readonly Combination<D>[] = [],
): Combination<D>[] {
  return [...given, ...new Pairs(dimensions, allowed, seed).choose(given)];
}

/** Every pair of values of two dimensions, as text. */
export function pairsOf<D extends Dimensions>(combination: Partial<Combination<D>>): string[] {
  const known = Object.entries(combination);
  return known.flatMap(([a, x], i) => known.slice(i + 1).map(([b, y]) => pairText(a, x, b, y)));
}

function pairText(a: string, x: unknown, b: string, y: unknown): string {
  return a < b ? `${a}=${x} ${b}=${y}` : `${b}=${y} ${a}=${x}`;
}

class Pairs<D extends Dimensions> {
  readonly #dimensions: D;
  readonly #keys: readonly string[];
  readonly #allowed: Rule<D>;
  readonly #random: () => number;
  readonly #missing = new Map<string, Partial<Combination<D>>>();

  constructor(dimensions: D, allowed: Rule<D>, seed: number) {
    this.#dimensions = dimensions;
    this.#keys = Object.keys(dimensions);
    this.#allowed = allowed;
    this.#random = seededRandom(seed);
    for (const [i, a] of this.#keys.entries()) {
      for (const b of this.#keys.slice(i + 1)) {
        for (const x of this.#values(a)) {
          for (const y of this.#values(b)) {
            const pair = { [a]: x, [b]: y } as Partial<Combination<D>>;
            if (allowed(pair)) this.#missing.set(pairText(a, x, b, y), pair);
          }
        }
      }
    }
  }

  #values(key: string): readonly unknown[] {
    return this.#dimensions[key] as readonly unknown[];
  }

  choose(given: readonly Combination<D>[]): Combination<D>[] {
    for (const combination of given) for (const covered of pairsOf<D>(combination)) this.#missing.delete(covered);
    const chosen: Combination<D>[] = [];
    for (const [text, pair] of this.#missing) {
      if (!this.#missing.has(text)) continue;
      this.#missing.delete(text);
      const combination = this.#complete(pair);
      // a pair that each allows and all together forbid
      if (combination === undefined) continue;
      for (const covered of pairsOf<D>(combination)) this.#missing.delete(covered);
      chosen.push(combination);
    }
    return chosen;
  }

  /** Adds values, those first that cover most of what is missing. */
  #complete(known: Partial<Combination<D>>): Combination<D> | undefined {
    const open = this.#keys.filter((key) => !(key in known));
    if (open.length === 0) return known as Combination<D>;
    let best: { key: string; gain: number; values: unknown[] } | undefined;
    for (const key of open) {
      const ranked = this.#values(key)
        .map((value) => ({ value, next: { ...known, [key]: value } as Partial<Combination<D>> }))
        .filter(({ next }) => this.#allowed(next))
        .map(({ value }) => ({ value, gain: this.#gain(known, key, value) + this.#random() / 2 }))
        .sort((a, b) => b.gain - a.gain);
      if (ranked.length === 0) return undefined;
      const gain = (ranked[0] as { gain: number }).gain;
      if (best === undefined || gain > best.gain) best = { key, gain, values: ranked.map(({ value }) => value) };
    }
    const { key, values } = best as { key: string; values: unknown[] };
    for (const value of values) {
      const completed = this.#complete({ ...known, [key]: value } as Partial<Combination<D>>);
      if (completed !== undefined) return completed;
    }
    return undefined;
  }

  #gain(known: Partial<Combination<D>>, key: string, value: unknown): number {
    let gain = 0;
    for (const [other, known_] of Object.entries(known)) {
      if (this.#missing.has(pairText(key, value, other, known_))) gain++;
    }
    return gain;
  }
}
