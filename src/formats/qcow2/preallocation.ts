/** Was this image's metadata preallocated? Only then is it worth asking the file below whether data clusters read as zero.
 *  Spec: none; QEMU's guess, because `map` must say what it says: preallocated metadata refers to far more clusters than the file occupies.
 *  Invariants: looks at refcounts alone, no further than it must, once; judges no damage. */
import type { Pending } from '../../base/async.ts';
import type { Qcow2State } from './image-state.ts';
import type { Refcounts } from './refcounts.ts';

export class PreallocatedMetadata {
  readonly #state: Qcow2State;
  readonly #refcounts: Refcounts;
  /** Clusters that must be in use for a yes. */
  readonly #threshold: number;
  #found: boolean | undefined;
  #looking: Promise<void> | undefined;

  /** @param allocatedBytes what the file occupies, when the image was opened; `undefined` when that is not known */
  constructor(state: Qcow2State, refcounts: Refcounts, allocatedBytes: number | undefined) {
    this.#state = state;
    this.#refcounts = refcounts;
    const clusters = Math.floor((allocatedBytes ?? Number.POSITIVE_INFINITY) / state.geometry.clusterSize);
    this.#threshold = Math.max(Math.floor((clusters * 10) / 9), clusters + 2);
  }

  /** `undefined` before the first `settle` has ended. */
  get found(): boolean | undefined {
    return this.#found;
  }

  /** Finds out. `undefined` where that takes no time: it is known, or the file is too short for the answer to be yes. */
  settle(): Pending {
    if (this.#found !== undefined) return undefined;
    const { file, geometry } = this.#state;
    const clusters = Math.ceil(file.size / geometry.clusterSize);
    if (clusters < this.#threshold) {
      this.#found = false;
      return undefined;
    }
    this.#looking ??= this.#look(clusters);
    return this.#looking;
  }

  async #look(clusters: number): Promise<void> {
    try {
      this.#found = await this.#state.metadata.run(() => this.#refcounts.usesAtLeast(this.#threshold, clusters));
    } finally {
      this.#looking = undefined;
    }
  }
}
