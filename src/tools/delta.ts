/** Writes the difference of two disks as a delta file, front to back. Owns what goes into a record, and the way of data through compression.
 *  Spec: docs/formats/delta.md. Applying is `apply.ts`.
 *  Invariants: the bytes depend on the two disks and the options alone, not on the number of threads; the file is only ever written forward, so
 *  that a pipe will do; memory is bounded by the records on their way. */
import { BlockError } from '../base/errors.ts';
import type { JobOptions, Progress } from '../base/job.ts';
import type { Codecs, CompressionType } from '../codec/codecs.ts';
import { createCodecs } from '../codec/create.ts';
import type { BlockNode } from '../core/node.ts';
import type { ProtocolDriver } from '../core/protocol.ts';
import type { ByteStore } from '../core/store.ts';
import type { Image } from '../image/image.ts';
import { protocolOf } from '../image/references.ts';
import { reachable } from '../image/reopen.ts';
import { TargetFile } from '../image/target-file.ts';
import { checksumImage, fromHex } from './checksum.ts';
import { type DeltaRecord, encodeHeader, RecordEncoder } from './delta-format.ts';
import { DEFAULT_BLOCK, DifferenceWalk, requireBlock, type Window } from './difference.ts';

export interface DeltaOptions extends JobOptions {
  /** How data is compressed. Default `zstd`. */
  readonly compression?: CompressionType | 'none' | undefined;
  /** Record what both disks are, so that `applyDelta` can verify it has the right one and made the right one of it. It takes reading all that
   *  both hold. Default true. */
  readonly checksums?: boolean | undefined;
  /** Bytes of a block, as in `diffImages`. Default 4096. */
  readonly block?: number | undefined;
  /** Threads that compress and hash; in this thread when not given. */
  readonly codecs?: Codecs | undefined;
  /** Who opens names; needed where the delta is given by name. */
  readonly protocols?: readonly ProtocolDriver[] | undefined;
}

export interface DeltaResult {
  /** Bytes of the disks. */
  readonly oldSize: number;
  readonly newSize: number;
  /** Checksums of the disks, as `checksumImage` has them; `undefined` without. */
  readonly oldChecksum: string | undefined;
  readonly newChecksum: string | undefined;
  readonly records: number;
  /** Bytes of the disk that the records set to data, and to zeros. */
  readonly dataBytes: number;
  readonly zeroBytes: number;
  /** Bytes of the delta. */
  readonly fileSize: number;
}

/** Writes what makes the disk of `first` that of `second`.
 *  @param target a name, or a store that is written forward from its beginning, flushed, and left open
 *  @throws {@link BlockError} INVALID_ARGUMENT, reasons `diff.block`, `delta.same-file` (the target is a file of one of the images); whatever
 *  reading and writing fail with; ABORTED. A target given by name is then as it was. */
export async function writeDelta(
  first: Image,
  second: Image,
  target: string | ByteStore,
  options: DeltaOptions = {},
): Promise<DeltaResult> {
  requireBlock(options.block ?? DEFAULT_BLOCK);
  const writing = new DeltaWriting(first, second, options);
  if (typeof target !== 'string') {
    await requireApart(
      target.status === undefined ? undefined : (await target.status()).identity,
      [first, second],
      'delta',
    );
    return await writing.run(target);
  }
  const { signal, protocols = [] } = options;
  const protocol = protocolOf(target, protocols);
  await requireApart((await protocol.status?.(target))?.identity, [first, second], target);
  const file = await TargetFile.open(protocol, target, signal === undefined ? {} : { signal });
  try {
    const result = await writing.run(file.file);
    await file.commit();
    return result;
  } catch (error) {
    await file.discard();
    throw error;
  }
}

/** @throws {@link BlockError} when one of the images lies in the file. */
async function requireApart(identity: string | undefined, images: readonly Image[], target: string): Promise<void> {
  if (identity === undefined) return;
  const nodes = new Set<BlockNode>();
  for (const { node } of images) for (const one of reachable(node)) nodes.add(one);
  for (const node of nodes) {
    if ((await node.status?.())?.identity !== identity) continue;
    throw new BlockError(
      'INVALID_ARGUMENT',
      `delta "${target}": is "${node.name}", a file of one of the images; name another one`,
      { reason: 'delta.same-file', details: { target, name: node.name } },
    );
  }
}

/** A record whose data may still be under compression. Never rejects before it is waited for. */
type Coming = Promise<DeltaRecord>;

class DeltaWriting {
  readonly #first: Image;
  readonly #second: Image;
  readonly #options: DeltaOptions;
  readonly #codecs: Codecs;
  readonly #coming: Coming[] = [];
  /** Zeros that the next window may go on with. */
  #zeros: { readonly offset: number; readonly end: number } | undefined;
  #encoder: RecordEncoder | undefined;
  #target: ByteStore | undefined;
  #at = 0;
  #counts = { records: 0, dataBytes: 0, zeroBytes: 0 };

  constructor(first: Image, second: Image, options: DeltaOptions) {
    this.#first = first;
    this.#second = second;
    this.#options = options;
    this.#codecs = options.codecs ?? createCodecs({ workers: 0 });
  }

  async run(target: ByteStore): Promise<DeltaResult> {
    const { checksums = true } = this.#options;
    const oldChecksum = checksums ? await this.#checksum(this.#first, 'old checksum') : undefined;
    const newChecksum = checksums ? await this.#checksum(this.#second, 'new checksum') : undefined;
    const [oldSize, newSize] = [this.#first.virtualSize, this.#second.virtualSize];
    const header = encodeHeader({
      oldSize,
      newSize,
      checksums:
        oldChecksum === undefined || newChecksum === undefined
          ? undefined
          : { old: fromHex(oldChecksum), new: fromHex(newChecksum) },
    });
    this.#target = target;
    this.#encoder = new RecordEncoder(header);
    await this.#put(header);
    try {
      await this.#records();
    } finally {
      await Promise.allSettled(this.#coming);
    }
    const { dataBytes, zeroBytes } = this.#counts;
    await this.#put(this.#encoder.end(dataBytes + zeroBytes));
    const flushing = target.flush();
    if (flushing !== undefined) await flushing;
    return { oldSize, newSize, oldChecksum, newChecksum, ...this.#counts, fileSize: this.#at };
  }

  async #checksum(image: Image, phase: string): Promise<string> {
    const { hash } = await checksumImage(image, { codecs: this.#codecs, ...this.#job(phase) });
    return hash;
  }

  /** Signal and progress for a part of the work. */
  #job(phase: string): JobOptions {
    const { signal, onProgress } = this.#options;
    return {
      ...(signal === undefined ? {} : { signal }),
      ...(onProgress === undefined ? {} : { onProgress: (progress: Progress) => onProgress({ ...progress, phase }) }),
    };
  }

  async #records(): Promise<void> {
    const walk = await DifferenceWalk.of(this.#first, this.#second, {
      block: this.#options.block ?? DEFAULT_BLOCK,
      // What lies behind the new end goes with the size.
      end: this.#second.virtualSize,
      ...this.#job('delta'),
    });
    for await (const window of walk.windows()) await this.#window(window);
    this.#endZeros();
    while (this.#coming.length > 0) await this.#writeNext();
  }

  async #window({ start, ranges, bytes }: Window): Promise<void> {
    for (let i = 0; i < ranges.length; i++) {
      const { offset, length, kind } = ranges[i] as Window['ranges'][number];
      let end = offset + length;
      if (kind === 'cleared' || bytes === undefined) {
        if (this.#zeros?.end !== offset) this.#endZeros();
        this.#zeros = { offset: this.#zeros?.offset ?? offset, end };
        continue;
      }
      this.#endZeros();
      // Whether there was anything before does not matter here.
      for (let next = ranges[i + 1]; next?.offset === end && next.kind !== 'cleared'; next = ranges[++i + 1]) {
        end += next.length;
      }
      // A copy: the window is used again while this is compressed.
      this.#push(this.#data(offset, bytes.slice(offset - start, end - start)));
      while (this.#coming.length > this.#codecs.workers + 1) await this.#writeNext();
    }
  }

  #endZeros(): void {
    const zeros = this.#zeros;
    if (zeros === undefined) return;
    this.#zeros = undefined;
    const { offset, end } = zeros;
    const record = {
      kind: 'zero',
      offset,
      length: end - offset,
      encoding: undefined,
      stored: new Uint8Array(0),
    } as const;
    this.#push(Promise.resolve(record));
  }

  #push(coming: Coming): void {
    // Its turn to be waited for comes later; a failure until then must not count as unhandled.
    coming.catch(() => undefined);
    this.#coming.push(coming);
  }

  async #data(offset: number, data: Uint8Array): Promise<DeltaRecord> {
    const { compression = 'zstd' } = this.#options;
    const record = { kind: 'data', offset, length: data.length } as const;
    if (compression !== 'none') {
      const { bytes, starts, lengths } = await this.#codecs.compress(compression, data, data.length);
      const [start = 0, length = 0] = [starts[0], lengths[0]];
      if (length > 0) return { ...record, encoding: compression, stored: bytes.subarray(start, start + length) };
    }
    return { ...record, encoding: undefined, stored: data };
  }

  async #writeNext(): Promise<void> {
    const record = await (this.#coming[0] as Coming);
    this.#coming.shift();
    this.#counts.records++;
    if (record.kind === 'data') this.#counts.dataBytes += record.length;
    else this.#counts.zeroBytes += record.length;
    await this.#put((this.#encoder as RecordEncoder).head(record), record.stored);
  }

  async #put(...parts: readonly Uint8Array[]): Promise<void> {
    const target = this.#target as ByteStore;
    const { signal } = this.#options;
    for (const part of parts) {
      const writing = target.write(this.#at, part, signal === undefined ? {} : { signal });
      if (writing !== undefined) await writing;
      this.#at += part.length;
    }
  }
}
