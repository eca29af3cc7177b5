/** Sectors of large buffers on other threads. Owns the contract between a cipher's owner and whoever has the threads (the `codec` room), and
 *  what such a thread does.
 *  Invariants: a sector's bytes depend on key and number alone, never on where or in what order it was done; a key reaches a thread once, in
 *  shared memory, and is gone everywhere when `close` has ended. */
import type { SectorCipherSpec } from './algorithms.ts';
import type { CryptoProvider } from './provider.ts';
import { createSectorCipher, type SectorCipher } from './sector-cipher.ts';

/** One key, on threads of their own. Buffers are whole sectors, as those of {@link SectorCipher}. */
export interface BulkSectors {
  /** @returns `undefined` where so little is not worth the way to another thread: nothing has been done then. */
  encrypt(from: Uint8Array, into: Uint8Array, firstSector: number): Promise<void> | undefined;
  /** In place. @returns as {@link encrypt}. */
  decrypt(bytes: Uint8Array, firstSector: number): Promise<void> | undefined;
  /** Wipes the key, here and on every thread. No request may run. Idempotent. */
  close(): Promise<void>;
}

/** A part of a request, as a thread gets it. All three byte arrays lie in shared memory. */
export interface SectorTask {
  /** By which a thread knows a key that it has met. */
  readonly id: number;
  readonly spec: SectorCipherSpec;
  readonly key: Uint8Array;
  readonly encrypt: boolean;
  readonly from: Uint8Array;
  /** The same memory, or apart. */
  readonly into: Uint8Array;
  readonly firstSector: number;
}

/** The ciphers of one thread. */
export class ThreadCiphers {
  readonly #provider: CryptoProvider;
  readonly #ciphers = new Map<number, SectorCipher>();

  constructor(provider: CryptoProvider) {
    this.#provider = provider;
  }

  run({ id, spec, key, encrypt, from, into, firstSector }: SectorTask): void {
    const cipher = this.#ciphers.get(id) ?? this.#open(id, spec, key);
    if (encrypt) cipher.encrypt(from, into, firstSector);
    else cipher.decrypt(into, firstSector);
  }

  forget(id: number): void {
    this.#ciphers.get(id)?.wipe();
    this.#ciphers.delete(id);
  }

  #open(id: number, spec: SectorCipherSpec, shared: Uint8Array): SectorCipher {
    // Not every call of the runtime takes a key in shared memory.
    const key = shared.slice();
    try {
      const cipher = createSectorCipher(spec, key, this.#provider, 'worker thread');
      this.#ciphers.set(id, cipher);
      return cipher;
    } finally {
      key.fill(0);
    }
  }
}
