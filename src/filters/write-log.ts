/** A log of writes, as Linux's dm-log-writes keeps it: superblock and entries. Owns the format; the file is the caller's.
 *  Spec: drivers/md/dm-log-writes.c (version 1, all little-endian). Sector 0 of the log is the superblock, then come entries: one sector each,
 *  followed by the data of writes; entries of discards have none.
 *  Invariants: entries are written one after the other, each in one piece with its data; one that failed is written over by the next; the
 *  superblock counts entries that are in the file. */
import { Mutex } from '../base/async.ts';
import { BlockError, hex } from '../base/errors.ts';
import { throwIfAborted } from '../base/job.ts';
import { isPowerOfTwo } from '../bytes/align.ts';
import { flags64, struct, u32, u64 } from '../bytes/struct.ts';
import type { ByteStore } from '../core/store.ts';

const MAGIC = 0x6a_7366_7773_6872n;
const VERSION = 1;
/** An entry fits, and a superblock. */
const SMALLEST_SECTOR = 32;
const SECTOR_LIMIT = 2 ** 24;

export const LOG_FLAGS = { flush: 1n, fua: 2n, discard: 4n, mark: 8n } as const;
const KNOWN_FLAGS = 15n;

const Superblock = struct(
  'log superblock',
  28,
  { magic: [0, flags64], version: [8, u64], entries: [16, u64], sector: [24, u32] },
  { littleEndian: true },
);

const Entry = struct(
  'log entry',
  32,
  { sector: [0, u64], sectors: [8, u64], flags: [16, flags64], dataLength: [24, u64] },
  { littleEndian: true },
);

/** One entry of a log. */
export interface LogEntry {
  /** Where on the disk, bytes. */
  readonly offset: number;
  /** Bytes of the disk. */
  readonly length: number;
  readonly flags: bigint;
  /** Where its data lies in the log; `undefined` where it has none. */
  readonly dataAt: number | undefined;
}

export interface LogState {
  readonly sector: number;
  readonly entries: number;
  /** Where the next entry goes, bytes. */
  readonly end: number;
}

/** What an entry has to say. */
export interface NewEntry {
  /** Bytes; multiples of the log's sector. */
  readonly offset: number;
  readonly length: number;
  readonly flags: bigint;
  /** Its data; `zeros`: as many as its length. */
  readonly data?: Uint8Array | 'zeros';
}

/** @throws {@link BlockError} OPTION, reason `blklogwrites.sector`. */
export function requireSector(name: string, sector: number): void {
  if (isPowerOfTwo(sector) && sector >= SMALLEST_SECTOR && sector < SECTOR_LIMIT) return;
  throw new BlockError(
    'OPTION',
    `blklogwrites "${name}": sector size ${sector} is not a power of two from ${SMALLEST_SECTOR} to below ${SECTOR_LIMIT}`,
    { reason: 'blklogwrites.sector', details: { sector } },
  );
}

/** Where a log stands that is to be continued; an empty file is one without entries.
 *  @param name what messages call the filter
 *  @throws {@link BlockError} CORRUPT, reasons `blklogwrites.magic`, `blklogwrites.version`, `blklogwrites.flags`, `blklogwrites.entry`;
 *  OPTION, reason `blklogwrites.sector`; as reading the file. */
export async function readLog(name: string, log: ByteStore, emptySector: number): Promise<LogState> {
  if (log.size === 0) return { sector: emptySector, entries: 0, end: emptySector };
  const { sector, entries } = await readSuperblock(name, log);
  let end = sector;
  for await (const entry of logEntries(name, log, sector, entries)) {
    end = (entry.dataAt ?? end + sector) + (entry.dataAt === undefined ? 0 : entry.length);
  }
  return { sector, entries, end };
}

async function readSuperblock(name: string, log: ByteStore): Promise<{ sector: number; entries: number }> {
  const head = new Uint8Array(512);
  await log.read(0, head);
  const { magic, version, entries, sector } = Superblock.decode(head);
  if (magic !== MAGIC) throw corrupt(name, 'magic', 'the log does not begin with the superblock of one', {});
  if (version !== VERSION) {
    // As it stands there: a number can be too large for one.
    const stated = new DataView(head.buffer).getBigUint64(8, true);
    throw corrupt(name, 'version', `the log has version ${stated}, not ${VERSION}`, { version: stated });
  }
  requireSector(name, sector);
  return { sector, entries };
}

/** The entries of a log, in order, whatever wrote it.
 *  @throws as {@link readLog}. */
export async function* replayLog(name: string, log: ByteStore): AsyncGenerator<LogEntry, void, undefined> {
  if (log.size === 0) return;
  const { sector, entries } = await readSuperblock(name, log);
  yield* logEntries(name, log, sector, entries);
}

async function* logEntries(
  name: string,
  log: ByteStore,
  sector: number,
  count: number,
): AsyncGenerator<LogEntry, void, undefined> {
  const head = new Uint8Array(SMALLEST_SECTOR);
  let at = sector;
  for (let i = 0; i < count; i++) {
    // So the file's size bounds the walk, whatever the superblock says.
    if (at + sector > log.size) {
      throw corrupt(name, 'entry', `entry ${i} of ${count} at ${hex(at)} passes the end of the log, ${hex(log.size)}`, {
        entry: i,
      });
    }
    await log.read(at, head);
    const { sector: first, sectors, flags } = Entry.decode(head);
    if ((flags & ~KNOWN_FLAGS) !== 0n) {
      throw corrupt(name, 'flags', `entry ${i} has unknown flags 0x${flags.toString(16)}`, { entry: i, flags });
    }
    const hasData = (flags & LOG_FLAGS.discard) === 0n;
    const length = sectors * sector;
    at += sector;
    if (!(first * sector + length <= Number.MAX_SAFE_INTEGER) || (hasData && at + length > log.size)) {
      throw corrupt(name, 'entry', `entry ${i} of ${sectors} sectors at sector ${first} is out of range`, { entry: i });
    }
    yield { offset: first * sector, length, flags, dataAt: hasData && length > 0 ? at : undefined };
    if (hasData) at += length;
  }
}

function corrupt(name: string, finding: string, what: string, details: Readonly<Record<string, unknown>>): BlockError {
  return new BlockError('CORRUPT', `blklogwrites "${name}": ${what}`, { reason: `blklogwrites.${finding}`, details });
}

/** Writes a log. */
export class LogWriter {
  readonly sector: number;
  readonly #log: ByteStore;
  /** Entries between two updates of the superblock. */
  readonly #interval: number;
  readonly #turn = new Mutex();
  #entries: number;
  #end: number;

  constructor(log: ByteStore, state: LogState, interval: number) {
    this.#log = log;
    this.sector = state.sector;
    this.#entries = state.entries;
    this.#end = state.end;
    this.#interval = interval;
  }

  /** Adds an entry; one with the flush flag is durable then, with all before it. */
  async append(entry: NewEntry, signal?: AbortSignal): Promise<void> {
    throwIfAborted(signal);
    await this.#turn.run(async () => {
      const { data, flags } = entry;
      const bytes = data instanceof Uint8Array ? data : undefined;
      const head = new Uint8Array(this.sector);
      Entry.encode(
        { sector: entry.offset / this.sector, sectors: entry.length / this.sector, flags, dataLength: 0 },
        head,
      );
      await this.#log.write(this.#end, bytes === undefined ? head : joined(head, bytes));
      const at = this.#end + this.sector;
      if (data === 'zeros') await this.#log.writeZeroes(at, entry.length);
      this.#end = at + (data === undefined ? 0 : entry.length);
      this.#entries++;
      if ((flags & LOG_FLAGS.flush) !== 0n || this.#entries % this.#interval === 0) await this.#publish();
    });
  }

  async #publish(): Promise<void> {
    const head = new Uint8Array(this.sector);
    Superblock.encode({ magic: MAGIC, version: VERSION, entries: this.#entries, sector: this.sector }, head);
    // The entries first: the superblock must not count what a crash may take away.
    await this.#log.flush();
    await this.#log.write(0, head);
    await this.#log.flush();
  }
}

function joined(a: Uint8Array, b: Uint8Array): Uint8Array {
  const both = new Uint8Array(a.length + b.length);
  both.set(a);
  both.set(b, a.length);
  return both;
}
