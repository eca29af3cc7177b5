/** THE engine: guest reads, writes, zeroes, discards and extents over any FormatNode.
 *  Owns the request life cycle (epochs, drain, condemned nodes) and the write transaction; moves bytes, never decides where they live.
 *  Invariants:
 *  - a request ends when everything that it started has ended, errors and aborts included: buffers, run lists and locks go back only then;
 *  - a request is counted in the epochs before its first promise is handed out; one that ends synchronously is never seen by anybody;
 *  - allocating writes: range lock → prepareWrite → [head][guest][tail] in one vector → commitWrite; readers see the old mapping until then;
 *  - a write over one writable data run goes straight through, without any lock. */
import { isPromise, Mutex, type Pending, settleAll } from '../base/async.ts';
import { BlockError, hex } from '../base/errors.ts';
import { throwIfAborted } from '../base/job.ts';
import { alignDown, alignUp } from '../bytes/align.ts';
import { type ExtentCursor, mapExtents } from './block-status.ts';
import type { ExtentList } from './extent.ts';
import type { EngineServices, FormatNode, WritePlan } from './format.ts';
import { Epochs } from './in-flight.ts';
import { type BlockNode, type Child, childOf } from './node.ts';
import { RangeLock } from './range-lock.ts';
import { type Run, RunList } from './run.ts';
import { ALL_RULES, type SafetyRules } from './safety.ts';
import type {
  BlockEvent,
  IoOptions,
  StoreLimits,
  StoreStatus,
  StoreSupports,
  TruncateOptions,
  WriteOptions,
  ZeroOptions,
} from './store.ts';

export interface MappedNodeOptions {
  /** What messages and `map` call the node. */
  readonly name: string;
  readonly rules?: SafetyRules;
}

/** Told of every guest change before it is made, failed ones included: dirty bitmaps. Bytes. */
export type WriteObserver = (offset: number, length: number) => void;

/** Zeros are written from one shared buffer of this size where nothing better is there. */
const ZERO_CHUNK = 64 * 1024;
let zeroChunk: Uint8Array | undefined;

/** State of one running data request; kept in a free list. */
class Transfer {
  buffer: Uint8Array = EMPTY;
  offset = 0;
  at = 0;
  end = 0;
  /** For the requests to children; without the signal, which is looked at between them. */
  hint: IoOptions | undefined;
  readonly runs = new RunList();
  readonly pendings: Pending[] = [];
}
const EMPTY = new Uint8Array(0);
const HINTS = { this: { thread: 'this' }, pool: { thread: 'pool' } } as const;

export function mappedNode(format: FormatNode, options: MappedNodeOptions): MappedNode {
  return new MappedNode(format, options);
}

export class MappedNode implements BlockNode, EngineServices {
  readonly name: string;
  readonly driver: string;
  readonly format: FormatNode;
  readonly observers = new Set<WriteObserver>();
  readonly epochs = new Epochs();
  readonly #rules: SafetyRules;
  readonly #backing: BlockNode | undefined;
  readonly #ranges: RangeLock;
  readonly #alone = new Mutex();
  readonly #transfers: Transfer[] = [];
  #barrier: Promise<void> | undefined;
  #condemned: Error | undefined;
  #closing: Promise<void> | undefined;

  constructor(format: FormatNode, options: MappedNodeOptions) {
    this.name = options.name;
    this.driver = format.format;
    this.format = format;
    this.#rules = options.rules ?? ALL_RULES;
    this.#ranges = new RangeLock(this.#rules.rangeLock);
    this.#backing = childOf(format, 'backing');
    format.attach?.(this);
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
    return this.#readMapped(offset, into, options, true);
  }

  /** Guest bytes under the present mapping, from inside a request or an exclusive section: neither counted nor held up. Bytes past the
   *  disk's end read as zero. */
  readGuest(offset: number, into: Uint8Array): Pending {
    const inside = Math.max(0, Math.min(into.length, this.size - offset));
    if (inside < into.length) into.fill(0, inside);
    if (inside === 0) return undefined;
    return this.#readMapped(offset, inside < into.length ? into.subarray(0, inside) : into, undefined, false);
  }

  #readMapped(offset: number, into: Uint8Array, options: IoOptions | undefined, counted: boolean): Pending {
    const transfer = this.#takeTransfer(offset, into, options);
    let waiting: Pending;
    try {
      waiting = this.#readStep(transfer);
    } catch (error) {
      this.#giveBack(transfer);
      throw error;
    }
    if (waiting === undefined) {
      this.#giveBack(transfer);
      return undefined;
    }
    return this.#readRest(transfer, waiting, options?.signal, counted);
  }

  async #readRest(
    transfer: Transfer,
    first: Promise<void>,
    signal: AbortSignal | undefined,
    counted: boolean,
  ): Promise<void> {
    const request = counted ? this.epochs.begin() : 0;
    try {
      let waiting: Pending = first;
      while (waiting !== undefined) {
        await waiting;
        throwIfAborted(signal);
        waiting = this.#readStep(transfer);
      }
    } finally {
      this.#giveBack(transfer);
      if (counted) this.epochs.end(request);
    }
  }

  /** Reads on until everything is done (`undefined`) or something must be waited for. */
  #readStep(transfer: Transfer): Pending {
    const { runs } = transfer;
    while (transfer.at < transfer.end) {
      if (runs.guestStart !== transfer.at) {
        runs.reset(transfer.at, transfer.end);
        const mapping = this.format.map(transfer.at, transfer.end - transfer.at, runs);
        if (mapping !== undefined) return mapping;
      }
      this.#requireProgress(runs, transfer.at);
      transfer.at = runs.guestEnd;
      const waiting = this.#readRuns(transfer);
      if (waiting !== undefined) return waiting;
    }
    return undefined;
  }

  #readRuns(transfer: Transfer): Pending {
    const { runs, pendings, buffer } = transfer;
    pendings.length = 0;
    try {
      for (let i = 0; i < runs.count; ) {
        const run = runs.at(i);
        const from = run.guestOffset - transfer.offset;
        const to = from + run.length;
        let pending: Pending;
        let taken = 1;
        switch (run.kind) {
          case 'zero':
            buffer.fill(0, from, to);
            break;
          case 'data':
            pending = this.#readData(run, part(buffer, from, to), transfer.hint);
            break;
          case 'unallocated':
            pending = this.#readBacking(run.guestOffset, part(buffer, from, to), transfer.hint);
            break;
          case 'encoded':
            while (i + taken < runs.count && runs.at(i + taken).kind === 'encoded') taken++;
            pending = this.#decode(transfer, i, taken);
            break;
        }
        if (pending !== undefined) pendings.push(pending);
        i += taken;
      }
    } catch (error) {
      return pendings.length === 0 ? reject(error) : settleThenThrow([...pendings], error);
    }
    if (pendings.length === 0) return undefined;
    // The run list stays as it is until everything has ended: decoders read it.
    return pendings.length === 1 ? pendings[0] : settleAll([...pendings]);
  }

  #readData(run: Run, into: Uint8Array, hint: IoOptions | undefined): Pending {
    const child = this.#child(run.child);
    const { transform } = this.format;
    if (transform === undefined) return child.read(run.hostOffset, into, hint);
    return this.#readTransformed(run.hostOffset, run.guestOffset, child, into);
  }

  /** Reads whole sectors of the transform around the range and decrypts them. */
  async #readTransformed(hostOffset: number, guestOffset: number, child: BlockNode, into: Uint8Array): Promise<void> {
    const { transform } = this.format;
    if (transform === undefined) return;
    const before = hostOffset % transform.sector;
    const length = alignUp(before + into.length, transform.sector);
    const whole = before === 0 && length === into.length;
    const sectors = whole ? into : new Uint8Array(length);
    await child.read(hostOffset - before, sectors);
    await transform.decrypt(sectors, (transform.tweak === 'guest' ? guestOffset : hostOffset) - before);
    if (!whole) into.set(sectors.subarray(before, before + into.length));
  }

  #readBacking(offset: number, into: Uint8Array, hint?: IoOptions): Pending {
    const backing = this.#backing;
    const inside = backing === undefined ? 0 : Math.max(0, Math.min(into.length, backing.size - offset));
    if (inside < into.length) into.fill(0, inside);
    if (backing === undefined || inside === 0) return undefined;
    return backing.read(offset, part(into, 0, inside), hint);
  }

  #decode(transfer: Transfer, first: number, count: number): Pending {
    const { format } = this;
    if (format.decode === undefined) {
      throw new BlockError('INTERNAL', `internal error: ${format.format} maps encoded runs and cannot decode`);
    }
    const last = transfer.runs.at(first + count - 1);
    const from = transfer.runs.at(first).guestOffset - transfer.offset;
    const to = last.guestOffset + last.length - transfer.offset;
    return format.decode(transfer.runs, first, count, part(transfer.buffer, from, to));
  }

  // ── writing ──────────────────────────────────────────────────────────────────────────────────

  write(offset: number, from: Uint8Array, options?: WriteOptions): Pending {
    this.#checkWrite('write', offset, from.length);
    throwIfAborted(options?.signal);
    if (from.length === 0) return undefined;
    if (this.#barrier !== undefined) return this.#afterBarrier(() => this.write(offset, from, options));
    this.#observe(offset, from.length);
    if (options?.compressed === true) return this.#counted(this.#writeCompressed(offset, from, options));
    const written = this.#writeMapped(offset, from, options);
    if (options?.fua !== true) return written;
    return this.#counted(this.#thenFlush(written));
  }

  #writeMapped(offset: number, from: Uint8Array, options: IoOptions | undefined): Pending {
    const transfer = this.#takeTransfer(offset, from, options);
    let waiting: Pending;
    try {
      waiting = this.#writeStep(transfer);
    } catch (error) {
      this.#giveBack(transfer);
      throw error;
    }
    if (waiting === undefined) {
      this.#giveBack(transfer);
      return undefined;
    }
    return this.#writeRest(transfer, waiting, options?.signal);
  }

  async #writeRest(transfer: Transfer, first: Promise<void>, signal: AbortSignal | undefined): Promise<void> {
    const request = this.epochs.begin();
    try {
      let waiting: Pending = first;
      while (waiting !== undefined) {
        await waiting;
        throwIfAborted(signal);
        waiting = this.#writeStep(transfer);
      }
    } finally {
      this.#giveBack(transfer);
      this.epochs.end(request);
    }
  }

  #writeStep(transfer: Transfer): Pending {
    const { runs } = transfer;
    while (transfer.at < transfer.end) {
      if (runs.guestStart !== transfer.at) {
        runs.reset(transfer.at, transfer.end);
        const mapping = this.format.map(transfer.at, transfer.end - transfer.at, runs);
        if (mapping !== undefined) return mapping;
      }
      this.#requireProgress(runs, transfer.at);
      const run = runs.at(0);
      const inPlace = run.kind === 'data' && run.writable;
      runs.reset(-1, -1);
      const waiting = inPlace
        ? this.#writeInPlace(transfer, run.child, run.hostOffset, run.length)
        : this.#writeAllocating(transfer);
      if (waiting !== undefined) return waiting;
    }
    return undefined;
  }

  #writeInPlace(transfer: Transfer, childIndex: number, hostOffset: number, length: number): Pending {
    const from = transfer.at - transfer.offset;
    const bytes = part(transfer.buffer, from, from + length);
    const guestOffset = transfer.at;
    transfer.at += length;
    const child = this.#child(childIndex);
    const checked = this.format.checkDataWrite?.(childIndex, hostOffset, length);
    if (checked !== undefined || this.format.transform !== undefined) {
      return this.#writeChecked(checked, child, hostOffset, guestOffset, bytes);
    }
    return child.write(hostOffset, bytes, transfer.hint);
  }

  async #writeChecked(
    checked: Pending,
    child: BlockNode,
    hostOffset: number,
    guestOffset: number,
    bytes: Uint8Array,
  ): Promise<void> {
    await checked;
    const { transform } = this.format;
    if (transform === undefined) {
      await child.write(hostOffset, bytes);
      return;
    }
    // Whole sectors take the lock as well: a neighbour that reads, changes and writes one of them back would undo us.
    const before = hostOffset % transform.sector;
    const length = alignUp(before + bytes.length, transform.sector);
    const ticket = this.#ranges.acquire(guestOffset - before, guestOffset - before + length);
    try {
      if (ticket.waiting !== undefined) await ticket.waiting;
      await this.#writeTransformed(child, hostOffset, guestOffset, bytes);
    } finally {
      this.#ranges.release(ticket);
    }
  }

  /** Encrypts and writes. Sectors of the transform that are covered in part are read, changed and written whole: nobody else may be at them. */
  async #writeTransformed(child: BlockNode, hostOffset: number, guestOffset: number, bytes: Uint8Array): Promise<void> {
    const { transform } = this.format;
    if (transform === undefined) return;
    const before = hostOffset % transform.sector;
    const length = alignUp(before + bytes.length, transform.sector);
    const host = hostOffset - before;
    const guest = guestOffset - before;
    let plain = bytes;
    if (length !== bytes.length) {
      plain = new Uint8Array(length);
      await this.#readTransformed(host, guest, child, plain);
      plain.set(bytes, before);
    }
    const encrypted = new Uint8Array(length);
    await transform.encrypt(plain, encrypted, transform.tweak === 'guest' ? guest : host);
    await child.write(host, encrypted);
  }

  /** One plan: reserve, write data and edges, publish. */
  async #writeAllocating(transfer: Transfer): Promise<void> {
    const { format } = this;
    if (format.prepareWrite === undefined || format.commitWrite === undefined) throw this.#readOnly('write');
    const ticket = this.#ranges.acquire(alignDown(transfer.at, format.unit), alignUp(transfer.end, format.unit));
    try {
      if (ticket.waiting !== undefined) await ticket.waiting;
      const prepared = format.prepareWrite(transfer.at, transfer.end - transfer.at);
      const plan = isPromise(prepared) ? await prepared : prepared;
      try {
        const asked = transfer.end - transfer.at;
        if (plan.guestOffset !== transfer.at || plan.length <= 0 || plan.length > asked) {
          throw new BlockError('INTERNAL', `internal error: ${this.driver} plans no write at ${hex(transfer.at)}`);
        }
        const from = transfer.at - transfer.offset;
        await this.#writePlan(plan, part(transfer.buffer, from, from + plan.length), transfer.hint);
      } catch (error) {
        try {
          await format.abortWrite?.(plan);
        } catch {
          // The reservation leaks; the write's own failure is the one to tell.
        }
        throw error;
      }
      const committed = format.commitWrite(plan);
      if (committed !== undefined) await committed;
      transfer.at += plan.length;
    } finally {
      this.#ranges.release(ticket);
    }
  }

  async #writePlan(plan: WritePlan, guest: Uint8Array, hint: IoOptions | undefined): Promise<void> {
    const { format } = this;
    const { headLength, tailLength, guestOffset } = plan;
    const child = this.#child(plan.child);
    const start = plan.hostOffset - headLength;
    const total = headLength + guest.length + tailLength;
    const parts: Uint8Array[] = [];
    if (headLength > 0) parts.push(await this.#readEdge(guestOffset - headLength, headLength));
    parts.push(guest);
    if (tailLength > 0) parts.push(await this.#readEdge(guestOffset + guest.length, tailLength));
    const checked = format.checkDataWrite?.(plan.child, start, total);
    if (checked !== undefined) await checked;
    if (headLength > 0 || tailLength > 0) await child.event?.('cow_write');
    if (format.transform !== undefined) {
      await this.#writeTransformed(child, start, guestOffset - headLength, concat(parts, total));
    } else if (parts.length === 1) {
      await child.write(start, guest, hint);
    } else if (child.writev !== undefined) {
      await child.writev(start, parts, hint);
    } else if (total <= 4 * ZERO_CHUNK) {
      await child.write(start, concat(parts, total));
    } else {
      let at = start;
      for (const piece of parts) {
        await child.write(at, piece);
        at += piece.length;
      }
    }
  }

  /** Copy-on-write edges come from this node under its old mapping: the backing file is only one of the places it may point to. */
  async #readEdge(offset: number, length: number): Promise<Uint8Array> {
    const edge = new Uint8Array(length);
    await (this.#rules.edgeFromOwnMapping ? this.readGuest(offset, edge) : this.#readBacking(offset, edge));
    return edge;
  }

  async #writeCompressed(offset: number, from: Uint8Array, options: WriteOptions): Promise<void> {
    const { format } = this;
    const end = offset + from.length;
    if (format.writeCompressed === undefined) {
      throw new BlockError('UNSUPPORTED', `${format.format} "${this.name}": cannot store compressed data`, {
        reason: 'engine.compress',
      });
    }
    if (offset % format.unit !== 0 || (end % format.unit !== 0 && end !== this.size)) {
      throw new BlockError(
        'INVALID_ARGUMENT',
        `${format.format} "${this.name}": compressed write of ${hex(from.length)} bytes at ${hex(offset)} is not made of whole units of ${hex(format.unit)}`,
        { reason: 'engine.compress-align', details: { offset, length: from.length, unit: format.unit } },
      );
    }
    const ticket = this.#ranges.acquire(offset, alignUp(end, format.unit));
    try {
      if (ticket.waiting !== undefined) await ticket.waiting;
      await format.writeCompressed(offset, from, options);
    } finally {
      this.#ranges.release(ticket);
    }
    if (options.fua === true) await this.format.flush();
  }

  // ── zeroes and discards ──────────────────────────────────────────────────────────────────────

  writeZeroes(offset: number, length: number, options: ZeroOptions = {}): Pending {
    this.#checkWrite('write zeroes', offset, length);
    throwIfAborted(options.signal);
    if (length === 0) return undefined;
    if (this.#barrier !== undefined) return this.#afterBarrier(() => this.writeZeroes(offset, length, options));
    this.#observe(offset, length);
    return this.#counted(this.#zero(offset, length, options));
  }

  async #zero(offset: number, length: number, options: ZeroOptions): Promise<void> {
    const { zeroUnit } = this.format;
    const end = offset + length;
    const innerStart = Math.min(alignUp(offset, zeroUnit), end);
    // The disk's last unit may be short: zeroing up to the end zeroes it whole.
    const innerEnd = Math.max(innerStart, end === this.size ? end : alignDown(end, zeroUnit));
    if (offset < innerStart) await this.#zeroByWriting(offset, innerStart - offset, options);
    if (innerStart < innerEnd) await this.#zeroInner(innerStart, innerEnd - innerStart, options);
    if (innerEnd < end) await this.#zeroByWriting(innerEnd, end - innerEnd, options);
    if (options.fua === true) await this.format.flush();
  }

  async #zeroInner(offset: number, length: number, options: ZeroOptions): Promise<void> {
    const { format } = this;
    if (format.mapZeroes !== undefined) {
      const ticket = this.#ranges.acquire(alignDown(offset, format.unit), alignUp(offset + length, format.unit));
      try {
        if (ticket.waiting !== undefined) await ticket.waiting;
        if ((await format.mapZeroes(offset, length, options)) === 'done') return;
      } finally {
        this.#ranges.release(ticket);
      }
    }
    if (options.fastOnly === true) {
      throw new BlockError('UNSUPPORTED', `${format.format} "${this.name}": cannot zero without writing`, {
        reason: 'engine.fast-zero',
      });
    }
    await this.#zeroByWriting(offset, length, options);
  }

  async #zeroByWriting(offset: number, length: number, options: ZeroOptions): Promise<void> {
    if (await this.#readsAsZero(offset, length)) return;
    zeroChunk ??= new Uint8Array(ZERO_CHUNK);
    const end = offset + length;
    for (let at = offset; at < end; ) {
      const step = Math.min(end, alignDown(at + ZERO_CHUNK, ZERO_CHUNK)) - at;
      await this.#writeMapped(at, part(zeroChunk, 0, step), options);
      at += step;
    }
  }

  /** True when the mapping alone says so; never reads data. */
  async #readsAsZero(offset: number, length: number): Promise<boolean> {
    const runs = new RunList();
    for (let at = offset; at < offset + length; at = runs.guestEnd) {
      runs.reset(at, offset + length);
      await this.format.map(at, offset + length - at, runs);
      this.#requireProgress(runs, at);
      for (let i = 0; i < runs.count; i++) {
        const run = runs.at(i);
        const past = this.#backing === undefined || run.guestOffset >= this.#backing.size;
        if (run.kind !== 'zero' && !(run.kind === 'unallocated' && past)) return false;
      }
    }
    return true;
  }

  discard(offset: number, length: number, options?: IoOptions): Pending {
    this.#checkWrite('discard', offset, length);
    throwIfAborted(options?.signal);
    const { format } = this;
    const end = offset + length === this.size ? alignUp(this.size, format.unit) : offset + length;
    const innerStart = alignUp(offset, format.unit);
    const innerEnd = alignDown(end, format.unit);
    if (format.unmap === undefined || innerStart >= innerEnd) return undefined;
    if (this.#barrier !== undefined) return this.#afterBarrier(() => this.discard(offset, length, options));
    this.#observe(offset, length);
    return this.#counted(this.#unmap(innerStart, innerEnd - innerStart));
  }

  async #unmap(offset: number, length: number): Promise<void> {
    const ticket = this.#ranges.acquire(offset, offset + length);
    try {
      if (ticket.waiting !== undefined) await ticket.waiting;
      await this.format.unmap?.(offset, length, 'zero');
    } finally {
      this.#ranges.release(ticket);
    }
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

  flush(): Pending {
    this.#checkOpen('flush');
    if (this.format.readOnly) return undefined;
    if (this.#barrier !== undefined) return this.#afterBarrier(() => this.flush());
    const flushed = this.format.flush();
    return flushed === undefined ? undefined : this.#counted(flushed);
  }

  truncate(size: number, options?: TruncateOptions): Pending {
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
      await format.resize?.(size, options?.preallocation ?? 'off');
    });
  }

  async status(): Promise<StoreStatus> {
    return (await this.children[0]?.node.status?.()) ?? {};
  }

  event(name: BlockEvent): Pending {
    return this.children[0]?.node.event?.(name);
  }

  async exclusive<T>(body: () => Promise<T>): Promise<T> {
    await this.#alone.acquire();
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

  async #counted(work: Promise<void>): Promise<void> {
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

  #takeTransfer(offset: number, buffer: Uint8Array, options: IoOptions | undefined): Transfer {
    const transfer = this.#transfers.pop() ?? new Transfer();
    transfer.buffer = buffer;
    transfer.offset = offset;
    transfer.at = offset;
    transfer.end = offset + buffer.length;
    transfer.hint = options?.thread === undefined ? undefined : HINTS[options.thread];
    transfer.runs.reset(-1, -1);
    return transfer;
  }

  #giveBack(transfer: Transfer): void {
    // The buffer is the caller's again: keeping hold of it would keep its memory.
    transfer.buffer = EMPTY;
    transfer.pendings.length = 0;
    this.#transfers.push(transfer);
  }

  #child(index: number): BlockNode {
    const child = this.format.children[index];
    if (child === undefined) throw new BlockError('INTERNAL', `internal error: ${this.driver} has no child ${index}`);
    return child.node;
  }

  #observe(offset: number, length: number): void {
    for (const observer of this.observers) observer(offset, length);
  }

  /** A driver that maps nothing would make us loop for ever. */
  #requireProgress(runs: RunList, at: number): void {
    if (runs.count === 0 || runs.guestStart !== at) {
      throw new BlockError('INTERNAL', `internal error: ${this.driver} maps nothing at ${hex(at)}`);
    }
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

  #readOnly(what: string): BlockError {
    return new BlockError('READ_ONLY', `${this.driver} "${this.name}": ${what} on an image that is open read-only`, {
      reason: 'engine.read-only',
    });
  }
}

function part(buffer: Uint8Array, from: number, to: number): Uint8Array {
  return from === 0 && to === buffer.length ? buffer : buffer.subarray(from, to);
}

function concat(parts: readonly Uint8Array[], total: number): Uint8Array {
  const whole = new Uint8Array(total);
  let at = 0;
  for (const piece of parts) {
    whole.set(piece, at);
    at += piece.length;
  }
  return whole;
}

function reject(error: unknown): Promise<never> {
  return Promise.reject(error);
}

async function settleThenThrow(pendings: readonly Pending[], error: unknown): Promise<never> {
  await settleAll(pendings).catch(() => undefined);
  throw error;
}
