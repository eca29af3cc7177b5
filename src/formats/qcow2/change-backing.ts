/** Recording another backing file: name in the first cluster, format in a header extension.
 *  Spec: qcow2, "Header" (backing_file_offset, backing_file_size), "Header extensions" (backing file format name). Runs alone.
 *  Order: the new name goes to bytes that nothing refers to, flush; then what refers to it, flush; then the bytes that nothing refers to any
 *  more are cleared. Where the extensions behind the first sector stay as they are (the usual case: only the feature name table's last zeros
 *  lie there), the second step is one sector, so that even a torn write leaves the old backing file or the new one; else it is one write of
 *  header and extensions, as everywhere in this room. */
import { BlockError } from '../../base/errors.ts';
import { alignUp } from '../../bytes/align.ts';
import type { BackingRecord } from '../../core/format.ts';
import { extensionsEnd } from './extensions.ts';
import { AUTOCLEAR } from './features.ts';
import { encodeHeader, type Qcow2Header } from './header.ts';
import { HEADER_V3_AT, HeaderV2, HeaderV3 } from './header-fields.ts';
import type { Qcow2State } from './image-state.ts';

const SECTOR = 512;
const MAX_NAME_BYTES = 1023;
const MAX_FORMAT_BYTES = 15;

/** @see FormatNode.changeBacking
 *  @throws {@link BlockError} INVALID_ARGUMENT `qcow2.backing-name-length`, `qcow2.backing-format-length`, `qcow2.backing-name`;
 *  OPTION `qcow2.data-file-raw-backing`; NO_SPACE `qcow2.header-space`. */
export async function changeBacking(state: Qcow2State, backing: BackingRecord | undefined): Promise<void> {
  const { header, file, name } = state;
  const next = { ...header, backingFile: backing?.name, backingFormat: backing?.format || undefined };
  if (next.backingFile === header.backingFile && next.backingFormat === header.backingFormat) return;
  requireRecordable(state, backing);
  const cluster = encodeHeader(next, name);
  const extensions = extensionsOf(cluster, next);
  const old = new Uint8Array(cluster.length);
  await file.read(0, old);
  const at = freePlace(cluster, extensions, old, header);
  if (at !== undefined) {
    const staged = moveName(cluster, at);
    await putName(state, staged);
    await switchTo(state, staged, old, extensions);
    // Where other programs put it: right behind the extensions, which nothing refers to any more.
    if (staged !== cluster) {
      await putName(state, cluster);
      await switchTo(state, cluster, staged, extensions);
    }
  }
  await file.write(0, cluster);
  await state.flushFile();
  state.header = next;
}

/** Writes the name alone. */
async function putName(state: Qcow2State, cluster: Uint8Array): Promise<void> {
  const { backingFileOffset, backingFileSize } = HeaderV2.decode(cluster);
  if (backingFileSize === 0) return;
  await state.file.write(backingFileOffset, cluster.subarray(backingFileOffset, backingFileOffset + backingFileSize));
  await state.flushFile();
}

/** Writes what refers to the name: one sector, where the extensions behind it are there already. */
async function switchTo(state: Qcow2State, to: Uint8Array, from: Uint8Array, extensions: number): Promise<void> {
  const oneSector = isSame(to, from, SECTOR, extensions);
  await state.file.write(0, to.subarray(0, oneSector ? SECTOR : extensions));
  await state.flushFile();
}

/** The largest that can be recorded, and what cannot at all. */
function requireRecordable({ header, name }: Qcow2State, backing: BackingRecord | undefined): void {
  if (backing === undefined) return;
  const refuse = (code: 'INVALID_ARGUMENT' | 'OPTION', finding: string, what: string): BlockError =>
    new BlockError(code, `qcow2 "${name}": ${what}`, { reason: `qcow2.${finding}`, details: { ...backing } });
  const nameBytes = new TextEncoder().encode(backing.name).length;
  const formatBytes = new TextEncoder().encode(backing.format ?? '').length;
  if (backing.name === '' || backing.name.includes('\0')) {
    throw refuse('INVALID_ARGUMENT', 'backing-name', 'the backing file name is not a name');
  }
  if (nameBytes > MAX_NAME_BYTES) {
    throw refuse(
      'INVALID_ARGUMENT',
      'backing-name-length',
      `backing file name of ${nameBytes} bytes; at most ${MAX_NAME_BYTES} can be recorded`,
    );
  }
  if (formatBytes > MAX_FORMAT_BYTES) {
    throw refuse(
      'INVALID_ARGUMENT',
      'backing-format-length',
      `backing format name of ${formatBytes} bytes; at most ${MAX_FORMAT_BYTES} can be recorded`,
    );
  }
  if ((header.autoclear & AUTOCLEAR.dataFileRaw) !== 0n) {
    throw refuse('OPTION', 'data-file-raw-backing', 'data_file_raw and a backing file exclude each other');
  }
}

/** End of the header extensions in a first cluster, the end marker included. */
function extensionsOf(cluster: Uint8Array, header: Qcow2Header): number {
  const { backingFileOffset } = HeaderV2.decode(cluster);
  const start = header.version < 3 ? HEADER_V3_AT : HeaderV3.decode(cluster, HEADER_V3_AT).headerLength;
  return extensionsEnd(cluster, start, backingFileOffset === 0 ? cluster.length : backingFileOffset);
}

/** Where the name can be written without touching anything that is in use: its own place if that is free, else one that overlaps neither.
 *  @returns `undefined` where there is none; the name's own place when there is no name. */
function freePlace(
  cluster: Uint8Array,
  extensions: number,
  old: Uint8Array,
  oldHeader: Qcow2Header,
): number | undefined {
  const { backingFileOffset: own, backingFileSize: length } = HeaderV2.decode(cluster);
  const { backingFileOffset: oldAt, backingFileSize: oldLength } = HeaderV2.decode(old);
  const oldExtensions = extensionsOf(old, oldHeader);
  if (length === 0 || (own >= oldExtensions && (own + length <= oldAt || own >= oldAt + oldLength))) return own;
  const behind = alignUp(Math.max(extensions + length, oldExtensions, oldAt + oldLength), 8);
  return behind + length <= cluster.length ? behind : undefined;
}

/** The cluster with its name at `at`; the same one where it is there already. */
function moveName(cluster: Uint8Array, at: number): Uint8Array {
  const fields = HeaderV2.decode(cluster);
  const { backingFileOffset: own, backingFileSize: length } = fields;
  if (own === at) return cluster;
  const moved = cluster.slice();
  moved.fill(0, own, own + length);
  moved.set(cluster.subarray(own, own + length), at);
  return HeaderV2.encode({ ...fields, backingFileOffset: at }, moved);
}

function isSame(a: Uint8Array, b: Uint8Array, start: number, end: number): boolean {
  for (let i = start; i < end; i++) if (a[i] !== b[i]) return false;
  return true;
}
