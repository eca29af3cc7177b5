/** The sources of a conversion as one disk: laid end to end, read with salvage, and told apart by status.
 *  Invariants: a request that crosses from one source into the next is split there; without salvage every read error ends the
 *  conversion and names source and offset; with it nothing but unreadable sectors becomes zero. */
import { Mutex, type Pending, settleAll } from '../base/async.ts';
import { BlockError, isBlockError } from '../base/errors.ts';
import type { IoOptions } from '../core/store.ts';
import type { Image } from '../image/image.ts';
import { StatusCursor } from './status-cursor.ts';

/** `keep`: the target's backing file shows it already. */
export type SegmentKind = 'data' | 'zero' | 'keep';

const SECTOR = 512;
/** Taken for data where the status cannot be read (salvage), bytes. */
const BLIND_STEP = 64 * 1024;

export interface SourcePart {
  readonly image: Image;
  /** Where it begins on the joint disk, bytes. */
  readonly start: number;
  /** Bytes of it that are taken, and the first of them on the image's own disk. */
  readonly size: number;
  readonly from: number;
  /** Layers from this depth on are what the target's backing file has. `Infinity`: none. */
  readonly keepDepth: number;
}

export interface SalvageOptions {
  /** Told of every range that became zeros. Bytes of the joint disk. */
  readonly onLoss: (offset: number, length: number, error: unknown) => void;
}

/** What is copied: a disk whose status is asked from front to back, and which is read in that order. */
export interface CopySource {
  /** Bytes; infinite as long as nobody knows. */
  readonly size: number;
  /** Status from the offset of the last `seek` on. */
  readonly kind: SegmentKind;
  readonly end: number;
  seek(offset: number): Pending;
  read(offset: number, into: Uint8Array, options?: IoOptions): Pending;
}

export class SourceDisk implements CopySource {
  readonly parts: readonly SourcePart[];
  readonly size: number;
  /** Status from the offset of the last `seek` on. */
  kind: SegmentKind = 'zero';
  end = 0;
  readonly #cursors: readonly StatusCursor[];
  readonly #salvage: SalvageOptions | undefined;
  /** Requests wait for the one before: a pipe is read in order. */
  readonly #turn: Mutex | undefined;
  #part = 0;

  /** @param inOrder one part at least is read from a pipe */
  constructor(parts: readonly SourcePart[], salvage: SalvageOptions | undefined, inOrder = false) {
    this.#turn = inOrder ? new Mutex() : undefined;
    this.parts = parts;
    this.size = parts.reduce((sum, part) => sum + part.size, 0);
    this.#cursors = parts.map((part) => new StatusCursor(part.image.node));
    this.#salvage = salvage;
  }

  /** Finds out what is at `offset`, and for how long. */
  seek(offset: number): Pending {
    while (offset >= this.#partAt(this.#part).start + this.#partAt(this.#part).size) this.#part++;
    const part = this.#partAt(this.#part);
    const cursor = this.#cursors[this.#part] as StatusCursor;
    let pending: Pending;
    try {
      pending = cursor.seek(offset - part.start + part.from);
    } catch (error) {
      this.#blind(part, offset, error);
      return undefined;
    }
    if (pending !== undefined) return this.#classifyLater(pending, part, cursor, offset);
    this.#classify(part, cursor);
    return undefined;
  }

  /** Fills `into` with the disk's bytes from `offset` on. */
  read(offset: number, into: Uint8Array, options?: IoOptions): Pending {
    return this.#turn === undefined
      ? this.#read(offset, into, options)
      : this.#turn.run(() => this.#read(offset, into, options));
  }

  #read(offset: number, into: Uint8Array, options: IoOptions | undefined): Pending {
    const first = this.#indexOf(offset);
    const part = this.#partAt(first);
    if (offset + into.length <= part.start + part.size) return this.#readPart(part, offset, into, options);
    const pendings: Pending[] = [];
    for (let index = first, at = 0; at < into.length; index++) {
      const { start, size } = this.#partAt(index);
      const length = Math.min(into.length - at, start + size - (offset + at));
      pendings.push(this.#readPart(this.#partAt(index), offset + at, into.subarray(at, at + length), options));
      at += length;
    }
    return pendings.every((pending) => pending === undefined) ? undefined : settleAll(pendings);
  }

  #partAt(index: number): SourcePart {
    return this.parts[index] as SourcePart;
  }

  #indexOf(offset: number): number {
    let index = 0;
    while (offset >= this.#partAt(index).start + this.#partAt(index).size) index++;
    return index;
  }

  async #classifyLater(pending: Promise<void>, part: SourcePart, cursor: StatusCursor, offset: number): Promise<void> {
    try {
      await pending;
    } catch (error) {
      this.#blind(part, offset, error);
      return;
    }
    this.#classify(part, cursor);
  }

  #classify(part: SourcePart, cursor: StatusCursor): void {
    this.end = part.start + Math.min(part.size, cursor.end - part.from);
    if (cursor.depth >= part.keepDepth) this.kind = 'keep';
    else this.kind = cursor.zero ? 'zero' : 'data';
  }

  /** Without status everything may be data; reading will tell. */
  #blind(part: SourcePart, offset: number, error: unknown): void {
    if (this.#salvage === undefined || isFinal(error))
      throw readError(part, offset, error, 'find out what is allocated');
    this.kind = 'data';
    const inPart = offset - part.start;
    this.end = part.start + Math.min(part.size, inPart - (inPart % BLIND_STEP) + BLIND_STEP);
  }

  #readPart(part: SourcePart, offset: number, into: Uint8Array, options?: IoOptions): Pending {
    let pending: Pending;
    try {
      pending = part.image.node.read(offset - part.start + part.from, into, options);
    } catch (error) {
      return this.#rescue(part, offset, into, error);
    }
    return pending === undefined ? undefined : this.#readLater(pending, part, offset, into);
  }

  async #readLater(pending: Promise<void>, part: SourcePart, offset: number, into: Uint8Array): Promise<void> {
    try {
      await pending;
    } catch (error) {
      await this.#rescue(part, offset, into, error);
    }
  }

  /** Halves what could not be read until only the unreadable sectors are left. */
  async #rescue(part: SourcePart, offset: number, into: Uint8Array, error: unknown): Promise<void> {
    if (this.#salvage === undefined || isFinal(error)) throw readError(part, offset, error, 'read');
    if (into.length <= SECTOR) {
      into.fill(0);
      this.#salvage.onLoss(offset, into.length, error);
      return;
    }
    const half = Math.ceil(into.length / 2 / SECTOR) * SECTOR;
    await this.#readPart(part, offset, into.subarray(0, half));
    await this.#readPart(part, offset + half, into.subarray(half));
  }
}

/** Errors that no other sector can escape. */
function isFinal(error: unknown): boolean {
  return !isBlockError(error) || ['ABORTED', 'CLOSED', 'INTERNAL', 'REFERENCE_DENIED'].includes(error.code);
}

function readError(part: SourcePart, offset: number, cause: unknown, what: string): unknown {
  if (!isBlockError(cause) || cause.code === 'ABORTED') return cause;
  const { name } = part.image;
  const at = offset - part.start + part.from;
  return new BlockError(cause.code, `"${name}": could not ${what} at offset ${at}: ${cause.message}`, {
    reason: what === 'read' ? 'convert.read' : 'convert.status',
    details: { name, offset: at, errno: cause.details.errno },
    cause,
  });
}
