/** The check of damaged images against the real qemu-img check: counters, lines and exit status must be the same, and what is repaired as qemu-img
 *  repairs it must be the same, too. (What is repaired beyond that: qcow2-repair.test.ts.) */
import { copyFileSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import type { CheckFix } from '../../src/core/format.ts';
import { checkImageTables } from '../../src/formats/qcow2/check.ts';
import { readHeader } from '../../src/formats/qcow2/header.ts';
import { describeWithQemu, scratchDirectory, storeOf } from '../formats/qcow2/support.ts';
import { COPIED, DAMAGES, type Damage, Healthy, ourCheck, Patient, theirCheck } from './qcow2-damages.ts';

/** Undamaged images of every kind, for random damage. */
const BASES = DAMAGES.filter(({ name }) => name.startsWith('nothing') && !name.includes('bitmaps'));

/** Numbers below a bound, the same for the same seed. */
function sequence(seed: number): (bound: number) => number {
  let state = seed;
  return (bound) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * bound);
  };
}

describeWithQemu('check', () => {
  const directory = scratchDirectory();
  const path = (name: string) => join(directory, name);
  const healthy = new Healthy(directory);

  for (const testCase of DAMAGES.filter(({ repairOnly }) => repairOnly !== true)) {
    it.each(testCase.fixes ?? (['none', 'leaks', 'all'] as const))(
      `of ${testCase.name} with fix %s is qemu-img's`,
      async (fix) => {
        const patient = new Patient(readFileSync(path(healthy.image(testCase))));
        testCase.damage(patient);
        writeFileSync(path('theirs.qcow2'), patient.bytes);
        copyFileSync(path('theirs.qcow2'), path('ours.qcow2'));
        const theirs = theirCheck(directory, 'theirs.qcow2', fix);
        const ours = await ourCheck(path('ours.qcow2'), fix, true);
        if (fix === 'all' && testCase.qemuGivesUp === true) {
          expect(theirs.status).toBe(1);
          expect(ours.status).toBe(0);
          expect(theirCheck(directory, 'ours.qcow2', 'none')).toMatchObject({ status: 0, lines: [] });
          return;
        }
        expect(ours).toEqual(theirs);
        if (fix === 'none') return;
        // and what was repaired is repaired in qemu-img's eyes
        const again = {
          theirs: theirCheck(directory, 'theirs.qcow2', 'none'),
          ours: theirCheck(directory, 'ours.qcow2', 'none'),
        };
        expect({ ...again.ours }).toEqual({ ...again.theirs });
        expect(await ourCheck(path('ours.qcow2'), 'none', true)).toEqual(again.ours);
      },
    );
  }

  // refcount table and snapshot table are left out: there qemu-img gives up where this check repairs
  it.each(Array.from({ length: 30 }, (_, index) => index + 1))(
    "of random damage, seed %d, is qemu-img's",
    async (seed) => {
      const random = sequence(seed);
      const testCase = BASES[random(BASES.length)] as Damage;
      const patient = new Patient(readFileSync(path(healthy.image(testCase))));
      const places: readonly [start: number, length: number][] = [
        [patient.refcountBlock, 64],
        [patient.l1, 8],
        [patient.l2(0), 160],
      ];
      for (let hits = 1 + random(3); hits > 0; hits--) {
        const [start, length] = places[random(places.length)] as [number, number];
        const at = start + random(length);
        if (random(2) === 0) patient.bytes.writeUInt8(patient.bytes.readUInt8(at) ^ (1 << random(8)), at);
        else patient.setU64(at - (at % 8), BigInt(random(40) * patient.clusterSize) | (random(2) === 0 ? COPIED : 0n));
      }
      const fix = (['none', 'leaks', 'all'] as const)[random(3)] as CheckFix;
      writeFileSync(path('theirs.qcow2'), patient.bytes);
      copyFileSync(path('theirs.qcow2'), path('ours.qcow2'));
      const theirs = theirCheck(directory, 'theirs.qcow2', fix);
      expect(await ourCheck(path('ours.qcow2'), fix, true)).toEqual(theirs);
    },
  );

  it('ends with ABORTED when the signal fires', async () => {
    const store = await storeOf(readFileSync(path(healthy.image(DAMAGES[0] as Damage))));
    const header = await readHeader(store, 'test', { readOnly: true, forCheck: true });
    const controller = new AbortController();
    controller.abort();
    const checking = checkImageTables({ file: store, header, name: 'test' }, { signal: controller.signal });
    await expect(checking).rejects.toMatchObject({ code: 'ABORTED' });
  });
});
