/** What the fuzzer is told of qcow2: which images there are. Where their numbers are, fuzz-fields.ts knows.
 *  Invariants: every combination drawn is one that can be created; images stay small, because thousands are made. */
import { below, pick } from '../../base/random.ts';
import { KiB, MiB } from '../../base/sizes.ts';
import type { FuzzFormat, FuzzRecipe } from '../../core/fuzz.ts';
import { qcow2 } from './driver.ts';
import { anatomyOf } from './fuzz-fields.ts';

const SECTOR = 512;
/** Clusters up to 64 KiB mostly: tables of larger ones are large files of nothing. */
const CLUSTER_BITS = [9, 9, 10, 11, 11, 12, 12, 12, 12, 13, 13, 14, 14, 15, 16, 16, 16, 16, 17, 21];
const REFCOUNT_BITS = [1, 2, 4, 8, 16, 16, 16, 32, 64];
/** The smallest cluster that has subclusters. */
const EXTENDED_BITS = 14;
/** No refcount of an image with snapshots fits into fewer bits. */
const SHARED_BITS = 4;

export const qcow2Fuzz: FuzzFormat = { driver: qcow2, recipe, anatomy: anatomyOf };

function recipe(random: () => number): FuzzRecipe {
  const chance = (share: number): boolean => random() < share;
  const v2 = chance(0.15);
  const clusterBits = pick(random, CLUSTER_BITS);
  const extendedL2 = !v2 && clusterBits >= EXTENDED_BITS && chance(0.4);
  const refcountBits = v2 ? 16 : pick(random, REFCOUNT_BITS);
  const lazyRefcounts = !v2 && chance(0.2);
  const zstd = !v2 && chance(0.4);
  const backing = drawBacking(random);
  const encryption = chance(0.2) ? drawEncryption(random) : undefined;
  const external = !v2 && encryption === undefined && chance(0.15);
  const dataFileRaw = external && backing === undefined && chance(0.4);
  const size = drawSize(random, clusterBits);
  const create = {
    compat: v2 ? 'v2' : 'v3',
    clusterSize: 2 ** clusterBits,
    extendedL2,
    refcountBits,
    lazyRefcounts,
    compressionType: zstd ? 'zstd' : 'zlib',
    ...(external ? { dataFile: 'data.raw', dataFileRaw } : {}),
    ...encryption?.create,
  };
  const words: readonly (readonly [boolean, string])[] = [
    [v2, 'v2'],
    [extendedL2, 'extended_l2'],
    [lazyRefcounts, 'lazy_refcounts'],
    [zstd, 'zstd'],
    [backing !== undefined, `backing ${backing?.format}`],
    [encryption !== undefined, `encrypted ${encryption?.name}`],
    [external, dataFileRaw ? 'raw data file' : 'data file'],
  ];
  const snapshots = external || refcountBits < SHARED_BITS || chance(0.5) ? 0 : 1 + below(random, 3);
  const bitmaps = v2 || chance(0.6) ? 0 : 1 + below(random, 2);
  return {
    size,
    features: [
      `cluster_size ${2 ** clusterBits}`,
      `refcount_bits ${refcountBits}`,
      ...words.filter(([is]) => is).map(([, word]) => word),
      ...(snapshots > 0 ? [`snapshots ${snapshots}`] : []),
      ...(bitmaps > 0 ? [`bitmaps ${bitmaps}`] : []),
    ],
    create,
    open: encryption === undefined ? {} : { 'encrypt.format': encryption.name, 'encrypt.key-secret': 'secret' },
    backing,
    compressed: !external && encryption === undefined && chance(0.6),
    snapshots,
    bitmaps,
  };
}

/** Some clusters, some sectors more, now and then enough for several L2 tables. */
function drawSize(random: () => number, clusterBits: number): number {
  const cluster = 2 ** clusterBits;
  const reach = Math.min(8 * MiB, cluster * (random() < 0.2 ? 600 : 40));
  return SECTOR * (1 + below(random, Math.max(reach, 64 * KiB) / SECTOR));
}

function drawBacking(random: () => number): FuzzRecipe['backing'] {
  if (random() < 0.65) return undefined;
  const format = pick(random, ['raw', 'raw', qcow2.name]);
  return { name: `base.${format}`, format, size: SECTOR * (1 + below(random, MiB / SECTOR)) };
}

function drawEncryption(random: () => number): { readonly name: string; readonly create: Record<string, unknown> } {
  if (random() < 0.4) return { name: 'aes', create: { encryptFormat: 'aes', encryptKeySecret: 'secret' } };
  // the header of a cipher with a short key is half a megabyte, and that of others two
  const mode = pick(random, [
    { encryptCipherMode: 'cbc', encryptIvgenAlg: 'plain64' },
    { encryptCipherMode: 'cbc', encryptIvgenAlg: 'essiv', encryptIvgenHashAlg: 'sha256' },
    { encryptCipherMode: 'xts', encryptIvgenAlg: 'plain64' },
  ]);
  const create = { encryptFormat: 'luks', encryptKeySecret: 'secret', encryptCipherAlg: 'aes-128', ...mode };
  return { name: 'luks', create: { ...create, encryptHashAlg: pick(random, ['sha256', 'sha1']), encryptIterTime: 0 } };
}
