/** qemu-img's texts for people: sizes, info, check, map, compare, measure, progress. Pure: data in, text out.
 *  Invariant: every format here is C's printf as QEMU calls it, exact halves rounded to even included. */
import type { ReferenceRun, SnapshotInfo } from '../../core/format.ts';
import type { LockFacts } from '../../tools/info.ts';
import { type JsonValue, orderedEntries } from './json.ts';

const UNITS = ['', 'Ki', 'Mi', 'Gi', 'Ti', 'Pi', 'Ei'];

/** `196 KiB`: three significant digits; the unit grows when the number reaches 1000, as `1e+03 KiB` shows just below it. */
export function humanSize(bytes: number): string {
  let power = 0;
  let value = bytes;
  while (value >= 1000 && power < UNITS.length - 1) {
    value /= 1024;
    power++;
  }
  return `${general3(value)} ${UNITS[power]}B`;
}

/** C's `%0.3g` for values from 0 up. */
export function general3(value: number): string {
  if (value === 0) return '0';
  const [mantissa, exponentText] = value.toExponential(60).split('e') as [string, string];
  let exponent = Number(exponentText);
  const digits = mantissa.replace('.', '');
  let head = Number(digits.slice(0, 3));
  const rest = digits.slice(3);
  const half = `5${'0'.repeat(rest.length - 1)}`;
  if (rest > half || (rest === half && head % 2 === 1)) head++;
  if (head === 1000) {
    head = 100;
    exponent++;
  }
  if (exponent >= 3 || exponent < -4) {
    const sign = exponent < 0 ? '-' : '+';
    return `${trimZeros((head / 100).toFixed(2))}e${sign}${String(Math.abs(exponent)).padStart(2, '0')}`;
  }
  return trimZeros((head / 10 ** (2 - exponent)).toFixed(2 - exponent));
}

function trimZeros(text: string): string {
  return text.includes('.') ? text.replace(/\.?0+$/, '') : text;
}

/** C's `%0.2f`. Only odd eighths lie exactly between two hundredths. */
export function fixed2(value: number): string {
  const eighths = value * 8;
  if (!Number.isInteger(eighths) || eighths % 2 === 0) return value.toFixed(2);
  const floor = Math.floor(value * 100);
  return ((floor % 2 === 0 ? floor : floor + 1) / 100).toFixed(2);
}

/** One image as `info` shows it; the names follow QEMU's `ImageInfo`. Sizes in bytes. */
export interface InfoView {
  readonly filename: string;
  readonly format: string;
  readonly virtualSize: number;
  readonly actualSize?: number | undefined;
  readonly encrypted?: boolean | undefined;
  readonly clusterSize?: number | undefined;
  readonly dirty?: boolean | undefined;
  readonly backingFilename?: string | undefined;
  /** The name the backing file is opened by; `undefined` where it cannot be told. */
  readonly fullBackingFilename?: string | undefined;
  readonly backingFormat?: string | undefined;
  readonly snapshots?: readonly SnapshotInfo[] | undefined;
  readonly specific?: { readonly type: string; readonly data: Readonly<Record<string, unknown>> } | undefined;
  /** Not shown by QEMU. */
  readonly locks?: LockFacts | undefined;
}

export function humanInfo(info: InfoView): string {
  const lines = [
    `image: ${info.filename}`,
    `file format: ${info.format}`,
    `virtual size: ${humanSize(info.virtualSize)} (${info.virtualSize} bytes)`,
    `disk size: ${info.actualSize === undefined ? 'unavailable' : humanSize(info.actualSize)}`,
  ];
  if (info.encrypted === true) lines.push('encrypted: yes');
  if (info.clusterSize !== undefined) lines.push(`cluster_size: ${info.clusterSize}`);
  if (info.dirty === true) lines.push('cleanly shut down: no');
  if (info.backingFilename !== undefined) {
    lines.push(`backing file: ${info.backingFilename}${actualPath(info.backingFilename, info.fullBackingFilename)}`);
    if (info.backingFormat !== undefined) lines.push(`backing file format: ${info.backingFormat}`);
  }
  if (info.snapshots !== undefined && info.snapshots.length > 0)
    lines.push('Snapshot list:', ...snapshotTable(info.snapshots));
  if (info.specific !== undefined) lines.push(...specificLines(info.specific));
  // the rule is that there are some
  if (info.locks?.missing !== undefined) lines.push(`locks: none (${info.locks.missing})`);
  return `${lines.join('\n')}\n`;
}

/** The block of facts that only one format has; nothing where there are none. */
export function specificLines({ type, data }: NonNullable<InfoView['specific']>): string[] {
  const entries = Object.entries(data) as [string, JsonValue][];
  // Nobody has seen the others anywhere else: they are in the order that their formats found best.
  const specific = QEMU_TYPES.includes(type)
    ? dumpObject(data as Record<string, JsonValue>, 1)
    : dumpEntries(entries, 1);
  return specific.length > 0 ? ['Format specific information:', ...specific] : [];
}

function actualPath(recorded: string, full: string | undefined): string {
  if (full === undefined) return ' (cannot determine actual path)';
  return full === recorded ? '' : ` (actual path: ${full})`;
}

/** `info` as QEMU's `ImageInfo` object. */
export function jsonInfo(info: InfoView): JsonValue {
  return {
    'virtual-size': info.virtualSize,
    filename: info.filename,
    'cluster-size': info.clusterSize,
    format: info.format,
    'actual-size': info.actualSize,
    'dirty-flag': info.dirty,
    encrypted: info.encrypted === true ? true : undefined,
    'backing-filename': info.backingFilename,
    'full-backing-filename': info.fullBackingFilename,
    'backing-filename-format': info.backingFormat,
    snapshots:
      info.snapshots === undefined || info.snapshots.length === 0 ? undefined : info.snapshots.map(jsonSnapshot),
    'format-specific':
      info.specific === undefined
        ? undefined
        : { type: info.specific.type, data: info.specific.data as Record<string, JsonValue> },
    locks: info.locks?.state,
    'locks-missing': info.locks?.missing,
  };
}

const NANO = 1_000_000_000n;

/** As `info` has it. */
export function jsonSnapshot(snapshot: SnapshotInfo): JsonValue {
  return {
    icount: snapshot.icount,
    'vm-clock-nsec': snapshot.vmClockNanoseconds % NANO,
    name: snapshot.name,
    'date-sec': snapshot.dateSeconds,
    'date-nsec': snapshot.dateNanoseconds,
    'vm-clock-sec': snapshot.vmClockNanoseconds / NANO,
    id: snapshot.id,
    'vm-state-size': snapshot.vmStateSize,
  };
}

/** The header and one line for each snapshot; dates in local time. */
export function snapshotTable(snapshots: readonly SnapshotInfo[]): string[] {
  return [
    snapshotRow('ID', 'TAG', 'VM SIZE', 'DATE', 'VM CLOCK', 'ICOUNT'),
    ...snapshots.map((snapshot) =>
      snapshotRow(
        snapshot.id,
        snapshot.name,
        humanSize(snapshot.vmStateSize),
        localDate(snapshot.dateSeconds),
        clock(snapshot.vmClockNanoseconds),
        snapshot.icount === undefined ? '' : String(snapshot.icount),
      ),
    ),
  ];
}

function snapshotRow(id: string, tag: string, size: string, date: string, vmClock: string, icount: string): string {
  return `${id.padEnd(9)} ${tag.padEnd(16)} ${size.padStart(8)}${date.padStart(20)}${vmClock.padStart(13)}${icount.padStart(11)}`;
}

function localDate(seconds: number): string {
  const date = new Date(seconds * 1000);
  const day = [date.getFullYear(), date.getMonth() + 1, date.getDate()].map(two).join('-');
  return `${day} ${[date.getHours(), date.getMinutes(), date.getSeconds()].map(two).join(':')}`;
}

function clock(nanoseconds: bigint): string {
  const seconds = Number(nanoseconds / NANO);
  const milliseconds = Number((nanoseconds / 1_000_000n) % 1000n);
  const parts = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60].map(two).join(':');
  return `${parts}.${String(milliseconds).padStart(3, '0')}`;
}

function two(value: number): string {
  return String(value).padStart(2, '0');
}

/** Formats whose facts QEMU prints too, in the order of its own hash tables. */
const QEMU_TYPES: readonly string[] = ['qcow2', 'vmdk', 'luks', 'rbd'];

/** Members in JSON order, `-` in their names as blanks, deeper levels indented by four blanks more. */
function dumpObject(object: Readonly<Record<string, JsonValue | undefined>>, level: number): string[] {
  return dumpEntries(orderedEntries(object), level);
}

function dumpEntries(entries: readonly (readonly [string, JsonValue])[], level: number): string[] {
  return entries.flatMap(([key, value]) => dumpMember(`${key.replaceAll('-', ' ')}:`, value, level));
}

function dumpMember(label: string, value: JsonValue, level: number): string[] {
  const indent = '    '.repeat(level);
  if (Array.isArray(value)) {
    return [indent + label, ...value.flatMap((item, i) => dumpMember(`[${i}]:`, item as JsonValue, level + 1))];
  }
  if (typeof value === 'object' && value !== null) {
    return [indent + label, ...dumpObject(value as Record<string, JsonValue>, level + 1)];
  }
  return [`${indent}${label} ${String(value)}`];
}

/** The counters of a check as they are printed; those left out of JSON when 0 are so here too. */
export interface CheckView {
  readonly filename: string;
  readonly format: string;
  readonly checkErrors: number;
  readonly corruptions: number;
  readonly leaks: number;
  readonly corruptionsFixed: number;
  readonly leaksFixed: number;
  readonly imageEndOffset: number;
  readonly totalClusters: number;
  readonly allocatedClusters: number;
  readonly fragmentedClusters: number;
  readonly compressedClusters: number;
}

export function humanCheck(check: CheckView): string {
  let text = '';
  if (check.corruptions === 0 && check.leaks === 0 && check.checkErrors === 0) {
    text += 'No errors were found on the image.\n';
  }
  if (check.corruptions > 0) {
    text += `\n${check.corruptions} errors were found on the image.\n`;
    text += 'Data may be corrupted, or further writes to the image may corrupt it.\n';
  }
  if (check.leaks > 0) {
    text += `\n${check.leaks} leaked clusters were found on the image.\n`;
    text += 'This means waste of disk space, but no harm to data.\n';
  }
  if (check.checkErrors > 0) text += `\n${check.checkErrors} internal errors have occurred during the check.\n`;
  const { totalClusters: total, allocatedClusters: allocated } = check;
  if (total !== 0 && allocated !== 0) {
    text += `${allocated}/${total} = ${fixed2((allocated * 100) / total)}% allocated, `;
    text += `${fixed2((check.fragmentedClusters * 100) / allocated)}% fragmented, `;
    text += `${fixed2((check.compressedClusters * 100) / allocated)}% compressed clusters\n`;
  }
  if (check.imageEndOffset > 0) text += `Image end offset: ${check.imageEndOffset}\n`;
  return text;
}

/** What stands before the second run of a repair. */
export function humanRepaired(leaks: number, corruptions: number): string {
  return (
    'The following inconsistencies were found and repaired:\n\n' +
    `    ${leaks} leaked clusters\n    ${corruptions} corruptions\n\n` +
    'Double checking the fixed image now...\n'
  );
}

export function jsonCheck(check: CheckView): JsonValue {
  return {
    'image-end-offset': nonZero(check.imageEndOffset),
    'compressed-clusters': nonZero(check.compressedClusters),
    'total-clusters': nonZero(check.totalClusters),
    corruptions: nonZero(check.corruptions),
    'corruptions-fixed': nonZero(check.corruptionsFixed),
    'check-errors': check.checkErrors,
    leaks: nonZero(check.leaks),
    'leaks-fixed': nonZero(check.leaksFixed),
    'allocated-clusters': nonZero(check.allocatedClusters),
    filename: check.filename,
    format: check.format,
    'fragmented-clusters': nonZero(check.fragmentedClusters),
  };
}

function nonZero(value: number): number | undefined {
  return value === 0 ? undefined : value;
}

/** A row of `map`. Bytes. */
export interface MapRow {
  /** A bigint only past the end of every image. */
  readonly start: number | bigint;
  readonly length: number;
  readonly depth: number;
  readonly present: boolean;
  readonly zero: boolean;
  readonly data: boolean;
  readonly compressed: boolean;
  readonly hostOffset: number | undefined;
  readonly node: string | undefined;
}

export const MAP_HEADER = 'Offset          Length          Mapped to       File\n';

/** A line of the human map; empty for ranges it leaves out. */
export function humanMapRow(row: MapRow): string {
  if (!row.data || row.zero) return '';
  return `${alternateHex(row.start)}${alternateHex(row.length)}${alternateHex(row.hostOffset ?? 0)}${row.node ?? ''}\n`;
}

/** C's `%#-16x`: no `0x` before a zero. */
function alternateHex(value: number | bigint): string {
  return (value === 0 ? '0' : `0x${value.toString(16)}`).padEnd(16);
}

/** An entry of the JSON map, on one line, without the comma after it. `compressed` came with QEMU 8.2. */
export function jsonMapRow(row: MapRow, withCompressed: boolean): string {
  const offset = row.hostOffset === undefined ? '' : `, "offset": ${row.hostOffset}`;
  const compressed = withCompressed ? `, "compressed": ${row.compressed}` : '';
  return (
    `{ "start": ${row.start}, "length": ${row.length}, "depth": ${row.depth}, "present": ${row.present}, ` +
    `"zero": ${row.zero}, "data": ${row.data}${compressed}${offset}}`
  );
}

export const REFERENCES_HEADER = 'File offset     Length          Refcount\n';

/** A line of `map --refcounts`. */
export function humanReferenceRow({ offset, length, refcount }: ReferenceRun): string {
  return `${alternateHex(offset)}${alternateHex(length)}${Number.isFinite(refcount) ? refcount : 'above 2^53'}\n`;
}

/** The same in JSON, on one line; a count that no number holds is `null`. */
export function jsonReferenceRow({ offset, length, refcount }: ReferenceRun): string {
  return `{ "offset": ${offset}, "length": ${length}, "refcount": ${Number.isFinite(refcount) ? refcount : null}}`;
}

/** The line that `-p` rewrites in place. */
export function progressLine(percent: number): string {
  return `    (${fixed2(percent)}/100%)\r`;
}
