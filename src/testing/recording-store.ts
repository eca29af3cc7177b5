/** A store that remembers what was written to it, in order, so that a test can crash it afterwards at any moment.
 *  Owns the log and its replay. Time is counted in ticks: one for each begin and each end of a request.
 *  Invariants: data is copied when the request begins; a write is durable only by a flush that BEGAN after the write had
 *  ended (or by its own fua); the log never changes what the store behind does. */
import type { Pending } from '../base/async.ts';
import type { BlockNode } from '../core/node.ts';
import { InterceptedStore, type Operation, type OperationKind } from './intercepted-store.ts';

export type LoggedKind = 'read' | 'write' | 'zeroes' | 'discard' | 'truncate' | 'flush';

export interface LogEntry {
  /** Place in the log: the order in which requests began. */
  readonly index: number;
  readonly store: RecordingStore;
  readonly kind: LoggedKind;
  /** Bytes; for `truncate` the new size. */
  readonly offset: number;
  readonly length: number;
  /** A copy of what was written, parts laid end to end. */
  readonly data: Uint8Array | undefined;
  /** Buffers the write came in. */
  readonly parts: number;
  readonly fua: boolean;
  readonly unmap: boolean;
  /** Tick of its begin. */
  readonly began: number;
  /** Tick of its end; `undefined` while it runs. */
  readonly ended: number | undefined;
  readonly failed: boolean;
}

type Mutable<T> = { -readonly [K in keyof T]: T[K] };

/** What happened, over one store or several: files of one image share a log, so that their order is known. */
export class WriteLog {
  readonly #entries: LogEntry[] = [];
  #tick = 0;

  get entries(): readonly LogEntry[] {
    return this.#entries;
  }

  /** The present moment. */
  get tick(): number {
    return this.#tick;
  }

  entriesOf(store: RecordingStore): readonly LogEntry[] {
    return this.#entries.filter((entry) => entry.store === store);
  }

  clear(): void {
    this.#entries.length = 0;
  }

  begin(entry: Omit<LogEntry, 'index' | 'began' | 'ended' | 'failed'>): LogEntry {
    const logged: LogEntry = {
      ...entry,
      index: this.#entries.length,
      began: this.#tick++,
      ended: undefined,
      failed: false,
    };
    this.#entries.push(logged);
    return logged;
  }

  end(entry: LogEntry, failed: boolean): void {
    const open = entry as Mutable<LogEntry>;
    open.ended = this.#tick++;
    open.failed = failed;
  }
}

export interface RecordingOptions {
  /** A log shared with other stores; a new one otherwise. */
  readonly log?: WriteLog;
  /** Log reads as well (without their data). */
  readonly reads?: boolean;
}

const LOGGED: ReadonlySet<OperationKind> = new Set(['write', 'zeroes', 'discard', 'truncate', 'flush']);

export class RecordingStore extends InterceptedStore {
  readonly log: WriteLog;
  readonly #reads: boolean;

  constructor(inner: BlockNode, options: RecordingOptions = {}) {
    super(inner);
    this.log = options.log ?? new WriteLog();
    this.#reads = options.reads === true;
  }

  /** This store's part of the log. */
  get entries(): readonly LogEntry[] {
    return this.log.entriesOf(this);
  }

  protected _around(operation: Operation, run: () => Pending): Pending {
    if (!LOGGED.has(operation.kind) && !(this.#reads && operation.kind === 'read')) return run();
    const entry = this.log.begin({
      store: this,
      kind: operation.kind as LoggedKind,
      offset: operation.offset,
      length: operation.length,
      data: operation.kind === 'write' ? joined(operation.parts, operation.length) : undefined,
      parts: operation.parts.length,
      fua: operation.options.fua === true,
      unmap: operation.options.unmap === true,
    });
    let pending: Pending;
    try {
      pending = run();
    } catch (error) {
      this.log.end(entry, true);
      throw error;
    }
    if (pending === undefined) {
      this.log.end(entry, false);
      return undefined;
    }
    return this.#follow(entry, pending);
  }

  async #follow(entry: LogEntry, pending: Promise<void>): Promise<void> {
    try {
      await pending;
    } catch (error) {
      this.log.end(entry, true);
      throw error;
    }
    this.log.end(entry, false);
  }
}

function joined(parts: readonly Uint8Array[], length: number): Uint8Array {
  const all = new Uint8Array(length);
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

export const SECTOR = 512;

/** Whether an entry reaches the disk: all of it, nothing, or the 512-byte sectors (by number: offset / 512) it says yes to. */
export type Keep = (entry: LogEntry) => boolean | ((sector: number) => boolean);

export interface ReplayOptions {
  /** What a kept discard leaves: zeros (as a punched hole does), the old bytes, or bytes that mean nothing. */
  readonly discard?: 'zero' | 'keep' | 'junk';
}

/** The content after the kept entries, in the order they began, on top of `base`.
 *  @param entries of one store
 *  @returns the whole content; its length is the size of the file */
export function replay(
  entries: readonly LogEntry[],
  base: Uint8Array,
  keep: Keep,
  options: ReplayOptions = {},
): Uint8Array {
  const image = new Growing(base);
  for (const entry of entries) {
    if (entry.kind === 'read' || entry.kind === 'flush') continue;
    const kept = keep(entry);
    if (kept === false) continue;
    if (entry.kind === 'truncate') {
      image.resize(entry.offset);
      continue;
    }
    const fill = entry.kind === 'discard' ? discardFill(options.discard) : 0;
    if (fill === undefined) continue;
    const end = entry.offset + entry.length;
    // a discard never makes a file longer
    const stop = entry.kind === 'discard' ? Math.min(end, image.size) : end;
    for (let at = entry.offset; at < stop; ) {
      const next = kept === true ? stop : Math.min(at - (at % SECTOR) + SECTOR, stop);
      if (kept === true || kept(Math.floor(at / SECTOR))) {
        image.put(at, next, entry.data?.subarray(at - entry.offset, next - entry.offset), fill);
      }
      at = next;
    }
  }
  return image.bytes();
}

function discardFill(mode: ReplayOptions['discard']): number | undefined {
  if (mode === 'keep') return undefined;
  return mode === 'junk' ? 0xdb : 0;
}

/** The entries that no crash at `tick` can lose. */
export function durableEntries(entries: readonly LogEntry[], tick: number): ReadonlySet<LogEntry> {
  // of the flushes that had ended, the one that began last covers most
  const flushed = new Map<RecordingStore, number>();
  for (const { kind, store, began, ended, failed } of entries) {
    if (kind === 'flush' && ended !== undefined && ended <= tick && !failed) {
      flushed.set(store, Math.max(flushed.get(store) ?? 0, began));
    }
  }
  const durable = new Set<LogEntry>();
  for (const entry of entries) {
    if (entry.kind === 'flush' || entry.ended === undefined || entry.ended > tick || entry.failed) continue;
    if (entry.fua || entry.ended < (flushed.get(entry.store) ?? -1)) durable.add(entry);
  }
  return durable;
}

export interface CrashOptions extends ReplayOptions {
  /** Writes that are not durable may also reach the disk in part, by 512-byte sectors. */
  readonly tear?: boolean;
}

/** One of the contents a crash at `tick` can leave: everything durable, and of the rest that had begun a random part.
 *  @param entries of one store @param random numbers in [0, 1) */
export function crashImage(
  entries: readonly LogEntry[],
  base: Uint8Array,
  tick: number,
  random: () => number,
  options: CrashOptions = {},
): Uint8Array {
  const durable = durableEntries(entries, tick);
  const keep: Keep = (entry) => {
    if (entry.began >= tick) return false;
    if (durable.has(entry)) return true;
    const choice = random();
    if (options.tear !== true || entry.kind === 'truncate') return choice < 0.5;
    if (choice < 1 / 3) return false;
    return choice < 2 / 3 ? true : () => random() < 0.5;
  };
  return replay(entries, base, keep, options);
}

class Growing {
  #bytes: Uint8Array;
  size: number;

  constructor(base: Uint8Array) {
    this.#bytes = base.slice();
    this.size = base.length;
  }

  put(start: number, end: number, from: Uint8Array | undefined, fill: number): void {
    if (end > this.size) this.resize(end);
    if (from === undefined) this.#bytes.fill(fill, start, end);
    else this.#bytes.set(from, start);
  }

  resize(size: number): void {
    if (size > this.#bytes.length) {
      const bytes = new Uint8Array(Math.max(size, this.#bytes.length * 2));
      bytes.set(this.#bytes);
      this.#bytes = bytes;
    }
    if (size < this.size) this.#bytes.fill(0, size, this.size);
    this.size = size;
  }

  bytes(): Uint8Array {
    return this.#bytes.slice(0, this.size);
  }
}
