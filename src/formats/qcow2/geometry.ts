/** Every size of an image that follows from cluster_bits, extended L2 and refcount_order. Pure; computed once at open.
 *  Spec: qcow2, "Header" and "Cluster mapping". All sizes in bytes unless the name says otherwise. */
import { alignUp, divCeil } from '../../bytes/align.ts';

export const MIN_CLUSTER_BITS = 9;
export const MAX_CLUSTER_BITS = 21;
/** An L1 table in the file, bytes. */
export const MAX_L1_BYTES = 32 * 1024 * 1024;
/** The refcount table, bytes. */
export const MAX_REFCOUNT_TABLE_BYTES = 8 * 1024 * 1024;
export const MAX_SNAPSHOTS = 65536;
/** Smallest fixed part of a snapshot table entry. */
export const SNAPSHOT_HEADER_BYTES = 40;
/** L1, standard L2 and refcount table entries. */
export const TABLE_ENTRY_BYTES = 8;

export interface GeometryInput {
  readonly clusterBits: number;
  readonly extendedL2: boolean;
  readonly refcountOrder: number;
}

export interface Geometry extends GeometryInput {
  readonly clusterSize: number;
  /** 8, or 16 with extended L2. */
  readonly l2EntrySize: number;
  /** Entries of one L2 table (a table is one cluster). */
  readonly l2Entries: number;
  /** Guest bytes that one L2 table maps. */
  readonly l2Coverage: number;
  /** 32 with extended L2, else 1. */
  readonly subclustersPerCluster: number;
  /** `clusterSize` without extended L2. */
  readonly subclusterSize: number;
  readonly refcountBits: number;
  /** Largest refcount that can be stored, at most 2^53-1 here. */
  readonly refcountMax: number;
  /** Entries of one refcount block (a block is one cluster). */
  readonly refcountBlockEntries: number;
  /** Host bytes that one refcount block counts. */
  readonly refcountBlockCoverage: number;
  /** Refcount table entries in one cluster. */
  readonly refcountTableEntriesPerCluster: number;
  /** First bit of the sector count in a compressed cluster descriptor; the offset has the bits below. */
  readonly csizeShift: number;
  /** Compressed descriptors reach host offsets below this. */
  readonly compressedOffsetLimit: number;
}

/** @param input within the format's bounds: cluster_bits 9..21, refcount_order 0..6; extended L2 needs cluster_bits >= 14. */
export function geometryOf(input: GeometryInput): Geometry {
  const { clusterBits, extendedL2, refcountOrder } = input;
  const clusterSize = 2 ** clusterBits;
  const l2EntrySize = extendedL2 ? 16 : TABLE_ENTRY_BYTES;
  const l2Entries = clusterSize / l2EntrySize;
  const subclustersPerCluster = extendedL2 ? 32 : 1;
  const refcountBits = 2 ** refcountOrder;
  const refcountBlockEntries = (clusterSize * 8) / refcountBits;
  const csizeShift = 62 - (clusterBits - 8);
  return {
    clusterBits,
    extendedL2,
    refcountOrder,
    clusterSize,
    l2EntrySize,
    l2Entries,
    l2Coverage: l2Entries * clusterSize,
    subclustersPerCluster,
    subclusterSize: clusterSize / subclustersPerCluster,
    refcountBits,
    refcountMax: refcountBits === 64 ? Number.MAX_SAFE_INTEGER : 2 ** refcountBits - 1,
    refcountBlockEntries,
    refcountBlockCoverage: refcountBlockEntries * clusterSize,
    refcountTableEntriesPerCluster: clusterSize / TABLE_ENTRY_BYTES,
    csizeShift,
    compressedOffsetLimit: 2 ** Math.min(csizeShift, 53),
  };
}

/** L1 entries that `bytes` guest bytes need. */
export function l1EntriesFor(geometry: Geometry, bytes: number): number {
  return divCeil(bytes, geometry.l2Coverage);
}

/** Host clusters that `bytes` need. */
export function clustersFor(geometry: Geometry, bytes: number): number {
  return divCeil(bytes, geometry.clusterSize);
}

/** Bytes of an L1 table of `entries`, rounded up to whole clusters: what it occupies in the file. */
export function l1TableSpace(geometry: Geometry, entries: number): number {
  return alignUp(entries * TABLE_ENTRY_BYTES, geometry.clusterSize);
}

/** Where VM state begins in the guest address space: the first L2 table that the disk does not use. */
export function vmStateOffset(geometry: Geometry, virtualSize: number): number {
  return l1EntriesFor(geometry, virtualSize) * geometry.l2Coverage;
}
