/** Headers taken apart: every field at the edges of what is allowed. */
import { describe, expect, it } from 'vitest';
import { chooseAlgorithms } from '../../src/crypto/algorithms.ts';
import {
  emptySlots,
  encodeLuksHeader,
  encodeLuksSlot,
  isLuks,
  type LuksHeader,
  luksHeaderArea,
  parseLuksHeader,
} from '../../src/crypto/luks-header.ts';
import { SUBJECT, seeded } from './support.ts';

/** 512-bit keys: 256000 bytes of material a slot, in strides of 258048. */
const ALGORITHMS = chooseAlgorithms({}, SUBJECT);
const STRIDE = 258_048;
const PAYLOAD = 4096 + 8 * STRIDE;

function header(more: Partial<LuksHeader> = {}): LuksHeader {
  const slots = emptySlots(ALGORITHMS);
  slots[0] = { active: true, iterations: 1000, salt: seeded(32, 3), materialOffset: 4096 };
  return {
    algorithms: ALGORITHMS,
    payloadOffset: PAYLOAD,
    digest: seeded(20, 1),
    digestSalt: seeded(32, 2),
    digestIterations: 1000,
    uuid: '01234567-89ab-4def-8123-456789abcdef',
    slots,
    ...more,
  };
}

/** A header with some bytes changed. */
function changed(change: (view: DataView, bytes: Uint8Array) => void): Uint8Array {
  const bytes = encodeLuksHeader(header());
  change(new DataView(bytes.buffer), bytes);
  return bytes;
}

const slotAt = (slot: number): number => 208 + slot * 48;

describe('parseLuksHeader', () => {
  it('reads what was encoded', () => {
    expect(luksHeaderArea(ALGORITHMS)).toBe(PAYLOAD);
    expect(PAYLOAD).toBe(2_068_480);
    expect(parseLuksHeader(encodeLuksHeader(header()), false, SUBJECT)).toEqual(header());
  });

  it('reads fields from where the specification has them', () => {
    const bytes = changed(() => undefined);
    const text = (at: number, length: number) => Buffer.from(bytes.subarray(at, at + length)).toString('latin1');
    expect(text(0, 6)).toBe('LUKS\xba\xbe');
    expect(text(6, 2)).toBe('\0\x01');
    expect(text(8, 4)).toBe('aes\0');
    expect(text(40, 12)).toBe('xts-plain64\0');
    expect(text(72, 7)).toBe('sha256\0');
    const view = new DataView(bytes.buffer);
    expect(view.getUint32(104)).toBe(4040);
    expect(view.getUint32(108)).toBe(64);
    expect(view.getUint32(164)).toBe(1000);
    expect(text(168, 37)).toBe('01234567-89ab-4def-8123-456789abcdef\0');
    expect(view.getUint32(slotAt(0))).toBe(0x00ac71f3);
    expect(view.getUint32(slotAt(1))).toBe(0x0000dead);
    expect(view.getUint32(slotAt(1) + 40)).toBe(512);
    expect(view.getUint32(slotAt(7) + 44)).toBe(4000);
    expect(bytes.length).toBe(592);
  });

  it.each([
    ['another magic', 'WRONG_FORMAT', 'luks.magic', (v: DataView) => v.setUint8(5, 0xbf), {}],
    ['version 2', 'UNSUPPORTED', 'luks.version', (v: DataView) => v.setUint16(6, 2), { version: 2 }],
    ['version 0', 'UNSUPPORTED', 'luks.version', (v: DataView) => v.setUint16(6, 0), { version: 0 }],
    [
      'a cipher name without end',
      'CORRUPT',
      'luks.string',
      (_: DataView, b: Uint8Array) => b.fill(0x61, 8, 40),
      { field: 'cipher name' },
    ],
    [
      'a cipher mode without end',
      'CORRUPT',
      'luks.string',
      (_: DataView, b: Uint8Array) => b.fill(0x61, 40, 72),
      { field: 'cipher mode' },
    ],
    [
      'a hash without end',
      'CORRUPT',
      'luks.string',
      (_: DataView, b: Uint8Array) => b.fill(0x61, 72, 104),
      { field: 'hash spec' },
    ],
    ['a payload in the header', 'CORRUPT', 'luks.payload', (v: DataView) => v.setUint32(104, 7), { value: 3584 }],
    ['no digest iterations', 'CORRUPT', 'luks.digest-iterations', (v: DataView) => v.setUint32(164, 0), {}],
    ['a key of 0 bytes', 'UNSUPPORTED', 'luks.cipher', (v: DataView) => v.setUint32(108, 0), { keyBytes: 0 }],
    ['a key of 63 bytes', 'UNSUPPORTED', 'luks.cipher', (v: DataView) => v.setUint32(108, 63), { keyBytes: 31.5 }],
    ['a key of 4 GiB', 'CORRUPT', 'luks.slot-payload', (v: DataView) => v.setUint32(108, 2 ** 32 - 1), { slot: 0 }],
    ['3999 stripes', 'CORRUPT', 'luks.slot-stripes', (v: DataView) => v.setUint32(slotAt(7) + 44, 3999), { slot: 7 }],
    ['no stripes', 'CORRUPT', 'luks.slot-stripes', (v: DataView) => v.setUint32(slotAt(2) + 44, 0), { slot: 2 }],
    ['a strange state', 'CORRUPT', 'luks.slot-state', (v: DataView) => v.setUint32(slotAt(3), 0xdeae), { slot: 3 }],
    ['no iterations', 'CORRUPT', 'luks.slot-iterations', (v: DataView) => v.setUint32(slotAt(0) + 4, 0), { slot: 0 }],
    [
      'material in the header',
      'CORRUPT',
      'luks.slot-header',
      (v: DataView) => v.setUint32(slotAt(0) + 40, 7),
      { slot: 0, value: 3584, bound: 4096 },
    ],
    [
      'material in the payload by a sector',
      'CORRUPT',
      'luks.slot-payload',
      (v: DataView) => v.setUint32(104, 4039),
      { slot: 7, value: PAYLOAD, bound: PAYLOAD - 512 },
    ],
    [
      'material at the end of all numbers',
      'CORRUPT',
      'luks.slot-payload',
      (v: DataView) => v.setUint32(slotAt(4) + 40, 2 ** 32 - 1),
      { slot: 4 },
    ],
    [
      'two slots in one place',
      'CORRUPT',
      'luks.slot-overlap',
      (v: DataView) => v.setUint32(slotAt(5) + 40, v.getUint32(slotAt(2) + 40)),
      { slot: 2, other: 5 },
    ],
    [
      'slots that overlap by a sector',
      'CORRUPT',
      'luks.slot-overlap',
      (v: DataView) => v.setUint32(slotAt(1) + 40, 8 + STRIDE / 512 - 1),
      { slot: 0, other: 1 },
    ],
  ] as const)('refuses %s', (_, code, reason, change, details) => {
    expect(() => parseLuksHeader(changed(change), false, SUBJECT)).toThrow(
      expect.objectContaining({ code, reason, details: expect.objectContaining(details) }),
    );
  });

  it('begins its messages with what it was told, and lets no control characters into them', () => {
    const bytes = changed((_, b) => b.set(Buffer.from('a\x1b[2Jes\xff\0', 'latin1'), 8));
    expect(() => parseLuksHeader(bytes, false, 'qcow2 "a.img": LUKS header')).toThrow(
      'qcow2 "a.img": LUKS header: the cipher "a?[2Jes?" with a key of 32 bytes is not supported',
    );
  });

  it('takes a payload that begins anywhere behind the slots, and none in a detached header', () => {
    expect(parseLuksHeader(encodeLuksHeader(header({ payloadOffset: PAYLOAD + 512 })), false, SUBJECT).payloadOffset) //
      .toBe(PAYLOAD + 512);
    const detached = encodeLuksHeader(header({ payloadOffset: 0 }));
    expect(parseLuksHeader(detached, true, SUBJECT).payloadOffset).toBe(0);
    expect(() => parseLuksHeader(detached, false, SUBJECT)).toThrow(
      expect.objectContaining({ reason: 'luks.payload' }),
    );
    expect(() =>
      parseLuksHeader(
        changed((v) => v.setUint32(slotAt(1) + 40, 9)),
        true,
        SUBJECT,
      ),
    ).toThrow(expect.objectContaining({ reason: 'luks.slot-overlap' }));
  });

  it('reads a UUID that fills its field', () => {
    const bytes = changed((_, b) => b.fill(0x78, 168, 208));
    expect(parseLuksHeader(bytes, false, SUBJECT).uuid).toBe('x'.repeat(40));
  });
});

describe('encodeLuksSlot', () => {
  it('changes one slot and nothing beside it', () => {
    const bytes = new Uint8Array(592).fill(0xaa);
    encodeLuksSlot({ active: true, iterations: 5, salt: new Uint8Array(32), materialOffset: 1024 }, 6, bytes);
    expect([...bytes.subarray(0, slotAt(6)), ...bytes.subarray(slotAt(7))].every((byte) => byte === 0xaa)).toBe(true);
    expect(bytes.subarray(slotAt(6), slotAt(7)).includes(0xaa)).toBe(false);
  });
});

describe('isLuks', () => {
  it('looks at magic and version', () => {
    const bytes = encodeLuksHeader(header());
    expect(isLuks(bytes.subarray(0, 8))).toBe(true);
    expect(isLuks(bytes.subarray(0, 7))).toBe(false);
    expect(isLuks(changed((v) => v.setUint16(6, 2)))).toBe(false);
    expect(isLuks(changed((v) => v.setUint8(0, 0x6c)))).toBe(false);
    expect(isLuks(new Uint8Array(0))).toBe(false);
  });
});
