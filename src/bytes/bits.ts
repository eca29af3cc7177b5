/** Bitmaps, LSB first in each byte. Pure. Bit indexes are numbers up to 2^53, never shifted. */

export function getBit(bytes: Uint8Array, index: number): boolean {
  return ((bytes[Math.floor(index / 8)] as number) & (1 << (index % 8))) !== 0;
}

/** Sets bits `[start, end)`; bytes in the middle are written whole. */
export function setBits(bytes: Uint8Array, start: number, end: number): void {
  let at = start;
  while (at < end && at % 8 !== 0) at = setOne(bytes, at);
  const wholeEnd = end - (end % 8);
  if (wholeEnd > at) {
    bytes.fill(0xff, at / 8, wholeEnd / 8);
    at = wholeEnd;
  }
  while (at < end) at = setOne(bytes, at);
}

function setOne(bytes: Uint8Array, index: number): number {
  const byte = Math.floor(index / 8);
  bytes[byte] = (bytes[byte] as number) | (1 << (index % 8));
  return index + 1;
}

/** The lowest `count` bits of a byte. */
export function lowBits(byte: number, count: number): number {
  return byte & (2 ** count - 1);
}

/** Clears bits `[start, end)`. */
export function clearBits(bytes: Uint8Array, start: number, end: number): void {
  let at = start;
  while (at < end && at % 8 !== 0) at = clearOne(bytes, at);
  const wholeEnd = end - (end % 8);
  if (wholeEnd > at) {
    bytes.fill(0, at / 8, wholeEnd / 8);
    at = wholeEnd;
  }
  while (at < end) at = clearOne(bytes, at);
}

function clearOne(bytes: Uint8Array, index: number): number {
  const byte = Math.floor(index / 8);
  bytes[byte] = (bytes[byte] as number) & ~(1 << (index % 8));
  return index + 1;
}

/** Adds the bits of `from[fromAt, fromAt+length)` to those of `into` from byte `at` on. @returns whether any was set there. */
export function orBytes(into: Uint8Array, at: number, from: Uint8Array, fromAt: number, length: number): boolean {
  let any = false;
  for (let i = 0; i < length; i++) {
    const byte = from[fromAt + i] as number;
    if (byte === 0) continue;
    any = true;
    into[at + i] = (into[at + i] as number) | byte;
  }
  return any;
}

/** End of the run of bits equal to bit `start`, not past `end`; steps over uniform words and bytes whole.
 *  @param view the same memory as `bytes` */
export function findRunEnd(bytes: Uint8Array, view: DataView, start: number, end: number): number {
  const value = getBit(bytes, start);
  const uniform = value ? 0xff : 0;
  let at = start;
  // A run that begins with a byte is looked at by bytes from the first: most do.
  while (at % 8 !== 0) {
    at++;
    if (at >= end) return end;
    if (getBit(bytes, at) !== value) return at;
  }
  const byteEnd = Math.floor(end / 8);
  let byte = at / 8;
  const word = value ? -1 : 0;
  while (byte + 4 <= byteEnd && view.getInt32(byte, true) === word) byte += 4;
  while (byte < byteEnd && bytes[byte] === uniform) byte++;
  at = byte * 8;
  while (at < end && getBit(bytes, at) === value) at++;
  return at;
}
