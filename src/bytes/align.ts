/** Offset arithmetic without bit operators: JavaScript's shifts and masks work on 32 bits, offsets on 53. Pure. */

/** Largest multiple of `unit` that is not above `value`. */
export function alignDown(value: number, unit: number): number {
  return value - (value % unit);
}

/** Smallest multiple of `unit` that is not below `value`. */
export function alignUp(value: number, unit: number): number {
  const rest = value % unit;
  return rest === 0 ? value : value - rest + unit;
}

export function divFloor(value: number, unit: number): number {
  return Math.floor(value / unit);
}

export function divCeil(value: number, unit: number): number {
  return Math.ceil(value / unit);
}

export function isPowerOfTwo(value: number): boolean {
  // The logarithm alone rounds: that of 2^52 + 2 is 52.
  return value >= 1 && Number.isFinite(value) && 2 ** Math.round(Math.log2(value)) === value;
}

/** Exponent of a power of two. */
export function log2Exact(value: number): number {
  return Math.round(Math.log2(value));
}
