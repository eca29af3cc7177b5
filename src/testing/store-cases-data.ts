/** Cases of the store suite: reading and writing, ranges, alignment, long and far requests. */
import { alignDown, alignUp } from '../bytes/align.ts';
import { ExtentList } from '../core/extent.ts';
import { noise } from './random.ts';
import {
  always,
  BASE_SIZE,
  type Bench,
  type Case,
  ensure,
  ensureCode,
  ensureSame,
  ensureZero,
  fixed,
  grows,
  readBytes,
} from './store-bench.ts';
export const DATA_CASES: readonly Case[] = [
  ['a read gives what was written', always, readsBack],
  ['a read fills exactly its buffer, inside a larger one and in shared memory too', always, fillsExactly],
  ['bytes past the end read as zero', always, readsPastEnd],
  ['requests of no bytes do nothing', always, zeroLength],
  ['a write past the end grows the store, and the gap reads as zero', grows, growsByWriting],
  ['a request past the end is refused with OUT_OF_RANGE where the size is fixed', fixed, refusesPastEnd],
  ['negative, fractional and oversized ranges are refused with OUT_OF_RANGE', always, refusesBadRanges],
  ['requests that break requestAlign are refused', (store) => store.limits.requestAlign > 1, refusesUnaligned],
  ['several buffers are written end to end', (store) => store.writev !== undefined, writesVectors],
  ['a long request is carried out whole', always, longRequests],
  [
    'offsets beyond 4 GiB are exact',
    (store, _, options) => grows(store) && options.farOffset !== undefined,
    farOffsets,
  ],
];

async function readsBack({ store, random, align, model }: Bench): Promise<void> {
  for (const [offset, length] of [
    [0, align],
    [align, 3 * align],
    [alignDown(1000, align), alignUp(5000, align)],
    [alignDown(65_535, align), alignUp(2, align)],
    [4096, 4096],
  ] as const) {
    const data = noise(random, length);
    await store.write(offset, data);
    model.set(data, offset);
    ensureSame(await readBytes(store, offset, length), data, offset);
  }
  ensureSame(await readBytes(store, 0, BASE_SIZE), model, 0);
}

async function fillsExactly({ store, align, model }: Bench): Promise<void> {
  const length = alignUp(700, align);
  for (const memory of [new ArrayBuffer(length + 200), new SharedArrayBuffer(length + 200)]) {
    const around = new Uint8Array(memory).fill(0xaa);
    await store.read(align, around.subarray(100, 100 + length));
    ensureSame(around.slice(100, 100 + length), model.subarray(align, align + length), align);
    const untouched = new Uint8Array(100).fill(0xaa);
    ensureSame(around.slice(0, 100), untouched, 0);
    ensureSame(around.slice(100 + length), untouched, 0);
  }
}

async function readsPastEnd({ store, size, align }: Bench): Promise<void> {
  const start = alignDown(size - 1000, align);
  const tail = await readBytes(store, start, size - start);
  const across = await readBytes(store, start, alignUp(3000, align));
  ensureSame(across.subarray(0, size - start), tail, start);
  ensureZero(across.subarray(size - start), size);
  ensureZero(await readBytes(store, alignUp(size, align), alignUp(5000, align)), size);
  ensureZero(await readBytes(store, alignUp(size + 2 ** 40, align), alignUp(5000, align)), size + 2 ** 40);
}

async function zeroLength({ store, size, model }: Bench): Promise<void> {
  await store.read(0, new Uint8Array(0));
  await store.write(0, new Uint8Array(0));
  await store.writev?.(0, []);
  await store.writev?.(0, [new Uint8Array(0), new Uint8Array(0)]);
  await store.writeZeroes(0, 0);
  await store.discard(0, 0);
  const list = new ExtentList();
  await store.extents(0, 0, list);
  ensure(list.count === 0, 'extents of no bytes gave some');
  if (store.supports.truncate) await store.write(alignUp(size + 2 ** 20, store.limits.requestAlign), new Uint8Array(0));
  ensure(store.size === size, `the size went from ${size} to ${store.size}`);
  ensureSame(await readBytes(store, 0, BASE_SIZE), model, 0);
}

async function growsByWriting({ store, size, align, random }: Bench): Promise<void> {
  const offset = alignUp(size + 70_000, align);
  const data = noise(random, alignUp(3000, align));
  await store.write(offset, data);
  ensure(store.size === offset + data.length, `size ${store.size} after a write that ends at ${offset + data.length}`);
  ensureZero(await readBytes(store, size, offset - size), size);
  ensureSame(await readBytes(store, offset, data.length), data, offset);
  await store.write(0, data);
  ensure(store.size === offset + data.length, 'a write inside changed the size');
}

async function refusesPastEnd({ store, size, align }: Bench): Promise<void> {
  const last = alignDown(size - 1, align);
  const bytes = new Uint8Array(2 * align);
  await ensureCode('OUT_OF_RANGE', () => store.write(last, bytes));
  await ensureCode('OUT_OF_RANGE', () => store.writeZeroes(last, 2 * align));
  await ensureCode('OUT_OF_RANGE', () => store.discard(last, 2 * align));
  if (store.writev !== undefined) await ensureCode('OUT_OF_RANGE', () => store.writev?.(last, [bytes]));
  await ensureCode('UNSUPPORTED', () => store.truncate(size + align));
  ensure(store.size === size, 'the size changed');
}

async function refusesBadRanges({ store, align, model }: Bench): Promise<void> {
  const bytes = new Uint8Array(align);
  for (const offset of [-align, 0.5, Number.NaN, Number.POSITIVE_INFINITY, 2 ** 53, Number.MAX_SAFE_INTEGER]) {
    await ensureCode('OUT_OF_RANGE', () => store.read(offset, bytes));
    await ensureCode('OUT_OF_RANGE', () => store.write(offset, bytes));
    if (store.writev !== undefined) await ensureCode('OUT_OF_RANGE', () => store.writev?.(offset, [bytes]));
    await ensureCode('OUT_OF_RANGE', () => store.writeZeroes(offset, align));
    await ensureCode('OUT_OF_RANGE', () => store.discard(offset, align));
    await ensureCode('OUT_OF_RANGE', () => store.extents(offset, align, new ExtentList()));
  }
  for (const length of [-align, 0.5, Number.NaN, 2 ** 53]) {
    await ensureCode('OUT_OF_RANGE', () => store.writeZeroes(0, length));
    await ensureCode('OUT_OF_RANGE', () => store.discard(0, length));
  }
  if (store.supports.truncate) {
    for (const size of [-1, 0.5, Number.NaN]) await ensureCode('INVALID_ARGUMENT', () => store.truncate(size));
  }
  ensureSame(await readBytes(store, 0, BASE_SIZE), model, 0);
}

async function refusesUnaligned({ store, align }: Bench): Promise<void> {
  await ensureCode('INVALID_ARGUMENT', () => store.read(1, new Uint8Array(align)));
  await ensureCode('INVALID_ARGUMENT', () => store.read(0, new Uint8Array(align + 1)));
  await ensureCode('INVALID_ARGUMENT', () => store.write(1, new Uint8Array(align)));
  await ensureCode('INVALID_ARGUMENT', () => store.writeZeroes(0, align - 1));
}

async function writesVectors({ store, align, random, model }: Bench): Promise<void> {
  for (const lengths of [
    [align],
    [3 * align, 0, 2 * align],
    [0, 0, align],
    Array.from({ length: 40 }, () => align),
    [0, ...Array.from({ length: 1500 }, () => Math.max(align, 7)), 0].map((length) => alignUp(length, align)),
  ]) {
    const parts = lengths.map((length) => noise(random, length));
    const total = lengths.reduce((sum, length) => sum + length, 0);
    if (align + total > BASE_SIZE) continue;
    await store.writev?.(align, parts);
    let at = align;
    for (const part of parts) {
      model.set(part, at);
      at += part.length;
    }
    ensureSame(await readBytes(store, 0, BASE_SIZE), model, 0);
  }
}

async function longRequests({ store, size, align, random, options }: Bench): Promise<void> {
  const wish = options.longest ?? 1536 * 1024;
  const length = alignDown(Math.min(wish, store.supports.truncate ? wish : size - align), align);
  const data = noise(random, length);
  await store.write(align, data);
  ensureSame(await readBytes(store, align, length), data, align);
  if (store.writev !== undefined) {
    const parts = [data.subarray(length - align), data.subarray(0, length - align)];
    await store.writev(align, parts);
    ensureSame(await readBytes(store, align, align), parts[0] as Uint8Array, align);
    ensureSame(await readBytes(store, 2 * align, length - align), parts[1] as Uint8Array, 2 * align);
  }
  await store.writeZeroes(2 * align, length - 2 * align);
  ensureZero(await readBytes(store, 2 * align, length - 2 * align), 2 * align);
  // What lies behind the zeros is the last of whichever write came last.
  const end = store.writev === undefined ? length : length - align;
  ensureSame(await readBytes(store, length, align), data.subarray(end - align, end), length);
}

async function farOffsets({ store, options, random, align, model }: Bench): Promise<void> {
  const { farOffset } = options;
  if (farOffset === undefined) return;
  const data = noise(random, alignUp(4096, align));
  await store.write(farOffset, data);
  ensure(store.size === farOffset + data.length, `size ${store.size} after a write at ${farOffset}`);
  ensureSame(await readBytes(store, farOffset, data.length), data, farOffset);
  // what 32-bit arithmetic would have hit
  ensureSame(await readBytes(store, 0, BASE_SIZE), model, 0);
  ensureZero(await readBytes(store, farOffset - data.length, data.length), farOffset - data.length);
  await store.writeZeroes(farOffset, align, { unmap: true });
  ensureZero(await readBytes(store, farOffset, align), farOffset);
  ensureSame(await readBytes(store, farOffset + align, data.length - align), data.subarray(align), farOffset + align);
  const list = new ExtentList();
  list.reset(farOffset);
  await store.extents(farOffset, data.length, list);
  ensure(list.end === farOffset + data.length, `extents end at ${list.end}`);
  await store.truncate(farOffset + align);
  ensure(store.size === farOffset + align, `size ${store.size} after truncate(${farOffset + align})`);
}
