/** How long an add-cow file would be. The image file beside it is as long as the disk and is not counted: it is another file.
 *  Spec: add-cow, "File length". */
import { alignUp } from '../../bytes/align.ts';
import type { Measurement } from '../../core/format.ts';
import type { BlockNode } from '../../core/node.ts';
import { shapeFromOptions } from './create.ts';
import { fileLength, SECTOR } from './layout.ts';
import type { AddCowCreateOptions } from './options.ts';

/** @throws {@link BlockError} OPTION as `create` does. */
export async function measureAddCow(
  virtualSize: number,
  options: AddCowCreateOptions,
  source?: BlockNode,
): Promise<Measurement> {
  const shape = shapeFromOptions(options, 'measure');
  const bytes = fileLength(shape, alignUp(source?.size ?? virtualSize, SECTOR));
  return { required: bytes, fullyAllocated: bytes };
}
