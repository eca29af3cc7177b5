/** How much space an image would need. The driver knows; this asks it. */
import { BlockError } from '../base/errors.ts';
import { type OptionsInput, resolveOptions } from '../base/options.ts';
import type { FormatDriver, Measurement } from '../core/format.ts';
import type { Image } from '../image/image.ts';
import { requireFormat } from '../image/probe.ts';

export interface MeasureOptions {
  readonly formats: readonly FormatDriver[];
  /** Format of the image to be. Default `raw`. */
  readonly format?: string | undefined;
  /** Its create options, by their TypeScript names. */
  readonly options?: Readonly<Record<string, unknown>> | undefined;
  /** Bytes; exactly one of `size` and `source`. */
  readonly size?: number | undefined;
  readonly source?: Image | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** Space for a new image of `size` bytes, or for one with the content of `source`.
 *  @throws {@link BlockError} UNSUPPORTED, reason `measure.unsupported`, details `{ format }`; INVALID_ARGUMENT, reason `measure.input`, unless exactly one
 *  input is given; OPTION for its create options. */
export async function measureImage(options: MeasureOptions): Promise<Measurement> {
  const { formats, source, size } = options;
  if ((size === undefined) === (source === undefined)) {
    throw new BlockError('INVALID_ARGUMENT', 'measure: exactly one of size and source must be given', {
      reason: 'measure.input',
    });
  }
  const driver = requireFormat(options.format ?? 'raw', source?.name ?? 'measure', formats);
  if (driver.measure === undefined) {
    throw new BlockError('UNSUPPORTED', `format ${driver.name} cannot tell how much space it needs`, {
      reason: 'measure.unsupported',
      details: { format: driver.name },
    });
  }
  const input = (options.options ?? {}) as OptionsInput<FormatDriver['createOptions']>;
  const resolved = resolveOptions(driver.createOptions, input);
  return driver.measure(size ?? source?.virtualSize ?? 0, resolved, source?.node, options.signal);
}
