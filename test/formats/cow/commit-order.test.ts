/** What reaches the file, and in which order: data, flush, bits, flush; and for what a commit does afterwards: empty the layer, then record
 *  the base's new time. */
import { describe, expect, it } from 'vitest';
import type { BlockNode } from '../../../src/core/node.ts';
import { CREATABLE_LAYOUT_IDS } from '../../../src/formats/cow/layouts.ts';
import { MemoryStore } from '../../../src/storage/memory.ts';
import { RecordingStore, WriteLog } from '../../../src/testing/recording-store.ts';
import { BASE_NAME, baseStatus, cowGeometry, newCow, openCow, pattern, zeros } from '../../support/cow-under-test.ts';

const SIZE = 512 * 1024;

function told(log: WriteLog): string[] {
  return log.entries.map(({ store, kind, offset, length }) => {
    return kind === 'flush' ? `flush ${store.name}` : `${kind} ${store.name} ${offset}+${length}`;
  });
}

async function disk(layout: (typeof CREATABLE_LAYOUT_IDS)[number], backing: BlockNode = zeros()) {
  const log = new WriteLog();
  const file = new RecordingStore(await newCow(SIZE, { layout }), { log });
  const { node } = await openCow(file, { backing, status: () => baseStatus({ modifiedSeconds: 1_000_000_000 }) });
  return { log, node, geometry: cowGeometry(layout, SIZE) };
}

describe.each(CREATABLE_LAYOUT_IDS)('%s', (layout) => {
  it('writes data, flushes once, writes the bytes of the new bits, and flushes (C-013, C-019)', async () => {
    const { log, node, geometry } = await disk(layout);
    const { dataOffset, bitmapOffset } = geometry;
    // Sectors 72 to 103: the bytes 9 to 12 of the bitmap, in whatever order the words are.
    await node.write(72 * 512, pattern(32 * 512));
    expect(told(log)).toEqual([`write disk ${dataOffset + 72 * 512}+${32 * 512}`]);
    log.clear();
    await node.flush();
    const [first, bits, last, ...more] = told(log);
    expect([first, last, more]).toEqual(['flush disk', 'flush disk', []]);
    const [, offset, length] = /^write disk (\d+)\+(\d+)$/.exec(bits ?? '') ?? [];
    expect(Number(offset)).toBeGreaterThanOrEqual(bitmapOffset + 8);
    expect(Number(offset) + Number(length)).toBeLessThanOrEqual(bitmapOffset + 16);
    if (!layout.startsWith('v1-be')) expect([offset, length]).toEqual([String(bitmapOffset + 9), '4']);
  });

  it('rewrites what is there with the data alone', async () => {
    const { log, node, geometry } = await disk(layout);
    await node.write(0, pattern(5000));
    await node.flush();
    log.clear();
    await node.write(17, pattern(4000, 2));
    await node.flush();
    expect(told(log)).toEqual([`write disk ${geometry.dataOffset + 17}+4000`, 'flush disk']);
  });
});

describe('a commit', () => {
  it('makes the base durable, clears the bitmap durably, gives space back, and records the time with a flush', async () => {
    const log = new WriteLog();
    const base = new RecordingStore(new MemoryStore({ name: 'base', size: SIZE }), { log });
    const file = new RecordingStore(await newCow(SIZE), { log });
    const { node } = await openCow(file, { backing: base, status: () => baseStatus() });
    await node.write(512, pattern(512));
    await node.flush();
    log.clear();
    await node.exclusive(async () => {
      await base.write(512, pattern(512));
      await base.flush();
      await node.format.makeEmpty?.();
      await node.format.changeBacking?.({ name: BASE_NAME });
    });
    const { bitmapOffset, bitmapLength, dataOffset } = cowGeometry('v3', SIZE);
    expect(told(log)).toEqual([
      'write base 512+512',
      'flush base',
      `zeroes disk ${bitmapOffset}+${bitmapLength}`,
      'flush disk',
      `zeroes disk ${dataOffset}+${SIZE}`,
      'write disk 8+4',
      'flush disk',
    ]);
  });
});
