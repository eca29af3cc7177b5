import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { isBlockError } from '../../src/base/errors.ts';
import { CHUNK, COMMAND, isErrorChunk, LIMITS, WIRE_ERROR } from '../../src/nbd/constants.ts';
import {
  CHUNK_BYTES,
  decodeBlockStatus,
  decodeErrorChunk,
  decodeHole,
  decodeReply,
  EXTENDED_CHUNK_BYTES,
  encodeBlockStatus,
  encodeChunk,
  encodeErrorChunk,
  encodeHole,
  encodeSimpleReply,
  errnoOfWire,
  HOLE_BYTES,
  LARGEST_REPLY_HEADER,
  newReply,
  replyHeaderBytes,
  SIMPLE_REPLY_BYTES,
  wireError,
} from '../../src/nbd/replies.ts';
import { decodeRequest, encodeRequest, newRequest, requestBytes } from '../../src/nbd/requests.ts';

const SEEDED = { seed: 20_062, numRuns: 300 };
const u16 = fc.nat(0xffff);
const u32 = fc.nat(0xffff_ffff);

function reasonOf(call: () => unknown): string | undefined {
  try {
    call();
  } catch (error) {
    if (!isBlockError(error)) throw error;
    expect(error.code).toBe('PROTOCOL');
    return error.reason;
  }
  return undefined;
}

function hex(view: DataView, length: number): string {
  return Buffer.from(view.buffer, 0, length).toString('hex');
}

describe('requests', () => {
  it('have the bytes of the specification', () => {
    const view = new DataView(new ArrayBuffer(32));
    const request = {
      flags: 1,
      command: COMMAND.write,
      cookieHigh: 0x01020304,
      cookieLow: 0x05060708,
      offset: 2 ** 33 + 512,
      length: 4096,
    };
    expect(encodeRequest(request, view, 0, false)).toBe(28);
    expect(hex(view, 28)).toBe('25609513000100010102030405060708000000020000020000001000');
    expect(encodeRequest(request, view, 0, true)).toBe(32);
    expect(hex(view, 32)).toBe('21e41c710001000101020304050607080000000200000200000000000000' + '1000');
  });

  it('come back as they were, wherever they lie', () => {
    const fields = fc.record({ flags: u16, command: u16, cookieHigh: u32, cookieLow: u32, offset: fc.maxSafeNat() });
    const property = fc.property(fields, u32, fc.maxSafeNat(), fc.nat(9), (some, short, long, at) => {
      const view = new DataView(new ArrayBuffer(48));
      const into = newRequest();
      for (const [length, extended] of [
        [short, false],
        [long, true],
      ] as const) {
        expect(encodeRequest({ ...some, length }, view, at, extended)).toBe(requestBytes(extended));
        decodeRequest(view, at, extended, into);
        expect(into).toEqual({ ...some, length });
      }
    });
    fc.assert(property, SEEDED);
  });

  it('that begin as others, or as those of the other kind, end the conversation', () => {
    const view = new DataView(new ArrayBuffer(32));
    for (const extended of [false, true]) {
      encodeRequest(newRequest(), view, 0, extended);
      expect(reasonOf(() => decodeRequest(view, 0, !extended, newRequest()))).toBe('nbd.request-magic');
      view.setUint32(0, 0);
      expect(reasonOf(() => decodeRequest(view, 0, extended, newRequest()))).toBe('nbd.request-magic');
    }
  });

  it('with offsets and lengths that no number holds reach past every export', () => {
    const view = new DataView(new ArrayBuffer(32));
    encodeRequest(newRequest(), view, 0, true);
    view.setBigUint64(16, 2n ** 53n);
    view.setBigUint64(24, 2n ** 64n - 1n);
    const request = newRequest();
    decodeRequest(view, 0, true, request);
    expect([request.offset, request.length]).toEqual([Number.POSITIVE_INFINITY, Number.POSITIVE_INFINITY]);
  });
});

describe('replies', () => {
  it('come back as they were', () => {
    const property = fc.property(
      u32,
      u32,
      u32,
      u16,
      u16,
      fc.nat(LIMITS.payload),
      (a, b, error, flags, type, length) => {
        const view = new DataView(new ArrayBuffer(LARGEST_REPLY_HEADER + 1));
        const reply = newReply();
        expect(encodeSimpleReply(view, 1, error, a, b)).toBe(SIMPLE_REPLY_BYTES);
        expect(replyHeaderBytes(view.getUint32(1), false, false)).toBe(SIMPLE_REPLY_BYTES);
        expect(replyHeaderBytes(view.getUint32(1), true, false)).toBe(SIMPLE_REPLY_BYTES);
        decodeReply(view, 1, reply);
        expect(reply).toEqual({ ...newReply(), error, cookieHigh: a, cookieLow: b });
        const chunk = { flags, type, cookieHigh: a, cookieLow: b, offset: 0, length };
        expect(encodeChunk(chunk, view, 1, false)).toBe(CHUNK_BYTES);
        expect(replyHeaderBytes(view.getUint32(1), true, false)).toBe(CHUNK_BYTES);
        decodeReply(view, 1, reply);
        expect(reply).toEqual({ ...chunk, kind: 'chunk', error: 0 });
        const extended = { ...chunk, offset: 2 ** 52 + length };
        expect(encodeChunk(extended, view, 1, true)).toBe(EXTENDED_CHUNK_BYTES);
        expect(replyHeaderBytes(view.getUint32(1), true, true)).toBe(EXTENDED_CHUNK_BYTES);
        decodeReply(view, 1, reply);
        expect(reply).toEqual({ ...extended, kind: 'chunk', error: 0 });
      },
    );
    fc.assert(property, SEEDED);
  });

  it('of a kind that was not agreed on are refused', () => {
    const view = new DataView(new ArrayBuffer(LARGEST_REPLY_HEADER));
    const refused = (structured: boolean, extended: boolean): string | undefined =>
      reasonOf(() => replyHeaderBytes(view.getUint32(0), structured, extended));
    encodeSimpleReply(view, 0, 0, 0, 0);
    expect(refused(true, true)).toBe('nbd.reply-magic');
    encodeChunk(newReply(), view, 0, false);
    expect([refused(false, false), refused(true, true)]).toEqual(['nbd.reply-magic', 'nbd.reply-magic']);
    encodeChunk(newReply(), view, 0, true);
    expect([refused(false, false), refused(true, false)]).toEqual(['nbd.reply-magic', 'nbd.reply-magic']);
    view.setUint32(0, 0x12345678);
    expect([refused(false, false), refused(true, false), refused(true, true)]).toEqual(
      Array.from({ length: 3 }, () => 'nbd.reply-magic'),
    );
  });

  it('longer than anything that was asked for are refused before a buffer is made for them', () => {
    const view = new DataView(new ArrayBuffer(LARGEST_REPLY_HEADER));
    const most = LIMITS.payload + LIMITS.optionData;
    for (const [extended, length] of [
      [false, most + 1],
      [false, 0xffff_ffff],
      [true, most + 1],
      [true, 2 ** 52],
    ] as const) {
      encodeChunk({ ...newReply(), length }, view, 0, extended);
      expect(reasonOf(() => decodeReply(view, 0, newReply()))).toBe('nbd.chunk-length');
    }
    view.setBigUint64(24, 2n ** 64n - 1n);
    expect(reasonOf(() => decodeReply(view, 0, newReply()))).toBe('nbd.chunk-length');
  });
});

describe('what chunks carry', () => {
  it('comes back as it was', () => {
    const flags = fc.nat(0xffff_ffff);
    const extent = fc.record({ length: fc.integer({ min: 1, max: 0xffff_ffff }), flags });
    const property = fc.property(
      fc.maxSafeNat(),
      u32,
      fc.array(extent, { minLength: 1, maxLength: 30 }),
      fc.boolean(),
      fc.string({ unit: 'grapheme', maxLength: 100 }),
      (offset, word, extents, extended, message) => {
        const hole = new Uint8Array(HOLE_BYTES);
        expect(encodeHole(new DataView(hole.buffer), 0, offset, word)).toBe(HOLE_BYTES);
        expect(decodeHole(hole)).toEqual({ offset, length: word });
        const status = decodeBlockStatus(encodeBlockStatus(word, extents, extended), extended);
        expect(status).toEqual({ context: word, extents });
        expect(decodeErrorChunk(CHUNK.error, encodeErrorChunk(5, message))).toEqual({
          error: 5,
          message,
          offset: undefined,
        });
        expect(decodeErrorChunk(CHUNK.errorOffset, encodeErrorChunk(5, message, offset))).toEqual({
          error: 5,
          message,
          offset,
        });
      },
    );
    fc.assert(property, SEEDED);
    const long = [{ length: 2 ** 45, flags: 2 ** 40 }];
    expect(decodeBlockStatus(encodeBlockStatus(1, long, true), true).extents).toEqual(long);
    expect([CHUNK.none, CHUNK.blockStatusExtended].some(isErrorChunk)).toBe(false);
    expect([CHUNK.error, CHUNK.errorOffset, 0xffff].every(isErrorChunk)).toBe(true);
  });

  it('is refused when it is cut, and the words of an error are cut between characters', () => {
    const error = encodeErrorChunk(5, 'ab', 7);
    for (let length = 0; length < error.length; length++) {
      expect(reasonOf(() => decodeErrorChunk(CHUNK.errorOffset, error.subarray(0, length)))).toBe('nbd.error-chunk');
    }
    expect(reasonOf(() => decodeErrorChunk(CHUNK.error, encodeErrorChunk(0, 'no error')))).toBe('nbd.error-chunk');
    const { message } = decodeErrorChunk(CHUNK.error, encodeErrorChunk(5, 'ö'.repeat(5000)));
    expect(message).toBe('ö'.repeat(LIMITS.text / 2));
    for (const length of [0, 11, 13]) expect(reasonOf(() => decodeHole(new Uint8Array(length)))).toBe('nbd.hole');
  });

  it('has extents, none of them empty or endless, as many as announced', () => {
    for (const extended of [false, true]) {
      const status = encodeBlockStatus(1, [{ length: 512, flags: 1 }], extended);
      for (let length = 0; length < status.length; length++) {
        expect(reasonOf(() => decodeBlockStatus(status.subarray(0, length), extended))).toBe('nbd.block-status');
      }
      const empty = encodeBlockStatus(1, [{ length: 0, flags: 1 }], extended);
      expect(reasonOf(() => decodeBlockStatus(empty, extended))).toBe('nbd.block-status');
    }
    const lie = encodeBlockStatus(1, [{ length: 512, flags: 1 }], true);
    new DataView(lie.buffer).setUint32(4, 2);
    expect(reasonOf(() => decodeBlockStatus(lie, true))).toBe('nbd.block-status');
    const endless = encodeBlockStatus(1, [{ length: 512, flags: 1 }], true);
    new DataView(endless.buffer).setBigUint64(8, 2n ** 60n);
    expect(reasonOf(() => decodeBlockStatus(endless, true))).toBe('nbd.block-status');
  });

  it('is a value or a typed error, whatever comes', () => {
    const property = fc.property(
      fc.uint8Array({ maxLength: 80 }),
      fc.constantFrom(...Object.values(CHUNK)),
      (bytes, type) => {
        reasonOf(() => decodeHole(bytes));
        reasonOf(() => decodeErrorChunk(type, bytes));
        reasonOf(() => decodeBlockStatus(bytes, false));
        reasonOf(() => decodeBlockStatus(bytes, true));
        const header = new DataView(new ArrayBuffer(LARGEST_REPLY_HEADER));
        new Uint8Array(header.buffer).set(bytes.subarray(0, LARGEST_REPLY_HEADER));
        reasonOf(() => decodeReply(header, 0, newReply()));
        reasonOf(() => decodeRequest(header, 0, true, newRequest()));
      },
    );
    fc.assert(property, { seed: 8, numRuns: 1000 });
  });
});

describe('errors on the wire', () => {
  it('are those of the specification, the nearest one, or EINVAL', () => {
    for (const [name, number] of Object.entries(WIRE_ERROR)) {
      expect(wireError(name)).toBe(number);
      expect(errnoOfWire(number)).toBe(name);
    }
    expect(['EROFS', 'EFBIG', 'EDQUOT', 'EOPNOTSUPP', 'EBADF', 'constructor'].map(wireError)).toEqual([
      WIRE_ERROR.EPERM,
      WIRE_ERROR.ENOSPC,
      WIRE_ERROR.ENOSPC,
      WIRE_ERROR.ENOTSUP,
      WIRE_ERROR.EINVAL,
      WIRE_ERROR.EINVAL,
    ]);
    expect(errnoOfWire(12_345)).toBe('EINVAL');
  });
});
