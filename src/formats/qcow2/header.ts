/** The qcow2 header: decoding with every bound checked, and rewriting the first cluster.
 *  Spec: qcow2, "Header". Versions 2 (72 bytes) and 3 (104 bytes and more).
 *  Invariants: a decoded header has passed every check below, so what follows may trust its geometry, table offsets and counts;
 *  fields and extensions that this library does not know survive `decode` then `encode`; a header is never changed in place, and
 *  the whole first cluster is written in one write. */
import type { MaybePromise, Pending } from '../../base/async.ts';
import { BlockError, errnoOf, isBlockError } from '../../base/errors.ts';
import { alignDown } from '../../bytes/align.ts';
import type { CompressionType } from '../../codec/codecs.ts';
import type { ByteStore } from '../../core/store.ts';
import {
  type BitmapsPointer,
  type CryptoPointer,
  decodeExtensions,
  encodeExtensions,
  type RawNames,
  type UnknownExtension,
} from './extensions.ts';
import { cString, INCOMPATIBLE } from './features.ts';
import { type Geometry, geometryOf, MAX_CLUSTER_BITS } from './geometry.ts';
import {
  COMPRESSION_TYPES,
  checkBackingOffset,
  checkCompression,
  checkEncryption,
  checkFeatures,
  checkIdentity,
  checkRawDataFile,
  checkTables,
  checkWidths,
  decodeBackingName,
  decodeV3,
  fault,
  type HeaderAccess,
} from './header-checks.ts';
import {
  ENCRYPTION_METHODS,
  HEADER_V3_AT,
  HEADER_V3_LENGTH,
  HeaderV2,
  HeaderV3,
  QCOW2_MAGIC,
} from './header-fields.ts';

/** Clusters up to this size have no room for the feature name table. */
const NO_FEATURE_NAMES_UP_TO = 4096;
/** Read first; larger clusters are read whole afterwards. */
const FIRST_READ = 64 * 1024;

/** A checked header. Offsets and sizes in bytes. */
export interface Qcow2Header {
  readonly version: 2 | 3;
  readonly clusterBits: number;
  /** Multiple of 512; a recorded size that is none is cut. */
  readonly virtualSize: number;
  readonly encryption: (typeof ENCRYPTION_METHODS)[number];
  /** L1 entries, not bytes. */
  readonly l1Size: number;
  readonly l1Offset: number;
  readonly refcountTableOffset: number;
  readonly refcountTableClusters: number;
  readonly snapshotCount: number;
  readonly snapshotsOffset: number;
  readonly incompatible: bigint;
  readonly compatible: bigint;
  readonly autoclear: bigint;
  readonly refcountOrder: number;
  readonly compressionType: CompressionType;
  /** Header fields after byte 112. */
  readonly unknownTail: Uint8Array;
  readonly backingFile: string | undefined;
  readonly backingFormat: string | undefined;
  /** Name of the external data file as recorded: a plain file name, whatever it looks like. */
  readonly dataFile: string | undefined;
  readonly crypto: CryptoPointer | undefined;
  readonly bitmaps: BitmapsPointer | undefined;
  readonly staleBitmaps: boolean;
  readonly unknownExtensions: readonly UnknownExtension[];
  readonly rawNames: RawNames;
}

export function hasDataFile(header: Qcow2Header): boolean {
  return (header.incompatible & INCOMPATIBLE.dataFile) !== 0n;
}

export function headerGeometry(header: Qcow2Header): Geometry {
  return geometryOf({
    clusterBits: header.clusterBits,
    extendedL2: (header.incompatible & INCOMPATIBLE.extendedL2) !== 0n,
    refcountOrder: header.refcountOrder,
  });
}

// ---- reading ---------------------------------------------------------------------------------------------------------------------

/** Reads and checks the header of `file`; reads one cluster at most.
 *  @throws {@link BlockError} WRONG_FORMAT, UNSUPPORTED, CORRUPT, TOO_LARGE, ACCESS: see `decodeHeader`; what the file throws, as the cause of
 *  reason `qcow2.header-read`. */
export function readHeader(file: ByteStore, name: string, access: HeaderAccess): MaybePromise<Qcow2Header> {
  const head = new Uint8Array(FIRST_READ);
  const reading = readFirst(file, head, name);
  if (reading !== undefined) return reading.then(() => readRest(file, head, name, access));
  return readRest(file, head, name, access);
}

function readFirst(file: ByteStore, into: Uint8Array, name: string): Pending {
  try {
    return file.read(0, into)?.catch((error: unknown) => {
      throw unreadable(error, name);
    });
  } catch (error) {
    throw unreadable(error, name);
  }
}

function unreadable(error: unknown, name: string): unknown {
  if (!isBlockError(error) || error.code === 'ABORTED' || error.code === 'INTERNAL' || error.code === 'CLOSED')
    return error;
  return new BlockError(error.code, `qcow2 "${name}": the header cannot be read: ${error.message}`, {
    reason: 'qcow2.header-read',
    details: { errno: errnoOf(error) },
    cause: error,
  });
}

function readRest(file: ByteStore, head: Uint8Array, name: string, access: HeaderAccess): MaybePromise<Qcow2Header> {
  const { clusterBits } = HeaderV2.decode(head);
  if (clusterBits > MAX_CLUSTER_BITS || 2 ** clusterBits <= head.length) return decodeHeader(head, name, access);
  const cluster = new Uint8Array(2 ** clusterBits);
  const reading = readFirst(file, cluster, name);
  if (reading !== undefined) return reading.then(() => decodeHeader(cluster, name, access));
  return decodeHeader(cluster, name, access);
}

/** Decodes the first cluster of an image (`cluster` may be longer, and is zero past the end of the file).
 *  @throws {@link BlockError} with reason `qcow2.…` for every value out of bounds; `details` holds `field`, `value`, `bound`, `offset`. */
export function decodeHeader(cluster: Uint8Array, name: string, access: HeaderAccess): Qcow2Header {
  const fixed = HeaderV2.decode(cluster);
  checkIdentity(fixed, name);
  const clusterSize = 2 ** fixed.clusterBits;
  const v3 = decodeV3(cluster, fixed.version, clusterSize, name);
  checkBackingOffset(fixed, clusterSize, name);
  const extensionsEnd = fixed.backingFileOffset === 0 ? clusterSize : fixed.backingFileOffset;
  const compressionType = checkCompression(v3, name);
  checkFeatures(v3, cluster, extensionsEnd, name, access);
  const extendedL2 = (v3.incompatible & INCOMPATIBLE.extendedL2) !== 0n;
  checkWidths(v3.refcountOrder, clusterSize, extendedL2, name);
  const geometry = geometryOf({ clusterBits: fixed.clusterBits, extendedL2, refcountOrder: v3.refcountOrder });
  checkTables(fixed, geometry, name, access);
  const encryption = checkEncryption(fixed, name);
  const { unknown, rawNames, ...extensions } = decodeExtensions(cluster, v3.headerLength, extensionsEnd, {
    name,
    autoclear: v3.autoclear,
    luks: encryption === 'luks',
    clusterSize,
  });
  checkRawDataFile(v3, name, access);
  const backing = decodeBackingName(cluster, fixed, clusterSize, name);
  return {
    version: fixed.version as 2 | 3,
    clusterBits: fixed.clusterBits,
    virtualSize: alignDown(fixed.size, 512),
    encryption,
    l1Size: fixed.l1Size,
    l1Offset: fixed.l1Offset,
    refcountTableOffset: fixed.refcountTableOffset,
    refcountTableClusters: fixed.refcountTableClusters,
    snapshotCount: fixed.snapshotCount,
    snapshotsOffset: fixed.snapshotsOffset,
    incompatible: v3.incompatible,
    compatible: v3.compatible,
    autoclear: v3.autoclear,
    refcountOrder: v3.refcountOrder,
    compressionType,
    unknownTail: cluster.slice(HEADER_V3_LENGTH, Math.max(HEADER_V3_LENGTH, v3.headerLength)),
    ...extensions,
    unknownExtensions: unknown,
    backingFile: backing === undefined ? undefined : cString(backing) || undefined,
    rawNames: backing === undefined ? rawNames : { ...rawNames, backingFile: backing },
  };
}

// ---- writing ---------------------------------------------------------------------------------------------------------------------

/** The whole first cluster for `header`, zero where nothing is.
 *  @throws {@link BlockError} NO_SPACE, reason `qcow2.header-space`, when names and extensions do not fit into the cluster. */
export function encodeHeader(header: Qcow2Header, name: string): Uint8Array {
  const cluster = new Uint8Array(2 ** header.clusterBits);
  const v3 = header.version >= 3;
  const fixedLength = v3 ? HEADER_V3_LENGTH : HEADER_V3_AT;
  const tail = v3 ? header.unknownTail : new Uint8Array(0);
  const extensionsAt = fixedLength + tail.length;
  const after =
    extensionsAt > cluster.length
      ? undefined
      : encodeExtensions(
          {
            backingFormat: rawName(header.backingFormat, header.rawNames.backingFormat),
            dataFile: hasDataFile(header) ? rawName(header.dataFile, header.rawNames.dataFile) : undefined,
            crypto: header.crypto,
            featureNames: v3 && cluster.length > NO_FEATURE_NAMES_UP_TO,
            bitmaps: header.bitmaps,
            unknown: header.unknownExtensions,
          },
          cluster,
          extensionsAt,
        );
  const backing = rawName(header.backingFile, header.rawNames.backingFile);
  if (after === undefined || (backing !== undefined && after + backing.length > cluster.length)) {
    throw fault(
      name,
      'header-space',
      `names and extensions do not fit into the first cluster of ${cluster.length} bytes`,
      { bound: cluster.length },
      'NO_SPACE',
    );
  }
  cluster.set(tail, fixedLength);
  if (backing !== undefined) cluster.set(backing, after);
  HeaderV2.encode(
    {
      magic: QCOW2_MAGIC,
      version: header.version,
      backingFileOffset: backing === undefined ? 0 : after,
      backingFileSize: backing?.length ?? 0,
      clusterBits: header.clusterBits,
      size: header.virtualSize,
      cryptMethod: ENCRYPTION_METHODS.indexOf(header.encryption),
      l1Size: header.l1Size,
      l1Offset: header.l1Offset,
      refcountTableOffset: header.refcountTableOffset,
      refcountTableClusters: header.refcountTableClusters,
      snapshotCount: header.snapshotCount,
      snapshotsOffset: header.snapshotsOffset,
    },
    cluster,
  );
  if (v3) {
    HeaderV3.encode(
      {
        incompatible: header.incompatible,
        compatible: header.compatible,
        autoclear: header.autoclear,
        refcountOrder: header.refcountOrder,
        headerLength: extensionsAt,
        compressionType: COMPRESSION_TYPES.indexOf(header.compressionType),
        padding: undefined,
      },
      cluster,
      HEADER_V3_AT,
    );
  }
  return cluster;
}

/** Writes the first cluster in one request; the caller flushes. */
export function writeHeader(file: ByteStore, header: Qcow2Header, name: string): Pending {
  return file.write(0, encodeHeader(header, name));
}

/** Writes the incompatible feature bits alone: how an image is marked dirty or corrupt without touching anything else. Version 3. */
export function writeIncompatible(file: ByteStore, incompatible: bigint): Pending {
  const word = new Uint8Array(8);
  new DataView(word.buffer).setBigUint64(0, incompatible);
  return file.write(HEADER_V3_AT, word);
}

const encoder = new TextEncoder();

/** The bytes of a name: those read where the text is still what they say. */
function rawName(text: string | undefined, raw: Uint8Array | undefined): Uint8Array | undefined {
  if (text === undefined) return undefined;
  return raw !== undefined && cString(raw) === text ? raw : encoder.encode(text);
}
