/** Where things are in an add-cow file, and how its names and errors are written. Spec: add-cow, both tables. Pure.
 *  Invariant: the bitmap begins where the header ends; guest offset = offset in the image file, everywhere. */
import { BlockError, type ErrorCode, type ErrorDetails } from '../../base/errors.ts';
import { alignUp, divCeil } from '../../bytes/align.ts';
import type { PresenceGeometry } from '../../core/presence-map.ts';

/** `v9`: the first one with a whole specification (2012); `v20`: the last one (2013). */
export type AddCowVersion = 'v9' | 'v20';

export const SECTOR = 512;
/** The image format that needs no layer of its own. */
export const RAW = 'raw';
/** Cluster size of v9, always. */
export const V9_CLUSTER = 64 * 1024;
export const V9_HEADER = 2560;
export const V9_NAME_BYTES = 1024;
/** Fixed fields of V20; names come after them. */
export const V20_FIELDS = 76;
export const V20_MIN_HEADER = 4096;
export const V20_FORMAT_BYTES = 16;
export const MIN_CLUSTER_BITS = 12;
export const MAX_CLUSTER_BITS = 21;

/** What decides where things are. */
export interface AddCowShape {
  readonly version: AddCowVersion;
  /** Bytes. */
  readonly clusterSize: number;
}

/** Bytes before the bitmap. */
export function headerSize({ version, clusterSize }: AddCowShape): number {
  return version === 'v9' ? V9_HEADER : Math.max(V20_MIN_HEADER, clusterSize);
}

/** Bytes of bitmap for a disk; V20 rounds them up to whole clusters. */
export function bitmapLength({ version, clusterSize }: AddCowShape, virtualSize: number): number {
  const bytes = divCeil(divCeil(virtualSize, clusterSize), 8);
  return version === 'v9' ? bytes : alignUp(bytes, clusterSize);
}

/** Length of a whole add-cow file. */
export function fileLength(shape: AddCowShape, virtualSize: number): number {
  return headerSize(shape) + bitmapLength(shape, virtualSize);
}

export function presenceGeometry(shape: AddCowShape, virtualSize: number): PresenceGeometry {
  return {
    unit: shape.clusterSize,
    virtualSize,
    bitmapOffset: headerSize(shape),
    bitmapLength: bitmapLength(shape, virtualSize),
    bits: divCeil(virtualSize, shape.clusterSize),
    dataOffset: 0,
    wordBytes: 1,
  };
}

/** An error about the image `name`. */
export function fault(
  name: string,
  finding: string,
  what: string,
  details: ErrorDetails = {},
  code: ErrorCode = 'CORRUPT',
): BlockError {
  return new BlockError(code, `add-cow "${name}": ${what}`, { reason: `add-cow.${finding}`, details });
}
