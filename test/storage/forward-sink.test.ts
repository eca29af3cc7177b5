import { PassThrough, Writable } from 'node:stream';
import { describe, expect, it } from 'vitest';
import { yieldMacrotask } from '../../src/base/job.ts';
import { ForwardSink, type ForwardTarget, writableTarget } from '../../src/storage/forward-sink.ts';

/** Keeps what it gets; each write ends a turn later. */
class Collector implements ForwardTarget {
  readonly chunks: Uint8Array[] = [];
  longest = 0;
  inFlight = 0;
  ended = 0;

  async write(chunk: Uint8Array): Promise<void> {
    this.inFlight++;
    expect(this.inFlight).toBe(1);
    await yieldMacrotask();
    this.longest = Math.max(this.longest, chunk.length);
    this.chunks.push(chunk.slice());
    this.inFlight--;
  }

  async end(): Promise<void> {
    this.ended++;
  }

  get bytes(): Buffer {
    return Buffer.concat(this.chunks);
  }
}

describe('ForwardSink', () => {
  it('sends bytes in order and fills gaps with zeros', async () => {
    const target = new Collector();
    const sink = new ForwardSink(target, { name: 'out' });
    await sink.write(2, Uint8Array.of(1, 2));
    await sink.writev(6, [Uint8Array.of(3), new Uint8Array(0), Uint8Array.of(4)]);
    await sink.writeZeroes(9, 2);
    await sink.truncate(13);
    expect(sink.size).toBe(13);
    await sink.close();
    expect([...target.bytes]).toEqual([0, 0, 1, 2, 0, 0, 3, 4, 0, 0, 0, 0, 0]);
    expect(target.ended).toBe(1);
  });

  it('keeps the order of requests that are made at once, one write at a time', async () => {
    const target = new Collector();
    const sink = new ForwardSink(target, { name: 'out' });
    const requests = [
      sink.write(0, Uint8Array.of(1)),
      sink.writeZeroes(1, 1),
      sink.write(3, Uint8Array.of(2)),
      sink.flush(),
    ];
    await Promise.all(requests);
    expect([...target.bytes]).toEqual([1, 0, 0, 2]);
  });

  it('sends a long gap in small pieces', async () => {
    const target = new Collector();
    const sink = new ForwardSink(target, { name: 'out' });
    await sink.write(1_000_001, Uint8Array.of(7));
    expect(target.bytes.length).toBe(1_000_002);
    expect(target.bytes.subarray(0, 1_000_001).every((byte) => byte === 0)).toBe(true);
    expect(target.longest).toBeLessThanOrEqual(65_536);
  });

  it('refuses to go back, to be cut, to be read and to zero without zeros', async () => {
    const sink = new ForwardSink(new Collector(), { name: 'out' });
    expect(sink.supports.access).toBe('forward');
    await sink.write(0, new Uint8Array(10));
    const order = { code: 'UNSUPPORTED', reason: 'store.forward-order' };
    expect(() => sink.write(9, Uint8Array.of(1))).toThrow(expect.objectContaining(order));
    expect(() => sink.writeZeroes(0, 1)).toThrow(expect.objectContaining(order));
    expect(() => sink.truncate(5)).toThrow(expect.objectContaining(order));
    expect(() => sink.read(0, new Uint8Array(1))).toThrow(
      expect.objectContaining({ code: 'UNSUPPORTED', reason: 'store.forward-read' }),
    );
    expect(() => sink.writeZeroes(10, 1, { fastOnly: true })).toThrow(expect.objectContaining({ code: 'UNSUPPORTED' }));
    await sink.write(10, Uint8Array.of(1));
    expect(sink.size).toBe(11);
  });

  it('sends nothing more after a failed write, and says so to every later request and to close', async () => {
    let writes = 0;
    const target: ForwardTarget = {
      async write() {
        writes++;
        if (writes === 2) throw Object.assign(new Error('EPIPE'), { code: 'EPIPE' });
      },
    };
    const sink = new ForwardSink(target, { name: 'out' });
    const requests = [0, 1, 2].map((offset) => sink.write(offset, Uint8Array.of(1)) as Promise<void>);
    const results = await Promise.allSettled(requests);
    expect(results.map((result) => result.status)).toEqual(['fulfilled', 'rejected', 'rejected']);
    expect(writes).toBe(2);
    const broken = expect.objectContaining({ details: expect.objectContaining({ errno: 'EPIPE' }) as unknown });
    expect(() => sink.write(3, Uint8Array.of(1))).toThrow(broken);
    await expect(sink.close()).rejects.toEqual(broken);
    expect(writes).toBe(2);
  });

  it('flush waits for what was accepted before', async () => {
    const target = new Collector();
    const sink = new ForwardSink(target, { name: 'out' });
    const write = sink.write(0, new Uint8Array(300_000));
    await sink.flush();
    expect(target.bytes.length).toBe(300_000);
    await write;
  });
});

describe('writableTarget', () => {
  it('feeds a stream and ends it', async () => {
    const got: Buffer[] = [];
    const stream = new Writable({
      highWaterMark: 4,
      write(chunk: Buffer, _encoding, done) {
        got.push(chunk);
        setImmediate(done);
      },
    });
    const sink = new ForwardSink(writableTarget(stream), { name: 'out' });
    for (let i = 0; i < 20; i++) await sink.write(i * 3, Uint8Array.of(i, i));
    await sink.close();
    expect(stream.writableFinished).toBe(true);
    expect(Buffer.concat(got).length).toBe(59);
    expect(Buffer.concat(got)[57]).toBe(19);
  });

  it('gives buffers back that the stream no longer needs, even where it hands them on', async () => {
    const stream = new PassThrough();
    const sink = new ForwardSink(writableTarget(stream), { name: 'out' });
    const buffer = new Uint8Array(4).fill(1);
    await sink.write(0, buffer);
    buffer.fill(2);
    await sink.write(4, buffer);
    buffer.fill(3);
    await sink.close();
    expect([...(stream.read() as Buffer)]).toEqual([1, 1, 1, 1, 2, 2, 2, 2]);
  });

  it('reports a stream that fails, also between writes, and never hangs on one that is destroyed', async () => {
    const failing = new Writable({
      write(_chunk, _encoding, done) {
        done(Object.assign(new Error('EPIPE'), { code: 'EPIPE' }));
      },
    });
    const sink = new ForwardSink(writableTarget(failing), { name: 'out' });
    await expect(sink.write(0, Uint8Array.of(1))).rejects.toMatchObject({ details: { errno: 'EPIPE' } });
    await expect(sink.close()).rejects.toMatchObject({ details: { errno: 'EPIPE' } });

    const stuck = new Writable({ write: () => undefined });
    const stalled = new ForwardSink(writableTarget(stuck), { name: 'out' });
    const pending = stalled.write(0, Uint8Array.of(1));
    stuck.destroy();
    await expect(pending).rejects.toMatchObject({ code: 'IO' });
    await expect(writableTarget(stuck).write(Uint8Array.of(1))).rejects.toBeInstanceOf(Error);
  });

  it('leaves standard output open when asked', async () => {
    const stream = new PassThrough();
    const sink = new ForwardSink(writableTarget(stream, true), { name: 'out' });
    await sink.write(0, Uint8Array.of(1));
    await sink.close();
    expect(stream.writableEnded).toBe(false);
  });
});
