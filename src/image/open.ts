/** The front door: opens an image, with the files it names as far as the caller allows.
 *  Owns the walk down the chain: names, policy, cycles, depth, and closing everything again when it fails.
 *  Invariants: only the top layer is ever writable (and its data file); a file that is already part of the path from the top
 *  is never opened a second time; after a failure nothing that was opened here stays open. */

import { settleAll } from '../base/async.ts';
import { BlockError, isBlockError } from '../base/errors.ts';
import { throwIfAborted } from '../base/job.ts';
import { type OptionSchema, type OptionsInput, type OptionsOf, resolveOptions } from '../base/options.ts';
import { MiB } from '../base/sizes.ts';
import type { Codecs } from '../codec/codecs.ts';
import { createCodecs } from '../codec/create.ts';
import type {
  DiscardMode,
  FormatDriver,
  FormatNode,
  ImageEvent,
  OpenContext,
  Reference,
  ReferenceStatus,
  SnapshotSelector,
} from '../core/format.ts';
import { type MappedNode, mappedNode } from '../core/mapped-node.ts';
import type { BlockNode } from '../core/node.ts';
import type { ProtocolDriver } from '../core/protocol.ts';
import type { RecoveryRequest } from '../core/recovery.ts';
import type { SafetyRules } from '../core/safety.ts';
import { type SecretsInput, secretsOf } from '../core/secrets.ts';
import { CacheBudget } from '../core/table-cache.ts';
import { EventHub } from './events.ts';
import { Image } from './image.ts';
import { type ProbeResult, probeFormat, requireFormat } from './probe.ts';
import {
  allowsReference,
  decideReference,
  deniedReference,
  protocolOf,
  type ReferencePolicy,
  type ReferenceTarget,
  resolveReference,
  statusOf,
} from './references.ts';
import { Reopener, type ReopenHost, reachable } from './reopen.ts';
import { UnopenedNode } from './unopened-node.ts';

const DEFAULT_DEPTH = 256;
const DEFAULT_CACHE = 32 * MiB;

/** Drivers and codecs that the library works with. The Node face has them preset. */
export interface ImageDrivers {
  /** In probe order: the first of equal scores wins. */
  readonly formats: readonly FormatDriver[];
  /** Formats that are looked for where none is named or recorded, in probe order; the others must be named. Default: `formats`. */
  readonly probed?: readonly FormatDriver[] | undefined;
  /** The first one opens names without a known prefix. */
  readonly protocols: readonly ProtocolDriver[];
  /** Compression, on worker threads for bulk; in this thread when not given. */
  readonly codecs?: Codecs | undefined;
  /** Passwords and keys by the ids that options of formats refer to, for every layer. */
  readonly secrets?: SecretsInput | undefined;
}

/** Open options by their TypeScript names, or what gives them once the format is known. */
export type OpenOptionsInput =
  | Readonly<Record<string, unknown>>
  | ((driver: FormatDriver) => Readonly<Record<string, unknown>>);

export interface OpenImageOptions extends ImageDrivers {
  /** Format name (`qcow2`); probed when not given. */
  readonly format?: string | undefined;
  /** Default true. */
  readonly readOnly?: boolean | undefined;
  /** Open options of the format, by their TypeScript names; a function is told which format it turned out to be. */
  readonly options?: OpenOptionsInput | undefined;
  /** Open options of the layers below, that of the backing file first, as {@link options}. */
  readonly backingOptions?: readonly OpenOptionsInput[] | undefined;
  /** Default `deny`. */
  readonly references?: ReferencePolicy | undefined;
  /** `false`: backing files stay unopened whatever `references` says (`info`, `check`); a number: those below so many stay unopened.
   *  Default true. */
  readonly openBacking?: boolean | number | undefined;
  /** The backing file of this image, whatever the image records: its recorded name is usually from another machine. Not asked of
   *  `references`, because the caller names it. Relative to the working directory. */
  readonly backing?: { readonly name: string; readonly format: string } | undefined;
  /** The data file of this image, whatever the image records; on the same terms as `backing`. Where only facts are asked for, none is opened. */
  readonly dataFile?: { readonly name: string } | undefined;
  /** Which files a format may look at (size, time of change) without opening them. Default: as `references`. */
  readonly lookAt?: ReferencePolicy | undefined;
  /** Backing files without a recorded format are probed, as qemu-img does. Default false: what a guest wrote into a raw
   *  base could make it look like another format. */
  readonly probeBacking?: boolean | undefined;
  /** Layers at most, this one included. Default 256. */
  readonly maxDepth?: number | undefined;
  /** Bytes of tables kept in memory, over all layers. Default 32 MiB. */
  readonly cacheBytes?: number | undefined;
  /** No order of writes is kept and nothing is durable before the last flush. Default false. */
  readonly unsafe?: boolean | undefined;
  /** Opened to be checked or repaired: damage that `check` reports is no reason to refuse. Default false. */
  readonly forCheck?: boolean | undefined;
  /** Only facts are asked for (info): what guest data would need, a key for one, may be missing. Default false. */
  readonly metadataOnly?: boolean | undefined;
  /** Open what this snapshot holds instead of the disk; `readOnly` only. The layers below are those of the disk. */
  readonly snapshot?: SnapshotSelector | undefined;
  /** What becomes of discards: see {@link DiscardMode}. Default: the image drops what it maps there. */
  readonly discard?: DiscardMode | undefined;
  /** Open what is left of a damaged image, instead of the image; `readOnly` only. Where no format is named or recognised, the first one that can
   *  recover is tried. */
  readonly recover?: RecoverChoice | undefined;
  /** What the image is called in messages, and where the names in it start from; the name of `source` when not given. */
  readonly name?: string | undefined;
  /** For the tests that prove each rule of the write path by its absence. */
  readonly rules?: SafetyRules | undefined;
  /** Aborts the opening. */
  readonly signal?: AbortSignal | undefined;
  /** Told of everything from the first moment on, warnings while opening included. */
  readonly onEvent?: ((event: ImageEvent) => void) | undefined;
}

/** How a damaged image is read. */
export interface RecoverChoice extends Omit<RecoveryRequest, 'options' | 'signal'> {
  /** What is known of the image, by the names of the driver's `recoverOptions`, or what gives them once the format is known. */
  readonly options?: OpenOptionsInput | undefined;
}

/** Opens an image. After a failure everything that was opened for it is closed again; a store that was passed in stays the caller's.
 *  @param source a name, or an open store; the image then owns the store and closes it with itself.
 *  @throws {@link BlockError} NOT_FOUND, ACCESS, WRONG_FORMAT, CORRUPT, UNSUPPORTED, REFERENCE_DENIED, CHAIN, …
 *  `image.unknown-format` (details `{ format }`): no driver has that name; `image.not-recognised`: nothing matches and raw was not among the formats;
 *  OPTION (details `{ format }`) for open options that the format does not have;
 *  UNSUPPORTED `image.recover`, for `recover`; `image.snapshots`, `image.snapshot-read-only`, and NOT_FOUND from the format, for `snapshot`;
 *  `image.backing` / `image.data-file` / `image.extent-file` / `image.header-file`: a file that the image names could not be opened (details `{ name, file, resolved }`, the
 *  reason is `cause`); `reference.denied`, `reference.json`, `reference.unprobed`, `chain.cycle`, `chain.depth`. */
export async function openImage(source: string | BlockNode, options: OpenImageOptions): Promise<Image> {
  const opening = new Opening(options);
  try {
    return await opening.run(source);
  } catch (error) {
    await opening.closeAll();
    throw error;
  }
}

/** One image on the path from the top to the layer that is being opened. */
interface Layer {
  readonly name: string;
  /** Protocol and name, for telling files apart where the protocol has no identities. */
  readonly key: string;
  readonly identity: string | undefined;
  readonly file: BlockNode;
  readonly readOnly: boolean;
  readonly depth: number;
  readonly above: Layer | undefined;
}

class Opening {
  readonly #options: OpenImageOptions;
  readonly #policy: ReferencePolicy;
  readonly #budget: CacheBudget;
  readonly #codecs: Codecs;
  readonly #hub = new EventHub();
  /** Everything opened by name, in that order. */
  readonly #opened: BlockNode[] = [];
  #backing: { readonly name: string | undefined; readonly format: string | undefined } | undefined;
  /** Names that the image records, for which the caller's choice of a file stands. Those met once the image is open are new ones. */
  readonly #overridden = { backing: new Set<string>(), data: new Set<string>() };
  #isOpen = false;
  /** What the top layer has asked for, and got. */
  readonly #references: (Reference & { readonly file: BlockNode })[] = [];
  /** Which of it serves again at present. */
  #reuses: 'none' | 'backing' | 'all' = 'none';

  constructor(options: OpenImageOptions) {
    this.#options = options;
    this.#policy = options.references ?? 'deny';
    this.#budget = new CacheBudget(options.cacheBytes ?? DEFAULT_CACHE);
    this.#codecs = options.codecs ?? createCodecs({ workers: 0 });
    if (options.onEvent !== undefined) this.#hub.on('*', options.onEvent);
  }

  async run(source: string | BlockNode): Promise<Image> {
    const { format, formats, forCheck, unsafe, options } = this.#options;
    const readOnly = this.#options.readOnly ?? true;
    const name = this.#options.name ?? (typeof source === 'string' ? source : source.name);
    const known = format === undefined ? undefined : requireFormat(format, name, formats);
    const layer = await this.#topLayer(source, name, readOnly);
    const among = this.#options.probed ?? formats;
    const probed = known === undefined ? await this.#probe(layer.file, name, among) : undefined;
    const driver = known ?? (probed as { readonly driver: FormatDriver }).driver;
    requireSnapshots(this.#options, driver, name);
    const node = await this.#openLayer(layer, driver, options ?? {}, forCheck === true, unsafe === true);
    requireOverridesUsed(this.#options, this.#overridden, name);
    this.#isOpen = true;
    const given = () => (typeof options === 'function' ? options(driver) : (options ?? {}));
    const settings = { readOnly, options: given, discard: this.#options.discard };
    return new Image({
      node,
      name,
      driver,
      guessedAmong: probed?.guessed === true ? among : undefined,
      backing: () => this.#backing,
      hub: this.#hub,
      files: this.#opened,
      reopener: new Reopener(this.#reopenHost(source, layer, driver), settings),
    });
  }

  #reopenHost(source: string | BlockNode, first: Layer, driver: FormatDriver): ReopenHost {
    let layer = first;
    return {
      driver,
      require: (settings) => {
        requireSnapshots({ ...this.#options, readOnly: settings.readOnly }, driver, first.name);
        resolveFor(driver, first.name, settings.options());
        if (typeof source !== 'string' && !settings.readOnly && !source.supports.write) {
          throw new BlockError('READ_ONLY', `"${first.name}": is open for reading only`, {
            reason: 'image.reopen-store',
          });
        }
      },
      open: async (settings, anew) => {
        const { readOnly, discard } = settings;
        const options = settings.options();
        const opensFile = typeof source === 'string' && (anew || readOnly !== layer.readOnly);
        const next = opensFile ? await this.#topLayer(source, first.name, readOnly) : { ...layer, readOnly };
        this.#reuses = anew ? 'backing' : 'all';
        try {
          const { forCheck, unsafe } = this.#options;
          const format = await this.#openFormat(next, driver, options, forCheck === true, unsafe === true, discard);
          layer = next;
          return format;
        } finally {
          this.#reuses = 'none';
        }
      },
      closeUnused: (node) => this.#closeUnused(node),
    };
  }

  async #closeUnused(node: MappedNode): Promise<void> {
    const used = reachable(node);
    const unused = this.#opened.filter((opened) => !used.has(opened));
    this.#opened.splice(0, this.#opened.length, ...this.#opened.filter((opened) => used.has(opened)));
    this.#references.splice(0, this.#references.length, ...this.#references.filter(({ file }) => used.has(file)));
    await settleAll(unused.reverse().map((opened) => opened.close()));
  }

  /** Closes what was opened, last first; the failure that brought us here is the one to tell. */
  async closeAll(): Promise<void> {
    for (const node of this.#opened.reverse()) {
      try {
        await node.close();
      } catch {
        // It was opened for an image that nobody gets.
      }
    }
  }

  /** A damaged image may look like anything. */
  async #probe(file: BlockNode, name: string, among: readonly FormatDriver[]): Promise<ProbeResult> {
    if (this.#options.recover === undefined) return await probeFormat(file, name, among);
    const fallback = among.find((driver) => driver.recover !== undefined);
    const found = await probeFormat(file, name, among).catch((error: unknown) => {
      if (fallback === undefined || !isBlockError(error) || error.code !== 'WRONG_FORMAT') throw error;
      return { driver: fallback, guessed: false };
    });
    return found.guessed && fallback !== undefined ? { driver: fallback, guessed: false } : found;
  }

  async #topLayer(source: string | BlockNode, name: string, readOnly: boolean): Promise<Layer> {
    const common = { name, readOnly, depth: 1, above: undefined };
    if (typeof source !== 'string') {
      const status = await source.status?.();
      return { ...common, key: keyOf('', name), identity: status?.identity, file: source };
    }
    const protocol = protocolOf(source, this.#options.protocols);
    const { file, identity } = await this.#openFile(protocol, source, readOnly);
    return { ...common, key: keyOf(protocol.name, source), identity, file };
  }

  async #openFile(
    protocol: ProtocolDriver,
    name: string,
    readOnly: boolean,
  ): Promise<{ file: BlockNode; identity: string | undefined }> {
    throwIfAborted(this.#options.signal);
    const { signal, unsafe } = this.#options;
    const file = await protocol.open(name, { readOnly, unsafe: !readOnly && unsafe === true, signal });
    this.#opened.push(file);
    const status = await file.status?.();
    return { file, identity: status?.identity };
  }

  async #openLayer(
    layer: Layer,
    driver: FormatDriver,
    options: OpenOptionsInput,
    forCheck: boolean,
    unsafe: boolean,
  ): Promise<MappedNode> {
    const { rules, discard } = this.#options;
    const format = await this.#openFormat(layer, driver, options, forCheck, unsafe, discard);
    return mappedNode(format, { name: layer.name, discard, ...(rules === undefined ? {} : { rules }) });
  }

  async #openFormat(
    layer: Layer,
    driver: FormatDriver,
    options: OpenOptionsInput,
    forCheck: boolean,
    unsafe: boolean,
    discard: DiscardMode | undefined,
  ): Promise<FormatNode> {
    const { signal, metadataOnly, rules } = this.#options;
    throwIfAborted(signal);
    const context: OpenContext = {
      file: layer.file,
      name: layer.name,
      readOnly: layer.readOnly,
      forCheck,
      metadataOnly: metadataOnly === true,
      unsafe,
      discard,
      ...(rules === undefined ? {} : { rules }),
      snapshot: layer.depth === 1 ? this.#options.snapshot : undefined,
      cache: this.#budget,
      codecs: this.#codecs,
      openReference: (reference) => this.#follow(reference, layer),
      referenceStatus: (reference) => this.#lookAt(reference, layer),
      secret: secretsOf(this.#options.secrets),
      report: (event) => this.#hub.emit(event),
      signal,
    };
    const { recover } = this.#options;
    return recover !== undefined && layer.depth === 1
      ? await recoverWith(driver, context, recover)
      : await driver.open(context, resolveFor(driver, layer.name, options));
  }

  /** The one way from an image to another file. */
  async #follow(recorded: Reference, from: Layer): Promise<BlockNode> {
    if (from.depth > 1) return await this.#followAnew(recorded, from);
    const { role, name, format } = recorded;
    const readOnly = role === 'backing' || recorded.readOnly || from.readOnly;
    const known = this.#references.find(
      (one) => one.role === role && one.name === name && one.format === format && one.readOnly === readOnly,
    );
    const serves = this.#reuses === 'all' || (this.#reuses === 'backing' && role === 'backing');
    if (known !== undefined && serves) return known.file;
    const file = await this.#followAnew(recorded, from);
    this.#references.push({ role, name, format, readOnly, file });
    return file;
  }

  async #followAnew(recorded: Reference, from: Layer): Promise<BlockNode> {
    const override = this.#overrideOf(recorded, from);
    const reference = override?.reference ?? recorded;
    if (reference.role === 'backing' && !this.#opensBelow(from.depth)) {
      return this.#leaveBacking(reference, override?.target, from);
    }
    const target = override?.target ?? this.#targetOf(reference, from);
    this.#noteBacking(reference, target.resolved, from);
    const asked = { ...reference, resolved: target.resolved, from: from.name };
    const ours = override !== undefined || reference.chosen === true;
    if (!ours && decideReference(this.#policy, asked) === 'leave') {
      return new UnopenedNode(target.resolved, () => deniedReference(asked, "references: 'layer-only'"));
    }
    try {
      return await this.#openReference(reference, target, from);
    } catch (error) {
      throw referenceError(error, reference, target, from);
    }
  }

  #targetOf(reference: Reference, from: Layer): ReferenceTarget {
    const { name, chosen } = reference;
    const { protocols } = this.#options;
    if (chosen === true) return { protocol: protocolOf(name, protocols), resolved: name };
    return resolveReference(reference, from.name, protocols);
  }

  /** Whether the backing file of the layer at `depth` is to be opened. */
  #opensBelow(depth: number): boolean {
    const { openBacking = true } = this.#options;
    return typeof openBacking === 'number' ? depth <= openBacking : openBacking;
  }

  #noteBacking(reference: Reference, resolved: string | undefined, from: Layer): void {
    if (reference.role !== 'backing' || from.depth !== 1) return;
    this.#backing = { name: resolved, format: reference.format === '' ? undefined : reference.format };
  }

  /** The caller's file in place of the recorded one. */
  #overrideOf(
    recorded: Reference,
    from: Layer,
  ): { readonly reference: Reference; readonly target: ReferenceTarget } | undefined {
    const { backing, dataFile, metadataOnly, protocols } = this.#options;
    if ((recorded.role !== 'backing' && recorded.role !== 'data') || from.depth !== 1) return undefined;
    const chosen = recorded.role === 'backing' ? backing : metadataOnly === true ? undefined : dataFile;
    if (chosen === undefined) return undefined;
    const overridden = this.#overridden[recorded.role];
    if (!this.#isOpen) overridden.add(recorded.name);
    else if (!overridden.has(recorded.name)) return undefined;
    const { name } = chosen;
    const format = recorded.role === 'backing' ? backing?.format : recorded.format;
    return {
      reference: { ...recorded, name, format },
      target: { protocol: protocolOf(name, protocols), resolved: name },
    };
  }

  async #lookAt(recorded: Reference, from: Layer): Promise<ReferenceStatus | undefined> {
    const override = this.#overrideOf(recorded, from);
    const { protocols, lookAt } = this.#options;
    const { protocol, resolved } = override?.target ?? resolveReference(recorded, from.name, protocols);
    if (
      override === undefined &&
      !allowsReference(lookAt ?? this.#policy, { ...recorded, resolved, from: from.name })
    ) {
      return undefined;
    }
    return await statusOf(protocol, resolved);
  }

  #warnGuessed(name: string, format: string): void {
    this.#hub.emit({
      type: 'warning',
      node: name,
      reason: 'image.guessed',
      message: `"${name}": the image above it does not record its format, and nothing but ${format} matches: it is read as ${format}`,
    });
  }

  /** The name may be anything, even one that could never be opened: nobody asks for it. */
  #leaveBacking(reference: Reference, target: ReferenceTarget | undefined, from: Layer): BlockNode {
    let resolved: string | undefined;
    try {
      resolved = (target ?? resolveReference(reference, from.name, this.#options.protocols)).resolved;
    } catch (error) {
      if (!isBlockError(error)) throw error;
    }
    this.#noteBacking(reference, resolved, from);
    const asked = { ...reference, resolved: resolved ?? reference.name, from: from.name };
    return new UnopenedNode(asked.resolved, () => deniedReference(asked, 'openBacking: false'));
  }

  async #openReference(reference: Reference, target: ReferenceTarget, from: Layer): Promise<BlockNode> {
    const { protocol, resolved } = target;
    const isLayer = reference.role === 'backing';
    const depth = isLayer ? from.depth + 1 : from.depth;
    const limit = this.#options.maxDepth ?? DEFAULT_DEPTH;
    if (depth > limit) {
      throw new BlockError(
        'CHAIN',
        `"${from.name}": the backing chain is deeper than ${limit} layers (option maxDepth)`,
        {
          reason: 'chain.depth',
          details: { depth, maxDepth: limit, name: resolved },
        },
      );
    }
    const key = keyOf(protocol.name, resolved);
    requireNew(from, key, (await protocol.status?.(resolved))?.identity, resolved);
    const readOnly = isLayer || reference.readOnly || from.readOnly;
    const { file, identity } = await this.#openFile(protocol, resolved, readOnly);
    requireNew(from, key, identity, resolved);
    if (!isLayer && reference.format === undefined) return file;
    const layer: Layer = { name: resolved, key, identity, file, readOnly, depth, above: from };
    const options = (isLayer ? this.#options.backingOptions?.[depth - 2] : undefined) ?? {};
    const node = await this.#openLayer(layer, await this.#layerFormat(reference, layer), options, false, false);
    this.#opened.push(node);
    return node;
  }

  async #layerFormat(reference: Reference, layer: Layer): Promise<FormatDriver> {
    const { formats, probed, probeBacking } = this.#options;
    if (reference.format !== undefined && reference.format !== '') {
      return requireFormat(reference.format, layer.name, formats);
    }
    if (probeBacking === true) {
      const { driver, guessed } = await probeFormat(layer.file, layer.name, probed ?? formats);
      if (guessed) this.#warnGuessed(layer.name, driver.name);
      return driver;
    }
    throw new BlockError(
      'REFERENCE_DENIED',
      `"${layer.name}": the image above it does not record its format, and probing a backing file is unsafe; pass probeBacking: true to allow it`,
      { reason: 'reference.unprobed', details: { name: layer.name } },
    );
  }
}

/** The options of an image, complete. @throws OPTION, whose message names the format. */
function resolveFor(driver: FormatDriver, name: string, options: OpenOptionsInput): OptionsOf<OptionSchema> {
  try {
    const given = typeof options === 'function' ? options(driver) : options;
    return resolveOptions(driver.openOptions, given as OptionsInput<OptionSchema>);
  } catch (error) {
    if (!isBlockError(error) || error.code !== 'OPTION') throw error;
    throw new BlockError('OPTION', `${driver.name} "${name}": ${error.message}`, {
      ...(error.reason === undefined ? {} : { reason: error.reason }),
      details: { ...error.details, format: driver.name },
      cause: error,
    });
  }
}

/** @throws UNSUPPORTED, reason `image.recover`; INVALID_ARGUMENT, reason `image.recover-read-only`; as the driver. */
async function recoverWith(driver: FormatDriver, context: OpenContext, choice: RecoverChoice): Promise<FormatNode> {
  const { name, readOnly, forCheck, signal } = context;
  if (driver.recover === undefined) {
    throw new BlockError('UNSUPPORTED', `${driver.name} "${name}": damaged images of this format cannot be recovered`, {
      reason: 'image.recover',
      details: { format: driver.name },
    });
  }
  if (!readOnly || forCheck) {
    throw new BlockError('INVALID_ARGUMENT', `${driver.name} "${name}": a damaged image can only be read`, {
      reason: 'image.recover-read-only',
    });
  }
  const { options = {}, ...request } = choice;
  const given = typeof options === 'function' ? options(driver) : options;
  const resolved = resolveOptions(driver.recoverOptions ?? {}, given as OptionsInput<OptionSchema>);
  return await driver.recover(context, { ...request, options: resolved, ...(signal === undefined ? {} : { signal }) });
}

/** @throws UNSUPPORTED, reason `image.snapshots`; INVALID_ARGUMENT, reason `image.snapshot-read-only`. */
function requireSnapshots(
  { snapshot, readOnly, forCheck }: OpenImageOptions,
  driver: FormatDriver,
  name: string,
): void {
  if (snapshot === undefined) return;
  if (driver.capabilities.snapshots !== true) {
    throw new BlockError('UNSUPPORTED', `${driver.name} "${name}": holds no snapshots that could be opened`, {
      reason: 'image.snapshots',
      details: { format: driver.name },
    });
  }
  if (readOnly === false || forCheck === true) {
    throw new BlockError('INVALID_ARGUMENT', `${driver.name} "${name}": a snapshot can only be read`, {
      reason: 'image.snapshot-read-only',
    });
  }
}

/** @throws INVALID_ARGUMENT, reasons `image.backing-override`, `image.data-file-override`. */
function requireOverridesUsed(
  { backing, dataFile, metadataOnly }: OpenImageOptions,
  used: { readonly backing: ReadonlySet<string>; readonly data: ReadonlySet<string> },
  name: string,
): void {
  if (backing !== undefined && used.backing.size === 0) {
    throw new BlockError('INVALID_ARGUMENT', `"${name}": has no backing file that "${backing.name}" could stand for`, {
      reason: 'image.backing-override',
      details: { name, backing: backing.name },
    });
  }
  if (dataFile !== undefined && metadataOnly !== true && used.data.size === 0) {
    throw new BlockError('INVALID_ARGUMENT', `"${name}": has no data file that "${dataFile.name}" could stand for`, {
      reason: 'image.data-file-override',
      details: { name, dataFile: dataFile.name },
    });
  }
}

function keyOf(protocol: string, name: string): string {
  return `${protocol}\0${name}`;
}

/** @throws CHAIN when the file is already part of the path to the top. */
function requireNew(from: Layer, key: string, identity: string | undefined, name: string): void {
  for (let at: Layer | undefined = from; at !== undefined; at = at.above) {
    if (at.key === key || (identity !== undefined && at.identity === identity)) {
      throw new BlockError(
        'CHAIN',
        `"${from.name}": refers to "${name}", which is "${at.name}" again: the chain is a loop`,
        {
          reason: 'chain.cycle',
          details: { name, from: from.name, again: at.name },
        },
      );
    }
  }
}

const ROLE_WORDS = {
  backing: { reason: 'image.backing', words: 'backing file' },
  data: { reason: 'image.data-file', words: 'data file' },
  extent: { reason: 'image.extent-file', words: 'extent file' },
  header: { reason: 'image.header-file', words: 'header file' },
} as const;

/** Says which image wanted the file; refusals and loops speak for themselves. */
function referenceError(error: unknown, reference: Reference, target: ReferenceTarget, from: Layer): unknown {
  if (!isBlockError(error)) return error;
  if (error.code === 'REFERENCE_DENIED' || error.code === 'CHAIN' || error.code === 'ABORTED') return error;
  const { reason, words } = ROLE_WORDS[reference.role];
  return new BlockError(error.code, `"${from.name}": could not open ${words} "${reference.name}": ${error.message}`, {
    reason,
    details: { name: reference.name, resolved: target.resolved, file: from.name, errno: error.details.errno },
    cause: error,
  });
}
