/** This program stands its own fuzzer. In this process: a process for each command would take ten times as long. */
import { describe, expect, it } from 'vitest';
import { ALL_FUZZ_FORMATS } from '../../../src/formats/all-fuzz.ts';
import { scratch } from '../../support/scratch.ts';
import { fuzz } from './bench.ts';

const LONG = process.env['COWDISK_LONG'] === '1';
const SEED = Number(process.env['COWDISK_SEED'] ?? 1);
const COUNT = LONG ? 2000 : 20;
/** Commands for each image. */
const PICKED = LONG ? 4 : 1;
const path = scratch();

describe('the commands of this program', () => {
  it.each(ALL_FUZZ_FORMATS.map(({ driver }) => driver.name))(
    `stand %s images of ${COUNT} seeds`,
    { timeout: LONG ? 3_600_000 : 300_000 },
    async (format) => {
      const { findings, images, runs } = await fuzz(path('.'), {
        format,
        firstSeed: SEED,
        count: COUNT,
        picked: PICKED,
      });
      const told = findings.map(({ seed, command, verdict }) => `seed ${seed}: ${command.text}: ${verdict.reason}`);
      expect(told).toEqual([]);
      expect({ images, runs }).toEqual({ images: COUNT, runs: PICKED * COUNT });
    },
  );
});
