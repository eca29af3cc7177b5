/** Extents of an image, joined as `qemu-img map` joins them; and how often each part of its file is referred to. */
import { BlockError } from '../base/errors.ts';
import { Pacer, throwIfAborted } from '../base/job.ts';
import type { Extent } from '../core/extent.ts';
import type { ReferenceRun } from '../core/format.ts';
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

/** Runs of the image's file with equal reference counts, in order: 0 is free, 1 the rule, more is shared with snapshots or by compressed
 *  clusters. To the end of the file, and behind it as far as anything is counted. Of files that the image names nothing is counted.
 *  @throws {@link BlockError} UNSUPPORTED, reason `map.references`, where the format counts none; CORRUPT. */
export async function* mapReferences(
  image: Image,
  options: { readonly signal?: AbortSignal | undefined } = {},
): AsyncGenerator<ReferenceRun, void, undefined> {
  const { signal } = options;
  const { format } = image.node;
  if (format.references === undefined) {
    throw new BlockError('UNSUPPORTED', `${image.format} "${image.name}": the format counts no references`, {
      reason: 'map.references',
      details: { format: image.format },
    });
  }
  const pacer = new Pacer();
  for await (const run of format.references()) {
    throwIfAborted(signal);
    yield run;
    if (pacer.due) await pacer.pause(signal);
  }
}
