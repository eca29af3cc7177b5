/** What callers can say about opening: which formats are looked for, open options for a format that is not known yet, another backing file,
 *  and how far down the chain is opened. */
import { describe, expect, it } from 'vitest';
import type { FormatDriver, ImageEvent } from '../../src/core/format.ts';
import { backingChain } from '../../src/core/node.ts';
import { qcow2 } from '../../src/formats/qcow2/driver.ts';
import { raw } from '../../src/formats/raw/driver.ts';
import type { OpenOptionsInput } from '../../src/image/open.ts';
import { bitmap } from '../support/bitmap-driver.ts';
import { createBitmapImage } from '../support/bitmap-layout.ts';
import { contentOf, KiB, make, makeOverlay, open } from './support/fixtures.ts';
import { MemoryFiles } from './support/memory-protocol.ts';

const ALL: readonly FormatDriver[] = [qcow2, bitmap, raw];
const FEW: readonly FormatDriver[] = [qcow2, raw];

/** `top` over `base`, which is no qcow2 image and whose format nobody records. */
async function overUnknown(base: Uint8Array): Promise<MemoryFiles> {
  const files = new MemoryFiles();
  files.add('base', base);
  await make(files, 'top', { size: 64 * KiB });
  const record = { name: 'base', format: undefined };
  const image = await open(files, 'top', { readOnly: false });
  await image.node.changeBacking(record);
  await image.close();
  return files;
}

describe('formats that are looked for', () => {
  it('are those of the list, and the others can be named', async () => {
    const files = new MemoryFiles();
    files.add('a', createBitmapImage(64 * KiB));
    const opened = async (options: object): Promise<string> => {
      await using image = await open(files, 'a', { formats: ALL, ...options });
      return `${image.format}${image.probedRaw ? '?' : ''}`;
    };
    expect(await opened({})).toBe('bitmap');
    expect(await opened({ probed: FEW })).toBe('raw?');
    expect(await opened({ probed: FEW, format: 'bitmap' })).toBe('bitmap');
  });

  it('hold for backing files too', async () => {
    const files = await overUnknown(createBitmapImage(64 * KiB));
    const driverBelow = async (probed: readonly FormatDriver[] | undefined): Promise<string | undefined> => {
      await using image = await open(files, 'top', { formats: ALL, probed, references: 'allow', probeBacking: true });
      return backingChain(image.node)[1]?.driver;
    };
    expect(await driverBelow(undefined)).toBe('bitmap');
    expect(await driverBelow(FEW)).toBe('raw');
  });

  it('decide what a guessed raw image may not be made to look like', async () => {
    const files = new MemoryFiles();
    files.add('a', new Uint8Array(64 * KiB));
    const head = createBitmapImage(64 * KiB).subarray(0, 512);
    await using all = await open(files, 'a', { formats: ALL, readOnly: false });
    await expect(all.write(0, head)).rejects.toMatchObject({ reason: 'image.raw-signature' });
    await using few = await open(files, 'a', { formats: ALL, probed: FEW, readOnly: false });
    await few.write(0, head);
  });

  it('are warned of when a backing file without a recorded format matches none of them', async () => {
    const files = await overUnknown(new Uint8Array(1024));
    const events: ImageEvent[] = [];
    const options = { references: 'allow', probeBacking: true, onEvent: (e: ImageEvent) => events.push(e) } as const;
    await using _image = await open(files, 'top', options);
    expect(events).toMatchObject([{ type: 'warning', node: 'base', reason: 'image.guessed' }]);
  });
});

describe('open options', () => {
  it('may be given by a function, which is told what the format turned out to be', async () => {
    const files = new MemoryFiles();
    files.add('a', new Uint8Array(4096));
    const told: string[] = [];
    const options = (driver: FormatDriver) => {
      told.push(driver.name);
      return { offset: 1024 };
    };
    await using image = await open(files, 'a', { options });
    expect([told, image.virtualSize]).toEqual([['raw'], 3072]);
  });

  it.each([
    [{ offet: 1 }, 'option.unknown'],
    [{ offset: 'x' }, 'option.size'],
    [() => ({ offset: -1 }), 'option.size'],
  ] as readonly (readonly [OpenOptionsInput, string])[])(
    '%o is refused by an error that names image and format',
    async (options, reason) => {
      const files = new MemoryFiles();
      files.add('a', new Uint8Array(4096));
      await expect(open(files, 'a', { options })).rejects.toMatchObject({
        code: 'OPTION',
        reason,
        message: expect.stringMatching(/^raw "a": /),
        details: { format: 'raw' },
      });
      expect(files.open).toEqual([]);
    },
  );

  it('are those of the image, not of its backing files', async () => {
    const files = new MemoryFiles();
    files.add('base', new Uint8Array(64 * KiB).fill(1));
    await makeOverlay(files, 'top', 'base', [], { backing: { name: 'base', format: 'raw' } });
    await using image = await open(files, 'top', { options: { lazyRefcounts: false }, references: 'allow' });
    expect((await contentOf(image)).every((byte) => byte === 1)).toBe(true);
  });
});

describe('the backing file', () => {
  async function chain(): Promise<MemoryFiles> {
    const files = new MemoryFiles();
    await make(files, 'c1', { size: 512 * KiB }, [[0, 64 * KiB, 1]]);
    await makeOverlay(files, 'c2', 'c1', [[64 * KiB, 64 * KiB, 2]]);
    await makeOverlay(files, 'c3', 'c2', [[128 * KiB, 64 * KiB, 3]]);
    files.add('other', new Uint8Array(512 * KiB).fill(7));
    return files;
  }

  it('is opened as far down as is asked', async () => {
    const files = await chain();
    for (const [openBacking, expected] of [
      [true, ['c3', 'c2', 'c1']],
      [false, ['c3']],
      [0, ['c3']],
      [1, ['c2', 'c3']],
      [2, ['c1', 'c2', 'c3']],
    ] as const) {
      await using image = await open(files, 'c3', { references: 'allow', openBacking });
      expect(new Set(files.open)).toEqual(new Set(expected));
      expect((await image.read(128 * KiB, 1))[0]).toBe(3);
      if (expected.length > 1) expect((await image.read(64 * KiB, 1))[0]).toBe(2);
      if (expected.length > 2) expect((await image.read(0, 1))[0]).toBe(1);
      else await expect(image.read(0, 1)).rejects.toMatchObject({ reason: 'reference.denied' });
    }
  });

  it('is told with the format that it is opened as', async () => {
    const files = await chain();
    for (const openBacking of [true, false]) {
      await using image = await open(files, 'c3', { references: 'allow', openBacking });
      expect([image.backingName, image.backingFormat]).toEqual(['c2', 'qcow2']);
      const backing = { name: 'other', format: 'raw' };
      await using over = await open(files, 'c3', { references: 'allow', openBacking, backing });
      expect([over.backingName, over.backingFormat]).toEqual(['other', 'raw']);
    }
    await using base = await open(files, 'c1');
    expect([base.backingName, base.backingFormat]).toEqual([undefined, undefined]);
  });

  it('can be another one than the recorded one, which no policy is asked about', async () => {
    const files = await chain();
    const backing = { name: 'other', format: 'raw' };
    await using image = await open(files, 'c3', { backing });
    expect([...(await image.read(0, 1)), ...(await image.read(128 * KiB, 1))]).toEqual([7, 3]);
    await expect(open(files, 'c1', { backing })).rejects.toMatchObject({ reason: 'image.backing-override' });
  });
});

describe('a data file', () => {
  it('can be another one than the recorded one, which no policy is asked about (M-05, M-24)', async () => {
    const files = new MemoryFiles();
    await make(files, 'a', { size: 64 * KiB, options: { dataFile: 'recorded' } }, [[0, 4 * KiB, 7]]);
    files.add('moved', files.bytes('recorded'));
    files.files.delete('recorded');
    await expect(open(files, 'a', { references: 'allow' })).rejects.toMatchObject({ reason: 'image.data-file' });
    const dataFile = { name: 'moved' };
    await using image = await open(files, 'a', { dataFile, readOnly: false });
    expect((await image.read(0, 1))[0]).toBe(7);
    await image.write(0, Uint8Array.of(9));
    await image.flush();
    expect(files.bytes('moved')[0]).toBe(9);
    // The record stays.
    expect((await image.info()).specific?.data['data-file']).toBe('recorded');
  });

  it('that is given for an image without one is refused; where only facts are asked for, none is opened (M-09, M-24)', async () => {
    const files = new MemoryFiles();
    await make(files, 'c1', { size: 64 * KiB });
    const dataFile = { name: 'other' };
    files.add('other', new Uint8Array(64 * KiB));
    await expect(open(files, 'c1', { dataFile })).rejects.toMatchObject({ reason: 'image.data-file-override' });
    await using facts = await open(files, 'c1', { dataFile, metadataOnly: true });
    expect(new Set(files.open)).toEqual(new Set(['c1']));
    expect(facts.virtualSize).toBeGreaterThan(0);
  });
});
