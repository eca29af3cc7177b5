import { describe, expect, it } from 'vitest';
import type { Pending } from '../../src/base/async.ts';
import type { DataTransform } from '../../src/core/format.ts';
import { type MappedNode, mappedNode } from '../../src/core/mapped-node.ts';
import { ALL_RULES, type SafetyRules } from '../../src/core/safety.ts';
import { FakeFormat, type FakeOptions, hostOf, UNIT } from '../support/fake-format.ts';
import { ended, ManualStore, turn } from '../support/manual-store.ts';

interface Rig {
  readonly format: FakeFormat;
  readonly store: ManualStore;
  readonly disk: MappedNode;
}

function rig(options: FakeOptions & { rules?: SafetyRules } = {}): Rig {
  const format = new FakeFormat(options);
  const disk = mappedNode(format, { name: 'disk', ...(options.rules === undefined ? {} : { rules: options.rules }) });
  return { format, store: format.store, disk };
}

const bytes = (length: number, byte = 9): Uint8Array => new Uint8Array(length).fill(byte);

/** As a promise, whether it throws or rejects. */
async function attempt(start: () => Pending): Promise<void> {
  await start();
}

describe('writing over writable data', () => {
  it('goes straight through: no plan, no lock, no promise', () => {
    const { format, store, disk } = rig();
    format.allocate(0, 4);
    expect(disk.write(100, bytes(2 * UNIT))).toBeUndefined();
    expect(store.log).toEqual([`write ${hostOf(0) + 100}+${2 * UNIT}`]);
    expect(format.called('prepare')).toEqual([]);
    expect(disk.epochs.running).toBe(0);
  });

  it('is checked for overlaps first, and not done when the check refuses', async () => {
    const { format, store, disk } = rig();
    format.allocate(0, 1);
    format.hooks.check = () => {
      throw new Error('hits metadata');
    };
    await expect(attempt(() => disk.write(10, bytes(20)))).rejects.toThrow('hits metadata');
    expect(format.called('check')).toEqual([`check 0 ${hostOf(0) + 10}+20`]);
    format.hooks.check = () => Promise.reject(new Error('hits metadata later'));
    await expect(attempt(() => disk.write(10, bytes(20)))).rejects.toThrow('hits metadata later');
    format.hooks.check = () => turn();
    await disk.write(10, bytes(20));
    expect(store.log).toEqual([`write ${hostOf(0) + 10}+20`]);
  });

  it('does not wait for a plan under way on the same range', async () => {
    const { format, store, disk } = rig();
    format.allocate(1, 1);
    store.hold.add('write');
    const allocating = disk.write(0, bytes(UNIT + 10));
    await turn();
    store.hold.clear();
    expect(disk.write(UNIT + 500, bytes(10))).toBeUndefined();
    await store.drain();
    await allocating;
  });
});

describe('an allocating write', () => {
  it('writes head, guest and tail as one, and publishes after that', async () => {
    const base = new ManualStore(8 * UNIT, 'base');
    base.bytes.fill(7);
    const { format, store, disk } = rig({ backing: base });
    store.hold.add('write');
    const writing = disk.write(UNIT + 100, bytes(200));
    await turn();
    expect(store.held.map(({ offset, length }) => [offset, length])).toEqual([[hostOf(1), UNIT]]);
    expect(format.called('commit')).toEqual([]);
    await store.drain();
    await writing;
    expect(format.calls.slice(-1)).toEqual([`commit ${UNIT + 100}+200`]);
    const unit = store.bytes.subarray(hostOf(1), hostOf(2));
    expect([unit[0], unit[99], unit[100], unit[299], unit[300], unit[1023]]).toEqual([7, 7, 9, 9, 7, 7]);
    expect(base.log).toEqual([`read ${UNIT}+100`, `read ${UNIT + 300}+724`]);
    const reads = ['cow_read', 'read_backing_aio', 'cow_read', 'read_backing_aio'];
    expect(store.events).toEqual([...reads, 'write_aio', 'cow_write']);
  });

  it('uses one vector where the store takes one', async () => {
    const { store, disk } = rig();
    const vectors: number[][] = [];
    (store as { writev?: unknown }).writev = (offset: number, parts: readonly Uint8Array[]) => {
      vectors.push([offset, ...parts.map((piece) => piece.length)]);
      return undefined;
    };
    await disk.write(UNIT + 100, bytes(200));
    expect(vectors).toEqual([[hostOf(1), 100, 200, 724]]);
    expect(store.count('write')).toBe(0);
  });

  it('writes whole units as they are, without a copy', async () => {
    const { store, disk } = rig();
    await disk.write(UNIT, bytes(2 * UNIT));
    expect(store.log).toEqual([`write ${hostOf(1)}+${2 * UNIT}`]);
    expect(store.events).toEqual(['write_aio']);
  });

  it('fills edges from its own mapping: old clusters, encoded units and zeros, not only the backing file', async () => {
    const base = new ManualStore(8 * UNIT, 'base');
    base.bytes.fill(7);
    const { format, store, disk } = rig({ backing: base });
    format.units[1] = { kind: 'data', host: hostOf(6), writable: false };
    store.bytes.fill(66, hostOf(6), hostOf(7));
    format.mark(2, 'encoded', hostOf(7));
    format.mark(3, 'zero');
    await disk.write(UNIT + 1000, bytes(10));
    expect([store.bytes[hostOf(1) + 999], store.bytes[hostOf(1) + 1010]]).toEqual([66, 66]);
    await disk.write(2 * UNIT + 1000, bytes(10));
    expect([store.bytes[hostOf(2) + 999], store.bytes[hostOf(2) + 1010]]).toEqual([2, 2]);
    await disk.write(3 * UNIT + 1000, bytes(10));
    expect([store.bytes[hostOf(3) + 999], store.bytes[hostOf(3) + 1010]]).toEqual([0, 0]);
    expect(base.log).toEqual([]);
  });

  it('fills edges wrongly when that rule is off', async () => {
    const { format, store, disk } = rig({ rules: { ...ALL_RULES, edgeFromOwnMapping: false } });
    format.units[1] = { kind: 'data', host: hostOf(6), writable: false };
    store.bytes.fill(66, hostOf(6), hostOf(7));
    await disk.write(UNIT + 1000, bytes(10));
    expect(store.bytes[hostOf(1) + 999]).toBe(0);
  });

  it('reads nothing for edges that are zero', async () => {
    const { format, store, disk } = rig();
    format.mark(1, 'zero');
    await disk.write(UNIT + 100, bytes(200));
    await disk.write(2 * UNIT + 100, bytes(200));
    expect(store.count('read')).toBe(0);
  });

  it('fills the tail past the end of the disk with zeros', async () => {
    const { store, disk } = rig({ size: 8 * UNIT - 512 });
    store.bytes.fill(255, hostOf(7), hostOf(8));
    await disk.write(7 * UNIT, bytes(100));
    const unit = store.bytes.subarray(hostOf(7), hostOf(8));
    expect([unit[99], unit[100], unit[1023]]).toEqual([9, 0, 0]);
  });

  it('goes on with further plans until everything is written', async () => {
    const { format, store, disk } = rig();
    format.planBytes = 700;
    await disk.write(10, bytes(2000));
    expect(format.called('commit')).toEqual(['commit 10+700', 'commit 1024+700']);
    // What the first plans have published is written in place.
    expect(store.bytes.subarray(hostOf(0) + 10, hostOf(0) + 1024).every((byte) => byte === 9)).toBe(true);
    const back = new Uint8Array(2000);
    await disk.read(10, back);
    expect(back.every((byte) => byte === 9)).toBe(true);
  });

  it('gives the plan back when its data cannot be written, and tells why (Q-104)', async () => {
    const { format, store, disk } = rig();
    store.failing.add('write');
    await expect(attempt(() => disk.write(100, bytes(10)))).rejects.toThrow('write fails');
    expect(format.called('abort')).toEqual(['abort 100+10']);
    expect(format.called('commit')).toEqual([]);
    store.failing.clear();
    await disk.write(100, bytes(10));
    expect(format.called('commit')).toEqual(['commit 100+10']);
  });

  it('gives the plan back when an edge cannot be read or the overlap check refuses', async () => {
    const { format, store, disk } = rig();
    format.allocate(0, 1, false);
    store.failing.add('read');
    await expect(attempt(() => disk.write(100, bytes(10)))).rejects.toThrow('read fails');
    store.failing.clear();
    format.hooks.check = () => {
      throw new Error('hits metadata');
    };
    await expect(attempt(() => disk.write(100, bytes(10)))).rejects.toThrow('hits metadata');
    expect(format.called('check')).toEqual([`check 0 ${hostOf(0)}+${UNIT}`]);
    expect(format.called('abort')).toHaveLength(2);
    expect(store.count('write')).toBe(0);
  });

  it('tells the failure of the write when giving the plan back fails as well', async () => {
    const { format, store, disk } = rig();
    store.failing.add('write');
    format.hooks.abort = () => Promise.reject(new Error('abort failed'));
    await expect(attempt(() => disk.write(100, bytes(10)))).rejects.toThrow('write fails');
  });

  it('never gives a plan back whose commit failed (Q-104)', async () => {
    const { format, disk } = rig();
    format.hooks.commit = () => Promise.reject(new Error('commit failed'));
    await expect(attempt(() => disk.write(100, bytes(10)))).rejects.toThrow('commit failed');
    expect(format.called('abort')).toEqual([]);
  });

  it('releases its range after every failure', async () => {
    const { format, disk } = rig();
    format.hooks.prepare = () => Promise.reject(new Error('no space'));
    await expect(attempt(() => disk.write(100, bytes(10)))).rejects.toThrow('no space');
    format.hooks = {};
    await disk.write(100, bytes(10));
    expect(format.called('commit')).toHaveLength(1);
    expect(disk.epochs.running).toBe(0);
  });

  it.each([
    ['writes nothing', { length: 0 }],
    ['writes more than was asked', { length: 11 }],
    ['begins elsewhere', { guestOffset: 90 }],
  ])('refuses a plan that %s, and gives it back', async (_name, wrong) => {
    const { format, store, disk } = rig();
    format.planner = (plan) => ({ ...plan, ...wrong });
    await expect(attempt(() => disk.write(100, bytes(10)))).rejects.toMatchObject({ code: 'INTERNAL' });
    expect(format.called('abort')).toHaveLength(1);
    expect(store.count('write')).toBe(0);
  });

  it('leaves the buffer alone until it has ended, and the guest its bytes (Q-099)', async () => {
    const { store, disk } = rig();
    const from = bytes(200);
    store.hold.add('write');
    const writing = disk.write(100, from);
    expect(await ended(writing)).toBe(false);
    await store.drain();
    await writing;
    expect(from.every((byte) => byte === 9)).toBe(true);
  });

  it('stops between plans when it is aborted, with the last one complete', async () => {
    const { format, store, disk } = rig();
    format.planBytes = UNIT;
    store.hold.add('write');
    const controller = new AbortController();
    const writing = Promise.resolve(disk.write(0, bytes(4 * UNIT), { signal: controller.signal }));
    writing.catch(() => undefined);
    await turn();
    controller.abort();
    expect(await ended(writing)).toBe(false);
    await store.drain();
    await expect(writing).rejects.toMatchObject({ code: 'ABORTED' });
    expect(format.called('commit')).toHaveLength(1);
    expect(disk.epochs.running).toBe(0);
  });
});

describe('overlapping allocating writes', () => {
  it('queue: the second plans after the first is published (Q-103)', async () => {
    const { format, store, disk } = rig();
    store.hold.add('write');
    const both = [disk.write(0, bytes(100, 1)), disk.write(200, bytes(100, 2))];
    await turn();
    expect(format.called('prepare')).toHaveLength(1);
    await store.drain();
    await Promise.all(both);
    const order = format.calls.filter((call) => call.startsWith('prepare') || call.startsWith('commit'));
    expect(order).toEqual(['prepare 0+100', 'commit 0+100', 'prepare 200+100', 'commit 200+100']);
    expect([store.bytes[hostOf(0) + 50], store.bytes[hostOf(0) + 250]]).toEqual([1, 2]);
  });

  it('run together when they touch different units', async () => {
    const { format, store, disk } = rig();
    store.hold.add('write');
    const both = [disk.write(0, bytes(UNIT)), disk.write(UNIT, bytes(UNIT))];
    await turn();
    expect(format.called('prepare')).toHaveLength(2);
    await store.drain();
    await Promise.all(both);
  });

  it('run into each other when the rule is off', async () => {
    const { format, store, disk } = rig({ rules: { ...ALL_RULES, rangeLock: false } });
    store.hold.add('write');
    const both = [disk.write(0, bytes(100, 1)), disk.write(200, bytes(100, 2))];
    await turn();
    expect(format.called('prepare')).toHaveLength(2);
    await store.drain();
    await Promise.all(both);
  });

  it.each([
    ['zeroes', (disk: MappedNode) => disk.writeZeroes(0, UNIT), 'zeroes'],
    ['discard', (disk: MappedNode) => disk.discard(0, UNIT), 'unmap'],
  ] as const)('make %s wait as well', async (_name, start, call) => {
    const { format, store, disk } = rig();
    store.hold.add('write');
    const writing = disk.write(100, bytes(100));
    const other = start(disk);
    await turn();
    expect(format.called(call)).toEqual([]);
    await store.drain();
    await Promise.all([writing, other]);
    expect(format.called(call)).toHaveLength(1);
  });
});

describe('refused writes', () => {
  it('are read-only ones', () => {
    const { disk } = rig({ readOnly: true });
    const readOnly = expect.objectContaining({ code: 'READ_ONLY', reason: 'engine.read-only' });
    expect(() => disk.write(0, bytes(1))).toThrow(readOnly);
    expect(() => disk.writeZeroes(0, 1)).toThrow(readOnly);
    expect(() => disk.discard(0, 1)).toThrow(readOnly);
    expect(() => disk.truncate(0)).toThrow(readOnly);
    expect(disk.flush()).toBeUndefined();
  });

  it('are those past the end', () => {
    const { disk } = rig();
    const outOfRange = expect.objectContaining({ code: 'OUT_OF_RANGE' });
    expect(() => disk.write(8 * UNIT, bytes(1))).toThrow(outOfRange);
    expect(() => disk.writeZeroes(8 * UNIT - 1, 2)).toThrow(outOfRange);
    expect(() => disk.discard(8 * UNIT - 1, 2)).toThrow(outOfRange);
  });

  it('no bytes are no write', () => {
    const { format, disk } = rig();
    expect(disk.write(8 * UNIT, bytes(0))).toBeUndefined();
    expect(disk.writeZeroes(8 * UNIT, 0)).toBeUndefined();
    expect(disk.discard(8 * UNIT, 0)).toBeUndefined();
    expect(format.calls).toEqual([]);
  });
});

describe('compressed writes', () => {
  function compressing(options: FakeOptions = {}): Rig & { written: string[] } {
    const made = rig(options);
    const written: string[] = [];
    (made.format as { writeCompressed?: unknown }).writeCompressed = async (offset: number, from: Uint8Array) => {
      written.push(`${offset}+${from.length}`);
      await turn();
    };
    return { ...made, written };
  }

  it('are whole units; the last of the disk may be short', async () => {
    const { disk, written } = compressing({ size: 8 * UNIT - 100 });
    await disk.write(UNIT, bytes(2 * UNIT), { compressed: true });
    await disk.write(7 * UNIT, bytes(UNIT - 100), { compressed: true });
    expect(written).toEqual([`${UNIT}+${2 * UNIT}`, `${7 * UNIT}+${UNIT - 100}`]);
    const unaligned = { code: 'INVALID_ARGUMENT', reason: 'engine.compress-align' };
    await expect(attempt(() => disk.write(1, bytes(UNIT), { compressed: true }))).rejects.toMatchObject(unaligned);
    await expect(attempt(() => disk.write(0, bytes(UNIT - 1), { compressed: true }))).rejects.toMatchObject(unaligned);
  });

  it('are unsupported where the format cannot', async () => {
    const { disk } = rig();
    await expect(attempt(() => disk.write(0, bytes(UNIT), { compressed: true }))).rejects.toMatchObject({
      code: 'UNSUPPORTED',
      reason: 'engine.compress',
    });
    expect(disk.epochs.running).toBe(0);
  });

  it('take their range, and flush when they must be durable', async () => {
    const { format, disk, written, store } = compressing();
    store.hold.add('write');
    const writing = disk.write(100, bytes(10));
    const compressed = disk.write(0, bytes(UNIT), { compressed: true, fua: true });
    await turn();
    expect(written).toEqual([]);
    await store.drain();
    await Promise.all([writing, compressed]);
    expect(written).toHaveLength(1);
    expect(format.called('flush')).toHaveLength(1);
  });
});

describe('a write that must be durable', () => {
  it('flushes after it was written', async () => {
    const { format, store, disk } = rig();
    await disk.write(0, bytes(10), { fua: true });
    expect(format.calls.at(-1)).toBe('flush');
    expect(store.log.at(-1)).toBe('flush 0+0');
  });

  it('is one request: it ends, flush included, though the disk is being closed', async () => {
    const { format, store, disk } = rig();
    store.hold.add('write');
    const writing = disk.write(0, bytes(10), { fua: true });
    await turn();
    const closing = disk.close();
    await store.drain();
    await writing;
    await closing;
    expect(format.calls.slice(-2)).toEqual(['flush', 'close']);
  });

  it('fails when the flush fails', async () => {
    const { store, disk } = rig();
    store.failing.add('flush');
    await expect(attempt(() => disk.write(0, bytes(10), { fua: true }))).rejects.toThrow('flush fails');
    await expect(attempt(() => disk.writeZeroes(0, UNIT, { fua: true }))).rejects.toThrow('flush fails');
    expect(disk.epochs.running).toBe(0);
  });
});

describe('observers', () => {
  it('are told of every change before it is made, failed ones included, until they are removed', async () => {
    const { format, store, disk } = rig();
    format.allocate(0, 1);
    const told: string[] = [];
    const observer = (offset: number, length: number): void => {
      told.push(`${offset}+${length} after ${store.count('write')} writes`);
    };
    disk.observers.add(observer);
    await disk.write(10, bytes(20));
    await disk.write(UNIT, bytes(20));
    await disk.writeZeroes(5, 2 * UNIT);
    await disk.discard(0, 3 * UNIT);
    store.failing.add('write');
    await expect(attempt(() => disk.write(4 * UNIT, bytes(1)))).rejects.toThrow();
    await disk.read(0, bytes(10));
    disk.observers.delete(observer);
    store.failing.clear();
    await disk.write(0, bytes(1));
    expect(told.map((line) => line.split(' ')[0])).toEqual([
      '10+20',
      `${UNIT}+20`,
      `5+${2 * UNIT}`,
      `0+${3 * UNIT}`,
      `${4 * UNIT}+1`,
    ]);
    expect(told[0]).toBe('10+20 after 0 writes');
  });
});

describe('a transform', () => {
  /** Adds the sector's number to every byte. */
  function adding(tweak: 'guest' | 'host', seen: string[] = []): DataTransform {
    const sector = 512;
    const add = (from: Uint8Array, into: Uint8Array, at: number, sign: number): Pending => {
      seen.push(`${at}+${from.length}`);
      for (let i = 0; i < from.length; i++) into[i] = (from[i] as number) + sign * (1 + Math.floor((at + i) / sector));
      return undefined;
    };
    return {
      sector,
      tweak,
      encrypt: (from, into, at) => add(from, into, at, 1),
      decrypt: (content, at) => add(content, content, at, -1),
    };
  }

  it.each(['guest', 'host'] as const)(
    'with %s offsets hides what is stored and gives back what was written',
    async (tweak) => {
      const { store, disk, format } = rig({ transform: adding(tweak) });
      const guest = bytes(3 * UNIT, 50);
      await disk.write(UNIT, guest);
      expect(guest.every((byte) => byte === 50)).toBe(true);
      const base = tweak === 'guest' ? UNIT : hostOf(1);
      expect(store.bytes[hostOf(1)]).toBe((50 + 1 + base / 512) % 256);
      const back = new Uint8Array(700);
      await disk.read(UNIT + 300, back);
      expect(back.every((byte) => byte === 50)).toBe(true);
      expect(format.called('prepare')).toHaveLength(1);
    },
  );

  it('gets whole sectors only, for parts of sectors too', async () => {
    const seen: string[] = [];
    const { disk } = rig({ transform: adding('guest', seen) });
    await disk.write(0, bytes(UNIT, 50));
    seen.length = 0;
    await disk.write(100, bytes(50, 60));
    await disk.write(500, bytes(100, 70));
    const back = new Uint8Array(UNIT);
    await disk.read(0, back);
    expect([back[99], back[100], back[149], back[150], back[499], back[500], back[599], back[600]]).toEqual([
      50, 60, 60, 50, 50, 70, 70, 50,
    ]);
    for (const call of seen) {
      const [at, length] = call.split('+').map(Number) as [number, number];
      expect([at % 512, length % 512]).toEqual([0, 0]);
    }
  });

  it('completes the sectors of a plan that begins inside one', async () => {
    const { format, disk } = rig({ transform: adding('guest') });
    await disk.write(0, bytes(UNIT, 50));
    // As after a second writer finds the unit allocated by the first: in place, without edges.
    (format.units[0] as { writable: boolean }).writable = false;
    format.planner = (plan) => ({ ...plan, headLength: 0, tailLength: 0 });
    await disk.write(100, bytes(50, 60));
    const back = new Uint8Array(UNIT);
    await disk.read(0, back);
    expect([back[99], back[100], back[149], back[150]]).toEqual([50, 60, 60, 50]);
  });

  it('loses no neighbour when a whole sector is written while a part of it is being changed', async () => {
    const { store, disk } = rig({ transform: adding('guest') });
    await disk.write(0, bytes(UNIT, 50));
    store.hold.add('read');
    const part = disk.write(0, bytes(100, 60));
    await turn();
    const whole = disk.write(0, bytes(512, 70));
    await turn();
    await store.drain();
    await Promise.all([part, whole]);
    store.hold.clear();
    const back = new Uint8Array(512);
    await disk.read(0, back);
    expect(back[300]).toBe(70);
  });
});
