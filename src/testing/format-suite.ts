/** What every image format promises, as tests: run it over a format of your own. Needs no test framework of its own: `describe` and `it`
 *  are passed in, failures are thrown. What a format does not claim in `abilities` is left out.
 *  Invariants: each test has a fresh image; afterwards it is closed, checked (no corruption, no leak), opened read-only and compared with
 *  the model once more; all randomness comes from the seed, which failures name. */
import { alignUp } from '../bytes/align.ts';
import { MemoryStore } from '../storage/memory.ts';
import {
  type FormatBench,
  type FormatSuiteOptions,
  type ImageUnderTest,
  type OpenBacking,
  verify,
} from './format-bench.ts';
import { type CaseBacking, FORMAT_CASES, type FormatCase } from './format-cases.ts';
import { noise, seededRandom } from './random.ts';
import { ensure } from './store-bench.ts';

export {
  createByDriver,
  type DriverUnderTest,
  type FormatAbilities,
  type FormatSuiteOptions,
  type ImageUnderTest,
  type OpenBacking,
} from './format-bench.ts';

/** Defines the tests of the format contract. */
export function formatConformance(options: FormatSuiteOptions): void {
  options.describe(`${options.name} keeps the format contract`, () => {
    for (const testCase of FORMAT_CASES) {
      if (testCase.needs?.(options.abilities) === false) continue;
      options.it(testCase.name, () => named(options, () => runCase(testCase, options)));
    }
    const { largeSize } = options;
    if (largeSize !== undefined) {
      options.it(`a disk of ${largeSize} bytes can be written at its far end`, () =>
        named(options, () => runLarge(options, largeSize)),
      );
    }
  });
}

async function named(options: FormatSuiteOptions, body: () => Promise<void>): Promise<void> {
  try {
    await body();
  } catch (error) {
    const text = error instanceof Error ? error.message : String(error);
    throw new Error(`${options.name}, seed ${options.seed ?? 1}: ${text}`, { cause: error });
  }
}

async function runCase(testCase: FormatCase, options: FormatSuiteOptions): Promise<void> {
  const random = seededRandom(options.seed ?? 1);
  const { unit } = options;
  // The last unit is short where sizes may be so odd.
  const size = alignUp(11 * unit + Math.floor(unit / 3), options.sizeAlign ?? 512);
  const below = backingContent(testCase.backing ?? 'none', size, unit, random);
  const backing: OpenBacking | undefined =
    below === undefined ? undefined : () => MemoryStore.from(below, { name: 'backing', readOnly: true });
  const subject = await options.create(size, backing);
  const model = new Uint8Array(size);
  if (below !== undefined) model.set(below.subarray(0, size));
  const bench: FormatBench = { subject, disk: subject.disk, model, unit, options, random };
  try {
    await testCase.body(bench);
    await bench.disk.close();
    await requireSound(subject);
    bench.disk = await subject.reopen(true);
    await verify(bench);
  } finally {
    await bench.disk.close();
    await subject.dispose?.();
  }
}

/** A third of a backing file is zeros. */
function backingContent(kind: CaseBacking, size: number, unit: number, random: () => number): Uint8Array | undefined {
  if (kind === 'none') return undefined;
  const length = kind === 'equal' ? size : kind === 'longer' ? size + 3 * unit : size - 3 * unit - 100;
  const bytes = noise(random, length);
  for (let at = 2 * unit; at < length; at += 3 * unit) bytes.fill(0, at, at + unit);
  return bytes;
}

async function requireSound(subject: ImageUnderTest): Promise<void> {
  const found = await subject.check?.();
  if (found === undefined) return;
  const { checkErrors, corruptions, leaks } = found;
  ensure(
    checkErrors + corruptions + leaks === 0,
    `the closed image has ${corruptions} corruptions, ${leaks} leaks and ${checkErrors} check errors`,
  );
}

async function runLarge(options: FormatSuiteOptions, size: number): Promise<void> {
  const random = seededRandom(options.seed ?? 1);
  const subject = await options.create(size, undefined);
  let { disk } = subject;
  try {
    const bytes = noise(random, 3 * 512);
    const offsets = [0, Math.floor(size / 2), size - bytes.length];
    for (const offset of offsets) await disk.write(offset, bytes);
    await disk.close();
    await requireSound(subject);
    disk = await subject.reopen(true);
    ensure(disk.size === size, `the disk has ${disk.size} bytes, expected ${size}`);
    for (const offset of offsets) {
      const found = new Uint8Array(bytes.length);
      await disk.read(offset, found);
      ensure(
        found.every((byte, i) => byte === bytes[i]),
        `what was written at ${offset} is not there`,
      );
    }
  } finally {
    await disk.close();
    await subject.dispose?.();
  }
}
