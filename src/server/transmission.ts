/** The transmission phase of one client: requests as they come, replies as they are ready. Spec: NBD protocol, "Transmission".
 *  Owns what runs for the client, and the bound on it.
 *  Invariants:
 *  - data is read to its place behind the reply's header, and written from where it came in, copied at most once;
 *  - a request that the image answers at once makes no promise; its reply goes out with those of all requests that came with it;
 *  - no request is begun while the replies and payloads at hand reach the bound: then the client is not listened to;
 *  - nothing of a chunked reply is sent before all of it is known to be good. */
import { isPromise, type MaybePromise, type Pending } from '../base/async.ts';
import { errnoOf, isBlockError } from '../base/errors.ts';
import { CHUNK, CHUNK_FLAG_DONE, COMMAND, COMMAND_FLAG, LIMITS, WIRE_ERROR } from '../nbd/constants.ts';
import { nbdFault } from '../nbd/fault.ts';
import {
  encodeBlockStatus,
  encodeChunk,
  encodeErrorChunk,
  encodeSimpleReply,
  LARGEST_REPLY_HEADER,
  newReply,
  type StatusExtent,
  wireError,
} from '../nbd/replies.ts';
import { decodeRequest, newRequest, type Request, requestBytes } from '../nbd/requests.ts';
import type { Context } from './contexts.ts';
import type { Inbox } from './inbox.ts';
import type { Agreement } from './negotiation.ts';
import type { Outbox } from './outbox.ts';
import { ReadReplies } from './read-replies.ts';

const { fua, noHole, df, requestOne, fastZero, payloadLength } = COMMAND_FLAG;

/** The flags that each command may have, beside those of its payload. */
const ALLOWED_FLAGS: Readonly<Record<number, number>> = {
  [COMMAND.read]: df | fua,
  [COMMAND.write]: fua,
  [COMMAND.flush]: fua,
  [COMMAND.trim]: fua,
  [COMMAND.cache]: fua,
  [COMMAND.writeZeroes]: fua | noHole | fastZero,
  [COMMAND.blockStatus]: fua | requestOne,
};

const CHANGES = new Set<number>([COMMAND.write, COMMAND.trim, COMMAND.writeZeroes]);

/** Bytes that are read at a time for a cache command. */
const CACHE_STEP = 1024 * 1024;

export interface TransmissionOptions {
  /** Bytes of replies and payloads at which no further request is begun. */
  readonly maxInFlightBytes: number;
  /** Requests. */
  readonly maxInFlight: number;
  /** Told of requests that failed in the image. */
  readonly onFailure: (command: string, error: unknown) => void;
  /** Something has ended: replies may go, and requests may come. */
  readonly onProgress: () => void;
}

export class Transmission {
  readonly #agreement: Agreement;
  readonly #inbox: Inbox;
  readonly #outbox: Outbox;
  readonly #options: TransmissionOptions;
  readonly #extended: boolean;
  readonly #headerBytes: number;
  readonly #reads: ReadReplies;
  readonly #reply = newReply();
  readonly #request: Request = newRequest();
  #payload: Uint8Array | undefined;
  #filled = 0;
  #skip = 0;
  /** The error to tell when what is skipped has gone by. */
  #skipError = 0;
  #running = 0;
  #payloadBytes = 0;

  constructor(agreement: Agreement, inbox: Inbox, outbox: Outbox, options: TransmissionOptions) {
    this.#agreement = agreement;
    this.#inbox = inbox;
    this.#outbox = outbox;
    this.#options = options;
    this.#extended = agreement.replies === 'extended';
    this.#headerBytes = requestBytes(this.#extended);
    this.#reads = new ReadReplies(agreement, outbox);
  }

  /** Requests that have not ended. */
  get running(): number {
    return this.#running;
  }

  /** Whether no request is begun at present. */
  get full(): boolean {
    const { maxInFlight, maxInFlightBytes } = this.#options;
    // Room for what is coming in was found when its request began.
    if (this.#payload !== undefined || this.#skip > 0) return false;
    return (
      this.#running >= maxInFlight || this.#outbox.held + this.#payloadBytes + this.#reads.waiting >= maxInFlightBytes
    );
  }

  /** Takes one request, when it is there. @returns `wait` when bytes are missing; `end` when the client has said that it goes
   *  @throws {@link BlockError} PROTOCOL where the beginning of the next request is lost. */
  step(): 'next' | 'wait' | 'end' {
    if (this.#skip > 0) return this.#skipping();
    if (this.#payload !== undefined) return this.#filling(this.#payload);
    if (!this.#inbox.header(this.#headerBytes)) return 'wait';
    const request = this.#request;
    decodeRequest(this.#inbox.view, this.#inbox.viewAt, this.#extended, request);
    const { command, flags, length } = request;
    if (command === COMMAND.disconnect) return 'end';
    const hasPayload = this.#extended ? (flags & payloadLength) !== 0 : command === COMMAND.write;
    if (!hasPayload) {
      this.#begin(request, undefined);
      return 'next';
    }
    if (length > LIMITS.payload) {
      throw nbdFault('payload', `a request announces ${length} bytes of data, at most ${LIMITS.payload} are taken`, {
        length,
      });
    }
    const error = command === COMMAND.write ? this.#errorIn(request) : WIRE_ERROR.EINVAL;
    if (error !== 0 && length > 0) {
      this.#skip = length;
      this.#skipError = error;
      return this.#skipping();
    }
    const payload = this.#inbox.together(length);
    if (payload === undefined && length > 0) {
      this.#payload = new Uint8Array(length);
      this.#payloadBytes += length;
      this.#filled = 0;
      return this.#filling(this.#payload);
    }
    this.#payloadBytes += length;
    this.#begin(request, payload);
    return 'next';
  }

  #skipping(): 'next' | 'wait' {
    this.#skip -= this.#inbox.skip(this.#skip);
    if (this.#skip > 0) return 'wait';
    this.#replyError(this.#request, this.#skipError, '');
    return 'next';
  }

  #filling(payload: Uint8Array): 'next' | 'wait' {
    this.#filled += this.#inbox.drain(this.#filled === 0 ? payload : payload.subarray(this.#filled));
    if (this.#filled < payload.length) return 'wait';
    this.#payload = undefined;
    this.#begin(this.#request, payload);
    return 'next';
  }

  // ── one request ──────────────────────────────────────────────────────────────────────────────

  /** What is wrong with a request before the image is asked, as on the wire; 0 for nothing. */
  #errorIn({ command, flags, offset, length }: Request): number {
    const { export: of } = this.#agreement;
    const allowed = ALLOWED_FLAGS[command];
    const present = command === COMMAND.write && this.#extended ? flags & ~payloadLength : flags;
    if (allowed === undefined || (present & ~allowed) !== 0) return WIRE_ERROR.EINVAL;
    if (command === COMMAND.write && this.#extended && (flags & payloadLength) === 0) return WIRE_ERROR.EINVAL;
    if ((flags & df) !== 0 && this.#agreement.replies === 'simple') return WIRE_ERROR.EINVAL;
    if (command === COMMAND.flush) return 0;
    if (of.readOnly && CHANGES.has(command)) return WIRE_ERROR.EPERM;
    const align = of.minimumBlock;
    if (offset > of.size || length > of.size - offset) {
      return command === COMMAND.write || command === COMMAND.writeZeroes ? WIRE_ERROR.ENOSPC : WIRE_ERROR.EINVAL;
    }
    if (align > 1 && (offset % align !== 0 || length % align !== 0)) return WIRE_ERROR.EINVAL;
    const isBounded = command === COMMAND.read || command === COMMAND.cache;
    if (isBounded && length > LIMITS.payload) return WIRE_ERROR.EINVAL;
    const noContext = this.#agreement.contexts.length === 0 || length === 0;
    return command === COMMAND.blockStatus && noContext ? WIRE_ERROR.EINVAL : 0;
  }

  #begin(request: Request, payload: Uint8Array | undefined): void {
    const bytes = payload?.length ?? 0;
    const error = this.#errorIn(request);
    if (error !== 0) {
      this.#payloadBytes -= bytes;
      this.#replyError(request, error, '');
      return;
    }
    let pending: Pending;
    try {
      pending = this.#run(request, payload);
    } catch (failure) {
      this.#payloadBytes -= bytes;
      this.#failed(request, failure);
      return;
    }
    if (pending === undefined) {
      this.#payloadBytes -= bytes;
      this.#succeeded(request);
    } else {
      this.#later({ ...request }, bytes, pending);
    }
  }

  #later(request: Request, bytes: number, pending: Promise<void>): void {
    this.#running++;
    const end = (): void => {
      this.#running--;
      this.#payloadBytes -= bytes;
    };
    pending.then(
      () => {
        end();
        this.#succeeded(request);
        this.#options.onProgress();
      },
      (error: unknown) => {
        end();
        this.#failed(request, error);
        this.#options.onProgress();
      },
    );
  }

  #run(request: Request, payload: Uint8Array | undefined): Pending {
    const { command, flags, offset, length } = request;
    const of = this.#agreement.export;
    const durable = (flags & fua) !== 0;
    switch (command) {
      case COMMAND.read:
        return this.#reads.read(request);
      case COMMAND.write:
        return length === 0 ? undefined : of.write(offset, payload as Uint8Array, durable);
      case COMMAND.flush:
        return of.node.flush();
      case COMMAND.trim: {
        const pending = of.node.discard(offset, length);
        if (!durable) return pending;
        return pending === undefined ? of.node.flush() : pending.then(() => of.node.flush());
      }
      case COMMAND.cache:
        return this.#cache(offset, length);
      case COMMAND.writeZeroes:
        return of.node.writeZeroes(offset, length, {
          unmap: (flags & noHole) === 0,
          fastOnly: (flags & fastZero) !== 0,
          fua: durable,
        });
      default:
        return this.#status(request);
    }
  }

  /** Reading brings it into the caches there are. */
  async #cache(offset: number, length: number): Promise<void> {
    const into = new Uint8Array(Math.min(length, CACHE_STEP));
    this.#payloadBytes += into.length;
    try {
      for (let done = 0; done < length; done += into.length) {
        const some = into.subarray(0, Math.min(into.length, length - done));
        const pending = this.#agreement.export.node.read(offset + done, some);
        if (pending !== undefined) await pending;
      }
    } finally {
      this.#payloadBytes -= into.length;
    }
  }

  #status({ cookieHigh, cookieLow, offset, length, flags }: Request): Pending {
    const most = (flags & requestOne) !== 0 ? 1 : Number.POSITIVE_INFINITY;
    const { contexts } = this.#agreement;
    const asked = contexts.map((context) => this.#askStatus(context, offset, length, most));
    const tell = (index: number, extents: readonly StatusExtent[]): void => {
      const payload = encodeBlockStatus(contexts[index]?.id ?? 0, extents, this.#extended);
      const type = this.#extended ? CHUNK.blockStatusExtended : CHUNK.blockStatus;
      const done = index === contexts.length - 1 ? CHUNK_FLAG_DONE : 0;
      this.#chunk({ cookieHigh, cookieLow, offset }, type, done, payload);
    };
    const isNow = (all: typeof asked): all is (readonly StatusExtent[])[] => !all.some(isPromise);
    if (isNow(asked)) {
      asked.forEach((extents, index) => {
        tell(index, extents);
      });
      return undefined;
    }
    return Promise.allSettled(asked).then((all) => {
      for (const one of all) if (one.status === 'rejected') throw one.reason;
      all.forEach((one, index) => {
        if (one.status === 'fulfilled') tell(index, one.value);
      });
    });
  }

  /** What fails at once must wait for what runs already. */
  #askStatus(context: Context, offset: number, length: number, most: number): MaybePromise<readonly StatusExtent[]> {
    try {
      return context.status(offset, length, most);
    } catch (error) {
      return Promise.reject(error);
    }
  }

  // ── replies ──────────────────────────────────────────────────────────────────────────────────

  /** Reads and block status bring replies of their own. */
  #succeeded(request: Request): void {
    if (request.command === COMMAND.read || request.command === COMMAND.blockStatus) return;
    if (this.#extended) this.#chunk(request, CHUNK.none, CHUNK_FLAG_DONE);
    else this.#simple(request, 0);
  }

  #failed(request: Request, error: unknown): void {
    this.#options.onFailure(NAMES[request.command] ?? 'request', error);
    this.#replyError(request, wireErrorOf(error), error instanceof Error ? error.message : String(error));
  }

  #replyError(request: Pick<Request, 'cookieHigh' | 'cookieLow' | 'offset'>, error: number, message: string): void {
    if (this.#agreement.replies === 'simple') this.#simple(request, error);
    else this.#chunk(request, CHUNK.error, CHUNK_FLAG_DONE, encodeErrorChunk(error, message));
  }

  #simple({ cookieHigh, cookieLow }: Pick<Request, 'cookieHigh' | 'cookieLow'>, error: number): void {
    const outbox = this.#outbox;
    outbox.claim(LARGEST_REPLY_HEADER);
    outbox.commit(encodeSimpleReply(outbox.view, outbox.at, error, cookieHigh, cookieLow));
  }

  #chunk(
    request: Pick<Request, 'cookieHigh' | 'cookieLow' | 'offset'>,
    type: number,
    flags: number,
    payload?: Uint8Array,
  ): void {
    const outbox = this.#outbox;
    const reply = this.#reply;
    const length = payload?.length ?? 0;
    reply.cookieHigh = request.cookieHigh;
    reply.cookieLow = request.cookieLow;
    reply.offset = request.offset;
    reply.type = type;
    reply.flags = flags;
    reply.length = length;
    outbox.claim(LARGEST_REPLY_HEADER + length);
    const header = encodeChunk(reply, outbox.view, outbox.at, this.#extended);
    if (payload !== undefined) outbox.bytes.set(payload, outbox.at + header);
    outbox.commit(header + length);
  }
}

const NAMES: Readonly<Record<number, string>> = Object.fromEntries(
  Object.entries(COMMAND).map(([name, number]) => [number, name]),
);

/** What an image's failure is on the wire: what is wrong inside an image is nothing that the client has done. */
function wireErrorOf(error: unknown): number {
  if (!isBlockError(error)) return WIRE_ERROR.EIO;
  switch (error.code) {
    case 'CLOSED':
    case 'ABORTED':
      return WIRE_ERROR.ESHUTDOWN;
    case 'CORRUPT':
    case 'INTERNAL':
    case 'PROTOCOL':
      return WIRE_ERROR.EIO;
    default:
      return wireError(errnoOf(error));
  }
}
