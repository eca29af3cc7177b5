import { describe, expect, it } from 'vitest';
import { cString, encodeFeatureNames, nameIncompatible } from '../../../src/formats/qcow2/features.ts';

describe('the feature name table', () => {
  it('names the known incompatible bits and no others', () => {
    const { names, unnamed } = nameIncompatible(0x3fn, encodeFeatureNames());
    expect(names).toEqual([
      'dirty bit',
      'corrupt bit',
      'external data file',
      'compression type',
      'extended L2 entries',
    ]);
    expect(unnamed).toBe(0x20n);
  });

  it('ends at the first empty name', () => {
    const table = encodeFeatureNames();
    table.fill(0, 48, 50 + 46);
    expect(nameIncompatible(3n, table)).toEqual({ names: ['dirty bit'], unnamed: 2n });
  });

  it('cuts names at 46 bytes, and ignores a bit number beyond 63', () => {
    const table = new Uint8Array(96).fill(0x61);
    table.set([0, 5], 0);
    table.set([0, 200], 48);
    expect(nameIncompatible(1n << 5n, table)).toEqual({ names: ['a'.repeat(46)], unnamed: 0n });
  });

  it('may be missing', () => {
    expect(nameIncompatible(8n, undefined)).toEqual({ names: [], unnamed: 8n });
  });
});

it('text ends at the first NUL, or with the bytes', () => {
  expect(cString(new Uint8Array([0x61, 0x62, 0, 0x63]))).toBe('ab');
  expect(cString(new Uint8Array([0x61, 0x62]))).toBe('ab');
});
