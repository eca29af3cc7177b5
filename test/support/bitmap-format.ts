/** A small copy-on-write format that lives in the tests: the proof of the write contract and of the table cache, and the model for people
 *  who write formats. One allocation table ("L2", one entry per unit) is ordered after a table of counts (one byte per cluster).
 *  Implements: allocation with copy-on-write edges, in-place writes, zero marks that keep or drop the cluster, discard, encoded units,
 *  a frozen copy (`share`), deferred frees with reuse, an optional XOR transform.
 *  Invariants: counts change under `#meta` only; a plan keeps its table leased, so that commit is synchronous and atomic. */
import { isPromise, Mutex, type Pending, settleAll } from '../../src/base/async.ts';
import { assert, BlockError, hex } from '../../src/base/errors.ts';
import { alignDown, alignUp } from '../../src/bytes/align.ts';
import { FlushGate } from '../../src/core/flush-gate.ts';
import type { DataTransform, EngineServices, FormatInfo, FormatNode, WritePlan } from '../../src/core/format.ts';
import { DeferredFrees } from '../../src/core/in-flight.ts';
import type { BlockNode, Child } from '../../src/core/node.ts';
import type { RunList } from '../../src/core/run.ts';
import { ALL_RULES, type SafetyRules } from '../../src/core/safety.ts';
import type { IoOptions, ZeroOptions } from '../../src/core/store.ts';
import { CacheBudget, type Table, TableCache, type TableLease } from '../../src/core/table-cache.ts';
import { ENTRY_SIZE, FLAG, Header, type HeaderValue, MAGIC, tableBytes } from './bitmap-layout.ts';
import { packUnit, unpackUnit } from './pack.ts';

export interface BitmapOptions {
  readonly rules?: SafetyRules;
  readonly budget?: CacheBudget;
  readonly backing?: BlockNode | undefined;
  readonly readOnly?: boolean;
  /** XOR every sector with a byte made of its guest or host offset. */
  readonly transform?: 'guest' | 'host' | undefined;
  /** Bytes of one L2 table; tiny, so that small disks have many. */
  readonly tableSize?: number;
  readonly countsTableSize?: number;
}

type PlanKind = 'in-place' | 'keep' | 'new';

interface BitmapPlan extends WritePlan {
  readonly kind: PlanKind;
  readonly firstUnit: number;
  readonly units: number;
  readonly cluster: number;
  readonly lease: TableLease;
}

export class BitmapNode implements FormatNode {
  readonly format = 'bitmap';
  readonly virtualSize: number;
  readonly unit: number;
  readonly zeroUnit: number;
  readonly recurse = 'none';
  readonly readOnly: boolean;
  readonly children: readonly Child[];
  readonly transform: DataTransform | undefined;
  readonly l2: TableCache;
  readonly counts: TableCache;
  readonly #file: BlockNode;
  readonly #gate: FlushGate;
  readonly #meta = new Mutex();
  readonly #rules: SafetyRules;
  #header: HeaderValue;
  #engine: EngineServices | undefined;
  #drops: DeferredFrees | undefined;
  /** No cluster below it is free. */
  #hint: number;
  /** First cluster that was never used. */
  #highWater: number;

  /** Opens the image in `file`. @throws {@link BlockError} WRONG_FORMAT. */
  static async open(file: BlockNode, options: BitmapOptions = {}): Promise<BitmapNode> {
    const head = new Uint8Array(Header.size);
    await file.read(0, head);
    const header = Header.decode(head);
    if (header.magic !== MAGIC) throw new BlockError('WRONG_FORMAT', `bitmap "${file.name}": no bitmap image`);
    return new BitmapNode(file, header, options);
  }

  private constructor(file: BlockNode, header: HeaderValue, options: BitmapOptions) {
    const { backing } = options;
    this.#header = header;
    this.#file = file;
    this.#rules = options.rules ?? ALL_RULES;
    this.virtualSize = header.virtualSize;
    this.unit = header.unit;
    this.zeroUnit = header.unit;
    this.readOnly = options.readOnly === true;
    this.children =
      header.hasBacking === 1 && backing !== undefined
        ? [
            { role: 'file', name: 'file', node: file },
            { role: 'backing', name: 'backing', node: backing },
          ]
        : [{ role: 'file', name: 'file', node: file }];
    this.transform = options.transform === undefined ? undefined : xorTransform(options.transform);
    this.#gate = new FlushGate(file);
    this.#hint = header.dataCluster;
    this.#highWater = Math.max(header.dataCluster, Math.ceil(file.size / header.unit));
    const shared = { store: file, gate: this.#gate, budget: options.budget ?? new CacheBudget(64 * 1024) };
    const region = (start: number, length: number): { regionStart: number; regionEnd: number } => ({
      regionStart: start,
      regionEnd: start + length,
    });
    this.l2 = new TableCache({
      ...shared,
      ...region(header.tableOffset, tableBytes(header)),
      name: 'L2 tables',
      tableSize: options.tableSize ?? 64,
      rules: this.#rules,
      validate: (table) => this.#validate(table),
      loadEvent: 'l2_load',
      writeEvent: 'l2_update',
    });
    this.counts = new TableCache({
      ...shared,
      ...region(header.countsOffset, header.clusters),
      name: 'counts',
      tableSize: options.countsTableSize ?? 32,
      rules: this.#rules,
    });
  }

  attach(engine: EngineServices): void {
    this.#engine = engine;
    this.#drops = new DeferredFrees(engine.epochs, { enabled: this.#rules.deferredFree });
  }

  get hasBacking(): boolean {
    return this.#header.hasBacking === 1;
  }

  #validate(table: Table): void {
    for (let at = 0; at < this.l2.tableSize; at += ENTRY_SIZE) {
      const high = table.view.getUint32(at);
      const cluster = table.view.getUint32(at + 4);
      const inside = cluster >= this.#header.dataCluster && cluster < this.#header.clusters;
      if ((high & FLAG.cluster) !== 0 && !inside) {
        throw new BlockError(
          'CORRUPT',
          `bitmap "${this.#file.name}": table at ${hex(table.offset)} points to ${cluster}`,
        );
      }
    }
  }

  #tableOf(unit: number): number {
    return alignDown(this.#header.tableOffset + unit * ENTRY_SIZE, this.l2.tableSize);
  }

  #at(table: Table, unit: number): number {
    return this.#header.tableOffset + unit * ENTRY_SIZE - table.offset;
  }

  /** First unit that `table` has no entry for. */
  #endOf(table: Table): number {
    return (table.offset + this.l2.tableSize - this.#header.tableOffset) / ENTRY_SIZE;
  }

  // ── mapping ──────────────────────────────────────────────────────────────────────────────────

  map(offset: number, length: number, into: RunList): Pending {
    const end = offset + length;
    let at = offset;
    while (at < end) {
      const tableOffset = this.#tableOf(Math.floor(at / this.unit));
      // Only the first table is waited for: the engine comes back for the rest.
      const table = at === offset ? this.l2.load(tableOffset) : this.l2.peek(tableOffset);
      if (table === undefined) return undefined;
      if (isPromise(table)) return this.#mapLoaded(table, at, end, into);
      const next = this.#mapTable(table, at, end, into);
      if (next < 0) return undefined;
      at = next;
    }
    return undefined;
  }

  async #mapLoaded(table: Promise<Table>, at: number, end: number, into: RunList): Promise<void> {
    this.#mapTable(await table, at, end, into);
  }

  /** Adds what one table tells. @returns where to go on, -1: enough. */
  #mapTable(table: Table, from: number, end: number, into: RunList): number {
    const stop = Math.min(end, this.#endOf(table) * this.unit);
    let at = from;
    while (at < stop) {
      const unit = Math.floor(at / this.unit);
      const inUnit = at % this.unit;
      const length = this.unit - inUnit;
      const entry = this.#at(table, unit);
      const high = table.view.getUint32(entry);
      const host = (high & FLAG.cluster) === 0 ? -1 : table.view.getUint32(entry + 4) * this.unit;
      let more: boolean;
      if ((high & FLAG.zero) !== 0) more = into.push('zero', length, 0, host < 0 ? -1 : host + inUnit, false);
      else if (host < 0) more = into.push('unallocated', length, 0, -1, false);
      else if ((high & FLAG.encoded) !== 0) more = into.pushEncoded(length, 0, host, high >>> 8);
      else more = into.push('data', length, 0, host + inUnit, (high & FLAG.owned) !== 0);
      at += length;
      if (!more) return -1;
    }
    return at;
  }

  decode(runs: RunList, first: number, count: number, into: Uint8Array): Pending {
    const pendings: Pending[] = [];
    const start = runs.at(first).guestOffset;
    for (let i = first; i < first + count; i++) {
      const { guestOffset, length, hostOffset, encodedLength } = runs.at(i);
      const at = guestOffset - start;
      pendings.push(
        this.#decodeUnit(hostOffset, encodedLength, guestOffset % this.unit, into.subarray(at, at + length)),
      );
    }
    return settleAll(pendings);
  }

  async #decodeUnit(hostOffset: number, encodedLength: number, skip: number, into: Uint8Array): Promise<void> {
    const encoded = new Uint8Array(encodedLength);
    await this.#file.read(hostOffset, encoded);
    into.set(unpackUnit(encoded, this.unit).subarray(skip, skip + into.length));
  }

  // ── writing ──────────────────────────────────────────────────────────────────────────────────

  async prepareWrite(offset: number, length: number): Promise<BitmapPlan> {
    const first = Math.floor(offset / this.unit);
    await this.#meta.acquire();
    try {
      const lease = await this.l2.lease(this.#tableOf(first));
      try {
        return await this.#plan(lease, first, offset, length);
      } catch (error) {
        lease.release();
        throw error;
      }
    } finally {
      this.#meta.release();
    }
  }

  /** What to do with the units from `first` on that can be treated alike. */
  async #plan(lease: TableLease, first: number, offset: number, length: number): Promise<BitmapPlan> {
    const end = Math.min(offset + length, this.#endOf(lease.table) * this.unit);
    const lastUnit = Math.ceil(end / this.unit);
    const kind = this.#kindOf(lease.table, first);
    let units = 1;
    let cluster = lease.table.view.getUint32(this.#at(lease.table, first) + 4);
    if (kind === 'new') {
      while (first + units < lastUnit && this.#kindOf(lease.table, first + units) === 'new') units++;
      ({ cluster, units } = await this.#allocate(units));
    }
    const covered = Math.min((first + units) * this.unit, end);
    const headLength = kind === 'in-place' ? 0 : offset - first * this.unit;
    return {
      kind,
      lease,
      firstUnit: first,
      units,
      cluster,
      guestOffset: offset,
      length: covered - offset,
      child: 0,
      hostOffset: cluster * this.unit + (offset - first * this.unit),
      headLength,
      tailLength: kind === 'in-place' ? 0 : (first + units) * this.unit - covered,
    };
  }

  #kindOf(table: Table, unit: number): PlanKind {
    const high = table.view.getUint32(this.#at(table, unit));
    const owned = (high & FLAG.cluster) !== 0 && (high & FLAG.owned) !== 0 && (high & FLAG.encoded) === 0;
    if (!owned) return 'new';
    return (high & FLAG.zero) === 0 ? 'in-place' : 'keep';
  }

  commitWrite(given: WritePlan): Pending {
    const plan = given as BitmapPlan;
    if (plan.kind !== 'in-place') {
      this.#order();
      for (let i = 0; i < plan.units; i++) {
        this.#setEntry(plan.lease, plan.firstUnit + i, FLAG.cluster + FLAG.owned, plan.cluster + i);
      }
    }
    plan.lease.release();
    return undefined;
  }

  async abortWrite(given: WritePlan): Promise<void> {
    const plan = given as BitmapPlan;
    plan.lease.release();
    if (plan.kind !== 'new') return;
    await this.#meta.run(async () => {
      for (let i = 0; i < plan.units; i++) await this.#lower(plan.cluster + i);
    });
  }

  /** Changes from now on refer to clusters counted, and to data written, by now. */
  #order(): void {
    this.l2.writeAfter(this.counts);
    this.l2.writeAfterFlush(this.#gate);
  }

  /** Replaces an entry and notes the cluster that it dropped. */
  #setEntry(lease: TableLease, unit: number, high: number, cluster: number): void {
    const at = this.#at(lease.table, unit);
    const { view } = lease.table;
    const oldHigh = view.getUint32(at);
    const oldCluster = view.getUint32(at + 4);
    if (oldHigh === high && oldCluster === cluster) return;
    view.setUint32(at, high);
    view.setUint32(at + 4, cluster);
    lease.markDirty(at, at + ENTRY_SIZE);
    if ((oldHigh & FLAG.cluster) === 0 || ((high & FLAG.cluster) !== 0 && oldCluster === cluster)) return;
    this.#drops?.add(oldCluster * this.unit, this.unit, this.l2);
  }

  async writeCompressed(offset: number, from: Uint8Array, _options?: IoOptions): Promise<void> {
    for (let at = 0; at < from.length; at += this.unit) {
      const guest = from.subarray(at, Math.min(at + this.unit, from.length));
      const packed = packUnit(guest, this.unit);
      if (packed === undefined) await this.#writePlain(offset + at, guest);
      else await this.#writePacked(Math.floor((offset + at) / this.unit), packed);
    }
  }

  async #writePacked(unit: number, packed: Uint8Array): Promise<void> {
    const { cluster } = await this.#meta.run(() => this.#allocate(1));
    await this.#fill(cluster, packed);
    using lease = await this.l2.lease(this.#tableOf(unit));
    this.#order();
    this.#setEntry(lease, unit, FLAG.cluster + FLAG.encoded + packed.length * 256, cluster);
  }

  /** A unit that does not become smaller is stored as it is. */
  async #writePlain(offset: number, guest: Uint8Array): Promise<void> {
    const plain = new Uint8Array(this.unit);
    plain.set(guest);
    const { cluster } = await this.#meta.run(() => this.#allocate(1));
    const host = cluster * this.unit;
    const stored = this.transform === undefined ? plain : new Uint8Array(this.unit);
    await this.transform?.encrypt(plain, stored, this.transform.tweak === 'guest' ? offset : host);
    await this.#fill(cluster, stored);
    const unit = Math.floor(offset / this.unit);
    using lease = await this.l2.lease(this.#tableOf(unit));
    this.#order();
    this.#setEntry(lease, unit, FLAG.cluster + FLAG.owned, cluster);
  }

  async #fill(cluster: number, bytes: Uint8Array): Promise<void> {
    try {
      await this.#file.write(cluster * this.unit, bytes);
    } catch (error) {
      await this.#meta.run(() => this.#lower(cluster));
      throw error;
    }
  }

  async mapZeroes(offset: number, length: number, options: ZeroOptions): Promise<'done'> {
    await this.#eachUnit(offset, length, (lease, unit) => {
      const high = lease.table.view.getUint32(this.#at(lease.table, unit));
      const cluster = lease.table.view.getUint32(this.#at(lease.table, unit) + 4);
      const keeps = this.#kindOf(lease.table, unit) !== 'new' && options.unmap !== true;
      if (keeps) this.#setEntry(lease, unit, high | FLAG.zero, cluster);
      else this.#setEntry(lease, unit, FLAG.zero, 0);
    });
    return 'done';
  }

  async unmap(offset: number, length: number, reveal: 'zero' | 'backing'): Promise<'done'> {
    const high = reveal === 'zero' && this.hasBacking ? FLAG.zero : 0;
    await this.#eachUnit(offset, length, (lease, unit) => this.#setEntry(lease, unit, high, 0));
    return 'done';
  }

  async #eachUnit(offset: number, length: number, change: (lease: TableLease, unit: number) => void): Promise<void> {
    const units = Math.ceil(this.virtualSize / this.unit);
    const end = Math.min(units, Math.ceil((offset + length) / this.unit));
    for (let unit = Math.floor(offset / this.unit); unit < end; ) {
      using lease = await this.l2.lease(this.#tableOf(unit));
      const stop = Math.min(end, this.#endOf(lease.table));
      while (unit < stop) change(lease, unit++);
    }
  }

  checkDataWrite(_child: number, hostOffset: number, length: number): Pending {
    const { dataCluster, clusters } = this.#header;
    if (hostOffset >= dataCluster * this.unit && hostOffset + length <= clusters * this.unit) return undefined;
    throw new BlockError('CORRUPT', `bitmap "${this.#file.name}": data write at ${hex(hostOffset)} hits metadata`);
  }

  // ── clusters; everything here runs under #meta ───────────────────────────────────────────────

  /** Reserves up to `wanted` consecutive clusters. @throws {@link BlockError} NO_SPACE. */
  async #allocate(wanted: number): Promise<{ cluster: number; units: number }> {
    await this.#reap();
    let found = await this.#find(wanted);
    if ((found === undefined || found.cluster >= this.#highWater) && (this.#drops?.count ?? 0) > 0) {
      // Before the file grows, what was dropped is made durable and reused.
      await this.flush();
      await this.#reap();
      found = await this.#find(wanted);
    }
    if (found === undefined) throw new BlockError('NO_SPACE', `bitmap "${this.#file.name}": no free cluster`);
    for (let i = 0; i < found.units; i++) await this.#setCount(found.cluster + i, 1);
    this.#hint = found.cluster + found.units;
    this.#highWater = Math.max(this.#highWater, this.#hint);
    return found;
  }

  async #find(wanted: number): Promise<{ cluster: number; units: number } | undefined> {
    let first = -1;
    for (let cluster = this.#hint; cluster < this.#header.clusters; cluster++) {
      const free = (await this.#count(cluster)) === 0;
      if (free && first < 0) first = cluster;
      if (first >= 0 && (!free || cluster - first + 1 === wanted)) {
        return { cluster: first, units: free ? wanted : cluster - first };
      }
    }
    return first < 0 ? undefined : { cluster: first, units: this.#header.clusters - first };
  }

  #countsTable(cluster: number): number {
    return alignDown(this.#header.countsOffset + cluster, this.counts.tableSize);
  }

  async #count(cluster: number): Promise<number> {
    const loaded = this.counts.load(this.#countsTable(cluster));
    const table = isPromise(loaded) ? await loaded : loaded;
    return table.bytes[this.#header.countsOffset + cluster - table.offset] as number;
  }

  async #setCount(cluster: number, value: number): Promise<void> {
    using lease = await this.counts.lease(this.#countsTable(cluster));
    const at = this.#header.countsOffset + cluster - lease.table.offset;
    lease.table.bytes[at] = value;
    lease.markDirty(at, at + 1);
  }

  /** One reference less; a cluster that has none left is discarded in the file first, and free after that. */
  async #lower(cluster: number): Promise<void> {
    const count = await this.#count(cluster);
    assert(count > 0, `cluster ${cluster} freed twice`);
    if (count === 1) await this.#file.discard(cluster * this.unit, this.unit);
    await this.#setCount(cluster, count - 1);
    if (count === 1) this.#hint = Math.min(this.#hint, cluster);
  }

  async #reap(): Promise<void> {
    for (const { hostOffset, length } of this.#drops?.takeReady() ?? []) {
      for (let at = hostOffset; at < hostOffset + length; at += this.unit) await this.#lower(at / this.unit);
    }
  }

  // ── life cycle ───────────────────────────────────────────────────────────────────────────────

  async flush(): Promise<void> {
    await this.l2.writeBack();
    await this.counts.writeBack();
    const { writtenGeneration } = this.l2;
    const counted = this.counts.writtenGeneration;
    await this.#gate.flush();
    this.l2.noteFlushed(writtenGeneration);
    this.counts.noteFlushed(counted);
  }

  async close(): Promise<void> {
    if (this.readOnly) return;
    await this.flush();
    await this.#meta.run(() => this.#reap());
    await this.flush();
    await Promise.all([this.l2.quiesce(), this.counts.quiesce()]);
  }

  info(): FormatInfo {
    return { clusterSize: this.unit };
  }

  /** Freezes the present content, as a snapshot does: every cluster gets a second reference, no unit may be written in place any more.
   *  Order: counts, then entries without OWNED, then the frozen table, then the header; the copy it replaces loses its references last. */
  async share(): Promise<void> {
    assert(this.#engine !== undefined, 'bitmap node not attached');
    await this.#engine.exclusive(() => this.#meta.run(() => this.#freeze()));
  }

  async #freeze(): Promise<void> {
    const header = this.#header;
    const units = Math.ceil(header.virtualSize / this.unit);
    await this.flush();
    for (let unit = 0; unit < units; unit++) {
      const cluster = await this.#clusterOf(unit);
      if (cluster !== 0) await this.#setCount(cluster, (await this.#count(cluster)) + 1);
    }
    await this.flush();
    const frozen = new Uint8Array(tableBytes(header));
    for (let unit = 0; unit < units; unit++) {
      using lease = await this.l2.lease(this.#tableOf(unit));
      const at = this.#at(lease.table, unit);
      const high = lease.table.view.getUint32(at);
      if ((high & FLAG.owned) !== 0) {
        lease.table.view.setUint32(at, high - FLAG.owned);
        lease.markDirty(at, at + 4);
      }
      frozen.set(lease.table.bytes.subarray(at, at + ENTRY_SIZE), unit * ENTRY_SIZE);
    }
    await this.flush();
    const size = tableBytes(header);
    const place =
      header.frozenOffset === header.tableOffset + size ? header.tableOffset + 2 * size : header.tableOffset + size;
    const replaced = await this.#frozenTable();
    await this.#file.write(place, frozen);
    await this.#gate.flush();
    this.#header = { ...header, frozenOffset: place };
    await this.#file.write(0, Header.encode(this.#header));
    await this.#gate.flush();
    for (let at = 0; at < replaced.byteLength; at += ENTRY_SIZE) {
      if ((replaced.getUint32(at) & FLAG.cluster) !== 0) await this.#lower(replaced.getUint32(at + 4));
    }
  }

  async #clusterOf(unit: number): Promise<number> {
    const loaded = this.l2.load(this.#tableOf(unit));
    const table = isPromise(loaded) ? await loaded : loaded;
    const at = this.#at(table, unit);
    return (table.view.getUint32(at) & FLAG.cluster) === 0 ? 0 : table.view.getUint32(at + 4);
  }

  async #frozenTable(): Promise<DataView> {
    const bytes = new Uint8Array(this.#header.frozenOffset === 0 ? 0 : tableBytes(this.#header));
    if (bytes.length > 0) await this.#file.read(this.#header.frozenOffset, bytes);
    return new DataView(bytes.buffer);
  }

  /** What the last `share` froze; the backing file fills what was not allocated. `undefined`: nothing is frozen. */
  async readFrozen(): Promise<Uint8Array | undefined> {
    const table = await this.#frozenTable();
    if (table.byteLength === 0) return undefined;
    const whole = new Uint8Array(alignUp(this.virtualSize, this.unit));
    for (let unit = 0; unit * this.unit < this.virtualSize; unit++) {
      const high = table.getUint32(unit * ENTRY_SIZE);
      const host = table.getUint32(unit * ENTRY_SIZE + 4) * this.unit;
      const into = whole.subarray(unit * this.unit, (unit + 1) * this.unit);
      if ((high & FLAG.zero) !== 0) continue;
      if ((high & FLAG.cluster) === 0) await this.#readBelow(unit * this.unit, into);
      else if ((high & FLAG.encoded) !== 0) await this.#decodeUnit(host, high >>> 8, 0, into);
      else {
        await this.#file.read(host, into);
        await this.transform?.decrypt(into, this.transform.tweak === 'guest' ? unit * this.unit : host);
      }
    }
    return whole.subarray(0, this.virtualSize);
  }

  async #readBelow(offset: number, into: Uint8Array): Promise<void> {
    const backing = this.children[1]?.node;
    const inside = Math.min(into.length, (backing?.size ?? 0) - offset);
    if (backing !== undefined && inside > 0) await backing.read(offset, into.subarray(0, inside));
  }
}

/** Every sector XORed with a byte made of its number: wrong tweaks show. */
function xorTransform(tweak: 'guest' | 'host'): DataTransform {
  const sector = 512;
  const apply = (from: Uint8Array, into: Uint8Array, at: number): Pending => {
    assert(at % sector === 0 && from.length % sector === 0, `transform of ${from.length} bytes at ${at}`);
    for (let i = 0; i < from.length; i++)
      into[i] = (from[i] as number) ^ ((Math.floor((at + i) / sector) * 37 + 11) & 255);
    return undefined;
  };
  return { sector, tweak, encrypt: apply, decrypt: (bytes, at) => apply(bytes, bytes, at) };
}
