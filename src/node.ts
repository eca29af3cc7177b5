/** The Node face: the isomorphic one with formats, the file protocol and compression on worker threads preset.
 *  Images are named by paths, `file:` URLs or open stores. Every preset can be overridden by the option of the same name. */
import { fileURLToPath } from 'node:url';
import type { Codecs } from './codec/codecs.ts';
import { createCodecs } from './codec/create.ts';
import type { Extent } from './core/extent.ts';
import type {
  BitmapInfo,
  ByteRange,
  Measurement,
  ReferenceRun,
  SnapshotInfo,
  SnapshotSelector,
} from './core/format.ts';
import type { BlockNode } from './core/node.ts';
import type { ByteStore } from './core/store.ts';
import { ALL_FORMATS } from './formats/all.ts';
import * as create from './image/create.ts';
import { Image, type NewSnapshot } from './image/image.ts';
import * as open from './image/open.ts';
import { fileProtocol } from './storage/file.ts';
import { temporaryFile } from './storage/temporary.ts';
import * as amend from './tools/amend.ts';
import * as apply from './tools/apply.ts';
import * as audit from './tools/audit.ts';
import * as bitmap from './tools/bitmap.ts';
import type { ByteSource } from './tools/byte-feed.ts';
import * as check from './tools/check.ts';
import * as checksum from './tools/checksum.ts';
import * as commit from './tools/commit.ts';
import * as compare from './tools/compare.ts';
import * as convert from './tools/convert.ts';
import * as delta from './tools/delta.ts';
import * as detach from './tools/detach.ts';
import * as diff from './tools/diff.ts';
import type { DiffRange } from './tools/difference.ts';
import * as info from './tools/info.ts';
import * as map from './tools/map.ts';
import * as measure from './tools/measure.ts';
import * as rebase from './tools/rebase.ts';
import * as recover from './tools/recover.ts';
import * as resize from './tools/resize.ts';
import * as snapshot from './tools/snapshot.ts';

export { ALL_FILTERS } from './filters/all.ts';
export { ALL_FORMATS } from './formats/all.ts';
export { qcow2 } from './formats/qcow2/driver.ts';
export { raw } from './formats/raw/driver.ts';
export * from './index.ts';
export { attachSocket, type SocketReceiver, SocketTransport } from './platform/node/socket-transport.ts';
export { fileProtocol } from './storage/file.ts';

/** The same options, with drivers and codecs preset. */
export type Preset<T> = Omit<T, keyof open.ImageDrivers> & Partial<open.ImageDrivers>;

/** A path, or a `file:` URL. */
export type FileName = string | URL;

let sharedCodecs: Codecs | undefined;

/** One set of worker threads for the whole process; none is started before there is bulk work, and idle ones do not keep the process alive. */
function presets(): open.ImageDrivers {
  sharedCodecs ??= createCodecs();
  return { formats: ALL_FORMATS, protocols: [fileProtocol], codecs: sharedCodecs };
}

function pathOf(name: FileName): string {
  return typeof name === 'string' ? name : fileURLToPath(name);
}

function sourceOf<T extends object>(source: FileName | T): string | T {
  return typeof source === 'string' || source instanceof URL ? pathOf(source) : source;
}

/** Opens an image: a path, a `file:` URL or an open store.
 *  @throws {@link BlockError} as the isomorphic `openImage`. */
export function openImage(source: FileName | BlockNode, options: Preset<open.OpenImageOptions> = {}): Promise<Image> {
  return open.openImage(sourceOf<BlockNode>(source), { ...presets(), ...options });
}

/** Creates an image, replacing a file of that name unless `exclusive`.
 *  @throws {@link BlockError} as `planCreate`. */
export function createImage(target: FileName | ByteStore, options: Preset<create.CreateImageOptions>): Promise<void> {
  return create.createImage(sourceOf<ByteStore>(target), { ...presets(), ...options });
}

/** Checks what can be checked before creating an image.
 *  @throws {@link BlockError} as the isomorphic `planCreate`. */
export function planCreate(
  target: FileName | ByteStore,
  options: Preset<create.CreateImageOptions>,
): Promise<create.CreatePlan> {
  return create.planCreate(sourceOf<ByteStore>(target), { ...presets(), ...options });
}

/** What an image could do to whoever opens it; nothing that it names is opened.
 *  @throws {@link BlockError} as the isomorphic `auditImage`. */
export function auditImage(
  source: FileName | BlockNode,
  options: Preset<audit.AuditImageOptions> = {},
): Promise<audit.AuditReport> {
  return audit.auditImage(sourceOf<BlockNode>(source), { ...presets(), ...options });
}

/** Facts of one layer.
 *  @throws {@link BlockError} as `openImage`. */
export function imageInfo(
  source: FileName | Image,
  options: Preset<open.OpenImageOptions> = {},
): Promise<info.ImageInfo> {
  return info.imageInfo(sourceOf<Image>(source), { ...presets(), ...options });
}

/** Facts of every layer, top first.
 *  @throws {@link BlockError} as the isomorphic `chainInfo`. */
export function chainInfo(source: FileName, options: Preset<open.OpenImageOptions> = {}): Promise<info.ImageInfo[]> {
  return info.chainInfo(pathOf(source), { ...presets(), ...options });
}

/** Extents of an image, which is opened and closed here when it is given by name.
 *  @throws {@link BlockError} as `openImage` and the isomorphic `mapImage`. */
export async function* mapImage(
  source: FileName | Image,
  options: map.MapOptions & Preset<open.OpenImageOptions> = {},
): AsyncGenerator<Extent, void, undefined> {
  const { start, length, ...opening } = options;
  await using opened = await Opened.of(source, opening);
  yield* map.mapImage(opened.image, { start, length, signal: options.signal });
}

/** How often each part of an image's file is referred to; the image is opened and closed here when it is given by name.
 *  @throws {@link BlockError} as `openImage` and the isomorphic `mapReferences`. */
export async function* mapReferences(
  source: FileName | Image,
  options: Preset<open.OpenImageOptions> = {},
): AsyncGenerator<ReferenceRun, void, undefined> {
  await using opened = await Opened.of(source, { references: 'layer-only', ...options });
  yield* map.mapReferences(opened.image, { signal: options.signal });
}

/** Hashes what a guest would read of an image, which is opened and closed here when it is given by name.
 *  @throws {@link BlockError} as `openImage` and the isomorphic `checksumImage`. */
export async function checksumImage(
  source: FileName | Image,
  options: checksum.ChecksumOptions & Preset<open.OpenImageOptions> = {},
): Promise<checksum.Checksum> {
  const codecs = options.codecs ?? presets().codecs;
  await using opened = await Opened.of(source, options);
  return await checksum.checksumImage(opened.image, { ...options, codecs });
}

/** Compares two images, which are opened and closed here when they are given by name.
 *  @throws {@link BlockError} as `openImage` and the isomorphic `compareImages`. */
export async function compareImages(
  a: FileName | Image,
  b: FileName | Image,
  options: compare.CompareOptions & Preset<open.OpenImageOptions> = {},
): Promise<compare.CompareResult> {
  const { strict, onProgress, ...opening } = options;
  await using first = await Opened.of(a, opening);
  await using second = await Opened.of(b, opening);
  return await compare.compareImages(first.image, second.image, options);
}

/** Finds where two images differ; they are opened and closed here when they are given by name.
 *  @returns as the isomorphic `diffImages`
 *  @throws {@link BlockError} as `openImage` and the isomorphic `diffImages`. */
export async function* diffImages(
  first: FileName | Image,
  second: FileName | Image,
  options: diff.DiffOptions & Preset<open.OpenImageOptions> = {},
): AsyncGenerator<DiffRange, diff.DiffSummary, undefined> {
  const { block, onProgress, ...opening } = options;
  await using a = await Opened.of(first, opening);
  await using b = await Opened.of(second, opening);
  return yield* diff.diffImages(a.image, b.image, options);
}

/** Writes what makes the disk of `first` that of `second` to a delta file; images given by name are opened and closed here.
 *  @throws {@link BlockError} as `openImage` and the isomorphic `writeDelta`. */
export async function writeDelta(
  first: FileName | Image,
  second: FileName | Image,
  target: FileName | ByteStore,
  options: delta.DeltaOptions & Preset<open.OpenImageOptions> = {},
): Promise<delta.DeltaResult> {
  const { block, compression, checksums, onProgress, ...opening } = options;
  await using a = await Opened.of(first, opening);
  await using b = await Opened.of(second, opening);
  return await delta.writeDelta(a.image, b.image, sourceOf<ByteStore>(target), { ...presets(), ...options });
}

/** Makes the disk of an image what a delta leads to; an image given by name is opened for writing, and closed, here.
 *  @throws {@link BlockError} as `openImage` and the isomorphic `applyDelta`. */
export async function applyDelta(
  image: FileName | Image,
  source: FileName | ByteSource,
  options: apply.ApplyOptions & Preset<open.OpenImageOptions> = {},
): Promise<apply.ApplyResult> {
  const { resume, verify, name, onProgress, ...opening } = options;
  const file = typeof source === 'string' || source instanceof URL ? pathOf(source) : undefined;
  const store = file === undefined ? undefined : await fileProtocol.open(file, { readOnly: true });
  try {
    await using opened = await Opened.of(image, { ...opening, readOnly: false });
    const from = store ?? (source as ByteSource);
    return await apply.applyDelta(opened.image, from, { ...presets(), name: file, ...options });
  } finally {
    await store?.close();
  }
}

/** Checks, and with `fix` repairs, an image.
 *  @throws {@link BlockError} as the isomorphic `checkImage`. */
export function checkImage(name: FileName, options: Preset<check.CheckImageOptions> = {}): Promise<check.CheckReport> {
  return check.checkImage(pathOf(name), { ...presets(), ...options });
}

/** Space that a new image would need.
 *  @throws {@link BlockError} as the isomorphic `measureImage`. */
export function measureImage(options: Preset<measure.MeasureOptions>): Promise<Measurement> {
  return measure.measureImage({ ...presets(), ...options });
}

/** Converts one or more images into another one.
 *  @throws {@link BlockError} as the isomorphic `convertImage`. */
export function convertImage(
  sources: URL | convert.ConvertInput | readonly (URL | convert.ConvertInput)[],
  target: FileName | convert.ConvertTarget,
  options: Preset<convert.ConvertOptions> = {},
): Promise<convert.ConvertResult> {
  const list = Array.isArray(sources)
    ? (sources as readonly (URL | convert.ConvertInput)[])
    : [sources as URL | convert.ConvertInput];
  return convert.convertImage(
    list.map((source) => sourceOf<Exclude<convert.ConvertInput, string>>(source)),
    typeof target === 'string' || target instanceof URL ? { name: pathOf(target) } : target,
    { ...presets(), temporary: () => temporaryFile(), ...options },
  );
}

/** Writes what an image holds into its backing file, and empties it.
 *  @throws {@link BlockError} as the isomorphic `commitImage`. */
export function commitImage(name: FileName, options: Preset<commit.CommitOptions> = {}): Promise<commit.CommitResult> {
  return commit.commitImage(pathOf(name), { ...presets(), ...options });
}

/** Gives an image another backing file, or none.
 *  @throws {@link BlockError} as the isomorphic `rebaseImage`. */
export function rebaseImage(name: FileName, options: Preset<rebase.RebaseOptions>): Promise<rebase.RebaseResult> {
  return rebase.rebaseImage(pathOf(name), { ...presets(), ...options });
}

/** Changes what an image was created with.
 *  @throws {@link BlockError} as the isomorphic `amendImage`. */
export function amendImage(
  source: FileName | Image,
  changes: Readonly<Record<string, unknown>>,
  options: Preset<amend.AmendImageOptions> = {},
): Promise<void> {
  return amend.amendImage(sourceOf<Image>(source), changes, { ...presets(), ...options });
}

/** Makes the disk of an image larger or smaller.
 *  @throws {@link BlockError} as the isomorphic `resizeImage`. */
export function resizeImage(
  source: FileName | Image,
  size: number,
  options: Preset<resize.ResizeImageOptions> = {},
): Promise<void> {
  return resize.resizeImage(sourceOf<Image>(source), size, { ...presets(), ...options });
}

/** Makes the data file of an image an image of its own.
 *  @throws {@link BlockError} as the isomorphic `detachImage`. */
export function detachImage(name: FileName, options: Preset<detach.DetachOptions> = {}): Promise<detach.DetachResult> {
  return detach.detachImage(pathOf(name), { ...presets(), ...options });
}

/** Rebuilds what is left of a damaged image into a new one.
 *  @throws {@link BlockError} as the isomorphic `recoverImage`. */
export function recoverImage(
  source: FileName,
  target: FileName | recover.RecoverTarget,
  options: Preset<recover.RecoverImageOptions> = {},
): Promise<recover.RecoverResult> {
  return recover.recoverImage(
    pathOf(source),
    typeof target === 'string' || target instanceof URL ? { name: pathOf(target) } : target,
    { ...presets(), ...options },
  );
}

/** The snapshots inside an image, oldest first.
 *  @throws {@link BlockError} as `openImage`. */
export function listSnapshots(
  source: FileName | Image,
  options: Preset<snapshot.SnapshotOptions> = {},
): Promise<readonly SnapshotInfo[]> {
  return snapshot.listSnapshots(sourceOf<Image>(source), { ...presets(), ...options });
}

/** Freezes the present content of an image under a name.
 *  @throws {@link BlockError} as the isomorphic `createSnapshot`. */
export function createSnapshot(
  source: FileName | Image,
  made: NewSnapshot,
  options: Preset<snapshot.SnapshotOptions> = {},
): Promise<SnapshotInfo> {
  return snapshot.createSnapshot(sourceOf<Image>(source), made, { ...presets(), ...options });
}

/** Makes an image what it was when the snapshot was made.
 *  @throws {@link BlockError} as the isomorphic `applySnapshot`. */
export function applySnapshot(
  source: FileName | Image,
  which: SnapshotSelector,
  options: Preset<snapshot.SnapshotOptions> = {},
): Promise<void> {
  return snapshot.applySnapshot(sourceOf<Image>(source), which, { ...presets(), ...options });
}

/** Deletes a snapshot.
 *  @throws {@link BlockError} as the isomorphic `deleteSnapshot`. */
export function deleteSnapshot(
  source: FileName | Image,
  which: SnapshotSelector,
  options: Preset<snapshot.SnapshotOptions> = {},
): Promise<void> {
  return snapshot.deleteSnapshot(sourceOf<Image>(source), which, { ...presets(), ...options });
}

/** The dirty bitmaps of an image, oldest first.
 *  @throws {@link BlockError} as the isomorphic `listBitmaps`. */
export function listBitmaps(
  source: FileName | Image,
  options: Preset<bitmap.BitmapOptions> = {},
): Promise<readonly BitmapInfo[]> {
  return bitmap.listBitmaps(sourceOf<Image>(source), { ...presets(), ...options });
}

/** Makes, removes or changes a dirty bitmap of an image.
 *  @throws {@link BlockError} as the isomorphic `changeBitmap`. */
export function changeBitmap(
  source: FileName | Image,
  name: string,
  actions: readonly bitmap.BitmapAction[],
  options: Preset<bitmap.BitmapOptions> = {},
): Promise<void> {
  return bitmap.changeBitmap(sourceOf<Image>(source), name, actions, { ...presets(), ...options });
}

/** The parts of the disk that a dirty bitmap marks.
 *  @throws {@link BlockError} as the isomorphic `dirtyExtents`. */
export function dirtyExtents(
  source: FileName | Image,
  name: string,
  options: Preset<bitmap.BitmapOptions> = {},
): AsyncGenerator<ByteRange, void, undefined> {
  return bitmap.dirtyExtents(sourceOf<Image>(source), name, { ...presets(), ...options });
}

/** An image for one call: closed afterwards when it was opened for it. */
class Opened implements AsyncDisposable {
  readonly image: Image;
  readonly #ours: boolean;

  private constructor(image: Image, ours: boolean) {
    this.image = image;
    this.#ours = ours;
  }

  static async of(source: FileName | Image, options: Preset<open.OpenImageOptions>): Promise<Opened> {
    if (source instanceof Image) return new Opened(source, false);
    return new Opened(await openImage(source, options), true);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.#ours) await this.image.close();
  }
}
