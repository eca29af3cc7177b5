/** Images in memory, made by the library itself. */
import { qcow2 } from '../../../src/formats/qcow2/driver.ts';
import { raw } from '../../../src/formats/raw/driver.ts';
import { type CreateImageOptions, createImage } from '../../../src/image/create.ts';
import type { Image } from '../../../src/image/image.ts';
import { type OpenImageOptions, openImage } from '../../../src/image/open.ts';
import type { MemoryFiles } from './memory-protocol.ts';

export const KiB = 1024;
export const MiB = 1024 * KiB;
export const FORMATS = [qcow2, raw] as const;

export function drivers(files: MemoryFiles) {
  return { formats: FORMATS, protocols: [files.protocol] };
}

/** Creates an image and writes `data` into it: offsets to fill bytes and lengths. */
export async function make(
  files: MemoryFiles,
  name: string,
  options: Partial<CreateImageOptions> = {},
  data: readonly (readonly [offset: number, length: number, fill: number])[] = [],
): Promise<void> {
  await createImage(name, { ...drivers(files), format: 'qcow2', ...options });
  if (data.length === 0) return;
  const format = typeof options.format === 'string' ? options.format : (options.format?.name ?? 'qcow2');
  await using image = await open(files, name, { format, readOnly: false, references: 'allow' });
  for (const [offset, length, fill] of data) {
    if (fill === 0) await image.writeZeroes(offset, length);
    else await image.write(offset, new Uint8Array(length).fill(fill));
  }
}

/** An overlay over `backing`. */
export function makeOverlay(
  files: MemoryFiles,
  name: string,
  backing: string,
  data: readonly (readonly [offset: number, length: number, fill: number])[] = [],
  options: Partial<CreateImageOptions> = {},
): Promise<void> {
  return make(files, name, { backing: { name: backing, format: 'qcow2' }, ...options }, data);
}

export function open(files: MemoryFiles, name: string, options: Partial<OpenImageOptions> = {}): Promise<Image> {
  return openImage(name, { ...drivers(files), ...options });
}

export async function contentOf(image: Image): Promise<Uint8Array> {
  return image.read(0, image.virtualSize);
}
