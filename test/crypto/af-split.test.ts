/** Anti-forensic splitting: QEMU's own vector, and that every bit counts. */
import { createHash } from 'node:crypto';
import { describe, expect, it } from 'vitest';
import { mergeKey, splitKey } from '../../src/crypto/af-split.ts';
import { nodeCrypto } from '../../src/platform/node/crypto.ts';
import { seeded, unhex } from './support.ts';

describe('mergeKey', () => {
  it('puts together what QEMU split', () => {
    const split = unhex(`
      fdd273b17d99933470defa07c5ac58d230672f1a3543607d7702db623ccb2c33
      4808b6f17ca320a0ad2d4cf3cd186f53f9e8e759273ca9546187b3aff6f77e64
      86aa897f1f9fdb86f4a216ffa34f8ca159c4233428c4777183d4cd8e891bc7c5
      ae4da9cdc972857013685283fcb81172ba3dc64a28fae2867b27ab58e1a4caf6
      9ebcfe0c9279b3ec1c5f793b0d1eaa1a770f70194bc880ee277c6e4a91965cf4`);
    const key = unhex('000102030405060708090a0b0c0d0e0fa0a1a2a3a4a5a6a7a8a9aaabacadaeaf');
    expect(mergeKey(split, 32, 5, 'sha256', nodeCrypto)).toEqual(key);
  });

  it('hashes each piece of a long key with its number', () => {
    const numbered = (number: number, piece: Uint8Array) =>
      createHash('sha1')
        .update(Uint8Array.of(0, 0, 0, number))
        .update(piece)
        .digest();
    const stripe = seeded(48, 1);
    const digests = [0, 20, 40].map((at, i) => numbered(i, stripe.subarray(at, at + 20)));
    const mask = Buffer.concat(digests).subarray(0, 48);
    const key = seeded(48, 2);
    const last = key.map((byte, i) => byte ^ (mask[i] as number));
    expect(mergeKey(new Uint8Array([...stripe, ...last]), 48, 2, 'sha1', nodeCrypto)).toEqual(key);
  });

  it.each([
    [16, 'sha256', 'shorter than a digest'],
    [32, 'sha1', 'of one digest and a piece'],
    [64, 'sha256', 'of two digests'],
    [48, 'ripemd160', 'of two digests and a piece'],
  ])('gives back a key of %i bytes split with %s, %s', (length, hash) => {
    const key = seeded(length, length);
    const split = splitKey(key, 100, hash, nodeCrypto);
    expect(split.length).toBe(length * 100);
    expect(mergeKey(split, length, 100, hash, nodeCrypto)).toEqual(key);
  });

  it('gives back another key when one bit of any stripe is another', () => {
    const key = seeded(32);
    const split = splitKey(key, 20, 'sha256', nodeCrypto);
    for (let stripe = 0; stripe < 20; stripe++) {
      const damaged = split.slice();
      const at = stripe * 32 + (stripe % 32);
      damaged[at] = (damaged[at] as number) ^ 1;
      expect(mergeKey(damaged, 32, 20, 'sha256', nodeCrypto), `stripe ${stripe}`).not.toEqual(key);
    }
  });

  it('splits the same key in another way each time', () => {
    const key = seeded(32);
    expect(splitKey(key, 3, 'sha256', nodeCrypto)).not.toEqual(splitKey(key, 3, 'sha256', nodeCrypto));
  });
});
