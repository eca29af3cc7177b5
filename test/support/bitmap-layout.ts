/** On-disk layout of the test format "bitmap": header, counts (one byte per cluster), three allocation tables (the live one and two places for
 *  the frozen copy that `share` makes), data clusters. Also its creation and its consistency check, which read raw bytes only.
 *  Invariants of a sound image: count of a cluster >= number of entries that point to it; an OWNED entry is the only one that does. */
import { alignUp } from '../../src/bytes/align.ts';
import { struct, u32, u64 } from '../../src/bytes/struct.ts';

export const MAGIC = 0x43424954;
export const Header = struct('bitmap header', 56, {
  magic: [0, u32],
  unit: [4, u32],
  virtualSize: [8, u64],
  clusters: [16, u32],
  hasBacking: [20, u32],
  countsOffset: [24, u64],
  tableOffset: [32, u64],
  /** Where the frozen table lies; 0: there is none. */
  frozenOffset: [40, u64],
  dataCluster: [48, u64],
});
export type HeaderValue = ReturnType<typeof Header.decode>;

export const ENTRY_SIZE = 8;
/** Flags of an entry's high word; its bits from 8 on are the encoded length, its low word is the cluster. */
export const FLAG = { cluster: 1, zero: 2, owned: 4, encoded: 8 } as const;

export interface LayoutOptions {
  readonly unit?: number;
  readonly hasBacking?: boolean;
  /** Clusters for data, in percent of what the disk needs: small values force reuse. */
  readonly spare?: number;
}

export function layout(virtualSize: number, options: LayoutOptions = {}): HeaderValue {
  const unit = options.unit ?? 1024;
  const units = Math.ceil(virtualSize / unit);
  const tableBytes = alignUp(units * ENTRY_SIZE, unit);
  const dataClusters = Math.ceil((units * (options.spare ?? 250)) / 100) + 4;
  const metadata = unit + 3 * tableBytes;
  // The counts count themselves: one more round settles it for every size used here.
  let countsBytes = 0;
  for (let round = 0; round < 3; round++) countsBytes = alignUp((metadata + countsBytes) / unit + dataClusters, unit);
  const clusters = (metadata + countsBytes) / unit + dataClusters;
  return {
    magic: MAGIC,
    unit,
    virtualSize,
    clusters,
    hasBacking: options.hasBacking === true ? 1 : 0,
    countsOffset: unit,
    tableOffset: unit + countsBytes,
    frozenOffset: 0,
    dataCluster: (metadata + countsBytes) / unit,
  };
}

export function tableBytes(header: HeaderValue): number {
  return alignUp(Math.ceil(header.virtualSize / header.unit) * ENTRY_SIZE, header.unit);
}

/** The bytes of a new, empty image. */
export function createBitmapImage(virtualSize: number, options: LayoutOptions = {}): Uint8Array {
  const header = layout(virtualSize, options);
  const bytes = new Uint8Array(header.dataCluster * header.unit);
  Header.encode(header, bytes);
  bytes.fill(1, header.countsOffset, header.countsOffset + header.dataCluster);
  return bytes;
}

export interface BitmapCheck {
  readonly corruptions: string[];
  readonly leaks: string[];
}

/** Counts references in raw bytes and compares them with the counts. */
export function checkBitmapImage(image: Uint8Array): BitmapCheck {
  const result: BitmapCheck = { corruptions: [], leaks: [] };
  const header = Header.decode(image);
  const references = new Uint8Array(header.clusters);
  references.fill(1, 0, header.dataCluster);
  const owners: [number, string][] = [];
  const tables = header.frozenOffset === 0 ? [header.tableOffset] : [header.tableOffset, header.frozenOffset];
  const view = new DataView(image.buffer, image.byteOffset, image.byteLength);
  for (const table of tables) {
    for (let i = 0; i < Math.ceil(header.virtualSize / header.unit); i++) {
      const high = view.getUint32(table + i * ENTRY_SIZE);
      if ((high & FLAG.cluster) === 0) continue;
      const cluster = view.getUint32(table + i * ENTRY_SIZE + 4);
      const name = `entry ${i} of table ${table}`;
      if (cluster < header.dataCluster || cluster >= header.clusters) {
        result.corruptions.push(`${name} points to cluster ${cluster}`);
        continue;
      }
      references[cluster] = (references[cluster] as number) + 1;
      if ((high & FLAG.owned) !== 0) owners.push([cluster, name]);
      const encoded = high >>> 8;
      if ((high & FLAG.encoded) !== 0 && (encoded === 0 || encoded > header.unit)) {
        result.corruptions.push(`${name} has encoded length ${encoded}`);
      }
    }
  }
  for (const [cluster, name] of owners) {
    if ((references[cluster] as number) > 1) result.corruptions.push(`${name} owns shared cluster ${cluster}`);
  }
  for (let cluster = 0; cluster < header.clusters; cluster++) {
    const count = image[header.countsOffset + cluster] as number;
    const wanted = references[cluster] as number;
    if (count < wanted) result.corruptions.push(`cluster ${cluster} has count ${count}, ${wanted} refer to it`);
    if (count > wanted) result.leaks.push(`cluster ${cluster} has count ${count}, ${wanted} refer to it`);
  }
  return result;
}
