/** What an audit finds in the tables: where every structure lies, and what the entries point at. Spec: qcow2, "Cluster mapping", "Host cluster
 *  management", "Snapshots", "Bitmaps".
 *  Order: header, refcount table, L1 tables, snapshots, bitmaps (the structures); overlaps; then every L2 table once, against the structures.
 *  Invariants: each table is read once, whoever names it and how often; together no more than {@link MOST_TABLE_BYTES}; no entry leads to a request
 *  behind the end of the file. */
import { hex } from '../../base/errors.ts';
import { Pacer } from '../../base/job.ts';
import { divFloor } from '../../bytes/align.ts';
import { type AuditContext, type AuditPlace, type AuditRule, readBytes } from '../../core/audit.ts';
import { AUDIT } from '../../core/audit-rules.ts';
import { Claims, ClusterBits } from './audit-claims.ts';
import type { LooseHeader } from './audit-header.ts';
import { QCOW2 } from './audit-rules.ts';
import { readTables, type TableReader } from './check-tables.ts';
import {
  clusterRun,
  compressedLength,
  compressedOffset,
  entryOffset,
  L2_COMPRESSED,
  L2_UNALLOCATED,
  L2_ZERO_PLAIN,
  l1HasReserved,
  l2HasReserved,
  l2Kind,
  refcountBlockOffset,
  refcountTableHasReserved,
} from './entries.ts';
import { MAX_L1_BYTES, MAX_REFCOUNT_TABLE_BYTES, TABLE_ENTRY_BYTES } from './geometry.ts';
import { hex64 } from './header-fields.ts';

/** A real image of 5 TiB in clusters of 64 KiB has as much. */
const MOST_TABLE_BYTES = 2 ** 30;
/** Those of a disk of 128 TiB in clusters of 64 KiB. */
const MOST_L2_TABLES = 2 ** 18;

/** An L2 table, and who names it. */
interface L2Use {
  /** How often the disk's own L1 table does. */
  active: number;
}

export class TableAudit implements TableReader {
  readonly file: AuditContext['file'];
  readonly claims = new Claims();
  /** Clusters that the disk has its content in. */
  readonly active = new ClusterBits();
  /** Clusters that anything refers to. */
  readonly reached = new ClusterBits();
  readonly #context: AuditContext;
  readonly #header: LooseHeader;
  readonly #l2 = new Map<number, L2Use>();
  readonly #pacer = new Pacer();
  #left = MOST_TABLE_BYTES;
  #partly = false;
  /** Guest bytes that the disk has clusters for. */
  #mapped = 0;
  /** Where refcount blocks are, by their place in the refcount table. */
  readonly #blocks: number[] = [];

  constructor(context: AuditContext, header: LooseHeader) {
    this.file = context.file;
    this.#context = context;
    this.#header = header;
  }

  /** All that the image has was read. */
  get complete(): boolean {
    return !this.#partly && !this.claims.full && !this.active.full && !this.reached.full;
  }

  get blocks(): readonly number[] {
    return this.#blocks;
  }

  get restDue(): boolean {
    return this.#pacer.due;
  }

  rest(): Promise<void> {
    return this.#pacer.pause(this.#context.signal);
  }

  add(rule: AuditRule, place: AuditPlace, message: string | (() => string)): void {
    this.#context.book.add(rule, place, message);
  }

  // ---- structures ----------------------------------------------------------------------------------------------------------------

  /** The bytes of a table, as far as the file has them; `undefined` where it lies outside, or is too much. */
  async table(what: string, offset: number, bytes: number, align = true): Promise<DataView | undefined> {
    const { clusterSize } = this.#header.geometry;
    if (bytes === 0 || this.#partly) return undefined;
    if (!Number.isSafeInteger(offset + bytes) || offset >= this.file.size) {
      const value = hex64(offset);
      this.add(QCOW2.outside, { field: what, value }, `the ${what} at ${value} lies behind the end of the file`);
      return undefined;
    }
    if (align && offset % clusterSize !== 0) {
      this.add(
        QCOW2.invalid,
        { field: what, value: offset },
        `the ${what} at ${hex(offset)} does not begin with a cluster`,
      );
      return undefined;
    }
    const present = Math.min(bytes, this.file.size - offset);
    if (!this.#take(present)) return undefined;
    if (this.restDue) await this.rest();
    const read = await readBytes(this.file, offset, present - (present % TABLE_ENTRY_BYTES));
    return new DataView(read.buffer, read.byteOffset, read.byteLength);
  }

  /** Lays claim to a place that is in use. */
  claim(what: string, offset: number, bytes: number): void {
    if (!Number.isSafeInteger(offset + bytes)) return;
    this.claims.add(what, offset, bytes, this.#header.geometry.clusterSize);
  }

  async readRefcountTable(): Promise<void> {
    const { fixed, geometry } = this.#header;
    const { clusterSize } = geometry;
    this.claim('header', 0, clusterSize);
    const offset = fixed.refcountTableOffset;
    const bytes = Math.min(fixed.refcountTableClusters * clusterSize, MAX_REFCOUNT_TABLE_BYTES);
    this.claim('refcount table', offset, bytes);
    const table = await this.table('refcount table', offset, bytes);
    for (let at = 0; table !== undefined && at < table.byteLength; at += TABLE_ENTRY_BYTES) {
      const low = table.getUint32(at + 4);
      const block = refcountBlockOffset(table.getUint32(at), low);
      const isNamed = this.#pointer('refcount table', offset + at, block, refcountTableHasReserved(low));
      this.#blocks.push(isNamed ? block : 0);
      if (!isNamed) continue;
      this.#loop('refcount table', offset + at, block, offset, bytes);
      this.claim('refcount block', block, clusterSize);
    }
  }

  /** @param isDisk the disk's own; else a snapshot's */
  async readL1(what: string, offset: number, entries: number, isDisk: boolean): Promise<void> {
    const bytes = Math.min(entries * TABLE_ENTRY_BYTES, MAX_L1_BYTES);
    this.claim(what, offset, bytes);
    const table = await this.table(what, offset, bytes);
    for (let at = 0; table !== undefined && at < table.byteLength; at += TABLE_ENTRY_BYTES) {
      if (this.#partly) break;
      const high = table.getUint32(at);
      const low = table.getUint32(at + 4);
      if (high === 0 && low === 0) continue;
      const l2 = entryOffset(high, low);
      if (!this.#pointer(what, offset + at, l2, l1HasReserved(high, low))) continue;
      this.#loop(what, offset + at, l2, offset, bytes);
      this.#useL2(l2, isDisk, offset + at);
    }
  }

  #useL2(l2: number, isDisk: boolean, entryAt: number): void {
    let use = this.#l2.get(l2);
    if (use === undefined) {
      if (this.#l2.size >= MOST_L2_TABLES) {
        this.#stopReading();
        return;
      }
      use = { active: 0 };
      this.#l2.set(l2, use);
      this.claim('L2 table', l2, this.#header.geometry.clusterSize);
    }
    if (!isDisk) return;
    use.active++;
    if (use.active === 1) return;
    this.add(QCOW2.sharedTable, { offset: entryAt, field: 'L1 table', value: l2 }, () => {
      return `the L2 table at ${hex(l2)} stands for ${use.active} parts of the disk`;
    });
  }

  /** Judges where an entry points. @returns whether there is something that can be read. */
  #pointer(what: string, at: number, offset: number, hasReserved: boolean): boolean {
    const { clusterSize } = this.#header.geometry;
    if (!hasReserved && offset !== 0 && offset % clusterSize === 0 && offset < this.file.size) return true;
    const place = { offset: at, field: what, value: hex64(offset) };
    if (hasReserved)
      this.add(QCOW2.invalid, place, () => `an entry of the ${what} at ${hex(at)} has reserved bits set`);
    if (offset === 0) return false;
    if (offset % clusterSize !== 0) {
      this.add(
        QCOW2.invalid,
        place,
        () => `an entry of the ${what} at ${hex(at)} points into a cluster, to ${hex64(offset)}`,
      );
      return false;
    }
    if (offset < this.file.size) return true;
    this.add(QCOW2.outside, place, () => {
      return `an entry of the ${what} at ${hex(at)} points to ${hex64(offset)}, behind the end of the file`;
    });
    return false;
  }

  /** A pointer into the table that it stands in. */
  #loop(what: string, at: number, target: number, offset: number, bytes: number): void {
    if (target < offset || target >= offset + bytes) return;
    this.add(QCOW2.loop, { offset: at, field: what, value: target }, () => {
      return `an entry of the ${what} at ${hex(at)} points to the table itself`;
    });
  }

  #take(bytes: number): boolean {
    this.#left -= bytes;
    if (this.#left >= 0) return true;
    this.#stopReading();
    return false;
  }

  #stopReading(): void {
    if (!this.#partly)
      this.add(
        AUDIT.tables,
        {},
        `there are more than ${MOST_TABLE_BYTES} bytes of tables, or ${MOST_L2_TABLES} L2 tables`,
      );
    this.#partly = true;
  }

  tellOverlaps(): void {
    for (const [one, other] of this.claims.overlaps()) {
      this.add(QCOW2.overlap, { offset: other.start, field: other.what, value: one.what }, () => {
        return `the ${one.what} at ${hex(one.start)} and the ${other.what} at ${hex(other.start)} share a cluster`;
      });
    }
    if (this.claims.full) this.add(AUDIT.tables, {}, 'there are too many structures to compare them all');
  }

  // ---- L2 tables -----------------------------------------------------------------------------------------------------------------

  async readL2Tables(): Promise<void> {
    const { clusterSize } = this.#header.geometry;
    const tables = [...this.#l2].sort(([a], [b]) => a - b);
    const affordable: (readonly [number, L2Use])[] = [];
    for (const table of tables) {
      if (!this.#take(clusterSize)) break;
      affordable.push(table);
    }
    await readTables(
      this,
      affordable.map(([offset]) => offset),
      clusterSize,
      (index, view, at) => {
        const [offset, use] = affordable[index] as readonly [number, L2Use];
        this.#visit(view, at, offset, use.active);
        return undefined;
      },
    );
    const size = Math.max(this.file.size, 1);
    if (this.#mapped / size > 1000 && !this.#header.hasDataFile) {
      this.add(
        QCOW2.expansion,
        { value: this.#mapped },
        `${this.#mapped} bytes of data come from a file of ${this.file.size}`,
      );
    }
  }

  #visit(view: DataView, at: number, table: number, uses: number): void {
    const { geometry, hasDataFile } = this.#header;
    const { clusterSize, l2Entries, l2EntrySize, extendedL2, csizeShift } = geometry;
    for (let index = 0; index < l2Entries; ) {
      const entryAt = at + index * l2EntrySize;
      const high = view.getUint32(entryAt);
      const low = view.getUint32(entryAt + 4);
      const kind = high === 0 && low === 0 ? L2_UNALLOCATED : l2Kind(high, low, extendedL2, hasDataFile);
      const fileAt = table + index * l2EntrySize;
      if (kind === L2_COMPRESSED) {
        const start = compressedOffset(high, low, csizeShift);
        this.#content(fileAt, table, start, compressedLength(high, low, csizeShift), false, uses);
        this.#mapped += clusterSize * uses;
        index++;
        continue;
      }
      if (l2HasReserved(high, low)) this.#badEntry(fileAt, 'has reserved bits set');
      if (kind === L2_UNALLOCATED || kind === L2_ZERO_PLAIN) {
        index++;
        continue;
      }
      const count = clusterRun(view, entryAt, l2EntrySize, l2Entries - index, clusterSize);
      const start = entryOffset(high, low);
      this.#mapped += clusterSize * uses * count;
      if (start % clusterSize !== 0) this.#badEntry(fileAt, `points into a cluster, to ${hex64(start)}`);
      else if (!hasDataFile) this.#content(fileAt, table, start, count * clusterSize, true, uses);
      index += count;
    }
  }

  #badEntry(at: number, what: string): void {
    this.add(QCOW2.invalid, { offset: at, field: 'L2 table' }, () => `the L2 entry at ${hex(at)} ${what}`);
  }

  /** Guest content at `[start, start+length)` of the file. */
  #content(at: number, table: number, start: number, length: number, whole: boolean, uses: number): void {
    const { clusterSize } = this.#header.geometry;
    const end = start + length;
    const place = { offset: at, field: 'L2 table', value: hex64(start) };
    const last = whole ? end - clusterSize : start;
    if (!Number.isSafeInteger(end) || last >= this.file.size) {
      this.add(
        QCOW2.outside,
        place,
        () => `the L2 entry at ${hex(at)} points to ${hex64(start)}, behind the end of the file`,
      );
      if (!Number.isSafeInteger(end) || start >= this.file.size) return;
    }
    if (table >= start && table < end) {
      this.add(QCOW2.loop, place, () => `the L2 entry at ${hex(at)} maps the table that it stands in`);
    }
    const structure = this.claims.hit(start, end);
    if (structure !== undefined) {
      this.add(QCOW2.dataOverMetadata, place, () => {
        return `the L2 entry at ${hex(at)} maps guest data onto the ${structure.what} at ${hex(structure.start)}`;
      });
    }
    const first = divFloor(start, clusterSize);
    const count = divFloor(Math.min(end, this.file.size + clusterSize) - 1, clusterSize) - first + 1;
    this.reached.add(first, count);
    if (uses === 0) return;
    const again = this.active.add(first, count);
    if (again >= 0 && whole) {
      this.add(QCOW2.sharedCluster, { ...place, value: again * clusterSize }, () => {
        return `the cluster at ${hex(again * clusterSize)} is in two places of the disk (one of them: L2 entry at ${hex(at)})`;
      });
    }
  }

  /** Marks the structures as referred to; after the L2 tables, which must not find them in use. */
  async reachStructures(): Promise<void> {
    const { clusterSize } = this.#header.geometry;
    for (const { start, end } of this.claims.all) {
      if (this.restDue) await this.rest();
      this.reached.add(start / clusterSize, (end - start) / clusterSize);
    }
    if (!this.active.full && !this.reached.full) return;
    this.add(AUDIT.tables, {}, 'the image refers to more places than an audit remembers');
  }
}
