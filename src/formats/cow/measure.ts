/** How long a cow file gets. Spec: "Bitmap and data formulas". Data is not compacted: the file is as long as its disk, whatever it holds. */
import type { OptionsOf } from '../../base/options.ts';
import { alignUp } from '../../bytes/align.ts';
import type { Measurement } from '../../core/format.ts';
import { chosenLayout } from './create.ts';
import { geometryOf } from './layouts.ts';
import type { createOptions } from './options.ts';

export async function measureCow(virtualSize: number, options: OptionsOf<typeof createOptions>): Promise<Measurement> {
  const size = alignUp(virtualSize, 512);
  const { dataOffset } = geometryOf(chosenLayout(options), { size, sectorSize: 512, alignment: 4096 });
  return { required: dataOffset + size, fullyAllocated: dataOffset + size };
}
