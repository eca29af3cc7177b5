/** Dirty bitmaps of an image by name: listed, changed, read. Owns the opening and closing around the one call.
 *  Invariant: what is asked at once is done in its order, and reaches the file when the image is closed. */
import type { BitmapInfo, ByteRange } from '../core/format.ts';
import { Image } from '../image/image.ts';
import { type OpenImageOptions, openImage } from '../image/open.ts';

export interface BitmapOptions
  extends Omit<OpenImageOptions, 'readOnly' | 'forCheck' | 'metadataOnly' | 'unsafe' | 'snapshot' | 'name' | 'rules'> {}

/** What is to be done with one bitmap. */
export type BitmapAction =
  /** Make it; marks nothing yet. */
  | { readonly action: 'add'; readonly granularity?: number | undefined; readonly enabled?: boolean | undefined }
  | { readonly action: 'remove' | 'clear' | 'enable' | 'disable' }
  /** Mark what the bitmap `from`, of this image or of `image`, marks as well. */
  | { readonly action: 'merge'; readonly from: string; readonly image?: Image | undefined };

/** The dirty bitmaps of an image, oldest first.
 *  @throws {@link BlockError} as `openImage` and `Image.bitmaps`. */
export function listBitmaps(source: string | Image, options: BitmapOptions): Promise<readonly BitmapInfo[]> {
  return withImage(source, { ...options, readOnly: true }, (image) => image.bitmaps());
}

/** Changes one bitmap of an image, action by action; the first that fails ends it, and those before it stand.
 *  @throws {@link BlockError} as `openImage`, and the methods of `Image` for bitmaps. */
export function changeBitmap(
  source: string | Image,
  name: string,
  actions: readonly BitmapAction[],
  options: BitmapOptions,
): Promise<void> {
  return withImage(source, { ...options, readOnly: false }, async (image) => {
    for (const action of actions) await applyBitmapAction(image, name, action);
  });
}

/** One action on an open image. @throws as {@link changeBitmap}. */
export async function applyBitmapAction(image: Image, name: string, action: BitmapAction): Promise<void> {
  switch (action.action) {
    case 'add':
      return await image.addBitmap({ name, granularity: action.granularity, enabled: action.enabled });
    case 'remove':
      return await image.removeBitmap(name);
    case 'clear':
      return await image.clearBitmap(name);
    case 'enable':
      return await image.enableBitmap(name);
    case 'disable':
      return await image.disableBitmap(name);
    case 'merge':
      return await image.mergeBitmap(name, action.from, action.image);
  }
}

/** The parts of the disk that a bitmap marks, in order, none touching the next.
 *  @throws {@link BlockError} as `openImage` and `Image.dirtyExtents`. */
export async function* dirtyExtents(
  source: string | Image,
  name: string,
  options: BitmapOptions,
): AsyncGenerator<ByteRange, void, undefined> {
  if (source instanceof Image) {
    yield* source.dirtyExtents(name);
    return;
  }
  const image = await openImage(source, { ...options, readOnly: true });
  try {
    yield* image.dirtyExtents(name);
  } finally {
    await image.close();
  }
}

async function withImage<T>(
  source: string | Image,
  open: OpenImageOptions,
  act: (image: Image) => Promise<T>,
): Promise<T> {
  if (source instanceof Image) return await act(source);
  const image = await openImage(source, open);
  try {
    return await act(image);
  } finally {
    await image.close();
  }
}
