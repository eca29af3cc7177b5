/** Moves what an image holds into a layer below it, and empties the image. Owns the order, which is what makes it safe to interrupt.
 *  Order: everything is checked, the image opened for writing and the base too; data and zeros into the base; the base durable and closed;
 *  what the image records of its base brought up to date; the image emptied.
 *  Invariants: the image reads the same at every moment, whatever the base has got by then, because it holds all that is being copied;
 *  no file is open for writing twice; at the end everything that was opened here is closed. */
import { BlockError, isBlockError } from '../base/errors.ts';
import type { JobOptions } from '../base/job.ts';
import type { ImageEvent } from '../core/format.ts';
import { type BlockNode, backingChain, childOf } from '../core/node.ts';
import { UNDERMINED_CLAIM } from '../core/permissions.ts';
import type { ProtocolDriver } from '../core/protocol.ts';
import { lockedFiles } from '../image/claims.ts';
import { describedBelow } from '../image/graph-nodes.ts';
import type { Image } from '../image/image.ts';
import { type OpenImageOptions, type OpenOptionsInput, openImage } from '../image/open.ts';
import { resolveReference } from '../image/references.ts';
import type { CacheMode } from './convert.ts';
import { identitiesOf } from './convert-target.ts';
import { HeldLayers } from './held-layers.ts';
import { RangeCopy } from './range-copy.ts';

export interface CommitOptions
  extends Omit<
    OpenImageOptions,
    'readOnly' | 'openBacking' | 'forCheck' | 'metadataOnly' | 'unsafe' | 'name' | 'rules'
  > {
  /** The layer to commit into, by a name that means it: as it was recorded, or as it resolves. The layers between are committed too, become
   *  useless by it, and the image is not emptied. Default: its backing file. */
  readonly base?: string | undefined;
  /** Leave the image as it is (`-d`). */
  readonly keep?: boolean | undefined;
  /** Bytes per second at most. */
  readonly rateLimit?: number | undefined;
  /** How writes reach the disk; `unsafe` gives up what this module says about interruptions. Default `writeback`. */
  readonly cache?: CacheMode | undefined;
  readonly onProgress?: JobOptions['onProgress'] | undefined;
  /** Told once the image could be opened, before its base is looked for. */
  readonly onOpened?: ((image: { readonly format: string; readonly probedRaw: boolean }) => void) | undefined;
}

/** Sizes in bytes. */
export interface CommitResult {
  /** The layer that was committed into. */
  readonly base: string;
  readonly baseFormat: string;
  /** Layers committed: 1, and those between the image and its base. */
  readonly layers: number;
  readonly copied: number;
  /** Made to read as zero. */
  readonly zeroed: number;
  /** Bytes by which the base was made larger. */
  readonly grown: number;
  /** The image holds nothing any more. */
  readonly emptied: boolean;
}

/** Commits. After a failure or an interruption the image still reads the same, and it can be done again.
 *  @throws {@link BlockError} as `openImage`; INVALID_ARGUMENT `commit.no-backing`, `commit.base-not-found` (details `{ base }`), `commit.same-file`;
 *  `commit.base-open` (cause tells), LOCKED `commit.layer-used` (another program reads a layer between), UNSUPPORTED `commit.base-small` (the base is smaller and cannot grow), `commit.read` and `commit.write`
 *  (details `{ name, offset }`, cause); ABORTED. */
export async function commitImage(name: string, options: CommitOptions): Promise<CommitResult> {
  const found = await survey(name, options);
  const overlay = await openImage(name, {
    ...opening(options),
    readOnly: false,
    discard: options.discard ?? 'unmap',
    openBacking: (found?.depth ?? 1) - 1,
    onEvent: onlyEvents(options, (event) => !isGuess(event)),
  });
  try {
    options.onOpened?.({ format: overlay.format, probedRaw: overlay.probedRaw });
    if (found === undefined) throw noBacking(name, options.base);
    return await new Commit(overlay, found, options).run();
  } finally {
    await overlay.close();
  }
}

/** The layer to commit into, found by a look at the whole chain. */
interface CommitPlan {
  /** Layers above it. */
  readonly depth: number;
  readonly name: string;
  /** `undefined`: found out once more, because nobody recorded it. */
  readonly format: string | undefined;
  /** Open options of its layer and those below. */
  readonly below: readonly OpenOptionsInput[];
}

function opening(options: CommitOptions): OpenImageOptions {
  const { base: _, keep: _keep, rateLimit: _rate, cache, onProgress: _progress, onOpened: _opened, ...open } = options;
  return { ...open, unsafe: cache === 'unsafe' };
}

/** What is said of the chain is said by the survey, what is said of the image when it is opened to be written. */
function isGuess(event: ImageEvent): boolean {
  return event.type === 'warning' && event.reason === 'image.guessed';
}

function onlyEvents(options: CommitOptions, which: (event: ImageEvent) => boolean): (event: ImageEvent) => void {
  return (event) => {
    if (which(event)) options.onEvent?.(event);
  };
}

/** Opens the chain for reading: every file is there, may be opened, and no loop is in it. @returns `undefined` when the base is not there. */
async function survey(name: string, options: CommitOptions): Promise<CommitPlan | undefined> {
  const image = await openToLook(name, options);
  try {
    const layers = backingChain(image.node);
    const depth = options.base === undefined ? 1 : await findBase(layers, options.base, options);
    const base = layers[depth];
    if (base === undefined) return undefined;
    const below = (options.backingOptions ?? describedBelow(name)).slice(depth - 1);
    return { depth, name: base.name, format: await formatOf(image, layers, depth), below };
  } finally {
    await image.close();
  }
}

/** @throws as `openImage` for writing, where another program has it. */
async function openToLook(name: string, options: CommitOptions): Promise<Image> {
  const onEvent = onlyEvents(options, isGuess);
  try {
    return await openImage(name, { ...opening(options), readOnly: true, onEvent });
  } catch (error) {
    if (!isBlockError(error) || error.reason !== 'file.locked') throw error;
    // It is to be written: that is what is refused, and what is told.
    await (await openImage(name, { ...opening(options), readOnly: false, openBacking: false, onEvent })).close();
    throw error;
  }
}

function noBacking(name: string, base: string | undefined): BlockError {
  if (base === undefined) {
    return new BlockError('INVALID_ARGUMENT', `"${name}": has no backing file to commit into`, {
      reason: 'commit.no-backing',
      details: { name },
    });
  }
  return new BlockError('INVALID_ARGUMENT', `"${name}": "${base}" is not in its backing chain`, {
    reason: 'commit.base-not-found',
    details: { name, base },
  });
}

/** @returns the number of layers when none has that name. */
async function findBase(layers: readonly BlockNode[], base: string, options: CommitOptions): Promise<number> {
  for (let depth = 1; depth < layers.length; depth++) {
    const [above, layer] = [layers[depth - 1], layers[depth]] as [BlockNode, BlockNode];
    if (layer.name === base || (await means(base, above, layer, options.protocols))) return depth;
  }
  return layers.length;
}

/** Whether `base`, seen from the layer above, leads to `layer`. */
async function means(
  base: string,
  above: BlockNode,
  layer: BlockNode,
  protocols: readonly ProtocolDriver[],
): Promise<boolean> {
  try {
    const reference = { role: 'backing', name: base, readOnly: true } as const;
    const { protocol, resolved } = resolveReference(reference, above.name, protocols);
    if (resolved === layer.name) return true;
    const identity = (await protocol.status?.(resolved))?.identity;
    return identity !== undefined && identity === (await layer.status?.())?.identity;
  } catch (error) {
    // A name that means nothing here means no layer.
    if (isBlockError(error) && error.code !== 'ABORTED' && error.code !== 'INTERNAL') return false;
    throw error;
  }
}

/** The format of a layer, as long as somebody said it: a guess is made again, so that the guard of guessed images is there. */
async function formatOf(image: Image, layers: readonly BlockNode[], depth: number): Promise<string | undefined> {
  if (depth === 1) return image.backingFormat;
  const recorded = (await layers[depth - 1]?.format?.info())?.backing?.format;
  return recorded === undefined ? undefined : layers[depth]?.driver;
}

class Commit {
  readonly #overlay: Image;
  readonly #plan: CommitPlan;
  readonly #options: CommitOptions;
  /** The base may differ from what the image records of it. */
  #touched = false;

  constructor(overlay: Image, plan: CommitPlan, options: CommitOptions) {
    this.#overlay = overlay;
    this.#plan = plan;
    this.#options = options;
  }

  async run(): Promise<CommitResult> {
    const base = await this.#openBase();
    let moved: Omit<CommitResult, 'emptied'>;
    try {
      this.#keepLayers();
      moved = await this.#move(base);
    } catch (error) {
      await this.#giveUp(base);
      throw error;
    }
    await this.#refresh();
    const keep = this.#options.keep === true || this.#options.base !== undefined;
    return { ...moved, emptied: !keep && (await this.#empty()) };
  }

  /** The layers between read wrongly from now on: nobody else may have them open. */
  #keepLayers(): void {
    for (const layer of backingChain(this.#overlay.node).slice(1, this.#plan.depth)) {
      const file = childOf(layer, 'file');
      try {
        for (const { locks } of file === undefined ? [] : lockedFiles(file)) locks?.claim(UNDERMINED_CLAIM);
      } catch (error) {
        if (!isBlockError(error)) throw error;
        throw new BlockError(error.code, `"${layer.name}": would read wrongly after the commit: ${error.message}`, {
          reason: 'commit.layer-used',
          details: { name: layer.name },
          cause: error,
        });
      }
    }
  }

  async #openBase(): Promise<Image> {
    const { name, format, below } = this.#plan;
    const { backing: _, dataFile: __, options: ___, lookAt, ...common } = opening(this.#options);
    try {
      const base = await openImage(name, {
        ...common,
        lookAt,
        format,
        options: below[0],
        backingOptions: below.slice(1),
        readOnly: false,
        discard: common.discard ?? 'unmap',
      });
      try {
        await this.#requireSeparate(base);
        return base;
      } catch (error) {
        await base.close();
        throw error;
      }
    } catch (error) {
      throw this.#baseError(error);
    }
  }

  #baseError(error: unknown): unknown {
    if (!isBlockError(error) || error.reason?.startsWith('commit.') === true) return error;
    if (error.code === 'ABORTED' || error.code === 'INTERNAL' || error.code === 'REFERENCE_DENIED') return error;
    const { name } = this.#plan;
    return new BlockError(error.code, `"${name}": could not be opened for writing: ${error.message}`, {
      reason: 'commit.base-open',
      details: { ...error.details, name, errno: error.details['errno'] },
      cause: error,
    });
  }

  /** Two layers over one file would write over each other. */
  async #requireSeparate(base: Image): Promise<void> {
    const read = new Set<string>();
    await identitiesOf(this.#overlay.node, read);
    for (const child of base.node.children) {
      if (child.role === 'backing') continue;
      const written = new Set<string>();
      await identitiesOf(child.node, written);
      if (![...written].some((identity) => read.has(identity))) continue;
      throw new BlockError('INVALID_ARGUMENT', `"${base.name}": is part of "${this.#overlay.name}" itself`, {
        reason: 'commit.same-file',
        details: { name: base.name },
      });
    }
  }

  async #move(base: Image): Promise<Omit<CommitResult, 'emptied'>> {
    const { signal, onProgress, rateLimit, cache } = this.#options;
    const overlay = this.#overlay;
    const size = overlay.virtualSize;
    const grown = Math.max(0, size - base.virtualSize);
    if (grown > 0) await this.#grow(base, size);
    const layers = backingChain(overlay.node).slice(0, this.#plan.depth);
    const held = new HeldLayers(layers);
    const copy = new RangeCopy({
      job: 'commit',
      source: overlay.node,
      target: base,
      total: size,
      writeThrough: cache === 'writethrough' || cache === 'directsync',
      rateLimit,
      signal,
      onProgress,
    });
    this.#touched = true;
    try {
      for (let at = 0; at < size; at = held.end) {
        const waiting = held.seek(at);
        if (waiting !== undefined) await waiting;
        if (held.kind === 'data') await copy.copy(at, held.end);
        else if (held.kind === 'zero') await copy.zero(at, held.end);
        else await copy.step(held.end);
      }
    } finally {
      await settled(copy.finish());
    }
    await copy.finish();
    onProgress?.({ phase: 'commit', done: size, total: size });
    if (cache !== 'unsafe') await base.flush();
    await base.close();
    const { name, format } = base;
    return { base: name, baseFormat: format, layers: layers.length, ...copy.counts, grown };
  }

  async #grow(base: Image, size: number): Promise<void> {
    this.#touched = true;
    try {
      await base.resize(size);
    } catch (error) {
      if (!isBlockError(error) || error.code === 'ABORTED' || error.code === 'INTERNAL') throw error;
      const { name, virtualSize } = base;
      throw new BlockError(
        error.code,
        `"${name}": has ${virtualSize} bytes and cannot grow to ${size}: ${error.message}`,
        {
          reason: 'commit.base-small',
          details: { name, size: virtualSize, needed: size, errno: error.details['errno'] },
          cause: error,
        },
      );
    }
  }

  /** After a failure: what the image records of its base should be true all the same, so that it can be opened again. */
  async #giveUp(base: Image): Promise<void> {
    try {
      await base.close();
      if (this.#touched) await this.#refresh();
    } catch {
      // The failure that led here is the one to tell.
    }
  }

  /** The base has changed, and what the image records of it (a time, perhaps) with it. */
  async #refresh(): Promise<void> {
    const { node } = this.#overlay;
    if (this.#plan.depth > 1 || node.format.changeBacking === undefined) return;
    const { backing } = await node.format.info();
    if (backing !== undefined) await node.changeBacking(backing);
  }

  async #empty(): Promise<boolean> {
    try {
      await this.#overlay.node.makeEmpty({
        sameContent: true,
        ...(this.#options.signal === undefined ? {} : { signal: this.#options.signal }),
      });
      return true;
    } catch (error) {
      if (isBlockError(error) && error.reason === 'engine.empty') return false;
      throw error;
    }
  }
}

/** Ends when `work` has ended, well or not. */
async function settled(work: Promise<void>): Promise<void> {
  try {
    await work;
  } catch {
    // Told by whoever waits for it in earnest.
  }
}
