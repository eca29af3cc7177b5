/** cow files go back and forth between us and the tools that User Mode Linux has for them: uml_moo merges what we create and write, and
 *  what uml_mkcow creates is opened and written here. Every disk is compared whole with a flat file that took the same writes. */
import { copyFileSync, readFileSync, rmSync, statSync, truncateSync, utimesSync } from 'node:fs';
import { expect, it } from 'vitest';
import { createImage, type ImageEvent, imageInfo, openImage } from '../../src/node.ts';
import { noise, seededRandom } from '../../src/testing/random.ts';
import { scratch } from '../support/scratch.ts';
import { everySeed, SEED_TIMEOUT } from '../support/seeds.ts';
import { BASE_TIME, describeWithUmlTools, FlatDisk, makeBase, mustRun, runTool, SECTOR } from './uml-support.ts';

const LONG = process.env['COWDISK_LONG'] === '1';
/** Sectors. The first is nearly the smallest that UML can write to; of some, the bitmap's last byte is not full. */
const SIZES = [40, 1003, 2048, 2049, 3904, 3907, 4095, 9001];
const FULL_BYTES = SIZES.filter((sectors) => sectors % 8 === 0);
/** Sectors of 1 GiB, nearly all of it holes. */
const LARGE = 2 ** 21;
/** Layouts besides v3 that uml_moo reads right, as long as the bitmap's last byte is full. */
const OLD_LAYOUTS = ['v1-le32', 'v2-uml-32', 'v3-broken'];

/** Files of one case. */
class Case {
  readonly base: string;
  readonly cow: string;
  readonly merged: string;
  readonly flat: FlatDisk;
  readonly size: number;

  constructor(path: (name: string) => string, sectors: number, seed: number) {
    this.base = path('base');
    this.cow = path('cow');
    this.merged = path('merged');
    this.flat = new FlatDisk(path('flat'), seed);
    this.size = sectors * SECTOR;
    for (const file of [this.base, this.cow, this.merged, this.flat.path]) rmSync(file, { force: true });
    for (const file of [this.base, this.flat.path]) makeBase(file, this.size, seed);
  }

  create(options: Readonly<Record<string, unknown>> = {}): Promise<void> {
    return createImage(this.cow, { format: 'cow', backing: { name: this.base, format: 'raw' }, options });
  }

  /** Writes at random, closes, and reads everything back. */
  async churn(random: () => number, count: number): Promise<void> {
    const image = await openImage(this.cow, { format: 'cow', references: 'allow', readOnly: false });
    try {
      await this.flat.churn(image, random, count);
    } finally {
      await image.close();
    }
    expect(await this.differenceOfOurs()).toBeUndefined();
  }

  async differenceOfOurs(): Promise<string | undefined> {
    const image = await openImage(this.cow, { format: 'cow', references: 'allow' });
    try {
      return await this.flat.differenceFromImage(image);
    } finally {
      await image.close();
    }
  }

  /** Where the disk differs that uml_moo makes of cow and base. */
  async differenceOfMerged(): Promise<string | undefined> {
    rmSync(this.merged, { force: true });
    mustRun('uml_moo', [this.cow, this.merged]);
    return await this.flat.differenceFrom(this.merged);
  }
}

describeWithUmlTools('a cow file of ours', () => {
  const path = scratch();

  it.each(SIZES)(
    'is merged by uml_moo into the disk that we wrote: %i sectors',
    (sectors) =>
      everySeed(2, async (seed) => {
        const here = new Case(path, sectors, seed);
        const random = seededRandom(seed * 7919 + sectors);
        await here.create();
        // the base itself, before anything is written
        expect(await here.differenceOfMerged()).toBeUndefined();
        for (let round = 0; round < 2; round++) {
          await here.churn(random, 24);
          expect(await here.differenceOfMerged()).toBeUndefined();
        }
      }),
    SEED_TIMEOUT,
  );

  it('is merged when the disk has a gibibyte', async () => {
    const here = new Case(path, LARGE, 11);
    await here.create();
    await here.churn(seededRandom(12), 60);
    expect(statSync(here.cow).blocks * 512).toBeLessThan(64 << 20);
    expect(await here.differenceOfMerged()).toBeUndefined();
  });

  it.each(SIZES)(
    'is merged into its base by uml_moo -d: %i sectors',
    (sectors) =>
      everySeed(2, async (seed) => {
        const here = new Case(path, sectors, seed);
        await here.create();
        await here.churn(seededRandom(seed * 104_729 + sectors), 32);
        const target = path('target');
        copyFileSync(here.base, target);
        utimesSync(target, BASE_TIME, BASE_TIME);
        mustRun('uml_moo', ['-d', '-b', target, here.cow]);
        expect(await here.flat.differenceFrom(target)).toBeUndefined();
      }),
    SEED_TIMEOUT,
  );

  it('has the header and the length that uml_mkcow gives one', async () => {
    for (const sectors of SIZES) {
      const here = new Case(path, sectors, 5);
      await here.create();
      const theirs = path('theirs');
      mustRun('uml_mkcow', ['-f', theirs, here.base]);
      const ours = readFileSync(here.cow);
      const made = readFileSync(theirs);
      // up to the end of the name; behind it lies whatever their memory held
      const end = made.indexOf(0, 32);
      expect(ours.subarray(0, end + 1)).toEqual(made.subarray(0, end + 1));
      expect(ours.subarray(4128)).toEqual(made.subarray(4128));
    }
  });

  it('is refused by uml_moo, and remarked on by us, when its base has changed since', async () => {
    const here = new Case(path, 2048, 6);
    await here.create();
    utimesSync(here.base, BASE_TIME + 1, BASE_TIME + 1);
    const later = runTool('uml_moo', [here.cow, here.merged]);
    expect(later.status).not.toBe(0);
    expect(later.stdout + later.stderr).toMatch(/mtime mismatch/i);
    expect(await warningsOf(here.cow)).toHaveLength(1);

    truncateSync(here.base, here.size + SECTOR);
    utimesSync(here.base, BASE_TIME, BASE_TIME);
    const longer = runTool('uml_moo', [here.cow, here.merged]);
    expect(longer.status).not.toBe(0);
    expect(longer.stdout + longer.stderr).toMatch(/size mismatch/i);
    expect(await warningsOf(here.cow)).toHaveLength(1);
  });

  it.each(OLD_LAYOUTS)(
    'is merged in the layout %s, too',
    (layout) =>
      everySeed(1, async (seed) => {
        for (const sectors of FULL_BYTES) {
          const here = new Case(path, sectors, seed);
          await here.create({ layout });
          expect(await here.differenceOfMerged()).toBeUndefined();
          await here.churn(seededRandom(seed * 31 + sectors), 32);
          expect(await here.differenceOfMerged()).toBeUndefined();
        }
      }),
    SEED_TIMEOUT,
  );
});

describeWithUmlTools('a cow file of uml_mkcow', () => {
  const path = scratch();

  // uml_moo takes its time over a gibibyte, sector by sector
  it.each([...SIZES, ...(LONG ? [LARGE] : [])])(
    'is recognised, read and written, and merged as we see it: %i sectors',
    async (sectors) => {
      const here = new Case(path, sectors, sectors);
      mustRun('uml_mkcow', [here.cow, here.base]);
      const info = await imageInfo(here.cow, { references: 'allow' });
      expect(info).toMatchObject({ format: 'cow', virtualSize: here.size });
      expect(info.specific?.data).toMatchObject({ layout: 'v3' });
      expect(await warningsOf(here.cow)).toEqual([]);
      expect(await here.differenceOfOurs()).toBeUndefined();

      await here.churn(seededRandom(sectors), 32);
      expect(await here.differenceOfMerged()).toBeUndefined();
    },
  );

  it('keeps its header to the byte while we write', async () => {
    const here = new Case(path, 4095, 3);
    mustRun('uml_mkcow', [here.cow, here.base]);
    const before = readFileSync(here.cow);
    await here.churn(seededRandom(4), 16);
    const after = readFileSync(here.cow);
    expect(after.length).toBe(before.length);
    expect(after.subarray(0, 4128)).toEqual(before.subarray(0, 4128));
  });

  it('shows every sector that we wrote as its own, and no other', async () => {
    const here = new Case(path, 1003, 8);
    mustRun('uml_mkcow', [here.cow, here.base]);
    const bytes = noise(seededRandom(9), 3 * SECTOR);
    const image = await openImage(here.cow, { format: 'cow', references: 'allow', readOnly: false });
    try {
      await image.write(7 * SECTOR, bytes);
      await image.write(1002 * SECTOR, bytes.subarray(0, SECTOR));
    } finally {
      await image.close();
    }
    const bitmap = readFileSync(here.cow).subarray(8192, 8192 + 126);
    const present = [...Array(126 * 8).keys()].filter((bit) => (((bitmap[bit >> 3] as number) >> (bit & 7)) & 1) === 1);
    expect(present).toEqual([7, 8, 9, 1002]);
  });
});

/** What opening it warns of. */
async function warningsOf(cow: string): Promise<ImageEvent[]> {
  const events: ImageEvent[] = [];
  const image = await openImage(cow, { references: 'allow', onEvent: (event) => events.push(event) });
  await image.close();
  return events.filter((event) => event.type === 'warning');
}
