/** 64-bit integers of image files as JavaScript numbers; the one place that knows about 2^53. Pure. */

const TWO_32 = 0x1_0000_0000;
/** First high word whose value is no longer a safe integer. */
const HIGH_LIMIT = 0x20_0000;

/** Joins two 32-bit words. `Infinity` when the value exceeds 2^53-1: no comparison with a bound lets it pass, and it never rounds. */
export function joinU64(high: number, low: number): number {
  return high >= HIGH_LIMIT ? Number.POSITIVE_INFINITY : high * TWO_32 + low;
}

export function highWord(value: number): number {
  return Math.floor(value / TWO_32);
}

export function lowWord(value: number): number {
  return value % TWO_32;
}

export function getU64(view: DataView, offset: number, littleEndian = false): number {
  return littleEndian
    ? joinU64(view.getUint32(offset + 4, true), view.getUint32(offset, true))
    : joinU64(view.getUint32(offset), view.getUint32(offset + 4));
}

export function setU64(view: DataView, offset: number, value: number, littleEndian = false): void {
  const high = highWord(value);
  const low = lowWord(value);
  view.setUint32(littleEndian ? offset + 4 : offset, high, littleEndian);
  view.setUint32(littleEndian ? offset : offset + 4, low, littleEndian);
}
