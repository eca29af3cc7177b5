import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { type Geometry, geometryOf } from '../../../src/formats/qcow2/geometry.ts';
import { fullyAllocatedSize, planLayout, refcountSpace } from '../../../src/formats/qcow2/layout.ts';

const geometries = fc
  .record({
    clusterBits: fc.integer({ min: 9, max: 21 }),
    extendedL2: fc.boolean(),
    refcountOrder: fc.integer({ min: 0, max: 6 }),
  })
  .filter(({ clusterBits, extendedL2 }) => !extendedL2 || clusterBits >= 14)
  .map(geometryOf);
const sizes = fc.integer({ min: 0, max: 2 ** 31 }).map((sectors) => sectors * 512);

/** Clusters that the planned refcount structures can count. */
function countable(geometry: Geometry, blocks: number): number {
  return blocks * geometry.refcountBlockEntries;
}

describe('refcountSpace', () => {
  it('counts everything, itself included, with the fewest blocks', () => {
    fc.assert(
      fc.property(geometries, fc.nat(2 ** 31 - 1), (geometry, clusters) => {
        const { blocks, tableClusters } = refcountSpace(geometry, clusters + 1);
        const total = clusters + 1 + blocks + tableClusters;
        expect(countable(geometry, blocks)).toBeGreaterThanOrEqual(total);
        expect(countable(geometry, blocks - 1)).toBeLessThan(total);
        expect(tableClusters * geometry.refcountTableEntriesPerCluster).toBeGreaterThanOrEqual(blocks);
      }),
    );
  });
});

describe('planLayout', () => {
  it('puts the regions one after the other, without gap or overlap', () => {
    fc.assert(
      fc.property(
        geometries,
        sizes,
        fc.constantFrom('nothing', 'metadata', 'metadata-and-data'),
        (geometry, size, mapped) => {
          const layout = planLayout(geometry, size, mapped as 'nothing');
          const { clusterSize } = geometry;
          const l1Clusters = Math.ceil((layout.l1Entries * 8) / clusterSize);
          expect(layout.refcountTableOffset).toBe(clusterSize);
          expect(layout.refcountBlocksOffset).toBe(clusterSize * (1 + layout.refcountTableClusters));
          const afterBlocks = layout.refcountBlocksOffset + layout.refcountBlocks * clusterSize;
          expect(layout.l1Offset).toBe(layout.l1Entries === 0 ? 0 : afterBlocks);
          expect(layout.l2Offset).toBe(afterBlocks + l1Clusters * clusterSize);
          expect(layout.dataOffset).toBe(layout.l2Offset + layout.l2Tables * clusterSize);
          expect(layout.usedClusters * clusterSize).toBe(layout.dataOffset + layout.dataClusters * clusterSize);
          expect(layout.usedClusters * clusterSize - layout.fileSize).toBeLessThan(clusterSize);
          expect(countable(geometry, layout.refcountBlocks)).toBeGreaterThanOrEqual(layout.usedClusters);
          if (mapped === 'metadata-and-data' && size > 0)
            expect(layout.fileSize).toBe(fullyAllocatedSize(geometry, size));
        },
      ),
    );
  });
});
