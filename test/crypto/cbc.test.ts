/** Cipher block chaining, all sectors side by side: the vectors of NIST, and OpenSSL sector by sector. */
import { createCipheriv } from 'node:crypto';
import { describe, expect, it } from 'vitest';
import { CbcMode } from '../../src/crypto/cbc.ts';
import { nodeCrypto } from '../../src/platform/node/crypto.ts';
import { hexOf, seeded, unhex } from './support.ts';
import { NIST_CBC, NIST_KEYS, NIST_PLAIN } from './vectors.ts';

function cbc(key: Uint8Array): CbcMode {
  const cipher = nodeCrypto.blockCipher('aes', key);
  if (cipher === undefined) throw new Error('no AES');
  return new CbcMode(cipher);
}

describe('cbc', () => {
  it.each([128, 256] as const)('begins a sector as NIST SP 800-38A has it, AES-%i', (bits) => {
    const mode = cbc(unhex(NIST_KEYS[bits]));
    const sectors = new Uint8Array(3 * 512);
    sectors.set(unhex(NIST_PLAIN), 512);
    const ivs = seeded(48);
    ivs.set(unhex(NIST_CBC.iv), 16);
    const into = new Uint8Array(sectors.length);
    mode.encrypt(sectors, into, ivs);
    expect(hexOf(into.subarray(512, 512 + 64))).toBe(hexOf(unhex(NIST_CBC[bits])));
    mode.decrypt(into, into, ivs);
    expect(into).toEqual(sectors);
  });

  it.each([16, 24, 32])('chains whole sectors with a key of %i bytes as OpenSSL does', (keyBytes) => {
    const key = seeded(keyBytes, 5);
    const mode = cbc(key);
    for (const sectors of [1, 2, 33, 128]) {
      const plain = seeded(sectors * 512, sectors);
      const ivs = seeded(sectors * 16, sectors + 1);
      const expected = new Uint8Array(plain.length);
      for (let i = 0; i < sectors; i++) {
        const one = createCipheriv(`aes-${keyBytes * 8}-cbc`, key, ivs.subarray(i * 16, i * 16 + 16));
        expected.set(one.update(plain.subarray(i * 512, i * 512 + 512)), i * 512);
      }
      const into = new Uint8Array(plain.length);
      mode.encrypt(plain, into, ivs);
      expect(into, `${sectors} sectors`).toEqual(expected);
      const back = new Uint8Array(plain.length);
      mode.decrypt(into, back, ivs);
      expect(back, `${sectors} sectors apart`).toEqual(plain);
      mode.decrypt(into, into, ivs);
      expect(into, `${sectors} sectors in place`).toEqual(plain);
    }
  });

  it('encrypts in place', () => {
    const mode = cbc(seeded(16));
    const plain = seeded(5 * 512, 2);
    const ivs = seeded(80, 3);
    const apart = new Uint8Array(plain.length);
    mode.encrypt(plain, apart, ivs);
    mode.encrypt(plain, plain, ivs);
    expect(plain).toEqual(apart);
  });
});
