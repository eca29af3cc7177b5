/** The fuzzer and the real qemu-img: what it makes is sound to both, and qemu-img's commands can be run on what it damages. */
import { mkdtempSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { execute } from '../../src/cli/fuzz/execute.ts';
import { ownCommands } from '../../src/cli/fuzz/own-commands.ts';
import { fillingOf, layOut } from '../../src/cli/fuzz/workshop.ts';
import { ALL_FORMATS } from '../../src/formats/all.ts';
import { ALL_FUZZ_FORMATS } from '../../src/formats/all-fuzz.ts';
import { makeSpecimen } from '../../src/tools/fuzz/specimen.ts';
import { fuzz } from '../cli/fuzz/bench.ts';
import { scratch } from '../support/scratch.ts';
import { scaled } from '../support/seeds.ts';
import { hasQemuImg } from './transcript-harness.ts';

const path = scratch();
const LIMITS = { seconds: 120, memory: 2 ** 31, growth: 2 ** 28 };
const SEEDS = scaled(10);

describe.skipIf(!hasQemuImg() && process.env['CI'] === undefined)('the fuzzer and the real qemu-img', () => {
  it.each(['qcow2', 'luks'])('%s: images are sound before they are damaged', { timeout: 600_000 }, async (name) => {
    const format = ALL_FUZZ_FORMATS.find(({ driver }) => driver.name === name);
    if (format === undefined) throw new Error(name);
    for (let seed = 1; seed <= SEEDS; seed++) {
      const specimen = await makeSpecimen(format, seed, ALL_FORMATS);
      const directory = mkdtempSync(path('sound-'));
      layOut(directory, specimen.files);
      const { open, object, image, output } = fillingOf(directory, specimen, []);
      const run = async (...args: string[]): Promise<unknown> => {
        const { status, stderr } = await execute(
          ['qemu-img', ...args],
          directory,
          LIMITS,
          new AbortController().signal,
        );
        return { seed, args: args[0], status, stderr };
      };
      const fine = (verb: string) => ({ seed, args: verb, status: 0, stderr: '' });
      if (name === 'qcow2') expect(await run('check', '-q', '-f', name, image)).toEqual(fine('check'));
      expect(await run('convert', '--object', object, '--image-opts', '-O', 'raw', open, output)).toEqual(
        fine('convert'),
      );
    }
  });

  it('run its commands on damaged images', { timeout: 600_000 }, async () => {
    for (const format of ['qcow2', 'luks']) {
      const changes = {
        format,
        execute,
        commands: ownCommands('qemu-img'),
        picked: 4,
        count: 4,
        limits: LIMITS,
        lanes: 2,
      };
      const { images, runs } = await fuzz(path('.'), changes);
      expect({ images, runs }).toEqual({ images: 4, runs: 16 });
    }
  });
});
