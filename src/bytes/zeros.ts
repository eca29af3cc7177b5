/** Is it all zero? Hot in every conversion; pure. */

/** Node's memcmp, which takes any Uint8Array as receiver; where it is missing, words are compared. */
const compare: typeof Buffer.prototype.compare | undefined = globalThis.Buffer?.prototype.compare;

/** True when every byte of `bytes[start, end)` is zero. A range is all zero when its first byte is and it equals itself shifted by one
 *  byte: memcmp's speed. Three bytes are looked at first, because most data fails there and a call costs more than they do. */
export function isZero(bytes: Uint8Array, start = 0, end = bytes.length): boolean {
  const length = end - start;
  if (length === 0) return true;
  if (bytes[start] !== 0 || bytes[end - 1] !== 0 || bytes[start + Math.floor(length / 2)] !== 0) return false;
  if (length < 64 || compare === undefined) return isZeroByWords(bytes, start, end);
  return compare.call(bytes, bytes, start, end - 1, start + 1, end) === 0;
}

function isZeroByWords(bytes: Uint8Array, start: number, end: number): boolean {
  let at = start;
  while (at < end && (bytes.byteOffset + at) % 4 !== 0) if (bytes[at++] !== 0) return false;
  // A few bytes between two words: there is none to look at, and no array of words begins here.
  if (at === end) return true;
  const words = new Int32Array(bytes.buffer, bytes.byteOffset + at, Math.floor((end - at) / 4));
  for (let i = 0; i < words.length; i++) if (words[i] !== 0) return false;
  for (at += words.length * 4; at < end; at++) if (bytes[at] !== 0) return false;
  return true;
}
