/** Makes hostile images: one recipe per case number, the same for the same seed on every machine.
 *  Even cases keep the magic and set one field or entry to a boundary value, each kind in turn; odd ones flip bytes, cut the file off,
 *  append garbage, or set several fields. */
import type { Anatomy, FuzzField as Field } from '../../src/core/fuzz.ts';
import { anatomyOf } from '../../src/formats/qcow2/fuzz-fields.ts';
import type { MemoryStore } from '../../src/storage/memory.ts';
import { below, seededRandom } from '../../src/testing/random.ts';
import { encoded, otherValue } from '../../src/tools/fuzz/values.ts';
import { type Base, byteOf, copyOf, type SparseFile } from './bases.ts';

/** Bytes; making them takes time. */
const GARBAGE_LIMIT = 64 * 1024;

/** A base and what is done to it: all that is needed to do it again. */
export interface Recipe {
  readonly base: string;
  /** The kind of field for one-field cases, else how the image was damaged. */
  readonly kind: string;
  /** Offset and new bytes in hexadecimal. */
  readonly edits: readonly (readonly [at: number, hex: string])[];
  /** Length of the file before anything is appended, where it is cut. */
  readonly truncate?: number;
  /** That many seeded bytes behind the end. */
  readonly append?: { readonly length: number; readonly seed: number };
  /** Decides what is written, and where. */
  readonly exercise: number;
}

export class Mutator {
  readonly #bases: ReadonlyMap<string, Base>;
  readonly #names: readonly string[];
  readonly #anatomies = new Map<string, Anatomy>();
  /** Of each kind, the fields of each base that has some. */
  readonly #kinds = new Map<string, (readonly [base: string, fields: readonly Field[]])[]>();
  readonly #seed: number;

  constructor(bases: ReadonlyMap<string, Base>, seed: number) {
    this.#bases = bases;
    this.#names = [...bases.keys()];
    this.#seed = seed;
    for (const [name, base] of bases) {
      const anatomy = anatomyOf(base.bytes());
      this.#anatomies.set(name, anatomy);
      const fields = new Map<string, Field[]>();
      for (const field of anatomy.fields) fields.set(field.kind, [...(fields.get(field.kind) ?? []), field]);
      for (const [kind, found] of fields) {
        this.#kinds.set(kind, [...(this.#kinds.get(kind) ?? []), [name, found] as const]);
      }
    }
  }

  /** Every kind of field that the bases have. */
  get kinds(): readonly string[] {
    return [...this.#kinds.keys()];
  }

  recipe(index: number): Recipe {
    const random = seededRandom(Math.imul(this.#seed, 0x9e37_79b1) + index);
    const half = Math.floor(index / 2);
    return index % 2 === 0 ? this.#oneField(half, random) : this.#random(half, random);
  }

  #oneField(turn: number, random: () => number): Recipe {
    const kind = this.kinds[turn % this.kinds.length] as string;
    const places = this.#kinds.get(kind) as (readonly [string, readonly Field[]])[];
    const [base, fields] = places[Math.floor(turn / this.kinds.length) % places.length] as (typeof places)[number];
    const field = pick(random, fields);
    return { base, kind, edits: [this.#set(base, field, random)], exercise: below(random, 0x1_0000_0000) };
  }

  #set(base: string, field: Field, random: () => number): readonly [number, string] {
    const anatomy = this.#anatomies.get(base) as Anatomy;
    return [field.at, encoded(field, otherValue(field, anatomy, random))];
  }

  #random(turn: number, random: () => number): Recipe {
    const base = this.#names[turn % this.#names.length] as string;
    const file = this.#bases.get(base) as Base;
    const { size, pages } = file;
    const anatomy = this.#anatomies.get(base) as Anatomy;
    const exercise = below(random, 0x1_0000_0000);
    switch (below(random, 5)) {
      case 0: {
        const count = 2 + below(random, 3);
        const edits = Array.from({ length: count }, () => this.#set(base, pick(random, anatomy.fields), random));
        return { base, kind: 'several fields', edits, exercise };
      }
      case 1:
        return { base, kind: 'truncated', edits: [], truncate: pickLength(random, size, anatomy), exercise };
      case 2: {
        const append = {
          length: 1 + below(random, Math.min(3 * anatomy.clusterSize, GARBAGE_LIMIT)),
          seed: below(random, 0x1_0000_0000),
        };
        const cut = random() < 0.5 ? { truncate: pickLength(random, size, anatomy) } : {};
        return { base, kind: 'garbage appended', edits: [], ...cut, append, exercise };
      }
      case 3: {
        // where the header and the tables are dense, flips hurt most
        const edits = Array.from({ length: 1 + below(random, 8) }, () => {
          const at = random() < 0.3 ? 4 + below(random, 600) : pick(random, anatomy.fields).at;
          return flip(file, Math.min(at, size - 1), random);
        });
        return { base, kind: 'metadata flipped', edits, exercise };
      }
      default: {
        const edits = Array.from({ length: 1 + below(random, 30) }, () => {
          const [at, page] = pick(random, pages);
          return flip(file, Math.max(4, at + below(random, page.length)), random);
        });
        return { base, kind: 'bytes flipped', edits, exercise };
      }
    }
  }
}

/** The image of a recipe, in memory. */
export function bake(recipe: Recipe, bases: ReadonlyMap<string, Base>): MemoryStore {
  const store = copyOf(bases.get(recipe.base) as Base);
  for (const [at, hex] of recipe.edits) void store.write(at, Buffer.from(hex, 'hex'));
  if (recipe.truncate !== undefined) void store.truncate(recipe.truncate);
  if (recipe.append !== undefined) {
    const random = seededRandom(recipe.append.seed);
    const garbage = Uint8Array.from({ length: recipe.append.length }, () => below(random, 256));
    void store.write(store.size, garbage);
  }
  return store;
}

function flip(file: SparseFile, at: number, random: () => number): readonly [number, string] {
  const value = random() < 0.5 ? below(random, 256) : byteOf(file, at) ^ (1 << below(random, 8));
  return [at, value.toString(16).padStart(2, '0')];
}

function pickLength(random: () => number, size: number, anatomy: Anatomy): number {
  const length = random() < 0.5 ? below(random, size) : pick(random, anatomy.landmarks) + below(random, 3) * 256;
  return Math.min(Math.max(4, length), size - 1);
}

function pick<T>(random: () => number, list: readonly T[]): T {
  return list[below(random, list.length)] as T;
}
