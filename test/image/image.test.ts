/** The users' face: reads, writes, streams, extents, the guard of guessed raw images, closing. */
import { describe, expect, it } from 'vitest';
import type { Extent } from '../../src/core/extent.ts';
import { MemoryStore } from '../../src/storage/memory.ts';
import { FaultStore } from '../../src/testing/fault-store.ts';
import { contentOf, KiB, make, makeOverlay, open } from './support/fixtures.ts';
import { MemoryFiles } from './support/memory-protocol.ts';

async function all<T>(iterable: AsyncIterable<T>): Promise<T[]> {
  const items: T[] = [];
  for await (const item of iterable) items.push(item);
  return items;
}

describe('an image', () => {
  it('reads into a new buffer or a given one, writes, zeroes, flushes, and shows it again after closing', async () => {
    const files = new MemoryFiles();
    await make(files, 'a', { size: 256 * KiB });
    {
      await using image = await open(files, 'a', { readOnly: false });
      await image.write(65_530, Uint8Array.of(1, 2, 3, 4, 5, 6, 7, 8));
      await image.writeZeroes(65_532, 2);
      await image.flush();
      const into = new Uint8Array(8);
      expect(await image.read(65_530, into)).toBe(into);
      expect([...into]).toEqual([1, 2, 0, 0, 5, 6, 7, 8]);
    }
    await using again = await open(files, 'a');
    expect([...(await again.read(65_528, 12))]).toEqual([0, 0, 1, 2, 0, 0, 5, 6, 7, 8, 0, 0]);
  });

  it.each([-1, 1.5, 257 * KiB, Number.NaN])('refuses to read %d bytes', async (length) => {
    const files = new MemoryFiles();
    await make(files, 'a', { size: 256 * KiB });
    await using image = await open(files, 'a');
    await expect(image.read(0, length)).rejects.toMatchObject({ code: 'OUT_OF_RANGE' });
  });

  it('refuses to read or write past the end of the disk', async () => {
    const files = new MemoryFiles();
    await make(files, 'a', { size: 64 * KiB });
    await using image = await open(files, 'a', { readOnly: false });
    await expect(image.read(64 * KiB - 1, 2)).rejects.toMatchObject({ code: 'OUT_OF_RANGE' });
    await expect(image.write(64 * KiB, Uint8Array.of(1))).rejects.toMatchObject({ code: 'OUT_OF_RANGE' });
  });

  it('gives its bytes as a Web Stream, in chunks, from any range', async () => {
    const files = new MemoryFiles();
    await make(files, 'a', { size: 256 * KiB }, [[100, 1000, 7]]);
    await using image = await open(files, 'a');
    const whole = await contentOf(image);
    const chunks = await all(image.readable({ chunkSize: 100_000 }) as unknown as AsyncIterable<Uint8Array>);
    expect(chunks.map((chunk) => chunk.length)).toEqual([100_000, 100_000, 62_144]);
    expect(Buffer.concat(chunks).equals(whole)).toBe(true);
    const part = await new Response(image.readable({ offset: 90, length: 20 }) as unknown as BodyInit).arrayBuffer();
    expect(new Uint8Array(part)).toEqual(whole.slice(90, 110));
    expect(await all(image.readable({ length: 0 }) as unknown as AsyncIterable<Uint8Array>)).toEqual([]);
  });

  it('a stream that is aborted fails', async () => {
    const files = new MemoryFiles();
    await make(files, 'a', { size: 256 * KiB });
    await using image = await open(files, 'a');
    const controller = new AbortController();
    const reader = image.readable({ chunkSize: 4096, signal: controller.signal }).getReader();
    await reader.read();
    controller.abort();
    const reading = (async () => {
      // A chunk that was read before the abort may still come.
      for (let i = 0; i < 5; i++) await reader.read();
    })();
    await expect(reading).rejects.toMatchObject({ code: 'ABORTED' });
  });

  it('takes bytes from a Web Stream, one chunk after the other, and flushes at its end', async () => {
    const files = new MemoryFiles();
    await make(files, 'a', { size: 256 * KiB });
    await using image = await open(files, 'a', { readOnly: false });
    const source = new ReadableStream<Uint8Array>({
      start(controller) {
        for (let i = 1; i <= 3; i++) controller.enqueue(new Uint8Array(50_000).fill(i));
        controller.close();
      },
    });
    await source.pipeTo(image.writable({ offset: 1000 }));
    const bytes = await contentOf(image);
    expect([bytes[999], bytes[1000], bytes[51_000], bytes[150_999], bytes[151_000]]).toEqual([0, 1, 2, 3, 0]);
  });

  it('fails the stream that passes the end of the disk', async () => {
    const files = new MemoryFiles();
    await make(files, 'a', { size: 64 * KiB });
    await using image = await open(files, 'a', { readOnly: false });
    const writer = image.writable().getWriter();
    await writer.write(new Uint8Array(64 * KiB));
    await expect(writer.write(new Uint8Array(1))).rejects.toMatchObject({ code: 'OUT_OF_RANGE' });
  });

  it('joins extents over the limits of one request, and cuts them at the asked range', async () => {
    const files = new MemoryFiles();
    // 3000 holes and 3000 pages of data: more than one list holds
    const store = new MemoryStore({ size: 6000 * 512, pageSize: 512 });
    for (let i = 0; i < 6000; i += 2) await store.write(i * 512, new Uint8Array(512).fill(1));
    files.add('a', store);
    files.add('b', new MemoryStore({ size: 1 << 30 }));
    await using image = await open(files, 'a', { format: 'raw' });
    const extents = await all(image.extents());
    expect(extents.length).toBe(6000);
    let at = 0;
    for (const { start, length, zero } of extents) {
      expect([start, length, zero]).toEqual([at, 512, (at / 512) % 2 === 1]);
      at += length;
    }
    const cut = await all(image.extents({ offset: 700, length: 600 }));
    expect(cut.map(({ start, length }) => [start, length])).toEqual([
      [700, 324],
      [1024, 276],
    ]);
    expect(await all(image.extents({ offset: 6000 * 512 }))).toEqual([]);
    await using empty = await open(files, 'b', { format: 'raw' });
    expect((await all(empty.extents())).map(({ length }: Extent) => length)).toEqual([1 << 30]);
  });

  it('has no check where its format has none', async () => {
    const files = new MemoryFiles();
    files.add('a.raw', new Uint8Array(512));
    await using image = await open(files, 'a.raw', { format: 'raw' });
    await expect(image.check()).rejects.toMatchObject({ code: 'UNSUPPORTED', reason: 'check.unsupported' });
  });

  it('closes every file even when one of them fails, and tells the first failure, every time', async () => {
    const files = new MemoryFiles({
      wrap: (node, name) =>
        new FaultStore(node, name === 'base' ? [{ on: 'close', carriedOut: true, always: true }] : []),
    });
    await make(files, 'base', { size: 64 * KiB }).catch(() => undefined);
    files.open.length = 0;
    const intact = new MemoryFiles();
    await make(intact, 'base', { size: 64 * KiB });
    await makeOverlay(intact, 'top', 'base');
    for (const name of ['base', 'top']) files.add(name, intact.bytes(name));
    const image = await open(files, 'top', { references: 'allow' });
    expect(files.open.length).toBe(2);
    await expect(image.close()).rejects.toMatchObject({ code: 'IO' });
    await expect(image.close()).rejects.toMatchObject({ code: 'IO' });
    expect(files.open).toEqual([]);
  });
});

describe('an image whose format was guessed to be raw', () => {
  const signature = Uint8Array.of(0x51, 0x46, 0x49, 0xfb, 0, 0, 0, 3);

  it('is not written so that it would look like another format', async () => {
    const files = new MemoryFiles();
    files.add('a', new Uint8Array(4096));
    await using image = await open(files, 'a', { readOnly: false });
    await expect(image.write(0, signature)).rejects.toMatchObject({ code: 'ACCESS', reason: 'image.raw-signature' });
    await image.write(0, signature.subarray(0, 3));
    await expect(image.write(3, signature.subarray(3))).rejects.toMatchObject({ reason: 'image.raw-signature' });
    await image.write(512, signature);
    await image.write(0, new Uint8Array(4096).fill(9));
    expect((await image.read(0, 1))[0]).toBe(9);
  });

  it('may become anything when the caller says that it is raw', async () => {
    const files = new MemoryFiles();
    files.add('a', new Uint8Array(4096));
    await using image = await open(files, 'a', { readOnly: false, format: 'raw' });
    await image.write(0, signature);
    expect(files.bytes('a').slice(0, 8)).toEqual(signature);
  });
});
