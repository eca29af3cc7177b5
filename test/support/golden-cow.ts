/** The golden cow and add-cow images: made by UML kernels, QEMU 0.14 and from the structures themselves, with hashes of what they show. */
import { readFileSync, utimesSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { gunzipSync } from 'node:zlib';
import { MemoryStore } from '../../src/storage/memory.ts';

const DIRECTORY = fileURLToPath(new URL('../golden/cow', import.meta.url));

export interface GoldenBase {
  readonly size: number;
  /** Seconds since 1970. */
  readonly mtime: number;
  readonly sha256: string;
}

export interface GoldenCow {
  /** Without `.gz`. */
  readonly file: string;
  readonly layout: string;
  readonly note: string;
  /** Name of the base, `null`: none. */
  readonly base: string | null;
  readonly storedBackingName: string;
  readonly mtime: number;
  readonly sectorSize: number;
  readonly alignment: number | null;
  readonly headerSize: number;
  readonly bitmapOffset: number;
  readonly bitmapLength: number;
  readonly dataOffset: number;
  readonly virtualSize: number;
  readonly fileLength: number;
  readonly changedSectors: readonly number[];
  /** What the disk shows over its base; `Strict`: without the sectors that have no bit. */
  readonly mergedSha256: string;
  readonly changedSectorsStrict?: readonly number[];
  readonly mergedSha256Strict?: string;
  readonly cowSha256: string;
}

export interface GoldenAddCow {
  readonly file: string;
  readonly layout: string;
  readonly base: string | null;
  readonly image: string;
  readonly clusterSize: number;
  readonly bitmapOffset: number;
  readonly virtualSize: number;
  readonly dirtyClusters: readonly number[];
  readonly allAllocated?: boolean;
  readonly mergedSha256: string;
  readonly note: string;
}

export interface GoldenManifest {
  readonly bases: Readonly<Record<string, GoldenBase>>;
  readonly images: readonly GoldenCow[];
  readonly addCow: readonly GoldenAddCow[];
}

export const GOLDEN: GoldenManifest = JSON.parse(readFileSync(join(DIRECTORY, 'manifest.json'), 'utf8'));

export function goldenCow(file: string): GoldenCow {
  const found = GOLDEN.images.find((image) => image.file === file);
  if (found === undefined) throw new Error(`no golden image ${file}`);
  return found;
}

/** The file itself. */
export function goldenBytes(file: string): Uint8Array<ArrayBuffer> {
  return new Uint8Array(gunzipSync(readFileSync(join(DIRECTORY, `${file}.gz`))));
}

export function goldenStore(file: string): MemoryStore {
  return MemoryStore.from(goldenBytes(file), { name: file });
}

/** Puts the file where `at` says; a base gets the time that the images record. */
export function unpackGolden(file: string, at: string): void {
  writeFileSync(at, goldenBytes(file));
  const base = GOLDEN.bases[file];
  if (base !== undefined) utimesSync(at, base.mtime, base.mtime);
}
