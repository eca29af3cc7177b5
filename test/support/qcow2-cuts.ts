/** A power cut at every moment of one change of a qcow2 image: what it left opens, holds what it held before or after, and check finds leaks at
 *  most. */
import { expect } from 'vitest';
import type { MappedNode } from '../../src/core/mapped-node.ts';
import { readHeader } from '../../src/formats/qcow2/header.ts';
import { MemoryStore } from '../../src/storage/memory.ts';
import { RecordingStore } from '../../src/testing/recording-store.ts';
import { cutStates } from './cuts.ts';
import { pattern, readAll } from './qcow2-parts.ts';
import { checkQcow2, createQcow2Bytes, openQcow2, type Qcow2Variant } from './qcow2-under-test.ts';

const KiB = 1024;

/** Content of the disk and of every snapshot, and what else is asked to be told. */
export async function contentsOf(bytes: Uint8Array, backing: Uint8Array | undefined): Promise<Map<string, Uint8Array>> {
  const contents = new Map<string, Uint8Array>();
  const options = () => ({ readOnly: true, backing: backing && MemoryStore.from(backing) });
  const node = await openQcow2(MemoryStore.from(bytes), options());
  const snapshots = node.format.snapshots?.list() ?? [];
  contents.set('disk', await readAll(node));
  await node.close();
  for (const { id } of snapshots) {
    const frozen = await openQcow2(MemoryStore.from(bytes), { ...options(), snapshot: { id } });
    contents.set(`snapshot ${id}`, await readAll(frozen));
    await frozen.close();
  }
  return contents;
}

export function sameContents(a: Map<string, Uint8Array>, b: Map<string, Uint8Array>): boolean {
  if (a.size !== b.size) return false;
  return [...a].every(([name, bytes]) => {
    const other = b.get(name);
    return other !== undefined && Buffer.compare(bytes, other) === 0;
  });
}

export interface ImageRequest {
  readonly size: number;
  readonly variant: Qcow2Variant;
  readonly backing?: Uint8Array | undefined;
  /** Snapshots of two states. */
  readonly snapshots?: boolean;
}

/** An image with data, compressed clusters, and zero marks with and without clusters; with snapshots, all of them in tables of their own and in
 *  shared ones. */
export async function busyImage({ size, variant, backing, snapshots }: ImageRequest): Promise<Uint8Array> {
  const file = await createQcow2Bytes(size, variant, backing !== undefined);
  const unit = variant.extendedL2 === true ? 16 * KiB : (variant.clusterSize ?? 512);
  const node = await openQcow2(file, { backing: backing && MemoryStore.from(backing) });
  const snapshot = async (name: string): Promise<void> => {
    const facet = node.format.snapshots;
    if (snapshots !== true || facet === undefined) return;
    await node.exclusive(() => facet.create({ name, dateSeconds: 1 }));
  };
  await node.write(0, pattern(Math.min(size, 9 * KiB)));
  if (size >= 17 * KiB && (16 * KiB) % unit === 0)
    await node.write(16 * KiB, pattern(Math.min(unit, size - 16 * KiB), 3), { compressed: true });
  await node.writeZeroes(3 * KiB, 2 * KiB);
  await snapshot('first');
  await node.writeZeroes(1 * KiB, 1 * KiB);
  await node.writeZeroes(20 * KiB, Math.max(0, Math.min(2 * KiB, size - 20 * KiB)));
  await node.write(6 * KiB, pattern(700, 2));
  await snapshot('second');
  await node.write(2 * KiB, pattern(700, 4));
  await node.writeZeroes(6 * KiB, 1 * KiB, { unmap: true });
  await node.close();
  return file.bytes();
}

export interface Cutting {
  readonly before: Uint8Array;
  readonly backing?: Uint8Array | undefined;
  /** The image has lazy refcounts at some moment: it may be dirty, and is repaired by who opens it. */
  readonly lazy?: boolean;
  make(node: MappedNode): Promise<unknown> | undefined;
  /** Looks at a state, sound and opened before. */
  verify?(bytes: Uint8Array, what: string): Promise<void> | void;
}

/** @returns what the image is after the change, without a cut. */
export async function afterEveryCut(cutting: Cutting): Promise<Uint8Array> {
  const { before, backing, make } = cutting;
  const store = new RecordingStore(MemoryStore.from(before, { pageSize: 512 }));
  const node = await openQcow2(store, { backing: backing && MemoryStore.from(backing) });
  await make(node);
  await node.close();
  const after = (store.inner as MemoryStore).bytes();
  const old = await contentsOf(before, backing);
  const fresh = await contentsOf(after, backing);
  await expectSound(after, cutting);
  let states = 0;
  for (const { contents, what } of cutStates(store.log, [store], [before])) {
    states++;
    try {
      const bytes = await expectSound(contents[0] as Uint8Array, cutting);
      const found = await contentsOf(bytes, backing);
      if (!sameContents(found, old)) expect(sameContents(found, fresh)).toBe(true);
      await cutting.verify?.(bytes, what);
      if (states % 25 === 0) await goOn(bytes, backing);
    } catch (error) {
      throw new Error(`${what}: ${(error as Error).message}`, { cause: error });
    }
  }
  expect(states).toBeGreaterThan(1);
  return after;
}

async function expectSound(bytes: Uint8Array, { lazy, backing }: Cutting): Promise<Uint8Array> {
  let content = bytes;
  if (lazy === true) {
    const file = MemoryStore.from(bytes);
    await (await openQcow2(file, { backing: backing && MemoryStore.from(backing) })).close();
    content = file.bytes();
  }
  const { lines, checkErrors } = await checkQcow2(MemoryStore.from(content));
  expect({ lines, checkErrors }).toEqual({ lines: [], checkErrors: 0 });
  return content;
}

/** The image can be lived with. (Leaks stay: those behind the end of the file show when it grows.) */
async function goOn(bytes: Uint8Array, backing: Uint8Array | undefined): Promise<void> {
  const file = MemoryStore.from(bytes, { pageSize: 512 });
  const node = await openQcow2(file, { backing: backing && MemoryStore.from(backing) });
  const disk = await readAll(node);
  disk.set(pattern(3000, 9).subarray(0, Math.max(0, disk.length - 5000)), Math.min(disk.length, 5000));
  if (disk.length > 8000) await node.write(5000, pattern(3000, 9));
  else if (disk.length > 5000) await node.write(5000, disk.slice(5000));
  expect(Buffer.compare(await readAll(node), disk)).toBe(0);
  await node.close();
  expect((await checkQcow2(MemoryStore.from(file.bytes()))).lines).toEqual([]);
}

export function headerOf(bytes: Uint8Array) {
  return readHeader(MemoryStore.from(bytes), 'disk', { readOnly: true, forCheck: true });
}
