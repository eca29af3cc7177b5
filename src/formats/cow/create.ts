/** Creates empty cow images. Spec: "What we should write", "File length".
 *  Write order: length (bitmap and data are holes, so they read as zero) and the header but for its first sector → flush → that sector, which
 *  holds the magic → flush: what a crash leaves is either no cow at all or a whole one, however long the name in its header is. */
import { BlockError } from '../../base/errors.ts';
import type { OptionsOf } from '../../base/options.ts';
import { alignUp } from '../../bytes/align.ts';
import type { CreateContext, ReferenceStatus } from '../../core/format.ts';
import type { ForwardContext } from '../../core/forward.ts';
import { encodeCowHeader } from './header.ts';
import { type CowGeometry, type CowLayout, geometryOf, layoutOf } from './layouts.ts';
import type { createOptions } from './options.ts';
import { recordFor } from './record.ts';

type CreateOptions = OptionsOf<typeof createOptions>;

/** Bytes: the only sector size of real files. */
const SECTOR = 512;
/** Bytes: the page size of the machines that made them. */
const ALIGNMENT = 4096;

/** What a new file will be. Bytes. */
export interface CowPlan {
  readonly layout: CowLayout;
  /** Of the disk. */
  readonly size: number;
  readonly geometry: CowGeometry;
  readonly header: Uint8Array;
  readonly fileSize: number;
}

/** @throws {@link BlockError} as `planCow`. */
export async function createCow(context: CreateContext, virtualSize: number, options: CreateOptions): Promise<void> {
  const { file } = context;
  const { header, fileSize } = await planCow(context, virtualSize, options);
  await file.truncate(fileSize, context.signal === undefined ? {} : { signal: context.signal });
  if (header.length > SECTOR) await file.write(SECTOR, header.subarray(SECTOR));
  await file.flush();
  await file.write(0, header.subarray(0, SECTOR));
  await file.flush();
}

/** @throws {@link BlockError} OPTION, reasons `cow.backing-…`, `cow.tail-create`, `cow.name-long`; TOO_LARGE, `cow.size`. */
export async function planCow(context: ForwardContext, virtualSize: number, options: CreateOptions): Promise<CowPlan> {
  const { name } = context;
  const { backingFile, backingFormat } = options;
  const layout = chosenLayout(options);
  const backing = backingFile === undefined ? undefined : { name: backingFile, format: backingFormat };
  const status =
    backing === undefined
      ? undefined
      : await context.referenceStatus({ role: 'backing', name: backing.name, readOnly: true });
  const size = exactSize(layout, virtualSize, status);
  const record = recordFor(layout, name, backing, status, size);
  const geometry = geometryOf(layout, { size, sectorSize: SECTOR, alignment: ALIGNMENT });
  if (geometry.storedBits < geometry.sectors) {
    throw new BlockError(
      'OPTION',
      `cow "${name}": layout ${layout.id} has no bits for the last ${geometry.sectors - geometry.storedBits} sectors of ${size} bytes; use layout v3, or a size that is a multiple of ${8 * SECTOR * layout.wordBytes}`,
      { reason: 'cow.tail-create', details: { layout: layout.id, size } },
    );
  }
  const fileSize = layout.qemu ? geometry.bitmapOffset + geometry.bitmapLength : geometry.dataOffset + size;
  if (!Number.isSafeInteger(geometry.dataOffset + alignUp(size, SECTOR))) {
    throw new BlockError('TOO_LARGE', `cow "${name}": a disk of ${size} bytes does not fit into a file`, {
      reason: 'cow.size',
      details: { size },
    });
  }
  const header = encodeCowHeader(layout.id, {
    backingName: record.name,
    mtime: record.mtime,
    size,
    sectorSize: SECTOR,
    alignment: ALIGNMENT,
  });
  return { layout, size, geometry, header, fileSize };
}

export function chosenLayout({ layout, backingFile }: Pick<CreateOptions, 'layout' | 'backingFile'>): CowLayout {
  return layoutOf(layout ?? (backingFile === undefined ? 'v2-qemu-x86_64' : 'v3'));
}

/** UML wants the size of the base to the byte, where a raw disk counts in whole sectors; QEMU knows whole sectors only. */
function exactSize(layout: CowLayout, asked: number, status: ReferenceStatus | undefined): number {
  if (layout.qemu) return alignUp(asked, SECTOR);
  return status?.size !== undefined && alignUp(status.size, SECTOR) === asked ? status.size : asked;
}
