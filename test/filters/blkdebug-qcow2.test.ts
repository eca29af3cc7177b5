/** Each event of each path of qcow2 fails with EIO and ENOSPC, once and for good: the caller is told the error, the image stays sound, and a second
 *  try succeeds. A tenth of it here, everything with COWDISK_LONG=1. */
import { describe, expect, it } from 'vitest';
import { type Fault, underFault, undisturbed } from '../support/qcow2-faults.ts';
import { SEED_TIMEOUT, scaled } from '../support/seeds.ts';
import { PATHS } from './blkdebug-qcow2-paths.ts';

const LONG = scaled(1) > 1;
/** Of one event of one path. */
const MODES: readonly Omit<Fault, 'event' | 'nth'>[] = ([5, 28] as const).flatMap((errno) =>
  [true, false].flatMap((once) =>
    (['any', 'flush'] as const).flatMap((ioType) =>
      (['again', 'close', 'other'] as const).map((next) => ({ errno, once, ioType, next })),
    ),
  ),
);
/** Later ones of the same event, in the long run. */
const LATER = 6;

describe.each(Object.entries(PATHS))('%s', (_, path) => {
  it('raises its events', async () => {
    const { events } = await undisturbed(path);
    expect(events).toEqual(path.events);
    expect(events.length).toBeGreaterThan(0);
  });

  it('survives every fault at them', { timeout: SEED_TIMEOUT }, async () => {
    const calm = await undisturbed(path);
    let turn = 0;
    let hits = 0;
    for (const event of calm.events) {
      const modes = LONG ? MODES : [MODES[turn++ % MODES.length] as (typeof MODES)[number]];
      for (const mode of modes) {
        for (let nth = 0; nth < (LONG ? LATER : 1); nth++) {
          if (!(await underFault(path, calm, { ...mode, event, nth }))) break;
          hits++;
        }
      }
    }
    if (path.asksNothing === true) expect(hits).toBe(0);
    else expect(hits).toBeGreaterThan(0);
  });
});

describe('a flush that fails right after the switch of a header', () => {
  it.each([
    ['a larger L1 table', 'l1_grow_activate_table'],
    ['saving the state of a machine', 'l1_grow_activate_table'],
    ['a larger refcount table', 'refblock_alloc_switch_table'],
  ])('%s: the old header is put back, and nothing written later is lost', async (name, event) => {
    const path = PATHS[name] as (typeof PATHS)[string];
    const fault = { event, nth: 0, errno: 5, once: true, ioType: 'flush', next: 'other' } as const;
    expect(await underFault(path, await undisturbed(path), fault)).toBe(true);
  });
});
