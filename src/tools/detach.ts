/** Makes the data file of an image an image of its own, for formats that keep data apart from metadata.
 *  Owns the filling of what the image does not hold yet, and the removal of what is needed no longer.
 *  Invariants: the image reads the same before, during and after filling; nothing is removed before the data file stands alone, durable. */
import { BlockError } from '../base/errors.ts';
import type { JobOptions } from '../base/job.ts';
import type { Standalone } from '../core/format.ts';
import type { Image } from '../image/image.ts';
import { type OpenImageOptions, openImage } from '../image/open.ts';
import { protocolOf } from '../image/references.ts';
import type { CacheMode } from './convert.ts';
import { HeldLayers } from './held-layers.ts';
import { RangeCopy } from './range-copy.ts';
import { StatusCursor } from './status-cursor.ts';

export interface DetachOptions
  extends Omit<
    OpenImageOptions,
    'readOnly' | 'openBacking' | 'forCheck' | 'metadataOnly' | 'unsafe' | 'name' | 'rules'
  > {
  /** Copy what the image does not hold from its backing file first. */
  readonly fill?: boolean | undefined;
  /** Remove the file that is needed no longer. */
  readonly remove?: boolean | undefined;
  /** How writes reach the disk. Default `writeback`. */
  readonly cache?: CacheMode | undefined;
  readonly onProgress?: JobOptions['onProgress'] | undefined;
  /** Told once the image could be opened. */
  readonly onOpened?: ((image: { readonly format: string; readonly probedRaw: boolean }) => void) | undefined;
}

export interface DetachResult {
  /** The file that stands alone now. */
  readonly standalone: Standalone;
  /** Bytes that were copied from the backing file. */
  readonly filled: number;
  /** The image itself was removed. */
  readonly removed: boolean;
}

/** Detaches. After a failure or an interruption the image is as useful as it was.
 *  @throws {@link BlockError} as `openImage`; UNSUPPORTED `detach.unsupported`; INVALID_ARGUMENT, reason `detach.incomplete`, details `{ missing }` (bytes),
 *  when the image does not hold everything; `detach.read`, `detach.write`; UNSUPPORTED `detach.remove`; ABORTED. */
export async function detachImage(name: string, options: DetachOptions): Promise<DetachResult> {
  const { fill, remove, cache, onProgress, onOpened, ...open } = options;
  const protocol = protocolOf(name, options.protocols);
  if (remove === true && protocol.remove === undefined) {
    throw new BlockError('UNSUPPORTED', `"${name}": ${protocol.name} cannot remove files`, {
      reason: 'detach.remove',
      details: { name },
    });
  }
  const image = await openImage(name, {
    ...open,
    readOnly: false,
    unsafe: cache === 'unsafe',
    openBacking: fill === true,
  });
  let filled = 0;
  let standalone: Standalone;
  try {
    onOpened?.({ format: image.format, probedRaw: image.probedRaw });
    requireDetachable(image);
    const missing = await missingOf(image);
    if (fill === true) filled = await fillFrom(image, missing, options);
    else if (missing > 0) throw incomplete(image, missing);
    standalone = await image.node.detach();
  } finally {
    await image.close();
  }
  if (remove === true) await protocol.remove?.(name);
  return { standalone, filled, removed: remove === true };
}

function requireDetachable({ node, name, format }: Image): void {
  if (node.format.detach !== undefined) return;
  throw new BlockError('UNSUPPORTED', `${format} "${name}": has no data file of its own that could stand alone`, {
    reason: 'detach.unsupported',
    details: { name, format },
  });
}

function incomplete({ name }: Image, missing: number): BlockError {
  return new BlockError('INVALID_ARGUMENT', `"${name}": does not hold ${missing} bytes of its disk; fill it first`, {
    reason: 'detach.incomplete',
    details: { name, missing },
  });
}

/** Bytes that the image does not hold. */
async function missingOf(image: Image): Promise<number> {
  const held = new HeldLayers([image.node]);
  let missing = 0;
  for (let at = 0; at < image.virtualSize; at = held.end) {
    await held.seek(at);
    if (held.kind === 'below') missing += held.end - at;
  }
  return missing;
}

/** Makes the image hold what it reads: from its backing file, and zeros where that has ended. Zeros are marked first; where marking leaves them
 *  to whatever lies below, they are written. */
async function fillFrom(image: Image, missing: number, options: DetachOptions): Promise<number> {
  const { cache, signal, onProgress } = options;
  if (missing === 0) return 0;
  const copy = new RangeCopy({
    job: 'detach',
    source: image.node,
    target: image,
    total: image.virtualSize,
    writeThrough: cache === 'writethrough' || cache === 'directsync',
    rateLimit: undefined,
    signal,
    onProgress,
  });
  let failure: { readonly error: unknown } | undefined;
  try {
    await fillOnce(image, copy, true);
    await copy.finish();
    await fillOnce(image, copy, false);
  } catch (error) {
    failure = { error };
  }
  try {
    await copy.finish();
  } catch (error) {
    failure ??= { error };
  }
  if (failure !== undefined) throw failure.error;
  await image.flush();
  return missing;
}

async function fillOnce(image: Image, copy: RangeCopy, marking: boolean): Promise<void> {
  const held = new HeldLayers([image.node]);
  const shown = new StatusCursor(image.node);
  let end: number;
  for (let at = 0; at < image.virtualSize; at = end) {
    await held.seek(at);
    end = held.end;
    if (held.kind !== 'below') {
      await copy.step(end);
      continue;
    }
    await shown.seek(at);
    end = Math.min(end, shown.end);
    if (marking && shown.zero) await copy.zero(at, end);
    else await copy.copy(at, end);
  }
}
