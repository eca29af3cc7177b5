/** Guest reads over a FormatNode: maps, and reads each run from where it lies.
 *  Invariants: as long as mapping and children answer at once no promise is made; a run list stays as it is until every read that was
 *  begun from it has ended, because decoders read it; nothing is allocated per cluster. */
import { type Pending, settleAll } from '../base/async.ts';
import { BlockError } from '../base/errors.ts';
import { throwIfAborted } from '../base/job.ts';
import type { FormatNode } from './format.ts';
import type { Epochs } from './in-flight.ts';
import type { BlockNode } from './node.ts';
import type { Run } from './run.ts';
import type { BlockEvent, IoOptions } from './store.ts';
import { part, requireProgress, type Transfer, TransferPool } from './transfer.ts';
import type { TransformedIo } from './transformed-io.ts';

export class GuestReader {
  readonly #format: FormatNode;
  readonly #backing: BlockNode | undefined;
  readonly #epochs: Epochs;
  readonly #transformed: TransformedIo;
  readonly #transfers = new TransferPool();

  constructor(format: FormatNode, backing: BlockNode | undefined, epochs: Epochs, transformed: TransformedIo) {
    this.#format = format;
    this.#transformed = transformed;
    this.#backing = backing;
    this.#epochs = epochs;
  }

  /** Reads a range of the disk. `counted`: as a request of its own, not from inside another. */
  read(offset: number, into: Uint8Array, options: IoOptions | undefined, counted: boolean): Pending {
    const transfer = this.#transfers.take(offset, into, options);
    let waiting: Pending;
    try {
      waiting = this.#step(transfer);
    } catch (error) {
      this.#transfers.give(transfer);
      throw error;
    }
    if (waiting === undefined) {
      this.#transfers.give(transfer);
      return undefined;
    }
    return this.#rest(transfer, waiting, options?.signal, counted);
  }

  async #rest(
    transfer: Transfer,
    first: Promise<void>,
    signal: AbortSignal | undefined,
    counted: boolean,
  ): Promise<void> {
    const request = counted ? this.#epochs.begin() : 0;
    try {
      let waiting: Pending = first;
      while (waiting !== undefined) {
        await waiting;
        throwIfAborted(signal);
        waiting = this.#step(transfer);
      }
    } finally {
      this.#transfers.give(transfer);
      if (counted) this.#epochs.end(request);
    }
  }

  /** Reads on until everything is done (`undefined`) or something must be waited for. */
  #step(transfer: Transfer): Pending {
    const { runs } = transfer;
    while (transfer.at < transfer.end) {
      if (runs.guestStart !== transfer.at) {
        runs.reset(transfer.at, transfer.end);
        const mapping = this.#format.map(transfer.at, transfer.end - transfer.at, runs);
        if (mapping !== undefined) return mapping;
      }
      requireProgress(runs, transfer.at, this.#format.format);
      transfer.at = runs.guestEnd;
      const waiting = this.#runs(transfer);
      if (waiting !== undefined) return waiting;
    }
    return undefined;
  }

  #runs(transfer: Transfer): Pending {
    const { runs, pendings, buffer } = transfer;
    pendings.length = 0;
    try {
      for (let i = 0; i < runs.count; ) {
        const run = runs.at(i);
        const from = run.guestOffset - transfer.offset;
        const to = from + run.length;
        let pending: Pending;
        let taken = 1;
        switch (run.kind) {
          case 'zero':
            buffer.fill(0, from, to);
            break;
          case 'data':
            pending = this.#data(run, part(buffer, from, to), transfer.hint);
            break;
          case 'unallocated':
            pending = this.readBacking(run.guestOffset, part(buffer, from, to), transfer.hint);
            break;
          case 'encoded':
            while (i + taken < runs.count && runs.at(i + taken).kind === 'encoded') taken++;
            pending = this.#decode(transfer, i, taken);
            break;
        }
        if (pending !== undefined) pendings.push(pending);
        i += taken;
      }
    } catch (error) {
      return pendings.length === 0 ? reject(error) : settleThenThrow([...pendings], error);
    }
    if (pendings.length === 0) return undefined;
    // The run list stays as it is until everything has ended: decoders read it.
    return pendings.length === 1 ? pendings[0] : settleAll([...pendings]);
  }

  #data(run: Run, into: Uint8Array, hint: IoOptions | undefined): Pending {
    const announced = announce(this.#format, 'read_aio');
    if (announced !== undefined) return announced.then(() => this.#announcedData(run, into, hint));
    return this.#announcedData(run, into, hint);
  }

  #announcedData(run: Run, into: Uint8Array, hint: IoOptions | undefined): Pending {
    const child = childAt(this.#format, run.child);
    if (this.#format.transform === undefined) return child.read(run.hostOffset, into, hint);
    return this.#transformed.read(child, run.hostOffset, run.guestOffset, into, hint);
  }

  readBacking(offset: number, into: Uint8Array, hint?: IoOptions): Pending {
    const backing = this.#backing;
    const inside = backing === undefined ? 0 : Math.max(0, Math.min(into.length, backing.size - offset));
    if (inside < into.length) into.fill(0, inside);
    if (backing === undefined || inside === 0) return undefined;
    const announced = announce(this.#format, 'read_backing_aio');
    if (announced !== undefined) return announced.then(() => backing.read(offset, part(into, 0, inside), hint));
    return backing.read(offset, part(into, 0, inside), hint);
  }

  #decode(transfer: Transfer, first: number, count: number): Pending {
    const format = this.#format;
    if (format.decode === undefined) {
      throw new BlockError('INTERNAL', `internal error: ${format.format} maps encoded runs and cannot decode`);
    }
    const last = transfer.runs.at(first + count - 1);
    const from = transfer.runs.at(first).guestOffset - transfer.offset;
    const to = last.guestOffset + last.length - transfer.offset;
    return format.decode(transfer.runs, first, count, part(transfer.buffer, from, to));
  }
}

export function childAt(format: FormatNode, index: number): BlockNode {
  const child = format.children[index];
  if (child === undefined) throw new BlockError('INTERNAL', `internal error: ${format.format} has no child ${index}`);
  return child.node;
}

/** Tells the filters above the format's file which step comes. */
export function announce(format: FormatNode, event: BlockEvent): Pending {
  return format.children[0]?.node.event?.(event);
}

function reject(error: unknown): Promise<never> {
  return Promise.reject(error);
}

async function settleThenThrow(pendings: readonly Pending[], error: unknown): Promise<never> {
  await settleAll(pendings).catch(() => undefined);
  throw error;
}
