/** Initialisation vectors, 16 bytes for each sector, from sector numbers. Spec: dm-crypt's plain, plain64 and essiv.
 *  Invariant: vectors live in memory that the next call reuses. */
import { highWord, lowWord } from '../bytes/ints.ts';
import { openBlockCipher, type SectorCipherSpec } from './algorithms.ts';
import type { BlockCipher, CryptoProvider } from './provider.ts';
import { BLOCK } from './sectors.ts';

const TWO_32 = 0x1_0000_0000;

export class IvSource {
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  readonly #short: boolean;
  readonly #essiv: BlockCipher | undefined;

  /** @param most sectors of one call at most
   *  @param essiv encrypts the numbers, for that generator */
  constructor(most: number, short: boolean, essiv?: BlockCipher) {
    this.#bytes = new Uint8Array(most * BLOCK);
    this.#view = new DataView(this.#bytes.buffer);
    this.#short = short;
    this.#essiv = essiv;
  }

  /** Vectors of `count` sectors from sector `first` on; valid until the next call. */
  vectors(first: number, count: number): Uint8Array {
    const view = this.#view;
    let low = lowWord(first);
    let high = highWord(first);
    for (let at = 0; at < count * BLOCK; at += BLOCK) {
      view.setUint32(at, low, true);
      if (!this.#short) view.setUint32(at + 4, high, true);
      low++;
      if (low === TWO_32) {
        low = 0;
        high++;
      }
    }
    const numbers = this.#bytes.subarray(0, count * BLOCK);
    return this.#essiv === undefined ? numbers : this.#essiv.encrypt(numbers);
  }

  wipe(): void {
    this.#essiv?.wipe();
  }
}

/** @param key all of the master key; it may be wiped afterwards. @throws {@link BlockError} UNSUPPORTED `luks.cipher`. */
export function createIvSource(
  spec: SectorCipherSpec,
  key: Uint8Array,
  most: number,
  provider: CryptoProvider,
  subject: string,
): IvSource {
  if (spec.ivGenerator !== 'essiv') return new IvSource(most, spec.ivGenerator === 'plain');
  const salt = provider.digest(spec.ivHash as string, [key]);
  try {
    return new IvSource(most, false, openBlockCipher(spec.cipher, salt, provider, subject));
  } finally {
    salt.fill(0);
  }
}
