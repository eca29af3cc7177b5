/** Makes zero marks, which version 2 does not have, what it has: nothing, or clusters full of zeros where a backing file would show.
 *  Spec: qcow2, "Cluster mapping" (bit 0). The disk and all snapshots; a table that several of them share is changed once and stays shared.
 *  Runs alone, under the metadata mutex, on an image whose tables are written back; the L2 cache is stale afterwards.
 *  Order, for some tables at a time: refcounts of new clusters and the zeros in them → durable → the tables, in place → durable → refcounts of
 *  what they do not refer to any more. A cut leaves leaks at most: every entry means the same before and after.
 *  Invariant: a cluster is overwritten only where all who refer to it call it zero. Memory: a number for each L2 table. */
import type { Pending } from '../../base/async.ts';
import { BlockError } from '../../base/errors.ts';
import { Pacer } from '../../base/job.ts';
import { MiB } from '../../base/sizes.ts';
import type { DataTransform } from '../../core/format.ts';
import type { ByteStore } from '../../core/store.ts';
import type { PartRun } from './amend.ts';
import { readTables, type TableReader } from './check-tables.ts';
import { entryOffset, L2_ZERO_ALLOCATED, L2_ZERO_PLAIN, l2Kind, setL2Entry } from './entries.ts';
import { TABLE_ENTRY_BYTES } from './geometry.ts';
import { hexOf, type Qcow2State, unalignedCluster } from './image-state.ts';
import { type ChangeParts, l2OffsetAt } from './snapshot-change.ts';
import { requireSnapshotL1 } from './snapshot-entries.ts';
import type { SnapshotEntry } from './snapshot-table.ts';

export interface ExpansionHost extends ChangeParts {
  readonly hasBacking: boolean;
  /** Refuses to write data over metadata. */
  checkData(hostOffset: number, length: number): Pending;
  /** How data is encrypted, where it is. */
  readonly transform: DataTransform | undefined;
}

/** Tables that wait to be written: bytes at most, one in any case. */
const MEMORY = 4 * MiB;

/** @param entries all snapshots
 *  @throws {@link BlockError} CORRUPT for tables and clusters that are not aligned; what allocating throws; ABORTED. */
export async function expandZeros(host: ExpansionHost, entries: readonly SnapshotEntry[], run: PartRun): Promise<void> {
  await new ZeroExpansion(host, run).run(entries);
}

/** Who names an L2 table. */
interface Use {
  count: number;
  /** Guest offset of what it maps. */
  readonly guestOffset: number;
  /** The disk does, and nobody else. */
  own: boolean;
}

interface Waiting {
  readonly offset: number;
  readonly bytes: Uint8Array;
}

class ZeroExpansion implements TableReader {
  readonly file: ByteStore;
  readonly #host: ExpansionHost;
  readonly #state: Qcow2State;
  readonly #run: PartRun;
  readonly #pacer = new Pacer();
  readonly #uses = new Map<number, Use>();
  #tables: Waiting[] = [];
  /** Cluster and references to take from it, by turns, once no table names it. */
  #dropped: number[] = [];
  /** Something must be durable before the tables are. */
  #ordered = false;
  /** Zeros to be written. */
  #zeroAt = 0;
  #zeroLength = 0;
  #done = 0;
  #total = 1;

  constructor(host: ExpansionHost, run: PartRun) {
    this.#host = host;
    this.#state = host.state;
    this.#run = run;
    this.file = host.state.file;
  }

  get restDue(): boolean {
    return this.#pacer.due;
  }

  async rest(): Promise<void> {
    this.#run.progress(this.#done, this.#total);
    await this.#pacer.pause(this.#run.signal);
  }

  async run(entries: readonly SnapshotEntry[]): Promise<void> {
    const { header, geometry, name } = this.#state;
    const { clusterSize } = geometry;
    await this.#readL1(header.l1Offset, header.l1Size, true);
    let bytes = 0;
    for (const entry of entries) {
      requireSnapshotL1(entry, geometry, name);
      bytes += entry.l1Size * TABLE_ENTRY_BYTES;
      // Tables of their own all lie in the file, which bounds the time that this takes.
      if (bytes > this.file.size) {
        throw new BlockError('CORRUPT', `qcow2 "${name}": the L1 tables of its snapshots do not fit into the file`, {
          reason: 'qcow2.amend-l1-tables',
          details: { bytes, bound: this.file.size },
        });
      }
      await this.#readL1(entry.l1Offset, entry.l1Size, false);
    }
    const offsets = [...this.#uses.keys()].sort((a, b) => a - b);
    this.#total = Math.max(1, offsets.length);
    await readTables(this, offsets, clusterSize, (nth, view, at) => {
      this.#done++;
      const zeros = this.#countZeros(view, at);
      return zeros === 0 ? undefined : this.#expandTable(offsets[nth] as number, view, at, zeros);
    });
    await this.#publish();
  }

  async #readL1(offset: number, entries: number, isDisk: boolean): Promise<void> {
    const { clusterSize, l2Coverage } = this.#state.geometry;
    const view = new DataView(new ArrayBuffer(entries * TABLE_ENTRY_BYTES));
    await this.file.read(offset, new Uint8Array(view.buffer));
    for (let index = 0; index < entries; index++) {
      const l2Offset = l2OffsetAt(view, index);
      // Behind the end of the file nothing is marked.
      if (l2Offset === 0 || l2Offset >= this.file.size) continue;
      if (l2Offset % clusterSize !== 0) {
        const what = `L2 table offset ${hexOf(l2Offset)} unaligned (L1 index: ${hexOf(index)})`;
        await this.#state.fatal('l2-offset', what, { offset: l2Offset });
      }
      const use = this.#uses.get(l2Offset);
      if (use === undefined) this.#uses.set(l2Offset, { count: 1, guestOffset: index * l2Coverage, own: isDisk });
      else {
        use.count++;
        use.own = false;
      }
      if (this.#pacer.due) await this.rest();
    }
  }

  #countZeros(view: DataView, at: number): number {
    const { l2Entries } = this.#state.geometry;
    let zeros = 0;
    for (let i = 0; i < l2Entries; i++) {
      const entryAt = at + i * TABLE_ENTRY_BYTES;
      const kind = l2Kind(view.getUint32(entryAt), view.getUint32(entryAt + 4), false, false);
      if (kind === L2_ZERO_PLAIN || kind === L2_ZERO_ALLOCATED) zeros++;
    }
    return zeros;
  }

  async #expandTable(offset: number, view: DataView, at: number, zeros: number): Promise<void> {
    const { clusterSize, l2Entries } = this.#state.geometry;
    const use = this.#uses.get(offset) as Use;
    const bytes = new Uint8Array(view.buffer, view.byteOffset + at, clusterSize).slice();
    const table = new DataView(bytes.buffer);
    let left = zeros;
    for (let i = 0; i < l2Entries && left > 0; i++) {
      const kind = l2Kind(table.getUint32(i * 8), table.getUint32(i * 8 + 4), false, false);
      if (kind !== L2_ZERO_PLAIN && kind !== L2_ZERO_ALLOCATED) continue;
      left--;
      await this.#expand(table, i, use, offset);
      if (this.#pacer.due) await this.rest();
    }
    this.#tables.push({ offset, bytes });
    if ((this.#tables.length + 1) * clusterSize > MEMORY) await this.#publish();
  }

  async #expand(table: DataView, index: number, use: Use, l2Offset: number): Promise<void> {
    const { clusterSize } = this.#state.geometry;
    const at = index * TABLE_ENTRY_BYTES;
    const old = entryOffset(table.getUint32(at), table.getUint32(at + 4));
    if (old % clusterSize !== 0) {
      const offset = Number.isFinite(old) ? old : -1;
      await this.#state.fatal('cluster-offset', unalignedCluster(old, l2Offset, index), { offset });
    }
    const { hasBacking, refcounts } = this.#host;
    const keeps = hasBacking && old !== 0 && (await refcounts.get(old / clusterSize)) === use.count;
    let place = 0;
    if (keeps) {
      place = old;
      await this.#host.checkData(old, clusterSize);
    } else {
      if (old !== 0) this.#dropped.push(old / clusterSize, use.count);
      if (hasBacking) place = await this.#takeCluster(use.count);
    }
    if (place !== 0) await this.#writeZeros(use.guestOffset + index * clusterSize, place);
    setL2Entry(table, at, place, place !== 0 && use.own, false);
  }

  async #takeCluster(references: number): Promise<number> {
    const { allocator, refcounts } = this.#host;
    const place = await allocator.allocate(1);
    if (references > 1) await refcounts.add(place / this.#state.geometry.clusterSize, 1, references - 1);
    return place;
  }

  async #writeZeros(guestOffset: number, hostOffset: number): Promise<void> {
    const { clusterSize } = this.#state.geometry;
    const { transform } = this.#host;
    this.#ordered = true;
    if (transform !== undefined) {
      const bytes = new Uint8Array(clusterSize);
      const tweak = transform.tweak === 'guest' ? guestOffset : hostOffset;
      await transform.encrypt(new Uint8Array(clusterSize), bytes, tweak);
      await this.file.write(hostOffset, bytes);
      return;
    }
    if (hostOffset !== this.#zeroAt + this.#zeroLength) await this.#writeGathered();
    if (this.#zeroLength === 0) this.#zeroAt = hostOffset;
    this.#zeroLength += clusterSize;
  }

  async #writeGathered(): Promise<void> {
    if (this.#zeroLength > 0) await this.file.writeZeroes(this.#zeroAt, this.#zeroLength, {});
    this.#zeroLength = 0;
  }

  /** Makes the tables that wait what the file has. */
  async #publish(): Promise<void> {
    const { refcountBlocks, refcountTable } = this.#state.caches;
    await this.#writeGathered();
    if (this.#ordered) {
      await refcountBlocks.makeDurable(refcountBlocks.generation);
      await refcountTable.makeDurable(refcountTable.generation);
      await this.#state.flushFile();
    }
    for (const { offset, bytes } of this.#tables) await this.file.write(offset, bytes);
    if (this.#dropped.length > 0) await this.#state.flushFile();
    for (let i = 0; i < this.#dropped.length; i += 2) {
      await this.#host.refcounts.add(this.#dropped[i] as number, 1, -(this.#dropped[i + 1] as number));
    }
    this.#tables = [];
    this.#dropped = [];
    this.#ordered = false;
    this.#run.progress(this.#done, this.#total);
  }
}
