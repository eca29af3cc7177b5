/** One hash over a sequence of equal blocks, by a binary tree: runs of zeros of any length cost a few hashes, and blocks may be hashed anywhere.
 *  Spec: docs/guide/checksums.md, version 1.
 *  Invariant: the root depends on the blocks and their number alone, not on how they were added. */
import { assert } from '../base/errors.ts';

/** Hashes the parts laid end to end. */
export type Digest = (parts: readonly Uint8Array[]) => Uint8Array;

/** In front of what is hashed: a block, a pair of hashes, the size with the hash of the tree. */
export const PREFIX = { block: 0, pair: 1, root: 2 } as const;

const PAIR = Uint8Array.of(PREFIX.pair);

interface Subtree {
  /** It stands for 2^level blocks. */
  readonly level: number;
  readonly hash: Uint8Array;
}

export class HashTree {
  readonly #digest: Digest;
  /** Hashes of trees of zeros, by level. */
  readonly #zeros: Uint8Array[];
  /** Complete subtrees from the left, each smaller than the one before. */
  readonly #left: Subtree[] = [];
  #count = 0;

  /** @param zeroBlock hash of a block of zeros */
  constructor(digest: Digest, zeroBlock: Uint8Array) {
    this.#digest = digest;
    this.#zeros = [zeroBlock];
  }

  /** Blocks so far. */
  get count(): number {
    return this.#count;
  }

  /** The next block. */
  add(hash: Uint8Array): void {
    this.#push(0, hash);
    this.#count++;
  }

  /** The next `count` blocks are zeros. */
  addZeros(count: number): void {
    for (let rest = count; rest > 0; ) {
      // The largest tree that fits here: its place is a multiple of its size.
      let level = 0;
      let size = 1;
      while (size * 2 <= rest && this.#count % (size * 2) === 0) {
        size *= 2;
        level++;
      }
      this.#push(level, this.#zeroTree(level));
      this.#count += size;
      rest -= size;
    }
  }

  /** Fills up with zeros to a power of two of blocks, 1 at least. @returns the hash of the whole. */
  finish(): Uint8Array {
    let size = 1;
    while (size < this.#count) size *= 2;
    this.addZeros(size - this.#count);
    const [root] = this.#left;
    assert(this.#left.length === 1 && root !== undefined, 'a tree of hashes that is not whole');
    return root.hash;
  }

  #push(level: number, hash: Uint8Array): void {
    let tree: Subtree = { level, hash };
    for (let before = this.#left.at(-1); before?.level === tree.level; before = this.#left.at(-1)) {
      this.#left.pop();
      tree = { level: tree.level + 1, hash: this.#digest([PAIR, before.hash, tree.hash]) };
    }
    this.#left.push(tree);
  }

  #zeroTree(level: number): Uint8Array {
    while (this.#zeros.length <= level) {
      const below = this.#zeros.at(-1) as Uint8Array;
      this.#zeros.push(this.#digest([PAIR, below, below]));
    }
    return this.#zeros[level] as Uint8Array;
  }
}
