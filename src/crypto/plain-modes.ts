/** The two modes without chaining. ECB: every block on its own, no vectors. CTR (NIST SP 800-38A): every block is XORed with an encrypted
 *  counter, 128 bits with the high byte first, that begins at the sector's vector. Both are in QEMU's list; neither is good for disks. */
import type { BlockCipher } from './provider.ts';
import { BATCH, BLOCK, SECTOR, type SectorMode, wordsOf } from './sectors.ts';

export class EcbMode implements SectorMode {
  readonly encryptBatch = BATCH;
  readonly decryptBatch = BATCH;
  readonly #cipher: BlockCipher;

  constructor(cipher: BlockCipher) {
    this.#cipher = cipher;
  }

  encrypt(from: Uint8Array, into: Uint8Array): void {
    into.set(this.#cipher.encrypt(from));
  }

  decrypt(from: Uint8Array, into: Uint8Array): void {
    into.set(this.#cipher.decrypt(from));
  }

  wipe(): void {
    this.#cipher.wipe();
  }
}

export class CtrMode implements SectorMode {
  readonly encryptBatch = BATCH;
  readonly decryptBatch = BATCH;
  readonly #cipher: BlockCipher;
  readonly #counters = new Uint8Array(BATCH * SECTOR);
  readonly #words = wordsOf(this.#counters);

  constructor(cipher: BlockCipher) {
    this.#cipher = cipher;
  }

  encrypt(from: Uint8Array, into: Uint8Array, ivs: Uint8Array): void {
    const starts = wordsOf(ivs);
    for (let sector = 0; sector * BLOCK < ivs.length; sector++) {
      countFrom(starts, sector, this.#words, this.#counters);
    }
    const stream = wordsOf(this.#cipher.encrypt(this.#counters.subarray(0, from.length)));
    const source = wordsOf(from);
    const target = wordsOf(into);
    for (let i = 0; i < source.length; i++) target[i] = (source[i] as number) ^ (stream[i] as number);
  }

  decrypt(from: Uint8Array, into: Uint8Array, ivs: Uint8Array): void {
    this.encrypt(from, into, ivs);
  }

  wipe(): void {
    this.#cipher.wipe();
    this.#counters.fill(0);
  }
}

/** The counters of one sector, end to end, 32 of 4 words each. Nearly always they differ in their last bytes only. */
function countFrom(starts: Int32Array, sector: number, words: Int32Array, bytes: Uint8Array): void {
  const start = sector * 4;
  const a = starts[start] as number;
  const b = starts[start + 1] as number;
  const c = starts[start + 2] as number;
  const d = starts[start + 3] as number;
  let word = sector * 128;
  let last = sector * 512 + 15;
  for (let block = 0; block < 32; block++) {
    words[word] = a;
    words[word + 1] = b;
    words[word + 2] = c;
    words[word + 3] = d;
    const sum = (bytes[last] as number) + block;
    bytes[last] = sum;
    if (sum > 255) carryInto(bytes, last - 1, last - 15);
    word += 4;
    last += 16;
  }
}

/** Adds one to the bytes from `at` down to `first`, the lowest digit first. */
function carryInto(bytes: Uint8Array, at: number, first: number): void {
  for (let i = at; i >= first; i--) {
    bytes[i] = (bytes[i] as number) + 1;
    if (bytes[i] !== 0) return;
  }
}
