/** How much space an image would need, before it is made. Spec: `qemu-img measure`; the numbers are QEMU's, estimates included:
 *  metadata is counted as if every cluster were allocated.
 *  Invariant: reads no guest data, only the source's status. */
import { BlockError, hex } from '../../base/errors.ts';
import { Pacer, throwIfAborted } from '../../base/job.ts';
import { alignUp, divCeil } from '../../bytes/align.ts';
import { ExtentList } from '../../core/extent.ts';
import type { Measurement } from '../../core/format.ts';
import type { BlockNode } from '../../core/node.ts';
import { geometryFromOptions } from './create.ts';
import { type Geometry, MAX_L1_BYTES, TABLE_ENTRY_BYTES } from './geometry.ts';
import { fullyAllocatedSize } from './layout.ts';
import { planEncryption } from './new-encryption.ts';
import type { Qcow2CreateOptions } from './options.ts';

const NAME = 'measure';

/** Space of an image of `virtualSize` bytes, or of one with the content of `source` (whose size then counts).
 *  `bitmaps` is there when both sides know persistent bitmaps: a version 3 source and target.
 *  @throws {@link BlockError} OPTION as `create` does; TOO_LARGE, reason `qcow2.measure-size`. */
export async function measureQcow2(
  virtualSize: number,
  options: Qcow2CreateOptions,
  source?: BlockNode,
  signal?: AbortSignal,
): Promise<Measurement> {
  const encryption = planEncryption(options, NAME);
  const geometry = geometryFromOptions(options, NAME);
  const { clusterSize } = geometry;
  if (source === undefined) checkSize(virtualSize, geometry);
  const size = alignUp(source?.size ?? virtualSize, clusterSize);
  let data = 0;
  if (options.preallocation === 'falloc' || options.preallocation === 'full') data = size;
  else if (source !== undefined) {
    // the new backing file may share nothing with the source: everything may have to be written
    data = options.backingFile !== undefined ? size : await allocatedBytes(source, clusterSize, signal);
  }
  const fullyAllocated = fullyAllocatedSize(geometry, size) + alignUp(encryption?.headerBytes ?? 0, clusterSize);
  const bitmaps = options.compat === 'v2' || source === undefined ? undefined : await bitmapSpace(source, clusterSize);
  return {
    required: fullyAllocated - size + data,
    fullyAllocated,
    ...(bitmaps === undefined ? {} : { bitmaps }),
  };
}

function checkSize(virtualSize: number, geometry: Geometry): void {
  const tables = divCeil(alignUp(virtualSize, geometry.clusterSize), geometry.l2Coverage);
  if (tables * TABLE_ENTRY_BYTES <= MAX_L1_BYTES) return;
  throw new BlockError(
    'TOO_LARGE',
    `qcow2: ${hex(virtualSize)} bytes are too large for clusters of ${hex(geometry.clusterSize)}; larger clusters reach further`,
    { reason: 'qcow2.measure-size', details: { value: virtualSize, clusterSize: geometry.clusterSize } },
  );
}

/** Bytes of target clusters that some data of the source falls into. */
async function allocatedBytes(
  source: BlockNode,
  clusterSize: number,
  signal: AbortSignal | undefined,
): Promise<number> {
  const extents = new ExtentList();
  const pacer = new Pacer();
  let bytes = 0;
  /** Everything before it is counted. */
  let counted = 0;
  for (let at = 0; at < source.size; at = extents.end) {
    throwIfAborted(signal);
    extents.reset(at);
    await source.extents(at, source.size - at, extents, signal === undefined ? {} : { signal });
    for (const { start, length, zero, data, present } of extents) {
      const first = Math.max(start, counted);
      if (zero || !data || !present || first >= start + length) continue;
      counted = alignUp(start + length, clusterSize);
      bytes += (first % clusterSize) + (counted - first);
    }
    if (pacer.due) await pacer.pause(signal);
  }
  return bytes;
}

/** Size of the fixed part of a bitmap directory entry. */
const DIRECTORY_ENTRY_BYTES = 24;

interface BitmapFacts {
  readonly name: string;
  readonly granularity: number;
}

/** Bytes for copies of the source's persistent bitmaps, inconsistent ones too, every bit stored; `undefined` when the source cannot have any. */
async function bitmapSpace(source: BlockNode, clusterSize: number): Promise<number | undefined> {
  if (source.format?.format !== 'qcow2') return undefined;
  const { specific } = await source.format.info();
  if (specific?.data['compat'] === '0.10') return undefined;
  const bitmaps = (specific?.data['bitmaps'] ?? []) as readonly BitmapFacts[];
  let bytes = 0;
  let directory = 0;
  for (const { name, granularity } of bitmaps) {
    const clusters = divCeil(divCeil(divCeil(source.size, granularity), 8), clusterSize);
    bytes += clusters * clusterSize + alignUp(clusters * TABLE_ENTRY_BYTES, clusterSize);
    directory += alignUp(DIRECTORY_ENTRY_BYTES + new TextEncoder().encode(name).length, 8);
  }
  return bytes + alignUp(directory, clusterSize);
}
