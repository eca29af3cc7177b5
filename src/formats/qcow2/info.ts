/** What `info` says of an image, from its header and directories. Keys are QEMU's. */
import type { FormatInfo, SnapshotInfo } from '../../core/format.ts';
import type { Bitmaps } from './bitmaps.ts';
import type { Encryption } from './encryption.ts';
import { AUTOCLEAR, COMPATIBLE, INCOMPATIBLE } from './features.ts';
import { hasDataFile, headerGeometry, type Qcow2Header } from './header.ts';
import type { SnapshotEntry, SnapshotTable } from './snapshot-table.ts';

export async function describeImage(
  header: Qcow2Header,
  snapshots: SnapshotTable,
  bitmaps: Bitmaps,
  encryption: Encryption | undefined,
): Promise<FormatInfo> {
  const { clusterSize, refcountBits, extendedL2 } = headerGeometry(header);
  const data: Record<string, unknown> = {
    compat: header.version === 2 ? '0.10' : '1.1',
    'compression-type': header.compressionType === 'deflate' ? 'zlib' : 'zstd',
    'refcount-bits': refcountBits,
  };
  if (header.version >= 3) {
    data['lazy-refcounts'] = (header.compatible & COMPATIBLE.lazyRefcounts) !== 0n;
    data.corrupt = (header.incompatible & INCOMPATIBLE.corrupt) !== 0n;
    data['extended-l2'] = extendedL2;
    if (bitmaps.any) data.bitmaps = await describeBitmaps(bitmaps);
    if (hasDataFile(header)) {
      data['data-file'] = header.dataFile;
      data['data-file-raw'] = (header.autoclear & AUTOCLEAR.dataFileRaw) !== 0n;
    }
  }
  if (encryption !== undefined) data.encrypt = encryption.info();
  return {
    clusterSize,
    encrypted: header.encryption !== 'none',
    dirty: (header.incompatible & INCOMPATIBLE.dirty) !== 0n,
    ...(header.backingFile === undefined
      ? {}
      : {
          backing: {
            name: header.backingFile,
            ...(header.backingFormat === undefined ? {} : { format: header.backingFormat }),
          },
        }),
    ...(snapshots.entries.length > 0 ? { snapshots: snapshots.entries.map(describeSnapshot) } : {}),
    specific: { type: 'qcow2', data },
  };
}

async function describeBitmaps(bitmaps: Bitmaps): Promise<Readonly<Record<string, unknown>>[]> {
  return (await bitmaps.list()).map(({ name, granularity, enabled, inconsistent }) => ({
    flags: [...(inconsistent ? ['in-use'] : []), ...(enabled ? ['auto'] : [])],
    name,
    granularity,
  }));
}

export function describeSnapshot(entry: SnapshotEntry): SnapshotInfo {
  return {
    id: entry.id,
    name: entry.name,
    vmStateSize: entry.vmStateSize,
    dateSeconds: entry.dateSeconds,
    dateNanoseconds: entry.dateNanoseconds,
    vmClockNanoseconds: entry.vmClockNanoseconds,
    diskSize: entry.diskSize,
    ...(entry.icount === undefined ? {} : { icount: entry.icount }),
  };
}
