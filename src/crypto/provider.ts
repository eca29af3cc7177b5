/** What this room needs of the runtime: block ciphers over whole buffers, hashes, key derivation, chance and a clock. Owns the contract only;
 *  `#platform` has one that fulfils it, and tests put their own clock and chance in its place.
 *  Invariant: everything but `pbkdf2` is synchronous, and no call keeps a buffer that it was given. */

/** One key of a block cipher, 16 bytes a block, in electronic code book mode: every block on its own. All modes here are made of it, because
 *  one call over 64 KiB runs at the speed of the processor, and a cipher object for each sector at a tenth of that. */
export interface BlockCipher {
  /** Encrypts whole blocks. @returns as many bytes, in memory of their own that begins at a multiple of 4 of its buffer. */
  encrypt(blocks: Uint8Array): Uint8Array;
  decrypt(blocks: Uint8Array): Uint8Array;
  /** Forgets the key as far as the runtime lets it; later calls fail. Idempotent. */
  wipe(): void;
}

export interface CryptoProvider {
  /** @param name as LUKS writes it: `aes`, `sm4`
   *  @returns `undefined` where the runtime does not have the cipher with a key of that length. */
  blockCipher(name: string, key: Uint8Array): BlockCipher | undefined;
  /** Whether {@link digest} and {@link pbkdf2} know the hash (`sha256`). */
  hasHash(name: string): boolean;
  /** Hash of the parts, laid end to end. */
  digest(hash: string, parts: readonly Uint8Array[]): Uint8Array;
  /** PBKDF2 with HMAC (RFC 8018). @param iterations 1 to 2^31 - 1 @param length bytes wanted */
  pbkdf2(hash: string, password: Uint8Array, salt: Uint8Array, iterations: number, length: number): Promise<Uint8Array>;
  /** Fills with bytes that nobody can guess. */
  fillRandom(into: Uint8Array): void;
  /** Milliseconds since some moment; never goes back. */
  now(): number;
}
