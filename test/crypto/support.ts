/** Parts of the tests of the crypto room: hexadecimal, a place for headers that remembers what happened to it, and a clock that makes
 *  measuring quick. */
import type { HeaderArea } from '../../src/crypto/luks-options.ts';
import type { CryptoProvider } from '../../src/crypto/provider.ts';
import { nodeCrypto } from '../../src/platform/node/crypto.ts';
import { noise, seededRandom } from '../../src/testing/random.ts';

export function unhex(text: string): Uint8Array {
  return new Uint8Array(Buffer.from(text.replace(/\s/g, ''), 'hex'));
}

export function hexOf(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString('hex');
}

export function utf8(text: string): Uint8Array {
  return new TextEncoder().encode(text);
}

export function seeded(length: number, seed = 1): Uint8Array {
  return noise(seededRandom(seed), length);
}

/** The runtime's crypto with a clock on which everything takes a second: measuring ends at once, and few iterations are as many as it gets. */
export function quickCrypto(): CryptoProvider {
  let ms = 0;
  return {
    ...nodeCrypto,
    now: () => {
      ms += 1000;
      return ms;
    },
  };
}

export const SUBJECT = 'luks "test"';

/** A header's place in memory. */
export class MemoryArea implements HeaderArea {
  bytes: Uint8Array;
  /** `write 4096+256000`, `flush`, in order. */
  readonly log: string[] = [];
  /** Contents after each step of the log, where somebody asked for them. */
  readonly states: Uint8Array[] = [];
  readonly #keepStates: boolean;

  constructor(bytes: Uint8Array | number, keepStates = false) {
    this.bytes = typeof bytes === 'number' ? new Uint8Array(bytes) : bytes;
    this.#keepStates = keepStates;
  }

  get size(): number {
    return this.bytes.length;
  }

  read(offset: number, into: Uint8Array): undefined {
    into.fill(0);
    into.set(this.bytes.subarray(offset, offset + into.length));
  }

  async write(offset: number, from: Uint8Array): Promise<void> {
    if (offset + from.length > this.size) throw new Error(`write of ${from.length} at ${offset}, past the end`);
    this.bytes.set(from, offset);
    this.#note(`write ${offset}+${from.length}`);
  }

  async flush(): Promise<void> {
    this.#note('flush');
  }

  #note(step: string): void {
    this.log.push(step);
    if (this.#keepStates) this.states.push(this.bytes.slice());
  }
}
