import { describe, expect, it } from 'vitest';
import { FlushGate } from '../../src/core/flush-gate.ts';
import { ended, ManualStore } from '../support/manual-store.ts';

function rig(): { store: ManualStore; gate: FlushGate } {
  const store = new ManualStore();
  store.hold.add('flush');
  return { store, gate: new FlushGate(store) };
}

describe('a flush gate', () => {
  it('does not count a flush that was already running when the ticket was taken', async () => {
    const { store, gate } = rig();
    const running = gate.flush();
    const ticket = gate.ticket();
    const settled = gate.settle(ticket);
    expect(store.held).toHaveLength(2);
    store.held[0]?.finish();
    await running;
    expect(gate.settled(ticket)).toBe(false);
    store.held[0]?.finish();
    await settled;
    expect(gate.settled(ticket)).toBe(true);
    expect(gate.settle(ticket)).toBeUndefined();
  });

  it('shares one flush between all tickets taken before it', async () => {
    const { store, gate } = rig();
    const ticket = gate.ticket();
    const all = [gate.settle(ticket), gate.settle(gate.ticket() - 1), gate.settle(ticket)];
    expect(store.held).toHaveLength(1);
    await store.drain();
    await Promise.all(all);
  });

  it('a later flush that ends first counts for earlier tickets', async () => {
    const { store, gate } = rig();
    const ticket = gate.ticket();
    const first = gate.flush();
    const second = gate.flush();
    store.held[1]?.finish();
    await second;
    expect(gate.settled(ticket)).toBe(true);
    store.held[0]?.finish();
    await first;
    expect(gate.settled(ticket + 1)).toBe(true);
  });

  it('tells a failed flush to everybody who waited for it, and flushes again for the next', async () => {
    const { store, gate } = rig();
    const ticket = gate.ticket();
    const both = [Promise.resolve(gate.settle(ticket)), Promise.resolve(gate.settle(ticket))];
    for (const promise of both) promise.catch(() => undefined);
    store.held[0]?.fail();
    for (const promise of both) await expect(promise).rejects.toThrow('flush failed');
    expect(gate.settled(ticket)).toBe(false);
    const again = gate.settle(ticket);
    expect(await ended(again)).toBe(false);
    await store.drain();
    expect(gate.settled(ticket)).toBe(true);
  });

  it('is done at once where the store is, and throws what the store throws', () => {
    const { store, gate } = rig();
    store.hold.clear();
    const ticket = gate.ticket();
    expect(gate.settle(ticket)).toBeUndefined();
    expect(gate.settled(ticket)).toBe(true);
    store.failing.add('flush');
    const next = gate.ticket();
    expect(() => gate.settle(next)).toThrow('flush fails');
    expect(gate.settled(next)).toBe(false);
  });

  it('never flushes when nobody asked for durability', () => {
    const store = new ManualStore();
    const gate = new FlushGate(store, true);
    expect(gate.settle(gate.ticket())).toBeUndefined();
    expect(gate.flush()).toBeUndefined();
    expect(store.log).toEqual([]);
  });
});
