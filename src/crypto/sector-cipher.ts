/** Disk encryption: sectors of 512 bytes by one master key, each with a vector made of its number.
 *  Owns the cutting of requests into batches and the ways around unaligned buffers; the modes do the rest.
 *  Invariants: synchronous; nothing is allocated per sector; `from` of an encryption is never written, not even for a moment. */
import type { Pending } from '../base/async.ts';
import { assert } from '../base/errors.ts';
import { masterKeyBytes, openBlockCipher, type SectorCipherSpec } from './algorithms.ts';
import type { BulkSectors } from './bulk.ts';
import { CbcMode } from './cbc.ts';
import { createIvSource, type IvSource } from './iv.ts';
import { CtrMode, EcbMode } from './plain-modes.ts';
import type { BlockCipher, CryptoProvider } from './provider.ts';
import { BATCH, isAligned, SECTOR, type SectorMode } from './sectors.ts';
import { XtsMode } from './xts.ts';

export interface SectorCipher {
  /** Encrypts whole sectors. `from` and `into` are equally long; they are the same memory or do not overlap.
   *  @param firstSector number of the first one, 0 to 2^53 - 1 with those after it */
  encrypt(from: Uint8Array, into: Uint8Array, firstSector: number): void;
  /** Decrypts whole sectors in place. */
  decrypt(bytes: Uint8Array, firstSector: number): void;
  /** Forgets the key as far as the runtime lets it, and clears work buffers; later calls fail. Idempotent. */
  wipe(): void;
}

/** @param key the master key; it may be wiped afterwards @param subject what messages begin with
 *  @throws {@link BlockError} UNSUPPORTED `luks.cipher`, `luks.byte-order`. */
export function createSectorCipher(
  spec: SectorCipherSpec,
  key: Uint8Array,
  provider: CryptoProvider,
  subject: string,
): SectorCipher {
  assert(key.length === masterKeyBytes(spec), `a key of ${key.length} bytes for ${spec.cipher}-${spec.mode}`);
  const part = (from: number): BlockCipher =>
    openBlockCipher(spec.cipher, key.subarray(from, from + spec.cipherKeyBytes), provider, subject);
  const mode = createMode(spec, part);
  const most = Math.max(mode.encryptBatch, mode.decryptBatch);
  return new BatchedSectors(mode, createIvSource(spec, key, most, provider, subject));
}

/** The encryption of old qcow and qcow2 images: AES-128-CBC, the key being the first 16 bytes of the password, zeros behind a shorter one.
 *  A wrong password cannot be told from the right one. @throws {@link BlockError} UNSUPPORTED `luks.cipher`. */
export function createLegacyAesCipher(password: Uint8Array, provider: CryptoProvider, subject: string): SectorCipher {
  const key = new Uint8Array(16);
  key.set(password.subarray(0, key.length));
  try {
    const spec: SectorCipherSpec = { cipher: 'aes', cipherKeyBytes: 16, mode: 'cbc', ivGenerator: 'plain64' };
    return createSectorCipher(spec, key, provider, subject);
  } finally {
    key.fill(0);
  }
}

/** What the engine applies to data runs. Offsets are bytes. */
export interface SectorTransform {
  readonly sector: number;
  readonly tweak: 'guest' | 'host';
  encrypt(from: Uint8Array, into: Uint8Array, at: number): Pending;
  decrypt(bytes: Uint8Array, at: number): Pending;
}

/** A cipher as the engine's transform. @param tweak which offset counts the sectors: the guest's, or that in the host file
 *  @param bulk the same key on other threads; without it everything is done here, at once */
export function sectorTransform(cipher: SectorCipher, tweak: 'guest' | 'host', bulk?: BulkSectors): SectorTransform {
  return {
    sector: SECTOR,
    tweak,
    encrypt(from: Uint8Array, into: Uint8Array, at: number): Pending {
      const away = bulk?.encrypt(from, into, at / SECTOR);
      if (away === undefined) cipher.encrypt(from, into, at / SECTOR);
      return away;
    },
    decrypt(bytes: Uint8Array, at: number): Pending {
      const away = bulk?.decrypt(bytes, at / SECTOR);
      if (away === undefined) cipher.decrypt(bytes, at / SECTOR);
      return away;
    },
  };
}

function createMode(spec: SectorCipherSpec, part: (from: number) => BlockCipher): SectorMode {
  switch (spec.mode) {
    case 'xts':
      return new XtsMode(part(0), part(spec.cipherKeyBytes));
    case 'cbc':
      return new CbcMode(part(0));
    case 'ctr':
      return new CtrMode(part(0));
    case 'ecb':
      return new EcbMode(part(0));
  }
}

class BatchedSectors implements SectorCipher {
  readonly #mode: SectorMode;
  readonly #ivs: IvSource;
  /** For buffers that do not lie on words; most do. */
  #aligned: Uint8Array | undefined;

  constructor(mode: SectorMode, ivs: IvSource) {
    this.#mode = mode;
    this.#ivs = ivs;
  }

  encrypt(from: Uint8Array, into: Uint8Array, firstSector: number): void {
    if (from.length !== into.length) assert(false, `encryption of ${from.length} bytes into ${into.length}`);
    requireSectors(from.length, firstSector);
    const direct = isAligned(from) && isAligned(into);
    const step = (direct ? this.#mode.encryptBatch : BATCH) * SECTOR;
    for (let at = 0; at < from.length; at += step) {
      const end = Math.min(at + step, from.length);
      const ivs = this.#ivs.vectors(firstSector + at / SECTOR, (end - at) / SECTOR);
      if (direct) {
        this.#mode.encrypt(from.subarray(at, end), into.subarray(at, end), ivs);
      } else {
        const work = this.#work(from, at, end);
        this.#mode.encrypt(work, work, ivs);
        into.set(work, at);
      }
    }
  }

  decrypt(bytes: Uint8Array, firstSector: number): void {
    requireSectors(bytes.length, firstSector);
    const direct = isAligned(bytes);
    const step = (direct ? this.#mode.decryptBatch : BATCH) * SECTOR;
    for (let at = 0; at < bytes.length; at += step) {
      const end = Math.min(at + step, bytes.length);
      const ivs = this.#ivs.vectors(firstSector + at / SECTOR, (end - at) / SECTOR);
      if (direct) {
        const batch = bytes.subarray(at, end);
        this.#mode.decrypt(batch, batch, ivs);
      } else {
        const work = this.#work(bytes, at, end);
        this.#mode.decrypt(work, work, ivs);
        bytes.set(work, at);
      }
    }
  }

  wipe(): void {
    this.#mode.wipe();
    this.#ivs.wipe();
    this.#aligned?.fill(0);
  }

  #work(from: Uint8Array, at: number, end: number): Uint8Array {
    this.#aligned ??= new Uint8Array(BATCH * SECTOR);
    const work = this.#aligned.subarray(0, end - at);
    work.set(from.subarray(at, end));
    return work;
  }
}

function requireSectors(length: number, firstSector: number): void {
  // texts are not made before they are needed: requests may be small and many
  if (length % SECTOR !== 0) assert(false, `${length} bytes are no whole number of sectors`);
  const last = firstSector + length / SECTOR;
  const whole = Number.isSafeInteger(firstSector) && firstSector >= 0 && Number.isSafeInteger(last);
  if (!whole) assert(false, `sector ${firstSector}`);
}
