import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { type BlockError, isBlockError } from '../../src/base/errors.ts';
import { INFO, isErrorReply, LIMITS, OPTION, REPLY } from '../../src/nbd/constants.ts';
import {
  decodeClientFlags,
  decodeGreeting,
  decodeOptionHeader,
  decodeOptionReplyHeader,
  encodeClientFlags,
  encodeGreeting,
  encodeOption,
  encodeOptionError,
  encodeOptionReply,
  OPTION_HEADER_BYTES,
  OPTION_REPLY_HEADER_BYTES,
} from '../../src/nbd/handshake.ts';
import {
  decodeErrorText,
  decodeInfo,
  decodeInfoRequest,
  decodeListed,
  decodeMetaContext,
  decodeMetaContextRequest,
  encodeExportNameReply,
  encodeInfo,
  encodeInfoRequest,
  encodeListed,
  encodeMetaContext,
  encodeMetaContextRequest,
  REPLY_WORDS,
} from '../../src/nbd/option-data.ts';

/** Numbers to repeat a failure with stand in fast-check's message. */
const SEEDED = { seed: 20_061, numRuns: 300 };

const name = fc.string({ unit: 'grapheme', maxLength: 200 });
const u16 = fc.nat(0xffff);
const u32 = fc.nat(0xffff_ffff);

/** The reason of the PROTOCOL error that a call throws. */
function reasonOf(call: () => unknown): string | undefined {
  try {
    call();
  } catch (error) {
    if (!isBlockError(error)) throw error;
    expect(error.code).toBe('PROTOCOL');
    return (error as BlockError).reason;
  }
  return undefined;
}

/** Every beginning of a message is refused as too short. */
function expectCutsRefused(message: Uint8Array, decode: (bytes: Uint8Array) => unknown): void {
  for (let length = 0; length < message.length; length++) {
    expect(reasonOf(() => decode(message.subarray(0, length)))).toBe('nbd.short');
  }
}

function patched(bytes: Uint8Array, at: number, value: number): Uint8Array {
  const copy = bytes.slice();
  new DataView(copy.buffer).setUint32(at, value);
  return copy;
}

describe('the greeting', () => {
  it('has the bytes of the specification', () => {
    expect(Buffer.from(encodeGreeting(3)).toString('latin1')).toBe('NBDMAGICIHAVEOPT\0\x03');
    expect(decodeGreeting(encodeGreeting(3))).toBe(3);
    expect(decodeClientFlags(encodeClientFlags(0xffff_fffe))).toBe(0xffff_fffe);
  });

  it('of another protocol, of the old handshake and half of one are told apart', () => {
    const other = encodeGreeting(3);
    other[0] = 0;
    expect(reasonOf(() => decodeGreeting(other))).toBe('nbd.greeting');
    const old = encodeGreeting(3);
    old[8] = 0;
    expect(reasonOf(() => decodeGreeting(old))).toBe('nbd.oldstyle');
    expectCutsRefused(encodeGreeting(3), decodeGreeting);
    expectCutsRefused(encodeClientFlags(3), decodeClientFlags);
  });
});

describe('options and their replies', () => {
  it('say what follows, from within a larger buffer too', () => {
    const data = new Uint8Array([1, 2, 3]);
    const option = encodeOption(OPTION.go, data);
    expect(decodeOptionHeader(option)).toEqual({ option: OPTION.go, length: 3 });
    expect(option.subarray(OPTION_HEADER_BYTES)).toEqual(data);
    const reply = encodeOptionReply(OPTION.go, REPLY.info, data);
    const inside = new Uint8Array(reply.length + 3);
    inside.set(reply, 3);
    expect(decodeOptionReplyHeader(inside.subarray(3))).toEqual({ option: OPTION.go, type: REPLY.info, length: 3 });
    expect(decodeOptionHeader(encodeOption(OPTION.list)).length).toBe(0);
    expect([REPLY.ack, REPLY.metaContext].some(isErrorReply)).toBe(false);
    expect([REPLY.unsupported, REPLY.extendedHeadersRequired].every(isErrorReply)).toBe(true);
  });

  it('that do not begin as such, or are cut, are refused', () => {
    const option = encodeOption(OPTION.go);
    expectCutsRefused(option, decodeOptionHeader);
    expect(reasonOf(() => decodeOptionHeader(patched(option, 0, 1)))).toBe('nbd.option-magic');
    const reply = encodeOptionReply(OPTION.go, REPLY.ack);
    expectCutsRefused(reply, decodeOptionReplyHeader);
    expect(reasonOf(() => decodeOptionReplyHeader(patched(reply, 4, 1)))).toBe('nbd.reply-magic');
  });

  it('may be of any length where a server skips them, and of a bounded one where a client would keep them', () => {
    expect(decodeOptionHeader(patched(encodeOption(OPTION.go), 12, 0xffff_ffff)).length).toBe(0xffff_ffff);
    const reply = encodeOptionReply(OPTION.go, REPLY.ack);
    expect(decodeOptionReplyHeader(patched(reply, 16, LIMITS.optionData)).length).toBe(LIMITS.optionData);
    expect(reasonOf(() => decodeOptionReplyHeader(patched(reply, 16, LIMITS.optionData + 1)))).toBe('nbd.reply-length');
  });

  it('carry words with errors, cut between characters where there are too many', () => {
    const reply = encodeOptionError(OPTION.go, REPLY.unknown, `n${'ö'.repeat(3000)}`);
    const { length } = decodeOptionReplyHeader(reply);
    expect(length).toBe(LIMITS.text - 1);
    const text = decodeErrorText(reply.subarray(OPTION_REPLY_HEADER_BYTES));
    expect(text).toBe(`n${'ö'.repeat(3000)}`.slice(0, text.length));
    expect(Object.keys(REPLY_WORDS).map(Number)).toEqual(Object.values(REPLY).filter((type) => isErrorReply(type)));
  });
});

describe('what options carry', () => {
  it('comes back as it was', () => {
    const property = fc.property(
      name,
      fc.array(u16, { maxLength: 20 }),
      fc.array(name, { maxLength: 20 }),
      u32,
      (text, wanted, queries, id) => {
        expect(decodeInfoRequest(encodeInfoRequest({ name: text, wanted }))).toEqual({ name: text, wanted });
        const request = { name: text, queries };
        expect(decodeMetaContextRequest(encodeMetaContextRequest(request))).toEqual(request);
        expect(decodeMetaContext(encodeMetaContext({ id, name: text }))).toEqual({ id, name: text });
        const listed = { name: text, details: queries[0] ?? '' };
        expect(decodeListed(encodeListed(listed))).toEqual(listed);
      },
    );
    fc.assert(property, SEEDED);
  });

  it('tells about exports', () => {
    const property = fc.property(fc.maxSafeNat(), u16, name, (size, flags, text) => {
      for (const info of [
        { type: 'export', size, flags } as const,
        { type: 'name', text } as const,
        { type: 'description', text } as const,
        { type: 'block-size', minimum: 512, preferred: 4096, maximum: 32 * 2 ** 20 } as const,
      ]) {
        expect(decodeInfo(encodeInfo(info))).toEqual(info);
      }
    });
    fc.assert(property, SEEDED);
    expect(decodeInfo(new Uint8Array([0x12, 0x34, 5]))).toEqual({ type: 'unknown', kind: 0x1234 });
  });

  it('answers NBD_OPT_EXPORT_NAME with the zeros that old clients wait for, or without', () => {
    const bytes = encodeExportNameReply(2 ** 40 + 5, 0x8d, false);
    expect(Buffer.from(bytes).toString('hex')).toBe('0000010000000005008d');
    const padded = encodeExportNameReply(2 ** 40 + 5, 0x8d, true);
    expect(padded.length).toBe(134);
    expect(padded.subarray(0, 10)).toEqual(bytes);
    expect(padded.subarray(10).every((byte) => byte === 0)).toBe(true);
  });

  it('is refused when it is cut anywhere', () => {
    expectCutsRefused(encodeInfoRequest({ name: 'disk', wanted: [1, 3] }), decodeInfoRequest);
    expectCutsRefused(encodeMetaContextRequest({ name: 'disk', queries: ['a:b', 'c:'] }), decodeMetaContextRequest);
    expectCutsRefused(encodeInfo({ type: 'export', size: 1, flags: 1 }), decodeInfo);
    expectCutsRefused(encodeInfo({ type: 'block-size', minimum: 1, preferred: 1, maximum: 1 }), decodeInfo);
    expectCutsRefused(encodeListed({ name: 'disk', details: '' }), decodeListed);
    expectCutsRefused(encodeMetaContext({ id: 1, name: '' }), decodeMetaContext);
  });

  it('is refused when it is longer than it says', () => {
    const longer = (bytes: Uint8Array): Uint8Array => new Uint8Array([...bytes, 0]);
    expect(reasonOf(() => decodeInfoRequest(longer(encodeInfoRequest({ name: '', wanted: [1] }))))).toBe('nbd.long');
    const request = longer(encodeMetaContextRequest({ name: '', queries: ['x'] }));
    expect(reasonOf(() => decodeMetaContextRequest(request))).toBe('nbd.long');
    expect(reasonOf(() => decodeInfo(longer(encodeInfo({ type: 'export', size: 1, flags: 1 }))))).toBe('nbd.long');
    const sizes = longer(encodeInfo({ type: 'block-size', minimum: 1, preferred: 1, maximum: 1 }));
    expect(reasonOf(() => decodeInfo(sizes))).toBe('nbd.long');
  });

  it('cannot lie about lengths and counts, whatever they are', () => {
    const info = encodeInfoRequest({ name: 'disk', wanted: [1] });
    const context = encodeMetaContextRequest({ name: 'disk', queries: ['base:allocation'] });
    for (const lie of [5, 0xffff, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff]) {
      expect(reasonOf(() => decodeInfoRequest(patched(info, 0, lie)))).toBe('nbd.short');
      for (const at of [0, 8, 12]) {
        expect(reasonOf(() => decodeMetaContextRequest(patched(context, at, lie)))).toMatch(
          /^nbd\.(short|long|text-length)$/,
        );
      }
      expect(reasonOf(() => decodeListed(patched(encodeListed({ name: 'disk', details: '' }), 0, lie)))).toBe(
        'nbd.short',
      );
    }
  });

  it('has texts of 4096 bytes at most, in UTF-8', () => {
    const longest = 'x'.repeat(LIMITS.text);
    expect(decodeInfoRequest(encodeInfoRequest({ name: longest, wanted: [] })).name).toBe(longest);
    expect(reasonOf(() => decodeInfoRequest(encodeInfoRequest({ name: `${longest}x`, wanted: [] })))).toBe(
      'nbd.text-length',
    );
    expect(reasonOf(() => decodeInfo(encodeInfo({ type: 'name', text: `${longest}x` })))).toBe('nbd.text-length');
    expect(reasonOf(() => decodeInfo(new Uint8Array([0, INFO.name, 0xff])))).toBe('nbd.text');
    expect(reasonOf(() => decodeListed(new Uint8Array([0, 0, 0, 1, 0xc3])))).toBe('nbd.text');
  });

  it('has sizes that numbers hold and block sizes that can be', () => {
    const size = encodeInfo({ type: 'export', size: 1, flags: 1 });
    expect(reasonOf(() => decodeInfo(patched(size, 2, 0x20_0000)))).toBe('nbd.export-size');
    const blockSizes: readonly (readonly [number, number, number, boolean])[] = [
      [1, 4096, 33_554_432, true],
      [512, 512, 0xffff_ffff, true],
      [65_536, 65_536, 65_536, true],
      [0, 4096, 4096, false],
      [3, 4096, 4096, false],
      [131_072, 131_072, 131_072, false],
      [512, 256, 4096, false],
      [512, 3000, 4096, false],
      [512, 4096, 2048, false],
      [512, 4096, 4097, false],
    ];
    for (const [minimum, preferred, maximum, possible] of blockSizes) {
      const decode = (): unknown => decodeInfo(encodeInfo({ type: 'block-size', minimum, preferred, maximum }));
      expect(reasonOf(decode)).toBe(possible ? undefined : 'nbd.block-size');
    }
  });

  it('is a value or a typed error, whatever comes', () => {
    const decoders: readonly ((bytes: Uint8Array) => unknown)[] = [
      decodeGreeting,
      decodeClientFlags,
      decodeOptionHeader,
      decodeOptionReplyHeader,
      decodeInfoRequest,
      decodeInfo,
      decodeListed,
      decodeMetaContext,
      decodeMetaContextRequest,
      decodeErrorText,
    ];
    const valid = [
      encodeInfoRequest({ name: 'disk', wanted: [1, 3] }),
      encodeMetaContextRequest({ name: 'disk', queries: ['base:allocation', 'qemu:'] }),
      encodeInfo({ type: 'block-size', minimum: 1, preferred: 4096, maximum: 4096 }),
      encodeListed({ name: 'disk', details: 'what it is' }),
    ];
    const mutated = fc
      .tuple(fc.constantFrom(...valid), fc.array(fc.tuple(fc.nat(63), fc.nat(255)), { maxLength: 4 }))
      .map(([bytes, changes]) => {
        const copy = bytes.slice();
        for (const [at, value] of changes) copy[at % copy.length] = value;
        return copy;
      });
    const property = fc.property(fc.oneof(fc.uint8Array({ maxLength: 64 }), mutated), (bytes) => {
      // What is not a typed error, `reasonOf` throws on.
      for (const decode of decoders) reasonOf(() => decode(bytes));
    });
    fc.assert(property, { seed: 7, numRuns: 1000 });
  });
});
