/** One client, from greeting to farewell, over any connection. Owns the stages, and when there is anything to do.
 *  Invariants:
 *  - what comes in together is answered together: one send for the replies of one turn of the event loop;
 *  - a client is listened to only while there is room for what it wants, and no longer than 10 ms at a stretch;
 *  - whatever a client sends, or does not, harms its own session only;
 *  - a session is over when its connection is, and everything that it had begun in images has ended. */

import { later, Pacer, yieldMacrotask } from '../base/job.ts';
import { nbdFault } from '../nbd/fault.ts';
import type { Export } from './export.ts';
import { Inbox } from './inbox.ts';
import { type Agreement, Negotiation, type Step } from './negotiation.ts';
import { type ArenaPool, Outbox } from './outbox.ts';
import { Transmission } from './transmission.ts';
import type { Transport } from './transport.ts';

/** Bytes of answers in the handshake that a client may leave unread. */
const HANDSHAKE_ROOM = 1024 * 1024;

/** What happens to a client, for whoever keeps a log. */
export type SessionEvent =
  /** It has taken an export. */
  | { readonly type: 'export'; readonly name: string }
  /** A request failed in the image: the client knows, too. */
  | { readonly type: 'failure'; readonly name: string; readonly command: string; readonly error: unknown }
  /** It has broken the protocol, or taken too long for the handshake, and is left. */
  | { readonly type: 'fault'; readonly error: unknown };

/** What a session has from its server. */
export interface SessionContext {
  readonly exports: readonly Export[];
  readonly multiConn: boolean;
  readonly pool: ArenaPool;
  /** Milliseconds until the handshake must be over; 0 for no limit. */
  readonly handshakeLimit: number;
  readonly maxInFlight: number;
  readonly maxInFlightBytes: number;
  readonly onEvent: (event: SessionEvent) => void;
  readonly onClosed: (session: NbdSession) => void;
}

export class NbdSession {
  /** Resolves when the session is over; never rejects. */
  readonly closed: Promise<void>;
  readonly #context: SessionContext;
  readonly #transport: Transport;
  readonly #inbox = new Inbox();
  readonly #outbox: Outbox;
  readonly #negotiation: Negotiation;
  #agreement: Agreement | undefined;
  #transmission: Transmission | undefined;
  #stopTimer: () => void = () => undefined;
  #resolveClosed: () => void = () => undefined;
  /** An option is being answered. */
  #busy = false;
  #pumping = false;
  #scheduled = false;
  #paused = false;
  /** No more is taken from the client. */
  #ending = false;
  /** The transport was told to end. */
  #ended = false;
  /** The connection is no more. */
  #gone = false;

  /** Made by a server, which greets. */
  constructor(context: SessionContext, transport: Transport) {
    this.#context = context;
    this.#transport = transport;
    this.closed = new Promise((resolve) => {
      this.#resolveClosed = resolve;
    });
    this.#outbox = new Outbox(context.pool, transport, () => this.#pump());
    this.#negotiation = new Negotiation(context.exports, context.multiConn, this.#inbox, this.#outbox);
    if (context.handshakeLimit > 0) {
      this.#stopTimer = later(context.handshakeLimit, () => this.#abandon(tooSlow(context.handshakeLimit)));
    }
    this.#negotiation.greet();
    this.#outbox.flush();
  }

  /** The name of the export that the client has taken. */
  get exportName(): string | undefined {
    return this.#agreement?.export.name;
  }

  /** Bytes have come in. They are the session's for good. */
  receive(bytes: Uint8Array): void {
    if (this.#ending || this.#gone) return;
    this.#inbox.push(bytes);
    this.#pump();
  }

  /** The client sends nothing more: what it has asked for is done and answered, then the connection ends. */
  finish(): void {
    this.shutdown();
  }

  /** Takes no more requests; those that run are answered, then the connection ends. */
  shutdown(): void {
    this.#ending = true;
    this.#pump();
  }

  /** Ends the connection at once; what runs in images goes on to its end. */
  destroy(): void {
    if (!this.#gone) this.#transport.destroy();
  }

  /** The connection is no more. */
  gone(): void {
    if (this.#gone) return;
    this.#gone = true;
    this.#ending = true;
    this.#stopTimer();
    this.#inbox.clear();
    this.#closeIfOver();
  }

  #closeIfOver(): void {
    if (!this.#gone || this.#busy || (this.#transmission?.running ?? 0) > 0) return;
    this.#context.onClosed(this);
    this.#resolveClosed();
  }

  // ── turns ────────────────────────────────────────────────────────────────────────────────────

  /** Does what can be done now. */
  #pump(): void {
    if (this.#pumping) return;
    if (this.#gone) {
      this.#closeIfOver();
      return;
    }
    this.#pumping = true;
    let isStuck = false;
    try {
      isStuck = this.#takeAll();
    } catch (error) {
      this.#abandon(error);
      return;
    } finally {
      this.#pumping = false;
    }
    this.#outbox.flush();
    this.#brake(isStuck);
    if (this.#ending) this.#endIfDone();
  }

  /** Takes messages until there are no more, or no room. @returns whether there may be some left */
  #takeAll(): boolean {
    const pacer = new Pacer();
    for (let count = 1; !this.#ending; count++) {
      if (this.#busy || this.#isFull()) return true;
      const step = this.#transmission === undefined ? this.#negotiation.step() : this.#transmission.step();
      if (step === 'wait') return false;
      if (step instanceof Promise) this.#wait(step);
      else this.#take(step);
      if (count % 16 === 0 && pacer.due) {
        this.#schedule();
        return true;
      }
    }
    return false;
  }

  #isFull(): boolean {
    return this.#transmission?.full ?? this.#outbox.held >= HANDSHAKE_ROOM;
  }

  #wait(step: Promise<Step>): void {
    this.#busy = true;
    const goOn = (): void => {
      this.#busy = false;
      this.#pump();
    };
    step
      .then((taken) => {
        if (!this.#gone) this.#take(taken);
      })
      .catch((error: unknown) => this.#abandon(error))
      .finally(goOn);
  }

  #take(step: Step): void {
    if (step === 'next' || step === 'wait') return;
    if (step === 'end') {
      this.#ending = true;
      return;
    }
    this.#stopTimer();
    this.#agreement = step;
    const { name } = step.export;
    const { maxInFlight, maxInFlightBytes, onEvent } = this.#context;
    this.#transmission = new Transmission(step, this.#inbox, this.#outbox, {
      maxInFlight,
      maxInFlightBytes,
      onFailure: (command, error) => onEvent({ type: 'failure', name, command, error }),
      onProgress: () => this.#schedule(),
    });
    onEvent({ type: 'export', name });
  }

  /** Replies that are ready at nearly the same time go together. */
  #schedule(): void {
    if (this.#scheduled) return;
    this.#scheduled = true;
    void yieldMacrotask().then(() => {
      this.#scheduled = false;
      this.#pump();
    });
  }

  #brake(isStuck: boolean): void {
    if (isStuck === this.#paused || this.#ending) return;
    this.#paused = isStuck;
    if (isStuck) this.#transport.pause();
    else this.#transport.resume();
  }

  #endIfDone(): void {
    if (this.#ended || this.#busy || (this.#transmission?.running ?? 0) > 0) return;
    this.#ended = true;
    this.#stopTimer();
    this.#transport.end();
    // A transport that is not listened to would not tell when the other side has gone.
    if (this.#paused) this.#transport.resume();
  }

  /** Leaves a client that cannot be understood. */
  #abandon(error: unknown): void {
    if (this.#gone) return;
    this.#ending = true;
    this.#inbox.clear();
    this.#context.onEvent({ type: 'fault', error });
    // What was right before the fault has its answer.
    this.#outbox.flush();
    this.#transport.destroy();
  }
}

function tooSlow(limit: number): Error {
  return nbdFault('handshake-limit', `the client has not ended the handshake within ${limit} ms`, { limit });
}
