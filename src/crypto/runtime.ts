/** Where format rooms get the ciphers of this runtime from. Owns nothing: the provider is `#platform`'s, and costs nothing before it is used. */
import { nodeCrypto } from '#platform';
import type { CryptoProvider } from './provider.ts';

export const platformCrypto: CryptoProvider = nodeCrypto;
