/** Every qcow2 that qemu-img creates over its options opens here, reads equal and passes our check; every one that we create and write
 *  passes theirs. The usual run takes all pairs of options, the long one their full product (with sizes, backing files and histories
 *  drawn for each). COWDISK_SEED takes other histories. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { checkImage, convertImage, createImage, openImage } from '../../src/node.ts';
import { below, seededRandom } from '../../src/testing/random.ts';
import { describeWithQemu } from '../formats/qcow2/support.ts';
import { allPairs, type Combination, fullProduct, pairsOf, type Rule } from './pairs.ts';
import {
  backingFormat,
  backingSizeOf,
  type Case,
  caseName,
  DIMENSIONS,
  isAllowed,
  optionObject,
  optionString,
  sizeOf,
} from './qcow2-cases.ts';
import { baseContent, historyOf, Model, rawSource, toQemuIo } from './qcow2-history.ts';
import { comparable, countersOf, faultsOf, firstDifference, mapOf, NONE, Workbench } from './qcow2-workbench.ts';

const LONG = process.env['COWDISK_LONG'] === '1';
const SEED = Number(process.env['COWDISK_SEED'] ?? 1);

/** All pairs of everything with sizes that leave room for a history, then what the other sizes add. */
function usualCases(): Case[] {
  const roomy: Rule<typeof DIMENSIONS> = (it) =>
    (it.size === undefined || it.size === 'odd' || it.size === 'whole') && isAllowed(it);
  return allPairs(DIMENSIONS, isAllowed, 2, allPairs(DIMENSIONS, roomy, 1));
}

/** Every combination of create options; what is not one of them is drawn. */
function everyCase(): Case[] {
  const { backing, size, fill, ...options } = DIMENSIONS;
  const random = seededRandom(SEED);
  return fullProduct(options, isAllowed as Rule<typeof options>).map((chosen: Combination<typeof options>) => {
    for (;;) {
      const it: Case = {
        ...chosen,
        backing: backing[below(random, backing.length)] as Case['backing'],
        size: size[below(random, size.length)] as Case['size'],
        fill: fill[below(random, fill.length)] as Case['fill'],
      };
      if (isAllowed(it)) return it;
    }
  });
}

const CASES = (LONG ? everyCase() : usualCases()).map((it, index) => ({ it, index, name: caseName(it) }));

function everyOne(body: (one: (typeof CASES)[number]) => Promise<void>): void {
  for (const one of CASES) it(one.name, () => body(one));
}

describe('all pairs', () => {
  it('hold every pair of values that any allowed combination holds', () => {
    const sizes = { ...DIMENSIONS, clusterSize: [512, 16384, 2097152], refcountBits: [16, 1] } as const;
    const possible = new Set(fullProduct(sizes, isAllowed as Rule<typeof sizes>).flatMap((it) => pairsOf(it)));
    const held = new Set(allPairs(sizes, isAllowed as Rule<typeof sizes>, 3).flatMap((it) => pairsOf(it)));
    expect([...possible].filter((pair) => !held.has(pair))).toEqual([]);
    expect([...held].filter((pair) => !possible.has(pair))).toEqual([]);
  });

  it('are few, allowed, and the same every time', () => {
    const cases = usualCases();
    expect(cases).toEqual(usualCases());
    expect(cases.every((it) => isAllowed(it))).toBe(true);
    expect(cases.length).toBeGreaterThan(63);
    expect(cases.length).toBeLessThan(140);
  });
});

describeWithQemu('the matrix of create options', () => {
  const root = mkdtempSync(join(tmpdir(), 'cowdisk-matrix-'));
  afterAll(() => rmSync(root, { recursive: true, force: true }));
  const within = async (name: string, body: (bench: Workbench) => Promise<void>): Promise<void> => {
    const bench = new Workbench(join(root, name));
    try {
      await body(bench);
    } finally {
      bench.dispose();
    }
  };

  describe.concurrent('qemu-img creates, we read', () => {
    everyOne(({ it, index }) =>
      within(`theirs-${index}`, async (bench) => {
        await theirImage(bench, it, seededRandom(SEED * 65536 + index));
        const image = await openImage(bench.path('image'), { references: 'allow', format: 'qcow2' });
        try {
          expect(image.virtualSize).toBe(Math.ceil(sizeOf(it) / 512) * 512);
          for (const { start, bytes } of new Model(it).windows) {
            const theirs = await bench.bytes('image', 'qcow2', start, bytes.length);
            const ours = await image.read(start, bytes.length);
            expect(firstDifference(ours, theirs), `window at ${start}`).toBeUndefined();
          }
          expect(comparable(await mapOf(image))).toEqual(comparable(await bench.map('image')));
        } finally {
          await image.close();
        }
        const { result } = await checkImage(bench.path('image'), { format: 'qcow2', references: 'allow' });
        const theirs = await bench.check('image');
        expect(faultsOf(theirs)).toEqual(NONE);
        expect(countersOf(result)).toEqual(theirs);
      }),
    );
  });

  describe.concurrent('we create and write, qemu-img reads', () => {
    everyOne(({ it, index }) =>
      within(`ours-${index}`, async (bench) => {
        const random = seededRandom(SEED * 65536 + index);
        const model = await ourImage(bench, it, random);
        expect(faultsOf(await bench.check('image'))).toEqual(NONE);
        for (const { start, bytes } of model.windows) {
          const theirs = await bench.bytes('image', 'qcow2', start, bytes.length);
          expect(firstDifference(bytes, theirs), `window at ${start}`).toBeUndefined();
        }
        if (it.size !== 'huge') {
          const whole = model.windows[0]?.bytes ?? Buffer.alloc(0);
          writeFileSync(bench.path('model.raw'), whole);
          expect(await bench.img('compare', '-f', 'raw', '-F', 'qcow2', 'model.raw', 'image')).toBe(
            'Images are identical.\n',
          );
        }
        const image = await openImage(bench.path('image'), { references: 'allow', format: 'qcow2' });
        try {
          expect(comparable(await mapOf(image))).toEqual(comparable(await bench.map('image')));
        } finally {
          await image.close();
        }
      }),
    );
  });
});

const NAMES = { data: 'data', backing: 'base' };

async function makeBacking(bench: Workbench, it: Case): Promise<void> {
  if (it.backing === 'none') return;
  const size = backingSizeOf(it);
  if (backingFormat(it) === 'raw') {
    const bytes = Buffer.alloc(size);
    for (const { offset, length, pattern } of baseContent(it)) bytes.fill(pattern, offset, offset + length);
    writeFileSync(bench.path('base'), bytes);
    return;
  }
  const clusterSize = Math.max(4096, it.size === 'huge' ? 65536 : 0);
  await bench.img('create', '-q', '-f', 'qcow2', '-o', `cluster_size=${clusterSize}`, 'base', String(size));
  const commands = baseContent(it).map(({ offset, length, pattern }) => `write -P ${pattern} ${offset} ${length}`);
  await bench.io('base', commands);
}

async function theirImage(bench: Workbench, it: Case, random: () => number): Promise<void> {
  await makeBacking(bench, it);
  const options = optionString(it, NAMES);
  if (it.fill === 'converted') {
    writeFileSync(bench.path('source'), rawSource(it, sizeOf(it), random));
    await bench.img('convert', '-c', '-f', 'raw', '-O', 'qcow2', '-o', options, 'source', 'image');
  } else {
    await bench.img('create', '-q', '-f', 'qcow2', '-o', options, 'image', String(sizeOf(it)));
    await bench.io('image', historyOf(it, random, false).map(toQemuIo), '-f', 'qcow2', '-d', 'unmap');
  }
}

/** Two sessions of writing, the second after closing and opening again. */
async function ourImage(bench: Workbench, it: Case, random: () => number): Promise<Model> {
  await makeBacking(bench, it);
  const options = optionObject(it, NAMES);
  const model = new Model(it);
  if (it.fill === 'converted') {
    const source = rawSource(it, sizeOf(it), random);
    writeFileSync(bench.path('source'), source);
    const target = { name: bench.path('image'), format: 'qcow2', options };
    await convertImage([{ name: bench.path('source'), format: 'raw' }], target, { compressed: true });
    model.windows[0]?.bytes.set(source);
  } else {
    const backing = it.backing === 'none' ? undefined : { name: 'base', format: backingFormat(it) };
    await createImage(bench.path('image'), { format: 'qcow2', size: sizeOf(it), options, backing });
  }
  const history = it.fill === 'converted' ? [] : historyOf(it, random, true);
  const half = Math.floor(history.length / 2);
  for (const part of [history.slice(0, half), history.slice(half)]) {
    const image = await openImage(bench.path('image'), { references: 'allow', format: 'qcow2', readOnly: false });
    try {
      for (const operation of part) await model.apply(operation, image);
      for (const { start, bytes } of model.windows) {
        const now = await image.read(start, bytes.length);
        expect(firstDifference(now, bytes), `our own window at ${start}`).toBeUndefined();
      }
    } finally {
      await image.close();
    }
  }
  return model;
}
