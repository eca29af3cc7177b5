/** Recovery: what a format can tell of a damaged image's guest disk, and how sure it is. Types only.
 *  Invariant: the image is read, never written; the ranges cover the disk from its first byte to its last, in order, without gaps. */
import type { JobOptions } from '../base/job.ts';

/** `certain`: every structure that leads to the content is whole, and agrees with every other one. `doubtful`: there is content, or a reason to
 *  think that there is none, but something that should confirm it is lost or disagrees. `lost`: nothing tells where the content is. */
export type RecoveryState = 'certain' | 'doubtful' | 'lost';

/** What a range reads as. `data`: bytes of the file. `compressed`: the same, decoded. `zero`: zeros, because the image says so. `backing`: the backing
 *  file, or zeros where there is none. `none`: lost. */
export type RecoveredContent = 'data' | 'compressed' | 'zero' | 'backing' | 'none';

/** Bytes of the guest disk. */
export interface RecoveredRange {
  readonly start: number;
  readonly length: number;
  readonly state: RecoveryState;
  readonly content: RecoveredContent;
  /** A stable word for the reason (`intact`, `table-damaged`, …); each format documents its own. */
  readonly why: string;
}

export interface RecoveryRequest extends JobOptions {
  /** What the caller knows of the image, by the names of the driver's `recoverOptions`; resolved. */
  readonly options: Readonly<Record<string, unknown>>;
  /** Doubtful content is part of what the node reads, or lost. */
  readonly doubtful: 'include' | 'leave-out';
  /** What lost ranges read as. */
  readonly lost: 'zero' | 'backing';
  /** `given`: the caller names a backing file, whatever the image records, or although nothing of the record is left. `none`: it is not opened. */
  readonly backing: 'recorded' | 'given' | 'none';
}

export interface RecoveryFacet {
  /** What was found, in sentences for people, the gravest first. */
  readonly notes: readonly string[];
  /** From the beginning of the disk to its end; neighbours that say the same are one range. */
  ranges(options?: JobOptions): AsyncIterable<RecoveredRange>;
}
