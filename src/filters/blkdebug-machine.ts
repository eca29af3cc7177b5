/** blkdebug's rules at work: the state machine that events drive, the errors that are armed, and requests held at breakpoints.
 *  Everything as QEMU 7.2 has it: the state begins at 1; a rule whose state is 0 holds in any; all rules of an event are looked at in the state
 *  before it; errors armed by an event replace those of events before; of several that fit a request the first one of the rules decides.
 *  Invariant: no held request is lost: resuming, removing and closing let it go on. */
import type { Pending } from '../base/async.ts';
import { BlockError, fromSystemError, hex } from '../base/errors.ts';
import { yieldMacrotask } from '../base/job.ts';
import type { BreakpointNews, Breakpoints } from '../core/breakpoints.ts';
import type { BlockEvent } from '../core/store.ts';
import { BLOCK_EVENTS, type IoType } from './blkdebug-events.ts';
import type { InjectError, Rule } from './blkdebug-rules.ts';

interface Breakpoint {
  readonly action: 'suspend';
  readonly event: string;
  readonly tag: string;
}

/** A request that several breakpoints may hold. */
interface HeldRequest {
  holds: number;
  readonly goOn: () => void;
}

interface Hold {
  readonly tag: string;
  readonly request: HeldRequest;
}

const KNOWN: ReadonlySet<string> = new Set(BLOCK_EVENTS);

export class RuleMachine implements Breakpoints {
  readonly #name: string;
  /** By event; the newest first, as they are looked at. */
  readonly #rules = new Map<string, (Rule | Breakpoint)[]>();
  #armed: readonly InjectError[] = [];
  #state = 1;
  /** The newest first. */
  #held: Hold[] = [];
  #closed = false;
  readonly #observers = new Set<BreakpointNews>();

  /** @param name of the filter's node, for messages */
  constructor(name: string, rules: readonly Rule[]) {
    this.#name = name;
    for (const rule of rules) this.#add(rule);
  }

  get state(): number {
    return this.#state;
  }

  #add(rule: Rule | Breakpoint): void {
    this.#rules.set(rule.event, [rule, ...(this.#rules.get(rule.event) ?? [])]);
  }

  /** Whether anything happens at this event. */
  listens(event: BlockEvent): boolean {
    return this.#rules.has(event);
  }

  /** The event happens. @returns what holds the request; ends when it may go on. */
  announce(event: BlockEvent): Pending {
    const rules = this.#rules.get(event);
    if (rules === undefined) return undefined;
    const armed: InjectError[] = [];
    const tags: string[] = [];
    let newState = this.#state;
    for (const rule of rules) {
      if (rule.action === 'suspend') tags.push(rule.tag);
      else if (rule.state !== 0 && rule.state !== this.#state) continue;
      else if (rule.action === 'set-state') newState = rule.newState;
      // Found from the newest to the oldest, looked at from the oldest on.
      else armed.unshift(rule);
    }
    if (armed.length > 0) this.#armed = armed;
    this.#state = newState;
    return tags.length === 0 ? undefined : this.#hold(event, tags);
  }

  #hold(event: BlockEvent, tags: readonly string[]): Pending {
    this.#drop(event, (rule) => rule.action === 'suspend');
    if (this.#closed) return undefined;
    let goOn = (): void => undefined;
    const resumed = new Promise<void>((resolve) => {
      goOn = resolve;
    });
    const request: HeldRequest = { holds: tags.length, goOn };
    for (const tag of tags) {
      this.#held.unshift({ tag, request });
      this.#tell('held', tag);
    }
    return resumed;
  }

  #drop(event: string, unwanted: (rule: Rule | Breakpoint) => boolean): boolean {
    const rules = this.#rules.get(event) ?? [];
    const kept = rules.filter((rule) => !unwanted(rule));
    if (kept.length > 0) this.#rules.set(event, kept);
    else this.#rules.delete(event);
    return kept.length < rules.length;
  }

  /** Lets requests pass, or fails them.
   *  @throws the error of the rule that fits, at once or by a rejected promise, as the rule has it. */
  check(ioType: IoType, offset: number, length: number): Pending {
    for (const rule of this.#armed) {
      if (!rule.ioTypes.has(ioType)) continue;
      if (rule.offset >= 0 && (rule.offset < offset || rule.offset >= offset + length)) continue;
      return this.#fail(rule, ioType, offset, length);
    }
    return undefined;
  }

  #fail(rule: InjectError, ioType: IoType, offset: number, length: number): Pending {
    if (rule.errno === undefined) return undefined;
    if (rule.once) {
      this.#armed = this.#armed.filter((other) => other !== rule);
      this.#drop(rule.event, (other) => other === rule);
    }
    const what = ioType === 'flush' ? 'flush' : `${ioType} of ${hex(length)} bytes at ${hex(offset)}`;
    const cause = Object.assign(new Error(`${rule.errno}: injected`), { code: rule.errno });
    const failure = fromSystemError(cause, `blkdebug "${this.#name}": injected, ${what}`, {
      event: rule.event,
      ioType,
      offset,
      length,
    });
    if (rule.immediately) throw failure;
    return rejectLater(failure);
  }

  // ── breakpoints ──────────────────────────────────────────────────────────────────────────────

  set(event: BlockEvent, tag: string): void {
    if (!KNOWN.has(event)) {
      throw new BlockError('NOT_FOUND', `blkdebug "${this.#name}": there is no event '${event}'`, {
        reason: 'blkdebug.no-event',
        details: { event },
      });
    }
    this.#add({ action: 'suspend', event, tag });
  }

  remove(tag: string): void {
    let found = false;
    for (const event of [...this.#rules.keys()]) {
      if (this.#drop(event, (rule) => rule.action === 'suspend' && rule.tag === tag)) found = true;
    }
    for (const hold of this.#held.filter((one) => one.tag === tag)) {
      found = true;
      this.#release(hold);
    }
    if (!found) throw this.#noTag(tag, 'no breakpoint and no request');
  }

  resume(tag: string): void {
    const hold = this.#held.find((one) => one.tag === tag);
    if (hold === undefined) throw this.#noTag(tag, 'no request');
    this.#release(hold);
  }

  isHeld(tag: string): boolean {
    return this.#held.some((one) => one.tag === tag);
  }

  observe(news: BreakpointNews): () => void {
    this.#observers.add(news);
    return () => this.#observers.delete(news);
  }

  /** Lets everything go on that is held, and holds nothing any more. */
  close(): void {
    this.#closed = true;
    for (const hold of [...this.#held]) this.#release(hold);
  }

  #release(hold: Hold): void {
    this.#held = this.#held.filter((one) => one !== hold);
    this.#tell('resumed', hold.tag);
    hold.request.holds--;
    if (hold.request.holds === 0) hold.request.goOn();
  }

  #tell(what: 'held' | 'resumed', tag: string): void {
    for (const observer of this.#observers) observer(what, tag);
  }

  #noTag(tag: string, what: string): BlockError {
    return new BlockError('NOT_FOUND', `blkdebug "${this.#name}": ${what} has the tag '${tag}'`, {
      reason: 'blkdebug.no-tag',
      details: { tag },
    });
  }
}

async function rejectLater(failure: BlockError): Promise<void> {
  await yieldMacrotask();
  throw failure;
}
