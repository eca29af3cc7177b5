/** Amending qcow2: what changes, what stays, what is refused before anything changes. qemu-img's words are among the transcripts. */
import { describe, expect, it } from 'vitest';
import { readHeader } from '../../../src/formats/qcow2/header.ts';
import type { Image } from '../../../src/image/image.ts';
import { amendImage } from '../../../src/tools/amend.ts';
import { checkImage } from '../../../src/tools/check.ts';
import { drivers, KiB, make, open } from '../../image/support/fixtures.ts';
import { MemoryFiles } from '../../image/support/memory-protocol.ts';

const DATA = [[3 * KiB, 70 * KiB, 5]] as const;

async function disk(options: Record<string, unknown> = {}): Promise<MemoryFiles> {
  const files = new MemoryFiles();
  await make(files, 'a', { size: 2048 * KiB, options }, DATA);
  return files;
}

function opened(files: MemoryFiles): Promise<Image> {
  return open(files, 'a', { readOnly: false, references: 'allow' });
}

async function amend(files: MemoryFiles, changes: Record<string, unknown>): Promise<void> {
  await amendImage('a', changes, { ...drivers(files), references: 'allow' });
}

async function header(files: MemoryFiles) {
  await using image = await opened(files);
  return await readHeader(image.node.children[0]?.node as never, 'a', { readOnly: true, forCheck: false });
}

async function expectSound(files: MemoryFiles, content: readonly number[] = [0, 5, 5, 0]): Promise<void> {
  await using image = await open(files, 'a', { references: 'allow' });
  const at = [0, 3 * KiB, 73 * KiB - 1, 73 * KiB];
  for (const [i, offset] of at.entries()) expect((await image.read(offset, 1))[0]).toBe(content[i]);
  const { result } = await checkImage('a', { ...drivers(files), references: 'allow' });
  expect(result).toMatchObject({ corruptions: 0, leaks: 0, checkErrors: 0 });
}

describe('amending', () => {
  it('makes version 2 version 3, and the snapshots in it what version 3 demands (Q-200, Q-213)', async () => {
    const files = await disk({ compat: 'v2' });
    await using image = await opened(files);
    await image.createSnapshot({ name: 's', date: new Date(0) });
    const seen: number[] = [];
    await image.amend(
      { compat: '1.1', lazyRefcounts: true },
      { onProgress: ({ done, total }) => seen.push(done / total) },
    );
    expect(seen).toEqual([0, 0.5, 1]);
    await image.write(100 * KiB, new Uint8Array(KiB).fill(9));
    await image.close();
    expect(await header(files)).toMatchObject({ version: 3, compatible: 1n, incompatible: 0n });
    await expectSound(files);
  });

  it('switches lazy refcounts on and off while the image is written to (Q-211)', async () => {
    const files = await disk();
    await using image = await opened(files);
    for (const [i, lazyRefcounts] of [true, false, true, false].entries()) {
      const writing = image.write((300 + 64 * i) * KiB, new Uint8Array(90 * KiB).fill(7));
      await Promise.all([image.amend({ lazyRefcounts }), writing]);
      await image.write((900 + 64 * i) * KiB, new Uint8Array(KiB).fill(8));
      await image.flush();
      const now = await readHeader(image.node.children[0]?.node as never, 'a', { readOnly: true, forCheck: true });
      expect(now).toMatchObject({ compatible: lazyRefcounts ? 1n : 0n, incompatible: lazyRefcounts ? 1n : 0n });
    }
    await image.close();
    await expectSound(files);
  });

  it('records another data file, and that it is no disk by itself any more (M-07)', async () => {
    const files = await disk({ dataFile: 'a.data', dataFileRaw: true });
    await amend(files, { dataFileRaw: false });
    expect(await header(files)).toMatchObject({ autoclear: 0n, dataFile: 'a.data' });
    await expectSound(files);
    files.files.set('b.data', files.files.get('a.data') as never);
    await amend(files, { dataFile: 'b.data' });
    expect(await header(files)).toMatchObject({ dataFile: 'b.data' });
    await expectSound(files);
  });

  it('grows the disk (Q-212)', async () => {
    const files = await disk();
    await amend(files, { size: 4096 * KiB });
    expect(await header(files)).toMatchObject({ virtualSize: 4096 * KiB });
    await expectSound(files);
  });

  it('changes nothing where nothing is asked for (Q-200, Q-206)', async () => {
    const files = await disk({ lazyRefcounts: true });
    const before = files.bytes('a').slice();
    await amend(files, { compat: 'v3', lazyRefcounts: true, refcountBits: 16, size: 0, dataFileRaw: false });
    expect(files.bytes('a')).toEqual(before);
  });

  const refused: readonly (readonly [string, Record<string, unknown>, Record<string, unknown>, string])[] = [
    ['an unknown level', {}, { compat: 'v4' }, 'qcow2.amend-compat'],
    ['an unknown option', {}, { clusterSize: 512 }, 'option.unknown'],
    ['a data file where there is none', {}, { dataFile: 'x' }, 'qcow2.amend-data-file'],
    ['a raw data file', { dataFile: 'd' }, { dataFileRaw: true }, 'qcow2.amend-data-file-raw'],
    ['a backing file', {}, { backingFile: 'x', backingFmt: 'raw' }, 'qcow2.amend-backing'],
    ['refcounts of three bits', {}, { refcountBits: 3 }, 'qcow2.refcount-bits'],
    ['lazy refcounts of version 2', { compat: 'v2' }, { lazyRefcounts: true }, 'qcow2.amend-lazy-refcounts'],
    ['refcounts of 8 bits in version 2', { compat: 'v2' }, { refcountBits: 8 }, 'qcow2.amend-refcount-bits'],
    ['8 bits and version 2', {}, { refcountBits: 8, compat: 'v2' }, 'qcow2.amend-refcount-bits'],
    ['version 2 of 8 bits', { refcountBits: 8 }, { compat: 'v2' }, 'qcow2.amend-downgrade-refcount-bits'],
    ['version 2 with a data file', { dataFile: 'd' }, { compat: 'v2' }, 'qcow2.amend-downgrade-data-file'],
    ['version 2 with subclusters', { extendedL2: true }, { compat: 'v2' }, 'qcow2.amend-downgrade-features'],
    ['version 2 with zstd', { compressionType: 'zstd' }, { compat: 'v2' }, 'qcow2.amend-downgrade-features'],
    ['keys where there are none', {}, { encryptKeyslot: 1 }, 'qcow2.amend-not-encrypted'],
    ['what cannot be one part of it', {}, { size: 4096 * KiB, dataFile: 'x' }, 'qcow2.amend-data-file'],
  ];
  it.each(refused)(
    'refuses %s, and changes nothing (Q-201, Q-202, Q-207, Q-208, Q-210)',
    async (_, options, changes, reason) => {
      const files = await disk(options);
      const before = files.bytes('a').slice();
      await expect(amend(files, changes)).rejects.toMatchObject({ reason });
      expect(files.bytes('a')).toEqual(before);
    },
  );

  it('is refused for images that are open for reading, and by formats that cannot', async () => {
    const files = await disk();
    await using image = await open(files, 'a');
    await expect(image.amend({ lazyRefcounts: true })).rejects.toMatchObject({ reason: 'engine.read-only' });
    await make(files, 'r', { format: 'raw', size: KiB });
    await expect(amendImage('r', {}, { ...drivers(files), format: 'raw' })).rejects.toMatchObject({
      code: 'UNSUPPORTED',
      reason: 'engine.amend',
    });
  });

  it('refuses what snapshots do not allow, and changes nothing', async () => {
    const files = await disk();
    await using image = await opened(files);
    await image.createSnapshot({ name: 's', date: new Date(0) });
    await image.flush();
    const before = files.bytes('a').slice();
    await expect(image.amend({ refcountBits: 1 })).rejects.toMatchObject({
      reason: 'qcow2.amend-refcount-overflow',
      details: { value: 2, bits: 1 },
    });
    await expect(image.amend({ size: 4096 * KiB, compat: 'v2' })).rejects.toMatchObject({
      reason: 'qcow2.amend-downgrade-snapshots',
    });
    expect(files.bytes('a')).toEqual(before);
  });

  it('changes the width of refcounts and the version while requests run (M-20)', async () => {
    const files = await disk();
    await using image = await opened(files);
    const seen: number[] = [];
    for (const [i, changes] of [
      { refcountBits: 64 },
      { refcountBits: 1 },
      { refcountBits: 16, compat: 'v2' },
      { compat: 'v3', refcountBits: 4 },
    ].entries()) {
      const writing = image.write((300 + 64 * i) * KiB, new Uint8Array(90 * KiB).fill(7));
      const amending = image.amend(changes, { onProgress: ({ done, total }) => seen.push(done / total) });
      const zeroing = image.writeZeroes((1400 + 64 * i) * KiB, 64 * KiB);
      await Promise.all([writing, amending, zeroing]);
      expect(seen.toSorted((a, b) => a - b)).toEqual(seen);
      expect(seen.at(-1)).toBe(1);
      seen.length = 0;
    }
    await image.close();
    await expectSound(files);
    expect(await header(files)).toMatchObject({ version: 3, refcountOrder: 2 });
  });

  it('stops between its steps when it is interrupted, and the image goes on', async () => {
    const files = await disk();
    const controller = new AbortController();
    await using image = await opened(files);
    const amending = image.amend(
      { refcountBits: 64, compat: 'v3' },
      { signal: controller.signal, onProgress: () => controller.abort() },
    );
    await expect(
      amending.then(() => image.amend({ refcountBits: 32 }, { signal: controller.signal })),
    ).rejects.toMatchObject({ code: 'ABORTED' });
    await image.write(500 * KiB, new Uint8Array(KiB).fill(1));
    await image.close();
    await expectSound(files);
  });

  it('does nothing once it is interrupted', async () => {
    const files = await disk();
    const before = files.bytes('a').slice();
    await using image = await opened(files);
    await expect(image.amend({ lazyRefcounts: true }, { signal: AbortSignal.abort() })).rejects.toMatchObject({
      code: 'ABORTED',
    });
    await image.close();
    expect(files.bytes('a')).toEqual(before);
  });
});
