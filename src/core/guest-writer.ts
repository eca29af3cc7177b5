/** Guest writes over a FormatNode: in place, or by the write transaction; zeroes and discards.
 *  Invariants:
 *  - allocating writes: range lock → prepareWrite → [head][guest][tail] in one vector → commitWrite; readers see the old mapping until then;
 *  - a write over one writable data run goes straight through, without any lock;
 *  - copy-on-write edges are what this node reads under its old mapping, wherever that is. */
import { isPromise, type Pending, settleAll } from '../base/async.ts';
import { BlockError, hex } from '../base/errors.ts';
import { throwIfAborted } from '../base/job.ts';
import { alignDown, alignUp } from '../bytes/align.ts';
import { dropAll } from './drop-all.ts';
import type { FormatNode, WritePlan } from './format.ts';
import { announce, childAt, type GuestReader } from './guest-reader.ts';
import type { Epochs } from './in-flight.ts';
import type { BlockNode } from './node.ts';
import { RangeLock, type RangeTicket } from './range-lock.ts';
import { RunList } from './run.ts';
import type { SafetyRules } from './safety.ts';
import type { IoOptions, WriteOptions, ZeroOptions } from './store.ts';
import { part, requireProgress, type Transfer, TransferPool } from './transfer.ts';
import type { TransformedIo } from './transformed-io.ts';

/** Zeros are written from one shared buffer of this size where nothing better is there. */
const ZERO_CHUNK = 64 * 1024;
let zeroChunk: Uint8Array | undefined;

export interface GuestWriterOptions {
  /** What messages call the disk. */
  readonly name: string;
  readonly backing: BlockNode | undefined;
  readonly epochs: Epochs;
  readonly rules: SafetyRules;
  readonly transformed: TransformedIo;
  /** Guest bytes under the present mapping; past the disk's end they read as zero. */
  readGuest(offset: number, into: Uint8Array): Pending;
}

export class GuestWriter {
  readonly #format: FormatNode;
  readonly #reader: GuestReader;
  readonly #name: string;
  readonly #backing: BlockNode | undefined;
  readonly #epochs: Epochs;
  readonly #edgeFromOwnMapping: boolean;
  readonly #transformed: TransformedIo;
  readonly #readGuest: (offset: number, into: Uint8Array) => Pending;
  readonly #ranges: RangeLock;
  readonly #transfers = new TransferPool();

  constructor(format: FormatNode, reader: GuestReader, options: GuestWriterOptions) {
    const { name, backing, epochs, rules, transformed, readGuest } = options;
    this.#format = format;
    this.#reader = reader;
    this.#name = name;
    this.#backing = backing;
    this.#epochs = epochs;
    this.#edgeFromOwnMapping = rules.edgeFromOwnMapping;
    this.#transformed = transformed;
    this.#readGuest = readGuest;
    this.#ranges = new RangeLock(rules.rangeLock);
  }

  /** Writes a range of the disk: in place where that is allowed, else plan after plan. */
  write(offset: number, from: Uint8Array, options: IoOptions | undefined): Pending {
    const transfer = this.#transfers.take(offset, from, options);
    let waiting: Pending;
    try {
      waiting = this.#step(transfer);
    } catch (error) {
      this.#transfers.give(transfer);
      throw error;
    }
    if (waiting === undefined) {
      this.#transfers.give(transfer);
      return undefined;
    }
    return this.#rest(transfer, waiting, options?.signal);
  }

  async #rest(transfer: Transfer, first: Promise<void>, signal: AbortSignal | undefined): Promise<void> {
    const request = this.#epochs.begin();
    try {
      let waiting: Pending = first;
      while (waiting !== undefined) {
        await waiting;
        throwIfAborted(signal);
        waiting = this.#step(transfer);
      }
    } finally {
      this.#transfers.give(transfer);
      this.#epochs.end(request);
    }
  }

  #step(transfer: Transfer): Pending {
    const { runs } = transfer;
    while (transfer.at < transfer.end) {
      if (runs.guestStart !== transfer.at) {
        runs.reset(transfer.at, transfer.end);
        const mapping = this.#format.map(transfer.at, transfer.end - transfer.at, runs);
        if (mapping !== undefined) return mapping;
      }
      requireProgress(runs, transfer.at, this.#format.format);
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
    const child = childAt(this.#format, childIndex);
    const announced = announce(this.#format, 'write_aio');
    const checking = this.#format.checkDataWrite?.(childIndex, hostOffset, length);
    const checked = announced === undefined ? checking : settleAll([announced, checking]);
    if (this.#format.transform !== undefined) {
      return this.#writeSectors(checked, child, hostOffset, guestOffset, bytes, transfer.hint);
    }
    if (checked !== undefined) return this.#writeChecked(checked, child, hostOffset, bytes, transfer.hint);
    return child.write(hostOffset, bytes, transfer.hint);
  }

  async #writeChecked(
    checked: Promise<void>,
    child: BlockNode,
    hostOffset: number,
    bytes: Uint8Array,
    hint: IoOptions | undefined,
  ): Promise<void> {
    await checked;
    await child.write(hostOffset, bytes, hint);
  }

  /** Through the transform. Whole sectors take the lock as well: a neighbour that reads, changes and writes one of them back would undo us. */
  #writeSectors(
    checked: Pending,
    child: BlockNode,
    hostOffset: number,
    guestOffset: number,
    bytes: Uint8Array,
    hint: IoOptions | undefined,
  ): Pending {
    const sector = this.#format.transform?.sector ?? 1;
    const before = hostOffset % sector;
    const start = guestOffset - before;
    const ticket = this.#ranges.acquire(start, start + alignUp(before + bytes.length, sector));
    let writing: Pending;
    try {
      if (ticket.waiting === undefined && checked === undefined) {
        writing = this.#transformed.write(child, hostOffset, guestOffset, bytes, hint);
      } else {
        writing = this.#writeSectorsAfter(
          settleAll([checked, ticket.waiting]),
          child,
          hostOffset,
          guestOffset,
          bytes,
          hint,
        );
      }
    } catch (error) {
      this.#ranges.release(ticket);
      throw error;
    }
    if (writing !== undefined) return this.#releaseAfter(writing, ticket);
    this.#ranges.release(ticket);
    return undefined;
  }

  async #writeSectorsAfter(
    waiting: Promise<void>,
    child: BlockNode,
    hostOffset: number,
    guestOffset: number,
    bytes: Uint8Array,
    hint: IoOptions | undefined,
  ): Promise<void> {
    await waiting;
    await this.#transformed.write(child, hostOffset, guestOffset, bytes, hint);
  }

  async #releaseAfter(writing: Promise<void>, ticket: RangeTicket): Promise<void> {
    try {
      await writing;
    } finally {
      this.#ranges.release(ticket);
    }
  }

  /** One plan: reserve, write data and edges, publish. */
  async #writeAllocating(transfer: Transfer): Promise<void> {
    const format = this.#format;
    if (format.prepareWrite === undefined || format.commitWrite === undefined)
      throw new BlockError('INTERNAL', `internal error: ${format.format} has no write transaction`);
    const ticket = this.#ranges.acquire(alignDown(transfer.at, format.unit), alignUp(transfer.end, format.unit));
    try {
      if (ticket.waiting !== undefined) await ticket.waiting;
      const prepared = format.prepareWrite(transfer.at, transfer.end - transfer.at);
      const plan = isPromise(prepared) ? await prepared : prepared;
      try {
        const asked = transfer.end - transfer.at;
        if (plan.guestOffset !== transfer.at || plan.length <= 0 || plan.length > asked) {
          throw new BlockError(
            'INTERNAL',
            `internal error: ${this.#format.format} plans no write at ${hex(transfer.at)}`,
          );
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
    const format = this.#format;
    const { headLength, tailLength, guestOffset } = plan;
    const child = childAt(this.#format, plan.child);
    const start = plan.hostOffset - headLength;
    const total = headLength + guest.length + tailLength;
    const parts: Uint8Array[] = [];
    if (headLength > 0) parts.push(await this.#readEdge(guestOffset - headLength, headLength));
    parts.push(guest);
    if (tailLength > 0) parts.push(await this.#readEdge(guestOffset + guest.length, tailLength));
    const checked = format.checkDataWrite?.(plan.child, start, total);
    if (checked !== undefined) await checked;
    const announced = announce(format, 'write_aio');
    if (announced !== undefined) await announced;
    if (headLength > 0 || tailLength > 0) await announce(format, 'cow_write');
    if (format.transform !== undefined) {
      const whole = parts.length === 1 ? guest : concat(parts, total);
      await this.#transformed.write(child, start, guestOffset - headLength, whole, hint);
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
    await announce(this.#format, 'cow_read');
    await (this.#edgeFromOwnMapping ? this.#readGuest(offset, edge) : this.#reader.readBacking(offset, edge));
    return edge;
  }

  /** Whole units, stored encoded. */
  async writeCompressed(offset: number, from: Uint8Array, options: WriteOptions): Promise<void> {
    const format = this.#format;
    const end = offset + from.length;
    if (format.writeCompressed === undefined) {
      throw new BlockError('UNSUPPORTED', `${format.format} "${this.#name}": cannot store compressed data`, {
        reason: 'engine.compress',
      });
    }
    if (offset % format.unit !== 0 || (end % format.unit !== 0 && end !== this.#format.virtualSize)) {
      throw new BlockError(
        'INVALID_ARGUMENT',
        `${format.format} "${this.#name}": compressed write of ${hex(from.length)} bytes at ${hex(offset)} is not made of whole units of ${hex(format.unit)}`,
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
    if (options.fua === true) await this.#format.flush();
  }

  /** Makes a range read as zero. */
  async zero(offset: number, length: number, options: ZeroOptions): Promise<void> {
    const { zeroUnit } = this.#format;
    const end = offset + length;
    const innerStart = Math.min(alignUp(offset, zeroUnit), end);
    // The disk's last unit may be short: zeroing up to the end zeroes it whole.
    const innerEnd = Math.max(innerStart, end === this.#format.virtualSize ? end : alignDown(end, zeroUnit));
    if (offset < innerStart) await this.#zeroByWriting(offset, innerStart - offset, options);
    if (innerStart < innerEnd) await this.#zeroInner(innerStart, innerEnd - innerStart, options);
    if (innerEnd < end) await this.#zeroByWriting(innerEnd, end - innerEnd, options);
    if (options.fua === true) await this.#format.flush();
  }

  async #zeroInner(offset: number, length: number, options: ZeroOptions): Promise<void> {
    const format = this.#format;
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
      throw new BlockError('UNSUPPORTED', `${format.format} "${this.#name}": cannot zero without writing`, {
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
      await this.write(at, part(zeroChunk, 0, step), options);
      at += step;
    }
  }

  /** True when the mapping alone says so; never reads data. */
  async #readsAsZero(offset: number, length: number): Promise<boolean> {
    const runs = new RunList();
    for (let at = offset; at < offset + length; at = runs.guestEnd) {
      runs.reset(at, offset + length);
      await this.#format.map(at, offset + length - at, runs);
      requireProgress(runs, at, this.#format.format);
      for (let i = 0; i < runs.count; i++) {
        const run = runs.at(i);
        const past = this.#backing === undefined || run.guestOffset >= this.#backing.size;
        if (run.kind !== 'zero' && !(run.kind === 'unallocated' && past)) return false;
      }
    }
    return true;
  }

  /** Drops whole units, where the format can. */
  async unmap(offset: number, length: number, reveal: 'zero' | 'backing'): Promise<'done' | 'unsupported'> {
    const { unit } = this.#format;
    const ticket = this.#ranges.acquire(alignDown(offset, unit), alignUp(offset + length, unit));
    try {
      if (ticket.waiting !== undefined) await ticket.waiting;
      return (await this.#format.unmap?.(offset, length, reveal)) ?? 'unsupported';
    } finally {
      this.#ranges.release(ticket);
    }
  }

  /** Drops everything that the layer holds, range by range; what is below shows then.
   *  @returns false when the format cannot. */
  dropAll(signal: AbortSignal | undefined): Promise<boolean> {
    return dropAll(this.#format, (offset, length) => this.unmap(offset, length, 'backing'), signal);
  }
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
