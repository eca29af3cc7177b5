/** Amending an image by name: changing what it was created with. Owns the opening and closing around the one call.
 *  Invariant: whatever fails, the content of the disk is what it was. */
import type { AmendRun } from '../core/format.ts';
import { Image } from '../image/image.ts';
import { type OpenImageOptions, openImage } from '../image/open.ts';

export interface AmendImageOptions
  extends Omit<OpenImageOptions, 'readOnly' | 'forCheck' | 'metadataOnly' | 'snapshot' | 'name' | 'rules'> {
  /** Do what cannot be undone: erase the last key. Default false. */
  readonly force?: boolean | undefined;
  readonly onProgress?: AmendRun['onProgress'] | undefined;
}

/** Changes what an image was created with.
 *  @param changes amend options of the format by their TypeScript names; what is not given stays
 *  @throws {@link BlockError} as `openImage` and `Image.amend`. */
export async function amendImage(
  source: string | Image,
  changes: Readonly<Record<string, unknown>>,
  options: AmendImageOptions,
): Promise<void> {
  const { force, onProgress, ...open } = options;
  const { signal } = options;
  const run = {
    force,
    ...(signal === undefined ? {} : { signal }),
    ...(onProgress === undefined ? {} : { onProgress }),
  };
  if (source instanceof Image) return await source.amend(changes, run);
  const image = await openImage(source, { ...open, readOnly: false });
  try {
    await image.amend(changes, run);
  } finally {
    await image.close();
  }
}
