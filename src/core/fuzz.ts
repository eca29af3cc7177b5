/** What a fuzzer must be told of a format: how sound images of it are made at random, and where the numbers are that it lives by.
 *  Types only. Owns the contract; formats fulfil it in a file of their own, which nothing loads that does not fuzz. Invariant: everything is decided by the
 *  numbers that `random` gives, so that one seed makes one image on every machine. */
import type { FormatDriver } from './format.ts';

/** What a number is for, which decides what it is set to. `offset`: a place in the file; `entry`: a place and flags; `text`: a byte of a name;
 *  `work`: how often something is computed, where a large number is slow and not wrong. */
export type FuzzRole = 'offset' | 'entry' | 'number' | 'flags' | 'text' | 'work';

/** A number in a sound image. */
export interface FuzzField {
  /** `header.size`, `l2.normal`, … */
  readonly kind: string;
  /** Byte offset in the file. */
  readonly at: number;
  readonly bytes: 1 | 2 | 4 | 8;
  readonly role: FuzzRole;
  readonly littleEndian?: boolean;
  /** Its value. */
  readonly old: bigint;
}

/** The numbers of one image. */
export interface Anatomy {
  /** The unit that space is given out in, bytes. */
  readonly clusterSize: number;
  readonly fields: readonly FuzzField[];
  /** Offsets of the image's structures, for pointers that lead to the wrong one. */
  readonly landmarks: readonly number[];
}

/** How one sound image is made. */
export interface FuzzRecipe {
  /** Of the disk, bytes. */
  readonly size: number;
  /** What is special about it, for people: `v2`, `extended_l2`. */
  readonly features: readonly string[];
  /** Create options, by their TypeScript names. What they call a secret is `secret`. */
  readonly create: Readonly<Record<string, unknown>>;
  /** Open options that it needs, by their names on the command line (`encrypt.key-secret`). */
  readonly open: Readonly<Record<string, string>>;
  /** Files it lies on, made first. */
  readonly backing?: { readonly name: string; readonly format: string; readonly size: number } | undefined;
  /** Units are stored compressed, now and then. */
  readonly compressed: boolean;
  readonly snapshots: number;
  readonly bitmaps: number;
}

/** A format that can be fuzzed. */
export interface FuzzFormat {
  readonly driver: FormatDriver;
  /** Draws what a new image shall be. */
  recipe(random: () => number): FuzzRecipe;
  /** Takes a sound image apart. @param image all of its file, made by the recipe */
  anatomy(image: Uint8Array, recipe: FuzzRecipe): Anatomy;
}
