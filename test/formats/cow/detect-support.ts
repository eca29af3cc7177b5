/** What the tests of detection share. */
import { type BlockError, isBlockError } from '../../../src/base/errors.ts';
import { type DetectInput, detectCow } from '../../../src/formats/cow/detect.ts';
import type { MemoryStore } from '../../../src/storage/memory.ts';

export const MiB = 1024 * 1024;
export const GiB = 1024 * MiB;
export const TiB = 1024 * GiB;
export const TIME = 1_000_000_000;

type Backings = Readonly<Record<string, number>>;

/** @param backings sizes by name of the files that are there. */
export function inputFor(file: MemoryStore, backings: Backings = {}): DetectInput {
  const head = new Uint8Array(Math.min(8192, file.size));
  void file.read(0, head);
  return {
    name: 'a.cow',
    head,
    fileSize: file.size,
    file,
    backingStatus: async (name) => (backings[name] === undefined ? undefined : { size: backings[name] }),
  };
}

export const detect = (file: MemoryStore, backings?: Backings) => detectCow(inputFor(file, backings));

/** The typed error that ends it. */
export async function failure(running: Promise<unknown>): Promise<BlockError> {
  try {
    await running;
  } catch (error) {
    if (isBlockError(error)) return error;
    throw error;
  }
  throw new Error('nothing was refused');
}

export const NAMED = { backingName: '/srv/base.img', mtime: TIME } as const;

/** Writes a number into a file. */
export function poke(file: MemoryStore, at: number, value: bigint, width: 4 | 8, littleEndian = false): MemoryStore {
  const bytes = new Uint8Array(width);
  const view = new DataView(bytes.buffer);
  if (width === 8) view.setBigUint64(0, value, littleEndian);
  else view.setUint32(0, Number(value), littleEndian);
  void file.write(at, bytes);
  return file;
}
