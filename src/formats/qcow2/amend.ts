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

export type Qcow2AmendOptions = OptionsInput<typeof amendOptions>;

/** What amending needs of the open image. */
export interface AmendHost {
  readonly state: Qcow2State;
  readonly snapshots: Snapshots;
  readonly encryption: Encryption | undefined;
  /** Writes everything back, refcounts included, and frees what was dropped. */
  settle(): Promise<void>;
  resize(virtualSize: number): Promise<void>;
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

class Amend {
  readonly #host: AmendHost;
  readonly #state: Qcow2State;
  readonly #options: Qcow2AmendOptions;
  readonly #run: AmendRun;
  readonly #version: 2 | 3;
  readonly #lazyRefcounts: boolean;

  constructor(host: AmendHost, options: Qcow2AmendOptions, run: AmendRun) {
    const { header, lazyRefcounts } = host.state;
    this.#host = host;
    this.#state = host.state;
    this.#options = options;
    this.#run = run;
    this.#version = options.compat === undefined ? header.version : options.compat === 'v2' ? 2 : 3;
    this.#lazyRefcounts = options.lazyRefcounts ?? lazyRefcounts;
  }

  async run(): Promise<void> {
    this.#requirePossible();
    const { size } = this.#options;
    const parts: ((progress: (done: number, total: number) => void) => Promise<void>)[] = [];
    if (this.#version > this.#state.header.version) parts.push((progress) => this.#upgrade(progress));
    await this.#each(parts);
    await this.#amendKeys();
    await this.#recordDataFile();
    await this.#switchLazyRefcounts();
    if (size !== undefined && size > 0) await this.#host.resize(size);
  }

  async #each(parts: readonly ((progress: (done: number, total: number) => void) => Promise<void>)[]): Promise<void> {
    for (const [index, part] of parts.entries()) {
      throwIfAborted(this.#run.signal);
      await part((done, total) =>
        this.#run.onProgress?.({
          phase: 'amend',
          done: index * PART + (PART * done) / total,
          total: parts.length * PART,
        }),
      );
    }
  }

  // ── what can be refused ──────────────────────────────────────────────────────────────────────

  #requirePossible(): void {
    const { header, geometry, hasDataFile, rawDataFile } = this.#state;
    const { dataFile, dataFileRaw, backingFile, backingFmt, refcountBits = geometry.refcountBits } = this.#options;
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
    if (refcountBits !== geometry.refcountBits) {
      throw this.#fault('UNSUPPORTED', 'refcount-bits', 'the width of refcounts cannot be changed yet', {});
    }
    const other = backingFile !== header.backingFile || backingFmt !== header.backingFormat;
    if ((backingFile !== undefined || backingFmt !== undefined) && other) {
      throw this.#fault('UNSUPPORTED', 'backing', 'the backing file is changed by rebasing, not by amending', {});
    }
    if (this.#lazyRefcounts && !this.#state.lazyRefcounts && this.#version < 3) {
      throw this.#fault('OPTION', 'lazy-refcounts', 'lazy_refcounts needs version 3 (compat=1.1)', {});
    }
    if (this.#version < header.version) {
      throw this.#fault('UNSUPPORTED', 'downgrade', 'version 3 cannot be made version 2 yet', {});
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
  async #upgrade(progress: (done: number, total: number) => void): Promise<void> {
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
