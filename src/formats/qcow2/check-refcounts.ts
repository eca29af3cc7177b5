/** The refcounts as the file has them: judging the table, reading and writing blocks.
 *  Spec: qcow2, "Refcount tables, blocks". Order and wording of the findings are QEMU's.
 *  Invariant: a refcount block whose place is unknown (unaligned, past the end) is never written. */

import { setU64 } from '../../bytes/ints.ts';
import { allocateCounts, type CountArray, growCounts } from './check-counts.ts';
import type { References } from './check-references.ts';
import { type CheckRun, entryHex } from './check-run.ts';
import { readTables } from './check-tables.ts';
import { getRefcount, refcountBlockOffset, refcountTableHasReserved, setRefcount } from './entries.ts';
import { TABLE_ENTRY_BYTES } from './geometry.ts';

/** Reads the refcount table whole; its size has been checked with the header. */
export async function readRefcountTable(run: CheckRun): Promise<DataView> {
  const { header, geometry } = run;
  const table = new Uint8Array(header.refcountTableClusters * geometry.clusterSize);
  try {
    await run.file.read(header.refcountTableOffset, table);
  } catch (cause) {
    throw run.ioFailure('ERROR: Could not read refcount table: Input/output error', cause);
  }
  return new DataView(table.buffer);
}

/** Whether the block of table entry `index` begins at a cluster; told by the low word, which is exact. */
function isBlockAligned(table: DataView, index: number, clusterSize: number): boolean {
  const at = index * TABLE_ENTRY_BYTES + 4;
  const low = at < table.byteLength ? table.getUint32(at) : 0;
  return (low - (low % 512)) % clusterSize === 0;
}

/** Whether the offset in table entry `index` is so large that no file can be asked for it. */
function isBlockBeyondFiles(table: DataView, index: number): boolean {
  const at = index * TABLE_ENTRY_BYTES;
  return at < table.byteLength && table.getUint32(at) >= 0x8000_0000;
}

/** Offset of the refcount block of table entry `index`; 0 for none. */
export function blockOffsetAt(table: DataView, index: number): number {
  if (index * TABLE_ENTRY_BYTES >= table.byteLength) return 0;
  return refcountBlockOffset(
    table.getUint32(index * TABLE_ENTRY_BYTES),
    table.getUint32(index * TABLE_ENTRY_BYTES + 4),
  );
}

/** Counts the refcount blocks and judges the table's entries.
 *  @returns true when the refcount structures must be built anew. */
export async function countRefcountBlocks(run: CheckRun, references: References, table: DataView): Promise<boolean> {
  const { clusterSize } = run.geometry;
  let rebuild = false;
  for (let index = 0; index * TABLE_ENTRY_BYTES < table.byteLength; index++) {
    const low = table.getUint32(index * TABLE_ENTRY_BYTES + 4);
    // mostly there is none, and asking the clock each time takes longer than looking
    if (low === 0 && table.getUint32(index * TABLE_ENTRY_BYTES) === 0) continue;
    const offset = blockOffsetAt(table, index);
    if (refcountTableHasReserved(low)) {
      run.corruption('refcount-table-reserved', `ERROR refcount table entry ${index} has reserved bits set`, { index });
      rebuild = true;
    } else if (low % clusterSize !== 0) {
      run.corruption(
        'refcount-block-unaligned',
        `ERROR refcount block ${index} is not cluster aligned; refcount table entry corrupted`,
        { index, offset },
      );
      rebuild = true;
    } else if (offset / clusterSize >= references.clusters) {
      if (await coverBlock(run, references, table, index)) rebuild = true;
    } else if (offset !== 0) {
      const cluster = offset / clusterSize;
      references.add(offset, clusterSize);
      const count = references.counts[cluster] as number;
      if (count !== 1) {
        run.corruption('refcount-block-shared', `ERROR refcount block ${index} refcount=${count}`, {
          index,
          offset,
          references: count,
        });
        rebuild = true;
      }
    }
    if (run.restDue) await run.rest();
  }
  return rebuild;
}

/** A refcount block past the end of the file: under `-r all` the file is made long enough, and the block reads as zero.
 *  @returns true when that did not help. */
async function coverBlock(run: CheckRun, references: References, table: DataView, index: number): Promise<boolean> {
  const offset = blockOffsetAt(table, index);
  const { clusterSize } = run.geometry;
  const verb = run.fixErrors ? 'Repairing' : 'ERROR';
  run.corruption('refcount-block-outside', `${verb} refcount block ${index} is outside image`, {
    index,
    offset,
    fileSize: run.file.size,
  });
  if (!run.fixErrors) return false;
  const clusters = offset / clusterSize + 1;
  // a wild offset must not decide the size of the file: within reach means that the blocks there are could count it
  const within = clusters <= Math.max(references.clusters * 2, run.geometry.refcountBlockEntries * 2);
  if (!within || !run.file.supports.truncate) {
    const beyond = isBlockBeyondFiles(table, index);
    if (!beyond)
      run.find('note', 'resize-refused', 'Could not resize file: File too large', { offset, reported: true });
    const why = beyond ? 'Invalid argument' : 'File too large';
    run.find('note', 'resize-refused', `ERROR could not resize image: ${why}`, { offset });
    return true;
  }
  await run.file.truncate(offset + clusterSize);
  references.grow(clusters);
  run.mended();
  references.add(offset, clusterSize);
  return false;
}

/** Refcounts by cluster. */
export class StoredRefcounts {
  readonly #run: CheckRun;
  readonly #table: DataView;
  /** Blocks that are unaligned or cannot be read: their refcounts cannot be known. */
  readonly #unreadable = new Set<number>();
  #told = false;
  #counts: CountArray;
  #clusters: number;
  /** One block beyond `#clusters`, for odd questions. */
  #extra: { readonly index: number; readonly view: DataView } | undefined;

  private constructor(run: CheckRun, table: DataView, clusters: number) {
    this.#run = run;
    this.#table = table;
    this.#clusters = clusters;
    this.#counts = allocateCounts(run.geometry, clusters, run.name);
  }

  /** Reads the refcounts of the first `clusters` clusters.
   *  @param quiet tells nothing of those that cannot be read */
  static async load(run: CheckRun, table: DataView, clusters: number, quiet?: 'quiet'): Promise<StoredRefcounts> {
    const stored = new StoredRefcounts(run, table, clusters);
    stored.#told = quiet !== undefined;
    await stored.#load();
    return stored;
  }

  /** Valid below `clusters`. */
  get counts(): CountArray {
    return this.#counts;
  }

  get clusters(): number {
    return this.#clusters;
  }

  get table(): DataView {
    return this.#table;
  }

  async #load(): Promise<void> {
    const run = this.#run;
    const { clusterSize, refcountBlockEntries } = run.geometry;
    const blocks: number[] = [];
    const offsets: number[] = [];
    for (let index = 0; index * refcountBlockEntries < this.#clusters; index++) {
      const offset = blockOffsetAt(this.#table, index);
      if (!isBlockAligned(this.#table, index, clusterSize)) {
        if (!this.#told) await this.#tellUnaligned(index);
        this.#told = true;
        this.#unreadable.add(index);
      } else if (isBlockBeyondFiles(this.#table, index)) {
        this.#unreadable.add(index);
      } else if (offset !== 0 && offset < run.file.size) {
        blocks.push(index);
        offsets.push(offset);
      }
    }
    run.phase('refcounts', run.file.size);
    await readTables(
      run,
      offsets,
      clusterSize,
      (at, view, start) => {
        this.#decode(view, start, blocks[at] as number);
        run.advance(run.geometry.refcountBlockCoverage);
        return undefined;
      },
      (at) => this.#unreadable.add(blocks[at] as number),
    );
  }

  #decode(view: DataView, start: number, block: number): void {
    const { refcountOrder, refcountBlockEntries, clusterSize } = this.#run.geometry;
    const counts = this.#counts;
    const first = block * refcountBlockEntries;
    const entries = Math.min(refcountBlockEntries, this.#clusters - first);
    if (refcountOrder === 4) {
      for (let i = 0; i < entries; i++) counts[first + i] = view.getUint16(start + i * 2);
      return;
    }
    const block_ = new DataView(view.buffer, view.byteOffset + start, clusterSize);
    for (let i = 0; i < entries; i++) counts[first + i] = getRefcount(block_, i, refcountOrder);
  }

  /** Told once. A repair that may not build anew leaves the image marked, so that nobody writes to it. */
  async #tellUnaligned(index: number): Promise<void> {
    const run = this.#run;
    const offset = blockOffsetAt(this.#table, index);
    const low = this.#table.getUint32(index * TABLE_ENTRY_BYTES + 4);
    const text = entryHex(this.#table.getUint32(index * TABLE_ENTRY_BYTES), low - (low % 512));
    const what = `Refblock offset 0x${text} unaligned (reftable index: ${index === 0 ? '0' : `0x${index.toString(16)}`})`;
    const details = { index, offset };
    if (run.fixLeaks && !run.fixErrors) {
      await run.markCorrupt();
      run.find(
        'note',
        'marked-corrupt',
        `qcow2: Marking image as corrupt: ${what}; further corruption events will be suppressed`,
        details,
      );
    } else {
      run.find(
        'note',
        'refcount-block-unreadable',
        `qcow2: Image is corrupt: ${what}; further non-fatal corruption events will be suppressed`,
        details,
      );
    }
  }

  /** Whether the refcount of `cluster` can be known. */
  isReadable(cluster: number): boolean {
    return (
      this.#unreadable.size === 0 ||
      !this.#unreadable.has(Math.floor(cluster / this.#run.geometry.refcountBlockEntries))
    );
  }

  /** The refcount of any cluster, those past the end of the file included; `undefined` when it cannot be known. */
  async lookUp(cluster: number): Promise<number | undefined> {
    if (!this.isReadable(cluster)) return undefined;
    if (cluster < this.#clusters) return this.#counts[cluster] as number;
    const { refcountBlockEntries, refcountOrder, clusterSize } = this.#run.geometry;
    const index = Math.floor(cluster / refcountBlockEntries);
    const offset = blockOffsetAt(this.#table, index);
    if (offset === 0) return 0;
    if (!isBlockAligned(this.#table, index, clusterSize) || isBlockBeyondFiles(this.#table, index)) return undefined;
    if (this.#extra?.index !== index) {
      const bytes = new Uint8Array(clusterSize);
      if (offset < this.#run.file.size) await this.#run.file.read(offset, bytes);
      this.#extra = { index, view: new DataView(bytes.buffer) };
    }
    return getRefcount(this.#extra.view, cluster % refcountBlockEntries, refcountOrder);
  }

  /** The digits of a 64-bit refcount that no number holds. */
  async exact(cluster: number): Promise<string> {
    const { refcountBlockEntries } = this.#run.geometry;
    const word = new Uint8Array(8);
    const block = blockOffsetAt(this.#table, Math.floor(cluster / refcountBlockEntries));
    await this.#run.file.read(block + (cluster % refcountBlockEntries) * 8, word);
    return String(new DataView(word.buffer).getBigUint64(0));
  }

  /** Changes the refcounts `[first, first+count)`, all in blocks that exist, in memory; `write` puts them into the file. */
  set(first: number, count: number, value: number): void {
    const end = first + count;
    if (end > this.#clusters) {
      this.#counts = growCounts(this.#counts, this.#run.geometry, end, this.#run.name);
      this.#clusters = end;
    }
    this.#counts.fill(value, first, end);
  }

  /** Writes block `index` with the counts in memory; entries past `clusters` stay as they are in the file. */
  async write(index: number): Promise<void> {
    const run = this.#run;
    const { refcountBlockEntries, refcountOrder, clusterSize } = run.geometry;
    const offset = blockOffsetAt(this.#table, index);
    const block = new Uint8Array(clusterSize);
    await run.file.read(offset, block);
    const view = new DataView(block.buffer);
    const first = index * refcountBlockEntries;
    const entries = Math.min(refcountBlockEntries, this.#clusters - first);
    for (let i = 0; i < entries; i++) {
      const count = this.#counts[first + i] as number;
      // counts that no number holds are left as they are
      if (getRefcount(view, i, refcountOrder) !== count) setRefcount(view, i, refcountOrder, count);
    }
    await run.file.write(offset, block);
  }

  /** Takes `count` clusters in a range that no refcount block counts yet, after the new blocks for it, and gives them refcount one.
   *  Write order: blocks, flush, then the table entries that name them.
   *  @returns the first of them; `undefined` when the table has no such range left. */
  async extend(count: number): Promise<number | undefined> {
    const run = this.#run;
    const { clusterSize, refcountBlockEntries } = run.geometry;
    let blocks = 1;
    while (blocks * refcountBlockEntries < blocks + count) blocks++;
    const index = this.#findEmptyEntries(blocks);
    if (index === undefined) return undefined;
    const first = index * refcountBlockEntries;
    this.set(first, blocks + count, 1);
    const entries = new Uint8Array(blocks * TABLE_ENTRY_BYTES);
    for (let i = 0; i < blocks; i++) {
      const offset = (first + i) * clusterSize;
      setU64(new DataView(entries.buffer), i * TABLE_ENTRY_BYTES, offset);
      await run.file.write(offset, this.#encodeBlock(index + i));
    }
    await run.file.flush();
    await run.file.write(run.header.refcountTableOffset + index * TABLE_ENTRY_BYTES, entries);
    new Uint8Array(this.#table.buffer, this.#table.byteOffset).set(entries, index * TABLE_ENTRY_BYTES);
    return first + blocks;
  }

  /** The first of `count` neighbouring table entries without block. */
  #findEmptyEntries(count: number): number | undefined {
    let empty = 0;
    for (let index = 0; index * TABLE_ENTRY_BYTES < this.#table.byteLength; index++) {
      empty = blockOffsetAt(this.#table, index) === 0 ? empty + 1 : 0;
      if (empty === count) return index - count + 1;
    }
    return undefined;
  }

  #encodeBlock(index: number): Uint8Array {
    const { refcountBlockEntries, refcountOrder, clusterSize } = this.#run.geometry;
    const block = new Uint8Array(clusterSize);
    const view = new DataView(block.buffer);
    const first = index * refcountBlockEntries;
    const entries = Math.min(refcountBlockEntries, this.#clusters - first);
    for (let i = 0; i < entries; i++) setRefcount(view, i, refcountOrder, this.#counts[first + i] as number);
    return block;
  }
}
