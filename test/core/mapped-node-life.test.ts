import { describe, expect, it } from 'vitest';
import type { Pending } from '../../src/base/async.ts';
import { ExtentList } from '../../src/core/extent.ts';
import { type MappedNode, mappedNode } from '../../src/core/mapped-node.ts';
import { ALL_RULES, type SafetyRules } from '../../src/core/safety.ts';
import { FakeFormat, type FakeOptions, UNIT } from '../support/fake-format.ts';
import { ended, ManualStore, turn } from '../support/manual-store.ts';

function rig(options: FakeOptions & { rules?: SafetyRules } = {}): {
  format: FakeFormat;
  store: ManualStore;
  disk: MappedNode;
} {
  const format = new FakeFormat(options);
  const disk = mappedNode(format, { name: 'disk', ...(options.rules === undefined ? {} : { rules: options.rules }) });
  return { format, store: format.store, disk };
}

const bytes = (length: number, byte = 9): Uint8Array => new Uint8Array(length).fill(byte);

async function attempt(start: () => Pending): Promise<void> {
  await start();
}

/** A promise that ends when it is told to. */
function gate(): { promise: Promise<void>; open(): void } {
  let open = (): void => undefined;
  const promise = new Promise<void>((resolve) => {
    open = resolve;
  });
  return { promise, open };
}

describe('running requests', () => {
  it('are counted from before their first promise is handed out until everything has ended', async () => {
    const { format, store, disk } = rig();
    format.allocate(0, 2);
    store.hold = new Set(['read', 'write', 'flush']);
    const stamp = disk.epochs.now();
    const all = [disk.read(0, bytes(10)), disk.write(10, bytes(10)), disk.write(3 * UNIT, bytes(10)), disk.flush()];
    expect(disk.epochs.running).toBe(4);
    expect(disk.epochs.ended(stamp)).toBe(true);
    expect(disk.epochs.ended(disk.epochs.now())).toBe(false);
    await store.drain();
    await Promise.all(all);
    expect(disk.epochs.ended(disk.epochs.now())).toBe(true);
  });

  it('are not counted when they end at once', () => {
    const { format, disk } = rig();
    format.allocate(0, 2);
    void disk.read(0, bytes(10));
    void disk.write(0, bytes(10));
    expect(disk.epochs.now()).toBe(0);
  });

  it('are uncounted when they fail at once', () => {
    const { format, store, disk } = rig();
    format.allocate(0, 2);
    store.failing.add('write');
    expect(() => disk.write(0, bytes(10))).toThrow('write fails');
    expect(disk.epochs.running).toBe(0);
    store.failing.clear();
    expect(disk.write(0, bytes(10))).toBeUndefined();
  });

  it('do not overflow the stack however many steps end at once', async () => {
    const units = 100_000;
    const { format, disk } = rig({ units });
    format.mapUnits = 1;
    const into = bytes(units * UNIT);
    expect(disk.read(0, into)).toBeUndefined();
    expect(into[into.length - 1]).toBe(0);
    const list = new ExtentList();
    list.reset(0);
    void disk.extents(0, disk.size, list);
    expect(list.end).toBe(disk.size);
  });
});

describe('an exclusive section', () => {
  it('waits for what runs, holds what comes, and lets it go on afterwards', async () => {
    const { format, store, disk } = rig();
    format.allocate(0, 8);
    store.hold.add('write');
    const before = disk.write(0, bytes(10));
    const order: string[] = [];
    const section = gate();
    const alone = disk.exclusive(async () => {
      order.push('alone');
      await section.promise;
      order.push('done');
      return 42;
    });
    await turn();
    expect(order).toEqual([]);
    const held = [
      disk.read(0, bytes(10)),
      disk.write(0, bytes(10)),
      disk.writeZeroes(0, UNIT),
      disk.discard(0, UNIT),
      disk.flush(),
      disk.extents(0, UNIT, new ExtentList()),
    ];
    store.hold.clear();
    await store.drain();
    await before;
    await turn();
    expect(order).toEqual(['alone']);
    const calls = format.calls.length;
    await turn();
    expect(format.calls.length).toBe(calls);
    section.open();
    expect(await alone).toBe(42);
    await Promise.all(held);
    expect(order).toEqual(['alone', 'done']);
    expect(format.calls.length).toBeGreaterThan(calls);
  });

  it('does not wait when the rule is off', async () => {
    const { store, disk, format } = rig({ rules: { ...ALL_RULES, drain: false } });
    format.allocate(0, 1);
    store.hold.add('write');
    const writing = disk.write(0, bytes(10));
    await disk.exclusive(async () => undefined);
    expect(await ended(writing)).toBe(false);
    await store.drain();
    await writing;
  });

  it('runs after another one, not with it', async () => {
    const { disk } = rig();
    const order: number[] = [];
    const first = gate();
    const both = [
      disk.exclusive(async () => {
        order.push(1);
        await first.promise;
        order.push(2);
      }),
      disk.exclusive(async () => {
        order.push(3);
      }),
    ];
    await turn();
    expect(order).toEqual([1]);
    first.open();
    await Promise.all(both);
    expect(order).toEqual([1, 2, 3]);
  });

  it('opens the way again when it fails', async () => {
    const { disk } = rig();
    await expect(disk.exclusive(() => Promise.reject(new Error('no'))) as Promise<unknown>).rejects.toThrow('no');
    expect(disk.read(0, bytes(10))).toBeUndefined();
    await disk.exclusive(async () => undefined);
  });

  it('may read the guest itself', async () => {
    const { format, store, disk } = rig();
    format.allocate(0, 1);
    store.hold.add('read');
    const into = bytes(10);
    const alone = disk.exclusive(async () => {
      await disk.readGuest(0, into);
    });
    await store.drain();
    await alone;
    expect(into[0]).toBe(100);
  });

  it('lets a write that must be durable end first, its flush included', async () => {
    const { format, store, disk } = rig();
    store.hold.add('flush');
    const writing = disk.write(0, bytes(10), { fua: true });
    let ran = false;
    const alone = disk.exclusive(async () => {
      ran = true;
    });
    await turn();
    await turn();
    expect(format.called('flush')).toHaveLength(1);
    expect(ran).toBe(false);
    await store.drain();
    await Promise.all([writing, alone]);
    expect(ran).toBe(true);
  });
});

describe('resizing', () => {
  it('goes through an exclusive section', async () => {
    const { format, store, disk } = rig();
    const sizes: string[] = [];
    (format as { resize?: unknown }).resize = async (size: number, preallocation: string) => {
      sizes.push(`${size} ${preallocation} ${disk.epochs.running}`);
    };
    store.hold.add('write');
    const writing = disk.write(0, bytes(10));
    const resizing = disk.truncate(4096, { preallocation: 'full' });
    await store.drain();
    await Promise.all([writing, resizing]);
    expect(sizes).toEqual(['4096 full 0']);
    expect(disk.supports.truncate).toBe(true);
  });

  it('is unsupported where the format cannot', () => {
    expect(() => rig().disk.truncate(0)).toThrow(
      expect.objectContaining({ code: 'UNSUPPORTED', reason: 'store.truncate' }),
    );
  });
});

describe('a condemned node', () => {
  it('fails every later request with the reason as cause, and is closed without being written to', async () => {
    const { format, store, disk } = rig();
    format.allocate(0, 1);
    const cause = new Error('refcount table broken');
    format.engine?.condemn(cause);
    format.engine?.condemn(new Error('another'));
    const refused = expect.objectContaining({ code: 'IO', reason: 'engine.condemned', cause });
    expect(() => disk.read(0, bytes(1))).toThrow(refused);
    expect(() => disk.write(0, bytes(1))).toThrow(refused);
    expect(() => disk.writeZeroes(0, 1)).toThrow(refused);
    expect(() => disk.discard(0, UNIT)).toThrow(refused);
    expect(() => disk.extents(0, 1, new ExtentList())).toThrow(refused);
    expect(() => disk.flush()).toThrow(refused);
    expect(() => disk.truncate(0)).toThrow(refused);
    await disk.close();
    expect(format.called('close')).toEqual([]);
    expect(format.called('flush')).toEqual([]);
    expect(store.closes).toBe(1);
  });
});

describe('closing', () => {
  it('waits for running requests, then closes the format and every child, once', async () => {
    const backing = new ManualStore(8 * UNIT, 'base');
    const { format, store, disk } = rig({ backing });
    store.hold.add('write');
    const writing = disk.write(0, bytes(10));
    const closing = disk.close();
    expect(disk.close()).toBe(closing);
    expect(await ended(closing)).toBe(false);
    expect(format.called('close')).toEqual([]);
    await store.drain();
    await Promise.all([writing, closing]);
    expect(format.calls.at(-1)).toBe('close');
    expect([store.closes, backing.closes]).toEqual([1, 1]);
    await disk[Symbol.asyncDispose]();
    expect(store.closes).toBe(1);
  });

  it('refuses every later request', async () => {
    const { disk } = rig();
    const closing = disk.close();
    const closed = expect.objectContaining({ code: 'CLOSED' });
    expect(() => disk.read(0, bytes(1))).toThrow(closed);
    await closing;
    expect(() => disk.write(0, bytes(1))).toThrow(closed);
    expect(() => disk.flush()).toThrow(closed);
    expect(() => disk.extents(0, 1, new ExtentList())).toThrow(closed);
  });

  it('waits for exclusive sections, the running one and those that wait', async () => {
    const { format, disk } = rig();
    const section = gate();
    const order: string[] = [];
    const first = disk.exclusive(async () => {
      await section.promise;
      order.push('first');
    });
    const second = disk.exclusive(async () => {
      order.push('second');
    });
    await turn();
    const held = Promise.resolve(disk.read(0, bytes(1)));
    held.catch(() => undefined);
    const closing = disk.close();
    await turn();
    expect(format.called('close')).toEqual([]);
    section.open();
    await Promise.all([first, second, closing]);
    expect(order).toEqual(['first', 'second']);
    expect(format.called('close')).toHaveLength(1);
    await expect(held).rejects.toMatchObject({ code: 'CLOSED' });
  });

  it('closes the children though the format fails, and tells the failure', async () => {
    const backing = new ManualStore(8 * UNIT, 'base');
    const { format, store, disk } = rig({ backing });
    format.hooks.close = () => Promise.reject(new Error('could not write tables'));
    await expect(disk.close()).rejects.toThrow('could not write tables');
    expect([store.closes, backing.closes]).toEqual([1, 1]);
  });

  it('closes every child though one of them fails', async () => {
    const backing = new ManualStore(8 * UNIT, 'base');
    const { store, disk } = rig({ backing });
    store.failing.add('flush');
    await expect(disk.close()).rejects.toThrow('flush fails');
    expect(backing.closes).toBe(1);
  });
});

describe('flushing', () => {
  it('is the format that flushes, and a failure is told', async () => {
    const { format, store, disk } = rig();
    expect(disk.flush()).toBeUndefined();
    expect(format.calls).toEqual(['flush']);
    store.failing.add('flush');
    await expect(attempt(() => disk.flush())).rejects.toThrow('flush fails');
    store.failing.clear();
    store.hold.add('flush');
    const flushing = disk.flush();
    expect(disk.epochs.running).toBe(1);
    await store.drain();
    await flushing;
  });
});

it('status and events are those of the file', async () => {
  const { store, disk } = rig();
  expect(await disk.status()).toEqual({});
  (store as { status?: unknown }).status = async () => ({ allocatedBytes: 77 });
  expect(await disk.status()).toEqual({ allocatedBytes: 77 });
  void disk.event('l2_load');
  expect(store.events).toEqual(['l2_load']);
});

it('a node whose requests have ended keeps no hold of their buffers', async () => {
  const { format, disk } = rig();
  format.allocate(0, 8);
  let buffer: Uint8Array | undefined = bytes(8 * UNIT);
  const reference = new WeakRef(buffer);
  void disk.read(0, buffer);
  buffer = undefined;
  const { setFlagsFromString } = await import('node:v8');
  const { runInNewContext } = await import('node:vm');
  setFlagsFromString('--expose-gc');
  const collect = runInNewContext('gc') as () => void;
  for (let i = 0; i < 10 && reference.deref() !== undefined; i++) {
    await turn();
    collect();
  }
  expect(reference.deref()).toBeUndefined();
  expect(disk.read(0, bytes(10))).toBeUndefined();
});
