/** Another size of the virtual disk: growing, with or without space for what is new, and shrinking. Spec: qcow2, "Header" (size, l1_size,
 *  l1_table_offset). Runs alone (MappedNode.exclusive).
 *  Order, growing: what the tables map behind the old end goes → a larger L1 table where it takes one (table and refcounts → durable → header →
 *  durable) → zeros wherever something else would show, space → durable → size. Shrinking: size → durable → zeros in the rest of the last cluster,
 *  what is behind it goes → refcounts → durable → refcount blocks that count nothing → the end of the file. A cut leaves the old size or the new one, and leaks. */
import type { Pending } from '../../base/async.ts';
import { BlockError, type ErrorCode, isBlockError } from '../../base/errors.ts';
import { alignUp } from '../../bytes/align.ts';
import type { DataTransform } from '../../core/format.ts';
import type { Preallocation } from '../../core/store.ts';
import type { Allocator } from './allocator.ts';
import type { ClusterWrite } from './cluster-write.ts';
import type { Discard } from './discard.ts';
import { L2_COMPRESSED, L2_NORMAL, l2Kind } from './entries.ts';
import { l1EntriesFor, l1TableSpace, MAX_L1_BYTES, TABLE_ENTRY_BYTES } from './geometry.ts';
import { switchOrCondemn } from './header-switch.ts';
import type { Qcow2State } from './image-state.ts';
import type { L2Tables } from './l2-tables.ts';
import type { MetadataMap } from './metadata-map.ts';
import type { Refcounts } from './refcounts.ts';
import { dropBehind, requireBoundedL1 } from './resize-drop.ts';
import { preallocate } from './resize-preallocate.ts';

/** Bytes of zeros written in one request. */
const ZEROS_AT_ONCE = 1024 * 1024;

export interface ResizeParts {
  readonly state: Qcow2State;
  readonly allocator: Allocator;
  readonly refcounts: Refcounts;
  readonly metadata: MetadataMap;
  readonly tables: L2Tables;
  readonly write: ClusterWrite;
  readonly discard: Discard;
  /** Bytes; 0 without a backing file. */
  readonly backingSize: number;
  /** How data is encrypted, where it is. */
  transform(): DataTransform | undefined;
  /** Writes everything back, refcounts included, and frees what was dropped. */
  settle(): Promise<void>;
}

export class Resize {
  readonly #parts: ResizeParts;
  readonly #state: Qcow2State;
  readonly #allocator: Allocator;

  constructor(parts: ResizeParts) {
    this.#parts = parts;
    this.#state = parts.state;
    this.#allocator = parts.allocator;
  }

  /** @param size bytes, a multiple of 512
   *  @throws {@link BlockError} OPTION, UNSUPPORTED, TOO_LARGE with reasons `qcow2.resize-…`; then nothing has changed. Other failures leave the
   *  old size or the new one: of shrinking, what fails behind the switch of the size has only failed to give space back. */
  async resize(size: number, preallocation: Preallocation | 'metadata'): Promise<void> {
    this.requirePossible(size, preallocation);
    const { virtualSize } = this.#state.header;
    if (size !== virtualSize) await this.#state.metadata.run(() => requireBoundedL1(this.#state));
    if (size > virtualSize) await this.#grow(size, preallocation);
    else if (size < virtualSize) await this.#shrink(size);
  }

  /** @param version that the image will have @throws as {@link resize} */
  requirePossible(size: number, preallocation: Preallocation | 'metadata', version?: number): void {
    const { header, geometry, name } = this.#state;
    const old = header.virtualSize;
    const refuse = (code: ErrorCode, finding: string, what: string): BlockError =>
      new BlockError(code, `qcow2 "${name}": ${what}`, { reason: `qcow2.resize-${finding}`, details: { size, old } });
    if (size % 512 !== 0) throw refuse('OPTION', 'unaligned', `the new size ${size} is not a multiple of 512`);
    if (size === old) return;
    if (size < old && preallocation !== 'off') {
      throw refuse('OPTION', 'preallocation-shrink', 'preallocation is for growing');
    }
    if (preallocation !== 'off' && header.encryption !== 'none' && header.version < 3) {
      throw refuse('UNSUPPORTED', 'preallocation-encrypted', 'version 2 cannot mark preallocated clusters as zeros');
    }
    if (header.snapshotCount > 0 && (version ?? header.version) < 3) {
      throw refuse('UNSUPPORTED', 'v2-snapshots', 'a version 2 image with snapshots cannot be resized');
    }
    if (l1EntriesFor(geometry, size) * TABLE_ENTRY_BYTES > MAX_L1_BYTES) {
      throw refuse('TOO_LARGE', 'too-large', `size ${size} needs an L1 table of more than ${MAX_L1_BYTES} bytes`);
    }
  }

  // ── growing ──────────────────────────────────────────────────────────────────────────────────

  async #grow(size: number, preallocation: Preallocation | 'metadata'): Promise<void> {
    const { geometry, rawDataFile } = this.#state;
    const { backingSize } = this.#parts;
    const { clusterSize } = geometry;
    const old = this.#state.header.virtualSize;
    const clusterEnd = alignUp(old, clusterSize);
    const entries = l1EntriesFor(geometry, size);
    // State of a machine, and what an interrupted change left: the guest must not read it there.
    await dropBehind(this.#parts, clusterEnd, false);
    if (entries > this.#state.header.l1Size) await this.#growL1(entries);
    if (clusterEnd > old) await this.#zeroTail(old, Math.min(clusterEnd, size));
    await this.#growData(old, size, preallocation);
    const hide = backingSize > old || this.#state.header.encryption !== 'none';
    const mode = preallocation === 'off' && rawDataFile ? 'metadata' : preallocation;
    if (mode !== 'off') {
      await preallocate(this.#parts, { start: clusterEnd, end: alignUp(size, clusterSize), hide }, mode);
    } else if (backingSize > clusterEnd && size > clusterEnd) {
      await this.#hide(clusterEnd, Math.min(size, backingSize));
    }
    const { l1, l2 } = this.#state.caches;
    await l2.makeDurable(l2.generation);
    await l1.makeDurable(l1.generation);
    await this.#writeSize(size);
  }

  /** What the old disk did not have of its last cluster. */
  async #zeroTail(start: number, end: number): Promise<void> {
    if (this.#parts.backingSize > start || (await this.#holdsData(start))) await this.#writeZeros(start, end);
  }

  /** The cluster at `offset` may hold something else than zeros. */
  async #holdsData(offset: number): Promise<boolean> {
    const { geometry, hasDataFile, metadata } = this.#state;
    const kind = await metadata.run(async () => {
      const place = await this.#parts.tables.find(offset);
      if (place === undefined) return undefined;
      const { view } = place.lease.table;
      const at = place.index * geometry.l2EntrySize;
      place.lease.release();
      return l2Kind(view.getUint32(at), view.getUint32(at + 4), geometry.extendedL2, hasDataFile);
    });
    return kind === L2_NORMAL || kind === L2_COMPRESSED;
  }

  /** What a longer backing file has behind the old end. */
  async #hide(start: number, end: number): Promise<void> {
    const { discard } = this.#parts;
    if ((await discard.mapZeroes(start, end - start, {})) === 'unsupported') await this.#writeZeros(start, end);
  }

  async #writeZeros(start: number, end: number): Promise<void> {
    const { write } = this.#parts;
    const { engine, data } = this.#state;
    for (let at = start; at < end; ) {
      const plan = await write.prepare(at, Math.min(end - at, ZEROS_AT_ONCE));
      const bytes = new Uint8Array(plan.headLength + plan.length + plan.tailLength);
      const guestStart = at - plan.headLength;
      const hostStart = plan.hostOffset - plan.headLength;
      // Behind the end of the disk everything reads as zeros.
      await engine?.readGuest(guestStart, bytes.subarray(0, plan.headLength));
      const transform = this.#parts.transform();
      const written = transform === undefined ? bytes : new Uint8Array(bytes.length);
      await transform?.encrypt(bytes, written, transform.tweak === 'guest' ? guestStart : hostStart);
      await data.write(hostStart, written);
      await write.commit(plan);
      at += plan.length;
    }
  }

  /** The external data file: as long as the disk, and zeros where the disk is new. */
  async #growData(old: number, size: number, preallocation: Preallocation | 'metadata'): Promise<void> {
    const { hasDataFile, rawDataFile, data } = this.#state;
    if (!hasDataFile) return;
    const shown = Math.min(data.size, size);
    if (shown > old) await data.writeZeroes(old, shown - old, {});
    if (!data.supports.truncate || (data.size >= size && !rawDataFile)) return;
    const space = preallocation === 'metadata' ? 'off' : preallocation;
    await data.truncate(size, data.size < size ? { preallocation: space } : {});
    await data.flush();
  }

  async #writeSize(size: number): Promise<void> {
    await switchOrCondemn(this.#state, { ...this.#state.header, virtualSize: size });
  }

  // ── shrinking ────────────────────────────────────────────────────────────────────────────────

  async #shrink(size: number): Promise<void> {
    const { geometry, hasDataFile, data } = this.#state;
    const { settle, refcounts, metadata } = this.#parts;
    // What was written before is not to come after the size.
    await settle();
    await this.#writeSize(size);
    // QEMU, when it makes the disk larger again, shows what it finds there.
    const clusterEnd = alignUp(size, geometry.clusterSize);
    if (clusterEnd > size && (await this.#holdsData(size))) await this.#writeZeros(size, clusterEnd);
    await dropBehind(this.#parts, clusterEnd, true);
    await settle();
    await this.#state.metadata.run(async () => {
      for (const block of await refcounts.dropUnused()) metadata.remove(block);
    });
    await settle();
    await this.#cutFile();
    if (hasDataFile && data.supports.truncate && data.size > size) await this.#cut(() => data.truncate(size));
  }

  async #cutFile(): Promise<void> {
    const { file, geometry } = this.#state;
    if (!file.supports.truncate) return;
    const end = (await this.#state.metadata.run(() => this.#parts.refcounts.end())) * geometry.clusterSize;
    if (end > 0 && end < file.size) await this.#cut(() => file.truncate(end));
  }

  /** The disk has its new size: a file that stays too long costs space only. */
  async #cut(cut: () => Pending): Promise<void> {
    try {
      await cut();
    } catch (error) {
      if (!isBlockError(error)) throw error;
      this.#state.warn('qcow2.resize-tail', `the end of the file could not be cut off: ${error.message}`);
    }
  }

  /** Makes the L1 table long enough for `entries`, and for more that may follow.
   *  @throws TOO_LARGE, reason `qcow2.vm-state-too-large`. */
  async reserveL1(entries: number): Promise<void> {
    const { header, name } = this.#state;
    if (entries <= header.l1Size) return;
    const most = MAX_L1_BYTES / TABLE_ENTRY_BYTES;
    if (entries > most) {
      throw new BlockError(
        'TOO_LARGE',
        `qcow2 "${name}": the VM state needs an L1 table of more than ${MAX_L1_BYTES} bytes`,
        {
          reason: 'qcow2.vm-state-too-large',
          details: { entries, bound: most, errno: 'EFBIG' },
        },
      );
    }
    await this.#growL1(Math.min(most, Math.max(entries, Math.ceil(header.l1Size * 1.5))));
  }

  async #growL1(entries: number): Promise<void> {
    const { geometry, header, file } = this.#state;
    const space = l1TableSpace(geometry, entries);
    await this.#state.metadata.run(async () => {
      await file.event?.('l1_grow_alloc_table');
      const offset = await this.#allocator.allocate(space / geometry.clusterSize);
      try {
        await this.#writeL1(offset, entries, space);
      } catch (error) {
        // Of the header that is in force nothing is known where the switch could not be undone; then nothing is served any more.
        await this.#allocator.release(offset, space).catch(() => undefined);
        throw error;
      }
      await this.#state.moveL1(offset, entries);
      const oldSpace = l1TableSpace(geometry, header.l1Size);
      if (oldSpace > 0) await this.#allocator.release(header.l1Offset, oldSpace);
    });
  }

  /** A copy of the L1 table with room for more, in force when it ends. */
  async #writeL1(offset: number, entries: number, space: number): Promise<void> {
    const { header, caches, file } = this.#state;
    const table = new Uint8Array(space);
    const end = header.l1Offset + header.l1Size * TABLE_ENTRY_BYTES;
    for (let at = header.l1Offset; at < end; at += caches.l1.tableSize) {
      const slice = await caches.l1.load(at);
      table.set(slice.bytes.subarray(0, Math.min(caches.l1.tableSize, end - at)), at - header.l1Offset);
    }
    await file.event?.('l1_grow_write_table');
    await file.write(offset, table);
    // Also settles what the copied entries are ordered after: their L2 tables and refcounts.
    await caches.l1.makeDurable(caches.l1.generation);
    await this.#makeRefcountsDurable();
    await this.#state.flushFile();
    await file.event?.('l1_grow_activate_table');
    await switchOrCondemn(this.#state, { ...this.#state.header, l1Offset: offset, l1Size: entries });
  }

  async #makeRefcountsDurable(): Promise<void> {
    if (this.#state.lazyRefcounts) return;
    const { refcountBlocks, refcountTable } = this.#state.caches;
    await refcountBlocks.makeDurable(refcountBlocks.generation);
    await refcountTable.makeDurable(refcountTable.generation);
  }
}
