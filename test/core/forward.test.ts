import { describe, expect, it } from 'vitest';
import { UnitMap } from '../../src/core/forward.ts';

describe('the map of units', () => {
  it('knows every unit that was marked, across its pages, and no other', () => {
    const units = new UnitMap(200_000 * 512 + 1, 512);
    expect(units.count).toBe(200_001);
    units.mark(3, 2, 'data');
    units.mark(5, 1, 'zero');
    units.mark(65_530, 10, 'data');
    units.mark(200_000, 1, 'data');
    expect([2, 3, 4, 5, 6].map((index) => units.state(index))).toEqual(['absent', 'data', 'data', 'zero', 'absent']);
    expect(units.dataCount).toBe(13);
    expect(units.next(0)).toBe(3);
    expect(units.next(6)).toBe(65_530);
    expect(units.next(65_540)).toBe(200_000);
    expect(units.dataRun(65_530, 100)).toBe(10);
    expect(units.dataRun(65_530, 4)).toBe(4);
    expect(units.dataRun(200_000, 9)).toBe(1);
    expect(units.next(200_001)).toBe(200_001);
  });

  it('passes over a disk without anything at once', () => {
    const units = new UnitMap(2 ** 50, 512);
    units.mark(2 ** 30, 1, 'zero');
    expect(units.next(0)).toBe(2 ** 30);
    expect(units.next(2 ** 30 + 1)).toBe(2 ** 41);
  });
});
