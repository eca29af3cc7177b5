/** Sizes as people write and read them. Pure text work; the rules are qemu-img's (suffixes are powers of 1024). */

export const KiB = 1024;
export const MiB = 1024 * KiB;
export const GiB = 1024 * MiB;
export const TiB = 1024 * GiB;

const POWERS: Readonly<Record<string, number>> = { b: 0, k: 1, m: 2, g: 3, t: 4, p: 5, e: 6 };

export type SizeProblem = 'malformed' | 'range';

/** Parses `64K`, `1.5G`, `0x200`, `512`, `10b` into bytes.
 *  A fraction needs a suffix; a fraction of a byte is rounded down.
 *  @returns bytes (a safe integer), or why not: `malformed`, or `range` for values outside 0..2^63-1.
 *  Values between 2^53 and 2^63-1 come back as `range` too: no image of that size can be addressed here. */
export function parseSize(text: string): number | SizeProblem {
  const trimmed = text.trim();
  const hexadecimal = /^0[xX]([0-9a-fA-F]+)$/.exec(trimmed);
  if (hexadecimal !== null) return bounded(Number.parseInt(hexadecimal[1] as string, 16));
  const match = /^([+-]?)(\d+)(\.\d*)?([a-zA-Z]?)$/.exec(trimmed);
  if (match === null) return 'malformed';
  const [, sign, whole, fraction, suffix] = match as unknown as [string, string, string, string | undefined, string];
  const power = suffix === '' ? 0 : POWERS[suffix.toLowerCase()];
  if (power === undefined) return 'malformed';
  if (fraction !== undefined && power === 0) return Number(fraction) === 0 ? bounded(Number(whole)) : 'malformed';
  const unit = 1024 ** power;
  const value = Number(whole) * unit + Math.floor(Number(`0${fraction ?? ''}`) * unit);
  return sign === '-' && value !== 0 ? 'range' : bounded(value);
}

function bounded(value: number): number | SizeProblem {
  return value > Number.MAX_SAFE_INTEGER ? 'range' : value;
}

const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB', 'EiB'];

/** `196 KiB`, `1.5 GiB`: three significant digits as C's `%0.3g`, the unit switching when the number would reach 1000. */
export function formatSize(bytes: number): string {
  let power = 0;
  let value = bytes;
  while (value >= 999.5 && power < UNITS.length - 1) {
    value /= 1024;
    power++;
  }
  return `${formatG3(value)} ${UNITS[power]}`;
}

/** C's `%0.3g`: exact halves round to even (192.5 is 192), which `toPrecision` does not do. */
export function formatG3(value: number): string {
  if (value === 0) return '0';
  const exponent = Math.floor(Math.log10(Math.abs(value)));
  const digits = Math.max(0, 2 - exponent);
  const scaled = value * 10 ** digits;
  const floor = Math.floor(scaled);
  const rest = scaled - floor;
  const rounded = rest > 0.5 || (rest === 0.5 && floor % 2 === 1) ? floor + 1 : floor;
  return String(Number((rounded / 10 ** digits).toFixed(digits)));
}
