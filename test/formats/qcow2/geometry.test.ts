import { describe, expect, it } from 'vitest';
import {
  clustersFor,
  geometryOf,
  l1EntriesFor,
  l1TableSpace,
  vmStateOffset,
} from '../../../src/formats/qcow2/geometry.ts';

const KiB = 1024;
const MiB = 1024 * KiB;

describe('geometry', () => {
  it('of the default image (Q-025)', () => {
    expect(geometryOf({ clusterBits: 16, extendedL2: false, refcountOrder: 4 })).toEqual({
      clusterBits: 16,
      extendedL2: false,
      refcountOrder: 4,
      clusterSize: 64 * KiB,
      l2EntrySize: 8,
      l2Entries: 8192,
      l2Coverage: 512 * MiB,
      subclustersPerCluster: 1,
      subclusterSize: 64 * KiB,
      refcountBits: 16,
      refcountMax: 65535,
      refcountBlockEntries: 32768,
      refcountBlockCoverage: 2048 * MiB,
      refcountTableEntriesPerCluster: 8192,
      csizeShift: 54,
      compressedOffsetLimit: 2 ** 53,
    });
  });

  it('with extended L2 entries halves what a table maps and divides clusters by 32', () => {
    const geometry = geometryOf({ clusterBits: 16, extendedL2: true, refcountOrder: 4 });
    expect(geometry).toMatchObject({
      l2EntrySize: 16,
      l2Entries: 4096,
      subclusterSize: 2 * KiB,
      l2Coverage: 256 * MiB,
    });
  });

  it('with refcounts below a byte has more of them than bytes (Q-023, Q-025)', () => {
    const geometry = geometryOf({ clusterBits: 9, extendedL2: false, refcountOrder: 0 });
    expect(geometry).toMatchObject({ refcountBits: 1, refcountMax: 1, refcountBlockEntries: 4096 });
  });

  it('keeps 64-bit refcounts within exact numbers (Q-023, Q-025)', () => {
    const geometry = geometryOf({ clusterBits: 21, extendedL2: false, refcountOrder: 6 });
    expect(geometry).toMatchObject({
      refcountMax: Number.MAX_SAFE_INTEGER,
      csizeShift: 49,
      compressedOffsetLimit: 2 ** 49,
    });
  });

  it('counts L1 entries, clusters and the place of VM state up to the last byte', () => {
    const geometry = geometryOf({ clusterBits: 16, extendedL2: false, refcountOrder: 4 });
    expect([0, 1, 512 * MiB, 512 * MiB + 1].map((size) => l1EntriesFor(geometry, size))).toEqual([0, 1, 1, 2]);
    expect(clustersFor(geometry, 65537)).toBe(2);
    expect([0, 1, 8192, 8193].map((entries) => l1TableSpace(geometry, entries))).toEqual([0, 65536, 65536, 131072]);
    expect(vmStateOffset(geometry, 512 * MiB + 1)).toBe(1024 * MiB);
  });
});
