/** Streams as sources and targets of the library's conversion. */
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname } from 'node:path';
import { describe, expect, it } from 'vitest';
import * as isomorphic from '../../src/index.ts';
import { ALL_FORMATS, convertImage, createImage, fileProtocol, openImage, type SpoolEvent } from '../../src/node.ts';
import { scratch } from '../support/scratch.ts';

const MiB = 1024 * 1024;
const path = scratch();

function disk(length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  for (let i = 0; i < length; i++)
    if (Math.floor(i / 100_000) % 3 === 0) bytes[i] = (i * 31 + Math.floor(i / 253)) % 256;
  return bytes;
}

async function* pieces(bytes: Uint8Array, length = 50_000): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += length) yield bytes.subarray(at, at + length);
}

class Collected {
  readonly parts: Uint8Array[] = [];
  state: 'open' | 'ended' | 'aborted' = 'open';
  readonly stream = new WritableStream<Uint8Array>({
    write: (part) => void this.parts.push(part),
    close: () => {
      this.state = 'ended';
    },
    abort: () => {
      this.state = 'aborted';
    },
  });

  get bytes(): Uint8Array {
    return new Uint8Array(Buffer.concat(this.parts));
  }
}

async function contentOf(name: string): Promise<Uint8Array> {
  await using image = await openImage(name);
  const bytes = new Uint8Array(image.virtualSize);
  await image.read(0, bytes);
  return bytes;
}

describe('a conversion between streams', () => {
  const bytes = disk(3 * MiB);

  it('goes through Web streams, closes the one it writes, and needs no temporary file where the source is short', async () => {
    const spools: SpoolEvent[] = [];
    const out = new Collected();
    const done = await convertImage(
      { stream: pieces(bytes), format: 'raw' },
      { name: 'out', format: 'qcow2', stream: out.stream },
      { onSpool: (event) => spools.push(event) },
    );
    expect(done).toMatchObject({ virtualSize: 3 * MiB });
    expect(done.copied + done.zeroed + done.kept).toBe(3 * MiB);
    expect({ state: out.state, spools }).toEqual({ state: 'ended', spools: [] });
    const again = await convertImage({ stream: pieces(out.bytes, 777) }, path('again.qcow2'), {});
    expect(again.virtualSize).toBe(3 * MiB);
    expect(await contentOf(path('again.qcow2'))).toEqual(bytes);
  });

  it('aborts the target when it fails, so that nobody takes it for whole', async () => {
    async function* breaks(): AsyncGenerator<Uint8Array> {
      yield* pieces(bytes);
      throw new Error('gone');
    }
    const out = new Collected();
    const failing = convertImage({ stream: breaks(), format: 'raw' }, { name: 'out', stream: out.stream });
    await expect(failing).rejects.toMatchObject({ code: 'IO', details: { incomplete: true } });
    expect(out.state).toBe('aborted');
  });

  it('keeps what it must in a temporary file, tells of it, and removes it', async () => {
    const long = async function* (): AsyncGenerator<Uint8Array> {
      yield* pieces(bytes);
      const zeros = new Uint8Array(MiB);
      for (let i = 0; i < 70; i++) yield zeros;
    };
    const spools: SpoolEvent[] = [];
    const out = new Collected();
    const run = { onSpool: (event: SpoolEvent) => void spools.push(event) };
    await convertImage({ stream: long(), format: 'raw' }, { name: 'o', format: 'qcow2', stream: out.stream }, run);
    expect(spools).toMatchObject([{ stream: 'stream', reason: 'twice' }]);
    expect(existsSync(dirname(spools[0]?.file ?? ''))).toBe(false);
    const drivers = { formats: ALL_FORMATS, protocols: [fileProtocol] };
    const refused = isomorphic.convertImage(
      [{ stream: long(), format: 'raw' }],
      { name: 'o', format: 'qcow2', stream: new Collected().stream },
      drivers,
    );
    await expect(refused).rejects.toMatchObject({ code: 'UNSUPPORTED', reason: 'convert.no-temporary' });
  });

  it('writes into an image that is there as far as it reaches', async () => {
    await createImage(path('small.qcow2'), { format: 'qcow2', size: 2 * MiB });
    const target = { name: path('small.qcow2'), existing: true };
    await expect(convertImage({ stream: pieces(bytes), format: 'raw' }, target)).rejects.toMatchObject({
      reason: 'convert.target-small',
      details: { incomplete: true },
    });
    await convertImage({ stream: pieces(bytes.subarray(0, MiB)), format: 'raw' }, target);
    expect((await contentOf(path('small.qcow2'))).subarray(0, MiB)).toEqual(bytes.subarray(0, MiB));
  });

  it('lays streams and images end to end', async () => {
    writeFileSync(path('one.raw'), bytes.subarray(0, MiB));
    const sources = [{ stream: pieces(bytes.subarray(0, MiB)), format: 'raw', size: MiB }, path('one.raw')];
    const { virtualSize } = await convertImage(sources, { name: path('both.raw') });
    expect(virtualSize).toBe(2 * MiB);
    const both = new Uint8Array(readFileSync(path('both.raw')));
    expect(both.subarray(0, MiB)).toEqual(bytes.subarray(0, MiB));
    expect(both.subarray(MiB)).toEqual(bytes.subarray(0, MiB));
  });

  it.each([
    [{ salvage: true }, {}, 'convert.stream-salvage'],
    [{}, { existing: true, stream: new Collected().stream }, 'convert.stream-existing'],
    [{ compressed: true }, { stream: new Collected().stream }, 'convert.compress-unsupported'],
  ])('refuses %o to %o before the stream is touched', async (options, target, reason) => {
    let touched = false;
    const next = async (): Promise<IteratorResult<Uint8Array>> => {
      touched = true;
      return { done: true, value: undefined };
    };
    const stream = { [Symbol.asyncIterator]: () => ({ next }) };
    await expect(convertImage({ stream }, { name: path('no.raw'), ...target }, options)).rejects.toMatchObject({
      reason,
    });
    expect(touched).toBe(false);
  });
});
