/** Extents of an image, joined as `qemu-img map` joins them. */
import { BlockError } from '../base/errors.ts';
import type { Extent } from '../core/extent.ts';
import type { Image } from '../image/image.ts';

export interface MapOptions {
  /** First byte. Default 0; past the end nothing comes. */
  readonly start?: number | undefined;
  /** Bytes at most. Default: to the end. */
  readonly length?: number | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** Extents of the range, in order, cut at its ends. Neighbours are one when flags, depth and file are equal and host offsets continue.
 *  Human output lists those with `data && !zero`; of these, one without `hostOffset` is compressed, encrypted or in a file that is not known.
 *  @throws {@link BlockError} INVALID_ARGUMENT, reason `map.range`. */
export function mapImage(image: Image, options: MapOptions = {}): AsyncIterable<Extent> {
  const { start = 0, length, signal } = options;
  for (const value of [start, length ?? 0]) {
    if (Number.isSafeInteger(value) && value >= 0) continue;
    throw new BlockError('INVALID_ARGUMENT', `"${image.name}": map of ${length ?? 'all'} bytes at ${start}`, {
      reason: 'map.range',
      details: { start, length },
    });
  }
  return image.extents({ offset: start, length, signal });
}
