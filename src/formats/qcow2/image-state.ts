/** What the parts of an open qcow2 image share: its stores, header, geometry, metadata caches, the metadata mutex, and the one way to
 *  report corruption. No logic of guest data.
 *  Invariants:
 *  - the header in memory is what the file holds, but for what is being written;
 *  - `metadata` is held while host space is chosen, counted or freed, and never across guest data or copy-on-write edges;
 *  - orders of write-back: L2 after refcount blocks, refcount table and data; L1 after the same; refcount table after refcount blocks. */
import { Mutex, type Pending } from '../../base/async.ts';
import { BlockError, hex, isBlockError } from '../../base/errors.ts';
import { FlushGate } from '../../core/flush-gate.ts';
import type { DataTransform, EngineServices, OpenContext } from '../../core/format.ts';
import type { BlockNode } from '../../core/node.ts';
import { ALL_RULES, type SafetyRules } from '../../core/safety.ts';
import { CacheBudget, TableCache } from '../../core/table-cache.ts';
import { AUTOCLEAR, INCOMPATIBLE } from './features.ts';
import { type Geometry, TABLE_ENTRY_BYTES } from './geometry.ts';
import { hasDataFile, headerGeometry, type Qcow2Header, writeHeader, writeIncompatible } from './header.ts';
import { OVERLAP } from './options.ts';

/** Slices of tables, bytes: small enough for random access, large enough for runs of reads. */
const L2_SLICE = 16 * 1024;
const SMALL_SLICE = 4 * 1024;

export interface Caches {
  readonly l1: TableCache;
  readonly l2: TableCache;
  readonly refcountTable: TableCache;
  readonly refcountBlocks: TableCache;
}

/** How tables are kept; where a budget is not given, the image's common one serves. */
export interface TableMemory {
  readonly lazyRefcounts: boolean;
  readonly l2?: CacheBudget;
  readonly refcounts?: CacheBudget;
  readonly l2SliceBytes?: number;
  /** `cache-clean-interval`; 0: never. */
  readonly cleanSeconds?: number;
}

export class Qcow2State {
  readonly name: string;
  readonly file: BlockNode;
  /** Where guest data lies: the external data file, or `file`. */
  readonly data: BlockNode;
  readonly hasDataFile: boolean;
  geometry: Geometry;
  readonly readOnly: boolean;
  readonly unsafe: boolean;
  /** Refcounts need not be right on disk until close: the dirty bit says so. */
  lazyRefcounts: boolean;
  readonly rules: SafetyRules;
  readonly metadata = new Mutex();
  readonly fileGate: FlushGate;
  readonly dataGate: FlushGate;
  readonly l2SliceBytes: number;
  readonly #context: OpenContext;
  readonly #memory: TableMemory;
  readonly #suppressed = { fatal: false, other: false };
  header: Qcow2Header;
  /** Of guest data; `undefined` where the image is not encrypted, or was opened without its key. */
  readonly transform: DataTransform | undefined;
  caches: Caches;
  engine: EngineServices | undefined;
  /** Asked before a table is written: refuses to put it over other metadata than its own kind (an OVERLAP bit). */
  guardTable: ((offset: number, length: number, own: number) => Pending) | undefined;

  constructor(
    header: Qcow2Header,
    context: OpenContext,
    data: BlockNode | undefined,
    memory: TableMemory,
    transform: DataTransform | undefined = undefined,
  ) {
    this.name = context.name;
    this.file = context.file;
    this.data = data ?? context.file;
    this.hasDataFile = hasDataFile(header);
    this.header = header;
    this.transform = transform;
    this.geometry = headerGeometry(header);
    this.readOnly = context.readOnly;
    this.unsafe = context.unsafe;
    this.lazyRefcounts = memory.lazyRefcounts;
    this.#memory = memory;
    this.rules = context.rules ?? ALL_RULES;
    this.#context = context;
    this.fileGate = new FlushGate(this.file, context.unsafe);
    this.dataGate = data === undefined ? this.fileGate : new FlushGate(data, context.unsafe);
    this.l2SliceBytes = memory.l2SliceBytes ?? Math.min(this.geometry.clusterSize, L2_SLICE);
    this.caches = this.#newCaches();
  }

  /** The data file is the disk as it is: it must stay so. With encryption it never is, whatever the header says. */
  get rawDataFile(): boolean {
    return (
      this.hasDataFile && this.header.encryption === 'none' && (this.header.autoclear & AUTOCLEAR.dataFileRaw) !== 0n
    );
  }

  /** What refcount blocks may take in memory, bytes. */
  get refcountMemory(): number {
    return (this.#memory.refcounts ?? this.#context.cache).limit;
  }

  #newCaches(): Caches {
    const { geometry, header } = this;
    const shared = { store: this.file, gate: this.fileGate, unordered: this.unsafe, rules: this.rules };
    // The L1 table and the refcount table are small and asked all the time: they stay.
    const resident = new CacheBudget(Number.POSITIVE_INFINITY);
    const slice = Math.min(geometry.clusterSize, SMALL_SLICE);
    const guard = (own: number) => ({
      beforeWrite: (offset: number, length: number): Pending => this.guardTable?.(offset, length, own),
    });
    return {
      l1: new TableCache({
        ...shared,
        ...guard(OVERLAP.activeL1),
        name: 'L1 table',
        tableSize: slice,
        budget: resident,
        regionStart: header.l1Offset,
        regionEnd: header.l1Offset + header.l1Size * TABLE_ENTRY_BYTES,
        writeEvent: 'l1_update',
      }),
      l2: new TableCache({
        ...shared,
        ...guard(OVERLAP.activeL2),
        name: 'L2 tables',
        tableSize: this.l2SliceBytes,
        budget: this.#memory.l2 ?? this.#context.cache,
        cleanEveryMs: 1000 * (this.#memory.cleanSeconds ?? 0),
        loadEvent: 'l2_load',
        writeEvent: 'l2_update',
      }),
      refcountTable: new TableCache({
        ...shared,
        ...guard(OVERLAP.refcountTable),
        name: 'refcount table',
        tableSize: slice,
        budget: resident,
        regionStart: header.refcountTableOffset,
        regionEnd: header.refcountTableOffset + header.refcountTableClusters * geometry.clusterSize,
        loadEvent: 'reftable_load',
        writeEvent: 'reftable_update',
      }),
      refcountBlocks: new TableCache({
        ...shared,
        ...guard(OVERLAP.refcountBlock),
        name: 'refcount blocks',
        tableSize: slice,
        budget: this.#memory.refcounts ?? this.#context.cache,
        cleanEveryMs: 1000 * (this.#memory.cleanSeconds ?? 0),
        loadEvent: 'refblock_load',
        writeEvent: 'refblock_update_part',
      }),
    };
  }

  /** The header already names the new refcount table, durably. */
  async moveRefcountTable(offset: number, clusters: number): Promise<void> {
    const old = this.caches.refcountTable;
    this.header = { ...this.header, refcountTableOffset: offset, refcountTableClusters: clusters };
    // Nothing of the old table is to be written any more; orders on it are met, because the new one is durable.
    await old.quiesce();
    old.retire();
    this.caches = { ...this.caches, refcountTable: this.#newCaches().refcountTable };
  }

  /** The header already names the new L1 table, durably. */
  async moveL1(offset: number, entries: number): Promise<void> {
    const old = this.caches.l1;
    this.header = { ...this.header, l1Offset: offset, l1Size: entries };
    await old.quiesce();
    old.retire();
    this.caches = { ...this.caches, l1: this.#newCaches().l1 };
  }

  /** The header has another geometry. The caches are the caller's to reset. */
  remeasure(): void {
    this.geometry = headerGeometry(this.header);
  }

  /** After tables moved or were rewritten behind the caches. Everything must have been written back before. */
  resetCaches(): void {
    for (const cache of Object.values(this.caches)) (cache as TableCache).forgetAll();
    this.caches = this.#newCaches();
  }

  /** Orders what is changed next in `cache` after the refcounts and data it will refer to. Call it before the change. */
  orderAfterContent(cache: TableCache): void {
    if (!this.lazyRefcounts) {
      cache.writeAfter(this.caches.refcountBlocks);
      cache.writeAfter(this.caches.refcountTable);
    }
    cache.writeAfterFlush(this.dataGate);
  }

  /** Ends when the whole header is on disk as `header` has it, durable. */
  async replaceHeader(header: Qcow2Header): Promise<void> {
    await writeHeader(this.file, header, this.name);
    await this.flushFile();
    this.header = header;
  }

  async setIncompatible(incompatible: bigint): Promise<void> {
    if (incompatible === this.header.incompatible) return;
    await writeIncompatible(this.file, incompatible);
    await this.flushFile();
    this.header = { ...this.header, incompatible };
  }

  flushFile(): Pending {
    return this.fileGate.settle(this.fileGate.ticket());
  }

  /** First change under lazy refcounts: the image says so before any refcount is stale. */
  async markDirty(): Promise<void> {
    if (this.lazyRefcounts) await this.setIncompatible(this.header.incompatible | INCOMPATIBLE.dirty);
  }

  warn(reason: string, message: string): void {
    this.#context.report({ type: 'warning', node: this.name, reason, message });
  }

  repaired(message: string): void {
    this.#context.report({ type: 'repaired', node: this.name, message });
  }

  /** Reports damage found while the image is in use, and makes the error to throw. A fatal finding on a writable image sets the corrupt
   *  bit and makes the node unusable; on a read-only one it only fails the request. Repeats are not reported again.
   *  @param detail QEMU's sentence for it. */
  corruption(
    reason: string,
    detail: string,
    where: { readonly fatal: boolean; readonly offset?: number; readonly size?: number },
  ): BlockError {
    const fatal = where.fatal && !this.readOnly;
    const error = new BlockError('CORRUPT', `qcow2 "${this.name}": ${detail}`, {
      reason: `qcow2.${reason}`,
      details: { ...where, errno: 'EIO', detail },
    });
    const known = this.#suppressed.fatal || (!fatal && this.#suppressed.other);
    if (!known) {
      const { offset, size } = where;
      this.#context.report({
        type: 'corrupted',
        node: this.name,
        message: detail,
        ...(offset === undefined || offset < 0 ? {} : { offset }),
        ...(size === undefined || size < 0 ? {} : { size }),
        fatal,
      });
      if (fatal) this.#suppressed.fatal = true;
      else this.#suppressed.other = true;
    }
    if (fatal) this.engine?.condemn(error);
    return error;
  }

  /** As `corruption`, fatal, with the corrupt bit written first where the format has one. */
  async fatal(
    reason: string,
    detail: string,
    where: { readonly offset?: number; readonly size?: number } = {},
  ): Promise<never> {
    const error = this.corruption(reason, detail, { ...where, fatal: true });
    if (!this.readOnly && this.header.version >= 3) {
      try {
        await this.setIncompatible(this.header.incompatible | INCOMPATIBLE.corrupt);
      } catch (cause) {
        // what was found counts more than that it could not be written down
        const why = isBlockError(cause) ? cause.message : String(cause);
        this.warn('qcow2.corrupt-mark', `${this.name}: could not be marked as corrupt: ${why}`);
      }
    }
    throw error;
  }

  /** @throws CORRUPT when `offset` is no place for a cluster: not aligned, or beyond what a number holds. */
  requireAligned(offset: number, reason: string, detail: string): Pending {
    if (offset % this.geometry.clusterSize === 0) return undefined;
    return this.fatal(reason, detail, { offset: Number.isFinite(offset) ? offset : -1 });
  }
}

export function unalignedCluster(offset: number, l2Offset: number, l2Index: number): string {
  return `Cluster allocation offset ${hexOf(offset)} unaligned (L2 offset: ${hexOf(l2Offset)}, L2 index: ${hexOf(l2Index)})`;
}

/** As C's `%#x` in QEMU's sentences: zero has no prefix. */
export function hexOf(value: number): string {
  if (value === 0) return '0';
  return Number.isFinite(value) ? hex(value) : 'above 2^53';
}
