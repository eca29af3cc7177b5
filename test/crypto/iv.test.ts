/** Initialisation vectors. The values are those that QEMU tests its own generators with. */
import { createCipheriv, createHash } from 'node:crypto';
import { describe, expect, it } from 'vitest';
import type { IvGenerator } from '../../src/crypto/algorithms.ts';
import { createIvSource, IvSource } from '../../src/crypto/iv.ts';
import { nodeCrypto } from '../../src/platform/node/crypto.ts';
import { hexOf, SUBJECT, unhex } from './support.ts';

const KEY = unhex('000102030405060708090a0b0c0d0e0f');

function vectors(ivGenerator: IvGenerator, first: number, count = 1): string {
  const spec = { cipher: 'aes', cipherKeyBytes: 16, mode: 'cbc', ivGenerator, ivHash: 'sha256' } as const;
  return hexOf(createIvSource(spec, KEY, 8, nodeCrypto, SUBJECT).vectors(first, count));
}

const LARGE = 0x1f_2e3d_4c5b;

describe('vectors', () => {
  it.each([
    ['plain', 1, '01000000000000000000000000000000'],
    ['plain', 0x1f2e3d4c, '4c3d2e1f000000000000000000000000'],
    ['plain', LARGE, '5b4c3d2e000000000000000000000000'],
    ['plain64', 1, '01000000000000000000000000000000'],
    ['plain64', 0x1f2e3d4c, '4c3d2e1f000000000000000000000000'],
    ['plain64', LARGE, '5b4c3d2e1f0000000000000000000000'],
  ] as const)('of %s for sector %i', (generator, sector, expected) => {
    expect(vectors(generator, sector)).toBe(expected);
  });

  it.each([
    [1, 'd48371b2a19453881c7a2d062d0b6546'],
    [0x1f2e3d4c, '5d36095dc69e5ee9e3028dd87a3de78f'],
  ])('of essiv for sector %i are its number, encrypted', (sector, expected) => {
    // QEMU's test cuts the hash to the key of AES-128
    const cipher = nodeCrypto.blockCipher('aes', nodeCrypto.digest('sha256', [KEY]).subarray(0, 16));
    expect(hexOf(new IvSource(1, false, cipher).vectors(sector, 1))).toBe(expected);
  });

  it('of essiv are encrypted with the whole hash, whatever key the disk has, as dm-crypt does it', () => {
    const hash = createHash('sha256').update(KEY).digest();
    const number = Buffer.alloc(16);
    number.writeBigUInt64LE(BigInt(LARGE));
    expect(vectors('essiv', LARGE)).toBe(createCipheriv('aes-256-ecb', hash, null).update(number).toString('hex'));
  });

  it.each(['plain', 'plain64', 'essiv'] as const)('of %s are made for many sectors as for each', (generator) => {
    const first = 0xffff_fffe;
    const each = [0, 1, 2, 3].map((i) => vectors(generator, first + i));
    expect(vectors(generator, first, 4)).toBe(each.join(''));
    if (generator === 'plain') expect(each[2]).toBe('00'.repeat(16));
  });

  it('of an earlier call do not shine through into a later one', () => {
    const spec = { cipher: 'aes', cipherKeyBytes: 16, mode: 'cbc', ivGenerator: 'plain64' } as const;
    const source = createIvSource(spec, KEY, 8, nodeCrypto, SUBJECT);
    source.vectors(Number.MAX_SAFE_INTEGER - 7, 8);
    expect(hexOf(source.vectors(2, 1))).toBe('02000000000000000000000000000000');
  });
});
