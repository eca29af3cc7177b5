import { describe, expect, it } from 'vitest';
import { bytes, flags64, i32, pad, struct, u8, u16, u32, u64 } from '../../src/bytes/struct.ts';

const Sample = struct('sample', 40, {
  magic: [0, u32],
  version: [4, u16],
  kind: [6, u8],
  gap: [7, pad(1)],
  size: [8, u64],
  features: [16, flags64],
  zone: [24, i32],
  name: [28, bytes(8)],
  rest: [36, pad(4)],
});

const VALUE = {
  magic: 0x514649fb,
  version: 3,
  kind: 255,
  gap: undefined,
  size: 2 ** 40 + 5,
  features: 0x8000_0000_0000_0001n,
  zone: -2,
  name: new Uint8Array([1, 2, 3, 4, 5, 6, 7, 8]),
  rest: undefined,
};

describe('a struct', () => {
  it('lays its fields out where they are declared, big endian', () => {
    const encoded = Sample.encode(VALUE);
    expect(Buffer.from(encoded).toString('hex')).toBe(
      '514649fb0003ff000000010000000005' + '8000000000000001fffffffe0102030405060708' + '00000000',
    );
    expect(Sample.decode(encoded)).toEqual(VALUE);
  });

  it('can be little endian', () => {
    const Little = struct('little', 12, { a: [0, u32], b: [4, u64] }, { littleEndian: true });
    const encoded = Little.encode({ a: 1, b: 2 ** 33 });
    expect([...encoded]).toEqual([1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0]);
    expect(Little.decode(encoded)).toEqual({ a: 1, b: 2 ** 33 });
  });

  it('decodes and encodes inside larger buffers, and clears padding', () => {
    const around = new Uint8Array(60).fill(0xaa);
    Sample.encode(VALUE, around, 10);
    expect([around[9], around[17], around[46], around[49], around[50]]).toEqual([0xaa, 0, 0, 0, 0xaa]);
    expect(Sample.decode(around.subarray(5), 5)).toEqual(VALUE);
  });

  it('gives bytes of its own', () => {
    const encoded = Sample.encode(VALUE);
    const { name } = Sample.decode(encoded);
    encoded.fill(0);
    expect([...name]).toEqual([1, 2, 3, 4, 5, 6, 7, 8]);
  });

  it('refuses too few bytes as corrupt', () => {
    expect(() => Sample.decode(new Uint8Array(39))).toThrow(expect.objectContaining({ code: 'CORRUPT' }));
    expect(() => Sample.decode(new Uint8Array(50), 11)).toThrow('sample at 0xb needs 40 bytes, 39 are there');
  });

  it('reads sizes beyond 2^53 as infinite', () => {
    const encoded = Sample.encode(VALUE);
    encoded[8] = 0xff;
    expect(Sample.decode(encoded).size).toBe(Number.POSITIVE_INFINITY);
  });
});

describe('a mistake in a declaration shows when it is loaded', () => {
  it.each([
    ['overlapping fields', () => struct('s', 8, { a: [0, u32], b: [3, u32] })],
    ['gaps', () => struct('s', 12, { a: [0, u32], b: [8, u32] })],
    ['a beginning that is not there', () => struct('s', 8, { a: [4, u32] })],
    ['an end that is not there', () => struct('s', 8, { a: [0, u32] })],
    ['too small a size', () => struct('s', 2, { a: [0, u32] })],
  ])('%s', (_name, declare) => {
    expect(declare).toThrow(expect.objectContaining({ code: 'INTERNAL' }));
  });
});
