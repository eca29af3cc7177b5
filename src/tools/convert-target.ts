/** The target of a conversion: a new file under a temporary name, a device or pipe in place, or an image that is there already.
 *  Owns its checks against the inputs, its creation and its end.
 *  Invariants: nothing is touched before every check has passed; an input is never written; what was written in place and is
 *  not whole is told so. */
import { BlockError, isBlockError } from '../base/errors.ts';
import { cliName } from '../base/options.ts';
import type { FormatDriver } from '../core/format.ts';
import { type BlockNode, childOf } from '../core/node.ts';
import type { FileStatus } from '../core/protocol.ts';
import { RunList } from '../core/run.ts';
import { type CreatePlan, planCreate } from '../image/create.ts';
import { fileNameIn } from '../image/graph.ts';
import type { Image } from '../image/image.ts';
import { type OpenImageOptions, openImage } from '../image/open.ts';
import { driversOf } from '../image/open-options.ts';
import { requireFormat } from '../image/probe.ts';
import {
  decideReference,
  protocolOf,
  type ReferencePolicy,
  type ResolvedReference,
  resolveReference,
} from '../image/references.ts';
import { TargetFile } from '../image/target-file.ts';
import { isUnopened } from '../image/unopened-node.ts';
import type { ConvertOptions, ConvertTarget } from './convert.ts';

export interface OpenTarget {
  readonly image: Image;
  /** What was not written reads as zero (past the backing file, where there is one). */
  readonly isZero: boolean;
  /** Bytes of the backing file that show through; 0 without one. */
  readonly backingSize: number;
  /** Puts it in its place, durable unless the cache mode is `unsafe`. */
  commit(): Promise<void>;
  /** Gives up. @returns the error to throw instead of `error`. */
  discard(error: unknown): Promise<unknown>;
}

/** Files, by identity, that a node and everything below it consist of. */
export async function identitiesOf(node: BlockNode, into: Set<string>): Promise<void> {
  if (node.children.length === 0 && !isUnopened(node)) {
    const identity = (await node.status?.())?.identity;
    if (identity !== undefined) into.add(identity);
  }
  for (const child of node.children) await identitiesOf(child.node, into);
}

/** @throws {@link BlockError} INVALID_ARGUMENT, reason `convert.target-is-input`. */
export async function requireNoInput(
  name: string,
  inputs: ReadonlySet<string>,
  options: ConvertOptions,
): Promise<void> {
  const file = fileNameIn(name);
  const identity =
    file === undefined ? undefined : (await protocolOf(file, options.protocols).status?.(file))?.identity;
  if (identity !== undefined && inputs.has(identity)) throw targetIsInput(name);
}

function targetIsInput(name: string): BlockError {
  return new BlockError('INVALID_ARGUMENT', `"${name}": the target is one of the inputs, or in the chain of one`, {
    reason: 'convert.target-is-input',
    details: { name },
  });
}

/** Identity of the backing file that the target has, or will have. */
export async function backingIdentity(target: ConvertTarget, options: ConvertOptions): Promise<string | undefined> {
  const { backing, name } = target;
  if (backing === undefined) return undefined;
  const reference = { role: 'backing', name: backing.name, format: backing.format, readOnly: true } as const;
  const { protocol, resolved } = resolveReference(reference, fileNameIn(name) ?? '', options.protocols);
  return (await protocol.status?.(resolved))?.identity;
}

/** Opens an image that is there already, for writing in place.
 *  @throws {@link BlockError} as `openImage`, `convert.target-is-input`, `convert.target-small`, `convert.no-backing`, `convert.compress-unsupported`. */
export async function openExisting(
  target: ConvertTarget,
  size: number,
  inputs: ReadonlySet<string>,
  options: ConvertOptions,
): Promise<OpenTarget> {
  const { name, format, openOptions } = target;
  await requireNoInput(name, inputs, options);
  const image = await openImage(name, {
    ...openingOptions(options),
    format,
    options: openOptions,
    readOnly: false,
    // Where zeros go, space may come back.
    discard: 'unmap',
    references: options.references,
  });
  try {
    await requireSeparate(image, inputs);
    if (image.virtualSize < size) throw tooSmall(name, image.virtualSize, size);
    const backing = childOf(image.node, 'backing');
    if (target.backing !== undefined && backing === undefined) {
      throw new BlockError('INVALID_ARGUMENT', `"${name}": the target has no backing file`, {
        reason: 'convert.no-backing',
        details: { name },
      });
    }
    if (options.compressed === true) requireCompression(image.node.format?.writeCompressed !== undefined, image.format);
    // Its backing file shows through whether the caller knows of it or not.
    const shown = target.backing === undefined ? Number.POSITIVE_INFINITY : (backing?.size ?? 0);
    return new InPlace(image, name, options.targetIsZero === true, options.targetIsZero === true ? 0 : shown, options);
  } catch (error) {
    await image.close();
    throw error;
  }
}

/** The files that are going to be written must not be part of an input; its own backing files may be. */
async function requireSeparate(image: Image, inputs: ReadonlySet<string>): Promise<void> {
  for (const child of image.node.children) {
    if (child.role === 'backing') continue;
    const own = new Set<string>();
    await identitiesOf(child.node, own);
    for (const identity of own) if (inputs.has(identity)) throw targetIsInput(image.name);
  }
}

export function tooSmall(name: string, size: number, needed: number): BlockError {
  return new BlockError('INVALID_ARGUMENT', `"${name}": the target has ${size} bytes, the inputs have ${needed}`, {
    reason: 'convert.target-small',
    details: { name, size, needed },
  });
}

export function requireCompression(supported: boolean, format: string): void {
  if (supported) return;
  throw new BlockError('UNSUPPORTED', `format ${format} cannot store compressed data`, {
    reason: 'convert.compress-unsupported',
    details: { format },
  });
}

/** What is needed to create and open a new target, checked, before anything is touched. */
export async function planTarget(
  target: ConvertTarget,
  size: number,
  inputs: ReadonlySet<string>,
  options: ConvertOptions,
): Promise<CreatePlan> {
  const { size: optionSize, ...createOptions } = target.options ?? {};
  const format = target.format ?? 'raw';
  const driver = requireFormat(format, target.name, options.formats);
  if (options.compressed === true) requireCompression(driver.capabilities.compress, format);
  const wanted = options.size ?? optionSize ?? size;
  if (typeof wanted === 'number' && wanted < size) throw tooSmall(target.name, wanted, size);
  const plan = await planCreate(target.name, {
    ...pick(options),
    format: driver,
    size: wanted as number,
    options: createOptions,
    backing: target.backing,
    protect: inputs,
    unsafe: isUnsafe(options),
  });
  if (target.stream === undefined) await requireNoInput(target.name, inputs, options);
  return plan;
}

function pick(options: ConvertOptions) {
  return { ...driversOf(options), locking: options.locking, signal: options.signal };
}

export function isUnsafe(options: ConvertOptions): boolean {
  return (options.cache ?? 'unsafe') === 'unsafe';
}

function openingOptions(options: ConvertOptions): OpenImageOptions {
  const { probeBacking, cacheBytes, onEvent } = options;
  return { ...pick(options), probeBacking, cacheBytes, onEvent, unsafe: isUnsafe(options) };
}

/** Where a new image goes. */
export interface Place {
  readonly name: string;
  readonly file: BlockNode;
  /** What was written cannot be taken back. */
  readonly inPlace: boolean;
  /** What was there before. */
  readonly before: Pick<FileStatus, 'kind'> | undefined;
  /** The empty image is there; its data will begin at `dataStart`, for formats where they follow in one piece. Bytes. */
  begin?(dataStart: number): Promise<void>;
  commit(): Promise<void>;
  discard(): Promise<void>;
}

/** Creates the target and opens it for writing.
 *  @param place where; a file of that name by default */
export async function createTarget(plan: CreatePlan, options: ConvertOptions, place?: Place): Promise<OpenTarget> {
  const { name, driver } = plan;
  const { locking, signal } = options;
  const opening = { unsafe: isUnsafe(options), locking, use: driver.capabilities.fileUse, signal };
  const file: Place = place ?? (await TargetFile.open(protocolOf(name, options.protocols), name, opening));
  let made: { discard(): Promise<void> } | undefined;
  try {
    const openOptions = { ...secretOptions(plan), ...windowOption(driver, plan.size, file) };
    const { backing } = plan;
    made = await plan.format(file.file);
    const image = await openImage(file.file, {
      ...openingOptions(options),
      name,
      format: driver.name,
      formats: options.formats.includes(driver) ? options.formats : [driver, ...options.formats],
      options: openOptions,
      readOnly: false,
      references: ownReferences(name, options.references ?? 'deny'),
      // Not every format records its base's format.
      ...(backing?.format === undefined ? {} : { backing: { name: backing.resolved, format: backing.format } }),
    });
    await file.begin?.(await dataStartOf(image, file));
    return new NewFile(image, file, made, driver, plan, options);
  } catch (error) {
    await file.discard();
    await made?.discard();
    throw error;
  }
}

/** Where the first byte of the disk is. */
async function dataStartOf(image: Image, { file, begin }: Place): Promise<number> {
  if (begin === undefined) return 0;
  const { format, size } = image.node;
  if (size === 0) return file.size;
  const runs = new RunList();
  runs.reset(0, size);
  await format.map(0, size, runs);
  return runs.at(0).hostOffset;
}

/** What was created with a secret is opened with the same one: open options whose names say so, as qemu-img picks them. */
function secretOptions({ driver, options }: CreatePlan): Readonly<Record<string, unknown>> {
  const result: Record<string, unknown> = {};
  for (const [key, def] of Object.entries(driver.openOptions)) {
    if (cliName(key, def).endsWith('key-secret')) result[key] = options[key];
  }
  return result;
}

/** A pipe has no size to tell: the format must be one that can be told.
 *  @throws {@link BlockError} UNSUPPORTED, reason `convert.forward`. */
function windowOption(driver: FormatDriver, size: number, file: Place): Readonly<Record<string, unknown>> {
  if (file.file.supports.access !== 'forward') return {};
  if ('size' in driver.openOptions) return { size };
  throw new BlockError('UNSUPPORTED', `"${file.name}": format ${driver.name} cannot be written to a pipe`, {
    reason: 'convert.forward',
    details: { name: file.name, format: driver.name },
  });
}

/** The new image names what the caller named; for what lies below, the caller's policy holds. */
function ownReferences(name: string, policy: ReferencePolicy): (reference: ResolvedReference) => boolean {
  return (reference) => reference.from === name || decideReference(policy, reference) === 'open';
}

/** A target that is written in place. */
class InPlace implements OpenTarget {
  readonly image: Image;
  readonly isZero: boolean;
  readonly backingSize: number;
  readonly #name: string;
  readonly #options: ConvertOptions;

  constructor(image: Image, name: string, isZero: boolean, backingSize: number, options: ConvertOptions) {
    this.image = image;
    this.isZero = isZero;
    this.backingSize = backingSize;
    this.#name = name;
    this.#options = options;
  }

  async commit(): Promise<void> {
    if (!isUnsafe(this.#options)) await this.image.flush();
    await this.image.close();
  }

  async discard(error: unknown): Promise<unknown> {
    try {
      await this.image.close();
    } catch {
      // The failure that led here is the one to tell.
    }
    return incomplete(error, this.#name);
  }
}

/** A target that was created. */
class NewFile implements OpenTarget {
  readonly image: Image;
  readonly isZero: boolean;
  readonly backingSize: number;
  readonly #file: Place;
  readonly #made: { discard(): Promise<void> };
  readonly #options: ConvertOptions;

  constructor(
    image: Image,
    file: Place,
    made: { discard(): Promise<void> },
    driver: FormatDriver,
    plan: CreatePlan,
    options: ConvertOptions,
  ) {
    this.image = image;
    this.#file = file;
    this.#made = made;
    this.#options = options;
    // A device keeps its old content where the format shows the file's bytes as they are.
    const oldContent =
      file.before !== undefined && file.before.kind !== 'file' && image.node.format?.recurse !== 'none';
    this.isZero = driver.capabilities.zeroInit && !oldContent;
    this.backingSize = plan.backing === undefined ? 0 : (childOf(image.node, 'backing')?.size ?? 0);
  }

  async commit(): Promise<void> {
    if (!isUnsafe(this.#options)) await this.image.flush();
    await this.image.close();
    await this.#file.commit();
  }

  async discard(error: unknown): Promise<unknown> {
    try {
      await this.image.close();
    } catch {
      // What could not be written is thrown away anyway.
    }
    await this.#file.discard();
    await this.#made.discard();
    return this.#file.inPlace ? incomplete(error, this.#file.name) : error;
  }
}

/** The error of a write to the target. @param offset of the disk, bytes */
export function writeError(name: string, offset: number, cause: unknown): unknown {
  if (!isBlockError(cause) || cause.code === 'ABORTED') return cause;
  return new BlockError(cause.code, `"${name}": could not write at offset ${offset}: ${cause.message}`, {
    reason: 'convert.write',
    details: { name, offset, errno: cause.details['errno'] },
    cause,
  });
}

export function incomplete(error: unknown, name: string): unknown {
  if (!isBlockError(error)) return error;
  return new BlockError(error.code, `"${name}": the target is incomplete: ${error.message}`, {
    reason: error.reason ?? 'convert.incomplete',
    details: { ...error.details, incomplete: true, target: name },
    cause: error,
  });
}
