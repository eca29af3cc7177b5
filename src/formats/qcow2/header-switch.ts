/** Changing the first cluster as a whole, safely: header fields, extensions and names that move against each other.
 *  Spec: qcow2, "Header", "Header extensions". Runs alone.
 *  A write may tear between sectors; the header's fixed fields lie in the first one.
 *  Order: what the new header refers to outside the first sector goes to bytes that the old one does not refer to, flush; the first sector,
 *  flush; then the bytes that nothing refers to any more are cleared. Where both want the same bytes, names step aside first, each step made
 *  in that order. Where even that does not help (extensions that cross the first sector and change there), it is one write of the whole
 *  cluster, as everywhere in this room.
 *  Where fixed fields alone change, nothing else is written: a switch, after which everything means something else at once. */
import type { Pending } from '../../base/async.ts';
import { alignUp } from '../../bytes/align.ts';
import type { ByteStore } from '../../core/store.ts';
import { extensionsEnd } from './extensions.ts';
import { encodeHeader, type Qcow2Header } from './header.ts';
import { ENCRYPTION_METHODS, HEADER_V3_AT, HeaderV2, HeaderV3, QCOW2_MAGIC } from './header-fields.ts';

const SECTOR = 512;

/** Who has the header in memory. */
export interface HeaderHolder {
  readonly file: ByteStore;
  readonly name: string;
  header: Qcow2Header;
  flushFile(): Pending;
}

/** Ends when the file holds `next`, durably; `state.header` is `next` then.
 *  @throws {@link BlockError} NO_SPACE, reason `qcow2.header-space`, before anything is written; what the file throws. */
export async function switchHeader(state: HeaderHolder, next: Qcow2Header): Promise<void> {
  const { file, name } = state;
  const target = new FirstCluster(encodeHeader(next, name));
  const bytes = new Uint8Array(target.bytes.length);
  await file.read(0, bytes);
  let present = new FirstCluster(bytes);
  for (const stage of stagesBetween(present, target)) {
    await step(state, present, stage);
    present = stage;
  }
  await file.write(0, target.bytes);
  await state.flushFile();
  state.header = next;
}

/** The bytes of a first cluster, and which of them are referred to: from the beginning to `extensions`, and the name. */
class FirstCluster {
  readonly bytes: Uint8Array;
  /** End of the extensions, their end marker included. */
  readonly extensions: number;
  readonly nameAt: number;
  readonly nameLength: number;

  constructor(bytes: Uint8Array) {
    const { version, backingFileOffset, backingFileSize } = HeaderV2.decode(bytes);
    const start = version < 3 ? HEADER_V3_AT : HeaderV3.decode(bytes, HEADER_V3_AT).headerLength;
    this.bytes = bytes;
    this.extensions = extensionsEnd(bytes, start, backingFileOffset === 0 ? bytes.length : backingFileOffset);
    this.nameAt = backingFileOffset;
    this.nameLength = backingFileOffset === 0 ? 0 : backingFileSize;
  }

  get end(): number {
    return Math.max(this.extensions, this.nameAt + this.nameLength);
  }

  refersTo(at: number): boolean {
    return at < this.extensions || (at >= this.nameAt && at < this.nameAt + this.nameLength);
  }

  /** The same with its name at `at`. */
  withNameAt(at: number): FirstCluster {
    if (this.nameLength === 0 || at === this.nameAt) return this;
    const moved = this.bytes.slice();
    moved.fill(0, this.nameAt, this.nameAt + this.nameLength);
    moved.set(this.bytes.subarray(this.nameAt, this.nameAt + this.nameLength), at);
    return new FirstCluster(HeaderV2.encode({ ...HeaderV2.decode(moved), backingFileOffset: at }, moved));
  }
}

/** The first clusters to go through, one sector's write apart from each other; none where there is no such way. */
function stagesBetween(from: FirstCluster, to: FirstCluster): readonly FirstCluster[] {
  const far = alignUp(Math.max(from.end, to.end), 8);
  const room = far + Math.max(from.nameLength, to.nameLength) <= to.bytes.length;
  const ways = [
    [to],
    ...(room
      ? [
          [to.withNameAt(far), to],
          [from.withNameAt(far), to.withNameAt(far), to],
        ]
      : []),
  ];
  return ways.find((way) => way.every((stage, i) => canFollow(way[i - 1] ?? from, stage))) ?? [];
}

/** What `to` refers to outside the first sector can be written while `from` is in force. */
function canFollow(from: FirstCluster, to: FirstCluster): boolean {
  for (let at = SECTOR; at < to.end; at++) {
    if (to.refersTo(at) && from.refersTo(at) && to.bytes[at] !== from.bytes[at]) return false;
  }
  return true;
}

async function step(state: HeaderHolder, from: FirstCluster, to: FirstCluster): Promise<void> {
  const { file } = state;
  const end = Math.max(from.end, to.end);
  if (end > SECTOR) {
    const both = from.bytes.slice(SECTOR, end);
    for (let at = SECTOR; at < end; at++) if (to.refersTo(at)) both[at - SECTOR] = to.bytes[at] as number;
    await file.write(SECTOR, both);
    await state.flushFile();
  }
  await file.write(0, to.bytes.subarray(0, Math.min(SECTOR, to.bytes.length)));
  await state.flushFile();
}

/** Changes fixed fields of the header, from the virtual size on, in one write within the first sector.
 *  @param onSwitched called when the header in memory has become the new one
 *  @throws {@link UnknownState}; what the file throws: then the header is what it was. */
export async function switchFields(state: HeaderHolder, next: Qcow2Header, onSwitched?: () => void): Promise<void> {
  const { file } = state;
  const old = fixedFields(state.header);
  const fresh = fixedFields(next);
  const start = HeaderV2.fields.size[0];
  let end = old.length;
  while (end > HeaderV2.size && old[end - 1] === fresh[end - 1]) end--;
  const put = async (bytes: Uint8Array): Promise<void> => {
    await file.write(start, bytes.subarray(start, end));
    await state.flushFile();
  };
  try {
    await put(fresh);
  } catch (error) {
    // It may have reached the disk all the same. Both images are right, but we must know which one is there.
    try {
      await put(old);
    } catch {
      throw new UnknownState(error);
    }
    throw error;
  }
  state.header = next;
  onSwitched?.();
}

/** As {@link switchFields}, of an open image: where nobody knows any more which header the file has, no further request is served.
 *  @throws what the file throws. */
export async function switchOrCondemn(
  state: HeaderHolder & { readonly engine: { condemn(error: Error): void } | undefined },
  next: Qcow2Header,
): Promise<void> {
  try {
    await switchFields(state, next);
  } catch (error) {
    if (!(error instanceof UnknownState)) throw error;
    state.engine?.condemn(error);
    throw error.cause;
  }
}

/** The header could neither be switched nor put back: nobody knows which of the two images the file holds. */
export class UnknownState extends Error {
  constructor(cause: unknown) {
    super('the header is in an unknown state', { cause });
  }
}

/** The header without what changes with its extensions: only good for comparing. */
function fixedFields(header: Qcow2Header): Uint8Array {
  const notSwitched = { magic: QCOW2_MAGIC, backingFileOffset: 0, backingFileSize: 0 };
  const cryptMethod = ENCRYPTION_METHODS.indexOf(header.encryption);
  const fixed = new Uint8Array(HEADER_V3_AT + HeaderV3.size);
  HeaderV2.encode({ ...header, ...notSwitched, size: header.virtualSize, cryptMethod }, fixed);
  const notHere = { headerLength: 0, compressionType: 0, padding: undefined };
  if (header.version >= 3) HeaderV3.encode({ ...header, ...notHere }, fixed, HEADER_V3_AT);
  return fixed;
}
