/** Compression as format rooms ask for it: the same bytes wherever it runs, exact units or CORRUPT, bounded, closable.
 *  Bulk runs in worker threads of the compiled library. */

import fc from 'fast-check';
import { afterEach, describe, expect, it } from 'vitest';
import type { Codecs, CompressedUnits, CompressionType } from '../../src/codec/codecs.ts';
import { type CodecsOptions, createCodecs } from '../../src/codec/create.ts';
import { disk, expectSame, join, lines, noise, QEMU_DEFLATE, QEMU_ZSTD } from '../platform/node/fixtures/samples.ts';

const KiB = 1024;
const MiB = 1024 * KiB;
const TYPES: readonly CompressionType[] = ['deflate', 'zstd'];

const open: Codecs[] = [];
let threads = 0;
process.on('worker', () => threads++);

function codecs(options?: CodecsOptions): Codecs {
  const made = createCodecs(options);
  open.push(made);
  return made;
}

afterEach(async () => {
  await Promise.all(open.splice(0).map((made) => made.close()));
  threads = 0;
});

function shared(bytes: Uint8Array): Uint8Array {
  const copy = new Uint8Array(new SharedArrayBuffer(bytes.length));
  copy.set(bytes);
  return copy;
}

/** The units that became smaller, as a reader gets them, and their guest bytes. */
function stored(result: CompressedUnits, source: Uint8Array, unit: number) {
  const kept = [...result.lengths.keys()].filter((i) => (result.lengths[i] as number) > 0);
  return {
    starts: Int32Array.from(kept, (i) => result.starts[i] as number),
    lengths: Int32Array.from(kept, (i) => result.lengths[i] as number),
    guest: join(...kept.map((i) => source.subarray(i * unit, (i + 1) * unit))),
  };
}

describe.each(TYPES)('%s', (type) => {
  it('gives back what it compressed, for every unit size, and stores nothing for units that do not shrink', async () => {
    const here = codecs({ workers: 0 });
    const away = codecs({ workers: 2 });
    await fc.assert(
      fc.asyncProperty(
        fc.integer({ min: 9, max: 21 }),
        fc.integer({ min: 1, max: 9 }),
        fc.nat(3),
        async (bits, units, seed) => {
          const unit = 2 ** bits;
          const source = disk(bits > 18 ? Math.min(units, 3) : units, unit, seed);
          const result = await (seed % 2 === 0 ? here : away).compress(type, source, unit);
          for (let i = 0; i < source.length / unit; i++) {
            const length = result.lengths[i] as number;
            expect(length).toBeLessThan(unit);
            // Units of pure noise are the third of every four.
            expect(length === 0).toBe((i + seed) % 4 === 2);
          }
          const { starts, lengths, guest } = stored(result, source, unit);
          const into = new Uint8Array(guest.length).fill(0xee);
          await (seed < 2 ? here : away).decompress(type, result.bytes, starts, lengths, unit, into);
          expectSame(into, guest);
        },
      ),
      { numRuns: 40, seed: 20260101 },
    );
  });

  it('makes the same bytes with 0, 1, 2 and 7 workers that take random times, from private and from shared memory', async () => {
    const unit = 16 * KiB;
    const source = disk(160, unit, 1);
    const expected = await codecs({ workers: 0 }).compress(type, source, unit);
    expect(threads).toBe(0);
    const { starts, lengths, guest } = stored(expected, source, unit);
    expect(guest.length).toBeGreaterThan(MiB);
    for (const workers of [1, 2, 7]) {
      threads = 0;
      const pooled = codecs({ workers, delayMs: 6 });
      for (const input of [source, shared(source)]) {
        const result = await pooled.compress(type, input, unit);
        expectSame(result.bytes, expected.bytes);
        expect(result.lengths).toEqual(expected.lengths);
        expect(result.starts).toEqual(expected.starts);
      }
      expect(threads).toBe(workers);
      for (const move of [(bytes: Uint8Array) => bytes, shared]) {
        const into = move(new Uint8Array(guest.length));
        const inside = pooled.decompress(type, move(expected.bytes), starts, lengths, unit, into);
        expect(inside).toBeInstanceOf(Promise);
        await inside;
        expectSame(into, guest);
      }
    }
  });

  it('keeps calls apart that run at the same time', async () => {
    const unit = 64 * KiB;
    const pooled = codecs({ workers: 3, delayMs: 3 });
    const here = codecs({ workers: 0 });
    const sources = Array.from({ length: 6 }, (_, i) => disk(12 + 3 * i, unit, i));
    const results = await Promise.all(sources.map((source) => pooled.compress(type, source, unit)));
    for (const [i, result] of results.entries()) {
      expectSame(result.bytes, (await here.compress(type, sources[i] as Uint8Array, unit)).bytes);
    }
  });

  it("reads QEMU's clusters: sector ranges that hold the next cluster's bytes too", async () => {
    const first = type === 'deflate' ? QEMU_DEFLATE[0] : QEMU_ZSTD[0];
    const encoded = join(noise(100, 1), first, noise(33, 2), first, noise(700, 3));
    const into = new Uint8Array(2 * 4096);
    const starts = Int32Array.of(100, 100 + first.length + 33);
    const lengths = Int32Array.of(first.length + 20, first.length + 700);
    await codecs({ workers: 0 }).decompress(type, encoded, starts, lengths, 4096, into);
    expectSame(into, join(lines(4096, 0), lines(4096, 0)));
  });

  it.each([0, 2])('tells the first unit that is corrupt, with %i workers', async (workers) => {
    const unit = 64 * KiB;
    const source = join(...Array.from({ length: 80 }, (_, i) => lines(unit, i)));
    const pooled = codecs({ workers, delayMs: 3 });
    const { bytes, starts, lengths } = await pooled.compress(type, source, unit);
    const into = new Uint8Array(source.length);
    for (const bad of [[79], [61, 18, 77], [0, 1]]) {
      const broken = bytes.slice();
      for (const i of bad) broken.fill(0xff, starts[i], (starts[i] as number) + 40);
      const attempt = (async () => pooled.decompress(type, broken, starts, lengths, unit, into))();
      await expect(attempt).rejects.toMatchObject({
        code: 'CORRUPT',
        reason: 'codec.data',
        details: { index: Math.min(...bad), type, unit },
      });
    }
    await pooled.decompress(type, bytes, starts, lengths, unit, into);
    expectSame(into, source);
  });

  it('refuses units cut short, and empty ones', async () => {
    const unit = 4096;
    const here = codecs({ workers: 0 });
    const { bytes, lengths } = await here.compress(type, lines(unit, 1), unit);
    const whole = lengths[0] as number;
    const read = async (length: number) =>
      here.decompress(type, bytes, Int32Array.of(0), Int32Array.of(length), unit, new Uint8Array(unit));
    await expect(read(whole)).resolves.toBeUndefined();
    for (const length of [whole - 1, 9, 1, 0]) {
      await expect(read(length)).rejects.toMatchObject({
        code: 'CORRUPT',
        reason: 'codec.data',
        details: { index: 0 },
      });
    }
  });

  it('does a few units at once and in this thread, once the codec is loaded', async () => {
    const pooled = codecs({ workers: 2 });
    const unit = 64 * KiB;
    const source = lines(unit, 4);
    const { bytes, starts, lengths } = await pooled.compress(type, source, unit);
    const into = new Uint8Array(unit);
    expect(pooled.decompress(type, bytes, starts, lengths, unit, into)).toBeUndefined();
    expectSame(into, source);
    expect(threads).toBe(0);
  });

  it('does the first megabytes in this thread, because starting others would take longer', async () => {
    const unit = 64 * KiB;
    const pooled = codecs({ workers: 2 });
    const source = join(...Array.from({ length: 32 }, (_, i) => lines(unit, i)));
    const { bytes, starts, lengths } = await codecs({ workers: 0 }).compress(type, source, unit);
    const into = new Uint8Array(source.length);
    for (let megabytes = 0; megabytes < 4; megabytes += 2) {
      await pooled.decompress(type, bytes, starts, lengths, unit, into);
      expect(threads).toBe(0);
    }
    await pooled.decompress(type, bytes, starts, lengths, unit, into);
    expect(threads).toBe(2);
  });
});

describe('createCodecs', () => {
  it('has a thread for each CPU, 16 at most, where no number is given', () => {
    const { workers } = codecs();
    expect(workers).toBeGreaterThanOrEqual(1);
    expect(workers).toBeLessThanOrEqual(16);
    expect(() => createCodecs({ workers: -1 })).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
    expect(() => createCodecs({ workers: 1.5 })).toThrow(expect.objectContaining({ code: 'INVALID_ARGUMENT' }));
  });

  it('does nothing for nothing', async () => {
    const pooled = codecs({ workers: 2 });
    expect(await pooled.compress('deflate', new Uint8Array(0), 512)).toMatchObject({ bytes: new Uint8Array(0) });
    const none = new Int32Array(0);
    expect(pooled.decompress('deflate', new Uint8Array(0), none, none, 512, new Uint8Array(0))).toBeUndefined();
  });

  it('refuses ranges outside the bytes, buffers that are too small, and units that are none', async () => {
    const here = codecs({ workers: 0 });
    const bytes = new Uint8Array(100);
    const invalid = expect.objectContaining({ code: 'INVALID_ARGUMENT', reason: 'codec.argument' });
    const read = (start: number, length: number, unit: number, into: number) => () =>
      here.decompress('deflate', bytes, Int32Array.of(start), Int32Array.of(length), unit, new Uint8Array(into));
    expect(read(50, 51, 512, 512)).toThrow(invalid);
    expect(read(-1, 10, 512, 512)).toThrow(invalid);
    expect(read(0, -1, 512, 512)).toThrow(invalid);
    expect(read(0, 10, 512, 511)).toThrow(invalid);
    expect(read(0, 10, 0, 512)).toThrow(invalid);
    await expect(here.compress('deflate', bytes, 512)).rejects.toEqual(invalid);
    await expect(here.compress('deflate', bytes, 0)).rejects.toEqual(invalid);
  });

  it('holds little shared memory although everything is asked at once', async () => {
    const unit = 64 * KiB;
    const pooled = codecs({ workers: 2 });
    const source = disk(32, unit, 0);
    const made = SharedArrayBuffer;
    let bytes = 0;
    globalThis.SharedArrayBuffer = class extends made {
      constructor(length: number) {
        super(length);
        bytes += length;
      }
    } as typeof SharedArrayBuffer;
    try {
      // 200 MiB, each of which would take twice as much shared memory.
      const results = await Promise.all(Array.from({ length: 100 }, () => pooled.compress('zstd', source, unit)));
      for (const result of results) expectSame(result.bytes, (results[0] as CompressedUnits).bytes);
    } finally {
      globalThis.SharedArrayBuffer = made;
    }
    expect(bytes).toBeGreaterThan(0);
    expect(bytes).toBeLessThanOrEqual(64 * MiB);
  });

  it('lets running batches end when it is closed, refuses the others with CLOSED, and is idempotent', async () => {
    const unit = 64 * KiB;
    const pooled = codecs({ workers: 1, delayMs: 10 });
    const source = join(...Array.from({ length: 8 }, (_, i) => lines(unit, i)));
    await pooled.compress('deflate', join(source, source, source), unit);
    const calls = Array.from({ length: 200 }, () => pooled.compress('deflate', source, unit));
    const outcomes = Promise.allSettled(calls);
    await Promise.resolve();
    const closing = pooled.close();
    expect(pooled.close()).toBe(closing);
    const settled = await outcomes;
    await closing;
    expect(settled.slice(0, 2).map((outcome) => outcome.status)).toEqual(['fulfilled', 'fulfilled']);
    expect(settled[199]).toMatchObject({ status: 'rejected', reason: { code: 'CLOSED' } });
    for (const outcome of settled) {
      if (outcome.status === 'rejected') expect(outcome.reason).toMatchObject({ code: 'CLOSED' });
    }
  });

  it.each([0, 2])('refuses everything after it is closed, with %i workers', async (workers) => {
    const pooled = codecs({ workers });
    await pooled.close();
    await expect(pooled.compress('deflate', new Uint8Array(512), 512)).rejects.toMatchObject({ code: 'CLOSED' });
    const one = Int32Array.of(0);
    expect(() => pooled.decompress('deflate', new Uint8Array(9), one, one, 512, new Uint8Array(512))).toThrow(
      expect.objectContaining({ code: 'CLOSED' }),
    );
  });
});
