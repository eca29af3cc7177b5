/** Bytes that come once and in order, read as far as that allows. */
import { describe, expect, it } from 'vitest';
import { UNKNOWN_SIZE } from '../../src/core/store.ts';
import { MemoryStore } from '../../src/storage/memory.ts';
import { SpooledStore, StreamStore } from '../../src/storage/stream-store.ts';

const bytes = Uint8Array.from({ length: 300_000 }, (_, i) => (i * 7 + Math.floor(i / 251)) % 251);

async function* inPieces(of: Uint8Array, length: number): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < of.length; at += length) yield of.subarray(at, at + length);
}

async function read(store: { read: StreamStore['read'] }, offset: number, length: number): Promise<Uint8Array> {
  const into = new Uint8Array(length).fill(0xee);
  await store.read(offset, into);
  return into;
}

describe('a stream as a store', () => {
  it.each([1000, 4096, 65_536, 1_000_000])(
    'is read in any order at its beginning, and in order behind it (%i at a time)',
    async (piece) => {
      const store = new StreamStore(inPieces(bytes, piece), { name: 's', headLimit: 10_000 });
      expect(store.size).toBe(UNKNOWN_SIZE);
      expect(await read(store, 5000, 5000)).toEqual(bytes.slice(5000, 10_000));
      expect(await read(store, 0, 100)).toEqual(bytes.slice(0, 100));
      store.release();
      expect(await read(store, 9990, 3000)).toEqual(bytes.slice(9990, 12_990));
      expect(await read(store, 200_000, 512)).toEqual(bytes.slice(200_000, 200_512));
      expect(await read(store, 0, 100)).toEqual(bytes.slice(0, 100));
      // Neighbouring compressed units share a sector.
      expect(await read(store, 200_100, 60_000)).toEqual(bytes.slice(200_100, 260_100));
      expect(await store.drain()).toBe(300_000);
    },
  );

  it('never makes up what it has forgotten', async () => {
    const store = new StreamStore(inPieces(bytes, 1000), { name: 's', headLimit: 10_000 });
    await read(store, 0, 1000);
    store.release();
    await read(store, 250_000, 1000);
    await expect(read(store, 100_000, 10)).rejects.toMatchObject({ code: 'UNSUPPORTED', reason: 'stream.forgotten' });
  });

  it('refuses what lies too far on to be read first, and can still be taken as a whole', async () => {
    const store = new StreamStore(inPieces(bytes, 1000), { name: 's', headLimit: 10_000 });
    await expect(read(store, 100_000, 10)).rejects.toMatchObject({ code: 'UNSUPPORTED', reason: 'stream.far' });
    expect(store.tooFar).toBe(true);
    const whole: Uint8Array[] = [];
    for await (const piece of store.all()) whole.push(piece);
    expect(new Uint8Array(Buffer.concat(whole))).toEqual(bytes);
  });

  it('fills what lies behind its end with zeros where a request begins before it, and else says that it is short', async () => {
    const store = new StreamStore(inPieces(bytes.subarray(0, 1000), 300), { name: 's' });
    const tail = await read(store, 900, 200);
    expect(tail).toEqual(new Uint8Array([...bytes.slice(900, 1000), ...new Uint8Array(100)]));
    expect(store.length).toBe(1000);
    expect(store.size).toBe(UNKNOWN_SIZE);
    store.showLength();
    expect(store.size).toBe(1000);
    await expect(read(store, 1000, 1)).rejects.toMatchObject({ code: 'IO', reason: 'stream.short' });
  });

  it('holds its writer to the size that was announced', async () => {
    const short = new StreamStore(inPieces(bytes, 1000), { name: 's', size: 300_001 });
    await expect(short.drain()).rejects.toMatchObject({ reason: 'stream.short' });
    const long = new StreamStore(inPieces(bytes, 1000), { name: 's', size: 299_999 });
    await expect(long.drain()).rejects.toMatchObject({ reason: 'stream.long' });
    expect(await new StreamStore(inPieces(bytes, 1000), { name: 's', size: 300_000 }).drain()).toBe(300_000);
  });

  it('does not wait for a silent writer when it is aborted, and fails for good', async () => {
    const stop = new AbortController();
    const silent = { [Symbol.asyncIterator]: () => ({ next: () => new Promise<never>(() => {}) }) };
    const store = new StreamStore(silent, { name: 's', signal: stop.signal });
    const reading = read(store, 0, 10);
    stop.abort(new Error('enough'));
    await expect(reading).rejects.toMatchObject({ code: 'ABORTED' });
    await expect(read(store, 0, 10)).rejects.toMatchObject({ code: 'ABORTED' });
  });

  it('tells what broke its writer', async () => {
    async function* breaks(): AsyncGenerator<Uint8Array> {
      yield bytes.subarray(0, 100);
      throw Object.assign(new Error('gone'), { code: 'ECONNRESET' });
    }
    const store = new StreamStore(breaks(), { name: 's' });
    expect(await read(store, 0, 100)).toEqual(bytes.slice(0, 100));
    await expect(read(store, 100, 1)).rejects.toMatchObject({
      code: 'IO',
      message: expect.stringContaining('could not read "s"'),
    });
  });
});

describe('a stream in a file', () => {
  it('is as strict about its end as the stream was', async () => {
    const file = new MemoryStore();
    await file.write(0, bytes.subarray(0, 1000));
    const store = new SpooledStore(file, 's');
    expect(await read(store, 500, 500)).toEqual(bytes.slice(500, 1000));
    await expect((async () => read(store, 1000, 1))()).rejects.toMatchObject({ reason: 'stream.short' });
    expect(store.size).toBe(UNKNOWN_SIZE);
    store.showLength();
    expect(store.size).toBe(1000);
  });
});
