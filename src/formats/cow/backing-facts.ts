/** What a cow header says of its backing file, against the file that is there. Spec: cow, mtime and size checks.
 *  UML refuses a cow whose backing file has another size or time of change; QEMU recorded the time, and looked at it until 2006.
 *  Invariant: times are compared modulo 2^32 seconds, which is all that the header has room for. */
import { BlockError } from '../../base/errors.ts';
import type { ReferenceStatus } from '../../core/format.ts';
import type { CowHeader } from './header.ts';
import { layoutOf } from './layouts.ts';

const SECONDS = 2 ** 32;

export interface BackingFacts {
  /** What was looked at: not the recorded name, where the caller chose another file. */
  readonly file: string | undefined;
  /** Bytes and seconds since 1970 (modulo 2^32), as recorded; `undefined` where nothing is. */
  readonly recordedSize: number | undefined;
  readonly recordedMtime: number | undefined;
  /** `undefined`: the file is not there, may not be looked at, or does not tell. */
  readonly size: number | undefined;
  readonly mtime: number | undefined;
}

export function backingFacts(header: CowHeader, status: ReferenceStatus | undefined): BackingFacts {
  const { qemu } = layoutOf(header.layout);
  const modified = status?.modifiedSeconds;
  return {
    file: status?.resolved,
    // QEMU's disks may be longer or shorter than their base.
    recordedSize: qemu ? undefined : header.size,
    // QEMU wrote 0 where it could not tell.
    recordedMtime: qemu && header.mtime === 0 ? undefined : header.mtime,
    size: status?.size,
    mtime: modified === undefined ? undefined : headerTime(modified),
  };
}

/** A time as the header can hold it. */
export function headerTime(seconds: number): number {
  return ((Math.floor(seconds) % SECONDS) + SECONDS) % SECONDS;
}

/** What differs, in words; empty when nothing does, or nothing is known. */
export function mismatches(facts: BackingFacts): string[] {
  const found: string[] = [];
  if (sizeDiffers(facts)) found.push(`it has ${facts.size} bytes, the header says ${facts.recordedSize}`);
  if (timeDiffers(facts))
    found.push(`it was changed at ${when(facts.mtime)}, the header says ${when(facts.recordedMtime)}`);
  return found;
}

export function sizeDiffers({ size, recordedSize }: BackingFacts): boolean {
  return size !== undefined && recordedSize !== undefined && size !== recordedSize;
}

export function timeDiffers({ mtime, recordedMtime }: BackingFacts): boolean {
  return mtime !== undefined && recordedMtime !== undefined && mtime !== recordedMtime;
}

/** A header time for people and programs. */
export function when(seconds: number | undefined): string {
  return seconds === undefined ? 'unknown' : new Date(seconds * 1000).toISOString().replace('.000', '');
}

/** The error of writing over a base that may be another one. */
export function mismatchError(name: string, backingName: string, facts: BackingFacts): BlockError {
  return new BlockError(
    'INVALID_ARGUMENT',
    `cow "${name}": backing file "${facts.file ?? backingName}" is not as recorded: ${mismatches(facts).join('; ')}; if it is the right one all the same, pass ignore-mismatch=on, or record it anew with rebase -u`,
    { reason: 'cow.mismatch', details: { ...facts, backing: backingName } },
  );
}
