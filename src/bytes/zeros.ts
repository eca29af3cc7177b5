/** Is it all zero? Hot in every conversion; pure. */

/** True when every byte of `bytes[start, end)` is zero. The buffer compared with itself shifted by one byte is memcmp's speed. */
export function isZero(bytes: Uint8Array, start = 0, end = bytes.length): boolean {
  const length = end - start;
  if (length === 0) return true;
  if (bytes[start] !== 0) return false;
  if (length < 64) {
    for (let i = start + 1; i < end; i++) if (bytes[i] !== 0) return false;
    return true;
  }
  const view = asBuffer(bytes);
  return view.compare(view, start, end - 1, start + 1, end) === 0;
}

function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.isBuffer(bytes) ? bytes : Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** Length of the run, from `start`, of whole `granularity` pieces that are all zero (or all not), not past `end`.
 *  The last piece may be short. */
export function findZeroRun(
  bytes: Uint8Array,
  start: number,
  end: number,
  granularity: number,
): { readonly zero: boolean; readonly length: number } {
  let at = Math.min(start + granularity, end);
  const zero = isZero(bytes, start, at);
  while (at < end) {
    const next = Math.min(at + granularity, end);
    if (isZero(bytes, at, next) !== zero) break;
    at = next;
  }
  return { zero, length: at - start };
}
