/** The users' face over one opened image: promises, streams and iterables over its node.
 *  Owns the closing of everything that was opened for it, and the guard of guessed raw images.
 *  Invariant: an image whose format was guessed to be raw is never written so that the next probe finds another format. */
import { BlockError } from '../base/errors.ts';
import { type JobOptions, Pacer, throwIfAborted } from '../base/job.ts';
import { checkOptions, type OptionSchema, type OptionsInput } from '../base/options.ts';
import { MiB } from '../base/sizes.ts';
import { type Extent, ExtentList } from '../core/extent.ts';
import type {
  AmendRun,
  BitmapFacet,
  BitmapInfo,
  BitmapRequest,
  ByteRange,
  CheckOptions,
  CheckResult,
  FormatDriver,
  FormatInfo,
  FormatNode,
  ImageEvent,
  SnapshotInfo,
  SnapshotRequest,
  SnapshotSelector,
} from '../core/format.ts';
import type { MappedNode } from '../core/mapped-node.ts';
import type { BlockNode } from '../core/node.ts';
import type { Preallocation, WriteOptions, ZeroOptions } from '../core/store.ts';
import type { LaterClaims } from './claims.ts';
import type { EventHub } from './events.ts';
import { probeBytes } from './probe.ts';
import type { Reopener, ReopenOptions } from './reopen.ts';

export interface ReadableOptions {
  /** Bytes. Default 0. */
  readonly offset?: number;
  /** Bytes. Default: to the end. */
  readonly length?: number;
  /** Bytes of one chunk. Default 1 MiB. */
  readonly chunkSize?: number;
  readonly signal?: AbortSignal;
}

export interface WritableOptions {
  /** Where the first byte goes. Default 0. */
  readonly offset?: number;
}

export interface ExtentsOptions {
  /** Bytes. Default 0. */
  readonly offset?: number | undefined;
  /** Bytes, cut at the end of the disk. Default: to the end. */
  readonly length?: number | undefined;
  readonly signal?: AbortSignal | undefined;
}

export interface ResizeOptions {
  /** Allow the disk to become smaller; what lies behind its new end is lost. Default false. */
  readonly shrink?: boolean | undefined;
  /** Space for what is new: none, only the tables that map it (`metadata`), reserved, or written. Default `off`. */
  readonly preallocation?: Preallocation | 'metadata' | undefined;
}

/** A snapshot that is to be made. */
export interface NewSnapshot extends Omit<SnapshotRequest, 'dateSeconds' | 'dateNanoseconds'> {
  /** When it was made: the library has no clock of its own. */
  readonly date: Date;
}

/** What `openImage` hands over. */
export interface ImageParts {
  readonly node: MappedNode;
  readonly name: string;
  /** Where names in it start from. */
  readonly location: string | undefined;
  readonly driver: FormatDriver;
  /** The formats that were probed, when nothing but the one that matches everything did. */
  readonly guessedAmong: readonly FormatDriver[] | undefined;
  /** The backing file as it was found last. */
  backing(): { readonly name: string | undefined; readonly format: string | undefined } | undefined;
  readonly claims: LaterClaims;
  readonly reopener: Reopener;
  readonly hub: EventHub;
  /** Everything that was opened by name. */
  readonly files: readonly BlockNode[];
}

/** Bytes at the beginning that probing looks at. */
const HEAD_BYTES = 2048;

/** One opened image. Offsets and lengths are bytes of the guest disk. */
export class Image implements AsyncDisposable {
  /** The node behind it, for tools and servers. */
  readonly node: MappedNode;
  /** As it was given to `openImage`; for a graph its plain name, or all of it as `json:{…}` where no plain name leads back to it. */
  readonly name: string;
  /** The name of its file, where the names in it start from; `undefined` where it has none. */
  readonly location: string | undefined;
  /** Name of the format driver. */
  readonly format: string;
  readonly #parts: ImageParts;
  #closing: Promise<void> | undefined;

  /** Made by `openImage`. */
  constructor(parts: ImageParts) {
    this.#parts = parts;
    this.node = parts.node;
    this.name = parts.name;
    this.location = parts.location;
    this.format = parts.driver.name;
  }

  get readOnly(): boolean {
    return this.#parts.reopener.settings.readOnly;
  }

  /** The name that the recorded backing file name means from here; `undefined` where there is none or it cannot be told. */
  get backingName(): string | undefined {
    return this.#parts.backing()?.name;
  }

  /** The format that the backing file is opened as: as recorded, as the format of this image has it, or as the caller chose; `undefined` where
   *  it has to be found out. */
  get backingFormat(): string | undefined {
    return this.#parts.backing()?.format;
  }

  /** The format was not given, and nothing but `raw` matched: writes that would make it look like another format are refused. */
  get probedRaw(): boolean {
    return this.#parts.guessedAmong !== undefined;
  }

  /** Bytes. */
  get virtualSize(): number {
    return this.node.size;
  }

  /** Reads `length` bytes into a new buffer, or fills the given one.
   *  @throws {@link BlockError} OUT_OF_RANGE past the end of the disk. */
  async read(
    offset: number,
    into: number | Uint8Array,
    options?: { readonly signal?: AbortSignal },
  ): Promise<Uint8Array> {
    if (typeof into !== 'number') {
      await this.node.read(offset, into, options);
      return into;
    }
    if (!Number.isSafeInteger(into) || into < 0 || into > this.virtualSize) {
      throw new BlockError('OUT_OF_RANGE', `"${this.name}": read of ${into} bytes`, { reason: 'image.length' });
    }
    const bytes = new Uint8Array(into);
    await this.node.read(offset, bytes, options);
    return bytes;
  }

  /** Writes all of `bytes` or throws.
   *  @throws {@link BlockError} READ_ONLY, OUT_OF_RANGE; ACCESS, reason `image.raw-signature`, when a guessed raw image would become another format. */
  async write(offset: number, bytes: Uint8Array, options?: WriteOptions): Promise<void> {
    await this.#guardSignature(offset, bytes);
    await this.node.write(offset, bytes, options);
  }

  /** The range reads as zero afterwards. */
  async writeZeroes(offset: number, length: number, options?: ZeroOptions): Promise<void> {
    await this.node.writeZeroes(offset, length, options);
  }

  /** A hint: the range's content is no longer needed. */
  async discard(offset: number, length: number): Promise<void> {
    await this.node.discard(offset, length);
  }

  /** Everything written before is durable afterwards. */
  async flush(): Promise<void> {
    await this.node.flush();
  }

  /** Status of the range, in order; neighbours are one extent when they say the same and their places in the file continue. */
  async *extents(options: ExtentsOptions = {}): AsyncGenerator<Extent, void, undefined> {
    const size = this.virtualSize;
    let at = options.offset ?? 0;
    const end = Math.min(size, at + (options.length ?? size));
    const list = new ExtentList(1024);
    const pacer = new Pacer();
    let held: Extent | undefined;
    while (at < end) {
      throwIfAborted(options.signal);
      list.reset(at);
      const pending = this.node.extents(at, end - at, list);
      if (pending !== undefined) await pending;
      if (list.end <= at) throw new BlockError('INTERNAL', `internal error: "${this.name}" has no status at ${at}`);
      at = list.end;
      for (const extent of list) {
        const joined = held === undefined ? undefined : joinExtents(held, extent);
        if (held !== undefined && joined === undefined) yield held;
        held = joined ?? extent;
      }
      if (pacer.due) await pacer.pause(options.signal);
    }
    if (held !== undefined) yield held;
  }

  /** The disk's bytes as a Web Stream. */
  readable(options: ReadableOptions = {}): ReadableStream<Uint8Array> {
    const { chunkSize = MiB, signal } = options;
    let at = options.offset ?? 0;
    const end = options.length === undefined ? this.virtualSize : at + options.length;
    return new ReadableStream<Uint8Array>(
      {
        pull: async (controller) => {
          throwIfAborted(signal);
          if (at < end) {
            const bytes = new Uint8Array(Math.min(chunkSize, end - at));
            await this.node.read(at, bytes);
            at += bytes.length;
            controller.enqueue(bytes);
          }
          if (at >= end) controller.close();
        },
      },
      { highWaterMark: 1 },
    );
  }

  /** Writes what comes, one chunk after the other; closing the stream flushes the image and leaves it open. */
  writable(options: WritableOptions = {}): WritableStream<Uint8Array> {
    let at = options.offset ?? 0;
    return new WritableStream<Uint8Array>({
      write: async (bytes) => {
        await this.write(at, bytes);
        at += bytes.length;
      },
      close: () => this.flush(),
    });
  }

  /** Facts of this layer; `imageInfo` of the tools has more. */
  async info(): Promise<FormatInfo> {
    return this.#formatNode().info();
  }

  /** Checks this layer.
   *  @throws {@link BlockError} UNSUPPORTED, reason `check.unsupported`. */
  async check(options: CheckOptions = {}): Promise<CheckResult> {
    const { check } = this.#formatNode();
    if (check === undefined) {
      throw new BlockError('UNSUPPORTED', `${this.format} "${this.name}": the format has no consistency check`, {
        reason: 'check.unsupported',
        details: { format: this.format },
      });
    }
    return check.check(options);
  }

  /** Gives the disk another size. What is new reads as zeros. Running requests end first, later ones wait.
   *  @param size bytes; most formats want a multiple of 512
   *  @throws {@link BlockError} INVALID_ARGUMENT, reason `image.shrink`, for a smaller size without `shrink`; READ_ONLY; UNSUPPORTED, reason
   *  `store.truncate`, where the size cannot be changed; LOCKED; OPTION, TOO_LARGE from the format. */
  async resize(size: number, options: ResizeOptions = {}): Promise<void> {
    const { shrink, preallocation } = options;
    if (size < this.virtualSize && shrink !== true) {
      throw new BlockError(
        'INVALID_ARGUMENT',
        `"${this.name}": the disk has ${this.virtualSize} bytes and would lose some of them with ${size}; pass shrink: true to allow it`,
        { reason: 'image.shrink', details: { size, old: this.virtualSize } },
      );
    }
    this.#parts.claims.resizing();
    await this.node.resize(size, preallocation);
  }

  /** Opens the image anew with other settings: for writing or for reading only, with other options of the format. Running requests end first,
   *  later ones wait; everything written before is durable then.
   *  @throws {@link BlockError} as `openImage`; the image is open as before. READ_ONLY, reason `image.reopen-store`, where a store that cannot be
   *  written was passed in. `image.reopen-lost`: it could not be opened again at all, and every later request fails. */
  async reopen(changes: ReopenOptions): Promise<void> {
    await this.#parts.reopener.reopen(this.node, changes);
  }

  /** Another program has written to the image: everything in memory is given up, unwritten changes included, and the image is read anew.
   *  Running requests end first, later ones wait.
   *  @throws {@link BlockError} as {@link reopen}; UNSUPPORTED, reason `image.invalidate`. */
  async invalidate(): Promise<void> {
    await this.#parts.reopener.invalidate(this.node);
  }

  /** What {@link amend} takes; `undefined` where images of the format cannot be amended. */
  get amendOptions(): OptionSchema | undefined {
    return this.#parts.driver.amendOptions;
  }

  /** Changes what the image was created with, by the TypeScript names of the format's amend options; what is not given stays. The disk's
   *  content stays too. Running requests end first, later ones wait.
   *  @throws {@link BlockError} UNSUPPORTED, reason `engine.amend`; READ_ONLY; LOCKED; OPTION for options that the format does not have or accept;
   *  ABORTED: some of what was asked may have been done, each part whole or not at all. */
  async amend(options: Readonly<Record<string, unknown>>, run: AmendRun = {}): Promise<void> {
    const { amendOptions } = this;
    const checked = amendOptions === undefined ? {} : checkOptions(amendOptions, options as OptionsInput<OptionSchema>);
    await this.#parts.claims.amending(() => this.node.amend(checked, run));
  }

  /** The snapshots that the image holds of itself, oldest first. */
  get snapshots(): readonly SnapshotInfo[] {
    return this.#formatNode().snapshots?.list() ?? [];
  }

  /** Freezes the present content under a name. It takes no copy: what changes afterwards is written elsewhere.
   *  @throws {@link BlockError} UNSUPPORTED, reasons `engine.snapshots`, `qcow2.snapshot-data-file`; READ_ONLY; TOO_LARGE, reasons
   *  `qcow2.snapshot-count`, `qcow2.snapshot-table-limit`, `qcow2.snapshot-refcount`; INVALID_ARGUMENT `qcow2.snapshot-request`; then nothing
   *  has changed. */
  async createSnapshot(snapshot: NewSnapshot, options?: JobOptions): Promise<SnapshotInfo> {
    const { date, ...request } = snapshot;
    const milliseconds = date.getTime();
    return await this.node.createSnapshot(
      {
        ...request,
        dateSeconds: Math.floor(milliseconds / 1000),
        dateNanoseconds: (((milliseconds % 1000) + 1000) % 1000) * 1_000_000,
      },
      options,
    );
  }

  /** Makes the disk what it was, its size included; the snapshot stays. A text is an id or, where no snapshot has that id, a name.
   *  @throws {@link BlockError} NOT_FOUND, reason `qcow2.snapshot-missing`; as {@link createSnapshot}. */
  async applySnapshot(which: SnapshotSelector, options?: JobOptions): Promise<void> {
    await this.node.applySnapshot(which, options);
  }

  /** @throws as {@link applySnapshot}. */
  async deleteSnapshot(which: SnapshotSelector, options?: JobOptions): Promise<void> {
    await this.node.deleteSnapshot(which, options);
  }

  /** The dirty bitmaps that the image keeps, oldest first. @throws {@link BlockError} CORRUPT for a broken directory of them. */
  async bitmaps(): Promise<readonly BitmapInfo[]> {
    return (await this.#formatNode().bitmaps?.list()) ?? [];
  }

  /** Makes a dirty bitmap, which marks what is changed from now on. This and every other change of bitmaps reaches the file when the image is
   *  closed.
   *  @throws {@link BlockError} UNSUPPORTED, reasons `engine.bitmaps`, `qcow2.bitmap-version`; INVALID_ARGUMENT, reasons
   *  `qcow2.bitmap-name-empty`, `qcow2.bitmap-name-length`, `qcow2.bitmap-granularity`, `qcow2.bitmap-exists`; TOO_LARGE, reasons
   *  `qcow2.bitmap-too-large`, `qcow2.bitmap-count`, `qcow2.bitmap-directory-limit`; READ_ONLY; then nothing has changed. */
  async addBitmap(bitmap: BitmapRequest): Promise<void> {
    await this.node.changeBitmaps((bitmaps) => bitmaps.add(bitmap));
  }

  /** Drops a bitmap, inconsistent ones too. @throws {@link BlockError} NOT_FOUND, reason `qcow2.bitmap-missing`; as {@link addBitmap}. */
  async removeBitmap(name: string): Promise<void> {
    await this.node.changeBitmaps((bitmaps) => bitmaps.remove(name));
  }

  /** Marks nothing any more. @throws as {@link removeBitmap}; CORRUPT, reason `qcow2.bitmap-inconsistent`. */
  async clearBitmap(name: string): Promise<void> {
    await this.node.changeBitmaps((bitmaps) => bitmaps.clear(name));
  }

  /** From now on it marks changes. @throws as {@link clearBitmap}. */
  async enableBitmap(name: string): Promise<void> {
    await this.node.changeBitmaps((bitmaps) => bitmaps.setEnabled(name, true));
  }

  /** From now on it keeps what it marks. @throws as {@link clearBitmap}. */
  async disableBitmap(name: string): Promise<void> {
    await this.node.changeBitmaps((bitmaps) => bitmaps.setEnabled(name, false));
  }

  /** Marks in the bitmap `into` what the bitmap `from` marks as well, whatever the granularities.
   *  @param image whose bitmap `from` is; this image when not given. Its disk has the size of this one.
   *  @throws as {@link clearBitmap}, for both; INVALID_ARGUMENT, reason `image.bitmap-sizes`. */
  async mergeBitmap(into: string, from: string, image: Image = this): Promise<void> {
    await this.node.changeBitmaps(async (bitmaps) => {
      const mark = await requireBitmap(bitmaps, into, this);
      const source = image.#bitmapFacet(from);
      const marked = await requireBitmap(source, from, image);
      // Of inconsistent ones the format tells.
      const usable = !mark.inconsistent && !marked.inconsistent;
      if (usable && image.virtualSize !== this.virtualSize) {
        throw new BlockError(
          'INVALID_ARGUMENT',
          `"${this.name}": the disk of bitmap '${from}' has ${image.virtualSize} bytes, this one ${this.virtualSize}: the bitmaps cannot be merged`,
          { reason: 'image.bitmap-sizes', details: { size: this.virtualSize, other: image.virtualSize } },
        );
      }
      await bitmaps.merge(into, source.dirty(from));
    });
  }

  /** What a bitmap marks: parts of the disk in order, none touching the next.
   *  @throws as {@link clearBitmap}; CORRUPT, reason `qcow2.bitmap-table`. */
  async *dirtyExtents(bitmap: string): AsyncGenerator<ByteRange, void, undefined> {
    yield* this.#bitmapFacet(bitmap).dirty(bitmap);
  }

  #bitmapFacet(bitmap: string): BitmapFacet {
    const { bitmaps } = this.#formatNode();
    if (bitmaps !== undefined) return bitmaps;
    throw missingBitmap(this, bitmap);
  }

  /** Hears events of one type, or `'*'` for all. @returns stops it. */
  on<T extends ImageEvent['type']>(type: T, listener: (event: Extract<ImageEvent, { type: T }>) => void): () => void;
  on(type: '*', listener: (event: ImageEvent) => void): () => void;
  on(type: string, listener: (event: never) => void): () => void {
    return this.#parts.hub.on(type, listener as (event: ImageEvent) => void);
  }

  /** Flushes and closes the image and every file opened for it; idempotent. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #close(): Promise<void> {
    let failure: { readonly error: unknown } | undefined;
    // The top first: it writes into the others while it closes.
    for (const node of [this.node, ...[...this.#parts.files].reverse()]) {
      try {
        await node.close();
      } catch (error) {
        failure ??= { error };
      }
    }
    if (failure !== undefined) throw failure.error;
  }

  #formatNode(): FormatNode {
    const { format } = this.node;
    if (format === undefined) throw new BlockError('INTERNAL', `internal error: "${this.name}" has no format`);
    return format;
  }

  async #guardSignature(offset: number, bytes: Uint8Array): Promise<void> {
    const { guessedAmong } = this.#parts;
    if (guessedAmong === undefined || offset >= HEAD_BYTES || bytes.length === 0) return;
    const head = new Uint8Array(Math.min(HEAD_BYTES, this.virtualSize));
    await this.node.read(0, head);
    head.set(bytes.subarray(0, Math.max(0, head.length - offset)), offset);
    const found = probeBytes({ head, fileSize: this.virtualSize, name: this.name }, guessedAmong);
    if (found === undefined || found.driver.name === this.format) return;
    throw new BlockError(
      'ACCESS',
      `"${this.name}": the format was guessed to be ${this.format}, and this write would make it look like ${found.driver.name}; open it with format: '${this.format}' to allow it`,
      { reason: 'image.raw-signature', details: { offset, format: found.driver.name, errno: 'EPERM' } },
    );
  }
}

/** @throws NOT_FOUND. */
async function requireBitmap(bitmaps: BitmapFacet, name: string, image: Image): Promise<BitmapInfo> {
  const found = (await bitmaps.list()).find((bitmap) => bitmap.name === name);
  if (found === undefined) throw missingBitmap(image, name);
  return found;
}

function missingBitmap({ format, name }: Image, bitmap: string): BlockError {
  return new BlockError('NOT_FOUND', `${format} "${name}": has no bitmap '${bitmap}'`, {
    reason: 'image.bitmap-missing',
    details: { bitmap },
  });
}

/** Both as one, where nothing but their place differs and the places continue. */
function joinExtents(a: Extent, b: Extent): Extent | undefined {
  const same =
    a.depth === b.depth &&
    a.present === b.present &&
    a.zero === b.zero &&
    a.data === b.data &&
    a.compressed === b.compressed &&
    a.node === b.node &&
    (a.hostOffset === undefined ? undefined : a.hostOffset + a.length) === b.hostOffset;
  return same ? { ...a, length: a.length + b.length } : undefined;
}
