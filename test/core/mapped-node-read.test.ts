import { describe, expect, it } from 'vitest';
import type { FormatNode } from '../../src/core/format.ts';
import { MappedNode, mappedNode } from '../../src/core/mapped-node.ts';
import { FakeFormat, type FakeOptions, hostOf, UNIT } from '../support/fake-format.ts';
import { ended, ManualStore, turn } from '../support/manual-store.ts';

function rig(options: FakeOptions = {}): { format: FakeFormat; store: ManualStore; disk: MappedNode } {
  const format = new FakeFormat(options);
  return { format, store: format.store, disk: mappedNode(format, { name: 'disk.fake' }) };
}

function filled(size: number, byte: number, name = 'base'): ManualStore {
  const store = new ManualStore(size, name);
  store.bytes.fill(byte);
  return store;
}

/** Each unit's bytes as one number, `-1` where they differ. */
function perUnit(bytes: Uint8Array): number[] {
  const units: number[] = [];
  for (let at = 0; at < bytes.length; at += UNIT) {
    const unit = bytes.subarray(at, at + UNIT);
    units.push(unit.every((byte) => byte === unit[0]) ? (unit[0] as number) : -1);
  }
  return units;
}

describe('reading', () => {
  it('takes each kind of run from where it lives', () => {
    const { format, disk } = rig({ backing: filled(6 * UNIT, 7) });
    format.allocate(0, 2);
    format.mark(2, 'zero');
    format.mark(3, 'encoded', hostOf(3));
    const into = new Uint8Array(8 * UNIT).fill(255);
    expect(disk.read(0, into)).toBeUndefined();
    expect(perUnit(into)).toEqual([100, 101, 0, 3, 7, 7, 0, 0]);
  });

  it('reads unallocated ranges as zero without a backing file', () => {
    const { disk } = rig();
    const into = new Uint8Array(3 * UNIT).fill(255);
    void disk.read(UNIT / 2, into);
    expect(into.every((byte) => byte === 0)).toBe(true);
  });

  it('reads zeros past the end of a backing file that ends inside the request', () => {
    const { disk } = rig({ backing: filled(2 * UNIT + 100, 7) });
    const into = new Uint8Array(2 * UNIT).fill(255);
    void disk.read(UNIT + 50, into);
    expect(into.indexOf(0)).toBe(UNIT + 50);
    expect(into.lastIndexOf(7)).toBe(UNIT + 49);
  });

  it('asks the file once for what lies together, at the right place', () => {
    const { format, store, disk } = rig();
    format.allocate(1, 4);
    const into = new Uint8Array(3 * UNIT);
    void disk.read(UNIT + 10, into);
    expect(store.log).toEqual([`read ${hostOf(1) + 10}+${3 * UNIT}`]);
    expect([into[0], into.at(-1)]).toEqual([101, 104]);
  });

  it('decodes neighbouring encoded units in one call, and parts of the first and last', () => {
    const { format, disk } = rig();
    for (const unit of [1, 2, 3]) format.mark(unit, 'encoded', hostOf(unit));
    const into = new Uint8Array(2 * UNIT);
    void disk.read(UNIT + 512, into);
    expect(format.called('decode')).toEqual([`decode ${UNIT + 512}+${2 * UNIT} (3)`]);
    expect([into[0], into[511], into[512], into[1535], into[1536], into.at(-1)]).toEqual([1, 1, 2, 2, 3, 3]);
  });

  it('maps on where a map call stops early', () => {
    const { format, disk } = rig();
    format.allocate(0, 8);
    format.mapUnits = 3;
    const into = new Uint8Array(8 * UNIT);
    void disk.read(0, into);
    expect(perUnit(into)).toEqual([100, 101, 102, 103, 104, 105, 106, 107]);
    expect(format.called('map')).toHaveLength(3);
  });

  it('does nothing for a request of no bytes', () => {
    const { format, disk } = rig();
    expect(disk.read(8 * UNIT, new Uint8Array(0))).toBeUndefined();
    expect(format.calls).toEqual([]);
  });

  it.each([
    [8 * UNIT - 1, 2],
    [8 * UNIT + 1, 0],
    [-1, 1],
    [0.5, 1],
    [Number.MAX_SAFE_INTEGER, 1],
  ])('refuses offset %d with %d bytes as out of range', (offset, length) => {
    const { format, disk } = rig();
    expect(() => disk.read(offset, new Uint8Array(length))).toThrow(
      expect.objectContaining({ code: 'OUT_OF_RANGE', reason: 'engine.range' }),
    );
    expect(format.calls).toEqual([]);
  });

  it('reports a format that maps nothing instead of looping', () => {
    const { format, disk } = rig();
    format.mapUnits = 0;
    expect(() => disk.read(0, new Uint8Array(10))).toThrow(/maps nothing at 0x0/);
    expect(() => disk.write(0, new Uint8Array(10))).toThrow(/maps nothing at 0x0/);
  });

  it('reports a format that maps encoded runs and cannot decode them', async () => {
    const { format, disk } = rig();
    (format as { decode?: unknown }).decode = undefined;
    format.mark(0, 'encoded', hostOf(0));
    await expect((async () => await disk.read(0, new Uint8Array(10)))()).rejects.toThrow('cannot decode');
  });

  it('reports a run of a child that is not there', async () => {
    const { format, disk } = rig();
    format.map = (_offset, _length, into) => {
      into.push('data', UNIT, 5, 0, true);
      return undefined;
    };
    await expect((async () => await disk.read(0, new Uint8Array(10)))()).rejects.toThrow('has no child 5');
  });

  it('gives guest bytes to the format itself, zeros past the end of the disk', () => {
    const { format } = rig({ size: 8 * UNIT - 100 });
    format.allocate(7, 1);
    const into = new Uint8Array(300).fill(255);
    void format.engine?.readGuest(8 * UNIT - 200, into);
    expect([into[0], into[99], into[100], into[299]]).toEqual([107, 107, 0, 0]);
    expect(format.engine?.readGuest(9 * UNIT, into)).toBeUndefined();
    expect(into[0]).toBe(0);
  });
});

describe('a read that waits', () => {
  it('starts all runs of a mapping at once, and ends when all have ended', async () => {
    const { format, store, disk } = rig();
    for (const unit of [0, 2, 4]) format.allocate(unit, 1);
    store.hold.add('read');
    const into = new Uint8Array(6 * UNIT);
    const reading = disk.read(0, into);
    expect(store.held).toHaveLength(3);
    store.held[1]?.finish();
    store.held[0]?.finish();
    expect(await ended(reading)).toBe(false);
    store.held[0]?.finish();
    await reading;
    expect(perUnit(into)).toEqual([100, 0, 102, 0, 104, 0]);
  });

  it('waits for a mapping that must be loaded, and goes on where it ended', async () => {
    const { format, disk } = rig();
    format.allocate(0, 8);
    format.mapUnits = 4;
    format.mapGate = () => turn();
    const into = new Uint8Array(8 * UNIT);
    await disk.read(0, into);
    expect(perUnit(into)).toEqual([100, 101, 102, 103, 104, 105, 106, 107]);
    expect(format.called('map')).toEqual([`map 0+${8 * UNIT}`, `map ${4 * UNIT}+${4 * UNIT}`]);
  });

  it('gives the buffer back only when every run has ended, though one has failed', async () => {
    const { format, store, disk } = rig();
    for (const unit of [0, 2, 4]) format.allocate(unit, 1);
    store.hold.add('read');
    const reading = Promise.resolve(disk.read(0, new Uint8Array(6 * UNIT)));
    reading.catch(() => undefined);
    store.held[1]?.fail(new Error('bad sector'));
    expect(await ended(reading)).toBe(false);
    expect(disk.epochs.running).toBe(1);
    store.held[0]?.finish();
    expect(await ended(reading)).toBe(false);
    store.held[0]?.finish();
    await expect(reading).rejects.toThrow('bad sector');
    expect(disk.epochs.running).toBe(0);
  });

  it('waits for the runs it has started when a later one fails at once', async () => {
    const { format, store, disk } = rig();
    for (const unit of [0, 2]) format.allocate(unit, 1);
    format.mark(4, 'encoded', hostOf(4));
    format.decode = () => {
      throw new Error('bad code');
    };
    store.hold.add('read');
    const reading = Promise.resolve(disk.read(0, new Uint8Array(6 * UNIT)));
    reading.catch(() => undefined);
    expect(await ended(reading)).toBe(false);
    await store.drain();
    await expect(reading).rejects.toThrow('bad code');
  });

  it('tells the first of several failures', async () => {
    const { format, store, disk } = rig();
    for (const unit of [0, 2]) format.allocate(unit, 1);
    store.hold.add('read');
    const reading = Promise.resolve(disk.read(0, new Uint8Array(3 * UNIT)));
    store.held[1]?.fail(new Error('second'));
    await turn();
    store.held[0]?.fail(new Error('first'));
    await expect(reading).rejects.toThrow('first');
  });

  it('leaves no unhandled rejection when one run fails while another still runs', async () => {
    const { format, store, disk } = rig();
    for (const unit of [0, 2]) format.allocate(unit, 1);
    store.hold.add('read');
    const unhandled: unknown[] = [];
    const note = (error: unknown): void => void unhandled.push(error);
    process.on('unhandledRejection', note);
    try {
      const reading = Promise.resolve(disk.read(0, new Uint8Array(3 * UNIT)));
      reading.catch(() => undefined);
      store.held[1]?.fail(new Error('early'));
      await turn();
      await turn();
      store.held[0]?.finish();
      await expect(reading).rejects.toThrow('early');
    } finally {
      process.off('unhandledRejection', note);
    }
    expect(unhandled).toEqual([]);
  });

  it('ends an aborted read when what it had started has ended, and starts nothing more', async () => {
    const { format, store, disk } = rig();
    format.allocate(0, 8);
    format.mapUnits = 1;
    store.hold.add('read');
    const controller = new AbortController();
    const reading = Promise.resolve(disk.read(0, new Uint8Array(8 * UNIT), { signal: controller.signal }));
    reading.catch(() => undefined);
    controller.abort(new Error('enough'));
    expect(await ended(reading)).toBe(false);
    store.held[0]?.finish();
    await expect(reading).rejects.toMatchObject({ code: 'ABORTED', cause: new Error('enough') });
    expect(store.count('read')).toBe(1);
    expect(disk.epochs.running).toBe(0);
  });

  it('does not begin when the signal has fired already', () => {
    const { format, disk } = rig();
    const signal = AbortSignal.abort();
    expect(() => disk.read(0, new Uint8Array(UNIT), { signal })).toThrow(expect.objectContaining({ code: 'ABORTED' }));
    expect(() => disk.write(0, new Uint8Array(UNIT), { signal })).toThrow(expect.objectContaining({ code: 'ABORTED' }));
    expect(() => disk.writeZeroes(0, UNIT, { signal })).toThrow(expect.objectContaining({ code: 'ABORTED' }));
    expect(() => disk.discard(0, UNIT, { signal })).toThrow(expect.objectContaining({ code: 'ABORTED' }));
    expect(format.calls).toEqual([]);
  });

  it('reuses the state of ended requests without mixing up those that run', async () => {
    const { format, store, disk } = rig();
    format.allocate(0, 8);
    store.hold.add('read');
    const buffers = Array.from({ length: 8 }, () => new Uint8Array(UNIT));
    const all = buffers.map((into, unit) => disk.read(unit * UNIT, into));
    for (const request of [...store.held].reverse()) request.finish();
    await Promise.all(all);
    expect(buffers.map((into) => into[0])).toEqual([100, 101, 102, 103, 104, 105, 106, 107]);
  });
});

describe('a read of a node that is a backing file itself', () => {
  it('goes through the chain run by run', () => {
    const base = filled(8 * UNIT, 5);
    const middle = rig({ backing: base });
    middle.format.allocate(2, 2, true, 50);
    const top = rig({ backing: middle.disk });
    top.format.allocate(3, 1, true, 80);
    const into = new Uint8Array(8 * UNIT);
    void top.disk.read(0, into);
    expect(perUnit(into)).toEqual([5, 5, 52, 83, 5, 5, 5, 5]);
    expect(base.log).toEqual([`read 0+${2 * UNIT}`, `read ${4 * UNIT}+${4 * UNIT}`]);
  });
});

it('a mapped node says what it is and can', () => {
  const { disk } = rig();
  expect([disk.name, disk.driver, disk.size]).toEqual(['disk.fake', 'fake', 8 * UNIT]);
  expect(disk.limits).toMatchObject({ requestAlign: 1, zeroAlign: UNIT, discardAlign: UNIT });
  expect(disk.supports).toMatchObject({
    write: true,
    truncate: false,
    writeZeroes: 'fast',
    discard: true,
    extents: true,
    sync: false,
  });
  const readOnly = mappedNode(new FakeFormat({ readOnly: true }), { name: 'ro' });
  expect(readOnly.supports.write).toBe(false);
  const bare: FormatNode = {
    format: 'bare',
    virtualSize: 0,
    unit: 512,
    zeroUnit: 512,
    recurse: 'none',
    readOnly: false,
    children: [],
    map: () => undefined,
    flush: () => undefined,
    close: () => Promise.resolve(),
    info: () => ({}),
  };
  expect(new MappedNode(bare, { name: 'bare' }).supports).toMatchObject({
    write: false,
    truncate: false,
    writeZeroes: 'emulated',
    discard: false,
  });
});
