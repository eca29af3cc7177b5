/** Internal snapshots of an open image: list, create, apply, delete. Spec: qcow2, "Snapshots".
 *  What a snapshot is: an L1 table of its own over the same L2 tables and clusters, each with one reference more.
 *  Invariants: every change is one `TableChange`: the image and all its snapshots are as before or as after, at any cut; guests' data is never
 *  copied nor written; entries of other snapshots keep all that they record, and gain the extra data of version 3. */
import { BlockError, type ErrorCode, type ErrorDetails, isBlockError } from '../../base/errors.ts';
import { type JobOptions, throwIfAborted } from '../../base/job.ts';
import type { SnapshotFacet, SnapshotInfo, SnapshotRequest, SnapshotSelector } from '../../core/format.ts';
import type { ByteStore } from '../../core/store.ts';
import { setL1Entry } from './entries.ts';
import { type Geometry, l1EntriesFor, MAX_SNAPSHOTS, TABLE_ENTRY_BYTES, vmStateOffset } from './geometry.ts';
import { hasDataFile } from './header.ts';
import { UnknownState } from './header-switch.ts';
import { hexOf, type Qcow2State } from './image-state.ts';
import { describeSnapshot } from './info.ts';
import type { SnapshotPlaces } from './metadata-map.ts';
import {
  type ChangeParts,
  type ChangeSizes,
  countL2Tables,
  l2OffsetAt,
  type SwitchedFields,
  TableChange,
} from './snapshot-change.ts';
import { nextId, placesOf, requireDiskSize, requireSnapshot, requireSnapshotL1 } from './snapshot-entries.ts';
import {
  encodeSnapshotTable,
  MAX_TABLE_BYTES,
  MIN_V3_EXTRA_BYTES,
  newSnapshotEntry,
  type SnapshotEntry,
  type SnapshotTable,
} from './snapshot-table.ts';
import { TableWalk } from './snapshot-walk.ts';

const MAX_NAME_BYTES = 0xffff;
const MAX_U64 = 2n ** 64n - 1n;

/** What snapshots need of the open image. */
export interface SnapshotHost extends ChangeParts {
  /** Writes L1 and L2 tables back, and frees what was dropped. */
  flush(): Promise<void>;
  /** The tables have moved: forgets everything that was read, and takes the new places of the snapshots.
   *  @param lowestFreed no cluster below it has become free */
  moved(places: SnapshotPlaces, lowestFreed: number): Promise<void>;
  /** Whether space that a snapshot leaves is discarded in the file below. */
  readonly passDiscard: boolean;
  /** The image has dirty bitmaps. */
  readonly hasBitmaps: () => boolean;
}

export class Snapshots implements SnapshotFacet {
  readonly #host: SnapshotHost;
  readonly #state: Qcow2State;
  #table: SnapshotTable;

  constructor(host: SnapshotHost, table: SnapshotTable) {
    this.#host = host;
    this.#state = host.state;
    this.#table = table;
  }

  get table(): SnapshotTable {
    return this.#table;
  }

  /** Somebody else has written the table anew. */
  replace(table: SnapshotTable): void {
    this.#table = table;
  }

  list(): readonly SnapshotInfo[] {
    return this.#table.entries.map(describeSnapshot);
  }

  /** Gives every entry what version 3 demands of it. */
  async completeTable(options: JobOptions = {}): Promise<void> {
    const { entries } = this.#table;
    if (entries.every(({ extra }) => extra.length >= MIN_V3_EXTRA_BYTES)) return;
    const sizes = { l1: [], snapshotTable: this.#encode(entries).length, l2Tables: 0 };
    await this.#alone(() => this.#change(sizes, options, (change) => this.#replaceTable(change, entries, {})));
  }

  async create(request: SnapshotRequest, options: JobOptions = {}): Promise<SnapshotInfo> {
    this.#requireSupport();
    const { entries } = this.#table;
    if (entries.length >= MAX_SNAPSHOTS) {
      throw this.#fault('TOO_LARGE', 'snapshot-count', `has ${entries.length} snapshots; more are not supported`, {
        bound: MAX_SNAPSHOTS,
        errno: 'EFBIG',
      });
    }
    const created = this.#newEntry(request);
    const all = [...entries, created];
    const table = this.#encode(all);
    return await this.#alone(async () => {
      const { header, geometry, file } = this.#state;
      const old = await this.#readL1(header.l1Offset, header.l1Size);
      const active = emptyL1(header.l1Size);
      const frozen = emptyL1(header.l1Size);
      const shared = created.vmStateSize > 0 ? handOver(old, frozen, geometry, header.virtualSize) : old;
      const l2Tables = countL2Tables(shared);
      const sizes = { l1: [active.byteLength, frozen.byteLength], snapshotTable: table.length, l2Tables };
      await this.#change(sizes, options, async (change, walk) => {
        walk.expect(l2Tables);
        await walk.run({ l1: shared, delta: 1, flags: 'clear', into: [active, frozen] });
        const [l1Offset = 0, frozenOffset = 0] = change.l1Offsets;
        all[all.length - 1] = { ...created, l1Offset: frozenOffset };
        await change.free(header.l1Offset, old.byteLength);
        await write(file, l1Offset, active);
        await write(file, frozenOffset, frozen);
        return await this.#replaceTable(change, all, { l1Offset });
      });
      return describeSnapshot(created);
    });
  }

  async apply(which: SnapshotSelector, options: JobOptions = {}): Promise<void> {
    if (this.#host.hasBitmaps()) {
      // They would have to mark whatever is another content now, which may be everything: as QEMU, we leave that to the caller.
      throw this.#fault(
        'UNSUPPORTED',
        'snapshot-bitmaps',
        'has dirty bitmaps, which cannot follow; remove them first',
        {
          errno: 'EBUSY',
        },
      );
    }
    this.#requireSupport();
    const entry = this.#find(which);
    this.#requireSize(entry);
    await this.#alone(async () => {
      const { header, geometry, file } = this.#state;
      const old = await this.#readL1(header.l1Offset, header.l1Size);
      const frozen = await this.#readL1(entry.l1Offset, entry.l1Size);
      const active = emptyL1(Math.max(entry.l1Size, l1EntriesFor(geometry, entry.diskSize)));
      const l2Tables = countL2Tables(frozen);
      const sizes = { l1: [active.byteLength], snapshotTable: 0, l2Tables };
      const freed = await this.#change(sizes, options, async (change, walk) => {
        walk.expect(l2Tables + countL2Tables(old));
        // First up, then down: what both refer to is in use all the time.
        await walk.run({ l1: frozen, delta: 1, flags: 'clear', into: [active], same: old });
        await walk.run({ l1: old, delta: -1, flags: 'leave', into: [], same: frozen });
        const [l1Offset = 0] = change.l1Offsets;
        await change.free(header.l1Offset, old.byteLength);
        await write(file, l1Offset, active);
        const l1Size = active.byteLength / TABLE_ENTRY_BYTES;
        return { fields: { virtualSize: entry.diskSize, l1Offset, l1Size }, table: this.#table };
      });
      await this.#discard(freed);
    });
  }

  async delete(which: SnapshotSelector, options: JobOptions = {}): Promise<void> {
    this.#requireSupport();
    const entry = this.#find(which);
    // By place: empty entries are all the same one.
    const index = this.#table.entries.indexOf(entry);
    const left = this.#table.entries.filter((_, at) => at !== index);
    const table = this.#encode(left);
    await this.#alone(async () => {
      const { header, file } = this.#state;
      const old = await this.#readL1(header.l1Offset, header.l1Size);
      const frozen = await this.#readL1(entry.l1Offset, entry.l1Size);
      const active = emptyL1(header.l1Size);
      const l2Tables = countL2Tables(old);
      const sizes = { l1: [active.byteLength], snapshotTable: table.length, l2Tables };
      const freed = await this.#change(sizes, options, async (change, walk) => {
        walk.expect(l2Tables + countL2Tables(frozen));
        await walk.run({ l1: frozen, delta: -1, flags: 'leave', into: [] });
        await walk.run({ l1: old, delta: 0, flags: 'count', into: [active] });
        const [l1Offset = 0] = change.l1Offsets;
        await change.free(entry.l1Offset, frozen.byteLength);
        await change.free(header.l1Offset, old.byteLength);
        await write(file, l1Offset, active);
        return await this.#replaceTable(change, left, { l1Offset });
      });
      await this.#discard(freed);
    });
  }

  // ── the frame of every change ────────────────────────────────────────────────────────────────

  async #alone<T>(body: () => Promise<T>): Promise<T> {
    await this.#host.flush();
    return await this.#state.metadata.run(body);
  }

  /** @returns the clusters that nothing refers to any more: see NextRefcounts.freed. */
  async #change(
    sizes: ChangeSizes,
    options: JobOptions,
    make: (change: TableChange, walk: TableWalk) => Promise<{ fields: SwitchedFields; table: SnapshotTable }>,
  ): Promise<readonly number[]> {
    throwIfAborted(options.signal);
    const change = await TableChange.begin(this.#host, sizes);
    let switched = false;
    try {
      const { fields, table } = await make(change, new TableWalk(this.#state, change, options));
      await change.commit(fields, () => {
        switched = true;
        this.#table = table;
      });
    } catch (error) {
      if (error instanceof UnknownState) {
        this.#state.engine?.condemn(error);
        throw error.cause;
      }
      // What cannot be given back leaks; the failure of the change is the one to tell.
      if (!switched) await change.abort().catch(() => undefined);
      throw error;
    }
    await this.#host.moved(placesOf(this.#table), change.refcounts.lowestFreed);
    return change.refcounts.freed;
  }

  /** Gives up the old snapshot table and writes `entries` to the new place. */
  async #replaceTable(
    change: TableChange,
    entries: readonly SnapshotEntry[],
    fields: SwitchedFields,
  ): Promise<{ fields: SwitchedFields; table: SnapshotTable }> {
    const { header, file } = this.#state;
    const bytes = encodeSnapshotTable(entries);
    await change.free(header.snapshotsOffset, this.#table.size);
    const { snapshotsOffset } = change;
    if (bytes.length > 0) await file.write(snapshotsOffset, bytes);
    return {
      fields: { ...fields, snapshotsOffset, snapshotCount: entries.length },
      table: { entries, size: bytes.length },
    };
  }

  /** A hint to the store below: the change is made, and its failure costs space only. */
  async #discard(freed: readonly number[]): Promise<void> {
    const { file, geometry } = this.#state;
    if (!this.#host.passDiscard || !file.supports.discard) return;
    const { clusterSize } = geometry;
    try {
      for (let i = 0; i < freed.length; i += 2) {
        const offset = (freed[i] as number) * clusterSize;
        const length = Math.min((freed[i + 1] as number) * clusterSize, file.size - offset);
        if (length > 0) await file.discard(offset, length);
      }
    } catch (error) {
      if (!isBlockError(error)) throw error;
      this.#state.warn('qcow2.snapshot-discard', `space that a snapshot left was not given back: ${error.message}`);
    }
  }

  /** @throws CORRUPT, reason `qcow2.snapshot-l1-entries`, where it names more L2 tables than there can be: the time that a change takes is
   *  bounded by the size of the file. */
  async #readL1(offset: number, entries: number): Promise<DataView> {
    const { file, geometry } = this.#state;
    const l1 = emptyL1(entries);
    await file.read(offset, new Uint8Array(l1.buffer));
    const tables = countL2Tables(l1);
    const bound = Math.ceil(file.size / geometry.clusterSize);
    if (tables <= bound) return l1;
    throw this.#fault(
      'CORRUPT',
      'snapshot-l1-entries',
      `the L1 table at ${hexOf(offset)} names ${tables} L2 tables, in a file of ${bound} clusters; check the image`,
      { offset, value: tables, bound },
    );
  }

  // ── what can be refused before anything is begun ─────────────────────────────────────────────

  #requireSupport(): void {
    if (!hasDataFile(this.#state.header)) return;
    throw this.#fault('UNSUPPORTED', 'snapshot-data-file', 'an image with an external data file has no snapshots', {
      errno: 'ENOTSUP',
    });
  }

  #find(which: SnapshotSelector): SnapshotEntry {
    const entry = requireSnapshot(this.#table.entries, which, this.#state.name);
    requireSnapshotL1(entry, this.#state.geometry, this.#state.name);
    return entry;
  }

  #requireSize(entry: SnapshotEntry): void {
    const { header, geometry, name } = this.#state;
    requireDiskSize(entry, geometry, name);
    if (entry.diskSize === header.virtualSize || header.version >= 3) return;
    throw this.#fault(
      'UNSUPPORTED',
      'resize-v2-snapshots',
      `snapshot ${entry.id} has another size, and a version 2 image with snapshots cannot be resized`,
      { size: entry.diskSize, old: header.virtualSize },
    );
  }

  #newEntry(request: SnapshotRequest): SnapshotEntry {
    const { name, dateSeconds, dateNanoseconds = 0, vmClockNanoseconds = 0n, vmStateSize = 0, icount } = request;
    const nameBytes = new TextEncoder().encode(name).length;
    const isU32 = (value: number): boolean => Number.isInteger(value) && value >= 0 && value <= 0xffff_ffff;
    const isU64 = (value: bigint): boolean => value >= 0n && value <= MAX_U64;
    const bad =
      nameBytes > MAX_NAME_BYTES || name.includes('\0')
        ? `a name of ${nameBytes} bytes that cannot be recorded`
        : !isU32(dateSeconds) || !isU32(dateNanoseconds) || dateNanoseconds >= 1e9
          ? 'a date that cannot be recorded'
          : !isU64(vmClockNanoseconds) || !isU64(icount ?? 0n) || !Number.isSafeInteger(vmStateSize) || vmStateSize < 0
            ? 'facts of the machine that cannot be recorded'
            : undefined;
    if (bad !== undefined) {
      throw this.#fault('INVALID_ARGUMENT', 'snapshot-request', `snapshot with ${bad}`, { ...request });
    }
    const { header } = this.#state;
    return newSnapshotEntry({
      id: nextId(this.#table.entries),
      name,
      l1Offset: 0,
      l1Size: header.l1Size,
      vmStateSize,
      diskSize: header.virtualSize,
      dateSeconds,
      dateNanoseconds,
      vmClockNanoseconds,
      icount,
    });
  }

  #encode(entries: readonly SnapshotEntry[]): Uint8Array {
    const table = encodeSnapshotTable(entries);
    if (table.length <= MAX_TABLE_BYTES) return table;
    throw this.#fault('TOO_LARGE', 'snapshot-table-limit', `the snapshot table would exceed ${MAX_TABLE_BYTES} bytes`, {
      value: table.length,
      bound: MAX_TABLE_BYTES,
      errno: 'EFBIG',
    });
  }

  #fault(code: ErrorCode, finding: string, what: string, details: ErrorDetails): BlockError {
    return new BlockError(code, `qcow2 "${this.#state.name}": ${what}`, { reason: `qcow2.${finding}`, details });
  }
}

// ── L1 tables ──────────────────────────────────────────────────────────────────────────────────

function emptyL1(entries: number): DataView {
  return new DataView(new ArrayBuffer(entries * TABLE_ENTRY_BYTES));
}

async function write(file: ByteStore, offset: number, l1: DataView): Promise<void> {
  if (l1.byteLength > 0) await file.write(offset, new Uint8Array(l1.buffer));
}

/** The state of the machine goes to the snapshot: the disk would only pay for copying it. What lies behind the disk moves from `from` to
 *  `frozen`, with the references it has.
 *  @returns the rest of `from`. */
function handOver(from: DataView, frozen: DataView, geometry: Geometry, virtualSize: number): DataView {
  const first = (vmStateOffset(geometry, virtualSize) / geometry.l2Coverage) * TABLE_ENTRY_BYTES;
  for (let at = first; at < from.byteLength; at += TABLE_ENTRY_BYTES) {
    setL1Entry(frozen, at, l2OffsetAt(from, at / TABLE_ENTRY_BYTES), false);
  }
  return new DataView(from.buffer, 0, Math.min(first, from.byteLength));
}
