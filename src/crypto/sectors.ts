/** The contract between a cipher mode and the driver that feeds it, and the words both work on.
 *  Invariant: modes see word-aligned memory and whole sectors only, no more of them at once than they ask for. */
import { assert } from '../base/errors.ts';

/** Bytes that are encrypted as one: what LUKS version 1 and qcow2 have. */
export const SECTOR = 512;
/** Bytes of a block of every cipher here. */
export const BLOCK = 16;
export const BLOCKS_PER_SECTOR = SECTOR / BLOCK;

/** Most sectors in one call of a block cipher. Measured: at 64 KiB calls cost nothing any more, and everything stays in the second-level cache. */
export const BATCH = 128;

/** Sectors by one key. `from` and `into` are the same memory or do not overlap. */
export interface SectorMode {
  /** Sectors at once at most. */
  readonly encryptBatch: number;
  readonly decryptBatch: number;
  /** @param ivs 16 bytes for each sector */
  encrypt(from: Uint8Array, into: Uint8Array, ivs: Uint8Array): void;
  decrypt(from: Uint8Array, into: Uint8Array, ivs: Uint8Array): void;
  /** Forgets keys, and clears what is left of guest data in work buffers. */
  wipe(): void;
}

export function isAligned(bytes: Uint8Array): boolean {
  return bytes.byteOffset % 4 === 0;
}

/** The same memory as 32-bit words of this machine's byte order. */
export function wordsOf(bytes: Uint8Array): Int32Array {
  assert(isAligned(bytes), 'words of unaligned bytes');
  return new Int32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
}
