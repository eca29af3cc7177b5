/** A power cut at any moment of a repair: the image still opens, nothing that could be read is lost, and a second repair ends what the first one began. */
import { describe, expect, it } from 'vitest';
import type { CheckFix } from '../../../src/core/format.ts';
import type { MappedNode } from '../../../src/core/mapped-node.ts';
import { checkImageTables } from '../../../src/formats/qcow2/check.ts';
import { readHeader } from '../../../src/formats/qcow2/header.ts';
import { MemoryStore } from '../../../src/storage/memory.ts';
import { RecordingStore } from '../../../src/testing/recording-store.ts';
import { COPIED, Patient } from '../../interop/qcow2-damages.ts';
import { cutStates } from '../../support/cuts.ts';
import { pattern } from '../../support/qcow2-parts.ts';
import { createQcow2Bytes, openQcow2, type Qcow2Variant } from '../../support/qcow2-under-test.ts';

const KiB = 1024;
const SIZE = 40 * KiB;
const UNIT = 512;

/** A disk with data of several kinds, and two snapshots where the variant has them. */
async function healthy(variant: Qcow2Variant, snapshots: boolean): Promise<Uint8Array> {
  const file = await createQcow2Bytes(SIZE, variant, false);
  const node = await openQcow2(file, {});
  const freeze = (name: string) =>
    node.exclusive(async () => void (await node.format.snapshots?.create({ name, dateSeconds: 1 })));
  await node.write(0, pattern(5 * KiB));
  if (snapshots) await freeze('one');
  await node.write(2 * KiB, pattern(3 * KiB, 2));
  if (snapshots) await freeze('two');
  await node.write(33 * KiB, pattern(2 * KiB, 3));
  await node.writeZeroes(1 * KiB, 512);
  await node.close();
  return file.bytes();
}

interface CrashCase {
  readonly name: string;
  readonly variant?: Qcow2Variant;
  readonly snapshots?: boolean;
  readonly fixes?: readonly CheckFix[];
  /** Guest units whose content is another structure's bytes. */
  readonly garbage?: readonly number[];
  damage(image: Patient): void;
}

function each(numbers: readonly number[], change: (number: number) => void): void {
  for (const number of numbers) change(number);
}

const both = { fixes: ['leaks', 'all'] } as const;
const CASES: readonly CrashCase[] = [
  { name: 'leaks', ...both, damage: (image) => each([0, 1, 4], (i) => image.setRefcount(image.clusterOf(i), 3)) },
  {
    name: 'leaks and wrong flags',
    ...both,
    damage: (image) => {
      image.setU64(image.l1, image.u64(image.l1) & ~COPIED);
      image.setEntry(3, image.entry(3) & ~COPIED);
    },
  },
  { name: 'low refcounts', snapshots: true, damage: (image) => image.setRefcount(image.clusterOf(0), 1) },
  { name: 'lost refcounts', damage: (image) => image.setU64(image.refcountTable, 0) },
  {
    name: 'lost refcounts, one bit',
    variant: { refcountBits: 1 },
    damage: (image) => image.setU64(image.refcountTable, 0),
  },
  { name: 'a refcount of 0', damage: (image) => image.setRefcount(image.clusterOf(1), 0) },
  {
    name: 'an unaligned cluster',
    damage: (image) => image.setEntry(1, image.entry(1) + 512n),
    variant: { clusterSize: 4096 },
  },
  { name: 'clusters past the end', damage: (image) => each([1, 4], (i) => image.setEntry(i, COPIED | (1n << 40n))) },
  { name: 'reserved bits', damage: (image) => each([1, 4], (i) => image.setEntry(i, image.entry(i) | 0x20n)) },
  {
    name: 'reserved bits and lost refcounts',
    damage: (image) => {
      image.setEntry(1, image.entry(1) | 0x20n);
      image.setU64(image.l1, image.u64(image.l1) | 2n);
      image.setU64(image.refcountTable, 0);
    },
  },
  {
    name: 'guest data on the L1 table',
    garbage: [1],
    damage: (image) => image.setEntry(1, COPIED | BigInt(image.l1)),
  },
  {
    name: 'guest data on the refcount block',
    garbage: [1],
    damage: (image) => image.setEntry(1, COPIED | BigInt(image.refcountBlock)),
  },
  {
    name: 'guest data on the refcount table, in two entries',
    garbage: [1, 5],
    damage: (image) => each([1, 5], (i) => image.setEntry(i, COPIED | BigInt(image.refcountTable))),
  },
  {
    name: 'two clusters in one, refcounts of one bit',
    variant: { refcountBits: 1 },
    damage: (image) => image.setEntry(1, image.entry(0)),
  },
  { name: 'a file that was cut off', damage: (image) => image.truncate(image.clusterOf(4) * image.clusterSize) },
  {
    name: 'a snapshot with a lost table',
    snapshots: true,
    damage: (image) => image.setU64(image.snapshots, 1n << 40n),
  },
  {
    name: 'an unaligned snapshot table and leaks',
    snapshots: true,
    damage: (image) => {
      image.setU64(64, image.snapshots + 8);
      image.setRefcount(50, 3);
    },
  },
  {
    name: 'the dirty bit and wrong refcounts',
    variant: { lazyRefcounts: true },
    damage: (image) => {
      image.setU64(72, image.u64(72) | 1n);
      image.setRefcount(image.clusterOf(0), 0);
      image.setRefcount(image.clusterOf(2), 4);
    },
  },
];

async function repair(file: MemoryStore | RecordingStore, fix: CheckFix) {
  const header = await readHeader(file, 'x', { readOnly: true, forCheck: true });
  return await checkImageTables({ file, header, name: 'x' }, { fix });
}

/** The disk unit by unit; `undefined` where it cannot be read. */
async function contentOf(bytes: Uint8Array): Promise<(Uint8Array | undefined)[]> {
  let node: MappedNode;
  try {
    node = await openQcow2(MemoryStore.from(bytes), { readOnly: true });
  } catch {
    // a snapshot table that cannot be read: not before its repair
    return Array.from({ length: SIZE / UNIT }, () => undefined);
  }
  const units: (Uint8Array | undefined)[] = [];
  for (let at = 0; at < SIZE; at += UNIT) {
    const unit = new Uint8Array(UNIT);
    try {
      await node.read(at, unit);
      units.push(unit);
    } catch {
      units.push(undefined);
    }
  }
  await node.close();
  return units;
}

const same = (a: Uint8Array | undefined, b: Uint8Array | undefined): boolean =>
  a === undefined || b === undefined ? a === b : Buffer.compare(a, b) === 0;

describe.each(CASES)('after a power cut in the repair of $name', (crash) => {
  it.each(crash.fixes ?? (['all'] as const))(
    'with fix %s, nothing is lost and a second repair ends it',
    async (fix) => {
      const patient = new Patient(Buffer.from(await healthy(crash.variant ?? {}, crash.snapshots === true)));
      crash.damage(patient);
      const start = new Uint8Array(patient.bytes);
      const damaged = await contentOf(start);
      const store = new RecordingStore(MemoryStore.from(start, { pageSize: 512 }));
      const once = await repair(store, fix);
      expect(once).toMatchObject({ corruptions: 0, checkErrors: 0 });
      expect(once.corruptionsFixed + once.leaksFixed).toBeGreaterThan(0);
      const repaired = await contentOf((store.inner as MemoryStore).bytes());
      const isJudged = (unit: number): boolean =>
        crash.garbage?.includes(Math.floor((unit * UNIT) / patient.clusterSize)) !== true;
      let states = 0;
      for (const { contents, what } of cutStates(store.log, [store], [start])) {
        states++;
        const cut = contents[0] as Uint8Array;
        try {
          (await contentOf(cut)).forEach((unit, index) => {
            const right = same(unit, repaired[index]) || same(unit, damaged[index]);
            if (isJudged(index) && !right) throw new Error(`unit ${index} is neither as before nor as repaired`);
          });
          const again = MemoryStore.from(cut, { pageSize: 512 });
          // an interrupted rebuild of refcounts is an error that only all repairs
          await repair(again, 'all');
          const { corruptions, leaks, checkErrors } = await repair(again, 'none');
          expect({ corruptions, leaks, checkErrors }).toEqual({ corruptions: 0, leaks: 0, checkErrors: 0 });
          (await contentOf(again.bytes())).forEach((unit, index) => {
            if (isJudged(index) && !same(unit, repaired[index])) throw new Error(`unit ${index} is not as repaired`);
          });
        } catch (error) {
          throw new Error(`${what}: ${(error as Error).message}`, { cause: error });
        }
      }
      expect(states).toBeGreaterThan(1);
    },
  );
});
