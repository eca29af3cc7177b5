/** Ciphers, hashes and key derivation of the runtime, against published vectors, and what the crypto room relies on. */
import { describe, expect, it } from 'vitest';
import type { CryptoProvider } from '../../../src/crypto/provider.ts';
import { nodeCrypto } from '../../../src/platform/node/crypto.ts';
import { hexOf, seeded, unhex, utf8 } from '../../crypto/support.ts';
import { NIST_ECB, NIST_KEYS, NIST_PLAIN } from '../../crypto/vectors.ts';

/** That it fulfils the room's contract is checked by the compiler. */
const PROVIDER: CryptoProvider = nodeCrypto;

function cipherOf(name: string, key: string) {
  const cipher = PROVIDER.blockCipher(name, unhex(key));
  if (cipher === undefined) throw new Error(`no ${name}`);
  return cipher;
}

describe('blockCipher', () => {
  it.each([128, 192, 256] as const)('encrypts blocks as NIST SP 800-38A has it, AES-%i', (bits) => {
    const cipher = cipherOf('aes', NIST_KEYS[bits]);
    const encrypted = cipher.encrypt(unhex(NIST_PLAIN));
    expect(hexOf(encrypted)).toBe(hexOf(unhex(NIST_ECB[bits])));
    expect(hexOf(cipher.decrypt(encrypted))).toBe(hexOf(unhex(NIST_PLAIN)));
  });

  it('encrypts a block as GB/T 32907 has it, SM4', () => {
    const cipher = cipherOf('sm4', '0123456789abcdeffedcba9876543210');
    expect(hexOf(cipher.encrypt(unhex('0123456789abcdeffedcba9876543210')))).toBe('681edf34d206965e86b3e94f536e4246');
  });

  it('gives back as many bytes as it got, at once, in memory that lies on words', () => {
    const cipher = cipherOf('aes', NIST_KEYS[256]);
    for (const length of [16, 32, 4096, 65_536, 16]) {
      const blocks = new Uint8Array(length + 3).subarray(3);
      const encrypted = cipher.encrypt(blocks);
      expect(encrypted.length).toBe(length);
      expect(encrypted.byteOffset % 4).toBe(0);
      expect(cipher.decrypt(encrypted).length).toBe(length);
    }
  });

  it('gives back memory that the next call does not touch', () => {
    const cipher = cipherOf('aes', NIST_KEYS[128]);
    const first = cipher.encrypt(new Uint8Array(64));
    const before = hexOf(first);
    cipher.encrypt(seeded(64));
    expect(hexOf(first)).toBe(before);
  });

  it.each([
    ['aes', 15],
    ['aes', 20],
    ['aes', 64],
    ['sm4', 32],
    ['serpent', 32],
    ['twofish', 16],
    ['cast5', 16],
    ['des', 8],
    ['', 16],
  ])('does not have %s with a key of %i bytes', (name, length) => {
    expect(PROVIDER.blockCipher(name, new Uint8Array(length))).toBeUndefined();
  });

  it('is of no use once it is wiped, however often', () => {
    const cipher = cipherOf('aes', NIST_KEYS[128]);
    cipher.encrypt(new Uint8Array(16));
    cipher.wipe();
    cipher.wipe();
    for (const use of [() => cipher.encrypt(new Uint8Array(16)), () => cipher.decrypt(new Uint8Array(16))]) {
      expect(use).toThrow(expect.objectContaining({ code: 'CLOSED', reason: 'crypto.wiped' }));
    }
  });
});

describe('digest', () => {
  it.each([
    ['md5', '900150983cd24fb0d6963f7d28e17f72'],
    ['sha1', 'a9993e364706816aba3e25717850c26c9cd0d89d'],
    ['sha224', '23097d223405d8228642a477bda255b32aadbce4bda0b3f7e36c9da7'],
    ['sha256', 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad'],
    ['sha384', /^cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed/],
    ['sha512', /^ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a/],
    ['ripemd160', '8eb208f7e05d987a9b044a8e98c6b087f15a0bfc'],
    ['sm3', '66c7f0f462eeedd9d1f2d46bdc10e4e24167c4875cf2f7a2297da02b8f4ba8e0'],
  ])('of "abc" in parts by %s is the published one', (hash, expected) => {
    expect(PROVIDER.hasHash(hash)).toBe(true);
    expect(hexOf(PROVIDER.digest(hash, [utf8('a'), utf8(''), utf8('bc')]))).toMatch(expected);
  });

  it.each(['whirlpool', 'shake128', 'RSA-SHA256', ''])('does not know %s', (hash) => {
    expect(PROVIDER.hasHash(hash)).toBe(false);
  });
});

describe('pbkdf2', () => {
  it.each([
    // RFC 6070
    ['sha1', 'password', 'salt', 1, '0c60c80f961f0e71f3a9b524af6012062fe037a6'],
    ['sha1', 'password', 'salt', 4096, '4b007901b765489abead49d926f721d065a429c1'],
    [
      'sha1',
      'passwordPASSWORDpassword',
      'saltSALTsaltSALTsaltSALTsaltSALTsalt',
      4096,
      '3d2eec4fe41c849b80c8d83662c0e44a8b291a964cf2f07038',
    ],
    ['sha1', 'pass\0word', 'sa\0lt', 4096, '56fa6aa75548099dcc37d7f03425e0c3'],
    // RFC 7914
    [
      'sha256',
      'passwd',
      'salt',
      1,
      '55ac046e56e3089fec1691c22544b605f94185216dde0465e68b9d57c20dacbc' +
        '49ca9cccf179b645991664b39d77ef317c71b845b1e30bd509112041d3a19783',
    ],
  ])('with %s of %j, %j, %i times is the published one', async (hash, password, salt, iterations, expected) => {
    const key = await PROVIDER.pbkdf2(hash, utf8(password), utf8(salt), iterations, expected.length / 2);
    expect(hexOf(key)).toBe(expected);
  });

  it('rejects what OpenSSL rejects', async () => {
    await expect(PROVIDER.pbkdf2('sha256', utf8('x'), utf8('y'), 0, 16)).rejects.toThrow();
    await expect(PROVIDER.pbkdf2('whirlpool', utf8('x'), utf8('y'), 1, 16)).rejects.toThrow();
  });
});

describe('fillRandom', () => {
  it('fills views, and only them, with other bytes each time', () => {
    const whole = new Uint8Array(64);
    const part = whole.subarray(16, 48);
    PROVIDER.fillRandom(part);
    const first = part.slice();
    PROVIDER.fillRandom(part);
    expect(part).not.toEqual(first);
    expect(hexOf(whole.subarray(0, 16)) + hexOf(whole.subarray(48))).toBe('00'.repeat(32));
  });
});

describe('now', () => {
  it('never goes back', () => {
    const first = PROVIDER.now();
    expect(PROVIDER.now()).toBeGreaterThanOrEqual(first);
  });
});
