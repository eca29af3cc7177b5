/** Facts of an image and of its chain, as `qemu-img info` shows them. Prints nothing.
 *  Invariant: guest data is never read, and a backing file is opened only to tell its own facts. */
import { BlockError, isBlockError } from '../base/errors.ts';
import type { SnapshotInfo } from '../core/format.ts';
import { type BlockNode, type ChildRole, childOf } from '../core/node.ts';
import type { FileClaims } from '../core/permissions.ts';
import type { Image } from '../image/image.ts';
import { type OpenImageOptions, openImage } from '../image/open.ts';
import { decideReference, resolveReference } from '../image/references.ts';
import { isUnopened } from '../image/unopened-node.ts';

export interface BackingInfo {
  /** As recorded in the image. */
  readonly name: string;
  /** As recorded; `undefined` when the image records none. */
  readonly format: string | undefined;
  /** What it is opened as: that, or what the image's format takes for granted, or what the caller chose; `undefined` where it has to be found out. */
  readonly opensAs: string | undefined;
  /** What the name means from here; `undefined` when that cannot be determined. */
  readonly resolved: string | undefined;
}

export interface ChildInfo {
  readonly role: ChildRole;
  /** `file`, `data-file`, … */
  readonly name: string;
  /** Name and driver of the node itself. */
  readonly node: string;
  readonly driver: string;
  /** Bytes. */
  readonly size: number;
  /** Bytes really occupied; `undefined` when unknown. */
  readonly allocatedBytes: number | undefined;
}

export interface ImageInfo {
  readonly name: string;
  readonly format: string;
  /** Bytes. */
  readonly virtualSize: number;
  /** Bytes really occupied by this layer's files, backing files not counted; `undefined` when unknown. */
  readonly actualSize: number | undefined;
  readonly clusterSize: number | undefined;
  readonly encrypted: boolean;
  /** Not closed cleanly; `undefined` where the format cannot tell. */
  readonly dirty: boolean | undefined;
  readonly backing: BackingInfo | undefined;
  readonly snapshots: readonly SnapshotInfo[];
  /** Format specific facts under QEMU's names. */
  readonly specific: { readonly type: string; readonly data: Readonly<Record<string, unknown>> } | undefined;
  /** Files that are open for this layer; backing files are not among them. */
  readonly children: readonly ChildInfo[];
  /** The format was guessed: nothing but raw matched. */
  readonly probedRaw: boolean;
  /** What keeps other processes away from the file while it is looked at; `undefined` for what no other process can have. */
  readonly locks: LockFacts | undefined;
}

export type LockFacts = Pick<FileClaims, 'state' | 'missing'>;

/** Facts of one layer. A name is opened read-only, without its backing file. `references` decides about data files only, whose disk size
 *  counts; by default they stay unopened, and `actualSize` is unknown then.
 *  @throws {@link BlockError} as `openImage`. */
export async function imageInfo(source: string | Image, options: OpenImageOptions): Promise<ImageInfo> {
  if (typeof source !== 'string') return factsOf(source, options);
  const image = await openImage(source, {
    ...options,
    references: options.references ?? 'layer-only',
    readOnly: true,
    openBacking: false,
    metadataOnly: true,
  });
  try {
    return await factsOf(image, options);
  } finally {
    await image.close();
  }
}

/** Facts of every layer, top first. Each layer is opened by itself, so a long chain needs no memory. `references` decides which are followed:
 *  `layer-only` ends the list, a refusal is an error.
 *  @throws {@link BlockError} as `openImage`; CHAIN for loops (`chain.cycle`) and past `maxDepth` (`chain.depth`); REFERENCE_DENIED. */
export async function chainInfo(source: string, options: OpenImageOptions): Promise<ImageInfo[]> {
  const infos: ImageInfo[] = [];
  const seen = new Set<string>();
  const limit = options.maxDepth ?? 256;
  const policy = options.references ?? 'deny';
  let name = source;
  // Options, format and backing file that the caller chose are those of the top.
  let { format, backing, options: openOptions } = options;
  for (;;) {
    if (infos.length >= limit) {
      throw new BlockError('CHAIN', `"${source}": the backing chain is deeper than ${limit} layers (option maxDepth)`, {
        reason: 'chain.depth',
        details: { depth: infos.length + 1, maxDepth: limit, name },
      });
    }
    const references = dataPolicy(policy);
    const opening = { ...options, references, lookAt: options.lookAt ?? policy, format, backing, options: openOptions };
    const { info, identity } = await layerInfo(name, opening);
    for (const key of [`name:${name}`, `identity:${identity ?? name}`]) {
      if (infos.length > 0 && seen.has(key)) throw loop(source, name);
    }
    seen.add(`name:${name}`).add(`identity:${identity ?? name}`);
    infos.push(info);
    if (info.backing === undefined) return infos;
    if (backing !== undefined) ({ name, format } = backing);
    else {
      const { name: recorded, opensAs } = info.backing;
      const reference = { role: 'backing', name: recorded, format: opensAs, readOnly: true } as const;
      const { resolved } = resolveReference(reference, name, options.protocols);
      if (decideReference(policy, { ...reference, resolved, from: name }) === 'leave') return infos;
      name = resolved;
      format = requireRecordedFormat(opensAs, resolved, options);
    }
    backing = undefined;
    openOptions = undefined;
  }
}

/** Data files do not decide whether a chain can be shown. */
function dataPolicy(policy: OpenImageOptions['references']): OpenImageOptions['references'] {
  return policy === 'deny' ? 'layer-only' : policy;
}

function requireRecordedFormat(
  format: string | undefined,
  name: string,
  options: OpenImageOptions,
): string | undefined {
  if (format !== undefined || options.probeBacking === true) return format;
  throw new BlockError(
    'REFERENCE_DENIED',
    `"${name}": the image above it does not record its format, and probing a backing file is unsafe; pass probeBacking: true to allow it`,
    { reason: 'reference.unprobed', details: { name } },
  );
}

function loop(source: string, name: string): BlockError {
  return new BlockError('CHAIN', `"${source}": backing file "${name}" is in the chain already: the chain is a loop`, {
    reason: 'chain.cycle',
    details: { name, from: source, again: name },
  });
}

async function layerInfo(
  name: string,
  options: OpenImageOptions,
): Promise<{ readonly info: ImageInfo; readonly identity: string | undefined }> {
  const image = await openImage(name, { ...options, readOnly: true, openBacking: false, metadataOnly: true });
  try {
    const status = await image.node.status?.();
    return { info: await factsOf(image, options), identity: status?.identity };
  } finally {
    await image.close();
  }
}

async function factsOf(image: Image, options: OpenImageOptions): Promise<ImageInfo> {
  const facts = await image.info();
  const { backing } = facts;
  return {
    name: image.name,
    format: image.format,
    virtualSize: image.virtualSize,
    actualSize: await allocatedBytes(image.node),
    clusterSize: facts.clusterSize,
    encrypted: facts.encrypted === true,
    dirty: facts.dirty,
    backing:
      backing === undefined
        ? undefined
        : {
            name: backing.name,
            format: backing.format,
            opensAs: image.backingFormat ?? backing.format,
            resolved: image.backingName ?? resolvedName(image, backing.name, options),
          },
    snapshots: facts.snapshots ?? [],
    specific: facts.specific,
    children: await childrenOf(image.node),
    probedRaw: image.probedRaw,
    locks: locksOf(image.node),
  };
}

function locksOf(node: BlockNode): LockFacts | undefined {
  let at: BlockNode | undefined = node;
  while (at !== undefined && at.locks === undefined) at = childOf(at, 'file');
  const locks = at?.locks;
  // As they are now: the file is closed before anybody reads it.
  return locks === undefined ? undefined : { state: locks.state, missing: locks.missing };
}

/** What the name means, where the image has not asked: it may need its backing file no longer. */
function resolvedName(image: Image, name: string, { protocols }: OpenImageOptions): string | undefined {
  try {
    return resolveReference({ role: 'backing', name, readOnly: true }, image.location ?? image.name, protocols)
      .resolved;
  } catch (error) {
    if (!isBlockError(error)) throw error;
    return undefined;
  }
}

/** Space of a node's own files; `undefined` when one of them does not tell. */
async function allocatedBytes(node: BlockNode): Promise<number | undefined> {
  const own = node.children.filter((child) => child.role !== 'backing');
  if (own.length === 0) return isUnopened(node) ? undefined : (await node.status?.())?.allocatedBytes;
  let sum = 0;
  for (const child of own) {
    const bytes = await allocatedBytes(child.node);
    if (bytes === undefined) return undefined;
    sum += bytes;
  }
  return sum;
}

async function childrenOf(node: BlockNode): Promise<ChildInfo[]> {
  const infos: ChildInfo[] = [];
  for (const { role, name, node: child } of node.children) {
    if (role === 'backing' || isUnopened(child)) continue;
    const { driver, size } = child;
    infos.push({ role, name, node: child.name, driver, size, allocatedBytes: await allocatedBytes(child) });
  }
  return infos;
}
