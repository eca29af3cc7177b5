/** The limits of a throttle group: what they are called, which go together, and the leaky bucket that each one is.
 *  Behaviour: QEMU's `throttle-group` object. Pure.
 *  Invariants: a bucket without a limit never makes anybody wait; a level never falls below zero, so that idle time is not saved up beyond
 *  what the burst allows. */
import { BlockError } from '../base/errors.ts';

/** Names of the six limits, in the order in which they are checked. */
export const LIMIT_NAMES = ['bps-total', 'bps-read', 'bps-write', 'iops-total', 'iops-read', 'iops-write'] as const;
export type LimitName = (typeof LIMIT_NAMES)[number];

/** Limits as they are written: `iops-total`, `iops-total-max`, `iops-total-max-length`, `iops-size`, … What is not there is no limit. */
export type ThrottleLimits = Readonly<
  Partial<Record<LimitName | `${LimitName}-max` | `${LimitName}-max-length` | 'iops-size', number>>
>;

/** No value is larger. */
const MOST = 1_000_000_000_000_000;
/** No burst lasts longer, seconds. */
const LONGEST_BURST = 0xffff_ffff;

/** Every name that {@link ThrottleLimits} may have. */
export const LIMIT_KEYS: readonly string[] = [
  ...LIMIT_NAMES.flatMap((name) => [name, `${name}-max`, `${name}-max-length`]),
  'iops-size',
];

/** One leaky bucket: it fills with what passes, and leaks at the rate that is allowed; when it is full, requests wait. */
export class Bucket {
  /** A second; 0: no limit. */
  readonly rate: number;
  /** A second, during a burst; 0: none. */
  readonly burst: number;
  /** Seconds that a burst may last. */
  readonly burstSeconds: number;
  #level = 0;
  #burstLevel = 0;

  constructor(rate: number, burst: number, burstSeconds: number) {
    this.rate = rate;
    this.burst = burst;
    this.burstSeconds = burstSeconds;
  }

  /** Lets `ms` milliseconds pass. */
  leak(ms: number): void {
    this.#level = Math.max(0, this.#level - (this.rate * ms) / 1000);
    if (this.burstSeconds > 1) this.#burstLevel = Math.max(0, this.#burstLevel - (this.burst * ms) / 1000);
  }

  /** Puts in what passes. */
  fill(units: number): void {
    if (this.rate === 0) return;
    this.#level += units;
    if (this.burstSeconds > 1) this.#burstLevel += units;
  }

  /** Milliseconds until the next request may pass, in whole nanoseconds; 0: now. */
  get wait(): number {
    return this.rate === 0 ? 0 : Math.floor(this.#wait * 1e6) / 1e6;
  }

  get #wait(): number {
    // Without a burst of its own, a tenth of a second may pass at once: else every other request would wait.
    const size = this.burst === 0 ? this.rate / 10 : this.burst * this.burstSeconds;
    if (this.#level > size) return ((this.#level - size) / this.rate) * 1000;
    // Not full, but what passes must not pass faster than the burst allows.
    const over = this.burstSeconds > 1 ? this.#burstLevel - this.burst / 10 : 0;
    return over > 0 ? (over / this.burst) * 1000 : 0;
  }
}

/** @throws {@link BlockError} OPTION, reasons `throttle.conflict`, `throttle.size-alone`, `throttle.range`, `throttle.burst-length`,
 *  `throttle.burst-length-alone`, `throttle.burst-too-long`, `throttle.burst-alone`, `throttle.burst-low`. */
export function bucketsOf(limits: ThrottleLimits): ReadonlyMap<LimitName, Bucket> {
  requireTogether(limits);
  const buckets = new Map<LimitName, Bucket>();
  for (const name of LIMIT_NAMES) {
    const rate = limits[name] ?? 0;
    const burst = limits[`${name}-max`] ?? 0;
    const seconds = limits[`${name}-max-length`] ?? 1;
    requireSound(name, rate, burst, seconds);
    buckets.set(name, new Bucket(rate, burst, seconds));
  }
  return buckets;
}

function requireTogether(limits: ThrottleLimits): void {
  for (const what of ['bps', 'iops'] as const) {
    for (const end of ['', '-max'] as const) {
      const of = (name: LimitName): number => limits[`${name}${end}`] ?? 0;
      if (of(`${what}-total`) > 0 && (of(`${what}-read`) > 0 || of(`${what}-write`) > 0)) {
        throw refused(
          'conflict',
          `${what}-total${end} and ${what}-read${end} or ${what}-write${end} cannot be set at the same time`,
        );
      }
    }
  }
  const hasIops = ['iops-total', 'iops-read', 'iops-write'].some((name) => (limits[name as LimitName] ?? 0) > 0);
  if ((limits['iops-size'] ?? 0) > 0 && !hasIops) {
    throw refused('size-alone', 'iops-size says how requests are counted, and no iops limit counts them');
  }
}

function requireSound(name: LimitName, rate: number, burst: number, seconds: number): void {
  for (const [of, value] of [
    [name, rate],
    [`${name}-max`, burst],
  ] as const) {
    if (!(value >= 0 && value <= MOST)) throw refused('range', `${of}: ${value} is not from 0 to ${MOST}`);
  }
  if (!(seconds >= 0 && seconds <= LONGEST_BURST)) {
    throw refused('length-range', `${name}-max-length: ${seconds} is not from 0 to ${LONGEST_BURST}`, {
      name: `${name}-max-length`,
    });
  }
  if (seconds === 0) throw refused('burst-length', `${name}-max-length cannot be 0`);
  if (seconds > 1 && burst === 0) {
    throw refused('burst-length-alone', `${name}-max-length is set without ${name}-max`);
  }
  if (burst > 0 && seconds > MOST / burst) {
    throw refused('burst-too-long', `${name}-max-length ${seconds} is too much for ${name}-max ${burst}`);
  }
  if (burst > 0 && rate === 0) throw refused('burst-alone', `${name}-max is set without ${name}`);
  if (burst > 0 && burst < rate) throw refused('burst-low', `${name}-max ${burst} is lower than ${name} ${rate}`);
}

function refused(finding: string, what: string, details: Readonly<Record<string, unknown>> = {}): BlockError {
  return new BlockError('OPTION', `throttle group: ${what}`, { reason: `throttle.${finding}`, details });
}
