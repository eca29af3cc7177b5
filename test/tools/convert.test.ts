/** Converting: contents, holes, backing files, existing targets, order and bounds of requests, and what a failure leaves. */
import { describe, expect, it } from 'vitest';
import type { Codecs } from '../../src/codec/codecs.ts';
import { createCodecs } from '../../src/codec/create.ts';
import type { BlockNode } from '../../src/core/node.ts';
import type { ProtocolDriver } from '../../src/core/protocol.ts';
import { raw } from '../../src/formats/raw/driver.ts';
import { ForwardSink } from '../../src/storage/forward-sink.ts';
import { MemoryStore } from '../../src/storage/memory.ts';
import { FaultStore } from '../../src/testing/fault-store.ts';
import { LateStore } from '../../src/testing/late-store.ts';
import { below, noise, seededRandom } from '../../src/testing/random.ts';
import { checkImage } from '../../src/tools/check.ts';
import { type ConvertOptions, type ConvertTarget, convertImage } from '../../src/tools/convert.ts';
import { contentOf, drivers, FORMATS, KiB, MiB, make, makeOverlay, open } from '../image/support/fixtures.ts';
import { MemoryFiles } from '../image/support/memory-protocol.ts';

type Source = Parameters<typeof convertImage>[0][number];

function convert(
  files: MemoryFiles,
  sources: Source | readonly Source[],
  target: string | ConvertTarget,
  options: Partial<ConvertOptions> = {},
) {
  return convertImage(
    Array.isArray(sources) ? (sources as readonly Source[]) : [sources as Source],
    typeof target === 'string' ? { name: target } : target,
    { ...drivers(files), references: 'allow', ...options },
  );
}

async function content(files: MemoryFiles, name: string): Promise<Uint8Array> {
  await using image = await open(files, name, { references: 'allow' });
  return contentOf(image);
}

async function expectSame(files: MemoryFiles, a: string, b: string): Promise<void> {
  expect(Buffer.compare(await content(files, a), await content(files, b))).toBe(0);
}

async function mapOf(files: MemoryFiles, name: string, depth = 0): Promise<string[]> {
  await using image = await open(files, name, { references: 'allow' });
  const lines: string[] = [];
  for await (const e of image.extents()) {
    if (e.depth <= depth)
      lines.push(`${e.start / KiB}+${e.length / KiB} ${e.present ? (e.zero ? 'zero' : 'data') : 'none'}`);
  }
  return lines;
}

async function expectSound(files: MemoryFiles, name: string): Promise<void> {
  expect((await checkImage(name, { ...drivers(files), references: 'allow' })).result).toMatchObject({
    corruptions: 0,
    leaks: 0,
    checkErrors: 0,
  });
}

/** A disk with pieces of noise, of lengths and at places that fit no boundary. */
function scattered(seed: number, size: number): MemoryStore {
  const random = seededRandom(seed);
  const store = new MemoryStore({ size, pageSize: 4096 });
  for (let i = 0; i < 24; i++) {
    const length = 1 + below(random, 40 * KiB);
    void store.write(below(random, size - length), noise(random, length));
  }
  return store;
}

describe('converting', () => {
  const SIZE = 5 * MiB + 1000;

  it.each([
    ['raw', {}, {}],
    ['raw', {}, { sparseSize: 0 }],
    ['raw', {}, { sparseSize: 512 }],
    ['raw', {}, { sparseSize: 1 * MiB }],
    ['raw', {}, { outOfOrder: true, parallel: 3 }],
    ['qcow2', {}, {}],
    ['qcow2', {}, { sparseSize: 0 }],
    ['qcow2', {}, { parallel: 1 }],
    ['qcow2', {}, { outOfOrder: true, parallel: 16 }],
    ['qcow2', {}, { cache: 'writethrough' }],
    ['qcow2', { clusterSize: 512 }, {}],
    ['qcow2', { clusterSize: 2 * MiB }, {}],
    ['qcow2', { extendedL2: true }, {}],
    ['qcow2', { preallocation: 'metadata' }, {}],
    ['qcow2', { compat: 'v2', refcountBits: 16 }, {}],
    ['qcow2', { dataFile: 'x.data', dataFileRaw: true }, {}],
    ['qcow2', {}, { compressed: true }],
    ['qcow2', {}, { compressed: true, sparseSize: 0 }],
    ['qcow2', {}, { compressed: true, outOfOrder: true }],
    ['qcow2', { clusterSize: 4096, compressionType: 'zstd' }, { compressed: true }],
    ['qcow2', { clusterSize: 2 * MiB }, { compressed: true }],
  ] as const)('keeps every byte: %s %o %o', async (format, createOptions, options) => {
    for (const seed of [1, 2]) {
      const files = new MemoryFiles();
      files.add('a', scattered(seed, SIZE));
      const result = await convert(
        files,
        { name: 'a', format: 'raw' },
        { name: 'b', format, options: createOptions },
        options,
      );
      expect(result).toMatchObject({ virtualSize: SIZE + 24, kept: 0, unreadable: 0 });
      expect(result.copied + result.zeroed).toBe(result.virtualSize);
      await expectSame(files, 'a', 'b');
      if (format === 'qcow2') await expectSound(files, 'b');
      expect(files.open).toEqual([]);
    }
  });

  it('keeps every byte over stores that end late and out of order', async () => {
    for (let seed = 1; seed <= 6; seed++) {
      let late = false;
      const files = new MemoryFiles({ wrap: (node) => (late ? new LateStore({ seed: seed++ }, node) : node) });
      files.add('a', scattered(seed, 3 * MiB));
      for (const options of [{}, { outOfOrder: true }, { compressed: true }, { compressed: true, outOfOrder: true }]) {
        late = true;
        await convert(files, { name: 'a', format: 'raw' }, { name: 'b', format: 'qcow2' }, options);
        await convert(files, 'b', { name: 'c', format: 'raw' }, options.compressed ? {} : options);
        late = false;
        await expectSame(files, 'a', 'b');
        await expectSame(files, 'a', 'c');
        await expectSound(files, 'b');
        expect(files.open).toEqual([]);
      }
    }
  });

  it('reads through a chain, decides by the layers, and reads compressed clusters', async () => {
    const files = new MemoryFiles();
    await make(files, 'c1', { size: 2 * MiB }, [
      [0, 300 * KiB, 1],
      [MiB, 100, 2],
    ]);
    await convert(files, 'c1', { name: 'base', format: 'qcow2' }, { compressed: true });
    await makeOverlay(files, 'c2', 'base', [
      [100 * KiB, 100 * KiB, 0],
      [300 * KiB, 5, 3],
    ]);
    await convert(files, 'c2', { name: 'flat', format: 'raw' });
    await expectSame(files, 'c2', 'flat');
  });

  it('is the same file on every run, whatever the number of workers and the time they take', async () => {
    const files = new MemoryFiles();
    const store = new MemoryStore({ size: 24 * MiB, pageSize: 4096 });
    const random = seededRandom(11);
    for (let i = 0; i < 100; i++)
      await store.write(below(random, 23 * MiB), noise(random, 1 + below(random, 200 * KiB)));
    files.add('a', store);
    for (const [workers, delayMs] of [
      [0, 0],
      [1, 5],
      [2, 3],
      [7, 9],
    ] as const) {
      const codecs: Codecs = createCodecs({ workers, delayMs });
      for (const compressed of [false, true]) {
        const target = { name: `${compressed} ${workers}`, format: 'qcow2' };
        await convert(files, { name: 'a', format: 'raw' }, target, { codecs, compressed });
      }
      await codecs.close();
    }
    for (const compressed of [false, true]) {
      const first = files.bytes(`${compressed} 0`);
      for (const workers of [1, 2, 7]) expect(Buffer.compare(first, files.bytes(`${compressed} ${workers}`))).toBe(0);
    }
  });

  it('lays several inputs end to end, the last sector of each filled up with zeros', async () => {
    const files = new MemoryFiles();
    files.add('a', new Uint8Array(1000).fill(1));
    await make(files, 'b', { size: 128 * KiB }, [[64 * KiB, 10, 2]]);
    files.add('none', new Uint8Array(0));
    files.add('c', new Uint8Array(3 * 512).fill(3));
    for (const target of [{ name: 'r' }, { name: 'q', format: 'qcow2' }]) {
      await convert(files, ['a', 'b', 'none', { name: 'c', format: 'raw' }], target);
      const expected = new Uint8Array(1024 + 128 * KiB + 1536);
      expected
        .fill(1, 0, 1000)
        .fill(2, 1024 + 64 * KiB, 1024 + 64 * KiB + 10)
        .fill(3, 1024 + 128 * KiB);
      expect(Buffer.compare(await content(files, target.name), expected)).toBe(0);
    }
  });

  it('takes images that are open, and leaves them open', async () => {
    const files = new MemoryFiles();
    await make(files, 'a', { size: MiB }, [[0, 10, 1]]);
    await using image = await open(files, 'a');
    await convert(files, image, 'b');
    expect((await image.read(0, 1))[0]).toBe(1);
    await expectSame(files, 'a', 'b');
  });

  it('takes a part of an open image, cut at its end', async () => {
    const files = new MemoryFiles();
    files.add('a', scattered(5, 300 * KiB));
    await using a = await open(files, 'a', { format: 'raw' });
    const all = await contentOf(a);
    for (const [offset, length] of [
      [0, 1],
      [70_001, 130_003],
      [299 * KiB, 5 * KiB],
      [300 * KiB, 7],
      [2 ** 40, 512],
    ] as const) {
      await convert(files, { image: a, offset, length }, { name: 'b', format: 'qcow2' });
      const part = all.subarray(offset, offset + length);
      // Disks are whole sectors.
      const whole = new Uint8Array(Math.ceil(part.length / 512) * 512);
      whole.set(part);
      expect(Buffer.compare(await content(files, 'b'), whole)).toBe(0);
    }
    await convert(files, [{ image: a, offset: 512, length: 1024 }, a], 'c');
    expect(Buffer.compare((await content(files, 'c')).subarray(0, 1024), all.subarray(512, 1536))).toBe(0);
    expect(Buffer.compare((await content(files, 'c')).subarray(1024), all)).toBe(0);
  });

  it.each([
    [-1, 5],
    [0.5, 5],
    [0, Number.NaN],
    [0, -1],
  ])('refuses %d and %d as offset and length of a part', async (offset, length) => {
    const files = new MemoryFiles();
    files.add('a', scattered(5, 64 * KiB));
    await using a = await open(files, 'a', { format: 'raw' });
    await expect(convert(files, { image: a, offset, length }, 'b')).rejects.toMatchObject({ reason: 'convert.window' });
    expect(files.log.filter((line) => line.endsWith(' b'))).toEqual([]);
  });

  it('refuses a backing file for what is moved: the two would lie apart', async () => {
    const files = new MemoryFiles();
    files.add('a', scattered(5, 64 * KiB));
    files.add('base', scattered(6, 64 * KiB));
    await using a = await open(files, 'a', { format: 'raw' });
    const target = { name: 'b', format: 'qcow2', backing: { name: 'base', format: 'raw' } };
    await expect(convert(files, { image: a, offset: 512, length: 512 }, target)).rejects.toMatchObject({
      reason: 'convert.window-backing',
    });
    await convert(files, { image: a, offset: 0, length: 32 * KiB }, target);
    expect((await content(files, 'b')).length).toBe(32 * KiB);
  });

  it('can make the new disk larger, never smaller', async () => {
    const files = new MemoryFiles();
    await make(files, 'a', { size: MiB }, [[0, 10, 1]]);
    expect((await convert(files, 'a', 'b', { size: 3 * MiB })).virtualSize).toBe(3 * MiB);
    await convert(files, 'a', { name: 'c', format: 'qcow2', options: { size: 2 * MiB } });
    expect((await content(files, 'c')).length).toBe(2 * MiB);
    await expect(convert(files, 'a', 'd', { size: MiB - 512 })).rejects.toMatchObject({
      reason: 'convert.target-small',
    });
    expect(files.names()).toEqual(['a', 'b', 'c']);
  });

  it('an empty disk is converted, too', async () => {
    const files = new MemoryFiles();
    files.add('a', new Uint8Array(0));
    await convert(files, { name: 'a', format: 'raw' }, { name: 'b', format: 'qcow2' });
    expect((await content(files, 'b')).length).toBe(0);
  });
});

describe('zeros', () => {
  it('become holes from the sparse size on, at its own boundaries', async () => {
    const files = new MemoryFiles();
    const bytes = new Uint8Array(64 * KiB).fill(1);
    bytes
      .fill(0, 4096, 8192)
      .fill(0, 16 * KiB, 32 * KiB)
      .fill(0, 60 * KiB);
    files.add('a', new MemoryStore({ size: 64 * KiB, pageSize: 64 * KiB }));
    await files.files.get('a')?.content.write(0, bytes);
    const holes = async (sparseSize: number) => {
      const target = new MemoryStore({ pageSize: 4096 });
      const protocol: ProtocolDriver = { ...files.protocol, create: async () => target, rename: async () => undefined };
      const closed = target.close.bind(target);
      target.close = async () => undefined;
      await convertImage(
        [{ name: 'a', format: 'raw' }],
        { name: 'b' },
        { formats: FORMATS, protocols: [protocol], sparseSize },
      );
      const image = await open(files, 'a', { format: 'raw' });
      await image.close();
      const { ExtentList } = await import('../../src/core/extent.ts');
      const list = new ExtentList();
      list.reset(0);
      void target.extents(0, target.size, list);
      const found = [...list].filter(({ zero }) => zero).map(({ start, length }) => `${start / KiB}+${length / KiB}`);
      await closed();
      return found;
    };
    expect(await holes(4096)).toEqual(['4+4', '16+16', '60+4']);
    // A short run between data stays; one at the end of the buffer is zero, as in qemu-img.
    expect(await holes(8192)).toEqual(['16+16']);
    expect(await holes(0)).toEqual([]);
  });

  it('leave clusters unallocated, whole ones only', async () => {
    const files = new MemoryFiles();
    const store = new MemoryStore({ size: MiB, pageSize: 4096 });
    await store.write(0, new Uint8Array(MiB));
    await store.write(130 * KiB, Uint8Array.of(1));
    await store.write(MiB - 1, Uint8Array.of(1));
    files.add('a', store);
    await convert(files, { name: 'a', format: 'raw' }, { name: 'b', format: 'qcow2' });
    expect(await mapOf(files, 'b')).toEqual(['0+128 none', '128+64 data', '192+768 none', '960+64 data']);
    await convert(files, { name: 'a', format: 'raw' }, { name: 'c', format: 'qcow2' }, { sparseSize: 0 });
    expect(await mapOf(files, 'c')).toEqual(['0+1024 data']);
  });

  it('are not read where the source says so', async () => {
    let reads = 0;
    const files = new MemoryFiles();
    files.add('a', new MemoryStore({ size: 2 ** 40 }));
    await files.files.get('a')?.content.write(2 ** 39, Uint8Array.of(1));
    const original = files.files.get('a')?.content as BlockNode;
    const read = original.read.bind(original);
    original.read = (offset, into) => {
      reads += into.length;
      return read(offset, into);
    };
    const result = await convert(files, { name: 'a', format: 'raw' }, { name: 'b', format: 'qcow2' });
    expect(result.virtualSize).toBe(2 ** 40);
    expect(reads).toBeLessThan(4 * MiB);
    expect(files.bytes('b').length).toBeLessThan(40 * MiB);
  });
});

describe('a target with a backing file', () => {
  async function chain(): Promise<MemoryFiles> {
    const files = new MemoryFiles();
    await make(files, 'c1', { size: MiB }, [[0, 512 * KiB, 1]]);
    await makeOverlay(files, 'c2', 'c1', [
      [64 * KiB, 64 * KiB, 2],
      [256 * KiB, 64 * KiB, 0],
    ]);
    await makeOverlay(
      files,
      'c3',
      'c2',
      [
        [128 * KiB, 5, 3],
        [320 * KiB, 64 * KiB, 0],
        [MiB, 64 * KiB, 4],
      ],
      { size: 2 * MiB },
    );
    return files;
  }

  it.each([false, true])('gets only what lies above that file (compressed: %s)', async (compressed) => {
    const files = await chain();
    const target = { name: 'new', format: 'qcow2', backing: { name: 'c2', format: 'qcow2' } };
    const result = await convert(files, 'c3', target, { compressed });
    await expectSame(files, 'c3', 'new');
    await expectSound(files, 'new');
    expect(await mapOf(files, 'new')).toEqual(await mapOf(files, 'c3'));
    expect(result.kept + result.copied + result.zeroed).toBe(2 * MiB);
    expect(result.copied).toBe(128 * KiB);
  });

  it('finds that file deeper in the chain, and takes what lies between as well', async () => {
    const files = await chain();
    const target = { name: 'new', format: 'qcow2', backing: { name: 'c1', format: 'qcow2' } };
    await convert(files, 'c3', target);
    await expectSame(files, 'c3', 'new');
    expect(await mapOf(files, 'new')).toContain('64+128 data');
    await convert(files, 'c3', { name: 'thin', format: 'qcow2', backing: { name: 'c3', format: 'qcow2' } });
    await expectSame(files, 'c3', 'thin');
    expect(await mapOf(files, 'thin')).toEqual([]);
  });

  it('may have a copy of that file, as in qemu-img: then its own layer alone counts', async () => {
    const files = await chain();
    files.add('copy', files.bytes('c2'));
    await convert(files, 'c3', { name: 'new', format: 'qcow2', backing: { name: 'copy', format: 'qcow2' } });
    await expectSame(files, 'c3', 'new');
    expect(await mapOf(files, 'new')).toEqual(await mapOf(files, 'c3'));
  });

  it('gets zeros written where the backing file has data', async () => {
    const files = await chain();
    await make(files, 'zeros', { size: MiB }, [[0, 512, 7]]);
    await convert(files, 'zeros', { name: 'new', format: 'qcow2', backing: { name: 'c1', format: 'qcow2' } });
    await expectSame(files, 'zeros', 'new');
  });

  it('cannot be made of several inputs', async () => {
    const files = await chain();
    const target = { name: 'new', format: 'qcow2', backing: { name: 'c1', format: 'qcow2' } };
    await expect(convert(files, ['c1', 'c2'], target)).rejects.toMatchObject({ reason: 'convert.concat-backing' });
  });
});

describe('an existing target', () => {
  it('is written in place, zeros included, and keeps what lies past the inputs', async () => {
    for (const format of ['raw', 'qcow2']) {
      const files = new MemoryFiles();
      await make(files, 'a', { size: MiB }, [[100, 100, 1]]);
      await make(files, 'b', { size: 2 * MiB, format }, [[0, 2 * MiB, 9]]);
      files.log.length = 0;
      await convert(files, 'a', { name: 'b', format, existing: true });
      expect(files.log).toEqual(['open a', 'open b']);
      const bytes = await content(files, 'b');
      expect(Buffer.compare(bytes.subarray(0, MiB), await content(files, 'a'))).toBe(0);
      expect(bytes.subarray(MiB).every((byte) => byte === 9)).toBe(true);
    }
  });

  it('that is zero already is not zeroed again', async () => {
    const files = new MemoryFiles();
    await make(files, 'a', { size: MiB }, [[100, 100, 1]]);
    await make(files, 'b', { size: MiB });
    const target = { name: 'b', existing: true };
    await convert(files, 'a', target, { targetIsZero: true });
    expect(await mapOf(files, 'b')).toEqual(['0+64 data', '64+960 none']);
    await convert(files, 'a', target);
    expect(await mapOf(files, 'b')).toEqual(['0+64 data', '64+960 zero']);
    await expectSame(files, 'a', 'b');
  });

  it('with a backing file gets only what lies above it', async () => {
    const files = new MemoryFiles();
    await make(files, 'base', { size: MiB }, [[0, MiB, 1]]);
    await makeOverlay(files, 'a', 'base', [[64 * KiB, 64 * KiB, 2]]);
    await makeOverlay(files, 'b', 'base');
    await convert(files, 'a', { name: 'b', existing: true, backing: { name: 'base', format: 'qcow2' } });
    await expectSame(files, 'a', 'b');
    expect(await mapOf(files, 'b')).toEqual(['64+64 data']);
    await make(files, 'c', { size: MiB });
    await expect(
      convert(files, 'a', { name: 'c', existing: true, backing: { name: 'base', format: 'qcow2' } }),
    ).rejects.toMatchObject({ reason: 'convert.no-backing' });
  });

  it('must be there, and large enough', async () => {
    const files = new MemoryFiles();
    await make(files, 'a', { size: MiB });
    await make(files, 'b', { size: 512 * KiB });
    await expect(convert(files, 'a', { name: 'nope', existing: true })).rejects.toMatchObject({ code: 'NOT_FOUND' });
    await expect(convert(files, 'a', { name: 'b', existing: true })).rejects.toMatchObject({
      reason: 'convert.target-small',
      details: { size: 512 * KiB, needed: MiB },
    });
    expect(files.open).toEqual([]);
  });

  it('whose format was guessed to be raw is not made to look like another one', async () => {
    const files = new MemoryFiles();
    await make(files, 'q', { size: MiB });
    files.add('b', new Uint8Array(MiB));
    const source = { name: 'q', format: 'raw' };
    await expect(convert(files, source, { name: 'b', existing: true })).rejects.toMatchObject({
      code: 'ACCESS',
      details: { incomplete: true },
    });
    expect(files.bytes('b')).toEqual(new Uint8Array(MiB));
    await convert(files, source, { name: 'b', existing: true, format: 'raw' });
    await using image = await open(files, 'b');
    expect(image.format).toBe('qcow2');
  });

  it('whose format was guessed is told', async () => {
    const files = new MemoryFiles();
    files.add('a', new Uint8Array(512));
    files.add('b', new Uint8Array(512));
    expect((await convert(files, 'a', { name: 'b', existing: true })).probedRaw).toEqual(['a', 'b']);
    expect((await convert(files, { name: 'a', format: 'raw' }, 'c')).probedRaw).toEqual([]);
  });
});

describe('refusals, before anything is touched', () => {
  async function three(): Promise<MemoryFiles> {
    const files = new MemoryFiles();
    await make(files, 'base', { size: MiB }, [[0, 512, 1]]);
    await makeOverlay(files, 'a', 'base', [[512, 512, 2]]);
    files.add('old', Uint8Array.of(1, 2, 3));
    files.link('link', 'base');
    return files;
  }

  it.each([
    [['nope'], 'x', {}, 'system'],
    [[], 'x', {}, 'convert.no-input'],
    [['a'], 'x', { sparseSize: 1000 }, 'convert.sparse-size'],
    [['a'], 'x', { sparseSize: 32 * MiB }, 'convert.sparse-size'],
    [['a'], 'x', { parallel: 0 }, 'convert.parallel'],
    [['a'], 'x', { parallel: 17 }, 'convert.parallel'],
    [['a'], 'x', { rateLimit: 0 }, 'convert.rate'],
    [['a'], 'x', { targetIsZero: true }, 'convert.zero-needs-existing'],
    [['a'], { name: 'old', existing: true, options: {} }, {}, 'convert.options-existing'],
    [['a'], 'old', { compressed: true }, 'convert.compress-unsupported'],
    [['a'], { name: 'old', existing: true, format: 'raw' }, { compressed: true }, 'convert.target-small'],
    [['a'], { name: 'old', format: 'nofmt' }, {}, 'image.unknown-format'],
    [['a'], { name: 'old', format: 'qcow2', options: { clusterSize: 3 } }, {}, 'qcow2.cluster-size'],
    [['a'], { name: 'old', format: 'qcow2', options: { nonsense: 3 } }, {}, 'option.unknown'],
    [['a'], { name: 'old', format: 'qcow2', backing: { name: 'base' } }, {}, 'create.backing-format'],
    [['a'], 'a', {}, 'convert.target-is-input'],
    [['a'], 'base', {}, 'convert.target-is-input'],
    [['a'], 'link', {}, 'convert.target-is-input'],
    [['a'], { name: 'link', existing: true }, {}, 'convert.target-is-input'],
    [['a'], { name: 'old', format: 'qcow2', options: { dataFile: 'link' } }, {}, 'create.protected'],
    [['a'], 'x', { references: 'deny' }, 'reference.denied'],
  ] as const)('%j to %j with %j: %s', async (sources, target, options, reason) => {
    const files = await three();
    const before = files.names().map((name) => files.bytes(name));
    await expect(convert(files, sources, target, options)).rejects.toMatchObject({ reason });
    expect(files.names()).toEqual(['a', 'base', 'link', 'old']);
    expect(files.names().map((name) => files.bytes(name))).toEqual(before);
    expect(files.open).toEqual([]);
  });

  it('an existing target whose data file is an input is left alone', async () => {
    const files = new MemoryFiles();
    await make(files, 'b', { size: MiB, options: { dataFile: 'data', dataFileRaw: true } });
    const before = files.bytes('data');
    const sources = [{ name: 'data', format: 'raw' }];
    await expect(convert(files, sources, { name: 'b', existing: true })).rejects.toMatchObject({
      reason: 'convert.target-is-input',
    });
    expect(files.bytes('data')).toEqual(before);
    expect(files.open).toEqual([]);
  });

  it('tells the plan after the checks and before the target is touched', async () => {
    const files = await three();
    let seen: unknown;
    const target = { name: 'old', format: 'qcow2', options: { clusterSize: 4096 } };
    await convert(files, 'a', target, {
      onPlan: (plan) => {
        seen = [plan.name, plan.size, plan.options['clusterSize'], files.bytes('old').length];
      },
    });
    expect(seen).toEqual(['old', MiB, 4096, 3]);
  });
});

describe('a conversion that fails', () => {
  async function source(size = 8 * MiB): Promise<MemoryFiles> {
    const files = new MemoryFiles();
    files.add('a', new Uint8Array(size).fill(1));
    files.add('old', Uint8Array.of(1, 2, 3));
    return files;
  }

  it.each(['raw', 'qcow2'])(
    'leaves the old target and no temporary file when the store is full (%s)',
    async (format) => {
      for (const late of [false, true]) {
        const files = await source();
        const full: ProtocolDriver = {
          ...files.protocol,
          create: async (name, options) => {
            const store = await (files.protocol.create as NonNullable<ProtocolDriver['create']>)(name, options);
            const rule = { on: 'write', offset: 4 * MiB, errno: 'ENOSPC', always: true, late } as const;
            return new FaultStore(store, [rule]);
          },
        };
        const failing = convert(files, { name: 'a', format: 'raw' }, { name: 'old', format }, { protocols: [full] });
        await expect(failing).rejects.toMatchObject({
          code: 'NO_SPACE',
          reason: 'convert.write',
          details: { name: 'old', errno: 'ENOSPC' },
        });
        expect(files.names()).toEqual(['a', 'old']);
        expect(files.bytes('old')).toEqual(Uint8Array.of(1, 2, 3));
        expect(files.open).toEqual([]);
      }
    },
  );

  it('removes the data file that it made', async () => {
    const files = await source();
    const failing = convert(
      files,
      { name: 'a', format: 'raw' },
      { name: 'old', format: 'qcow2', options: { dataFile: 'data' } },
      {
        onProgress: ({ done }) => {
          if (done > 2 * MiB) throw new Error('progress');
        },
      },
    );
    await expect(failing).rejects.toThrow('progress');
    expect(files.names()).toEqual(['a', 'old']);
    expect(files.open).toEqual([]);
  });

  it('because it was aborted, leaves the old target, and ends everything it began', async () => {
    for (const options of [{}, { outOfOrder: true }, { compressed: true }]) {
      const files = await source();
      const controller = new AbortController();
      const converting = convert(
        files,
        { name: 'a', format: 'raw' },
        { name: 'old', format: 'qcow2' },
        {
          ...options,
          signal: controller.signal,
          onProgress: ({ done }) => {
            if (done >= 4 * MiB) controller.abort();
          },
        },
      );
      await expect(converting).rejects.toMatchObject({ code: 'ABORTED' });
      expect(files.names()).toEqual(['a', 'old']);
      expect(files.bytes('old')).toEqual(Uint8Array.of(1, 2, 3));
      expect(files.open).toEqual([]);
    }
  });

  it('in place says that the target is incomplete', async () => {
    const files = await source();
    files.add('b', new Uint8Array(8 * MiB));
    const controller = new AbortController();
    const converting = convert(
      files,
      { name: 'a', format: 'raw' },
      { name: 'b', format: 'raw', existing: true },
      {
        signal: controller.signal,
        onProgress: ({ done }) => {
          if (done >= 4 * MiB) controller.abort();
        },
      },
    );
    await expect(converting).rejects.toMatchObject({
      code: 'ABORTED',
      message: '"b": the target is incomplete: interrupted',
      details: { incomplete: true, target: 'b' },
    });
    expect(files.names()).toEqual(['a', 'b', 'old']);
    expect(files.open).toEqual([]);
  });

  it('to read names the input and the offset; with salvage it goes on without that sector', async () => {
    let ready = false;
    const rule = { on: 'read', always: true, offset: 5 * MiB + 700, length: 1 } as const;
    const files = new MemoryFiles({ wrap: (node, name) => new FaultStore(node, ready && name === 'a' ? [rule] : []) });
    files.add('a', new Uint8Array(8 * MiB).fill(1));
    ready = true;
    const from = { name: 'a', format: 'raw' };
    await expect(convert(files, from, 'b')).rejects.toMatchObject({
      code: 'IO',
      reason: 'convert.read',
      details: { name: 'a', offset: 4 * MiB },
    });
    expect(files.names()).toEqual(['a']);
    const lost: [number, number][] = [];
    const result = await convert(files, from, 'b', {
      salvage: true,
      onSalvage: (offset, length) => lost.push([offset, length]),
    });
    expect(result.unreadable).toBe(512);
    expect(lost).toEqual([[5 * MiB + 512, 512]]);
    const expected = new Uint8Array(8 * MiB).fill(1).fill(0, 5 * MiB + 512, 5 * MiB + 1024);
    expect(Buffer.compare(files.bytes('b'), expected)).toBe(0);
  });
});

describe('how a conversion works', () => {
  it('never has more requests in flight than it may, and memory for no more', async () => {
    for (const parallel of [1, 5]) {
      let running = 0;
      let most = 0;
      const count = (node: BlockNode): BlockNode => {
        const read = node.read.bind(node);
        node.read = (offset, into, options) => {
          const pending = read(offset, into, options);
          if (pending === undefined || into.length < MiB) return pending;
          most = Math.max(most, ++running);
          return pending.finally(() => running--);
        };
        return node;
      };
      let late = false;
      const files = new MemoryFiles({
        wrap: (node, name) => (late && name === 'a' ? count(new LateStore({ seed: 7, pieceSize: 0 }, node)) : node),
      });
      files.add('a', new Uint8Array(24 * MiB).fill(1));
      late = true;
      await convert(files, { name: 'a', format: 'raw' }, 'b', { parallel, outOfOrder: true });
      expect(most).toBe(parallel);
      expect(running).toBe(0);
    }
  });

  it('tells its progress, which never falls and ends at the end', async () => {
    const files = new MemoryFiles();
    await make(files, 'a', { size: 16 * MiB }, [
      [0, 3 * MiB, 1],
      [8 * MiB, MiB, 1],
    ]);
    const done: number[] = [];
    await convert(files, 'a', { name: 'b', format: 'qcow2' }, { onProgress: (p) => done.push(p.done / p.total) });
    expect(done[0]).toBe(0);
    expect(done.at(-1)).toBe(1);
    expect(done).toEqual([...done].sort((x, y) => x - y));
    expect(done.length).toBeGreaterThan(4);
  });

  it('gives the event loop its turns while everything ends at once', async () => {
    const files = new MemoryFiles();
    files.add('a', new MemoryStore({ size: 2 ** 40, pageSize: 64 * KiB }));
    let turns = 0;
    let running = true;
    const tick = (): void => {
      turns++;
      if (running) setImmediate(tick);
    };
    setImmediate(tick);
    const content = files.files.get('a')?.content as BlockNode;
    for (let i = 0; i < 400; i++) await content.write(i * 2 ** 31, new Uint8Array(64 * KiB).fill(1));
    turns = 0;
    await convert(files, { name: 'a', format: 'raw' }, { name: 'b', format: 'qcow2' });
    running = false;
    expect(turns).toBeGreaterThan(1);
  });

  it.each([
    ['unsafe', 0],
    ['none', 1],
    ['writeback', 1],
  ] as const)('cache mode %s: flushes the target at the end at least %i times', async (cache, least) => {
    let flushes = 0;
    const files = new MemoryFiles({
      wrap: (node, name) => {
        if (name === 'a') return node;
        const flush = node.flush.bind(node);
        node.flush = (options) => {
          flushes++;
          return flush(options);
        };
        return node;
      },
    });
    files.add('a', new Uint8Array(MiB).fill(1));
    await convert(files, { name: 'a', format: 'raw' }, 'b', { cache });
    if (least === 0) expect(flushes).toBe(0);
    else expect(flushes).toBeGreaterThanOrEqual(least);
  });

  it('asks for targets that need not be durable in mode unsafe only', async () => {
    for (const [cache, unsafe] of [
      ['unsafe', true],
      ['writeback', false],
    ] as const) {
      const files = new MemoryFiles();
      files.add('a', new Uint8Array(512).fill(1));
      const asked: unknown[] = [];
      const protocol: ProtocolDriver = {
        ...files.protocol,
        create: (name, options) => {
          asked.push(options.unsafe);
          return (files.protocol.create as NonNullable<ProtocolDriver['create']>)(name, options);
        },
      };
      await convert(files, { name: 'a', format: 'raw' }, 'b', { cache, protocols: [protocol] });
      expect(asked).toEqual([unsafe]);
    }
  });

  it('takes no less time than the rate limit says', async () => {
    const files = new MemoryFiles();
    files.add('a', new Uint8Array(6 * MiB).fill(1));
    const start = performance.now();
    await convert(files, { name: 'a', format: 'raw' }, 'b', { rateLimit: 20 * MiB });
    // 2 MiB go at once, 4 MiB have to wait.
    expect(performance.now() - start).toBeGreaterThan(150);
  });
});

describe('a pipe as target', () => {
  function pipe(files: MemoryFiles): { protocol: ProtocolDriver; sent: Uint8Array[] } {
    const sent: Uint8Array[] = [];
    const sink = () => new ForwardSink({ write: async (chunk) => void sent.push(chunk.slice()) }, { name: 'pipe' });
    const protocol: ProtocolDriver = {
      ...files.protocol,
      status: async (name) =>
        name === 'pipe' ? { kind: 'pipe', size: 0, identity: 'pipe' } : files.protocol.status?.(name),
      create: async () => sink(),
    };
    return { protocol, sent };
  }

  it.each([{}, { parallel: 1 }, { sparseSize: 0 }])(
    'gets the whole raw disk in order, zeros included (%o)',
    async (options) => {
      const files = new MemoryFiles();
      await make(files, 'a', { size: 7 * MiB }, [
        [512, 100, 1],
        [3 * MiB, 2 * MiB, 2],
      ]);
      const { protocol, sent } = pipe(files);
      await convert(files, 'a', 'pipe', { protocols: [protocol], ...options });
      expect(Buffer.compare(Buffer.concat(sent), await content(files, 'a'))).toBe(0);
    },
  );

  it('takes no format that writes here and there', async () => {
    const files = new MemoryFiles();
    await make(files, 'a', { size: MiB });
    const { protocol, sent } = pipe(files);
    const converting = convert(files, 'a', { name: 'pipe', format: 'qcow2' }, { protocols: [protocol] });
    await expect(converting).rejects.toMatchObject({ code: 'UNSUPPORTED', reason: 'convert.forward' });
    expect(sent).toEqual([]);
  });
});

describe('a device as target', () => {
  class Device extends MemoryStore {
    override readonly supports = { ...new MemoryStore().supports, truncate: false };
  }

  it.each(['raw', 'qcow2'])('is written in place, and its old content never shows through (%s)', async (format) => {
    const files = new MemoryFiles();
    files.add('a', scattered(5, 3 * MiB));
    const device = new Device({ size: 8 * MiB });
    await device.write(0, new Uint8Array(8 * MiB).fill(0xee));
    files.add('dev', device);
    const protocol: ProtocolDriver = {
      ...files.protocol,
      status: async (name) => {
        const status = await files.protocol.status?.(name);
        return status === undefined || name !== 'dev' ? status : { ...status, kind: 'device' };
      },
    };
    await convert(files, { name: 'a', format: 'raw' }, { name: 'dev', format }, { protocols: [protocol] });
    const bytes = await content(files, 'dev');
    expect(Buffer.compare(bytes.subarray(0, 3 * MiB), await content(files, 'a'))).toBe(0);
    expect(files.names()).toEqual(['a', 'dev']);
  });

  it('that is too small is refused', async () => {
    const files = new MemoryFiles();
    files.add('a', new Uint8Array(1024).fill(1));
    files.add('dev', new Device({ size: 512 }));
    const protocol: ProtocolDriver = {
      ...files.protocol,
      status: async (name) => {
        const status = await files.protocol.status?.(name);
        return status === undefined || name !== 'dev' ? status : { ...status, kind: 'device' };
      },
    };
    const converting = convert(files, { name: 'a', format: 'raw' }, 'dev', { protocols: [protocol], formats: [raw] });
    await expect(converting).rejects.toMatchObject({ code: 'TOO_LARGE', reason: 'raw.device-small' });
  });
});
