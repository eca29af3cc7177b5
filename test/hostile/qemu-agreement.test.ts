/** Where the real qemu-img reads a damaged image without an error, and we do too, both read the same bytes.
 *  The cases are those of hostile.test.ts; the usual run compares a hundred, the long one thousands. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, expect, it } from 'vitest';
import { isBlockError } from '../../src/base/errors.ts';
import { openImage } from '../../src/node.ts';
import { describeWithQemu } from '../formats/qcow2/support.ts';
import { firstDifference } from '../interop/qcow2-workbench.ts';
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

describeWithQemu('a damaged image', () => {
  const directory = mkdtempSync(join(tmpdir(), 'cowdisk-agreement-'));
  afterAll(() => rmSync(directory, { recursive: true, force: true }));
  const bases = loadBases(BASES);
  for (const { companions } of bases.values()) {
    for (const [name, file] of companions) writeFileSync(join(directory, name), copyOf(file).bytes());
  }

  it('that both tools read reads the same', { timeout: 3_600_000 }, async () => {
    const mutator = new Mutator(bases, SEED);
    let compared = 0;
    const differences: string[] = [];
    for (let index = 0; index < CASES && compared < WANTED; index++) {
      const recipe = mutator.recipe(index);
      writeFileSync(join(directory, 'image'), bake(recipe, bases).bytes());
      const ours = await read(join(directory, 'image'));
      if (ours === undefined) continue;
      const args = ['10', 'qemu-img', 'convert', '-f', 'qcow2', '-O', 'raw', 'image', 'copy'];
      if ((await spawn('timeout', args, directory)).status !== 0) continue;
      compared++;
      const difference = firstDifference(ours, readFileSync(join(directory, 'copy')));
      if (difference !== undefined) {
        differences.push(`seed ${SEED}, case ${index}: ${difference}\n  recipe ${JSON.stringify(recipe)}`);
      }
    }
    expect(differences).toEqual([]);
    expect(compared).toBe(WANTED);
  });
});

/** The whole disk; `undefined` when it is refused or too large to compare. */
async function read(path: string): Promise<Uint8Array | undefined> {
  try {
    await using image = await openImage(path, { format: 'qcow2', references: 'allow' });
    return image.virtualSize > LARGEST ? undefined : await image.read(0, image.virtualSize);
  } catch (error) {
    if (!isBlockError(error)) throw error;
    return undefined;
  }
}
