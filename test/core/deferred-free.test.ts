/** The three conditions under which dropped space is used again, one by one, on the test format. */
import { describe, expect, it } from 'vitest';
import { type MappedNode, mappedNode } from '../../src/core/mapped-node.ts';
import { ALL_RULES, type SafetyRules } from '../../src/core/safety.ts';
import { CacheBudget } from '../../src/core/table-cache.ts';
import { BitmapNode } from '../support/bitmap-format.ts';
import { createBitmapImage } from '../support/bitmap-layout.ts';
import { ended, ManualStore, turn } from '../support/manual-store.ts';

const UNIT = 512;

interface Rig {
  readonly store: ManualStore;
  readonly disk: MappedNode;
  /** First data cluster's offset. */
  readonly data: number;
}

/** A disk of 8 units whose first unit lies in the first data cluster; nothing waits to be flushed. */
async function rig(rules: SafetyRules = ALL_RULES): Promise<Rig> {
  const image = createBitmapImage(8 * UNIT, { unit: UNIT });
  const store = new ManualStore(0, 'image');
  store.bytes = image;
  const node = await BitmapNode.open(store, { rules, budget: new CacheBudget(65536) });
  const disk = mappedNode(node, { name: 'disk', rules });
  await disk.write(0, new Uint8Array(UNIT).fill(1));
  await disk.flush();
  store.log = [];
  return { store, disk, data: image.length };
}

const writesAt = (store: ManualStore, offset: number): number =>
  store.log.filter((line) => line === `write ${offset}+${UNIT}`).length;

describe('a dropped cluster', () => {
  it('is not used again while a read that began before the drop still runs', async () => {
    const { store, disk, data } = await rig();
    const into = new Uint8Array(UNIT);
    store.hold.add('read');
    const reading = disk.read(0, into);
    await disk.discard(0, UNIT);
    await disk.flush();
    await disk.write(2 * UNIT, new Uint8Array(UNIT).fill(2));
    expect(writesAt(store, data)).toBe(0);
    await store.drain();
    await reading;
    expect(into.every((byte) => byte === 1)).toBe(true);
    await disk.write(4 * UNIT, new Uint8Array(UNIT).fill(4));
    expect(writesAt(store, data)).toBe(1);
  });

  it('is not used again while a write in place that began before the drop still runs', async () => {
    const { store, disk } = await rig();
    store.hold.add('write');
    const late = disk.write(0, new Uint8Array(UNIT).fill(9));
    const [held] = store.of('write');
    store.hold.clear();
    await disk.discard(0, UNIT);
    await disk.flush();
    await disk.write(2 * UNIT, new Uint8Array(UNIT).fill(2));
    held?.finish();
    await late;
    const into = new Uint8Array(UNIT);
    await disk.read(2 * UNIT, into);
    expect(into.every((byte) => byte === 2)).toBe(true);
  });

  it('is not used again before the drop is durable; what needs space flushes first', async () => {
    const { store, disk, data } = await rig();
    await disk.discard(0, UNIT);
    await disk.write(2 * UNIT, new Uint8Array(UNIT).fill(2));
    const reuse = store.log.indexOf(`write ${data}+${UNIT}`);
    expect(reuse).toBeGreaterThan(store.log.indexOf('flush 0+0'));
    expect(store.log.indexOf('flush 0+0')).toBeGreaterThanOrEqual(0);
  });

  it('is not used again before its host discard has ended', async () => {
    const { store, disk, data } = await rig();
    await disk.discard(0, UNIT);
    await disk.flush();
    store.hold.add('discard');
    const writing = disk.write(2 * UNIT, new Uint8Array(UNIT).fill(2));
    await turn();
    expect(store.of('discard').map(({ offset, length }) => [offset, length])).toEqual([[data, UNIT]]);
    expect(await ended(writing)).toBe(false);
    await store.drain();
    await writing;
    const into = new Uint8Array(UNIT);
    await disk.read(2 * UNIT, into);
    expect(into.every((byte) => byte === 2)).toBe(true);
  });

  it('is used again at once, under a running read, when the rule is off', async () => {
    const { store, disk } = await rig({ ...ALL_RULES, deferredFree: false });
    const into = new Uint8Array(UNIT);
    store.hold.add('read');
    const reading = disk.read(0, into);
    await disk.discard(0, UNIT);
    await disk.write(2 * UNIT, new Uint8Array(UNIT).fill(2));
    await store.drain();
    await reading;
    expect(into[0]).toBe(2);
  });
});
