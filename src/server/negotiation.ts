/** The handshake of one client: options, one after the other, until one of them begins the transmission. Spec: NBD protocol, "Fixed newstyle
 *  negotiation". Owns what the two sides have agreed on.
 *  Invariants: an option is answered before the next is looked at; data longer than an option may have is dropped, never kept;
 *  contexts belong to one export, and are gone when another is taken. */
import type { MaybePromise } from '../base/async.ts';
import { isBlockError } from '../base/errors.ts';
import { HANDSHAKE_FLAG, INFO, LIMITS, OPTION, REPLY } from '../nbd/constants.ts';
import { nbdFault } from '../nbd/fault.ts';
import {
  CLIENT_FLAGS_BYTES,
  decodeClientFlags,
  decodeOptionHeader,
  encodeGreeting,
  encodeOptionError,
  encodeOptionReply,
  OPTION_HEADER_BYTES,
  type OptionHeader,
} from '../nbd/handshake.ts';
import {
  decodeInfoRequest,
  decodeMetaContextRequest,
  encodeExportNameReply,
  encodeInfo,
  encodeListed,
  encodeMetaContext,
  type InfoRequest,
  type MetaContextRequest,
} from '../nbd/option-data.ts';
import { type Context, chooseContexts, contextNames, isAsked } from './contexts.ts';
import { type Export, findExport } from './export.ts';
import type { Inbox } from './inbox.ts';
import type { Outbox } from './outbox.ts';

const { fixedNewstyle, noZeroes } = HANDSHAKE_FLAG;

/** What a client has agreed on when the transmission begins. */
export interface Agreement {
  readonly export: Export;
  /** Replies: simple ones, structured ones, or those with 64-bit headers. */
  readonly replies: 'simple' | 'structured' | 'extended';
  readonly contexts: readonly Context[];
}

/** `wait`: bytes are missing. `end`: the client is to be left, when what was said has gone out. */
export type Step = 'next' | 'wait' | 'end' | Agreement;

export class Negotiation {
  readonly #exports: readonly Export[];
  readonly #multiConn: boolean;
  readonly #inbox: Inbox;
  readonly #outbox: Outbox;
  #flags: number | undefined;
  #option: OptionHeader | undefined;
  #data = new Uint8Array(0);
  #filled = 0;
  #skip = 0;
  #replies: Agreement['replies'] = 'simple';
  #contexts: { readonly of: Export; readonly list: readonly Context[] } | undefined;

  constructor(exports: readonly Export[], multiConn: boolean, inbox: Inbox, outbox: Outbox) {
    this.#exports = exports;
    this.#multiConn = multiConn;
    this.#inbox = inbox;
    this.#outbox = outbox;
  }

  greet(): void {
    this.#outbox.push(encodeGreeting(fixedNewstyle | noZeroes));
  }

  /** Takes one message, when it is there.
   *  @throws {@link BlockError} PROTOCOL where the conversation makes no sense any more. */
  step(): MaybePromise<Step> {
    if (this.#flags === undefined) return this.#clientFlags();
    if (this.#option === undefined) {
      if (!this.#inbox.header(OPTION_HEADER_BYTES)) return 'wait';
      this.#begin(decodeOptionHeader(this.#headerBytes(OPTION_HEADER_BYTES)));
    }
    const { option } = this.#option as OptionHeader;
    if (this.#skip > 0) {
      this.#skip -= this.#inbox.skip(this.#skip);
      if (this.#skip > 0) return 'wait';
      this.#option = undefined;
      return this.#refuse(option, 'tooBig', `an option has ${LIMITS.optionData} bytes of data at most`);
    }
    this.#filled += this.#inbox.drain(this.#data.subarray(this.#filled));
    if (this.#filled < this.#data.length) return 'wait';
    this.#option = undefined;
    return this.#answerOrRefuse(option, this.#data);
  }

  #headerBytes(length: number): Uint8Array {
    const { view, viewAt } = this.#inbox;
    return new Uint8Array(view.buffer, view.byteOffset + viewAt, length);
  }

  #clientFlags(): Step {
    if (!this.#inbox.header(CLIENT_FLAGS_BYTES)) return 'wait';
    const flags = decodeClientFlags(this.#headerBytes(CLIENT_FLAGS_BYTES));
    if ((flags & ~(fixedNewstyle | noZeroes)) !== 0) {
      throw nbdFault('client-flags', `the client has unknown flags 0x${flags.toString(16)}`, { flags });
    }
    this.#flags = flags;
    return 'next';
  }

  #begin(header: OptionHeader): void {
    const { option, length } = header;
    if (length > LIMITS.payload || (length > LIMITS.optionData && option === OPTION.exportName)) {
      throw nbdFault('option-length', `an option announces ${length} bytes`, { option, length });
    }
    if (option !== OPTION.exportName && ((this.#flags as number) & fixedNewstyle) === 0) {
      throw nbdFault('option-newstyle', 'the client sends options that it has said it does not know', { option });
    }
    this.#option = header;
    this.#skip = length > LIMITS.optionData ? length : 0;
    this.#data = new Uint8Array(this.#skip > 0 ? 0 : length);
    this.#filled = 0;
  }

  async #answerLater(option: number, answer: Promise<Step>): Promise<Step> {
    try {
      return await answer;
    } catch (error) {
      return this.#failed(option, error);
    }
  }

  #answerOrRefuse(option: number, data: Uint8Array): MaybePromise<Step> {
    try {
      const step = this.#answer(option, data);
      return step instanceof Promise ? this.#answerLater(option, step) : step;
    } catch (error) {
      return this.#failed(option, error);
    }
  }

  /** Data that cannot be understood costs the client its option, not its connection. */
  #failed(option: number, error: unknown): Step {
    if (option === OPTION.exportName || !isBlockError(error) || error.code === 'INTERNAL') throw error;
    this.#refuse(option, error.code === 'PROTOCOL' ? 'invalid' : 'platform', error.message);
    return 'next';
  }

  #refuse(option: number, type: keyof typeof REPLY, message: string): Step {
    this.#outbox.push(encodeOptionError(option, REPLY[type], message));
    return 'next';
  }

  #acknowledge(option: number): Step {
    this.#outbox.push(encodeOptionReply(option, REPLY.ack));
    return 'next';
  }

  #answer(option: number, data: Uint8Array): MaybePromise<Step> {
    switch (option) {
      case OPTION.exportName:
        return this.#exportName(data);
      case OPTION.abort:
        this.#acknowledge(option);
        return 'end';
      case OPTION.info:
      case OPTION.go:
        return this.#info(option, decodeInfoRequest(data));
      case OPTION.listMetaContext:
      case OPTION.setMetaContext:
        return this.#metaContexts(option, decodeMetaContextRequest(data));
      case OPTION.list:
      case OPTION.structuredReply:
      case OPTION.extendedHeaders:
        if (data.length > 0) return this.#refuse(option, 'invalid', 'the option has no data');
        return option === OPTION.list ? this.#list() : this.#agreeOn(option);
      case OPTION.startTls:
        return this.#refuse(option, 'unsupported', 'this server has no TLS');
      default:
        return this.#refuse(option, 'unsupported', `option ${option} is not known here`);
    }
  }

  #exportName(data: Uint8Array): Step {
    const name = new TextDecoder().decode(data);
    const found = findExport(this.#exports, name);
    // There is no way to say no but to go.
    if (found === undefined) throw nbdFault('unknown-export', `there is no export "${name}"`, { name });
    const zeroes = ((this.#flags as number) & noZeroes) === 0;
    this.#outbox.push(encodeExportNameReply(found.size, this.#exportFlags(found), zeroes));
    return this.#agreement(found);
  }

  #exportFlags(of: Export): number {
    return of.flags(this.#replies !== 'simple', this.#multiConn);
  }

  #agreement(of: Export): Agreement {
    return { export: of, replies: this.#replies, contexts: this.#contexts?.of === of ? this.#contexts.list : [] };
  }

  #list(): Step {
    for (const { name, description } of this.#exports) {
      this.#outbox.push(
        encodeOptionReply(OPTION.list, REPLY.server, encodeListed({ name, details: description ?? '' })),
      );
    }
    return this.#acknowledge(OPTION.list);
  }

  #agreeOn(option: number): Step {
    const isExtended = option === OPTION.extendedHeaders;
    if (this.#replies === 'extended' && !isExtended) {
      return this.#refuse(option, 'extendedHeadersRequired', 'extended headers are agreed on already');
    }
    if (this.#replies === (isExtended ? 'extended' : 'structured')) {
      return this.#refuse(option, 'invalid', 'that is agreed on already');
    }
    this.#replies = isExtended ? 'extended' : 'structured';
    return this.#acknowledge(option);
  }

  #unknownExport(option: number, name: string): Step {
    return this.#refuse(option, 'unknown', `there is no export "${name}"`);
  }

  #info(option: number, { name, wanted }: InfoRequest): Step {
    const found = findExport(this.#exports, name);
    if (found === undefined) return this.#unknownExport(option, name);
    if (found.minimumBlock > 1 && !wanted.includes(INFO.blockSize)) {
      const message = `requests are multiples of ${found.minimumBlock} bytes: ask for the block sizes`;
      return this.#refuse(option, 'blockSizeRequired', message);
    }
    const tell = (info: Parameters<typeof encodeInfo>[0]): void =>
      this.#outbox.push(encodeOptionReply(option, REPLY.info, encodeInfo(info)));
    tell({ type: 'export', size: found.size, flags: this.#exportFlags(found) });
    if (wanted.includes(INFO.name)) tell({ type: 'name', text: found.name });
    if (wanted.includes(INFO.description) && found.description !== undefined) {
      tell({ type: 'description', text: found.description });
    }
    if (wanted.includes(INFO.blockSize)) {
      const minimum = found.minimumBlock;
      tell({ type: 'block-size', minimum, preferred: Math.max(minimum, 4096), maximum: LIMITS.payload });
    }
    this.#acknowledge(option);
    return option === OPTION.go ? this.#agreement(found) : 'next';
  }

  async #metaContexts(option: number, { name, queries }: MetaContextRequest): Promise<Step> {
    const isSet = option === OPTION.setMetaContext;
    if (isSet) this.#contexts = undefined;
    if (this.#replies === 'simple') return this.#refuse(option, 'invalid', 'agree on structured replies first');
    const found = findExport(this.#exports, name);
    if (found === undefined) return this.#unknownExport(option, name);
    const tell = (id: number, context: string): void =>
      this.#outbox.push(encodeOptionReply(option, REPLY.metaContext, encodeMetaContext({ id, name: context })));
    if (isSet) {
      const list = await chooseContexts(found, queries);
      this.#contexts = { of: found, list };
      for (const context of list) tell(context.id, context.name);
    } else {
      for (const context of await contextNames(found)) {
        if (queries.length === 0 || queries.some((query) => isAsked(query, context))) tell(0, context);
      }
    }
    return this.#acknowledge(option);
  }
}
