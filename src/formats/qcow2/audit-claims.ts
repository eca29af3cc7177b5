/** Who lays claim to which clusters of the file, while an audit reads it. Pure.
 *  Invariants: memory is bounded whatever the image says: so many structures, so many pages of bits; what does not fit is told, never dropped in
 *  silence. */
import { getBit, setBits } from '../../bytes/bits.ts';

/** Structures at most. */
const MOST_CLAIMS = 400_000;
/** Clusters of all of them at most. */
const MOST_CLUSTERS = 2 ** 24;

export interface Claim {
  /** Host offsets, whole clusters. */
  readonly start: number;
  readonly end: number;
  readonly what: string;
}

/** The structures of an image. */
export class Claims {
  #all: Claim[] = [];
  #full = false;
  #sorted = false;
  #clusters = 0;
  /** Where the last look-up was: neighbours in a table are mostly neighbours in the file. */
  #gapStart = 0;
  #gapEnd = 0;

  get full(): boolean {
    return this.#full;
  }

  add(what: string, start: number, bytes: number, clusterSize: number): void {
    if (bytes <= 0) return;
    const first = start - (start % clusterSize);
    const end = Math.ceil((start + bytes) / clusterSize) * clusterSize;
    const clusters = this.#clusters + (end - first) / clusterSize;
    if (this.#all.length >= MOST_CLAIMS || clusters > MOST_CLUSTERS) {
      this.#full = true;
      return;
    }
    this.#clusters = clusters;
    this.#all.push({ what, start: first, end });
    this.#sorted = false;
    this.#gapEnd = 0;
  }

  /** In the order of the file. */
  get all(): readonly Claim[] {
    if (!this.#sorted) this.#all.sort((a, b) => a.start - b.start);
    this.#sorted = true;
    return this.#all;
  }

  /** Pairs that share a cluster. */
  *overlaps(): Generator<readonly [Claim, Claim]> {
    let reach: Claim | undefined;
    for (const claim of this.all) {
      if (reach !== undefined && claim.start < reach.end) yield [reach, claim];
      if (reach === undefined || claim.end > reach.end) reach = claim;
    }
  }

  /** A structure that `[start, end)` touches. */
  hit(start: number, end: number): Claim | undefined {
    if (start >= this.#gapStart && end <= this.#gapEnd) return undefined;
    const { all } = this;
    let low = 0;
    let high = all.length;
    while (low < high) {
      const middle = Math.floor((low + high) / 2);
      if ((all[middle] as Claim).start < end) low = middle + 1;
      else high = middle;
    }
    const before = all[low - 1];
    if (before !== undefined && before.end > start) return before;
    // An earlier one that reaches further overlaps the one before it, which is a finding already.
    this.#gapStart = before?.end ?? 0;
    this.#gapEnd = all[low]?.start ?? Number.POSITIVE_INFINITY;
    return undefined;
  }
}

const PAGE_BYTES = 4096;
const PAGE_BITS = PAGE_BYTES * 8;
/** 64 MiB. */
const MOST_PAGES = 16 * 1024;

/** A bit for every cluster that is touched, in pages. */
export class ClusterBits {
  readonly #pages = new Map<number, Uint8Array>();
  #full = false;
  #count = 0;
  #lastIndex = -1;
  #lastPage: Uint8Array = new Uint8Array(0);

  /** Some bits found no room. */
  get full(): boolean {
    return this.#full;
  }

  /** Bits that are set. */
  get count(): number {
    return this.#count;
  }

  has(index: number): boolean {
    const page = this.#page(Math.floor(index / PAGE_BITS), false);
    return page !== undefined && getBit(page, index % PAGE_BITS);
  }

  /** @returns the first of them that was set already; -1 for none. */
  add(first: number, count: number): number {
    let again = -1;
    for (let index = first; index < first + count; index++) {
      const page = this.#page(Math.floor(index / PAGE_BITS), true);
      if (page === undefined) return again;
      const bit = index % PAGE_BITS;
      if (getBit(page, bit)) {
        if (again < 0) again = index;
        continue;
      }
      setBits(page, bit, bit + 1);
      this.#count++;
    }
    return again;
  }

  #page(index: number, make: boolean): Uint8Array | undefined {
    if (index === this.#lastIndex) return this.#lastPage;
    let page = this.#pages.get(index);
    if (page === undefined) {
      if (!make) return undefined;
      if (this.#pages.size >= MOST_PAGES) {
        this.#full = true;
        return undefined;
      }
      page = new Uint8Array(PAGE_BYTES);
      this.#pages.set(index, page);
    }
    this.#lastIndex = index;
    this.#lastPage = page;
    return page;
  }
}
