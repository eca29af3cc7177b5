/** A LUKS version 1 volume's header: opened, unlocked, its key slots added and erased, as QEMU does. The encrypted disk itself is not here: a
 *  {@link SectorCipher} is, and the format that has the volume applies it.
 *  Spec: LUKS on-disk format 1.2.3; behaviour of QEMU's LUKS driver.
 *  Invariants: changes of one volume happen one after the other; what this object knows of the header is what was stored last;
 *  a new slot's material is durable before the header says that it is active, an erased slot is inactive before its material is overwritten:
 *  a crash in between costs the slot that was worked on and no other. */
import { Mutex } from '../base/async.ts';
import { hex } from '../base/errors.ts';
import { throwIfAborted } from '../base/job.ts';
import { masterKeyBytes, requireUsable } from './algorithms.ts';
import { fault } from './fault.ts';
import { DEFAULT_ROUND_LIMIT, iterationsFor, RoundBudget } from './key-derivation.ts';
import { openSlot, roundsOfSlot, sealSlot } from './key-slot.ts';
import {
  emptySlot,
  encodeLuksSlot,
  LUKS_HEADER_AREA,
  LUKS_SALT_BYTES,
  LUKS_SLOTS,
  type LuksHeader,
  type LuksKeySlot,
  materialBytes,
  parseLuksHeader,
} from './luks-header.ts';
import { type LuksInfo, luksInfo } from './luks-info.ts';
import {
  type AddKeyOptions,
  DEFAULT_ITER_TIME,
  type EraseKeysOptions,
  type HeaderArea,
  type OpenLuksOptions,
  type UnlockOptions,
} from './luks-options.ts';
import { MasterKey } from './master-key.ts';
import type { CryptoProvider } from './provider.ts';
import { createSectorCipher, type SectorCipher } from './sector-cipher.ts';

/** How often erased material is overwritten, as QEMU does it; each time it is made durable, else the disk would see the last one only. */
const ERASE_PASSES = 40;

/** Reads and checks the header; no key is needed for that.
 *  @throws {@link BlockError} as {@link parseLuksHeader}. */
export async function openLuks(
  area: HeaderArea,
  provider: CryptoProvider,
  options: OpenLuksOptions,
): Promise<LuksVolume> {
  const head = new Uint8Array(LUKS_HEADER_AREA);
  await area.read(0, head);
  const header = parseLuksHeader(head, options.detached === true, options.subject);
  return new LuksVolume(area, provider, options.subject, head, header);
}

export class LuksVolume {
  readonly #area: HeaderArea;
  readonly #provider: CryptoProvider;
  readonly #subject: string;
  /** The first 4 KiB as they are stored: what nobody here knows stays as it is. */
  readonly #head: Uint8Array;
  readonly #changes = new Mutex();
  #header: LuksHeader;

  /** Of a header that was parsed. */
  constructor(area: HeaderArea, provider: CryptoProvider, subject: string, head: Uint8Array, header: LuksHeader) {
    this.#area = area;
    this.#provider = provider;
    this.#subject = subject;
    this.#head = head;
    this.#header = header;
  }

  get header(): LuksHeader {
    return this.#header;
  }

  /** Where the encrypted disk begins, bytes from the start of the header; 0 where the header is detached. */
  get payloadOffset(): number {
    return this.#header.payloadOffset;
  }

  info(): LuksInfo {
    return luksInfo(this.#header);
  }

  /** Finds the slot that a passphrase opens.
   *  @throws {@link BlockError} ENCRYPTED `luks.password` when there is none; UNSUPPORTED `luks.rounds` when there is none but some could not be
   *  tried within the limit; UNSUPPORTED `luks.cipher`, `luks.hash`; CORRUPT `luks.truncated`. */
  async unlock(passphrase: Uint8Array, options: UnlockOptions = {}): Promise<MasterKey> {
    requireUsable(this.#header.algorithms, this.#provider, this.#subject);
    const attempt = new Attempt(options);
    for (let slot = 0; slot < LUKS_SLOTS; slot++) {
      const key = await this.#try(slot, passphrase, attempt);
      if (key !== undefined) return new MasterKey(key, slot, this.#header.digest);
    }
    this.#requireAllTried(attempt);
    throw fault(this.#subject, 'password', 'the password opens no key slot', {}, 'ENCRYPTED');
  }

  /** The cipher of the encrypted disk. The key may be wiped afterwards.
   *  @throws {@link BlockError} INVALID_ARGUMENT `luks.foreign-key` for a key that is wiped, or another volume's; UNSUPPORTED `luks.cipher`. */
  sectorCipher(key: MasterKey): SectorCipher {
    this.#requireOwn(key);
    return createSectorCipher(this.#header.algorithms, key.bytes, this.#provider, this.#subject);
  }

  /** Makes a slot that another passphrase opens. Durable when it ends.
   *  @returns the slot
   *  @throws {@link BlockError} OPTION `luks.slot`, `luks.iter-time`; NO_SPACE `luks.slots-full`; EXISTS `luks.slot-active`;
   *  INVALID_ARGUMENT `luks.foreign-key`; as {@link unlock}. */
  addKey(options: AddKeyOptions): Promise<number> {
    return this.#changes.run(async () => {
      const number = this.#slotToFill(options);
      this.#materialBytes(number);
      requireUsable(this.#header.algorithms, this.#provider, this.#subject);
      const { unlock, passphrase } = options;
      const key = unlock instanceof MasterKey ? unlock : await this.unlock(unlock, options);
      this.#requireOwn(key);
      try {
        await this.#fillSlot(number, key.bytes, passphrase, options.iterTime ?? DEFAULT_ITER_TIME);
      } finally {
        if (key !== unlock) key.wipe();
      }
      return number;
    });
  }

  /** Erases slots, and their material. Durable when it ends.
   *  @returns the slots that were erased
   *  @throws {@link BlockError} OPTION `luks.slot`, `luks.erase-what`; ENCRYPTED `luks.old-password`, `luks.no-match`; INVALID_ARGUMENT
   *  `luks.slot-inactive`, `luks.last-slot`, `luks.all-slots`; as {@link unlock}. */
  eraseKeys(options: EraseKeysOptions): Promise<readonly number[]> {
    return this.#changes.run(async () => {
      const slots = options.slot === undefined ? await this.#slotsOf(options) : [await this.#slotToErase(options)];
      for (const slot of slots) await this.#eraseSlot(slot);
      return slots;
    });
  }

  // ── trying ───────────────────────────────────────────────────────────────────────────────────

  /** @returns the master key when the passphrase opens the slot. */
  async #try(number: number, passphrase: Uint8Array, attempt: Attempt): Promise<Uint8Array | undefined> {
    const slot = this.#slot(number);
    if (!slot.active) return undefined;
    throwIfAborted(attempt.signal);
    if (!attempt.budget.take(roundsOfSlot(this.#header, slot))) {
      attempt.skipped ??= number;
      return undefined;
    }
    const material = new Uint8Array(this.#materialBytes(number));
    await this.#area.read(slot.materialOffset, material);
    return openSlot(this.#header, slot, material, passphrase, this.#provider, this.#subject);
  }

  /** Whether a passphrase opens a slot, without giving the key away. */
  async #opens(number: number, passphrase: Uint8Array, attempt: Attempt): Promise<boolean> {
    const key = await this.#try(number, passphrase, attempt);
    key?.fill(0);
    return key !== undefined;
  }

  /** Length of a slot's material, all of which must lie inside the area. */
  #materialBytes(number: number): number {
    const length = materialBytes(masterKeyBytes(this.#header.algorithms));
    const end = this.#slot(number).materialOffset + length;
    if (end <= this.#area.size) return length;
    throw fault(
      this.#subject,
      'truncated',
      `key slot ${number} has its material up to ${hex(end)}, past the end at ${hex(this.#area.size)}`,
      { slot: number, value: end, bound: this.#area.size },
    );
  }

  #requireAllTried(attempt: Attempt): void {
    const { skipped, budget } = attempt;
    if (skipped === undefined) return;
    const rounds = roundsOfSlot(this.#header, this.#slot(skipped));
    const details = { slot: skipped, rounds, limit: budget.limit };
    throw fault(
      this.#subject,
      'rounds',
      `key slot ${skipped} asks for ${rounds} rounds of PBKDF2, more than is left of ${budget.limit} (option roundLimit)`,
      details,
      'UNSUPPORTED',
    );
  }

  #slot(number: number): LuksKeySlot {
    return this.#header.slots[number] as LuksKeySlot;
  }

  #activeSlots(): number {
    return this.#header.slots.filter((slot) => slot.active).length;
  }

  // ── filling ──────────────────────────────────────────────────────────────────────────────────

  #slotToFill({ slot, force }: AddKeyOptions): number {
    if (slot === undefined) {
      const free = this.#header.slots.findIndex(({ active }) => !active);
      if (free >= 0) return free;
      throw fault(this.#subject, 'slots-full', `all ${LUKS_SLOTS} key slots are in use`, {}, 'NO_SPACE');
    }
    this.#requireSlotNumber(slot);
    if (force === true || !this.#slot(slot).active) return slot;
    throw fault(this.#subject, 'slot-active', `key slot ${slot} is in use`, { slot }, 'EXISTS');
  }

  async #fillSlot(number: number, key: Uint8Array, passphrase: Uint8Array, iterTime: number): Promise<void> {
    const provider = this.#provider;
    const { hash } = this.#header.algorithms;
    const iterations = await iterationsFor(iterTime, 1, hash, key.length, provider, this.#subject);
    const salt = new Uint8Array(LUKS_SALT_BYTES);
    provider.fillRandom(salt);
    const slot = { active: true, iterations, salt, materialOffset: this.#slot(number).materialOffset };
    const material = await sealSlot(this.#header, slot, key, passphrase, provider, this.#subject);
    await this.#area.write(slot.materialOffset, material);
    await this.#area.flush();
    await this.#storeSlot(number, slot);
  }

  // ── erasing ──────────────────────────────────────────────────────────────────────────────────

  async #slotToErase(options: EraseKeysOptions): Promise<number> {
    const { slot, passphrase, force } = options;
    this.#requireSlotNumber(slot as number);
    const number = slot as number;
    if (passphrase !== undefined) {
      requireUsable(this.#header.algorithms, this.#provider, this.#subject);
      const attempt = new Attempt(options);
      if (!(await this.#opens(number, passphrase, attempt))) {
        this.#requireAllTried(attempt);
        throw fault(
          this.#subject,
          'old-password',
          `the password does not open key slot ${number}`,
          { slot: number },
          'ENCRYPTED',
        );
      }
    }
    if (force === true) return number;
    if (!this.#slot(number).active) {
      throw fault(
        this.#subject,
        'slot-inactive',
        `key slot ${number} is inactive already`,
        { slot: number },
        'INVALID_ARGUMENT',
      );
    }
    if (this.#activeSlots() === 1) {
      throw fault(
        this.#subject,
        'last-slot',
        `key slot ${number} is the only active one: without it nothing can be read any more`,
        { slot: number },
        'INVALID_ARGUMENT',
      );
    }
    return number;
  }

  async #slotsOf(options: EraseKeysOptions): Promise<number[]> {
    const { passphrase, force } = options;
    if (passphrase === undefined) {
      throw fault(this.#subject, 'erase-what', 'neither a key slot nor a password to erase is given', {}, 'OPTION');
    }
    requireUsable(this.#header.algorithms, this.#provider, this.#subject);
    const attempt = new Attempt(options);
    const slots: number[] = [];
    for (let slot = 0; slot < LUKS_SLOTS; slot++) {
      if (await this.#opens(slot, passphrase, attempt)) slots.push(slot);
    }
    if (slots.length === 0) {
      this.#requireAllTried(attempt);
      throw fault(this.#subject, 'no-match', 'the password opens no key slot that could be erased', {}, 'ENCRYPTED');
    }
    if (force !== true && slots.length === this.#activeSlots()) {
      throw fault(
        this.#subject,
        'all-slots',
        'the password opens all active key slots: without them nothing can be read any more',
        { slots },
        'INVALID_ARGUMENT',
      );
    }
    return slots;
  }

  async #eraseSlot(number: number): Promise<void> {
    const { materialOffset } = this.#slot(number);
    const garbage = new Uint8Array(this.#materialBytes(number));
    await this.#storeSlot(number, emptySlot(materialOffset));
    for (let pass = 0; pass < ERASE_PASSES; pass++) {
      this.#provider.fillRandom(garbage);
      await this.#area.write(materialOffset, garbage);
      await this.#area.flush();
    }
  }

  // ── storing ──────────────────────────────────────────────────────────────────────────────────

  async #storeSlot(number: number, slot: LuksKeySlot): Promise<void> {
    const head = this.#head.slice();
    encodeLuksSlot(slot, number, head);
    await this.#area.write(0, head);
    await this.#area.flush();
    this.#head.set(head);
    this.#header = { ...this.#header, slots: this.#header.slots.map((old, i) => (i === number ? slot : old)) };
  }

  #requireOwn(key: MasterKey): void {
    if (key.opens(this.#header.digest)) return;
    throw fault(
      this.#subject,
      'foreign-key',
      'the master key is wiped, or is not that of this volume',
      {},
      'INVALID_ARGUMENT',
    );
  }

  #requireSlotNumber(slot: number): void {
    if (Number.isInteger(slot) && slot >= 0 && slot < LUKS_SLOTS) return;
    throw fault(
      this.#subject,
      'slot',
      `key slot ${slot} is not one of 0 to ${LUKS_SLOTS - 1}`,
      { slot, bound: LUKS_SLOTS - 1 },
      'OPTION',
    );
  }
}

/** What trying slots may spend, and the first one that it was not enough for. */
class Attempt {
  readonly budget: RoundBudget;
  readonly signal: AbortSignal | undefined;
  skipped: number | undefined;

  constructor(options: UnlockOptions) {
    this.budget = new RoundBudget(options.roundLimit ?? DEFAULT_ROUND_LIMIT);
    this.signal = options.signal;
  }
}
