import { describe, expect, it } from 'vitest';
import {
  encodeSnapshotTable,
  readSnapshotTable,
  type SnapshotEntry,
} from '../../../src/formats/qcow2/snapshot-table.ts';
import { failureOf, storeOf } from './support.ts';

const text = (value: string) => new TextEncoder().encode(value);

function entry(id: string, name: string, change: Partial<SnapshotEntry> = {}): SnapshotEntry {
  return {
    id,
    name,
    l1Offset: 0x50000,
    l1Size: 3,
    vmStateSize: 0,
    diskSize: 1 << 20,
    dateSeconds: 1700000000,
    dateNanoseconds: 5,
    vmClockNanoseconds: 1n << 62n,
    icount: undefined,
    extra: new Uint8Array(24),
    rawId: text(id),
    rawName: text(name),
    ...change,
  };
}

const OFFSET = 1024;

async function stored(table: Uint8Array) {
  const bytes = new Uint8Array(OFFSET + table.length);
  bytes.set(table, OFFSET);
  return await storeOf(bytes);
}

async function read(table: Uint8Array, snapshotCount: number, ...rest: [Parameters<typeof readSnapshotTable>[3]?]) {
  return await readSnapshotTable(
    await stored(table),
    { snapshotCount, snapshotsOffset: OFFSET, virtualSize: 7 << 20 },
    'x',
    ...rest,
  );
}

describe('the snapshot table', () => {
  it('is read as it was written, names in any bytes and lengths', async () => {
    const entries = [
      entry('1', 'first'),
      entry('22', '', { vmStateSize: 2 ** 33, icount: 77n }),
      entry('3', 'ä'.repeat(3000), { extra: new Uint8Array(100).fill(9) }),
    ];
    const table = await read(encodeSnapshotTable(entries), 3);
    const plain = ({ extra, ...rest }: SnapshotEntry) => rest;
    expect(table.entries.map(plain)).toEqual(entries.map(plain));
    // what is unknown of the extra data is kept
    expect(table.entries[2]?.extra.subarray(24)).toEqual(new Uint8Array(76).fill(9));
    expect(table.size).toBe(encodeSnapshotTable(entries).length);
  });

  it('of many entries is read to the last one', async () => {
    const entries = Array.from({ length: 5000 }, (_, index) => entry(String(index + 1), `snapshot ${index}`));
    const table = await read(encodeSnapshotTable(entries), entries.length);
    expect(table.entries.map(({ id }) => id)).toEqual(entries.map(({ id }) => id));
  });

  it('without extra data has the disk size of the image and 32 bits of VM state size (M-22)', async () => {
    const table = new Uint8Array(48);
    const view = new DataView(table.buffer);
    view.setUint16(12, 1);
    view.setUint16(14, 2);
    view.setUint32(32, 12345);
    table.set(text('7ab'), 40);
    expect((await read(table, 1)).entries[0]).toMatchObject({
      id: '7',
      name: 'ab',
      diskSize: 7 << 20,
      vmStateSize: 12345,
      icount: undefined,
    });
  });

  it('shows half a VM state to nobody: beyond 32 bits the old field is 0', () => {
    const view = new DataView(encodeSnapshotTable([entry('1', 'x', { vmStateSize: 2 ** 32 })]).buffer);
    expect([view.getUint32(32), view.getBigUint64(40)]).toEqual([0, 1n << 32n]);
  });

  it('keeps numbers that do not fit a number', async () => {
    const table = encodeSnapshotTable([entry('1', 'x')]);
    const view = new DataView(table.buffer);
    view.setBigUint64(0, 0xf000_0000_0000_0001n);
    view.setBigUint64(40, 1n << 60n);
    const { entries } = await read(table, 1);
    expect(entries[0]).toMatchObject({ l1Offset: Number.POSITIVE_INFINITY, vmStateSize: Number.POSITIVE_INFINITY });
    const again = new DataView(encodeSnapshotTable(entries).buffer);
    expect([again.getBigUint64(0), again.getBigUint64(40)]).toEqual([0xf000_0000_0000_0001n, 1n << 60n]);
  });

  it('with too much extra data is refused, or cut for a repair', async () => {
    const table = encodeSnapshotTable([entry('1', 'x', { extra: new Uint8Array(1025).fill(1) }), entry('2', 'y')]);
    const refused = await failureOf(() => read(table, 2));
    expect(refused).toMatchObject({ code: 'TOO_LARGE', reason: 'qcow2.snapshot-extra', details: { index: 0 } });
    const cut: [number, number][] = [];
    const { entries } = await read(table, 2, {
      extraCut: (...what) => cut.push(what),
      tableCut: () => expect.unreachable(),
    });
    expect(cut).toEqual([[0, 1025]]);
    expect(entries.map(({ id, extra }) => [id, extra.length])).toEqual([
      ['1', 1024],
      ['2', 24],
    ]);
  });

  it('that claims gigabytes is refused, or cut for a repair, without reading them', async () => {
    const table = encodeSnapshotTable([entry('1', 'x'), entry('2', 'y')]);
    new DataView(table.buffer).setUint32(72 + 36, 0xffff_ffff);
    expect((await failureOf(() => read(table, 2))).reason).toBe('qcow2.snapshot-extra');
    const dropped: number[] = [];
    const { entries, size } = await read(table, 2, {
      extraCut: () => undefined,
      tableCut: (index) => dropped.push(index),
    });
    expect([entries.length, dropped, size]).toEqual([1, [1], 40 + 24 + 2]);
  });

  it('past the end of the file is zeros', async () => {
    const { entries } = await read(new Uint8Array(0), 3);
    expect(entries.map(({ id, l1Size }) => [id, l1Size])).toEqual([
      ['', 0],
      ['', 0],
      ['', 0],
    ]);
  });
});
