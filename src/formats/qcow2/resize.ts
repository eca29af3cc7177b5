/** Growing the virtual disk: a larger L1 table where it takes one, then the size. Spec: qcow2, "Header" (size, l1_size, l1_table_offset).
 *  Runs alone (MappedNode.exclusive).
 *  Order: new L1 table and its refcounts, flush, header, flush; a cut before the header leaves the old table in force, and leaks. */
import { BlockError } from '../../base/errors.ts';
import { alignUp } from '../../bytes/align.ts';
import { setU64 } from '../../bytes/ints.ts';
import type { Preallocation } from '../../core/store.ts';
import type { Allocator } from './allocator.ts';
import type { ClusterWrite } from './cluster-write.ts';
import type { Discard } from './discard.ts';
import { l1EntriesFor, l1TableSpace, MAX_L1_BYTES, TABLE_ENTRY_BYTES, vmStateOffset } from './geometry.ts';
import type { Qcow2State } from './image-state.ts';

/** Byte position in the header of what a move of the L1 table changes: entries u32, offset u64. */
const HEADER_L1_AT = 36;
/** Virtual size, u64. */
const HEADER_SIZE_AT = 24;

export class Resize {
  readonly #state: Qcow2State;
  readonly #allocator: Allocator;
  readonly #write: ClusterWrite;
  readonly #discard: Discard;
  readonly #backingSize: number;

  constructor(state: Qcow2State, allocator: Allocator, write: ClusterWrite, discard: Discard, backingSize: number) {
    this.#state = state;
    this.#allocator = allocator;
    this.#write = write;
    this.#discard = discard;
    this.#backingSize = backingSize;
  }

  /** @param size bytes, a multiple of 512, not below the present one.
   *  @throws OPTION, UNSUPPORTED, TOO_LARGE with reasons `qcow2.resize-…`. */
  async grow(size: number, preallocation: Preallocation | 'metadata'): Promise<void> {
    const { header, geometry, name } = this.#state;
    const old = header.virtualSize;
    const refuse = (code: 'OPTION' | 'UNSUPPORTED' | 'TOO_LARGE', reason: string, what: string): BlockError =>
      new BlockError(code, `qcow2 "${name}": ${what}`, { reason: `qcow2.resize-${reason}`, details: { size, old } });
    if (size % 512 !== 0) throw refuse('OPTION', 'unaligned', `the new size ${size} is not a multiple of 512`);
    if (size === old) return;
    if (size < old) throw refuse('UNSUPPORTED', 'shrink', 'shrinking is not supported yet');
    if (preallocation !== 'off')
      throw refuse('UNSUPPORTED', 'preallocation', `preallocation=${preallocation} is not supported when resizing yet`);
    if (header.snapshotCount > 0 && header.version < 3) {
      throw refuse('UNSUPPORTED', 'v2-snapshots', 'a version 2 image with snapshots cannot be resized');
    }
    const entries = l1EntriesFor(geometry, size);
    if (entries * TABLE_ENTRY_BYTES > MAX_L1_BYTES) {
      throw refuse('TOO_LARGE', 'too-large', `size ${size} needs an L1 table of more than ${MAX_L1_BYTES} bytes`);
    }
    await this.#dropVmState(old, size);
    if (entries > header.l1Size) await this.#growL1(entries);
    const zeroEnd = Math.min(size, this.#backingSize);
    const clusterEnd = Math.min(alignUp(old, geometry.clusterSize), zeroEnd);
    // What the backing file has beyond the old end must not appear in the new disk.
    if (clusterEnd > old) await this.#zeroTail(old, clusterEnd);
    if (zeroEnd > alignUp(old, geometry.clusterSize)) {
      const start = alignUp(old, geometry.clusterSize);
      await this.#discard.mapZeroes(start, zeroEnd - start, {});
    }
    await this.#flushTables();
    const field = new Uint8Array(8);
    setU64(new DataView(field.buffer), 0, size);
    await this.#state.file.write(HEADER_SIZE_AT, field);
    await this.#state.flushFile();
    this.#state.header = { ...this.#state.header, virtualSize: size };
  }

  /** State of a machine lies where the disk is about to be: the guest must not read it there. */
  async #dropVmState(old: number, size: number): Promise<void> {
    const { header, geometry } = this.#state;
    const start = vmStateOffset(geometry, old);
    const end = Math.min(alignUp(size, geometry.l2Coverage), header.l1Size * geometry.l2Coverage);
    if (end > start) await this.#discard.unmap(start, end - start, 'backing');
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

  async #flushTables(): Promise<void> {
    const { l1, l2 } = this.#state.caches;
    await l2.makeDurable(l2.generation);
    await l1.makeDurable(l1.generation);
  }

  /** Rest of a last cluster that the backing file would fill: written as zeros, with its head as it reads now. */
  async #zeroTail(start: number, end: number): Promise<void> {
    const plan = await this.#write.prepare(start, end - start);
    const bytes = new Uint8Array(plan.headLength + plan.length + plan.tailLength);
    await this.#state.engine?.readGuest(start - plan.headLength, bytes.subarray(0, plan.headLength));
    const host = plan.hostOffset - plan.headLength;
    const { transform, data } = this.#state;
    const encrypted = transform === undefined ? bytes : new Uint8Array(bytes.length);
    await transform?.encrypt(bytes, encrypted, transform.tweak === 'guest' ? start - plan.headLength : host);
    await data.write(host, encrypted);
    await this.#write.commit(plan);
  }

  async #growL1(entries: number): Promise<void> {
    const { geometry, header, caches, file } = this.#state;
    const space = l1TableSpace(geometry, entries);
    await this.#state.metadata.run(async () => {
      const offset = await this.#allocator.allocate(space / geometry.clusterSize);
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
      const field = new Uint8Array(12);
      const view = new DataView(field.buffer);
      view.setUint32(0, entries);
      setU64(view, 4, offset);
      await file.event?.('l1_grow_activate_table');
      await file.write(HEADER_L1_AT, field);
      await this.#state.flushFile();
      await this.#state.moveL1(offset, entries);
      const oldSpace = l1TableSpace(geometry, header.l1Size);
      if (oldSpace > 0) await this.#allocator.release(header.l1Offset, oldSpace);
    });
  }

  async #makeRefcountsDurable(): Promise<void> {
    if (this.#state.lazyRefcounts) return;
    const { refcountBlocks, refcountTable } = this.#state.caches;
    await refcountBlocks.makeDurable(refcountBlocks.generation);
    await refcountTable.makeDurable(refcountTable.generation);
  }
}
