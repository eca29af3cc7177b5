/** Walks the status of a node from front to back, without an object per extent. Owns one list that it fills again and again.
 *  Invariant: after `seek(offset)` has ended, the fields describe the longest known stretch from `offset` on that has one status. */
import type { Pending } from '../base/async.ts';
import { assert } from '../base/errors.ts';
import { EXTENT, ExtentList } from '../core/extent.ts';
import type { BlockNode } from '../core/node.ts';

/** What a cursor walks over: a node, or one layer of it. */
export type StatusSource = Pick<BlockNode, 'name' | 'size' | 'extents'>;

export class StatusCursor {
  /** Union of {@link EXTENT} bits. */
  flags = 0;
  /** First byte after the stretch. */
  end = 0;
  depth = 0;
  /** Its place in a file is known. */
  hasOffset = false;
  readonly #node: StatusSource;
  readonly #list = new ExtentList(512);
  #index = 0;

  constructor(node: StatusSource) {
    this.#node = node;
    this.#list.reset(-1);
  }

  get present(): boolean {
    return this.flags % 2 === 1;
  }

  get zero(): boolean {
    return Math.floor(this.flags / EXTENT.zero) % 2 === 1;
  }

  get data(): boolean {
    return Math.floor(this.flags / EXTENT.data) % 2 === 1;
  }

  /** Moves to `offset`, which lies within the node. Forward only is fast. */
  seek(offset: number): Pending {
    const list = this.#list;
    if (list.count > 0 && offset >= list.start && offset < list.end) {
      this.#find(offset);
      return undefined;
    }
    list.reset(offset);
    this.#index = 0;
    const pending = this.#node.extents(offset, this.#node.size - offset, list);
    if (pending !== undefined) return this.#findLater(pending, offset);
    this.#find(offset);
    return undefined;
  }

  async #findLater(pending: Promise<void>, offset: number): Promise<void> {
    await pending;
    this.#find(offset);
  }

  #find(offset: number): void {
    const list = this.#list;
    assert(list.end > offset, `"${this.#node.name}" has no status at ${offset}`);
    if (list.startAt(this.#index) > offset) this.#index = 0;
    while (list.startAt(this.#index) + list.lengthAt(this.#index) <= offset) this.#index++;
    this.flags = list.flagsAt(this.#index);
    this.depth = list.depthAt(this.#index);
    this.hasOffset = list.hostOffsetAt(this.#index) >= 0;
    this.end = list.startAt(this.#index) + list.lengthAt(this.#index);
  }
}
