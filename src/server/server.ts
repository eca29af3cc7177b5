/** An NBD server without sockets: exports, and the sessions on them. Owns the bounds that all clients share, and the end of it all.
 *  Invariants: images are the caller's, neither opened nor closed here; when `close` has ended, no request runs, and what clients have written is
 *  durable. */
import { later } from '../base/job.ts';
import { MiB } from '../base/sizes.ts';
import { type Export, exportsOf, type ServedExport } from './export.ts';
import { ArenaPool } from './outbox.ts';
import { NbdSession, type SessionContext, type SessionEvent } from './session.ts';
import type { Transport } from './transport.ts';

export interface NbdServerOptions {
  /** What is offered. The first one is the default. */
  readonly exports: readonly ServedExport[];
  /** Sessions at once. Default 100. */
  readonly maxConnections?: number | undefined;
  /** Milliseconds that a client has for the handshake; 0 for no limit. Default 10000. */
  readonly handshakeLimit?: number | undefined;
  /** Bytes of replies and data of one session at which it is not listened to until there are less. A single request may have 32 MiB more.
   *  Default 32 MiB. */
  readonly maxInFlightBytes?: number | undefined;
  /** Requests of one session that run in the image at a time. Default 256. */
  readonly maxInFlight?: number | undefined;
  readonly onEvent?: ((event: SessionEvent) => void) | undefined;
}

export interface CloseServerOptions {
  /** Milliseconds that clients have to take their last replies, after which they are cut off. Default 10000. */
  readonly grace?: number | undefined;
}

export class NbdServer {
  readonly #exports: readonly Export[];
  readonly #context: SessionContext;
  readonly #maxConnections: number;
  readonly #sessions = new Set<NbdSession>();
  #closing: Promise<void> | undefined;

  /** @throws {@link BlockError} INVALID_ARGUMENT, reasons `nbd.export-text`, `nbd.export-twice`, `nbd.no-export`. */
  constructor(options: NbdServerOptions) {
    const { maxConnections = 100, handshakeLimit = 10_000, maxInFlight = 256, maxInFlightBytes = 32 * MiB } = options;
    this.#exports = exportsOf(options.exports);
    this.#maxConnections = maxConnections;
    this.#context = {
      exports: this.#exports,
      multiConn: maxConnections > 1,
      pool: new ArenaPool(),
      handshakeLimit,
      maxInFlight,
      maxInFlightBytes,
      onEvent: options.onEvent ?? (() => undefined),
      onClosed: (session) => this.#sessions.delete(session),
    };
  }

  /** Sessions that are not over. */
  get connections(): number {
    return this.#sessions.size;
  }

  /** Begins a session. @returns `undefined` when there are as many as may be, or the server closes: then the connection was destroyed */
  accept(transport: Transport): NbdSession | undefined {
    if (this.#closing !== undefined || this.#sessions.size >= this.#maxConnections) {
      transport.destroy();
      return undefined;
    }
    const session = new NbdSession(this.#context, transport);
    this.#sessions.add(session);
    return session;
  }

  /** Takes no more requests, answers those that run, ends all sessions and makes everything durable; idempotent.
   *  @throws {@link BlockError} what the flush of an image throws. */
  close(options: CloseServerOptions = {}): Promise<void> {
    this.#closing ??= this.#close(options);
    return this.#closing;
  }

  async #close({ grace = 10_000 }: CloseServerOptions): Promise<void> {
    const stopTimer = later(grace, () => {
      for (const session of this.#sessions) session.destroy();
    });
    const sessions = [...this.#sessions];
    for (const session of sessions) session.shutdown();
    await Promise.all(sessions.map((session) => session.closed));
    stopTimer();
    const flushed = this.#exports.filter((one) => !one.readOnly).map(async (one) => await one.image.flush());
    for (const result of await Promise.allSettled(flushed)) if (result.status === 'rejected') throw result.reason;
  }
}
