/** Where format rooms get the ciphers of this runtime from. Owns nothing: the provider is `#platform`'s, and costs nothing before it is used. */
import { nodeCrypto } from '#platform';
import type { CryptoProvider } from './provider.ts';

/** The same with another chance and clock, where some are given: images that must be the same each time. */
export function cryptoWith(chance: Pick<CryptoProvider, 'fillRandom' | 'now'> | undefined): CryptoProvider {
  return chance === undefined
    ? platformCrypto
    : { ...platformCrypto, fillRandom: (into) => chance.fillRandom(into), now: () => chance.now() };
}

export const platformCrypto: CryptoProvider = nodeCrypto;
