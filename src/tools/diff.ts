/** The ranges in which two disks differ, as a list of any length: neighbours joined, in order. Owns the joining and the counting.
 *  Invariant: memory does not grow with the number of ranges. */
import type { JobOptions } from '../base/job.ts';
import type { Image } from '../image/image.ts';
import { DEFAULT_BLOCK, DifferenceWalk, type DiffRange } from './difference.ts';

export interface DiffOptions extends JobOptions {
  /** Bytes of a block: ranges are whole blocks with a difference in each. A power of two, 1 to 1 MiB; default 4096. */
  readonly block?: number | undefined;
}

export interface DiffSummary {
  /** The disks have the same content and the same size. */
  readonly equal: boolean;
  /** Bytes of each disk. The smaller one is compared as if it went on with zeros. */
  readonly sizes: readonly [first: number, second: number];
  readonly block: number;
  readonly ranges: number;
  /** Bytes of the ranges, all of them and by kind. */
  readonly bytes: number;
  readonly changed: number;
  readonly filled: number;
  readonly cleared: number;
  /** Bytes that were read of both disks. */
  readonly read: number;
}

/** Finds where two open images hold different disks. What both know to be zero is not read, nor what both have from the same place of the same
 *  file: of an overlay and its backing file, only what the overlay holds.
 *  @returns when the ranges are over, a summary (what `return` hands over; `for await` drops it)
 *  @throws {@link BlockError} INVALID_ARGUMENT, reason `diff.block`; whatever reading fails with; ABORTED. */
export async function* diffImages(
  first: Image,
  second: Image,
  options: DiffOptions = {},
): AsyncGenerator<DiffRange, DiffSummary, undefined> {
  const { block = DEFAULT_BLOCK, signal, onProgress } = options;
  const sizes = [first.virtualSize, second.virtualSize] as const;
  const walk = await DifferenceWalk.of(first, second, {
    block,
    end: Math.max(...sizes),
    ...(signal === undefined ? {} : { signal }),
    ...(onProgress === undefined ? {} : { onProgress }),
  });
  const bytes = { changed: 0, filled: 0, cleared: 0 };
  let ranges = 0;
  let held: DiffRange | undefined;
  for await (const window of walk.windows()) {
    for (const range of window.ranges) {
      bytes[range.kind] += range.length;
      if (held !== undefined && held.kind === range.kind && held.offset + held.length === range.offset) {
        held = { ...held, length: held.length + range.length };
        continue;
      }
      if (held !== undefined) yield held;
      held = range;
      ranges++;
    }
  }
  if (held !== undefined) yield held;
  return {
    equal: ranges === 0 && sizes[0] === sizes[1],
    sizes,
    block,
    ranges,
    bytes: bytes.changed + bytes.filled + bytes.cleared,
    ...bytes,
    read: walk.read,
  };
}
