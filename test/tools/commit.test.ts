/** Committing: contents of base and image, zeros and sizes, layers between, refusals, and what an interruption at any moment leaves. */
import { describe, expect, it } from 'vitest';
import type { Pending } from '../../src/base/async.ts';
import { BlockError } from '../../src/base/errors.ts';
import type { FormatDriver, FormatNode, OpenContext } from '../../src/core/format.ts';
import type { BlockNode } from '../../src/core/node.ts';
import { raw } from '../../src/formats/raw/driver.ts';
import { openImage } from '../../src/image/open.ts';
import { FaultStore } from '../../src/testing/fault-store.ts';
import { InterceptedStore, type Operation, type OperationKind } from '../../src/testing/intercepted-store.ts';
import { seededRandom } from '../../src/testing/random.ts';
import { crashImage, type LogEntry, RecordingStore, WriteLog } from '../../src/testing/recording-store.ts';
import { checkImage } from '../../src/tools/check.ts';
import { type CommitOptions, type CommitResult, commitImage } from '../../src/tools/commit.ts';
import { contentOf, drivers, KiB, MiB, make, makeOverlay, open } from '../image/support/fixtures.ts';
import { MemoryFiles } from '../image/support/memory-protocol.ts';
import { bitmap } from '../support/bitmap-driver.ts';
import type { BitmapNode } from '../support/bitmap-format.ts';
import { checkBitmapImage, createBitmapImage, Header } from '../support/bitmap-layout.ts';

type Data = readonly (readonly [offset: number, length: number, fill: number])[];

function commit(files: MemoryFiles, name: string, options: Partial<CommitOptions> = {}): Promise<CommitResult> {
  return commitImage(name, { ...drivers(files), references: 'allow', ...options });
}

async function content(files: MemoryFiles, name: string): Promise<Uint8Array> {
  await using image = await open(files, name, { references: 'allow' });
  return contentOf(image);
}

/** Comparing large arrays as vitest does takes a minute when they differ. */
function expectSame(actual: Uint8Array, expected: Uint8Array, where = ''): void {
  expect(Buffer.compare(actual, expected), where).toBe(0);
}

async function heldBytes(files: MemoryFiles, name: string): Promise<number> {
  await using image = await open(files, name, { references: 'allow' });
  let held = 0;
  for await (const { depth, length, present } of image.extents()) if (depth === 0 && present) held += length;
  return held;
}

async function expectSound(files: MemoryFiles, ...names: readonly string[]): Promise<void> {
  for (const name of names) {
    const { result } = await checkImage(name, { ...drivers(files), references: 'allow' });
    expect(result, name).toMatchObject({ corruptions: 0, leaks: 0, checkErrors: 0 });
  }
}

const BASE: Data = [
  [0, 300 * KiB, 1],
  [700 * KiB, 100 * KiB, 2],
];
const TOP: Data = [
  [10 * KiB, 3 * KiB, 5],
  [100 * KiB, 200 * KiB, 6],
  [256 * KiB, 64 * KiB, 0],
  [720 * KiB, 10 * KiB, 0],
  [900 * KiB, 124 * KiB, 7],
];

/** Many small pieces, so that there are many moments to be interrupted at. */
const SCATTERED: Data = Array.from({ length: 40 }, (_, i) => [(i * 25 + (i % 3)) * KiB, KiB, i % 5] as const);
const SMALL = { clusterSize: KiB };

async function pair(
  base: { readonly format?: string; readonly size?: number; readonly options?: object } = {},
  top: { readonly size?: number; readonly options?: object; readonly data?: Data } = {},
  wrap?: ConstructorParameters<typeof MemoryFiles>[0],
): Promise<MemoryFiles> {
  const files = new MemoryFiles(wrap);
  const { format = 'qcow2', size = MiB, options = {} } = base;
  await make(files, 'base', { format, size, options: options as Record<string, unknown> }, BASE);
  await makeOverlay(files, 'top', 'base', top.data ?? TOP, {
    backing: { name: 'base', format },
    ...(top.size === undefined ? {} : { size: top.size }),
    options: (top.options ?? {}) as Record<string, unknown>,
  });
  return files;
}

describe('committing', () => {
  it.each([
    ['qcow2', {}, {}],
    ['qcow2', { clusterSize: 512 }, { clusterSize: 2 * MiB }],
    ['qcow2', { clusterSize: 2 * MiB }, { clusterSize: 512 }],
    ['qcow2', { compat: 'v2' }, { compat: 'v2' }],
    ['qcow2', { extendedL2: true }, { extendedL2: true }],
    ['qcow2', { lazyRefcounts: true }, { lazyRefcounts: true, clusterSize: 4 * KiB }],
    ['qcow2', { dataFile: 'base.data' }, { dataFile: 'top.data' }],
    ['qcow2', { preallocation: 'metadata' }, {}],
    ['raw', {}, {}],
    ['raw', {}, { clusterSize: 512 }],
  ])(
    'into %s %o from qcow2 %o gives the base what the image read, and empties the image',
    async (format, base, top) => {
      const files = await pair({ format, options: base }, { options: top });
      const before = await content(files, 'top');
      const held = await heldBytes(files, 'top');
      const result = await commit(files, 'top');
      expect(result).toMatchObject({ base: 'base', baseFormat: format, layers: 1, grown: 0, emptied: true });
      expect(result.copied + result.zeroed).toBe(held);
      expectSame(await content(files, 'base'), before);
      expectSame(await content(files, 'top'), before);
      expect(await heldBytes(files, 'top')).toBe(0);
      await expectSound(files, 'top', ...(format === 'qcow2' ? ['base'] : []));
      expect(files.open).toEqual([]);
    },
  );

  it('leaves the image as it is when asked to', async () => {
    const files = await pair();
    const bytes = files.bytes('top');
    expect(await commit(files, 'top', { keep: true })).toMatchObject({ emptied: false });
    expectSame(files.bytes('top'), bytes);
    expectSame(await content(files, 'base'), await content(files, 'top'));
  });

  it('copies compressed clusters, and of zeros only their marks', async () => {
    const files = new MemoryFiles();
    await make(files, 'base', { size: MiB }, BASE);
    await makeOverlay(files, 'top', 'base', [[256 * KiB, 128 * KiB, 0]]);
    const image = await open(files, 'top', { references: 'allow', readOnly: false });
    await image.write(0, new Uint8Array(64 * KiB).fill(9), { compressed: true });
    await image.close();
    const before = await content(files, 'top');
    expect(await commit(files, 'top')).toMatchObject({ copied: 64 * KiB, zeroed: 128 * KiB });
    expectSame(await content(files, 'base'), before);
    await expectSound(files, 'base', 'top');
  });

  it.each(['qcow2', 'raw'])(
    'makes a smaller base of format %s larger, and its new part reads as before',
    async (format) => {
      const files = await pair({ format, size: 832 * KiB }, { size: 2 * MiB });
      const before = await content(files, 'top');
      expect(await commit(files, 'top')).toMatchObject({ grown: 2 * MiB - 832 * KiB });
      expectSame(await content(files, 'base'), before);
      expectSame(await content(files, 'top'), before);
    },
  );

  it('leaves the rest of a larger base alone', async () => {
    const files = await pair({ size: 2 * MiB });
    const image = await open(files, 'base', { readOnly: false });
    await image.write(1536 * KiB, new Uint8Array(KiB).fill(9));
    await image.close();
    const small = await pair({ size: 2 * MiB }, { size: MiB });
    for (const f of [files, small]) {
      const below = await content(f, 'base');
      const top = await content(f, 'top');
      await commit(f, 'top');
      const after = await content(f, 'base');
      expectSame(after.subarray(0, top.length), top);
      expectSame(after.subarray(top.length), below.subarray(top.length));
    }
  });

  it('tells how far it is', async () => {
    const files = await pair();
    const seen: number[] = [];
    await commit(files, 'top', {
      onProgress: ({ phase, done, total }) => {
        expect([phase, total]).toEqual(['commit', MiB]);
        seen.push(done);
      },
    });
    expect(seen).toEqual(seen.toSorted((a, b) => a - b));
    expect(seen.at(-1)).toBe(MiB);
  });

  it('makes the base durable before it empties the image', async () => {
    const log = new WriteLog();
    const files = await pair({}, {}, { wrap: (node) => new RecordingStore(node, { log }) });
    log.clear();
    await commit(files, 'top');
    const named = (name: string) => log.entries.filter(({ store }) => store.name === name);
    const lastOfBase = named('base').at(-1) as LogEntry;
    expect(lastOfBase.kind).toBe('flush');
    const firstOfTop = named('top').find(({ kind }) => kind !== 'flush') as LogEntry;
    expect(firstOfTop.index).toBeGreaterThan(lastOfBase.index);
  });
});

describe('layers between', () => {
  /** A base of 1 MiB, a layer of 512 KiB, an image of 1 MiB. */
  async function three(): Promise<MemoryFiles> {
    const files = new MemoryFiles();
    await make(files, 'd/c1', { size: MiB }, BASE);
    await makeOverlay(files, 'd/c2', 'c1', [[64 * KiB, 128 * KiB, 3]], { size: 512 * KiB });
    await makeOverlay(files, 'd/c3', 'c2', [[128 * KiB, 192 * KiB, 4]], { size: MiB });
    return files;
  }

  it.each(['c1', 'd/c1', './c1'])('are committed too, and the image keeps what it holds: base %s', async (base) => {
    const files = await three();
    files.link('d/./c1', 'd/c1');
    const before = await content(files, 'd/c3');
    const [top, middle] = [files.bytes('d/c3'), files.bytes('d/c2')];
    expect(await commit(files, 'd/c3', { base })).toMatchObject({ layers: 2, emptied: false });
    // What lies behind the end of the short layer reads as zeros, and not as what the base has there.
    expectSame(await content(files, 'd/c1'), before);
    expectSame(await content(files, 'd/c3'), before);
    expectSame(files.bytes('d/c3'), top);
    expectSame(files.bytes('d/c2'), middle);
    await expectSound(files, 'd/c1');
  });

  it('may be none: then the image is left as it is, too', async () => {
    const files = await three();
    const bytes = files.bytes('d/c3');
    expect(await commit(files, 'd/c3', { base: 'c2' })).toMatchObject({ base: 'd/c2', layers: 1, emptied: false });
    expectSame(files.bytes('d/c3'), bytes);
  });

  it.each(['nope', 'c3', 'd/c3', ''])('do not include "%s"', async (base) => {
    const files = await three();
    await expect(commit(files, 'd/c3', { base })).rejects.toMatchObject({
      reason: 'commit.base-not-found',
      details: { name: 'd/c3', base },
    });
  });
});

describe('a commit is refused', () => {
  it('for an image without backing file', async () => {
    const files = new MemoryFiles();
    await make(files, 'a', { size: MiB });
    files.add('b', new Uint8Array(512));
    for (const name of ['a', 'b']) {
      await expect(commit(files, name)).rejects.toMatchObject({ reason: 'commit.no-backing' });
    }
    expect(files.open).toEqual([]);
  });

  it('where the policy does not allow the base, or it is missing, or not what it should be', async () => {
    const files = await pair();
    await expect(commit(files, 'top', { references: 'deny' })).rejects.toMatchObject({ code: 'REFERENCE_DENIED' });
    await makeOverlay(files, 'wrong', 'base', [], { backing: { name: 'base', format: 'qcow2' } });
    files.add('base', new Uint8Array(MiB));
    await expect(commit(files, 'wrong')).rejects.toMatchObject({ reason: 'image.backing' });
    files.files.delete('base');
    await expect(commit(files, 'top')).rejects.toMatchObject({ code: 'NOT_FOUND', reason: 'image.backing' });
    expect(files.open).toEqual([]);
  });

  it('where the chain is a loop', async () => {
    const files = await pair();
    await makeOverlay(files, 'over', 'top');
    files.link('base', 'over');
    await expect(commit(files, 'over')).rejects.toMatchObject({ code: 'CHAIN' });
  });

  it('where the base cannot be made large enough, before anything is copied', async () => {
    const files = await pair({ format: 'raw', size: 832 * KiB }, { size: 2 * MiB });
    const bytes = files.bytes('base');
    const fixed = new MemoryFiles({
      wrap: (node, name) => {
        const fault = new FaultStore(node);
        if (name === 'base') fault.fail({ on: 'truncate', errno: 'EPERM' });
        return fault;
      },
    });
    for (const [name, file] of files.files) fixed.files.set(name, file);
    await expect(commit(fixed, 'top')).rejects.toMatchObject({ code: 'ACCESS', reason: 'commit.base-small' });
    expectSame(files.bytes('base'), bytes);
    expect(fixed.open).toEqual([]);
  });

  it('where the base looks like a guess and a write would make it look like another format', async () => {
    const files = new MemoryFiles();
    files.add('base', new Uint8Array(MiB));
    await make(files, 'top', { size: MiB });
    const image = await open(files, 'top', { readOnly: false });
    await image.node.changeBacking({ name: 'base' });
    await image.close();
    const over = await open(files, 'top', { readOnly: false, references: 'allow', probeBacking: true });
    await over.write(0, new TextEncoder().encode('QFI\u00fb').subarray(0, 3));
    await over.write(3, Uint8Array.of(0xfb, 0, 0, 0, 3));
    await over.close();
    await expect(commit(files, 'top', { probeBacking: true })).rejects.toMatchObject({
      reason: 'commit.write',
      cause: { reason: 'image.raw-signature' },
    });
    expect(files.bytes('base')[0]).toBe(0);
  });
});

/** Fails the call for which `fails` says so. */
class Failing extends InterceptedStore {
  readonly #on: OperationKind;
  readonly #fails: () => boolean;

  constructor(inner: BlockNode, on: OperationKind, fails: () => boolean) {
    super(inner);
    this.#on = on;
    this.#fails = fails;
  }

  protected _around(operation: Operation, run: () => Pending): Pending {
    if (operation.kind !== this.#on || !this.#fails()) return run();
    throw new BlockError('IO', 'injected', { details: { errno: 'EIO' } });
  }
}

describe('an interrupted commit', () => {
  it('by a signal leaves the image reading as before, and can be done again', async () => {
    for (let at = 0; at < 100; at += 9) {
      const files = await pair({ options: SMALL }, { options: SMALL, data: SCATTERED });
      const before = await content(files, 'top');
      const stop = new AbortController();
      let steps = 0;
      const failing = commit(files, 'top', {
        signal: stop.signal,
        onProgress: () => {
          if (steps++ === at) stop.abort();
        },
      });
      await failing.then(
        () => expect(steps).toBeLessThanOrEqual(at + 1),
        (error: unknown) => expect(error).toMatchObject({ code: 'ABORTED' }),
      );
      expect(files.open).toEqual([]);
      expectSame(await content(files, 'top'), before);
      await commit(files, 'top');
      expectSame(await content(files, 'base'), before);
      await expectSound(files, 'base', 'top');
    }
  });

  it.each([
    ['qcow2', 'write'],
    ['qcow2', 'flush'],
    ['raw', 'write'],
  ] as const)('by a failing disk, base %s, the n-th %s: the image reads as before', async (format, on) => {
    let failures = 0;
    for (let nth = 1; ; nth++) {
      let armed = false;
      let count = 0;
      const files = await pair(
        format === 'raw' ? { format } : { options: SMALL },
        { options: SMALL, data: SCATTERED },
        {
          // One count over all files.
          wrap: (node) => (armed ? new Failing(node, on, () => ++count === nth) : node),
        },
      );
      const before = await content(files, 'top');
      armed = true;
      let failed = false;
      try {
        await commit(files, 'top');
      } catch {
        failed = true;
      }
      armed = false;
      expect(files.open, `nth ${nth}`).toEqual([]);
      expectSame(await content(files, 'top'), before, `nth ${nth}`);
      if (count < nth) break;
      failures += failed ? 1 : 0;
      await commit(files, 'top');
      expectSame(await content(files, 'base'), before, `nth ${nth}, again`);
    }
    expect(failures).toBeGreaterThan(on === 'write' ? 30 : 3);
  });

  it.each(['qcow2', 'raw'])('by a power cut at any moment: the image reads as before, base %s', async (format) => {
    const log = new WriteLog();
    const base = format === 'raw' ? { format } : { options: SMALL };
    const files = await pair(base, { options: SMALL, data: SCATTERED });
    const before = await content(files, 'top');
    const bases = new Map(['base', 'top'].map((name) => [name, files.bytes(name)]));
    const recorded = new MemoryFiles({ wrap: (node) => new RecordingStore(node, { log }) });
    for (const [name, bytes] of bases) recorded.add(name, bytes.slice());
    await commit(recorded, 'top');
    const changes = log.entries.filter(({ kind }) => kind !== 'flush');
    expect(changes.length).toBeGreaterThan(40);
    let seed = 1;
    for (const cut of [...changes.map(({ began }) => began), log.tick]) {
      for (let i = 0; i < 4; i++, seed++) {
        const random = seededRandom(seed);
        const crashed = new MemoryFiles();
        for (const [name, bytes] of bases) {
          const entries = log.entries.filter(({ store }) => store.name === name);
          crashed.add(name, crashImage(entries, bytes, cut, random, { tear: true, discard: 'junk' }));
        }
        const where = `seed ${seed}, cut at ${cut}`;
        expectSame(await content(crashed, 'top'), before, where);
        if (i > 0) continue;
        await commit(crashed, 'top');
        expectSame(await content(crashed, 'base'), before, `${where}, again`);
      }
    }
  });
});

/** The test format with what commit asks a format for, and a list of what it was asked. */
function spied(calls: string[], facets: readonly string[]): FormatDriver {
  return {
    ...(bitmap as FormatDriver),
    open: async (context, options) => {
      const node = (await (bitmap as FormatDriver).open(context, options)) as BitmapNode;
      const say = (what: string): void => void calls.push(`${context.name}: ${what}`);
      const more: Partial<FormatNode> = {
        info: () => ({ backing: { name: 'backing' } }),
        changeBacking: async (backing) => say(`records ${backing?.name}, which has ${await sizeOf(context)} bytes`),
        makeEmpty: async () => {
          say('empties itself');
          await node.unmap(0, node.virtualSize, 'backing');
          await node.flush();
        },
      };
      for (const facet of Object.keys(more)) {
        if (facet !== 'info' && !facets.includes(facet)) delete more[facet as keyof FormatNode];
      }
      return Object.assign(node, more);
    },
  };
}

async function sizeOf(context: OpenContext): Promise<number | undefined> {
  return (await context.referenceStatus({ role: 'backing', name: 'backing', readOnly: true }))?.size;
}

describe('what a format does by itself', () => {
  async function files(size = 64 * KiB): Promise<MemoryFiles> {
    const made = new MemoryFiles();
    made.add('backing', new Uint8Array(size).fill(1));
    made.add('top', createBitmapImage(64 * KiB, { hasBacking: true }));
    const open = { ...drivers(made), formats: [bitmap, raw], references: 'allow', probeBacking: true } as const;
    const image = await openImage('top', { ...open, readOnly: false });
    await image.write(3 * KiB, new Uint8Array(20 * KiB).fill(2));
    await image.writeZeroes(40 * KiB, 4 * KiB);
    await image.close();
    return made;
  }

  async function run(made: MemoryFiles, facets: readonly string[], options: Partial<CommitOptions> = {}) {
    const calls: string[] = [];
    const formats = [spied(calls, facets), raw];
    const opened = { formats, protocols: [made.protocol], references: 'allow', probeBacking: true } as const;
    const image = await openImage('top', opened);
    const before = await contentOf(image);
    await image.close();
    let failure: unknown;
    try {
      await commitImage('top', { ...opened, ...options });
    } catch (error) {
      failure = error;
    }
    const after = await openImage('top', opened);
    expectSame(await contentOf(after), before);
    await after.close();
    return { calls, failure };
  }

  it('is asked of it: the base as it is now is recorded, then the image emptied', async () => {
    const made = await files(32 * KiB);
    const { calls, failure } = await run(made, ['changeBacking', 'makeEmpty']);
    expect(failure).toBeUndefined();
    expect(calls).toEqual(['top: records backing, which has 65536 bytes', 'top: empties itself']);
    expect(made.bytes('backing')[4 * KiB]).toBe(2);
  });

  it('need not be there: the image is emptied range by range', async () => {
    const made = await files();
    const { failure } = await run(made, []);
    expect(failure).toBeUndefined();
    const entries = createBitmapImage(64 * KiB, { hasBacking: true });
    const { tableOffset } = Header.decode(entries);
    const table = made.bytes('top').subarray(tableOffset, tableOffset + (64 * KiB * 8) / 1024);
    expect(table.every((byte) => byte === 0)).toBe(true);
    expect(checkBitmapImage(made.bytes('top'))).toEqual({ corruptions: [], leaks: [] });
  });

  it('is asked to record the base also when the commit fails after the base was changed', async () => {
    const made = await files();
    const broken = new MemoryFiles({
      wrap: (node, name) => (name === 'backing' ? new FaultStore(node, [{ on: 'zeroes', always: true }]) : node),
    });
    for (const [name, file] of made.files) broken.files.set(name, file);
    const { calls, failure } = await run(broken, ['changeBacking', 'makeEmpty']);
    expect(failure).toMatchObject({ reason: 'commit.write', details: { name: 'backing', offset: 40 * KiB } });
    expect(calls).toEqual(['top: records backing, which has 65536 bytes']);
  });

  it('may be nothing at all: what cannot be emptied stays as it is', async () => {
    const made = await files();
    const stiff: FormatDriver = {
      ...(bitmap as FormatDriver),
      open: async (context, options) =>
        Object.assign(await (bitmap as FormatDriver).open(context, options), { unmap: undefined }),
    };
    const opened = {
      formats: [stiff, raw],
      protocols: [made.protocol],
      references: 'allow',
      probeBacking: true,
    } as const;
    expect(await commitImage('top', opened)).toMatchObject({ emptied: false, copied: 20 * KiB });
  });
});
