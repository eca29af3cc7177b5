/** Rebuilds what is left of a damaged image into a new one, and tells which ranges are certain, doubtful and lost.
 *  Invariants: the damaged image is opened read-only and never written; the target is a new file, which appears whole or not at all; every byte of the
 *  disk is in exactly one range of the report. */
import { BlockError } from '../base/errors.ts';
import type { JobOptions } from '../base/job.ts';
import type { RecoveredRange, RecoveryFacet } from '../core/recovery.ts';
import type { Image } from '../image/image.ts';
import { type OpenImageOptions, openImage, type RecoverChoice } from '../image/open.ts';
import { driversOf } from '../image/open-options.ts';
import { protocolOf } from '../image/references.ts';
import { type ConvertOptions, type ConvertTarget, convertImage } from './convert.ts';

export interface RecoverTarget extends Omit<ConvertTarget, 'existing' | 'openOptions' | 'format'> {
  /** Default: the format of the damaged image. */
  readonly format?: string | undefined;
}

export interface RecoverImageOptions
  extends Pick<OpenImageOptions, 'format' | 'backing' | 'snapshot'>,
    Omit<ConvertOptions, 'size' | 'salvage' | 'targetIsZero' | 'onSalvage'> {
  /** What is known of the image, by the names of its format's `recoverOptions`; a function is told which format it is. */
  readonly options?: RecoverChoice['options'];
  /** Doubtful content becomes part of the new image, or is left out of it as if it were lost. Default `include`. */
  readonly doubtful?: 'include' | 'leave-out' | undefined;
  /** What lost ranges read as in the new image. Default `zero`. */
  readonly lost?: 'zero' | 'backing' | undefined;
  /** Do not read the backing file: ranges that would show it read as zero. */
  readonly withoutBacking?: boolean | undefined;
  /** Told of every range, in order, once the new image is complete. */
  readonly onRange?: ((range: RecoveredRange) => void) | undefined;
}

/** Bytes of the disk; `certain + doubtful + lost` is the whole of it. */
export interface RecoverResult {
  readonly format: string;
  readonly virtualSize: number;
  readonly certain: number;
  readonly doubtful: number;
  readonly lost: number;
  /** What was found, in sentences for people. */
  readonly notes: readonly string[];
}

/** Recovers. Interrupted or failed, it leaves no target behind.
 *  @throws {@link BlockError} EXISTS `recover.exists`: the target is there already; UNSUPPORTED `image.recover`; as `openImage`, the format's own recovery
 *  and `convertImage`. */
export async function recoverImage(
  source: string,
  target: RecoverTarget,
  options: RecoverImageOptions,
): Promise<RecoverResult> {
  await requireNew(target.name, options);
  const { doubtful = 'include', lost = 'zero', withoutBacking, backing, onProgress, onRange, ...rest } = options;
  const { options: known, format, snapshot, ...converting } = rest;
  const { references, probeBacking, cacheBytes, signal, onEvent } = converting;
  const image = await openImage(source, {
    ...driversOf(converting),
    ...{ references, probeBacking, cacheBytes, signal, onEvent },
    ...{ format, snapshot, backing: withoutBacking === true ? undefined : backing },
    recover: {
      options: known,
      doubtful,
      lost,
      backing: withoutBacking === true ? 'none' : backing === undefined ? 'recorded' : 'given',
      ...(onProgress === undefined ? {} : { onProgress }),
    },
  });
  try {
    const unreadable = new Pieces();
    await convertImage(
      [image],
      { ...target, format: target.format ?? image.format },
      {
        ...converting,
        salvage: true,
        onSalvage: (offset, length) => unreadable.add(offset, length),
        ...(onProgress === undefined ? {} : { onProgress }),
      },
    );
    const { notes } = recoveryOf(image);
    const job: JobOptions = {
      ...(signal === undefined ? {} : { signal }),
      ...(onProgress === undefined ? {} : { onProgress }),
    };
    const sums = { certain: 0, doubtful: 0, lost: 0 };
    for await (const range of reportedRanges(image, unreadable, job)) {
      sums[range.state] += range.length;
      onRange?.(range);
    }
    return { format: image.format, virtualSize: image.virtualSize, ...sums, notes };
  } finally {
    await image.close();
  }
}

function recoveryOf({ node, name }: Image): RecoveryFacet {
  const { recovery } = node.format;
  if (recovery === undefined) throw new BlockError('INTERNAL', `internal error: "${name}" was not recovered`);
  return recovery;
}

async function requireNew(name: string, { protocols }: RecoverImageOptions): Promise<void> {
  if ((await protocolOf(name, protocols).status?.(name)) === undefined) return;
  throw new BlockError('EXISTS', `"${name}": is there already; a recovery writes to a new file only`, {
    reason: 'recover.exists',
    details: { name, errno: 'EEXIST' },
  });
}

/** The image's own ranges, with those that could not be read as lost ones. */
async function* reportedRanges(
  image: Image,
  unreadable: Pieces,
  job: JobOptions,
): AsyncGenerator<RecoveredRange, void, undefined> {
  const pieces = unreadable.sorted();
  let next = 0;
  for await (const range of recoveryOf(image).ranges(job)) {
    let at = range.start;
    const end = range.start + range.length;
    while (at < end) {
      while (next < pieces.length && (pieces[next] as Piece).end <= at) next++;
      const piece = pieces[next];
      if (piece === undefined || piece.start >= end) {
        yield { ...range, start: at, length: end - at };
        break;
      }
      if (piece.start > at) {
        yield { ...range, start: at, length: piece.start - at };
        at = piece.start;
      }
      const stop = Math.min(end, piece.end);
      yield { start: at, length: stop - at, state: 'lost', content: 'none', why: 'unreadable' };
      at = stop;
    }
  }
}

interface Piece {
  start: number;
  end: number;
}

/** What could not be read, in any order; neighbours that come one after the other are one piece. */
class Pieces {
  readonly #all: Piece[] = [];

  add(start: number, length: number): void {
    const last = this.#all.at(-1);
    if (last !== undefined && last.end === start) last.end += length;
    else this.#all.push({ start, end: start + length });
  }

  sorted(): readonly Piece[] {
    return this.#all.sort((a, b) => a.start - b.start);
  }
}
