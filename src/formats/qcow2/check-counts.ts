/** Counts per host cluster, in memory: references found, or refcounts read. One typed array, as wide as the image's refcounts.
 *  Invariant: its length follows the length of the file, never a number found in the file. */
import { BlockError } from '../../base/errors.ts';
import type { Geometry } from './geometry.ts';

export type CountArray = Uint8Array | Uint16Array | Uint32Array | Float64Array;

/** QEMU's bound: cluster indexes are signed 32-bit numbers. */
export const MAX_CLUSTERS = 0x7fff_ffff;

/** @throws {@link BlockError} TOO_LARGE, reason `qcow2.check-memory`, when the counts do not fit into memory. */
export function allocateCounts(geometry: Geometry, clusters: number, name: string): CountArray {
  try {
    if (geometry.refcountOrder <= 3) return new Uint8Array(clusters);
    if (geometry.refcountOrder === 4) return new Uint16Array(clusters);
    if (geometry.refcountOrder === 5) return new Uint32Array(clusters);
    return new Float64Array(clusters);
  } catch (cause) {
    throw new BlockError('TOO_LARGE', `qcow2 "${name}": no memory for the refcounts of ${clusters} clusters`, {
      reason: 'qcow2.check-memory',
      details: { clusters, errno: 'ENOMEM' },
      cause,
    });
  }
}

/** A copy of at least `clusters` entries; the new ones are 0. */
export function growCounts(counts: CountArray, geometry: Geometry, clusters: number, name: string): CountArray {
  if (clusters <= counts.length) return counts;
  const grown = allocateCounts(geometry, clusters, name);
  grown.set(counts);
  return grown;
}
