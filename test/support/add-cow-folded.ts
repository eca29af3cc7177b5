/** A large disk with little on it: regions that lie far apart, kept one behind the other in a small file. So each region has bitmap tables of its
 *  own, and a test that fits into kilobytes still moves tables in and out.
 *  Invariant: nothing between the regions is ever written. */
import type { Pending } from '../../src/base/async.ts';
import { settleAll } from '../../src/base/async.ts';
import { ExtentList } from '../../src/core/extent.ts';
import type { BlockNode } from '../../src/core/node.ts';
import { BaseStore, type IoOptions, type WriteOptions, type ZeroOptions } from '../../src/core/store.ts';

export interface Folding {
  /** Bytes of the large disk; ends with the last region. */
  readonly size: number;
  /** Bytes from the beginning of a region to that of the next. */
  readonly stride: number;
  /** Bytes of a region. */
  readonly region: number;
}

export function folding(regions: number, stride: number, region: number): Folding {
  return { size: (regions - 1) * stride + region, stride, region };
}

type Piece = readonly [from: number, at: number, length: number];

/** All of them, whatever becomes of one. */
function each(pieces: readonly Piece[], act: (piece: Piece) => Pending): Pending {
  return settleAll(pieces.map(async (piece) => await act(piece)));
}

/** The small file as the large disk's file. */
export class FoldedStore extends BaseStore {
  readonly limits;
  readonly supports;
  readonly #inner: BlockNode;
  readonly #folding: Folding;

  constructor(inner: BlockNode, by: Folding) {
    super(inner.name, 'folded');
    this.#inner = inner;
    this.#folding = by;
    this.limits = inner.limits;
    this.supports = { ...inner.supports, truncate: false };
  }

  get size(): number {
    return this.#folding.size;
  }

  /** Parts of a range that lie in regions: offset within the range, offset in the small file, length. */
  #pieces(offset: number, length: number): Piece[] {
    const { stride, region } = this.#folding;
    const pieces: Piece[] = [];
    for (let at = offset; at < offset + length; ) {
      const within = at % stride;
      const end = Math.min(offset + length, at - within + stride);
      if (within < region) {
        const inside = Math.min(end, at - within + region) - at;
        pieces.push([at - offset, Math.floor(at / stride) * region + within, inside]);
      }
      at = end;
    }
    return pieces;
  }

  #written(offset: number, length: number): Piece[] {
    const pieces = this.#pieces(offset, length);
    if (pieces.reduce((sum, [, , piece]) => sum + piece, 0) !== length) {
      throw new Error(`a write of ${length} bytes at ${offset} passes its region`);
    }
    return pieces;
  }

  protected _read(offset: number, into: Uint8Array, options: IoOptions | undefined): Pending {
    into.fill(0);
    return each(this.#pieces(offset, into.length), ([from, at, length]) =>
      this.#inner.read(at, into.subarray(from, from + length), options),
    );
  }

  protected _write(offset: number, bytes: Uint8Array, options: WriteOptions | undefined): Pending {
    return each(this.#written(offset, bytes.length), ([from, at, length]) =>
      this.#inner.write(at, bytes.subarray(from, from + length), options),
    );
  }

  protected _writeZeroes(offset: number, length: number, options: ZeroOptions | undefined): Pending {
    return each(this.#written(offset, length), ([, at, part]) => this.#inner.writeZeroes(at, part, options));
  }

  protected _discard(offset: number, length: number): Pending {
    return each(this.#pieces(offset, length), ([, at, part]) => this.#inner.discard(at, part));
  }

  /** Everything is data: the regions' own holes are of no interest. */
  protected _extents(_offset: number, length: number, into: ExtentList): Pending {
    into.add(length, 5);
    return undefined;
  }

  protected _flush(): Pending {
    return this.#inner.flush();
  }

  protected _truncate(): Pending {
    throw new Error('a folded store keeps its size');
  }

  protected _close(): Promise<void> {
    return this.#inner.close();
  }
}

/** The large disk's regions as one small disk. */
export class SpreadNode extends BaseStore {
  readonly limits;
  readonly supports;
  readonly size: number;
  readonly #inner: BlockNode;
  readonly #folding: Folding;

  constructor(inner: BlockNode, by: Folding) {
    super(inner.name, 'spread');
    this.#inner = inner;
    this.#folding = by;
    this.limits = inner.limits;
    this.supports = { ...inner.supports, truncate: false };
    this.size = (Math.floor(by.size / by.stride) + 1) * by.region;
  }

  #pieces(offset: number, length: number): Piece[] {
    const { stride, region } = this.#folding;
    const pieces: Piece[] = [];
    for (let at = offset; at < offset + length; ) {
      const within = at % region;
      const part = Math.min(offset + length - at, region - within);
      pieces.push([at - offset, Math.floor(at / region) * stride + within, part]);
      at += part;
    }
    return pieces;
  }

  protected _read(offset: number, into: Uint8Array): Pending {
    return each(this.#pieces(offset, into.length), ([from, at, length]) =>
      this.#inner.read(at, into.subarray(from, from + length)),
    );
  }

  protected _write(offset: number, bytes: Uint8Array, options: WriteOptions | undefined): Pending {
    return each(this.#pieces(offset, bytes.length), ([from, at, length]) =>
      this.#inner.write(at, bytes.subarray(from, from + length), options),
    );
  }

  protected _writeZeroes(offset: number, length: number, options: ZeroOptions | undefined): Pending {
    return each(this.#pieces(offset, length), ([, at, part]) => this.#inner.writeZeroes(at, part, options));
  }

  protected _discard(offset: number, length: number): Pending {
    return each(this.#pieces(offset, length), ([, at, part]) => this.#inner.discard(at, part));
  }

  protected async _extents(offset: number, length: number, into: ExtentList): Promise<void> {
    const [first] = this.#pieces(offset, length) as [Piece, ...Piece[]];
    const list = new ExtentList(16);
    list.reset(first[1]);
    await this.#inner.extents(first[1], first[2], list);
    for (let i = 0; i < list.count; i++) if (!into.add(list.lengthAt(i), list.flagsAt(i))) return;
  }

  protected _flush(): Pending {
    return this.#inner.flush();
  }

  protected _truncate(): Pending {
    throw new Error('a spread disk keeps its size');
  }

  protected _close(): Promise<void> {
    return this.#inner.close();
  }
}
