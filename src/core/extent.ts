/** Status of guest ranges, as people and programs see it (`map`): present, zero, data, compressed, and where.
 *  Invariant: an ExtentList is contiguous from its start, and neighbours that say the same are one extent. */

/** One row of `map --output=json`. Offsets and lengths in bytes. */
export interface Extent {
  readonly start: number;
  readonly length: number;
  /** Layer it comes from: 0 is this image, 1 its backing file, … */
  readonly depth: number;
  /** Some layer of the chain decides this range (data or explicit zero). */
  readonly present: boolean;
  /** Reads as zero. */
  readonly zero: boolean;
  /** Host space holds it. */
  readonly data: boolean;
  readonly compressed: boolean;
  /** Where in `node` it lies; `undefined` when it lies nowhere or is encoded. */
  readonly hostOffset: number | undefined;
  /** Name of the file that holds it. */
  readonly node: string | undefined;
}

/** Flag bits of an extent's status, as `ExtentList.add` takes them. */
export const EXTENT = { present: 1, zero: 2, data: 4, compressed: 8 } as const;

interface MutableExtent {
  start: number;
  length: number;
  depth: number;
  flags: number;
  hostOffset: number;
  node: string | undefined;
}

/** A caller-owned list of extents that joins neighbours as they are added. */
export class ExtentList implements Iterable<Extent> {
  readonly capacity: number;
  readonly #extents: MutableExtent[] = [];
  #count = 0;
  #start = 0;
  #end = 0;

  constructor(capacity = 1024) {
    this.capacity = capacity;
  }

  /** Empties the list; the next `add` begins at `start`. */
  reset(start: number): void {
    this.#count = 0;
    this.#start = start;
    this.#end = start;
  }

  get count(): number {
    return this.#count;
  }

  get start(): number {
    return this.#start;
  }

  /** First offset not covered yet. */
  get end(): number {
    return this.#end;
  }

  /** Adds `length` bytes after the last extent.
   *  @param hostOffset where it lies in `node`, -1 for nowhere
   *  @returns false when the list was full and nothing was added. */
  add(length: number, flags: number, hostOffset = -1, node?: string, depth = 0): boolean {
    const last = this.#count > 0 ? this.#extents[this.#count - 1] : undefined;
    if (
      last !== undefined &&
      last.flags === flags &&
      last.depth === depth &&
      last.node === node &&
      (hostOffset < 0 ? last.hostOffset < 0 : last.hostOffset >= 0 && last.hostOffset + last.length === hostOffset)
    ) {
      last.length += length;
      this.#end += length;
      return true;
    }
    if (this.#count >= this.capacity) return false;
    const slot = this.#extents[this.#count];
    if (slot === undefined) {
      this.#extents.push({ start: this.#end, length, depth, flags, hostOffset, node });
    } else {
      slot.start = this.#end;
      slot.length = length;
      slot.depth = depth;
      slot.flags = flags;
      slot.hostOffset = hostOffset;
      slot.node = node;
    }
    this.#count++;
    this.#end += length;
    return true;
  }

  /** Flags of the extent at `index`, for code that needs no object per extent. */
  flagsAt(index: number): number {
    return this.#slot(index).flags;
  }

  lengthAt(index: number): number {
    return this.#slot(index).length;
  }

  startAt(index: number): number {
    return this.#slot(index).start;
  }

  depthAt(index: number): number {
    return this.#slot(index).depth;
  }

  hostOffsetAt(index: number): number {
    return this.#slot(index).hostOffset;
  }

  nodeAt(index: number): string | undefined {
    return this.#slot(index).node;
  }

  at(index: number): Extent {
    const { start, length, depth, flags, hostOffset, node } = this.#slot(index);
    return {
      start,
      length,
      depth,
      present: flags % 2 === 1,
      zero: Math.floor(flags / 2) % 2 === 1,
      data: Math.floor(flags / 4) % 2 === 1,
      compressed: flags >= 8,
      hostOffset: hostOffset < 0 ? undefined : hostOffset,
      node,
    };
  }

  *[Symbol.iterator](): Iterator<Extent> {
    for (let i = 0; i < this.#count; i++) yield this.at(i);
  }

  #slot(index: number): MutableExtent {
    if (index < 0 || index >= this.#count) throw new RangeError(`extent ${index} of ${this.#count}`);
    return this.#extents[index] as MutableExtent;
  }
}
