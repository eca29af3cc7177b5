/** Stretches of a large store seen as a small one, or the other way round: so that a disk of gigabytes, whose bitmap has many tables, can be
 *  tried near the borders of its tables by a guest who sees only those places, and kept in a few hundred KiB.
 *  Invariant: what lies in no segment reads as zero and is never written: such a write is the test's own mistake, or a stray one. */
import { type Pending, settleAll } from '../../src/base/async.ts';
import { EXTENT, ExtentList } from '../../src/core/extent.ts';
import type { BlockNode } from '../../src/core/node.ts';
import {
  BaseStore,
  type BlockEvent,
  type IoOptions,
  type StoreLimits,
  type StoreSupports,
  type WriteOptions,
  type ZeroOptions,
} from '../../src/core/store.ts';

export interface Segment {
  /** Where it begins here. */
  readonly at: number;
  /** And in the store behind. */
  readonly inner: number;
  readonly length: number;
}

/** The same segments the other way round. */
export function inverted(segments: readonly Segment[]): Segment[] {
  return segments.map(({ at, inner, length }) => ({ at: inner, inner: at, length }));
}

export class SegmentStore extends BaseStore {
  readonly size: number;
  readonly limits: StoreLimits;
  readonly supports: StoreSupports;
  readonly #inner: BlockNode;
  readonly #segments: readonly Segment[];
  /** How often each event was announced. */
  readonly events = new Map<BlockEvent, number>();

  /** @param segments in order of `at` @param size bytes, as seen from here */
  constructor(inner: BlockNode, segments: readonly Segment[], size: number) {
    super(inner.name, 'segments');
    this.#inner = inner;
    this.#segments = segments;
    this.size = size;
    this.limits = inner.limits;
    this.supports = { ...inner.supports, truncate: false, fua: false };
  }

  event(name: BlockEvent): Pending {
    this.events.set(name, (this.events.get(name) ?? 0) + 1);
    return this.#inner.event?.(name);
  }

  protected _read(offset: number, into: Uint8Array, options: IoOptions | undefined): Pending {
    return this.#each(offset, into.length, (at, inner, length) => {
      const part = into.subarray(at - offset, at - offset + length);
      if (inner >= 0) return this.#inner.read(inner, part, options);
      part.fill(0);
      return undefined;
    });
  }

  protected _write(offset: number, from: Uint8Array, options: WriteOptions | undefined): Pending {
    return this.#each(offset, from.length, (at, inner, length) =>
      this.#inner.write(this.#inside(at, inner), from.subarray(at - offset, at - offset + length), options),
    );
  }

  protected _writeZeroes(offset: number, length: number, options: ZeroOptions | undefined): Pending {
    // Zeros change nothing where nothing can be anything else.
    return this.#each(offset, length, (_at, inner, part) =>
      inner < 0 ? undefined : this.#inner.writeZeroes(inner, part, options),
    );
  }

  protected _discard(offset: number, length: number, options: IoOptions | undefined): Pending {
    return this.#each(offset, length, (_at, inner, part) =>
      inner < 0 ? undefined : this.#inner.discard(inner, part, options),
    );
  }

  protected _extents(offset: number, length: number, into: ExtentList): Pending {
    return this.#extents(offset, offset + length, into);
  }

  async #extents(offset: number, end: number, into: ExtentList): Promise<void> {
    const list = new ExtentList(into.capacity);
    for (let at = offset; at < end; ) {
      const { inner, length } = this.#segmentAt(at, end);
      if (inner < 0) {
        if (!into.add(length, EXTENT.present + EXTENT.zero)) return;
        at += length;
        continue;
      }
      list.reset(inner);
      await this.#inner.extents(inner, length, list);
      for (let i = 0; i < list.count; i++) {
        if (!into.add(list.lengthAt(i), list.flagsAt(i), -1, undefined, list.depthAt(i))) return;
      }
      at += list.end - inner;
    }
  }

  protected _flush(options: IoOptions | undefined): Pending {
    return this.#inner.flush(options);
  }

  protected _truncate(): Pending {
    throw new Error('a store of segments has one size');
  }

  protected _close(): Promise<void> {
    return this.#inner.close();
  }

  #inside(at: number, inner: number): number {
    if (inner < 0) throw new Error(`"${this.name}": a write at ${at}, where nothing is`);
    return inner;
  }

  /** The stretch from `at` on that can be treated alike; `inner` -1: nothing is there. */
  #segmentAt(at: number, end: number): { readonly inner: number; readonly length: number } {
    for (const segment of this.#segments) {
      if (at < segment.at) return { inner: -1, length: Math.min(end, segment.at) - at };
      const skip = at - segment.at;
      if (skip < segment.length) {
        return { inner: segment.inner + skip, length: Math.min(end - at, segment.length - skip) };
      }
    }
    return { inner: -1, length: end - at };
  }

  #each(offset: number, length: number, act: (at: number, inner: number, length: number) => Pending): Pending {
    const pendings: Promise<void>[] = [];
    for (let at = offset; at < offset + length; ) {
      const segment = this.#segmentAt(at, offset + length);
      let pending: Pending;
      try {
        pending = act(at, segment.inner, segment.length);
      } catch (error) {
        // A request ends only when all that it began has ended.
        if (pendings.length === 0) throw error;
        pending = Promise.reject(error);
      }
      if (pending !== undefined) pendings.push(pending);
      at += segment.length;
    }
    if (pendings.length === 0) return undefined;
    return pendings.length === 1 ? pendings[0] : settleAll(pendings);
  }
}
