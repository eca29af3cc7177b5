/** Compressed clusters: decoding runs of them, and storing new ones. Spec: qcow2, "Compressed Clusters Descriptor".
 *  Invariants:
 *  - decoding goes by the descriptors of the runs alone, never by a second look-up;
 *  - units are compressed in any order, on any thread, and allocated in the order of the calls: the same input gives the same file;
 *  - encoded bytes are written before the entry that points to them; that entry is ordered after refcounts and a flush. */
import { type Pending, settleAll } from '../../base/async.ts';
import { BlockError, hex, isBlockError } from '../../base/errors.ts';
import { divCeil } from '../../bytes/align.ts';
import type { Codecs, CompressedUnits } from '../../codec/codecs.ts';
import type { RunList } from '../../core/run.ts';
import type { ByteStore, IoOptions } from '../../core/store.ts';
import type { Allocator } from './allocator.ts';
import { ALL_SUBCLUSTERS, setCompressedEntry, setL2Entry, setSubclusters } from './entries.ts';
import { hexOf, type Qcow2State } from './image-state.ts';
import type { L2Tables } from './l2-tables.ts';

/** Where one unit of a batch went. */
interface Stored {
  readonly offset: number;
  /** 0: stored as a plain cluster. */
  readonly length: number;
}

export class CompressedClusters {
  readonly #state: Qcow2State;
  readonly #tables: L2Tables;
  readonly #allocator: Allocator;
  readonly #codecs: Codecs;
  /** The cluster decoded last, because small reads come in rows; keyed by where its encoded bytes begin. */
  #cachedAt = -1;
  #cached: Uint8Array | undefined;
  /** Something has been stored since the image was opened. */
  stored = false;
  /** Ends when every store begun so far has been allocated. */
  #turn: Promise<void> = Promise.resolve();

  constructor(state: Qcow2State, tables: L2Tables, allocator: Allocator, codecs: Codecs) {
    this.#state = state;
    this.#tables = tables;
    this.#allocator = allocator;
    this.#codecs = codecs;
    allocator.onFreed = () => {
      this.#cachedAt = -1;
    };
  }

  /** @see FormatNode.decode */
  decode(runs: RunList, first: number, count: number, into: Uint8Array): Pending {
    const { clusterSize } = this.#state.geometry;
    const run = runs.at(first);
    if (count === 1 && run.hostOffset === this.#cachedAt && this.#cached !== undefined) {
      const skip = run.guestOffset % clusterSize;
      into.set(this.#cached.subarray(skip, skip + run.length));
      return undefined;
    }
    const span = new EncodedSpan(runs, first, count, this.#state.file.size);
    if (!Number.isSafeInteger(span.end)) throw this.#outOfReach(runs, first, count);
    const { file } = this.#state;
    const announced = file.event?.('read_compressed');
    const reading = announced === undefined ? span.read(file) : announced.then(() => span.read(file));
    if (reading === undefined) return this.#decodeRead(runs, first, count, into, span);
    return reading.then(() => this.#decodeRead(runs, first, count, into, span));
  }

  #decodeRead(runs: RunList, first: number, count: number, into: Uint8Array, span: EncodedSpan): Pending {
    const { geometry, header } = this.#state;
    const { clusterSize } = geometry;
    const head = runs.at(first).guestOffset;
    const last = runs.at(first + count - 1);
    const lastHost = last.hostOffset;
    const whole = head % clusterSize === 0 && into.length === count * clusterSize;
    const output = whole ? into : new Uint8Array(count * clusterSize);
    const finish = (): void => {
      if (whole) return;
      const skip = head % clusterSize;
      into.set(output.subarray(skip, skip + into.length));
      this.#cached = output.subarray((count - 1) * clusterSize);
      this.#cachedAt = lastHost;
    };
    let decoding: Pending;
    try {
      decoding = this.#codecs.decompress(
        header.compressionType,
        span.bytes,
        span.starts,
        span.lengths,
        clusterSize,
        output,
      );
    } catch (error) {
      throw this.#decodeError(error, runs, first);
    }
    if (decoding === undefined) {
      finish();
      return undefined;
    }
    return decoding.then(finish, (error: unknown) => {
      throw this.#decodeError(error, runs, first);
    });
  }

  #outOfReach(runs: RunList, first: number, count: number): BlockError {
    let run = runs.at(first);
    for (let i = 1; i < count && Number.isSafeInteger(run.hostOffset + run.encodedLength); i++)
      run = runs.at(first + i);
    return new BlockError(
      'CORRUPT',
      `qcow2 "${this.#state.name}": the compressed cluster of guest offset ${hex(run.guestOffset)} lies at ${hexOf(run.hostOffset)}, which is no place in a file`,
      { reason: 'qcow2.compressed-offset', details: { guestOffset: run.guestOffset, errno: 'EIO' } },
    );
  }

  #decodeError(error: unknown, runs: RunList, first: number): unknown {
    if (!isBlockError(error) || error.reason !== 'codec.data') return error;
    const run = runs.at(first + Number(error.details.index ?? 0));
    return new BlockError(
      'CORRUPT',
      `qcow2 "${this.#state.name}": the compressed cluster at ${hex(run.hostOffset)} (guest offset ${hex(run.guestOffset)}) does not decompress`,
      {
        reason: 'qcow2.compressed-data',
        details: { offset: run.hostOffset, guestOffset: run.guestOffset, errno: 'EIO' },
        cause: error,
      },
    );
  }

  /** @see FormatNode.writeCompressed */
  async store(offset: number, from: Uint8Array, options: IoOptions | undefined): Promise<void> {
    const { clusterSize } = this.#state.geometry;
    if (this.#state.hasDataFile) {
      throw new BlockError(
        'UNSUPPORTED',
        `qcow2 "${this.#state.name}": an image with an external data file holds no compressed clusters`,
        {
          reason: 'qcow2.data-file-compressed-write',
          details: { errno: 'ENOTSUP' },
        },
      );
    }
    this.stored = true;
    const before = this.#turn;
    let done = (): void => undefined;
    this.#turn = new Promise<void>((resolve) => {
      done = resolve;
    });
    try {
      let units = from;
      if (from.length % clusterSize !== 0) {
        // The disk's last cluster: the rest of it reads as zero.
        units = new Uint8Array(divCeil(from.length, clusterSize) * clusterSize);
        units.set(from);
      }
      const compressing = this.#codecs.compress(this.#state.header.compressionType, units, clusterSize);
      const compressed = await settleBoth(compressing, before);
      await this.#state.metadata.run(() => this.#place(offset, units, compressed, options));
    } finally {
      done();
    }
  }

  /** Allocates, writes and links the units of one call, under the metadata mutex: their order in the file is the order of the guest. */
  async #place(
    offset: number,
    units: Uint8Array,
    compressed: CompressedUnits,
    options: IoOptions | undefined,
  ): Promise<void> {
    const { clusterSize } = this.#state.geometry;
    const count = units.length / clusterSize;
    const stored: Stored[] = [];
    let gathered = new Gather(this.#state, options);
    try {
      for (let i = 0; i < count; i++) {
        const length = compressed.lengths[i] as number;
        if (length === 0) {
          const cluster = await this.#allocator.allocate(1);
          stored.push({ offset: cluster, length: 0 });
          await gathered.add(cluster, units.subarray(i * clusterSize, (i + 1) * clusterSize));
          continue;
        }
        const at = await this.#allocator.allocateBytes(length);
        stored.push({ offset: at, length });
        const start = compressed.starts[i] as number;
        await gathered.add(at, compressed.bytes.subarray(start, start + length));
      }
      await gathered.finish();
    } catch (error) {
      gathered = new Gather(this.#state, options);
      for (const { offset: at, length } of stored) {
        await this.#allocator.release(at, length === 0 ? clusterSize : length).catch(() => undefined);
      }
      throw error;
    }
    await this.#link(offset, stored);
  }

  async #link(offset: number, stored: readonly Stored[]): Promise<void> {
    const { geometry, caches } = this.#state;
    const { clusterSize, l2EntrySize, csizeShift } = geometry;
    for (let i = 0; i < stored.length; ) {
      const guest = offset + i * clusterSize;
      const place = await this.#tables.own(guest);
      try {
        const announced = this.#state.file.event?.('l2_update_compressed');
        if (announced !== undefined) await announced;
        const { view } = place.lease.table;
        const inSlice = Math.min(stored.length - i, this.#tables.perSlice - place.index);
        const olds: number[] = [];
        this.#state.orderAfterContent(caches.l2);
        for (let n = 0; n < inSlice; n++) {
          const at = (place.index + n) * l2EntrySize;
          olds.push(view.getUint32(at), view.getUint32(at + 4));
          const unit = stored[i + n] as Stored;
          if (unit.length === 0) setL2Entry(view, at, unit.offset, true, false);
          else setCompressedEntry(view, at, unit.offset, unit.length, csizeShift);
          if (geometry.extendedL2) setSubclusters(view, at, unit.length === 0 ? ALL_SUBCLUSTERS : 0, 0);
        }
        place.lease.markDirty(place.index * l2EntrySize, (place.index + inSlice) * l2EntrySize);
        for (let n = 0; n < olds.length; n += 2)
          this.#tables.noteDropped(olds[n] as number, olds[n + 1] as number, 'other');
        i += inSlice;
      } finally {
        place.lease.release();
      }
    }
  }
}

/** Joins writes that follow each other in the file into one. */
class Gather {
  readonly #state: Qcow2State;
  readonly #options: IoOptions | undefined;
  #parts: Uint8Array[] = [];
  #start = 0;
  #end = 0;

  constructor(state: Qcow2State, options: IoOptions | undefined) {
    this.#state = state;
    this.#options = options;
  }

  async add(offset: number, bytes: Uint8Array): Promise<void> {
    if (this.#parts.length > 0 && offset !== this.#end) await this.finish();
    if (this.#parts.length === 0) this.#start = offset;
    this.#parts.push(bytes);
    this.#end = offset + bytes.length;
  }

  async finish(): Promise<void> {
    if (this.#parts.length === 0) return;
    const { file } = this.#state;
    const total = this.#end - this.#start;
    const parts = this.#parts;
    this.#parts = [];
    await file.event?.('write_compressed');
    let bytes = parts[0] as Uint8Array;
    if (parts.length > 1) {
      bytes = new Uint8Array(total);
      let at = 0;
      for (const part of parts) {
        bytes.set(part, at);
        at += part.length;
      }
    }
    await file.write(this.#start, bytes, this.#options);
  }
}

/** Waits for both, whatever becomes of either: the compressor reads the caller's buffer until it ends. */
async function settleBoth(compressing: Promise<CompressedUnits>, before: Promise<void>): Promise<CompressedUnits> {
  const [result] = await Promise.allSettled([compressing, before]);
  if (result.status === 'rejected') throw result.reason;
  return result.value;
}

/** Zeros after the end of the file that belong to encoded bytes: the last byte of a stream may be one. */
const PAST_END = 512;
/** Spans larger than this times what they hold are read piece by piece. */
const SPARSE_FACTOR = 4;

/** Where the encoded bytes of the runs go in one buffer. Mostly they follow each other in the file and are read as one. */
class EncodedSpan {
  readonly bytes: Uint8Array;
  readonly starts: Int32Array;
  readonly lengths: Int32Array;
  /** Where the last of the encoded bytes ends in the file. */
  readonly end: number;
  readonly #hosts: Float64Array;
  readonly #contiguousFrom: number;

  /** @param fileSize bytes; what a descriptor claims behind it is zeros, of which no decoder can make anything */
  constructor(runs: RunList, first: number, count: number, fileSize: number) {
    this.starts = new Int32Array(count);
    this.lengths = new Int32Array(count);
    this.#hosts = new Float64Array(count);
    let low = Number.POSITIVE_INFINITY;
    let high = 0;
    let sum = 0;
    for (let i = 0; i < count; i++) {
      const run = runs.at(first + i);
      const length = Math.min(run.encodedLength, Math.max(0, fileSize - run.hostOffset) + PAST_END);
      this.#hosts[i] = run.hostOffset;
      this.lengths[i] = length;
      low = Math.min(low, run.hostOffset);
      high = Math.max(high, run.hostOffset + length);
      sum += length;
    }
    this.end = high;
    const together = high - low <= SPARSE_FACTOR * sum;
    this.#contiguousFrom = together ? low : -1;
    this.bytes = new Uint8Array(together ? high - low : sum);
    let at = 0;
    for (let i = 0; i < count; i++) {
      this.starts[i] = together ? (this.#hosts[i] as number) - low : at;
      at += this.lengths[i] as number;
    }
  }

  read(store: ByteStore): Pending {
    if (this.#contiguousFrom >= 0) return store.read(this.#contiguousFrom, this.bytes);
    const pendings: Pending[] = [];
    for (let i = 0; i < this.lengths.length; i++) {
      const start = this.starts[i] as number;
      const piece = this.bytes.subarray(start, start + (this.lengths[i] as number));
      pendings.push(store.read(this.#hosts[i] as number, piece));
    }
    return pendings.every((pending) => pending === undefined) ? undefined : settleAll(pendings);
  }
}
