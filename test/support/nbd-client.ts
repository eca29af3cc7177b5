/** A client of an NBD server without sockets, for tests: it says what it is told to, bytes that no client would send included, and takes replies
 *  apart with the decoders of the client's side. */
import { setImmediate as turn } from 'node:timers/promises';
import { CHUNK, HANDSHAKE_FLAG, INFO, OPTION, REPLY } from '../../src/nbd/constants.ts';
import {
  decodeGreeting,
  decodeOptionReplyHeader,
  encodeClientFlags,
  encodeOption,
  GREETING_BYTES,
  OPTION_REPLY_HEADER_BYTES,
} from '../../src/nbd/handshake.ts';
import {
  decodeInfo,
  decodeMetaContext,
  type ExportInfo,
  encodeInfoRequest,
  encodeMetaContextRequest,
} from '../../src/nbd/option-data.ts';
import {
  decodeBlockStatus,
  decodeErrorChunk,
  decodeHole,
  decodeReply,
  errnoOfWire,
  newReply,
  replyHeaderBytes,
  type StatusExtent,
} from '../../src/nbd/replies.ts';
import { encodeRequest, requestBytes } from '../../src/nbd/requests.ts';
import type { NbdServer } from '../../src/server/server.ts';
import type { NbdSession } from '../../src/server/session.ts';
import type { Transport } from '../../src/server/transport.ts';

export interface OptionReply {
  readonly type: number;
  readonly data: Uint8Array;
}

/** What came back for one request. */
export interface Answer {
  /** 'ok', or the errno's name. */
  result: string;
  /** Of reads: what was told, zeros in holes. */
  data?: Uint8Array;
  /** Kinds of chunks, in order. */
  readonly chunks: number[];
  readonly status: Map<number, readonly StatusExtent[]>;
}

interface Asked {
  readonly offset: number;
  readonly length: number;
  readonly isRead: boolean;
}

/** The turns of the event loop after which something that has not happened is taken not to. */
const PATIENCE = 5000;

export class NbdClient implements Transport {
  readonly session: NbdSession | undefined;
  /** Sends that the server has made. */
  sends = 0;
  paused = false;
  /** `end` or `destroy`: how the server has ended the connection. */
  ending: 'end' | 'destroy' | undefined;
  /** Take nothing from the server: what it sends stays unsent. */
  stalled = false;
  replies: 'simple' | 'structured' | 'extended' = 'simple';
  #in = Buffer.alloc(0);
  readonly #unsent: (() => void)[] = [];
  #cookie = 0;
  readonly #asked = new Map<number, Asked>();
  readonly answers = new Map<number, Answer>();

  constructor(server: NbdServer) {
    this.session = server.accept(this);
  }

  // ── the server's side of the connection ──────────────────────────────────────────────────────

  send(parts: readonly Uint8Array[], sent: () => void): void {
    this.sends++;
    const take = (): void => {
      // As a socket does: the memory is looked at when its turn has come, not before.
      if (this.ending !== 'destroy') this.#in = Buffer.concat([this.#in, ...parts]);
      sent();
    };
    if (this.stalled) this.#unsent.push(take);
    else setImmediate(take);
  }

  pause(): void {
    this.paused = true;
  }

  resume(): void {
    this.paused = false;
  }

  end(): void {
    this.ending ??= 'end';
    setImmediate(() => this.session?.gone());
  }

  destroy(): void {
    this.ending = 'destroy';
    this.goOn();
    setImmediate(() => this.session?.gone());
  }

  /** Takes again what the server sends. */
  goOn(): void {
    this.stalled = false;
    for (const take of this.#unsent.splice(0)) take();
  }

  /** The connection breaks. */
  async break(): Promise<void> {
    this.goOn();
    this.session?.gone();
    await this.session?.closed;
  }

  // ── bytes ────────────────────────────────────────────────────────────────────────────────────

  /** Sends bytes, in pieces of `piece` bytes. */
  say(bytes: Uint8Array, piece = bytes.length): void {
    for (let at = 0; at < bytes.length; at += piece) this.session?.receive(bytes.slice(at, at + piece));
  }

  /** Bytes that have come and were not taken. */
  get unread(): number {
    return this.#in.length;
  }

  async take(length: number): Promise<Buffer> {
    await until(() => this.#in.length >= length, `${length} bytes from the server; there are ${this.#in.length}`);
    const bytes = this.#in.subarray(0, length);
    this.#in = this.#in.subarray(length);
    return Buffer.from(bytes);
  }

  // ── handshake ────────────────────────────────────────────────────────────────────────────────

  async greet(flags: number = HANDSHAKE_FLAG.fixedNewstyle + HANDSHAKE_FLAG.noZeroes): Promise<number> {
    const greeting = decodeGreeting(await this.take(GREETING_BYTES));
    this.say(encodeClientFlags(flags));
    return greeting;
  }

  /** Replies up to the last one of an option. */
  async option(option: number, data?: Uint8Array, piece?: number): Promise<readonly OptionReply[]> {
    this.say(encodeOption(option, data), piece);
    return await this.optionReplies(option);
  }

  async optionReplies(option: number): Promise<readonly OptionReply[]> {
    const replies: OptionReply[] = [];
    for (;;) {
      const header = decodeOptionReplyHeader(await this.take(OPTION_REPLY_HEADER_BYTES));
      if (header.option !== option) throw new Error(`a reply to option ${header.option} instead of ${option}`);
      replies.push({ type: header.type, data: await this.take(header.length) });
      if (header.type === REPLY.ack || header.type >= 2 ** 31) return replies;
    }
  }

  async info(option: number, name: string, wanted: readonly number[] = []): Promise<readonly ExportInfo[]> {
    const replies = await this.option(option, encodeInfoRequest({ name, wanted }));
    const last = replies.at(-1)?.type ?? 0;
    if (last !== REPLY.ack) throw new Error(`option ${option} is refused with ${last - 2 ** 31}`);
    return replies.slice(0, -1).map(({ data }) => decodeInfo(data));
  }

  async contexts(option: number, name: string, queries: readonly string[]): Promise<ReadonlyMap<string, number>> {
    const replies = await this.option(option, encodeMetaContextRequest({ name, queries }));
    const last = replies.at(-1)?.type ?? 0;
    if (last !== REPLY.ack) throw new Error(`option ${option} is refused with ${last - 2 ** 31}`);
    return new Map(
      replies.slice(0, -1).map(({ data }) => {
        const context = decodeMetaContext(data);
        return [context.name, context.id];
      }),
    );
  }

  /** All of the handshake. @returns size and flags of the export, and the ids of the contexts */
  async enter(
    name: string,
    replies: NbdClient['replies'] = 'structured',
    contexts: readonly string[] = [],
  ): Promise<{ readonly size: number; readonly flags: number; readonly contexts: ReadonlyMap<string, number> }> {
    await this.greet();
    if (replies !== 'simple') {
      await this.option(replies === 'extended' ? OPTION.extendedHeaders : OPTION.structuredReply);
    }
    this.replies = replies;
    const ids = contexts.length === 0 ? new Map() : await this.contexts(OPTION.setMetaContext, name, contexts);
    const told = await this.info(OPTION.go, name, [INFO.blockSize]);
    const found = told.find((info) => info.type === 'export');
    if (found?.type !== 'export') throw new Error('the export was not told of');
    return { size: found.size, flags: found.flags, contexts: ids };
  }

  // ── transmission ─────────────────────────────────────────────────────────────────────────────

  /** The bytes of a request. @returns its cookie, too */
  encode(
    command: number,
    offset: number,
    length: number,
    options: { readonly flags?: number; readonly data?: Uint8Array } = {},
  ): { readonly bytes: Uint8Array; readonly cookie: number } {
    const extended = this.replies === 'extended';
    const cookie = ++this.#cookie;
    const bytes = new Uint8Array(requestBytes(extended) + (options.data?.length ?? 0));
    const flags = (options.flags ?? 0) + (extended && options.data !== undefined ? 32 : 0);
    const request = { flags, command, cookieHigh: 0xabcd_ef01, cookieLow: cookie, offset, length };
    encodeRequest(request, new DataView(bytes.buffer), 0, extended);
    if (options.data !== undefined) bytes.set(options.data, requestBytes(extended));
    this.#asked.set(cookie, { offset, length, isRead: command === 0 });
    return { bytes, cookie };
  }

  async request(
    command: number,
    offset: number,
    length: number,
    options: { readonly flags?: number; readonly data?: Uint8Array; readonly piece?: number } = {},
  ): Promise<Answer> {
    const { bytes, cookie } = this.encode(command, offset, length, options);
    this.say(bytes, options.piece);
    return await this.answer(cookie);
  }

  /** Takes replies until the one to this request is complete. */
  async answer(cookie: number): Promise<Answer> {
    let found = this.#finished(cookie);
    while (found === undefined) {
      await this.#takeReply();
      found = this.#finished(cookie);
    }
    this.answers.delete(cookie);
    return found;
  }

  readonly #done = new Set<number>();

  #finished(cookie: number): Answer | undefined {
    return this.#done.has(cookie) ? this.answers.get(cookie) : undefined;
  }

  async #takeReply(): Promise<void> {
    const first = await this.take(4);
    const bytes = replyHeaderBytes(first.readUInt32BE(0), this.replies !== 'simple', this.replies === 'extended');
    const header = Buffer.concat([first, await this.take(bytes - 4)]);
    const reply = newReply();
    decodeReply(new DataView(header.buffer, header.byteOffset, header.length), 0, reply);
    const asked = this.#asked.get(reply.cookieLow);
    if (asked === undefined || reply.cookieHigh !== 0xabcd_ef01 || this.#done.has(reply.cookieLow)) {
      throw new Error(`a reply to nothing: ${reply.cookieLow}`);
    }
    const answer: Answer = this.answers.get(reply.cookieLow) ?? { result: 'ok', chunks: [], status: new Map() };
    this.answers.set(reply.cookieLow, answer);
    if (reply.kind === 'simple') {
      if (reply.error !== 0) answer.result = errnoOfWire(reply.error);
      else if (asked.isRead) answer.data = await this.take(asked.length);
      this.#done.add(reply.cookieLow);
      return;
    }
    if (this.replies === 'extended' && reply.offset !== asked.offset) throw new Error('another offset than asked for');
    answer.chunks.push(reply.type);
    this.#takeChunk(answer, asked, reply.type, await this.take(reply.length));
    if (reply.flags === 1) this.#done.add(reply.cookieLow);
  }

  #takeChunk(answer: Answer, asked: Asked, type: number, payload: Buffer): void {
    if (asked.isRead && type < CHUNK.error) answer.data ??= new Uint8Array(asked.length).fill(0xee);
    const data = answer.data ?? new Uint8Array(0);
    if (type === CHUNK.offsetData) {
      data.set(payload.subarray(8), Number(payload.readBigUInt64BE(0)) - asked.offset);
    } else if (type === CHUNK.offsetHole) {
      const hole = decodeHole(payload);
      data.fill(0, hole.offset - asked.offset, hole.offset - asked.offset + hole.length);
    } else if (type === CHUNK.blockStatus || type === CHUNK.blockStatusExtended) {
      const { context, extents } = decodeBlockStatus(payload, type === CHUNK.blockStatusExtended);
      answer.status.set(context, extents);
    } else if (type >= CHUNK.error) {
      answer.result = errnoOfWire(decodeErrorChunk(type, payload).error);
    }
  }
}

/** Waits for something that the server does by itself. */
export async function until(condition: () => boolean, what: string): Promise<void> {
  for (let turns = 0; !condition(); turns++) {
    if (turns > PATIENCE) throw new Error(`no sign of ${what}`);
    await turn();
  }
}
