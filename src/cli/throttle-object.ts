/** The properties of `--object throttle-group`: `limits.iops-total` and its like, and QEMU's older `x-iops-total`. QEMU's words for what is wrong.
 *  Invariant: values are whole numbers of 64 bits with a sign, as QEMU reads them; below zero they count as too large. */
import { isBlockError } from '../base/errors.ts';
import { ThrottleGroup } from '../filters/throttle-group.ts';
import { LIMIT_KEYS, type ThrottleLimits } from '../filters/throttle-limits.ts';
import { Failure } from './failure.ts';
import { qemuText } from './render/qemu-text.ts';

/** A limit, and how it was spelled. */
export interface NamedLimit {
  readonly key: string;
  readonly spelling: 'limits' | 'x-';
  readonly value: bigint;
}

const GENERAL = ['qom-type', 'id'];
const LIMITS = 'limits.';
const OLD = 'x-';
const LONGEST_BURST = 0xffff_ffffn;
const UINT32 = 2n ** 32n;

/** `--object throttle-group,help`. */
export const THROTTLE_GROUP_HELP = `throttle-group options:\n  limits=<ThrottleLimits>\n${[...LIMIT_KEYS]
  .map((key) => `  ${OLD}${key}`)
  // With the sign that follows, which comes before a dash in no list.
  .sort((a, b) => (`${a}~` < `${b}~` ? -1 : 1))
  .map((name) => `${name}=<int>\n`)
  .join('')}`;

/** The limits among the properties of an object.
 *  @throws {@link Failure} for other properties, and for values that are no numbers. */
export function throttleNames(properties: ReadonlyMap<string, unknown>, isJson: boolean): readonly NamedLimit[] {
  const named: NamedLimit[] = [];
  const unknown: string[] = [];
  for (const [name, value] of flattened(properties, isJson)) {
    if (GENERAL.includes(name)) continue;
    const spelling = name.startsWith(LIMITS) ? 'limits' : name.startsWith(OLD) ? OLD : undefined;
    const key = spelling === undefined ? '' : name.slice(spelling === OLD ? OLD.length : LIMITS.length);
    if (spelling === undefined || !LIMIT_KEYS.includes(key)) unknown.push(name);
    else named.push({ key, spelling, value: integer(name, value, isJson) });
  }
  const [surplus] = unknown;
  if (surplus !== undefined) throw new Failure(unexpected(surplus));
  return named;
}

/** @throws {@link Failure} for limits that contradict each other or are out of range. */
export function throttleGroup(named: readonly NamedLimit[]): ThrottleGroup {
  const limits: Record<string, number> = {};
  for (const limit of named) limits[limit.key] = limitValue(limit);
  try {
    return new ThrottleGroup(limits as ThrottleLimits);
  } catch (error) {
    throw isBlockError(error) ? new Failure(qemuText(error).text, { cause: error }) : error;
  }
}

function limitValue({ key, spelling, value }: NamedLimit): number {
  const isLength = key.endsWith('-max-length');
  if (spelling === OLD) {
    if (value < 0n) throw new Failure('Property values cannot be negative');
    if (isLength && value > LONGEST_BURST) {
      throw new Failure(`${OLD}${key} value must be in therange [0, ${LONGEST_BURST}]`);
    }
    return Number(value);
  }
  if (!isLength) return value < 0n ? Number.POSITIVE_INFINITY : Number(value);
  if (value > LONGEST_BURST) throw new Failure(`${key} value must be in the range [0, ${LONGEST_BURST}]`);
  return Number(((value % UINT32) + UINT32) % UINT32);
}

/** The members of `limits` by dotted names. @throws {@link Failure} where it is no object. */
function flattened(properties: ReadonlyMap<string, unknown>, isJson: boolean): [name: string, value: unknown][] {
  const all = [...properties];
  const whole = properties.get('limits');
  if (whole === undefined) return all;
  if (!isJson && all.some(([name]) => name.startsWith(LIMITS))) {
    throw new Failure("Parameters 'limits.*' used inconsistently");
  }
  if (typeof whole !== 'object' || whole === null || Array.isArray(whole)) {
    throw new Failure("Invalid parameter type for 'limits', expected: object");
  }
  return all.flatMap(([name, value]): [string, unknown][] =>
    name === 'limits' ? Object.entries(whole).map(([key, member]) => [LIMITS + key, member]) : [[name, value]],
  );
}

function integer(name: string, value: unknown, isJson: boolean): bigint {
  if (isJson) {
    if (typeof value === 'number' && Number.isInteger(value)) return BigInt(value);
    throw new Failure(`Invalid parameter type for '${name}', expected: integer`);
  }
  const match = /^[ \t]*([+-]?)(0[xX][0-9a-fA-F]+|\d+)$/.exec(String(value));
  const size = match === null ? undefined : BigInt(octal(match[2] as string));
  const signed = size === undefined ? undefined : match?.[1] === '-' ? -size : size;
  if (signed !== undefined && BigInt.asIntN(64, signed) === signed) return signed;
  throw new Failure(`Parameter '${name}' expects integer`);
}

/** A leading zero means digits below eight. */
function octal(digits: string): string {
  return /^0[0-7]+$/.test(digits) ? `0o${digits.slice(1)}` : digits;
}

/** What is below a property that is none has no name of its own. */
function unexpected(name: string): string {
  const inLimits = name.startsWith(LIMITS);
  const rest = inLimits ? name.slice(LIMITS.length) : name;
  const dot = rest.indexOf('.');
  if (dot <= 0) return `Parameter '${name}' is unexpected`;
  return `Parameters '${inLimits ? LIMITS : ''}${rest.slice(0, dot)}.*' are unexpected`;
}
