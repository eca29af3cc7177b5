/** L2 entries under suspicion: what one says, and whether it can be meant. Spec: qcow2, "Cluster mapping".
 *  Invariants: nothing is allocated per entry; an entry that is not `BAD` names bytes inside the file (or the data file), or none. */
import { alignUp } from '../../bytes/align.ts';
import {
  ALL_SUBCLUSTERS,
  ALLOCATED_BITMAP_AT,
  compressedLength,
  compressedOffset,
  entryOffset,
  hasOffset,
  isCompressed,
  isCopied,
  isZeroFlag,
  l2HasReserved,
  subclustersConflict,
  ZERO_BITMAP_AT,
} from './entries.ts';
import type { Geometry } from './geometry.ts';

/** Nothing is mapped: the backing file decides. */
export const NONE = 0;
/** Reads as zero; may keep a cluster. */
export const ZERO = 1;
export const DATA = 2;
export const ENCODED = 3;
/** No writer makes such an entry. */
export const BAD = 4;

export type EntryKind = typeof NONE | typeof ZERO | typeof DATA | typeof ENCODED | typeof BAD;

export interface EntryRules {
  readonly geometry: Geometry;
  readonly version: 2 | 3;
  /** Bytes of the image file. */
  readonly fileSize: number;
  /** With an external data file, data lies at its guest offset. */
  readonly dataFile: boolean;
}

/** One entry at a time; `read` fills the fields. */
export class EntryReader {
  readonly #rules: EntryRules;
  readonly #end: number;
  kind: EntryKind = NONE;
  /** Host offset of the cluster, or of the encoded bytes; -1 for none. */
  host = -1;
  /** Encoded bytes at most. */
  length = 0;
  copied = false;
  allocated = 0;
  zero = 0;
  /** Host clusters that it claims; none when `last` is below `first`. */
  first = 0;
  last = -1;

  constructor(rules: EntryRules) {
    this.#rules = rules;
    this.#end = alignUp(rules.fileSize, rules.geometry.clusterSize);
  }

  /** @param guest the guest offset that the entry stands for, -1 when it is not known */
  read(view: DataView, at: number, guest: number): EntryKind {
    const high = view.getUint32(at);
    const low = view.getUint32(at + 4);
    const { extendedL2 } = this.#rules.geometry;
    this.host = -1;
    this.length = 0;
    this.copied = false;
    this.allocated = extendedL2 ? view.getUint32(at + ALLOCATED_BITMAP_AT) : 0;
    this.zero = extendedL2 ? view.getUint32(at + ZERO_BITMAP_AT) : 0;
    if (high === 0 && low === 0 && this.allocated === 0 && this.zero === 0) this.kind = NONE;
    else this.kind = isCompressed(high) ? this.#encoded(high, low) : this.#standard(high, low, guest);
    this.#claim();
    return this.kind;
  }

  #claim(): void {
    const { geometry, dataFile } = this.#rules;
    this.first = 0;
    this.last = -1;
    if (this.host < 0 || this.kind === BAD || dataFile) return;
    this.first = Math.floor(this.host / geometry.clusterSize);
    // Encoded bytes are counted in whole sectors.
    this.last = this.kind === ENCODED ? Math.floor((this.host + this.length - 1) / geometry.clusterSize) : this.first;
  }

  #encoded(high: number, low: number): EntryKind {
    const { geometry, fileSize, dataFile } = this.#rules;
    if (isCopied(high) || dataFile || this.allocated !== 0 || this.zero !== 0) return BAD;
    this.host = compressedOffset(high, low, geometry.csizeShift);
    this.length = compressedLength(high, low, geometry.csizeShift);
    // The last sector may be cut by the end of the file.
    return this.host < geometry.clusterSize || this.host + this.length > alignUp(fileSize, 512) + 512 ? BAD : ENCODED;
  }

  #standard(high: number, low: number, guest: number): EntryKind {
    const { geometry, version, dataFile } = this.#rules;
    if (l2HasReserved(high, low)) return BAD;
    const flagged = isZeroFlag(low);
    if (flagged && (geometry.extendedL2 || version < 3)) return BAD;
    this.copied = isCopied(high);
    const present = hasOffset(high, low) || (dataFile && this.copied && !flagged);
    if (present) {
      this.host = entryOffset(high, low);
      if (this.host % geometry.clusterSize !== 0 || !this.#holds(this.host, guest)) return BAD;
    } else if (this.copied) return BAD;
    if (geometry.extendedL2) return this.#extended(present);
    if (flagged) return ZERO;
    return present ? DATA : BAD;
  }

  #holds(host: number, guest: number): boolean {
    if (this.#rules.dataFile) return guest < 0 || host === guest;
    return host > 0 && host < this.#end;
  }

  #extended(present: boolean): EntryKind {
    if (subclustersConflict(this.allocated, this.zero) || (!present && this.allocated !== 0)) return BAD;
    if (this.allocated !== 0) return DATA;
    return this.zero === ALL_SUBCLUSTERS || this.zero !== 0 || present ? ZERO : NONE;
  }
}
