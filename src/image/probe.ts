/** Which format is it? Owns the choice among the drivers' scores. Reads the first bytes only.
 *  Invariants: a tie goes to the driver that stands first in the list; a driver with score 1 (raw, which matches everything) is
 *  an answer only when no other matches, and the caller is told that it was a guess. */
import { BlockError } from '../base/errors.ts';
import type { FormatDriver, ProbeInput } from '../core/format.ts';
import type { ByteStore } from '../core/store.ts';

/** Bytes that drivers may look at. */
const PROBE_BYTES = 2048;

export interface ProbeResult {
  readonly driver: FormatDriver;
  /** Nothing but the format that matches everything did. */
  readonly guessed: boolean;
}

/** The best of the drivers for these bytes; `undefined` when none matches. */
export function probeBytes(input: ProbeInput, formats: readonly FormatDriver[]): ProbeResult | undefined {
  let best: FormatDriver | undefined;
  let bestScore = 0;
  for (const driver of formats) {
    const score = driver.probe(input);
    if (score > bestScore) {
      best = driver;
      bestScore = score;
    }
  }
  return best === undefined ? undefined : { driver: best, guessed: bestScore === 1 };
}

/** Probes an open file.
 *  @throws {@link BlockError} WRONG_FORMAT, reason `image.not-recognised`. */
export async function probeFormat(
  file: ByteStore,
  name: string,
  formats: readonly FormatDriver[],
): Promise<ProbeResult> {
  const align = file.limits.requestAlign;
  const length = Math.min(PROBE_BYTES, file.size);
  const head = new Uint8Array(Math.ceil(length / align) * align);
  await file.read(0, head);
  const result = probeBytes({ head: head.subarray(0, length), fileSize: file.size, name }, formats);
  if (result !== undefined) return result;
  throw new BlockError('WRONG_FORMAT', `"${name}": the format is not recognised; name it if you know it`, {
    reason: 'image.not-recognised',
    details: { name, formats: formats.map((driver) => driver.name) },
  });
}

/** The driver of that name.
 *  @throws {@link BlockError} INVALID_ARGUMENT, reason `image.unknown-format`, details `{ name, format }`. */
export function requireFormat(format: string, name: string, formats: readonly FormatDriver[]): FormatDriver {
  const driver = formats.find((candidate) => candidate.name === format);
  if (driver !== undefined) return driver;
  throw new BlockError('INVALID_ARGUMENT', `"${name}": unknown format '${format}'`, {
    reason: 'image.unknown-format',
    details: { name, format, formats: formats.map((candidate) => candidate.name) },
  });
}
