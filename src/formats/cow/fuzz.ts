/** What the fuzzer is told of cow: every layout that can be created, and where the numbers of its header and its bitmap are. */
import { below, pick } from '../../base/random.ts';
import { KiB } from '../../base/sizes.ts';
import type { Anatomy, FuzzFormat, FuzzRecipe } from '../../core/fuzz.ts';
import { FieldCollector } from '../../core/fuzz-fields.ts';
import { cow } from './driver.ts';
import { type CowLayoutId, CREATABLE_LAYOUT_IDS, geometryOf, layoutOf } from './layouts.ts';

/** Sectors of the disk are a multiple of it, so that every layout has a bit for each. */
const SIZE_UNIT = 512 * 64;
const SECTOR = 512;
const ALIGNMENT = 4096;
/** Bytes of the bitmap. */
const BITMAP = 16;
/** Bytes of the name, the end of its field as well. */
const NAME = 16;

export const cowFuzz: FuzzFormat = { driver: cow, recipe, anatomy };

function recipe(random: () => number): FuzzRecipe {
  const layout = layoutOf(pick(random, CREATABLE_LAYOUT_IDS));
  const size = SIZE_UNIT * (1 + below(random, (1024 * KiB) / SIZE_UNIT));
  const backing = !layout.qemu || random() < 0.6 ? { name: 'base.raw', format: 'raw', size } : undefined;
  return {
    size,
    features: [`layout ${layout.id}`, ...(backing === undefined ? [] : ['backing raw'])],
    create: { layout: layout.id },
    open: {},
    backing,
    compressed: false,
    snapshots: 0,
    bitmaps: 0,
  };
}

function anatomy(image: Uint8Array, { create }: FuzzRecipe): Anatomy {
  const layout = layoutOf(create['layout'] as CowLayoutId);
  const fields = new FieldCollector(image, layout.littleEndian);
  const sizeAt = layout.sizeAt;
  const size = Number(fields.u64(sizeAt));
  const identity = layout.identityWidth;
  fields.add('cow.magic', 0, identity, 'number');
  fields.add('cow.version', identity, identity, 'number');
  const end = layout.nameAt + layout.nameLength;
  fields.text('cow.name', layout.nameAt, NAME);
  fields.text('cow.name-end', end - NAME, NAME);
  fields.add('cow.mtime', layout.mtimeAt, 4, 'number');
  if (layout.mtimeUpperAt !== undefined) fields.add('cow.mtime-upper', layout.mtimeUpperAt, 4, 'number');
  fields.add('cow.size', sizeAt, 8, 'offset');
  fields.add('cow.sector-size', layout.sectorSizeAt, 4, 'number');
  if (layout.alignmentAt !== undefined) fields.add('cow.alignment', layout.alignmentAt, 4, 'number');
  if (layout.cowFormatAt !== undefined) fields.add('cow.format', layout.cowFormatAt, 4, 'number');
  const { bitmapOffset, bitmapLength, dataOffset } = geometryOf(layout, {
    size,
    sectorSize: SECTOR,
    alignment: ALIGNMENT,
  });
  for (let i = 0; i < Math.min(bitmapLength, BITMAP); i++) fields.add('cow.bitmap', bitmapOffset + i, 1, 'flags');
  if (bitmapLength > BITMAP) fields.add('cow.bitmap-end', bitmapOffset + bitmapLength - 1, 1, 'flags');
  for (const at of [bitmapOffset, dataOffset, dataOffset + size, image.length]) fields.landmark(at);
  return fields.result(SECTOR);
}
