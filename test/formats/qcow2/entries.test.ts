import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  ALL_SUBCLUSTERS,
  bitmapEntryAllOnes,
  bitmapEntryHasReserved,
  clusterRun,
  compressedLength,
  compressedOffset,
  entryOffset,
  equalButCopied,
  getRefcount,
  hasAllSubclusters,
  hasAnySubcluster,
  hasOffset,
  hasSubcluster,
  isCompressed,
  isCopied,
  isZeroFlag,
  L2_COMPRESSED,
  L2_NORMAL,
  L2_UNALLOCATED,
  L2_ZERO_ALLOCATED,
  L2_ZERO_PLAIN,
  l1HasReserved,
  l2HasReserved,
  l2Kind,
  lowestBit,
  refcountBlockOffset,
  refcountTableHasReserved,
  setCompressedEntry,
  setCopied,
  setCopiedRun,
  setL1Entry,
  setL2Entry,
  setRefcount,
  setSubclusters,
  subclusterMask,
  subclusterRunEnd,
  subclustersConflict,
  withoutSubclusters,
  withSubclusters,
} from '../../../src/formats/qcow2/entries.ts';

const high = (entry: bigint) => Number(entry >> 32n);
const low = (entry: bigint) => Number(entry & 0xffff_ffffn);
const OFFSET = 0x00ff_ffff_ffff_fe00n;

function viewOf(entry: bigint, bytes = 16): DataView {
  const view = new DataView(new ArrayBuffer(bytes));
  view.setBigUint64(0, entry);
  return view;
}

describe('the fields of a table entry', () => {
  it('are those of the specification, for any 64 bits', () => {
    fc.assert(
      fc.property(fc.bigInt({ min: 0n, max: (1n << 64n) - 1n }), (entry) => {
        const h = high(entry);
        const l = low(entry);
        const offset = entry & OFFSET;
        expect(entryOffset(h, l)).toBe(
          offset > BigInt(Number.MAX_SAFE_INTEGER) ? Number.POSITIVE_INFINITY : Number(offset),
        );
        expect(hasOffset(h, l)).toBe(offset !== 0n);
        expect(isCopied(h)).toBe(entry >> 63n === 1n);
        expect(isCompressed(h)).toBe((entry & (1n << 62n)) !== 0n);
        expect(isZeroFlag(l)).toBe((entry & 1n) !== 0n);
        expect(l1HasReserved(h, l)).toBe((entry & 0x7f00_0000_0000_01ffn) !== 0n);
        expect(l2HasReserved(h, l)).toBe((entry & 0x3f00_0000_0000_01fen) !== 0n);
        expect(refcountTableHasReserved(l)).toBe((entry & 0x1ffn) !== 0n);
        const block = entry & ~0x1ffn;
        expect(refcountBlockOffset(h, l)).toBe(
          block > BigInt(Number.MAX_SAFE_INTEGER) ? Number.POSITIVE_INFINITY : Number(block),
        );
        expect(bitmapEntryAllOnes(l)).toBe((entry & 1n) !== 0n);
        expect(bitmapEntryHasReserved(h, l)).toBe(
          (entry & 0xff00_0000_0000_01fen) !== 0n || (offset !== 0n && (entry & 1n) !== 0n),
        );
        expect(equalButCopied(h, l, high(entry ^ (1n << 63n)), l)).toBe(true);
        expect(equalButCopied(h, l, high(entry ^ (1n << 40n)), l)).toBe(false);
      }),
    );
  });

  it('say what kind of cluster an L2 entry means', () => {
    const kind = (entry: bigint, extended = false, dataFile = false) =>
      l2Kind(high(entry), low(entry), extended, dataFile);
    const copied = 1n << 63n;
    expect(kind(0n)).toBe(L2_UNALLOCATED);
    expect(kind(1n)).toBe(L2_ZERO_PLAIN);
    expect(kind(copied | 0x50001n)).toBe(L2_ZERO_ALLOCATED);
    expect(kind(copied | 0x50000n)).toBe(L2_NORMAL);
    expect(kind((1n << 62n) | 0x50001n)).toBe(L2_COMPRESSED);
    // with extended entries bit 0 means nothing
    expect(kind(1n, true)).toBe(L2_UNALLOCATED);
    expect(kind(copied | 0x50001n, true)).toBe(L2_NORMAL);
    // in a data file offset 0 is a place, if COPIED says so
    expect(kind(copied, false, true)).toBe(L2_NORMAL);
    expect(kind(copied)).toBe(L2_UNALLOCATED);
    expect(kind(0n, false, true)).toBe(L2_UNALLOCATED);
  });

  it('are written as they are read', () => {
    fc.assert(
      fc.property(
        fc.nat(2 ** 31 - 1),
        fc.nat(0x1f_ffff),
        fc.boolean(),
        fc.boolean(),
        (sectors, reach, copied, zero) => {
          const offset = reach * 2 ** 32 + (sectors % 2 ** 23) * 512;
          const view = viewOf(0n);
          setL2Entry(view, 0, offset, copied, zero);
          const flags = (copied ? 1n << 63n : 0n) | (zero ? 1n : 0n);
          expect(view.getBigUint64(0)).toBe(BigInt(offset) | flags);
          setCopied(view, 0, !copied);
          expect(view.getBigUint64(0)).toBe(BigInt(offset) | (flags ^ (1n << 63n)));
          setL1Entry(view, 8, offset, copied);
          expect(view.getBigUint64(8)).toBe(BigInt(offset) | (copied ? 1n << 63n : 0n));
        },
      ),
    );
  });
});

describe('a compressed cluster descriptor', () => {
  it('gives back offset and the sectors touched, for every cluster size (Q-003, Q-025)', () => {
    fc.assert(
      fc.property(fc.integer({ min: 9, max: 21 }), fc.nat(), fc.nat(), fc.nat(), (clusterBits, page, within, size) => {
        const csizeShift = 62 - (clusterBits - 8);
        const offset = (page * 4096 + (within % 4096)) % 2 ** Math.min(csizeShift, 53);
        const length = 1 + (size % (2 ** clusterBits - 1));
        const view = viewOf(0n);
        setCompressedEntry(view, 0, offset, length, csizeShift);
        const entry = view.getBigUint64(0);
        expect(isCopied(high(entry))).toBe(false);
        expect(isCompressed(high(entry))).toBe(true);
        expect(compressedOffset(high(entry), low(entry), csizeShift)).toBe(offset);
        const read = compressedLength(high(entry), low(entry), csizeShift);
        expect(read).toBeGreaterThanOrEqual(length);
        expect(read - length).toBeLessThan(512);
        expect((offset + read) % 512).toBe(0);
      }),
    );
  });
});

describe('subcluster bitmaps', () => {
  const word = fc.nat(2 ** 32 - 1);

  it('make masks for every range', () => {
    for (let first = 0; first < 32; first++) {
      for (let end = first + 1; end <= 32; end++) {
        expect(subclusterMask(first, end)).toBe(2 ** end - 2 ** first);
      }
    }
  });

  it('set, clear and test bits as unsigned words', () => {
    fc.assert(
      fc.property(word, word, (a, b) => {
        expect(withSubclusters(a, b)).toBe(Number(BigInt(a) | BigInt(b)));
        expect(withoutSubclusters(a, b)).toBe(Number(BigInt(a) & ~BigInt(b)));
        expect(hasAllSubclusters(a, b)).toBe((BigInt(a) & BigInt(b)) === BigInt(b));
        expect(hasAnySubcluster(a, b)).toBe((BigInt(a) & BigInt(b)) !== 0n);
        expect(subclustersConflict(a, b)).toBe((BigInt(a) & BigInt(b)) !== 0n);
      }),
    );
    expect(hasAllSubclusters(ALL_SUBCLUSTERS, ALL_SUBCLUSTERS)).toBe(true);
  });

  it('end a run where either word changes', () => {
    fc.assert(
      fc.property(word, word, fc.integer({ min: 0, max: 31 }), (allocated, zero, first) => {
        let end = first + 1;
        while (
          end < 32 &&
          hasSubcluster(allocated, end) === hasSubcluster(allocated, first) &&
          hasSubcluster(zero, end) === hasSubcluster(zero, first)
        ) {
          end++;
        }
        expect(subclusterRunEnd(allocated, zero, first)).toBe(end);
      }),
    );
    expect(lowestBit(0)).toBe(32);
    expect(lowestBit(0x8000_0000)).toBe(31);
  });

  it('stand behind the entry: zero bits first, then allocated bits', () => {
    const view = viewOf(0n);
    setSubclusters(view, 0, 0x8000_0001, 0x4000_0002);
    expect(view.getBigUint64(8)).toBe(0x4000_0002_8000_0001n);
  });
});

describe('refcounts', () => {
  it.each([0, 1, 2, 3, 4, 5, 6])(
    'of order %d are read as they are written, and leave their neighbours alone',
    (order) => {
      const bits = 2 ** order;
      const max = bits >= 53 ? Number.MAX_SAFE_INTEGER : 2 ** bits - 1;
      fc.assert(
        fc.property(
          fc.array(fc.double({ min: 0, max: 1, noNaN: true }), { minLength: 16, maxLength: 16 }),
          fc.nat(15),
          (values, at) => {
            const counts = values.map((value) => Math.floor(value * max));
            const view = new DataView(new ArrayBuffer(128));
            for (const [index, count] of counts.entries()) setRefcount(view, index, order, count);
            counts[at] = max;
            setRefcount(view, at, order, max);
            expect(counts.map((_, index) => getRefcount(view, index, order))).toEqual(counts);
          },
        ),
        { numRuns: 50 },
      );
    },
  );

  it('below a byte begin at its lowest bit', () => {
    const view = new DataView(new ArrayBuffer(2));
    setRefcount(view, 1, 0, 1);
    setRefcount(view, 5, 1, 2);
    expect([view.getUint8(0), view.getUint8(1)]).toEqual([0b10, 0b1000]);
  });

  it('of 64 bits that no number holds are infinite', () => {
    expect(getRefcount(viewOf((1n << 64n) - 1n), 0, 6)).toBe(Number.POSITIVE_INFINITY);
  });
});

describe('runs of L2 entries', () => {
  function table(words: readonly bigint[], size = 8): DataView {
    const view = new DataView(new ArrayBuffer(words.length * size));
    for (const [index, word] of words.entries()) view.setBigUint64(index * size, word);
    return view;
  }

  it.each([8, 16])('go as far as clusters are neighbours and flags alike; entries of %i bytes', (size) => {
    fc.assert(
      fc.property(
        fc.integer({ min: 9, max: 21 }),
        fc.bigInt({ min: 1n, max: 1n << 30n }),
        fc.array(fc.constantFrom('next', 'next', 'next', 'next', 'gap', 'copied', 'zero', 'nothing'), {
          maxLength: 40,
        }),
        fc.boolean(),
        (clusterBits, first, steps, copied) => {
          const cluster = 1n << BigInt(clusterBits);
          const words = [first * cluster + (copied ? 1n << 63n : 0n)];
          for (const step of steps) {
            const last = words.at(-1) as bigint;
            if (step === 'next') words.push(last + cluster);
            else if (step === 'gap') words.push(last + 2n * cluster);
            else if (step === 'copied') words.push((last ^ (1n << 63n)) + cluster);
            else if (step === 'zero') words.push((last ^ 1n) + cluster);
            else words.push(0n);
          }
          const neighbours = words.findIndex(
            (word, index) => index > 0 && word !== (words[index - 1] as bigint) + cluster,
          );
          const wanted = neighbours < 0 ? words.length : neighbours;
          const found = clusterRun(table(words, size), 0, size, words.length, Number(cluster));
          if (found < wanted) {
            // only where the low word passes its end
            expect(((words[found] as bigint) & 0xffff_ffffn) < cluster).toBe(true);
          } else expect(found).toBe(wanted);
        },
      ),
    );
  });

  it('end where the low word passes its end, and where they are told to end', () => {
    const cluster = 65_536n;
    const words = Array.from(
      { length: 8 },
      (_, index) => (1n << 63n) | ((5n << 32n) - 4n * cluster + BigInt(index) * cluster),
    );
    const view = table(words);
    expect(clusterRun(view, 0, 8, 8, 65_536)).toBe(4);
    expect(clusterRun(view, 32, 8, 4, 65_536)).toBe(4);
    expect(clusterRun(view, 0, 8, 3, 65_536)).toBe(3);
    // the sign bit of the low word is no such end
    const middle = Array.from({ length: 4 }, (_, index) => 0x7fff_0000n + BigInt(index) * cluster);
    expect(clusterRun(table(middle), 0, 8, 4, 65_536)).toBe(4);
  });

  it('have their COPIED flags set and cleared, and those that were different are counted', () => {
    const words = [0x8000_0000_0001_0000n, 0x0000_0000_0002_0000n, 0x8000_0000_0003_0001n, 0n];
    const view = table(words);
    expect(setCopiedRun(view, 0, 8, 3, true)).toBe(1);
    expect(view.getBigUint64(8)).toBe(0x8000_0000_0002_0000n);
    expect(setCopiedRun(view, 0, 8, 4, false)).toBe(3);
    expect([0, 8, 16, 24].map((at) => view.getBigUint64(at))).toEqual([0x1_0000n, 0x2_0000n, 0x3_0001n, 0n]);
    expect(setCopiedRun(view, 0, 8, 4, false)).toBe(0);
  });
});
