/** Reads of one client. Spec: NBD protocol, "Structured reply types": data and holes.
 *  Owns how a read becomes a reply: simple, one chunk of data, or, for long reads whose client takes chunks, data and holes as the image has them.
 *  Invariants: image data goes straight to its place in the reply; a reply stands in one piece of memory, and goes out when all of it is there. */
import { type Pending, settleAll } from '../base/async.ts';
import { setU64 } from '../bytes/ints.ts';
import { EXTENT, ExtentList } from '../core/extent.ts';
import { CHUNK, CHUNK_FLAG_DONE, COMMAND_FLAG } from '../nbd/constants.ts';
import {
  CHUNK_BYTES,
  EXTENDED_CHUNK_BYTES,
  encodeChunk,
  encodeHole,
  encodeSimpleReply,
  HOLE_BYTES,
  newReply,
  OFFSET_BYTES,
  SIMPLE_REPLY_BYTES,
} from '../nbd/replies.ts';
import type { Request } from '../nbd/requests.ts';
import type { Agreement } from './negotiation.ts';
import type { Outbox } from './outbox.ts';

/** Bytes: for shorter reads it costs more to look for holes than to send them. */
const LOOKS_FOR_HOLES = 64 * 1024;
/** Shorter holes are sent as data. */
const SHORTEST_HOLE = 4096;
const MOST_EXTENTS = 256;

type Read = Pick<Request, 'cookieHigh' | 'cookieLow' | 'offset' | 'length'>;

interface Segment {
  readonly isHole: boolean;
  length: number;
}

export class ReadReplies {
  readonly #agreement: Agreement;
  readonly #outbox: Outbox;
  readonly #extended: boolean;
  readonly #chunkBytes: number;
  readonly #reply = newReply();
  #waiting = 0;

  constructor(agreement: Agreement, outbox: Outbox) {
    this.#agreement = agreement;
    this.#outbox = outbox;
    this.#extended = agreement.replies === 'extended';
    this.#chunkBytes = this.#extended ? EXTENDED_CHUNK_BYTES : CHUNK_BYTES;
  }

  /** Bytes of reads that have no room in the outbox yet. */
  get waiting(): number {
    return this.#waiting;
  }

  /** Reads, and makes the reply. Errors are the image's; nothing is replied then. */
  read(request: Request): Pending {
    const { flags, length } = request;
    if (this.#agreement.replies === 'simple') return this.#simple(request);
    if (length === 0) return this.#nothing(request);
    if (length < LOOKS_FOR_HOLES || (flags & COMMAND_FLAG.df) !== 0) return this.#whole(request);
    const { cookieHigh, cookieLow, offset } = request;
    const read: Read = { cookieHigh, cookieLow, offset, length };
    const extents = new ExtentList(MOST_EXTENTS);
    extents.reset(offset);
    const pending = this.#agreement.export.node.extents(offset, length, extents);
    if (pending === undefined) return this.#inSegments(read, segmentsOf(extents, length));
    this.#waiting += length;
    return pending.then(
      () => {
        this.#waiting -= length;
        return this.#inSegments(read, segmentsOf(extents, length));
      },
      (error: unknown) => {
        this.#waiting -= length;
        throw error;
      },
    );
  }

  #simple({ cookieHigh, cookieLow, offset, length }: Read): Pending {
    const outbox = this.#outbox;
    outbox.claim(SIMPLE_REPLY_BYTES + length);
    encodeSimpleReply(outbox.view, outbox.at, 0, cookieHigh, cookieLow);
    return this.#fill(SIMPLE_REPLY_BYTES, offset, length);
  }

  #nothing(read: Read): Pending {
    this.#outbox.claim(this.#chunkBytes);
    this.#chunk(read, this.#outbox.at, CHUNK.none, CHUNK_FLAG_DONE, 0);
    this.#outbox.commit(this.#chunkBytes);
    return undefined;
  }

  #whole(read: Read): Pending {
    const { offset, length } = read;
    const outbox = this.#outbox;
    const header = this.#chunkBytes + OFFSET_BYTES;
    outbox.claim(header + length);
    this.#chunk(read, outbox.at, CHUNK.offsetData, CHUNK_FLAG_DONE, OFFSET_BYTES + length);
    setU64(outbox.view, outbox.at + this.#chunkBytes, offset);
    return this.#fill(header, offset, length);
  }

  /** Reads to behind the header that was made where room was claimed. */
  #fill(header: number, offset: number, length: number): Pending {
    const outbox = this.#outbox;
    const start = outbox.at + header;
    const pending =
      length === 0 ? undefined : this.#agreement.export.node.read(offset, outbox.bytes.subarray(start, start + length));
    return this.#whenRead(pending, header + length);
  }

  #whenRead(pending: Pending, length: number): Pending {
    const outbox = this.#outbox;
    if (pending === undefined) {
      outbox.commit(length);
      return undefined;
    }
    const apart = outbox.setApart(length);
    return pending.then(
      () => outbox.complete(apart),
      (error: unknown) => {
        outbox.giveUp(apart);
        throw error;
      },
    );
  }

  #inSegments(read: Read, segments: readonly Segment[]): Pending {
    if (segments.length === 1 && segments[0]?.isHole === false) return this.#whole(read);
    const outbox = this.#outbox;
    const bytesOf = ({ isHole, length }: Segment): number =>
      this.#chunkBytes + (isHole ? HOLE_BYTES : OFFSET_BYTES + length);
    const total = segments.reduce((sum, segment) => sum + bytesOf(segment), 0);
    outbox.claim(total);
    const pendings: Pending[] = [];
    let { at } = outbox;
    let { offset } = read;
    segments.forEach((segment, index) => {
      const flags = index === segments.length - 1 ? CHUNK_FLAG_DONE : 0;
      const type = segment.isHole ? CHUNK.offsetHole : CHUNK.offsetData;
      const bytes = bytesOf(segment);
      this.#chunk(read, at, type, flags, bytes - this.#chunkBytes);
      if (segment.isHole) {
        encodeHole(outbox.view, at + this.#chunkBytes, offset, segment.length);
      } else {
        setU64(outbox.view, at + this.#chunkBytes, offset);
        pendings.push(this.#readPart(offset, outbox.bytes.subarray(at + bytes - segment.length, at + bytes)));
      }
      at += bytes;
      offset += segment.length;
    });
    const isDone = pendings.every((pending) => pending === undefined);
    return this.#whenRead(isDone ? undefined : settleAll(pendings), total);
  }

  /** What fails at once must wait for what runs already. */
  #readPart(offset: number, into: Uint8Array): Pending {
    try {
      return this.#agreement.export.node.read(offset, into);
    } catch (error) {
      return Promise.reject(error);
    }
  }

  #chunk(read: Read, at: number, type: number, flags: number, length: number): void {
    const reply = this.#reply;
    reply.cookieHigh = read.cookieHigh;
    reply.cookieLow = read.cookieLow;
    // Of the whole request, in every chunk.
    reply.offset = read.offset;
    reply.type = type;
    reply.flags = flags;
    reply.length = length;
    encodeChunk(reply, this.#outbox.view, at, this.#extended);
  }
}

/** Holes, and data between them; what the list does not tell is data. */
function segmentsOf(extents: ExtentList, length: number): readonly Segment[] {
  const segments: Segment[] = [];
  const add = (isHole: boolean, some: number): void => {
    const last = segments.at(-1);
    if (last?.isHole === isHole) last.length += some;
    else if (some > 0) segments.push({ isHole, length: some });
  };
  let told = 0;
  for (let i = 0; i < extents.count && told < length; i++) {
    const some = Math.min(extents.lengthAt(i), length - told);
    const isZero = Math.floor(extents.flagsAt(i) / EXTENT.zero) % 2 === 1;
    add(isZero && some >= SHORTEST_HOLE, some);
    told += some;
  }
  add(false, length - told);
  return segments;
}
