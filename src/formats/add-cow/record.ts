/** What a header of either version says, decoded. Data and text helpers only. Spec: add-cow, both tables. */
import type { AddCowVersion } from './layout.ts';

/** A file name as the header has it. */
export interface RecordedName {
  readonly text: string;
  /** What stands in the header, which the text may not tell where it is not UTF-8. */
  readonly bytes: Uint8Array;
  /** Where it stands in the file. */
  readonly at: number;
}

export interface AddCowHeader {
  readonly version: AddCowVersion;
  /** Bytes. */
  readonly clusterSize: number;
  readonly image: RecordedName;
  readonly imageFormat: string;
  /** `undefined`: there is none; unallocated clusters read as zero. */
  readonly backing: RecordedName | undefined;
  /** `undefined`: not recorded. */
  readonly backingFormat: string | undefined;
  /** Compatible features of V20; 0 in v9. */
  readonly compatible: bigint;
}

/** Bits of the compatible features. */
export const COMPATIBLE = { allAllocated: 1n } as const;

/** Bitmap and backing file are ignored: the image file is the disk. */
export function isAllAllocated(header: AddCowHeader): boolean {
  return (header.compatible & COMPATIBLE.allAllocated) !== 0n;
}

const decoder = new TextDecoder('utf-8', { ignoreBOM: true });
const encoder = new TextEncoder();

export function recordedName(bytes: Uint8Array, at: number): RecordedName {
  return { text: decoder.decode(bytes), bytes, at };
}

export function encodeText(text: string): Uint8Array {
  return encoder.encode(text);
}

/** The bytes before the first NUL, all of them where there is none. */
export function cutAtNul(field: Uint8Array): Uint8Array {
  const end = field.indexOf(0);
  return field.slice(0, end < 0 ? field.length : end);
}
