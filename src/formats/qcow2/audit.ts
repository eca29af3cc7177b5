/** The audit of qcow2 images: header, structures, what the tables map, and what the file holds that nobody shows. Spec: all of it.
 *  Neither the backing file nor the data file is opened, and no key is needed. Whether the image can be opened makes no difference: each part is
 *  read as far as it goes. */
import { hex } from '../../base/errors.ts';
import { Pacer } from '../../base/job.ts';
import { divCeil, divFloor } from '../../bytes/align.ts';
import { isZero } from '../../bytes/zeros.ts';
import { type AuditContext, type AuditFacet, readBytes, shown } from '../../core/audit.ts';
import { auditEncryption, ENCRYPTION_RULES } from '../../core/audit-encryption.ts';
import { AUDIT, addRefusal, auditHeader, auditText, HIDDEN } from '../../core/audit-rules.ts';
import { LUKS_HEADER_BYTES, parseLuksHeader } from '../../crypto/luks-header.ts';
import { auditQcow2Header, type LooseHeader } from './audit-header.ts';
import { QCOW2 } from './audit-rules.ts';
import { TableAudit } from './audit-tables.ts';
import { bitmapClusterAt, readBitmapDirectory } from './bitmap-directory.ts';
import { getRefcount } from './entries.ts';
import { EXTENSION } from './extensions.ts';
import { AUTOCLEAR, INCOMPATIBLE } from './features.ts';
import { MAX_SNAPSHOTS, TABLE_ENTRY_BYTES } from './geometry.ts';
import { hex64 } from './header-fields.ts';
import { readSnapshotTable } from './snapshot-table.ts';

const AES = 1;
/** Eight slots of the longest keys take 2 MiB. */
const MOST_LUKS_HEADER = 2 ** 24;

async function audit(context: AuditContext): Promise<void> {
  const header = await auditQcow2Header(context);
  if (header === undefined) return;
  const tables = new TableAudit(context, header);
  await tables.readRefcountTable();
  await tables.readL1('L1 table', header.fixed.l1Offset, header.fixed.l1Size, true);
  await auditSnapshots(context, header, tables);
  await auditBitmaps(context, header, tables);
  await auditCrypto(context, header, tables);
  tables.tellOverlaps();
  await tables.readL2Tables();
  await tables.reachStructures();
  if (!tables.complete) return;
  const refcounts = new LooseRefcounts(context, header, tables.blocks);
  if ((header.v3.incompatible & INCOMPATIBLE.dirty) === 0n) await auditProtection(context, header, tables, refcounts);
  await auditUnreferenced(context, header, tables, refcounts);
}

// ---- snapshots, bitmaps, encryption --------------------------------------------------------------------------------------------

async function auditSnapshots(context: AuditContext, header: LooseHeader, tables: TableAudit): Promise<void> {
  const { book } = context;
  const { fixed } = header;
  const { snapshotsOffset } = fixed;
  const snapshotCount = Math.min(fixed.snapshotCount, MAX_SNAPSHOTS);
  if (snapshotCount === 0) return;
  if (!Number.isSafeInteger(snapshotsOffset * 2) || snapshotsOffset >= context.file.size) {
    const value = hex64(snapshotsOffset);
    book.add(
      QCOW2.outside,
      { field: 'snapshot table', value },
      `the snapshot table at ${value} lies behind the end of the file`,
    );
    return;
  }
  const pointer = { snapshotsOffset, snapshotCount, virtualSize: fixed.size };
  const table = await auditHeader(context, () => readSnapshotTable(context.file, pointer, context.name));
  if (table === undefined) return;
  tables.claim('snapshot table', snapshotsOffset, table.size);
  for (const [index, entry] of table.entries.entries()) {
    const { id, name, l1Offset, l1Size, vmStateSize, diskSize, dateSeconds } = entry;
    const field = `snapshot ${index}`;
    auditText(context, `the name of ${field}`, name, { field });
    auditText(context, `the id of ${field}`, id, { field });
    book.add(QCOW2.snapshot, { field, value: name }, () => {
      return `snapshot ${shown(id)} ${shown(name)} of ${dateSeconds} seconds since 1970, a disk of ${diskSize} bytes`;
    });
    if (vmStateSize > 0) {
      book.add(
        QCOW2.vmState,
        { field, value: vmStateSize },
        () => `snapshot ${shown(id)} has ${vmStateSize} bytes of machine state`,
      );
    }
    await tables.readL1(`L1 table of ${field}`, l1Offset, l1Size, false);
  }
}

async function auditBitmaps(context: AuditContext, header: LooseHeader, tables: TableAudit): Promise<void> {
  const { book, file, name } = context;
  const { records, v3, fixed, geometry } = header;
  const { clusterSize } = geometry;
  const record = records.find(({ magic, data }) => magic === EXTENSION.bitmaps && data.length === 24);
  if (record === undefined || (v3.autoclear & AUTOCLEAR.bitmaps) === 0n) return;
  const view = new DataView(record.data.buffer, record.data.byteOffset);
  const count = view.getUint32(0);
  const directorySize = Number(view.getBigUint64(8));
  const directoryOffset = Number(view.getBigUint64(16));
  if ((await tables.table('bitmap directory', directoryOffset, directorySize)) === undefined) return;
  tables.claim('bitmap directory', directoryOffset, directorySize);
  const pointer = { count, directorySize, directoryOffset };
  const entries = await auditHeader(context, () => {
    return readBitmapDirectory(file, pointer, fixed.size, clusterSize, name);
  });
  for (const entry of entries ?? []) {
    const place = { offset: entry.flagsAt, field: 'bitmap', value: entry.name };
    auditText(context, 'the name of a bitmap', entry.name, place);
    book.add(QCOW2.bitmap, place, () => `bitmap ${shown(entry.name)}, one bit for ${entry.granularity} bytes`);
    const bytes = entry.tableSize * TABLE_ENTRY_BYTES;
    tables.claim('bitmap table', entry.tableOffset, bytes);
    const table = await tables.table('bitmap table', entry.tableOffset, bytes);
    for (let i = 0; table !== undefined && i < divFloor(table.byteLength, TABLE_ENTRY_BYTES); i++) {
      const cluster = bitmapClusterAt(table, i, clusterSize);
      const at = entry.tableOffset + i * TABLE_ENTRY_BYTES;
      if (cluster === undefined) {
        book.add(
          QCOW2.invalid,
          { offset: at, field: 'bitmap table' },
          () => `the bitmap table entry at ${hex(at)} is not valid`,
        );
      } else if (cluster >= file.size) {
        book.add(QCOW2.outside, { offset: at, field: 'bitmap table', value: cluster }, () => {
          return `the bitmap table entry at ${hex(at)} points to ${hex(cluster)}, behind the end of the file`;
        });
      } else if (cluster > 0) tables.claim('bitmap', cluster, clusterSize);
    }
  }
}

async function auditCrypto(context: AuditContext, header: LooseHeader, tables: TableAudit): Promise<void> {
  const { fixed, records } = header;
  if (fixed.cryptMethod === AES) {
    const place = { offset: 32, field: 'cryptMethod', value: 'aes' };
    context.book.add(QCOW2.legacyEncryption, place, 'encrypted by the method "aes" of old images');
  }
  const record = records.find(({ magic, data }) => magic === EXTENSION.crypto && data.length === 16);
  if (record === undefined) return;
  const view = new DataView(record.data.buffer, record.data.byteOffset);
  const offset = Number(view.getBigUint64(0));
  const length = Number(view.getBigUint64(8));
  if ((await tables.table('LUKS header', offset, LUKS_HEADER_BYTES)) === undefined) return;
  tables.claim('LUKS header', offset, Math.min(length, MOST_LUKS_HEADER));
  const head = await readBytes(context.file, offset, LUKS_HEADER_BYTES);
  try {
    const { algorithms, slots } = parseLuksHeader(head, true, `LUKS header of "${context.name}"`);
    auditEncryption(context, { ...algorithms, slots }, { offset });
  } catch (error) {
    addRefusal(context, error);
  }
}

// ---- refcounts and what nothing refers to --------------------------------------------------------------------------------------

/** Refcounts, one block in memory; 0 where there is none. */
class LooseRefcounts {
  readonly #context: AuditContext;
  readonly #header: LooseHeader;
  readonly #blocks: readonly number[];
  #index = -1;
  #view: DataView | undefined;

  constructor(context: AuditContext, header: LooseHeader, blocks: readonly number[]) {
    this.#context = context;
    this.#header = header;
    this.#blocks = blocks;
  }

  /** `undefined`: {@link load} first. */
  of(cluster: number): number | undefined {
    const { refcountBlockEntries, refcountOrder } = this.#header.geometry;
    if (divFloor(cluster, refcountBlockEntries) !== this.#index) return undefined;
    return this.#view === undefined ? 0 : getRefcount(this.#view, cluster % refcountBlockEntries, refcountOrder);
  }

  async load(cluster: number): Promise<number> {
    const { refcountBlockEntries, clusterSize } = this.#header.geometry;
    this.#index = divFloor(cluster, refcountBlockEntries);
    const offset = this.#blocks[this.#index] ?? 0;
    const block = offset === 0 ? undefined : await readBytes(this.#context.file, offset, clusterSize);
    this.#view = block === undefined ? undefined : new DataView(block.buffer, block.byteOffset, block.byteLength);
    return this.of(cluster) ?? 0;
  }
}

/** Structures that count as free. */
async function auditProtection(
  context: AuditContext,
  { geometry: { clusterSize } }: LooseHeader,
  tables: TableAudit,
  refcounts: LooseRefcounts,
): Promise<void> {
  for (const { what, start, end } of tables.claims.all) {
    for (let at = start; at < Math.min(end, context.file.size); at += clusterSize) {
      if (tables.restDue) await tables.rest();
      const refcount = refcounts.of(at / clusterSize) ?? (await refcounts.load(at / clusterSize));
      if (refcount > 0) continue;
      context.book.add(QCOW2.unprotected, { offset: at, field: what, value: 0 }, () => {
        return `the cluster at ${hex(at)}, part of the ${what}, counts as free`;
      });
    }
  }
}

/** Clusters that are looked at, and bytes that are read for it. */
const MOST_CLUSTERS = 2 ** 25;
const MOST_CONTENT = 2 ** 28;
const PIECE = 2 ** 21;

/** What the file holds, and the disk does not. */
async function auditUnreferenced(
  context: AuditContext,
  header: LooseHeader,
  tables: TableAudit,
  refcounts: LooseRefcounts,
): Promise<void> {
  const { book, file } = context;
  const { clusterSize } = header.geometry;
  const clusters = divCeil(file.size, clusterSize);
  const structures = tables.claims.all.reduce((sum, { start, end }) => sum + (end - start) / clusterSize, 0);
  const onlySnapshots = tables.reached.count - tables.active.count - structures;
  if (header.fixed.snapshotCount > 0 && onlySnapshots > 0) {
    const value = onlySnapshots * clusterSize;
    book.add(QCOW2.snapshotData, { value }, `${value} bytes of the file belong to snapshots only`);
  }
  const seen = Math.min(clusters, MOST_CLUSTERS);
  const most = Math.max(1, PIECE / clusterSize);
  const pacer = new Pacer();
  const referredTo = lastReached(tables, seen);
  let left = MOST_CONTENT;
  let cluster = 0;
  while (cluster < seen && left > 0) {
    if (pacer.due) await pacer.pause(context.signal);
    // as many as one turn of the event loop has time for
    const stop = Math.min(seen, cluster + 4096);
    while (cluster < stop && tables.reached.has(cluster)) cluster++;
    if (cluster >= stop) continue;
    let end = cluster + 1;
    while (end < seen && end - cluster < most && !tables.reached.has(end)) end++;
    await auditFree(context, clusterSize, [cluster, end], referredTo, refcounts);
    left -= (end - cluster) * clusterSize;
    cluster = end;
  }
  if (cluster >= clusters) return;
  const value = (clusters - cluster) * clusterSize;
  book.add(
    AUDIT.content,
    { offset: cluster * clusterSize, value },
    `${value} bytes at the end of the file were not looked at`,
  );
}

async function auditFree(
  context: AuditContext,
  clusterSize: number,
  [first, end]: readonly [number, number],
  referredTo: number,
  refcounts: LooseRefcounts,
): Promise<void> {
  const bytes = await readBytes(context.file, first * clusterSize, (end - first) * clusterSize);
  if (isZero(bytes)) return;
  for (let cluster = first; cluster < end; cluster++) {
    const at = (cluster - first) * clusterSize;
    if (isZero(bytes, at, at + clusterSize)) continue;
    const refcount = refcounts.of(cluster) ?? (await refcounts.load(cluster));
    const offset = cluster * clusterSize;
    const rule = refcount > 0 ? QCOW2.leaked : cluster > referredTo ? HIDDEN.trailing : QCOW2.freed;
    context.book.add(rule, { offset, value: refcount }, () => {
      if (refcount === 0) return `the cluster at ${hex(offset)} is free and not empty`;
      return `the cluster at ${hex(offset)} counts as used ${refcount} times, is not empty, and nothing refers to it`;
    });
  }
}

/** The last cluster below `end` that anything refers to. */
function lastReached(tables: TableAudit, end: number): number {
  let cluster = end - 1;
  while (cluster >= 0 && !tables.reached.has(cluster)) cluster--;
  return cluster;
}

export const qcow2Auditor: AuditFacet = { rules: [...Object.values(QCOW2), ...ENCRYPTION_RULES], audit };
