/** The files an add-cow image names: opening them, and refusing those that cannot be what it says. Spec: add-cow, "image_file" and "V20" (names).
 *  Invariants: the image file is neither the add-cow file nor the backing file, whatever they are called;
 *  an image with everything allocated never has its backing file opened. */
import { type ErrorCode, isBlockError } from '../../base/errors.ts';
import { alignUp } from '../../bytes/align.ts';
import { type OpenContext, type Reference, type ReferenceStatus, wantedBacking } from '../../core/format.ts';
import type { BlockNode } from '../../core/node.ts';
import { fault, RAW, SECTOR } from './layout.ts';
import { type AddCowHeader, isAllAllocated } from './record.ts';

export interface AddCowFiles {
  readonly data: BlockNode;
  readonly backing: BlockNode | undefined;
  /** Bytes. */
  readonly virtualSize: number;
}

/** What a context that opens and one that creates have in common. */
interface Looks {
  readonly name: string;
  referenceStatus(reference: Reference): Promise<ReferenceStatus | undefined>;
}

/** @throws {@link BlockError} CORRUPT `add-cow.image-is-self`, `add-cow.image-is-backing`; REFERENCE_DENIED `add-cow.image-unopened`; as
 *  `openReference`. */
export async function openFiles(context: OpenContext, header: AddCowHeader): Promise<AddCowFiles> {
  const { readOnly } = context;
  // A raw image is its file, and without a layer for it every request has one step less.
  const format = header.imageFormat === RAW ? undefined : header.imageFormat;
  const image: Reference = { role: 'data', name: header.image.text, format, readOnly };
  const recorded: Reference | undefined =
    header.backing === undefined
      ? undefined
      : { role: 'backing', name: header.backing.text, format: header.backingFormat, readOnly: true };
  const below = isAllAllocated(header) ? undefined : wantedBacking(context, recorded);
  const status = await look(context, image);
  const own = await context.file.status?.();
  if (status !== undefined && isSame(status, { resolved: context.name, identity: own?.identity })) {
    throw selfError(context.name, image.name);
  }
  if (below !== undefined && (await isBackingFile(context, image, below, status))) {
    throw backingError(context.name, image.name);
  }
  const data = await context.openReference(image);
  const virtualSize = sizeOf(data, status, header, context.name);
  const backing = below === undefined ? undefined : await context.openReference(below);
  if (backing !== undefined && (await isSameNode(data, backing))) throw backingError(context.name, image.name);
  return { data, backing, virtualSize };
}

/** The disk is as large as the image file, in whole sectors. One that the caller's policy has left closed (for its facts alone) can still be looked at. */
function sizeOf(data: BlockNode, status: ReferenceStatus | undefined, header: AddCowHeader, name: string): number {
  const isRaw = header.imageFormat === RAW;
  if (data.driver !== 'unopened') return isRaw ? alignUp(data.size, SECTOR) : data.size;
  if (isRaw && status?.size !== undefined) return alignUp(status.size, SECTOR);
  throw fault(
    name,
    'image-unopened',
    `its image file "${header.image.text}", which decides the size of the disk, may neither be opened nor looked at`,
    { name: header.image.text },
    'REFERENCE_DENIED',
  );
}

/** Whether an image file and a backing file are one. */
export async function isBackingFile(
  context: Looks,
  image: Reference,
  backing: Reference,
  imageStatus: ReferenceStatus | undefined,
): Promise<boolean> {
  const backingStatus = await look(context, backing);
  // What cannot be looked at is known by its name alone.
  if (imageStatus === undefined || backingStatus === undefined) return image.name === backing.name;
  return isSame(imageStatus, backingStatus) || imageStatus.absolute === backingStatus.absolute;
}

/** What stands at a name. One that means nothing is told by whoever opens it. */
export async function look(context: Looks, reference: Reference): Promise<ReferenceStatus | undefined> {
  try {
    return await context.referenceStatus(reference);
  } catch (error) {
    if (isBlockError(error) && error.code !== 'ABORTED' && error.code !== 'INTERNAL') return undefined;
    throw error;
  }
}

type Identified = Pick<ReferenceStatus, 'resolved' | 'identity'>;

export function isSame(a: Identified, b: Identified): boolean {
  return a.resolved === b.resolved || (a.identity !== undefined && a.identity === b.identity);
}

async function isSameNode(a: BlockNode, b: BlockNode): Promise<boolean> {
  if (b.driver === 'unopened') return false;
  const identity = (await a.status?.())?.identity;
  return identity !== undefined && identity === (await b.status?.())?.identity;
}

export function selfError(name: string, image: string, code?: ErrorCode): Error {
  return fault(name, 'image-is-self', `the image file "${image}" is the add-cow file itself`, { name: image }, code);
}

export function backingError(name: string, image: string, code?: ErrorCode): Error {
  return fault(name, 'image-is-backing', `the image file "${image}" is the backing file`, { name: image }, code);
}
