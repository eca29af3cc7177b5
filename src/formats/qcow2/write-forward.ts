/** A qcow2 image from its first byte to its last: header · refcount table · refcount blocks · L1 table · L2 tables · data clusters in the order of
 *  the disk. Spec: qcow2, all table formats; the places are those of an image with preallocated metadata (layout.ts), but only for what is stored.
 *  Invariants: every table is right when it is written, for nothing can be changed afterwards: what the map says is data must follow, whole
 *  clusters, in that order; every cluster of the file has refcount one. */
import { alignUp } from '../../bytes/align.ts';
import type { ForwardContext, ForwardData, ForwardImage, UnitMap } from '../../core/forward.ts';
import type { ByteStore } from '../../core/store.ts';
import {
  checkCombination,
  checkLimits,
  checkSizeOption,
  encodeNewHeader,
  geometryFromOptions,
  newHeader,
  type TableContext,
  writeRefcounts,
  writeTables,
} from './create.ts';
import { setL1Entry, setL2Entry } from './entries.ts';
import { type Geometry, l1EntriesFor, TABLE_ENTRY_BYTES } from './geometry.ts';
import { type Layout, planRegions } from './layout.ts';
import type { Qcow2CreateOptions } from './options.ts';

const SECTOR = 512;
/** Every subcluster. */
const ALL = 0xffff_ffff;

/** Encryption changes the data, data files hold it elsewhere, and preallocation has a layout of its own. */
export function canWriteForward(options: Qcow2CreateOptions): boolean {
  const { dataFile, preallocation, encryption, encryptFormat } = options;
  return dataFile === undefined && preallocation === 'off' && encryption !== true && encryptFormat === undefined;
}

/** @throws {@link BlockError} as the creation of an image. */
export async function planForward(
  context: ForwardContext,
  virtualSize: number,
  options: Qcow2CreateOptions,
): Promise<ForwardImage> {
  const { name, signal } = context;
  const geometry = geometryFromOptions(options, name);
  checkCombination(options, name);
  const size = alignUp(virtualSize, SECTOR);
  checkSizeOption(options.size, size, name);
  const empty = planRegions(geometry, size, { l2Tables: 0, dataClusters: 0 });
  checkLimits(empty, geometry, size, name);
  encodeNewHeader(newHeader(geometry, empty, size, options, undefined), name);
  return {
    virtualSize: size,
    unit: geometry.clusterSize,
    marksZeroes: options.compat !== 'v2',
    writeTables: (sink, units) => new ForwardTables(geometry, size, options, name).write({ file: sink, signal }, units),
  };
}

class ForwardTables {
  readonly #geometry: Geometry;
  readonly #size: number;
  readonly #options: Qcow2CreateOptions;
  readonly #name: string;

  constructor(geometry: Geometry, size: number, options: Qcow2CreateOptions, name: string) {
    this.#geometry = geometry;
    this.#size = size;
    this.#options = options;
    this.#name = name;
  }

  async write(context: TableContext & { readonly file: ByteStore }, units: UnitMap): Promise<ForwardData> {
    const geometry = this.#geometry;
    const tables = this.#tablesOf(units);
    const layout = planRegions(geometry, this.#size, { l2Tables: tables.length, dataClusters: units.dataCount });
    checkLimits(layout, geometry, this.#size, this.#name);
    const header = newHeader(geometry, layout, this.#size, this.#options, undefined);
    await context.file.write(0, encodeNewHeader(header, this.#name));
    await writeRefcounts(context, geometry, layout);
    await this.#writeL1(context, layout, tables);
    await this.#writeL2(context, layout, tables, units);
    return { start: layout.dataOffset, order: 'packed', fileSize: layout.fileSize };
  }

  /** Indexes of the L2 tables with something in them. */
  #tablesOf(units: UnitMap): number[] {
    const { l2Entries } = this.#geometry;
    const tables: number[] = [];
    for (let index = units.next(0); index < units.count; ) {
      const table = Math.floor(index / l2Entries);
      tables.push(table);
      index = units.next((table + 1) * l2Entries);
    }
    return tables;
  }

  async #writeL1({ file }: TableContext, layout: Layout, tables: readonly number[]): Promise<void> {
    const entries = l1EntriesFor(this.#geometry, this.#size);
    if (entries === 0) return;
    const bytes = new Uint8Array(entries * TABLE_ENTRY_BYTES);
    const view = new DataView(bytes.buffer);
    for (const [i, table] of tables.entries()) {
      setL1Entry(view, table * TABLE_ENTRY_BYTES, layout.l2Offset + i * this.#geometry.clusterSize, true);
    }
    await file.write(layout.l1Offset, bytes);
  }

  async #writeL2(context: TableContext, layout: Layout, tables: readonly number[], units: UnitMap): Promise<void> {
    const { clusterSize, l2Entries, l2EntrySize, extendedL2 } = this.#geometry;
    let place = layout.dataOffset;
    await writeTables(context, layout.l2Offset, tables.length, clusterSize, (table, index) => {
      const first = (tables[index] as number) * l2Entries;
      const end = Math.min(l2Entries, units.count - first);
      for (let i = 0; i < end; i++) {
        const state = units.state(first + i);
        if (state === 'absent') continue;
        const at = i * l2EntrySize;
        if (state === 'data') {
          setL2Entry(table, at, place, true, false);
          if (extendedL2) table.setUint32(at + 12, ALL);
          place += clusterSize;
        } else if (extendedL2) table.setUint32(at + 8, ALL);
        else setL2Entry(table, at, 0, false, true);
      }
    });
  }
}
