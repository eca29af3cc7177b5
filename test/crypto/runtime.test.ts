import { describe, expect, it } from 'vitest';
import { platformCrypto } from '../../src/crypto/runtime.ts';
import { createLegacyAesCipher, createSectorCipher } from '../../src/crypto/sector-cipher.ts';
import { hexOf, SUBJECT, seeded, utf8 } from './support.ts';

describe('the ciphers of the platform', () => {
  it('encrypt as the provider that tests use does', () => {
    const cipher = createLegacyAesCipher(utf8('secret'), platformCrypto, SUBJECT);
    const key = new Uint8Array(16);
    key.set(utf8('secret'));
    const spec = { cipher: 'aes', cipherKeyBytes: 16, mode: 'cbc', ivGenerator: 'plain64' } as const;
    const same = createSectorCipher(spec, key, platformCrypto, SUBJECT);
    const data = seeded(1024);
    const one = new Uint8Array(1024);
    const other = new Uint8Array(1024);
    cipher.encrypt(data, one, 7);
    same.encrypt(data, other, 7);
    expect(hexOf(one)).toBe(hexOf(other));
    expect(hexOf(one)).not.toBe(hexOf(data));
    cipher.decrypt(one, 7);
    expect(hexOf(one)).toBe(hexOf(data));
  });

  it('know the hashes that LUKS headers name, and no others', () => {
    expect(platformCrypto.hasHash('sha256')).toBe(true);
    expect(platformCrypto.hasHash('whirlpool')).toBe(false);
  });
});
