/** Images that are opened anew while they are open: with other settings, and after somebody else has written to them. */
import { describe, expect, it } from 'vitest';
import type { Image } from '../../src/image/image.ts';
import { type OpenImageOptions, openImage } from '../../src/image/open.ts';
import { MemoryStore } from '../../src/storage/memory.ts';
import { FaultStore } from '../../src/testing/fault-store.ts';
import { checkImage } from '../../src/tools/check.ts';
import { drivers, KiB, make, open } from './support/fixtures.ts';
import { MemoryFiles } from './support/memory-protocol.ts';

const DATA = [[3 * KiB, 70 * KiB, 5]] as const;

async function disk(options: Record<string, unknown> = {}): Promise<MemoryFiles> {
  const files = new MemoryFiles();
  await make(files, 'base', { size: 300 * KiB, format: 'qcow2' }, [[0, 300 * KiB, 9]]);
  await make(
    files,
    'a',
    'dataFile' in options
      ? { size: 300 * KiB, options }
      : { size: 300 * KiB, options, backing: { name: 'base', format: 'qcow2' } },
    DATA,
  );
  return files;
}

function opened(files: MemoryFiles, options: Partial<OpenImageOptions> = {}): Promise<Image> {
  return open(files, 'a', { references: 'allow', ...options });
}

async function byte(image: Image, offset: number): Promise<number> {
  return (await image.read(offset, 1))[0] as number;
}

async function expectSound(files: MemoryFiles): Promise<void> {
  const { result } = await checkImage('a', { ...drivers(files), references: 'allow' });
  expect(result).toMatchObject({ corruptions: 0, leaks: 0, checkErrors: 0 });
}

describe('reopening', () => {
  it('makes an image writable, and read-only again, with requests on both sides (M-30, Q-113)', async () => {
    const files = await disk();
    await using image = await opened(files);
    const { node } = image;
    await expect(image.write(0, new Uint8Array(10))).rejects.toMatchObject({ code: 'READ_ONLY' });
    const reading = byte(image, 5 * KiB);
    await image.reopen({ readOnly: false });
    expect(await reading).toBe(5);
    expect(image.readOnly).toBe(false);
    expect(image.node).toBe(node);
    const writing = image.node.write(100 * KiB, new Uint8Array(80 * KiB).fill(7));
    const again = image.reopen({ readOnly: true });
    await writing;
    await again;
    expect([await byte(image, 150 * KiB), await byte(image, 5 * KiB), await byte(image, 290 * KiB)]).toEqual([7, 5, 9]);
    await expect(image.write(0, new Uint8Array(10))).rejects.toMatchObject({ code: 'READ_ONLY' });
    await image.close();
    await expectSound(files);
  });

  it.each<[string, Record<string, unknown>, Record<string, unknown>]>([
    ['other caches', {}, { l2CacheSize: 2048, l2CacheEntrySize: 512, refcountCacheSize: 256 * KiB }],
    ['other overlap checks', {}, { overlapCheck: 'all' }],
    ['discards that are passed on', {}, { passDiscardRequest: true, passDiscardOther: true }],
    ['lazy refcounts', {}, { lazyRefcounts: true }],
    ['no lazy refcounts', { lazyRefcounts: true }, { lazyRefcounts: false }],
    ['a data file', { dataFile: 'd', dataFileRaw: true }, { overlapCheck: 'none' }],
  ])('takes %s while requests run', async (_, options, changes) => {
    const files = await disk(options);
    await using image = await opened(files, { readOnly: false });
    for (let i = 0; i < 3; i++) {
      const before = image.write((90 + 10 * i) * KiB, new Uint8Array(70 * KiB).fill(i + 1));
      const reopening = image.reopen({
        options: i === 1 ? Object.fromEntries(Object.keys(changes).map((key) => [key, undefined])) : changes,
      });
      const after = image.write((200 + i) * KiB, new Uint8Array(KiB).fill(i + 50));
      await Promise.all([before, reopening, after]);
      expect(await byte(image, (90 + 10 * i) * KiB)).toBe(i + 1);
      expect(await byte(image, (200 + i) * KiB)).toBe(i + 50);
    }
    await image.close();
    await expectSound(files);
    await using afterwards = await opened(files);
    expect([await byte(afterwards, 5 * KiB), await byte(afterwards, 110 * KiB)]).toEqual([5, 3]);
  });

  it('changes nothing where an option is wrong, found at once or late (Q-083, Q-113)', async () => {
    const files = await disk();
    await using image = await opened(files, { readOnly: false, options: { passDiscardOther: true } });
    await image.write(0, new Uint8Array(10).fill(1));
    await expect(image.reopen({ options: { nonsense: 1 } })).rejects.toMatchObject({ code: 'OPTION' });
    await expect(image.reopen({ options: { l2CacheEntrySize: 3 }, readOnly: true })).rejects.toMatchObject({
      reason: 'qcow2.l2-cache-entry-size',
    });
    expect(image.readOnly).toBe(false);
    await image.write(5, new Uint8Array(10).fill(2));
    expect([await byte(image, 0), await byte(image, 6), await byte(image, 299 * KiB)]).toEqual([1, 2, 9]);
    await image.close();
    await expectSound(files);
  });

  it('stays as it was where the file cannot be opened for writing', async () => {
    const files = await disk();
    const real = files.protocol.open.bind(files.protocol);
    const refusing = {
      ...files.protocol,
      open: (name: string, options: { readOnly: boolean }) => {
        if (!options.readOnly) return Promise.reject(new Error('refused'));
        return real(name, options as never);
      },
    };
    await using other = await opened(files, { protocols: [refusing as never] });
    await expect(other.reopen({ readOnly: false })).rejects.toThrow('refused');
    expect([other.readOnly, await byte(other, 5 * KiB)]).toEqual([true, 5]);
    await expect(opened(files, { snapshot: 'x' })).rejects.toMatchObject({ code: 'NOT_FOUND' });
  });

  it('is refused for snapshots that would be written, and for stores that cannot be', async () => {
    const files = await disk();
    await using writer = await opened(files, { readOnly: false });
    await writer.createSnapshot({ name: 's', date: new Date(0) });
    await writer.close();
    await using frozen = await opened(files, { snapshot: 's' });
    await expect(frozen.reopen({ readOnly: false })).rejects.toMatchObject({ reason: 'image.snapshot-read-only' });
    expect(await byte(frozen, 5 * KiB)).toBe(5);
    const store = MemoryStore.from(files.bytes('a'), { readOnly: true });
    await using given = await openImage(store, { ...drivers(files), references: 'allow' });
    await expect(given.reopen({ readOnly: false })).rejects.toMatchObject({ reason: 'image.reopen-store' });
    expect(await byte(given, 5 * KiB)).toBe(5);
  });

  it('keeps bitmaps recording', async () => {
    const files = await disk();
    await using image = await opened(files, { readOnly: false });
    await image.node.changeBitmaps((bitmaps) => bitmaps.add({ name: 'b', granularity: 64 * KiB }));
    await image.write(0, new Uint8Array(10));
    await image.reopen({ options: { overlapCheck: 'all' } });
    await image.write(200 * KiB, new Uint8Array(10));
    expect(image.node.observers.size).toBe(1);
    await image.reopen({ readOnly: true });
    expect(await image.node.format.bitmaps?.list()).toMatchObject([{ name: 'b', inconsistent: false }]);
    const dirty: number[] = [];
    for await (const { offset } of image.node.format.bitmaps?.dirty('b') ?? []) dirty.push(offset);
    expect(dirty).toEqual([0, 192 * KiB]);
  });

  it('refuses every request where the image could not be opened again at all (Q-112)', async () => {
    const files = await disk();
    const store = new FaultStore(MemoryStore.from(files.bytes('a')));
    await using image = await openImage(store, { ...drivers(files), references: 'allow' });
    expect(await byte(image, 5 * KiB)).toBe(5);
    const fault = store.fail({ on: 'read', always: true });
    await expect(image.reopen({ options: { overlapCheck: 'all' } })).rejects.toMatchObject({
      reason: 'image.reopen-lost',
    });
    fault.cancel();
    await expect(image.read(0, 1)).rejects.toMatchObject({ reason: 'engine.condemned' });
  });
});

describe('invalidating', () => {
  it('shows what another writer has made of the image (Q-112)', async () => {
    const files = await disk();
    await using reader = await opened(files);
    await using idle = await opened(files, { readOnly: false });
    expect([await byte(reader, 100 * KiB), await byte(idle, 100 * KiB)]).toEqual([9, 9]);
    await using writer = await opened(files, { readOnly: false });
    await writer.resize(500 * KiB);
    await writer.write(90 * KiB, new Uint8Array(100 * KiB).fill(3));
    await writer.amend({ refcountBits: 64 });
    await writer.close();
    await make(files, 'other', { size: 300 * KiB }, [[0, 300 * KiB, 4]]);
    await using rebased = await opened(files, { readOnly: false });
    await rebased.node.changeBacking({ name: 'other', format: 'qcow2' });
    await rebased.close();
    for (const image of [reader, idle]) {
      const reading = byte(image, 5 * KiB);
      await image.invalidate();
      expect(await reading).toBe(5);
      expect([image.virtualSize, await byte(image, 150 * KiB), await byte(image, 250 * KiB)]).toEqual([
        500 * KiB,
        3,
        4,
      ]);
      expect(image.backingName).toBe('other');
    }
    await idle.write(0, new Uint8Array(100 * KiB).fill(8));
    await idle.close();
    await expectSound(files);
  });

  it('gives up what was not written', async () => {
    const files = await disk();
    const before = files.bytes('a').slice();
    await using image = await opened(files, { readOnly: false });
    const at = files.bytes('a').slice();
    await image.writeZeroes(64 * KiB, 64 * KiB);
    expect(await byte(image, 100 * KiB)).toBe(0);
    // the zero mark is in memory only
    expect(Buffer.compare(files.bytes('a'), at)).toBe(0);
    await image.invalidate();
    expect(await byte(image, 100 * KiB)).toBe(9);
    await image.close();
    expect(Buffer.compare(files.bytes('a'), before)).toBe(0);
  });
});
