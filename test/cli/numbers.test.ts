import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { Failure } from '../../src/cli/failure.ts';
import { parseInteger, parseQemuSize, safeSizeArgument, sizeArgument } from '../../src/cli/numbers.ts';

function size(text: string): bigint | string {
  const parsed = parseQemuSize(text);
  return typeof parsed === 'string' ? parsed : parsed.value;
}

function said(body: () => unknown): readonly string[] {
  try {
    body();
  } catch (error) {
    return (error as Failure).lines;
  }
  throw new Error('was accepted');
}

describe('sizes as qemu-img reads them', () => {
  it.each([
    ['0', 0n],
    ['1M', 1048576n],
    ['1m', 1048576n],
    [' 1M', 1048576n],
    ['\t+1k', 1024n],
    ['5b', 5n],
    ['1.5M', 1572864n],
    ['1.M', 1048576n],
    ['1.', 1n],
    ['1.0', 1n],
    ['1.0b', 1n],
    ['0.1k', 102n],
    ['0.9999k', 1024n],
    ['0.0000001k', 0n],
    ['010', 10n],
    ['0x10', 16n],
    ['0xb', 11n],
    ['0x1e', 30n],
    ['0x10k', 16384n],
    ['7.9999E', 9223256744704315136n],
    ['1.9999999999999E', 2305843009213578624n],
    ['18446744073709551615', 18446744073709551615n],
  ])('reads %s as %s bytes', (text, value) => {
    expect(size(text)).toBe(value);
  });

  it.each([
    '',
    '1X',
    '1Mx',
    '1M1',
    '1M ',
    '1.5',
    '.5M',
    '1e3',
    '1MiB',
    '1kb',
    '1.5b',
    '-1',
    '-0',
    '0x',
    '0x1.8k',
    '1,5k',
    'inf',
    'nan',
  ])('does not take %j for a size', (text) => {
    expect(size(text)).toBe('malformed');
  });

  it('tells numbers of 2^64 and more from malformed ones', () => {
    expect(size('16E')).toBe('range');
    expect(size('18446744073709551616')).toBe('range');
    expect(size('0x10000000000000000')).toBe('range');
  });

  it('reads every whole number below 2^64 exactly', () => {
    fc.assert(
      fc.property(fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }), (value) => {
        expect(size(String(value))).toBe(value);
        expect(size(`0x${value.toString(16)}`)).toBe(value);
      }),
    );
  });
});

describe('what is said about bad sizes', () => {
  const context = { warn: (): void => {} };

  it('names what the size is for, in two lines when it is malformed', () => {
    expect(said(() => sizeArgument('image size', '1X', context))).toEqual([
      'Invalid image size specified. You may use k, M, G, T, P or E suffixes for',
      'kilobytes, megabytes, gigabytes, terabytes, petabytes and exabytes.',
    ]);
  });

  it('gives the bounds when it is too large', () => {
    expect(said(() => sizeArgument('rate limit', '8E', context))).toEqual([
      'Invalid rate limit specified. Must be between 0 and 9223372036854775807.',
    ]);
  });

  it('warns of a multiplier after hexadecimal digits', () => {
    const warnings: string[] = [];
    expect(sizeArgument('image size', '0x10k', { warn: (text) => warnings.push(text) })).toBe(16384n);
    expect(warnings).toEqual(['Using a multiplier suffix on hex numbers is deprecated: 0x10k']);
  });

  it('refuses what no offset here can be', () => {
    expect(safeSizeArgument('start offset', '7P', context)).toBe(7 * 2 ** 50);
    expect(said(() => safeSizeArgument('start offset', '8P', context))[0]).toContain('beyond 9007199254740991');
  });
});

describe('plain integers as C reads them', () => {
  it.each([
    ['10', 10n],
    ['-1', -1n],
    ['+8', 8n],
    [' 8', 8n],
    ['0x10', 16n],
    ['010', 8n],
    ['0', 0n],
  ])('reads %s as %s', (text, value) => {
    expect(parseInteger(text)).toBe(value);
  });

  it.each(['', 'x', '8k', '8 ', '1.0', '08', '--1'])('does not take %j for an integer', (text) => {
    expect(parseInteger(text)).toBeUndefined();
  });
});
