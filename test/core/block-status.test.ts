import { describe, expect, it } from 'vitest';
import type { Pending } from '../../src/base/async.ts';
import { EXTENT, ExtentList } from '../../src/core/extent.ts';
import { type MappedNode, mappedNode } from '../../src/core/mapped-node.ts';
import type { BlockNode } from '../../src/core/node.ts';
import { FakeFormat, type FakeOptions, hostOf, UNIT } from '../support/fake-format.ts';
import { ManualStore, turn } from '../support/manual-store.ts';

function rig(options: FakeOptions = {}): { format: FakeFormat; store: ManualStore; disk: MappedNode } {
  const format = new FakeFormat(options);
  return { format, store: format.store, disk: mappedNode(format, { name: 'disk' }) };
}

/** A file whose status is told piece by piece: `[length, flags]`, at most `most` pieces a call. */
class Mapped extends ManualStore {
  readonly #pieces: readonly (readonly [length: number, flags: number])[];
  readonly #most: number;
  readonly #late: boolean;

  constructor(pieces: readonly (readonly [number, number])[], most = Number.POSITIVE_INFINITY, late = false) {
    super(
      pieces.reduce((sum, [length]) => sum + length, 0),
      'below',
    );
    this.#pieces = pieces;
    this.#most = most;
    this.#late = late;
  }

  protected override _extents(offset: number, length: number, into: ExtentList): Pending {
    const tell = (): void => {
      let start = 0;
      let told = 0;
      for (const [size, flags] of this.#pieces) {
        const from = Math.max(start, offset);
        const to = Math.min(start + size, offset + length);
        start += size;
        if (from < to && told++ < this.#most) into.add(to - from, flags, from, this.name);
      }
    };
    if (this.#late) return turn().then(tell);
    tell();
    return undefined;
  }
}

const DATA = EXTENT.present + EXTENT.data;
const HOLE = EXTENT.present + EXTENT.zero;

type Row = [
  start: number,
  length: number,
  depth: number,
  flags: string,
  hostOffset: number | undefined,
  node: string | undefined,
];

async function rows(node: BlockNode, offset = 0, length = node.size - offset, capacity = 1024): Promise<Row[]> {
  const list = new ExtentList(capacity);
  list.reset(offset);
  await node.extents(offset, length, list);
  return [...list].map((extent) => [
    extent.start,
    extent.length,
    extent.depth,
    (['present', 'zero', 'data', 'compressed'] as const).filter((flag) => extent[flag]).join(' '),
    extent.hostOffset,
    extent.node,
  ]);
}

describe('the status of a disk', () => {
  it('has one row for each kind of place', async () => {
    const { format, disk } = rig();
    format.allocate(0, 2);
    format.mark(2, 'zero');
    format.mark(3, 'zero', hostOf(3));
    format.mark(4, 'encoded', hostOf(4));
    format.mark(5, 'encoded', hostOf(5));
    expect(await rows(disk)).toEqual([
      [0, 2 * UNIT, 0, 'present data', hostOf(0), 'file'],
      [2 * UNIT, UNIT, 0, 'present zero', undefined, undefined],
      [3 * UNIT, UNIT, 0, 'present zero', hostOf(3), 'file'],
      [4 * UNIT, 2 * UNIT, 0, 'present data compressed', undefined, undefined],
      [6 * UNIT, 2 * UNIT, 0, 'zero', undefined, undefined],
    ]);
  });

  it('covers exactly what was asked', async () => {
    const { format, disk } = rig();
    format.allocate(0, 8);
    expect(await rows(disk, 100, 2 * UNIT)).toEqual([[100, 2 * UNIT, 0, 'present data', hostOf(0) + 100, 'file']]);
    expect(await rows(disk, 8 * UNIT, 0)).toEqual([]);
  });

  it('hides host offsets of data that must be decrypted', async () => {
    const transform = { sector: 512, tweak: 'guest', encrypt: () => undefined, decrypt: () => undefined } as const;
    const { format, disk } = rig({ transform });
    format.allocate(0, 8);
    expect((await rows(disk)).map((row) => row[4])).toEqual([undefined]);
  });

  it('stops when the list is full', async () => {
    const { format, disk } = rig();
    format.allocate(0, 1);
    format.mark(1, 'zero');
    format.allocate(2, 1);
    expect(await rows(disk, 0, 8 * UNIT, 2)).toHaveLength(2);
  });

  it('joins what several map calls tell', async () => {
    const { format, disk } = rig();
    format.allocate(0, 8);
    format.mapUnits = 1;
    format.mapGate = () => turn();
    expect(await rows(disk)).toHaveLength(1);
    expect(disk.epochs.running).toBe(0);
  });
});

describe('the status below', () => {
  const under = [
    [UNIT, DATA],
    [UNIT, HOLE],
    [3 * UNIT, DATA],
  ] as const;

  it.each([
    ['at once', Number.POSITIVE_INFINITY, false],
    ['one piece a call', 1, false],
    ['later', Number.POSITIVE_INFINITY, true],
    ['one piece a call, later', 1, true],
  ])('of a backing file, which tells it %s, is one layer deeper and ends where it ends', async (_name, most, late) => {
    const { format, disk } = rig({ backing: new Mapped(under, most, late) });
    format.allocate(3, 1);
    expect(await rows(disk)).toEqual([
      [0, UNIT, 1, 'present data', 0, 'below'],
      [UNIT, UNIT, 1, 'present zero', UNIT, 'below'],
      [2 * UNIT, UNIT, 1, 'present data', 2 * UNIT, 'below'],
      [3 * UNIT, UNIT, 0, 'present data', hostOf(3), 'file'],
      [4 * UNIT, UNIT, 1, 'present data', 4 * UNIT, 'below'],
      [5 * UNIT, 3 * UNIT, 0, 'zero', undefined, undefined],
    ]);
  });

  it('goes on in the right place after a run in which the backing file ends', async () => {
    const { format, disk } = rig({ backing: new Mapped([[UNIT + 512, DATA]]) });
    format.allocate(4, 1);
    expect(await rows(disk)).toEqual([
      [0, UNIT + 512, 1, 'present data', 0, 'below'],
      [UNIT + 512, 3 * UNIT - 512, 0, 'zero', undefined, undefined],
      [4 * UNIT, UNIT, 0, 'present data', hostOf(4), 'file'],
      [5 * UNIT, 3 * UNIT, 0, 'zero', undefined, undefined],
    ]);
  });

  it('counts the layers of a chain', async () => {
    const bottom = new Mapped([[8 * UNIT, DATA]]);
    const middle = rig({ backing: bottom });
    middle.format.mark(1, 'zero');
    const top = rig({ backing: middle.disk });
    top.format.allocate(0, 1);
    expect((await rows(top.disk)).map(([start, , depth]) => [start, depth])).toEqual([
      [0, 0],
      [UNIT, 1],
      [2 * UNIT, 2],
    ]);
  });

  it('stops when the list is full, whoever fills it', async () => {
    for (const late of [false, true]) {
      const { disk } = rig({ backing: new Mapped(under, Number.POSITIVE_INFINITY, late) });
      expect(await rows(disk, 0, 8 * UNIT, 2)).toHaveLength(2);
    }
  });

  it.each([false, true])('asks the file whether preallocated data reads as zero (late: %s)', async (late) => {
    const file = new Mapped(
      [
        [hostOf(2), DATA],
        [UNIT, HOLE],
        [UNIT / 2, DATA],
      ],
      1,
      late,
    );
    const { format, disk } = rig({ file, recurse: 'zero' });
    format.allocate(0, 5);
    expect(await rows(disk, 0, 5 * UNIT)).toEqual([
      [0, 2 * UNIT, 0, 'present data', hostOf(0), 'below'],
      [2 * UNIT, UNIT, 0, 'present zero data', hostOf(2), 'below'],
      [3 * UNIT, UNIT / 2, 0, 'present data', hostOf(3), 'below'],
      // The file ends here: what lies past it reads as zero.
      [3 * UNIT + UNIT / 2, 2 * UNIT - UNIT / 2, 0, 'present zero data', hostOf(3) + UNIT / 2, 'below'],
    ]);
  });

  it.each([false, true])(
    'takes over the status of the file where the format is only a window (late: %s)',
    async (late) => {
      const file = new Mapped(
        [
          [hostOf(2), DATA],
          [UNIT, HOLE],
          [UNIT / 2, DATA],
        ],
        1,
        late,
      );
      const { format, disk } = rig({ file, recurse: 'status' });
      format.allocate(0, 5);
      expect((await rows(disk, 0, 5 * UNIT)).map((row) => [row[0], row[3]])).toEqual([
        [0, 'present data'],
        [2 * UNIT, 'present zero'],
        [3 * UNIT, 'present data'],
        [3 * UNIT + UNIT / 2, 'present zero'],
      ]);
    },
  );

  it('is an internal error when nothing is told at all, not an endless loop', async () => {
    const silent = new Mapped(under, 0);
    await expect(rows(rig({ backing: silent }).disk)).rejects.toThrow('no status at 0x0');
    const { format, disk } = rig({ file: new Mapped([[hostOf(8), DATA]], 0), recurse: 'zero' });
    format.allocate(0, 1);
    await expect(rows(disk)).rejects.toThrow('no status at');
  });

  it('tells what went wrong below', async () => {
    const backing = new ManualStore(8 * UNIT, 'below');
    backing.failing.add('extents');
    await expect(rows(rig({ backing }).disk)).rejects.toThrow('extents fails');
    backing.failing.clear();
    backing.hold.add('extents');
    const { disk } = rig({ backing });
    const reading = rows(disk);
    reading.catch(() => undefined);
    await turn();
    backing.held[0]?.fail();
    await expect(reading).rejects.toThrow('extents failed');
    expect(disk.epochs.running).toBe(0);
  });
});
