/** Another size for the disk of an image by name. Owns the opening and closing around the one call.
 *  Invariant: an image that fails to change has its old size. */
import { Image, type ResizeOptions } from '../image/image.ts';
import { type OpenImageOptions, openImage } from '../image/open.ts';

export interface ResizeImageOptions
  extends Omit<OpenImageOptions, 'readOnly' | 'forCheck' | 'metadataOnly' | 'snapshot' | 'name' | 'rules'>,
    ResizeOptions {}

/** Makes the disk larger or smaller. What is new reads as zeros.
 *  @param size bytes
 *  @throws {@link BlockError} as `openImage` and `Image.resize`. */
export async function resizeImage(source: string | Image, size: number, options: ResizeImageOptions): Promise<void> {
  const { shrink, preallocation, ...open } = options;
  if (source instanceof Image) return await source.resize(size, { shrink, preallocation });
  const image = await openImage(source, { ...open, readOnly: false, resizes: true });
  try {
    await image.resize(size, { shrink, preallocation });
  } finally {
    await image.close();
  }
}
