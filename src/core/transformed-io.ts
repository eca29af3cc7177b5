/** Data runs of an encrypting format: read and decrypted in place, encrypted aside and written.
 *  Owns the scratch memory for what is encrypted, the cutting of large requests into pieces (so that one piece is encrypted on another thread
 *  while the next one is read), and the sectors that a request covers in part.
 *  Invariants: as long as store and transform answer at once no promise is made; the guest's buffer is never changed by a write; scratch goes
 *  back only when the write from it has ended. */
import { type Pending, settleAll } from '../base/async.ts';
import { BlockError } from '../base/errors.ts';
import { KiB, MiB } from '../base/sizes.ts';
import { alignUp } from '../bytes/align.ts';
import type { DataTransform, FormatNode } from './format.ts';
import type { BlockNode } from './node.ts';
import type { IoOptions } from './store.ts';
import { part } from './transfer.ts';

/** Bytes that are transformed as one. A multiple of every sector. */
const PIECE = 2 * MiB;
/** Pieces of one write under way at most. */
const AT_ONCE = 4;
/** Scratch buffers that are kept for the next writes. */
const KEPT = 8;
/** A write of parts of sectors up to this long is read, changed and written as a whole; of longer ones, their ends are. */
const SMALL = 64 * KiB;

export class TransformedIo {
  readonly #format: FormatNode;
  /** Scratch buffers that nobody uses. */
  readonly #idle: Uint8Array[] = [];

  constructor(format: FormatNode) {
    this.#format = format;
  }

  /** Fills `into` with the plain bytes of a run. */
  read(child: BlockNode, hostOffset: number, guestOffset: number, into: Uint8Array, hint?: IoOptions): Pending {
    const { sector } = this.#transform();
    if (hostOffset % sector !== 0 || into.length % sector !== 0) {
      return this.#readParts(child, hostOffset, guestOffset, into, hint);
    }
    if (into.length <= PIECE) return this.#readPiece(child, hostOffset, guestOffset, into, hint);
    const pendings: Pending[] = [];
    try {
      for (let at = 0; at < into.length; at += PIECE) {
        const piece = into.subarray(at, Math.min(at + PIECE, into.length));
        const pending = this.#readPiece(child, hostOffset + at, guestOffset + at, piece, hint);
        if (pending !== undefined) pendings.push(pending);
      }
    } catch (error) {
      pendings.push(Promise.reject(error));
    }
    return pendings.length === 0 ? undefined : settleAll(pendings);
  }

  /** Writes plain bytes. Sectors that are covered in part are read, changed and written whole: nobody else may be at them. */
  write(child: BlockNode, hostOffset: number, guestOffset: number, from: Uint8Array, hint?: IoOptions): Pending {
    const { sector } = this.#transform();
    const whole = hostOffset % sector === 0 && from.length % sector === 0;
    if (whole && from.length <= PIECE) return this.#writePiece(child, hostOffset, guestOffset, from, hint);
    return whole
      ? this.#writePieces(child, hostOffset, guestOffset, from, hint)
      : this.#writeParts(child, hostOffset, guestOffset, from, hint);
  }

  #transform(): DataTransform {
    const { transform } = this.#format;
    if (transform !== undefined) return transform;
    throw new BlockError('INTERNAL', `internal error: ${this.#format.format} has no transform`);
  }

  #readPiece(
    child: BlockNode,
    hostOffset: number,
    guestOffset: number,
    into: Uint8Array,
    hint: IoOptions | undefined,
  ): Pending {
    const transform = this.#transform();
    const at = transform.tweak === 'guest' ? guestOffset : hostOffset;
    const reading = child.read(hostOffset, into, hint);
    return reading === undefined ? transform.decrypt(into, at) : decryptAfter(reading, transform, into, at);
  }

  /** Reads whole sectors around the range. */
  async #readParts(
    child: BlockNode,
    hostOffset: number,
    guestOffset: number,
    into: Uint8Array,
    hint: IoOptions | undefined,
  ): Promise<void> {
    const { sector } = this.#transform();
    const before = hostOffset % sector;
    const sectors = new Uint8Array(alignUp(before + into.length, sector));
    await this.read(child, hostOffset - before, guestOffset - before, sectors, hint);
    into.set(sectors.subarray(before, before + into.length));
  }

  #writePiece(
    child: BlockNode,
    hostOffset: number,
    guestOffset: number,
    from: Uint8Array,
    hint: IoOptions | undefined,
  ): Pending {
    const scratch = this.#take();
    const encrypted = part(scratch, 0, from.length);
    let encrypting: Pending;
    let writing: Pending;
    try {
      encrypting = this.#encrypt(from, encrypted, hostOffset, guestOffset);
      if (encrypting === undefined) writing = child.write(hostOffset, encrypted, hint);
    } catch (error) {
      this.#give(scratch);
      throw error;
    }
    if (encrypting !== undefined) return this.#writeAfter(encrypting, child, hostOffset, encrypted, scratch, hint);
    if (writing !== undefined) return this.#giveAfter(writing, scratch);
    this.#give(scratch);
    return undefined;
  }

  #encrypt(from: Uint8Array, into: Uint8Array, hostOffset: number, guestOffset: number): Pending {
    const transform = this.#transform();
    return transform.encrypt(from, into, transform.tweak === 'guest' ? guestOffset : hostOffset);
  }

  async #writeAfter(
    encrypting: Promise<void>,
    child: BlockNode,
    hostOffset: number,
    encrypted: Uint8Array,
    scratch: Uint8Array,
    hint: IoOptions | undefined,
  ): Promise<void> {
    try {
      await encrypting;
      await child.write(hostOffset, encrypted, hint);
    } finally {
      this.#give(scratch);
    }
  }

  async #giveAfter(writing: Promise<void>, scratch: Uint8Array): Promise<void> {
    try {
      await writing;
    } finally {
      this.#give(scratch);
    }
  }

  /** Whole sectors, more than a piece of them. */
  async #writePieces(
    child: BlockNode,
    hostOffset: number,
    guestOffset: number,
    from: Uint8Array,
    hint: IoOptions | undefined,
  ): Promise<void> {
    for (let at = 0; at < from.length; ) {
      const pendings: Pending[] = [];
      try {
        for (; at < from.length && pendings.length < AT_ONCE; at += PIECE) {
          const piece = from.subarray(at, Math.min(at + PIECE, from.length));
          pendings.push(this.#writePiece(child, hostOffset + at, guestOffset + at, piece, hint));
        }
      } catch (error) {
        pendings.push(Promise.reject(error));
      }
      await settleAll(pendings);
    }
  }

  async #writeParts(
    child: BlockNode,
    hostOffset: number,
    guestOffset: number,
    from: Uint8Array,
    hint: IoOptions | undefined,
  ): Promise<void> {
    const { sector } = this.#transform();
    const before = hostOffset % sector;
    const span = alignUp(before + from.length, sector);
    if (span <= SMALL) {
      const plain = new Uint8Array(span);
      await this.read(child, hostOffset - before, guestOffset - before, plain);
      plain.set(from, before);
      await this.write(child, hostOffset - before, guestOffset - before, plain, hint);
      return;
    }
    const head = before === 0 ? 0 : sector - before;
    const tail = (from.length - head) % sector;
    const inner = from.length - head - tail;
    const write = async (at: number, length: number): Promise<void> => {
      if (length > 0) await this.write(child, hostOffset + at, guestOffset + at, part(from, at, at + length), hint);
    };
    await write(0, head);
    await write(head, inner);
    await write(head + inner, tail);
  }

  /** In shared memory, so that worker threads encrypt into it. */
  #take(): Uint8Array {
    const shared = typeof SharedArrayBuffer === 'function';
    return this.#idle.pop() ?? new Uint8Array(shared ? new SharedArrayBuffer(PIECE) : new ArrayBuffer(PIECE));
  }

  #give(scratch: Uint8Array): void {
    if (this.#idle.length < KEPT) this.#idle.push(scratch);
  }
}

async function decryptAfter(
  reading: Promise<void>,
  transform: DataTransform,
  into: Uint8Array,
  at: number,
): Promise<void> {
  await reading;
  await transform.decrypt(into, at);
}
