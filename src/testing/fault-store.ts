/** A store that fails where a test says so. Owns the rules; what they do not hit passes unchanged.
 *  Invariants: a rule counts only calls it matches; a fault that was not asked to be carried out leaves the store behind
 *  untouched; injected errors look like the system's (errno in `details.errno`). */
import type { Pending } from '../base/async.ts';
import { type BlockError, fromSystemError } from '../base/errors.ts';
import type { BlockNode } from '../core/node.ts';
import type { BlockEvent } from '../core/store.ts';
import { InterceptedStore, type Operation, type OperationKind } from './intercepted-store.ts';

export interface FaultRule {
  /** Which calls; by default reads, writes, zeroes, discards, flushes and truncates. */
  readonly on?: OperationKind | readonly OperationKind[];
  /** The first call that fails, counted from 1 among those that match; 1 by default. */
  readonly nth?: number;
  /** Every call from the n-th on fails; otherwise that one only. */
  readonly always?: boolean;
  /** Only calls that touch this range, bytes. Without a length: to the end. */
  readonly offset?: number;
  readonly length?: number;
  /** Only after this event was announced; unless `always`, each announcement is good for one fault. With `on: 'event'` the
   *  announcement itself fails. */
  readonly event?: BlockEvent;
  /** `EIO` by default. */
  readonly errno?: string;
  /** Reject a promise instead of throwing at once. */
  readonly late?: boolean;
  /** The call is carried out, and reported as failed all the same. */
  readonly carriedOut?: boolean;
  /** Of a write, this many bytes are written before it fails. */
  readonly partial?: number;
}

/** A rule at work. */
export interface Fault {
  /** How many calls it failed. */
  readonly hits: number;
  /** It fails nothing more. */
  cancel(): void;
}

const DEFAULT_KINDS: readonly OperationKind[] = ['read', 'write', 'zeroes', 'discard', 'flush', 'truncate'];

class ActiveRule implements Fault {
  readonly rule: FaultRule;
  readonly #kinds: ReadonlySet<OperationKind>;
  #seen = 0;
  #armed: boolean;
  #done = false;
  hits = 0;

  constructor(rule: FaultRule) {
    this.rule = rule;
    const on = rule.on ?? DEFAULT_KINDS;
    this.#kinds = new Set(typeof on === 'string' ? [on] : on);
    this.#armed = rule.event === undefined || this.#kinds.has('event');
  }

  cancel(): void {
    this.#done = true;
  }

  announce(event: BlockEvent): void {
    if (event === this.rule.event) this.#armed = true;
  }

  /** Whether the call fails; counts it. */
  hit(operation: Operation): boolean {
    const { event, nth = 1, always = false } = this.rule;
    if (this.#done || !this.#armed || !this.#kinds.has(operation.kind) || !this.#touches(operation)) return false;
    if (operation.kind === 'event' && event !== undefined && operation.event !== event) return false;
    this.#seen++;
    if (this.#seen < nth) return false;
    this.hits++;
    if (always) return true;
    if (event === undefined || operation.kind === 'event') this.#done = true;
    else {
      // the next announcement starts the count again
      this.#armed = false;
      this.#seen = 0;
    }
    return true;
  }

  #touches(operation: Operation): boolean {
    const { offset, length } = this.rule;
    if (offset === undefined && length === undefined) return true;
    const start = offset ?? 0;
    const end = length === undefined ? Number.POSITIVE_INFINITY : start + length;
    return operation.offset < end && operation.offset + Math.max(operation.length, 1) > start;
  }
}

export class FaultStore extends InterceptedStore {
  readonly #rules: ActiveRule[] = [];

  constructor(inner: BlockNode, rules: readonly FaultRule[] = []) {
    super(inner);
    for (const rule of rules) this.fail(rule);
  }

  /** Adds a rule; the first that matches a call decides. */
  fail(rule: FaultRule): Fault {
    const active = new ActiveRule(rule);
    this.#rules.push(active);
    return active;
  }

  /** Removes every rule. */
  heal(): void {
    for (const rule of this.#rules) rule.cancel();
    this.#rules.length = 0;
  }

  protected _around(operation: Operation, run: () => Pending): Pending {
    if (operation.event !== undefined) for (const rule of this.#rules) rule.announce(operation.event);
    const hit = this.#rules.find((rule) => rule.hit(operation));
    if (hit === undefined) return run();
    const failure = this.#failure(operation, hit.rule);
    const { partial, carriedOut, late } = hit.rule;
    if (carriedOut === true) return afterwards(run(), failure);
    if (partial !== undefined && operation.kind === 'write') {
      return afterwards(this.inner.write(operation.offset, firstBytes(operation.parts, partial)), failure);
    }
    if (late === true || operation.kind === 'close') return Promise.reject(failure);
    throw failure;
  }

  #failure(operation: Operation, rule: FaultRule): BlockError {
    const errno = rule.errno ?? 'EIO';
    const cause = Object.assign(new Error(`${errno}: injected`), { code: errno });
    const { kind, offset, length } = operation;
    return fromSystemError(cause, `"${this.name}": injected fault, ${kind} of ${length} bytes at ${offset}`, {
      kind,
      offset,
      length,
      event: rule.event,
    });
  }
}

async function afterwards(pending: Pending, failure: BlockError): Promise<void> {
  await pending;
  throw failure;
}

function firstBytes(parts: readonly Uint8Array[], count: number): Uint8Array {
  const bytes: number[] = [];
  for (const part of parts) for (const byte of part) if (bytes.length < count) bytes.push(byte);
  return Uint8Array.from(bytes);
}
