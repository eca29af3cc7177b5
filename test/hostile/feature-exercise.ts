/** One feature case: a damaged image, maybe repaired, then a few of the things that can be done to an image, one after the other.
 *  Each step ends in right data or a BlockError. What is demanded besides:
 *  - looking changes no byte, and the only other file that is ever opened for writing is the image's own data file;
 *  - of an image that check calls right, every byte stays that no step was asked to change, whether the step succeeded or not; and check calls it
 *    right afterwards;
 *  - what a repair calls repaired passes the next check, and reads as before where the image was right. */
import { isBlockError } from '../../src/base/errors.ts';
import type { Codecs } from '../../src/codec/codecs.ts';
import type { CheckFinding, CheckFix, CheckResult } from '../../src/core/format.ts';
import { qcow2 } from '../../src/formats/qcow2/driver.ts';
import { raw } from '../../src/formats/raw/driver.ts';
import type { Image } from '../../src/image/image.ts';
import { type OpenImageOptions, openImage } from '../../src/image/open.ts';
import type { MemoryStore } from '../../src/storage/memory.ts';
import { below, seededRandom } from '../../src/testing/random.ts';
import { type Base, KEY } from './bases.ts';
import { type Companions, companions } from './companions.ts';
import type { Outcome } from './exercise.ts';
import { Expected, LOOKED_AT } from './expected.ts';
import { drawFeature, type StepContext } from './features.ts';
import { bake, type Recipe } from './mutate.ts';

const PIECE = 64 * 1024;
/** A repair that moves a snapshot table leaves flags to the next one. */
const REPAIR_ROUNDS = 3;
const DATA_FILES = new Set(['data.raw', 'flat.raw']);

export async function exerciseFeatures(
  recipe: Recipe,
  bases: ReadonlyMap<string, Base>,
  codecs: Codecs,
): Promise<Outcome> {
  const run = new FeatureCase(recipe, bases, codecs);
  try {
    await run.run();
  } catch (error) {
    run.failures.push(`the case itself: ${error instanceof Error ? error.stack : String(error)}`);
  }
  return run;
}

class FeatureCase implements Outcome {
  readonly steps: Record<string, string> = {};
  readonly failures: string[] = [];
  readonly #recipe: Recipe;
  readonly #bases: ReadonlyMap<string, Base>;
  readonly #codecs: Codecs;
  readonly #companions: Companions;
  readonly #random: () => number;

  constructor(recipe: Recipe, bases: ReadonlyMap<string, Base>, codecs: Codecs) {
    this.#recipe = recipe;
    this.#bases = bases;
    this.#codecs = codecs;
    this.#companions = companions(bases.get(recipe.base) as Base);
    this.#random = seededRandom(recipe.exercise);
  }

  async run(): Promise<void> {
    const store = bake(this.#recipe, this.#bases);
    const checked = await this.#check('check', store);
    let file = await fresh(store);
    let sound = isSound(checked);
    const expected = new Expected(0);
    if (sound) await this.#look('look', file, expected);
    file = await fresh(file);
    if (this.#random() < 0.3) {
      const repaired = await this.#repair(file);
      file = repaired.file;
      if (sound && this.steps['look'] === 'ok') await this.#compare('repaired', file, expected);
      file = await fresh(file);
      sound = repaired.sound && sound;
    }
    await this.#change(file, expected, sound && this.steps['look'] === 'ok');
    for (const name of this.#companions.written) {
      if (!DATA_FILES.has(name)) this.failures.push(`"${name}" was opened for writing`);
    }
  }

  // ---- steps -----------------------------------------------------------------------------------------------------------------------

  async #change(file: MemoryStore, expected: Expected, sound: boolean): Promise<void> {
    const done: string[] = [];
    const closed = await this.#with('rw', file, { readOnly: false }, async (image) => {
      expected.resize(image.virtualSize);
      const context: StepContext = { image, random: this.#random, expected, frozen: new Map() };
      for (let count = 1 + below(this.#random, 5); count > 0; count--) {
        const feature = drawFeature(this.#random);
        done.push(feature.name);
        await this.#step(feature.name, () => feature.run(context));
      }
    });
    if (!sound || !closed || done.length === 0) return;
    const what = `${done.join(', ')}: `;
    await this.#compare(what, await fresh(file), expected);
    const again = await this.#check('recheck', await fresh(file));
    if (!isSound(again)) this.failures.push(`${what}made a sound image fail its check: ${JSON.stringify(again)}`);
  }

  async #repair(file: MemoryStore): Promise<{ readonly file: MemoryStore; readonly sound: boolean }> {
    const fix: CheckFix = this.#random() < 0.3 ? 'leaks' : 'all';
    let store = file;
    for (let round = 1; round <= REPAIR_ROUNDS; round++) {
      let result: CheckResult | undefined;
      let broken = false;
      const onFinding = ({ reason }: CheckFinding): void => {
        broken ||= reason === 'qcow2.rebuild-failed';
      };
      await this.#with('repair open', store, { readOnly: false, forCheck: true, openBacking: false }, async (image) => {
        result = await this.#step(`repair ${fix}`, () => image.check({ fix, onFinding }));
      });
      store = await fresh(store);
      if (!isSound(result) || broken) return { file: store, sound: false };
      const again = await this.#check('repaired', store);
      store = await fresh(store);
      if (isSound(again) && (again.leaks === 0 || fix === 'leaks')) return { file: store, sound: true };
    }
    if (fix === 'all') this.failures.push(`repaired ${REPAIR_ROUNDS} times and still not sound`);
    return { file: store, sound: false };
  }

  /** The check of a store that refuses to be written. */
  async #check(name: string, store: MemoryStore): Promise<CheckResult | undefined> {
    let result: CheckResult | undefined;
    const options = { readOnly: true, forCheck: true, openBacking: false };
    await this.#with(`${name} open`, store, options, async (image) => {
      result = await this.#step(name, () => image.check());
    });
    return result;
  }

  /** Reads the beginning of the disk. */
  async #look(name: string, file: MemoryStore, expected: Expected): Promise<void> {
    await this.#with(name, file, { readOnly: true }, async (image) => {
      expected.resize(image.virtualSize);
      expected.forget(0, LOOKED_AT);
      for (let at = 0; at < Math.min(image.virtualSize, LOOKED_AT); at += PIECE) {
        const length = Math.min(PIECE, image.virtualSize - at);
        const bytes = await this.#step(`${name} read`, () => image.read(at, length));
        if (bytes !== undefined) expected.set(at, bytes);
      }
    });
  }

  async #compare(what: string, file: MemoryStore, expected: Expected): Promise<void> {
    const opened = await this.#with('reopen', file, { readOnly: true }, async (image) => {
      if (image.virtualSize !== expected.size) {
        this.failures.push(`${what}the disk has ${image.virtualSize} bytes, not ${expected.size}`);
      }
      for (let at = 0; at < Math.min(image.virtualSize, LOOKED_AT); at += PIECE) {
        const length = Math.min(PIECE, image.virtualSize - at);
        const bytes = await this.#step('reread', () => image.read(at, length));
        const wrong = bytes === undefined ? undefined : expected.firstWrong(at, bytes);
        if (wrong !== undefined) {
          this.failures.push(`${what}changed the byte at ${wrong}`);
          return;
        }
      }
    });
    if (!opened) this.failures.push(`${what}the image does not open any more: ${this.steps['reopen']}`);
  }

  // ---- frame -----------------------------------------------------------------------------------------------------------------------

  async #with(
    name: string,
    store: MemoryStore,
    options: Partial<OpenImageOptions>,
    body: (image: Image) => Promise<void>,
  ): Promise<boolean> {
    let source = store;
    if (options.readOnly === true) {
      if (!store.closed) await store.close();
      source = store.reopen({ readOnly: true });
    }
    const image = await this.#step(name, () => openImage(source, this.#options(options)));
    if (image === undefined) {
      // it stays the caller's
      if (!source.closed) await source.close();
      return false;
    }
    await body(image);
    const closed = await this.#step(`${name} close`, async () => {
      await image.close();
      return true;
    });
    return closed === true;
  }

  #options(options: Partial<OpenImageOptions>): OpenImageOptions {
    return {
      formats: [qcow2, raw],
      protocols: [this.#companions.protocol],
      codecs: this.#codecs,
      format: 'qcow2',
      references: 'allow',
      secrets: { s: KEY },
      ...(this.#recipe.base === 'keyed' ? { options: { encryptKeySecret: 's' } } : {}),
      ...options,
    };
  }

  async #step<T>(name: string, body: () => Promise<T>): Promise<T | undefined> {
    try {
      const result = await body();
      this.steps[name] ??= 'ok';
      return result;
    } catch (error) {
      if (!isBlockError(error)) this.failures.push(`${name}: ${error instanceof Error ? error.stack : String(error)}`);
      else {
        this.steps[name] = `${error.code} ${error.reason}`;
        const wrong = error.code === 'INTERNAL' || error.code === 'CLOSED' || error.code === 'READ_ONLY';
        if (wrong || error.message === '') this.failures.push(`${name}: ${error.stack}`);
      }
      return undefined;
    }
  }
}

/** The same bytes, open again. */
async function fresh(store: MemoryStore): Promise<MemoryStore> {
  if (!store.closed) await store.close();
  return store.reopen();
}

function isSound(result: CheckResult | undefined): result is CheckResult {
  return result !== undefined && result.corruptions === 0 && result.checkErrors === 0;
}
