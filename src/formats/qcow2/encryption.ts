/** Encryption of an open image: the key found, and the one place where the engine's transform is made of it.
 *  Spec: qcow2, "Data Encryption", "Full disk encryption header pointer"; legacy AES counts sectors by guest offset, LUKS by host offset (in
 *  the file that holds the data). The LUKS header lies in clusters of its own, through a window of the file.
 *  Invariants: no key is asked for where only facts or the structure are; guest data is never moved without the transform; a write of the LUKS
 *  header is checked against all other metadata; keys are wiped when the image is closed, and when opening it fails. */

import type { Pending } from '../../base/async.ts';
import { BlockError, type ErrorCode, type ErrorDetails } from '../../base/errors.ts';
import type { DataTransform, OpenContext } from '../../core/format.ts';
import type { ByteStore } from '../../core/store.ts';
import { amendKeys, type KeyAmendment, type KeyAmendmentRun } from '../../crypto/amend-luks.ts';
import type { BulkSectors } from '../../crypto/bulk.ts';
import { type LuksVolume, openLuks } from '../../crypto/luks.ts';
import { LUKS_HEADER_BYTES } from '../../crypto/luks-header.ts';
import type { LuksInfo } from '../../crypto/luks-info.ts';
import type { HeaderArea } from '../../crypto/luks-options.ts';
import { platformCrypto } from '../../crypto/runtime.ts';
import { createLegacyAesCipher, type SectorCipher, sectorTransform } from '../../crypto/sector-cipher.ts';
import type { CryptoPointer } from './extensions.ts';
import type { Qcow2Header } from './header.ts';
import type { Qcow2OpenOptions } from './options.ts';

/** The key of the disk, in this thread and on others. */
interface Ciphers {
  readonly here: SectorCipher;
  readonly bulk: BulkSectors | undefined;
}

/** Where passphrases come from. */
interface KeySource extends Pick<Qcow2OpenOptions, 'encryptKeySecret' | 'encryptRoundLimit'> {
  readonly name: string;
  secret(id: string): Uint8Array;
}

export class Encryption {
  readonly method: 'aes' | 'luks';
  /** Header and key slots; none with `aes`. */
  readonly luks: LuksVolume | undefined;
  /** None where the image was opened without its key. */
  readonly transform: DataTransform | undefined;
  readonly #ciphers: Ciphers | undefined;
  readonly #window: HeaderWindow | undefined;
  readonly #keys: KeySource;

  constructor(
    method: 'aes' | 'luks',
    luks: LuksVolume | undefined,
    ciphers: Ciphers | undefined,
    window: HeaderWindow | undefined,
    keys: KeySource,
  ) {
    this.method = method;
    this.luks = luks;
    this.#ciphers = ciphers;
    this.#window = window;
    this.#keys = keys;
    const tweak = method === 'aes' ? 'guest' : 'host';
    this.transform = ciphers === undefined ? undefined : sectorTransform(ciphers.here, tweak, ciphers.bulk);
  }

  /** What `info` says, under QEMU's names. */
  info(): { readonly format: string } & Partial<LuksInfo> {
    return { format: this.method, ...this.luks?.info() };
  }

  /** Asked before the LUKS header is written. */
  set guard(guard: (offset: number, length: number) => Pending) {
    if (this.#window !== undefined) this.#window.guard = guard;
  }

  /** Makes or erases key slots of LUKS. Durable when it ends. @throws {@link BlockError} as `amendKeys`. */
  async amendKeys(asked: KeyAmendment, run: Pick<KeyAmendmentRun, 'force' | 'signal'>): Promise<void> {
    const { name, encryptKeySecret, encryptRoundLimit, secret } = this.#keys;
    if (this.luks === undefined || encryptKeySecret === undefined) throw needsKey(this.method, name);
    await amendKeys(this.luks, asked, {
      ...run,
      subject: subjectOf(name),
      keySecret: encryptKeySecret,
      secret,
      roundLimit: encryptRoundLimit,
    });
  }

  /** Forgets the key. No request may run. Idempotent. */
  async wipe(): Promise<void> {
    this.#ciphers?.here.wipe();
    await this.#ciphers?.bulk?.close();
  }
}

/** Reads what the header says of encryption, and finds the key where guest data will be asked for.
 *  @returns `undefined` for an image that is not encrypted
 *  @throws {@link BlockError} OPTION `qcow2.encrypt-mismatch`; ENCRYPTED `qcow2.encrypted` (no key is named), `luks.password`; NOT_FOUND
 *  `secret.missing`; CORRUPT `qcow2.crypto-missing`, `qcow2.crypto-window`, `luks.…`; UNSUPPORTED `luks.…`. */
export async function openEncryption(
  header: Qcow2Header,
  options: Qcow2OpenOptions,
  context: OpenContext,
): Promise<Encryption | undefined> {
  const { name, file } = context;
  const { encryption: method } = header;
  requireMethod(method, options.encryptFormat, name);
  if (method === 'none') return undefined;
  const keys = { ...options, name, secret: (id: string) => context.secret(id) };
  // a check judges the structure alone
  const needsKey = context.metadataOnly !== true && !context.forCheck;
  if (method === 'aes') {
    const ciphers = needsKey ? await withPassphrase(options, header, context, legacyCiphers(name)) : undefined;
    return new Encryption('aes', undefined, ciphers, undefined, keys);
  }
  const window = openWindow(file, header.crypto, name);
  const volume = await openLuks(window, platformCrypto, { subject: subjectOf(name) });
  const ciphers = needsKey
    ? await withPassphrase(options, header, context, (passphrase) => unlock(volume, passphrase, options, context))
    : undefined;
  return new Encryption('luks', volume, ciphers, window, keys);
}

/** What messages about the LUKS header begin with. */
export function subjectOf(name: string): string {
  return `qcow2 "${name}": LUKS header`;
}

function requireMethod(method: Qcow2Header['encryption'], asked: string | undefined, name: string): void {
  if (asked === undefined || asked === method) return;
  const is = method === 'none' ? 'not encrypted' : `encrypted with ${method}`;
  throw fault(name, 'encrypt-mismatch', `${is}, but encrypt.format is '${asked}'`, { method, asked }, 'OPTION');
}

/** Calls `use` with the passphrase, which is wiped afterwards. */
async function withPassphrase<T>(
  options: Qcow2OpenOptions,
  header: Qcow2Header,
  context: OpenContext,
  use: (passphrase: Uint8Array) => T | Promise<T>,
): Promise<T> {
  const { encryptKeySecret: id } = options;
  if (id === undefined) throw needsKey(header.encryption, context.name);
  const passphrase = context.secret(id);
  try {
    return await use(passphrase);
  } finally {
    passphrase.fill(0);
  }
}

function legacyCiphers(name: string): (passphrase: Uint8Array) => Ciphers {
  return (passphrase) => ({
    here: createLegacyAesCipher(passphrase, platformCrypto, `qcow2 "${name}"`),
    bulk: undefined,
  });
}

async function unlock(
  volume: LuksVolume,
  passphrase: Uint8Array,
  { encryptRoundLimit: roundLimit }: Qcow2OpenOptions,
  { signal, codecs }: OpenContext,
): Promise<Ciphers> {
  const key = await volume.unlock(passphrase, { roundLimit, signal });
  try {
    return { here: volume.sectorCipher(key), bulk: codecs.sectors(volume.header.algorithms, key.bytes) };
  } finally {
    key.wipe();
  }
}

/** Guest data was asked for, or will be, and no key was named. */
export function needsKey(encryption: string, name: string): BlockError {
  const what = `encrypted (${encryption}); its data needs a key; name its secret with encrypt.key-secret`;
  return fault(name, 'encrypted', what, { encryption }, 'ENCRYPTED');
}

/** Compressed clusters are not encrypted. */
export function compressedInEncrypted(name: string): BlockError {
  const what = 'encrypted; compressed clusters would be stored as they are, and are not written';
  return fault(name, 'compressed-encrypted', what, {}, 'UNSUPPORTED');
}

function openWindow(file: ByteStore, pointer: CryptoPointer | undefined, name: string): HeaderWindow {
  if (pointer === undefined) {
    throw fault(name, 'crypto-missing', 'encrypted with luks, but names no place of the LUKS header', { method: 2 });
  }
  const { offset, length } = pointer;
  if (length < LUKS_HEADER_BYTES || !Number.isSafeInteger(offset + length)) {
    const details = { value: length, bound: LUKS_HEADER_BYTES };
    throw fault(name, 'crypto-window', `the area of the LUKS header cannot be ${length} bytes long`, details);
  }
  return new HeaderWindow(file, offset, length);
}

/** The clusters of the LUKS header, as an area that begins at 0. */
export class HeaderWindow implements HeaderArea {
  readonly size: number;
  readonly #file: ByteStore;
  readonly #offset: number;
  guard: ((offset: number, length: number) => Pending) | undefined;

  /** @param size bytes; may end inside a cluster */
  constructor(file: ByteStore, offset: number, size: number) {
    this.#file = file;
    this.#offset = offset;
    this.size = size;
  }

  async read(offset: number, into: Uint8Array): Promise<void> {
    const inside = Math.max(0, Math.min(into.length, this.size - offset));
    into.fill(0, inside);
    if (inside > 0) await this.#file.read(this.#offset + offset, into.subarray(0, inside));
  }

  async write(offset: number, from: Uint8Array): Promise<void> {
    if (offset + from.length > this.size) {
      throw new BlockError('INTERNAL', 'internal error: a write past the end of the LUKS header');
    }
    await this.guard?.(this.#offset + offset, from.length);
    await this.#file.write(this.#offset + offset, from);
  }

  async flush(): Promise<void> {
    await this.#file.flush();
  }
}

function fault(
  name: string,
  finding: string,
  what: string,
  details: ErrorDetails,
  code: ErrorCode = 'CORRUPT',
): BlockError {
  return new BlockError(code, `qcow2 "${name}": ${what}`, { reason: `qcow2.${finding}`, details });
}
