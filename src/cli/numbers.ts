/** Numbers on the command line, read by qemu-img's rules and refused in its words. Values are exact (bigint inside), because
 *  the bounds of the messages are 2^63 and 2^64, beyond what a `number` holds. No I/O. */
import { Failure } from './failure.ts';

/** Why a text is no size. */
export type NumberProblem = 'malformed' | 'range';

export interface ParsedSize {
  readonly value: bigint;
  /** A hexadecimal number with a unit suffix, which QEMU accepts with a warning. */
  readonly suffixedHex: boolean;
}

const POWERS: Readonly<Record<string, number>> = { b: 0, k: 10, m: 20, g: 30, t: 40, p: 50, e: 60 };
const UINT64 = 2n ** 64n;
export const INT64_MAX = 2n ** 63n - 1n;

/** Reads a size: leading blanks and `+` allowed, `b k M G T P E` (powers of 1024) in either case, a fraction before a suffix,
 *  hexadecimal. Below 2^64. */
export function parseQemuSize(text: string): ParsedSize | NumberProblem {
  const match = /^[ \t\n\v\f\r]*\+?(?:(0[xX][0-9a-fA-F]+)|(\d+)(\.\d*)?)([bBkKmMgGtTpPeE]?)$/.exec(text);
  if (match === null) return 'malformed';
  const [, hexadecimal, whole, fraction, suffix] = match as unknown as (string | undefined)[];
  const power = suffix === undefined || suffix === '' ? undefined : (POWERS[suffix.toLowerCase()] as number);
  if (hexadecimal !== undefined) {
    // In hexadecimal, b and e are digits; only the other letters get here as suffixes, and a lone multiplier stays legal.
    const value = BigInt(hexadecimal) * 2n ** BigInt(power ?? 0);
    return value >= UINT64 ? 'range' : { value, suffixedHex: power !== undefined };
  }
  const unit = 2n ** BigInt(power ?? 0);
  const part = fraction === undefined || fraction === '.' ? 0 : Number(`0${fraction}`);
  if (part !== 0 && (power ?? 0) === 0) return 'malformed';
  // A fraction of a byte is rounded, half up, in floating point as QEMU does it.
  const value = BigInt(whole as string) * unit + BigInt(Math.floor(part * Number(unit) + 0.5));
  return value >= UINT64 ? 'range' : { value, suffixedHex: false };
}

/** The warning that goes with {@link ParsedSize.suffixedHex}. */
export function hexSuffixWarning(text: string): string {
  return `Using a multiplier suffix on hex numbers is deprecated: ${text}`;
}

export interface NumberContext {
  warn(message: string): void;
  /** QEMU's words when not given. */
  readonly personality?: { readonly qemu: boolean } | undefined;
}

/** Reads a size operand or option. `what` is QEMU's noun: `image size`, `start offset`, …
 *  @returns 0 … 2^63-1
 *  @throws {@link Failure} in QEMU's words. */
export function sizeArgument(what: string, text: string, context: NumberContext): bigint {
  const parsed = parseQemuSize(text);
  if (parsed === 'malformed' && context.personality?.qemu === false) {
    throw new Failure(
      `invalid ${what} '${text}': expected a number of bytes, or one with k, M, G, T, P or E behind it`,
    );
  }
  if (parsed === 'malformed') {
    throw new Failure([
      `Invalid ${what} specified. You may use k, M, G, T, P or E suffixes for`,
      'kilobytes, megabytes, gigabytes, terabytes, petabytes and exabytes.',
    ]);
  }
  if (parsed === 'range' || parsed.value > INT64_MAX) {
    throw new Failure(`Invalid ${what} specified. Must be between 0 and ${INT64_MAX}.`);
  }
  if (parsed.suffixedHex) context.warn(hexSuffixWarning(text));
  return parsed.value;
}

/** The same as an ordinary number of bytes.
 *  @throws {@link Failure} also for sizes past 2^53-1, which no image here can have. */
export function safeSizeArgument(what: string, text: string, context: NumberContext): number {
  const value = sizeArgument(what, text, context);
  if (value > BigInt(Number.MAX_SAFE_INTEGER)) {
    throw new Failure(`Invalid ${what} specified. Offsets beyond ${Number.MAX_SAFE_INTEGER} are not supported.`);
  }
  return Number(value);
}

/** A plain integer as C's strtol with base 0 reads it; `undefined` when it is none. */
export function parseInteger(text: string): bigint | undefined {
  const match = /^[ \t\n\v\f\r]*([+-]?)(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9]\d*)$/.exec(text);
  if (match === null) return undefined;
  const [, sign, digits] = match as unknown as [string, string, string];
  const octal = /^0[0-7]+$/.test(digits) ? `0o${digits.slice(1)}` : digits;
  return sign === '-' ? -BigInt(octal) : BigInt(octal);
}
