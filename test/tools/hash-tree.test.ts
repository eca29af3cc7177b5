/** The tree of hashes, against a plain computation of what it is said to be. */
import { createHash } from 'node:crypto';
import fc from 'fast-check';
import { expect, it } from 'vitest';
import { HashTree } from '../../src/tools/hash-tree.ts';

const sha = (parts: readonly Uint8Array[]): Uint8Array => {
  const hash = createHash('sha256');
  for (const part of parts) hash.update(part);
  return hash.digest();
};
const ZERO = sha([Uint8Array.of(0), new Uint8Array(16)]);

/** As the definition has it: all leaves, filled up with those of zeros, in pairs. */
function plain(leaves: readonly Uint8Array[]): Uint8Array {
  let level = [...leaves];
  while (level.length === 0 || !Number.isInteger(Math.log2(level.length))) level.push(ZERO);
  while (level.length > 1) {
    const pairs: Uint8Array[] = [];
    for (let i = 0; i < level.length; i += 2) {
      pairs.push(sha([Uint8Array.of(1), level[i] as Uint8Array, level[i + 1] as Uint8Array]));
    }
    level = pairs;
  }
  return level[0] as Uint8Array;
}

it('is what the definition says, however zeros are added', () => {
  const block = fc.oneof(
    fc.record({ zeros: fc.integer({ min: 1, max: 40 }), alone: fc.boolean() }),
    fc.record({ seed: fc.integer({ min: 0, max: 255 }) }),
  );
  fc.assert(
    fc.property(fc.array(block, { maxLength: 30 }), (blocks) => {
      const tree = new HashTree(sha, ZERO);
      const leaves: Uint8Array[] = [];
      for (const one of blocks) {
        if ('seed' in one) {
          const hash = sha([Uint8Array.of(0, one.seed)]);
          tree.add(hash);
          leaves.push(hash);
        } else {
          if (one.alone) for (let i = 0; i < one.zeros; i++) tree.add(ZERO);
          else tree.addZeros(one.zeros);
          for (let i = 0; i < one.zeros; i++) leaves.push(ZERO);
        }
      }
      expect(tree.count).toBe(leaves.length);
      expect(Buffer.from(tree.finish()).toString('hex')).toBe(Buffer.from(plain(leaves)).toString('hex'));
    }),
  );
});

it('takes as many zeros as any disk has blocks, in a few hashes', () => {
  let hashes = 0;
  const tree = new HashTree((parts) => {
    hashes++;
    return sha(parts);
  }, ZERO);
  tree.addZeros(2 ** 33 - 5);
  tree.add(sha([Uint8Array.of(0, 1)]));
  tree.finish();
  expect(hashes).toBeLessThan(200);
});
