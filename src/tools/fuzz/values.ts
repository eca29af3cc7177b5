/** What a number in an image is set to: the ends of every range that somebody may check, or forget to. Pure.
 *  Invariant: the same field gives the same list in the same order. */
import { pick } from '../../base/random.ts';
import type { Anatomy, FuzzField } from '../../core/fuzz.ts';

const SMALL = [0n, 1n, 2n, 3n, 5n, 9n, 22n, 64n];
/** Of texts: a slash, a dot, a colon, half a character, a control character. */
const TEXT = [0x2fn, 0x2en, 0x3an, 0xc3n, 0x7fn];
/** Bits of a count of rounds that may be flipped: more only makes it slow. */
const WORK_BITS = 16n;

/** Values that the field may be given; some are the one it has. May be wider than the field. */
export function valuesFor(field: FuzzField, anatomy: Anatomy): bigint[] {
  const { old, role } = field;
  const width = BigInt(field.bytes * 8);
  const bits = role === 'work' ? WORK_BITS : width;
  const flipped = Array.from({ length: Number(bits) }, (_, bit) => old ^ (1n << BigInt(bit)));
  const near = [old + 1n, old - 1n, old * 2n, old / 2n, old + 8n];
  if (role === 'work') return [...SMALL, ...near, ...flipped];
  const max = (1n << width) - 1n;
  const half = 1n << (width - 1n);
  const values = [...SMALL, max, max - 1n, half, half - 1n, half + 1n, ...near, ...flipped];
  if (role === 'text') values.push(...TEXT);
  if (width <= 16n) return values;
  const cluster = BigInt(anatomy.clusterSize);
  values.push(511n, 512n, 1023n, 1024n, 1025n, 65535n, 65536n, 65537n, (1n << 31n) - 1n, 1n << 31n, (1n << 31n) + 1n);
  values.push(cluster, cluster - 1n, cluster + 1n, 0x40_0000n, 0x40_0001n);
  if (width < 64n) return values;
  for (const exponent of [32n, 40n, 47n, 53n, 55n, 56n, 62n, 63n]) {
    values.push(1n << exponent, (1n << exponent) - 1n, (1n << exponent) + 1n, (1n << exponent) - cluster);
  }
  if (role === 'number' || role === 'flags') return values;
  return [...values, ...pointers(field, anatomy)];
}

/** Places where something else is, the table of the entry itself among them. */
function pointers({ role, at }: FuzzField, { clusterSize, landmarks }: Anatomy): bigint[] {
  const cluster = BigInt(clusterSize);
  const flags = role === 'entry' ? [0n, 1n << 63n, 1n << 62n, 1n, (1n << 63n) + 1n, 3n << 62n, 1n << 57n] : [0n];
  const values: bigint[] = [];
  for (const landmark of landmarks.map(BigInt)) {
    for (const flag of flags) values.push(landmark + flag);
    values.push(landmark + 512n, landmark + cluster / 2n, landmark + 1n);
  }
  const self = BigInt(at) - (BigInt(at) % cluster);
  for (const flag of flags) values.push(self + flag, self + flag);
  return values;
}

/** Draws another value than the field has. */
export function otherValue(field: FuzzField, anatomy: Anatomy, random: () => number): bigint {
  const values = valuesFor(field, anatomy);
  for (;;) {
    const value = BigInt.asUintN(field.bytes * 8, pick(random, values));
    // one value in a few is the old one: no damage
    if (value !== field.old) return value;
  }
}

/** The bytes of a value in the field, in hexadecimal. */
export function encoded({ bytes, littleEndian }: FuzzField, value: bigint): string {
  const digits = value.toString(16).padStart(bytes * 2, '0');
  return littleEndian === true ? (digits.match(/../g) ?? []).reverse().join('') : digits;
}
