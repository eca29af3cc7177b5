/** What is recovered of damaged images, held against what they were. "Certain" must be right whatever was destroyed; at ten destroyed metadata clusters,
 *  nine tenths of the guest's bytes that are still in the file must come back. */
import { beforeAll, describe, expect, it } from 'vitest';
import { isBlockError } from '../../../src/base/errors.ts';
import type { RecoveredRange } from '../../../src/core/recovery.ts';
import { INCOMPATIBLE } from '../../../src/formats/qcow2/features.ts';
import { writeHeader } from '../../../src/formats/qcow2/header.ts';
import { MemoryStore } from '../../../src/storage/memory.ts';
import { noise, seededRandom } from '../../../src/testing/random.ts';
import { type Built, build, RECIPES, type Recipe, stamp } from '../../support/damaged-images.ts';
import {
  type Comparison,
  compare,
  destroy,
  KINDS,
  type Kind,
  type Metadata,
  metadataOf,
  pickVictims,
  type Recovered,
  recover,
} from '../../support/damaged-qcow2.ts';
import { headerOf, newDisk, openDisk } from '../../support/qcow2-parts.ts';
import { SEED_TIMEOUT, scaled } from '../../support/seeds.ts';

const KiB = 1024;
const MiB = 1024 * KiB;

interface Bench {
  readonly built: Built;
  readonly metadata: Metadata;
}

async function original({ built }: Bench) {
  const { file, backing } = built;
  const opened = await openDisk(MemoryStore.from(file.bytes()), {
    readOnly: true,
    ...(backing === undefined ? {} : { backing }),
  });
  return opened.node;
}

async function damaged(bench: Bench, count: number, kind: Kind, seed: number, spare: readonly string[]) {
  const random = seededRandom(seed);
  const file = MemoryStore.from(bench.built.file.bytes());
  const victims = pickVictims(bench.metadata, count, random, spare);
  await destroy(file, bench.metadata, victims, kind, random, bench.built.older);
  return file;
}

async function recovered(bench: Bench, file: MemoryStore): Promise<Recovered & Comparison> {
  const { backing } = bench.built;
  const before = file.bytes();
  const choice = backing === undefined ? {} : { backing, request: { backing: 'given' } as const };
  const found = await recover(file, choice).catch((error: unknown) => {
    // Header and nearly all tables may be gone: then it asks for the cluster size, and is told.
    if (!isBlockError(error) || error.reason !== 'qcow2.recover-cluster-size') throw error;
    return recover(file, { ...choice, options: { clusterSize: bench.metadata.clusterSize } });
  });
  const compared = await compare(await original(bench), found);
  expect(Buffer.compare(before, file.bytes())).toBe(0);
  return { ...found, ...compared };
}

describe.each(RECIPES)('recovering: $name', (recipe: Recipe) => {
  let bench: Bench;
  // Which table belongs where is told by nothing but the L1 table when the tables were not made in order.
  const spare = recipe.unordered === true ? ['l1', 'header'] : [];

  beforeAll(async () => {
    const built = await build(recipe, seededRandom(11));
    bench = { built, metadata: await metadataOf(built.file) };
    expect(bench.metadata.clusters.size).toBeGreaterThan(120);
  }, SEED_TIMEOUT);

  it('an image that is whole loses nothing', async () => {
    const { existing, right, ranges } = await recovered(bench, MemoryStore.from(bench.built.file.bytes()));
    expect(right).toBe(existing);
    expect(ranges.filter(({ state }) => state === 'lost')).toEqual([]);
    expect(ranges.filter(({ state, content }) => state !== 'certain' && content === 'data')).toEqual([]);
  });

  it.each([1, 10, 100])(
    '%i destroyed clusters: what is certain is right',
    async (count) => {
      for (let seed = 1; seed <= scaled(1); seed++) {
        for (const kind of [KINDS[(seed + count) % 4] as Kind, 'mixed' as const]) {
          const { wrong, existing, right } = await recovered(
            bench,
            await damaged(bench, count, kind, seed * 31 + count, spare),
          );
          const about = `${kind}, seed ${seed * 31 + count}`;
          expect(wrong, about).toEqual([]);
          if (count <= 10) expect(right / existing, about).toBeGreaterThanOrEqual(0.9);
        }
      }
    },
    SEED_TIMEOUT,
  );
});

function statesOf(ranges: readonly RecoveredRange[]): string[] {
  return [...new Set(ranges.map(({ state }) => state))].sort();
}

async function smallDisk(fill = 200 * KiB): Promise<MemoryStore> {
  const { file, node } = await newDisk({ size: MiB, clusterSize: 4096 });
  await node.write(0, stamp(0, fill, 1));
  await node.close();
  return MemoryStore.from(file.bytes());
}

async function blank(file: MemoryStore, what: string): Promise<MemoryStore> {
  const { clusters, clusterSize } = await metadataOf(file);
  for (const [at, is] of clusters) if (is === what) await file.write(at, new Uint8Array(clusterSize));
  return file;
}

describe('what is certain', () => {
  it('is everything while everything agrees, holes included', async () => {
    expect(statesOf((await recover(await smallDisk())).ranges)).toEqual(['certain']);
  });

  it('is not what a table of zeros says while clusters have lost their owner', async () => {
    const { ranges } = await recover(await blank(await smallDisk(), 'l2'));
    expect(ranges).toEqual([{ start: 0, length: MiB, state: 'lost', content: 'none', why: 'table-lost' }]);
  });

  it('is nothing without refcounts, which leaves everything doubtful and right', async () => {
    const file = await blank(await smallDisk(), 'refcount block');
    const { ranges, node } = await recover(file);
    expect(statesOf(ranges)).toEqual(['doubtful']);
    const bytes = new Uint8Array(200 * KiB);
    await node.read(0, bytes);
    expect(Buffer.compare(bytes, stamp(0, 200 * KiB, 1))).toBe(0);
  });

  it('is nothing that an older copy of the only table says, as far as clusters are missing from it', async () => {
    const { file, node } = await newDisk({ size: MiB, clusterSize: 4096 });
    await node.write(0, stamp(0, 64 * KiB, 1));
    await node.flush();
    const older = MemoryStore.from(file.bytes());
    await node.discard(0, 32 * KiB);
    await node.write(512 * KiB, stamp(512 * KiB, 128 * KiB, 2));
    await node.close();
    const newer = MemoryStore.from(file.bytes());
    const metadata = await metadataOf(newer);
    const tables = [...metadata.clusters].filter(([, is]) => is === 'l2').map(([at]) => at);
    await destroy(newer, metadata, tables, 'stale', seededRandom(1), older);
    expect(statesOf((await recover(newer)).ranges)).toEqual(['doubtful']);
  });

  it('is no content of another place, when a table was overwritten with one whose own place is destroyed, too', async () => {
    const { file, node } = await newDisk({ size: MiB, clusterSize: 512 });
    for (let at = 0; at < MiB; at += 4 * KiB) await node.write(at, stamp(at, 2 * KiB, 1));
    await node.close();
    const moved = MemoryStore.from(file.bytes());
    const { clusters } = await metadataOf(moved);
    const tables = [...clusters].filter(([, is]) => is === 'l2').map(([at]) => at);
    const content = new Uint8Array(512);
    await moved.read(tables[4] as number, content);
    await moved.write(tables[9] as number, content);
    await moved.write(tables[4] as number, new Uint8Array(512));
    const whole = (await openDisk(MemoryStore.from(file.bytes()), { readOnly: true })).node;
    const { wrong, certain } = await compare(whole, await recover(moved));
    expect(wrong).toEqual([]);
    expect(certain).toBeGreaterThan(0);
  });
});

describe('recovering without a header', () => {
  it.each([512, 4096, 65536])('finds out that clusters have %i bytes', async (clusterSize) => {
    const { file, node } = await newDisk({ size: 4 * MiB, clusterSize });
    const content = stamp(0, 3 * MiB, 1);
    await node.write(0, content);
    await node.close();
    const broken = await blank(MemoryStore.from(file.bytes()), 'header');
    const { node: found, ranges, notes } = await recover(broken);
    expect(notes.join('\n')).toContain(`clusters of ${clusterSize} bytes`);
    expect(statesOf(ranges)).not.toContain('certain');
    const bytes = new Uint8Array(3 * MiB);
    await found.read(0, bytes);
    expect(Buffer.compare(bytes, content)).toBe(0);
    expect(found.size).toBe(3 * MiB);
    expect((await recover(broken, { options: { size: 4 * MiB, clusterSize } })).node.size).toBe(4 * MiB);
  });

  it('finds out that tables are extended', async () => {
    const { file, node } = await newDisk({ size: 64 * MiB, extendedL2: true });
    const content = stamp(0, 300 * KiB, 1);
    await node.write(20 * MiB, content);
    await node.close();
    const broken = await blank(MemoryStore.from(file.bytes()), 'header');
    const { node: found, notes } = await recover(broken);
    expect(notes.join('\n')).toContain('extended');
    const bytes = new Uint8Array(content.length);
    await found.read(20 * MiB, bytes);
    expect(Buffer.compare(bytes, content)).toBe(0);
  });

  it('says so when nothing tells the size of the clusters', async () => {
    await expect(recover(MemoryStore.from(new Uint8Array(MiB)))).rejects.toMatchObject({
      reason: 'qcow2.recover-cluster-size',
    });
    await expect(
      recover(MemoryStore.from(new Uint8Array(MiB)), { options: { clusterSize: 4096 } }),
    ).rejects.toMatchObject({ reason: 'qcow2.recover-nothing' });
  });

  it('believes the caller more than the header', async () => {
    const { notes } = await recover(await smallDisk(), { options: { compat: 'v2' } });
    expect(notes.join('\n')).toContain('the header is not believed');
    expect((await recover(await smallDisk(), { options: { ignoreHeader: true } })).notes[0]).toContain('as asked');
  });
});

describe('recovering a snapshot', () => {
  it('reads what it held, and fills what the disk has lost', async () => {
    const { file, node } = await newDisk({ size: 4 * MiB, clusterSize: 4096 });
    await node.write(0, stamp(0, 3 * MiB, 1));
    await node.createSnapshot({ name: 'before', dateSeconds: 1 });
    await node.write(MiB, stamp(MiB, 64 * KiB, 2));
    await node.close();
    const whole = MemoryStore.from(file.bytes());
    const before = await recover(whole, { snapshot: 'before' });
    // Making the snapshot freed clusters, so that nobody knows what its holes had.
    expect(before.ranges.map(({ state, content }) => `${state} ${content}`)).toEqual([
      'certain data',
      'doubtful backing',
    ]);
    const bytes = new Uint8Array(3 * MiB);
    await before.node.read(0, bytes);
    expect(Buffer.compare(bytes, stamp(0, 3 * MiB, 1))).toBe(0);
    await expect(recover(whole, { snapshot: 'after' })).rejects.toMatchObject({ reason: 'qcow2.snapshot-missing' });
    // The disk's L1 table goes: what it shares with the snapshot is found there.
    const header = await headerOf(whole);
    await whole.write(header.l1Offset, new Uint8Array(4096));
    const found = await recover(whole);
    const disk = new Uint8Array(3 * MiB);
    await found.node.read(0, disk);
    const expected = stamp(0, 3 * MiB, 1);
    expected.set(stamp(MiB, 64 * KiB, 2), MiB);
    expect(Buffer.compare(disk, expected)).toBe(0);
    expect(statesOf(found.ranges)).toEqual(['doubtful']);
  });
});

describe('what else a recovery is asked', () => {
  it('leaves out what is doubtful, and shows the backing file where something is lost', async () => {
    const file = await blank(await smallDisk(), 'refcount block');
    const left = await recover(file, { request: { doubtful: 'leave-out' } });
    expect(left.ranges.map(({ state, why }) => `${state} ${why}`)).toEqual(['lost left-out']);
    const bytes = new Uint8Array(4096);
    await left.node.read(0, bytes);
    expect(bytes.every((byte) => byte === 0)).toBe(true);
  });

  it('reads lost ranges as zeros, or as the backing file', async () => {
    const base = new Uint8Array(MiB).fill(7);
    const { file, node } = await newDisk({ size: MiB, clusterSize: 4096, backing: MemoryStore.from(base) });
    await node.write(0, stamp(0, 200 * KiB, 1));
    await node.close();
    const broken = await blank(MemoryStore.from(file.bytes()), 'l2');
    const first = async (lost: 'zero' | 'backing'): Promise<number> => {
      const { node: found } = await recover(broken, { backing: MemoryStore.from(base), request: { lost } });
      const bytes = new Uint8Array(1);
      await found.read(0, bytes);
      return bytes[0] as number;
    };
    expect(await first('zero')).toBe(0);
    expect(await first('backing')).toBe(7);
    const { node: alone } = await recover(broken, { request: { backing: 'none', lost: 'backing' } });
    const bytes = new Uint8Array(1);
    await alone.read(0, bytes);
    expect(bytes[0]).toBe(0);
  });

  it('finds everything in a data file at its own place', async () => {
    const data = new MemoryStore({ size: 0 });
    const { file } = await newDisk({ size: MiB, clusterSize: 4096 });
    const header = await headerOf(file);
    const image = MemoryStore.from(file.bytes());
    await writeHeader(
      image,
      { ...header, incompatible: header.incompatible | INCOMPATIBLE.dataFile, dataFile: 'data' },
      'disk',
    );
    const { node } = await openDisk(image, { dataFile: data });
    await node.write(100 * KiB, stamp(100 * KiB, 300 * KiB, 1));
    await node.flush();
    const whole = await recover(MemoryStore.from(image.bytes()), { dataFile: MemoryStore.from(data.bytes()) });
    expect(statesOf(whole.ranges)).toEqual(['certain']);
    const broken = await blank(MemoryStore.from(image.bytes()), 'l1');
    const { node: found, ranges } = await recover(broken, { dataFile: MemoryStore.from(data.bytes()) });
    const bytes = new Uint8Array(300 * KiB);
    await found.read(100 * KiB, bytes);
    expect(Buffer.compare(bytes, stamp(100 * KiB, 300 * KiB, 1))).toBe(0);
    expect(statesOf(ranges)).toEqual(['doubtful']);
    await node.close();
  });

  it('refuses encrypted images, and says why', async () => {
    const file = await smallDisk();
    await file.write(32, Uint8Array.of(0, 0, 0, 1));
    await expect(recover(file)).rejects.toMatchObject({ code: 'UNSUPPORTED', reason: 'qcow2.recover-encrypted' });
  });
});

describe('a hostile file', () => {
  it('is scanned by what it holds, however large it says it is', async () => {
    const file = await smallDisk();
    await file.truncate(2 ** 34);
    const { ranges } = await recover(file);
    expect(ranges[0]).toMatchObject({ state: 'certain', content: 'data' });
  });

  it('whose L1 table names hundreds of thousands of holes takes no table for each', async () => {
    const file = await smallDisk();
    const entries = 400_000;
    const l1 = new DataView(new ArrayBuffer(entries * 8));
    for (let i = 0; i < entries; i++) l1.setBigUint64(i * 8, (1n << 63n) + BigInt(16 * MiB + i * 4096));
    await file.write(8 * MiB, new Uint8Array(l1.buffer));
    await file.truncate(16 * MiB + entries * 4096);
    await writeHeader(file, { ...(await headerOf(file)), l1Offset: 8 * MiB, l1Size: entries }, 'disk');
    const { ranges } = await recover(file);
    expect(statesOf(ranges)).not.toContain('certain');
  });

  it('of noise, of tables of noise, and of headers with noise in them ends in an answer or an error of ours', async () => {
    for (let seed = 1; seed <= scaled(12); seed++) {
      const random = seededRandom(seed);
      const file = await smallDisk();
      const size = file.size;
      for (let i = 0; i < 12; i++) {
        const at = Math.floor(random() * (i < 6 ? 120 : size));
        await file.write(at, noise(random, 1 + Math.floor(random() * 24)));
      }
      try {
        const { node, ranges } = await recover(file, { options: seed % 3 === 0 ? { ignoreHeader: true } : {} });
        const last = ranges.at(-1) as RecoveredRange;
        expect(last.start + last.length).toBe(node.size);
      } catch (error) {
        expect(error, `seed ${seed}`).toMatchObject({ name: 'BlockError' });
      }
    }
  });
});
