/** Helpers of the add-cow tests. */
import { BlockError } from '../../../src/base/errors.ts';
import type { ByteStore } from '../../../src/core/store.ts';

export function filled(length: number, byte: number): Uint8Array {
  return new Uint8Array(length).fill(byte);
}

/** Bytes that tell where they belong. */
export function pattern(length: number, seed = 1): Uint8Array {
  const bytes = new Uint8Array(length);
  for (let i = 0; i < length; i++) bytes[i] = 1 + ((i * 7 + Math.floor(i / 512) * 13 + seed) % 200);
  return bytes;
}

/** Everything a store or disk holds. */
export async function contentOf(store: ByteStore, offset = 0, length = store.size - offset): Promise<Uint8Array> {
  const bytes = new Uint8Array(length).fill(0x5a);
  await store.read(offset, bytes);
  return bytes;
}

/** The BlockError that `action` ends with. */
export async function failureOf(action: () => unknown): Promise<BlockError> {
  try {
    await action();
  } catch (error) {
    if (error instanceof BlockError) return error;
    throw error;
  }
  throw new Error('nothing was thrown');
}
