/** XTS by whole buffers: the standard's vectors, OpenSSL sector by sector, and, for keys that OpenSSL does not take, the definition. */
import { createCipheriv } from 'node:crypto';
import { describe, expect, it } from 'vitest';
import { createSectorCipher } from '../../src/crypto/sector-cipher.ts';
import { nodeCrypto } from '../../src/platform/node/crypto.ts';
import { hexOf, SUBJECT, seeded, unhex } from './support.ts';
import { IEEE_1619 } from './vectors.ts';

function xts(key: Uint8Array) {
  const spec = { cipher: 'aes', cipherKeyBytes: key.length / 2, mode: 'xts', ivGenerator: 'plain64' } as const;
  return createSectorCipher(spec, key, nodeCrypto, SUBJECT);
}

function counted(): Uint8Array {
  return Uint8Array.from({ length: 512 }, (_, i) => i % 256);
}

describe('xts', () => {
  it.each(IEEE_1619)('encrypts and decrypts $name of IEEE 1619', ({ unit, key, encrypted }) => {
    const cipher = xts(unhex(key));
    const into = new Uint8Array(512);
    cipher.encrypt(counted(), into, unit);
    expect(hexOf(into)).toBe(hexOf(unhex(encrypted)));
    cipher.decrypt(into, unit);
    expect(into).toEqual(counted());
  });

  it.each(IEEE_1619)('finds $name in the middle of a long buffer', ({ unit, key, encrypted }) => {
    const cipher = xts(unhex(key));
    const before = unit % 200;
    const plain = seeded(512 * 300);
    plain.set(counted(), before * 512);
    const into = new Uint8Array(plain.length);
    cipher.encrypt(plain, into, unit - before);
    expect(hexOf(into.subarray(before * 512, before * 512 + 512))).toBe(hexOf(unhex(encrypted)));
  });

  it.each([
    [32, 'aes-128-xts'],
    [64, 'aes-256-xts'],
  ])('makes with a key of %i bytes what OpenSSL makes sector by sector (%s)', (keyBytes, name) => {
    const key = seeded(keyBytes, 7);
    const cipher = xts(key);
    for (const sectors of [1, 2, 127, 128, 129, 300]) {
      const first = sectors * 0x1_2345_6789;
      const plain = seeded(sectors * 512, sectors);
      const expected = new Uint8Array(plain.length);
      for (let i = 0; i < sectors; i++) {
        const iv = Buffer.alloc(16);
        iv.writeBigUInt64LE(BigInt(first + i));
        expected.set(createCipheriv(name, key, iv).update(plain.subarray(i * 512, i * 512 + 512)), i * 512);
      }
      const into = new Uint8Array(plain.length);
      cipher.encrypt(plain, into, first);
      expect(into, `${sectors} sectors`).toEqual(expected);
      cipher.decrypt(into, first);
      expect(into, `${sectors} sectors back`).toEqual(plain);
    }
  });

  it('takes keys of AES-192, as the definition has it', () => {
    const key = seeded(48, 3);
    const plain = seeded(512 * 3, 4);
    const into = new Uint8Array(plain.length);
    xts(key).encrypt(plain, into, 41);
    expect(hexOf(into)).toBe(hexOf(byDefinition(key, plain, 41)));
  });
});

/** IEEE 1619, 5.3, block by block, in big integers. */
function byDefinition(key: Uint8Array, plain: Uint8Array, first: number): Uint8Array {
  const algorithm = `aes-${key.length * 4}-ecb`;
  const data = key.subarray(0, key.length / 2);
  const tweak = key.subarray(key.length / 2);
  const ecb = (part: Uint8Array, block: bigint): bigint => {
    const cipher = createCipheriv(algorithm, part, null).setAutoPadding(false);
    return fromBytes(cipher.update(toBytes(block)));
  };
  const out = new Uint8Array(plain.length);
  for (let sector = 0; sector * 512 < plain.length; sector++) {
    let t = ecb(tweak, BigInt(first + sector));
    for (let at = sector * 512; at < (sector + 1) * 512; at += 16) {
      out.set(toBytes(ecb(data, fromBytes(plain.subarray(at, at + 16)) ^ t) ^ t), at);
      t = (t << 1n) ^ (t >> 127n === 1n ? (1n << 128n) | 0x87n : 0n);
    }
  }
  return out;
}

function fromBytes(bytes: Uint8Array): bigint {
  return BigInt(`0x${hexOf(Uint8Array.from(bytes).reverse())}`);
}

function toBytes(value: bigint): Uint8Array {
  return unhex(value.toString(16).padStart(32, '0')).reverse();
}
