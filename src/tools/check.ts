/** Checks, and with `fix` repairs, an image. Owns the second look after a repair. */

import type { JobOptions } from '../base/job.ts';
import type { CheckFinding, CheckFix, CheckResult } from '../core/format.ts';
import type { Image } from '../image/image.ts';
import { type OpenImageOptions, openImage } from '../image/open.ts';

export interface CheckImageOptions extends Omit<OpenImageOptions, 'readOnly' | 'forCheck'> {
  /** Default `none`, which opens read-only. */
  readonly fix?: CheckFix | undefined;
  /** Each finding as it is made; `pass` 2 is the look after a repair. */
  readonly onFinding?: ((finding: CheckFinding, pass: 1 | 2) => void) | undefined;
  /** Something was repaired and the second look begins; told the counters of the first. */
  readonly onRecheck?: ((first: CheckResult) => void) | undefined;
  readonly onProgress?: JobOptions['onProgress'] | undefined;
}

export interface CheckReport {
  readonly name: string;
  readonly format: string;
  /** The state now: the second look's counters, with the first one's fixed ones, when something was repaired. */
  readonly result: CheckResult;
  /** A second look was made because the first repaired something. */
  readonly rechecked: boolean;
}

/** Checks one layer; its backing files stay unopened unless `openBacking` is true.
 *  @throws {@link BlockError} UNSUPPORTED, reason `check.unsupported`, when the format has no check (qemu-img: exit status 63); else as `openImage`. */
export async function checkImage(name: string, options: CheckImageOptions): Promise<CheckReport> {
  const { fix = 'none', onFinding, onRecheck, onProgress, ...open } = options;
  const image = await openImage(name, {
    ...open,
    openBacking: options.openBacking ?? false,
    readOnly: fix === 'none',
    forCheck: true,
  });
  try {
    const first = await look(image, options, fix, 1);
    if (first.corruptionsFixed === 0 && first.leaksFixed === 0) {
      return { name, format: image.format, result: first, rechecked: false };
    }
    onRecheck?.(first);
    const second = await look(image, options, 'none', 2);
    const { corruptionsFixed, leaksFixed } = first;
    return { name, format: image.format, result: { ...second, corruptionsFixed, leaksFixed }, rechecked: true };
  } finally {
    await image.close();
  }
}

function look(image: Image, options: CheckImageOptions, fix: CheckFix, pass: 1 | 2): Promise<CheckResult> {
  const { onFinding, onProgress, signal } = options;
  return image.check({
    fix,
    ...(signal === undefined ? {} : { signal }),
    ...(onProgress === undefined ? {} : { onProgress }),
    ...(onFinding === undefined ? {} : { onFinding: (finding: CheckFinding) => onFinding(finding, pass) }),
  });
}
