/** Cases of the store suite: zeroing, discarding, extents, growing and cutting. */
import { alignDown, alignUp } from '../bytes/align.ts';
import { EXTENT, ExtentList } from '../core/extent.ts';
import { noise } from './random.ts';
import {
  always,
  BASE_SIZE,
  type Bench,
  type Case,
  ensure,
  ensureCode,
  ensureErrorCode,
  ensureSame,
  ensureZero,
  grows,
  readBytes,
} from './store-bench.ts';
export const SPACE_CASES: readonly Case[] = [
  ['writeZeroes makes exactly its range read as zero', always, zeroes],
  ['writeZeroes with unmap makes exactly its range read as zero', always, zeroesUnmapping],
  ['writeZeroes past the end grows the store', grows, zeroesPastEnd],
  ['fastOnly zeroes or answers UNSUPPORTED and changes nothing', always, fastOnlyZeroes],
  ['a discard leaves its neighbours alone and never changes the size', always, discards],
  ['extents are contiguous, and what they call zero reads as zero', always, extentsAreTrue],
  ['extents stop when the list is full and go on from there', always, extentsResume],
  ['extents past the end are zero', always, extentsPastEnd],
  ['holes are told from data', (store) => store.supports.extents && store.supports.truncate, extentsTellHoles],
  ['truncate cuts off, and growing again shows zeros', grows, truncates],
  ['preallocation changes no content', grows, preallocates],
  ['preallocation when shrinking is refused', grows, refusesPreallocatedShrink],
];

/** Ranges over page and block borders, aligned and not. */
function zeroRanges(align: number): readonly (readonly [number, number])[] {
  return [
    [0, alignUp(100, align)],
    [alignDown(1000, align), alignUp(9000, align)],
    [16_384, 65_536],
    [65_536, 131_072],
    [alignDown(200_001, align), align],
  ];
}

async function zeroes(bench: Bench): Promise<void> {
  await zeroesBy(bench, false);
}

async function zeroesUnmapping(bench: Bench): Promise<void> {
  await zeroesBy(bench, true);
}

async function zeroesBy({ store, align, random, model, size }: Bench, unmap: boolean): Promise<void> {
  for (const [offset, length] of zeroRanges(align)) {
    await store.writeZeroes(offset, length, { unmap });
    model.fill(0, offset, offset + length);
    ensureSame(await readBytes(store, 0, BASE_SIZE), model, 0);
  }
  const data = noise(random, alignUp(5000, align));
  await store.write(0, data);
  model.set(data, 0);
  ensureSame(await readBytes(store, 0, BASE_SIZE), model, 0);
  ensure(store.size === size, 'zeroing inside changed the size');
}

async function zeroesPastEnd({ store, size, align, model }: Bench): Promise<void> {
  const offset = alignDown(size - 5000, align);
  await store.writeZeroes(offset, alignUp(20_000, align));
  const end = offset + alignUp(20_000, align);
  ensure(store.size === end, `size ${store.size} after zeroing up to ${end}`);
  model.fill(0, offset);
  ensureSame(await readBytes(store, 0, BASE_SIZE), model, 0);
  const far = alignUp(end + 100_000, align);
  await store.writeZeroes(far, align, { unmap: true });
  ensure(store.size === far + align, `size ${store.size} after zeroing up to ${far + align}`);
  ensureZero(await readBytes(store, offset, far + align - offset), offset);
}

async function fastOnlyZeroes({ store, model, size }: Bench): Promise<void> {
  for (const unmap of [false, true]) {
    try {
      await store.writeZeroes(65_536, 65_536, { fastOnly: true, unmap });
      model.fill(0, 65_536, 131_072);
    } catch (error) {
      ensureErrorCode('UNSUPPORTED', error);
    }
    ensureSame(await readBytes(store, 0, BASE_SIZE), model, 0);
  }
  ensure(store.size === size, 'the size changed');
}

async function discards({ store, size, align, model }: Bench): Promise<void> {
  const [start, end] = [alignDown(70_000, align), alignDown(210_000, align)];
  await store.discard(start, end - start);
  ensureSame(await readBytes(store, 0, start), model.subarray(0, start), 0);
  ensureSame(await readBytes(store, end, BASE_SIZE - end), model.subarray(end), end);
  if (store.supports.truncate) await store.discard(alignDown(size - align, align), alignUp(2 ** 20, align));
  ensure(store.size === size, `the size went from ${size} to ${store.size}`);
  await store.write(start, model.subarray(start, end));
  ensureSame(await readBytes(store, start, end - start), model.subarray(start, end), start);
}

async function extentsAreTrue({ store, align, model }: Bench): Promise<void> {
  await store.writeZeroes(65_536, 65_536, { unmap: true });
  model.fill(0, 65_536, 131_072);
  for (const [offset, length] of [
    [0, BASE_SIZE],
    [alignDown(1001, align), alignUp(99_999, align)],
    [alignDown(70_001, align), align],
    [BASE_SIZE - align, align],
  ] as const) {
    const list = new ExtentList();
    list.reset(offset);
    await store.extents(offset, length, list);
    ensure(list.end === offset + length, `extents of ${length} bytes at ${offset} end at ${list.end}`);
    for (let i = 0; i < list.count; i++) {
      const [start, bytes] = [list.startAt(i), list.lengthAt(i)];
      ensure(bytes > 0, `extent ${i} at ${start} has ${bytes} bytes`);
      if (list.at(i).zero) ensureZero(model.subarray(start, start + bytes), start);
    }
  }
}

async function extentsResume({ store }: Bench): Promise<void> {
  if (store.supports.writeZeroes !== 'no') {
    for (let at = 0; at < BASE_SIZE; at += 131_072) await store.writeZeroes(at, 65_536, { unmap: true });
  }
  const all = new ExtentList();
  all.reset(0);
  await store.extents(0, BASE_SIZE, all);
  const piecewise = new ExtentList();
  piecewise.reset(0);
  const one = new ExtentList(1);
  while (piecewise.end < BASE_SIZE) {
    const at = piecewise.end;
    one.reset(at);
    await store.extents(at, BASE_SIZE - at, one);
    ensure(one.end > at, `extents at ${at} covered nothing`);
    ensure(one.end <= BASE_SIZE, `extents went past the range, to ${one.end}`);
    piecewise.add(one.lengthAt(0), one.flagsAt(0), one.hostOffsetAt(0), one.nodeAt(0), one.depthAt(0));
  }
  const [a, b] = [JSON.stringify([...all]), JSON.stringify([...piecewise])];
  ensure(a === b, `extents one by one differ: ${a} and ${b}`);
}

async function extentsPastEnd({ store, size, align }: Bench): Promise<void> {
  const list = new ExtentList();
  const start = alignUp(size, align);
  list.reset(start);
  await store.extents(start, 8 * align, list);
  ensure(list.end > start, 'nothing was said about bytes past the end');
  for (const extent of list) ensure(extent.zero, 'bytes past the end are not zero');
}

async function extentsTellHoles({ store, size, align, random }: Bench): Promise<void> {
  const hole = 16 * 1024 * 1024;
  const end = alignUp(size, 4096) + hole;
  await store.write(end, noise(random, alignUp(4096, align)));
  const list = new ExtentList();
  list.reset(0);
  await store.extents(0, store.size, list);
  let zero = 0;
  for (let i = 0; i < list.count; i++) {
    const flags = list.flagsAt(i);
    if (flags === EXTENT.present + EXTENT.zero) zero += list.lengthAt(i);
    else ensure(flags === EXTENT.present + EXTENT.data, `extent flags ${flags}`);
  }
  ensure(zero > hole / 2, `${zero} bytes of a hole of ${hole} were found`);
}

async function truncates({ store, size, align, model }: Bench): Promise<void> {
  const cut = alignUp(size - 100_001, align);
  await store.truncate(cut);
  ensure(store.size === cut, `size ${store.size} after truncate(${cut})`);
  ensureSame(await readBytes(store, 0, cut), model.subarray(0, cut), 0);
  ensureZero(await readBytes(store, cut, alignUp(1000, align)), cut);
  await store.truncate(alignUp(size + 50_000, align));
  ensure(store.size === alignUp(size + 50_000, align), 'truncate did not grow the store');
  ensureZero(await readBytes(store, cut, store.size - cut), cut);
  await store.truncate(0);
  ensure(store.size === 0, 'truncate(0) left something');
  await store.truncate(store.size);
}

async function preallocates({ store, size, align, model, random }: Bench): Promise<void> {
  let end = size;
  for (const preallocation of ['falloc', 'full', 'off'] as const) {
    const next = alignUp(end + 300_000, align);
    await store.truncate(next, { preallocation });
    ensure(store.size === next, `size ${store.size} after truncate(${next}, ${preallocation})`);
    ensureZero(await readBytes(store, end, next - end), end);
    end = next;
  }
  ensureSame(await readBytes(store, 0, BASE_SIZE), model, 0);
  const data = noise(random, alignUp(1000, align));
  await store.write(alignUp(size + 5000, align), data);
  ensureSame(await readBytes(store, alignUp(size + 5000, align), data.length), data, size + 5000);
  ensure(store.size === end, 'a write into preallocated space changed the size');
}

async function refusesPreallocatedShrink({ store, size, model }: Bench): Promise<void> {
  for (const preallocation of ['falloc', 'full'] as const) {
    await ensureCode('INVALID_ARGUMENT', () => store.truncate(65_536, { preallocation }));
  }
  ensure(store.size === size, 'the size changed');
  ensureSame(await readBytes(store, 0, BASE_SIZE), model, 0);
}
