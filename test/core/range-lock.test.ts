import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { RangeLock, type RangeTicket } from '../../src/core/range-lock.ts';
import { ended } from '../support/manual-store.ts';

describe('a range lock', () => {
  it('lets disjoint and touching ranges pass at once, without a promise', () => {
    const lock = new RangeLock();
    const tickets = [lock.acquire(0, 10), lock.acquire(10, 20), lock.acquire(30, 40)];
    expect(tickets.map((ticket) => ticket.waiting)).toEqual([undefined, undefined, undefined]);
    expect(lock.count).toBe(3);
    for (const ticket of tickets) lock.release(ticket);
    expect(lock.count).toBe(0);
  });

  it('makes an overlapping range wait for all earlier ones that it overlaps', async () => {
    const lock = new RangeLock();
    const first = lock.acquire(0, 10);
    const second = lock.acquire(20, 30);
    const both = lock.acquire(5, 25);
    lock.release(first);
    expect(await ended(both.waiting)).toBe(false);
    lock.release(second);
    expect(await ended(both.waiting)).toBe(true);
  });

  it('keeps a later range behind an earlier one that waits itself, so that nobody starves', async () => {
    const lock = new RangeLock();
    const held = lock.acquire(0, 10);
    const wide = lock.acquire(0, 100);
    const late = lock.acquire(50, 60);
    expect(await ended(late.waiting)).toBe(false);
    lock.release(held);
    expect(await ended(wide.waiting)).toBe(true);
    expect(await ended(late.waiting)).toBe(false);
    lock.release(wide);
    expect(await ended(late.waiting)).toBe(true);
  });

  it('refuses a second release instead of releasing somebody else', () => {
    const lock = new RangeLock();
    const first = lock.acquire(0, 10);
    lock.acquire(0, 10);
    lock.release(first);
    expect(() => lock.release(first)).toThrow('released twice');
    expect(lock.count).toBe(1);
  });

  it('lets everybody pass when it is switched off', () => {
    const lock = new RangeLock(false);
    const tickets = [lock.acquire(0, 10), lock.acquire(0, 10)];
    expect(tickets.map((ticket) => ticket.waiting)).toEqual([undefined, undefined]);
    for (const ticket of tickets) lock.release(ticket);
    expect(lock.count).toBe(0);
  });

  it('never lets two overlapping ranges be held at once, serves them in order, and serves all (any sequence)', async () => {
    const step = fc.record({ start: fc.nat(20), length: fc.integer({ min: 1, max: 8 }), releases: fc.nat(3) });
    await fc.assert(
      fc.asyncProperty(fc.array(step, { minLength: 1, maxLength: 30 }), async (steps) => {
        const lock = new RangeLock();
        const order: RangeTicket[] = [];
        const held = new Set<RangeTicket>();
        const enter = (ticket: RangeTicket): void => {
          for (const other of held) expect(other.start < ticket.end && ticket.start < other.end).toBe(false);
          const earlier = order.slice(0, order.indexOf(ticket));
          const overtaken = earlier.filter((other) => other.start < ticket.end && ticket.start < other.end);
          expect(overtaken).toEqual([]);
          held.add(ticket);
        };
        const leave = (ticket: RangeTicket): void => {
          held.delete(ticket);
          order.splice(order.indexOf(ticket), 1);
          lock.release(ticket);
        };
        for (const { start, length, releases } of steps) {
          const ticket = lock.acquire(start, start + length);
          order.push(ticket);
          if (ticket.waiting === undefined) enter(ticket);
          else void ticket.waiting.then(() => enter(ticket));
          for (let i = 0; i < releases; i++) {
            const [oldest] = held;
            if (oldest !== undefined) leave(oldest);
            await Promise.resolve();
          }
        }
        for (let i = 0; i < 100 && order.length > 0; i++) {
          for (const ticket of [...held]) leave(ticket);
          await Promise.resolve();
        }
        expect(order).toEqual([]);
        expect(lock.count).toBe(0);
      }),
      { numRuns: 200 },
    );
  });
});
