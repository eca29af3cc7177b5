/** A power cut at any moment of the life of persistent bitmaps: the image opens and checks with leaks at most, and each bitmap is as before
 *  (and then the disk is), as after, or says that it is not to be trusted. None misses a write in silence. */
import { describe, expect, it } from 'vitest';
import type { BitmapFacet } from '../../../src/core/format.ts';
import type { MappedNode } from '../../../src/core/mapped-node.ts';
import { readHeader, writeHeader } from '../../../src/formats/qcow2/header.ts';
import { MemoryStore } from '../../../src/storage/memory.ts';
import { RecordingStore } from '../../../src/testing/recording-store.ts';
import { cutStates } from '../../support/cuts.ts';
import { pattern, readAll } from '../../support/qcow2-parts.ts';
import { checkQcow2, createQcow2Bytes, openQcow2, type Qcow2Variant } from '../../support/qcow2-under-test.ts';

const KiB = 1024;
const SIZE = 4096 * KiB;

interface Variant extends Qcow2Variant {
  readonly hasBacking?: boolean;
  /** Bytes of an extension that nobody knows, before that of the bitmaps. */
  readonly unknown?: number;
  /** The extension lies in two sectors: while it changes, its bitmaps are void for a moment. */
  readonly mayBeVoid?: boolean;
}

const VARIANTS: Readonly<Record<string, Variant>> = {
  'clusters of 512 bytes': {},
  'clusters of 8 KiB, and names of features': { clusterSize: 8192 },
  'clusters of 4 KiB': { clusterSize: 4096 },
  'a backing file': { clusterSize: 4096, hasBacking: true },
  'a backing file, and names of features': { clusterSize: 8192, hasBacking: true },
  'a backing file, and clusters of 512 bytes': { hasBacking: true },
  'refcounts of 1 bit': { refcountBits: 1 },
  'lazy refcounts': { lazyRefcounts: true },
  'an extension in two sectors': { clusterSize: 4096, unknown: 376, mayBeVoid: true },
  'an extension that begins in one sector and ends in the next': { clusterSize: 4096, unknown: 384 },
};

/** Alone, as the engine does it. */
const change = (node: MappedNode, make: (bitmaps: BitmapFacet) => Promise<void>): Promise<void> =>
  node.changeBitmaps(make);

async function merge(node: MappedNode): Promise<void> {
  await change(node, (bitmaps) => bitmaps.merge('frozen', bitmaps.dirty('live')));
}

const SESSIONS: Readonly<Record<string, (node: MappedNode) => Promise<void>>> = {
  'nothing is done': async () => undefined,
  'guests write': async (node) => {
    await node.write(700 * KiB, pattern(2 * KiB, 3));
    await node.writeZeroes(100 * KiB, 1 * KiB);
    await node.discard(3000 * KiB, 8 * KiB);
  },
  'a bitmap is made, and guests write': async (node) => {
    await change(node, (bitmaps) => bitmaps.add({ name: 'third', granularity: 4096 }));
    await node.write(5 * KiB, pattern(3 * KiB, 4));
  },
  'a bitmap is removed': (node) => change(node, (bitmaps) => bitmaps.remove('live')),
  'all bitmaps are removed': (node) =>
    change(node, async (bitmaps) => {
      for (const { name } of await bitmaps.list()) await bitmaps.remove(name);
    }),
  'one is merged into another': merge,
  'a bitmap is cleared, and guests write': async (node) => {
    await change(node, (bitmaps) => bitmaps.clear('live'));
    await node.write(5 * KiB, pattern(3 * KiB, 4));
  },
  'one is disabled and the other enabled': (node) =>
    change(node, async (bitmaps) => {
      await bitmaps.setEnabled('live', false);
      await bitmaps.setEnabled('frozen', true);
    }),
  'the disk grows, and guests write there': async (node) => {
    await node.truncate(SIZE + 1024 * KiB);
    await node.write(SIZE + 1000 * KiB, pattern(3 * KiB, 4));
  },
};

interface Seen {
  readonly disk: Uint8Array;
  /** By name: `void` when it is inconsistent, else everything about it. */
  readonly bitmaps: ReadonlyMap<string, string>;
  /** The extension is there, without its autoclear bit. */
  readonly stale: boolean;
}

const VOID = 'void';

async function see(bytes: Uint8Array, backing: Uint8Array | undefined): Promise<Seen> {
  const file = MemoryStore.from(bytes);
  const { staleBitmaps } = await readHeader(file, 'disk', { readOnly: true, forCheck: false });
  const node = await openQcow2(file, { readOnly: true, backing: backing && MemoryStore.from(backing) });
  const facet = node.format.bitmaps as BitmapFacet;
  const bitmaps = new Map<string, string>();
  for (const { name, granularity, enabled, inconsistent } of await facet.list()) {
    const ranges: string[] = [];
    if (!inconsistent) for await (const { offset, length } of facet.dirty(name)) ranges.push(`${offset}+${length}`);
    bitmaps.set(name, inconsistent ? VOID : `${granularity} ${enabled} ${ranges.join(' ')}`);
  }
  const disk = await readAll(node);
  await node.close();
  return { disk, bitmaps, stale: staleBitmaps };
}

async function emptyImage(variant: Variant): Promise<MemoryStore> {
  const file = await createQcow2Bytes(SIZE, variant, variant.hasBacking === true);
  if (variant.unknown !== undefined) {
    const header = await readHeader(file, 'disk', { readOnly: false, forCheck: false });
    const unknownExtensions = [{ magic: 0x12345678, data: new Uint8Array(variant.unknown).fill(5) }];
    await writeHeader(file, { ...header, unknownExtensions }, 'disk');
  }
  return file;
}

/** Two bitmaps, one that records and one that does not, both with bits in several clusters. */
async function image(variant: Variant, backing: Uint8Array | undefined): Promise<Uint8Array> {
  const file = await emptyImage(variant);
  const node = await openQcow2(file, { backing: backing && MemoryStore.from(backing) });
  await change(node, (bitmaps) => bitmaps.add({ name: 'live', granularity: 512 }));
  await node.write(100 * KiB, pattern(2 * KiB));
  await node.writeZeroes(0, 1);
  await node.write(3000 * KiB, pattern(90 * KiB));
  await change(node, async (bitmaps) => {
    await bitmaps.add({ name: 'frozen', granularity: 8192, enabled: false });
    await bitmaps.merge('frozen', bitmaps.dirty('live'));
  });
  await node.write(701 * KiB, pattern(1 * KiB, 7));
  await node.close();
  return file.bytes();
}

/** Leaks are allowed; with lazy refcounts the image says itself that they may be stale, and is repaired by the next writer. */
async function sound(bytes: Uint8Array, variant: Variant, backing: Uint8Array | undefined): Promise<void> {
  let content = bytes;
  if (variant.lazyRefcounts === true) {
    const file = MemoryStore.from(bytes);
    await (await openQcow2(file, { backing: backing && MemoryStore.from(backing) })).close();
    content = file.bytes();
  }
  const { lines, checkErrors } = await checkQcow2(MemoryStore.from(content));
  expect({ lines, checkErrors }).toEqual({ lines: [], checkErrors: 0 });
}

/** The image can be lived with: what is void is removed, another one made, the disk written. */
async function goOn(bytes: Uint8Array, backing: Uint8Array | undefined): Promise<void> {
  const file = MemoryStore.from(bytes, { pageSize: 512 });
  const node = await openQcow2(file, { backing: backing && MemoryStore.from(backing) });
  await change(node, async (bitmaps) => {
    for (const { name, inconsistent } of await bitmaps.list()) if (inconsistent) await bitmaps.remove(name);
    await bitmaps.add({ name: 'new', granularity: 65536 });
  });
  await node.write(50 * KiB, pattern(3000, 9));
  await node.close();
  expect((await see(file.bytes(), backing)).bitmaps.get('new')).toBe('65536 true 0+65536');
  expect((await checkQcow2(MemoryStore.from(file.bytes()))).lines).toEqual([]);
}

/** @throws what is wrong with it */
function judge(found: Seen, old: Seen, fresh: Seen, variant: Variant): void {
  if (found.stale) {
    // Void, and said so: only where there is no way around.
    expect(variant.mayBeVoid === true || old.bitmaps.size === 0 || fresh.bitmaps.size === 0).toBe(true);
    expect(found.bitmaps.size).toBe(0);
    return;
  }
  const isOld = Buffer.compare(found.disk, old.disk) === 0;
  for (const [name, content] of found.bitmaps) {
    const allowed = [VOID, fresh.bitmaps.get(name), ...(isOld ? [old.bitmaps.get(name)] : [])];
    expect(allowed, `bitmap ${name}`).toContain(content);
  }
  for (const name of old.bitmaps.keys()) {
    if (!found.bitmaps.has(name)) expect(fresh.bitmaps.has(name), `bitmap ${name} is gone`).toBe(false);
  }
}

const LONG = process.env['COWDISK_LONG'] === '1';
/** Those that change the header, or bits: enough where only the layout of the image is another one. */
const BRIEF = ['guests write', 'a bitmap is made, and guests write', 'all bitmaps are removed'];

function sessionsOf(variant: Variant): [string, (node: MappedNode) => Promise<void>][] {
  const all = Object.entries(SESSIONS);
  const isFirst = Object.keys(variant).length === 0;
  return LONG || isFirst || variant.mayBeVoid === true ? all : all.filter(([name]) => BRIEF.includes(name));
}

describe.each(Object.entries(VARIANTS))('after a power cut, with %s', (_, variant) => {
  const backing = variant.hasBacking === true ? pattern(64 * KiB, 8) : undefined;

  async function cutEverywhere(before: Uint8Array, session: (node: MappedNode) => Promise<void>): Promise<void> {
    const store = new RecordingStore(MemoryStore.from(before, { pageSize: 512 }));
    const node = await openQcow2(store, { backing: backing && MemoryStore.from(backing) });
    await session(node);
    const closing = store.log.tick;
    await node.close();
    const old = await see(before, backing);
    const fresh = await see((store.inner as MemoryStore).bytes(), backing);
    expect([...fresh.bitmaps.values()]).not.toContain(VOID);
    let states = 0;
    const met: string[] = [];
    for (const { contents, what, tick } of cutStates(store.log, [store], [before])) {
      const content = contents[0] as Uint8Array;
      // Most states of guests' data look the same to bitmaps.
      states++;
      if (states > 60 && tick < closing && states % 10 !== 0 && !LONG) continue;
      try {
        await sound(content, variant, backing);
        const found = await see(content, backing);
        judge(found, old, fresh, variant);
        met.push([...found.bitmaps.values()].join());
        if (states % 20 === 0) await goOn(content, backing);
      } catch (error) {
        throw new Error(`${what}: ${(error as Error).message}`, { cause: error });
      }
    }
    // Both ends were met.
    expect(met).toContain([...old.bitmaps.values()].join());
    expect(met).toContain([...fresh.bitmaps.values()].join());
  }

  it.each(sessionsOf(variant))('while %s, every bitmap is right or void', async (_name, session) => {
    await cutEverywhere(await image(variant, backing), session);
  });

  it('while the first bitmap is made, it is there or not', async () => {
    await cutEverywhere((await emptyImage(variant)).bytes(), async (node) => {
      await change(node, (bitmaps) => bitmaps.add({ name: 'first' }));
      await node.write(5 * KiB, pattern(3 * KiB, 4));
    });
  });
});
