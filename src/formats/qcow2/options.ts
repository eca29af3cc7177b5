/** Open and create options of qcow2, under QEMU's names, and what the open options mean for one image.
 *  Spec: QEMU's `-drive` options of qcow2 and `qemu-img create -f qcow2 -o help`.
 *  Invariant: nothing is applied here; settings are validated whole before any state changes. */
import { BlockError, type ErrorDetails } from '../../base/errors.ts';
import { bool, choice, defineOptions, int, type OptionsOf, size, text } from '../../base/options.ts';
import { KiB, MiB } from '../../base/sizes.ts';
import { alignUp, divCeil, isPowerOfTwo } from '../../bytes/align.ts';
import { COMPATIBLE } from './features.ts';
import { type Geometry, MIN_CLUSTER_BITS } from './geometry.ts';
import type { Qcow2Header } from './header.ts';

/** Versions under QEMU's names. */
const COMPAT_NAMES = { '0.10': 'v2', '1.1': 'v3' } as const;

export const createOptions = defineOptions({
  size: size({ help: 'Virtual disk size' }),
  compat: choice(['v2', 'v3'], {
    default: 'v3',
    synonyms: COMPAT_NAMES,
    help: 'Compatibility level (v2 [0.10] or v3 [1.1])',
    reason: 'qcow2.compat',
  }),
  backingFile: text({ help: 'File name of a base image' }),
  backingFmt: text({ help: 'Image format of the base image' }),
  dataFile: text({ help: 'File name of an external data file' }),
  dataFileRaw: bool({ default: false, help: 'The external data file must stay valid as a raw image' }),
  keepDataFile: bool({
    default: false,
    newer: true,
    help: 'Use the external data file as it is, where there is one, instead of emptying it',
  }),
  extendedL2: bool({ default: false, help: 'Extended L2 tables' }),
  clusterSize: size({ default: 64 * KiB, help: 'qcow2 cluster size' }),
  preallocation: choice(['off', 'metadata', 'falloc', 'full'], {
    default: 'off',
    help: 'Preallocation mode (allowed values: off, metadata, falloc, full)',
    reason: 'qcow2.preallocation',
  }),
  lazyRefcounts: bool({ default: false, help: 'Postpone refcount updates' }),
  refcountBits: int({ default: 16, help: 'Width of a reference count entry in bits' }),
  compressionType: choice(['zlib', 'zstd'], {
    default: 'zlib',
    help: 'Compression method used for image cluster compression',
    reason: 'qcow2.compression-type-option',
  }),
  ...encryptionOptions(),
});

export const amendOptions = defineOptions({
  size: createOptions.size,
  compat: choice(['v2', 'v3'], {
    synonyms: COMPAT_NAMES,
    help: createOptions.compat.help,
    reason: 'qcow2.amend-compat',
  }),
  backingFile: createOptions.backingFile,
  backingFmt: createOptions.backingFmt,
  dataFile: createOptions.dataFile,
  dataFileRaw: bool({ help: createOptions.dataFileRaw.help }),
  lazyRefcounts: bool({ help: createOptions.lazyRefcounts.help }),
  refcountBits: int({ help: createOptions.refcountBits.help }),
  encryptState: text({
    cli: 'encrypt.state',
    help: 'Select new state of affected keyslots (active/inactive)',
  }),
  encryptNewSecret: text({
    cli: 'encrypt.new-secret',
    help: 'New secret to set in the matching keyslots. Empty string to erase',
  }),
  encryptOldSecret: text({
    cli: 'encrypt.old-secret',
    help: 'Select all keyslots that match this password',
  }),
  encryptKeyslot: int({ cli: 'encrypt.keyslot', help: 'Select a single keyslot to modify explicitly' }),
  encryptIterTime: int({ cli: 'encrypt.iter-time', help: 'Time to spend in PBKDF in milliseconds' }),
});

export type Qcow2CreateOptions = OptionsOf<typeof createOptions>;

/** QEMU's encryption options; new-encryption.ts knows what they mean together. */
function encryptionOptions() {
  return {
    encryption: bool({ help: "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)" }),
    encryptFormat: text({ cli: 'encrypt.format', help: "Encrypt the image, format choices: 'aes', 'luks'" }),
    encryptKeySecret: text({
      cli: 'encrypt.key-secret',
      help: 'ID of secret providing qcow AES key or LUKS passphrase',
    }),
    encryptCipherAlg: text({ cli: 'encrypt.cipher-alg', help: 'Name of encryption cipher algorithm' }),
    encryptCipherMode: text({ cli: 'encrypt.cipher-mode', help: 'Name of encryption cipher mode' }),
    encryptIvgenAlg: text({ cli: 'encrypt.ivgen-alg', help: 'Name of IV generator algorithm' }),
    encryptIvgenHashAlg: text({ cli: 'encrypt.ivgen-hash-alg', help: 'Name of IV generator hash algorithm' }),
    encryptHashAlg: text({ cli: 'encrypt.hash-alg', help: 'Name of encryption hash algorithm' }),
    encryptIterTime: int({ cli: 'encrypt.iter-time', help: 'Time to spend in PBKDF in milliseconds' }),
  };
}

/** Bits of `RuntimeSettings.overlapCheck`: which structures a write is checked against. */
export const OVERLAP = {
  mainHeader: 1 << 0,
  activeL1: 1 << 1,
  activeL2: 1 << 2,
  refcountBlock: 1 << 3,
  refcountTable: 1 << 4,
  snapshotTable: 1 << 5,
  inactiveL1: 1 << 6,
  inactiveL2: 1 << 7,
  bitmapDirectory: 1 << 8,
} as const;
export type OverlapKind = keyof typeof OVERLAP;

const CONSTANT =
  OVERLAP.mainHeader | OVERLAP.activeL1 | OVERLAP.refcountTable | OVERLAP.snapshotTable | OVERLAP.bitmapDirectory;
const CACHED = CONSTANT | OVERLAP.activeL2 | OVERLAP.refcountBlock | OVERLAP.inactiveL1;
const TEMPLATES = { none: 0, constant: CONSTANT, cached: CACHED, all: CACHED | OVERLAP.inactiveL2 } as const;
const TEMPLATE_NAMES = ['none', 'constant', 'cached', 'all'] as const;

function overlapSwitch(what: string, name: string) {
  return bool({ cli: `overlap-check.${name}`, help: `Check for unintended writes into ${what}` });
}

export const openOptions = defineOptions({
  lazyRefcounts: bool({ cli: 'lazy-refcounts', help: 'Postpone refcount updates' }),
  passDiscardRequest: bool({
    cli: 'pass-discard-request',
    help: 'Pass guest discard requests to the layer below',
  }),
  passDiscardSnapshot: bool({
    default: true,
    cli: 'pass-discard-snapshot',
    help: 'Generate discard requests when snapshot related space is freed',
  }),
  passDiscardOther: bool({
    default: false,
    cli: 'pass-discard-other',
    help: 'Generate discard requests when other clusters are freed',
  }),
  discardNoUnref: bool({
    default: false,
    cli: 'discard-no-unref',
    help: 'Do not dereference discarded clusters',
  }),
  overlapCheck: choice(TEMPLATE_NAMES, {
    cli: 'overlap-check',
    reason: 'qcow2.overlap-check',
    help: 'Selects which overlap checks to perform from a range of templates (none, constant, cached, all)',
  }),
  overlapCheckTemplate: choice(TEMPLATE_NAMES, {
    cli: 'overlap-check.template',
    reason: 'qcow2.overlap-check',
    help: 'Selects which overlap checks to perform from a range of templates (none, constant, cached, all)',
  }),
  overlapMainHeader: overlapSwitch('the main qcow2 header', 'main-header'),
  overlapActiveL1: overlapSwitch('the active L1 table', 'active-l1'),
  overlapActiveL2: overlapSwitch('an active L2 table', 'active-l2'),
  overlapRefcountTable: overlapSwitch('the refcount table', 'refcount-table'),
  overlapRefcountBlock: overlapSwitch('a refcount block', 'refcount-block'),
  overlapSnapshotTable: overlapSwitch('the snapshot table', 'snapshot-table'),
  overlapInactiveL1: overlapSwitch('any inactive L1 table', 'inactive-l1'),
  overlapInactiveL2: overlapSwitch('any inactive L2 table', 'inactive-l2'),
  overlapBitmapDirectory: overlapSwitch('the bitmap directory', 'bitmap-directory'),
  cacheSize: size({
    cli: 'cache-size',
    help: 'Maximum combined metadata (L2 tables and refcount blocks) cache size',
  }),
  l2CacheSize: size({ cli: 'l2-cache-size', help: 'Maximum L2 table cache size' }),
  l2CacheEntrySize: size({ cli: 'l2-cache-entry-size', help: 'Size of each entry in the L2 cache' }),
  refcountCacheSize: size({ cli: 'refcount-cache-size', help: 'Maximum refcount block cache size' }),
  cacheCleanInterval: int({
    default: 600,
    cli: 'cache-clean-interval',
    help: 'Clean unused cache entries after this time (in seconds)',
  }),
  encryptFormat: text({ cli: 'encrypt.format', help: 'Encryption that the image must have: aes or luks' }),
  encryptKeySecret: text({
    cli: 'encrypt.key-secret',
    content: true,
    help: 'ID of secret providing qcow2 AES key or LUKS passphrase',
  }),
  encryptRoundLimit: int({
    cli: 'encrypt.round-limit',
    help: 'Rounds of PBKDF2 that opening may spend on key slots; 2^30 when not given',
  }),
});

export type Qcow2OpenOptions = OptionsOf<typeof openOptions>;

/** What the open options come to for one image. Sizes in bytes. */
export interface RuntimeSettings {
  readonly lazyRefcounts: boolean;
  /** Whether space freed for that cause is discarded in the file below. */
  readonly passDiscard: { readonly request: boolean; readonly snapshot: boolean; readonly other: boolean };
  /** Clusters that the guest discards or zeroes keep their place in the image. */
  readonly discardNoUnref: boolean;
  /** Union of {@link OVERLAP} bits. */
  readonly overlapCheck: number;
  readonly l2CacheSize: number;
  /** Size of an L2 slice: what one cache entry holds. Power of two, 512 to the cluster size. */
  readonly l2SliceSize: number;
  readonly refcountCacheSize: number;
  /** 0: never. */
  readonly cacheCleanIntervalSeconds: number;
}

const DEFAULT_L2_CACHE_MAX = 32 * MiB;
/** Clusters. */
const MIN_REFCOUNT_CACHE = 4;
/** Slices. */
const MIN_L2_CACHE = 2;
const MAX_CACHE_ENTRIES = 0x7fff_ffff;

/** @param unmap whether guest discards reach this node at all (`discard=unmap`); the default of pass-discard-request
 *  @throws {@link BlockError} OPTION, reasons `qcow2.cache-…`, `qcow2.l2-cache-…`, `qcow2.refcount-cache-…`, `qcow2.lazy-refcounts`,
 *  `qcow2.discard-no-unref`, `qcow2.overlap-check-conflict`. */
export function resolveSettings(
  options: Qcow2OpenOptions,
  header: Qcow2Header,
  geometry: Geometry,
  name: string,
  unmap: boolean,
): RuntimeSettings {
  const caches = resolveCaches(options, header.virtualSize, geometry, name);
  if (options.cacheCleanInterval > 0xffff_ffff) {
    throw optionError(
      name,
      'cache-clean-interval',
      `cache-clean-interval ${options.cacheCleanInterval} exceeds 2^32-1 seconds`,
      {
        value: options.cacheCleanInterval,
      },
    );
  }
  const lazyRefcounts = options.lazyRefcounts ?? (header.compatible & COMPATIBLE.lazyRefcounts) !== 0n;
  if (lazyRefcounts && header.version < 3) {
    throw optionError(name, 'lazy-refcounts', 'lazy-refcounts needs a version 3 image', { version: header.version });
  }
  if (options.discardNoUnref && header.version < 3) {
    throw optionError(name, 'discard-no-unref', 'discard-no-unref needs a version 3 image', {
      version: header.version,
    });
  }
  return {
    ...caches,
    lazyRefcounts,
    discardNoUnref: options.discardNoUnref,
    overlapCheck: resolveOverlap(options, name),
    passDiscard: {
      request: options.passDiscardRequest ?? unmap,
      snapshot: options.passDiscardSnapshot,
      other: options.passDiscardOther,
    },
    cacheCleanIntervalSeconds: options.cacheCleanInterval,
  };
}

type CacheSettings = Pick<RuntimeSettings, 'l2CacheSize' | 'l2SliceSize' | 'refcountCacheSize'>;

/** QEMU's division of memory: the L2 cache gets what covers the whole disk, the refcount cache the rest. */
function resolveCaches(
  options: Qcow2OpenOptions,
  virtualSize: number,
  geometry: Geometry,
  name: string,
): CacheSettings {
  const { clusterSize } = geometry;
  const minRefcountCache = MIN_REFCOUNT_CACHE * clusterSize;
  const wholeL2 = alignUp(divCeil(virtualSize, clusterSize) * geometry.l2EntrySize, clusterSize);
  const { cacheSize, l2CacheSize, refcountCacheSize } = options;
  let l2 = Math.min(wholeL2, l2CacheSize ?? DEFAULT_L2_CACHE_MAX);
  let refcounts = refcountCacheSize ?? 0;
  if (cacheSize !== undefined) {
    const details = { cacheSize, l2CacheSize, refcountCacheSize };
    if (l2CacheSize !== undefined && refcountCacheSize !== undefined) {
      throw optionError(
        name,
        'cache-sizes-all',
        'cache-size, l2-cache-size and refcount-cache-size exclude each other',
        details,
      );
    }
    if (l2CacheSize !== undefined && l2CacheSize > cacheSize) {
      throw optionError(name, 'l2-cache-size', `l2-cache-size ${l2CacheSize} exceeds cache-size ${cacheSize}`, details);
    }
    if (refcounts > cacheSize) {
      throw optionError(
        name,
        'refcount-cache-size',
        `refcount-cache-size ${refcounts} exceeds cache-size ${cacheSize}`,
        details,
      );
    }
    if (l2CacheSize !== undefined) refcounts = cacheSize - l2;
    else if (refcountCacheSize !== undefined) l2 = cacheSize - refcounts;
    else if (cacheSize >= wholeL2 + minRefcountCache) {
      l2 = wholeL2;
      refcounts = cacheSize - l2;
    } else {
      refcounts = Math.min(cacheSize, minRefcountCache);
      l2 = cacheSize - refcounts;
    }
  }
  const l2SliceSize = options.l2CacheEntrySize ?? (l2 < wholeL2 ? Math.min(clusterSize, 4 * KiB) : clusterSize);
  const minSlice = 2 ** MIN_CLUSTER_BITS;
  if (l2SliceSize < minSlice || l2SliceSize > clusterSize || !isPowerOfTwo(l2SliceSize)) {
    throw optionError(
      name,
      'l2-cache-entry-size',
      `l2-cache-entry-size ${l2SliceSize} is not a power of two between ${minSlice} and the cluster size ${clusterSize}`,
      { value: l2SliceSize, bound: [minSlice, clusterSize] },
    );
  }
  if (l2 / l2SliceSize > MAX_CACHE_ENTRIES)
    throw optionError(name, 'l2-cache-too-big', `L2 cache of ${l2} bytes is too big`, { value: l2 });
  if (refcounts / clusterSize > MAX_CACHE_ENTRIES) {
    throw optionError(name, 'refcount-cache-too-big', `refcount cache of ${refcounts} bytes is too big`, {
      value: refcounts,
    });
  }
  return {
    l2CacheSize: Math.max(l2, MIN_L2_CACHE * l2SliceSize),
    l2SliceSize,
    refcountCacheSize: Math.max(refcounts, minRefcountCache),
  };
}

function resolveOverlap(options: Qcow2OpenOptions, name: string): number {
  const { overlapCheck, overlapCheckTemplate } = options;
  if (overlapCheck !== undefined && overlapCheckTemplate !== undefined && overlapCheck !== overlapCheckTemplate) {
    throw optionError(
      name,
      'overlap-check-conflict',
      `overlap-check is '${overlapCheck}', overlap-check.template is '${overlapCheckTemplate}'`,
      { overlapCheck, overlapCheckTemplate },
    );
  }
  let mask: number = TEMPLATES[overlapCheck ?? overlapCheckTemplate ?? 'cached'];
  const switches: Record<OverlapKind, boolean | undefined> = {
    mainHeader: options.overlapMainHeader,
    activeL1: options.overlapActiveL1,
    activeL2: options.overlapActiveL2,
    refcountBlock: options.overlapRefcountBlock,
    refcountTable: options.overlapRefcountTable,
    snapshotTable: options.overlapSnapshotTable,
    inactiveL1: options.overlapInactiveL1,
    inactiveL2: options.overlapInactiveL2,
    bitmapDirectory: options.overlapBitmapDirectory,
  };
  for (const kind of Object.keys(OVERLAP) as OverlapKind[]) {
    if (switches[kind] === true) mask |= OVERLAP[kind];
    else if (switches[kind] === false) mask &= ~OVERLAP[kind];
  }
  return mask;
}

function optionError(name: string, finding: string, what: string, details: ErrorDetails): BlockError {
  return new BlockError('OPTION', `qcow2 "${name}": ${what}`, { reason: `qcow2.${finding}`, details });
}
