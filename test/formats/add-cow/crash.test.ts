import { describe, expect, it } from 'vitest';
import { resolveOptions } from '../../../src/base/options.ts';
import { KiB } from '../../../src/base/sizes.ts';
import type { MappedNode } from '../../../src/core/mapped-node.ts';
import { ALL_RULES, type SafetyRules } from '../../../src/core/safety.ts';
import { secretsOf } from '../../../src/core/secrets.ts';
import { createAddCow } from '../../../src/formats/add-cow/create.ts';
import { readHeader } from '../../../src/formats/add-cow/header.ts';
import { createOptions } from '../../../src/formats/add-cow/options.ts';
import { MemoryStore } from '../../../src/storage/memory.ts';
import { type CrashTestOptions, runCrash } from '../../../src/testing/crash.ts';
import { findViolation } from '../../../src/testing/model.ts';
import { RecordingStore, WriteLog } from '../../../src/testing/recording-store.ts';
import {
  type AddCowVariant,
  addCowUnderTest,
  checkAddCow,
  createAddCowFiles,
  openAddCow,
  STALE,
} from '../../support/add-cow-under-test.ts';
import { cutStates } from '../../support/cuts.ts';
import { contentOf, failureOf, filled } from './support.ts';

const LONG = process.env.COWDISK_LONG === '1';
const SEEDS = LONG ? 20 : 2;

const V9: AddCowVariant = { compat: 'v9' };
const V9_SIZE: Partial<CrashTestOptions> = { size: 144 * KiB, longest: 200, states: LONG ? 6000 : 800 };

const VARIANTS: Record<string, readonly [AddCowVariant, Partial<CrashTestOptions>]> = {
  'V20, everything allocated': [{}, {}],
  'V20, a bitmap without backing file': [{ allAllocated: false }, {}],
  'V20 over a backing file': [{}, { backingSize: 15 * KiB }],
  'V20 over a longer backing file': [{}, { backingSize: 40 * KiB }],
  'V20 growing over a longer backing file (R3)': [
    { grow: true },
    { backingSize: 60 * KiB, size: 17 * KiB, discard: 'hint', weights: { share: 5, flush: 8 } },
  ],
  'v9 over a backing file': [V9, { ...V9_SIZE, backingSize: 100 * KiB }],
  'v9 growing over a longer backing file (R3)': [
    { ...V9, grow: true },
    { ...V9_SIZE, backingSize: 500 * KiB, discard: 'hint', weights: { share: 4, flush: 8 } },
  ],
};

const BASE = {
  size: 18 * KiB + 512,
  operations: 40,
  states: LONG ? 20_000 : 2500,
  weights: { flush: 8, discard: 12 },
};

describe('A-021: after a cut at any moment of both files, every sector holds its last flushed value or one written since, and nothing stale', () => {
  for (const [name, [variant, options]] of Object.entries(VARIANTS)) {
    it(`with ${name}`, async () => {
      for (let seed = 1; seed <= SEEDS; seed++) await runCrash(addCowUnderTest(variant), { seed, ...BASE, ...options });
    });
  }
});

describe('the crash test notices', () => {
  for (const rule of ['dataFirst', 'copyAtWriteBack'] satisfies (keyof SafetyRules)[]) {
    it(`A-021: the loss of the rule ${rule}`, async () => {
      const found = await findViolation(
        (seed) =>
          runCrash(addCowUnderTest({}), {
            seed,
            ...BASE,
            backingSize: 15 * KiB,
            rules: { ...ALL_RULES, [rule]: false },
          }),
        1,
        40,
      );
      expect(found, `no run failed without ${rule}`).toBeDefined();
    });
  }
});

/** What a change did to both files, and everything a cut can leave of it. */
class Recorded {
  readonly log = new WriteLog();
  readonly stores: RecordingStore[];
  readonly bases: readonly Uint8Array[];

  constructor(files: readonly MemoryStore[]) {
    this.bases = files.map((file) => file.bytes());
    this.stores = files.map((file) => new RecordingStore(file, { log: this.log }));
  }

  states(): ReturnType<typeof cutStates> {
    return cutStates(this.log, this.stores, this.bases);
  }
}

const BACKING = filled(60 * KiB, 0xbb);

async function readOnlyNode(contents: readonly Uint8Array[]): Promise<MappedNode> {
  const [file, image] = contents.map((bytes) => MemoryStore.from(bytes, { readOnly: true }));
  const backing = MemoryStore.from(BACKING, { readOnly: true });
  return await openAddCow(file as MemoryStore, image as MemoryStore, { readOnly: true, backing });
}

async function soundness(contents: readonly Uint8Array[]): Promise<number> {
  const [file, image] = contents.map((bytes) => MemoryStore.from(bytes, { readOnly: true }));
  return (await checkAddCow(file as MemoryStore, image as MemoryStore)).corruptions;
}

describe('a cut while an image is made', () => {
  for (const compat of ['v9', 'v20'] as const) {
    for (const length of [0, 30 * KiB, 50 * KiB]) {
      const long = `${'a-long-name/'.repeat(60)}image`;
      it(`leaves no image or a whole one that shows its backing file: ${compat}, an image file of ${length} bytes before`, async () => {
        const kept = compat === 'v9' && length > 0 ? length : 30 * KiB;
        const image = MemoryStore.from(filled(length, STALE), { name: 'image' });
        const made = new Recorded([new MemoryStore({ name: 'disk' }), image]);
        const [file, data] = made.stores as [RecordingStore, RecordingStore];
        data.close = () => Promise.resolve();
        await createAddCow(
          {
            file,
            name: 'disk',
            createReference: () => Promise.resolve(data),
            secret: secretsOf(undefined),
            referenceStatus: () => Promise.resolve(undefined),
          },
          kept,
          resolveOptions(createOptions, {
            compat,
            ...(compat === 'v9' ? {} : { clusterSize: 4096 }),
            imageFile: long,
            backingFile: 'backing',
            backingFmt: 'raw',
          }),
        );
        let whole = 0;
        let none = 0;
        for (const { contents, what } of made.states()) {
          const failure = await failureOf(() => readHeader(MemoryStore.from(contents[0] as Uint8Array), 'disk')).catch(
            () => undefined,
          );
          if (failure !== undefined) {
            expect(failure.reason, what).toBe('add-cow.magic');
            none++;
            continue;
          }
          const node = await readOnlyNode(contents);
          expect((await node.format.info()).specific?.data['image-file'], what).toBe(long);
          expect(node.size, what).toBe(kept);
          expect(await contentOf(node), what).toEqual(BACKING.subarray(0, kept));
          expect(await soundness(contents), what).toBe(0);
          whole++;
        }
        expect(none).toBeGreaterThan(3);
        expect(whole).toBeGreaterThan(1);
      });
    }
  }
});

describe('R3: a cut while an image is resized', () => {
  const written = filled(10 * KiB, 7);
  for (const compat of ['v9', 'v20'] as const) {
    const unit = compat === 'v9' ? 64 * KiB : 4 * KiB;
    const old = 3 * unit + KiB;

    async function resized(size: number, written_at: readonly number[]): Promise<Recorded> {
      const { file, image } = await createAddCowFiles(old, { compat }, true);
      const setup = await openAddCow(file, image, { backing: MemoryStore.from(longBacking(unit)) });
      for (const at of written_at) await setup.write(at, written.subarray(0, Math.min(written.length, old - at)));
      await setup.close();
      const made = new Recorded([file.reopen(), image.reopen()]);
      const [first, second] = made.stores as [RecordingStore, RecordingStore];
      const node = await openAddCow(first, second, { backing: MemoryStore.from(longBacking(unit)) });
      await node.truncate(size);
      return made;
    }

    async function verify(made: Recorded, size: number, before: Uint8Array): Promise<Set<number>> {
      const sizes = new Set<number>();
      for (const { contents, what } of made.states()) {
        expect(await soundness(contents), what).toBe(0);
        const [file, image] = contents.map((bytes) => MemoryStore.from(bytes, { readOnly: true }));
        const backing = MemoryStore.from(longBacking(unit), { readOnly: true });
        const node = await openAddCow(file as MemoryStore, image as MemoryStore, { readOnly: true, backing });
        sizes.add(node.size);
        const found = await contentOf(node);
        const kept = Math.min(old, size);
        expect(found.subarray(0, kept), what).toEqual(before.subarray(0, kept));
        if (node.size > old) expect(found.subarray(old), what).toEqual(new Uint8Array(node.size - old));
        // What was to go is what it was, or already the backing file's.
        for (let at = kept; at < Math.min(old, node.size); at++) {
          if (found[at] !== before[at] && found[at] !== 0xbb) throw new Error(`${what}: byte ${at} is ${found[at]}`);
        }
      }
      return sizes;
    }

    for (const places of [[], [0], [2 * unit + 100], [3 * unit]]) {
      const where = places.length === 0 ? 'nothing written' : `written at ${places[0]}`;
      const before = longBacking(unit).slice(0, old);
      for (const at of places) before.set(written.subarray(0, Math.min(written.length, old - at)), at);

      it(`leaves the old size or the new one, and zeros behind the old end: ${compat}, growing, ${where}`, async () => {
        const size = 5 * unit + 2 * KiB;
        expect(await verify(await resized(size, places), size, before)).toEqual(new Set([old, size]));
      });

      it(`leaves the old size or the new one, and what is not cut off: ${compat}, shrinking, ${where}`, async () => {
        const size = 2 * unit + 512;
        expect(await verify(await resized(size, places), size, before)).toEqual(new Set([old, size]));
      });
    }
  }
});

function longBacking(unit: number): Uint8Array {
  return filled(7 * unit, 0xbb);
}

describe('a cut while the header changes', () => {
  const long = (letter: string): string => letter.repeat(700);
  const cases: readonly (readonly [string, AddCowVariant, string, string | undefined])[] = [
    ['v9, short names', V9, 'backing', 'other'],
    ['v9, a long name after a short one', V9, 'backing', long('n')],
    ['v9, a short name after a long one', V9, long('o'), 'other'],
    ['v9, no name any more', V9, long('o'), undefined],
    ['V20, short names', {}, 'backing', 'other'],
    ['V20, a long name after a short one', {}, 'backing', long('n')],
    ['V20, a short name after a long one', {}, long('o'), 'other'],
    ['V20, a long name after a long one', {}, long('o'), long('n')],
    ['V20, no name any more', {}, long('o'), undefined],
  ];
  for (const [name, variant, from, to] of cases) {
    it(`leaves the old names or the new ones: ${name}`, async () => {
      const { file, image } = await createAddCowFiles(20 * KiB, variant, true);
      const setup = await openAddCow(file, image, { backing: MemoryStore.from(BACKING) });
      await setup.changeBacking({ name: from, format: 'raw' });
      await setup.close();
      const made = new Recorded([file.reopen(), image.reopen()]);
      const node = await openAddCow(made.stores[0] as RecordingStore, made.stores[1] as RecordingStore, {
        backing: MemoryStore.from(BACKING),
      });
      await node.changeBacking(to === undefined ? undefined : { name: to, format: 'qcow2' });
      const seen = new Set<string>();
      let last = '';
      for (const { contents, what } of made.states()) {
        const header = await readHeader(MemoryStore.from(contents[0] as Uint8Array), 'disk');
        expect(header.image.text, what).toBe('image');
        last = `${header.backing?.text} ${header.backingFormat}`;
        seen.add(last);
      }
      const v9 = variant.compat === 'v9';
      const wanted = to === undefined ? 'undefined undefined' : `${to} ${v9 ? 'undefined' : 'qcow2'}`;
      expect(seen).toEqual(new Set([`${from} ${v9 ? 'undefined' : 'raw'}`, wanted]));
      expect(last).toBe(wanted);
    });
  }

  it('leaves the bitmap or the whole image file when it detaches, which read the same', async () => {
    const { file, image } = await createAddCowFiles(20 * KiB, {}, true);
    const setup = await openAddCow(file, image, { backing: MemoryStore.from(BACKING) });
    await setup.close();
    const made = new Recorded([file.reopen(), image.reopen()]);
    const node = await openAddCow(made.stores[0] as RecordingStore, made.stores[1] as RecordingStore, {
      backing: MemoryStore.from(BACKING),
    });
    await node.write(0, filled(20 * KiB, 3));
    await node.flush();
    const { tick } = made.log;
    await node.detach();
    const seen = new Set<unknown>();
    for (const { contents, what, tick: at } of made.states()) {
      if (at < tick) continue;
      const disk = await readOnlyNode(contents);
      seen.add((await disk.format.info()).specific?.data['all-allocated']);
      expect(await contentOf(disk), what).toEqual(filled(20 * KiB, 3));
    }
    expect(seen).toEqual(new Set([false, true]));
  });

  it('leaves each cluster full or empty when an image is emptied', async () => {
    const { file, image } = await createAddCowFiles(20 * KiB, {}, true);
    const setup = await openAddCow(file, image, { backing: MemoryStore.from(BACKING) });
    await setup.write(4096, filled(9000, 3));
    await setup.close();
    const made = new Recorded([file.reopen(), image.reopen()]);
    const node = await openAddCow(made.stores[0] as RecordingStore, made.stores[1] as RecordingStore, {
      backing: MemoryStore.from(BACKING),
    });
    await node.makeEmpty();
    for (const { contents, what } of made.states()) {
      const found = await contentOf(await readOnlyNode(contents));
      expect(
        found.every((byte) => byte === 3 || byte === 0xbb),
        what,
      ).toBe(true);
    }
    expect(await contentOf(node)).toEqual(BACKING.subarray(0, 20 * KiB));
  });
});
