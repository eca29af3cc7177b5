/** Another backing file in the header: what is recorded, what is refused, and what a torn write leaves. */
import { describe, expect, it } from 'vitest';
import type { CreateImageOptions } from '../../../src/image/create.ts';
import { MemoryStore } from '../../../src/storage/memory.ts';
import { seededRandom } from '../../../src/testing/random.ts';
import { crashImage, RecordingStore, WriteLog } from '../../../src/testing/recording-store.ts';
import { checkImage } from '../../../src/tools/check.ts';
import { drivers, KiB, make, open } from '../../image/support/fixtures.ts';
import { MemoryFiles } from '../../image/support/memory-protocol.ts';

type Record = { readonly name: string; readonly format?: string | undefined } | undefined;

const OLD = { name: 'the-old-base', format: 'raw' };

async function image(options: Partial<CreateImageOptions>, backing: Record): Promise<MemoryFiles> {
  const files = new MemoryFiles();
  files.add('the-old-base', new Uint8Array(64 * KiB));
  await make(
    files,
    'a',
    { size: 64 * KiB, backingUnchecked: true, ...(backing === undefined ? {} : { backing }), ...options },
    backing === undefined ? [[0, 4 * KiB, 7]] : [],
  );
  return files;
}

async function recorded(files: MemoryFiles): Promise<Record> {
  await using opened = await open(files, 'a', { openBacking: false, references: 'allow' });
  return (await opened.info()).backing;
}

async function change(files: MemoryFiles, to: Record): Promise<void> {
  await using opened = await open(files, 'a', { openBacking: false, references: 'allow', readOnly: false });
  await opened.node.changeBacking(to);
  expect((await opened.info()).backing).toEqual(to);
}

const KINDS: readonly (readonly [string, Partial<CreateImageOptions>])[] = [
  ['version 3', {}],
  ['version 2', { options: { compat: 'v2' } }],
  ['clusters of 512 bytes', { options: { clusterSize: 512 } }],
  ['clusters of 4 KiB', { options: { clusterSize: 4 * KiB } }],
  ['an external data file', { options: { dataFile: 'a.data' } }],
];

describe.each(KINDS)('a qcow2 image of %s', (_, options) => {
  it('records one name after the other, longer, shorter and none, and stays sound (Q-122, Q-126)', async () => {
    const files = await image(options, OLD);
    const names: Record[] = [
      { name: 'x'.repeat(100), format: 'qcow2' },
      { name: 'b' },
      undefined,
      { name: 'ünicode/base', format: 'raw' },
      { name: 'y'.repeat(101), format: 'a-longer-format' },
      { name: 'y'.repeat(101), format: 'raw' },
      undefined,
    ];
    for (const to of names) {
      await change(files, to);
      expect(await recorded(files)).toEqual(to);
      const { result } = await checkImage('a', { ...drivers(files), references: 'allow' });
      expect(result).toMatchObject({ corruptions: 0, leaks: 0 });
    }
    expect(Buffer.from(files.bytes('a')).includes('yyyy')).toBe(false);
  });

  it.each([
    [OLD, { name: 'the-new-one', format: 'qcow2' }],
    [OLD, { name: 'n'.repeat(200), format: 'raw' }],
    [{ name: 'n'.repeat(200), format: 'raw' }, OLD],
    [OLD, undefined],
    [undefined, OLD],
    [OLD, { name: 'no-format' }],
  ])('shows the old record %o or the new one %o after a write that tore anywhere', async (from, to) => {
    const files = await image(options, from);
    const before = files.bytes('a');
    const log = new WriteLog();
    const store = new RecordingStore(MemoryStore.from(before.slice(), { name: 'a' }), { log });
    const recorder = new MemoryFiles();
    for (const [name, file] of files.files) recorder.files.set(name, file);
    recorder.add('a', store);
    await change(recorder, to);
    const allowed = [from, to].map((record) => JSON.stringify(record ?? null));
    const seen = new Set<string>();
    for (let seed = 1; seed <= 120; seed++) {
      const random = seededRandom(seed);
      const tick = Math.floor(random() * (log.tick + 1));
      const crashed = new MemoryFiles();
      for (const [name, file] of files.files) crashed.files.set(name, file);
      crashed.add('a', crashImage(log.entries, before, tick, random, { tear: true }));
      const record = JSON.stringify((await recorded(crashed)) ?? null);
      expect(allowed, `seed ${seed}, tick ${tick}`).toContain(record);
      seen.add(record);
    }
    expect(seen.size).toBe(2);
  });
});

describe('a record', () => {
  it('that is the present one already writes nothing', async () => {
    const files = await image({}, OLD);
    const log = new WriteLog();
    files.add('a', new RecordingStore(MemoryStore.from(files.bytes('a'), { name: 'a' }), { log }));
    await change(files, OLD);
    expect(log.entries.filter(({ kind }) => kind !== 'flush')).toEqual([]);
  });

  it.each([
    [{ name: 'n'.repeat(1024) }, 'qcow2.backing-name-length'],
    [{ name: 'n', format: 'f'.repeat(16) }, 'qcow2.backing-format-length'],
    [{ name: '' }, 'qcow2.backing-name'],
    [{ name: 'a\0b' }, 'qcow2.backing-name'],
  ])('%o is refused', async (to, reason) => {
    const files = await image({}, OLD);
    const before = files.bytes('a');
    await expect(change(files, to)).rejects.toMatchObject({ reason });
    expect(files.bytes('a')).toEqual(before);
  });

  it('that does not fit into the first cluster is refused', async () => {
    const files = await image({ options: { clusterSize: 512 } }, OLD);
    const before = files.bytes('a');
    await expect(change(files, { name: 'n'.repeat(500) })).rejects.toMatchObject({
      code: 'NO_SPACE',
      reason: 'qcow2.header-space',
    });
    expect(files.bytes('a')).toEqual(before);
  });

  it('is refused where the data file is the disk as it is (Q-126)', async () => {
    const files = await image({ options: { dataFile: 'a.data', dataFileRaw: true } }, undefined);
    await expect(change(files, OLD)).rejects.toMatchObject({ reason: 'qcow2.data-file-raw-backing' });
  });

  it('of an image that is open for reading is refused', async () => {
    const files = await image({}, OLD);
    await using opened = await open(files, 'a', { openBacking: false });
    await expect(opened.node.changeBacking(undefined)).rejects.toMatchObject({ code: 'READ_ONLY' });
  });
});
