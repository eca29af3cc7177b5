/** What a LUKS volume needs from its owner: a place for the header, and the choices of each operation. Types and defaults only. */
import type { Pending } from '../base/async.ts';
import type { MasterKey } from './master-key.ts';

/** Milliseconds, as QEMU's `iter-time`. */
export const DEFAULT_ITER_TIME = 2000;

/** Where a header lies: offset 0 is its first byte. Every store is one; qcow2 has a window of its file. */
export interface HeaderArea {
  /** Bytes. */
  readonly size: number;
  /** Bytes past the end read as zero. */
  read(offset: number, into: Uint8Array): Pending;
  write(offset: number, from: Uint8Array): Pending;
  flush(): Pending;
}

export interface OpenLuksOptions {
  /** What messages begin with: `luks "a.img"`. */
  readonly subject: string;
  /** The payload lies in another file. */
  readonly detached?: boolean | undefined;
}

export interface UnlockOptions {
  /** Rounds of PBKDF2 that may be spent, one for each iteration and digest-long piece of a key; {@link DEFAULT_ROUND_LIMIT} by default. */
  readonly roundLimit?: number | undefined;
  /** Looked at before each slot. */
  readonly signal?: AbortSignal | undefined;
}

export interface AddKeyOptions extends UnlockOptions {
  /** What unlocks the volume now. */
  readonly unlock: Uint8Array | MasterKey;
  /** What shall unlock it, too. */
  readonly passphrase: Uint8Array;
  /** 0 to 7; the first inactive one by default. */
  readonly slot?: number | undefined;
  /** Milliseconds that one attempt shall take on this machine; 2000 by default. */
  readonly iterTime?: number | undefined;
  /** Overwrite an active slot. A crash while that happens costs the slot's old and new key. */
  readonly force?: boolean | undefined;
}

export interface EraseKeysOptions extends UnlockOptions {
  /** 0 to 7. Not given: every slot that `passphrase` opens. */
  readonly slot?: number | undefined;
  /** What the slot holds now; with `slot` it is checked first. */
  readonly passphrase?: Uint8Array | undefined;
  /** Also the last one, after which nothing can be read any more; also a slot that is inactive already. */
  readonly force?: boolean | undefined;
}
