/** Cipher block chaining (NIST SP 800-38A) over many sectors at once. Within a sector encryption has to wait for the block before, but sectors
 *  do not wait for each other: so all first blocks are encrypted in one call, then all second ones, and so on. Decryption waits for nothing. */
import type { BlockCipher } from './provider.ts';
import { BATCH, BLOCK, BLOCKS_PER_SECTOR, type SectorMode, wordsOf } from './sectors.ts';

/** Sectors whose blocks are encrypted side by side: measured, 512 KiB is where more does not help. */
const COLUMN = 1024;

export class CbcMode implements SectorMode {
  readonly encryptBatch = COLUMN;
  readonly decryptBatch = BATCH;
  readonly #cipher: BlockCipher;
  readonly #column = new Uint8Array(COLUMN * BLOCK);
  readonly #columnWords = wordsOf(this.#column);

  constructor(cipher: BlockCipher) {
    this.#cipher = cipher;
  }

  encrypt(from: Uint8Array, into: Uint8Array, ivs: Uint8Array): void {
    const source = wordsOf(from);
    const target = wordsOf(into);
    const column = this.#column.subarray(0, ivs.length);
    let chain = wordsOf(ivs);
    for (let block = 0; block < BLOCKS_PER_SECTOR; block++) {
      gather(source, chain, this.#columnWords, block);
      chain = wordsOf(this.#cipher.encrypt(column));
      scatter(chain, target, block);
    }
  }

  decrypt(from: Uint8Array, into: Uint8Array, ivs: Uint8Array): void {
    unchain(wordsOf(this.#cipher.decrypt(from)), wordsOf(from), wordsOf(into), wordsOf(ivs));
  }

  wipe(): void {
    this.#cipher.wipe();
    this.#column.fill(0);
  }
}

// 4 words are a block, 128 a sector: as numbers, because imported constants cost a tenth of the speed.

/** Block `block` of every sector, XORed with what the chain has for the sector. */
function gather(source: Int32Array, chain: Int32Array, column: Int32Array, block: number): void {
  let at = block * 4;
  for (let k = 0; k < chain.length; k += 4) {
    column[k] = (source[at] as number) ^ (chain[k] as number);
    column[k + 1] = (source[at + 1] as number) ^ (chain[k + 1] as number);
    column[k + 2] = (source[at + 2] as number) ^ (chain[k + 2] as number);
    column[k + 3] = (source[at + 3] as number) ^ (chain[k + 3] as number);
    at += 128;
  }
}

function scatter(column: Int32Array, target: Int32Array, block: number): void {
  let at = block * 4;
  for (let k = 0; k < column.length; k += 4) {
    target[at] = column[k] as number;
    target[at + 1] = column[k + 1] as number;
    target[at + 2] = column[k + 2] as number;
    target[at + 3] = column[k + 3] as number;
    at += 128;
  }
}

/** XORs each decrypted block with the encrypted one before it. `into` may be the encrypted memory itself, so a block is read before it is
 *  overwritten. */
function unchain(decrypted: Int32Array, encrypted: Int32Array, into: Int32Array, ivs: Int32Array): void {
  let at = 0;
  for (let t = 0; t < ivs.length; t += 4) {
    let a = ivs[t] as number;
    let b = ivs[t + 1] as number;
    let c = ivs[t + 2] as number;
    let d = ivs[t + 3] as number;
    for (const end = at + 128; at < end; at += 4) {
      const nextA = encrypted[at] as number;
      const nextB = encrypted[at + 1] as number;
      const nextC = encrypted[at + 2] as number;
      const nextD = encrypted[at + 3] as number;
      into[at] = (decrypted[at] as number) ^ a;
      into[at + 1] = (decrypted[at + 1] as number) ^ b;
      into[at + 2] = (decrypted[at + 2] as number) ^ c;
      into[at + 3] = (decrypted[at + 3] as number) ^ d;
      a = nextA;
      b = nextB;
      c = nextC;
      d = nextD;
    }
  }
}
