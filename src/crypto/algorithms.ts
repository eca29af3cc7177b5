/** Names of ciphers, modes, IV generators and hashes, as LUKS headers and QEMU's options spell them, and which of them this library can do.
 *  Spec: LUKS on-disk format 1.2.3, section 6 (registry of specifications), as QEMU restricts it.
 *  Invariant: a set of algorithms that was made here is one that QEMU accepts in a header; whether it can be used here is asked separately
 *  ({@link requireUsable}), because what an image is can be told without its key. */
import { fault } from './fault.ts';
import type { BlockCipher, CryptoProvider } from './provider.ts';

export type CipherMode = 'ecb' | 'cbc' | 'xts' | 'ctr';
/** `plain`: the sector number, 32 bits of it. `plain64`: 64 bits. `essiv`: that, encrypted with a hash of the key. */
export type IvGenerator = 'plain' | 'plain64' | 'essiv';

/** How sectors are encrypted. */
export interface SectorCipherSpec {
  /** `aes`. */
  readonly cipher: string;
  /** Bytes of the cipher's own key; XTS takes two of them. */
  readonly cipherKeyBytes: number;
  readonly mode: CipherMode;
  readonly ivGenerator: IvGenerator;
  /** Of `essiv`; with the others it is allowed and means nothing, as in dm-crypt. */
  readonly ivHash?: string | undefined;
}

export interface LuksAlgorithms extends SectorCipherSpec {
  /** Of key derivation, master key digest and anti-forensic splitting. */
  readonly hash: string;
}

/** Ciphers that QEMU writes into headers, with the key lengths it takes. */
const CIPHERS: Readonly<Record<string, readonly number[]>> = {
  aes: [16, 24, 32],
  cast5: [16],
  serpent: [16, 24, 32],
  sm4: [16],
  twofish: [16, 24, 32],
};
/** Those of them that are known here (docs/decisions/020-ciphers.md). */
const USABLE = new Set(['aes', 'sm4']);
const MODES: readonly string[] = ['ecb', 'cbc', 'xts', 'ctr'] satisfies CipherMode[];
const IV_GENERATORS: readonly string[] = ['plain', 'plain64', 'essiv'] satisfies IvGenerator[];
/** Digest lengths in bytes. */
const HASHES: Readonly<Record<string, number>> = {
  md5: 16,
  sha1: 20,
  sha224: 28,
  sha256: 32,
  sha384: 48,
  sha512: 64,
  ripemd160: 20,
  sm3: 32,
};

/** Bytes of a hash that a set of algorithms names. */
export function digestBytes(hash: string): number {
  return HASHES[hash] as number;
}

/** Bytes of the master key. */
export function masterKeyBytes(spec: SectorCipherSpec): number {
  return spec.mode === 'xts' ? spec.cipherKeyBytes * 2 : spec.cipherKeyBytes;
}

/** What QEMU's option `cipher-alg` calls it: `aes-256`. */
export function cipherAlgName(spec: SectorCipherSpec): string {
  return algName(spec.cipher, spec.cipherKeyBytes);
}

function algName(cipher: string, keyBytes: number): string {
  return cipher === 'sm4' ? 'sm4' : `${cipher}-${keyBytes * 8}`;
}

/** The mode field of a header: `xts-plain64`, `cbc-essiv:sha256`. */
export function cipherModeField(spec: SectorCipherSpec): string {
  const generator = `${spec.mode}-${spec.ivGenerator}`;
  return spec.ivHash === undefined ? generator : `${generator}:${spec.ivHash}`;
}

/** Takes the names of a header apart.
 *  @param keyBytes length of the master key
 *  @throws {@link BlockError} CORRUPT `luks.mode-field`, `luks.iv-hash`; UNSUPPORTED `luks.hash`, `luks.mode`, `luks.cipher`,
 *  `luks.iv-generator`, `luks.essiv`; details name the value. */
export function parseAlgorithms(
  cipher: string,
  modeField: string,
  hash: string,
  keyBytes: number,
  subject: string,
): LuksAlgorithms {
  const dash = modeField.indexOf('-');
  if (dash < 0) {
    throw fault(subject, 'mode-field', `cipher mode "${modeField}" does not name an IV generator`, { mode: modeField });
  }
  const mode = modeField.slice(0, dash);
  const colon = modeField.indexOf(':', dash);
  const ivGenerator = colon < 0 ? modeField.slice(dash + 1) : modeField.slice(dash + 1, colon);
  const ivHash = colon < 0 ? undefined : modeField.slice(colon + 1);
  if (ivHash !== undefined) requireKnownHash(ivHash, subject);
  requireKnownMode(mode, subject);
  const cipherKeyBytes = mode === 'xts' ? keyBytes / 2 : keyBytes;
  requireKnownCipher(cipher, cipherKeyBytes, subject);
  requireKnownHash(hash, subject);
  requireKnownIvGenerator(ivGenerator, subject);
  const algorithms = { cipher, cipherKeyBytes, mode, ivGenerator, ivHash, hash };
  requireEssiv(algorithms, subject);
  return algorithms;
}

/** Choices of whoever creates a volume, under QEMU's names. */
export interface AlgorithmOptions {
  /** `aes-256` by default. */
  readonly cipherAlg?: string | undefined;
  /** `xts` by default. */
  readonly cipherMode?: string | undefined;
  /** `plain64` by default. */
  readonly ivgenAlg?: string | undefined;
  /** `sha256` by default where the IV generator needs one. */
  readonly ivgenHashAlg?: string | undefined;
  /** `sha256` by default. */
  readonly hashAlg?: string | undefined;
}

/** @throws {@link BlockError} UNSUPPORTED, as {@link parseAlgorithms}. */
export function chooseAlgorithms(options: AlgorithmOptions, subject: string): LuksAlgorithms {
  const name = options.cipherAlg ?? 'aes-256';
  const [cipher = '', bits] = name === 'sm4' ? ['sm4', '128'] : name.split('-', 2);
  const mode = options.cipherMode ?? 'xts';
  const ivGenerator = options.ivgenAlg ?? 'plain64';
  const hash = options.hashAlg ?? 'sha256';
  const ivHash = options.ivgenHashAlg ?? (ivGenerator === 'essiv' ? 'sha256' : undefined);
  const cipherKeyBytes = Number(bits) / 8;
  requireKnownMode(mode, subject);
  requireKnownCipher(cipher, cipherKeyBytes, subject, name);
  requireKnownHash(hash, subject);
  if (ivHash !== undefined) requireKnownHash(ivHash, subject);
  requireKnownIvGenerator(ivGenerator, subject);
  const algorithms = { cipher, cipherKeyBytes, mode, ivGenerator, ivHash, hash };
  requireEssiv(algorithms, subject);
  return algorithms;
}

/** Refuses what cannot be done here, by its name, before anybody waits for a key to be derived.
 *  @throws {@link BlockError} UNSUPPORTED `luks.cipher`, `luks.hash`. */
export function requireUsable(algorithms: LuksAlgorithms, provider: CryptoProvider, subject: string): void {
  openBlockCipher(algorithms.cipher, new Uint8Array(algorithms.cipherKeyBytes), provider, subject).wipe();
  for (const hash of [algorithms.hash, algorithms.ivGenerator === 'essiv' ? algorithms.ivHash : undefined]) {
    if (hash === undefined || provider.hasHash(hash)) continue;
    throw fault(subject, 'hash', `the hash ${hash} is not in this runtime`, { hash }, 'UNSUPPORTED');
  }
}

/** One key of a cipher that a header names.
 *  @throws {@link BlockError} UNSUPPORTED `luks.cipher`. */
export function openBlockCipher(name: string, key: Uint8Array, provider: CryptoProvider, subject: string): BlockCipher {
  const cipher = algName(name, key.length);
  if (!USABLE.has(name)) {
    throw fault(subject, 'cipher', `the cipher ${cipher} is not supported`, { cipher }, 'UNSUPPORTED');
  }
  const opened = provider.blockCipher(name, key);
  if (opened !== undefined) return opened;
  throw fault(subject, 'cipher', `the cipher ${cipher} is not in this runtime`, { cipher }, 'UNSUPPORTED');
}

/** Length of the key that ESSIV makes of a hash: the cipher must take it, which is dm-crypt's way of having AES-256 for the IVs of AES-128.
 *  @returns `undefined` where the cipher does not take it. */
export function essivKeyBytes(spec: SectorCipherSpec): number | undefined {
  const length = HASHES[spec.ivHash ?? ''];
  return length !== undefined && CIPHERS[spec.cipher]?.includes(length) === true ? length : undefined;
}

function requireEssiv(spec: SectorCipherSpec, subject: string): void {
  if (spec.ivGenerator !== 'essiv') return;
  const { cipher, ivHash } = spec;
  if (ivHash === undefined) throw fault(subject, 'iv-hash', 'the IV generator essiv names no hash');
  if (essivKeyBytes(spec) !== undefined) return;
  throw fault(
    subject,
    'essiv',
    `essiv with ${ivHash} needs a key of ${digestBytes(ivHash)} bytes, which ${cipher} does not take`,
    { cipher, hash: ivHash, keyBytes: digestBytes(ivHash) },
    'UNSUPPORTED',
  );
}

function requireKnownHash(hash: string, subject: string): void {
  if (Object.hasOwn(HASHES, hash)) return;
  throw fault(subject, 'hash', `the hash "${hash}" is not supported`, { hash }, 'UNSUPPORTED');
}

function requireKnownMode(mode: string, subject: string): asserts mode is CipherMode {
  if (MODES.includes(mode)) return;
  throw fault(subject, 'mode', `the cipher mode "${mode}" is not supported`, { mode }, 'UNSUPPORTED');
}

function requireKnownIvGenerator(generator: string, subject: string): asserts generator is IvGenerator {
  if (IV_GENERATORS.includes(generator)) return;
  throw fault(
    subject,
    'iv-generator',
    `the IV generator "${generator}" is not supported`,
    { generator },
    'UNSUPPORTED',
  );
}

function requireKnownCipher(cipher: string, keyBytes: number, subject: string, name?: string): void {
  if (Object.hasOwn(CIPHERS, cipher) && CIPHERS[cipher]?.includes(keyBytes) === true) return;
  const what =
    name === undefined
      ? `the cipher "${cipher}" with a key of ${keyBytes} bytes is not supported`
      : `the cipher "${name}" is not supported`;
  throw fault(subject, 'cipher', what, { cipher: name ?? cipher, keyBytes }, 'UNSUPPORTED');
}
