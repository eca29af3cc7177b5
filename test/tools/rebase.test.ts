/** Rebasing: the content stays, whatever the new backing file shows; what is copied, recorded and refused; interruptions at any moment. */
import { describe, expect, it } from 'vitest';
import type { FormatDriver } from '../../src/core/format.ts';
import { raw } from '../../src/formats/raw/driver.ts';
import { FaultStore } from '../../src/testing/fault-store.ts';
import { seededRandom } from '../../src/testing/random.ts';
import { crashImage, RecordingStore, WriteLog } from '../../src/testing/recording-store.ts';
import { checkImage } from '../../src/tools/check.ts';
import { type RebaseOptions, type RebaseResult, rebaseImage } from '../../src/tools/rebase.ts';
import { contentOf, drivers, KiB, MiB, make, makeOverlay, open } from '../image/support/fixtures.ts';
import { MemoryFiles } from '../image/support/memory-protocol.ts';
import { bitmap } from '../support/bitmap-driver.ts';
import { createBitmapImage } from '../support/bitmap-layout.ts';

type Data = readonly (readonly [offset: number, length: number, fill: number])[];

const QCOW2 = { format: 'qcow2' } as const;

function rebase(
  files: MemoryFiles,
  name: string,
  to: RebaseOptions['to'],
  options: Partial<RebaseOptions> = {},
): Promise<RebaseResult> {
  return rebaseImage(name, { ...drivers(files), references: 'allow', to, ...options });
}

async function content(files: MemoryFiles, name: string): Promise<Uint8Array> {
  await using image = await open(files, name, { references: 'allow' });
  return contentOf(image);
}

function expectSame(actual: Uint8Array, expected: Uint8Array, where = ''): void {
  expect(Buffer.compare(actual, expected), where).toBe(0);
}

async function held(files: MemoryFiles, name: string): Promise<string[]> {
  await using image = await open(files, name, { references: 'allow' });
  const list: string[] = [];
  for await (const { start, length, depth, present, zero } of image.extents()) {
    if (depth === 0 && present) list.push(`${start / KiB}+${length / KiB}${zero ? ' zero' : ''}`);
  }
  return list;
}

async function recorded(files: MemoryFiles, name: string) {
  await using image = await open(files, name, { references: 'allow', openBacking: false });
  return (await image.info()).backing;
}

async function expectSound(files: MemoryFiles, name: string): Promise<void> {
  const { result } = await checkImage(name, { ...drivers(files), references: 'allow' });
  expect(result).toMatchObject({ corruptions: 0, leaks: 0, checkErrors: 0 });
}

const OLD: Data = [
  [0, 128 * KiB, 1],
  [256 * KiB, 64 * KiB, 2],
  [512 * KiB, 4 * KiB, 3],
];
/** As the old one but for a byte here, a piece more there, a piece less. */
const NEW: Data = [
  [0, 128 * KiB, 1],
  [70 * KiB, 1, 9],
  [256 * KiB, 64 * KiB, 2],
  [640 * KiB, 64 * KiB, 8],
];

async function image(top: object = {}, sizes: { old?: number; new?: number; top?: number } = {}): Promise<MemoryFiles> {
  const files = new MemoryFiles();
  await make(files, 'old', { size: sizes.old ?? MiB }, OLD);
  await make(files, 'new', { size: sizes.new ?? MiB }, NEW);
  await makeOverlay(files, 'top', 'old', [[192 * KiB, 80 * KiB, 4]], {
    size: sizes.top ?? MiB,
    options: top as Record<string, unknown>,
  });
  return files;
}

describe('rebasing', () => {
  it('copies what the new file shows differently, and nothing else', async () => {
    const files = await image();
    const before = await content(files, 'top');
    expect(await rebase(files, 'top', { name: 'new', ...QCOW2 })).toEqual({
      from: { name: 'old', format: 'qcow2' },
      to: { name: 'new', format: 'qcow2' },
      copied: 128 * KiB,
      zeroed: 64 * KiB,
    });
    expectSame(await content(files, 'top'), before);
    expect(await held(files, 'top')).toEqual(['64+64', '192+128', '512+64', '640+64 zero']);
    expect(await recorded(files, 'top')).toEqual({ name: 'new', format: 'qcow2' });
    await expectSound(files, 'top');
    expect(files.open).toEqual([]);
  });

  it.each([
    ['clusters of 512 bytes', { clusterSize: 512 }],
    ['clusters of 2 MiB', { clusterSize: 2 * MiB }],
    ['subclusters', { extendedL2: true }],
    ['version 2, which has no zero marks', { compat: 'v2' }],
    ['an external data file', { dataFile: 'top.data' }],
  ])('keeps every byte, with %s, over files of any size, to and fro', async (_, options) => {
    for (const sizes of [
      {},
      { old: 600 * KiB, new: MiB },
      { old: MiB, new: 800 * KiB },
      { old: 600 * KiB, new: 800 * KiB, top: 2 * MiB },
      { top: 512 * KiB },
    ]) {
      const files = await image(options, sizes);
      const before = await content(files, 'top');
      for (const to of [{ name: 'new', ...QCOW2 }, { name: 'old', ...QCOW2 }, undefined, { name: 'new', ...QCOW2 }]) {
        await rebase(files, 'top', to);
        expectSame(await content(files, 'top'), before, `${JSON.stringify(sizes)} to ${to?.name}`);
        expect(await recorded(files, 'top')).toEqual(to);
        await expectSound(files, 'top');
      }
    }
  });

  it('to no backing file leaves zeros alone', async () => {
    const files = await image();
    const before = await content(files, 'top');
    expect(await rebase(files, 'top', undefined)).toMatchObject({ to: undefined, zeroed: 0 });
    expect(await held(files, 'top')).toEqual(['0+128', '192+128', '512+64']);
    expectSame(await content(files, 'top'), before);
    expect(await recorded(files, 'top')).toBeUndefined();
  });

  it('from no backing file makes zeros that hide the new one', async () => {
    const files = new MemoryFiles();
    await make(files, 'new', { size: MiB }, NEW);
    await make(files, 'top', { size: MiB }, [[0, 64 * KiB, 1]]);
    const before = await content(files, 'top');
    await rebase(files, 'top', { name: 'new', ...QCOW2 });
    expectSame(await content(files, 'top'), before);
  });

  it.each([
    ['whole clusters', {}],
    ['with subclusters', { extendedL2: true }],
  ])('stores what it copies compressed where that is asked for: %s', async (_, top) => {
    const files = await image(top);
    const before = await content(files, 'top');
    const { copied } = await rebase(files, 'top', { name: 'new', ...QCOW2 }, { compressed: true });
    expect(copied).toBeGreaterThan(0);
    expectSame(await content(files, 'top'), before);
    await expectSound(files, 'top');
    await using opened = await open(files, 'top', { references: 'allow' });
    const compressed = [];
    for await (const extent of opened.extents()) if (extent.compressed && extent.depth === 0) compressed.push(extent);
    expect(compressed.length).toBeGreaterThan(0);
  });

  it('compresses nothing where the image cannot: data in a file of its own', async () => {
    const files = await image({ dataFile: 'top.data' });
    const before = await content(files, 'top');
    const asked = rebase(files, 'top', { name: 'new', ...QCOW2 }, { compressed: true });
    await expect(asked).rejects.toMatchObject({ code: 'UNSUPPORTED' });
    expectSame(await content(files, 'top'), before);
  });

  it('to a file further down reads only what the layers between hold', async () => {
    const files = new MemoryFiles();
    const reads: number[] = [];
    await make(files, 'c1', { size: 16 * MiB }, [[0, 16 * MiB, 1]]);
    await makeOverlay(files, 'c2', 'c1', [[64 * KiB, 64 * KiB, 2]]);
    await makeOverlay(files, 'c3', 'c2', [[MiB, 64 * KiB, 3]]);
    const before = await content(files, 'c3');
    const watched = new MemoryFiles({
      wrap: (node, name) => {
        const log = new WriteLog();
        return name === 'c1' ? new RecordingStore(node, { log: logging(log, reads), reads: true }) : node;
      },
    });
    for (const [name, file] of files.files) watched.files.set(name, file);
    expect(await rebase(watched, 'c3', { name: 'c1', ...QCOW2 })).toMatchObject({ copied: 64 * KiB, zeroed: 0 });
    expectSame(await content(files, 'c3'), before);
    expect(await held(files, 'c3')).toEqual(['64+64', '1024+64']);
    // Headers, tables, and the one cluster that was compared; whatever is read for its own sake is read in large pieces.
    expect(reads.length).toBeGreaterThan(0);
    expect(reads.filter((length) => length > 64 * KiB)).toEqual([]);
  });

  it('hides what a layer between was too short to show', async () => {
    const files = new MemoryFiles();
    await make(files, 'c1', { size: MiB }, [[0, MiB, 1]]);
    await makeOverlay(files, 'c2', 'c1', [], { size: 512 * KiB });
    await makeOverlay(files, 'c3', 'c2', [], { size: MiB });
    const before = await content(files, 'c3');
    await rebase(files, 'c3', { name: 'c1', ...QCOW2 });
    expectSame(await content(files, 'c3'), before);
  });

  it('tells how far it is', async () => {
    const files = await image();
    const seen: number[] = [];
    await rebase(
      files,
      'top',
      { name: 'new', ...QCOW2 },
      {
        onProgress: ({ phase, done, total }) => {
          expect([phase, total]).toEqual(['rebase', MiB]);
          seen.push(done);
        },
      },
    );
    expect(seen).toEqual(seen.toSorted((a, b) => a - b));
    expect(seen.at(-1)).toBe(MiB);
  });
});

describe('recording only', () => {
  it('opens no backing file, and copies nothing', async () => {
    const files = await image();
    const holds = await held(files, 'top');
    files.files.delete('old');
    files.log.length = 0;
    const options = { recordOnly: true, references: 'deny' } as const;
    expect(await rebase(files, 'top', { name: 'gone/away', format: 'raw' }, options)).toMatchObject({
      from: { name: 'old', format: 'qcow2' },
      copied: 0,
      zeroed: 0,
    });
    expect(files.log).toEqual(['open top']);
    expect(await recorded(files, 'top')).toEqual({ name: 'gone/away', format: 'raw' });
    await rebase(files, 'top', { name: 'new', ...QCOW2 }, options);
    expect(await held(files, 'top')).toEqual(holds);
    await rebase(files, 'top', undefined, options);
    expect(await recorded(files, 'top')).toBeUndefined();
    await expectSound(files, 'top');
  });
});

describe('a rebase is refused', () => {
  it.each([
    [{ name: 'new' }, {}, 'rebase.format-missing'],
    [{ name: 'new' }, { recordOnly: true }, 'rebase.format-missing'],
    [{ name: 'new', format: 'nofmt' }, {}, 'rebase.format'],
    [{ name: 'new', format: 'nofmt' }, { recordOnly: true }, 'rebase.format'],
    [{ name: 'gone', ...QCOW2 }, {}, 'rebase.new-backing'],
    [{ name: 'wrong', ...QCOW2 }, {}, 'rebase.new-backing'],
    [{ name: 'json:{}', ...QCOW2 }, {}, 'rebase.new-backing'],
    [{ name: '', ...QCOW2 }, {}, 'rebase.new-backing'],
    [{ name: 'top', ...QCOW2 }, {}, 'rebase.loop'],
    [{ name: 'link', ...QCOW2 }, {}, 'rebase.loop'],
    [{ name: 'over', ...QCOW2 }, {}, 'rebase.loop'],
    [{ name: 'n'.repeat(1100), ...QCOW2 }, { recordOnly: true }, 'rebase.record'],
  ])('to %o %o: %s', async (to, options, reason) => {
    const files = await image();
    files.add('wrong', new Uint8Array(MiB));
    files.link('link', 'top');
    await makeOverlay(files, 'over', 'top');
    const bytes = files.bytes('top');
    await expect(rebase(files, 'top', to, { probeBacking: true, ...options })).rejects.toMatchObject({ reason });
    expectSame(files.bytes('top'), bytes);
    expect(files.open).toEqual([]);
  });

  it('for formats that record no other backing file', async () => {
    const files = await image();
    files.add('raw', new Uint8Array(MiB));
    files.add('bitmap', createBitmapImage(64 * KiB));
    const formats: readonly FormatDriver[] = [...drivers(files).formats, bitmap];
    for (const format of ['raw', 'bitmap']) {
      for (const recordOnly of [true, false]) {
        await expect(
          rebase(files, format, { name: 'new', ...QCOW2 }, { format, formats, recordOnly }),
        ).rejects.toMatchObject({ code: 'UNSUPPORTED', reason: 'rebase.unsupported', details: { format } });
      }
    }
  });

  it('where the old backing file is missing', async () => {
    const files = await image();
    files.files.delete('old');
    await expect(rebase(files, 'top', { name: 'new', ...QCOW2 })).rejects.toMatchObject({ reason: 'image.backing' });
  });
});

describe('a format that records no format', () => {
  /** qcow2 that takes every backing file for raw. */
  function assuming(): FormatDriver {
    const [qcow2] = drivers(new MemoryFiles()).formats as readonly [FormatDriver, ...FormatDriver[]];
    return {
      ...qcow2,
      open: (context, options) =>
        qcow2.open(
          { ...context, openReference: (reference) => context.openReference({ ...reference, format: 'raw' }) },
          options,
        ),
    };
  }

  it('needs none for the new backing file', async () => {
    const files = await image();
    await rebase(files, 'top', undefined);
    const old = await open(files, 'top', { readOnly: false });
    await old.node.changeBacking({ name: 'flat' });
    await old.close();
    files.add('flat', new Uint8Array(MiB));
    files.add('flat2', new Uint8Array(MiB).fill(6));
    const formats = [assuming(), raw];
    expect(await rebase(files, 'top', { name: 'flat2' }, { formats })).toMatchObject({
      to: { name: 'flat2', format: 'raw' },
    });
    await expect(
      rebase(files, 'top', { name: 'flat' }, { formats, backing: { name: 'flat', format: 'raw' }, recordOnly: true }),
    ).rejects.toMatchObject({ reason: 'rebase.format-missing' });
  });
});

describe('an interrupted rebase', () => {
  const to = { name: 'new', ...QCOW2 };

  it('by a signal leaves the image reading as before, and can be done again', async () => {
    for (let at = 0; at < 9; at++) {
      const files = await image({ clusterSize: 4 * KiB });
      const before = await content(files, 'top');
      const stop = new AbortController();
      let steps = 0;
      const onProgress = (): void => {
        if (steps++ === at) stop.abort();
      };
      await rebase(files, 'top', to, { signal: stop.signal, onProgress }).catch((error: unknown) =>
        expect(error).toMatchObject({ code: 'ABORTED' }),
      );
      expect(files.open).toEqual([]);
      expectSame(await content(files, 'top'), before, `at step ${at}`);
      await rebase(files, 'top', to);
      expectSame(await content(files, 'top'), before, `at step ${at}, again`);
    }
  });

  it.each(['old', 'new'])('by a read error of the %s file says which it was', async (name) => {
    const files = await image();
    const bytes = files.bytes('top');
    const broken = new MemoryFiles({
      wrap: (node, opened) =>
        opened === name ? new FaultStore(node, [{ on: 'read', offset: 320 * KiB, always: true }]) : node,
    });
    for (const [file, entry] of files.files) broken.files.set(file, entry);
    await expect(rebase(broken, 'top', to)).rejects.toMatchObject({ reason: 'rebase.read', details: { side: name } });
    expectSame(files.bytes('top'), bytes);
    expect(broken.open).toEqual([]);
  });

  it('by a power cut at any moment: the image reads as before, over either file', async () => {
    const log = new WriteLog();
    const files = await image({ clusterSize: KiB });
    const before = await content(files, 'top');
    const bytes = files.bytes('top');
    const recording = new MemoryFiles({ wrap: (node) => new RecordingStore(node, { log }) });
    for (const name of files.names()) recording.add(name, files.bytes(name));
    await rebase(recording, 'top', to);
    const changes = log.entries.filter(({ kind }) => kind !== 'flush');
    expect(changes.length).toBeGreaterThan(8);
    const seen = new Set<string | undefined>();
    let seed = 1;
    for (const cut of [...changes.map(({ began }) => began), log.tick]) {
      for (let i = 0; i < 12; i++, seed++) {
        const crashed = new MemoryFiles();
        for (const name of files.names()) crashed.add(name, files.bytes(name));
        const entries = log.entries.filter(({ store }) => store.name === 'top');
        crashed.add('top', crashImage(entries, bytes, cut, seededRandom(seed), { tear: true, discard: 'junk' }));
        expectSame(await content(crashed, 'top'), before, `seed ${seed}, cut at ${cut}`);
        seen.add((await recorded(crashed, 'top'))?.name);
      }
    }
    expect([...seen].toSorted((a, b) => String(a).localeCompare(String(b)))).toEqual(['new', 'old']);
  });
});

/** A log that also notes the lengths of reads. */
function logging(log: WriteLog, reads: number[]): WriteLog {
  const begin = log.begin.bind(log);
  log.begin = (entry) => {
    if (entry.kind === 'read') reads.push(entry.length);
    return begin(entry);
  };
  return log;
}
