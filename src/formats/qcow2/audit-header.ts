/** What an audit reads from the first cluster, however damaged it is. Spec: qcow2, "Header", "Header extensions".
 *  Invariants: names are told even where the header is refused, because another reader may be less strict; nothing here decides an allocation by
 *  what the image says, beyond one cluster. */
import { hex, isBlockError } from '../../base/errors.ts';
import { isZero } from '../../bytes/zeros.ts';
import { type AuditContext, isDeceptive, readBytes } from '../../core/audit.ts';
import {
  addRefusal,
  auditReference,
  auditSameFile,
  auditSize,
  auditText,
  HEADER,
  HIDDEN,
  type NamedFile,
} from '../../core/audit-rules.ts';
import { QCOW2 } from './audit-rules.ts';
import { EXTENSION, type ExtensionRecord, wholeRecords } from './extensions.ts';
import { AUTOCLEAR_KNOWN, COMPATIBLE, cString, INCOMPATIBLE, nameIncompatible } from './features.ts';
import {
  type Geometry,
  geometryOf,
  l1EntriesFor,
  MAX_CLUSTER_BITS,
  MAX_L1_BYTES,
  MAX_REFCOUNT_TABLE_BYTES,
  MAX_SNAPSHOTS,
  MIN_CLUSTER_BITS,
  TABLE_ENTRY_BYTES,
} from './geometry.ts';
import { decodeHeader } from './header.ts';
import {
  type FixedFields,
  HEADER_V3_AT,
  HEADER_V3_LENGTH,
  HEADER_V3_MIN_LENGTH,
  HeaderV2,
  HeaderV3,
  QCOW2_MAGIC,
  type Version3Fields,
} from './header-fields.ts';

/** Longer names are no file names. */
const MOST_NAME = 4096;

/** What is known of the image without belief in its header. */
export interface LooseHeader {
  readonly fixed: FixedFields;
  readonly v3: Version3Fields;
  readonly geometry: Geometry;
  /** Guest data lies in another file. */
  readonly hasDataFile: boolean;
  readonly records: readonly ExtensionRecord[];
}

/** @returns `undefined`: no cluster size can be told, so that no table can be read. */
export async function auditQcow2Header(context: AuditContext): Promise<LooseHeader | undefined> {
  const head = await readBytes(context.file, 0, 2 ** MAX_CLUSTER_BITS);
  const fixed = HeaderV2.decode(head);
  const accepted = judge(context, head);
  if (fixed.magic !== QCOW2_MAGIC) return undefined;
  const v3 = fixed.version < 3 ? VERSION_2 : HeaderV3.decode(head, HEADER_V3_AT);
  const isUsable = fixed.clusterBits >= MIN_CLUSTER_BITS && fixed.clusterBits <= MAX_CLUSTER_BITS;
  const clusterSize = isUsable ? 2 ** fixed.clusterBits : 2 ** MAX_CLUSTER_BITS;
  const start = Math.min(
    Math.max(v3.headerLength, fixed.version < 3 ? HEADER_V3_AT : HEADER_V3_MIN_LENGTH),
    clusterSize,
  );
  const { backingFileOffset } = fixed;
  const end = backingFileOffset > start && backingFileOffset < clusterSize ? backingFileOffset : clusterSize;
  const extensions = wholeRecords(head, start, end);
  const { records } = extensions;
  await auditNames(context, fixed, records);
  auditFeatures(context, v3, records);
  auditSize(context, fixed.size, { ...at('size') });
  if (v3.headerLength > HEADER_V3_LENGTH && !isZero(head, HEADER_V3_LENGTH, start)) {
    context.book.add(
      QCOW2.tail,
      { offset: HEADER_V3_LENGTH },
      `there is content behind the known fields of the header`,
    );
  }
  if (accepted && !extensions.broken) auditRoom(context, head, clusterSize, extensions.end, fixed);
  if (!isUsable) return undefined;
  const extendedL2 = (v3.incompatible & INCOMPATIBLE.extendedL2) !== 0n && fixed.clusterBits >= 14;
  const { clusterBits } = fixed;
  const geometry = geometryOf({ clusterBits, extendedL2, refcountOrder: Math.min(v3.refcountOrder, 6) });
  auditTableSizes(context, fixed, geometry);
  return { fixed, v3, geometry, records, hasDataFile: (v3.incompatible & INCOMPATIBLE.dataFile) !== 0n };
}

const VERSION_2: Version3Fields = {
  incompatible: 0n,
  compatible: 0n,
  autoclear: 0n,
  refcountOrder: 4,
  headerLength: HEADER_V3_AT,
  compressionType: 0,
};

function judge(context: AuditContext, head: Uint8Array): boolean {
  try {
    decodeHeader(head, context.name, { readOnly: true, forCheck: false });
    return true;
  } catch (error) {
    if (!isBlockError(error)) throw error;
    addRefusal(context, error);
    return false;
  }
}

function at(key: keyof typeof HeaderV2.fields): { readonly field: string; readonly offset: number } {
  return { field: key, offset: HeaderV2.fields[key][0] };
}

async function auditNames(
  context: AuditContext,
  fixed: FixedFields,
  records: readonly ExtensionRecord[],
): Promise<void> {
  const recorded = (magic: number) => records.filter((record) => record.magic === magic).at(-1);
  const format = recorded(EXTENSION.backingFormat);
  const { backingFileOffset: offset, backingFileSize } = fixed;
  const files: NamedFile[] = [];
  if (offset !== 0 && backingFileSize > 0 && Number.isSafeInteger(offset + MOST_NAME)) {
    const raw = await readBytes(context.file, offset, Math.min(backingFileSize, MOST_NAME));
    const text = format === undefined ? undefined : cString(format.data) || undefined;
    const named = { what: 'backing file', offset, field: 'backingFileOffset', probed: true, format: text };
    addName(context, files, raw, named);
  }
  const data = recorded(EXTENSION.dataFile);
  if (data !== undefined) {
    const named = {
      what: 'data file',
      offset: data.at,
      field: 'data file extension',
      probed: false,
      format: undefined,
    };
    addName(context, files, data.data, named);
  }
  const [first, second] = files;
  if (first !== undefined && second !== undefined) auditSameFile(context, first, second);
}

function addName(
  context: AuditContext,
  files: NamedFile[],
  raw: Uint8Array,
  named: Omit<NamedFile, 'name' | 'bytes'>,
): void {
  const nul = raw.indexOf(0);
  const bytes = nul < 0 ? raw : raw.subarray(0, nul);
  const file = { ...named, name: cString(bytes), bytes };
  if (nul >= 0 && !isZero(raw, nul, raw.length)) {
    const { offset, field, what } = named;
    context.book.add(QCOW2.hiddenName, { offset, field }, `the name of the ${what} goes on behind a zero byte`);
  }
  if (file.name === '') return;
  auditReference(context, file);
  files.push(file);
}

function auditFeatures(context: AuditContext, v3: Version3Fields, records: readonly ExtensionRecord[]): void {
  const { book } = context;
  const { incompatible, compatible, autoclear } = v3;
  if ((incompatible & INCOMPATIBLE.dirty) !== 0n) book.add(QCOW2.dirty, { offset: 72 }, 'marked as dirty');
  if ((incompatible & INCOMPATIBLE.corrupt) !== 0n) book.add(QCOW2.corrupt, { offset: 72 }, 'marked as corrupt');
  for (const [field, offset, unknown] of [
    ['compatible', 80, compatible & ~COMPATIBLE.lazyRefcounts],
    ['autoclear', 88, autoclear & ~AUTOCLEAR_KNOWN],
  ] as const) {
    if (unknown === 0n) continue;
    const value = hexOf(unknown);
    book.add(HEADER.unknown, { offset, field, value }, `${field} features ${value} are not known`);
  }
  const known: readonly number[] = Object.values(EXTENSION);
  for (const { magic, at: offset, data } of records) {
    if (magic === EXTENSION.featureNames) {
      const { names } = nameIncompatible(ALL_BITS, data);
      for (const name of names.filter(isDeceptive)) auditText(context, 'the name of a feature', name, { offset });
    }
    if (known.includes(magic)) continue;
    book.add(
      QCOW2.extension,
      { offset, field: 'extension', value: magic },
      `extension ${hex(magic)} of ${data.length} bytes is not known`,
    );
  }
}

const ALL_BITS = 2n ** 64n - 1n;

function hexOf(value: bigint): string {
  return `0x${value.toString(16)}`;
}

/** What of the first cluster nothing is in. */
function auditRoom(
  context: AuditContext,
  head: Uint8Array,
  clusterSize: number,
  extensionsEnd: number,
  { backingFileOffset, backingFileSize }: FixedFields,
): void {
  const hasName = backingFileOffset > 0;
  const gaps = hasName
    ? ([
        [extensionsEnd, backingFileOffset],
        [backingFileOffset + backingFileSize, clusterSize],
      ] as const)
    : ([[extensionsEnd, clusterSize]] as const);
  for (const [start, end] of gaps) {
    if (start >= end || isZero(head, start, end)) continue;
    const offset = start + head.subarray(start, end).findIndex((byte) => byte !== 0);
    context.book.add(
      HIDDEN.slack,
      { offset },
      `there is content in the first cluster behind the header, at ${hex(offset)}`,
    );
  }
}

/** More than a table needs, and at least half of what the format allows. */
function auditTableSizes(context: AuditContext, fixed: FixedFields, geometry: Geometry): void {
  const { book, file } = context;
  const { clusterSize, refcountBlockCoverage } = geometry;
  const l1Bytes = fixed.l1Size * TABLE_ENTRY_BYTES;
  if (l1Bytes >= MAX_L1_BYTES / 2 && fixed.l1Size > 4 * l1EntriesFor(geometry, fixed.size)) {
    book.add(QCOW2.tableSize, { ...at('l1Size'), value: fixed.l1Size }, `the L1 table has ${l1Bytes} bytes`);
  }
  const tableBytes = fixed.refcountTableClusters * clusterSize;
  const counted = (tableBytes / TABLE_ENTRY_BYTES) * refcountBlockCoverage;
  if (tableBytes >= MAX_REFCOUNT_TABLE_BYTES / 2 && counted > 64 * file.size) {
    const place = { ...at('refcountTableClusters'), value: fixed.refcountTableClusters };
    book.add(QCOW2.tableSize, place, `the refcount table has ${tableBytes} bytes`);
  }
  const { snapshotCount } = fixed;
  if (snapshotCount >= 1000 && snapshotCount <= MAX_SNAPSHOTS) {
    book.add(QCOW2.tableSize, { ...at('snapshotCount'), value: snapshotCount }, `there are ${snapshotCount} snapshots`);
  }
}
