/** Copying ranges: order of writes, sync on hit, bounded buffers, and that nothing is left running. */
import { describe, expect, it } from 'vitest';
import type { Pending } from '../../src/base/async.ts';
import { BlockError } from '../../src/base/errors.ts';
import { BufferPool } from '../../src/core/buffer-pool.ts';
import { Copier, type CopierOptions } from '../../src/core/copier.ts';

interface Step {
  readonly what: 'read' | 'write';
  readonly offset: number;
  readonly end: (error?: Error) => void;
}

/** Reads and writes that end when the test says so. */
class Bench {
  readonly log: string[] = [];
  readonly waiting: Step[] = [];
  readonly pool = new BufferPool({ size: 8, count: 3 });
  readonly copier: Copier;
  readonly syncReads: boolean;
  readonly syncWrites: boolean;

  constructor(order: CopierOptions['order'], sync: { reads?: boolean; writes?: boolean } = {}, signal?: AbortSignal) {
    this.syncReads = sync.reads === true;
    this.syncWrites = sync.writes === true;
    this.copier = new Copier({
      buffers: this.pool,
      order,
      signal,
      read: (offset, into) => {
        into.fill(offset);
        return this.#step('read', offset, this.syncReads);
      },
      write: (offset, from) => {
        expect([...from]).toEqual(Array.from({ length: from.length }, () => offset));
        return this.#step('write', offset, this.syncWrites);
      },
    });
  }

  #step(what: 'read' | 'write', offset: number, sync: boolean): Pending {
    this.log.push(`${what} ${offset}`);
    if (sync) return undefined;
    return new Promise((resolve, reject) => {
      this.waiting.push({ what, offset, end: (error) => (error === undefined ? resolve() : reject(error)) });
    });
  }

  async end(what: 'read' | 'write', offset: number, error?: Error): Promise<void> {
    const index = this.waiting.findIndex((step) => step.what === what && step.offset === offset);
    expect(index, `${what} ${offset} is waiting`).toBeGreaterThanOrEqual(0);
    this.waiting.splice(index, 1)[0]?.end(error);
    for (let i = 0; i < 20; i++) await Promise.resolve();
  }
}

describe('the copier', () => {
  it('makes no promise and uses one buffer while everything ends at once', () => {
    const bench = new Bench('serial', { reads: true, writes: true });
    for (let offset = 0; offset < 100; offset++) expect(bench.copier.copy(offset, 8)).toBeUndefined();
    expect(bench.copier.inFlight).toBe(0);
    expect(bench.pool.taken).toBe(0);
    expect(bench.log.slice(0, 4)).toEqual(['read 0', 'write 0', 'read 1', 'write 1']);
  });

  it('gives the last, short range a short buffer', async () => {
    const lengths: number[] = [];
    const copier = new Copier({
      buffers: new BufferPool({ size: 8, count: 1 }),
      order: 'serial',
      read: (_offset, into) => void lengths.push(into.length),
      write: (_offset, from) => void lengths.push(from.length),
    });
    await copier.copy(0, 5);
    expect(lengths).toEqual([5, 5]);
  });

  it('reads ahead as far as there are buffers, and says when to give the next range', async () => {
    const bench = new Bench('serial');
    expect(bench.copier.copy(1, 8)).toBeUndefined();
    expect(bench.copier.copy(2, 8)).toBeUndefined();
    expect(bench.copier.copy(3, 8)).toBeUndefined();
    const blocked = bench.copier.copy(4, 8) as Promise<void>;
    expect(blocked).toBeInstanceOf(Promise);
    expect(bench.log).toEqual(['read 1', 'read 2', 'read 3']);
    await bench.end('read', 1);
    await bench.end('write', 1);
    await blocked;
    expect(bench.log).toEqual(['read 1', 'read 2', 'read 3', 'write 1', 'read 4']);
    for (const offset of [2, 3, 4]) {
      await bench.end('read', offset);
      await bench.end('write', offset);
    }
    await bench.copier.finish();
    expect(bench.pool.taken).toBe(0);
  });

  it('serial: writes one after the other in the order of the ranges, whatever order the reads end in', async () => {
    const bench = new Bench('serial');
    for (const offset of [1, 2, 3]) void bench.copier.copy(offset, 8);
    await bench.end('read', 3);
    await bench.end('read', 2);
    expect(bench.log.filter((line) => line.startsWith('write'))).toEqual([]);
    await bench.end('read', 1);
    expect(bench.log.filter((line) => line.startsWith('write'))).toEqual(['write 1']);
    await bench.end('write', 1);
    expect(bench.log.filter((line) => line.startsWith('write'))).toEqual(['write 1', 'write 2']);
    await bench.end('write', 2);
    await bench.end('write', 3);
    await bench.copier.finish();
  });

  it('serial: a range that was read at once waits for the writes before it', async () => {
    const bench = new Bench('serial', { reads: true });
    void bench.copier.copy(1, 8);
    void bench.copier.copy(2, 8);
    expect(bench.log).toEqual(['read 1', 'write 1', 'read 2']);
    await bench.end('write', 1);
    expect(bench.log).toEqual(['read 1', 'write 1', 'read 2', 'write 2']);
    await bench.end('write', 2);
    await bench.copier.finish();
  });

  it('started: writes begin in the order of the ranges and run together', async () => {
    const bench = new Bench('started');
    for (const offset of [1, 2, 3]) void bench.copier.copy(offset, 8);
    await bench.end('read', 2);
    expect(bench.log.filter((line) => line.startsWith('write'))).toEqual([]);
    await bench.end('read', 1);
    expect(bench.log.filter((line) => line.startsWith('write'))).toEqual(['write 1', 'write 2']);
    await bench.end('read', 3);
    expect(bench.log.at(-1)).toBe('write 3');
    for (const offset of [3, 1, 2]) await bench.end('write', offset);
    await bench.copier.finish();
  });

  it('free: a write begins as soon as its data is there', async () => {
    const bench = new Bench('free');
    for (const offset of [1, 2]) void bench.copier.copy(offset, 8);
    await bench.end('read', 2);
    expect(bench.log.at(-1)).toBe('write 2');
    await bench.end('read', 1);
    await bench.end('write', 1);
    await bench.end('write', 2);
    await bench.copier.finish();
  });

  it('writes nothing more after a failure, waits for what runs, and tells the first failure', async () => {
    const bench = new Bench('serial');
    for (const offset of [1, 2, 3]) void bench.copier.copy(offset, 8);
    const blocked = bench.copier.copy(4, 8) as Promise<void>;
    const told = expect(blocked).rejects.toThrow('first');
    await bench.end('read', 2);
    await bench.end('read', 1, new Error('first'));
    await told;
    expect(() => bench.copier.copy(5, 8)).toThrow('first');
    let finished = false;
    const finishing = bench.copier.finish().finally(() => {
      finished = true;
    });
    const toldAtEnd = expect(finishing).rejects.toThrow('first');
    await Promise.resolve();
    expect(finished).toBe(false);
    await bench.end('read', 3, new Error('second'));
    await toldAtEnd;
    expect(bench.log.filter((line) => line.startsWith('write'))).toEqual([]);
    expect(bench.pool.taken).toBe(0);
  });

  it('gives the buffer back when a read or write throws at once', () => {
    for (const bad of ['read', 'write']) {
      const pool = new BufferPool({ size: 8, count: 1 });
      const step = (what: string) => (): Pending => {
        if (what === bad) throw new BlockError('IO', bad);
        return undefined;
      };
      const copier = new Copier({ buffers: pool, order: 'serial', read: step('read'), write: step('write') });
      expect(() => copier.copy(0, 8)).toThrow(bad);
      expect(pool.taken).toBe(0);
      expect(() => copier.copy(8, 8)).toThrow(bad);
    }
  });

  it('stops at an abort: what was read is not written any more', async () => {
    const controller = new AbortController();
    const bench = new Bench('serial', {}, controller.signal);
    void bench.copier.copy(1, 8);
    controller.abort();
    await bench.end('read', 1);
    await expect(bench.copier.finish()).rejects.toMatchObject({ code: 'ABORTED' });
    expect(bench.log).toEqual(['read 1']);
  });
});
