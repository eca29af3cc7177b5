/** What an image claims of its files, against what QEMU 7.2 was seen to lock for the same use. */
import { describe, expect, it } from 'vitest';
import {
  backingClaim,
  type Claim,
  CREATION_CLAIM,
  dataFileClaim,
  fileClaim,
  imageClaim,
  NO_CLAIM,
  type OpeningUse,
  writingClaim,
} from '../../src/core/permissions.ts';

/** The bytes that stand for a claim. */
function bytesOf({ uses, shares }: Claim): number[] {
  const bits = [0, 1, 2, 3];
  return [
    ...bits.filter((bit) => (uses & (1 << bit)) !== 0).map((bit) => 100 + bit),
    ...bits.filter((bit) => (shares & (1 << bit)) === 0).map((bit) => 200 + bit),
  ];
}

function opened(use: Partial<OpeningUse>): Claim {
  return imageClaim({ readOnly: true, metadataOnly: false, resizes: false, sharesWrites: true, ...use });
}

const reading = opened({});
const writing = opened({ readOnly: false });
const resizing = opened({ readOnly: false, resizes: true });
const facts = opened({ metadataOnly: true });
const copying = opened({ sharesWrites: false });

describe('an image claims of its file what QEMU locks', () => {
  it.each([
    ['exclusive', 'info', facts, true, true, [201, 203]],
    ['exclusive', 'map, check, compare', reading, true, false, [100, 201, 203]],
    ['exclusive', 'the source of convert', copying, true, false, [100, 201, 203]],
    ['exclusive', 'check -r, snapshot -c, amend', writing, false, false, [100, 101, 103, 201, 203]],
    ['exclusive', 'resize', resizing, false, false, [100, 101, 103, 201, 203]],
    ['passes', 'info', facts, true, true, []],
    ['passes', 'map, compare, dd', reading, true, false, [100]],
    ['passes', 'the source of convert', copying, true, false, [100, 201, 203]],
    ['passes', 'bench -w', writing, false, false, [100, 101]],
    ['passes', 'resize', resizing, false, false, [100, 101, 103]],
    ['header', 'info', facts, true, true, []],
    ['header', 'map', reading, true, false, [100]],
    ['header', 'the source of convert', copying, true, false, [100, 201, 203]],
    ['header', 'bench -w', writing, false, false, [100, 101]],
  ] as const)('%s, for %s', (use, _, claim, readOnly, metadataOnly, bytes) => {
    expect(bytesOf(fileClaim(use, claim, readOnly, metadataOnly))).toEqual(bytes);
  });

  it('and of a file of data alone', () => {
    expect(bytesOf(dataFileClaim(reading))).toEqual([100, 203]);
    expect(bytesOf(dataFileClaim(writing))).toEqual([100, 101, 103, 203]);
    expect(bytesOf(dataFileClaim(copying))).toEqual([100, 201, 203]);
  });

  it('and of a backing file, which is read whatever happens above', () => {
    for (const above of [reading, writing, resizing]) {
      const below = backingClaim(above);
      expect(bytesOf(fileClaim('passes', below, true, false))).toEqual([100]);
      expect(bytesOf(fileClaim('exclusive', below, true, false))).toEqual([100, 201, 203]);
      expect(bytesOf(backingClaim(below))).toEqual([100]);
    }
    expect(bytesOf(fileClaim('passes', backingClaim(copying), true, false))).toEqual([100, 201, 203]);
  });

  it('and of a file that becomes an image', () => {
    expect(bytesOf(CREATION_CLAIM)).toEqual([101, 103, 203]);
    expect(bytesOf(writingClaim('passes'))).toEqual([101, 103, 203]);
    expect(bytesOf(writingClaim('exclusive'))).toEqual([100, 101, 103, 201, 203]);
    expect(bytesOf(NO_CLAIM)).toEqual([]);
  });
});
