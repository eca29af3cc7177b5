/** How often each host cluster is referenced: counts what tables, snapshots, bitmaps and the encryption header occupy.
 *  Spec: qcow2, "Host cluster management". Order, wording and bounds of the findings are QEMU's.
 *  Invariant: a reference that lies a cluster or more past the end of the file is a finding, not a count. */
import { allocateCounts, type CountArray, growCounts } from './check-counts.ts';
import { type CheckRun, entryHex } from './check-run.ts';

export class References {
  readonly #run: CheckRun;
  readonly #clusterSize: number;
  readonly #max: number;
  #fileSize: number;
  #counts: CountArray;
  #clusters: number;

  constructor(run: CheckRun) {
    this.#run = run;
    this.#clusterSize = run.geometry.clusterSize;
    this.#max = run.geometry.refcountMax;
    this.#fileSize = run.file.size;
    this.#clusters = Math.ceil(this.#fileSize / this.#clusterSize);
    // one more: the last cluster of the file may be referenced though it is only partly there
    this.#counts = allocateCounts(run.geometry, this.#clusters + 1, run.name);
  }

  /** Clusters that can be referenced: those of the file, and one past its end once something refers to it. */
  get clusters(): number {
    return this.#clusters;
  }

  /** Clusters that the file has, the last one maybe in part. */
  get fileClusters(): number {
    return Math.ceil(this.#fileSize / this.#clusterSize);
  }

  /** By cluster index; at least `clusters` entries. Replaced when it grows. */
  get counts(): CountArray {
    return this.#counts;
  }

  get max(): number {
    return this.#max;
  }

  /** Bytes of the file. */
  get fileSize(): number {
    return this.#fileSize;
  }

  /** Forgets all references, and looks at the length of the file again. */
  clear(): void {
    this.grow(Math.ceil(this.#run.file.size / this.#clusterSize));
    this.#counts.fill(0);
  }

  /** The file has grown, or counts past its end are needed. */
  grow(clusters: number): void {
    this.#fileSize = this.#run.file.size;
    if (clusters <= this.#clusters) return;
    this.#counts = growCounts(this.#counts, this.#run.geometry, clusters + 1, this.#run.name);
    this.#clusters = clusters;
  }

  /** Whether `[offset, offset+length)` lies in the file, up to a part of its last cluster: only then its clusters are counted. */
  covers(offset: number, length: number): boolean {
    return offset + length - this.#fileSize < this.#clusterSize;
  }

  /** Counts the clusters that `[offset, offset+length)` touches.
   *  @param text the offset in hexadecimal, where the number is not exact */
  add(offset: number, length: number, text?: string): void {
    if (length <= 0) return;
    if (!this.covers(offset, length)) {
      this.#run.corruption(
        'reference-past-end',
        `ERROR: counting reference for region exceeding the end of the file by one cluster or more: offset 0x${text ?? offset.toString(16)} size 0x${length.toString(16)}`,
        { offset, length, fileSize: this.#fileSize },
      );
      return;
    }
    const first = Math.floor(offset / this.#clusterSize);
    const last = Math.floor((offset + length - 1) / this.#clusterSize);
    if (last >= this.#clusters) this.grow(last + 1);
    for (let cluster = first; cluster <= last; cluster++) this.addCluster(cluster);
  }

  /** Counts one cluster, which is below `clusters`. */
  addCluster(cluster: number): void {
    const count = this.#counts[cluster] as number;
    if (count >= this.#max) this.overflow(cluster);
    else this.#counts[cluster] = count + 1;
  }

  /** A cluster has more references than a refcount can tell. */
  overflow(cluster: number): void {
    this.#run.corruption(
      'refcount-overflow',
      `ERROR: overflow cluster offset=0x${(cluster * this.#clusterSize).toString(16)}`,
      {
        cluster,
        bound: this.#max,
      },
    );
    this.#run.find(
      'note',
      'refcount-overflow-remedy',
      'Use qemu-img amend to increase the refcount entry width or qemu-img convert to create a clean copy if the image cannot be opened for writing',
    );
  }
}

/** `offset` for messages: exact even where the number is not. */
export function offsetText(offset: number, high: number, low: number): string | undefined {
  return Number.isFinite(offset) ? undefined : entryHex(high, low);
}
