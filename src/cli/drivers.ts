/** The formats and protocols of the program, loaded when the first image is touched. */
import type { FormatDriver } from '../core/format.ts';
import type { ImageDrivers } from '../image/open.ts';

/** Formats in probe order, and the protocols; the first of them opens plain names.
 *  @param compression whether compressed data will be read or written; loading what that takes costs time at start-up. */
export async function loadDrivers(compression: boolean): Promise<ImageDrivers> {
  const [{ qcow2 }, { raw }, { fileProtocol }] = await Promise.all([
    import('../formats/qcow2/driver.ts'),
    import('../formats/raw/driver.ts'),
    import('../storage/file.ts'),
  ]);
  const drivers = { formats: [qcow2, raw] as readonly FormatDriver[], protocols: [fileProtocol] };
  if (!compression) return drivers;
  const { createCodecs } = await import('../codec/create.ts');
  return { ...drivers, codecs: createCodecs() };
}

/** The driver of that name, or `undefined`. */
export function formatNamed(drivers: ImageDrivers, name: string): FormatDriver | undefined {
  return drivers.formats.find((driver) => driver.name === name);
}
