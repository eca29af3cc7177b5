/** Copies disk contents from one or more images into another one: checks, sources, target, and their end.
 *  Invariants: everything that can be refused is refused before the target is touched; inputs are never written; at the end, good or
 *  bad, everything that was opened here is closed. */
import type { Pending } from '../base/async.ts';
import { BlockError } from '../base/errors.ts';
import type { JobOptions } from '../base/job.ts';
import { MiB } from '../base/sizes.ts';
import { backingChain } from '../core/node.ts';
import { UNKNOWN_SIZE } from '../core/store.ts';
import type { BackingChoice, CreatePlan } from '../image/create.ts';
import { Image } from '../image/image.ts';
import { type ImageDrivers, type OpenImageOptions, type OpenOptionsInput, openImage } from '../image/open.ts';
import { driversOf } from '../image/open-options.ts';
import type { ReferencePolicy } from '../image/references.ts';
import { bitmapsToCopy, copyBitmaps, requireBitmapTarget } from './convert-bitmaps.ts';
import { DiskCopy } from './convert-copy.ts';
import { convertForward, goesInTwoPasses, needOf, roomIn } from './convert-flow.ts';
import { PipePlace, SpooledPlace, type StreamTarget, sinkOf } from './convert-pipe.ts';
import { type CopySource, type SalvageOptions, SourceDisk, type SourcePart } from './convert-source.ts';
import {
  type ConvertStream,
  type OpenedStream,
  openStream,
  type SpoolEvent,
  type TemporaryFile,
} from './convert-stream.ts';
import {
  backingIdentity,
  createTarget,
  identitiesOf,
  isUnsafe,
  type OpenTarget,
  openExisting,
  planTarget,
} from './convert-target.ts';

/** How writes reach the target. `unsafe` (the default) asks for no flush at all; the others flush at the end,
 *  `writethrough` and `directsync` after every write. The page cache is used in every mode. */
export type CacheMode = 'none' | 'writeback' | 'writethrough' | 'directsync' | 'unsafe';

export interface ConvertSource
  extends Pick<OpenImageOptions, 'format' | 'options' | 'backing' | 'backingOptions' | 'snapshot' | 'forceShare'> {
  readonly name: string;
}

/** A part of an open image. Bytes of its disk; what lies past the disk's end is left out. */
export interface ConvertWindow {
  readonly image: Image;
  readonly offset: number;
  readonly length: number;
}

/** What can be converted: a name, a name and how it is opened, a stream, an open image, or a part of one. Open images stay open. */
export type ConvertInput = string | ConvertSource | ConvertStream | Image | ConvertWindow;

export interface ConvertTarget {
  /** For a stream: what messages call it, and where the names in the image start from. */
  readonly name: string;
  /** Where the image goes instead of a file; ended when it is whole. Not with `existing`. */
  readonly stream?: StreamTarget | undefined;
  /** Default `raw`; for `existing` targets: the format it is opened as, probed when not given. */
  readonly format?: string | undefined;
  /** Create options, by their TypeScript names; not with `existing`. */
  readonly options?: Readonly<Record<string, unknown>> | undefined;
  /** Only what differs from this file's content is written. With `existing`, the target must already have it. */
  readonly backing?: BackingChoice | undefined;
  /** Write into an image that is there already (`-n`). */
  readonly existing?: boolean | undefined;
  /** Open options of an `existing` target. */
  readonly openOptions?: OpenOptionsInput | undefined;
}

export interface ConvertOptions extends JobOptions, ImageDrivers {
  /** For the sources and their chains, and for an `existing` target. Default `deny`. */
  readonly references?: ReferencePolicy | undefined;
  readonly probeBacking?: boolean | undefined;
  /** Of all the files, those of the target included. As in {@link OpenImageOptions}. */
  readonly locking?: OpenImageOptions['locking'];
  /** Virtual size of the new image where it is to be larger than the sources. */
  readonly size?: number | undefined;
  readonly compressed?: boolean | undefined;
  /** Zero runs at least this long become holes; a multiple of 512, at most 16 MiB; 0: everything is written. Default 4096. */
  readonly sparseSize?: number | undefined;
  /** An `existing` target reads as zero everywhere already. */
  readonly targetIsZero?: boolean | undefined;
  /** Unreadable sectors become zeros, counted in the result and told to `onSalvage`. */
  readonly salvage?: boolean | undefined;
  /** Bytes per second at most. */
  readonly rateLimit?: number | undefined;
  /** Requests in flight, 1..16. Default 8. */
  readonly parallel?: number | undefined;
  /** Writes need not begin in the order of their offsets (`-W`). */
  readonly outOfOrder?: boolean | undefined;
  /** Default `unsafe`. */
  readonly cache?: CacheMode | undefined;
  /** Copy the dirty bitmaps of the source, of which there is one then: `all` of them, or those that are `usable`. Default: none. */
  readonly bitmaps?: 'all' | 'usable' | undefined;
  /** Told of an inconsistent bitmap that is left out. */
  readonly onBitmapSkipped?: ((name: string) => void) | undefined;
  /** Bytes of tables kept in memory, for each source and for the target. Default 32 MiB. */
  readonly cacheBytes?: number | undefined;
  /** Bytes of the joint disk. */
  readonly onSalvage?: ((offset: number, length: number, error: unknown) => void) | undefined;
  readonly onEvent?: OpenImageOptions['onEvent'];
  /** Makes a place for what cannot be streamed. Without it such conversions are refused. The Node face has one. */
  readonly temporary?: (() => Promise<TemporaryFile>) | undefined;
  /** Told of every temporary file, before it is made. */
  readonly onSpool?: ((event: SpoolEvent) => void) | undefined;
  /** Told what is about to be created, after all checks and before the target is touched. */
  readonly onPlan?: ((plan: CreatePlan) => void) | undefined;
}

/** Bytes of the guest disk; `copied + zeroed + kept` is the whole disk. */
export interface ConvertResult {
  readonly virtualSize: number;
  readonly copied: number;
  /** Left as holes, or written as zeros. */
  readonly zeroed: number;
  /** Left to the backing file. */
  readonly kept: number;
  /** Bytes that could not be read (`salvage`). */
  readonly unreadable: number;
  /** Sources, and an existing target, whose format was guessed to be raw. */
  readonly probedRaw: readonly string[];
}

export const DEFAULT_SPARSE = 4096;
export const DEFAULT_PARALLEL = 8;
const MAX_PARALLEL = 16;
const MAX_SPARSE = 16 * MiB;
/** Of a new disk whose size is not known yet, bytes. */
const FIRST_SIZE = 64 * MiB;

/** Converts. A new regular target is written under a temporary name beside it and renamed at the end; an existing one is replaced only then.
 *  Devices, pipes and `existing` targets are written in place.
 *  @throws {@link BlockError} Before anything is touched: OPTION and INVALID_ARGUMENT (`convert.no-input`, `convert.sparse-size`, `convert.parallel`,
 *  `convert.rate`, `convert.window`, `convert.window-backing`, `convert.compress-unsupported`, `convert.zero-needs-existing`, `convert.options-existing`, `convert.concat-backing`,
 *  `convert.target-is-input`, `convert.target-small`, `convert.bitmaps-concat`, `convert.bitmaps-source`, `convert.bitmaps-inconsistent`, `convert.bitmaps-target`, `convert.no-backing`, those of `planCreate` and `openImage`). Later: `convert.read`, `convert.status`
 *  and `convert.write` (details `{ name, offset }`, cause); `convert.bitmap-create`, `convert.bitmap-populate`; `convert.forward` (UNSUPPORTED); when the target was written in place, `details.incomplete`
 *  is true and the message says so. */
export async function convertImage(
  sources: readonly ConvertInput[],
  target: ConvertTarget,
  options: ConvertOptions,
): Promise<ConvertResult> {
  checkArguments(sources, target, options);
  const opened: { close(): Promise<void> }[] = [];
  const streams: OpenedStream[] = [];
  try {
    const need = sources.some(isStream) ? await needOf(sources, target, options) : 'forward';
    const windows: ConvertWindow[] = [];
    for (const source of sources) {
      if (source instanceof Image) windows.push(wholeOf(source));
      else if (isStream(source)) {
        const stream = await openStream(source, need, options);
        opened.push(stream);
        streams.push(stream);
        windows.push(wholeOf(stream.image));
      } else if (typeof source === 'object' && 'image' in source) windows.push(cut(source));
      else {
        const image = await openSource(source, options);
        opened.push(image);
        windows.push(wholeOf(image));
      }
    }
    return await convertOpened({ windows, streams }, target, options);
  } finally {
    for (const one of opened) await one.close();
  }
}

function isStream(source: ConvertInput): source is ConvertStream {
  return typeof source === 'object' && 'stream' in source;
}

function checkArguments(sources: readonly ConvertInput[], target: ConvertTarget, options: ConvertOptions): void {
  const { sparseSize = DEFAULT_SPARSE, parallel = DEFAULT_PARALLEL, rateLimit, targetIsZero } = options;
  if (sources.length === 0) throw refusal('convert.no-input', 'there is nothing to convert', {});
  if (!Number.isSafeInteger(sparseSize) || sparseSize < 0 || sparseSize % 512 !== 0 || sparseSize > MAX_SPARSE) {
    throw refusal('convert.sparse-size', `sparseSize ${sparseSize} is not a multiple of 512 up to ${MAX_SPARSE}`, {
      sparseSize,
    });
  }
  if (!Number.isSafeInteger(parallel) || parallel < 1 || parallel > MAX_PARALLEL) {
    throw refusal('convert.parallel', `parallel ${parallel} is not between 1 and ${MAX_PARALLEL}`, { parallel });
  }
  if (rateLimit !== undefined && !(rateLimit > 0)) {
    throw refusal('convert.rate', `rateLimit ${rateLimit} is not above 0`, { rateLimit });
  }
  if (targetIsZero === true && target.existing !== true) {
    throw refusal('convert.zero-needs-existing', 'targetIsZero is for existing targets', {});
  }
  if (target.existing === true && target.options !== undefined) {
    throw refusal('convert.options-existing', 'create options have no effect on an existing target', {});
  }
  if (target.backing !== undefined && sources.length > 1) {
    throw refusal('convert.concat-backing', 'a target made of several inputs cannot have a backing file', {});
  }
  if (target.existing === true && target.stream !== undefined) {
    throw refusal(
      'convert.stream-existing',
      `"${target.name}": a stream holds no image that could be written into`,
      {},
    );
  }
  if (options.salvage === true && sources.some(isStream)) {
    throw refusal('convert.stream-salvage', 'what a stream cannot give cannot be read again; salvage is for files', {});
  }
}

function refusal(reason: string, message: string, details: Readonly<Record<string, unknown>>): BlockError {
  return new BlockError('INVALID_ARGUMENT', message, { reason, details });
}

function wholeOf(image: Image): ConvertWindow {
  return { image, offset: 0, length: image.virtualSize };
}

/** @throws INVALID_ARGUMENT, reason `convert.window`. */
function cut({ image, offset, length }: ConvertWindow): ConvertWindow {
  if (!(Number.isSafeInteger(offset) && offset >= 0 && Number.isSafeInteger(length) && length >= 0)) {
    throw refusal('convert.window', `"${image.name}": ${length} bytes at ${offset} are no part of a disk`, {
      offset,
      length,
    });
  }
  const from = Math.min(offset, image.virtualSize);
  return { image, offset: from, length: Math.min(length, image.virtualSize - from) };
}

async function openSource(source: string | ConvertSource, options: ConvertOptions): Promise<Image> {
  const { references, probeBacking, cacheBytes, locking, signal, onEvent } = options;
  const {
    name,
    format,
    backing,
    backingOptions,
    snapshot,
    options: openOptions,
    forceShare,
  } = typeof source === 'string' ? { name: source } : (source as ConvertSource);
  return openImage(name, {
    ...driversOf(options),
    references,
    probeBacking,
    cacheBytes,
    signal,
    onEvent,
    format,
    backing,
    backingOptions,
    snapshot,
    options: openOptions,
    locking,
    forceShare,
    // half of it from before a change, and half from after it, is no copy of anything
    shareWrites: false,
  });
}

/** What is converted, opened. */
interface Sources {
  readonly windows: readonly ConvertWindow[];
  readonly streams: readonly OpenedStream[];
}

async function convertOpened(sources: Sources, target: ConvertTarget, options: ConvertOptions): Promise<ConvertResult> {
  const { windows, streams } = sources;
  const images = windows.map(({ image }) => image);
  const inputs = new Set<string>();
  for (const image of images) await identitiesOf(image.node, inputs);
  let unreadable = 0;
  const onLoss = (offset: number, length: number, error: unknown): void => {
    unreadable += length;
    options.onSalvage?.(offset, length, error);
  };
  const source = await sourceOf(sources, target, options, onLoss);
  const bitmaps = await bitmapsToCopy(windows, options);
  const opened = await openTarget(target, source.size, inputs, options);
  const probedRaw = (all: readonly Image[]): string[] => all.filter((image) => image.probedRaw).map(({ name }) => name);
  if ('plan' in opened) {
    // What cannot be read has been told of when it is read again.
    const again = await sourceOf(sources, target, options, () => {});
    const done = await convertForward(opened.plan, [source, again], streams, target, options);
    return { ...done, unreadable, probedRaw: probedRaw(images) };
  }
  try {
    requireBitmapTarget(opened.image, options);
    const room = opened.image.virtualSize === UNKNOWN_SIZE ? undefined : roomIn(opened, source, target);
    const copy = newCopy(source, images, opened, room, options);
    await copy.run();
    await room?.(source.size);
    await copyBitmaps(bitmaps, images[0] as Image, opened.image, options);
    for (const stream of streams) await stream.finish();
    await opened.commit();
    const virtualSize = opened.image.virtualSize === UNKNOWN_SIZE ? source.size : opened.image.virtualSize;
    const all = target.existing === true ? [...images, opened.image] : images;
    return { virtualSize, ...copy.counts, unreadable, probedRaw: probedRaw(all) };
  } catch (error) {
    throw await opened.discard(error);
  }
}

/** The disk that is copied. Its size is infinite where it ends with its stream. */
async function sourceOf(
  { windows, streams }: Sources,
  target: ConvertTarget,
  options: ConvertOptions,
  onLoss: SalvageOptions['onLoss'],
): Promise<CopySource> {
  const [stream] = streams;
  if (stream?.dataStart !== undefined && windows.length === 1) return stream.openDisk(stream.dataStart);
  const parts = await partsOf(windows, target, options);
  const inOrder = streams.some((one) => one.inOrder);
  return new SourceDisk(parts, options.salvage === true ? { onLoss } : undefined, inOrder);
}

/** Opens the target, or says that it is to be written in two passes. */
async function openTarget(
  target: ConvertTarget,
  size: number,
  inputs: ReadonlySet<string>,
  options: ConvertOptions,
): Promise<OpenTarget | { readonly plan: CreatePlan }> {
  const known = Number.isFinite(size);
  if (target.existing === true) return openExisting(target, known ? size : 0, inputs, options);
  const { stream } = target;
  const first = await planTarget(target, known ? size : 0, inputs, options);
  const straight = stream !== undefined && first.forward === 'data-follows';
  const plan = known ? first : await planTarget(target, straight ? UNKNOWN_SIZE : FIRST_SIZE, inputs, options);
  options.onPlan?.(plan);
  if (stream === undefined) return createTarget(plan, options);
  if (goesInTwoPasses(plan, size, options)) return { plan };
  const sink = sinkOf(target);
  return createTarget(plan, options, straight ? new PipePlace(sink) : await SpooledPlace.open(sink, options));
}

/** With a backing file, what a source has from the same file (or, where it has other files, from below its own layer) is kept. */
async function partsOf(
  windows: readonly ConvertWindow[],
  target: ConvertTarget,
  options: ConvertOptions,
): Promise<SourcePart[]> {
  const moved = windows.find(({ offset }) => offset !== 0);
  if (target.backing !== undefined && moved !== undefined) {
    throw refusal(
      'convert.window-backing',
      `"${moved.image.name}": only a part from its beginning can have a backing file`,
      {
        offset: moved.offset,
      },
    );
  }
  const base = await backingIdentity(target, options);
  const parts: SourcePart[] = [];
  let start = 0;
  for (const { image, offset, length } of windows) {
    const keepDepth = target.backing === undefined ? Number.POSITIVE_INFINITY : await keptFrom(image, base);
    parts.push({ image, start, size: length, from: offset, keepDepth });
    start += length;
  }
  return parts;
}

async function keptFrom(image: Image, base: string | undefined): Promise<number> {
  const chain = backingChain(image.node);
  for (const [depth, layer] of chain.entries()) {
    if (base !== undefined && (await layer.status?.())?.identity === base) return depth;
  }
  return chain.length > 1 ? 1 : Number.POSITIVE_INFINITY;
}

function newCopy(
  source: CopySource,
  images: readonly Image[],
  target: OpenTarget,
  makeRoom: ((end: number) => Pending) | undefined,
  options: ConvertOptions,
): DiskCopy {
  const { compressed, sparseSize, parallel, outOfOrder, cache, rateLimit, codecs, signal, onProgress } = options;
  const decodes = images.some((image) => image.node.format?.decode !== undefined);
  const layers = [target.image.node, ...images.flatMap((image) => backingChain(image.node))];
  const encrypts = layers.some(({ format }) => format?.transform !== undefined);
  return new DiskCopy(source, {
    target: target.image.node,
    targetName: target.image.name,
    guard: target.image.probedRaw ? target.image : undefined,
    compressed: compressed === true,
    sparseSize: sparseSize ?? DEFAULT_SPARSE,
    targetIsZero: target.isZero,
    backingSize: target.backingSize,
    parallel: parallel ?? DEFAULT_PARALLEL,
    outOfOrder: outOfOrder === true,
    writeThrough: !isUnsafe(options) && (cache === 'writethrough' || cache === 'directsync'),
    rateLimit,
    makeRoom,
    sharedBuffers: (codecs?.workers ?? 0) > 0 && (compressed === true || decodes || encrypts),
    ...(signal === undefined ? {} : { signal }),
    ...(onProgress === undefined ? {} : { onProgress }),
  });
}
