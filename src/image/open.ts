/** The front door: opens an image, with the files it names as far as the caller allows.
 *  Owns the top of the graph, what each format is opened with, and closing everything again when it fails.
 *  Invariants: only the top layer is ever writable (and its data file); after a failure nothing that was opened here stays open. */

import { settleAll } from '../base/async.ts';
import { BlockError, isBlockError } from '../base/errors.ts';
import { throwIfAborted } from '../base/job.ts';
import { type OptionSchema, type OptionsInput, type OptionsOf, resolveOptions } from '../base/options.ts';
import { MiB } from '../base/sizes.ts';
import type { Codecs } from '../codec/codecs.ts';
import { createCodecs } from '../codec/create.ts';
import type { FilterDriver } from '../core/filter.ts';
import type { DiscardMode, FormatDriver, FormatNode, OpenContext } from '../core/format.ts';
import { type MappedNode, mappedNode } from '../core/mapped-node.ts';
import type { BlockNode } from '../core/node.ts';
import type { ProtocolDriver } from '../core/protocol.ts';
import { secretsOf } from '../core/secrets.ts';
import { CacheBudget } from '../core/table-cache.ts';
import { Claims, requireShareable } from './claims.ts';
import { EventHub } from './events.ts';
import { Follower } from './follow.ts';
import { isGraphName, NodeSpec } from './graph.ts';
import { formatTitle, shownName } from './graph-name.ts';
import {
  type FormatRequest,
  formatOptions,
  GraphNodes,
  habitsOf,
  type Inherited,
  inheritedBy,
  type OpenedNode,
  ownOptions,
} from './graph-nodes.ts';
import { Image } from './image.ts';
import { keyOf, type Layer } from './layer.ts';
import type { OpenImageOptions, OpenOptionsInput, RecoverChoice } from './open-options.ts';
import { passThrough } from './pass-through.ts';
import { type ProbeResult, probeFormat, requireFormat } from './probe.ts';
import { protocolPrefix } from './references.ts';
import { Reopener, type ReopenHost, reachable } from './reopen.ts';

export type { ImageDrivers, OpenImageOptions, OpenOptionsInput, RecoverChoice } from './open-options.ts';

const DEFAULT_CACHE = 32 * MiB;

/** Opens an image. After a failure everything that was opened for it is closed again; a store that was passed in stays the caller's.
 *  @param source a name, or an open store; the image then owns the store and closes it with itself. Where `filters` is given, a name may describe a
 *  graph: `json:{…}`, or a filter's own form.
 *  @throws {@link BlockError} NOT_FOUND, ACCESS, WRONG_FORMAT, CORRUPT, UNSUPPORTED, REFERENCE_DENIED, CHAIN, …
 *  `image.unknown-format` (details `{ format }`): no driver has that name; `image.not-recognised`: nothing matches and raw was not among the formats;
 *  LOCKED `file.locked`, `file.lock-byte`, and UNSUPPORTED `file.locking`, for locks; INVALID_ARGUMENT `image.force-share`;
 *  OPTION (details `{ format }`) for open options that the format does not have;
 *  UNSUPPORTED `image.recover`, for `recover`; `image.snapshots`, `image.snapshot-read-only`, and NOT_FOUND from the format, for `snapshot`;
 *  `image.backing` / `image.data-file` / `image.extent-file` / `image.header-file`: a file that the image names could not be opened (details `{ name, file, resolved }`, the
 *  reason is `cause`); `reference.denied`, `reference.json`, `reference.unprobed`, `chain.cycle`, `chain.depth`; `graph.*` for what is wrong with a graph. */
export async function openImage(source: string | BlockNode, options: OpenImageOptions): Promise<Image> {
  const opening = new Opening(options);
  try {
    return await opening.run(source);
  } catch (error) {
    await opening.closeAll();
    if (typeof source !== 'string') opening.giveBack(source);
    throw error;
  }
}

/** The first layer, and its format where that is not to be found out. */
interface Top {
  readonly layer: Layer;
  readonly driver: FormatDriver | undefined;
}

class Opening {
  readonly #options: OpenImageOptions;
  readonly #budget: CacheBudget;
  readonly #codecs: Codecs;
  readonly #hub = new EventHub();
  /** Everything opened by name, in that order. */
  readonly #opened: BlockNode[] = [];
  readonly #nodes: GraphNodes;
  #filters: readonly FilterDriver[] = [];
  readonly #follower: Follower;
  readonly #claims: Claims;
  /** Formats below filters, counted anew whenever the top is opened. */
  #inner = 0;

  constructor(options: OpenImageOptions) {
    this.#options = options;
    this.#claims = new Claims(options);
    this.#budget = new CacheBudget(options.cacheBytes ?? DEFAULT_CACHE);
    this.#codecs = options.codecs ?? createCodecs({ workers: 0 });
    if (options.onEvent !== undefined) this.#hub.on('*', options.onEvent);
    const adopt = (node: BlockNode): void => {
      this.#opened.push(node);
    };
    const report = this.#hub.emit.bind(this.#hub);
    this.#nodes = new GraphNodes({
      formats: options.formats,
      protocols: options.protocols,
      filters: () => this.#filters,
      objects: options.objects ?? new Map(),
      locking: options.locking,
      signal: options.signal,
      adopt,
      report,
      openFormat: (request) => this.#openInner(request),
      probe: async (file) =>
        (await probeFormat(file.node, shownName(file.title), options.probed ?? options.formats)).driver,
    });
    this.#follower = new Follower({
      options,
      nodes: this.#nodes,
      claims: this.#claims,
      adopt,
      report,
      openLayer: (layer, driver, given) => this.#openLayer(layer, driver, given, false),
    });
  }

  async run(source: string | BlockNode): Promise<Image> {
    const { formats, forCheck, options } = this.#options;
    const readOnly = this.#options.readOnly ?? true;
    const { layer, driver: known } = await this.#top(source, readOnly);
    const { name } = layer;
    const among = this.#options.probed ?? formats;
    const probed = known === undefined ? await this.#probe(layer.file.node, name, among) : undefined;
    const driver = known ?? (probed as { readonly driver: FormatDriver }).driver;
    requireSnapshots(this.#options, driver, name);
    const node = await this.#openLayer(layer, driver, options ?? {}, forCheck === true);
    this.#follower.opened(name);
    const { discard } = this.#habits(layer);
    const given = () => givenFor(driver, options);
    const settings = { readOnly: layer.inherited.readOnly, options: given, discard };
    return new Image({
      node,
      name: this.#options.name ?? (typeof source === 'string' ? titleOf(layer, driver) : name),
      location: layer.location,
      driver,
      guessedAmong: probed?.guessed === true ? among : undefined,
      backing: () => this.#follower.backing,
      hub: this.#hub,
      files: this.#opened,
      claims: this.#claims,
      reopener: new Reopener(this.#reopenHost(source, layer, driver), settings),
    });
  }

  #reopenHost(source: string | BlockNode, first: Layer, driver: FormatDriver): ReopenHost {
    let layer = first;
    return {
      driver,
      require: (settings) => {
        requireSnapshots({ ...this.#options, readOnly: settings.readOnly }, driver, first.name);
        requireShareable(first, settings.readOnly);
        resolveFor(driver, first, settings.options());
        if (typeof source !== 'string' && !settings.readOnly && !source.supports.write) {
          throw new BlockError('READ_ONLY', `"${first.name}": is open for reading only`, {
            reason: 'image.reopen-store',
          });
        }
      },
      open: async (settings, anew) => {
        const { readOnly, discard } = settings;
        const opensFile = typeof source === 'string' && (anew || readOnly !== layer.inherited.readOnly);
        const inherited = { ...layer.inherited, readOnly };
        const next = opensFile ? (await this.#top(source, readOnly)).layer : { ...layer, inherited };
        if (!opensFile) this.#claims.takeBack(next.file.node);
        this.#follower.reuses = anew ? 'backing' : 'all';
        try {
          const forCheck = this.#options.forCheck === true;
          const format = await this.#openFormat(next, driver, settings.options(), forCheck, discard);
          layer = next;
          return format;
        } finally {
          this.#follower.reuses = 'none';
        }
      },
      closeUnused: (node) => this.#closeUnused(node),
    };
  }

  async #closeUnused(node: MappedNode): Promise<void> {
    const used = reachable(node);
    const unused = this.#opened.filter((opened) => !used.has(opened));
    this.#opened.splice(0, this.#opened.length, ...this.#opened.filter((opened) => used.has(opened)));
    this.#follower.keep(used);
    for (const opened of unused) this.#claims.forget(opened);
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

  /** A store that nothing was opened over. */
  giveBack(store: BlockNode): void {
    this.#claims.release(store);
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

  async #top(source: string | BlockNode, readOnly: boolean): Promise<Top> {
    const { format, formats, unsafe = false, forceShare = false, filters } = this.#options;
    const asked: Inherited = { readOnly, unsafe: !readOnly && unsafe, forceShare };
    if (typeof source !== 'string') {
      const name = this.#options.name ?? source.name;
      const driver = format === undefined ? undefined : requireFormat(format, name, formats);
      const status = await source.status?.();
      const title = { plain: name, full: { driver: source.driver, filename: name }, isFile: true };
      const file = { node: source, title, location: name, identity: status?.identity };
      return { layer: this.#topLayer(name, file, undefined, asked), driver };
    }
    this.#nodes.reset();
    this.#inner = 0;
    const isGraph = filters !== undefined && isGraphName(source);
    const known = [...this.#options.formats, ...this.#options.protocols];
    const isUnknown = format !== undefined && !known.some(({ name }) => name === format);
    if (isGraph || isUnknown || protocolPrefix(source) !== undefined) await this.#loadFilters();
    const described = isGraph ? NodeSpec.parse(source) : NodeSpec.named(source);
    const named = format === undefined ? described : described.with('driver', format);
    const driver = this.#nodes.driverOf(named);
    const spec = isGraph || driver === undefined ? named : this.#specOf(source, driver);
    const general = spec.general();
    const inherited = inheritedBy(general, asked);
    if (!readOnly && inherited.readOnly) throw readOnlyNode(source);
    // What is asked for reading only stays so.
    const effective = { ...inherited, readOnly: readOnly || inherited.readOnly };
    const isFormat = driver === undefined || ('kind' in driver && driver.kind === 'format');
    const file = isFormat
      ? await this.#nodes.fileOf(spec, effective)
      : await this.#nodes.open(spec, { ...asked, readOnly: effective.readOnly }, true);
    const name = this.#options.name ?? (isGraph ? nameOfTop(file, isFormat ? driver : undefined, spec) : source);
    if (isFormat) this.#nodes.register(general.nodeName, file);
    const top = isFormat ? driver : passThrough(file.node.driver);
    const layer = this.#topLayer(name, file, isFormat ? spec : undefined, effective);
    return { layer, driver: top as FormatDriver | undefined };
  }

  /** A name, and the driver that was asked for apart from it. */
  #specOf(name: string, driver: FormatDriver | FilterDriver | ProtocolDriver): NodeSpec {
    const options = 'kind' in driver ? undefined : driver.graph?.parseName(name);
    const isFile = options !== undefined;
    const spec = isFile ? NodeSpec.of(new Map(Object.entries(options))) : this.#nodes.described(name, driver);
    return spec.with('driver', driver.name);
  }

  async #loadFilters(): Promise<void> {
    const { filters = [] } = this.#options;
    this.#filters = typeof filters === 'function' ? await filters() : filters;
  }

  #topLayer(name: string, file: OpenedNode, spec: NodeSpec | undefined, inherited: Inherited): Layer {
    const location = this.#options.name ?? file.location;
    const key = keyOf(file.node.driver, location ?? name);
    return {
      name,
      location,
      key,
      file,
      spec,
      inherited,
      depth: 1,
      above: undefined,
      place: '',
      claim: undefined,
      overrides: new Map(),
    };
  }

  /** A format below a filter, or in a place where the caller has put it. */
  async #openInner({ spec, driver, file, inherited, place }: FormatRequest): Promise<OpenedNode> {
    const above = place?.above;
    const depth = place === undefined ? 1 : place.above.depth + (place.isLayer ? 1 : 0);
    const name = nameOfTop(file, driver, spec);
    if (above !== undefined) this.#follower.requireDepth(depth, name, above);
    const key = keyOf(file.node.driver, file.location ?? name);
    const { location } = file;
    const layer: Layer = {
      name,
      location,
      key,
      file,
      spec,
      inherited,
      depth,
      above,
      place: `${above?.place ?? ''}inner\0${this.#inner++}\0`,
      claim: place && this.#claims.below(place.isLayer ? 'backing' : 'data', place.above, inherited.readOnly),
      overrides: new Map(),
    };
    const node = await this.#openLayer(layer, driver, {}, false);
    this.#opened.push(node);
    const title = formatTitle(driver, ownOptions(driver, spec), file.title, [...layer.overrides]);
    return { node, title, location, identity: file.identity };
  }

  #habits(layer: Layer): ReturnType<typeof habitsOf> {
    return layer.spec === undefined
      ? { discard: this.#options.discard, detectZeroes: 'off' }
      : habitsOf(layer.spec, this.#options.discard);
  }

  async #openLayer(
    layer: Layer,
    driver: FormatDriver,
    options: OpenOptionsInput,
    forCheck: boolean,
  ): Promise<MappedNode> {
    const { rules } = this.#options;
    const { discard, detectZeroes } = this.#habits(layer);
    const { file, inherited } = layer;
    if (layer.spec !== undefined && !inherited.readOnly && !file.node.supports.write) throw readOnlyNode(layer.name);
    const format = await this.#openFormat(layer, driver, options, forCheck, discard);
    return mappedNode(format, { name: layer.name, discard, detectZeroes, ...(rules === undefined ? {} : { rules }) });
  }

  async #openFormat(
    layer: Layer,
    driver: FormatDriver,
    options: OpenOptionsInput,
    forCheck: boolean,
    discard: DiscardMode | undefined,
  ): Promise<FormatNode> {
    const { signal, metadataOnly, rules } = this.#options;
    throwIfAborted(signal);
    this.#claims.takeFile(layer, driver);
    const isTop = layer.depth === 1 && layer.above === undefined;
    const context: OpenContext = {
      file: layer.file.node,
      name: layer.name,
      readOnly: layer.inherited.readOnly,
      forCheck,
      metadataOnly: metadataOnly === true,
      unsafe: layer.inherited.unsafe,
      discard,
      ...(rules === undefined ? {} : { rules }),
      snapshot: isTop ? this.#options.snapshot : undefined,
      backing: this.#backingOf(layer, driver),
      cache: this.#budget,
      codecs: this.#codecs,
      openReference: (reference) => this.#follower.follow(reference, layer),
      referenceStatus: (reference) => this.#follower.lookAt(reference, layer),
      secret: secretsOf(this.#options.secrets),
      report: (event) => this.#hub.emit(event),
      signal,
    };
    const { recover } = this.#options;
    return recover !== undefined && isTop
      ? await recoverWith(driver, context, recover)
      : await driver.open(context, resolveFor(driver, layer, options));
  }

  #warnEmptyBacking(name: string): void {
    this.#hub.emit({
      type: 'warning',
      node: name,
      reason: 'graph.backing-empty',
      message: `"${name}": backing is an empty name, which is taken for none; write "backing": null in json:{} to say so`,
    });
  }

  /** What the caller says of the backing file as such. */
  #backingOf(layer: Layer, driver: FormatDriver): OpenContext['backing'] {
    const child = driver.capabilities.backing ? layer.spec?.child('backing') : undefined;
    if (child === undefined) return 'recorded';
    if (child === 'none') {
      if (layer.spec?.isNull('backing') === false) this.#warnEmptyBacking(layer.name);
      if (this.#options.metadataOnly !== true) layer.overrides.set('backing', null);
      return 'none';
    }
    return 'chosen';
  }
}

function givenFor(driver: FormatDriver, options: OpenOptionsInput | undefined): Readonly<Record<string, unknown>> {
  return typeof options === 'function' ? options(driver) : (options ?? {});
}

function readOnlyNode(name: string): BlockError {
  return new BlockError('READ_ONLY', `"${name}": is described as read-only, and would have to be written`, {
    reason: 'store.read-only',
    details: { name },
  });
}

/** The name of a layer before what it names is known. */
function nameOfTop(file: OpenedNode, driver: object | undefined, spec: NodeSpec): string {
  if (driver === undefined) return shownName(file.title);
  const format = driver as FormatDriver;
  return shownName(formatTitle(format, ownOptions(format, spec), file.title, []));
}

/** The name that leads back to the opened image. */
function titleOf(layer: Layer, driver: FormatDriver): string {
  if (layer.spec === undefined) return shownName(layer.file.title);
  return shownName(formatTitle(driver, ownOptions(driver, layer.spec), layer.file.title, [...layer.overrides]));
}

/** The options of an image, complete. @throws OPTION, whose message names the format. */
function resolveFor(driver: FormatDriver, layer: Layer, options: OpenOptionsInput): OptionsOf<OptionSchema> {
  const { name, spec } = layer;
  try {
    const described = spec === undefined ? {} : formatOptions(driver, spec);
    const given = { ...described, ...givenFor(driver, options) };
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
