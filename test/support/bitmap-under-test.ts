/** The test format as the harness wants it. */
import { mappedNode } from '../../src/core/mapped-node.ts';
import type { FormatUnderTest } from '../../src/testing/model.ts';
import { BitmapNode } from './bitmap-format.ts';
import { checkBitmapImage, createBitmapImage } from './bitmap-layout.ts';

export interface BitmapVariant {
  readonly unit?: number;
  readonly spare?: number;
  readonly transform?: 'guest' | 'host';
  readonly tableSize?: number;
  readonly countsTableSize?: number;
  /** Told of every node that is opened. */
  opened?(node: BitmapNode): void;
}

export function bitmapUnderTest(variant: BitmapVariant = {}): FormatUnderTest {
  const { unit = 1024, spare = 400, transform } = variant;
  return {
    name: 'bitmap',
    unit,
    create: (size, { hasBacking }) => Promise.resolve([createBitmapImage(size, { unit, spare, hasBacking })]),
    open: async ([file], { rules, cache, readOnly, backing }) => {
      if (file === undefined) throw new Error('no file');
      const node = await BitmapNode.open(file, {
        rules,
        budget: cache,
        readOnly,
        backing,
        transform,
        // Two entries, four counts: with four tables in memory, every run evicts.
        tableSize: variant.tableSize ?? 16,
        countsTableSize: variant.countsTableSize ?? 4,
      });
      variant.opened?.(node);
      return {
        node: mappedNode(node, { name: 'disk', rules }),
        share: () => node.share(),
        readShared: () => node.readFrozen(),
      };
    },
    check: ([image]) => {
      if (image === undefined) throw new Error('no file');
      const { corruptions, leaks } = checkBitmapImage(image);
      return Promise.resolve({ corruptions, leaks: leaks.length });
    },
  };
}
