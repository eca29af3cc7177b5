/** The snapshot table: decoding with every bound checked, and encoding. Used by check, info and the node.
 *  Spec: qcow2, "Snapshots". Entries have no fixed size and begin at multiples of 8 bytes.
 *  Invariants: nothing larger than one entry's bounded parts is held per read (no size in the file decides an allocation);
 *  extra data this library does not know survives decode then encode. */
import { BlockError, type ErrorCode, type ErrorDetails, hex } from '../../base/errors.ts';
import { alignUp } from '../../bytes/align.ts';
import { flags64, struct, u16, u32, u64 } from '../../bytes/struct.ts';
import { isZero } from '../../bytes/zeros.ts';
import type { ByteStore } from '../../core/store.ts';
import { cString } from './features.ts';
import { MAX_SNAPSHOTS } from './geometry.ts';

const SnapshotHeader = struct('qcow2 snapshot table entry', 40, {
  l1Offset: [0, flags64],
  l1Size: [8, u32],
  idLength: [12, u16],
  nameLength: [14, u16],
  dateSeconds: [16, u32],
  dateNanoseconds: [20, u32],
  vmClock: [24, flags64],
  vmStateSize: [32, u32],
  extraLength: [36, u32],
});
/** The extra data that is known: VM state size, disk size, instruction count, 8 bytes each. */
const KNOWN_EXTRA_BYTES = 24;

/** What version 3 demands of extra data: VM state size and disk size. */
export const MIN_V3_EXTRA_BYTES = 16;
export const MAX_EXTRA_BYTES = 1024;
/** The whole table. */
export const MAX_TABLE_BYTES = 1024 * MAX_SNAPSHOTS;
const MAX_TABLE_SPAN = 0x7fff_ffff;
/** Shared, as is what is decoded from it: a wild count finds tens of thousands of empty entries in a hole, which must take neither tens of
 *  megabytes nor much time. */
const NOTHING = new Uint8Array(0);
const BLANK = SnapshotHeader.decode(new Uint8Array(SnapshotHeader.size));
const MAX_SAFE = BigInt(Number.MAX_SAFE_INTEGER);
const NO_ICOUNT = 0xffff_ffff_ffff_ffffn;

export interface SnapshotEntry {
  readonly id: string;
  readonly name: string;
  /** `Infinity` when recorded above 2^53-1. */
  readonly l1Offset: number;
  /** Where `l1Offset` is `Infinity`: what is recorded. */
  readonly l1OffsetExact?: bigint;
  /** L1 entries, not bytes. */
  readonly l1Size: number;
  /** Bytes; `Infinity` when recorded above 2^53-1. */
  readonly vmStateSize: number;
  /** Virtual size when the snapshot was taken, bytes; the image's where it is not recorded. */
  readonly diskSize: number;
  readonly dateSeconds: number;
  readonly dateNanoseconds: number;
  readonly vmClockNanoseconds: bigint;
  readonly icount: bigint | undefined;
  /** Extra data as recorded, at most 1 KiB. */
  readonly extra: Uint8Array;
  readonly rawId: Uint8Array;
  readonly rawName: Uint8Array;
}

export interface SnapshotTable {
  readonly entries: readonly SnapshotEntry[];
  /** Bytes that the table occupies in the file. */
  readonly size: number;
}

/** Where the header says the table is. */
export interface SnapshotPointer {
  readonly snapshotCount: number;
  readonly snapshotsOffset: number;
  /** For entries that do not record a disk size. */
  readonly virtualSize: number;
}

/** What a lenient reader is told, instead of an error. */
export interface SnapshotRepair {
  /** Extra data of entry `index` is longer than allowed and was cut. */
  extraCut(index: number, length: number): void;
  /** The table is too long; entries from `index` on were left out. */
  tableCut(index: number): void;
}

/** Reads the table; its offset and count have been checked with the header.
 *  @param repair accept what check can mend, and tell
 *  @throws {@link BlockError} TOO_LARGE, reasons `qcow2.snapshot-extra` (details `{ index }`), `qcow2.snapshot-table-size` (details
 *  `{ remaining }`, the snapshots that a repair would drop). */
export async function readSnapshotTable(
  file: ByteStore,
  pointer: SnapshotPointer,
  name: string,
  repair?: SnapshotRepair,
): Promise<SnapshotTable> {
  const window = new Window(file);
  const entries: SnapshotEntry[] = [];
  const start = pointer.snapshotsOffset;
  let at = start;
  let tableLength = 0;
  let blank: SnapshotEntry | undefined;
  for (let index = 0; index < pointer.snapshotCount; index++) {
    const before = at;
    const entryAt = alignUp(at, 8);
    const head = window.peek(entryAt, SnapshotHeader.size) ?? (await window.load(entryAt, SnapshotHeader.size));
    const fixed = isZero(head) ? BLANK : SnapshotHeader.decode(head);
    let extraLength = fixed.extraLength;
    if (extraLength > MAX_EXTRA_BYTES) {
      if (repair === undefined) {
        throw fault(
          name,
          'snapshot-extra',
          `snapshot table entry ${index} has ${extraLength} bytes of extra data; at most ${MAX_EXTRA_BYTES} are supported`,
          { index, value: extraLength, bound: MAX_EXTRA_BYTES, offset: entryAt },
          'TOO_LARGE',
        );
      }
      repair.extraCut(index, extraLength);
      extraLength = MAX_EXTRA_BYTES;
    }
    const extraAt = entryAt + SnapshotHeader.size;
    const extra = copyOf(window.peek(extraAt, extraLength) ?? (await window.load(extraAt, extraLength)));
    const idAt = extraAt + fixed.extraLength;
    const namesLength = fixed.idLength + fixed.nameLength;
    const names = copyOf(window.peek(idAt, namesLength) ?? (await window.load(idAt, namesLength)));
    at = idAt + namesLength;
    tableLength = alignUp(tableLength, 8) + SnapshotHeader.size + extraLength + namesLength;
    if (tableLength > MAX_TABLE_BYTES || at - start > MAX_TABLE_SPAN) {
      if (repair === undefined) {
        throw fault(
          name,
          'snapshot-table-size',
          `snapshot table passes ${hex(MAX_TABLE_BYTES)} bytes at entry ${index}`,
          { index, remaining: pointer.snapshotCount - index, bound: MAX_TABLE_BYTES },
          'TOO_LARGE',
        );
      }
      repair.tableCut(index);
      return { entries, size: before - start };
    }
    if (fixed === BLANK) blank ??= decodeEntry(BLANK, NOTHING, NOTHING, pointer.virtualSize);
    entries.push(
      fixed === BLANK && blank !== undefined ? blank : decodeEntry(fixed, extra, names, pointer.virtualSize),
    );
  }
  return { entries, size: at - start };
}

type FixedPart = ReturnType<typeof SnapshotHeader.decode>;

function decodeEntry(fixed: FixedPart, extra: Uint8Array, names: Uint8Array, virtualSize: number): SnapshotEntry {
  const rawId = untilNul(part(names, 0, fixed.idLength));
  const rawName = untilNul(part(names, fixed.idLength, names.length));
  const view = new DataView(extra.buffer, extra.byteOffset, extra.length);
  const icount = extra.length >= 24 ? view.getBigUint64(16) : NO_ICOUNT;
  return {
    id: cString(rawId),
    name: cString(rawName),
    l1Offset: fixed.l1Offset > MAX_SAFE ? Number.POSITIVE_INFINITY : Number(fixed.l1Offset),
    ...(fixed.l1Offset > MAX_SAFE ? { l1OffsetExact: fixed.l1Offset } : {}),
    l1Size: fixed.l1Size,
    vmStateSize: extra.length >= 8 ? u64.get(view, 0, false) : fixed.vmStateSize,
    diskSize: extra.length >= 16 ? u64.get(view, 8, false) : virtualSize,
    dateSeconds: fixed.dateSeconds,
    dateNanoseconds: fixed.dateNanoseconds,
    vmClockNanoseconds: fixed.vmClock,
    icount: icount === NO_ICOUNT ? undefined : icount,
    extra,
    rawId,
    rawName,
  };
}

/** What a new entry is to say. */
export type NewSnapshotEntry = Omit<SnapshotEntry, 'extra' | 'rawId' | 'rawName' | 'l1OffsetExact'>;

/** An entry as it will be read again. */
export function newSnapshotEntry(fields: NewSnapshotEntry): SnapshotEntry {
  const encoder = new TextEncoder();
  return {
    ...fields,
    extra: new Uint8Array(KNOWN_EXTRA_BYTES),
    rawId: encoder.encode(fields.id),
    rawName: encoder.encode(fields.name),
  };
}

/** The table as bytes, every entry with the extra data of version 3. */
export function encodeSnapshotTable(entries: readonly SnapshotEntry[]): Uint8Array {
  let size = 0;
  for (const entry of entries) size = alignUp(size, 8) + entrySize(entry);
  const table = new Uint8Array(size);
  let at = 0;
  for (const entry of entries) {
    at = alignUp(at, 8);
    encodeEntry(entry, table, at);
    at += entrySize(entry);
  }
  return table;
}

function entrySize(entry: SnapshotEntry): number {
  return SnapshotHeader.size + extraSize(entry) + entry.rawId.length + entry.rawName.length;
}

function extraSize(entry: SnapshotEntry): number {
  return Math.max(KNOWN_EXTRA_BYTES, entry.extra.length);
}

function encodeEntry(entry: SnapshotEntry, table: Uint8Array, at: number): void {
  const extraLength = extraSize(entry);
  SnapshotHeader.encode(
    {
      l1Offset: entry.l1OffsetExact ?? BigInt(entry.l1Offset),
      l1Size: entry.l1Size,
      idLength: entry.rawId.length,
      nameLength: entry.rawName.length,
      dateSeconds: entry.dateSeconds,
      dateNanoseconds: entry.dateNanoseconds,
      vmClock: entry.vmClockNanoseconds,
      // readers that know no extra data must see a snapshot without VM state rather than half of it
      vmStateSize: entry.vmStateSize <= 0xffff_ffff ? entry.vmStateSize : 0,
      extraLength,
    },
    table,
    at,
  );
  const extraAt = at + SnapshotHeader.size;
  table.set(entry.extra, extraAt);
  const view = new DataView(table.buffer, extraAt, extraLength);
  // what does not fit a number stays as it was read
  if (Number.isFinite(entry.vmStateSize)) u64.set(view, 0, entry.vmStateSize, false);
  if (Number.isFinite(entry.diskSize)) u64.set(view, 8, entry.diskSize, false);
  view.setBigUint64(16, entry.icount ?? NO_ICOUNT);
  table.set(entry.rawId, extraAt + extraLength);
  table.set(entry.rawName, extraAt + extraLength + entry.rawId.length);
}

function copyOf(bytes: Uint8Array): Uint8Array {
  return bytes.length === 0 ? NOTHING : bytes.slice();
}

function part(bytes: Uint8Array, start: number, end: number): Uint8Array {
  return start === end ? NOTHING : bytes.subarray(start, end);
}

function untilNul(raw: Uint8Array): Uint8Array {
  const end = raw.indexOf(0);
  return end < 0 ? raw : raw.subarray(0, end);
}

/** A moving piece of the file, so that small entries need few reads. */
class Window {
  readonly #file: ByteStore;
  readonly #bytes = new Uint8Array(256 * 1024);
  #start = 0;
  #end = 0;

  constructor(file: ByteStore) {
    this.#file = file;
  }

  /** The bytes, where they are here already; valid until the next load. */
  peek(at: number, length: number): Uint8Array | undefined {
    if (at < this.#start || at + length > this.#end) return undefined;
    return this.#bytes.subarray(at - this.#start, at - this.#start + length);
  }

  /** Loads from `at` on; `length` is at most what two names can have. */
  async load(at: number, length: number): Promise<Uint8Array> {
    await this.#file.read(at, this.#bytes);
    this.#start = at;
    this.#end = at + this.#bytes.length;
    return this.#bytes.subarray(0, length);
  }
}

function fault(name: string, finding: string, what: string, details: ErrorDetails, code: ErrorCode): BlockError {
  return new BlockError(code, `qcow2 "${name}": ${what}`, { reason: `qcow2.${finding}`, details });
}
