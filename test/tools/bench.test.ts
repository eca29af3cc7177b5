/** A load of requests: how many, where, how many at a time, and what becomes of flushes and failures. */
import { expect, it, vi } from 'vitest';
import { MemoryStore } from '../../src/storage/memory.ts';
import { FaultStore } from '../../src/testing/fault-store.ts';
import { LateStore } from '../../src/testing/late-store.ts';
import { type BenchOptions, benchImage } from '../../src/tools/bench.ts';
import { contentOf, KiB, open } from '../image/support/fixtures.ts';
import { MemoryFiles } from '../image/support/memory-protocol.ts';

const BASE: BenchOptions = { kind: 'read', count: 10, depth: 1, length: 512, step: 512 };

async function disk(bytes: number, wrap?: ConstructorParameters<typeof MemoryFiles>[0]) {
  const files = new MemoryFiles(wrap);
  files.add('a', new MemoryStore({ size: bytes }));
  return open(files, 'a', { format: 'raw', readOnly: false });
}

it('sends each request a step behind the one before, and begins again so that each fits the disk', async () => {
  await using image = await disk(4 * KiB);
  const reads = vi.spyOn(image.node, 'read');
  await benchImage(image, { ...BASE, count: 9, length: 1024, step: 1000, offset: 24 });
  const offsets = reads.mock.calls.map(([offset]) => offset);
  expect(offsets).toHaveLength(9);
  expect(offsets.slice(0, 5)).toEqual([24, 1024, 2024, 3024, 952]);
  for (const offset of offsets) expect(offset + 1024).toBeLessThanOrEqual(4 * KiB);
});

it('sends requests as large as the disk, all from its start', async () => {
  await using image = await disk(4 * KiB);
  const reads = vi.spyOn(image.node, 'read');
  await benchImage(image, { ...BASE, count: 3, length: 4 * KiB, step: 512 });
  expect(reads.mock.calls.map(([offset]) => offset)).toEqual([0, 0, 0]);
});

it('writes the pattern where the requests go, and nowhere else', async () => {
  await using image = await disk(8 * KiB);
  await benchImage(image, { ...BASE, kind: 'write', count: 3, step: 2048, offset: 512, pattern: 0x5a });
  const bytes = await contentOf(image);
  for (let at = 0; at < bytes.length; at += 512) {
    const isWritten = [512, 2560, 4608].includes(at);
    expect(bytes.subarray(at, at + 512).every((byte) => byte === (isWritten ? 0x5a : 0))).toBe(true);
  }
});

it.each([1, 3, 64])('has %i requests at a time, never more, and each once', async (depth) => {
  await using image = await disk(64 * KiB, { wrap: (node) => new LateStore({ seed: 5 }, node) });
  const { node } = image;
  let running = 0;
  let most = 0;
  const read = node.read.bind(node);
  const reads = vi.spyOn(node, 'read').mockImplementation((offset, into) => {
    most = Math.max(most, ++running);
    return (async () => {
      await read(offset, into);
      running--;
    })();
  });
  await benchImage(image, { ...BASE, count: 200, depth });
  expect(reads).toHaveBeenCalledTimes(200);
  expect([running, most]).toEqual([0, depth]);
});

it('flushes after so many writes: draining, nothing runs meanwhile', async () => {
  await using image = await disk(64 * KiB, { wrap: (node) => new LateStore({ seed: 6 }, node) });
  const { node } = image;
  let running = 0;
  let written = 0;
  const write = node.write.bind(node);
  vi.spyOn(node, 'write').mockImplementation((offset, from) => {
    running++;
    return (async () => {
      await write(offset, from);
      running--;
      written++;
    })();
  });
  const flush = node.flush.bind(node);
  const seen: number[] = [];
  vi.spyOn(node, 'flush').mockImplementation(async () => {
    expect(running).toBe(0);
    seen.push(written);
    await flush();
    expect(running).toBe(0);
  });
  await benchImage(image, { ...BASE, kind: 'write', count: 50, depth: 4, flushEvery: 8 });
  expect(seen).toHaveLength(6);
  expect(seen.at(-1)).toBeGreaterThanOrEqual(48);
  expect(written).toBe(50);
});

it('ends with the first failure, when everything that ran has ended', async () => {
  let fault: FaultStore | undefined;
  await using image = await disk(64 * KiB, {
    wrap: (node) => {
      fault = new FaultStore(new LateStore({ seed: 7 }, node));
      return fault;
    },
  });
  fault?.fail({ on: 'read', nth: 20, late: true });
  const reads = vi.spyOn(image.node, 'read');
  await expect(benchImage(image, { ...BASE, count: 1000, depth: 8 })).rejects.toMatchObject({ code: 'IO' });
  expect(reads.mock.calls.length).toBeLessThan(60);
  await Promise.allSettled(reads.mock.results.map(({ value }) => value as Promise<void>));
});

it('ends when it is aborted, on stores that answer at once, too', async () => {
  await using image = await disk(64 * KiB);
  const stop = new AbortController();
  const running = benchImage(image, { ...BASE, count: 2 ** 30, signal: stop.signal });
  setImmediate(() => stop.abort());
  await expect(running).rejects.toMatchObject({ code: 'ABORTED' });
});

it.each([
  { depth: 0 },
  { depth: 70_000 },
  { length: 0 },
  { step: 0 },
  { count: -1 },
  { pattern: 256 },
  { offset: 0.5 },
  { depth: 4, flushEvery: 3 },
])('refuses %j', async (wrong) => {
  await using image = await disk(4 * KiB);
  await expect(benchImage(image, { ...BASE, ...wrong })).rejects.toMatchObject({ reason: 'bench.argument' });
});

it('refuses a first request that passes the end of the disk', async () => {
  await using image = await disk(4 * KiB);
  const wanted = { code: 'IO', reason: 'bench.range' };
  await expect(benchImage(image, { ...BASE, offset: 4 * KiB })).rejects.toMatchObject(wanted);
  await expect(benchImage(image, { ...BASE, length: 8 * KiB })).rejects.toMatchObject(wanted);
});
