/** Creates images. Owns the checks before creation, the look at the backing file, and the data files that the options name.
 *  Invariants: everything that can be refused is refused before the target is touched; a regular file that was there is
 *  replaced only when the new image is complete; after a failure no file is left that was not there before. */
import { assert, BlockError, isBlockError } from '../base/errors.ts';
import { cliName, type OptionsInput, type OptionsOf, resolveOptions } from '../base/options.ts';
import type { Chance, CreateContext, FormatDriver, Reference, ReferenceStatus } from '../core/format.ts';
import type { ForwardImage, ForwardWriting } from '../core/forward.ts';
import type { BlockNode } from '../core/node.ts';
import { CREATION_CLAIM } from '../core/permissions.ts';
import type { LockingMode, ProtocolDriver } from '../core/protocol.ts';
import { secretsOf } from '../core/secrets.ts';
import type { ByteStore } from '../core/store.ts';
import { type ImageDrivers, openImage } from './open.ts';
import { driversOf } from './open-options.ts';
import { requireFormat } from './probe.ts';
import {
  allowsReference,
  decideReference,
  protocolOf,
  type ReferencePolicy,
  resolveReference,
  statusOf,
} from './references.ts';
import { TargetFile } from './target-file.ts';

export interface BackingChoice {
  /** As it will be recorded: relative to the directory of the new image. */
  readonly name: string;
  /** Needed; without it: OPTION, reason `create.backing-format`, details `{ detected }`. */
  readonly format?: string | undefined;
}

export interface CreateImageOptions extends ImageDrivers {
  /** Format name, or the driver itself. */
  readonly format: string | FormatDriver;
  /** Virtual size in bytes; the backing file's when not given. */
  readonly size?: number | undefined;
  /** Create options of the format, by their TypeScript names. */
  readonly options?: Readonly<Record<string, unknown>> | undefined;
  readonly backing?: BackingChoice | undefined;
  /** The backing file need not exist and is not opened (`-u`); `size` is needed then. */
  readonly backingUnchecked?: boolean | undefined;
  /** Fail with EXISTS when the name is taken. Default false: an existing file is replaced. */
  readonly exclusive?: boolean | undefined;
  /** Decides data files that the options name. Default `allow`: the caller named them. */
  readonly references?: ReferencePolicy | undefined;
  /** Identities of files that must not become part of the new image: the sources of a conversion. */
  readonly protect?: ReadonlySet<string> | undefined;
  /** For images that must be the same each time, the fuzzer's: see {@link Chance}. */
  readonly chance?: Chance | undefined;
  /** Nothing need be durable, not even at the end. Default false. */
  readonly unsafe?: boolean | undefined;
  /** Locks on what stands at the name: see `OpenImageOptions.locking`. */
  readonly locking?: LockingMode | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** What will be created, checked, before anything was touched: what `qemu-img create` prints as `Formatting …`. */
export interface CreatePlan {
  readonly name: string;
  readonly driver: FormatDriver;
  /** Bytes, as given or as the backing file has it (the format may round it). */
  readonly size: number;
  /** Create options with their defaults filled in, backing file and format among them. */
  readonly options: Readonly<Record<string, unknown>>;
  readonly backing:
    | (BackingChoice & {
        readonly resolved: string;
        /** Bytes of its disk; `undefined` when it was not opened. */
        readonly size: number | undefined;
      })
    | undefined;
  /** Creates the image. A plan can be executed once. */
  execute(): Promise<void>;
  /** Writes the empty image into a file that is open already, and creates the files that the options name.
   *  @returns undoes the latter. */
  format(file: ByteStore): Promise<{ discard(): Promise<void> }>;
  /** How an image with these options can be written from its first byte to its last; `undefined`: it cannot. */
  readonly forward: ForwardWriting['kind'] | undefined;
  /** The image that is written so, where its tables go before the data.
   *  @throws {@link BlockError} as the creation of one. */
  planForward(): Promise<ForwardImage>;
}

/** Checks everything that can be checked before creating an image: driver, options, backing file, size.
 *  @throws {@link BlockError} OPTION and others, reasons `image.unknown-format`, `create.unsupported` (driver cannot create), `create.size-missing`,
 *  `create.size-twice`, `create.backing-unsupported`, `create.backing-empty`, `create.backing-format` (details `{ detected }`), `create.backing-open` (cause tells),
 *  `create.same-name`, `create.format-without-backing`, `option.…`. */
export async function planCreate(target: string | ByteStore, options: CreateImageOptions): Promise<CreatePlan> {
  const name = typeof target === 'string' ? target : ((target as Partial<BlockNode>).name ?? '');
  const driver =
    typeof options.format === 'string' ? requireFormat(options.format, name, options.formats) : options.format;
  if (driver.create === undefined) {
    throw new BlockError('UNSUPPORTED', `"${name}": format ${driver.name} cannot be created`, {
      reason: 'create.unsupported',
      details: { format: driver.name },
    });
  }
  const keys = wellKnownKeys(driver);
  const input: Record<string, unknown> = { ...options.options };
  const backing = await checkBacking(name, driver, chosenBacking(options, input, keys), options);
  if (backing !== undefined) {
    if (keys.backingFile !== undefined) input[keys.backingFile] = backing.name;
    if (keys.backingFormat !== undefined && backing.format !== undefined) input[keys.backingFormat] = backing.format;
  }
  const size = chosenSize(name, options, input, keys, backing?.size);
  // A format may know better than the backing file, as long as nobody has asked for a size.
  if (keys.size !== undefined && options.size !== undefined) input[keys.size] = size;
  const resolved = resolveOptions(driver.createOptions, input as OptionsInput<FormatDriver['createOptions']>);
  return new Plan(target, name, driver, size, resolved, backing, options);
}

/** Creates an image: {@link planCreate} and its `execute`. */
export async function createImage(target: string | ByteStore, options: CreateImageOptions): Promise<void> {
  await (await planCreate(target, options)).execute();
}

interface WellKnownKeys {
  readonly size: string | undefined;
  readonly backingFile: string | undefined;
  readonly backingFormat: string | undefined;
}

/** Create options with one meaning in every format, by the names that all formats share on the command line. */
function wellKnownKeys(driver: FormatDriver): WellKnownKeys {
  const byName = new Map(Object.entries(driver.createOptions).map(([key, def]) => [cliName(key, def), key]));
  return {
    size: byName.get('size'),
    backingFile: byName.get('backing_file'),
    backingFormat: byName.get('backing_fmt'),
  };
}

function chosenBacking(
  options: CreateImageOptions,
  input: Readonly<Record<string, unknown>>,
  keys: WellKnownKeys,
): { name: string | undefined; format: string | undefined } {
  const text = (key: string | undefined): string | undefined => {
    const value = key === undefined ? undefined : input[key];
    return typeof value === 'string' ? value : undefined;
  };
  return {
    name: options.backing?.name ?? text(keys.backingFile),
    format: options.backing?.format ?? text(keys.backingFormat),
  };
}

interface CheckedBacking extends BackingChoice {
  readonly resolved: string;
  /** Bytes; `undefined` when it was not opened. */
  readonly size: number | undefined;
}

async function checkBacking(
  target: string,
  driver: FormatDriver,
  choice: { readonly name: string | undefined; readonly format: string | undefined },
  options: CreateImageOptions,
): Promise<CheckedBacking | undefined> {
  const { name, format } = choice;
  if (name === undefined) {
    if (format === undefined) return undefined;
    throw optionError(
      `"${target}": a backing format makes no sense without backing file`,
      'create.format-without-backing',
      {
        format,
      },
    );
  }
  if (!driver.capabilities.backing) {
    throw optionError(`"${target}": format ${driver.name} has no backing files`, 'create.backing-unsupported', {
      format: driver.name,
    });
  }
  if (name === '') throw optionError(`"${target}": the name of the backing file is empty`, 'create.backing-empty', {});
  const { protocol, resolved } = resolveReference(reference('backing', name, format), target, options.protocols);
  if (await isSame(target, name, resolved, protocol, options)) {
    throw optionError(`"${target}": the backing file is the new image itself`, 'create.same-name', { name });
  }
  // An unknown name is refused even where the backing file is not looked at: nobody could open the image.
  if (format !== undefined) requireBackingFormat(format, target, options);
  const opened = options.backingUnchecked === true ? undefined : await lookAt(resolved, target, format, options);
  if (format === undefined) {
    throw optionError(
      `"${target}": the format of backing file "${name}" must be given${opened === undefined ? '' : `; it looks like ${opened.format}`}`,
      'create.backing-format',
      { name, detected: opened?.format },
    );
  }
  return { name, format, resolved, size: opened?.size };
}

function reference(role: Reference['role'], name: string, format: string | undefined): Reference {
  return { role, name, format, readOnly: role === 'backing' };
}

async function isSame(
  target: string,
  name: string,
  resolved: string,
  protocol: ProtocolDriver,
  options: CreateImageOptions,
): Promise<boolean> {
  if (name === target || resolved === target) return true;
  const targetProtocol = protocolOf(target, options.protocols);
  const mine = await targetProtocol.status?.(target);
  if (mine?.identity === undefined) return false;
  return (await protocol.status?.(resolved))?.identity === mine.identity;
}

function requireBackingFormat(format: string, target: string, options: CreateImageOptions): void {
  try {
    requireFormat(format, target, options.formats);
  } catch (error) {
    throw backingError(error, target);
  }
}

/** Size and format of the backing file; its own backing files are not looked at. */
async function lookAt(
  resolved: string,
  target: string,
  format: string | undefined,
  options: CreateImageOptions,
): Promise<{ readonly size: number; readonly format: string }> {
  try {
    const image = await openImage(resolved, {
      ...driversOf(options),
      signal: options.signal,
      format,
      // its size and format, for which no key is needed
      metadataOnly: true,
      // whoever writes to it does not change them
      forceShare: true,
      references: 'layer-only',
      lookAt: options.references ?? 'allow',
    });
    const facts = { size: image.virtualSize, format: image.format };
    await image.close();
    return facts;
  } catch (error) {
    throw backingError(error, target);
  }
}

function backingError(error: unknown, target: string): unknown {
  if (!isBlockError(error) || error.code === 'ABORTED') return error;
  return new BlockError(error.code, `"${target}": could not open the backing image: ${error.message}`, {
    reason: 'create.backing-open',
    details: error.details,
    cause: error,
  });
}

function chosenSize(
  name: string,
  options: CreateImageOptions,
  input: Readonly<Record<string, unknown>>,
  keys: WellKnownKeys,
  backingSize: number | undefined,
): number {
  const option = keys.size === undefined ? undefined : input[keys.size];
  if (options.size !== undefined && option !== undefined) {
    throw optionError(`"${name}": the size is given twice`, 'create.size-twice', { size: options.size, option });
  }
  const size = options.size ?? option ?? backingSize;
  if (size === undefined)
    throw optionError(`"${name}": the size of the new image must be given`, 'create.size-missing', {});
  if (typeof size !== 'number' || !Number.isSafeInteger(size) || size < 0) {
    throw optionError(`"${name}": the size ${String(size)} is not between 0 and 2^53-1`, 'create.size', { size });
  }
  return size;
}

function optionError(message: string, reason: string, details: Readonly<Record<string, unknown>>): BlockError {
  return new BlockError('OPTION', message, { reason, details });
}

class Plan implements CreatePlan {
  readonly name: string;
  readonly driver: FormatDriver;
  readonly size: number;
  readonly options: OptionsOf<FormatDriver['createOptions']>;
  readonly backing: CheckedBacking | undefined;
  readonly #target: string | ByteStore;
  readonly #given: CreateImageOptions;

  constructor(
    target: string | ByteStore,
    name: string,
    driver: FormatDriver,
    size: number,
    options: OptionsOf<FormatDriver['createOptions']>,
    backing: CheckedBacking | undefined,
    given: CreateImageOptions,
  ) {
    this.#target = target;
    this.name = name;
    this.driver = driver;
    this.size = size;
    this.options = options;
    this.backing = backing;
    this.#given = given;
  }

  async execute(): Promise<void> {
    if (typeof this.#target !== 'string') {
      await this.format(this.#target);
      return;
    }
    const { protocols, exclusive, unsafe, locking, signal } = this.#given;
    const protocol = protocolOf(this.name, protocols);
    const target = await TargetFile.open(protocol, this.name, {
      exclusive,
      unsafe,
      locking,
      use: this.driver.capabilities.fileUse,
      signal,
    });
    let made: { discard(): Promise<void> } | undefined;
    try {
      made = await this.format(target.file);
      await target.commit();
    } catch (error) {
      await target.discard();
      await made?.discard();
      throw error;
    }
  }

  async format(file: ByteStore): Promise<{ discard(): Promise<void> }> {
    const named = new NamedFiles(this.name, this.#given);
    const context: CreateContext = {
      file,
      name: this.name,
      createReference: (asked, existing) => named.create(asked, existing),
      referenceStatus: (asked) => this.#lookAt(asked),
      secret: secretsOf(this.#given.secrets),
      chance: this.#given.chance,
      signal: this.#given.signal,
    };
    try {
      await this.driver.create?.(context, this.size, this.options);
      await named.close();
    } catch (error) {
      await named.discard();
      throw error;
    }
    return named;
  }

  get forward(): ForwardWriting['kind'] | undefined {
    const { forward } = this.driver;
    return forward?.kind === 'tables' && !forward.accepts(this.options) ? undefined : forward?.kind;
  }

  async planForward(): Promise<ForwardImage> {
    const { forward } = this.driver;
    assert(forward?.kind === 'tables', `${this.driver.name} has no tables to write forward`);
    const context = {
      name: this.name,
      referenceStatus: (asked: Reference) => this.#lookAt(asked),
      signal: this.#given.signal,
    };
    return await forward.plan(context, this.size, this.options);
  }

  /** The caller named them: only a policy that was given can say no. */
  async #lookAt(asked: Reference): Promise<ReferenceStatus | undefined> {
    const { protocols, references } = this.#given;
    const { protocol, resolved } = resolveReference(asked, this.name, protocols);
    if (!allowsReference(references ?? 'allow', { ...asked, resolved, from: this.name })) return undefined;
    return await statusOf(protocol, resolved);
  }
}

/** Files that the options of the new image name. */
class NamedFiles {
  readonly #image: string;
  readonly #options: CreateImageOptions;
  readonly #files: {
    readonly file: ByteStore;
    readonly protocol: ProtocolDriver;
    readonly name: string;
    readonly isNew: boolean;
  }[] = [];

  constructor(image: string, options: CreateImageOptions) {
    this.#image = image;
    this.#options = options;
  }

  async create(asked: Reference, existing: 'replace' | 'keep'): Promise<ByteStore> {
    const { protocols, references, protect, unsafe, locking, signal } = this.#options;
    const { protocol, resolved } = resolveReference(asked, this.#image, protocols);
    if (decideReference(references ?? 'allow', { ...asked, resolved, from: this.#image }) === 'leave') {
      throw new BlockError(
        'REFERENCE_DENIED',
        `"${this.#image}": names ${asked.role} file "${asked.name}", which may not be created`,
        {
          reason: 'reference.denied',
          details: { name: asked.name, resolved, from: this.#image, role: asked.role },
        },
      );
    }
    if (await isSame(this.#image, asked.name, resolved, protocol, this.#options)) {
      throw optionError(`"${this.#image}": the ${asked.role} file is the image itself`, 'create.same-name', {
        name: asked.name,
      });
    }
    const before = await protocol.status?.(resolved);
    if (before?.identity !== undefined && protect?.has(before.identity) === true) {
      throw optionError(
        `"${this.#image}": the ${asked.role} file "${asked.name}" is one of the inputs`,
        'create.protected',
        {
          name: asked.name,
        },
      );
    }
    if (protocol.create === undefined) {
      throw new BlockError('UNSUPPORTED', `"${resolved}": ${protocol.name} cannot create files`, {
        reason: 'target.create',
      });
    }
    const file =
      before === undefined || (before.kind === 'file' && existing === 'replace')
        ? await protocol.create(resolved, { unsafe, locking, signal })
        : await protocol.open(resolved, { readOnly: false, unsafe, locking, signal });
    this.#files.push({ file, protocol, name: resolved, isNew: before === undefined });
    // the image over it will say that it is another one
    file.locks?.claim(CREATION_CLAIM);
    return file;
  }

  async close(): Promise<void> {
    for (const { file } of this.#files) await file.close();
  }

  /** Removes those that were not there before. */
  async discard(): Promise<void> {
    for (const { file, protocol, name, isNew } of this.#files) {
      try {
        await file.close();
        if (isNew) await protocol.remove?.(name);
      } catch {
        // The failure that led here is the one to tell.
      }
    }
  }
}
