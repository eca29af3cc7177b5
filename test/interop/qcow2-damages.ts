/** Damaged qcow2 images: how each is made, what the real qemu-img says of it and does to it, and what ours does. */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { ERRNO_TEXT, errnoOf, isBlockError } from '../../src/base/errors.ts';
import type { CheckFinding, CheckFix, CheckResult } from '../../src/core/format.ts';
import { checkImageTables } from '../../src/formats/qcow2/check.ts';
import { readHeader } from '../../src/formats/qcow2/header.ts';
import { bytesOf, qemuImg, qemuIo, run, storeOf } from '../formats/qcow2/support.ts';

export const COPIED = 1n << 63n;
export const COMPRESSED = 1n << 62n;

export interface Outcome {
  readonly status: number;
  /** As `--output=json`; `undefined` when the check could not be finished. */
  readonly counters: Record<string, number> | undefined;
  readonly lines: readonly string[];
}

/** What qemu-img says of the image, and does to it. */
export function theirCheck(directory: string, image: string, fix: CheckFix): Outcome {
  const args = ['check', '-f', 'qcow2', '--output=json', ...(fix === 'none' ? [] : ['-r', fix]), image];
  const { status, stdout, stderr } = run('qemu-img', args, directory);
  const {
    filename: _filename,
    format: _format,
    ...counters
  } = (stdout === '' ? {} : JSON.parse(stdout)) as Record<string, number>;
  return {
    status: status ?? -1,
    counters: stdout === '' ? undefined : counters,
    lines: stderr.split('\n').filter((line) => line !== ''),
  };
}

/** What the program would say of the image, and does to it.
 *  @param gentle repairs no more than qemu-img */
export async function ourCheck(path: string, fix: CheckFix, gentle = false): Promise<Outcome> {
  const store = await storeOf(readFileSync(path));
  const lines: string[] = [];
  const onFinding = ({ message, details }: CheckFinding) => {
    if (details?.['silent'] !== true) lines.push((details?.['reported'] === true ? 'qemu-img: ' : '') + message);
  };
  const look = async (how: CheckFix) => {
    const header = await readHeader(store, 'test', { readOnly: how === 'none', forCheck: true });
    return await checkImageTables({ file: store, header, name: 'test', gentle }, { fix: how, onFinding });
  };
  try {
    let result = await look(fix);
    const { corruptionsFixed, leaksFixed } = result;
    if (corruptionsFixed > 0 || leaksFixed > 0) result = { ...(await look('none')), corruptionsFixed, leaksFixed };
    if (result.checkErrors > 0) lines.push('qemu-img: Check failed');
    return { status: exitStatus(result), counters: countersOf(result), lines };
  } catch (error) {
    if (!isBlockError(error) || error.reason !== 'qcow2.check-failed') throw error;
    lines.push(`qemu-img: Check failed: ${ERRNO_TEXT[errnoOf(error)]}`);
    return { status: 1, counters: undefined, lines };
  } finally {
    writeFileSync(path, await bytesOf(store));
  }
}

function exitStatus(result: CheckResult): number {
  return result.checkErrors > 0 ? 1 : result.corruptions > 0 ? 2 : result.leaks > 0 ? 3 : 0;
}

function countersOf(result: CheckResult): Record<string, number> {
  const named: Record<string, number | undefined> = {
    'image-end-offset': result.imageEndOffset,
    'total-clusters': result.totalClusters,
    'allocated-clusters': result.allocatedClusters,
    'fragmented-clusters': result.fragmentedClusters,
    'compressed-clusters': result.compressedClusters,
    corruptions: result.corruptions,
    leaks: result.leaks,
    'corruptions-fixed': result.corruptionsFixed,
    'leaks-fixed': result.leaksFixed,
  };
  const shown = Object.entries(named).filter(([, value]) => value !== undefined && value !== 0);
  return { ...(Object.fromEntries(shown) as Record<string, number>), 'check-errors': result.checkErrors };
}

/** An image as bytes, with the places that damage is done to. */
export class Patient {
  bytes: Buffer;
  readonly clusterSize: number;

  constructor(bytes: Buffer) {
    this.bytes = bytes;
    this.clusterSize = 2 ** bytes.readUInt32BE(20);
  }

  u64(at: number): bigint {
    return this.bytes.readBigUInt64BE(at);
  }

  setU64(at: number, value: bigint | number): void {
    this.bytes.writeBigUInt64BE(BigInt(value), at);
  }

  get l1(): number {
    return Number(this.u64(40));
  }

  get refcountTable(): number {
    return Number(this.u64(48));
  }

  get refcountBlock(): number {
    return Number(this.u64(this.refcountTable));
  }

  get snapshots(): number {
    return Number(this.u64(64));
  }

  /** Place of L2 entry `index`, in the first L2 table. */
  l2(index: number): number {
    const table = Number(this.u64(this.l1) & 0x00ff_ffff_ffff_fe00n);
    return table + index * ((this.u64(72) & 16n) === 0n || this.bytes.readUInt32BE(4) === 2 ? 8 : 16);
  }

  entry(index: number): bigint {
    return this.u64(this.l2(index));
  }

  setEntry(index: number, value: bigint): void {
    this.setU64(this.l2(index), value);
  }

  /** Host cluster of guest cluster `index`. */
  clusterOf(index: number): number {
    return Number(this.entry(index) & 0x00ff_ffff_ffff_fe00n) / this.clusterSize;
  }

  /** Cuts the file off. */
  truncate(length: number): void {
    this.bytes = this.bytes.subarray(0, length);
  }

  /** Offset of the bitmap directory: the extension is the one with that magic. */
  get bitmaps(): { readonly extension: number; readonly directory: number } {
    const extension = this.bytes.indexOf(Buffer.from('2385287500000018', 'hex')) + 8;
    return { extension, directory: Number(this.u64(extension + 16)) };
  }

  /** Host offset of the L1 table of the first snapshot. */
  get snapshotL1(): number {
    return Number(this.u64(this.snapshots));
  }

  setRefcount(cluster: number, value: number): void {
    this.bytes.writeUInt16BE(value, this.refcountBlock + cluster * 2);
  }
}

export interface Damage {
  readonly name: string;
  /** Options and size of `qemu-img create`. */
  readonly create: readonly string[];
  /** qemu-io commands, or `snapshot NAME`, `bitmap NAME`. */
  readonly fill: readonly string[];
  damage(image: Patient): void;
  readonly fixes?: readonly CheckFix[];
  /** qemu-img gives up on `-r all`; here it is repaired. */
  readonly qemuGivesUp?: boolean;
  /** What the disk reads as while it is damaged means nothing: it is another structure's bytes. */
  readonly garbage?: boolean;
  /** Names of the snapshots after the repair, where they are not those of before. */
  readonly snapshotsAfter?: readonly string[];
  /** Snapshots whose content is damaged, too. */
  readonly snapshotsHurt?: readonly string[];
  /** Only for the repair that goes beyond qemu-img's: there its check does not say the same, or has no end. */
  readonly repairOnly?: boolean;
}

const WRITTEN = ['write -P 1 0 256k', 'write -P 2 512k 64k', 'write -z 640k 64k'];
const plain = { create: ['1M'], fill: WRITTEN } as const;
const small = { create: ['-o', 'cluster_size=512', '64k'], fill: ['write -P 1 0 8k', 'write -P 1 40k 1k'] } as const;
const extended = { create: ['-o', 'extended_l2=on', '1M'], fill: ['write -P 1 0 256k', 'write -P 3 520k 3k'] } as const;
const shared = {
  create: ['1M'],
  fill: ['write -P 1 0 256k', 'snapshot one', 'write -P 2 0 64k', 'snapshot two'],
} as const;
const compressed = { create: ['1M'], fill: ['write -c -P 1 0 256k', 'write -P 2 512k 64k'] } as const;
const backed = {
  create: ['-o', 'compat=0.10', '-b', 'base.raw', '-F', 'raw', '1M'],
  fill: ['write -P 1 0 256k', 'write -P 2 512k 64k'],
} as const;
const narrow = { create: ['-o', 'refcount_bits=1', '1M'], fill: WRITTEN } as const;
const bitmaps = { create: ['1M'], fill: ['bitmap b0', 'write -P 5 0 64k', 'bitmap b1'] } as const;
const external = { create: ['-o', 'data_file=DATA', '1M'], fill: WRITTEN } as const;

export const DAMAGES: readonly Damage[] = [
  { name: 'nothing', ...plain, damage: () => undefined },
  { name: 'nothing, small clusters', ...small, damage: () => undefined },
  { name: 'nothing, extended L2', ...extended, damage: () => undefined },
  { name: 'nothing, snapshots', ...shared, damage: () => undefined },
  { name: 'nothing, compressed', ...compressed, damage: () => undefined },
  { name: 'nothing, external data file', ...external, damage: () => undefined },
  {
    name: 'nothing, version 2',
    create: ['-o', 'compat=0.10', '1M'],
    fill: WRITTEN.slice(0, 2),
    damage: () => undefined,
  },
  {
    name: 'nothing, bitmaps',
    create: ['1M'],
    fill: ['bitmap b0', 'write 0 64k', 'bitmap b1'],
    damage: () => undefined,
    // a writable open stores the bitmaps anew, elsewhere
    fixes: ['none'],
  },
  { name: 'a leaked cluster', ...plain, damage: (image) => image.setRefcount(image.clusterOf(8) + 1, 1) },
  { name: 'leaked clusters past the end of the file', ...plain, damage: (image) => image.setRefcount(40, 1) },
  { name: 'a refcount that is too high', ...plain, damage: (image) => image.setRefcount(image.clusterOf(0), 7) },
  { name: 'a refcount of 0', ...plain, damage: (image) => image.setRefcount(image.clusterOf(1), 0) },
  { name: 'a header with refcount 0', ...plain, damage: (image) => image.setRefcount(0, 0) },
  {
    name: 'a refcount that is too low',
    ...shared,
    damage: (image) => image.setRefcount(image.clusterOf(2), 1),
  },
  { name: 'a COPIED flag missing in L2', ...plain, damage: (image) => image.setEntry(1, image.entry(1) & ~COPIED) },
  {
    name: 'a COPIED flag missing in L1',
    ...plain,
    damage: (image) => image.setU64(image.l1, image.u64(image.l1) & ~COPIED),
  },
  { name: 'a COPIED flag too many', ...shared, damage: (image) => image.setEntry(2, image.entry(2) | COPIED) },
  {
    name: 'both COPIED flags missing and a leak',
    ...plain,
    damage: (image) => {
      image.setU64(image.l1, image.u64(image.l1) & ~COPIED);
      image.setEntry(3, image.entry(3) & ~COPIED);
      image.setRefcount(20, 3);
    },
  },
  { name: 'an unaligned data cluster', ...plain, damage: (image) => image.setEntry(1, image.entry(1) + 512n) },
  {
    name: 'an unaligned preallocated cluster',
    ...plain,
    damage: (image) => image.setEntry(1, (image.entry(1) + 512n) | 1n),
  },
  { name: 'an unaligned L2 table', ...plain, damage: (image) => image.setU64(image.l1, image.u64(image.l1) + 512n) },
  {
    name: 'reserved bits in L1',
    ...plain,
    damage: (image) => image.setU64(image.l1, image.u64(image.l1) | (1n << 60n) | 4n),
  },
  { name: 'reserved bits in L2', ...plain, damage: (image) => image.setEntry(1, image.entry(1) | (1n << 57n) | 8n) },
  { name: 'a reserved bit in an unallocated L2 entry', ...plain, damage: (image) => image.setEntry(7, 2n) },
  { name: 'a zero flag on an allocated cluster', ...plain, damage: (image) => image.setEntry(1, image.entry(1) | 1n) },
  { name: 'a cluster past the end of the file', ...plain, damage: (image) => image.setEntry(1, COPIED | 0x1000_0000n) },
  { name: 'a cluster beyond 2^53', ...plain, damage: (image) => image.setEntry(1, COPIED | (1n << 55n)) },
  {
    name: 'an L2 table past the end of the file',
    ...plain,
    damage: (image) => image.setU64(image.l1, COPIED | 0x1000_0000n),
  },
  { name: 'an L2 table beyond 2^53', ...plain, damage: (image) => image.setU64(image.l1, COPIED | (1n << 54n)) },
  { name: 'two guest clusters on one host cluster', ...plain, damage: (image) => image.setEntry(1, image.entry(0)) },
  {
    name: 'a guest cluster on the L1 table',
    ...plain,
    damage: (image) => image.setEntry(1, COPIED | BigInt(image.l1)),
  },
  {
    name: 'a guest cluster on the refcount block',
    ...plain,
    damage: (image) => image.setEntry(1, COPIED | BigInt(image.refcountBlock)),
  },
  {
    name: 'a guest cluster on the header',
    ...small,
    damage: (image) => image.setEntry(1, COPIED | BigInt(image.refcountTable)),
  },
  {
    name: 'a compressed cluster with COPIED',
    ...compressed,
    damage: (image) => image.setEntry(1, image.entry(1) | COPIED),
  },
  {
    name: 'a compressed cluster past the end of the file',
    ...compressed,
    damage: (image) => image.setEntry(1, COMPRESSED | (1n << 54n) | 0x2000_0123n),
  },
  {
    name: 'a compressed cluster in a data file image',
    ...external,
    damage: (image) => image.setEntry(1, COMPRESSED | 0x50000n),
  },
  {
    name: 'a data file cluster without COPIED',
    ...external,
    damage: (image) => image.setEntry(1, image.entry(1) & ~COPIED),
  },
  {
    name: 'subclusters both allocated and zero',
    ...extended,
    damage: (image) => image.setU64(image.l2(0) + 8, 0x0000_00ff_ffff_ffffn),
  },
  {
    name: 'subclusters allocated without a cluster',
    ...extended,
    damage: (image) => image.setU64(image.l2(12) + 8, 1n),
  },
  {
    name: 'a compressed cluster with subclusters',
    create: ['-o', 'extended_l2=on', '1M'],
    fill: ['write -c -P 1 0 64k', 'write -P 3 520k 3k'],
    damage: (image) => image.setU64(image.l2(0) + 8, 5n),
  },
  {
    name: 'an unaligned cluster without allocated subclusters',
    ...extended,
    damage: (image) => {
      image.setEntry(0, image.entry(0) + 1024n);
      image.setU64(image.l2(0) + 8, 0x0000_0003_0000_0000n);
    },
  },
  {
    qemuGivesUp: true,
    name: 'an unaligned refcount block',
    ...plain,
    damage: (image) => image.setU64(image.refcountTable, image.refcountBlock + 4096),
  },
  {
    qemuGivesUp: true,
    name: 'reserved bits in the refcount table',
    ...plain,
    damage: (image) => image.setU64(image.refcountTable, image.refcountBlock + 8),
  },
  {
    name: 'a refcount block past the end of the file',
    ...plain,
    damage: (image) => image.setU64(image.refcountTable, 0x200000),
  },
  {
    name: 'a second refcount block past the end of the file',
    ...plain,
    damage: (image) => image.setU64(image.refcountTable + 8, 0x200000),
  },
  {
    name: 'one refcount block for two ranges',
    ...plain,
    damage: (image) => image.setU64(image.refcountTable + 8, image.refcountBlock),
  },
  {
    name: 'a refcount block on the L1 table',
    ...plain,
    damage: (image) => image.setU64(image.refcountTable, image.l1),
  },
  { name: 'an empty refcount table', ...plain, damage: (image) => image.setU64(image.refcountTable, 0) },
  { name: 'no refcount table', ...plain, damage: (image) => image.bytes.writeUInt32BE(0, 56) },
  {
    name: 'an empty refcount table, small clusters',
    ...small,
    damage: (image) => image.setU64(image.refcountTable, 0),
  },
  {
    name: 'the dirty bit',
    create: ['-o', 'lazy_refcounts=on', '1M'],
    fill: WRITTEN,
    damage: (image) => image.setU64(72, image.u64(72) | 1n),
  },
  { name: 'the corrupt bit', ...plain, damage: (image) => image.setU64(72, image.u64(72) | 2n) },
  {
    name: 'the corrupt bit and a COPIED flag missing',
    ...plain,
    damage: (image) => {
      image.setU64(72, image.u64(72) | 2n);
      image.setEntry(1, image.entry(1) & ~COPIED);
    },
  },
  {
    name: 'a snapshot with an unaligned L1 table',
    ...shared,
    damage: (image) => image.setU64(image.snapshots, image.u64(image.snapshots) + 512n),
  },
  {
    name: 'a snapshot with a huge L1 table',
    ...shared,
    damage: (image) => image.bytes.writeUInt32BE(0x0080_0000, image.snapshots + 8),
  },
  {
    name: 'a snapshot with too much extra data',
    ...shared,
    // one name is read from behind it, and nothing else
    snapshotsAfter: [''],
    damage: (image) => image.bytes.writeUInt32BE(2000, image.snapshots + 36),
  },
  {
    name: 'a snapshot without the extra data of version 3',
    ...shared,
    damage: (image) => {
      // id and name move into what was extra data
      const at = image.snapshots;
      const names = Buffer.from(image.bytes.subarray(at + 40 + 24, at + 40 + 24 + 4));
      const second = Buffer.from(image.bytes.subarray(at + 72, at + 72 + 72));
      image.bytes.fill(0, at + 40);
      image.bytes.writeUInt32BE(0, at + 36);
      names.copy(image.bytes, at + 40);
      second.copy(image.bytes, at + 48);
    },
  },
  { name: 'an unaligned snapshot table', ...shared, damage: (image) => image.setU64(64, image.snapshots + 8) },
  { qemuGivesUp: true, name: 'too many snapshots', ...shared, damage: (image) => image.bytes.writeUInt32BE(70000, 60) },
  {
    name: 'snapshots in an image with a data file',
    ...external,
    damage: (image) => {
      image.bytes.writeUInt32BE(1, 60);
      image.setU64(64, image.refcountTable + image.clusterSize / 2);
    },
  },
  {
    name: 'a truncated file',
    ...plain,
    damage: (image) => image.bytes.fill(0, image.clusterOf(8) * image.clusterSize),
  },
  {
    name: 'many things at once',
    ...shared,
    damage: (image) => {
      image.setRefcount(30, 2);
      image.setRefcount(image.clusterOf(0), 5);
      image.setRefcount(image.clusterOf(3), 1);
      image.setEntry(1, image.entry(1) ^ COPIED);
      image.setU64(image.l1, image.u64(image.l1) ^ COPIED);
      image.setEntry(9, 0x40n);
    },
  },
  {
    name: 'two L2 tables in one cluster',
    ...small,
    damage: (image) => image.setU64(image.l1 + 8, image.u64(image.l1)),
    garbage: true,
  },
  {
    name: 'an L2 table on the L1 table',
    ...small,
    damage: (image) => image.setU64(image.l1 + 8, COPIED | BigInt(image.l1)),
    garbage: true,
    repairOnly: true,
  },
  {
    name: 'an L2 table on the refcount table',
    ...small,
    damage: (image) => image.setU64(image.l1 + 8, COPIED | BigInt(image.refcountTable)),
    garbage: true,
    repairOnly: true,
  },
  {
    name: 'an L2 table on a refcount block',
    ...small,
    damage: (image) => image.setU64(image.l1 + 8, COPIED | BigInt(image.refcountBlock)),
    garbage: true,
    repairOnly: true,
  },
  {
    name: 'an L2 table on guest data',
    ...small,
    damage: (image) => image.setU64(image.l1 + 8, COPIED | BigInt(image.clusterOf(3) * 512)),
    garbage: true,
    repairOnly: true,
  },
  {
    name: 'a guest cluster on the refcount table',
    ...plain,
    damage: (image) => image.setEntry(1, COPIED | BigInt(image.refcountTable)),
  },
  {
    name: 'a guest cluster on an L2 table',
    ...plain,
    damage: (image) => image.setEntry(1, COPIED | BigInt(image.l2(0))),
    // the table is guest data, and changes with its repair
    garbage: true,
  },
  {
    name: 'a guest cluster on the snapshot table',
    ...shared,
    // the L2 table is its table, too
    snapshotsHurt: ['two'],
    damage: (image) => image.setEntry(9, COPIED | BigInt(image.snapshots)),
  },
  {
    name: "a guest cluster on a snapshot's L1 table",
    ...shared,
    // the L2 table is its table, too
    snapshotsHurt: ['two'],
    damage: (image) => image.setEntry(9, COPIED | BigInt(image.snapshotL1)),
  },
  {
    name: 'two guest clusters on one host cluster, refcounts of one bit',
    ...narrow,
    damage: (image) => image.setEntry(1, image.entry(0)),
    repairOnly: true,
  },
  {
    name: 'a cluster past the end of the file, version 2 with a backing file',
    ...backed,
    damage: (image) => image.setEntry(1, COPIED | 0x1000_0000n),
  },
  {
    name: 'a file cut off in the data',
    ...plain,
    damage: (image) => image.truncate(image.clusterOf(2) * image.clusterSize),
  },
  {
    name: 'a file cut off in an L2 table',
    ...small,
    damage: (image) => image.truncate(image.l2(0)),
  },
  {
    name: 'a refcount table past the end of the file',
    ...plain,
    damage: (image) => image.setU64(48, 0x4000_0000),
  },
  {
    name: 'a refcount table of zeros',
    ...plain,
    damage: (image) => image.bytes.fill(0, image.refcountTable, image.refcountTable + image.clusterSize),
  },
  {
    name: 'a refcount table on the L1 table',
    ...plain,
    damage: (image) => image.setU64(48, image.l1),
    repairOnly: true,
  },
  {
    name: 'a refcount table that is its own block',
    ...plain,
    damage: (image) => image.setU64(image.refcountTable, image.refcountTable),
  },
  {
    name: 'a refcount table of 8 MiB in a small file',
    ...plain,
    damage: (image) => image.bytes.writeUInt32BE(128, 56),
    repairOnly: true,
  },
  {
    name: 'refcounts of all ones',
    ...plain,
    damage: (image) => image.bytes.fill(0xff, image.refcountBlock, image.refcountBlock + image.clusterSize),
  },
  {
    name: 'an L2 entry of a snapshot with reserved bits',
    ...shared,
    damage: (image) => {
      const table = Number(image.u64(image.snapshotL1) & 0x00ff_ffff_ffff_fe00n);
      image.setU64(table + 8, image.u64(table + 8) | 0x10n);
    },
  },
  {
    name: 'an L1 entry of a snapshot past the end of the file',
    ...shared,
    damage: (image) => image.setU64(image.snapshotL1, 0x1000_0000n),
    garbage: true,
    snapshotsHurt: ['one'],
  },
  {
    name: 'a snapshot whose L1 table is past the end of the file',
    ...shared,
    damage: (image) => image.setU64(image.snapshots, 0x1000_0000n),
    snapshotsAfter: ['two'],
  },
  {
    name: 'a snapshot whose L1 table is beyond 2^53',
    ...shared,
    damage: (image) => image.setU64(image.snapshots, 1n << 62n),
    snapshotsAfter: ['two'],
    repairOnly: true,
  },
  {
    name: 'a snapshot table past the end of the file',
    ...shared,
    damage: (image) => image.setU64(64, 0x1000_0000),
    snapshotsAfter: [],
    repairOnly: true,
  },
  {
    name: 'a bitmap directory with a granularity that cannot be',
    ...bitmaps,
    damage: (image) => image.bytes.writeUInt8(77, image.bitmaps.directory + 17),
    repairOnly: true,
  },
  {
    name: 'a bitmap directory of zeros',
    ...bitmaps,
    damage: (image) => image.bytes.fill(0, image.bitmaps.directory, image.bitmaps.directory + 64),
    repairOnly: true,
  },
  {
    name: 'a bitmap directory past the end of the file',
    ...bitmaps,
    damage: (image) => image.setU64(image.bitmaps.extension + 16, 0x1000_0000),
    repairOnly: true,
  },
  {
    name: 'more bitmaps than the directory has',
    ...bitmaps,
    damage: (image) => image.bytes.writeUInt32BE(5, image.bitmaps.extension),
    repairOnly: true,
  },
  {
    name: 'a bitmap table with reserved bits',
    ...bitmaps,
    damage: (image) => image.setU64(Number(image.u64(image.bitmaps.directory)), 0x1000_0000_0000_0102n),
    repairOnly: true,
  },
  {
    name: 'a bitmap table that names a cluster past the end of the file',
    ...bitmaps,
    damage: (image) => image.setU64(Number(image.u64(image.bitmaps.directory)), 0x1000_0000n),
    repairOnly: true,
  },
  {
    name: 'a bitmap table past the end of the file',
    ...bitmaps,
    damage: (image) => image.setU64(image.bitmaps.directory, 0x1000_0000n),
    repairOnly: true,
  },
];

/** Makes undamaged images, each once. */
export class Healthy {
  readonly #directory: string;
  readonly #made = new Map<string, string>();

  constructor(directory: string) {
    this.#directory = directory;
  }

  /** Name of the undamaged image of a damage, in the directory. */
  image({ create, fill }: Pick<Damage, 'create' | 'fill'>): string {
    const directory = this.#directory;
    const key = JSON.stringify([create, fill]);
    const known = this.#made.get(key);
    if (known !== undefined) return known;
    const number = this.#made.size;
    const file = `healthy-${number}.qcow2`;
    if (create.includes('base.raw')) writeFileSync(join(directory, 'base.raw'), Buffer.alloc(1 << 20, 0x77));
    const options = create.map((word) => word.replace('DATA', `data-${number}.raw`));
    qemuImg(directory, 'create', '-q', '-f', 'qcow2', ...options.slice(0, -1), file, options.at(-1) as string);
    for (const command of fill) {
      const [verb, name] = command.split(' ') as [string, string];
      if (verb === 'snapshot') qemuImg(directory, 'snapshot', '-c', name, file);
      else if (verb === 'bitmap') qemuImg(directory, 'bitmap', '--add', file, name);
      else qemuIo(directory, file, command);
    }
    this.#made.set(key, file);
    return file;
  }
}
