/** Copying the dirty bitmaps of a source along with its content. Owns what can be refused before the target is touched.
 *  Invariant: a copy marks what the source's bitmap marks, and nothing of what the conversion itself has written. */
import { BlockError, type ErrorCode, type ErrorDetails } from '../base/errors.ts';
import type { BitmapInfo } from '../core/format.ts';
import type { Image } from '../image/image.ts';
import type { ConvertOptions, ConvertWindow } from './convert.ts';

/** What of a source's bitmaps is to be copied.
 *  @returns its bitmaps, oldest first; none when none are asked for.
 *  @throws {@link BlockError} INVALID_ARGUMENT, reason `convert.bitmaps-concat`; UNSUPPORTED, reason `convert.bitmaps-source`; CORRUPT, reason
 *  `convert.bitmaps-inconsistent`. */
export async function bitmapsToCopy(
  windows: readonly ConvertWindow[],
  { bitmaps }: ConvertOptions,
): Promise<readonly BitmapInfo[]> {
  if (bitmaps === undefined) return [];
  const [{ image, offset, length }] = windows as [ConvertWindow];
  if (windows.length > 1 || offset !== 0 || length !== image.virtualSize) {
    throw fault('INVALID_ARGUMENT', 'bitmaps-concat', 'bitmaps can be copied from one whole image only');
  }
  if (image.node.format?.bitmaps?.available !== true) {
    throw fault('UNSUPPORTED', 'bitmaps-source', `"${image.name}": cannot have bitmaps that could be copied`);
  }
  const all = await image.bitmaps();
  // From the newest on, as QEMU looks at them.
  const broken = all.findLast(({ inconsistent }) => inconsistent);
  if (broken !== undefined && bitmaps === 'all') {
    throw fault(
      'CORRUPT',
      'bitmaps-inconsistent',
      `"${image.name}": bitmap '${broken.name}' is inconsistent and cannot be copied; leave such bitmaps out, or remove it`,
      { bitmap: broken.name },
    );
  }
  return all;
}

/** @throws {@link BlockError} UNSUPPORTED, reason `convert.bitmaps-target`. */
export function requireBitmapTarget(target: Image, options: ConvertOptions): void {
  if (options.bitmaps === undefined || target.node.format?.bitmaps?.available === true) return;
  throw fault('UNSUPPORTED', 'bitmaps-target', `"${target.name}": format ${target.format} cannot hold bitmaps`, {
    format: target.format,
  });
}

/** Makes the bitmaps in the target, whose content is there already.
 *  @throws {@link BlockError} `convert.bitmap-create`, `convert.bitmap-populate`, with the cause. */
export async function copyBitmaps(
  bitmaps: readonly BitmapInfo[],
  source: Image,
  target: Image,
  options: ConvertOptions,
): Promise<void> {
  const known = new Set((await target.bitmaps()).map(({ name }) => name));
  for (const { name, inconsistent } of [...bitmaps].reverse()) {
    if (inconsistent) options.onBitmapSkipped?.(name);
    else if (known.has(name)) {
      throw fault('INVALID_ARGUMENT', 'bitmap-create', `"${target.name}": has a bitmap '${name}' already`, {
        bitmap: name,
      });
    }
  }
  const usable = bitmaps.filter(({ inconsistent }) => !inconsistent);
  for (const { name, granularity, enabled } of usable) {
    await told(name, () => target.addBitmap({ name, granularity, enabled }));
  }
  for (const { name } of usable.reverse()) await told(name, () => target.mergeBitmap(name, name, source));
}

async function told(name: string, act: () => Promise<void>): Promise<void> {
  try {
    await act();
  } catch (cause) {
    if (!(cause instanceof BlockError)) throw cause;
    throw new BlockError(cause.code, `bitmap '${name}' could not be copied: ${cause.message}`, {
      reason: 'convert.bitmap-populate',
      details: { ...cause.details, bitmap: name },
      cause,
    });
  }
}

function fault(code: ErrorCode, finding: string, message: string, details: ErrorDetails = {}): BlockError {
  return new BlockError(code, message, { reason: `convert.${finding}`, details });
}
