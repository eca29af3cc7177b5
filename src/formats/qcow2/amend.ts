/** Amending: what an image was created with, changed while it is open. Spec: qcow2, "Header"; QEMU's `amend`.
 *  Owns the order of the parts: an upgrade first, because others need version 3; a downgrade last, because others make it possible.
 *  Everything that can be refused is refused before the first part begins. Each part is whole or not at all at any cut; none of them changes
 *  what the guest reads. Runs alone. */
import { BlockError, type ErrorCode, type ErrorDetails } from '../../base/errors.ts';
import { throwIfAborted } from '../../base/job.ts';
import type { OptionsInput } from '../../base/options.ts';
import { isPowerOfTwo } from '../../bytes/align.ts';
import type { AmendRun } from '../../core/format.ts';
import { type KeyAmendment, requireKeyAmendment } from '../../crypto/amend-luks.ts';
import { type Encryption, subjectOf } from './encryption.ts';
import { AUTOCLEAR, COMPATIBLE, INCOMPATIBLE } from './features.ts';
import { switchHeader } from './header-switch.ts';
import type { Qcow2State } from './image-state.ts';
import type { amendOptions } from './options.ts';
import type { Snapshots } from './snapshots.ts';

/** How a part tells how far it is, in steps of its own. */
export interface PartRun extends Pick<AmendRun, 'signal'> {
  progress(done: number, total: number): void;
}

export type Qcow2AmendOptions = OptionsInput<typeof amendOptions>;

/** What amending needs of the open image. */
export interface AmendHost {
  readonly state: Qcow2State;
  readonly snapshots: Snapshots;
  readonly encryption: Encryption | undefined;
  /** Writes everything back, refcounts included, and frees what was dropped. */
  settle(): Promise<void>;
  resize(virtualSize: number): Promise<void>;
  /** @throws as `resize`, before anything changes. */
  requireResizable(virtualSize: number, version: number): void;
  readonly hasBitmaps: boolean;
  /** Gives refcounts another width: 2^order bits. */
  changeWidth(order: number, run: PartRun): Promise<void>;
  /** Takes the zero marks out of all tables. */
  expandZeros(run: PartRun): Promise<void>;
}

/** The options that are about keys, without their prefix. */
function keyAmendment(options: Qcow2AmendOptions): KeyAmendment {
  return {
    state: options.encryptState,
    keyslot: options.encryptKeyslot,
    newSecret: options.encryptNewSecret,
    oldSecret: options.encryptOldSecret,
    iterTime: options.encryptIterTime,
  };
}

/** Steps of progress that one part is worth. */
const PART = 1000;

/** @see FormatNode.amend
 *  @throws {@link BlockError} OPTION and UNSUPPORTED with reasons `qcow2.amend-…`; as `amendKeys`; as resizing; ABORTED. */
export async function amendQcow2(host: AmendHost, options: Qcow2AmendOptions, run: AmendRun): Promise<void> {
  await new Amend(host, options, run).run();
}

type PartProgress = PartRun['progress'];

function signalOf({ signal }: AmendRun): Pick<AmendRun, 'signal'> {
  return signal === undefined ? {} : { signal };
}

class Amend {
  readonly #host: AmendHost;
  readonly #state: Qcow2State;
  readonly #options: Qcow2AmendOptions;
  readonly #run: AmendRun;
  readonly #version: 2 | 3;
  readonly #lazyRefcounts: boolean;
  readonly #refcountBits: number;
  #parts = 0;
  #partsDone = 0;

  constructor(host: AmendHost, options: Qcow2AmendOptions, run: AmendRun) {
    const { header, lazyRefcounts } = host.state;
    this.#host = host;
    this.#state = host.state;
    this.#options = options;
    this.#run = run;
    this.#version = options.compat === undefined ? header.version : options.compat === 'v2' ? 2 : 3;
    this.#refcountBits = options.refcountBits ?? host.state.geometry.refcountBits;
    const lazy = options.lazyRefcounts ?? lazyRefcounts;
    // Version 2 has none: what was on goes off with the version.
    this.#lazyRefcounts = lazy && (this.#version >= 3 || !lazyRefcounts);
  }

  async run(): Promise<void> {
    this.#requirePossible();
    const { size } = this.#options;
    const { version, refcountOrder } = this.#state.header;
    const order = Math.log2(this.#refcountBits);
    this.#parts = [this.#version !== version, order !== refcountOrder].filter(Boolean).length;
    if (this.#version > version) await this.#part((progress) => this.#upgrade(progress));
    await this.#amendKeys();
    if (order !== refcountOrder) {
      await this.#part((progress) => this.#host.changeWidth(order, { ...signalOf(this.#run), progress }));
    }
    await this.#recordDataFile();
    await this.#switchLazyRefcounts();
    if (size !== undefined && size > 0) await this.#host.resize(size);
    if (this.#version < version) await this.#part((progress) => this.#downgrade(progress));
  }

  /** A part that takes time. */
  async #part(act: (progress: PartProgress) => Promise<void>): Promise<void> {
    throwIfAborted(this.#run.signal);
    const before = this.#partsDone * PART;
    await act((done, total) =>
      this.#run.onProgress?.({
        phase: 'amend',
        done: before + (PART * done) / total,
        total: this.#parts * PART,
      }),
    );
    this.#partsDone++;
  }

  // ── what can be refused ──────────────────────────────────────────────────────────────────────

  #requirePossible(): void {
    const { header, geometry, hasDataFile, rawDataFile } = this.#state;
    const { dataFile, dataFileRaw, backingFile, backingFmt } = this.#options;
    const refcountBits = this.#refcountBits;
    this.#requireEncryption();
    if (dataFile !== undefined && !hasDataFile) {
      throw this.#fault('OPTION', 'data-file', 'a data file can only be named for images that have one', { dataFile });
    }
    if (dataFileRaw === true && !rawDataFile) {
      throw this.#fault('OPTION', 'data-file-raw', 'data_file_raw cannot be set on an existing image', {});
    }
    if (refcountBits > 64 || !isPowerOfTwo(refcountBits)) {
      throw new BlockError(
        'OPTION',
        `qcow2 "${this.#state.name}": refcounts of ${refcountBits} bits; a power of two up to 64 is possible`,
        { reason: 'qcow2.refcount-bits', details: { value: refcountBits } },
      );
    }
    if (refcountBits !== geometry.refcountBits && refcountBits !== 16 && this.#version < 3) {
      throw this.#fault('OPTION', 'refcount-bits', 'refcounts of other than 16 bits need version 3 (compat=1.1)', {
        value: refcountBits,
      });
    }
    const other = backingFile !== header.backingFile || backingFmt !== header.backingFormat;
    if ((backingFile !== undefined || backingFmt !== undefined) && other) {
      throw this.#fault('UNSUPPORTED', 'backing', 'the backing file is changed by rebasing, not by amending', {});
    }
    if (this.#lazyRefcounts && !this.#state.lazyRefcounts && this.#version < 3) {
      throw this.#fault('OPTION', 'lazy-refcounts', 'lazy_refcounts needs version 3 (compat=1.1)', {});
    }
    const { size } = this.#options;
    if (size !== undefined && size > 0) this.#host.requireResizable(size, Math.max(header.version, this.#version));
    if (this.#version < header.version) this.#requireDowngrade();
  }

  /** What version 2 cannot have. */
  #requireDowngrade(): void {
    const { header, hasDataFile } = this.#state;
    const { size } = this.#options;
    const virtualSize = size === undefined || size === 0 ? header.virtualSize : size;
    if (this.#refcountBits !== 16) {
      throw this.#fault('UNSUPPORTED', 'downgrade-refcount-bits', 'version 2 has refcounts of 16 bits only', {
        value: this.#refcountBits,
      });
    }
    if (hasDataFile) throw this.#fault('UNSUPPORTED', 'downgrade-data-file', 'version 2 has no external data file', {});
    const odd = this.#host.snapshots.table.entries.find(
      ({ diskSize, vmStateSize }) => diskSize !== virtualSize || vmStateSize > 0xffff_ffff,
    );
    if (odd !== undefined) {
      throw this.#fault('UNSUPPORTED', 'downgrade-snapshots', `version 2 cannot describe snapshot ${odd.id}`, {
        id: odd.id,
        diskSize: odd.diskSize,
        vmStateSize: odd.vmStateSize,
      });
    }
    const features = header.incompatible & ~INCOMPATIBLE.dirty;
    if (features !== 0n) {
      throw this.#fault(
        'UNSUPPORTED',
        'downgrade-features',
        `version 2 has none of the incompatible features 0x${features.toString(16)}`,
        { features: features.toString(16) },
      );
    }
    if (this.#host.hasBitmaps) {
      throw this.#fault('UNSUPPORTED', 'downgrade-bitmaps', 'version 2 has no bitmaps; remove them first', {});
    }
  }

  #requireEncryption(): void {
    const asked = Object.entries(this.#options).filter(([key, value]) => /^encrypt/.test(key) && value !== undefined);
    const { encryption } = this.#state.header;
    if (asked.length === 0) return;
    const names = asked.map(([key]) => key);
    if (encryption === 'none') {
      throw this.#fault('OPTION', 'not-encrypted', 'not encrypted: there are no keys to amend', { names });
    }
    if (encryption !== 'luks') {
      throw this.#fault('UNSUPPORTED', 'not-luks', `encrypted by ${encryption}, which has no key slots`, { names });
    }
    requireKeyAmendment(keyAmendment(this.#options), subjectOf(this.#state.name));
  }

  #fault(code: ErrorCode, finding: string, what: string, details: ErrorDetails): BlockError {
    return new BlockError(code, `qcow2 "${this.#state.name}": ${what}`, { reason: `qcow2.amend-${finding}`, details });
  }

  // ── the parts ────────────────────────────────────────────────────────────────────────────────

  /** Snapshots first: version 3 demands of them what version 2 may have as well. */
  async #upgrade(progress: PartProgress): Promise<void> {
    progress(0, 2);
    await this.#host.snapshots.completeTable(this.#run);
    progress(1, 2);
    await switchHeader(this.#state, { ...this.#state.header, version: 3 });
    progress(2, 2);
  }

  async #amendKeys(): Promise<void> {
    const asked = keyAmendment(this.#options);
    if (asked.state === undefined) return;
    const { force, signal } = this.#run;
    await this.#host.encryption?.amendKeys(asked, { force, signal });
  }

  /** Everything that only version 3 has is gone before the header says version 2. */
  async #downgrade(progress: PartProgress): Promise<void> {
    await this.#host.expandZeros({ ...signalOf(this.#run), progress });
    progress(1, 1);
    const { header } = this.#state;
    await switchHeader(this.#state, {
      ...header,
      version: 2,
      incompatible: 0n,
      compatible: 0n,
      autoclear: 0n,
      unknownTail: new Uint8Array(0),
      bitmaps: undefined,
      staleBitmaps: false,
    });
  }

  async #recordDataFile(): Promise<void> {
    const { header } = this.#state;
    const { dataFile, dataFileRaw } = this.#options;
    const autoclear = dataFileRaw === false ? header.autoclear & ~AUTOCLEAR.dataFileRaw : header.autoclear;
    const name = dataFile === undefined ? header.dataFile : dataFile || undefined;
    if (autoclear === header.autoclear && name === header.dataFile) return;
    await switchHeader(this.#state, { ...header, autoclear, dataFile: name });
  }

  /** On: the header says that it may be, before the first dirty bit. Off: refcounts are right on disk before it says that they must be. */
  async #switchLazyRefcounts(): Promise<void> {
    const on = this.#lazyRefcounts;
    if (on === this.#state.lazyRefcounts) return;
    if (!on) await this.#host.settle();
    const { header } = this.#state;
    const compatible = on
      ? header.compatible | COMPATIBLE.lazyRefcounts
      : header.compatible & ~COMPATIBLE.lazyRefcounts;
    const incompatible = on ? header.incompatible : header.incompatible & ~INCOMPATIBLE.dirty;
    await switchHeader(this.#state, { ...header, compatible, incompatible });
    this.#state.lazyRefcounts = on;
  }
}
