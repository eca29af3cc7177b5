/** Shared memory of batches: reuse, bound, order. */
import { describe, expect, it } from 'vitest';
import { BlockError } from '../../../src/base/errors.ts';
import { SharedSlots } from '../../../src/platform/node/slots.ts';

const MiB = 1024 * 1024;

describe('SharedSlots', () => {
  it('gives shared memory of at least the length asked for, and gives it again', async () => {
    const slots = new SharedSlots(8 * MiB);
    const slot = await slots.take(700_000);
    expect(slot.length).toBeGreaterThanOrEqual(700_000);
    expect(slot.buffer).toBeInstanceOf(SharedArrayBuffer);
    slots.give(slot);
    expect(await slots.take(600_000)).toBe(slot);
    expect(slots.bytes).toBe(slot.length);
  });

  it('is immediate while there is room, and never holds more than its limit', async () => {
    const slots = new SharedSlots(4 * MiB);
    const taken: Uint8Array[] = [];
    for (let i = 0; i < 4; i++) {
      const slot = slots.take(MiB);
      expect(slot).toBeInstanceOf(Uint8Array);
      taken.push(await slot);
    }
    const fifth = slots.take(MiB);
    expect(fifth).toBeInstanceOf(Promise);
    expect(slots.bytes).toBe(4 * MiB);
    slots.give(taken[2] as Uint8Array);
    expect(await fifth).toBe(taken[2]);
    expect(slots.bytes).toBe(4 * MiB);
  });

  it('drops idle slots that are too small to make room for larger ones', async () => {
    const slots = new SharedSlots(4 * MiB);
    const small = await Promise.all([1, 2, 3, 4].map(() => slots.take(MiB)));
    for (const slot of small) slots.give(slot);
    expect((await slots.take(3 * MiB)).length).toBeGreaterThanOrEqual(3 * MiB);
    expect(slots.bytes).toBeLessThanOrEqual(4 * MiB);
  });

  it('serves in order of arrival: a small request does not pass a large one that waits', async () => {
    const slots = new SharedSlots(8 * MiB);
    const first = await slots.take(3 * MiB);
    const order: string[] = [];
    const large = Promise.resolve(slots.take(8 * MiB)).then((slot) => {
      order.push('large');
      slots.give(slot);
    });
    const small = Promise.resolve(slots.take(1024)).then((slot) => {
      order.push('small');
      slots.give(slot);
    });
    slots.give(first);
    await Promise.all([large, small]);
    expect(order).toEqual(['large', 'small']);
  });

  it('lends more than the limit to one request that needs it, alone, and keeps none of it', async () => {
    const slots = new SharedSlots(4 * MiB);
    const small = await slots.take(1024);
    const huge = slots.take(9 * MiB);
    expect(huge).toBeInstanceOf(Promise);
    slots.give(small);
    const slot = await huge;
    expect(slot.length).toBeGreaterThanOrEqual(9 * MiB);
    expect(slots.take(1024)).toBeInstanceOf(Promise);
    slots.give(slot);
    await Promise.resolve();
    expect(slots.bytes).toBeLessThanOrEqual(4 * MiB);
  });

  it('refuses those who wait when it is closed', async () => {
    const slots = new SharedSlots(MiB);
    await slots.take(MiB);
    const waiting = slots.take(MiB);
    slots.close(new BlockError('CLOSED', 'compression is closed'));
    await expect(waiting).rejects.toMatchObject({ code: 'CLOSED' });
  });
});
