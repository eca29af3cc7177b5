/** An open luks image: one data run, the whole disk, every sector of it encrypted.
 *  Spec: LUKS on-disk format 1.2.3, section 5; behaviour of QEMU's driver: no zero marks, no discard, no status of its own.
 *  Invariants: guest offset + payload offset = host offset; the guest's sector number is what a sector is encrypted with; the key is forgotten
 *  when the image closes. */
import type { Pending } from '../../base/async.ts';
import { alignUp } from '../../bytes/align.ts';
import type {
  AmendRun,
  DataTransform,
  FormatInfo,
  FormatNode,
  OpenContext,
  Secrets,
  WritePlan,
} from '../../core/format.ts';
import type { BlockNode, Child } from '../../core/node.ts';
import type { RunList } from '../../core/run.ts';
import type { Preallocation } from '../../core/store.ts';
import { amendKeys } from '../../crypto/amend-luks.ts';
import type { BulkSectors } from '../../crypto/bulk.ts';
import type { LuksVolume } from '../../crypto/luks.ts';
import { type SectorCipher, sectorTransform } from '../../crypto/sector-cipher.ts';
import { SECTOR } from '../../crypto/sectors.ts';
import { luksFault, requireKeySecret, subjectOf } from './fault.ts';
import type { LuksAmendOptions } from './options.ts';

/** The key of the disk, in this thread and on others. */
export interface DiskCiphers {
  readonly here: SectorCipher;
  readonly bulk: BulkSectors | undefined;
}

export class LuksNode implements FormatNode {
  readonly format = 'luks';
  /** Nothing is ever allocated; whole sectors are the engine's business. */
  readonly unit = 1;
  readonly zeroUnit = 1;
  /** What is a hole below is no hole here. */
  readonly recurse = 'none';
  readonly readOnly: boolean;
  readonly children: readonly Child[];
  readonly transform: DataTransform;
  readonly #file: BlockNode;
  readonly #name: string;
  readonly #volume: LuksVolume;
  readonly #ciphers: DiskCiphers | undefined;
  readonly #detached: boolean;
  readonly #keySecret: string | undefined;
  readonly #secret: Secrets;

  /** @param ciphers `undefined` where only facts are asked for @param header the file of a detached header
   *  @param keySecret id of the secret that opened it */
  constructor(
    context: OpenContext,
    volume: LuksVolume,
    ciphers: DiskCiphers | undefined,
    header: BlockNode | undefined,
    keySecret: string | undefined,
  ) {
    this.readOnly = context.readOnly;
    this.#file = context.file;
    this.#name = context.name;
    this.#volume = volume;
    this.#ciphers = ciphers;
    this.#detached = header !== undefined;
    this.#keySecret = keySecret;
    this.#secret = context.secret;
    this.transform =
      ciphers === undefined ? locked(context.name) : sectorTransform(ciphers.here, 'guest', ciphers.bulk);
    this.children = [
      { role: 'file', name: 'file', node: context.file },
      ...(header === undefined ? [] : [{ role: 'header', name: 'header', node: header } as const]),
    ];
  }

  /** What follows the header, rounded up to sectors, as QEMU reports it. */
  get virtualSize(): number {
    return alignUp(Math.max(0, this.#file.size - this.#volume.payloadOffset), SECTOR);
  }

  map(offset: number, length: number, into: RunList): Pending {
    into.push('data', length, 0, this.#volume.payloadOffset + offset, true);
    return undefined;
  }

  /** Every sector has its place already: the plan is the identity, and there is nothing to publish. */
  prepareWrite(offset: number, length: number): WritePlan {
    const hostOffset = this.#volume.payloadOffset + offset;
    return { guestOffset: offset, length, child: 0, hostOffset, headLength: 0, tailLength: 0 };
  }

  commitWrite(): undefined {
    return undefined;
  }

  async resize(virtualSize: number, preallocation: Preallocation | 'metadata'): Promise<void> {
    if (preallocation === 'metadata') {
      const what = "preallocation mode 'metadata' is not possible";
      throw luksFault('OPTION', this.#name, 'preallocation', what, { mode: preallocation });
    }
    const { payloadOffset } = this.#volume;
    if (virtualSize > Number.MAX_SAFE_INTEGER - payloadOffset) {
      throw luksFault(
        'TOO_LARGE',
        this.#name,
        'size',
        `size ${virtualSize} is too large for a payload at ${payloadOffset}`,
        {
          size: virtualSize,
          payloadOffset,
        },
      );
    }
    await this.#file.truncate(payloadOffset + virtualSize, { preallocation });
  }

  /** @throws {@link BlockError} as `amendKeys`. */
  async amend(options: LuksAmendOptions, { force, signal, onProgress }: AmendRun): Promise<void> {
    onProgress?.({ phase: 'amend', done: 0, total: 1 });
    await amendKeys(this.#volume, options, {
      subject: subjectOf(this.#name),
      keySecret: requireKeySecret(this.#keySecret, this.#name),
      secret: this.#secret,
      force,
      signal,
    });
    onProgress?.({ phase: 'amend', done: 1, total: 1 });
  }

  flush(): Pending {
    const announced = this.#file.event?.('flush_to_disk');
    if (announced !== undefined) return announced.then(() => this.#file.flush());
    return this.#file.flush();
  }

  async close(): Promise<void> {
    this.#ciphers?.here.wipe();
    await this.#ciphers?.bulk?.close();
  }

  info(): FormatInfo {
    const data = { ...this.#volume.info(), ...(this.#detached ? { 'detached-header': true } : {}) };
    return { encrypted: true, dirty: false, specific: { type: 'luks', data } };
  }
}

/** In place of the cipher where there is no key. */
function locked(name: string): DataTransform {
  const refuse = (): never => {
    throw luksFault('ENCRYPTED', name, 'locked', 'was opened without its key, for its facts alone');
  };
  return { sector: SECTOR, tweak: 'guest', encrypt: refuse, decrypt: refuse };
}
