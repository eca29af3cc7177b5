/** A throttle group: limits that several disks share. Owns the queues of requests that wait, and their order.
 *  Behaviour: QEMU's `throttle-group` object.
 *  Invariants: a request passes at once only when none of its direction waits; members that have requests waiting take turns, reads and writes
 *  too, so nobody starves; requests of one member and direction pass in the order they came; one alarm at most is set. */
import type { Pending } from '../base/async.ts';
import { BlockError } from '../base/errors.ts';
import { type Clock, SYSTEM_CLOCK, throwIfAborted } from '../base/job.ts';
import type { GraphObject } from '../core/filter.ts';
import { type Bucket, bucketsOf, type LimitName, type ThrottleLimits } from './throttle-limits.ts';

export type Direction = 'read' | 'write';

/** Which limits a request of a direction has to keep. */
const LIMITS_OF: Readonly<Record<Direction, readonly LimitName[]>> = {
  read: ['bps-total', 'iops-total', 'bps-read', 'iops-read'],
  write: ['bps-total', 'iops-total', 'bps-write', 'iops-write'],
};

/** A request that waits for its turn. */
interface Waiter {
  readonly bytes: number;
  pass(): void;
}

/** One disk of a group. */
export interface ThrottleMember {
  /** Accounts for a request. @returns when it may pass; `undefined`: now. */
  take(direction: Direction, bytes: number, signal: AbortSignal | undefined): Pending;
  /** Leaves the group; what waits passes at once. */
  leave(): void;
}

interface Member {
  readonly waiting: Readonly<Record<Direction, Waiter[]>>;
}

export class ThrottleGroup implements GraphObject {
  readonly type = 'throttle-group';
  readonly #clock: Clock;
  readonly #buckets: ReadonlyMap<LimitName, Bucket>;
  /** A request of more bytes counts as several; 0: each one counts as one. */
  readonly #opBytes: number;
  /** In turn: who was served last stands last. */
  readonly #members: Record<Direction, Member[]> = { read: [], write: [] };
  #waiting = 0;
  #lastServed: Direction = 'write';
  #leakedAt: number;
  #alarm: { readonly at: number; stop(): void } | undefined;

  /** @throws {@link BlockError} OPTION for limits that contradict each other or are out of range. */
  constructor(limits: ThrottleLimits, clock: Clock = SYSTEM_CLOCK) {
    this.#buckets = bucketsOf(limits);
    this.#opBytes = limits['iops-size'] ?? 0;
    this.#clock = clock;
    this.#leakedAt = clock.now();
  }

  /** Requests that wait at present. */
  get waiting(): number {
    return this.#waiting;
  }

  join(): ThrottleMember {
    const member: Member = { waiting: { read: [], write: [] } };
    this.#members.read.push(member);
    this.#members.write.push(member);
    return {
      take: (direction, bytes, signal) => this.#take(member, direction, bytes, signal),
      leave: () => this.#leave(member),
    };
  }

  #take(member: Member, direction: Direction, bytes: number, signal: AbortSignal | undefined): Pending {
    throwIfAborted(signal);
    this.#leak();
    const queued = this.#waiting > 0 && this.#next(direction) !== undefined;
    if (!queued && this.#waitOf(direction) === 0) {
      this.#account(direction, bytes);
      this.#lastServed = direction;
      return undefined;
    }
    return this.#queue(member.waiting[direction], bytes, signal);
  }

  #queue(queue: Waiter[], bytes: number, signal: AbortSignal | undefined): Promise<void> {
    return new Promise<void>((resolve, reject) => {
      const waiter: Waiter = {
        bytes,
        pass: () => {
          signal?.removeEventListener('abort', giveUp);
          this.#waiting--;
          resolve();
        },
      };
      const giveUp = (): void => {
        queue.splice(queue.indexOf(waiter), 1);
        this.#waiting--;
        reject(new BlockError('ABORTED', 'interrupted', { cause: signal?.reason }));
        this.#schedule();
      };
      signal?.addEventListener('abort', giveUp, { once: true });
      queue.push(waiter);
      this.#waiting++;
      this.#schedule();
    });
  }

  #leave(member: Member): void {
    for (const direction of ['read', 'write'] as const) {
      const members = this.#members[direction];
      const index = members.indexOf(member);
      if (index >= 0) members.splice(index, 1);
      for (const waiter of member.waiting[direction].splice(0)) {
        this.#account(direction, waiter.bytes);
        waiter.pass();
      }
    }
    this.#schedule();
  }

  #leak(): void {
    const now = this.#clock.now();
    for (const bucket of this.#buckets.values()) bucket.leak(Math.max(0, now - this.#leakedAt));
    this.#leakedAt = now;
  }

  #waitOf(direction: Direction): number {
    let longest = 0;
    for (const name of LIMITS_OF[direction]) longest = Math.max(longest, this.#buckets.get(name)?.wait ?? 0);
    return longest;
  }

  #account(direction: Direction, bytes: number): void {
    const units = this.#opBytes > 0 && bytes > this.#opBytes ? bytes / this.#opBytes : 1;
    for (const name of LIMITS_OF[direction]) this.#buckets.get(name)?.fill(name.startsWith('bps') ? bytes : units);
  }

  /** Sets the alarm for the request that may pass first. */
  #schedule(): void {
    let wait = Number.POSITIVE_INFINITY;
    if (this.#waiting > 0) {
      for (const direction of ['read', 'write'] as const) {
        if (this.#next(direction) !== undefined) wait = Math.min(wait, this.#waitOf(direction));
      }
    }
    const at = this.#leakedAt + wait;
    if (this.#alarm?.at === at) return;
    this.#alarm?.stop();
    this.#alarm = undefined;
    if (wait === Number.POSITIVE_INFINITY) return;
    // Timers end early by a part of a millisecond: what is not due then waits once more.
    this.#alarm = { at, stop: this.#clock.after(wait, () => this.#serve()) };
  }

  /** Lets pass what may. */
  #serve(): void {
    this.#alarm = undefined;
    this.#leak();
    for (let served = true; served; ) {
      served = false;
      const other: Direction = this.#lastServed === 'read' ? 'write' : 'read';
      for (const direction of [other, this.#lastServed]) {
        const member = this.#waitOf(direction) === 0 ? this.#next(direction) : undefined;
        if (member === undefined) continue;
        this.#pass(member, direction);
        served = true;
        break;
      }
    }
    this.#schedule();
  }

  #next(direction: Direction): Member | undefined {
    return this.#members[direction].find((member) => member.waiting[direction].length > 0);
  }

  #pass(member: Member, direction: Direction): void {
    const members = this.#members[direction];
    members.splice(members.indexOf(member), 1);
    members.push(member);
    this.#lastServed = direction;
    const waiter = member.waiting[direction].shift();
    this.#account(direction, waiter?.bytes ?? 0);
    waiter?.pass();
  }
}
