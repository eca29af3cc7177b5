/** A cow image from its first byte to its last: header · bitmap · data, each sector in its own place. Spec: "What we should write",
 *  "Bitmap and data formulas".
 *  Invariants: the bitmap is right when it is written, for nothing can be changed afterwards; what no bit speaks of is zeros in the file; sectors
 *  share their bits' fate in units, which are no longer than a page, so that a hole of the source stays one. */
import { Pacer } from '../../base/job.ts';
import { MiB } from '../../base/sizes.ts';
import type { ForwardContext, ForwardData, ForwardImage, UnitMap } from '../../core/forward.ts';
import type { ByteStore } from '../../core/store.ts';
import { type CowPlan, planCow } from './create.ts';

/** Bytes. */
const SECTOR = 512;
const UNIT = 4096;
/** Bytes of the bitmap that are written at once; a multiple of every word. */
const CHUNK = MiB;

/** @throws {@link BlockError} as `planCow`. */
export async function planCowForward(
  context: ForwardContext,
  virtualSize: number,
  options: Parameters<typeof planCow>[2],
): Promise<ForwardImage> {
  const plan = await planCow(context, virtualSize, options);
  return {
    virtualSize: plan.size,
    unit: UNIT,
    marksZeroes: false,
    writeTables: (sink, units) => writeTables(plan, sink, units, context.signal),
  };
}

async function writeTables(
  plan: CowPlan,
  sink: ByteStore,
  units: UnitMap,
  signal: AbortSignal | undefined,
): Promise<ForwardData> {
  const { header, geometry, fileSize } = plan;
  const { bitmapOffset, bitmapLength, dataOffset } = geometry;
  await sink.write(0, header);
  const pacer = new Pacer();
  for (let at = 0; at < bitmapLength; at += CHUNK) {
    const bytes = new Uint8Array(Math.min(CHUNK, bitmapLength - at));
    setBits(bytes, at, plan, units);
    await sink.write(bitmapOffset + at, bytes);
    if (pacer.due) await pacer.pause(signal);
  }
  return { start: dataOffset, order: 'in-place', fileSize: Math.max(fileSize, dataOffset) };
}

/** Sets the bits that lie in the part of the bitmap that begins at byte `from`. */
function setBits(bytes: Uint8Array, from: number, { layout, geometry }: CowPlan, units: UnitMap): void {
  const perUnit = UNIT / SECTOR;
  const { wordBytes } = layout;
  const end = Math.min(geometry.sectors, (from + bytes.length) * 8);
  for (let index = units.next(Math.floor((from * 8) / perUnit)); index * perUnit < end; index = units.next(index + 1)) {
    for (let sector = index * perUnit; sector < Math.min(end, (index + 1) * perUnit); sector++) {
      const byte = Math.floor(sector / 8);
      // Words are big-endian: the byte with the lowest bits is their last one.
      const place = byte - (byte % wordBytes) + (wordBytes - 1 - (byte % wordBytes)) - from;
      bytes[place] = (bytes[place] as number) + 2 ** (sector % 8);
    }
  }
}
