/** Ciphers, hashes, key derivation, chance and the clock, by `node:crypto`. Loaded when it is first asked for something.
 *  Invariant: key material stays in OpenSSL's contexts, which clear it when they are freed. */
import type { Cipher, Decipher } from 'node:crypto';
import { BlockError } from '../../base/errors.ts';

type NodeCrypto = typeof import('node:crypto');

let loaded: NodeCrypto | undefined;

/** It costs milliseconds at start, and most commands do not need it. */
function library(): NodeCrypto {
  loaded ??= process.getBuiltinModule('node:crypto');
  return loaded;
}

/** OpenSSL's names of ciphers in electronic code book mode, by the name in a LUKS header and the key's length in bytes. */
const CIPHERS: Readonly<Record<string, string>> = {
  'aes-16': 'aes-128-ecb',
  'aes-24': 'aes-192-ecb',
  'aes-32': 'aes-256-ecb',
  'sm4-16': 'sm4-ecb',
};
const HASHES = new Set(['md5', 'sha1', 'sha224', 'sha256', 'sha384', 'sha512', 'ripemd160', 'sm3']);

/** What the crypto room asks of its runtime. */
export const nodeCrypto = {
  blockCipher(name: string, key: Uint8Array): NodeBlockCipher | undefined {
    const algorithm = CIPHERS[`${name}-${key.length}`];
    if (algorithm === undefined || library().getCipherInfo(algorithm) === undefined) return undefined;
    return new NodeBlockCipher(algorithm, key);
  },

  hasHash(name: string): boolean {
    return HASHES.has(name) && library().getHashes().includes(name);
  },

  digest(hash: string, parts: readonly Uint8Array[]): Uint8Array {
    const context = library().createHash(hash);
    for (const part of parts) context.update(part);
    return context.digest();
  },

  /** In Node's thread pool: it may take seconds. */
  pbkdf2(
    hash: string,
    password: Uint8Array,
    salt: Uint8Array,
    iterations: number,
    length: number,
  ): Promise<Uint8Array> {
    return new Promise((resolve, reject) => {
      library().pbkdf2(password, salt, iterations, length, hash, (error, key) => {
        if (error === null) resolve(key);
        else
          reject(
            new BlockError('IO', `pbkdf2 with ${hash}: ${error.message}`, { reason: 'crypto.pbkdf2', cause: error }),
          );
      });
    });
  },

  fillRandom(into: Uint8Array): void {
    library().randomFillSync(into);
  },

  now(): number {
    return performance.now();
  },
};

/** One key, and a context for each direction that is used: making one costs as much as encrypting some kilobytes. */
export class NodeBlockCipher {
  readonly #encryption: Cipher;
  readonly #decryption: Decipher;
  #wiped = false;

  constructor(algorithm: string, key: Uint8Array) {
    const { createCipheriv, createDecipheriv } = library();
    this.#encryption = createCipheriv(algorithm, key, null).setAutoPadding(false);
    this.#decryption = createDecipheriv(algorithm, key, null).setAutoPadding(false);
  }

  encrypt(blocks: Uint8Array): Uint8Array {
    this.#requireKey();
    return onWords(this.#encryption.update(blocks));
  }

  decrypt(blocks: Uint8Array): Uint8Array {
    this.#requireKey();
    return onWords(this.#decryption.update(blocks));
  }

  /** Ending a context is what frees it, and with it the key. */
  wipe(): void {
    if (this.#wiped) return;
    this.#wiped = true;
    this.#encryption.final();
    this.#decryption.final();
  }

  #requireKey(): void {
    if (this.#wiped)
      throw new BlockError('CLOSED', 'the cipher was used after its key was wiped', { reason: 'crypto.wiped' });
  }
}

/** Results have memory of their own in every version of Node so far; the contract must hold in the next one, too. */
function onWords(bytes: Uint8Array): Uint8Array {
  return bytes.byteOffset % 4 === 0 ? bytes : new Uint8Array(bytes);
}
