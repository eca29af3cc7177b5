/** The sources as one disk: borders between them, status, and what salvage gives up and what it keeps. */
import { describe, expect, it } from 'vitest';
import type { Image } from '../../src/image/image.ts';
import { FaultStore } from '../../src/testing/fault-store.ts';
import { SourceDisk, type SourcePart } from '../../src/tools/convert-source.ts';
import { open } from '../image/support/fixtures.ts';
import { MemoryFiles } from '../image/support/memory-protocol.ts';

function filled(length: number, value: number): Uint8Array {
  return new Uint8Array(length).fill(value);
}

function part(image: Image, start: number): SourcePart {
  return { image, start, size: image.virtualSize, from: 0, keepDepth: Number.POSITIVE_INFINITY };
}

describe('several sources', () => {
  it('are one disk, and a read over a border takes from both', async () => {
    const files = new MemoryFiles();
    files.add('a', filled(1024, 1));
    files.add('none', new Uint8Array(0));
    files.add('b', filled(512, 2));
    files.add('c', filled(1024, 3));
    const images = await Promise.all(['a', 'none', 'b', 'c'].map((name) => open(files, name, { format: 'raw' })));
    const starts = [0, 1024, 1024, 1536];
    const disk = new SourceDisk(
      images.map((image, i) => part(image, starts[i] as number)),
      undefined,
    );
    expect(disk.size).toBe(2560);
    const into = new Uint8Array(1500);
    expect(disk.read(500, into)).toBeUndefined();
    expect(into).toEqual(new Uint8Array([...filled(524, 1), ...filled(512, 2), ...filled(464, 3)]));
    const ends: number[] = [];
    for (let at = 0; at < disk.size; at = disk.end) {
      await disk.seek(at);
      ends.push(disk.end);
    }
    expect(ends).toEqual([1024, 1536, 2560]);
    for (const image of images) await image.close();
  });
});

describe('a source with unreadable sectors', () => {
  async function broken(rules: ConstructorParameters<typeof FaultStore>[1], length = 64 * 1024): Promise<Image> {
    let ready = false;
    const files = new MemoryFiles({ wrap: (node) => new FaultStore(node, ready ? rules : []) });
    files.add('a', filled(length, 7));
    ready = true;
    return open(files, 'a', { format: 'raw' });
  }

  it.each([false, true])('ends the conversion, naming file and offset (late: %s)', async (late) => {
    await using image = await broken([{ on: 'read', always: true, offset: 5120, length: 512, late }]);
    const disk = new SourceDisk(
      [part(image, 1 << 20)].map((p) => ({ ...p, start: 0 })),
      undefined,
    );
    const reading = (async () => disk.read(4096, new Uint8Array(4096)))();
    await expect(reading).rejects.toMatchObject({
      code: 'IO',
      reason: 'convert.read',
      details: { name: 'a', offset: 4096, errno: 'EIO' },
    });
  });

  it.each([false, true])('with salvage loses those sectors only (late: %s)', async (late) => {
    await using image = await broken([{ on: 'read', always: true, offset: 5200, length: 1, late }]);
    const lost: [number, number][] = [];
    const disk = new SourceDisk([part(image, 0)], {
      onLoss: (offset, length, error) => {
        lost.push([offset, length]);
        expect(error).toMatchObject({ code: 'IO' });
      },
    });
    const into = new Uint8Array(64 * 1024);
    await disk.read(0, into);
    expect(lost).toEqual([[5120, 512]]);
    const expected = filled(64 * 1024, 7).fill(0, 5120, 5632);
    expect(Buffer.compare(into, expected)).toBe(0);
  });

  it('with salvage takes for data what has no status', async () => {
    await using image = await broken([{ on: 'extents', always: true, offset: 100_000, length: 1 }], 256 * 1024);
    const disk = new SourceDisk([part(image, 0)], { onLoss: () => undefined });
    const found: [string, number][] = [];
    for (let at = 0; at < disk.size; at = disk.end) {
      await disk.seek(at);
      found.push([disk.kind, disk.end]);
    }
    expect(found.every(([kind]) => kind === 'data')).toBe(true);
    expect(found.at(-1)?.[1]).toBe(256 * 1024);
  });

  it('without salvage fails where there is no status', async () => {
    await using image = await broken([{ on: 'extents', always: true }]);
    const disk = new SourceDisk([part(image, 0)], undefined);
    await expect((async () => disk.seek(0))()).rejects.toMatchObject({ reason: 'convert.status' });
  });

  it('does not salvage an abort, or a chain that may not be followed', async () => {
    const files = new MemoryFiles();
    files.add('a', filled(1024, 1));
    const image = await open(files, 'a', { format: 'raw' });
    await image.close();
    const disk = new SourceDisk([part(image, 0)], { onLoss: () => expect.unreachable('nothing is lost') });
    await expect((async () => disk.read(0, new Uint8Array(512)))()).rejects.toMatchObject({ code: 'CLOSED' });
  });
});
