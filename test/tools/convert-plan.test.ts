/** The plan of a conversion: what is copied, what is zero, what is kept, and how units are kept whole. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { Pending } from '../../src/base/async.ts';
import { Planner, type PlannerOptions, type Segment } from '../../src/tools/convert-plan.ts';
import type { SegmentKind, SourceDisk } from '../../src/tools/convert-source.ts';

type Piece = readonly [kind: SegmentKind, length: number];

/** A source that only has status, told at once or later. */
function source(pieces: readonly Piece[], late = false): SourceDisk {
  const starts: number[] = [];
  let size = 0;
  for (const [, length] of pieces) {
    starts.push(size);
    size += length;
  }
  const disk = {
    size,
    kind: 'zero' as SegmentKind,
    end: 0,
    seek(offset: number): Pending {
      const index = starts.findLastIndex((start) => start <= offset);
      const [kind, length] = pieces[index] as Piece;
      const tell = (): void => {
        disk.kind = kind;
        disk.end = (starts[index] as number) + length;
      };
      if (late) return Promise.resolve().then(tell);
      tell();
      return undefined;
    },
  };
  return disk as unknown as SourceDisk;
}

async function plan(pieces: readonly Piece[], options: Partial<PlannerOptions> = {}, late = false): Promise<Segment[]> {
  const planner = new Planner(source(pieces, late), { unit: 1, wholeUnits: false, chunk: 1 << 20, ...options });
  const segments: Segment[] = [];
  for (;;) {
    const waiting = planner.next();
    if (waiting !== undefined) await waiting;
    if (planner.current === undefined) return segments;
    segments.push(planner.current);
  }
}

function lines(segments: readonly Segment[]): string[] {
  return segments.map(({ kind, start, end }) => `${kind} ${start}-${end}`);
}

describe('the plan of a conversion', () => {
  it('joins what is alike', async () => {
    const pieces: Piece[] = [
      ['data', 10],
      ['data', 5],
      ['zero', 5],
      ['zero', 1],
      ['keep', 4],
    ];
    expect(lines(await plan(pieces))).toEqual(['data 0-15', 'zero 15-21', 'keep 21-25']);
    expect(lines(await plan(pieces, {}, true))).toEqual(['data 0-15', 'zero 15-21', 'keep 21-25']);
  });

  it('is empty for an empty disk', async () => {
    expect(await plan([])).toEqual([]);
  });

  it('makes data of a unit that is part data, part zero', async () => {
    expect(
      lines(
        await plan(
          [
            ['zero', 100],
            ['data', 50],
            ['zero', 106],
          ],
          { unit: 64 },
        ),
      ),
    ).toEqual(['zero 0-64', 'data 64-192', 'zero 192-256']);
  });

  it('lets zeros that fill no unit go into the data around them', async () => {
    expect(
      lines(
        await plan(
          [
            ['data', 70],
            ['zero', 20],
            ['data', 70],
            ['zero', 96],
          ],
          { unit: 64 },
        ),
      ),
    ).toEqual(['data 0-192', 'zero 192-256']);
  });

  it('leaves the borders of what the backing file has where they are, unless units must be whole', async () => {
    const pieces: Piece[] = [
      ['keep', 100],
      ['data', 50],
      ['keep', 50],
      ['zero', 100],
    ];
    expect(lines(await plan(pieces, { unit: 64 }))).toEqual([
      'keep 0-100',
      'data 100-150',
      'keep 150-200',
      'zero 200-300',
    ]);
    expect(lines(await plan(pieces, { unit: 64, wholeUnits: true }))).toEqual([
      'keep 0-64',
      'data 64-192',
      'data 192-256',
      'zero 256-300',
    ]);
  });

  it('makes data of a unit that is part zero, part kept, where units must be whole', async () => {
    expect(
      lines(
        await plan(
          [
            ['zero', 100],
            ['keep', 156],
          ],
          { unit: 64, wholeUnits: true },
        ),
      ),
    ).toEqual(['zero 0-64', 'data 64-128', 'keep 128-256']);
  });

  it('hands long data out before it has seen its end', async () => {
    const segments = await plan(
      Array.from({ length: 100 }, () => ['data', 10] as const),
      { chunk: 64 },
    );
    expect(segments.length).toBeGreaterThan(5);
    expect(segments.slice(0, -1).every(({ end }) => end % 64 === 0)).toBe(true);
  });

  it('covers the disk in order, keeps every byte of data as data, and never mixes a unit', async () => {
    const kinds: SegmentKind[] = ['data', 'zero', 'keep'];
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.tuple(fc.constantFrom(...kinds), fc.integer({ min: 1, max: 40 })), { maxLength: 30 }),
        fc.constantFrom(1, 4, 16),
        fc.boolean(),
        fc.boolean(),
        async (pieces, unit, wholeUnits, late) => {
          const segments = await plan(pieces, { unit, wholeUnits, chunk: 32 }, late);
          const given = pieces.flatMap(([kind, length]) => Array.from({ length }, () => kind));
          const planned: SegmentKind[] = [];
          let at = 0;
          for (const { kind, start, end } of segments) {
            expect(start).toBe(at);
            expect(end).toBeGreaterThan(start);
            for (; at < end; at++) planned.push(kind);
          }
          expect(planned.length).toBe(given.length);
          for (const [i, kind] of given.entries()) {
            // Only towards data: reading and writing what was there is always right.
            if (planned[i] !== kind) expect(planned[i]).toBe('data');
          }
          for (let start = 0; start < given.length; start += unit) {
            const whole = given.slice(start, start + unit);
            const result = new Set(planned.slice(start, start + unit));
            const mixable = wholeUnits || !whole.includes('keep');
            if (mixable) expect(result.size).toBe(1);
            if (new Set(whole).size === 1) expect([...result]).toEqual([whole[0]]);
          }
        },
      ),
      { numRuns: 500 },
    );
  });
});
