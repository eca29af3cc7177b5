import { describe, expect, it } from 'vitest';
import { formatG3, formatSize, GiB, KiB, MiB, parseSize, TiB } from '../../src/base/sizes.ts';

describe('sizes as people write them', () => {
  it.each([
    ['0', 0],
    ['512', 512],
    ['64K', 64 * KiB],
    ['64k', 64 * KiB],
    ['1M', MiB],
    ['1.5G', 1.5 * GiB],
    ['2T', 2 * TiB],
    ['1P', 1024 * TiB],
    ['10b', 10],
    ['0x200', 512],
    ['0X1f', 31],
    [' 7 ', 7],
    ['+5', 5],
    ['1.K', KiB],
    ['0.3K', 307],
    ['1.0', 1],
    ['-0', 0],
    ['9007199254740991', Number.MAX_SAFE_INTEGER],
  ])('%j is %d', (text, bytes) => {
    expect(parseSize(text)).toBe(bytes);
  });

  it.each(['', 'K', '1KB', '1.5', '1.5b', '1e3', '0x', '0xg', '--1', '1 2', 'abc', '1Z', '1,5G', 'Infinity'])(
    '%j is malformed',
    (text) => {
      expect(parseSize(text)).toBe('malformed');
    },
  );

  it.each(['-1', '-5K', '8E', '9007199254740992', '0xffffffffffffffff', '16E', '99999999999999999999'])(
    '%j is out of range',
    (text) => {
      expect(parseSize(text)).toBe('range');
    },
  );
});

describe('sizes as people read them', () => {
  it.each([
    [0, '0 B'],
    [1, '1 B'],
    [999, '999 B'],
    [1000, '0.977 KiB'],
    [1023, '0.999 KiB'],
    [1024, '1 KiB'],
    [196 * KiB, '196 KiB'],
    [192.5 * KiB, '192 KiB'],
    [193.5 * KiB, '194 KiB'],
    [999 * KiB, '999 KiB'],
    [1000 * KiB, '0.977 MiB'],
    [1.5 * GiB, '1.5 GiB'],
    [10 * GiB, '10 GiB'],
    [12.3456 * TiB, '12.3 TiB'],
  ])('%d is %s', (bytes, text) => {
    expect(formatSize(bytes)).toBe(text);
  });

  it('three digits are rounded as C does', () => {
    expect([0, 1, 0.5, 1.005, 2.5, 99.95, 192.5, 193.5, 0.001234].map(formatG3)).toEqual([
      '0',
      '1',
      '0.5',
      '1',
      '2.5',
      '100',
      '192',
      '194',
      '0.00123',
    ]);
  });
});
