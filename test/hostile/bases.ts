/** The images that hostile cases start from: small, made once by the real tools (make-bases.mjs), stored compressed.
 *  Recipes of past failures name bytes of these very files: they never change; new ones may be added at the end. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { gunzipSync } from 'node:zlib';
import { isZero } from '../../src/bytes/zeros.ts';
import { MemoryStore } from '../../src/storage/memory.ts';

/** A cluster of every base is a multiple of it, so holes of the bases stay holes. */
const PAGE = 4096;

/** Each base, and the files it names. */
const NAMES: Readonly<Record<string, readonly string[]>> = {
  v2: [],
  v3: [],
  tiny: [],
  wide: [],
  extended: [],
  zlib: [],
  zstd: [],
  snapshots: [],
  'snapshots-v2': [],
  bitmaps: [],
  backing: ['middle.qcow2', 'bottom.raw'],
  datafile: ['data.raw'],
  'datafile-raw': ['flat.raw'],
  dirty: [],
  luks: [],
  everything: [],
  keyed: [],
};

/** The key of the base `keyed`. */
export const KEY = 'open sesame';

export const BASE_NAMES: readonly string[] = Object.keys(NAMES);

/** A file as the pieces of it that are not zero. */
export interface SparseFile {
  readonly name: string;
  readonly size: number;
  readonly pages: readonly (readonly [offset: number, bytes: Uint8Array])[];
}

export interface Base extends SparseFile {
  /** All of it; made anew each time, because some are large and memory is measured. */
  bytes(): Uint8Array;
  /** By the name that the image has for them. */
  readonly companions: ReadonlyMap<string, SparseFile>;
}

/** @param directory of the compressed files */
export function loadBases(directory: string): ReadonlyMap<string, Base> {
  const read = (name: string): Uint8Array => gunzipSync(readFileSync(join(directory, `${name}.gz`)));
  const bases = new Map<string, Base>();
  for (const [name, companions] of Object.entries(NAMES)) {
    const files = companions.map((companion) => [companion, sparse(companion, read(companion))] as const);
    bases.set(name, { ...sparse(name, read(name)), bytes: () => read(name), companions: new Map(files) });
  }
  return bases;
}

function sparse(name: string, bytes: Uint8Array): SparseFile {
  const pages: [number, Uint8Array][] = [];
  for (let at = 0; at < bytes.length; at += PAGE) {
    const page = bytes.subarray(at, Math.min(at + PAGE, bytes.length));
    if (!isZero(page)) pages.push([at, page.slice()]);
  }
  return { name, size: bytes.length, pages };
}

/** One byte of it. */
export function byteOf(file: SparseFile, at: number): number {
  const page = file.pages.find(([offset, bytes]) => at >= offset && at < offset + bytes.length);
  return page === undefined ? 0 : (page[1][at - page[0]] as number);
}

/** A fresh copy, in memory. */
export function copyOf(file: SparseFile): MemoryStore {
  const store = new MemoryStore({ name: file.name, size: file.size, pageSize: PAGE });
  for (const [at, bytes] of file.pages) void store.write(at, bytes);
  return store;
}
