/** State of running data requests, reused from one to the next. No I/O.
 *  Invariant: a transfer that was given back holds nothing of its request: keeping the buffer would keep the caller's memory. */
import type { Pending } from '../base/async.ts';
import { BlockError, hex } from '../base/errors.ts';
import { RunList } from './run.ts';
import type { IoOptions } from './store.ts';

const EMPTY = new Uint8Array(0);
const HINTS = { this: { thread: 'this' }, pool: { thread: 'pool' } } as const;

/** One running data request. */
export class Transfer {
  buffer: Uint8Array = EMPTY;
  /** Guest offset of the buffer's first byte. */
  offset = 0;
  /** How far the request has come, and where it ends. */
  at = 0;
  end = 0;
  /** For the requests to children; without the signal, which is looked at between them. */
  hint: IoOptions | undefined;
  readonly runs = new RunList();
  readonly pendings: Pending[] = [];
}

export class TransferPool {
  readonly #free: Transfer[] = [];

  take(offset: number, buffer: Uint8Array, options: IoOptions | undefined): Transfer {
    const transfer = this.#free.pop() ?? new Transfer();
    transfer.buffer = buffer;
    transfer.offset = offset;
    transfer.at = offset;
    transfer.end = offset + buffer.length;
    transfer.hint = options?.thread === undefined ? undefined : HINTS[options.thread];
    transfer.runs.reset(-1, -1);
    return transfer;
  }

  give(transfer: Transfer): void {
    transfer.buffer = EMPTY;
    transfer.pendings.length = 0;
    this.#free.push(transfer);
  }
}

/** `buffer[from, to)`, without a new object where that is all of it. */
export function part(buffer: Uint8Array, from: number, to: number): Uint8Array {
  return from === 0 && to === buffer.length ? buffer : buffer.subarray(from, to);
}

/** A driver that maps nothing would make us loop for ever. */
export function requireProgress(runs: RunList, at: number, driver: string): void {
  if (runs.count === 0 || runs.guestStart !== at) {
    throw new BlockError('INTERNAL', `internal error: ${driver} maps nothing at ${hex(at)}`);
  }
}
