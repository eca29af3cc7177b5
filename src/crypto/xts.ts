/** XTS (IEEE 1619, NIST SP 800-38E) over many sectors at once: block j of a sector is encrypted between two XORs with the sector's encrypted
 *  vector times α^j in GF(2^128). The vectors of all sectors take one call of the block cipher, their blocks another; between lie 32-bit words.
 *  Sectors are whole blocks, so there is no ciphertext stealing. */
import { BlockError } from '../base/errors.ts';
import type { BlockCipher } from './provider.ts';
import { BATCH, SECTOR, type SectorMode, wordsOf } from './sectors.ts';

export class XtsMode implements SectorMode {
  readonly encryptBatch = BATCH;
  readonly decryptBatch = BATCH;
  readonly #data: BlockCipher;
  readonly #tweak: BlockCipher;
  readonly #scratch = new Uint8Array(BATCH * SECTOR);
  readonly #words = wordsOf(this.#scratch);

  /** @param data keyed with the first half of the master key @param tweak with the second
   *  @throws {@link BlockError} UNSUPPORTED `luks.byte-order` on machines that store the high byte of a word first. */
  constructor(data: BlockCipher, tweak: BlockCipher) {
    this.#data = data;
    this.#tweak = tweak;
    this.#words[0] = 1;
    if (this.#scratch[0] !== 1) {
      throw new BlockError('UNSUPPORTED', 'xts is not supported on big-endian machines', { reason: 'luks.byte-order' });
    }
  }

  encrypt(from: Uint8Array, into: Uint8Array, ivs: Uint8Array): void {
    const tweaks = wordsOf(this.#tweak.encrypt(ivs));
    whiten(wordsOf(from), this.#words, tweaks);
    whiten(wordsOf(this.#data.encrypt(this.#scratch.subarray(0, from.length))), wordsOf(into), tweaks);
  }

  decrypt(from: Uint8Array, into: Uint8Array, ivs: Uint8Array): void {
    const tweaks = wordsOf(this.#tweak.encrypt(ivs));
    whiten(wordsOf(from), this.#words, tweaks);
    whiten(wordsOf(this.#data.decrypt(this.#scratch.subarray(0, from.length))), wordsOf(into), tweaks);
  }

  wipe(): void {
    this.#data.wipe();
    this.#tweak.wipe();
    this.#scratch.fill(0);
  }
}

/** XORs every block with its tweak. Tweaks are computed anew each time: that is faster than to store and load them. The numbers (4 words a
 *  block, 128 a sector; x^128 = x^7 + x^2 + x + 1) stand here as they are, because imported constants cost a seventh of the speed.
 *  @param tweaks those of the sectors' first blocks, low word first */
function whiten(from: Int32Array, into: Int32Array, tweaks: Int32Array): void {
  let at = 0;
  for (let t = 0; t < tweaks.length; t += 4) {
    let a = tweaks[t] as number;
    let b = tweaks[t + 1] as number;
    let c = tweaks[t + 2] as number;
    let d = tweaks[t + 3] as number;
    for (const end = at + 128; at < end; at += 4) {
      into[at] = (from[at] as number) ^ a;
      into[at + 1] = (from[at + 1] as number) ^ b;
      into[at + 2] = (from[at + 2] as number) ^ c;
      into[at + 3] = (from[at + 3] as number) ^ d;
      const carry = (d >> 31) & 0x87;
      d = (d << 1) | (c >>> 31);
      c = (c << 1) | (b >>> 31);
      b = (b << 1) | (a >>> 31);
      a = (a << 1) ^ carry;
    }
  }
}
