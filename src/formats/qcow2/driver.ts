/** The qcow2 driver: probing, opening, and what the front door needs to know of the format.
 *  Spec: qcow2, versions 2 and 3. Opening is: header → settings → key of an encrypted image → data file → backing file → snapshot table → autoclear bits → repair
 *  of a dirty image → parts. A read-only open writes nothing, whatever it finds.
 *  Write order at open: the header loses unknown autoclear bits, and stale bitmaps, before any guest write; a dirty image is repaired before any
 *  other write; bitmaps are marked in use last (bitmap-store.ts). */
import { BlockError } from '../../base/errors.ts';
import { defineFormat, type OpenContext, wantedBacking } from '../../core/format.ts';
import type { BlockNode } from '../../core/node.ts';
import { CacheBudget } from '../../core/table-cache.ts';
import { qcow2Auditor } from './audit.ts';
import { Bitmaps } from './bitmaps.ts';
import { repairDirty } from './checker.ts';
import { createQcow2 } from './create.ts';
import { type Encryption, openEncryption } from './encryption.ts';
import { AUTOCLEAR_KNOWN, INCOMPATIBLE } from './features.ts';
import { hasDataFile, headerGeometry, type Qcow2Header, readHeader } from './header.ts';
import { QCOW2_MAGIC } from './header-fields.ts';
import { Qcow2State, type TableMemory } from './image-state.ts';
import { measureQcow2 } from './measure.ts';
import { Qcow2Node } from './node.ts';
import {
  amendOptions,
  createOptions,
  openOptions,
  type Qcow2OpenOptions,
  type RuntimeSettings,
  resolveSettings,
} from './options.ts';
import { recoverQcow2 } from './recover.ts';
import { recoverOptions } from './recover-header.ts';
import { requireDiskSize, requireSnapshot, requireSnapshotL1 } from './snapshot-entries.ts';
import { readSnapshotTable, type SnapshotTable } from './snapshot-table.ts';
import { canWriteForward, planForward } from './write-forward.ts';

/** Shorter files are no qcow2 images for probing, whatever they begin with. */
const PROBE_BYTES = 112;

export const qcow2 = defineFormat({
  name: 'qcow2',
  summary: 'QEMU copy-on-write version 2 and 3: snapshots, compression, backing files',
  extensions: ['qcow2', 'qcow', 'img'],
  capabilities: {
    create: true,
    write: true,
    backing: true,
    compress: true,
    check: true,
    zeroInit: true,
    snapshots: true,
    bitmaps: true,
    resize: true,
  },
  openOptions,
  fileChildren: { 'data-file': 'data' },
  createOptions,
  amendOptions,
  recoverOptions,

  probe({ head }) {
    if (head.length < PROBE_BYTES) return 0;
    const view = new DataView(head.buffer, head.byteOffset, head.byteLength);
    return view.getUint32(0) === QCOW2_MAGIC && view.getUint32(4) >= 2 ? 100 : 0;
  },

  open: openQcow2,
  recover: recoverQcow2,
  create: createQcow2,
  measure: measureQcow2,
  auditor: qcow2Auditor,
  forward: { kind: 'tables', accepts: canWriteForward, plan: planForward },
});

async function openQcow2(context: OpenContext, options: Qcow2OpenOptions): Promise<Qcow2Node> {
  const { name, file, readOnly, forCheck, metadataOnly } = context;
  const header = await readHeader(file, name, { readOnly, forCheck, metadataOnly });
  const unmap = context.discard === 'unmap';
  const settings = resolveSettings(options, header, headerGeometry(header), name, unmap);
  const encryption = await openEncryption(header, options, context);
  try {
    return await openParts(header, options, settings, encryption, context);
  } catch (error) {
    await encryption?.wipe();
    throw error;
  }
}

async function openParts(
  header: Qcow2Header,
  options: Qcow2OpenOptions,
  settings: RuntimeSettings,
  encryption: Encryption | undefined,
  context: OpenContext,
): Promise<Qcow2Node> {
  const { name, file, readOnly, forCheck } = context;
  const dataFile = await openDataFile(header, context);
  const backing = await openBacking(header, context);
  // A check reads the table itself, and leniently.
  const snapshots = forCheck ? NO_SNAPSHOTS : await readSnapshotTable(file, header, name);
  const seen = context.snapshot === undefined ? header : headerOfSnapshot(header, snapshots, context);
  const state = new Qcow2State(seen, context, dataFile, tableMemory(options, settings), encryption?.transform);
  warnOfStaleBitmaps(state);
  const bitmaps = readOnly || forCheck ? new Bitmaps(state) : await takeOver(state);
  const allocatedBytes = (await file.status?.())?.allocatedBytes;
  return new Qcow2Node({
    state,
    settings,
    codecs: context.codecs,
    dataFile,
    backing,
    encryption,
    snapshots,
    bitmaps,
    forCheck,
    isSnapshot: context.snapshot !== undefined,
    allocatedBytes,
  });
}

/** The header as it would be if the disk were that snapshot: its L1 table, its size. */
function headerOfSnapshot(header: Qcow2Header, snapshots: SnapshotTable, context: OpenContext): Qcow2Header {
  const { name, readOnly, forCheck, snapshot = '' } = context;
  if (!readOnly || forCheck)
    throw new BlockError('INTERNAL', 'internal error: a snapshot opened for more than reading');
  const geometry = headerGeometry(header);
  const entry = requireSnapshot(snapshots.entries, snapshot, name);
  requireSnapshotL1(entry, geometry, name);
  requireDiskSize(entry, geometry, name);
  return { ...header, l1Offset: entry.l1Offset, l1Size: entry.l1Size, virtualSize: entry.diskSize };
}

const NO_SNAPSHOTS: SnapshotTable = { entries: [], size: 0 };

/** Sizes that the caller gave make caches of their own; otherwise the tables of the whole chain share one budget. */
function tableMemory(options: Qcow2OpenOptions, settings: RuntimeSettings): TableMemory {
  const { cacheSize, l2CacheSize, refcountCacheSize, l2CacheEntrySize } = options;
  const given = cacheSize ?? l2CacheSize ?? refcountCacheSize;
  return {
    lazyRefcounts: settings.lazyRefcounts,
    cleanSeconds: settings.cacheCleanIntervalSeconds,
    ...(given === undefined
      ? {}
      : { l2: new CacheBudget(settings.l2CacheSize), refcounts: new CacheBudget(settings.refcountCacheSize) }),
    ...(l2CacheEntrySize === undefined ? {} : { l2SliceBytes: settings.l2SliceSize }),
  };
}

async function openDataFile(header: Qcow2Header, context: OpenContext): Promise<BlockNode | undefined> {
  if (!hasDataFile(header)) return undefined;
  if (header.dataFile === undefined) {
    throw new BlockError('CORRUPT', `qcow2 "${context.name}": needs an external data file and names none`, {
      reason: 'qcow2.data-file-missing',
    });
  }
  // The file itself, and not a raw disk in it: the last cluster may end behind it, is read as zeros there, and makes it grow when written.
  return await context.openReference({ role: 'data', name: header.dataFile, readOnly: context.readOnly });
}

async function openBacking(header: Qcow2Header, context: OpenContext): Promise<BlockNode | undefined> {
  const { backingFile: name, backingFormat: format } = header;
  const recorded = name === undefined ? undefined : ({ role: 'backing', name, format, readOnly: true } as const);
  const wanted = wantedBacking(context, recorded);
  return wanted === undefined ? undefined : await context.openReference(wanted);
}

/** Their autoclear bit is off: a program that does not know bitmaps has written to the image. */
function warnOfStaleBitmaps(state: Qcow2State): void {
  if (!state.header.staleBitmaps) return;
  state.warn(
    state.header.version < 3 ? 'qcow2.bitmaps-stale-v2' : 'qcow2.bitmaps-stale',
    'a program that does not know bitmaps has changed the image, so that all its bitmaps are void; what they occupy leaks, until the image is repaired',
  );
}

/** What a writer owes the image before its first write. */
async function takeOver(state: Qcow2State): Promise<Bitmaps> {
  const { header } = state;
  const autoclear = header.autoclear & AUTOCLEAR_KNOWN;
  if (autoclear !== header.autoclear || header.staleBitmaps) {
    await state.replaceHeader({
      ...header,
      autoclear,
      bitmaps: header.staleBitmaps ? undefined : header.bitmaps,
      staleBitmaps: false,
    });
  }
  if ((header.incompatible & INCOMPATIBLE.dirty) !== 0n) await repairDirty(state);
  return await Bitmaps.takeOver(state);
}
