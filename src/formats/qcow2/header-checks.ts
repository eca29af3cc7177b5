/** The bounds of every header field: what is refused, and why.
 *  Spec: qcow2, "Header"; the bounds and the order of the checks are QEMU's, so that the first finding is the one it reports.
 *  Every error is a BlockError with reason `qcow2.<finding>` and details `field`, `value`, `bound`, `offset` (of the field). */
import { BlockError, type ErrorCode, type ErrorDetails, hex } from '../../base/errors.ts';
import type { CompressionType } from '../../codec/codecs.ts';
import { findFeatureNames } from './extensions.ts';
import { AUTOCLEAR, INCOMPATIBLE, INCOMPATIBLE_KNOWN, nameIncompatible } from './features.ts';
import {
  type Geometry,
  l1EntriesFor,
  MAX_CLUSTER_BITS,
  MAX_L1_BYTES,
  MAX_REFCOUNT_TABLE_BYTES,
  MAX_SNAPSHOTS,
  MIN_CLUSTER_BITS,
  SNAPSHOT_HEADER_BYTES,
  TABLE_ENTRY_BYTES,
} from './geometry.ts';
import {
  ENCRYPTION_METHODS,
  type FixedFields,
  HEADER_V3_AT,
  HEADER_V3_MIN_LENGTH,
  HeaderV2,
  HeaderV3,
  hex64,
  QCOW2_MAGIC,
  type Version3Fields,
} from './header-fields.ts';

/** L1 entries at most: the index is a signed 32-bit number in QEMU. */
const MAX_L1_INDEX = 0x7fff_ffff;
const MAX_BACKING_NAME_BYTES = 1023;
/** By the value of the compression type field. */
export const COMPRESSION_TYPES: readonly CompressionType[] = ['deflate', 'zstd'];

/** How the image is being opened, as far as the header cares. */
export interface HeaderAccess {
  readonly readOnly: boolean;
  /** Opened for check or repair: the corrupt bit, a missing refcount table and a bad snapshot table are no reasons to refuse. */
  readonly forCheck: boolean;
  /** Only facts are asked for: what guest data would need may be missing. */
  readonly metadataOnly?: boolean | undefined;
}

export function checkIdentity(fixed: FixedFields, name: string): void {
  if (fixed.magic !== QCOW2_MAGIC) {
    throw fault(
      name,
      'magic',
      `not a qcow2 image: magic ${hex(fixed.magic)}, not ${hex(QCOW2_MAGIC)}`,
      { ...field('magic'), value: fixed.magic },
      'WRONG_FORMAT',
    );
  }
  if (fixed.version !== 2 && fixed.version !== 3) {
    throw fault(
      name,
      'version',
      `version ${fixed.version}; 2 and 3 are known`,
      { ...field('version'), value: fixed.version },
      'UNSUPPORTED',
    );
  }
  if (fixed.clusterBits < MIN_CLUSTER_BITS || fixed.clusterBits > MAX_CLUSTER_BITS) {
    throw fault(
      name,
      'cluster-bits',
      `cluster size 2^${fixed.clusterBits} is not within 2^${MIN_CLUSTER_BITS} to 2^${MAX_CLUSTER_BITS}`,
      {
        ...field('clusterBits'),
        value: fixed.clusterBits,
        bound: [MIN_CLUSTER_BITS, MAX_CLUSTER_BITS],
      },
    );
  }
}

/** The version 3 fields, or what they mean in version 2. */
export function decodeV3(cluster: Uint8Array, version: number, clusterSize: number, name: string): Version3Fields {
  if (version === 2) {
    return {
      incompatible: 0n,
      compatible: 0n,
      autoclear: 0n,
      refcountOrder: 4,
      headerLength: HEADER_V3_AT,
      compressionType: 0,
    };
  }
  const v3 = HeaderV3.decode(cluster, HEADER_V3_AT);
  const details = {
    field: 'headerLength',
    offset: HEADER_V3_AT + HeaderV3.fields.headerLength[0],
    value: v3.headerLength,
  };
  if (v3.headerLength < HEADER_V3_MIN_LENGTH) {
    throw fault(
      name,
      'header-length-short',
      `header of ${v3.headerLength} bytes; version 3 has at least ${HEADER_V3_MIN_LENGTH}`,
      { ...details, bound: HEADER_V3_MIN_LENGTH },
    );
  }
  if (v3.headerLength > clusterSize) {
    throw fault(
      name,
      'header-length-long',
      `header of ${v3.headerLength} bytes exceeds the cluster size ${hex(clusterSize)}`,
      { ...details, bound: clusterSize },
    );
  }
  // older headers end before the compression type: what stands there is an extension
  return v3.headerLength > HEADER_V3_MIN_LENGTH ? v3 : { ...v3, compressionType: 0 };
}

export function checkCompression(v3: Version3Fields, name: string): CompressionType {
  const details = { field: 'compressionType', offset: HEADER_V3_AT + 32, value: v3.compressionType };
  const type = COMPRESSION_TYPES[v3.compressionType];
  if (type === undefined)
    throw fault(name, 'compression-type', `unknown compression type ${v3.compressionType}`, details, 'UNSUPPORTED');
  const flagged = (v3.incompatible & INCOMPATIBLE.compressionType) !== 0n;
  if (flagged !== (type !== 'deflate')) {
    throw fault(
      name,
      'compression-bit',
      `compression type ${v3.compressionType} needs the compression feature bit ${flagged ? 'clear' : 'set'}`,
      {
        ...details,
        mustBeSet: !flagged,
      },
    );
  }
  return type;
}

export function checkFeatures(
  v3: Version3Fields,
  cluster: Uint8Array,
  extensionsEnd: number,
  name: string,
  access: HeaderAccess,
): void {
  const unknown = v3.incompatible & ~INCOMPATIBLE_KNOWN;
  if (unknown !== 0n) {
    const { names, unnamed } = nameIncompatible(unknown, findFeatureNames(cluster, v3.headerLength, extensionsEnd));
    const parts = unnamed === 0n ? names : [...names, `unknown incompatible feature ${unnamed.toString(16)}`];
    throw fault(
      name,
      'incompatible-features',
      `unsupported feature: ${parts.join(', ')}`,
      { offset: HEADER_V3_AT, value: unknown, names, unnamed },
      'UNSUPPORTED',
    );
  }
  if ((v3.incompatible & INCOMPATIBLE.corrupt) !== 0n && !access.readOnly && !access.forCheck) {
    throw fault(
      name,
      'corrupt',
      'marked as corrupt, so it opens read-only until check has repaired it',
      { offset: HEADER_V3_AT },
      'ACCESS',
    );
  }
}

export function checkWidths(refcountOrder: number, clusterSize: number, extendedL2: boolean, name: string): void {
  const subclusterSize = clusterSize / (extendedL2 ? 32 : 1);
  if (subclusterSize < 2 ** MIN_CLUSTER_BITS) {
    throw fault(
      name,
      'subcluster-size',
      `subclusters of ${subclusterSize} bytes; at least ${2 ** MIN_CLUSTER_BITS} are needed`,
      {
        ...field('clusterBits'),
        value: subclusterSize,
        bound: 2 ** MIN_CLUSTER_BITS,
      },
    );
  }
  if (refcountOrder > 6) {
    throw fault(name, 'refcount-order', `refcounts of 2^${refcountOrder} bits; at most 64 bits are allowed`, {
      field: 'refcountOrder',
      offset: HEADER_V3_AT + 24,
      value: refcountOrder,
      bound: 6,
    });
  }
}

export interface TableClaim {
  readonly finding: 'refcount-table' | 'snapshots' | 'l1' | 'snapshot-l1';
  readonly what: string;
  readonly offset: number;
  readonly entries: number;
  readonly entryBytes: number;
  readonly maxBytes: number;
}

/** @throws {@link BlockError} TOO_LARGE `qcow2.….size`, CORRUPT `qcow2.….offset`; also for snapshots' own tables. */
export function checkTable(claim: TableClaim, clusterSize: number, name: string): void {
  const { finding, what, offset, entries, entryBytes, maxBytes } = claim;
  if (entries > maxBytes / entryBytes) {
    throw fault(
      name,
      `${finding}-size`,
      `${what} of ${entries} entries; at most ${Math.floor(maxBytes / entryBytes)} are supported`,
      {
        field: finding,
        value: entries,
        bound: Math.floor(maxBytes / entryBytes),
      },
      'TOO_LARGE',
    );
  }
  if (offset % clusterSize !== 0 || !Number.isSafeInteger(offset + entries * entryBytes)) {
    throw fault(
      name,
      `${finding}-offset`,
      `${what} at ${hex64(offset)} is not a multiple of the cluster size ${hex(clusterSize)} within reach`,
      {
        field: finding,
        value: offset,
        bound: clusterSize,
      },
    );
  }
}

export function checkTables(fixed: FixedFields, geometry: Geometry, name: string, access: HeaderAccess): void {
  const { clusterSize } = geometry;
  if (fixed.refcountTableClusters === 0 && !access.forCheck) {
    throw fault(name, 'refcount-table-missing', 'has no refcount table', {
      ...field('refcountTableClusters'),
      value: 0,
      bound: 1,
    });
  }
  checkTable(
    {
      finding: 'refcount-table',
      what: 'refcount table',
      offset: fixed.refcountTableOffset,
      entries: fixed.refcountTableClusters,
      entryBytes: clusterSize,
      maxBytes: MAX_REFCOUNT_TABLE_BYTES,
    },
    clusterSize,
    name,
  );
  if (!access.forCheck) {
    checkTable(
      {
        finding: 'snapshots',
        what: 'snapshot table',
        offset: fixed.snapshotsOffset,
        entries: fixed.snapshotCount,
        entryBytes: SNAPSHOT_HEADER_BYTES,
        maxBytes: SNAPSHOT_HEADER_BYTES * MAX_SNAPSHOTS,
      },
      clusterSize,
      name,
    );
  }
  checkTable(
    {
      finding: 'l1',
      what: 'L1 table',
      offset: fixed.l1Offset,
      entries: fixed.l1Size,
      entryBytes: TABLE_ENTRY_BYTES,
      maxBytes: MAX_L1_BYTES,
    },
    clusterSize,
    name,
  );
  const needed = l1EntriesFor(geometry, fixed.size);
  if (needed > MAX_L1_INDEX) {
    throw fault(
      name,
      'image-too-big',
      `virtual size ${hex64(fixed.size)} is beyond what clusters of ${hex(clusterSize)} can map`,
      {
        ...field('size'),
        value: fixed.size,
        bound: MAX_L1_INDEX * geometry.l2Coverage,
      },
      'TOO_LARGE',
    );
  }
  if (fixed.l1Size < needed) {
    throw fault(
      name,
      'l1-too-small',
      `L1 table of ${fixed.l1Size} entries; the virtual size ${hex64(fixed.size)} needs ${needed}`,
      {
        ...field('l1Size'),
        value: fixed.l1Size,
        bound: needed,
      },
    );
  }
}

export function checkBackingOffset(fixed: FixedFields, clusterSize: number, name: string): void {
  if (fixed.backingFileOffset > clusterSize) {
    throw fault(
      name,
      'backing-offset',
      `backing file name at ${hex64(fixed.backingFileOffset)} is past the first cluster of ${hex(clusterSize)}`,
      {
        ...field('backingFileOffset'),
        value: fixed.backingFileOffset,
        bound: clusterSize,
      },
    );
  }
}

/** By name. */
export function checkEncryption(fixed: FixedFields, name: string): (typeof ENCRYPTION_METHODS)[number] {
  const encryption = ENCRYPTION_METHODS[fixed.cryptMethod];
  if (encryption === undefined) {
    throw fault(
      name,
      'encryption-method',
      `unknown encryption method ${fixed.cryptMethod}`,
      { ...field('cryptMethod'), value: fixed.cryptMethod },
      'UNSUPPORTED',
    );
  }
  return encryption;
}

export function checkRawDataFile(v3: Version3Fields, name: string, access: HeaderAccess): void {
  if (access.metadataOnly === true) return;
  if ((v3.autoclear & AUTOCLEAR.dataFileRaw) === 0n || (v3.incompatible & INCOMPATIBLE.dataFile) !== 0n) return;
  throw fault(name, 'data-file-raw', 'says that its data file is raw, but has no data file', {
    offset: HEADER_V3_AT + 16,
    value: v3.autoclear,
  });
}

export function decodeBackingName(
  cluster: Uint8Array,
  fixed: FixedFields,
  clusterSize: number,
  name: string,
): Uint8Array | undefined {
  const { backingFileOffset: offset, backingFileSize: length } = fixed;
  if (offset === 0) return undefined;
  const bound = Math.min(MAX_BACKING_NAME_BYTES, clusterSize - offset);
  if (length > bound) {
    throw fault(
      name,
      'backing-name-length',
      `backing file name of ${length} bytes at ${hex(offset)}; at most ${bound} fit`,
      {
        ...field('backingFileSize'),
        value: length,
        bound,
      },
    );
  }
  const raw = cluster.slice(offset, offset + length);
  const end = raw.indexOf(0);
  return end < 0 ? raw : raw.subarray(0, end);
}

export function field(name: keyof typeof HeaderV2.fields): { readonly field: string; readonly offset: number } {
  return { field: name, offset: HeaderV2.fields[name][0] };
}

export function fault(
  name: string,
  finding: string,
  what: string,
  details: ErrorDetails,
  code: ErrorCode = 'CORRUPT',
): BlockError {
  return new BlockError(code, `qcow2 "${name}": ${what}`, { reason: `qcow2.${finding}`, details });
}
