/** blklogwrites: every change goes to the disk and, in order, to a log that can be replayed up to any point.
 *  Behaviour: QEMU's `blklogwrites`, in the format of Linux's dm-log-writes.
 *  Invariants: overlapping changes follow each other, so that the log has them in the order in which the disk has; whole sectors are logged, with
 *  what the disk holds around the bytes that were written; a flush runs alone, so that it covers exactly the entries before it. */
import { BlockError } from '../base/errors.ts';
import { bool, defineOptions, int, size } from '../base/options.ts';
import { alignDown, alignUp } from '../bytes/align.ts';
import { defineFilter } from '../core/filter.ts';
import type { BlockNode, Child } from '../core/node.ts';
import { RangeLock } from '../core/range-lock.ts';
import type { IoOptions, StoreSupports, WriteOptions, ZeroOptions } from '../core/store.ts';
import { FilterNode } from './filter-node.ts';
import { LOG_FLAGS, LogWriter, readLog, requireSector } from './write-log.ts';

const DEFAULT_SECTOR = 512;
const NONE = 0n;

export class LogWritesNode extends FilterNode {
  override readonly children: readonly Child[];
  readonly #log: LogWriter;
  readonly #lock = new RangeLock();
  /** Something was logged since the last flush. */
  #isDirty = false;

  constructor(name: string, file: BlockNode, logFile: BlockNode, log: LogWriter) {
    super(name, 'blklogwrites', file);
    this.children = [
      { role: 'file', name: 'file', node: file },
      { role: 'extent', name: 'log', node: logFile },
    ];
    this.#log = log;
  }

  override get supports(): StoreSupports {
    return { ...this.inner.supports, fua: false, sync: false };
  }

  protected override async _write(offset: number, from: Uint8Array, options: WriteOptions | undefined): Promise<void> {
    const { fua, ...rest } = options ?? {};
    const [start, end] = this.#sectors(offset, from.length);
    await this.#alone(start, end, async () => {
      await super._write(offset, from, rest);
      const data = await this.#whole(start, end, offset, from);
      await this.#append({ offset: start, length: end - start, flags: NONE, data });
    });
    if (fua === true) await this._flush(undefined);
  }

  protected override async _writeZeroes(
    offset: number,
    length: number,
    options: ZeroOptions | undefined,
  ): Promise<void> {
    const { fua, ...rest } = options ?? {};
    const [start, end] = this.#sectors(offset, length);
    await this.#alone(start, end, async () => {
      await super._writeZeroes(offset, length, rest);
      const isWhole = start === offset && end === offset + length;
      const data = isWhole ? 'zeros' : await this.#whole(start, end, offset, new Uint8Array(length));
      await this.#append({ offset: start, length: end - start, flags: NONE, data });
    });
    if (fua === true) await this._flush(undefined);
  }

  /** Of parts of sectors nothing is discarded. */
  protected override async _discard(offset: number, length: number, options: IoOptions | undefined): Promise<void> {
    const start = alignUp(offset, this.#log.sector);
    const end = alignDown(offset + length, this.#log.sector);
    if (start >= end) return;
    await this.#alone(start, end, async () => {
      await super._discard(start, end - start, options);
      await this.#append({ offset: start, length: end - start, flags: LOG_FLAGS.discard });
    });
  }

  protected override async _flush(options: IoOptions | undefined): Promise<void> {
    await this.#alone(0, Number.MAX_SAFE_INTEGER, async () => {
      await super._flush(options);
      if (!this.#isDirty) return;
      await this.#append({ offset: 0, length: 0, flags: LOG_FLAGS.flush });
      this.#isDirty = false;
    });
  }

  #append(entry: Parameters<LogWriter['append']>[0]): Promise<void> {
    // Once it is on the disk it has to be in the log: nobody may give up in between.
    this.#isDirty = true;
    return this.#log.append(entry);
  }

  #sectors(offset: number, length: number): [start: number, end: number] {
    return [alignDown(offset, this.#log.sector), alignUp(offset + length, this.#log.sector)];
  }

  /** The sectors of a write as they are on the disk now. */
  async #whole(start: number, end: number, offset: number, from: Uint8Array): Promise<Uint8Array> {
    if (end - start === from.length) return from;
    const bytes = new Uint8Array(end - start);
    const inside = Math.max(0, Math.min(end, this.inner.size) - start);
    await super._read(start, bytes.subarray(0, inside), undefined);
    bytes.set(from, offset - start);
    return bytes;
  }

  async #alone(start: number, end: number, body: () => Promise<void>): Promise<void> {
    const ticket = this.#lock.acquire(start, end);
    try {
      if (ticket.waiting !== undefined) await ticket.waiting;
      await body();
    } finally {
      this.#lock.release(ticket);
    }
  }
}

export const blklogwrites = defineFilter({
  name: 'blklogwrites',
  summary: 'logs every change, so that it can be replayed up to any point',
  children: [
    { name: 'file', role: 'file', probed: 'never' },
    { name: 'log', role: 'extent', probed: 'never' },
  ],
  openOptions: defineOptions({
    logAppend: bool({ cli: 'log-append', default: false, help: 'go on with the log that is there' }),
    logSectorSize: size({ cli: 'log-sector-size', help: 'bytes of a sector of the log; 512 when not given' }),
    logSuperUpdateInterval: int({
      cli: 'log-super-update-interval',
      default: 4096,
      content: false,
      help: 'entries between two updates of the superblock',
    }),
  }),
  listOptions: {},
  async open(context, options) {
    const { name } = context;
    const [file] = context.children('file') as readonly [BlockNode];
    const [log] = context.children('log') as readonly [BlockNode];
    const { logAppend, logSectorSize, logSuperUpdateInterval: interval } = options;
    if (logAppend && logSectorSize !== undefined) {
      throw new BlockError(
        'OPTION',
        `blklogwrites "${name}": log-append goes on with the sector size of the log; leave log-sector-size out`,
        { reason: 'blklogwrites.append-sector' },
      );
    }
    const sector = logSectorSize ?? DEFAULT_SECTOR;
    const state = logAppend ? await readLog(name, log, sector) : { sector, entries: 0, end: sector };
    requireSector(name, state.sector);
    if (interval === 0) {
      throw new BlockError('OPTION', `blklogwrites "${name}": log-super-update-interval is 0`, {
        reason: 'blklogwrites.interval',
        details: { interval },
      });
    }
    return new LogWritesNode(name, file, log, new LogWriter(log, state, interval));
  },
});
