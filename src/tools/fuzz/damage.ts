/** Damage to an image: drawing some, and doing it. Pure.
 *  Invariants: damages are independent of each other, so that any of them can be left out; a number is damaged where it stood in the sound image. */
import { below, noise, pick, seededRandom, seedFor } from '../../base/random.ts';
import { isZero } from '../../bytes/zeros.ts';
import type { Anatomy, FuzzField } from '../../core/fuzz.ts';
import { encoded, otherValue } from './values.ts';

export type Damage =
  /** Bytes in hexadecimal; `what`: the kind of field, or `byte`. */
  | { readonly kind: 'set'; readonly what: string; readonly at: number; readonly old: string; readonly value: string }
  /** The file ends there. */
  | { readonly kind: 'cut'; readonly size: number }
  /** So many bytes behind the end. */
  | { readonly kind: 'append'; readonly length: number; readonly seed: number };

export interface DamageOptions {
  /** Of all fields, so many percent are damaged, one at least. */
  readonly density: number;
}

/** Shares of what is drawn. */
const FIELD = 0.86;
const BYTES = 0.94;
const CUT = 0.97;
const PAGE = 512;
const MOST_APPENDED = 64 * 1024;
/** Damages at most: an image of which nothing is left tests nothing. */
const MOST = 1000;

/** Draws the damage of a seed.
 *  @param name of the format */
export function drawDamages(
  name: string,
  seed: number,
  image: Uint8Array,
  anatomy: Anatomy,
  { density }: DamageOptions,
): Damage[] {
  const random = seededRandom(seedFor(`${name} damage`, seed));
  const kinds = byKind(anatomy.fields);
  const mean = (anatomy.fields.length * density) / 100;
  const count = Math.min(MOST, Math.max(1, Math.round(mean * 2 * random())));
  const damages = new Map<string, Damage>();
  for (let i = 0; i < count; i++) {
    const draw = random();
    const damage =
      draw < FIELD
        ? fieldDamage(pick(random, pick(random, kinds)), anatomy, random)
        : draw < BYTES
          ? byteDamage(image, random)
          : draw < CUT
            ? { kind: 'cut' as const, size: cutAt(image.length, anatomy, random) }
            : appended(anatomy, random);
    // a field is damaged once, a file cut once
    damages.set(damage.kind === 'set' ? `${damage.at}` : damage.kind, damage);
  }
  return [...damages.values()];
}

/** Kinds first: entries of tables are many, and the header is one. */
function byKind(fields: readonly FuzzField[]): FuzzField[][] {
  const kinds = new Map<string, FuzzField[]>();
  for (const field of fields) {
    const list = kinds.get(field.kind);
    if (list === undefined) kinds.set(field.kind, [field]);
    else list.push(field);
  }
  return [...kinds.values()];
}

function fieldDamage(field: FuzzField, anatomy: Anatomy, random: () => number): Damage {
  const { kind, at, old } = field;
  const value = encoded(field, otherValue(field, anatomy, random));
  return { kind: 'set', what: kind, at, old: encoded(field, old), value };
}

/** A byte where there is something. */
function byteDamage(image: Uint8Array, random: () => number): Damage {
  let at = below(random, image.length);
  for (let attempt = 0; attempt < 64; attempt++) {
    const page = at - (at % PAGE);
    if (!isZero(image, page, Math.min(page + PAGE, image.length))) break;
    at = below(random, image.length);
  }
  const old = image[at] as number;
  const value = random() < 0.5 ? below(random, 256) : flipped(old, below(random, 8));
  return { kind: 'set', what: 'byte', at, old: hex(old), value: hex(value) };
}

function flipped(byte: number, bit: number): number {
  const weight = 2 ** bit;
  return Math.floor(byte / weight) % 2 === 1 ? byte - weight : byte + weight;
}

function hex(byte: number): string {
  return byte.toString(16).padStart(2, '0');
}

function cutAt(size: number, { landmarks }: Anatomy, random: () => number): number {
  const at = random() < 0.5 ? below(random, size) : pick(random, landmarks) + below(random, 3) * 256;
  return Math.min(Math.max(4, at), size - 1);
}

function appended({ clusterSize }: Anatomy, random: () => number): Damage {
  const length = 1 + below(random, Math.min(3 * clusterSize, MOST_APPENDED));
  return { kind: 'append', length, seed: below(random, 2 ** 32) };
}

/** The image with these damages, and no others. */
export function damaged(image: Uint8Array, damages: readonly Damage[]): Uint8Array {
  const cut = damages.find((damage) => damage.kind === 'cut');
  const append = damages.find((damage) => damage.kind === 'append');
  const result = image.slice();
  for (const damage of damages) if (damage.kind === 'set') result.set(bytesOf(damage.value), damage.at);
  const kept = cut === undefined ? result : result.subarray(0, cut.size);
  if (append === undefined) return kept;
  const longer = new Uint8Array(kept.length + append.length);
  longer.set(kept);
  longer.set(noise(seededRandom(append.seed), append.length), kept.length);
  return longer;
}

function bytesOf(digits: string): Uint8Array {
  return Uint8Array.from({ length: digits.length / 2 }, (_, i) => Number.parseInt(digits.slice(2 * i, 2 * i + 2), 16));
}

/** For people: `l2.normal at 0x40000: 8000000000050000 → 0`. */
export function describeDamage(damage: Damage): string {
  if (damage.kind === 'cut') return `cut off at ${hexOffset(damage.size)}`;
  if (damage.kind === 'append') return `${damage.length} bytes appended`;
  return `${damage.what} at ${hexOffset(damage.at)}: ${damage.old} → ${damage.value}`;
}

function hexOffset(offset: number): string {
  return `0x${offset.toString(16)}`;
}
