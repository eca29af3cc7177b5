/** The header of a LUKS version 1 volume: 592 bytes at its start, big-endian, with eight key slots.
 *  Spec: LUKS on-disk format 1.2.3, section 4; bounds as QEMU checks them, in its order, so that the first fault found is the same.
 *  Invariant: a header that was parsed has passed every check: key material lies behind the first 4 KiB, before the payload, and apart. */
import { hex } from '../base/errors.ts';
import { bytes, struct, u16, u32 } from '../bytes/struct.ts';
import { cipherModeField, type LuksAlgorithms, masterKeyBytes, parseAlgorithms } from './algorithms.ts';
import { fault } from './fault.ts';
import { SECTOR } from './sectors.ts';

export const LUKS_HEADER_BYTES = 592;
/** Nothing but the header lies in these first bytes; its first key slot's material may begin there. */
export const LUKS_HEADER_AREA = 4096;
export const LUKS_SLOTS = 8;
/** Stripes of every key slot: the one number that QEMU accepts. */
export const LUKS_STRIPES = 4000;
export const LUKS_SALT_BYTES = 32;
export const LUKS_DIGEST_BYTES = 20;

const MAGIC = Uint8Array.of(0x4c, 0x55, 0x4b, 0x53, 0xba, 0xbe);
const VERSION = 1;
const SLOT_ACTIVE = 0x00ac_71f3;
const SLOT_INACTIVE = 0x0000_dead;
const SLOT_BYTES = 48;
const FIRST_SLOT_AT = 208;

const HEADER = struct('LUKS header', FIRST_SLOT_AT, {
  magic: [0, bytes(6)],
  version: [6, u16],
  cipherName: [8, bytes(32)],
  cipherMode: [40, bytes(32)],
  hash: [72, bytes(32)],
  payloadSector: [104, u32],
  keyBytes: [108, u32],
  digest: [112, bytes(LUKS_DIGEST_BYTES)],
  digestSalt: [132, bytes(LUKS_SALT_BYTES)],
  digestIterations: [164, u32],
  uuid: [168, bytes(40)],
});

const SLOT = struct('LUKS key slot', SLOT_BYTES, {
  state: [0, u32],
  iterations: [4, u32],
  salt: [8, bytes(LUKS_SALT_BYTES)],
  materialSector: [40, u32],
  stripes: [44, u32],
});

export interface LuksKeySlot {
  readonly active: boolean;
  /** PBKDF2 iterations of the passphrase; 0 in slots never used. */
  readonly iterations: number;
  readonly salt: Uint8Array;
  /** Where its key material begins, bytes from the start of the header. */
  readonly materialOffset: number;
}

export interface LuksHeader {
  readonly algorithms: LuksAlgorithms;
  /** Where the encrypted disk begins, bytes from the start of the header; 0 where the header is detached. */
  readonly payloadOffset: number;
  /** By which a master key is known. */
  readonly digest: Uint8Array;
  readonly digestSalt: Uint8Array;
  readonly digestIterations: number;
  readonly uuid: string;
  readonly slots: readonly LuksKeySlot[];
}

/** Whether bytes begin as a LUKS volume of version 1 does: 8 of them are looked at. */
export function isLuks(head: Uint8Array): boolean {
  return hasMagic(head) && head[6] === 0 && head[7] === VERSION;
}

function hasMagic(head: Uint8Array): boolean {
  return MAGIC.every((byte, i) => head[i] === byte);
}

/** Bytes of a slot's key material, in whole sectors: where the stripes end inside one, zeros fill it up before it is encrypted. */
export function materialBytes(keyBytes: number): number {
  return roundUp(keyBytes * LUKS_STRIPES, SECTOR);
}

/** Bytes between the beginnings of two slots' material in a volume that QEMU or this library made. */
function materialStride(keyBytes: number): number {
  return roundUp(keyBytes * LUKS_STRIPES, LUKS_HEADER_AREA);
}

function roundUp(value: number, unit: number): number {
  return Math.ceil(value / unit) * unit;
}

/** Bytes of header and all key material, where volumes made here have their payload. */
export function luksHeaderArea(algorithms: LuksAlgorithms): number {
  return LUKS_HEADER_AREA + LUKS_SLOTS * materialStride(masterKeyBytes(algorithms));
}

/** Slots of a new volume, none of them active. */
export function emptySlots(algorithms: LuksAlgorithms): LuksKeySlot[] {
  const stride = materialStride(masterKeyBytes(algorithms));
  return Array.from({ length: LUKS_SLOTS }, (_, i) => emptySlot(LUKS_HEADER_AREA + i * stride));
}

export function emptySlot(materialOffset: number): LuksKeySlot {
  return { active: false, iterations: 0, salt: new Uint8Array(LUKS_SALT_BYTES), materialOffset };
}

/** Takes a header apart and checks it.
 *  @param head its first 592 bytes, or more @param detached whether the payload lies in another file, so that its offset bounds nothing
 *  @throws {@link BlockError} WRONG_FORMAT `luks.magic`; UNSUPPORTED `luks.version`, and as {@link parseAlgorithms}; CORRUPT `luks.string`,
 *  `luks.payload`, `luks.digest-iterations`, `luks.slot-stripes`, `luks.slot-state`, `luks.slot-iterations`, `luks.slot-header`,
 *  `luks.slot-payload`, `luks.slot-overlap`, with details `slot`, `value`, `bound`. */
export function parseLuksHeader(head: Uint8Array, detached: boolean, subject: string): LuksHeader {
  if (!hasMagic(head)) throw fault(subject, 'magic', 'not a LUKS volume: the magic is not there', {}, 'WRONG_FORMAT');
  const raw = HEADER.decode(head);
  const { version } = raw;
  if (version !== VERSION) {
    throw fault(subject, 'version', `LUKS version ${version} is not supported`, { version }, 'UNSUPPORTED');
  }
  const cipherName = text(raw.cipherName, 'cipher name', subject);
  const cipherMode = text(raw.cipherMode, 'cipher mode', subject);
  const hash = text(raw.hash, 'hash spec', subject);
  const payloadOffset = raw.payloadSector * SECTOR;
  if (!detached && payloadOffset < LUKS_HEADER_AREA) {
    const details = { value: payloadOffset, bound: LUKS_HEADER_AREA };
    throw fault(subject, 'payload', `the payload begins at ${hex(payloadOffset)}, inside the header`, details);
  }
  if (raw.digestIterations === 0) {
    throw fault(subject, 'digest-iterations', 'the master key digest has 0 iterations', { value: 0, bound: 1 });
  }
  const slots = Array.from({ length: LUKS_SLOTS }, (_, i) => SLOT.decode(head, FIRST_SLOT_AT + i * SLOT_BYTES));
  const stride = materialStride(raw.keyBytes);
  slots.forEach((slot, number) => {
    checkSlot(slot, number, stride, detached ? Number.POSITIVE_INFINITY : payloadOffset, subject);
    checkOverlap(slots, number, stride, subject);
  });
  return {
    algorithms: parseAlgorithms(cipherName, cipherMode, hash, raw.keyBytes, subject),
    payloadOffset,
    digest: raw.digest,
    digestSalt: raw.digestSalt,
    digestIterations: raw.digestIterations,
    uuid: untilNul(raw.uuid),
    slots: slots.map(({ state, iterations, salt, materialSector }) => {
      return { active: state === SLOT_ACTIVE, iterations, salt, materialOffset: materialSector * SECTOR };
    }),
  };
}

type RawSlot = ReturnType<typeof SLOT.decode>;

function checkSlot(slot: RawSlot, number: number, stride: number, end: number, subject: string): void {
  const bad = (finding: string, what: string, value: number, bound: number) =>
    fault(subject, finding, `key slot ${number} ${what}`, { slot: number, value, bound });
  const { stripes, state, iterations } = slot;
  if (stripes !== LUKS_STRIPES) {
    throw bad('slot-stripes', `has ${stripes} stripes, not ${LUKS_STRIPES}`, stripes, LUKS_STRIPES);
  }
  if (state !== SLOT_ACTIVE && state !== SLOT_INACTIVE) {
    throw bad('slot-state', `is neither active nor inactive but ${hex(state)}`, state, SLOT_ACTIVE);
  }
  if (state === SLOT_ACTIVE && iterations === 0) throw bad('slot-iterations', 'has 0 iterations', 0, 1);
  const offset = slot.materialSector * SECTOR;
  if (offset < LUKS_HEADER_AREA) {
    throw bad('slot-header', `has its material at ${hex(offset)}, inside the header`, offset, LUKS_HEADER_AREA);
  }
  if (offset + stride > end) {
    throw bad(
      'slot-payload',
      `has its material up to ${hex(offset + stride)}, inside the payload`,
      offset + stride,
      end,
    );
  }
}

function checkOverlap(slots: readonly RawSlot[], number: number, stride: number, subject: string): void {
  const start = (slots[number] as RawSlot).materialSector * SECTOR;
  for (let other = number + 1; other < slots.length; other++) {
    const from = (slots[other] as RawSlot).materialSector * SECTOR;
    if (start + stride <= from || from + stride <= start) continue;
    throw fault(subject, 'slot-overlap', `key slots ${number} and ${other} overlap`, {
      slot: number,
      other,
      value: start,
      bound: from,
    });
  }
}

/** A header's 592 bytes. */
export function encodeLuksHeader(header: LuksHeader): Uint8Array {
  const { algorithms } = header;
  const into = new Uint8Array(LUKS_HEADER_BYTES);
  HEADER.encode(
    {
      magic: MAGIC,
      version: VERSION,
      cipherName: ascii(algorithms.cipher),
      cipherMode: ascii(cipherModeField(algorithms)),
      hash: ascii(algorithms.hash),
      payloadSector: header.payloadOffset / SECTOR,
      keyBytes: masterKeyBytes(algorithms),
      digest: header.digest,
      digestSalt: header.digestSalt,
      digestIterations: header.digestIterations,
      uuid: ascii(header.uuid),
    },
    into,
  );
  header.slots.forEach((slot, number) => {
    encodeLuksSlot(slot, number, into);
  });
  return into;
}

/** Writes one slot into the bytes of a header and leaves all others as they are. */
export function encodeLuksSlot(slot: LuksKeySlot, number: number, head: Uint8Array): void {
  SLOT.encode(
    {
      state: slot.active ? SLOT_ACTIVE : SLOT_INACTIVE,
      iterations: slot.iterations,
      salt: slot.salt,
      materialSector: slot.materialOffset / SECTOR,
      stripes: LUKS_STRIPES,
    },
    head,
    FIRST_SLOT_AT + number * SLOT_BYTES,
  );
}

function text(field: Uint8Array, name: string, subject: string): string {
  if (!field.includes(0)) throw fault(subject, 'string', `the ${name} does not end`, { field: name });
  return untilNul(field);
}

/** Names are ASCII; other bytes must not reach a terminal by way of a message. */
function untilNul(field: Uint8Array): string {
  const end = field.indexOf(0);
  const printable = field
    .subarray(0, end < 0 ? field.length : end)
    .map((byte) => (byte >= 0x20 && byte < 0x7f ? byte : 0x3f));
  return String.fromCharCode(...printable);
}

function ascii(name: string): Uint8Array {
  return new TextEncoder().encode(name);
}
