/** Cases of the store suite: requests side by side, flush, abort, close, and a long random run. */
import { type Pending, settleAll } from '../base/async.ts';
import { alignDown, alignUp } from '../bytes/align.ts';
import { ExtentList } from '../core/extent.ts';
import { below, noise } from './random.ts';
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
  reopens,
  resized,
  started,
  window,
  withBytes,
} from './store-bench.ts';
export const LIFE_CASES: readonly Case[] = [
  ['requests side by side do not disturb each other', always, sideBySide],
  ['growing from both ends at once loses nothing', grows, growsSideBySide],
  ['flush ends, and fua writes are there', always, flushes],
  ['a store that claims sync answers without promises', (store) => store.supports.sync, answersAtOnce],
  ['an aborted request ends with ABORTED or done', always, aborts],
  ['random requests agree with a flat array', always, agreesWithModel],
  ['events pass', (store) => store.event !== undefined, passesEvents],
  ['status tells plausible numbers', (store) => store.status !== undefined, tellsStatus],
  ['after close every call is refused with CLOSED, and close is idempotent', always, refusesAfterClose],
  ['what was written is there after closing and opening again', reopens, lasts],
  ['a read-only store reads and refuses every change', reopens, refusesReadOnly],
];

async function sideBySide({ store, align, random, model }: Bench): Promise<void> {
  const pieces = 32;
  const length = alignDown(BASE_SIZE / pieces, align);
  const before = model.slice();
  const jobs: Promise<void>[] = [];
  for (let i = 0; i < pieces; i++) {
    const at = i * length;
    if (i % 2 === 0) {
      const data = noise(random, length);
      model.set(data, at);
      jobs.push(started(() => store.write(at, data)));
    } else {
      jobs.push(readBytes(store, at, length).then((got) => ensureSame(got, before.subarray(at, at + length), at)));
    }
  }
  await Promise.all(jobs);
  ensureSame(await readBytes(store, 0, BASE_SIZE), model, 0);
}

async function growsSideBySide({ store, size, align, random, options }: Bench): Promise<void> {
  const long = alignUp(Math.min(options.longest ?? 1536 * 1024, 1024 * 1024), align);
  const data = noise(random, long);
  const far = alignUp(size + 8 * 1024 * 1024, align);
  const end = far + 3 * long;
  const jobs = [
    started(() => store.write(far, data)),
    started(() => store.writeZeroes(size, align)),
    started(() => store.write(far + 2 * long, data)),
    started(() => store.writeZeroes(alignUp(size + 4 * 1024 * 1024, align), align)),
  ];
  await Promise.all(jobs);
  ensure(store.size === end, `size ${store.size} after writes up to ${end}`);
  ensureSame(await readBytes(store, far, long), data, far);
  ensureZero(await readBytes(store, far + long, long), far + long);
  ensureSame(await readBytes(store, far + 2 * long, long), data, far + 2 * long);
}

async function flushes({ store, align, random, model }: Bench): Promise<void> {
  await store.flush();
  const data = noise(random, align);
  await store.write(0, data, { fua: true });
  model.set(data, 0);
  await store.writev?.(0, [data], { fua: true });
  await store.writeZeroes(4096, 4096, { fua: true });
  model.fill(0, 4096, 8192);
  await Promise.all([started(() => store.flush()), started(() => store.flush())]);
  ensureSame(await readBytes(store, 0, BASE_SIZE), model, 0);
}

async function answersAtOnce({ store, align, size }: Bench): Promise<void> {
  const bytes = new Uint8Array(2 * 1024 * 1024);
  const list = new ExtentList();
  list.reset(0);
  const answers: [string, Pending][] = [
    ['read', store.read(0, bytes)],
    ['write', store.write(0, bytes.subarray(0, alignDown(size, align)))],
    ['writeZeroes', store.writeZeroes(0, align)],
    ['discard', store.discard(0, align)],
    ['extents', store.extents(0, size, list)],
  ];
  await settleAll(answers.map(([, pending]) => pending));
  for (const [what, pending] of answers) ensure(pending === undefined, `${what} gave a promise`);
}

async function aborts({ store, model }: Bench): Promise<void> {
  const signal = AbortSignal.abort(new Error('by the test'));
  const zeros = new Uint8Array(4096);
  for (const call of [
    () => store.read(0, new Uint8Array(4096), { signal }),
    () => store.write(0, zeros, { signal }),
    () => store.writeZeroes(0, 4096, { signal }),
    () => store.flush({ signal }),
  ]) {
    try {
      await call();
    } catch (error) {
      ensureErrorCode('ABORTED', error);
    }
  }
  await store.write(0, model.subarray(0, 4096));
  ensureSame(await readBytes(store, 0, BASE_SIZE), model, 0);
}

async function agreesWithModel(bench: Bench): Promise<void> {
  const { store, align, random, options, size } = bench;
  let model = bench.model;
  if (!store.supports.truncate) model = model.slice(0, Math.min(size, BASE_SIZE));
  const limit = 2 * BASE_SIZE;
  for (let step = 0; step < (options.steps ?? 150); step++) {
    const room = store.supports.truncate ? limit : model.length;
    const offset = alignDown(below(random, room - align), align);
    const most = below(random, 8) === 0 ? room : 20_000;
    const length = Math.min(alignUp(1 + below(random, most), align), alignDown(room - offset, align));
    const choice = below(random, 8);
    if (choice <= 1 && store.supports.truncate && below(random, 4) === 0) {
      await store.truncate(offset);
      model = resized(model, offset);
    } else if (choice <= 2) {
      const data = noise(random, length);
      await store.write(offset, data);
      model = withBytes(model, offset, data);
    } else if (choice === 3 && store.writev !== undefined) {
      const data = noise(random, length);
      const middle = alignDown(below(random, length + 1), align);
      await store.writev(offset, [data.subarray(0, middle), data.subarray(middle)]);
      model = withBytes(model, offset, data);
    } else if (choice === 4) {
      await store.writeZeroes(offset, length, { unmap: below(random, 2) === 0 });
      model = withBytes(model, offset, new Uint8Array(length));
    } else if (choice === 5) {
      await store.discard(offset, length);
      // whatever is there now is as good as anything else, but stays
      const end = Math.min(offset + length, model.length);
      if (end > offset) model.set((await readBytes(store, offset, length)).subarray(0, end - offset), offset);
    } else if (choice === 6) await store.flush();
    else ensureSame(await readBytes(store, offset, length), window(model, offset, length), offset);
    if (store.supports.truncate) ensure(store.size === model.length, `step ${step}: size ${store.size}`);
  }
  ensureSame(
    await readBytes(store, 0, alignUp(model.length, align)),
    window(model, 0, alignUp(model.length, align)),
    0,
  );
}

async function passesEvents({ store }: Bench): Promise<void> {
  await store.event?.('l2_load');
  await store.event?.('an event nobody knows');
}

async function tellsStatus({ store }: Bench): Promise<void> {
  const status = await store.status?.();
  ensure(status !== undefined, 'no status');
  const { allocatedBytes, modifiedSeconds, identity } = status;
  ensure(
    allocatedBytes === undefined || (Number.isSafeInteger(allocatedBytes) && allocatedBytes >= 0),
    'allocatedBytes',
  );
  ensure(
    modifiedSeconds === undefined || (Number.isSafeInteger(modifiedSeconds) && modifiedSeconds > 0),
    'modifiedSeconds',
  );
  ensure(identity === undefined || identity.length > 0, 'identity');
}

async function refusesAfterClose({ store, align }: Bench): Promise<void> {
  await Promise.all([store.close(), store.close()]);
  await store.close();
  const bytes = new Uint8Array(align);
  await ensureCode('CLOSED', () => store.read(0, bytes));
  await ensureCode('CLOSED', () => store.write(0, bytes));
  if (store.writev !== undefined) await ensureCode('CLOSED', () => store.writev?.(0, [bytes]));
  await ensureCode('CLOSED', () => store.writeZeroes(0, align));
  await ensureCode('CLOSED', () => store.discard(0, align));
  await ensureCode('CLOSED', () => store.extents(0, align, new ExtentList()));
  await ensureCode('CLOSED', () => store.flush());
  await ensureCode('CLOSED', () => store.truncate(0));
  if (store.status !== undefined) await ensureCode('CLOSED', () => store.status?.());
}

async function lasts({ store, subject, size, align, random, model }: Bench): Promise<void> {
  const data = noise(random, alignUp(3000, align));
  // still running when close is called: it must end first
  const pending = started(() => store.write(align, data));
  model.set(data, align);
  await Promise.all([pending, store.close()]);
  if (subject.reopen === undefined) return; // `reopens` says that it is there
  const again = await subject.reopen(false);
  try {
    ensure(again.size === size, `size ${again.size} after opening again, ${size} before`);
    ensureSame(await readBytes(again, 0, BASE_SIZE), model, 0);
  } finally {
    await again.close();
  }
}

async function refusesReadOnly({ store, subject, size, align, model }: Bench): Promise<void> {
  if (subject.reopen === undefined) return; // `reopens` says that it is there
  await store.close();
  const reader = await subject.reopen(true);
  try {
    ensure(!reader.supports.write, 'a read-only store claims that it writes');
    const bytes = new Uint8Array(align);
    await ensureCode('READ_ONLY', () => reader.write(0, bytes));
    if (reader.writev !== undefined) await ensureCode('READ_ONLY', () => reader.writev?.(0, [bytes]));
    await ensureCode('READ_ONLY', () => reader.writeZeroes(0, align));
    await ensureCode('READ_ONLY', () => reader.discard(0, align));
    await ensureCode('READ_ONLY', () => reader.truncate(0));
    await reader.flush();
    ensure(reader.size === size, 'the size changed');
    ensureSame(await readBytes(reader, 0, BASE_SIZE), model, 0);
  } finally {
    await reader.close();
  }
}
