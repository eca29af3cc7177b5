/** Emptying a whole image at once: new tables, all of them empty, and the end of the file gone. Spec: qcow2, "Header", "Host cluster management".
 *  Runs alone, under the metadata mutex, on an image whose tables are written back.
 *  Order: an empty set of tables behind everything in the file → durable → header, in one sector → durable: the image is empty, and all of its
 *  clusters are free. Then the same set right behind the header, where QEMU has it → durable → header → durable → the file's end.
 *  A cut leaves the old image or an empty one, sound either way.
 *  Only where nothing but the disk has clusters: no snapshots, no bitmaps, no encryption header, no data file. */
import { isBlockError } from '../../base/errors.ts';
import { divCeil } from '../../bytes/align.ts';
import { setU64 } from '../../bytes/ints.ts';
import { setRefcount } from './entries.ts';
import { l1TableSpace, TABLE_ENTRY_BYTES } from './geometry.ts';
import { switchFields } from './header-switch.ts';
import type { Qcow2State } from './image-state.ts';

/** Header, refcount table, refcount block. */
const BEFORE_L1 = 3;

/** The image has nothing that would be lost with everything else. Where it is false, clusters are dropped one by one. */
export function canBeReset(state: Qcow2State, hasBitmaps: boolean): boolean {
  const { header, geometry, file, hasDataFile } = state;
  const l1Clusters = l1TableSpace(geometry, header.l1Size) / geometry.clusterSize;
  return (
    header.version >= 3 &&
    header.snapshotCount === 0 &&
    !hasBitmaps &&
    header.bitmaps === undefined &&
    header.encryption !== 'luks' &&
    !hasDataFile &&
    file.supports.truncate &&
    BEFORE_L1 + l1Clusters <= geometry.refcountBlockEntries
  );
}

/** The caches are the caller's to reset, whatever happens.
 *  @throws {@link UnknownState}; what the file throws: then the image is what it was, or empty, as its header says. */
export async function resetImage(state: Qcow2State): Promise<void> {
  const { geometry, file, header } = state;
  const { clusterSize } = geometry;
  const l1Clusters = l1TableSpace(geometry, header.l1Size) / clusterSize;
  const used = BEFORE_L1 + l1Clusters;
  const aside = Math.max(used, divCeil(file.size, clusterSize));
  await file.event?.('empty_image_prepare');
  await put(state, aside, l1Clusters);
  await put(state, 1, l1Clusters);
  try {
    await file.truncate(used * clusterSize);
  } catch (error) {
    if (!isBlockError(error)) throw error;
    state.warn('qcow2.empty-tail', `the end of the file could not be cut off: ${error.message}`);
  }
}

/** Writes an empty set of tables from cluster `first` on, and switches to it. They count the header and themselves. */
async function put(state: Qcow2State, first: number, l1Clusters: number): Promise<void> {
  const { geometry, file } = state;
  const { clusterSize, refcountBlockEntries, refcountOrder, refcountTableEntriesPerCluster } = geometry;
  let tableClusters = 1;
  let blocks: number[] = [];
  for (let settled = -1; settled !== tableClusters + blocks.length; ) {
    settled = tableClusters + blocks.length;
    const last = first + settled + l1Clusters - 1;
    const lastBlock = Math.floor(last / refcountBlockEntries);
    const firstBlock = Math.floor(first / refcountBlockEntries);
    blocks = firstBlock === 0 ? [] : [0];
    for (let index = firstBlock; index <= lastBlock; index++) blocks.push(index);
    tableClusters = divCeil(lastBlock + 1, refcountTableEntriesPerCluster);
  }
  const clusters = tableClusters + blocks.length + l1Clusters;
  const area = new Uint8Array((tableClusters + blocks.length) * clusterSize);
  const table = new DataView(area.buffer);
  for (const [i, index] of blocks.entries()) {
    const at = (tableClusters + i) * clusterSize;
    setU64(table, index * TABLE_ENTRY_BYTES, first * clusterSize + at);
    const block = new DataView(area.buffer, at, clusterSize);
    const base = index * refcountBlockEntries;
    if (index === 0) setRefcount(block, 0, refcountOrder, 1);
    const end = Math.min(first + clusters, base + refcountBlockEntries);
    for (let cluster = Math.max(first, base); cluster < end; cluster++) {
      setRefcount(block, cluster - base, refcountOrder, 1);
    }
  }
  const l1Offset = (first + tableClusters + blocks.length) * clusterSize;
  await file.event?.('reftable_update');
  await file.write(first * clusterSize, area);
  await file.event?.('l1_update');
  if (l1Clusters > 0) await file.writeZeroes(l1Offset, l1Clusters * clusterSize, {});
  await state.flushFile();
  await switchFields(state, {
    ...state.header,
    l1Offset,
    refcountTableOffset: first * clusterSize,
    refcountTableClusters: tableClusters,
  });
}
