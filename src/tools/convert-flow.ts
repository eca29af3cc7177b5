/** Which way a conversion goes where one of its ends is a stream. Owns what a target asks of its sources, the two passes of an image whose tables
 *  go first, and a disk that grows with its source. */
import type { Pending } from '../base/async.ts';
import { cliName } from '../base/options.ts';
import type { CreatePlan } from '../image/create.ts';
import {
  type ConvertInput,
  type ConvertOptions,
  type ConvertResult,
  type ConvertTarget,
  DEFAULT_PARALLEL,
  DEFAULT_SPARSE,
} from './convert.ts';
import { sendForward, sinkOf, unfinished } from './convert-pipe.ts';
import { Scan } from './convert-scan.ts';
import type { CopySource } from './convert-source.ts';
import type { OpenedStream, StreamNeed } from './convert-stream.ts';
import { incomplete, type OpenTarget, planTarget, tooSmall } from './convert-target.ts';

/** What the target asks of a source that is a stream. What is wrong with the target is found out here, before the stream is touched. */
export async function needOf(
  sources: readonly ConvertInput[],
  target: ConvertTarget,
  options: ConvertOptions,
): Promise<StreamNeed> {
  // Where one disk ends, the next one begins.
  const least = sources.length === 1 ? 'forward' : 'size';
  if (target.existing !== true) {
    const plan = await planTarget(target, 0, new Set(), options);
    if (options.bitmaps === undefined && target.stream !== undefined) {
      if (plan.forward === 'data-follows') return least;
      if (goesInTwoPasses(plan, 0, options)) return options.sparseSize === 0 ? 'size' : 'random';
    }
    if (options.bitmaps === undefined) return canGrow(plan, target, options) ? least : 'size';
  }
  // Bitmaps lie anywhere.
  return options.bitmaps === undefined ? least : 'random';
}

/** All its tables can be written before the data.
 *  @param size of the source, bytes */
export function goesInTwoPasses(plan: CreatePlan, size: number, options: ConvertOptions): boolean {
  if (plan.forward !== 'tables' || options.compressed === true || options.bitmaps !== undefined) return false;
  // Where the disk goes on behind the source, its backing file must not show in a unit that both have a part of.
  return plan.backing === undefined || plan.size <= size || size === 0;
}

/** Whether the new disk can be made larger as more of its source comes: not where space or other files follow from its size. */
function canGrow(
  { driver, options: chosen, backing }: CreatePlan,
  target: ConvertTarget,
  options: ConvertOptions,
): boolean {
  if (driver.capabilities.resize !== true || backing !== undefined) return false;
  if (options.size !== undefined || target.options?.['size'] !== undefined) return false;
  const value = (name: string): unknown => {
    const found = Object.entries(driver.createOptions).find(([key, def]) => cliName(key, def) === name);
    return found === undefined ? undefined : chosen[found[0]];
  };
  return (value('preallocation') ?? 'off') === 'off' && value('data_file') === undefined;
}

/** Makes room in the target as more of the source comes, and cuts the disk to its size once that is known.
 *  @returns `undefined` where the size was known before. */
export function roomIn(
  { image }: OpenTarget,
  source: CopySource,
  target: ConvertTarget,
): ((end: number) => Pending) | undefined {
  if (Number.isFinite(source.size)) return undefined;
  return (end) => {
    if (target.existing === true) {
      if (end > image.virtualSize) throw tooSmall(target.name, image.virtualSize, end);
      return undefined;
    }
    if (Number.isFinite(source.size)) {
      return source.size === image.virtualSize ? undefined : image.resize(source.size, { shrink: true });
    }
    // By doubling: tables move when they grow.
    return end <= image.virtualSize ? undefined : image.resize(Math.max(end, 2 * image.virtualSize));
  };
}

/** Writes an image whose tables go before the data.
 *  @param passes the source, twice: the second one tells nobody of what cannot be read */
export async function convertForward(
  plan: CreatePlan,
  [first, second]: readonly [CopySource, CopySource],
  streams: readonly OpenedStream[],
  target: ConvertTarget,
  options: ConvertOptions,
): Promise<Omit<ConvertResult, 'unreadable' | 'probedRaw'>> {
  const { signal, onProgress, parallel = DEFAULT_PARALLEL, sparseSize = DEFAULT_SPARSE } = options;
  const image = await plan.planForward();
  const sink = sinkOf(target);
  try {
    const scan = new Scan(first, {
      size: image.virtualSize,
      unit: image.unit,
      backingSize: plan.backing?.size ?? 0,
      marksZeroes: image.marksZeroes,
      sparseSize,
      parallel,
      ...(signal === undefined ? {} : { signal }),
      ...(onProgress === undefined ? {} : { onProgress }),
    });
    await scan.run();
    await sendForward(second, sink, image, scan.units, { ...options, parallel });
    for (const stream of streams) await stream.finish();
    await sink.close();
    return { virtualSize: image.virtualSize, ...scan.counts };
  } catch (error) {
    const sent = sink.size > 0;
    await sink.giveUp(unfinished(target.name));
    throw sent ? incomplete(error, target.name) : error;
  }
}
