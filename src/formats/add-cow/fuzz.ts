/** What the fuzzer is told of add-cow: both headers, and the bitmap behind them. */
import { below, pick } from '../../base/random.ts';
import { KiB } from '../../base/sizes.ts';
import type { Anatomy, FuzzFormat, FuzzRecipe } from '../../core/fuzz.ts';
import { FieldCollector } from '../../core/fuzz-fields.ts';
import { addCow } from './driver.ts';
import { hasV20Magic } from './header-v20.ts';
import { headerSize, V9_CLUSTER, V9_HEADER, V9_NAME_BYTES } from './layout.ts';

const SECTOR = 512;
/** Bytes of each name, and of the bitmap. */
const NAME = 12;
const BITMAP = 12;
const CLUSTER_BITS = [12, 12, 13, 14, 16, 16, 18, 21];
const V9_NAMES = [12, 1036] as const;
const V20_CLUSTER_BITS_AT = 20;

export const addCowFuzz: FuzzFormat = { driver: addCow, recipe, anatomy };

function recipe(random: () => number): FuzzRecipe {
  const v9 = random() < 0.4;
  const clusterSize = v9 ? V9_CLUSTER : 2 ** pick(random, CLUSTER_BITS);
  const backing =
    v9 || random() < 0.7
      ? { name: 'base.raw', format: 'raw', size: SECTOR * (1 + below(random, (1024 * KiB) / SECTOR)) }
      : undefined;
  return {
    size: SECTOR * (1 + below(random, (1024 * KiB) / SECTOR)),
    features: [v9 ? 'v9' : 'v20', `cluster_size ${clusterSize}`, ...(backing === undefined ? [] : ['backing raw'])],
    create: { compat: v9 ? 'v9' : 'v20', clusterSize, imageFile: 'data.raw' },
    open: {},
    backing,
    compressed: false,
    snapshots: 0,
    bitmaps: 0,
  };
}

function anatomy(image: Uint8Array): Anatomy {
  return hasV20Magic(image) ? anatomyOfV20(image) : anatomyOfV9(image);
}

function anatomyOfV9(image: Uint8Array): Anatomy {
  const fields = new FieldCollector(image);
  fields.add('add-cow.magic', 0, 8, 'number');
  fields.add('add-cow.version', 8, 4, 'number');
  for (const at of V9_NAMES) {
    fields.text('add-cow.name', at, NAME);
    fields.text('add-cow.name-end', at + V9_NAME_BYTES - NAME, NAME);
  }
  return withBitmap(fields, V9_HEADER, V9_CLUSTER);
}

function anatomyOfV20(image: Uint8Array): Anatomy {
  const fields = new FieldCollector(image, true);
  const clusterSize = 2 ** fields.u32(V20_CLUSTER_BITS_AT);
  fields.add('add-cow.magic', 0, 4, 'number');
  fields.add('add-cow.backing-offset', 4, 4, 'number');
  fields.add('add-cow.backing-size', 8, 4, 'number');
  fields.add('add-cow.image-offset', 12, 4, 'number');
  fields.add('add-cow.image-size', 16, 4, 'number');
  fields.add('add-cow.cluster-bits', V20_CLUSTER_BITS_AT, 4, 'number');
  fields.add('add-cow.features', 24, 8, 'flags');
  fields.add('add-cow.compatible', 32, 8, 'flags');
  fields.add('add-cow.header-size', 40, 4, 'number');
  fields.text('add-cow.backing-format', 44, 6);
  fields.text('add-cow.image-format', 60, 6);
  fields.text('add-cow.name', fields.u32(4), fields.u32(8));
  fields.text('add-cow.name', fields.u32(12), fields.u32(16));
  return withBitmap(fields, headerSize({ version: 'v20', clusterSize }), clusterSize);
}

function withBitmap(fields: FieldCollector, bitmap: number, clusterSize: number): Anatomy {
  for (let i = 0; i < BITMAP; i++) fields.add('add-cow.bitmap', bitmap + i, 1, 'flags');
  fields.landmark(bitmap);
  fields.landmark(fields.size);
  return fields.result(clusterSize);
}
