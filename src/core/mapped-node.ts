/** THE engine: guest reads, writes, zeroes, discards and extents over any FormatNode.
 *  Owns the life cycle of requests (checks, epochs, drain, condemned nodes, close); GuestReader and GuestWriter move the bytes, and the format
 *  decides where they live.
 *  Invariants:
 *  - a request ends when everything that it started has ended, errors and aborts included: buffers, run lists and locks go back only then;
 *  - a request is counted in the epochs before its first promise is handed out; one that ends synchronously is never seen by anybody. */
import { Mutex, type Pending } from '../base/async.ts';
import { BlockError, hex, isBlockError } from '../base/errors.ts';
import { type JobOptions, throwIfAborted } from '../base/job.ts';
import { alignDown, alignUp } from '../bytes/align.ts';
import { isZero } from '../bytes/zeros.ts';
import { type ExtentCursor, mapExtents } from './block-status.ts';
import type { ExtentList } from './extent.ts';
import type {
  AmendRun,
  BackingRecord,
  BitmapFacet,
  DiscardMode,
  EngineServices,
  FormatNode,
  SnapshotFacet,
  SnapshotInfo,
  SnapshotRequest,
  SnapshotSelector,
  Standalone,
  VmStateFacet,
  WriteObserver,
} from './format.ts';
import { GuestReader } from './guest-reader.ts';
import { GuestWriter } from './guest-writer.ts';
import { Epochs } from './in-flight.ts';
import { type BlockNode, type Child, childOf } from './node.ts';
import { RunList } from './run.ts';
import { ALL_RULES, type SafetyRules } from './safety.ts';
import type {
  BlockEvent,
  IoOptions,
  Preallocation,
  StoreLimits,
  StoreStatus,
  StoreSupports,
  WriteOptions,
  ZeroOptions,
} from './store.ts';
import { TransformedIo } from './transformed-io.ts';

export interface MappedNodeOptions {
  /** What messages and `map` call the node. */
  readonly name: string;
  readonly rules?: SafetyRules;
  /** Default: as the format has it. */
  readonly discard?: DiscardMode | undefined;
  /** What becomes of written zeros: they are written (`off`, the default), marked (`on`), or marked and their space given back (`unmap`). */
  readonly detectZeroes?: 'off' | 'on' | 'unmap' | undefined;
}

/** TruncateOptions of an image, whose format can do more than a file. */
export interface ResizeOptions extends IoOptions {
  readonly preallocation?: Preallocation | 'metadata' | undefined;
}

export interface EmptyOptions extends IoOptions {
  /** The backing file holds what this layer holds: guests see no change, and observers are told of none. Default false. */
  readonly sameContent?: boolean | undefined;
}

export function mappedNode(format: FormatNode, options: MappedNodeOptions): MappedNode {
  return new MappedNode(format, options);
}

/** @returns whether the format could, now that nothing else runs. */
async function emptied(format: FormatNode): Promise<boolean> {
  const makeEmpty = format.makeEmpty?.bind(format);
  await makeEmpty?.();
  return makeEmpty !== undefined;
}

export class MappedNode implements BlockNode, EngineServices {
  readonly name: string;
  readonly driver: string;
  readonly observers = new Set<WriteObserver>();
  readonly epochs = new Epochs();
  readonly #rules: SafetyRules;
  #format: FormatNode;
  #ignoresDiscards = false;
  readonly #detectZeroes: 'off' | 'on' | 'unmap';
  #backing: BlockNode | undefined;
  #reader: GuestReader;
  #writer: GuestWriter;
  /** Added by the format when it was attached. */
  #formatsObservers: readonly WriteObserver[] = [];
  readonly #alone = new Mutex();
  #barrier: Promise<void> | undefined;
  #condemned: Error | undefined;
  #closing: Promise<void> | undefined;

  constructor(format: FormatNode, options: MappedNodeOptions) {
    this.name = options.name;
    this.driver = format.format;
    this.#rules = options.rules ?? ALL_RULES;
    this.#detectZeroes = options.detectZeroes ?? 'off';
    this.#format = format;
    const io = this.#ioOf(format);
    this.#backing = io.backing;
    this.#reader = io.reader;
    this.#writer = io.writer;
    this.#attach(options.discard);
  }

  get format(): FormatNode {
    return this.#format;
  }

  #ioOf(format: FormatNode): { backing: BlockNode | undefined; reader: GuestReader; writer: GuestWriter } {
    const backing = childOf(format, 'backing');
    const transformed = new TransformedIo(format);
    const reader = new GuestReader(format, backing, this.epochs, transformed);
    const writer = new GuestWriter(format, reader, {
      name: this.name,
      backing,
      epochs: this.epochs,
      rules: this.#rules,
      transformed,
      readGuest: (offset, into) => this.readGuest(offset, into),
    });
    return { backing, reader, writer };
  }

  #attach(discard: DiscardMode | undefined): void {
    this.#ignoresDiscards = discard === 'ignore';
    const before = new Set(this.observers);
    this.#format.attach?.(this);
    this.#formatsObservers = [...this.observers].filter((observer) => !before.has(observer));
  }

  get size(): number {
    return this.format.virtualSize;
  }

  get children(): readonly Child[] {
    return this.format.children;
  }

  get limits(): StoreLimits {
    const { unit, zeroUnit } = this.format;
    return {
      requestAlign: 1,
      zeroAlign: zeroUnit,
      discardAlign: unit,
      preferredIo: Math.max(2 * 1024 * 1024, unit),
      maxIo: 0x7fff_f000,
      maxInFlight: 16,
    };
  }

  get supports(): StoreSupports {
    const { format } = this;
    const file = format.children[0]?.node.supports;
    return {
      write: !format.readOnly && format.prepareWrite !== undefined,
      truncate: format.resize !== undefined,
      writeZeroes: format.mapZeroes === undefined ? 'emulated' : 'fast',
      discard: format.unmap !== undefined,
      extents: true,
      fua: false,
      // Allocating, decoding and transforming may always wait.
      sync:
        format.readOnly &&
        format.decode === undefined &&
        format.transform === undefined &&
        file?.sync === true &&
        this.#backing?.supports.sync !== false,
      access: file?.access ?? 'random',
    };
  }

  // ── reading ──────────────────────────────────────────────────────────────────────────────────

  read(offset: number, into: Uint8Array, options?: IoOptions): Pending {
    this.#check('read', offset, into.length);
    throwIfAborted(options?.signal);
    if (into.length === 0) return undefined;
    if (this.#barrier !== undefined) return this.#afterBarrier(() => this.read(offset, into, options));
    return this.#reader.read(offset, into, options, true);
  }

  /** Guest bytes under the present mapping, from inside a request or an exclusive section: neither counted nor held up. Bytes past the
   *  disk's end read as zero. */
  readGuest(offset: number, into: Uint8Array): Pending {
    if (offset >= this.size && offset >= (this.format.vmState?.offset ?? Number.POSITIVE_INFINITY)) {
      return this.#reader.read(offset, into, undefined, false);
    }
    const inside = Math.max(0, Math.min(into.length, this.size - offset));
    if (inside < into.length) into.fill(0, inside);
    if (inside === 0) return undefined;
    return this.#reader.read(offset, inside < into.length ? into.subarray(0, inside) : into, undefined, false);
  }

  // ── writing ──────────────────────────────────────────────────────────────────────────────────

  write(offset: number, from: Uint8Array, options?: WriteOptions): Pending {
    this.#checkWrite('write', offset, from.length);
    throwIfAborted(options?.signal);
    if (from.length === 0) return undefined;
    if (this.#detectZeroes !== 'off' && options?.compressed !== true && isZero(from)) {
      return this.writeZeroes(offset, from.length, { ...options, unmap: this.#detectZeroes === 'unmap' });
    }
    if (this.#barrier !== undefined) return this.#afterBarrier(() => this.write(offset, from, options));
    this.#observe(offset, from.length);
    if (options?.compressed === true) return this.#counted(this.#writer.writeCompressed(offset, from, options));
    const written = this.#writer.write(offset, from, options);
    if (options?.fua !== true) return written;
    return this.#counted(this.#thenFlush(written));
  }

  // ── zeroes and discards ──────────────────────────────────────────────────────────────────────

  writeZeroes(offset: number, length: number, options: ZeroOptions = {}): Pending {
    this.#checkWrite('write zeroes', offset, length);
    throwIfAborted(options.signal);
    if (length === 0) return undefined;
    if (this.#barrier !== undefined) return this.#afterBarrier(() => this.writeZeroes(offset, length, options));
    this.#observe(offset, length);
    return this.#counted(this.#writer.zero(offset, length, options));
  }

  discard(offset: number, length: number, options?: IoOptions): Pending {
    this.#checkWrite('discard', offset, length);
    throwIfAborted(options?.signal);
    const { format } = this;
    const unit = format.discardUnit ?? format.unit;
    const end = offset + length === this.size ? alignUp(this.size, format.unit) : offset + length;
    const innerStart = alignUp(offset, unit);
    const innerEnd = alignDown(end, unit);
    if (this.#ignoresDiscards || format.unmap === undefined || innerStart >= innerEnd) return undefined;
    if (this.#barrier !== undefined) return this.#afterBarrier(() => this.discard(offset, length, options));
    this.#observe(offset, length);
    return this.#counted(this.#writer.unmap(innerStart, innerEnd - innerStart, 'zero'));
  }

  // ── status, flush, life cycle ────────────────────────────────────────────────────────────────

  extents(offset: number, length: number, into: ExtentList, _options?: IoOptions): Pending {
    this.#check('extents', offset, length);
    if (length === 0) return undefined;
    if (this.#barrier !== undefined) return this.#afterBarrier(() => this.extents(offset, length, into));
    const cursor: ExtentCursor = { at: offset, end: offset + length, into, runs: new RunList(256) };
    const waiting = mapExtents(this.format, this.#backing, cursor);
    return waiting === undefined ? undefined : this.#counted(waiting);
  }

  /** As {@link extents} of this layer alone: what it does not hold is not present, whatever lies below. */
  layerExtents(offset: number, length: number, into: ExtentList): Pending {
    this.#check('extents', offset, length);
    if (length === 0) return undefined;
    if (this.#barrier !== undefined) return this.#afterBarrier(() => this.layerExtents(offset, length, into));
    const waiting = mapExtents(this.format, undefined, {
      at: offset,
      end: offset + length,
      into,
      runs: new RunList(256),
    });
    return waiting === undefined ? undefined : this.#counted(waiting);
  }

  flush(): Pending {
    this.#checkOpen('flush');
    if (this.format.readOnly) return undefined;
    if (this.#barrier !== undefined) return this.#afterBarrier(() => this.flush());
    const announced = this.event('flush_to_os');
    const flushed = announced === undefined ? this.format.flush() : announced.then(() => this.format.flush());
    return flushed === undefined ? undefined : this.#counted(flushed);
  }

  /** Also takes `metadata`, where the format has it. */
  truncate(size: number, options?: ResizeOptions): Pending {
    return this.resize(size, options?.preallocation);
  }

  /** As {@link truncate}, with the modes of formats that have tables to preallocate: see {@link FormatNode.resize}. Runs alone.
   *  @throws {@link BlockError} READ_ONLY; UNSUPPORTED, reason `store.truncate`. */
  resize(size: number, preallocation: Preallocation | 'metadata' = 'off'): Promise<void> {
    this.#checkOpen('truncate');
    const { format } = this;
    if (format.readOnly) throw this.#readOnly('truncate');
    if (format.resize === undefined) {
      throw new BlockError('UNSUPPORTED', `${format.format} "${this.name}": the size cannot be changed`, {
        reason: 'store.truncate',
        details: { size },
      });
    }
    return this.exclusive(async () => {
      await format.resize?.(size, preallocation);
    });
  }

  /** Puts another opening of the same image in the place of the present one. Runs alone.
   *  @param open told the present opening, which is of no use afterwards; when it throws, the present one stays
   *  @throws what `open` throws. */
  async replaceFormat(
    open: (present: FormatNode) => Promise<{ readonly format: FormatNode; readonly discard: DiscardMode | undefined }>,
  ): Promise<void> {
    this.#checkOpen('reopening');
    await this.exclusive(async () => {
      this.#checkOpen('reopening');
      const { format, discard } = await open(this.#format);
      for (const observer of this.#formatsObservers) this.observers.delete(observer);
      const { backing, reader, writer } = this.#ioOf(format);
      this.#format = format;
      this.#backing = backing;
      this.#reader = reader;
      this.#writer = writer;
      this.#attach(discard);
    });
  }

  // ── the layer as a whole ─────────────────────────────────────────────────────────────────────

  /** Records another backing file, or what the same one is like now: see {@link FormatNode.changeBacking}. Runs alone.
   *  @throws {@link BlockError} READ_ONLY; UNSUPPORTED, reason `engine.change-backing`. */
  async changeBacking(backing: BackingRecord | undefined): Promise<void> {
    this.#checkWritable('change of the backing file');
    const { format } = this;
    if (format.changeBacking === undefined) throw this.#cannot('change-backing', 'the backing file cannot be changed');
    await this.exclusive(async () => {
      await format.changeBacking?.(backing);
    });
  }

  /** Changes what the image was created with: see {@link FormatNode.amend}. Runs alone.
   *  @throws {@link BlockError} READ_ONLY; UNSUPPORTED, reason `engine.amend`; ABORTED. */
  async amend(options: Readonly<Record<string, unknown>>, run: AmendRun = {}): Promise<void> {
    this.#checkWritable('amending');
    throwIfAborted(run.signal);
    const amend = this.format.amend?.bind(this.format);
    if (amend === undefined) throw this.#cannot('amend', 'nothing can be amended');
    await this.exclusive(() => amend(options, run));
  }

  /** Drops all that this layer holds, so that it shows its backing file: as the format does it, else range by range. Durable when it ends;
   *  an interruption leaves it partly dropped.
   *  @throws {@link BlockError} READ_ONLY; UNSUPPORTED, reason `engine.empty`; ABORTED. */
  async makeEmpty(options: EmptyOptions = {}): Promise<void> {
    this.#checkWritable('emptying');
    throwIfAborted(options.signal);
    const { format } = this;
    if (format.makeEmpty === undefined && format.unmap === undefined) throw this.#cannot('empty', 'cannot be emptied');
    if (options.sameContent !== true) this.#observe(0, this.size);
    if (format.makeEmpty !== undefined && (await this.exclusive(() => emptied(format)))) return;
    if (format.unmap === undefined) throw this.#cannot('empty', 'cannot be emptied');
    while (this.#barrier !== undefined) await this.#barrier;
    const dropped = this.#writer.dropAll(options.signal);
    await this.#counted(dropped);
    if (!(await dropped)) throw this.#cannot('empty', 'cannot be emptied');
    await this.flush();
  }

  /** Makes the data file an image of its own: see {@link FormatNode.detach}. Runs alone.
   *  @throws {@link BlockError} READ_ONLY; UNSUPPORTED, reason `engine.detach`; INVALID_ARGUMENT where this layer does not hold everything. */
  async detach(): Promise<Standalone> {
    this.#checkWritable('detaching');
    const detach = this.format.detach?.bind(this.format);
    if (detach === undefined) throw this.#cannot('detach', 'has no data file of its own that could stand alone');
    return await this.exclusive(detach);
  }

  // ── snapshots, and the state of a machine ────────────────────────────────────────────────────

  /** Freezes the present content: see {@link SnapshotFacet}. Runs alone. @throws {@link BlockError} READ_ONLY; UNSUPPORTED, reason `engine.snapshots`. */
  createSnapshot(request: SnapshotRequest, options?: JobOptions): Promise<SnapshotInfo> {
    return this.#withSnapshots('snapshot', (snapshots) => snapshots.create(request, options));
  }

  /** Makes the disk what it was: see {@link SnapshotFacet}. Runs alone. @throws as {@link createSnapshot}. */
  applySnapshot(which: SnapshotSelector, options?: JobOptions): Promise<void> {
    return this.#withSnapshots('applying a snapshot', async (snapshots) => {
      try {
        await snapshots.apply(which, options);
      } catch (error) {
        // What is refused has changed nothing; of other failures nobody knows.
        const isRefused = isBlockError(error) && (error.code === 'UNSUPPORTED' || error.code === 'NOT_FOUND');
        if (!isRefused) this.#observe(0, this.size);
        throw error;
      }
      // Alone here, so that nobody asks before they are told.
      this.#observe(0, this.size);
    });
  }

  /** See {@link SnapshotFacet}. Runs alone. @throws as {@link createSnapshot}. */
  deleteSnapshot(which: SnapshotSelector, options?: JobOptions): Promise<void> {
    return this.#withSnapshots('deleting a snapshot', (snapshots) => snapshots.delete(which, options));
  }

  async #withSnapshots<T>(what: string, change: (snapshots: SnapshotFacet) => Promise<T>): Promise<T> {
    this.#checkWritable(what);
    const { snapshots } = this.format;
    if (snapshots === undefined) throw this.#cannot('snapshots', 'cannot hold snapshots of itself');
    return await this.exclusive(() => change(snapshots));
  }

  /** Changes the dirty bitmaps that the image keeps: see {@link BitmapFacet}. Runs alone. @throws {@link BlockError} READ_ONLY; UNSUPPORTED, reason `engine.bitmaps`. */
  async changeBitmaps<T>(change: (bitmaps: BitmapFacet) => Promise<T>): Promise<T> {
    this.#checkWritable('change of a bitmap');
    const { bitmaps } = this.format;
    if (bitmaps === undefined) throw this.#cannot('bitmaps', 'cannot hold dirty bitmaps');
    return await this.exclusive(() => change(bitmaps));
  }

  /** Reads the state of a machine, from byte `offset` of it on. What was never written is zeros, or what the backing file has there.
   *  @throws {@link BlockError} UNSUPPORTED, reason `engine.vm-state`. */
  async readVmState(offset: number, into: Uint8Array, options?: IoOptions): Promise<void> {
    this.#checkOpen('read of VM state');
    this.#vmState(offset);
    while (this.#barrier !== undefined) await this.#barrier;
    await this.event('vmstate_load');
    await this.#reader.read(this.#vmState(offset).offset + offset, into, options, true);
  }

  /** Writes the state of a machine, which is no part of the disk and has no fixed size.
   *  @throws {@link BlockError} READ_ONLY; UNSUPPORTED, reason `engine.vm-state`; TOO_LARGE. */
  async writeVmState(offset: number, from: Uint8Array, options?: IoOptions): Promise<void> {
    this.#checkWritable('write of VM state');
    const end = offset + from.length;
    await this.event('vmstate_save');
    while (this.#barrier !== undefined || this.#vmState(offset).capacity < end) {
      if (this.#barrier !== undefined) await this.#barrier;
      else await this.exclusive(() => this.#vmState(offset).reserve(end));
    }
    await this.#writer.write(this.#vmState(offset).offset + offset, from, options);
  }

  #vmState(offset: number): VmStateFacet {
    const { vmState } = this.format;
    if (vmState === undefined) throw this.#cannot('vm-state', 'has no room for the state of a machine');
    if (Number.isSafeInteger(offset) && offset >= 0) return vmState;
    throw new BlockError('OUT_OF_RANGE', `${this.driver} "${this.name}": VM state at ${offset}`, {
      reason: 'engine.range',
      details: { offset },
    });
  }

  async status(): Promise<StoreStatus> {
    return (await this.children[0]?.node.status?.()) ?? {};
  }

  event(name: BlockEvent): Pending {
    return this.children[0]?.node.event?.(name);
  }

  async exclusive<T>(body: () => Promise<T>): Promise<T> {
    const waiting = this.#alone.acquire();
    // At once where nothing else runs alone: what is asked after this call waits.
    if (waiting !== undefined) await waiting;
    let open = (): void => undefined;
    if (this.#rules.drain) {
      this.#barrier = new Promise<void>((resolve) => {
        open = resolve;
      });
    }
    try {
      if (this.#rules.drain) await this.epochs.idle();
      return await body();
    } finally {
      this.#barrier = undefined;
      open();
      this.#alone.release();
    }
  }

  condemn(error: Error): void {
    this.#condemned ??= error;
  }

  /** Waits for running requests and exclusive sections, flushes, and closes the children, each whatever became of the others.
   *  Requests that an exclusive section holds back at that moment fail with CLOSED. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #close(): Promise<void> {
    await this.#alone.acquire();
    try {
      await this.epochs.idle();
    } finally {
      this.#alone.release();
    }
    let failure: { error: unknown } | undefined;
    const attempt = async (close: () => Promise<void>): Promise<void> => {
      try {
        await close();
      } catch (error) {
        failure ??= { error };
      }
    };
    if (this.#condemned === undefined) await attempt(() => this.format.close());
    for (const child of this.children) await attempt(() => child.node.close());
    if (failure !== undefined) throw failure.error;
  }

  // ── plumbing ─────────────────────────────────────────────────────────────────────────────────

  async #counted(work: Promise<unknown>): Promise<void> {
    const request = this.epochs.begin();
    try {
      await work;
    } finally {
      this.epochs.end(request);
    }
  }

  async #afterBarrier(start: () => Pending): Promise<void> {
    while (this.#barrier !== undefined) await this.#barrier;
    await start();
  }

  async #thenFlush(written: Pending): Promise<void> {
    await written;
    // Not our own `flush`: this is still the write, which neither a drain nor a close that began meanwhile may stop.
    await this.format.flush();
  }

  #observe(offset: number, length: number): void {
    for (const observer of this.observers) observer(offset, length);
  }

  #checkOpen(what: string): void {
    if (this.#condemned !== undefined) {
      throw new BlockError('IO', `${this.driver} "${this.name}": ${what} refused after a fatal error`, {
        reason: 'engine.condemned',
        details: { errno: 'ENOMEDIUM' },
        cause: this.#condemned,
      });
    }
    if (this.#closing !== undefined)
      throw new BlockError('CLOSED', `${this.driver} "${this.name}": ${what} after close`);
  }

  #check(what: string, offset: number, length: number): void {
    this.#checkOpen(what);
    const valid = Number.isSafeInteger(offset) && offset >= 0 && Number.isSafeInteger(length) && length >= 0;
    if (!valid || offset + length > this.size) {
      throw new BlockError(
        'OUT_OF_RANGE',
        `${this.driver} "${this.name}": ${what} of ${length} bytes at ${valid ? hex(offset) : offset} passes the end of the disk at ${hex(this.size)}`,
        { reason: 'engine.range', details: { offset, length, size: this.size, errno: 'EIO' } },
      );
    }
  }

  #checkWrite(what: string, offset: number, length: number): void {
    this.#check(what, offset, length);
    if (this.format.readOnly || this.format.prepareWrite === undefined) throw this.#readOnly(what);
  }

  #checkWritable(what: string): void {
    this.#checkOpen(what);
    if (this.format.readOnly) throw this.#readOnly(what);
  }

  #cannot(reason: string, what: string): BlockError {
    const { format } = this.format;
    return new BlockError('UNSUPPORTED', `${format} "${this.name}": ${what}`, {
      reason: `engine.${reason}`,
      details: { format, name: this.name },
    });
  }

  #readOnly(what: string): BlockError {
    return new BlockError('READ_ONLY', `${this.driver} "${this.name}": ${what} on an image that is open read-only`, {
      reason: 'engine.read-only',
    });
  }
}
