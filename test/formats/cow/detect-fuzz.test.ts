/** Random cow files in every layout, many of them aimed at the spots where one layout can be taken for another. None may be taken for what it is
 *  not, and only those may be refused as ambiguous that the format's known failure cases list.
 *  COWDISK_SEED takes another seed; seed, number and description of a failed case are part of the failure. */
import { describe, expect, it } from 'vitest';
import { isBlockError } from '../../../src/base/errors.ts';
import { type CowDetection, detectCow } from '../../../src/formats/cow/detect.ts';
import type { MemoryStore } from '../../../src/storage/memory.ts';
import { type Aim, type CowCase, CowCaseMaker, isRight, mayBeAmbiguous } from '../../support/cow-cases.ts';
import { cowImage, hybridImage } from '../../support/cow-image.ts';
import { SEED_TIMEOUT } from '../../support/seeds.ts';

const LONG = process.env['COWDISK_LONG'] === '1';
const SEED = Number(process.env['COWDISK_SEED'] ?? 1);
const CASES = LONG ? 20_000 : 2_000;
function make({ spec, memory }: CowCase): MemoryStore {
  return memory === undefined ? cowImage(spec) : hybridImage(spec, spec.backingName as string, memory);
}

async function detect(one: CowCase): Promise<CowDetection> {
  const file = make(one);
  const { backingName, size } = one.spec;
  const head = new Uint8Array(Math.min(8192, file.size));
  void file.read(0, head);
  return await detectCow({
    name: 'fuzz.cow',
    head,
    fileSize: file.size,
    file,
    backingStatus: async (name) => {
      if (one.backing === 'unknown' || name !== backingName) return undefined;
      return { size: one.backing === 'changed' ? size + 1 : size };
    },
  });
}

/** What a failure tells. */
function describeCase(one: CowCase): string {
  const present = [...(one.spec.present ?? [])];
  return JSON.stringify({ ...one, spec: { ...one.spec, present } }, (_, value) =>
    typeof value === 'function' ? 'function' : value,
  );
}

describe('detection', () => {
  it(`takes no layout for another, and refuses only what cannot be told (${CASES} images)`, {
    timeout: SEED_TIMEOUT,
  }, async () => {
    const failures: string[] = [];
    const reasons = new Map<string, number>();
    const ambiguous = new Map<Aim, number>();
    const count = <K>(counts: Map<K, number>, key: K) => counts.set(key, (counts.get(key) ?? 0) + 1);
    for (let number = 0; number < CASES && failures.length < 5; number++) {
      const one = new CowCaseMaker(SEED * 1_000_003 + number).next();
      const fail = (what: string) =>
        failures.push(`COWDISK_SEED=${SEED}, case ${number}: ${what}\n  ${describeCase(one)}`);
      try {
        const { layout, why, candidates } = await detect(one);
        if (!isRight(one, layout)) fail(`taken for ${layout}, because ${why}: ${JSON.stringify(candidates)}`);
        count(reasons, why);
      } catch (error) {
        if (!isBlockError(error) || error.reason !== 'cow.ambiguous') fail(String(error));
        else if (!mayBeAmbiguous(one)) fail(`must not be ambiguous: ${error.message}`);
        else count(ambiguous, one.aim);
      }
    }
    expect(failures).toEqual([]);
    // every way of telling has been used, and every known failure has been met
    expect([...reasons.keys()].sort()).toEqual([
      'its backing file exists with the recorded size',
      'its disk is not empty',
      'its disk is the smallest',
      'the name of its backing file is filled up as that writer does',
      'the only layout that fits the file',
      'the recorded time of its backing file is plausible',
    ]);
    expect(new Set([...ambiguous.keys(), 'nothing'])).toEqual(
      new Set(['QEMU as UML', 'hybrid', 'shift by 4', 'v3 as hybrid', 'nothing']),
    );
    expect([...ambiguous.values()].reduce((sum, times) => sum + times, 0)).toBeLessThan(CASES / 10);
  });
});
