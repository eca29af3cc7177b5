/** Numbers and marks for host clusters, kept in pages that exist only where something was noted: a file may be far larger than what it holds.
 *  Invariant: memory is bounded; a file that would need more is refused by name. */
import { BlockError } from '../../base/errors.ts';

/** Clusters of one page. */
const PAGE = 512;
/** Pages at most: 256 MiB of numbers. */
const MAX_PAGES = 262_144;
/** Larger numbers are kept as this one. */
const MOST = 0xffff;

/** A number for each cluster, 0 where none was noted; saturates at 65535. */
export class ClusterCounts {
  readonly #pages = new Map<number, Uint16Array>();

  get(cluster: number): number {
    return this.#pages.get(Math.floor(cluster / PAGE))?.[cluster % PAGE] ?? 0;
  }

  /** @throws TOO_LARGE, reason `qcow2.recover-memory`. */
  add(cluster: number, by: number): void {
    const page = this.#page(Math.floor(cluster / PAGE));
    page[cluster % PAGE] = Math.min(MOST, (page[cluster % PAGE] as number) + by);
  }

  /** The clusters up to the last one with a number. */
  get end(): number {
    let last = -1;
    for (const index of this.#pages.keys()) last = Math.max(last, index);
    return (last + 1) * PAGE;
  }

  /** Every cluster with a number, in order. */
  *entries(): Generator<readonly [cluster: number, count: number]> {
    for (const index of [...this.#pages.keys()].sort((a, b) => a - b)) {
      const page = this.#pages.get(index) as Uint16Array;
      for (let i = 0; i < PAGE; i++) if (page[i] !== 0) yield [index * PAGE + i, page[i] as number];
    }
  }

  #page(index: number): Uint16Array {
    let page = this.#pages.get(index);
    if (page === undefined) {
      if (this.#pages.size >= MAX_PAGES) {
        throw new BlockError('TOO_LARGE', 'the image has too many clusters to be recovered', {
          reason: 'qcow2.recover-memory',
          details: { bound: MAX_PAGES * PAGE },
        });
      }
      page = new Uint16Array(PAGE);
      this.#pages.set(index, page);
    }
    return page;
  }
}

/** A refcount as it is kept: saturated. */
export function saturated(count: number): number {
  return Math.min(MOST, count);
}
