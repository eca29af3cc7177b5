import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { RunList } from '../../src/core/run.ts';

describe('a run list', () => {
  it('joins neighbours that continue each other', () => {
    const runs = new RunList();
    runs.reset(0, 100);
    runs.push('data', 10, 0, 1000, true);
    runs.push('data', 10, 0, 1010, true);
    runs.push('zero', 5, 0, -1, false);
    runs.push('zero', 5, 0, -1, false);
    runs.push('unallocated', 5, 0, -1, false);
    expect(runs.count).toBe(3);
    expect(runs.at(0)).toMatchObject({ kind: 'data', guestOffset: 0, length: 20, hostOffset: 1000, writable: true });
    expect(runs.at(1)).toMatchObject({ kind: 'zero', guestOffset: 20, length: 10, hostOffset: -1 });
    expect(runs.at(2)).toMatchObject({ kind: 'unallocated', guestOffset: 30, length: 5 });
  });

  it.each([
    ['host offsets that do not continue', ['data', 10, 0, 1011, true]],
    ['another child', ['data', 10, 1, 1010, true]],
    ['other writability', ['data', 10, 0, 1010, false]],
    ['another kind', ['zero', 10, 0, 1010, true]],
    ['no host offset', ['data', 10, 0, -1, true]],
  ] as const)('does not join %s', (_name, second) => {
    const runs = new RunList();
    runs.reset(0, 100);
    runs.push('data', 10, 0, 1000, true);
    runs.push(...(second as unknown as ['data', number, number, number, boolean]));
    expect(runs.count).toBe(2);
  });

  it('never joins encoded runs', () => {
    const runs = new RunList();
    runs.reset(0, 100);
    expect(runs.pushEncoded(10, 0, 1000, 7)).toBe(true);
    expect(runs.pushEncoded(10, 0, 1010, 8)).toBe(true);
    expect([runs.at(0).encodedLength, runs.at(1).encodedLength]).toEqual([7, 8]);
    expect(runs.at(1).writable).toBe(false);
  });

  it('cuts what passes the asked range and says when it is covered', () => {
    const runs = new RunList();
    runs.reset(50, 80);
    expect(runs.push('data', 20, 0, 0, true)).toBe(true);
    expect(runs.complete).toBe(false);
    expect(runs.push('data', 20, 0, 20, true)).toBe(false);
    expect([runs.guestStart, runs.guestEnd, runs.bytes, runs.limit, runs.complete]).toEqual([50, 80, 30, 80, true]);
    expect(runs.at(0).length).toBe(30);
    expect(runs.push('data', 20, 0, 40, true)).toBe(false);
    expect(runs.pushEncoded(20, 0, 40, 3)).toBe(false);
    expect(runs.count).toBe(1);
  });

  it('adds nothing once it is full, but still joins', () => {
    const runs = new RunList(2);
    runs.reset(0, 100);
    runs.push('data', 1, 0, 0, true);
    runs.push('data', 1, 0, 10, true);
    expect(runs.push('zero', 1, 0, -1, false)).toBe(false);
    expect(runs.push('data', 1, 0, 11, true)).toBe(true);
    expect([runs.count, runs.guestEnd]).toEqual([2, 3]);
  });

  it('starts anew after a reset, with no trace of what was there', () => {
    const runs = new RunList();
    runs.reset(0, 100);
    runs.pushEncoded(10, 2, 1000, 7);
    runs.reset(10, 20);
    runs.push('data', 10, 0, 2000, true);
    expect(runs.at(0)).toEqual({
      kind: 'data',
      guestOffset: 10,
      length: 10,
      child: 0,
      hostOffset: 2000,
      encodedLength: 0,
      writable: true,
    });
    expect(() => runs.at(1)).toThrow('run 1 of 1');
  });

  it('covers exactly what was pushed, whatever is pushed', () => {
    const kind = fc.constantFrom('data' as const, 'zero' as const, 'unallocated' as const);
    const piece = fc.record({ kind, length: fc.integer({ min: 1, max: 9 }), host: fc.integer({ min: -1, max: 30 }) });
    fc.assert(
      fc.property(fc.array(piece, { maxLength: 40 }), fc.integer({ min: 1, max: 12 }), (pieces, capacity) => {
        const runs = new RunList(capacity);
        runs.reset(7, 107);
        const bytes: string[] = [];
        for (const { kind, length, host } of pieces) {
          const before = runs.guestEnd;
          const more = runs.push(kind, length, 0, host, false);
          const taken = runs.guestEnd - before;
          for (let i = 0; i < taken; i++) bytes.push(`${kind} ${host < 0 ? -1 : host + i}`);
          if (!more) break;
          expect(taken).toBe(length);
        }
        const read: string[] = [];
        for (let i = 0; i < runs.count; i++) {
          const { kind, guestOffset, length, hostOffset } = runs.at(i);
          expect(guestOffset).toBe(7 + read.length);
          for (let j = 0; j < length; j++) read.push(`${kind} ${hostOffset < 0 ? -1 : hostOffset + j}`);
        }
        expect(read).toEqual(bytes);
        expect(runs.bytes).toBe(bytes.length);
      }),
    );
  });
});
