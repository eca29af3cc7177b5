/** What goes out. Owns the memory that replies are made in, and the joining of replies into few sends.
 *  Replies are made one behind the other in arenas, data read straight to its place behind its header; what is complete in one go is sent as one
 *  part. Data that is still being read keeps its place and is sent when it is there.
 *  Invariants: an arena is used again when nothing of it is being read into or sent; a session that rests holds none;
 *  `held` counts every byte that replies take, from the claim to the moment when the transport has let go of it. */
import type { Transport } from './transport.ts';

/** Bytes of a usual arena: several large reads. */
const ARENA_BYTES = 1024 * 1024;
/** Arenas that are kept for whoever needs one next. */
const KEPT = 16;

class Arena {
  readonly bytes: Uint8Array;
  readonly view: DataView;
  /** Parts of it that are out, and one for being made in. */
  refs = 0;

  constructor(length: number) {
    this.bytes = new Uint8Array(length);
    this.view = new DataView(this.bytes.buffer);
  }
}

/** Arenas of all sessions of a server. */
export class ArenaPool {
  readonly #free: Arena[] = [];

  /** One with `length` bytes at least, and old content. */
  take(length: number): Arena {
    return (length <= ARENA_BYTES ? this.#free.pop() : undefined) ?? new Arena(Math.max(length, ARENA_BYTES));
  }

  give(arena: Arena): void {
    if (arena.bytes.length === ARENA_BYTES && this.#free.length < KEPT) this.#free.push(arena);
  }
}

/** A piece of memory that was set apart for a reply. */
export interface Apart {
  readonly arena: Arena;
  readonly start: number;
  readonly length: number;
}

export class Outbox {
  readonly #pool: ArenaPool;
  readonly #transport: Transport;
  readonly #onRoom: () => void;
  #arena: Arena | undefined;
  /** Complete bytes of the arena that are in no part yet. */
  #from = 0;
  #to = 0;
  #parts: Uint8Array[] = [];
  #arenas: Arena[] = [];
  #queued = 0;
  #held = 0;
  /** Where {@link claim} found room. */
  bytes: Uint8Array = new Uint8Array(0);
  view: DataView = new DataView(new ArrayBuffer(0));
  at = 0;

  /** @param onRoom called when `held` has become less through sending */
  constructor(pool: ArenaPool, transport: Transport, onRoom: () => void) {
    this.#pool = pool;
    this.#transport = transport;
    this.#onRoom = onRoom;
  }

  /** Bytes. */
  get held(): number {
    return this.#held;
  }

  /** Finds room for `length` bytes: at `at` of `bytes` and `view`. They are to be made, and committed or set apart, before anything else. */
  claim(length: number): void {
    if (this.#arena === undefined || this.#to + length > this.#arena.bytes.length) {
      this.#leave();
      this.#arena = this.#pool.take(length);
      this.#arena.refs++;
    }
    this.bytes = this.#arena.bytes;
    this.view = this.#arena.view;
    this.at = this.#to;
  }

  /** The claimed bytes are complete. */
  commit(length: number): void {
    this.#to += length;
    this.#held += length;
  }

  /** A message that was made elsewhere. */
  push(message: Uint8Array): void {
    this.claim(message.length);
    this.bytes.set(message, this.at);
    this.commit(message.length);
  }

  /** The claimed bytes will be complete later. */
  setApart(length: number): Apart {
    const arena = this.#arena as Arena;
    this.#seal();
    const start = this.#to;
    this.#to += length;
    this.#from = this.#to;
    this.#held += length;
    arena.refs++;
    return { arena, start, length };
  }

  /** What was set apart is complete. */
  complete({ arena, start, length }: Apart): void {
    this.#seal();
    this.#parts.push(arena.bytes.subarray(start, start + length));
    this.#arenas.push(arena);
    this.#queued += length;
  }

  /** What was set apart is not needed. */
  giveUp({ arena, length }: Apart): void {
    this.#held -= length;
    this.#release(arena);
  }

  /** Sends everything that is complete. */
  flush(): void {
    this.#seal();
    if (this.#parts.length === 0) return;
    const parts = this.#parts;
    const arenas = this.#arenas;
    const bytes = this.#queued;
    this.#parts = [];
    this.#arenas = [];
    this.#queued = 0;
    this.#transport.send(parts, () => {
      this.#held -= bytes;
      for (const arena of arenas) this.#release(arena);
      if (this.#held === 0) this.#leave();
      this.#onRoom();
    });
  }

  #seal(): void {
    const arena = this.#arena;
    if (arena === undefined || this.#from === this.#to) return;
    this.#parts.push(arena.bytes.subarray(this.#from, this.#to));
    this.#arenas.push(arena);
    arena.refs++;
    this.#queued += this.#to - this.#from;
    this.#from = this.#to;
  }

  #leave(): void {
    if (this.#arena === undefined) return;
    this.#seal();
    const arena = this.#arena;
    this.#arena = undefined;
    this.#from = 0;
    this.#to = 0;
    this.#release(arena);
  }

  #release(arena: Arena): void {
    arena.refs--;
    if (arena.refs === 0) this.#pool.give(arena);
  }
}
