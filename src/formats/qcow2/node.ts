/** An open qcow2 image: wires the parts of the room together as a FormatNode. No logic of its own but the order of flush and close.
 *  Spec: qcow2, all of it.
 *  Invariants: flush writes L2 and L1 tables (each in its order), then refcounts, then makes all of it durable, then frees what was
 *  dropped; close leaves no dropped space behind, stores bitmaps after all of that, marks an image with lazy refcounts clean only after its
 *  refcounts are durable, and forgets the key whatever happens. */
import type { MaybePromise, Pending } from '../../base/async.ts';
import { alignUp, divCeil } from '../../bytes/align.ts';
import type { Codecs } from '../../codec/codecs.ts';
import type {
  AmendRun,
  BackingRecord,
  BitmapFacet,
  CheckFacet,
  DataTransform,
  EngineServices,
  FormatInfo,
  FormatNode,
  ReferenceRun,
  SnapshotFacet,
  VmStateFacet,
  WritePlan,
} from '../../core/format.ts';
import type { BlockNode, Child } from '../../core/node.ts';
import type { RunList } from '../../core/run.ts';
import type { IoOptions, Preallocation, ZeroOptions } from '../../core/store.ts';
import type { TableCache } from '../../core/table-cache.ts';
import { Allocator } from './allocator.ts';
import { amendQcow2, type PartRun, type Qcow2AmendOptions } from './amend.ts';
import type { Bitmaps } from './bitmaps.ts';
import { changeBacking } from './change-backing.ts';
import { Qcow2Checker } from './checker.ts';
import { ClusterMap } from './cluster-map.ts';
import { ClusterWrite } from './cluster-write.ts';
import { CompressedClusters } from './compressed.ts';
import { Discard } from './discard.ts';
import { canBeReset, resetImage } from './empty.ts';
import { compressedInEncrypted, type Encryption, needsKey } from './encryption.ts';
import { INCOMPATIBLE } from './features.ts';
import { l1EntriesFor, vmStateOffset } from './geometry.ts';
import { UnknownState } from './header-switch.ts';
import type { Qcow2State } from './image-state.ts';
import { describeImage } from './info.ts';
import { L2Tables } from './l2-tables.ts';
import { LUKS_HEADER, MetadataMap, type SnapshotPlaces } from './metadata-map.ts';
import type { RuntimeSettings } from './options.ts';
import { PreallocatedMetadata } from './preallocation.ts';
import { changeRefcountWidth } from './refcount-width.ts';
import { Refcounts } from './refcounts.ts';
import { Resize } from './resize.ts';
import { placesOf } from './snapshot-entries.ts';
import { readSnapshotTable, type SnapshotTable } from './snapshot-table.ts';
import { Snapshots } from './snapshots.ts';
import { expandZeros } from './zero-expansion.ts';

export interface Qcow2NodeOptions {
  readonly state: Qcow2State;
  readonly settings: RuntimeSettings;
  readonly codecs: Codecs;
  readonly dataFile: BlockNode | undefined;
  readonly backing: BlockNode | undefined;
  /** The key is forgotten when the node is closed. */
  readonly encryption: Encryption | undefined;
  readonly snapshots: SnapshotTable;
  readonly bitmaps: Bitmaps;
  /** The snapshot table has not been read: the image was opened to be checked. */
  readonly forCheck: boolean;
  /** `state` maps the content of a snapshot, and not the disk. */
  readonly isSnapshot: boolean;
  /** What the file occupies, bytes; `undefined` when unknown. */
  readonly allocatedBytes: number | undefined;
}

export class Qcow2Node implements FormatNode {
  readonly format = 'qcow2';
  readonly children: readonly Child[];
  readonly check?: CheckFacet;
  readonly readOnly: boolean;
  readonly unit: number;
  readonly zeroUnit: number;
  readonly discardUnit: number;
  readonly #state: Qcow2State;
  readonly #options: Qcow2NodeOptions;
  readonly #map: ClusterMap;
  readonly #allocator: Allocator;
  readonly #refcounts: Refcounts;
  readonly #write: ClusterWrite;
  readonly #discard: Discard;
  readonly #compressed: CompressedClusters;
  readonly #resize: Resize;
  readonly #metadata: MetadataMap;
  readonly #preallocation: PreallocatedMetadata;
  readonly #snapshots: Snapshots;

  constructor(options: Qcow2NodeOptions) {
    const { state, settings, dataFile, backing } = options;
    this.#state = state;
    this.#options = options;
    // The header of a snapshot's content is not the file's: only the image itself can be checked.
    if (!options.isSnapshot) {
      this.check = new Qcow2Checker({ state, flush: () => this.#flush(), forget: () => this.#forgetRepaired() });
    }
    this.readOnly = state.readOnly;
    this.unit = state.geometry.clusterSize;
    this.zeroUnit = state.geometry.subclusterSize;
    this.discardUnit = state.geometry.subclusterSize;
    this.children = children(state.file, dataFile, backing);
    this.#map = new ClusterMap(state);
    const refcounts = new Refcounts(state);
    this.#refcounts = refcounts;
    const metadata = new MetadataMap(state, refcounts, settings.overlapCheck, placesOf(options.snapshots));
    this.#allocator = new Allocator(state, refcounts, metadata, settings.passDiscard);
    const tables = new L2Tables(state, this.#map, this.#allocator, metadata);
    this.#write = new ClusterWrite(state, tables, this.#allocator, backing?.size ?? 0);
    this.#discard = new Discard(state, tables, {
      hasBacking: backing !== undefined,
      passRequest: settings.passDiscard.request,
      keepClusters: settings.discardNoUnref,
      check: (offset, length) => metadata.check(offset, length),
    });
    this.#compressed = new CompressedClusters(state, tables, this.#allocator, options.codecs);
    this.#resize = new Resize({
      state,
      allocator: this.#allocator,
      refcounts,
      metadata,
      tables,
      write: this.#write,
      discard: this.#discard,
      backingSize: backing?.size ?? 0,
      transform: () => this.transform,
      settle: () => this.#settle(),
    });
    this.#metadata = metadata;
    this.#snapshots = new Snapshots(
      {
        state,
        allocator: this.#allocator,
        refcounts,
        passDiscard: settings.passDiscard.snapshot,
        hasBitmaps: () => options.bitmaps.any,
        flush: async () => {
          if (this.#isDirty) await this.#flush();
        },
        moved: (places, lowestFreed) => this.#moved(places, lowestFreed),
      },
      options.snapshots,
    );
    this.#preallocation = new PreallocatedMetadata(state, refcounts, options.allocatedBytes);
    if (options.encryption !== undefined) {
      options.encryption.guard = (offset, length) => metadata.checkTable(offset, length, LUKS_HEADER);
    }
    state.guardTable = (offset, length, own) => metadata.checkTable(offset, length, own);
  }

  /** None where the snapshot table has not been read, or where what is open is itself a snapshot. */
  get snapshots(): SnapshotFacet | undefined {
    return this.#options.forCheck || this.#options.isSnapshot ? undefined : this.#snapshots;
  }

  /** Not of an image that was opened to be checked: then nothing is tracked. */
  get bitmaps(): BitmapFacet | undefined {
    return this.#options.forCheck ? undefined : this.#options.bitmaps;
  }

  get vmState(): VmStateFacet | undefined {
    const { header, geometry, hasDataFile } = this.#state;
    if (hasDataFile || this.#options.forCheck) return undefined;
    const offset = vmStateOffset(geometry, header.virtualSize);
    return {
      offset,
      capacity: Math.max(0, header.l1Size * geometry.l2Coverage - offset),
      reserve: (length) => this.#resize.reserveL1(l1EntriesFor(geometry, offset + length)),
    };
  }

  get transform(): DataTransform | undefined {
    return this.#state.transform;
  }

  /** Where metadata was preallocated, what it maps may never have been written. Zeros in the file are no zeros where they are decrypted. */
  get recurse(): 'none' | 'zero' {
    if (this.#options.encryption !== undefined) return 'none';
    return this.#preallocation.found === false ? 'none' : 'zero';
  }

  get virtualSize(): number {
    return this.#state.header.virtualSize;
  }

  attach(engine: EngineServices): void {
    this.#state.engine = engine;
    this.#allocator.attach(engine.epochs);
    if (!this.readOnly) engine.observers.add(this.#options.bitmaps.record);
  }

  map(offset: number, _length: number, into: RunList): Pending {
    const { header, transform, name } = this.#state;
    if (header.encryption !== 'none' && transform === undefined) throw needsKey(header.encryption, name);
    const guessing = this.#preallocation.settle();
    if (guessing !== undefined) return this.#mapAfter(guessing, offset, into);
    return this.#map.map(offset, into);
  }

  async #mapAfter(guessing: Promise<void>, offset: number, into: RunList): Promise<void> {
    await guessing;
    await this.#map.map(offset, into);
  }

  decode(runs: RunList, first: number, count: number, into: Uint8Array): Pending {
    return this.#compressed.decode(runs, first, count, into);
  }

  prepareWrite(offset: number, length: number): Promise<WritePlan> {
    return this.#write.prepare(offset, length);
  }

  commitWrite(plan: WritePlan): Pending {
    return this.#write.commit(plan);
  }

  abortWrite(plan: WritePlan): Pending {
    return this.#write.abort(plan);
  }

  writeCompressed(offset: number, from: Uint8Array, options?: IoOptions): Promise<void> {
    // it would be stored as it is
    if (this.#options.encryption !== undefined) throw compressedInEncrypted(this.#state.name);
    return this.#compressed.store(offset, from, options);
  }

  mapZeroes(offset: number, length: number, options: ZeroOptions): Promise<'done' | 'unsupported'> {
    return this.#discard.mapZeroes(offset, length, options);
  }

  unmap(offset: number, length: number, reveal: 'zero' | 'backing'): Promise<'done' | 'unsupported'> {
    return this.#discard.unmap(offset, length, reveal);
  }

  checkDataWrite(child: number, hostOffset: number, length: number): Pending {
    return child === 0 ? this.#metadata.check(hostOffset, length) : undefined;
  }

  async *references(): AsyncGenerator<ReferenceRun> {
    const { file, geometry } = this.#state;
    const { clusterSize } = geometry;
    for await (const { first, count, refcount } of this.#refcounts.runs(divCeil(file.size, clusterSize))) {
      yield { offset: first * clusterSize, length: count * clusterSize, refcount };
    }
  }

  async resize(virtualSize: number, preallocation: Preallocation | 'metadata'): Promise<void> {
    const { bitmaps } = this.#options;
    await bitmaps.requireResizable(virtualSize);
    await this.#resize.resize(virtualSize, preallocation);
    bitmaps.resize(virtualSize);
  }

  changeBacking(backing: BackingRecord | undefined): Promise<void> {
    return changeBacking(this.#state, backing);
  }

  /** Where the image can be reset as a whole; else the engine drops cluster by cluster. */
  get makeEmpty(): (() => Promise<void>) | undefined {
    return canBeReset(this.#state, this.#options.bitmaps.any) ? () => this.#reset() : undefined;
  }

  async #reset(): Promise<void> {
    await this.#settle();
    try {
      await this.#state.metadata.run(() => this.#orCondemn(resetImage(this.#state)));
    } finally {
      await this.#moved(placesOf(this.#snapshots.table));
    }
  }

  /** @throws the reason why nobody knows which of two headers the file has, once no further request is served. */
  async #orCondemn(change: Promise<void>): Promise<void> {
    try {
      await change;
    } catch (error) {
      if (!(error instanceof UnknownState)) throw error;
      this.#state.engine?.condemn(error);
      throw error.cause;
    }
  }

  async amend(options: Qcow2AmendOptions, run: AmendRun): Promise<void> {
    await amendQcow2(
      {
        state: this.#state,
        snapshots: this.#snapshots,
        encryption: this.#options.encryption,
        settle: () => this.#settle(),
        resize: (virtualSize) => this.resize(virtualSize, 'off'),
        requireResizable: (virtualSize, version) => this.#resize.requirePossible(virtualSize, 'off', version),
        hasBitmaps: this.#options.bitmaps.any,
        changeWidth: (order, width) => this.#changeWidth(order, width),
        expandZeros: (part) => this.#expandZeros(part),
      },
      options,
      run,
    );
  }

  /** Everything durable, refcounts included, and nothing left to be freed. */
  async #settle(): Promise<void> {
    await this.#flush();
    await this.#writeTables(true);
  }

  async #changeWidth(order: number, run: PartRun): Promise<void> {
    await this.#settle();
    const parts = { state: this.#state, allocator: this.#allocator, refcounts: this.#refcounts };
    await this.#state.metadata.run(() => this.#orCondemn(changeRefcountWidth(parts, order, run)));
    this.#state.remeasure();
    await this.#moved(placesOf(this.#snapshots.table));
    this.#refcounts.remeasure();
  }

  async #expandZeros(run: PartRun): Promise<void> {
    await this.#flush();
    const { table } = this.#snapshots;
    const host = {
      state: this.#state,
      allocator: this.#allocator,
      refcounts: this.#refcounts,
      hasBacking: this.#options.backing !== undefined,
      checkData: (hostOffset: number, length: number) => this.#metadata.check(hostOffset, length),
      transform: this.transform,
    };
    await this.#state.metadata.run(() => expandZeros(host, table.entries, run));
    await this.#writeTables(true);
    await this.#moved(placesOf(table));
  }

  info(): MaybePromise<FormatInfo> {
    const { encryption, bitmaps } = this.#options;
    return describeImage(this.#state.header, this.#snapshots.table, bitmaps, encryption);
  }

  flush(): Pending {
    if (this.readOnly) return undefined;
    const { dataGate, hasDataFile } = this.#state;
    if (this.#isDirty || hasDataFile) return this.#flush();
    const announced = this.#state.file.event?.('flush_to_disk');
    if (announced !== undefined) return announced.then(() => dataGate.settle(dataGate.ticket()));
    return dataGate.settle(dataGate.ticket());
  }

  get #isDirty(): boolean {
    const { l1, l2, refcountBlocks, refcountTable } = this.#state.caches;
    return l1.dirty || l2.dirty || refcountBlocks.dirty || refcountTable.dirty || this.#allocator.hasDropped;
  }

  async #flush(): Promise<void> {
    await this.#writeTables(!this.#state.lazyRefcounts);
    if (this.#allocator.hasDropped) await this.#state.metadata.run(() => this.#allocator.reap());
  }

  /** After a repair: everything that was read is stale. */
  async #forgetRepaired(): Promise<void> {
    const { file, header, name } = this.#state;
    if (!this.#options.forCheck) {
      this.#snapshots.replace(await readSnapshotTable(file, header, name));
      await this.#options.bitmaps.reload();
    }
    await this.#moved(placesOf(this.#snapshots.table));
  }

  /** Tables have moved or were written anew behind the caches. */
  async #moved(snapshots: SnapshotPlaces, lowestFreed = 0): Promise<void> {
    for (const cache of Object.values(this.#state.caches) as TableCache[]) await cache.quiesce();
    this.#state.resetCaches();
    this.#allocator.forget(lowestFreed);
    this.#metadata.setSnapshots(snapshots);
  }

  /** Everything that is dirty now, durable; each cache keeps its own order. */
  async #writeTables(refcountsToo: boolean): Promise<void> {
    const { caches, dataGate, fileGate } = this.#state;
    const written: TableCache[] = [caches.l2, caches.l1];
    if (refcountsToo) written.push(caches.refcountBlocks, caches.refcountTable);
    for (const cache of written) await cache.writeBack();
    const generations = written.map((cache) => cache.writtenGeneration);
    await this.#state.file.event?.('flush_to_disk');
    await fileGate.settle(fileGate.ticket());
    if (dataGate !== fileGate) await dataGate.settle(dataGate.ticket());
    written.forEach((cache, i) => {
      cache.noteFlushed(generations[i] as number);
    });
  }

  async close(): Promise<void> {
    try {
      if (!this.readOnly) await this.#leave();
    } finally {
      for (const cache of Object.values(this.#state.caches) as TableCache[]) cache.stop();
      await this.#options.encryption?.wipe();
    }
  }

  async forget(): Promise<void> {
    for (const cache of Object.values(this.#state.caches) as TableCache[]) {
      await cache.quiesce();
      cache.forgetAll();
    }
  }

  async #leave(): Promise<void> {
    await this.#flush();
    const lost = await this.#storeBitmaps();
    await this.#writeTables(true);
    // Compressed bytes may end anywhere; readers that ask for whole sectors must find them.
    const { file } = this.#state;
    if (this.#compressed.stored && file.size % 512 !== 0 && file.supports.truncate)
      await file.truncate(alignUp(file.size, 512));
    for (const cache of Object.values(this.#state.caches) as TableCache[]) await cache.quiesce();
    const { header } = this.#state;
    if (this.#state.lazyRefcounts && (header.incompatible & INCOMPATIBLE.dirty) !== 0n) {
      await this.#state.setIncompatible(header.incompatible & ~INCOMPATIBLE.dirty);
    }
    if (lost !== undefined) throw lost.error;
  }

  /** @returns the failure, which is no reason to leave the rest undone. */
  async #storeBitmaps(): Promise<{ readonly error: unknown } | undefined> {
    if (this.#options.forCheck) return undefined;
    try {
      await this.#options.bitmaps.store({ state: this.#state, allocator: this.#allocator, metadata: this.#metadata });
      return undefined;
    } catch (error) {
      return { error };
    }
  }
}

function children(file: BlockNode, dataFile: BlockNode | undefined, backing: BlockNode | undefined): Child[] {
  const all: Child[] = [{ role: 'file', name: 'file', node: file }];
  if (dataFile !== undefined) all.push({ role: 'data', name: 'data-file', node: dataFile });
  if (backing !== undefined) all.push({ role: 'backing', name: 'backing', node: backing });
  return all;
}
