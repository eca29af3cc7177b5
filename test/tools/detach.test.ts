/** Detaching, over a format that keeps its data in a file of its own. */
import { describe, expect, it } from 'vitest';
import { BlockError } from '../../src/base/errors.ts';
import { mapExtents } from '../../src/core/block-status.ts';
import { ExtentList } from '../../src/core/extent.ts';
import type { FormatDriver } from '../../src/core/format.ts';
import type { BlockNode } from '../../src/core/node.ts';
import { RunList } from '../../src/core/run.ts';
import { raw } from '../../src/formats/raw/driver.ts';
import { FaultStore } from '../../src/testing/fault-store.ts';
import { type DetachOptions, type DetachResult, detachImage } from '../../src/tools/detach.ts';
import { contentOf, drivers, KiB, open } from '../image/support/fixtures.ts';
import { MemoryFiles } from '../image/support/memory-protocol.ts';
import { bitmap } from '../support/bitmap-driver.ts';
import type { BitmapNode } from '../support/bitmap-format.ts';
import { createBitmapImage } from '../support/bitmap-layout.ts';

const SIZE = 64 * KiB;

/** The test format, as one that could stand alone once everything is held. */
const detachable: FormatDriver = {
  ...(bitmap as FormatDriver),
  open: async (context, options) => {
    const node = (await (bitmap as FormatDriver).open(context, options)) as BitmapNode;
    return Object.assign(node, {
      detach: async () => {
        const list = new ExtentList(4096);
        list.reset(0);
        await mapExtents(node, undefined, { at: 0, end: SIZE, into: list, runs: new RunList() });
        for (const { present } of list) if (!present) throw new BlockError('INTERNAL', 'not everything is there');
        return { name: `${context.name}.data`, format: 'raw' };
      },
    });
  },
};

const formats = [detachable, raw];

async function image(hasBacking = true, wrap?: (node: BlockNode, name: string) => BlockNode): Promise<MemoryFiles> {
  const files = new MemoryFiles(wrap === undefined ? {} : { wrap });
  files.add(
    'd/backing',
    Uint8Array.from({ length: 40 * KiB }, (_, i) => (i < 8 * KiB ? 0 : 1)),
  );
  files.add('d/top', createBitmapImage(SIZE, { hasBacking, spare: 400 }));
  const opened = await open(files, 'd/top', { formats, readOnly: false, references: 'allow', probeBacking: true });
  await opened.write(10 * KiB, new Uint8Array(3 * KiB).fill(2));
  await opened.writeZeroes(20 * KiB, 4 * KiB);
  await opened.close();
  return files;
}

function detach(files: MemoryFiles, options: Partial<DetachOptions> = {}): Promise<DetachResult> {
  return detachImage('d/top', { ...drivers(files), formats, references: 'allow', probeBacking: true, ...options });
}

async function content(files: MemoryFiles): Promise<Uint8Array> {
  await using opened = await open(files, 'd/top', { formats, references: 'allow', probeBacking: true });
  return contentOf(opened);
}

describe('detaching', () => {
  it('of an image that does not hold everything says how much is missing, and changes nothing', async () => {
    const files = await image();
    const bytes = files.bytes('d/top');
    files.files.delete('d/backing');
    await expect(detach(files)).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      reason: 'detach.incomplete',
      details: { name: 'd/top', missing: SIZE - 7 * KiB },
    });
    expect(files.bytes('d/top')).toEqual(bytes);
    expect(files.open).toEqual([]);
  });

  it.each([true, false])('fills what is missing first, when asked to; with a backing file: %s', async (hasBacking) => {
    const files = await image(hasBacking);
    const before = await content(files);
    const seen: number[] = [];
    const result = await detach(files, { fill: true, onProgress: ({ done }) => seen.push(done) });
    expect(result).toEqual({
      standalone: { name: 'd/top.data', format: 'raw' },
      filled: SIZE - 7 * KiB,
      removed: false,
    });
    expect(seen.at(-1)).toBe(SIZE);
    files.files.delete('d/backing');
    if (hasBacking) files.add('d/backing', new Uint8Array(SIZE).fill(9));
    expect(await content(files)).toEqual(before);
    expect(await detach(files)).toMatchObject({ filled: 0 });
  });

  it('removes the image when asked to, and only when its data stands alone', async () => {
    const files = await image();
    await expect(detach(files, { remove: true })).rejects.toMatchObject({ reason: 'detach.incomplete' });
    expect(files.names()).toEqual(['d/backing', 'd/top']);
    expect(await detach(files, { fill: true, remove: true })).toMatchObject({ removed: true });
    expect(files.names()).toEqual(['d/backing']);
  });

  it('is refused where the files cannot be removed, before anything is done', async () => {
    const files = new MemoryFiles({ canRename: false });
    await expect(detach(files, { remove: true })).rejects.toMatchObject({ reason: 'detach.remove' });
    expect(files.log).toEqual([]);
  });

  it('is refused for formats whose data is part of the image', async () => {
    const files = await image();
    await expect(detach(files, { formats: [bitmap, raw], fill: true })).rejects.toMatchObject({
      code: 'UNSUPPORTED',
      reason: 'detach.unsupported',
      details: { format: 'bitmap' },
    });
  });

  it('can be interrupted, and done again', async () => {
    for (let at = 0; at < 8; at++) {
      const files = await image();
      const before = await content(files);
      const stop = new AbortController();
      let steps = 0;
      const onProgress = (): void => {
        if (steps++ === at) stop.abort();
      };
      await detach(files, { fill: true, remove: true, signal: stop.signal, onProgress }).catch((error: unknown) =>
        expect(error).toMatchObject({ code: 'ABORTED' }),
      );
      expect(files.open).toEqual([]);
      if (!files.files.has('d/top')) continue;
      expect(await content(files)).toEqual(before);
      await detach(files, { fill: true });
      expect(await content(files)).toEqual(before);
    }
  });

  it('tells which file could not be read', async () => {
    const files = await image(true, (node, name) =>
      name === 'd/backing' ? new FaultStore(node, [{ on: 'read', offset: 30 * KiB, always: true }]) : node,
    );
    await expect(detach(files, { fill: true })).rejects.toMatchObject({ reason: 'detach.read' });
    expect(files.open).toEqual([]);
  });
});
