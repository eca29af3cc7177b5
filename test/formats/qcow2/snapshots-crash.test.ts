/** A power cut at any moment of a change of snapshots: the image is as before or as after, disk and snapshots together, and check finds leaks
 *  at most. */
import { describe, expect, it } from 'vitest';
import type { SnapshotFacet } from '../../../src/core/format.ts';
import type { MappedNode } from '../../../src/core/mapped-node.ts';
import { MemoryStore } from '../../../src/storage/memory.ts';
import { RecordingStore } from '../../../src/testing/recording-store.ts';
import { cutStates } from '../../support/cuts.ts';
import { pattern, readAll } from '../../support/qcow2-parts.ts';
import { checkQcow2, createQcow2Bytes, openQcow2, type Qcow2Variant } from '../../support/qcow2-under-test.ts';

const KiB = 1024;
const SIZE = 40 * KiB;

/** Alone, as the engine does it. */
function change<T>(node: MappedNode, make: (snapshots: SnapshotFacet) => Promise<T>): Promise<T> {
  const { snapshots } = node.format;
  if (snapshots === undefined) throw new Error('no snapshots');
  return node.exclusive(() => make(snapshots));
}

let date = 1;
function create(node: MappedNode, name: string): Promise<unknown> {
  return change(node, (snapshots) => snapshots.create({ name, dateSeconds: date++ }));
}

interface Backing {
  readonly backing: MemoryStore | undefined;
}

/** Everything that can be read of an image, by name. */
async function contentsOf(bytes: Uint8Array, { backing }: Backing): Promise<Map<string, Uint8Array>> {
  const contents = new Map<string, Uint8Array>();
  const options = { readOnly: true, backing: backing && MemoryStore.from(backing.bytes()) };
  const node = await openQcow2(MemoryStore.from(bytes), options);
  const snapshots = node.format.snapshots?.list() ?? [];
  contents.set('disk', await readAll(node));
  await node.close();
  for (const { id } of snapshots) {
    const again = { ...options, backing: backing && MemoryStore.from(backing.bytes()) };
    const frozen = await openQcow2(MemoryStore.from(bytes), { ...again, snapshot: { id } });
    contents.set(`snapshot ${id}`, await readAll(frozen));
    await frozen.close();
  }
  return contents;
}

/** Three states of the disk: 'first' and 'second' are snapshots, the present one differs from both. */
async function image(variant: Qcow2Variant, { backing }: Backing, grows: boolean): Promise<Uint8Array> {
  const file = await createQcow2Bytes(SIZE, variant, backing !== undefined);
  const unit = variant.extendedL2 === true ? 16 * KiB : (variant.clusterSize ?? 512);
  const node = await openQcow2(file, { backing });
  await node.write(0, pattern(9 * KiB));
  await node.write(16 * KiB, pattern(unit, 3), { compressed: true });
  await create(node, 'first');
  await node.write(4 * KiB, pattern(9 * KiB, 2));
  await node.writeZeroes(1 * KiB, 2 * KiB);
  if (grows) await node.truncate(SIZE + 80 * KiB);
  await create(node, 'second');
  await node.write(2 * KiB, pattern(700, 4));
  await node.write(30 * KiB, pattern(5 * KiB, 5));
  await node.discard(8 * KiB, 4 * KiB);
  await node.close();
  return file.bytes();
}

const CHANGES: Readonly<Record<string, (node: MappedNode) => Promise<unknown>>> = {
  'a snapshot is made': (node) => create(node, 'third'),
  'the older snapshot is applied': (node) => change(node, (snapshots) => snapshots.apply('first')),
  'the newer snapshot is applied': (node) => change(node, (snapshots) => snapshots.apply('second')),
  'the older snapshot is deleted': (node) => change(node, (snapshots) => snapshots.delete('first')),
  'the newer snapshot is deleted': (node) => change(node, (snapshots) => snapshots.delete('second')),
};

const VARIANTS: Readonly<Record<string, readonly [Qcow2Variant, number | undefined]>> = {
  'clusters of 512 bytes': [{}, undefined],
  'version 2': [{ compat: 'v2' }, undefined],
  'a backing file': [{}, 24 * KiB],
  'refcounts of 64 bits': [{ refcountBits: 64 }, undefined],
  'refcounts of 4 bits': [{ refcountBits: 4 }, undefined],
  'lazy refcounts': [{ lazyRefcounts: true }, undefined],
  subclusters: [{ extendedL2: true }, 30 * KiB],
};

/** Leaks are allowed; with lazy refcounts the image says itself that they may be stale, and is repaired by the next writer. */
async function sound(bytes: Uint8Array, variant: Qcow2Variant, { backing }: Backing): Promise<Uint8Array> {
  let content = bytes;
  if (variant.lazyRefcounts === true) {
    const file = MemoryStore.from(bytes);
    await (await openQcow2(file, { backing: backing && MemoryStore.from(backing.bytes()) })).close();
    content = file.bytes();
  }
  const { lines, checkErrors } = await checkQcow2(MemoryStore.from(content));
  expect({ lines, checkErrors }).toEqual({ lines: [], checkErrors: 0 });
  return content;
}

/** The image can be lived with: every snapshot goes, the disk is written. (Leaks stay: those behind the end of the file show when it grows.) */
async function goOn(bytes: Uint8Array, { backing }: Backing): Promise<void> {
  const file = MemoryStore.from(bytes, { pageSize: 512 });
  const node = await openQcow2(file, { backing: backing && MemoryStore.from(backing.bytes()) });
  for (const { id } of node.format.snapshots?.list() ?? []) {
    await change(node, (snapshots) => snapshots.delete({ id }));
  }
  const disk = await readAll(node);
  disk.set(pattern(3000, 9), 5000);
  await node.write(5000, pattern(3000, 9));
  expect(Buffer.compare(await readAll(node), disk)).toBe(0);
  await node.close();
  expect((await checkQcow2(MemoryStore.from(file.bytes()))).lines).toEqual([]);
}

function same(a: Map<string, Uint8Array>, b: Map<string, Uint8Array>): boolean {
  if (a.size !== b.size) return false;
  return [...a].every(([name, bytes]) => {
    const other = b.get(name);
    return other !== undefined && Buffer.compare(bytes, other) === 0;
  });
}

describe.each(Object.entries(VARIANTS))('after a power cut, with %s', (_, [variant, backingSize]) => {
  it.each(Object.entries(CHANGES))('while %s, everything is as before or as after', async (name, make) => {
    const below: Backing = {
      backing: backingSize === undefined ? undefined : MemoryStore.from(pattern(backingSize, 8)),
    };
    const before = await image(variant, below, variant.compat !== 'v2' && name.includes('newer'));
    const store = new RecordingStore(MemoryStore.from(before, { pageSize: 512 }));
    const node = await openQcow2(store, { backing: below.backing && MemoryStore.from(below.backing.bytes()) });
    await make(node);
    await node.close();
    const recorded = store.inner as MemoryStore;
    const old = await contentsOf(before, below);
    const fresh = await contentsOf(recorded.bytes(), below);
    expect(same(old, fresh)).toBe(false);
    let olds = 0;
    let states = 0;
    for (const { contents, what } of cutStates(store.log, [store], [before])) {
      states++;
      try {
        const content = await sound(contents[0] as Uint8Array, variant, below);
        const found = await contentsOf(content, below);
        const isOld = same(found, old);
        if (isOld) olds++;
        else expect(same(found, fresh)).toBe(true);
        if (states % 25 === 0) await goOn(content, below);
      } catch (error) {
        throw new Error(`${what}: ${(error as Error).message}`, { cause: error });
      }
    }
    expect(olds).toBeGreaterThan(0);
    expect(olds).toBeLessThan(states);
  });
});
