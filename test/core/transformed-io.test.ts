/** Encrypted runs: promises only where something waits, the guest's bytes left alone, scratch returned, large requests in pieces. */
import { describe, expect, it } from 'vitest';
import type { Pending } from '../../src/base/async.ts';
import type { DataTransform, FormatNode } from '../../src/core/format.ts';
import { TransformedIo } from '../../src/core/transformed-io.ts';
import { MemoryStore } from '../../src/storage/memory.ts';
import { FaultStore } from '../../src/testing/fault-store.ts';
import { LateStore } from '../../src/testing/late-store.ts';
import { seeded } from '../crypto/support.ts';

const MiB = 2 ** 20;

interface Seen {
  readonly calls: string[];
  readonly memory: Set<ArrayBufferLike>;
}

/** XORs with the number of the sector, at once or later. */
function xor(later: (length: number) => boolean, seen: Seen): DataTransform {
  const apply = (kind: string, from: Uint8Array, into: Uint8Array, at: number): Pending => {
    expect([at % 512, from.length % 512]).toEqual([0, 0]);
    seen.calls.push(`${kind} ${at}+${from.length}`);
    if (kind === 'encrypt') seen.memory.add(into.buffer);
    const work = (): void => {
      for (let i = 0; i < from.length; i++) into[i] = (from[i] as number) ^ ((Math.floor((at + i) / 512) % 251) + 1);
    };
    if (later(from.length)) return new Promise<void>((resolve) => setImmediate(resolve)).then(work);
    work();
    return undefined;
  };
  return {
    sector: 512,
    tweak: 'guest',
    encrypt: (from, into, at) => apply('encrypt', from, into, at),
    decrypt: (bytes, at) => apply('decrypt', bytes, bytes, at),
  };
}

function rig(later: (length: number) => boolean = () => false) {
  const seen: Seen = { calls: [], memory: new Set() };
  const io = new TransformedIo({ format: 'test', transform: xor(later, seen) } as unknown as FormatNode);
  return { io, seen };
}

const HOST = 4096;

describe('an encrypted run', () => {
  it('is read and written without a promise where store and transform answer at once', () => {
    const { io } = rig();
    const store = new MemoryStore();
    const plain = seeded(3 * 512);
    expect(io.write(store, HOST, 512, plain)).toBeUndefined();
    expect(plain).toEqual(seeded(3 * 512));
    const back = new Uint8Array(plain.length);
    expect(io.read(store, HOST, 512, back)).toBeUndefined();
    expect(back).toEqual(plain);
  });

  it.each([
    ['at once', false, false],
    ['by a store that is late', true, false],
    ['by a transform that is late', false, true],
    ['with both late', true, true],
  ])('keeps every byte, in parts of sectors too, %s', async (_, lateStore, lateTransform) => {
    const { io } = rig(() => lateTransform);
    const memory = new MemoryStore();
    const store = lateStore ? new LateStore({ seed: 3 }, memory) : memory;
    const model = new Uint8Array(300 * 1024);
    await io.write(store, HOST, 0, model);
    const places = [0, 1, 511, 512, 700, 70_000].flatMap((at) =>
      [1, 100, 512, 513, 4096, 66_000, 200_001].map((n) => [at, n]),
    );
    for (const [i, [at, length]] of (places as [number, number][]).entries()) {
      const bytes = seeded(length, i + 1);
      await io.write(store, HOST + at, at, bytes);
      model.set(bytes, at);
      const part = new Uint8Array(length + 300);
      await io.read(store, HOST + at, at, part);
      expect(Buffer.compare(part, model.subarray(at, at + part.length)), `${at}+${length}`).toBe(0);
    }
    const all = new Uint8Array(model.length);
    await io.read(store, HOST, 0, all);
    expect(Buffer.compare(all, model)).toBe(0);
  });

  it('goes in pieces of 2 MiB when it is long, from little scratch memory', async () => {
    const { io, seen } = rig(() => true);
    const store = new MemoryStore();
    const plain = seeded(13 * MiB + 512);
    for (let i = 0; i < 3; i++) await io.write(store, HOST, 0, plain);
    expect(seen.calls.slice(0, 2)).toEqual([`encrypt 0+${2 * MiB}`, `encrypt ${2 * MiB}+${2 * MiB}`]);
    expect(seen.memory.size).toBeLessThanOrEqual(4);
    const back = new Uint8Array(plain.length);
    await io.read(store, HOST, 0, back);
    expect(Buffer.compare(back, plain)).toBe(0);
  });

  it('ends when all that it began has ended, also when a part of it failed, and reuses its scratch afterwards', async () => {
    const { io, seen } = rig(() => true);
    const store = new FaultStore(new LateStore({ seed: 1 }, new MemoryStore()));
    const plain = seeded(7 * MiB);
    store.fail({ on: 'write', nth: 2, late: true });
    await expect(io.write(store, HOST, 0, plain)).rejects.toMatchObject({ code: 'IO' });
    const before = seen.memory.size;
    store.heal();
    await io.write(store, HOST, 0, plain);
    expect(seen.memory.size).toBe(before);
    store.fail({ on: 'read', nth: 2 });
    const back = new Uint8Array(plain.length);
    await expect((async () => io.read(store, HOST, 0, back))()).rejects.toMatchObject({ code: 'IO' });
    store.heal();
    await io.read(store, HOST, 0, back);
    expect(Buffer.compare(back, plain)).toBe(0);
  });
});
