/** Sources of a conversion that come through a pipe. Owns how one is read: in order as it comes, from memory when it is short, or from a temporary
 *  file where its tables, or the target, need what a pipe cannot give.
 *  Invariants: a stream is read in order only after its whole map has shown that this is possible; what is found to be too short is an error,
 *  never zeros; the temporary file is gone at the end, good or bad. */
import type { Pending } from '../base/async.ts';
import { BlockError, isBlockError } from '../base/errors.ts';
import { Pacer, throwIfAborted } from '../base/job.ts';
import { MiB } from '../base/sizes.ts';
import { isZero } from '../bytes/zeros.ts';
import type { BlockNode } from '../core/node.ts';
import { RunList } from '../core/run.ts';
import { UNKNOWN_SIZE } from '../core/store.ts';
import type { Image } from '../image/image.ts';
import { type OpenImageOptions, openImage } from '../image/open.ts';
import { driversOf } from '../image/open-options.ts';
import { protocolOf } from '../image/references.ts';
import { endsEarly, HEAD_LIMIT, SpooledStore, StreamStore } from '../storage/stream-store.ts';
import type { ConvertOptions } from './convert.ts';
import type { CopySource } from './convert-source.ts';

/** An image that comes through a pipe. */
export interface ConvertStream
  extends Pick<OpenImageOptions, 'format' | 'options' | 'backing' | 'backingOptions' | 'dataFile' | 'snapshot'> {
  /** Web streams are such things in Node and in newer browsers. */
  readonly stream: AsyncIterable<Uint8Array>;
  /** What messages call it, and where the names in it start from. Default `stream`. */
  readonly name?: string | undefined;
  /** Bytes that will come; more or fewer are an error then. */
  readonly size?: number | undefined;
}

/** A place for what cannot be streamed. */
export interface TemporaryFile {
  /** Free, and known to the protocols. */
  readonly name: string;
  /** Removes it, where it is there. */
  remove(): Promise<void>;
}

/** Why a temporary file is used. `order`: the image's tables cannot be read in the order of a pipe; `length`: its format is read by the
 *  length of the file; `twice`: the target's tables go before the
 *  data, which is looked through for them first; `size`: the target needs to know the size of the disk first; `target`: the target cannot be
 *  written from its first byte to its last. */
export type SpoolReason = 'order' | 'length' | 'twice' | 'size' | 'target';

export interface SpoolEvent {
  /** What is spooled: the stream's name. */
  readonly stream: string;
  readonly reason: SpoolReason;
  /** Name of the temporary file. */
  readonly file: string;
}

/** What the target asks of a source. `forward`: nothing, it may come in order; `size`: it must be known before how long the disk is;
 *  `random`: it is read more than once. */
export type StreamNeed = 'forward' | 'size' | 'random';

/** Looked at for zeros when a stream is spooled, bytes. */
const SPOOL_CHUNK = MiB;

/** A stream that has been opened as an image. */
export class OpenedStream {
  readonly image: Image;
  readonly #store: StreamStore;
  readonly #temporary: TemporaryFile | undefined;
  /** It is read in order, and forgotten. */
  readonly inOrder: boolean;
  /** The disk is all of the stream from here on, however long that is; `undefined`: its size is known. Bytes. */
  readonly dataStart: number | undefined;
  /** Bytes that must have come for the image to be whole. */
  readonly #needed: number;

  constructor(image: Image, store: StreamStore, how: Manner & { readonly temporary?: TemporaryFile | undefined }) {
    this.image = image;
    this.#store = store;
    this.inOrder = how.inOrder;
    // Of a stream that has ended the size is known.
    this.dataStart = how.inOrder ? how.dataStart : undefined;
    this.#needed = how.needed;
    this.#temporary = how.temporary;
  }

  /** The disk of an image whose size is not known.
   *  @param dataStart as {@link dataStart} */
  openDisk(dataStart: number): CopySource {
    return new OpenDisk(this.image, this.#store, dataStart);
  }

  /** The disk has been read: takes what else comes, so that its writer can end in peace.
   *  @throws {@link BlockError} IO, reason `stream.short`. */
  async finish(): Promise<void> {
    if (!this.inOrder) return;
    const length = await this.#store.drain();
    if (length < this.#needed) throw endsEarly(this.#store.name, length, this.#needed);
  }

  async close(): Promise<void> {
    this.#store.end();
    try {
      await this.image.close();
    } finally {
      await this.#temporary?.remove();
    }
  }
}

interface Manner {
  readonly inOrder: boolean;
  readonly dataStart: number | undefined;
  readonly needed: number;
}

/** Opens what comes through a pipe.
 *  @throws {@link BlockError} as `openImage`; IO `stream.short`, INVALID_ARGUMENT `stream.long`; UNSUPPORTED `convert.no-temporary`. */
export async function openStream(
  source: ConvertStream,
  need: StreamNeed,
  options: ConvertOptions,
): Promise<OpenedStream> {
  const { name = 'stream', size } = source;
  const store = new StreamStore(source.stream, { name, size, signal: options.signal });
  try {
    // What is short stays in memory, and can be read in any order.
    if (need !== 'forward') await store.lookAhead(HEAD_LIMIT);
    const direct = await openDirect(source, store, need, options);
    return typeof direct === 'string' ? await openSpooled(source, store, direct, options) : direct;
  } catch (error) {
    store.end();
    throw error;
  }
}

function openAs(source: ConvertStream, node: BlockNode, options: ConvertOptions): Promise<Image> {
  const { references, probeBacking, cacheBytes, signal, onEvent } = options;
  const { name, format, backing, backingOptions, dataFile, snapshot, options: openOptions } = source;
  return openImage(node, {
    ...driversOf(options),
    references,
    probeBacking,
    cacheBytes,
    signal,
    onEvent,
    name: name ?? node.name,
    format,
    backing,
    backingOptions,
    dataFile,
    snapshot,
    options: openOptions,
  });
}

/** An image over a stream, and how it can be read. Where the disk ends with the stream, or the format asks for the length, it is shown.
 *  @throws {@link BlockError} also UNSUPPORTED, reason `stream.length`. */
async function openOver(
  source: ConvertStream,
  store: StreamStore | SpooledStore,
  options: ConvertOptions,
): Promise<{ readonly image: Image; readonly manner: Manner | 'unordered' }> {
  let image: Image;
  try {
    image = await openAs(source, store, options);
  } catch (error) {
    if (store.length === undefined || !isBlockError(error) || error.reason !== 'stream.length') throw error;
    store.showLength();
    image = await openAs(source, store, options);
  }
  try {
    const manner = await mannerOf(image, store, options.signal);
    if (manner !== 'unordered' && manner.dataStart !== undefined) store.showLength();
    return { image, manner };
  } catch (error) {
    await image.close();
    throw error;
  }
}

/** @returns why not, where it cannot be read as it comes. */
async function openDirect(
  source: ConvertStream,
  store: StreamStore,
  need: StreamNeed,
  options: ConvertOptions,
): Promise<OpenedStream | SpoolReason> {
  let image: Image | undefined;
  try {
    const opened = await openOver(source, store, options);
    image = opened.image;
    let { manner } = opened;
    if (manner === 'unordered') {
      // It can be read in any order all the same when all of it is here.
      await store.lookAhead(HEAD_LIMIT);
      if (store.length !== undefined) manner = await mannerOf(image, store, options.signal);
    }
    const reason = manner === 'unordered' ? 'order' : reasonAgainst(manner, store, need);
    if (reason !== undefined || manner === 'unordered') {
      await image.close();
      return reason ?? 'order';
    }
    requireWhole(store, manner);
    store.release();
    return new OpenedStream(image, store, manner);
  } catch (error) {
    await image?.close();
    if (store.tooFar) return 'order';
    if (isBlockError(error) && error.reason === 'stream.length') return 'length';
    throw error;
  }
}

function reasonAgainst({ dataStart }: Manner, store: StreamStore, need: StreamNeed): SpoolReason | undefined {
  if (store.length !== undefined || need === 'forward') return undefined;
  if (need === 'random') return 'twice';
  return dataStart === undefined ? undefined : 'size';
}

/** @throws {@link BlockError} IO, reason `stream.short`. */
function requireWhole(store: StreamStore | SpooledStore, { needed }: Manner): void {
  if (store.length !== undefined && store.length < needed) throw endsEarly(store.name, store.length, needed);
}

/** Neighbouring compressed units share a sector, bytes. */
const SHARED = 512;

/** Looks through the whole map: do the data lie in the order of the disk, and how far do they reach? */
async function mannerOf(
  image: Image,
  file: StreamStore | SpooledStore,
  signal: AbortSignal | undefined,
): Promise<Manner | 'unordered'> {
  const { format, size } = image.node;
  // In memory everything can be read at any time.
  const inOrder = file.length === undefined;
  const runs = new RunList(512);
  const pacer = new Pacer();
  let end = 0;
  let needed = 0;
  let shared = 0;
  file.reach = 0;
  for (let at = 0; at < size; at = runs.guestEnd) {
    throwIfAborted(signal);
    runs.reset(at, size);
    const pending = format.map(at, size - at, runs);
    if (pending !== undefined) await pending;
    for (let i = 0; i < runs.count; i++) {
      const { kind, child, hostOffset, length, encodedLength } = runs.at(i);
      if ((kind !== 'data' && kind !== 'encoded') || format.children[child]?.node !== file) continue;
      // Without units the disk is what is there, to the end of the file: nothing can be missing but its header.
      if (format.unit === 1) {
        const isOpen = hostOffset + size === UNKNOWN_SIZE;
        return { inOrder, dataStart: isOpen ? hostOffset : undefined, needed: hostOffset };
      }
      const mine = kind === 'encoded' ? SHARED : 0;
      if (inOrder && hostOffset < end - Math.max(shared, mine)) return 'unordered';
      shared = mine;
      end = hostOffset + (kind === 'encoded' ? encodedLength : length);
      needed = Math.max(needed, kind === 'encoded' ? hostOffset + 1 : end);
    }
    if (pacer.due) await pacer.pause(signal);
  }
  // Only tables were read: one that ends behind the stream says nothing of what was to come.
  return { inOrder, dataStart: undefined, needed: Math.max(needed, file.reach) };
}

async function openSpooled(
  source: ConvertStream,
  store: StreamStore,
  reason: SpoolReason,
  options: ConvertOptions,
): Promise<OpenedStream> {
  const temporary = await newTemporary(store.name, reason, options);
  try {
    const file = new SpooledStore(await spool(store, temporary, options), store.name);
    try {
      const { image, manner } = await openOver(source, file, options);
      try {
        if (manner !== 'unordered') requireWhole(file, manner);
      } catch (error) {
        await image.close();
        throw error;
      }
      return new OpenedStream(image, store, { inOrder: false, dataStart: undefined, needed: 0, temporary });
    } catch (error) {
      await file.close();
      throw error;
    }
  } catch (error) {
    await temporary.remove();
    throw error;
  }
}

/** @throws {@link BlockError} UNSUPPORTED, reason `convert.no-temporary`. */
export async function newTemporary(
  stream: string,
  reason: SpoolReason,
  options: ConvertOptions,
): Promise<TemporaryFile> {
  if (options.temporary === undefined) {
    throw new BlockError(
      'UNSUPPORTED',
      `"${stream}": ${WHY[reason]}, which takes a temporary file; there is no place for one`,
      {
        reason: 'convert.no-temporary',
        details: { stream, reason },
      },
    );
  }
  const temporary = await options.temporary();
  options.onSpool?.({ stream, reason, file: temporary.name });
  return temporary;
}

/** What a temporary file is for, in words. */
export const WHY: Readonly<Record<SpoolReason, string>> = {
  order: 'its data do not lie in the order of the disk, behind its tables',
  twice: 'what the target holds must be known before it is written',
  length: 'how it is to be read depends on its length',
  size: 'its size must be known before the target is made',
  target: 'the target cannot be written from its first byte to its last',
};

/** Makes the file.
 *  @throws {@link BlockError} UNSUPPORTED, reason `target.create`; as the protocol. */
export async function createTemporary({ name }: TemporaryFile, options: ConvertOptions): Promise<BlockNode> {
  const protocol = protocolOf(name, options.protocols);
  if (protocol.create === undefined) {
    throw new BlockError('UNSUPPORTED', `"${name}": ${protocol.name} cannot create files`, { reason: 'target.create' });
  }
  return await protocol.create(name, { exclusive: true, unsafe: true, signal: options.signal });
}

/** Puts all of a stream into a new file, with holes where it has nothing but zeros. */
async function spool(store: StreamStore, temporary: TemporaryFile, options: ConvertOptions): Promise<BlockNode> {
  const { signal, onProgress } = options;
  const file = await createTemporary(temporary, options);
  try {
    const buffer = new Uint8Array(SPOOL_CHUNK);
    const pacer = new Pacer();
    let fill = 0;
    let at = 0;
    const put = async (): Promise<void> => {
      const part = buffer.subarray(0, fill);
      if (!isZero(part, 0, fill)) await file.write(at, part);
      at += fill;
      fill = 0;
      onProgress?.({ phase: 'spool', done: at, total: Number.POSITIVE_INFINITY });
      if (pacer.due) await pacer.pause(signal);
    };
    for await (const piece of store.all()) {
      for (let from = 0; from < piece.length; ) {
        const part = piece.subarray(from, from + SPOOL_CHUNK - fill);
        buffer.set(part, fill);
        fill += part.length;
        from += part.length;
        if (fill === SPOOL_CHUNK) await put();
      }
    }
    if (fill > 0) await put();
    if (file.size < at) await file.truncate(at);
    return file;
  } catch (error) {
    try {
      await file.close();
    } catch {
      // It is thrown away anyway.
    }
    throw error;
  }
}

/** Bytes of an open disk that are told of at once, when they have come. */
const STEP = MiB;

/** A disk that ends where its stream ends. Everything in it is data. */
class OpenDisk implements CopySource {
  readonly kind = 'data';
  end = 0;
  readonly #image: Image;
  readonly #store: StreamStore;
  readonly #dataStart: number;

  constructor(image: Image, store: StreamStore, dataStart: number) {
    this.#image = image;
    this.#store = store;
    this.#dataStart = dataStart;
  }

  get size(): number {
    return this.#store.length === undefined ? Number.POSITIVE_INFINITY : this.#image.virtualSize;
  }

  seek(offset: number): Pending {
    const pending = this.#store.lookAhead(this.#dataStart + offset + STEP);
    if (pending !== undefined) return this.#seekLater(pending, offset);
    this.#come(offset);
    return undefined;
  }

  async #seekLater(pending: Promise<void>, offset: number): Promise<void> {
    await pending;
    this.#come(offset);
  }

  #come(offset: number): void {
    this.end = Math.min(offset + STEP, this.size);
  }

  read(offset: number, into: Uint8Array): Pending {
    return this.#image.node.read(offset, into);
  }
}
