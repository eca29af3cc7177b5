import { describe, expect, it } from 'vitest';
import type { Pending } from '../../src/base/async.ts';
import { type MappedNode, mappedNode } from '../../src/core/mapped-node.ts';
import { FakeFormat, type FakeOptions, hostOf, UNIT } from '../support/fake-format.ts';
import { ended, ManualStore, turn } from '../support/manual-store.ts';

function rig(options: FakeOptions = {}): { format: FakeFormat; store: ManualStore; disk: MappedNode } {
  const format = new FakeFormat(options);
  return { format, store: format.store, disk: mappedNode(format, { name: 'disk' }) };
}

async function attempt(start: () => Pending): Promise<void> {
  await start();
}

function base(size: number): ManualStore {
  const store = new ManualStore(size, 'base');
  store.bytes.fill(7);
  return store;
}

describe('zeroing', () => {
  it('marks whole units and writes nothing', async () => {
    const { format, store, disk } = rig();
    format.allocate(0, 8);
    await disk.writeZeroes(UNIT, 3 * UNIT, { unmap: true });
    expect(format.called('zeroes')).toEqual([`zeroes ${UNIT}+${3 * UNIT} unmap`]);
    expect(store.count('write')).toBe(0);
  });

  it('writes zeros into the parts of units at both ends', async () => {
    const { format, store, disk } = rig();
    format.allocate(0, 8);
    await disk.writeZeroes(100, 3 * UNIT);
    expect(format.called('zeroes')).toEqual([`zeroes ${UNIT}+${2 * UNIT}`]);
    expect(store.log).toEqual([`write ${hostOf(0) + 100}+${UNIT - 100}`, `write ${hostOf(3)}+100`]);
    const into = new Uint8Array(4 * UNIT);
    await disk.read(0, into);
    expect([into[99], into[100], into[3 * UNIT + 99], into[3 * UNIT + 100]]).toEqual([100, 0, 0, 103]);
  });

  it('inside one unit only writes', async () => {
    const { format, store, disk } = rig();
    format.allocate(0, 1);
    await disk.writeZeroes(10, 20);
    expect(format.called('zeroes')).toEqual([]);
    expect(store.log).toEqual([`write ${hostOf(0) + 10}+20`]);
  });

  it('leaves parts alone that read as zero already: zero marks, nothing there, past the end of the backing file', async () => {
    const { format, store, disk } = rig({ backing: base(2 * UNIT) });
    format.mark(0, 'zero');
    await disk.writeZeroes(10, 20);
    await disk.writeZeroes(3 * UNIT + 10, 20);
    expect(format.called('prepare')).toEqual([]);
    expect(store.log).toEqual([]);
    await disk.writeZeroes(UNIT + 10, 20);
    expect(format.called('prepare')).toHaveLength(1);
    expect(store.bytes[hostOf(1) + 9]).toBe(7);
    expect(store.bytes[hostOf(1) + 10]).toBe(0);
  });

  it('writes where the backing file ends inside the part', async () => {
    const { format, disk } = rig({ backing: base(UNIT + 20) });
    await disk.writeZeroes(UNIT + 10, 20);
    expect(format.called('prepare')).toHaveLength(1);
  });

  it('up to the end of the disk includes a short last unit', async () => {
    const { format, store, disk } = rig({ size: 8 * UNIT - 100 });
    format.allocate(0, 8);
    await disk.writeZeroes(6 * UNIT, 2 * UNIT - 100);
    expect(format.called('zeroes')).toEqual([`zeroes ${6 * UNIT}+${2 * UNIT - 100}`]);
    await disk.writeZeroes(7 * UNIT + 50, UNIT - 150);
    expect(store.log).toEqual([]);
  });

  it('writes zeros where the format cannot mark them, or fails if only fast ways are wanted', async () => {
    const { format, store, disk } = rig();
    format.allocate(0, 8);
    format.zeroesResult = 'unsupported';
    await disk.writeZeroes(0, 4 * UNIT);
    expect(store.log).toEqual([`write ${hostOf(0)}+${4 * UNIT}`]);
    const unsupported = { code: 'UNSUPPORTED', reason: 'engine.fast-zero' };
    await expect(attempt(() => disk.writeZeroes(4 * UNIT, UNIT, { fastOnly: true }))).rejects.toMatchObject(
      unsupported,
    );
    (format as { mapZeroes?: unknown }).mapZeroes = undefined;
    await expect(attempt(() => disk.writeZeroes(4 * UNIT, UNIT, { fastOnly: true }))).rejects.toMatchObject(
      unsupported,
    );
    await disk.writeZeroes(4 * UNIT, UNIT);
    expect(store.count('write')).toBe(2);
  });

  it('writes long ranges of zeros in pieces of one shared buffer', async () => {
    const units = 200;
    const { format, store, disk } = rig({ units });
    format.allocate(0, units);
    (format as { mapZeroes?: unknown }).mapZeroes = undefined;
    await disk.writeZeroes(0, units * UNIT);
    expect(store.log.every((line) => Number(line.split('+')[1]) <= 64 * 1024)).toBe(true);
    expect(store.bytes.subarray(hostOf(0), hostOf(units)).every((byte) => byte === 0)).toBe(true);
  });

  it('is durable when it must be', async () => {
    const { format, disk } = rig();
    await disk.writeZeroes(0, UNIT, { fua: true });
    expect(format.calls.at(-1)).toBe('flush');
  });

  it('releases its range when the format fails', async () => {
    const { format, disk } = rig();
    format.hooks.zeroes = () => Promise.reject(new Error('table broken'));
    await expect(attempt(() => disk.writeZeroes(0, UNIT))).rejects.toThrow('table broken');
    format.hooks = {};
    await disk.writeZeroes(0, UNIT);
    expect(disk.epochs.running).toBe(0);
  });
});

describe('discarding', () => {
  it('drops whole units inside the range and nothing else', async () => {
    const { format, disk } = rig();
    await disk.discard(100, 4 * UNIT);
    expect(format.called('unmap')).toEqual([`unmap ${UNIT}+${3 * UNIT} zero`]);
    expect(disk.discard(100, UNIT)).toBeUndefined();
    expect(format.called('unmap')).toHaveLength(1);
  });

  it('up to the end of the disk includes a short last unit', async () => {
    const { format, disk } = rig({ size: 8 * UNIT - 100 });
    await disk.discard(6 * UNIT + 1, 2 * UNIT - 101);
    expect(format.called('unmap')).toEqual([`unmap ${7 * UNIT}+${UNIT} zero`]);
    await disk.discard(7 * UNIT, UNIT - 101);
    expect(format.called('unmap')).toHaveLength(1);
  });

  it('is nothing where the format cannot', () => {
    const { format, disk } = rig();
    (format as { unmap?: unknown }).unmap = undefined;
    expect(disk.discard(0, 4 * UNIT)).toBeUndefined();
  });

  it('is counted as a request until the format has ended', async () => {
    const { format, disk } = rig();
    let finish = (): void => undefined;
    format.hooks.unmap = () =>
      new Promise((resolve) => {
        finish = resolve;
      });
    const discarding = disk.discard(0, UNIT);
    await turn();
    expect(disk.epochs.running).toBe(1);
    finish();
    await discarding;
    expect(disk.epochs.running).toBe(0);
    expect(await ended(discarding)).toBe(true);
  });
});
