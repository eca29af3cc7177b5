/** What `info` says of an image, from its header and directories. Keys are QEMU's. */
import type { FormatInfo, SnapshotInfo } from '../../core/format.ts';
import type { ByteStore } from '../../core/store.ts';
import { readBitmapDirectory } from './bitmap-directory.ts';
import type { BitmapsPointer } from './extensions.ts';
import { AUTOCLEAR, COMPATIBLE, INCOMPATIBLE } from './features.ts';
import { hasDataFile, headerGeometry, type Qcow2Header } from './header.ts';
import type { SnapshotEntry, SnapshotTable } from './snapshot-table.ts';

export async function describeImage(
  file: ByteStore,
  header: Qcow2Header,
  snapshots: SnapshotTable,
  name: string,
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
    if (header.bitmaps !== undefined && !header.staleBitmaps) {
      data.bitmaps = await describeBitmaps(file, header, header.bitmaps, name);
    }
    if (hasDataFile(header)) {
      data['data-file'] = header.dataFile;
      data['data-file-raw'] = (header.autoclear & AUTOCLEAR.dataFileRaw) !== 0n;
    }
  }
  if (header.encryption !== 'none') data.encrypt = { format: header.encryption };
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

/** As `info` lists them: an image that is not open for writing shows what the directory says. */
async function describeBitmaps(
  file: ByteStore,
  header: Qcow2Header,
  pointer: BitmapsPointer,
  name: string,
): Promise<Readonly<Record<string, unknown>>[]> {
  const entries = await readBitmapDirectory(file, pointer, header.virtualSize, 2 ** header.clusterBits, name);
  return entries.map((entry) => ({
    flags: [...(entry.inUse ? ['in-use'] : []), ...(entry.auto ? ['auto'] : [])],
    name: entry.name,
    granularity: entry.granularity,
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
