/** Delta files made and applied in memory, and delta files that nobody would write: with right digests over wrong numbers. */
import { createHash } from 'node:crypto';
import type { Image } from '../../src/image/image.ts';
import { MemoryStore } from '../../src/storage/memory.ts';
import { type DeltaOptions, type DeltaResult, writeDelta } from '../../src/tools/delta.ts';

export interface Made {
  readonly bytes: Uint8Array;
  readonly result: DeltaResult;
}

export async function madeDelta(first: Image, second: Image, options: DeltaOptions = {}): Promise<Made> {
  const store = new MemoryStore();
  const result = await writeDelta(first, second, store, options);
  return { bytes: store.bytes(), result };
}

/** The bytes as a pipe hands them over, in pieces of any size. */
export async function* piped(bytes: Uint8Array, piece: () => number): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.length; ) {
    const length = Math.max(1, piece());
    // As Node hands it over: a part of a larger buffer.
    yield Buffer.concat([Buffer.alloc(5), bytes.subarray(at, at + length)]).subarray(5);
    at += length;
  }
}

export interface CraftedRecord {
  readonly type: number;
  readonly encoding?: number;
  readonly reserved?: number;
  readonly offset: bigint;
  readonly length: bigint;
  readonly stored?: Uint8Array;
  /** What the record says it stores, where that is not so. */
  readonly storedLength?: number;
}

export interface Crafted {
  readonly version?: number;
  readonly flags?: number;
  readonly oldSize: bigint;
  readonly newSize: bigint;
  readonly records: readonly CraftedRecord[];
}

/** A file as the page of the format has it, written anew from that page. */
export function crafted({ version = 1, flags = 0, oldSize, newSize, records }: Crafted): Uint8Array {
  const header = Buffer.alloc(128);
  header.write('cowdelta', 'latin1');
  header.writeUInt32BE(version, 8);
  header.writeUInt32BE(flags, 12);
  header.writeBigUInt64BE(oldSize, 16);
  header.writeBigUInt64BE(newSize, 24);
  let digest = sha(Buffer.of(4), header.subarray(0, 96));
  digest.copy(header, 96);
  const parts: Buffer[] = [header];
  for (const record of records) {
    const { type, encoding = 0, reserved = 0, offset, length, stored = new Uint8Array(0) } = record;
    const head = Buffer.alloc(56);
    head.writeUInt8(type, 0);
    head.writeUInt8(encoding, 1);
    head.writeUInt16BE(reserved, 2);
    head.writeUInt32BE(record.storedLength ?? stored.length, 4);
    head.writeBigUInt64BE(offset, 8);
    head.writeBigUInt64BE(length, 16);
    digest = sha(Buffer.of(5), digest, head.subarray(0, 24), stored);
    digest.copy(head, 24);
    parts.push(head, Buffer.from(stored));
  }
  return new Uint8Array(Buffer.concat(parts));
}

function sha(...parts: Uint8Array[]): Buffer {
  const hash = createHash('sha256');
  for (const part of parts) hash.update(part);
  return hash.digest();
}
