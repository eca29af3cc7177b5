/** Claims of whole images: every file of a chain, over reopening and failure, against other openings in this process, which are as good as
 *  other processes. */
import { closeSync, openSync, readFileSync } from 'node:fs';
import { basename } from 'node:path';
import { afterEach, describe, expect, it } from 'vitest';
import { commitImage, convertImage, createImage, type Image, imageInfo, openImage } from '../../src/node.ts';
import { native } from '../../src/platform/node/native.ts';
import { fileProtocol } from '../../src/storage/file.ts';
import { scratch } from '../support/scratch.ts';

const MiB = 1024 * 1024;
const READS = [100, 201, 203];
const WRITES = [100, 101, 103, 201, 203];

const named = scratch();
const images: Image[] = [];

afterEach(async () => {
  for (const image of images.splice(0)) await image.close();
});

async function opened(...[source, options]: Parameters<typeof openImage>): Promise<Image> {
  const image = await openImage(source, options);
  images.push(image);
  return image;
}

function lockedBytes(path: string): number[] {
  const fd = openSync(path, 'r');
  try {
    return [100, 101, 102, 103, 200, 201, 202, 203].filter((at) => native().byteIsLocked(fd, at) === true);
  } finally {
    closeSync(fd);
  }
}

async function chain(prefix: string): Promise<{ base: string; middle: string; top: string }> {
  const [base, middle, top] = ['base', 'middle', 'top'].map((name) => named(`${prefix}-${name}`)) as [
    string,
    string,
    string,
  ];
  await createImage(base, { format: 'qcow2', size: MiB });
  await createImage(middle, { format: 'qcow2', backing: { name: basename(base), format: 'qcow2' } });
  await createImage(top, { format: 'qcow2', backing: { name: basename(middle), format: 'qcow2' } });
  return { base, middle, top };
}

const LOCKED = { code: 'LOCKED', reason: 'file.locked' };

describe.skipIf(!native().available)('an open image', () => {
  it('keeps writers from its whole chain, and shares what is below with other readers', async () => {
    const { base, middle, top } = await chain('shared');
    const second = named('shared-second');
    await createImage(second, { format: 'qcow2', backing: { name: basename(base), format: 'qcow2' } });
    await opened(top, { readOnly: false, references: 'allow' });
    await opened(second, { readOnly: false, references: 'allow' });
    expect([top, middle, base, second].map(lockedBytes)).toEqual([WRITES, READS, READS, WRITES]);
    for (const name of [top, middle, base]) {
      await expect(openImage(name, { readOnly: false, references: 'layer-only' })).rejects.toMatchObject(LOCKED);
    }
    await expect(openImage(top, { references: 'layer-only' })).rejects.toMatchObject(LOCKED);
    await opened(middle, { references: 'allow' });
  });

  it('is read next to its writer by force, and never written so', async () => {
    const { top } = await chain('forced');
    const writer = await opened(top, { readOnly: false, references: 'allow' });
    await writer.write(0, new Uint8Array([7]));
    await writer.flush();
    const reader = await opened(top, { forceShare: true, references: 'allow' });
    expect(await reader.read(0, 1)).toEqual(new Uint8Array([7]));
    const refusal = { code: 'INVALID_ARGUMENT', reason: 'image.force-share' };
    await expect(openImage(top, { readOnly: false, forceShare: true })).rejects.toMatchObject(refusal);
    await expect(reader.reopen({ readOnly: false })).rejects.toMatchObject(refusal);
    expect(await reader.read(0, 1)).toEqual(new Uint8Array([7]));
  });

  it('has no locks where nobody wants them', async () => {
    const { top, base } = await chain('off');
    await opened(top, { readOnly: false, references: 'allow', locking: 'off' });
    expect([top, base].map(lockedBytes)).toEqual([[], []]);
    await opened(top, { readOnly: false, references: 'allow', locking: 'on' });
    expect([top, base].map(lockedBytes)).toEqual([WRITES, READS]);
  });

  it('changes what it claims with its settings, of its data file too, and keeps it when that fails', async () => {
    const [name, data] = [named('split'), named('split-data')];
    await createImage(name, { format: 'qcow2', size: MiB, options: { dataFile: basename(data) } });
    const image = await opened(name, { readOnly: false, references: 'allow' });
    const state = (): number[][] => [lockedBytes(name), lockedBytes(data)];
    const [writes, reads] = [
      [WRITES, [100, 101, 103, 203]],
      [READS, [100, 203]],
    ];
    expect(state()).toEqual(writes);
    await image.reopen({ readOnly: true });
    expect(state()).toEqual(reads);
    const reader = await opened(name, { references: 'allow' });
    await expect(image.reopen({ readOnly: false })).rejects.toMatchObject(LOCKED);
    expect(await image.read(0, 1)).toEqual(new Uint8Array(1));
    await reader.close();
    expect(state()).toEqual(reads);
    await image.reopen({ readOnly: false });
    expect(state()).toEqual(writes);
    await expect(image.reopen({ readOnly: true, options: { overlapCheck: 'nonsense' } })).rejects.toMatchObject({});
    expect(state()).toEqual(writes);
    await image.invalidate();
    expect(state()).toEqual(writes);
    await image.write(0, new Uint8Array([1]));
    await image.close();
    expect(state()).toEqual([[], []]);
  });

  it('whose data file somebody uses keeps both files as they were, when it becomes a writer in vain', async () => {
    const [name, data] = [named('half'), named('half-data')];
    await createImage(name, { format: 'qcow2', size: MiB, options: { dataFile: basename(data) } });
    const image = await opened(name, { references: 'allow' });
    const before = [lockedBytes(name), lockedBytes(data)];
    const raw = await opened(data, { format: 'raw', shareWrites: false });
    await expect(image.reopen({ readOnly: false })).rejects.toMatchObject({
      code: 'LOCKED',
      reason: 'image.data-file',
    });
    await raw.close();
    expect([lockedBytes(name), lockedBytes(data)]).toEqual(before);
    await image.reopen({ readOnly: false });
    await image.write(0, new Uint8Array([1]));
  });

  it('claims the right to resize when it does, where others may write', async () => {
    const name = named('resized.raw');
    await createImage(name, { format: 'raw', size: MiB });
    const image = await opened(name, { format: 'raw', readOnly: false });
    expect(lockedBytes(name)).toEqual([100, 101]);
    const other = await opened(name, { format: 'raw', readOnly: false });
    await image.resize(2 * MiB);
    expect(lockedBytes(name)).toEqual([100, 101, 103]);
    await image.close();
    const copier = opened(name, { format: 'raw', shareWrites: false });
    await expect(copier).rejects.toMatchObject(LOCKED);
    await other.close();
  });

  it('gives a store that was lent back as it was, when it cannot be opened', async () => {
    const name = named('lent');
    await createImage(name, { format: 'raw', size: MiB });
    const store = await fileProtocol.open(name, { readOnly: false });
    await expect(openImage(store, { format: 'qcow2', readOnly: false })).rejects.toMatchObject({
      code: 'WRONG_FORMAT',
    });
    expect(lockedBytes(name)).toEqual([]);
    const image = await opened(store, { format: 'raw', readOnly: false });
    expect(lockedBytes(name)).toEqual([100, 101]);
    await image.close();
  });

  it('tells what keeps others away', async () => {
    const { top } = await chain('told');
    const image = await opened(top, { readOnly: false, references: 'allow' });
    const states = async (source: string | Image, options = {}) => (await imageInfo(source, options)).locks?.state;
    expect(await states(image)).toBe('held');
    expect(await states(top, { forceShare: true })).toBe('none');
    await image.close();
    expect(await states(top, { locking: 'off' })).toBe('off');
    process.env['COWDISK_NO_NATIVE'] = '1';
    try {
      const { locks } = await imageInfo(top);
      expect([locks?.state, locks?.missing]).toEqual(['unavailable', expect.stringContaining('COWDISK_NO_NATIVE')]);
    } finally {
      delete process.env['COWDISK_NO_NATIVE'];
    }
  });
});

describe.skipIf(!native().available)('a job', () => {
  it('that replaces an image in use is refused, and leaves it alone', async () => {
    const { top, base } = await chain('replaced');
    await opened(base);
    const before = readFileSync(base);
    await expect(createImage(base, { format: 'raw', size: MiB })).rejects.toMatchObject(LOCKED);
    await expect(convertImage(top, { name: base, format: 'raw' }, { references: 'allow' })).rejects.toBeDefined();
    const other = named('replaced-other');
    await createImage(other, { format: 'raw', size: MiB });
    await expect(convertImage(other, { name: base, format: 'raw' }, {})).rejects.toMatchObject(LOCKED);
    expect(readFileSync(base)).toEqual(before);
  });

  it('that commits wants its base and the layers between for itself', async () => {
    const { base, middle, top } = await chain('committed');
    const reader = await opened(base, { forceShare: true });
    await commitImage(top, { references: 'allow', base: basename(base) });
    await reader.close();
    const user = await opened(base);
    await expect(commitImage(middle, { references: 'allow' })).rejects.toMatchObject({
      code: 'LOCKED',
      reason: 'commit.base-open',
    });
    await user.close();
    const between = await opened(middle, { forceShare: true, references: 'allow' });
    await expect(commitImage(top, { references: 'allow', base: basename(base) })).rejects.toMatchObject({
      code: 'LOCKED',
      reason: 'commit.layer-used',
    });
    await between.close();
    await commitImage(top, { references: 'allow', base: basename(base) });
    for (const name of [base, middle, top]) expect(lockedBytes(name)).toEqual([]);
  });
});
