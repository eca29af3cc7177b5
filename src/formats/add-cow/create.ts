/** Creating an image: checks, the image file, the add-cow file. Spec: add-cow, rows, R6, R11, R12.
 *  Write order: image file at its size, durable → bitmap of zeros and what the header has behind its first sector, durable → first sector,
 *  durable. Until then there is no magic; and what an image file held before is not seen until its bits are set. */
import type { ErrorDetails } from '../../base/errors.ts';
import { throwIfAborted } from '../../base/job.ts';
import { alignUp, isPowerOfTwo } from '../../bytes/align.ts';
import type { CreateContext, Reference, ReferenceStatus } from '../../core/format.ts';
import type { ByteStore } from '../../core/store.ts';
import { backingError, isBackingFile, isSame, look, selfError } from './files.ts';
import { encodeV9 } from './header-v9.ts';
import { encodeV20 } from './header-v20.ts';
import {
  type AddCowShape,
  fault,
  fileLength,
  headerSize,
  MAX_CLUSTER_BITS,
  MIN_CLUSTER_BITS,
  RAW,
  SECTOR,
  V9_CLUSTER,
  V20_FIELDS,
} from './layout.ts';
import { encodeName, requireFormatName } from './names.ts';
import type { AddCowCreateOptions } from './options.ts';
import { type AddCowHeader, COMPATIBLE, recordedName } from './record.ts';

/** Version and cluster size. Used by `create` and `measure`.
 *  @throws {@link BlockError} OPTION `add-cow.cluster-size`. */
export function shapeFromOptions(
  { compat, clusterSize }: Pick<AddCowCreateOptions, 'compat' | 'clusterSize'>,
  name: string,
): AddCowShape {
  const [min, max] = compat === 'v9' ? [V9_CLUSTER, V9_CLUSTER] : [2 ** MIN_CLUSTER_BITS, 2 ** MAX_CLUSTER_BITS];
  if (clusterSize >= min && clusterSize <= max && isPowerOfTwo(clusterSize)) return { version: compat, clusterSize };
  const bounds = min === max ? `${min}, as ${compat} has it` : `a power of two between ${min} and ${max}`;
  throw refusal(name, 'cluster-size', `cluster_size ${clusterSize} is not ${bounds}`, {
    value: clusterSize,
    bound: [min, max],
  });
}

/** Creates an image of `virtualSize` bytes, rounded up to 512, in `context.file`, which is empty. The image file is made through
 *  `context.createReference`, and kept when it is there: it gets the size of the disk, but for v9, where its length decides.
 *  @throws {@link BlockError} OPTION: `add-cow.names` (v9 without both names), `add-cow.image-file`, `add-cow.cluster-size`, `add-cow.v9-format`,
 *  `add-cow.backing-name…`, `add-cow.image-name…`, `add-cow.names-space`, `add-cow.backing-format`, `add-cow.image-format`,
 *  `add-cow.image-format-new`, `add-cow.image-is-self`, `add-cow.image-is-backing`, `add-cow.image-size`, `add-cow.size-twice`;
 *  NO_SPACE `add-cow.device-small`. */
export async function createAddCow(
  context: CreateContext,
  virtualSize: number,
  options: AddCowCreateOptions,
): Promise<void> {
  const { file, name, signal } = context;
  const header = planHeader(options, name);
  const size = alignUp(virtualSize, SECTOR);
  if (options.size !== undefined && alignUp(options.size, SECTOR) !== size) {
    throw refusal(name, 'size-twice', `option size is ${options.size}, but the image is to have ${size} bytes`, {
      value: options.size,
      size,
    });
  }
  throwIfAborted(signal);
  const diskSize = await makeImage(context, header, size, options.size !== undefined);
  throwIfAborted(signal);
  await reserve(file, fileLength(header, diskSize), name);
  const encoded = header.version === 'v9' ? encodeV9(header) : encodeV20(header);
  if (encoded.length > SECTOR) await file.write(SECTOR, encoded.subarray(SECTOR));
  await file.flush();
  throwIfAborted(signal);
  await file.write(0, encoded.subarray(0, SECTOR));
  await file.flush();
}

function planHeader(options: AddCowCreateOptions, name: string): AddCowHeader {
  const { compat, backingFile, backingFmt, imageFile, imageFmt = RAW } = options;
  const shape = shapeFromOptions(options, name);
  if (compat === 'v9' && (backingFile === undefined || imageFile === undefined)) {
    throw refusal(name, 'names', 'both backing_file and image_file should be given', { backingFile, imageFile });
  }
  if (imageFile === undefined) throw refusal(name, 'image-file', 'image_file must be given', {});
  if (compat === 'v9' && imageFmt !== RAW) {
    throw refusal(name, 'v9-format', `the image file of v9 is ${RAW}, not ${imageFmt}`, { value: imageFmt });
  }
  const image = encodeName(imageFile, 'image', shape, name);
  const backing = backingFile === undefined ? undefined : encodeName(backingFile, 'backing', shape, name);
  const common = { ...shape, imageFormat: imageFmt };
  if (compat === 'v9') {
    return {
      ...common,
      image: recordedName(image, 0),
      backing: backing && recordedName(backing, 0),
      backingFormat: undefined,
      compatible: 0n,
    };
  }
  requireFormatName(imageFmt, 'image', name);
  if (backingFmt !== undefined) requireFormatName(backingFmt, 'backing', name);
  const bound = headerSize(shape) - V20_FIELDS;
  const together = image.length + (backing?.length ?? 0);
  if (together > bound) {
    throw refusal(name, 'names-space', `the file names have ${together} bytes together; at most ${bound} fit`, {
      value: together,
      bound,
    });
  }
  return {
    ...common,
    backing: backing && recordedName(backing, V20_FIELDS),
    image: recordedName(image, V20_FIELDS + (backing?.length ?? 0)),
    backingFormat: backingFmt,
    // Without a backing file nothing else can show.
    compatible: backing === undefined ? COMPATIBLE.allAllocated : 0n,
  };
}

/** Makes the image file, or takes the one that is there. @returns the size of the disk. */
async function makeImage(
  context: CreateContext,
  header: AddCowHeader,
  size: number,
  sizeGiven: boolean,
): Promise<number> {
  const { name } = context;
  const image: Reference = { role: 'data', name: header.image.text, readOnly: false };
  const status = await look(context, image);
  await requireOwnFile(context, header, image, status);
  if (header.imageFormat !== RAW && status === undefined) {
    throw refusal(
      name,
      'image-format-new',
      `the image file "${image.name}" is not there; one of format ${header.imageFormat} has to be made first`,
      { name: image.name, format: header.imageFormat },
    );
  }
  const store = await context.createReference(image, 'keep');
  try {
    // Under another spelling the name may have meant a file that is only there now.
    if (status === undefined) await requireOwnFile(context, header, image, await look(context, image));
    if (header.imageFormat !== RAW) return size;
    if (header.version === 'v9' && store.size > 0) return takeLength(store, image.name, size, sizeGiven, name);
    if (store.size !== size) await setLength(store, image.name, size, name);
    await store.flush();
    return size;
  } finally {
    await store.close();
  }
}

/** @throws {@link BlockError} OPTION `add-cow.image-is-self`, `add-cow.image-is-backing`. */
async function requireOwnFile(
  context: CreateContext,
  { backing }: AddCowHeader,
  image: Reference,
  status: ReferenceStatus | undefined,
): Promise<void> {
  const { name } = context;
  const own = await look(context, { role: 'data', name: lastPart(name), readOnly: false });
  if (status !== undefined && (status.resolved === name || (own !== undefined && isSame(status, own)))) {
    throw selfError(name, image.name, 'OPTION');
  }
  if (backing === undefined) return;
  const below: Reference = { role: 'backing', name: backing.text, readOnly: true };
  if (await isBackingFile(context, image, below, status)) throw backingError(name, image.name, 'OPTION');
}

/** The name of the new file as its own directory has it. */
function lastPart(name: string): string {
  return name.slice(Math.max(name.lastIndexOf('/'), name.lastIndexOf('\\')) + 1);
}

/** v9: the disk is as large as the image file that is there. */
function takeLength(store: ByteStore, image: string, size: number, sizeGiven: boolean, name: string): number {
  const length = alignUp(store.size, SECTOR);
  if (!sizeGiven || length === size) return length;
  throw refusal(
    name,
    'image-size',
    `the image file "${image}" has ${store.size} bytes, and with compat=v9 that is the size of the disk, not ${size}`,
    { value: size, bound: store.size, name: image },
  );
}

async function setLength(store: ByteStore, image: string, size: number, name: string): Promise<void> {
  if (store.supports.truncate) {
    await store.truncate(size);
    return;
  }
  throw refusal(name, 'image-size', `the image file "${image}" has ${store.size} bytes, which cannot be made ${size}`, {
    value: size,
    bound: store.size,
    name: image,
  });
}

/** Zeros for everything. A device may hold anything, an old header too. */
async function reserve(file: ByteStore, length: number, name: string): Promise<void> {
  if (file.supports.truncate) {
    if (file.size > 0) await file.truncate(0);
    await file.truncate(length);
    return;
  }
  if (file.size < length) {
    throw fault(
      name,
      'device-small',
      `needs ${length} bytes, the device has ${file.size}`,
      { size: length, deviceSize: file.size, errno: 'ENOSPC' },
      'NO_SPACE',
    );
  }
  await file.writeZeroes(0, length);
  await file.flush();
}

function refusal(name: string, finding: string, what: string, details: ErrorDetails): Error {
  return fault(name, finding, what, details, 'OPTION');
}
