/** The mapping of formats in which every unit has its fixed place, and a bitmap tells who holds it: bit set, the unit lies in the data file at
 *  `dataOffset + guest offset`; clear, the backing file shows through. Serves cow (sectors) and add-cow (clusters).
 *  Owns the bitmap's tables (in the shared cache) and the write order of both formats: data → flush of the data file → bits.
 *  Invariants:
 *  - a bit is written only after the data it speaks for, edges included, is durable;
 *  - bytes outside `[bitmapOffset, bitmapOffset + bitmapLength)` are never touched, and of a table only what changed is written;
 *  - bits that have no place in the bitmap (the tail of old cow layouts) are clear and stay clear: `refuseTail` says so. */
import { isPromise, type MaybePromise, type Pending, settleAll } from '../base/async.ts';
import { isBlockError } from '../base/errors.ts';
import { throwIfAborted } from '../base/job.ts';
import { alignDown } from '../bytes/align.ts';
import { clearBits, findRunEnd, getBit, setBits } from '../bytes/bits.ts';
import { ExtentList } from './extent.ts';
import { FlushGate } from './flush-gate.ts';
import type { WritePlan } from './format.ts';
import type { BlockNode } from './node.ts';
import { RunList } from './run.ts';
import { ALL_RULES, type SafetyRules } from './safety.ts';
import type { ZeroOptions } from './store.ts';
import { type CacheBudget, type Table, TableCache, type TableLease } from './table-cache.ts';

/** Bytes of bitmap in one table: a request of any sensible size meets one or two. */
const TABLE_SIZE = 64 * 1024;

/** Tables from which on a request asks for holes first. */
const WORTH_ASKING = 4;

/** Where things are. Bytes, unless said otherwise. */
export interface PresenceGeometry {
  /** What one bit stands for. */
  readonly unit: number;
  readonly virtualSize: number;
  readonly bitmapOffset: number;
  readonly bitmapLength: number;
  /** Bits that count; at most 8 · `bitmapLength`. */
  readonly bits: number;
  /** Where unit 0 lies in the data file. */
  readonly dataOffset: number;
  /** The bitmap is made of big-endian words of so many bytes; 1: of bytes. */
  readonly wordBytes: 1 | 4 | 8;
}

export interface PresenceOptions {
  /** Holds the bitmap. */
  readonly file: BlockNode;
  /** Holds the units; may be `file`. */
  readonly data: BlockNode;
  /** Index of `data` among the format's children. */
  readonly child: number;
  readonly hasBacking: boolean;
  readonly readOnly: boolean;
  readonly budget: CacheBudget;
  readonly rules?: SafetyRules | undefined;
  /** No order is kept, nothing is durable before the files are closed. */
  readonly unsafe: boolean;
  readonly geometry: PresenceGeometry;
  /** The error of writing to a unit that has no bit. */
  refuseTail(guestOffset: number): Error;
}

interface PresencePlan extends WritePlan {
  readonly lease: TableLease;
  readonly first: number;
  readonly end: number;
  /** The units were there before: nothing to publish. */
  readonly present: boolean;
}

export class PresenceMap {
  readonly #options: PresenceOptions;
  readonly #fileGate: FlushGate;
  readonly #dataGate: FlushGate;
  #geometry: PresenceGeometry;
  #cache: TableCache;

  constructor(options: PresenceOptions) {
    const { file, data, unsafe, geometry } = options;
    this.#options = options;
    this.#geometry = geometry;
    this.#fileGate = new FlushGate(file, unsafe);
    this.#dataGate = data === file ? this.#fileGate : new FlushGate(data, unsafe);
    this.#cache = this.#newCache();
  }

  get geometry(): PresenceGeometry {
    return this.#geometry;
  }

  /** Changes wait to be written. */
  get dirty(): boolean {
    return this.#cache.dirty;
  }

  #newCache(): TableCache {
    const { file, budget, rules = ALL_RULES, unsafe } = this.#options;
    const { bitmapOffset, bitmapLength } = this.#geometry;
    return new TableCache({
      name: 'bitmap',
      store: file,
      gate: this.#fileGate,
      tableSize: TABLE_SIZE,
      regionStart: bitmapOffset,
      regionEnd: bitmapOffset + bitmapLength,
      budget,
      unordered: unsafe,
      rules,
      loadEvent: 'bitmap_load',
      writeEvent: 'bitmap_update',
    });
  }

  // ── one table ────────────────────────────────────────────────────────────────────────────────

  #tableOf(unit: number): number {
    return alignDown(this.#geometry.bitmapOffset + Math.floor(unit / 8), TABLE_SIZE);
  }

  /** The bit of `unit`, counted from the beginning of its table. */
  #bitIn(table: Table, unit: number): number {
    const { bitmapOffset, wordBytes } = this.#geometry;
    const byte = Math.floor(unit / 8);
    const placed = wordBytes === 1 ? byte : alignDown(byte, wordBytes) + (wordBytes - 1 - (byte % wordBytes));
    return (bitmapOffset + placed - table.offset) * 8 + (unit % 8);
  }

  /** First unit whose bit is in no table up to this one. */
  #unitsEnd(table: Table): number {
    const { bitmapOffset, bits } = this.#geometry;
    return Math.min(bits, (table.offset + TABLE_SIZE - bitmapOffset) * 8);
  }

  /** End of the units that are as `unit` is, not past `end` nor the table. */
  #runEnd(table: Table, unit: number, end: number): number {
    const stop = Math.min(end, this.#unitsEnd(table));
    const bit = this.#bitIn(table, unit);
    if (this.#geometry.wordBytes === 1) return unit + findRunEnd(table.bytes, table.view, bit, bit + stop - unit) - bit;
    const value = getBit(table.bytes, bit);
    const uniform = value ? 0xff : 0;
    for (let at = unit + 1; at < stop; ) {
      const next = this.#bitIn(table, at);
      if (at % 8 === 0 && at + 8 <= stop && table.bytes[next / 8] === uniform) at += 8;
      else if (getBit(table.bytes, next) === value) at++;
      else return at;
    }
    return stop;
  }

  #isPresent(table: Table, unit: number): boolean {
    return getBit(table.bytes, this.#bitIn(table, unit));
  }

  /** Changes the bits of units of one table. */
  #change(lease: TableLease, first: number, end: number, present: boolean): void {
    const { bytes } = lease.table;
    const change = present ? setBits : clearBits;
    if (this.#geometry.wordBytes === 1) {
      const bit = this.#bitIn(lease.table, first);
      change(bytes, bit, bit + end - first);
      lease.markDirty(Math.floor(bit / 8), Math.ceil((bit + end - first) / 8));
      return;
    }
    for (let unit = first; unit < end; ) {
      const stop = Math.min(end, alignDown(unit, 8) + 8);
      const bit = this.#bitIn(lease.table, unit);
      change(bytes, bit, bit + stop - unit);
      lease.markDirty(Math.floor(bit / 8), Math.floor(bit / 8) + 1);
      unit = stop;
    }
  }

  // ── mapping ──────────────────────────────────────────────────────────────────────────────────

  /** As `FormatNode.map`. */
  map(offset: number, length: number, into: RunList): Pending {
    const end = offset + length;
    for (let at = offset; at < end; ) {
      const unit = Math.floor(at / this.#geometry.unit);
      if (unit >= this.#geometry.bits) {
        into.push('unallocated', end - at, 0, -1, false);
        return undefined;
      }
      const tableOffset = this.#tableOf(unit);
      // Behind the end of the file there are no bits, unless they wait to be written: a short file may claim any disk, and nobody walks through
      // tables that are not there.
      if (tableOffset >= this.#options.file.size && !this.#cache.dirty) {
        into.push('unallocated', end - at, 0, -1, false);
        return undefined;
      }
      const skipped = this.#skipHole(tableOffset, at, end, into);
      if (typeof skipped !== 'number') return skipped;
      if (skipped < 0) return undefined;
      if (skipped > at) {
        at = skipped;
        continue;
      }
      // Only the first table is waited for: the engine comes back for the rest.
      const table = at === offset ? this.#cache.load(tableOffset) : this.#cache.peek(tableOffset);
      if (table === undefined) return undefined;
      if (isPromise(table)) return this.#mapLoaded(table, at, end, into);
      at = this.#mapTable(table, at, end, into);
      if (at < 0) return undefined;
    }
    return undefined;
  }

  /** Whoever asks about more than some tables have bits for is spared those that are holes in the file: a sparse bitmap of a large disk is
   *  millions of zeros. @returns where to go on, `at` where there is no hole, -1: enough; or a promise that maps by itself, where the store must be waited for. */
  #skipHole(tableOffset: number, at: number, end: number, into: RunList): number | Promise<void> {
    const { file } = this.#options;
    const { unit, bitmapOffset, bitmapLength } = this.#geometry;
    const worthwhile = tableOffset + WORTH_ASKING * TABLE_SIZE;
    // Changes that are not written yet would be overlooked.
    if (end <= (worthwhile - bitmapOffset) * 8 * unit || this.#cache.dirty || !file.supports.extents) return at;
    const start = Math.max(tableOffset, bitmapOffset);
    const hole = new ExtentList(1);
    hole.reset(start);
    const pending = file.extents(start, bitmapOffset + bitmapLength - start, hole);
    if (pending !== undefined) return this.#skipLater(pending, hole, tableOffset, at, end, into);
    return this.#skipped(hole, tableOffset, at, end, into);
  }

  async #skipLater(
    pending: Promise<void>,
    hole: ExtentList,
    tableOffset: number,
    at: number,
    end: number,
    into: RunList,
  ): Promise<void> {
    await pending;
    if (!this.#cache.dirty && this.#skipped(hole, tableOffset, at, end, into) !== at) return;
    this.#mapTable(await this.#cache.load(tableOffset), at, end, into);
  }

  /** Adds what a hole at the beginning of `extents` tells, if it is as long as a table. */
  #skipped(extents: ExtentList, tableOffset: number, at: number, end: number, into: RunList): number {
    const { unit, bitmapOffset, bitmapLength, bits } = this.#geometry;
    if (extents.count === 0 || !extents.at(0).zero) return at;
    const holeEnd = extents.at(0).start + extents.at(0).length;
    if (holeEnd < tableOffset + TABLE_SIZE && holeEnd < bitmapOffset + bitmapLength) return at;
    const units = holeEnd >= bitmapOffset + bitmapLength ? bits : (alignDown(holeEnd, TABLE_SIZE) - bitmapOffset) * 8;
    const stop = Math.min(end, units * unit);
    return into.push('unallocated', stop - at, 0, -1, false) ? stop : -1;
  }

  async #mapLoaded(table: Promise<Table>, at: number, end: number, into: RunList): Promise<void> {
    this.#mapTable(await table, at, end, into);
  }

  /** Adds what one table tells. @returns where to go on, -1: enough. */
  #mapTable(table: Table, from: number, end: number, into: RunList): number {
    const { unit, dataOffset } = this.#geometry;
    const { child, readOnly } = this.#options;
    const endUnit = Math.ceil(end / unit);
    const stop = Math.min(endUnit, this.#unitsEnd(table));
    let at = from;
    for (let first = Math.floor(from / unit); first < stop; ) {
      const last = this.#runEnd(table, first, stop);
      const runEnd = Math.min(end, last * unit);
      const more = this.#isPresent(table, first)
        ? into.push('data', runEnd - at, child, dataOffset + at, !readOnly)
        : into.push('unallocated', runEnd - at, 0, -1, false);
      if (!more) return -1;
      at = runEnd;
      first = last;
    }
    return at;
  }

  // ── writing ──────────────────────────────────────────────────────────────────────────────────

  /** As `FormatNode.prepareWrite`. */
  prepareWrite(offset: number, length: number): MaybePromise<WritePlan> {
    const first = Math.floor(offset / this.#geometry.unit);
    if (first >= this.#geometry.bits) throw this.#options.refuseTail(offset);
    const lease = this.#cache.lease(this.#tableOf(first));
    return isPromise(lease) ? this.#planLater(lease, offset, length) : this.#plan(lease, offset, length);
  }

  async #planLater(lease: Promise<TableLease>, offset: number, length: number): Promise<PresencePlan> {
    return this.#plan(await lease, offset, length);
  }

  #plan(lease: TableLease, offset: number, length: number): PresencePlan {
    const { unit, virtualSize, dataOffset } = this.#geometry;
    const first = Math.floor(offset / unit);
    const end = this.#runEnd(lease.table, first, Math.ceil((offset + length) / unit));
    const present = this.#isPresent(lease.table, first);
    // The last unit of the disk may be short, and its data file end with it: no edge goes past the disk.
    const unitsEnd = Math.min(end * unit, virtualSize);
    const covered = Math.min(offset + length, unitsEnd);
    return {
      lease,
      first,
      end,
      present,
      guestOffset: offset,
      length: covered - offset,
      child: this.#options.child,
      hostOffset: dataOffset + offset,
      headLength: present ? 0 : offset - first * unit,
      tailLength: present ? 0 : unitsEnd - covered,
    };
  }

  /** As `FormatNode.commitWrite`. */
  commitWrite(given: WritePlan): undefined {
    const { lease, first, end, present } = given as PresencePlan;
    if (!present) {
      this.#cache.writeAfterFlush(this.#dataGate);
      this.#change(lease, first, end, true);
    }
    lease.release();
    return undefined;
  }

  /** As `FormatNode.abortWrite`: nothing was reserved, units have their places. */
  abortWrite(given: WritePlan): undefined {
    (given as PresencePlan).lease.release();
    return undefined;
  }

  /** As `FormatNode.mapZeroes`: zeros in the data file, without transferring them where it can, and the bits. */
  async zero(offset: number, length: number, options: ZeroOptions): Promise<'done'> {
    const { unit, dataOffset, bits, virtualSize } = this.#geometry;
    const { data, hasBacking } = this.#options;
    const end = offset + length;
    const endUnit = Math.ceil(end / unit);
    for (let first = Math.floor(offset / unit); first < endUnit; ) {
      throwIfAborted(options.signal);
      if (first >= bits) throw this.#options.refuseTail(first * unit);
      using lease = await this.#cache.lease(this.#tableOf(first));
      const last = this.#runEnd(lease.table, first, endUnit);
      const present = this.#isPresent(lease.table, first);
      // Without a backing file what is not there reads as zero already.
      if (present || hasBacking) {
        const start = first * unit;
        // A discard of the disk's last unit asks for all of it, but the data file may end with the disk.
        const stop = Math.min(end, last * unit, virtualSize);
        await data.writeZeroes(dataOffset + start, stop - start, zeroing(options));
        if (!present) {
          this.#cache.writeAfterFlush(this.#dataGate);
          this.#change(lease, first, last, true);
        }
      }
      first = last;
    }
    return 'done';
  }

  /** As `FormatNode.unmap`. To show the backing file again the bits are cleared; to read as zero the space is given back and the units stay. */
  async unmap(offset: number, length: number, reveal: 'zero' | 'backing'): Promise<'done' | 'unsupported'> {
    if (reveal === 'backing') return await this.#drop(offset, length);
    try {
      return await this.zero(offset, length, { unmap: true, fastOnly: true });
    } catch (error) {
      if (isBlockError(error) && error.code === 'UNSUPPORTED') return 'unsupported';
      throw error;
    }
  }

  async #drop(offset: number, length: number): Promise<'done'> {
    const { unit, bits } = this.#geometry;
    const endUnit = Math.min(bits, Math.ceil((offset + length) / unit));
    for (let first = Math.floor(offset / unit); first < endUnit; ) {
      using lease = await this.#cache.lease(this.#tableOf(first));
      const last = Math.min(endUnit, this.#unitsEnd(lease.table));
      this.#change(lease, first, last, false);
      first = last;
    }
    return 'done';
  }

  /** Drops every unit. Nothing else may run. Durable when it ends. */
  async clear(): Promise<void> {
    const { file } = this.#options;
    const { bitmapOffset, bitmapLength } = this.#geometry;
    await this.#cache.quiesce();
    this.#cache.retire();
    // Zeros past the end of a file that was never as long would only make it longer.
    const length = Math.min(bitmapLength, Math.max(0, file.size - bitmapOffset));
    if (length > 0) await file.writeZeroes(bitmapOffset, length);
    await this.#fileGate.flush();
  }

  /** Goes on with another geometry: the disk, and with it the bitmap, has become longer or shorter. Nothing else may run; what was written
   *  before should be durable. */
  async reshape(geometry: PresenceGeometry): Promise<void> {
    // Without need no I/O: the files may have been resized by now, and that cannot be taken back.
    if (this.#cache.dirty) await this.flush();
    await this.#cache.quiesce();
    this.#cache.retire();
    this.#geometry = geometry;
    this.#cache = this.#newCache();
  }

  /** Bytes of the disk that the layer does not hold. */
  async missing(signal?: AbortSignal): Promise<number> {
    const { virtualSize } = this.#geometry;
    const runs = new RunList(256);
    let missing = 0;
    for (let at = 0; at < virtualSize; at = runs.guestEnd) {
      throwIfAborted(signal);
      runs.reset(at, virtualSize);
      await this.map(at, virtualSize - at, runs);
      for (let i = 0; i < runs.count; i++) if (runs.at(i).kind === 'unallocated') missing += runs.at(i).length;
    }
    return missing;
  }

  // ── life cycle ───────────────────────────────────────────────────────────────────────────────

  /** Everything durable: data first, then bits. */
  flush(): Pending {
    if (this.#cache.dirty) return this.#flush();
    const announced = this.#fileGate.store.event?.('flush_to_disk');
    return announced === undefined ? this.#flushFiles() : announced.then(() => this.#flushFiles());
  }

  #flushFiles(): Pending {
    const data = this.#dataGate === this.#fileGate ? undefined : this.#dataGate.settle(this.#dataGate.ticket());
    let file: Pending;
    try {
      file = this.#fileGate.settle(this.#fileGate.ticket());
    } catch (error) {
      // The other flush runs already: it is waited for, and listened to.
      file = Promise.reject(error);
    }
    return data === undefined || file === undefined ? (data ?? file) : settleAll([data, file]);
  }

  async #flush(): Promise<void> {
    await this.#cache.writeBack();
    const written = this.#cache.writtenGeneration;
    await this.#fileGate.store.event?.('flush_to_disk');
    // What was overwritten in place as well.
    if (this.#dataGate !== this.#fileGate) await this.#dataGate.settle(this.#dataGate.ticket());
    await this.#fileGate.settle(this.#fileGate.ticket());
    this.#cache.noteFlushed(written);
  }

  async close(): Promise<void> {
    if (this.#options.readOnly) return;
    await this.flush();
    await this.#cache.quiesce();
  }
}

function zeroing(options: ZeroOptions): ZeroOptions {
  const { signal, unmap, fastOnly } = options;
  return {
    ...(signal === undefined ? {} : { signal }),
    ...(unmap === undefined ? {} : { unmap }),
    ...(fastOnly === undefined ? {} : { fastOnly }),
  };
}
