/** Where the real qemu-img reads a damaged image without an error, and we do too, both read the same bytes; so with map and check.
 *  The cases are those of hostile.test.ts; the usual run compares a hundred, the long one thousands. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { isDeepStrictEqual } from 'node:util';
import { afterAll, expect, it } from 'vitest';
import { isBlockError } from '../../src/base/errors.ts';
import { checkImage, openImage } from '../../src/node.ts';
import { describeWithQemu } from '../formats/qcow2/support.ts';
import {
  comparable,
  countersOf,
  firstDifference,
  type MapEntry,
  mapOf,
  Workbench,
} from '../interop/qcow2-workbench.ts';
import { spawn } from '../interop/transcript-harness.ts';
import { copyOf, loadBases } from './bases.ts';
import { bake, Mutator } from './mutate.ts';

const LONG = process.env['COWDISK_LONG'] === '1';
const SEED = Number(process.env['COWDISK_SEED'] ?? 1);
/** Comparisons, and the cases looked at for them: many are refused by one or both. */
const WANTED = LONG ? 5_000 : 100;
const CASES = 4 * WANTED;
/** Larger disks are left out; bytes. */
const LARGEST = 64 * 1024 * 1024;
const BASES = fileURLToPath(new URL('../fixtures/hostile/bases', import.meta.url));

describeWithQemu('a damaged image that both tools open', () => {
  const directory = mkdtempSync(join(tmpdir(), 'cowdisk-agreement-'));
  afterAll(() => rmSync(directory, { recursive: true, force: true }));
  const bases = loadBases(BASES);
  const mutator = new Mutator(bases, SEED);

  /** Asks both of as many cases as it takes, each in a place of its own, and collects where they differ.
   *  @param ours `undefined` where the image is refused, or not to be compared */
  async function compare<T>(
    name: string,
    ours: (path: string) => Promise<T | undefined>,
    theirs: (bench: Workbench) => Promise<T | undefined>,
    differ: (ours: T, theirs: T) => string | undefined,
  ): Promise<void> {
    const bench = new Workbench(join(directory, name));
    for (const { companions } of bases.values()) {
      for (const [companion, file] of companions) writeFileSync(bench.path(companion), copyOf(file).bytes());
    }
    let compared = 0;
    const differences: string[] = [];
    for (let index = 0; index < CASES && compared < WANTED; index++) {
      const recipe = mutator.recipe(index);
      writeFileSync(bench.path('image'), bake(recipe, bases).bytes());
      const mine = await unlessRefused(() => ours(bench.path('image')));
      const yours = mine === undefined ? undefined : await theirs(bench);
      if (mine === undefined || yours === undefined) continue;
      compared++;
      const difference = differ(mine, yours);
      if (difference === undefined) continue;
      differences.push(`seed ${SEED}, case ${index}: ${difference}\n  recipe ${JSON.stringify(recipe)}`);
    }
    expect(differences.slice(0, 5), `${differences.length} differences`).toEqual([]);
    expect(compared).toBe(WANTED);
  }

  it('reads the same in both', { timeout: 3_600_000 }, () =>
    compare(
      'read',
      async (path) => {
        await using image = await openImage(path, { format: 'qcow2', references: 'allow' });
        return image.virtualSize > LARGEST ? undefined : await image.read(0, image.virtualSize);
      },
      async (bench) => {
        const args = ['convert', '-f', 'qcow2', '-O', 'raw', 'image', 'copy'];
        return (await qemuImg(bench, args)) === undefined ? undefined : readFileSync(bench.path('copy'));
      },
      firstDifference,
    ),
  );

  it('has the same map in both', { timeout: 3_600_000 }, () =>
    compare(
      'map',
      async (path) => {
        await using image = await openImage(path, { format: 'qcow2', references: 'allow' });
        return image.virtualSize > LARGEST ? undefined : comparable(await mapOf(image));
      },
      async (bench) => {
        const map = await qemuImg(bench, ['map', '-f', 'qcow2', '--output=json', 'image']);
        return map === undefined ? undefined : comparable(JSON.parse(map) as MapEntry[]);
      },
      unequal,
    ),
  );

  it('has the same faults in both', { timeout: 3_600_000 }, () =>
    compare(
      'check',
      // encrypted ones are checked only with the key by QEMU
      async (path) => countersOf((await checkImage(path, { format: 'qcow2', references: 'allow' })).result),
      async (bench) => {
        const report = await qemuImg(bench, ['check', '-f', 'qcow2', '--output=json', 'image']);
        if (report === undefined) return undefined;
        const { filename: _, format: __, ...counters } = JSON.parse(report) as Record<string, number>;
        return counters;
      },
      unequal,
    ),
  );
});

/** Its output; `undefined` when it refuses the image, or finds no end. */
async function qemuImg(bench: Workbench, args: readonly string[]): Promise<string | undefined> {
  const { stdout, status } = await spawn('timeout', ['10', 'qemu-img', ...args], bench.directory);
  if (args[0] === 'check') return stdout.endsWith('}\n') ? stdout : undefined;
  return status === 0 ? stdout : undefined;
}

async function unlessRefused<T>(action: () => Promise<T>): Promise<T | undefined> {
  try {
    return await action();
  } catch (error) {
    if (!isBlockError(error)) throw error;
    return undefined;
  }
}

function unequal(ours: unknown, theirs: unknown): string | undefined {
  if (isDeepStrictEqual(ours, theirs)) return undefined;
  return `ours ${JSON.stringify(ours).slice(0, 1000)}, theirs ${JSON.stringify(theirs).slice(0, 1000)}`;
}
