/** The create options of qcow2 as a space of cases: which values, which combinations QEMU refuses, what sizes they mean. */
import type { Combination, Rule } from './pairs.ts';

export const KiB = 1024;
export const MiB = 1024 * KiB;
export const TiB = 1024 * 1024 * MiB;

export const DIMENSIONS = {
  compat: ['v3', 'v2'],
  clusterSize: [512, 1024, 4096, 8192, 16384, 65536, 262144, 1048576, 2097152],
  refcountBits: [16, 1, 2, 4, 8, 32, 64],
  lazyRefcounts: [false, true],
  extendedL2: [false, true],
  compressionType: ['zlib', 'zstd'],
  preallocation: ['off', 'metadata', 'falloc', 'full'],
  dataFile: ['none', 'plain', 'raw'],
  backing: ['none', 'raw-shorter', 'raw-longer', 'raw-equal', 'qcow2-shorter', 'qcow2-longer', 'qcow2-equal'],
  size: ['odd', 'whole', 'zero', 'sector', 'huge'],
  fill: ['writes', 'zeroes', 'discards', 'compressed', 'converted'],
} as const;

export type Case = Combination<typeof DIMENSIONS>;

/** What QEMU creates, and what a file system can hold. */
export const isAllowed: Rule<typeof DIMENSIONS> = (it) => {
  const { compat, clusterSize, refcountBits, extendedL2, preallocation, dataFile, backing, size, fill } = it;
  const has = (value: string | undefined, none: string): boolean => value !== undefined && value !== none;
  const old =
    (refcountBits !== undefined && refcountBits !== 16) ||
    it.lazyRefcounts === true ||
    extendedL2 === true ||
    it.compressionType === 'zstd' ||
    has(dataFile, 'none');
  if (compat === 'v2' && old) return false;
  if (extendedL2 === true && clusterSize !== undefined && clusterSize < 16384) return false;
  if (has(backing, 'none')) {
    if (dataFile === 'raw' || (extendedL2 === false && has(preallocation, 'off'))) return false;
    if (backing?.endsWith('-shorter') && (size === 'zero' || size === 'sector')) return false;
    // a raw file of that size is more than most file systems take
    if (size === 'huge' && (backing === 'raw-longer' || backing === 'raw-equal')) return false;
  }
  // metadata of many terabytes, and a data file larger than a file may be
  if (size === 'huge' && (has(preallocation, 'off') || has(dataFile, 'none'))) return false;
  // QEMU compresses into clusters that have no place yet, and never into a data file
  if (fill === 'compressed' || fill === 'converted') {
    if (has(dataFile, 'none') || has(preallocation, 'off')) return false;
  }
  return !(fill === 'converted' && (has(backing, 'none') || size === 'huge' || size === 'zero'));
};

/** Virtual size asked for, bytes. */
export function sizeOf({ clusterSize, extendedL2, size }: Case): number {
  const clusters = clusterSize <= 1024 ? 150 : clusterSize <= 4096 ? 40 : clusterSize <= 65536 ? 12 : 3;
  switch (size) {
    case 'zero':
      return 0;
    case 'sector':
      return 512;
    case 'whole':
      return clusters * clusterSize;
    case 'odd':
      return clusters * clusterSize + Math.ceil(clusterSize / 3) + 77;
    case 'huge': {
      const coverage = (clusterSize / (extendedL2 ? 16 : 8)) * clusterSize;
      return Math.min(64 * TiB, 65536 * coverage) + 5 * 512;
    }
  }
}

/** Size of the backing file, bytes; 0 for none. */
export function backingSizeOf(it: Case): number {
  const size = Math.ceil(sizeOf(it) / 512) * 512;
  if (it.backing === 'none') return 0;
  if (it.backing.endsWith('-equal')) return size;
  if (it.backing.endsWith('-longer')) return size + it.clusterSize + 5 * 512;
  // raw files end anywhere
  const shorter = Math.floor(Math.min(size, 40 * it.clusterSize) / 2);
  return it.backing.startsWith('raw') ? shorter + 3 : Math.floor(shorter / 512) * 512;
}

/** Guest ranges that something happens in: all of a small disk, the interesting parts of a huge one. */
export function windowsOf(it: Case): (readonly [start: number, end: number])[] {
  const { clusterSize, extendedL2 } = it;
  const size = Math.ceil(sizeOf(it) / 512) * 512;
  if (it.size !== 'huge') return size === 0 ? [] : [[0, size]];
  const coverage = (clusterSize / (extendedL2 ? 16 : 8)) * clusterSize;
  const span = Math.max(2 * clusterSize, 64 * KiB);
  const middle = coverage * Math.floor(size / coverage / 2);
  return [
    [0, 2 * span],
    [middle - span, middle + span],
    [size - span, size],
  ];
}

/** As `qemu-img create -o` takes them. */
export function optionString(it: Case, names: { readonly data: string; readonly backing: string }): string {
  const options = [`compat=${it.compat}`, `cluster_size=${it.clusterSize}`, `preallocation=${it.preallocation}`];
  if (it.compat === 'v3') {
    options.push(`refcount_bits=${it.refcountBits}`, `lazy_refcounts=${it.lazyRefcounts ? 'on' : 'off'}`);
    options.push(`extended_l2=${it.extendedL2 ? 'on' : 'off'}`, `compression_type=${it.compressionType}`);
  }
  if (it.dataFile !== 'none') {
    options.push(`data_file=${names.data}`, `data_file_raw=${it.dataFile === 'raw' ? 'on' : 'off'}`);
  }
  if (it.backing !== 'none') options.push(`backing_file=${names.backing}`, `backing_fmt=${backingFormat(it)}`);
  return options.join(',');
}

/** As `createImage` takes them. */
export function optionObject(it: Case, names: { readonly data: string }): Record<string, unknown> {
  const { compat, clusterSize, preallocation, refcountBits, lazyRefcounts, extendedL2, compressionType } = it;
  return {
    compat,
    clusterSize,
    preallocation,
    ...(compat === 'v3' ? { refcountBits, lazyRefcounts, extendedL2, compressionType } : {}),
    ...(it.dataFile === 'none' ? {} : { dataFile: names.data, dataFileRaw: it.dataFile === 'raw' }),
  };
}

export function backingFormat(it: Case): 'raw' | 'qcow2' {
  return it.backing.startsWith('raw') ? 'raw' : 'qcow2';
}

/** For test names. */
export function caseName(it: Case): string {
  const parts = [it.compat, `clusters of ${it.clusterSize}`, `size ${it.size}`, it.fill];
  if (it.refcountBits !== 16) parts.push(`${it.refcountBits}-bit refcounts`);
  if (it.lazyRefcounts) parts.push('lazy refcounts');
  if (it.extendedL2) parts.push('extended L2');
  if (it.compressionType !== 'zlib') parts.push(it.compressionType);
  if (it.preallocation !== 'off') parts.push(`preallocation ${it.preallocation}`);
  if (it.dataFile !== 'none') parts.push(`${it.dataFile} data file`);
  if (it.backing !== 'none') parts.push(`backing ${it.backing}`);
  return parts.join(', ');
}
