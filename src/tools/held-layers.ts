/** What the upper layers of a chain hold between them, range by range: what a commit has to move, and what a rebase may have to copy.
 *  Invariants: where a layer holds something, those below it are not asked; where a layer has ended, those below it do not show, and the range
 *  counts as held zeros. */
import type { Pending } from '../base/async.ts';
import { assert } from '../base/errors.ts';
import { MappedNode } from '../core/mapped-node.ts';
import type { BlockNode } from '../core/node.ts';
import { StatusCursor } from './status-cursor.ts';

/** `data`, `zero`: held by one of the layers; `below`: none of them says anything. */
export type HeldKind = 'data' | 'zero' | 'below';

/** The status of one layer, whatever lies below it. */
export function layerCursor(node: BlockNode): StatusCursor {
  assert(node instanceof MappedNode, `"${node.name}" is no layer`);
  return new StatusCursor({
    name: node.name,
    size: node.size,
    extents: (offset, length, into) => node.layerExtents(offset, length, into),
  });
}

export class HeldLayers {
  kind: HeldKind = 'below';
  /** First byte after the range that begins where `seek` was told. */
  end = 0;
  readonly #sizes: readonly number[];
  readonly #cursors: readonly StatusCursor[];

  /** @param layers top first. */
  constructor(layers: readonly BlockNode[]) {
    this.#sizes = layers.map(({ size }) => size);
    this.#cursors = layers.map(layerCursor);
  }

  /** Finds out what is at `offset`, which lies within the top layer. Forward only is fast. */
  seek(offset: number): Pending {
    return this.#walk(0, offset, this.#sizes[0] as number, false);
  }

  /** @param sought the layer's cursor is there already. */
  #walk(from: number, offset: number, limit: number, sought: boolean): Pending {
    let end = limit;
    for (let layer = from; layer < this.#cursors.length; layer++) {
      const size = this.#sizes[layer] as number;
      if (offset >= size) return this.#found('zero', end);
      end = Math.min(end, size);
      const cursor = this.#cursors[layer] as StatusCursor;
      const waiting = sought && layer === from ? undefined : cursor.seek(offset);
      if (waiting !== undefined) {
        const [at, stop] = [layer, end];
        return waiting.then(() => this.#walk(at, offset, stop, true));
      }
      end = Math.min(end, cursor.end);
      if (cursor.present) return this.#found(cursor.zero ? 'zero' : 'data', end);
    }
    return this.#found('below', end);
  }

  #found(kind: HeldKind, end: number): undefined {
    this.kind = kind;
    this.end = end;
    return undefined;
  }
}
