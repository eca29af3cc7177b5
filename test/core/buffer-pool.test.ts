import { describe, expect, it } from 'vitest';
import { BufferPool } from '../../src/core/buffer-pool.ts';

describe('a buffer pool', () => {
  it('makes no more buffers than it may, and gives the same ones out again', () => {
    const pool = new BufferPool({ size: 4096, count: 2 });
    const first = pool.take() as Uint8Array;
    const second = pool.take() as Uint8Array;
    expect(first).not.toBe(second);
    expect(pool.take()).toBeUndefined();
    expect(pool.taken).toBe(2);
    pool.give(first);
    expect(pool.take()).toBe(first);
    expect(first.length).toBe(4096);
  });

  it('refuses a buffer that it never gave out', () => {
    const pool = new BufferPool({ size: 16, count: 1 });
    expect(() => pool.give(new Uint8Array(16))).toThrow('a buffer came back that was not taken');
    pool.take();
    expect(() => pool.give(new Uint8Array(15))).toThrow('a buffer came back that was not taken');
  });

  it('gives out plain byte arrays, whose slices are copies', () => {
    const buffer = new BufferPool({ size: 16, count: 1 }).take() as Uint8Array;
    const copy = buffer.slice(0, 4);
    buffer.fill(7);
    expect([...copy]).toEqual([0, 0, 0, 0]);
  });

  it('makes shared memory only when asked', () => {
    const shared = new BufferPool({ size: 16, count: 1, shared: true }).take() as Uint8Array;
    const own = new BufferPool({ size: 16, count: 1 }).take() as Uint8Array;
    expect(shared.buffer).toBeInstanceOf(SharedArrayBuffer);
    expect(own.buffer).toBeInstanceOf(ArrayBuffer);
  });
});
