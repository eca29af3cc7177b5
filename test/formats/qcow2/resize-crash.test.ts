/** A power cut at any moment of another size: the disk has the old size and content or the new ones, and check finds leaks at most. */
import { describe, expect, it } from 'vitest';
import { MemoryStore } from '../../../src/storage/memory.ts';
import { afterEveryCut, busyImage, contentsOf, headerOf } from '../../support/qcow2-cuts.ts';
import { pattern, readAll } from '../../support/qcow2-parts.ts';
import { checkQcow2, openQcow2, type Qcow2Variant } from '../../support/qcow2-under-test.ts';

const KiB = 1024;
const SIZE = 40 * KiB;

interface Case {
  readonly variant: Qcow2Variant;
  readonly sizes: readonly number[];
  readonly mode?: 'metadata' | 'falloc' | 'full';
  readonly snapshots?: boolean;
  readonly backing?: number;
}

const CASES: Readonly<Record<string, Case>> = {
  'it grows': { variant: {}, sizes: [41 * KiB + 512, 70 * KiB] },
  'it grows over a longer backing file': { variant: { clusterSize: 4096 }, sizes: [70 * KiB], backing: 60 * KiB },
  'it grows in version 2 over a longer backing file': {
    variant: { compat: 'v2' },
    sizes: [44 * KiB],
    backing: 60 * KiB,
  },
  'it grows with metadata': { variant: {}, sizes: [52 * KiB], mode: 'metadata' },
  'it grows with space, over a longer backing file': {
    variant: {},
    sizes: [50 * KiB],
    mode: 'full',
    backing: 60 * KiB,
  },
  'it grows with space and snapshots': { variant: {}, sizes: [50 * KiB], mode: 'falloc', snapshots: true },
  'it grows with space for subclusters': {
    variant: { extendedL2: true },
    sizes: [90 * KiB],
    mode: 'falloc',
    backing: 60 * KiB,
  },
  'it shrinks': { variant: {}, sizes: [21 * KiB + 512] },
  'it shrinks to nothing': { variant: { clusterSize: 1024 }, sizes: [0] },
  'it shrinks under snapshots': { variant: {}, sizes: [5 * KiB], snapshots: true },
  'it shrinks over a backing file': {
    variant: { refcountBits: 64 },
    sizes: [7 * KiB],
    backing: 60 * KiB,
    snapshots: true,
  },
  'it shrinks with lazy refcounts': { variant: { lazyRefcounts: true }, sizes: [9 * KiB] },
  'it shrinks with subclusters': { variant: { extendedL2: true }, sizes: [17 * KiB] },
};

describe('after a power cut', () => {
  it.each(Object.entries(CASES))('while %s, the disk is the old one or the new one', async (_, one) => {
    const { variant, sizes, mode, snapshots } = one;
    const backing = one.backing === undefined ? undefined : pattern(one.backing, 8);
    let before = await busyImage({ size: SIZE, variant, backing, snapshots: snapshots === true });
    for (const size of sizes) {
      const old = (await contentsOf(before, backing)).get('disk') as Uint8Array;
      const after = await afterEveryCut({
        before,
        backing,
        lazy: variant.lazyRefcounts === true,
        make: (node) => node.resize(size, mode),
        verify: (bytes, what) => expectZerosWhenGrown(bytes, backing, what),
      });
      const wanted = new Uint8Array(size);
      wanted.set(old.subarray(0, Math.min(size, old.length)));
      expect(Buffer.compare((await contentsOf(after, backing)).get('disk') as Uint8Array, wanted)).toBe(0);
      expect(await headerOf(after)).toMatchObject({ virtualSize: size });
      expect(await checkQcow2(MemoryStore.from(after))).toMatchObject({ leaks: 0, lines: [] });
      before = after;
    }
  });
});

let states = 0;

/** Whatever was left behind the end does not come back. */
async function expectZerosWhenGrown(bytes: Uint8Array, backing: Uint8Array | undefined, what: string): Promise<void> {
  if (states++ % 10 !== 0) return;
  const file = MemoryStore.from(bytes, { pageSize: 512 });
  const node = await openQcow2(file, { backing: backing && MemoryStore.from(backing) });
  const { size } = node;
  const old = await readAll(node);
  await node.truncate(120 * KiB);
  const now = await readAll(node);
  await node.close();
  expect(Buffer.compare(now.subarray(0, size), old), what).toBe(0);
  expect(
    now.subarray(size).every((byte) => byte === 0),
    what,
  ).toBe(true);
  expect((await checkQcow2(MemoryStore.from(file.bytes()))).lines, what).toEqual([]);
}
