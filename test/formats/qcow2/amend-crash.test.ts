/** A power cut at any moment of amending: the content stays, the image is what it was or what it is to be, and check finds leaks at most. */
import { describe, expect, it } from 'vitest';
import { l2Kind } from '../../../src/formats/qcow2/entries.ts';
import { MemoryStore } from '../../../src/storage/memory.ts';
import { afterEveryCut, busyImage, contentsOf, headerOf, sameContents } from '../../support/qcow2-cuts.ts';
import { pattern } from '../../support/qcow2-parts.ts';
import { checkQcow2, type Qcow2Variant } from '../../support/qcow2-under-test.ts';

const KiB = 1024;
const SIZE = 40 * KiB;

interface Case {
  readonly variant: Qcow2Variant;
  readonly changes: Readonly<Record<string, unknown>>;
  readonly snapshots?: boolean;
  readonly backing?: number;
  /** Fields of the header afterwards. */
  readonly becomes: Readonly<Record<string, unknown>>;
}

const TO_V2 = { version: 2, refcountOrder: 4, incompatible: 0n, compatible: 0n };
const CASES: Readonly<Record<string, Case>> = {
  'version 2 becomes 3': { variant: { compat: 'v2' }, changes: { compat: 'v3' }, becomes: { version: 3 } },
  'version 2 with snapshots becomes 3': {
    variant: { compat: 'v2', clusterSize: 4096 },
    changes: { compat: 'v3' },
    snapshots: true,
    backing: 24 * KiB,
    becomes: { version: 3 },
  },
  'version 3 becomes 2': { variant: {}, changes: { compat: 'v2' }, becomes: TO_V2 },
  'version 3 over a backing file becomes 2': {
    variant: {},
    changes: { compat: 'v2' },
    backing: 24 * KiB,
    becomes: TO_V2,
  },
  'version 3 with snapshots becomes 2': {
    variant: { clusterSize: 1024 },
    changes: { compat: 'v2' },
    snapshots: true,
    becomes: TO_V2,
  },
  'version 3 with snapshots over a backing file becomes 2': {
    variant: {},
    changes: { compat: 'v2' },
    snapshots: true,
    backing: 30 * KiB,
    becomes: TO_V2,
  },
  'lazy version 3 becomes 2': {
    variant: { lazyRefcounts: true },
    changes: { compat: 'v2' },
    backing: 24 * KiB,
    becomes: TO_V2,
  },
  'refcounts get wider': { variant: {}, changes: { refcountBits: 64 }, becomes: { refcountOrder: 6 } },
  'refcounts get narrower': {
    variant: { clusterSize: 1024 },
    changes: { refcountBits: 2 },
    snapshots: true,
    becomes: { refcountOrder: 1 },
  },
  'refcounts get narrower while they are lazy': {
    variant: { lazyRefcounts: true },
    changes: { refcountBits: 1 },
    becomes: { refcountOrder: 0 },
  },
  'everything changes': {
    variant: { refcountBits: 4 },
    changes: { refcountBits: 16, compat: 'v2', size: 60 * KiB },
    becomes: { ...TO_V2, virtualSize: 60 * KiB },
  },
  'refcounts become lazy': { variant: {}, changes: { lazyRefcounts: true }, becomes: { compatible: 1n } },
  'refcounts are lazy no more': {
    variant: { lazyRefcounts: true },
    changes: { lazyRefcounts: false },
    becomes: { compatible: 0n },
  },
};

describe('after a power cut', () => {
  it.each(Object.entries(CASES))(
    'while %s, the content is what it was (M-20, Q-203, Q-204, Q-205, Q-209)',
    async (_, one) => {
      const { variant, changes, snapshots, becomes } = one;
      const backing = one.backing === undefined ? undefined : pattern(one.backing, 8);
      const before = await busyImage({ size: SIZE, variant, backing, snapshots: snapshots === true });
      const after = await afterEveryCut({
        before,
        backing,
        lazy: variant.lazyRefcounts === true || changes['lazyRefcounts'] === true,
        make: (node) => node.amend(changes),
        verify: async (bytes) => expectNoMarksIn2(bytes),
      });
      expect(await headerOf(after)).toMatchObject(becomes);
      expect(await checkQcow2(MemoryStore.from(after))).toMatchObject({ leaks: 0, lines: [] });
      const old = await contentsOf(before, backing);
      const fresh = await contentsOf(after, backing);
      if (changes['size'] === undefined) expect(sameContents(old, fresh)).toBe(true);
      else
        expect(Buffer.compare((fresh.get('disk') as Uint8Array).subarray(0, SIZE), old.get('disk') as Uint8Array)).toBe(
          0,
        );
    },
  );
});

/** Version 2 knows no zero marks. */
async function expectNoMarksIn2(bytes: Uint8Array): Promise<void> {
  const header = await headerOf(bytes);
  if (header.version !== 2) return;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  for (let index = 0; index < header.l1Size; index++) {
    const l2 = Number(view.getBigUint64(header.l1Offset + 8 * index) & 0x00ff_ffff_ffff_fe00n);
    if (l2 === 0) continue;
    for (let at = l2; at < l2 + 2 ** header.clusterBits; at += 8) {
      if (at + 8 > bytes.length) break;
      expect([1, 2]).not.toContain(l2Kind(view.getUint32(at), view.getUint32(at + 4), false, false));
    }
  }
}
