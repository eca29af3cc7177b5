/** Chains of mixed formats and sizes, and images that QEMU and this library write in turn: after each turn both tools find the image
 *  sound, and both read what a model says. COWDISK_SEED takes other histories. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, expect, it } from 'vitest';
import { checkImage, createImage, openImage } from '../../src/node.ts';
import { below, seededRandom } from '../../src/testing/random.ts';
import { describeWithQemu } from '../formats/qcow2/support.ts';
import { type Case, KiB, MiB } from './qcow2-cases.ts';
import { historyOf, Model, toQemuIo } from './qcow2-history.ts';
import { comparable, countersOf, faultsOf, firstDifference, mapOf, NONE, Workbench } from './qcow2-workbench.ts';

const SEED = Number(process.env['COWDISK_SEED'] ?? 1);
const ROUNDS = process.env['COWDISK_LONG'] === '1' ? 40 : 4;

const PLAIN: Case = {
  compat: 'v3',
  clusterSize: 4096,
  refcountBits: 16,
  lazyRefcounts: false,
  extendedL2: false,
  compressionType: 'zlib',
  preallocation: 'off',
  dataFile: 'none',
  backing: 'none',
  size: 'odd',
  fill: 'zeroes',
};

describeWithQemu('a chain', () => {
  const bench = new Workbench(mkdtempSync(join(tmpdir(), 'cowdisk-chains-')));
  afterAll(() => rmSync(bench.directory, { recursive: true, force: true }));

  /** A layer: who makes it, how large, over which clusters. */
  interface Layer {
    readonly by: 'qemu' | 'us' | 'raw';
    readonly size: number;
    readonly options?: string;
    readonly create?: Record<string, unknown>;
  }

  const CHAINS: readonly (readonly [name: string, layers: readonly Layer[]])[] = [
    [
      'raw, then ours, then QEMU’s, then ours',
      [
        { by: 'raw', size: 300 * KiB + 77 },
        { by: 'us', size: 400 * KiB, create: { clusterSize: 4096 } },
        { by: 'qemu', size: 350 * KiB, options: 'cluster_size=64k' },
        { by: 'us', size: 500 * KiB + 512, create: { clusterSize: 16384, extendedL2: true } },
      ],
    ],
    [
      'ever larger layers, each with other clusters',
      [
        { by: 'qemu', size: 100 * KiB, options: 'cluster_size=512' },
        { by: 'us', size: 200 * KiB + 1024, create: { clusterSize: 1024, compat: 'v2' } },
        { by: 'qemu', size: 300 * KiB + 512, options: 'cluster_size=16k,extended_l2=on' },
        { by: 'us', size: 2 * MiB, create: { clusterSize: 65536, refcountBits: 1 } },
      ],
    ],
    [
      'ever smaller layers',
      [
        { by: 'us', size: 2 * MiB, create: { clusterSize: 65536, compressionType: 'zstd' } },
        { by: 'qemu', size: 900 * KiB, options: 'compat=0.10,cluster_size=4k' },
        { by: 'us', size: 300 * KiB + 512, create: { clusterSize: 512, lazyRefcounts: true } },
        { by: 'qemu', size: 70 * KiB, options: 'cluster_size=2k,lazy_refcounts=on' },
      ],
    ],
  ];

  it.each(CHAINS)('of %s reads and maps alike in both tools', async (name, layers) => {
    const random = seededRandom(SEED * 1000 + name.length);
    let model = Buffer.alloc(0);
    let below_: { name: string; format: string } | undefined;
    for (const [depth, { by, size, options, create }] of layers.entries()) {
      const file = `${name.length}-layer${depth}`;
      const virtual = Math.ceil(size / 512) * 512;
      // a shorter layer cuts, a longer one shows zeros
      const next = Buffer.alloc(virtual);
      model.copy(next, 0, 0, Math.min(model.length, virtual));
      model = next;
      const writes = Array.from({ length: 8 }, () => {
        const offset = below(random, size);
        const length = Math.min(1 + below(random, size / 8), size - offset);
        return { offset, length, pattern: below(random, 256) };
      });
      for (const { offset, length, pattern } of writes) model.fill(pattern, offset, offset + length);
      if (by === 'raw') {
        writeFileSync(bench.path(file), model.subarray(0, size));
      } else if (by === 'qemu') {
        const backing = below_ === undefined ? '' : `,backing_file=${below_.name},backing_fmt=${below_.format}`;
        await bench.img('create', '-q', '-f', 'qcow2', '-o', `${options}${backing}`, file, String(size));
        await bench.io(
          file,
          writes.map(({ offset, length, pattern }) =>
            pattern === 0 ? `write -z ${offset} ${length}` : `write -P ${pattern} ${offset} ${length}`,
          ),
        );
      } else {
        await createImage(bench.path(file), { format: 'qcow2', size, options: create, backing: below_ });
        const image = await openImage(bench.path(file), { format: 'qcow2', references: 'allow', readOnly: false });
        for (const { offset, length, pattern } of writes) {
          if (pattern === 0) await image.writeZeroes(offset, length);
          else await image.write(offset, new Uint8Array(length).fill(pattern));
        }
        await image.close();
      }
      below_ = { name: file, format: by === 'raw' ? 'raw' : 'qcow2' };
      if (by === 'raw') continue;
      expect(faultsOf(await bench.check(file)), file).toEqual(NONE);
      const theirs = await bench.bytes(file, 'qcow2', 0, virtual);
      expect(firstDifference(theirs, model), `${file} by qemu-img`).toBeUndefined();
      const image = await openImage(bench.path(file), { format: 'qcow2', references: 'allow' });
      expect(firstDifference(await image.read(0, virtual), model), `${file} by us`).toBeUndefined();
      expect(comparable(await mapOf(image))).toEqual(comparable(await bench.map(file)));
      await image.close();
    }
  });
});

describeWithQemu('an image that qemu-io and we write in turn', () => {
  const root = mkdtempSync(join(tmpdir(), 'cowdisk-turns-'));
  afterAll(() => rmSync(root, { recursive: true, force: true }));

  const CASES: readonly (readonly [options: string, it: Case])[] = [
    ['', PLAIN],
    ['clusters of 512, one-bit refcounts', { ...PLAIN, clusterSize: 512, refcountBits: 1, fill: 'discards' }],
    ['64-bit refcounts', { ...PLAIN, clusterSize: 1024, refcountBits: 64 }],
    ['extended L2', { ...PLAIN, clusterSize: 16384, extendedL2: true, fill: 'discards' }],
    ['lazy refcounts', { ...PLAIN, lazyRefcounts: true }],
    ['version 2', { ...PLAIN, compat: 'v2', clusterSize: 65536 }],
    ['zstd', { ...PLAIN, compressionType: 'zstd', fill: 'compressed' }],
    ['compressed clusters with eight-bit refcounts', { ...PLAIN, refcountBits: 8, fill: 'compressed' }],
    ['preallocated metadata', { ...PLAIN, preallocation: 'metadata', fill: 'discards' }],
    ['a data file', { ...PLAIN, dataFile: 'plain' }],
    ['a raw data file', { ...PLAIN, dataFile: 'raw', clusterSize: 16384, extendedL2: true }],
  ];

  it.each(CASES)('stays sound: %s', async (name, it) => {
    const { optionString, sizeOf } = await import('./qcow2-cases.ts');
    const bench = new Workbench(join(root, `turns-${CASES.findIndex(([other]) => other === name)}`));
    const random = seededRandom(SEED * 77 + name.length);
    const model = new Model(it);
    const whole = model.windows[0]?.bytes as Buffer;
    const size = String(sizeOf(it));
    await bench.img(
      'create',
      '-q',
      '-f',
      'qcow2',
      '-o',
      optionString(it, { data: 'data', backing: '' }),
      'image',
      size,
    );
    for (let round = 0; round < ROUNDS; round++) {
      // no compressed writes over what is there: QEMU refuses them
      const plain: Case = { ...it, fill: round > 0 && it.fill === 'compressed' ? 'zeroes' : it.fill };
      const theirs = historyOf(plain, random, false);
      await bench.io('image', theirs.map(toQemuIo), '-f', 'qcow2', '-d', 'unmap');
      for (const { kind, offset, length, pattern } of theirs) {
        if (kind !== 'discard') model.fill(offset, length, kind === 'zero' ? 0 : pattern);
      }
      // what discards left, QEMU knows
      if (theirs.some(({ kind }) => kind === 'discard'))
        whole.set(await bench.bytes('image', 'qcow2', 0, whole.length));
      const image = await openImage(bench.path('image'), { format: 'qcow2', references: 'allow', readOnly: false });
      expect(firstDifference(await image.read(0, whole.length), whole), `round ${round}, after QEMU`).toBeUndefined();
      for (const operation of historyOf(it, random, true)) await model.apply(operation, image);
      await image.close();
      const ours = await bench.bytes('image', 'qcow2', 0, whole.length);
      expect(firstDifference(ours, whole), `round ${round}, after us`).toBeUndefined();
      const counters = await bench.check('image');
      expect(faultsOf(counters)).toEqual(NONE);
      const { result } = await checkImage(bench.path('image'), { format: 'qcow2', references: 'allow' });
      expect(countersOf(result)).toEqual(counters);
      if (it.dataFile === 'raw') {
        const same = await bench.img('compare', '-f', 'raw', '-F', 'qcow2', 'data', 'image');
        expect(same, 'the raw data file is the disk').toBe('Images are identical.\n');
      }
    }
  });
});
