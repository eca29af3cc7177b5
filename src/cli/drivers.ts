/** The formats and protocols of the program, loaded when the first image is touched. */
import type { FormatDriver } from '../core/format.ts';
import type { ImageDrivers } from '../image/open.ts';
import type { Personality } from './console.ts';
import type { Objects } from './objects.ts';

/** Formats in probe order, and the protocols; the first of them opens plain names.
 *  Called qemu-img, only QEMU's own formats are looked for: what a guest wrote into a raw disk must not make it another one for
 *  programs that count on QEMU's list. The others need a name (`-f`).
 *  @param compression whether compressed data will be read or written; loading what that takes costs time at start-up.
 *  @param objects whose secrets and throttle groups the images' options may name */
export async function loadDrivers(
  personality: Personality,
  compression: boolean,
  objects: Objects,
): Promise<ImageDrivers> {
  const [{ qcow2 }, { luks }, { addCow }, { cow }, { raw }, { fileProtocol }, { nullCo, nullAio }] = await Promise.all([
    import('../formats/qcow2/driver.ts'),
    import('../formats/luks/driver.ts'),
    import('../formats/add-cow/driver.ts'),
    import('../formats/cow/driver.ts'),
    import('../formats/raw/driver.ts'),
    import('../storage/file.ts'),
    import('../storage/null-store.ts'),
  ]);
  const qemus: readonly FormatDriver[] = [qcow2, luks, raw];
  const formats: readonly FormatDriver[] = [qcow2, luks, addCow, cow, raw];
  const drivers: ImageDrivers = {
    formats,
    probed: personality.qemu ? qemus : formats,
    protocols: [fileProtocol, nullCo, nullAio],
    secrets: objects.secrets,
    objects: objects.graphObjects,
    filters: async () => (await import('../filters/all.ts')).ALL_FILTERS,
  };
  if (!compression) return drivers;
  const { createCodecs } = await import('../codec/create.ts');
  return { ...drivers, codecs: createCodecs() };
}

/** The driver of that name, or `undefined`. */
export function formatNamed(drivers: ImageDrivers, name: string): FormatDriver | undefined {
  return drivers.formats.find((driver) => driver.name === name);
}
