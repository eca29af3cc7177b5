/** New LUKS version 1 volumes, laid out as QEMU and cryptsetup do: header, eight key slots' material, payload.
 *  Invariant: the header is written last, so that an interrupted creation leaves no volume that looks whole. */
import {
  type AlgorithmOptions,
  chooseAlgorithms,
  type LuksAlgorithms,
  masterKeyBytes,
  requireUsable,
} from './algorithms.ts';
import { fault } from './fault.ts';
import { iterationsFor } from './key-derivation.ts';
import { digestOf } from './key-slot.ts';
import { LuksVolume } from './luks.ts';
import {
  emptySlots,
  encodeLuksHeader,
  LUKS_DIGEST_BYTES,
  LUKS_HEADER_AREA,
  LUKS_SALT_BYTES,
  LUKS_STRIPES,
  luksHeaderArea,
} from './luks-header.ts';
import { DEFAULT_ITER_TIME, type HeaderArea } from './luks-options.ts';
import { MasterKey } from './master-key.ts';
import type { CryptoProvider } from './provider.ts';
import { SECTOR } from './sectors.ts';

export interface LuksLayout {
  readonly algorithms: LuksAlgorithms;
  /** Bytes of header and key material. The payload of a volume in one file begins behind them. */
  readonly headerBytes: number;
}

/** What a volume with these options will look like, so that somebody can measure it, or make room for it.
 *  @throws {@link BlockError} UNSUPPORTED `luks.cipher`, `luks.mode`, `luks.hash`, `luks.iv-generator`, `luks.essiv`. */
export function planLuks(options: AlgorithmOptions, subject: string): LuksLayout {
  const algorithms = chooseAlgorithms(options, subject);
  return { algorithms, headerBytes: luksHeaderArea(algorithms) };
}

export interface CreateLuksOptions extends AlgorithmOptions {
  /** What messages begin with. */
  readonly subject: string;
  /** Opens key slot 0. */
  readonly passphrase: Uint8Array;
  /** The payload goes into another file. */
  readonly detached?: boolean | undefined;
  /** Milliseconds that one attempt to unlock shall take on this machine; 2000 by default. */
  readonly iterTime?: number | undefined;
}

/** Makes a volume in an area of at least {@link LuksLayout.headerBytes} bytes, reading as zero. Durable when it ends.
 *  @returns the volume, and its new master key, which the caller wipes
 *  @throws {@link BlockError} as {@link planLuks}; OPTION `luks.iter-time`. */
export async function createLuks(
  area: HeaderArea,
  provider: CryptoProvider,
  options: CreateLuksOptions,
): Promise<{ readonly volume: LuksVolume; readonly key: MasterKey }> {
  const { subject } = options;
  const { algorithms, headerBytes } = planLuks(options, subject);
  requireUsable(algorithms, provider, subject);
  requireReadableByQemu(algorithms, subject);
  const key = random(masterKeyBytes(algorithms), provider);
  try {
    const iterTime = options.iterTime ?? DEFAULT_ITER_TIME;
    const digestSalt = random(LUKS_SALT_BYTES, provider);
    const { hash } = algorithms;
    const digestIterations = await iterationsFor(iterTime, 1 / 8, hash, LUKS_DIGEST_BYTES, provider, subject);
    const header = {
      algorithms,
      payloadOffset: options.detached === true ? 0 : headerBytes,
      digest: await digestOf(key, { algorithms, digestSalt, digestIterations }, provider),
      digestSalt,
      digestIterations,
      uuid: randomUuid(provider),
      slots: emptySlots(algorithms),
    };
    const head = new Uint8Array(LUKS_HEADER_AREA);
    head.set(encodeLuksHeader(header));
    const volume = new LuksVolume(area, provider, subject, head, header);
    const master = new MasterKey(key, 0, header.digest);
    await volume.addKey({ unlock: master, passphrase: options.passphrase, slot: 0, iterTime });
    return { volume, key: master };
  } catch (error) {
    key.fill(0);
    throw error;
  }
}

/** QEMU ends with an assertion when a slot's material is no whole number of sectors, as keys of 24 bytes make it. */
function requireReadableByQemu(algorithms: LuksAlgorithms, subject: string): void {
  const keyBytes = masterKeyBytes(algorithms);
  if ((keyBytes * LUKS_STRIPES) % SECTOR === 0) return;
  const what = `a master key of ${keyBytes} bytes makes volumes that QEMU cannot open; another cipher-alg, or xts, does not`;
  throw fault(subject, 'key-bytes', what, { keyBytes }, 'UNSUPPORTED');
}

function random(length: number, provider: CryptoProvider): Uint8Array {
  const bytes = new Uint8Array(length);
  provider.fillRandom(bytes);
  return bytes;
}

/** Version 4, as RFC 9562 has it. */
function randomUuid(provider: CryptoProvider): string {
  const bytes = random(16, provider);
  bytes[6] = ((bytes[6] as number) & 0x0f) | 0x40;
  bytes[8] = ((bytes[8] as number) & 0x3f) | 0x80;
  const digits = Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
  return digits.replace(/^(.{8})(.{4})(.{4})(.{4})/, '$1-$2-$3-$4-');
}
