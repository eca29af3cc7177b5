import { describe, expect, it } from 'vitest';
import { EXTENT, ExtentList } from '../../src/core/extent.ts';

const DATA = EXTENT.present + EXTENT.data;

describe('an extent list', () => {
  it('joins neighbours that say the same and continue each other', () => {
    const list = new ExtentList();
    list.reset(100);
    list.add(10, DATA, 1000, 'a');
    list.add(10, DATA, 1010, 'a');
    list.add(10, DATA, 1020, 'b');
    list.add(10, EXTENT.zero);
    list.add(10, EXTENT.zero);
    list.add(10, EXTENT.zero, -1, undefined, 1);
    expect([...list].map(({ start, length, node, depth }) => [start, length, node, depth])).toEqual([
      [100, 20, 'a', 0],
      [120, 10, 'b', 0],
      [130, 20, undefined, 0],
      [150, 10, undefined, 1],
    ]);
    expect([list.count, list.start, list.end]).toEqual([4, 100, 160]);
  });

  it('tells what each flag means', () => {
    const list = new ExtentList();
    list.reset(0);
    list.add(10, DATA, 4096, 'a');
    list.add(10, EXTENT.present + EXTENT.zero);
    list.add(10, DATA + EXTENT.compressed);
    list.add(10, DATA + EXTENT.zero, 8192, 'a');
    list.add(10, 0, -1, undefined, 3);
    expect([...list].map(({ present, zero, data, compressed }) => [present, zero, data, compressed])).toEqual([
      [true, false, true, false],
      [true, true, false, false],
      [true, false, true, true],
      [true, true, true, false],
      [false, false, false, false],
    ]);
    expect(list.at(0)).toMatchObject({ hostOffset: 4096, node: 'a' });
    expect(list.at(1)).toMatchObject({ hostOffset: undefined, node: undefined });
    const parts = [
      list.flagsAt(3),
      list.lengthAt(3),
      list.startAt(3),
      list.depthAt(4),
      list.hostOffsetAt(3),
      list.nodeAt(3),
    ];
    expect(parts).toEqual([DATA + EXTENT.zero, 10, 30, 3, 8192, 'a']);
  });

  it('is full at its capacity, joins on, and starts anew after a reset', () => {
    const list = new ExtentList(1);
    list.reset(0);
    expect(list.add(10, DATA, 0, 'a')).toBe(true);
    expect(list.add(10, EXTENT.zero)).toBe(false);
    expect(list.add(10, DATA, 10, 'a')).toBe(true);
    expect(list.end).toBe(20);
    list.reset(64);
    expect([list.count, list.end]).toEqual([0, 64]);
    expect(list.add(10, EXTENT.zero)).toBe(true);
    expect(list.at(0)).toMatchObject({ start: 64, length: 10, node: undefined, hostOffset: undefined });
    expect(() => list.at(1)).toThrow(RangeError);
  });

  it('gives objects that later changes of the list leave alone', () => {
    const list = new ExtentList();
    list.reset(0);
    list.add(10, DATA, 0, 'a');
    const first = list.at(0);
    list.add(10, DATA, 10, 'a');
    expect(first.length).toBe(10);
  });
});
