import { describe, it } from 'vitest';
import { GiB, KiB, TiB } from '../../../src/base/sizes.ts';
import { formatConformance } from '../../../src/testing/format-suite.ts';
import { type AddCowVariant, addCowImage, unitOf } from '../../support/add-cow-under-test.ts';

const VARIANTS: Record<string, readonly [AddCowVariant, number | undefined]> = {
  'add-cow v9 (A-018 to A-020: a disk far larger than 32 GiB)': [{ compat: 'v9' }, 200 * GiB + 512],
  'add-cow V20': [{}, undefined],
  'add-cow V20 with clusters of 64 KiB': [{ clusterSize: 64 * KiB }, 8 * TiB + 3 * 512],
  'add-cow V20, a bitmap without backing file': [{ allAllocated: false, clusterSize: 8 * KiB }, 40 * GiB],
};

for (const [name, [variant, largeSize]] of Object.entries(VARIANTS)) {
  formatConformance({
    describe,
    it,
    name,
    abilities: { backing: true, resize: 'any', discard: 'zeroes' },
    create: addCowImage(variant),
    unit: unitOf(variant),
    ...(largeSize === undefined ? {} : { largeSize }),
  });
}
