/** Targets of a conversion that are pipes. Owns which way an image gets there: as it is made, in two passes, or through a temporary file; and the
 *  end of the stream.
 *  Invariants: nothing is written before every check has passed; a reader that went away is an error; what was written is told to be incomplete
 *  when it is; the temporary file is gone at the end, good or bad. */
import { BlockError } from '../base/errors.ts';
import { Pacer, throwIfAborted } from '../base/job.ts';
import { MiB } from '../base/sizes.ts';
import { alignUp } from '../bytes/align.ts';
import { BufferPool } from '../core/buffer-pool.ts';
import { Copier } from '../core/copier.ts';
import type { ForwardData, ForwardImage, UnitMap } from '../core/forward.ts';
import type { BlockNode } from '../core/node.ts';
import { ForwardSink, type ForwardTarget, webTarget } from '../storage/forward-sink.ts';
import { HeadStore } from '../storage/head-store.ts';
import { SliceStore } from '../storage/slice.ts';
import type { ConvertOptions, ConvertTarget } from './convert.ts';
import type { CopySource } from './convert-source.ts';
import { createTemporary, newTemporary, type TemporaryFile } from './convert-stream.ts';
import { type Place, writeError } from './convert-target.ts';
import { RateLimit } from './rate-limit.ts';

/** Bytes that go into a pipe, one way or the other. */
export type StreamTarget = ForwardTarget | WritableStream<Uint8Array>;

/** @throws {@link BlockError} INVALID_ARGUMENT. */
export function sinkOf({ stream, name }: ConvertTarget): ForwardSink {
  const target = stream as StreamTarget;
  return new ForwardSink('getWriter' in target ? webTarget(target) : target, { name });
}

/** Read and written at once, bytes. */
const CHUNK = 2 * MiB;

/** A pipe that takes the image as it is made: its header is made in memory, the rest follows. */
export class PipePlace implements Place {
  readonly name: string;
  readonly inPlace = true;
  readonly before = { kind: 'pipe' } as const;
  readonly file: HeadStore;
  readonly #sink: ForwardSink;

  constructor(sink: ForwardSink) {
    this.#sink = sink;
    this.name = sink.name;
    this.file = new HeadStore(sink);
  }

  /** The empty image is whole: what lies before its data is sent. */
  async begin(dataStart: number): Promise<void> {
    await this.file.release(dataStart);
  }

  async commit(): Promise<void> {
    await this.#sink.close();
  }

  async discard(): Promise<void> {
    await this.#sink.giveUp(unfinished(this.name));
  }
}

/** An image that is made in a temporary file, and sent when it is whole. */
export class SpooledPlace implements Place {
  readonly name: string;
  readonly inPlace = true;
  readonly before = undefined;
  readonly file: BlockNode;
  readonly #store: BlockNode;
  readonly #sink: ForwardSink;
  readonly #temporary: TemporaryFile;
  readonly #options: ConvertOptions;

  private constructor(sink: ForwardSink, store: BlockNode, temporary: TemporaryFile, options: ConvertOptions) {
    this.name = sink.name;
    this.#sink = sink;
    this.#store = store;
    this.#temporary = temporary;
    this.#options = options;
    // The image closes its file; this one is still needed then.
    this.file = new SliceStore(store, { offset: 0, keepOpen: true, name: sink.name });
  }

  /** @throws {@link BlockError} UNSUPPORTED, reason `convert.no-temporary`; as the creation of a file. */
  static async open(sink: ForwardSink, options: ConvertOptions): Promise<SpooledPlace> {
    const temporary = await newTemporary(sink.name, 'target', options);
    try {
      const store = await createTemporary(temporary, options);
      return new SpooledPlace(sink, store, temporary, options);
    } catch (error) {
      await temporary.remove();
      throw error;
    }
  }

  async commit(): Promise<void> {
    const { signal } = this.#options;
    const { size } = this.#store;
    const buffer = new Uint8Array(CHUNK);
    for (let at = 0; at < size; at += CHUNK) {
      throwIfAborted(signal);
      const part = buffer.subarray(0, Math.min(CHUNK, size - at));
      await this.#store.read(at, part);
      await written(this.#sink.name, at, () => this.#sink.write(at, part));
    }
    await this.#sink.close();
    await this.#forget();
  }

  async discard(): Promise<void> {
    await this.#sink.giveUp(unfinished(this.name));
    await this.#forget();
  }

  async #forget(): Promise<void> {
    try {
      await this.#store.close();
    } finally {
      await this.#temporary.remove();
    }
  }
}

/** What the reader of a pipe is told, where it can be told anything. */
export function unfinished(name: string): BlockError {
  return new BlockError('IO', `"${name}": the image that was being written is incomplete`, {
    reason: 'convert.incomplete',
  });
}

async function written(name: string, offset: number, write: () => Promise<void> | undefined): Promise<void> {
  try {
    await write();
  } catch (error) {
    throw writeError(name, offset, error);
  }
}

/** The second pass: tables, then the data that they speak of. */
export async function sendForward(
  source: CopySource,
  sink: ForwardSink,
  image: ForwardImage,
  units: UnitMap,
  options: ConvertOptions & { readonly parallel: number },
): Promise<void> {
  const { signal, onProgress } = options;
  let data: ForwardData | undefined;
  await written(sink.name, 0, async () => {
    data = await image.writeTables(sink, units);
  });
  const { order, start, fileSize } = data as ForwardData;
  const { unit } = units;
  const chunk = alignUp(CHUNK, unit);
  const limit = options.rateLimit === undefined ? undefined : new RateLimit(options.rateLimit);
  let position = start;
  const copier = new Copier({
    buffers: new BufferPool({ size: chunk, count: options.parallel }),
    order: 'serial',
    read: (offset, into) => source.read(offset, into),
    write: (offset, from) => {
      const at = order === 'packed' ? position : start + offset;
      position = at + alignUp(from.length, unit);
      return written(sink.name, offset, () => sink.write(at, from));
    },
    signal,
  });
  let failure: { readonly error: unknown } | undefined;
  try {
    const pacer = new Pacer();
    for (let index = units.next(0); index < units.count; ) {
      const run = units.dataRun(index, chunk / unit);
      if (run > 0) {
        const at = index * unit;
        const length = Math.min(run * unit, source.size - at);
        const limited = limit?.take(length, signal);
        if (limited !== undefined) await limited;
        const full = copier.copy(at, length);
        if (full !== undefined) await full;
        onProgress?.({ phase: 'convert', done: Math.ceil((source.size + at + length) / 2), total: source.size });
      }
      if (pacer.due) await pacer.pause(signal);
      index = units.next(index + Math.max(run, 1));
    }
  } catch (error) {
    failure = { error };
  }
  try {
    await copier.finish();
  } catch (error) {
    failure ??= { error };
  }
  if (failure !== undefined) throw failure.error;
  const end = Math.max(fileSize, order === 'packed' ? position : 0, sink.size);
  await written(sink.name, source.size, () => sink.truncate(end));
  await written(sink.name, source.size, () => sink.flush());
}
