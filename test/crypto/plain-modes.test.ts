/** ECB and CTR: the vectors of NIST, and counters that run over the end of their last bytes. */
import { createCipheriv } from 'node:crypto';
import { describe, expect, it } from 'vitest';
import { CtrMode, EcbMode } from '../../src/crypto/plain-modes.ts';
import type { BlockCipher } from '../../src/crypto/provider.ts';
import { nodeCrypto } from '../../src/platform/node/crypto.ts';
import { hexOf, seeded, unhex } from './support.ts';
import { NIST_CTR, NIST_ECB, NIST_KEYS, NIST_PLAIN } from './vectors.ts';

function aes(key: Uint8Array): BlockCipher {
  const cipher = nodeCrypto.blockCipher('aes', key);
  if (cipher === undefined) throw new Error('no AES');
  return cipher;
}

describe('ecb', () => {
  it.each([128, 192, 256] as const)('is that of NIST SP 800-38A, AES-%i', (bits) => {
    const mode = new EcbMode(aes(unhex(NIST_KEYS[bits])));
    const sector = new Uint8Array(512);
    sector.set(unhex(NIST_PLAIN));
    const into = new Uint8Array(512);
    mode.encrypt(sector, into);
    expect(hexOf(into.subarray(0, 64))).toBe(hexOf(unhex(NIST_ECB[bits])));
    mode.decrypt(into, into);
    expect(into).toEqual(sector);
  });
});

describe('ctr', () => {
  it.each([128, 256] as const)('is that of NIST SP 800-38A, whose counter runs over, AES-%i', (bits) => {
    const mode = new CtrMode(aes(unhex(NIST_KEYS[bits])));
    const sector = new Uint8Array(512);
    sector.set(unhex(NIST_PLAIN));
    const into = new Uint8Array(512);
    mode.encrypt(sector, into, unhex(NIST_CTR.iv));
    expect(hexOf(into.subarray(0, 64))).toBe(hexOf(unhex(NIST_CTR[bits])));
    mode.decrypt(into, into, unhex(NIST_CTR.iv));
    expect(into).toEqual(sector);
  });

  it('carries through all bytes of the counter, sector by sector as OpenSSL', () => {
    const key = seeded(32);
    const starts = ['ff'.repeat(16), `00${'ff'.repeat(15)}`, `${'00'.repeat(15)}f0`, `${'ab'.repeat(14)}ffe1`];
    const plain = seeded(starts.length * 512, 2);
    const expected = new Uint8Array(plain.length);
    starts.forEach((iv, i) => {
      const one = createCipheriv('aes-256-ctr', key, unhex(iv));
      expected.set(one.update(plain.subarray(i * 512, i * 512 + 512)), i * 512);
    });
    const into = new Uint8Array(plain.length);
    new CtrMode(aes(key)).encrypt(plain, into, unhex(starts.join('')));
    expect(into).toEqual(expected);
  });
});
