/** Numbers of shell commands: offsets and lengths, pattern bytes, milliseconds. Owns the sentences for those that are none.
 *  Offsets are QEMU's, up to 2^63-1; those beyond 2^53-1, which no image here can have, become the largest number there is. */
import { hexSuffixWarning, INT64_MAX, parseInteger, parseQemuSize } from '../numbers.ts';
import { refuse } from './refusal.ts';

/** Bytes: the largest multiple of a sector that a request of QEMU's may have. */
export const MAX_REQUEST = 2_147_483_136;
export const SECTOR = 512;

export interface Warner {
  warn(message: string): void;
}

/** An offset, length or size with its suffix. @throws Refusal */
export function bytesArgument(text: string, warner: Warner): number {
  const parsed = parseQemuSize(text);
  if (parsed === 'malformed') {
    throw refuse(`Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- ${text}`);
  }
  if (parsed === 'range' || parsed.value > INT64_MAX) throw refuse(`Parsing error: argument too large -- ${text}`);
  if (parsed.suffixedHex) warner.warn(hexSuffixWarning(text));
  return Math.min(Number(parsed.value), Number.MAX_SAFE_INTEGER);
}

/** @throws Refusal */
export function patternByte(text: string): number {
  const value = parseInteger(text);
  if (value === undefined || value < 0n || value > 255n) throw refuse(`${text} is not a valid pattern byte`);
  return Number(value);
}

/** @throws Refusal */
export function millisecondsArgument(text: string): number {
  const value = parseInteger(text);
  if (value === undefined || value < 0n || value > BigInt(Number.MAX_SAFE_INTEGER)) {
    throw refuse(`${text} is not a valid number`);
  }
  return Number(value);
}

/** @throws Refusal where a VM state or compressed data would not begin and end with a sector. */
export function requireSectors(value: number, name: 'offset' | 'count'): void {
  if (value % SECTOR !== 0) throw refuse(`${value} is not a sector-aligned value for '${name}'`);
}

/** Lengths of the parts of one request, as their sum. @throws Refusal */
export function totalLength(texts: readonly string[], warner: Warner): number {
  let total = 0;
  for (const text of texts) {
    const length = bytesArgument(text, warner);
    if (length > MAX_REQUEST) throw refuse(`Argument '${text}' exceeds maximum size ${MAX_REQUEST}`);
    if (total > MAX_REQUEST - length) {
      throw refuse(`The total number of bytes exceed the maximum size ${MAX_REQUEST}`);
    }
    total += length;
  }
  return total;
}
