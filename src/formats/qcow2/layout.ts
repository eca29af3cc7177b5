/** Where everything of a new image goes, and how much space an image needs. Pure arithmetic.
 *  Layout, one region after the other: header · refcount table · refcount blocks · L1 table · [L2 tables · guest data] · [LUKS header].
 *  Spec: qcow2, "General" and "Host cluster management"; for images whose metadata fits into the first refcount block these are
 *  QEMU's own places.
 *  Invariant: the refcount structures count every cluster of the file, themselves included. */
import { alignUp, divCeil } from '../../bytes/align.ts';
import { clustersFor, type Geometry, l1EntriesFor, l1TableSpace, TABLE_ENTRY_BYTES } from './geometry.ts';

/** Host offsets and sizes in bytes, counts where the name says so. */
export interface Layout {
  readonly refcountTableOffset: number;
  readonly refcountTableClusters: number;
  readonly refcountBlocksOffset: number;
  readonly refcountBlocks: number;
  /** 0 when the disk has size 0. */
  readonly l1Offset: number;
  readonly l1Entries: number;
  readonly l2Offset: number;
  /** 0 when nothing is preallocated. */
  readonly l2Tables: number;
  readonly dataOffset: number;
  /** Guest clusters with a place in this file: 0 when nothing is preallocated, or when an external data file has them. */
  readonly dataClusters: number;
  /** The LUKS header: begins with a cluster of its own, behind everything else; of no meaning where there is none. */
  readonly cryptoOffset: number;
  /** Clusters in use: their refcount is one. */
  readonly usedClusters: number;
  /** Length of the file. */
  readonly fileSize: number;
}

/** How much of the guest disk has its place from the beginning. */
export type Mapped = 'nothing' | 'metadata' | 'metadata-and-data';

/** @param cryptoBytes of a LUKS header; 0 for none */
export function planLayout(geometry: Geometry, virtualSize: number, mapped: Mapped, cryptoBytes = 0): Layout {
  const l2Tables = mapped === 'nothing' ? 0 : l1EntriesFor(geometry, virtualSize);
  const dataClusters = mapped === 'metadata-and-data' ? clustersFor(geometry, virtualSize) : 0;
  return planRegions(geometry, virtualSize, { l2Tables, dataClusters, cryptoBytes });
}

/** The same with any number of L2 tables and data clusters. */
export function planRegions(
  geometry: Geometry,
  virtualSize: number,
  { l2Tables, dataClusters, cryptoBytes = 0 }: { l2Tables: number; dataClusters: number; cryptoBytes?: number },
): Layout {
  const { clusterSize } = geometry;
  const l1Entries = l1EntriesFor(geometry, virtualSize);
  const l1Clusters = l1TableSpace(geometry, l1Entries) / clusterSize;
  const cryptoClusters = divCeil(cryptoBytes, clusterSize);
  const counted = 1 + l1Clusters + l2Tables + dataClusters + cryptoClusters;
  const { blocks, tableClusters } = refcountSpace(geometry, counted);
  const refcountBlocksOffset = (1 + tableClusters) * clusterSize;
  const l1Offset = refcountBlocksOffset + blocks * clusterSize;
  const l2Offset = l1Offset + l1Clusters * clusterSize;
  const usedClusters = counted + blocks + tableClusters;
  return {
    refcountTableOffset: clusterSize,
    refcountTableClusters: tableClusters,
    refcountBlocksOffset,
    refcountBlocks: blocks,
    l1Offset: l1Entries === 0 ? 0 : l1Offset,
    l1Entries,
    l2Offset,
    l2Tables,
    dataOffset: l2Offset + l2Tables * clusterSize,
    dataClusters,
    cryptoOffset: (usedClusters - cryptoClusters) * clusterSize,
    usedClusters,
    // an L1 table at the end is not padded to a cluster, every other region is made of whole ones
    fileSize:
      l2Tables === 0 && l1Entries > 0 && cryptoClusters === 0
        ? l1Offset + l1Entries * TABLE_ENTRY_BYTES
        : usedClusters * clusterSize,
  };
}

/** Refcount blocks and refcount table clusters for `clusters` other clusters. They count themselves, so this is a fixed point.
 *  At least one of each. */
export function refcountSpace(
  geometry: Geometry,
  clusters: number,
): { readonly blocks: number; readonly tableClusters: number } {
  let blocks = 0;
  let tableClusters = 0;
  let total = clusters;
  for (;;) {
    blocks = divCeil(total, geometry.refcountBlockEntries);
    tableClusters = divCeil(blocks, geometry.refcountTableEntriesPerCluster);
    const next = clusters + blocks + tableClusters;
    if (next === total) return { blocks, tableClusters };
    total = next;
  }
}

/** Bytes of an image of `virtualSize` whose every cluster is allocated, metadata included: QEMU's estimate, which counts whole L2
 *  tables and whole L1 clusters. */
export function fullyAllocatedSize(geometry: Geometry, virtualSize: number): number {
  const { clusterSize, l2EntrySize } = geometry;
  const data = alignUp(virtualSize, clusterSize);
  const l2Bytes = alignUp(data / clusterSize, geometry.l2Entries) * l2EntrySize;
  const l1Bytes = alignUp(l2Bytes / clusterSize, clusterSize / TABLE_ENTRY_BYTES) * TABLE_ENTRY_BYTES;
  const clusters = 1 + (l2Bytes + l1Bytes + data) / clusterSize;
  const { blocks, tableClusters } = refcountSpace(geometry, clusters);
  return (clusters + blocks + tableClusters) * clusterSize;
}
