/** Applies a delta file to a disk. Owns the checks before and after, and what an end in the middle means.
 *  Spec: docs/formats/delta.md; the order of what is done stands there, too.
 *  Invariants: a delta that can be read twice is checked from end to end before the disk is touched; of one that cannot, each record is checked
 *  before it is applied; records say what the disk holds afterwards, never how it differs, so that applying them again does no harm. */
import { BlockError, type ErrorCode, isBlockError } from '../base/errors.ts';
import { type JobOptions, Pacer, type Progress, throwIfAborted } from '../base/job.ts';
import { GiB } from '../base/sizes.ts';
import type { Codecs } from '../codec/codecs.ts';
import { createCodecs } from '../codec/create.ts';
import type { Image } from '../image/image.ts';
import { ByteFeed, type ByteSource, isStore } from './byte-feed.ts';
import { checksumImage, toHex } from './checksum.ts';
import { type DeltaHeader, DeltaReader, type DeltaRecord, MAX_DATA } from './delta-format.ts';

export interface ApplyOptions extends JobOptions {
  /** An earlier run ended in the middle: the disk may hold any mixture of old and new. It is verified at the end only. Default false. */
  readonly resume?: boolean | undefined;
  /** Compute the checksum of the disk before and after. Default true; of no effect where the delta has no checksums. */
  readonly verify?: boolean | undefined;
  /** What messages call the delta. */
  readonly name?: string | undefined;
  /** Threads that hash and decompress; in this thread when not given. */
  readonly codecs?: Codecs | undefined;
}

export interface ApplyResult {
  /** `already`: the disk was what the delta leads to, and nothing was written. */
  readonly outcome: 'applied' | 'already';
  /** The checksum of the disk is that of the delta. */
  readonly verified: boolean;
  readonly oldSize: number;
  readonly newSize: number;
  readonly records: number;
  /** Bytes that were set to data, and to zeros. */
  readonly dataBytes: number;
  readonly zeroBytes: number;
}

/** Bytes of zeros asked for at once. */
const ZEROS = 1 * GiB;

/** Makes the disk of `image`, open for writing, what the delta leads to.
 *  @param source a store, which is read twice, or a stream, which is read once and to its end
 *  @throws {@link BlockError} INVALID_ARGUMENT `delta.target`, `delta.target-size`: the disk is not what the delta was made from; UNSUPPORTED
 *  `delta.resize`; READ_ONLY; WRONG_FORMAT, CORRUPT, UNSUPPORTED of a bad delta (`delta.magic`, `delta.version`, `delta.flags`, `delta.size`,
 *  `delta.truncated`, `delta.digest`, `delta.record`, `delta.trailing`, `delta.data`); whatever reading and writing fail with; ABORTED.
 *  With `details.incomplete` the disk is no longer what it was: apply the delta again with `resume`. CORRUPT `delta.result`: what came
 *  out is not what the delta leads to. */
export async function applyDelta(image: Image, source: ByteSource, options: ApplyOptions = {}): Promise<ApplyResult> {
  return await new Application(image, source, options).run();
}

class Application {
  readonly #image: Image;
  readonly #source: ByteSource;
  readonly #options: ApplyOptions;
  readonly #codecs: Codecs;
  readonly #pacer = new Pacer();
  #buffer: Uint8Array | undefined;
  /** The disk may hold something else than before. */
  #touched = false;
  #counts = { records: 0, dataBytes: 0, zeroBytes: 0 };

  constructor(image: Image, source: ByteSource, options: ApplyOptions) {
    this.#image = image;
    this.#source = source;
    this.#options = options;
    this.#codecs = options.codecs ?? createCodecs({ workers: 0 });
  }

  async run(): Promise<ApplyResult> {
    if (isStore(this.#source)) {
      await this.#read('read delta', async (record) => {
        await this.#decoded(record);
      });
    }
    try {
      return await this.#apply();
    } catch (error) {
      throw this.#touched ? this.#incomplete(error) : error;
    }
  }

  async #apply(): Promise<ApplyResult> {
    const image = this.#image;
    let verified = false;
    let outcome: ApplyResult['outcome'] = 'applied';
    const header = await this.#read(
      'apply',
      async (record) => {
        if (outcome === 'applied') await this.#put(record);
      },
      async (before) => {
        if (await this.#isAlready(before)) outcome = 'already';
        else await this.#resize(before.newSize);
      },
    );
    const { oldSize, newSize, checksums } = header;
    if (outcome === 'applied') {
      await image.flush();
      verified = checksums !== undefined && this.#verifies;
      if (verified) await this.#requireResult(toHex((checksums as NonNullable<typeof checksums>).new));
    } else {
      verified = true;
      this.#counts = { records: 0, dataBytes: 0, zeroBytes: 0 };
    }
    return { outcome, verified, oldSize, newSize, ...this.#counts };
  }

  get #verifies(): boolean {
    return this.#options.verify !== false;
  }

  /** Reads the whole delta. @param begin told of the header, before the first record. */
  async #read(
    phase: string,
    take: (record: DeltaRecord) => Promise<void> | undefined,
    begin?: (header: DeltaHeader) => Promise<void>,
  ): Promise<DeltaHeader> {
    const { name = 'delta', signal, onProgress } = this.#options;
    const feed = new ByteFeed(this.#source, name, signal === undefined ? {} : { signal });
    try {
      const reader = await DeltaReader.open(feed);
      const { header } = reader;
      await begin?.(header);
      for (let record = await reader.next(); record !== undefined; record = await reader.next()) {
        const taking = take(record);
        if (taking !== undefined) await taking;
        onProgress?.({ phase, done: record.offset + record.length, total: header.newSize });
        if (this.#pacer.due) await this.#pacer.pause(signal);
        else throwIfAborted(signal);
      }
      return header;
    } finally {
      await feed.close();
    }
  }

  /** @returns whether the disk is what the delta leads to.
   *  @throws {@link BlockError} unless it is that, or what the delta was made from. */
  async #isAlready({ oldSize, newSize, checksums }: DeltaHeader): Promise<boolean> {
    const { name, virtualSize } = this.#image;
    const { resume = false } = this.#options;
    const isStrict = !resume && this.#verifies && checksums !== undefined;
    if (virtualSize !== oldSize && virtualSize !== newSize) {
      throw new BlockError(
        'INVALID_ARGUMENT',
        `"${name}": has ${virtualSize} bytes, and the delta leads from a disk of ${oldSize} to one of ${newSize}`,
        { reason: 'delta.target-size', details: { name, size: virtualSize, oldSize, newSize } },
      );
    }
    if (!isStrict) return false;
    const hash = await this.#checksum('verify before');
    if (hash === toHex(checksums.old)) return hash === toHex(checksums.new);
    if (hash === toHex(checksums.new)) return true;
    throw new BlockError(
      'INVALID_ARGUMENT',
      `"${name}": is not the disk that the delta was made from: its checksum is ${hash}, not ${toHex(checksums.old)}; if an earlier run was interrupted, pass resume: true`,
      { reason: 'delta.target', details: { name, checksum: hash, expected: toHex(checksums.old) } },
    );
  }

  async #checksum(phase: string): Promise<string> {
    const { signal, onProgress } = this.#options;
    const { hash } = await checksumImage(this.#image, {
      codecs: this.#codecs,
      ...(signal === undefined ? {} : { signal }),
      ...(onProgress === undefined ? {} : { onProgress: (progress: Progress) => onProgress({ ...progress, phase }) }),
    });
    return hash;
  }

  /** First of all: what cannot get its size is refused while it is whole. */
  async #resize(size: number): Promise<void> {
    const { node, name, virtualSize } = this.#image;
    if (virtualSize === size) return;
    if (!node.supports.truncate) {
      throw new BlockError(
        'UNSUPPORTED',
        `"${name}": has ${virtualSize} bytes and cannot become one of ${size}, as the delta wants it; convert it to a format that can`,
        { reason: 'delta.resize', details: { name, size: virtualSize, newSize: size } },
      );
    }
    await this.#image.resize(size, { shrink: true });
    this.#touched = true;
  }

  async #put(record: DeltaRecord): Promise<void> {
    const { signal } = this.#options;
    const { kind, offset, length } = record;
    this.#counts.records++;
    if (kind === 'zero') {
      for (let at = offset; at < offset + length; at += ZEROS) {
        throwIfAborted(signal);
        this.#touched = true;
        await this.#image.writeZeroes(at, Math.min(ZEROS, offset + length - at), { unmap: true });
      }
      this.#counts.zeroBytes += length;
      return;
    }
    const data = await this.#decoded(record);
    this.#touched = true;
    await this.#image.write(offset, data);
    this.#counts.dataBytes += length;
  }

  /** What the record sets the disk to; none for zeros. Of use until the next one is decoded. */
  async #decoded({ offset, length, encoding, stored }: DeltaRecord): Promise<Uint8Array> {
    if (encoding === undefined) return stored;
    this.#buffer ??= new Uint8Array(MAX_DATA);
    const into = this.#buffer.subarray(0, length);
    try {
      const lengths = Int32Array.of(stored.length);
      const decoding = this.#codecs.decompress(encoding, stored, Int32Array.of(0), lengths, length, into);
      if (decoding !== undefined) await decoding;
      return into;
    } catch (error) {
      if (!isBlockError(error) || error.code !== 'CORRUPT') throw error;
      const { name = 'delta' } = this.#options;
      throw new BlockError(
        'CORRUPT',
        `delta "${name}": what is for offset ${offset} cannot be decompressed: ${error.message}`,
        {
          reason: 'delta.data',
          details: { name, offset },
          cause: error,
        },
      );
    }
  }

  async #requireResult(expected: string): Promise<void> {
    const hash = await this.#checksum('verify after');
    if (hash === expected) return;
    const { name } = this.#image;
    throw new BlockError(
      'CORRUPT',
      `"${name}": the delta is applied, and the disk is not what it leads to: its checksum is ${hash}, not ${expected}; it was another disk before`,
      { reason: 'delta.result', details: { name, checksum: hash, expected, incomplete: true } },
    );
  }

  /** The same failure, and what it has left. */
  #incomplete(error: unknown): unknown {
    if (!isBlockError(error) || error.code === 'INTERNAL' || error.reason === 'delta.result') return error;
    const { name } = this.#image;
    const code: ErrorCode = error.code;
    return new BlockError(
      code,
      `"${name}": holds a part of the delta: ${error.message}; apply it again with resume: true`,
      { reason: 'delta.incomplete', details: { ...error.details, name, incomplete: true }, cause: error },
    );
  }
}
