/** Encryption and decryption of bulk on the worker threads that compress. Owns the choice of what is worth it, the cutting into batches, the
 *  way of bytes through shared memory, and the one copy of the key that the threads take theirs from.
 *  Invariants: a request ends when each of its batches has ended; what lies in shared memory is worked on in place; after `close` no copy of
 *  the key is left here or in a thread. */
import type { CodecPool, SharedSlots } from '#platform';
import { settleAll } from '../base/async.ts';
import { KiB, MiB } from '../base/sizes.ts';
import type { SectorCipherSpec } from '../crypto/algorithms.ts';
import type { BulkSectors } from '../crypto/bulk.ts';

/** AES-XTS does some 2 MiB in a millisecond, and a message takes a thirtieth of one here and there. Below this, bytes are done where they are. */
const HERE = 256 * KiB;
/** Bytes of one task at most, and the least that is cut off to keep another thread busy. Whole sectors. */
const BATCH = 1 * MiB;
const SMALLEST = 256 * KiB;
/** So much is done here before threads are started for it: that costs some ten milliseconds of the processor for each. */
const COLD = 8 * MiB;
/** Threads that are started ahead at most; others are when there is work for them. */
const AHEAD = 4;

/** What the keys of one set of codecs have in common. */
export interface SectorWorkersHost {
  readonly workers: number;
  readonly slots: SharedSlots;
  /** The threads, if they run. */
  readonly running: CodecPool | undefined;
  /** The same, started if need be. */
  started(): CodecPool;
}

export class SectorWorkers {
  readonly #host: SectorWorkersHost;
  #lastId = 0;
  #cold: number = COLD;
  /** Until the first thread answers, everything is done here: nobody waits for a thread to start. */
  #state: 'cold' | 'starting' | 'ready' = 'cold';

  constructor(host: SectorWorkersHost) {
    this.#host = host;
  }

  open(spec: SectorCipherSpec, key: Uint8Array): BulkSectors | undefined {
    if (this.#host.workers === 0 || typeof SharedArrayBuffer !== 'function') return undefined;
    return new KeyOnWorkers(this.#host, (bytes) => this.#isWorth(bytes), ++this.#lastId, spec, key);
  }

  #isWorth(bytes: number): boolean {
    if (bytes < HERE) return false;
    if (this.#state === 'cold') {
      this.#cold -= bytes;
      if (this.#host.running !== undefined) this.#state = 'ready';
      else if (this.#cold <= 0) void this.#start();
    }
    return this.#state === 'ready';
  }

  async #start(): Promise<void> {
    this.#state = 'starting';
    const pool = this.#host.started();
    // No key has that number.
    const awake = Array.from({ length: Math.min(this.#host.workers, AHEAD) }, () => pool.run('forget', { id: 0 }));
    // Whoever asks for real work next is told why threads cannot be had.
    await Promise.race(awake.map((one) => one.catch(() => undefined)));
    this.#state = 'ready';
  }
}

class KeyOnWorkers implements BulkSectors {
  readonly #host: SectorWorkersHost;
  readonly #isWorth: (bytes: number) => boolean;
  readonly #id: number;
  readonly #spec: SectorCipherSpec;
  readonly #key: Uint8Array;
  #closing: Promise<void> | undefined;

  constructor(
    host: SectorWorkersHost,
    isWorth: (bytes: number) => boolean,
    id: number,
    spec: SectorCipherSpec,
    key: Uint8Array,
  ) {
    this.#host = host;
    this.#isWorth = isWorth;
    this.#id = id;
    this.#spec = spec;
    this.#key = new Uint8Array(new SharedArrayBuffer(key.length));
    this.#key.set(key);
  }

  encrypt(from: Uint8Array, into: Uint8Array, firstSector: number): Promise<void> | undefined {
    return this.#isWorth(from.length) ? this.#run(true, from, into, firstSector) : undefined;
  }

  decrypt(bytes: Uint8Array, firstSector: number): Promise<void> | undefined {
    return this.#isWorth(bytes.length) ? this.#run(false, bytes, bytes, firstSector) : undefined;
  }

  close(): Promise<void> {
    this.#closing ??= this.#forget();
    return this.#closing;
  }

  async #forget(): Promise<void> {
    this.#key.fill(0);
    await this.#host.running?.broadcast('forget', { id: this.#id });
  }

  #run(encrypt: boolean, from: Uint8Array, into: Uint8Array, firstSector: number): Promise<void> {
    const fair = Math.max(Math.ceil(from.length / this.#host.workers / SMALLEST) * SMALLEST, SMALLEST);
    const step = Math.min(fair, BATCH);
    if (from.length <= step) return this.#batch(encrypt, from, into, firstSector);
    const batches: Promise<void>[] = [];
    for (let at = 0; at < from.length; at += step) {
      const end = Math.min(at + step, from.length);
      const sector = firstSector + at / SECTOR;
      batches.push(this.#batch(encrypt, from.subarray(at, end), into.subarray(at, end), sector));
    }
    return settleAll(batches);
  }

  async #batch(encrypt: boolean, from: Uint8Array, into: Uint8Array, firstSector: number): Promise<void> {
    if (isShared(into)) {
      if (isShared(from)) await this.#send(encrypt, from, into, firstSector);
      else {
        into.set(from);
        await this.#send(encrypt, into, into, firstSector);
      }
      return;
    }
    const { slots } = this.#host;
    const slot = await slots.take(from.length);
    try {
      const work = slot.subarray(0, from.length);
      work.set(from);
      await this.#send(encrypt, work, work, firstSector);
      into.set(work);
    } finally {
      slots.give(slot);
    }
  }

  async #send(encrypt: boolean, from: Uint8Array, into: Uint8Array, firstSector: number): Promise<void> {
    const task = { id: this.#id, spec: this.#spec, key: this.#key, encrypt, from, into, firstSector };
    await this.#host.started().run('sectors', task);
  }
}

/** Bytes of a sector. */
const SECTOR = 512;

function isShared(bytes: Uint8Array): boolean {
  return bytes.buffer instanceof SharedArrayBuffer;
}
