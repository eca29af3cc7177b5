/** The cases of the format suite. Each leaves the disk as its model says; the suite then closes, checks and opens it again. */
import { settleAll } from '../base/async.ts';
import { alignUp } from '../bytes/align.ts';
import { isZero } from '../bytes/zeros.ts';
import { ExtentList } from '../core/extent.ts';
import {
  drop,
  type FormatAbilities,
  type FormatBench,
  put,
  putZeroes,
  reopen,
  verify,
  verifyPart,
} from './format-bench.ts';
import { verifyExtents } from './guest.ts';
import { below, noise } from './random.ts';
import { ensure, ensureCode } from './store-bench.ts';

/** What lies below the disk of a case: nothing, or a backing file that is shorter, longer or as long. */
export type CaseBacking = 'none' | 'shorter' | 'longer' | 'equal';

export interface FormatCase {
  readonly name: string;
  readonly needs?: (abilities: FormatAbilities) => boolean;
  readonly backing?: CaseBacking;
  body(bench: FormatBench): Promise<void>;
}

const hasBacking = ({ backing }: FormatAbilities): boolean => backing === true;
const compresses = ({ compress }: FormatAbilities): boolean => compress === true;
const grows = ({ resize }: FormatAbilities): boolean => resize !== undefined;
const shrinks = ({ resize }: FormatAbilities): boolean => resize === 'any';

/** Ranges at every kind of place: whole units, parts of one, across borders, up to the end. */
function places({ unit, model }: FormatBench): readonly (readonly [offset: number, length: number])[] {
  const size = model.length;
  return [
    [0, 1],
    [unit - 1, 2],
    [unit, unit],
    [2 * unit + 3, 7],
    [3 * unit - 100, unit + 200],
    [4 * unit, 3 * unit],
    [7 * unit + 512, 512],
    [size - 1, 1],
    [size - unit - 5, unit],
  ];
}

/** Fills the whole disk. */
async function fill(bench: FormatBench): Promise<void> {
  await put(bench, 0, noise(bench.random, bench.model.length));
}

async function randomRequest(bench: FormatBench): Promise<void> {
  const { random, model, unit, disk } = bench;
  const long = below(random, 4) === 0;
  const length = 1 + below(random, Math.min(model.length, long ? 4 * unit : Math.ceil(unit / 2)));
  const offset = below(random, model.length - length + 1);
  switch (below(random, 8)) {
    case 0:
      return await putZeroes(bench, offset, length, random() < 0.5);
    case 1:
      return await drop(bench, offset, length);
    case 2:
      return await verifyPart(bench, offset, length);
    case 3:
      await disk.flush();
      return;
    default:
      return await put(bench, offset, noise(random, length));
  }
}

async function randomRequests(bench: FormatBench): Promise<void> {
  const steps = bench.options.steps ?? 200;
  for (let i = 0; i < steps; i++) {
    await randomRequest(bench);
    if (i % 50 === 49) {
      await verify(bench);
      await reopen(bench);
    }
  }
  await verify(bench);
  await verifyExtents(bench.disk, bench.model);
}

async function resize(bench: FormatBench, size: number): Promise<void> {
  await bench.disk.truncate(size);
  const model = new Uint8Array(size);
  model.set(bench.model.subarray(0, size));
  bench.model = model;
  await verify(bench);
  await reopen(bench);
  await verify(bench);
}

async function smallWrites(bench: FormatBench): Promise<void> {
  for (const [offset, length] of places(bench)) {
    await put(bench, offset, noise(bench.random, length));
    await verify(bench);
  }
}

export const FORMAT_CASES: readonly FormatCase[] = [
  {
    name: 'a new image has the size it was made with and reads as zero everywhere',
    body: async (bench) => {
      await verify(bench);
      await verifyExtents(bench.disk, bench.model);
    },
  },
  {
    name: 'what is written is read, and its neighbours keep their bytes, at every kind of place',
    body: async (bench) => {
      await smallWrites(bench);
      await smallWrites(bench);
    },
  },
  {
    name: 'many writes at once all arrive, those that share a unit too',
    body: async (bench) => {
      const { random, model, disk, unit } = bench;
      const step = Math.max(64, Math.floor(unit / 5));
      const pendings = [];
      for (let at = 0; at < model.length; at += step) {
        const bytes = noise(random, Math.min(step, model.length - at));
        model.set(bytes, at);
        pendings.push(disk.write(at, bytes));
      }
      await settleAll(pendings);
      await verify(bench);
    },
  },
  {
    name: 'of two writes of one place at once, one is there afterwards, whole',
    body: async (bench) => {
      const { disk, model, unit } = bench;
      const length = Math.min(2 * unit, model.length);
      const one = new Uint8Array(length).fill(1);
      const two = new Uint8Array(length).fill(2);
      await settleAll([disk.write(0, one), disk.write(0, two)]);
      const found = new Uint8Array(length);
      await disk.read(0, found);
      // Sectors come from either, each whole.
      for (let at = 0; at < length; at += 512) {
        const sector = found.subarray(at, Math.min(at + 512, length));
        ensure(sector[0] === 1 || sector[0] === 2, `byte ${at} is ${sector[0]}, neither write wrote it`);
        ensure(
          sector.every((byte) => byte === sector[0]),
          `the sector at ${at} is mixed from two writes`,
        );
      }
      model.set(found);
    },
  },
  {
    name: 'zeroed ranges read as zero, whatever was there',
    body: async (bench) => {
      for (const unmap of [false, true]) {
        await fill(bench);
        for (const [offset, length] of places(bench)) {
          await putZeroes(bench, offset, length, unmap);
          await verifyPart(bench, 0, bench.model.length);
        }
        await verifyExtents(bench.disk, bench.model);
      }
    },
  },
  {
    name: 'what was zeroed can be written again, in parts',
    body: async (bench) => {
      await fill(bench);
      for (const unmap of [false, true]) {
        await putZeroes(bench, 0, bench.model.length, unmap);
        await verify(bench);
        await smallWrites(bench);
      }
    },
  },
  {
    name: 'discarded ranges leave everything around them alone',
    body: async (bench) => {
      await fill(bench);
      for (const [offset, length] of places(bench)) await drop(bench, offset, length);
      await verify(bench);
      await smallWrites(bench);
      await drop(bench, 0, bench.model.length);
      await verify(bench);
      await verifyExtents(bench.disk, bench.model);
    },
  },
  { name: 'random requests agree with a flat model, through reopening', body: randomRequests },
  {
    name: 'the status covers exactly what is asked, in order, and calls nothing zero that is not',
    body: async (bench) => {
      const { disk, model, random, unit } = bench;
      for (let at = 0; at + unit <= model.length; at += 2 * unit) await put(bench, at, noise(random, unit));
      await putZeroes(bench, unit * 4, unit, false);
      for (const capacity of [1, 3, 1000]) {
        const list = new ExtentList(capacity);
        const [start, end] = [unit / 2, model.length - 1];
        for (let at = start; at < end; at = list.end) {
          list.reset(at);
          await disk.extents(at, end - at, list);
          ensure(list.end > at && list.end <= end, `the status of [${at}, ${end}) ends at ${list.end}`);
          for (const extent of list) {
            const { start: from, length, zero, data, hostOffset } = extent;
            const shown = model.subarray(from, from + length);
            ensure(!zero || isZero(shown), `[${from}, ${from + length}) is called zero and is not`);
            ensure(zero || data, `[${from}, ${from + length}) is neither zero nor data`);
            ensure(hostOffset === undefined || extent.node !== undefined, 'a host offset of no file');
          }
        }
      }
    },
  },
  {
    name: 'durable writes, zeroes and empty flushes are accepted',
    body: async (bench) => {
      const bytes = noise(bench.random, 100);
      await bench.disk.write(10, bytes, { fua: true });
      bench.model.set(bytes, 10);
      await bench.disk.writeZeroes(50, 20, { fua: true });
      bench.model.fill(0, 50, 70);
      await bench.disk.flush();
      await bench.disk.flush();
      await verify(bench);
    },
  },
  {
    name: 'requests of no bytes do nothing; those past the end are refused',
    body: async (bench) => {
      const { disk, model } = bench;
      const end = model.length;
      await disk.read(end, new Uint8Array(0));
      await disk.write(end, new Uint8Array(0));
      await disk.writeZeroes(end, 0);
      await disk.discard(end, 0);
      for (const offset of [end, end - 1, -1, 0.5]) {
        await ensureCode('OUT_OF_RANGE', async () => await disk.read(offset, new Uint8Array(2)));
        await ensureCode('OUT_OF_RANGE', async () => await disk.write(offset, new Uint8Array(2)));
        await ensureCode('OUT_OF_RANGE', async () => await disk.writeZeroes(offset, 2));
        await ensureCode('OUT_OF_RANGE', async () => await disk.discard(offset, 2));
      }
    },
  },
  {
    name: 'an image opened read-only is read and never written',
    body: async (bench) => {
      await smallWrites(bench);
      await reopen(bench, true);
      ensure(!bench.disk.supports.write, 'it says that it can be written');
      await verify(bench);
      await ensureCode('READ_ONLY', async () => await bench.disk.write(0, new Uint8Array(1)));
      await ensureCode('READ_ONLY', async () => await bench.disk.writeZeroes(0, 1));
      await ensureCode('READ_ONLY', async () => await bench.disk.discard(0, bench.unit));
      await bench.disk.flush();
      await reopen(bench, false);
      await smallWrites(bench);
    },
  },
  {
    name: 'a request whose signal has fired changes nothing',
    body: async (bench) => {
      const signal = AbortSignal.abort();
      await ensureCode('ABORTED', async () => await bench.disk.write(0, new Uint8Array(8).fill(1), { signal }));
      await ensureCode('ABORTED', async () => await bench.disk.read(0, new Uint8Array(8), { signal }));
      await verify(bench);
    },
  },
  {
    name: 'a closed image refuses everything, and may be closed again',
    body: async (bench) => {
      const { disk } = bench;
      await put(bench, 5, noise(bench.random, 50));
      await disk.close();
      await disk.close();
      await ensureCode('CLOSED', async () => await disk.read(0, new Uint8Array(1)));
      await ensureCode('CLOSED', async () => await disk.write(0, new Uint8Array(1)));
      await ensureCode('CLOSED', async () => await disk.flush());
      bench.disk = await bench.subject.reopen(false);
      await verify(bench);
    },
  },
  {
    name: 'compressed units are read, overwritten in parts, zeroed and compressed again',
    needs: compresses,
    body: async (bench) => {
      const { disk, model, unit, random } = bench;
      for (let round = 0; round < 2; round++) {
        // Every fourth unit does not become smaller.
        for (let at = 0; at < model.length; at += unit) {
          const length = Math.min(unit, model.length - at);
          const bytes =
            below(random, 4) === 0 ? noise(random, length) : new Uint8Array(length).fill(1 + ((at / unit) % 250));
          await disk.write(at, bytes, { compressed: true });
          model.set(bytes, at);
        }
        await verify(bench);
        await verifyExtents(disk, model);
        await smallWrites(bench);
        await putZeroes(bench, unit, 2 * unit, round === 0);
        await drop(bench, 5 * unit, unit);
        await verify(bench);
      }
      await ensureCode('INVALID_ARGUMENT', async () => await disk.write(1, new Uint8Array(unit), { compressed: true }));
    },
  },
  {
    name: 'a disk shows its backing file where nothing was written, and never changes it',
    needs: hasBacking,
    backing: 'equal',
    body: async (bench) => {
      await verify(bench);
      await smallWrites(bench);
      await putZeroes(bench, 0, 2 * bench.unit + 10, true);
      await verify(bench);
      await verifyExtents(bench.disk, bench.model);
    },
  },
  {
    name: 'a discard never shows the backing file again',
    needs: ({ backing, discard }) => backing === true && discard === 'zeroes',
    backing: 'equal',
    body: async (bench) => {
      await fill(bench);
      await drop(bench, 0, bench.model.length);
      ensure(isZero(bench.model), 'the model is not zero');
      await verify(bench);
    },
  },
  {
    name: 'past the end of a shorter backing file the disk reads as zero',
    needs: hasBacking,
    backing: 'shorter',
    body: async (bench) => {
      await verify(bench);
      await verifyExtents(bench.disk, bench.model);
      await randomRequests(bench);
    },
  },
  {
    name: 'a longer backing file is shown up to the end of the disk',
    needs: hasBacking,
    backing: 'longer',
    body: randomRequests,
  },
  {
    name: 'a disk made larger keeps what it has and reads as zero behind its old end',
    needs: grows,
    body: async (bench) => {
      await fill(bench);
      for (const more of [512, 3 * bench.unit, 40 * bench.unit]) {
        await resize(bench, bench.model.length + alignUp(more, bench.options.sizeAlign ?? 512));
        await smallWrites(bench);
      }
    },
  },
  {
    name: 'a disk made smaller forgets what it loses, though it is made larger again',
    needs: shrinks,
    body: async (bench) => {
      await fill(bench);
      const size = bench.model.length;
      await resize(bench, alignUp(size - 2 * bench.unit, bench.options.sizeAlign ?? 512));
      await resize(bench, size);
      await smallWrites(bench);
    },
  },
];
