/** Gives an image another backing file. Owns the checks, and the order that keeps the content; rebase-compare.ts copies.
 *  Order: what the image does not hold and the new backing file shows differently is copied into the image, flush; then the record, flush.
 *  Invariants: the image reads the same at every moment (but with `recordOnly`, where that is the caller's promise); neither backing file is
 *  written; a file that would lead back to the image is refused. */
import { BlockError, isBlockError } from '../base/errors.ts';
import type { JobOptions } from '../base/job.ts';
import type { BackingRecord } from '../core/format.ts';
import { type BlockNode, backingChain } from '../core/node.ts';
import type { Image } from '../image/image.ts';
import { type OpenImageOptions, openImage } from '../image/open.ts';
import { requireFormat } from '../image/probe.ts';
import { allowsReference, resolveReference } from '../image/references.ts';
import type { CacheMode } from './convert.ts';
import { identitiesOf, requireCompression } from './convert-target.ts';
import { Comparison } from './rebase-compare.ts';

export interface RebaseOptions
  extends Omit<
    OpenImageOptions,
    'readOnly' | 'openBacking' | 'forCheck' | 'metadataOnly' | 'unsafe' | 'name' | 'rules'
  > {
  /** The new backing file as it is to be recorded: relative to the directory of the image. `undefined`: none. Its format may be left out where
   *  the image's own format takes one for granted. */
  readonly to: BackingRecord | undefined;
  /** Open options of the new backing file. */
  readonly toOptions?: OpenImageOptions['options'];
  /** Change the record only (`-u`): the new file is the old one under another name, or as good. Neither file need be there. */
  readonly recordOnly?: boolean | undefined;
  /** Store what is copied compressed, as far as it fills whole clusters; not with `recordOnly`, which copies nothing. Default false. */
  readonly compressed?: boolean | undefined;
  /** How writes reach the disk. Default `writeback`. */
  readonly cache?: CacheMode | undefined;
  readonly onProgress?: JobOptions['onProgress'] | undefined;
  /** Told once the image could be opened. */
  readonly onOpened?: ((image: { readonly format: string; readonly probedRaw: boolean }) => void) | undefined;
}

export interface RebaseResult {
  /** As recorded before, and now. */
  readonly from: BackingRecord | undefined;
  readonly to: BackingRecord | undefined;
  /** Bytes copied from the old backing file into the image. */
  readonly copied: number;
  /** Bytes that the image holds as zeros now, because the new backing file has something there. */
  readonly zeroed: number;
}

/** Rebases. After a failure or an interruption the image still reads the same over its old backing file, and it can be done again.
 *  @throws {@link BlockError} as `openImage`; UNSUPPORTED `rebase.unsupported` (the format of the image records no other backing file);
 *  `convert.compress-unsupported` (it stores nothing compressed);
 *  INVALID_ARGUMENT `rebase.format` (details `{ format }`: no driver has that name), `rebase.format-missing`; CHAIN `rebase.loop`;
 *  `rebase.new-backing` (cause tells why it could not be opened), `rebase.record` (cause tells why it could not be recorded),
 *  `rebase.read`, `rebase.write` (details `{ name, offset }`, cause); ABORTED. */
export async function rebaseImage(name: string, options: RebaseOptions): Promise<RebaseResult> {
  const { recordOnly } = options;
  const image = await openImage(name, {
    ...opening(options),
    // of the new backing file alone: the image is written
    forceShare: false,
    lookAt: lookingAt(options),
    readOnly: false,
    discard: options.discard ?? 'unmap',
    ...(recordOnly === true ? { openBacking: false, metadataOnly: true } : {}),
  });
  try {
    options.onOpened?.({ format: image.format, probedRaw: image.probedRaw });
    return await new Rebase(image, options).run();
  } finally {
    await image.close();
  }
}

function opening(options: RebaseOptions): OpenImageOptions {
  const {
    to: _,
    toOptions: _options,
    recordOnly: _record,
    compressed: _compressed,
    cache,
    onProgress: _progress,
    onOpened: _opened,
    ...open
  } = options;
  return { ...open, unsafe: cache === 'unsafe' };
}

/** Whoever names a file lets it be looked at. */
function lookingAt({ lookAt, references = 'deny', to }: RebaseOptions): OpenImageOptions['lookAt'] {
  return (reference) => reference.name === to?.name || allowsReference(lookAt ?? references, reference);
}

class Rebase {
  readonly #image: Image;
  readonly #options: RebaseOptions;
  readonly #counts = { copied: 0, zeroed: 0 };

  constructor(image: Image, options: RebaseOptions) {
    this.#image = image;
    this.#options = options;
  }

  async run(): Promise<RebaseResult> {
    const { recordOnly, to } = this.#options;
    const from = (await this.#image.info()).backing;
    if (to?.format !== undefined) this.#requireKnown(to.format);
    const base = to === undefined || recordOnly === true ? undefined : await this.#openNew(to, from);
    try {
      const record = this.#completed(from);
      this.#requireRecordable();
      const stores = this.#image.node.format.writeCompressed !== undefined;
      if (this.#options.compressed === true) requireCompression(stores, this.#image.format);
      if (recordOnly !== true) await this.#copy(base);
      await this.#image.flush();
      await this.#record(record);
      return { from, to: record, ...this.#counts };
    } finally {
      await base?.close();
    }
  }

  #requireKnown(format: string): void {
    try {
      requireFormat(format, this.#image.name, this.#options.formats);
    } catch (error) {
      if (!isBlockError(error)) throw error;
      throw this.#refusal('format', error.message, { format });
    }
  }

  #requireRecordable(): void {
    const { name, format, node } = this.#image;
    if (node.format.changeBacking !== undefined) return;
    throw new BlockError('UNSUPPORTED', `${format} "${name}": the format records no other backing file`, {
      reason: 'rebase.unsupported',
      details: { name, format, to: this.#options.to?.name },
    });
  }

  /** A file whose format nobody records would be probed by its readers, which lets a guest decide what it is. */
  #completed(from: BackingRecord | undefined): BackingRecord | undefined {
    const { to } = this.#options;
    if (to === undefined || to.format !== undefined) return to;
    const format = this.#assumedFormat(from);
    if (format !== undefined) return { ...to, format };
    throw this.#refusal('format-missing', `the format of the new backing file "${to.name}" must be given`, {
      to: to.name,
    });
  }

  /** What the image's format takes every backing file for, where it records no format. */
  #assumedFormat(from: BackingRecord | undefined): string | undefined {
    if (from === undefined || from.format !== undefined || this.#options.backing !== undefined) return undefined;
    return this.#image.backingFormat;
  }

  #refusal(finding: string, what: string, details: Readonly<Record<string, unknown>>): BlockError {
    return new BlockError('INVALID_ARGUMENT', `"${this.#image.name}": ${what}`, {
      reason: `rebase.${finding}`,
      details: { name: this.#image.name, ...details },
    });
  }

  async #openNew(to: BackingRecord, from: BackingRecord | undefined): Promise<Image> {
    const { backing: _, options: _options, backingOptions: _below, ...common } = opening(this.#options);
    const { toOptions } = this.#options;
    const image = this.#image;
    try {
      const reference = { role: 'backing', name: to.name, readOnly: true } as const;
      const { resolved } = resolveReference(reference, image.location ?? image.name, common.protocols);
      const format = to.format ?? this.#assumedFormat(from);
      const asked = { ...common, format, options: toOptions, readOnly: true };
      const base = await openImage(resolved, asked).catch(async (error: unknown) => {
        // A loop meets the image itself, which is open for writing: then that is what is told.
        if (isBlockError(error) && error.code === 'LOCKED') await this.#lookForLoop(resolved, asked, to);
        throw error;
      });
      try {
        await this.#requireNoLoop(base, to);
        return base;
      } catch (error) {
        await base.close();
        throw error;
      }
    } catch (error) {
      if (!isBlockError(error) || ['ABORTED', 'INTERNAL', 'CHAIN'].includes(error.code)) throw error;
      throw new BlockError(error.code, `"${image.name}": could not open backing file "${to.name}": ${error.message}`, {
        reason: 'rebase.new-backing',
        details: { name: to.name, errno: error.details['errno'] },
        cause: error,
      });
    }
  }

  async #lookForLoop(name: string, asked: OpenImageOptions, to: BackingRecord): Promise<void> {
    const base = await openImage(name, { ...asked, forceShare: true });
    try {
      await this.#requireNoLoop(base, to);
    } finally {
      await base.close();
    }
  }

  async #requireNoLoop(base: Image, to: BackingRecord): Promise<void> {
    const written = new Set<string>();
    for (const child of this.#image.node.children) {
      if (child.role !== 'backing') await identitiesOf(child.node, written);
    }
    for (const layer of backingChain(base.node)) {
      const identity = (await layer.status?.())?.identity;
      if (layer.name !== this.#image.name && (identity === undefined || !written.has(identity))) continue;
      throw new BlockError('CHAIN', `"${this.#image.name}": "${to.name}" leads back to the image: a loop`, {
        reason: 'rebase.loop',
        details: { name: to.name, again: layer.name },
      });
    }
  }

  async #copy(base: Image | undefined): Promise<void> {
    const { cache, signal, onProgress } = this.#options;
    const comparison = new Comparison(this.#image, base?.node, {
      keepDepth: base === undefined ? Number.POSITIVE_INFINITY : await depthOf(base.node, this.#image.node),
      compressed: this.#options.compressed === true,
      writeOptions: cache === 'writethrough' || cache === 'directsync' ? { fua: true } : {},
      signal,
      onProgress,
      counts: this.#counts,
    });
    await comparison.run();
  }

  async #record(record: BackingRecord | undefined): Promise<void> {
    try {
      await this.#image.node.changeBacking(record);
    } catch (error) {
      if (!isBlockError(error) || error.code === 'ABORTED' || error.code === 'INTERNAL') throw error;
      throw new BlockError(error.code, error.message, {
        reason: 'rebase.record',
        details: { ...error.details, to: record?.name },
        cause: error,
      });
    }
  }
}

/** Where `base` is in the chain of `top`; `Infinity` when it is not. */
async function depthOf(base: BlockNode, top: BlockNode): Promise<number> {
  const identity = (await base.status?.())?.identity;
  for (const [depth, layer] of backingChain(top).entries()) {
    if (depth === 0 || layer.driver !== base.driver) continue;
    if (layer.name === base.name) return depth;
    if (identity !== undefined && (await layer.status?.())?.identity === identity) return depth;
  }
  return Number.POSITIVE_INFINITY;
}
