/** Reads many tables of one size, in order, in large requests and ahead of their use. Knows nothing of what is in them.
 *  Invariants: neighbouring tables are read together; a few requests run at once where the store needs time, and none is left
 *  running when an error leaves the loop. */
import { type Pending, settleAll } from '../../base/async.ts';
import { isBlockError } from '../../base/errors.ts';
import type { ByteStore } from '../../core/store.ts';

/** Synchronous files answer requests of this size at once. */
const CHUNK = 256 * 1024;
const AHEAD = 4;

/** On whose behalf tables are read, and when that gives the event loop its turn. */
export interface TableReader {
  readonly file: ByteStore;
  /** True when `rest` is to be awaited. */
  readonly restDue: boolean;
  rest(): Promise<void>;
}

/** Told of table `index`, which begins at byte `at` of `view`; its bytes are valid until the returned Pending ends. */
export type TableVisitor = (index: number, view: DataView, at: number) => Pending;

interface Slot {
  readonly view: DataView;
  readonly bytes: Uint8Array;
  first: number;
  end: number;
  pending: Pending;
  /** The request failed before it began. */
  error: { readonly error: unknown } | undefined;
}

/** Told of table `index`, which cannot be read. */
export type TableFailure = (index: number, error: unknown) => void;

/** Visits the tables at `offsets` (bytes; finite; what lies past the end of the file is zero), in that order.
 *  @param failed where it is given, an unreadable table is told and left out; else its error ends the visit */
export async function readTables(
  run: TableReader,
  offsets: ArrayLike<number>,
  tableBytes: number,
  visit: TableVisitor,
  failed?: TableFailure,
): Promise<void> {
  const size = Math.min(Math.max(CHUNK, tableBytes), Math.max(tableBytes, offsets.length * tableBytes));
  const slots: Slot[] = [];
  let asked = 0;

  const ask = (slot: Slot): void => {
    slot.first = asked;
    const start = offsets[asked] as number;
    let count = 1;
    while ((count + 1) * tableBytes <= size && offsets[asked + count] === start + count * tableBytes) count++;
    asked += count;
    slot.end = asked;
    slot.pending = undefined;
    slot.error = undefined;
    try {
      slot.pending = run.file.read(start, slot.bytes.subarray(0, count * tableBytes));
    } catch (error) {
      slot.error = { error };
    }
  };

  try {
    while (slots.length < AHEAD && asked < offsets.length) {
      const bytes = new Uint8Array(size);
      const slot: Slot = {
        bytes,
        view: new DataView(bytes.buffer),
        first: 0,
        end: 0,
        pending: undefined,
        error: undefined,
      };
      slots.push(slot);
      ask(slot);
    }
    for (let turn = 0; slots.length > 0; turn++) {
      const slot = slots[turn % slots.length] as Slot;
      if (slot.first >= slot.end) break;
      const readable = await arrive(run, slot, offsets, tableBytes, failed);
      for (let index = slot.first; index < slot.end; index++) {
        if (readable?.has(index) === false) continue;
        const visiting = visit(index, slot.view, (index - slot.first) * tableBytes);
        if (visiting !== undefined) await visiting;
        if (run.restDue) await run.rest();
      }
      slot.first = slot.end;
      if (asked < offsets.length) ask(slot);
    }
  } catch (error) {
    await settleAll(slots.map((slot) => slot.pending)).catch(() => undefined);
    throw error;
  }
}

/** Ends the slot's request. After a failure its tables are read one by one.
 *  @returns the indexes that could be read; `undefined` for all. */
async function arrive(
  run: TableReader,
  slot: Slot,
  offsets: ArrayLike<number>,
  tableBytes: number,
  failed: TableFailure | undefined,
): Promise<ReadonlySet<number> | undefined> {
  try {
    if (slot.error !== undefined) throw slot.error.error;
    if (slot.pending !== undefined) await slot.pending;
    return undefined;
  } catch (error) {
    if (failed === undefined || !isBlockError(error) || error.code !== 'IO') throw error;
  } finally {
    slot.pending = undefined;
  }
  const readable = new Set<number>();
  for (let index = slot.first; index < slot.end; index++) {
    const at = (index - slot.first) * tableBytes;
    try {
      await run.file.read(offsets[index] as number, slot.bytes.subarray(at, at + tableBytes));
      readable.add(index);
    } catch (error) {
      failed(index, error);
    }
  }
  return readable;
}
