/** Makes nodes out of descriptions: files by protocols, filters over their children, formats over their files.
 *  Owns which driver a description means, what its options become, and the names of nodes; the formats themselves are opened by the front door.
 *  Whether a node without a driver is probed follows QEMU's rule: what a format reads its own bytes from never is, its backing files are, and a
 *  filter's child is where the filter itself would be.
 *  Invariants: options that no driver takes are mistakes; every node opened here is handed to the host, which closes it. */
import { BlockError, isBlockError } from '../base/errors.ts';
import { throwIfAborted } from '../base/job.ts';
import { cliName, type OptionKind, type OptionSchema, type OptionsInput, resolveOptions } from '../base/options.ts';
import { MiB, parseSize } from '../base/sizes.ts';
import type { FilterChild, FilterContext, FilterDriver, GraphObject } from '../core/filter.ts';
import type { DiscardMode, FormatDriver, ImageEvent } from '../core/format.ts';
import type { BlockNode } from '../core/node.ts';
import type { LockingMode, OpenFileOptions, ProtocolDriver } from '../core/protocol.ts';
import {
  type DetectZeroes,
  type GeneralOptions,
  type GraphValue,
  isGraphName,
  mistake,
  NodeSpec,
  textOf,
} from './graph.ts';
import { fileTitle, filterTitle, type NodeTitle, shownName } from './graph-name.ts';
import type { Layer } from './layer.ts';
import type { OpenOptionsInput } from './open-options.ts';
import { protocolOf, protocolPrefix } from './references.ts';

/** What a node takes over from the one above where it says nothing itself. */
export interface Inherited {
  readonly readOnly: boolean;
  /** Flushes of files do nothing. */
  readonly unsafe: boolean;
  readonly forceShare: boolean;
}

/** A node and what has to be known to stand something on it. */
export interface OpenedNode {
  readonly node: BlockNode;
  readonly title: NodeTitle;
  /** Where names that are found in it start from; `undefined` where it has no place of its own. */
  readonly location: string | undefined;
  readonly identity: string | undefined;
}

/** A format that is to be opened where a description says so. */
export interface FormatRequest {
  readonly spec: NodeSpec;
  readonly driver: FormatDriver;
  readonly file: OpenedNode;
  readonly inherited: Inherited;
  readonly place: Place | undefined;
}

/** Below which image a node stands, where it stands below one. */
export interface Place {
  readonly above: Layer;
  /** As its backing file. */
  readonly isLayer: boolean;
}

export interface GraphHost {
  readonly formats: readonly FormatDriver[];
  readonly protocols: readonly ProtocolDriver[];
  filters(): readonly FilterDriver[];
  readonly objects: ReadonlyMap<string, GraphObject>;
  readonly locking: LockingMode | undefined;
  readonly signal: AbortSignal | undefined;
  /** Takes over what was opened. */
  adopt(node: BlockNode): void;
  openFormat(request: FormatRequest): Promise<OpenedNode>;
  probe(file: OpenedNode): Promise<FormatDriver>;
  report(event: ImageEvent): void;
}

export class GraphNodes {
  readonly #host: GraphHost;
  readonly #named = new Map<string, OpenedNode>();

  constructor(host: GraphHost) {
    this.#host = host;
  }

  /** Forgets every name: the graph is made anew. */
  reset(): void {
    this.#named.clear();
  }

  /** The node of that name. @throws {@link BlockError} NOT_FOUND, reason `graph.reference`. */
  reference(name: string): OpenedNode {
    const found = this.#named.get(name);
    if (found !== undefined) return found;
    throw new BlockError('NOT_FOUND', `there is no node '${name}'`, { reason: 'graph.reference', details: { name } });
  }

  /** @throws {@link BlockError} INVALID_ARGUMENT, reason `graph.node-name-twice`. */
  register(name: string | undefined, opened: OpenedNode): void {
    if (name === undefined) return;
    if (this.#named.has(name)) throw mistake('node-name-twice', `there are two nodes '${name}'`, { name });
    this.#named.set(name, opened);
  }

  /** The driver that a description names. @throws {@link BlockError} INVALID_ARGUMENT, reason `image.unknown-format`. */
  driverOf(spec: NodeSpec): FormatDriver | FilterDriver | ProtocolDriver | undefined {
    const { driver: name } = spec;
    if (name === undefined) return undefined;
    const { formats, protocols } = this.#host;
    const all = [...formats, ...this.#host.filters(), ...protocols.filter((protocol) => protocol.graph !== undefined)];
    const found = all.find((driver) => driver.name === name);
    if (found !== undefined) return found;
    throw new BlockError('INVALID_ARGUMENT', `unknown driver '${name}'`, {
      reason: 'image.unknown-format',
      details: { format: name, formats: all.map((driver) => driver.name) },
    });
  }

  /** Opens a node.
   *  @param probed one without a driver is probed for its format */
  async open(spec: NodeSpec, inherited: Inherited, probed: boolean, place?: Place): Promise<OpenedNode> {
    throwIfAborted(this.#host.signal);
    const opened = await this.#open(spec, inherited, probed, place);
    this.register(spec.general().nodeName, opened);
    return opened;
  }

  async #open(spec: NodeSpec, inherited: Inherited, probed: boolean, place: Place | undefined): Promise<OpenedNode> {
    const driver = this.driverOf(spec);
    if (driver === undefined) {
      if (!probed) return await this.#byName(spec, inherited);
      const isBare = spec.child('file') === undefined && spec.has('filename');
      const described = isBare ? spec.with('file.filename', spec.text('filename')).with('filename', undefined) : spec;
      return await this.#format(described, undefined, inherited, place);
    }
    if (isFormat(driver)) return await this.#format(spec, driver, inherited, place);
    return isFilter(driver)
      ? await this.#filter(driver, spec, inherited, probed, place)
      : await this.#file(driver, spec, inherited);
  }

  /** The file of a format's node: described, named, or the name of a node.
   *  @throws {@link BlockError} INVALID_ARGUMENT, reasons `graph.no-file`, `graph.no-driver`. */
  async fileOf(spec: NodeSpec, inherited: Inherited): Promise<OpenedNode> {
    const file = spec.child('file');
    if (file instanceof NodeSpec) return await this.open(file, inherited, false);
    if (file !== undefined) return this.reference(file === 'none' ? '' : file.node);
    const { driver } = spec;
    if (driver === undefined) throw mistake('no-driver', 'neither a driver nor a file is named', {});
    throw missingChild(driver, 'file');
  }

  /** A file of that name, whatever the name looks like. */
  async file(protocol: ProtocolDriver, name: string, inherited: Inherited): Promise<OpenedNode> {
    throwIfAborted(this.#host.signal);
    return await this.#opened(protocol, name, NodeSpec.of(new Map()), inherited, (io) => protocol.open(name, io));
  }

  async #format(
    spec: NodeSpec,
    known: FormatDriver | undefined,
    inherited: Inherited,
    place: Place | undefined,
  ): Promise<OpenedNode> {
    const below = inheritedBy(spec.general(), inherited);
    const file = await this.fileOf(spec, below);
    const driver = known ?? (await this.#host.probe(file));
    return await this.#host.openFormat({ spec, driver, file, inherited: below, place });
  }

  /** What a name alone describes to a driver: options, where it is a filter's own form. */
  described(name: string, driver: { readonly name: string }): NodeSpec {
    const filter = this.#filterOf(name);
    return filter?.name === driver.name ? this.#parsed(filter, name) : NodeSpec.named(name);
  }

  #filterOf(name: string): FilterDriver | undefined {
    const prefix = protocolPrefix(name);
    return this.#host.filters().find((one) => one.parseName !== undefined && one.name === prefix);
  }

  #parsed(filter: FilterDriver, name: string): NodeSpec {
    const options = filter.parseName?.(name.slice(filter.name.length + 1)) ?? {};
    return NodeSpec.of(new Map(Object.entries(options)));
  }

  /** A name decides by its prefix. */
  async #byName(spec: NodeSpec, inherited: Inherited): Promise<OpenedNode> {
    const name = spec.text('filename');
    if (name === undefined) throw mistake('no-driver', 'neither a driver nor a file is named', {});
    const filter = this.#filterOf(name);
    const rest = spec.with('filename', undefined);
    if (filter !== undefined) {
      const options = this.#parsed(filter, name);
      return await this.#filter(filter, options.merged(rest), inherited, false, undefined);
    }
    const protocol = protocolOf(name, this.#host.protocols);
    if (protocol.graph === undefined) {
      const surplus = [...rest.own([]).keys()][0];
      if (surplus !== undefined) throw unknownOption(protocol.name, surplus, true);
      return await this.#opened(protocol, name, rest, inherited, (io) => protocol.open(name, io));
    }
    const options = NodeSpec.of(new Map(Object.entries(protocol.graph.parseName(name)))).merged(rest);
    return await this.#file(protocol, options.with('driver', protocol.name), inherited);
  }

  async #file(protocol: ProtocolDriver, spec: NodeSpec, inherited: Inherited): Promise<OpenedNode> {
    const { graph } = protocol;
    if (graph === undefined) throw new BlockError('INTERNAL', `internal error: ${protocol.name} takes no options`);
    const given = resolveAll(graph.openOptions, spec.own([]), protocol.name, true);
    const name = graph.nameOf(textual(spec.own([])));
    return await this.#opened(protocol, name, spec, inherited, (io) => graph.open(given, io));
  }

  async #opened(
    protocol: ProtocolDriver,
    name: string | undefined,
    spec: NodeSpec,
    inherited: Inherited,
    open: (io: OpenFileOptions) => Promise<BlockNode>,
  ): Promise<OpenedNode> {
    const general = spec.general();
    const { readOnly, unsafe, forceShare } = inheritedBy(general, inherited);
    const { signal } = this.#host;
    const io = (asked: boolean): OpenFileOptions => ({
      readOnly: asked,
      unsafe: !asked && unsafe,
      locking: this.#host.locking,
      ...(forceShare ? { forceShare } : {}),
      signal,
    });
    let node: BlockNode;
    try {
      node = await open(io(readOnly));
    } catch (error) {
      if (readOnly || !general.autoReadOnly || !isRefusedWriting(error)) throw error;
      node = await open(io(true));
    }
    this.#host.adopt(node);
    const status = await node.status?.();
    const own = spec.own([]);
    const options = name === undefined || own.size > 0 ? own : new Map([['filename', name]]);
    return {
      node,
      title: fileTitle(protocol.name, name, significant(protocol.graph?.openOptions, options)),
      location: name,
      identity: status?.identity,
    };
  }

  async #filter(
    filter: FilterDriver,
    spec: NodeSpec,
    inherited: Inherited,
    probed: boolean,
    above: Place | undefined,
  ): Promise<OpenedNode> {
    const below = inheritedBy(spec.general(), inherited);
    const children: { readonly child: FilterChild; readonly place: string; readonly opened: OpenedNode }[] = [];
    for (const child of filter.children) {
      const places = child.list === true ? spec.listed(child.name) : [child.name];
      if (child.list === true) requireListed(spec, child.name, places);
      for (const place of places) {
        const opened = await this.#child(filter, child, spec.child(place), below, probed, above);
        if (opened !== undefined) children.push({ child, place, opened });
      }
    }
    const own = spec.own(filter.children.map(({ name }) => name));
    const { plainOptions, groups } = grouped(filter, own);
    const options = resolveAll(filter.openOptions, plainOptions, filter.name, filter.parseName !== undefined);
    const titles = children.map(({ place, opened }) => [place, opened.title] as const);
    const plainOf = (place: string): string | undefined => titles.find(([name]) => name === place)?.[1].plain;
    const told = [...own].filter(([name]) => !changesNothing(filter.openOptions, name));
    const title = filterTitle(filter.name, filter.shortName?.(textual(own), plainOf), new Map(told), titles);
    const context: FilterContext = {
      name: shownName(title),
      readOnly: below.readOnly,
      children: (name) => children.filter(({ child }) => child.name === name).map(({ opened }) => opened.node),
      readFile: (name) => this.#readFile(name),
      nodeNamed: (name) => this.#named.get(name)?.node,
      objects: this.#host.objects,
      report: (event) => this.#host.report(event),
      signal: this.#host.signal,
    };
    const node = await filter.open(context, options as never, groups as never);
    this.#host.adopt(node);
    const first = children[0]?.opened;
    return { node, title, location: first?.location, identity: first?.identity };
  }

  async #child(
    filter: FilterDriver,
    child: FilterChild,
    described: ReturnType<NodeSpec['child']>,
    inherited: Inherited,
    probed: boolean,
    place: Place | undefined,
  ): Promise<OpenedNode | undefined> {
    if (described === undefined || described === 'none') {
      if (child.optional === true) return undefined;
      throw missingChild(filter.name, child.name);
    }
    if (!(described instanceof NodeSpec)) return this.reference(described.node);
    // A filter that names can call for stands where files stand.
    const standsProbed = probed && filter.parseName === undefined;
    const isProbed = child.probed === 'always' || (child.probed === 'as-filter' && standsProbed);
    return await this.open(
      described,
      { ...inherited, readOnly: inherited.readOnly || child.readOnly === true },
      isProbed,
      place,
    );
  }

  async #readFile(name: string): Promise<Uint8Array> {
    const file = await protocolOf(name, this.#host.protocols).open(name, {
      readOnly: true,
      signal: this.#host.signal,
    });
    try {
      if (file.size > MiB) {
        throw new BlockError('TOO_LARGE', `"${name}": has ${file.size} bytes, a file of options at most ${MiB}`, {
          reason: 'graph.options-file',
          details: { name, size: file.size },
        });
      }
      const bytes = new Uint8Array(file.size);
      await file.read(0, bytes);
      return bytes;
    } finally {
      await file.close();
    }
  }
}

export function inheritedBy(general: GeneralOptions, above: Inherited): Inherited {
  return {
    readOnly: general.readOnly ?? above.readOnly,
    unsafe: general.noFlush ?? above.unsafe,
    forceShare: general.forceShare ?? above.forceShare,
  };
}

/** What a format's node makes of discards and zeros. */
export interface NodeHabits {
  readonly discard: DiscardMode | undefined;
  readonly detectZeroes: DetectZeroes;
}

/** The file below says `ignore`: then nothing is given back to it. */
export function habitsOf(spec: NodeSpec, discard: DiscardMode | undefined): NodeHabits {
  const general = spec.general();
  const file = spec.child('file');
  const below = file instanceof NodeSpec ? file.general().discard : undefined;
  const own = general.discard ?? discard;
  return { discard: own === 'unmap' && below === 'ignore' ? undefined : own, detectZeroes: general.detectZeroes };
}

/** The children's names that a format's description may have. */
export function childNames(driver: FormatDriver): string[] {
  const files = Object.keys(driver.fileChildren ?? {});
  return ['file', ...(driver.capabilities.backing ? ['backing'] : []), ...files];
}

/** A format's own options by their TypeScript names, without defaults.
 *  @throws {@link BlockError} OPTION, reason `graph.option`, `graph.value`. */
export function formatOptions(driver: FormatDriver, spec: NodeSpec): Readonly<Record<string, unknown>> {
  return parsed(driver.openOptions, ownOptions(driver, spec), driver.name, false);
}

/** As {@link formatOptions}, unread. A child that is an option too has the child's name as its value. */
export function ownOptions(driver: FormatDriver, spec: NodeSpec): Map<string, GraphValue> {
  const own = spec.own(childNames(driver));
  for (const name of Object.keys(driver.fileChildren ?? {})) {
    const child = spec.child(name);
    const isOption = Object.entries(driver.openOptions).some(([key, def]) => cliName(key, def) === name);
    if (isOption && child instanceof NodeSpec) own.set(name, child.text('filename') ?? name);
  }
  return own;
}

export function isFormat(driver: object): driver is FormatDriver {
  return 'kind' in driver && driver.kind === 'format';
}

/** Open options of the layers below as the caller's description of the top has them, that of the backing file first. */
export function describedBelow(name: string): OpenOptionsInput[] {
  const layers: OpenOptionsInput[] = [];
  let spec = isGraphName(name) ? NodeSpec.parse(name).child('backing') : undefined;
  while (spec instanceof NodeSpec) {
    const layer = spec;
    layers.push((driver) => formatOptions(driver, layer));
    spec = layer.child('backing');
  }
  return layers;
}

function isFilter(driver: object): driver is FilterDriver {
  return 'kind' in driver && driver.kind === 'filter';
}

function isRefusedWriting(error: unknown): boolean {
  return isBlockError(error) && (error.code === 'ACCESS' || error.code === 'READ_ONLY');
}

function missingChild(driver: string, child: string): BlockError {
  return mistake('no-file', `${driver}: needs a node for '${child}'`, { driver, child });
}

/** What stands behind a gap in the numbers would be overlooked. */
function requireListed(spec: NodeSpec, list: string, places: readonly string[]): void {
  const stray = [...spec.own(places).keys()].find((key) => key === list || key.startsWith(`${list}.`));
  if (stray === undefined) return;
  throw mistake('list', `'${stray}': ${list} are numbered from 0 without a gap`, { name: list });
}

function unknownOption(driver: string, option: string, isProtocol: boolean): BlockError {
  return new BlockError('OPTION', `${driver} does not have the option '${option}'`, {
    reason: 'graph.option',
    details: { name: option, format: driver, protocol: isProtocol },
  });
}

/** Options of a filter that are said not to matter for what is read. */
function changesNothing(schema: OptionSchema, name: string): boolean {
  return Object.entries(schema).some(([key, def]) => cliName(key, def) === name && def.content === false);
}

function textual(options: ReadonlyMap<string, GraphValue>): Map<string, string> {
  return new Map([...options].map(([key, value]) => [key, textOf(value)]));
}

function significant(
  schema: OptionSchema | undefined,
  options: ReadonlyMap<string, GraphValue>,
): Map<string, GraphValue> {
  if (schema === undefined) return new Map(options);
  const names = Object.entries(schema)
    .filter(([, def]) => def.content === true)
    .map(([key, def]) => cliName(key, def));
  return new Map([...options].filter(([key]) => names.includes(key)));
}

function parsed(
  schema: OptionSchema,
  options: ReadonlyMap<string, GraphValue>,
  driver: string,
  isProtocol: boolean,
): OptionsInput<OptionSchema> {
  const names = Object.entries(schema).map(([key, def]) => cliName(key, def));
  const surplus = [...options.keys()].find((name) => !names.includes(name));
  if (surplus !== undefined) throw unknownOption(driver, surplus, isProtocol);
  const result: Record<string, unknown> = {};
  for (const [key, def] of Object.entries(schema)) {
    const name = cliName(key, def);
    const value = options.get(name);
    if (value !== undefined) result[key] = typed(driver, name, def.kind, textOf(value));
  }
  return result as OptionsInput<OptionSchema>;
}

/** What a text means; whether the value is in bounds is the schema's business.
 *  @throws {@link BlockError} OPTION, reason `graph.value`. */
function typed(driver: string, name: string, kind: OptionKind, text: string): unknown {
  const refused = (wanted: string): BlockError =>
    new BlockError('OPTION', `option ${name} of ${driver}: expected ${wanted}, not '${text}'`, {
      reason: 'graph.value',
      details: { name, value: text, format: driver, kind },
    });
  if (kind === 'bool') {
    if (text === 'on' || text === 'off') return text === 'on';
    throw refused("'on' or 'off'");
  }
  if (kind === 'int') {
    if (!/^-?(0[xX][0-9a-fA-F]+|\d+)$/.test(text)) throw refused('a number');
    // QEMU reads a negative number as a huge one.
    return text.startsWith('-') ? Number.MAX_SAFE_INTEGER : Number(text);
  }
  if (kind === 'size') {
    const size = parseSize(text);
    if (typeof size === 'number') return size;
    throw refused('a size (64K, 1.5G, bytes)');
  }
  return text;
}

function resolveAll(
  schema: OptionSchema,
  options: ReadonlyMap<string, GraphValue>,
  driver: string,
  isProtocol: boolean,
): Readonly<Record<string, unknown>> {
  return resolveOptions(schema, parsed(schema, options, driver, isProtocol));
}

/** Takes the numbered groups out of a filter's options. */
function grouped(
  filter: FilterDriver,
  own: ReadonlyMap<string, GraphValue>,
): {
  readonly plainOptions: ReadonlyMap<string, GraphValue>;
  readonly groups: Readonly<Record<string, readonly object[]>>;
} {
  let rest = NodeSpec.of(own);
  const groups: Record<string, object[]> = {};
  for (const [name, schema] of Object.entries(filter.listOptions)) {
    const list: object[] = [];
    for (const place of rest.listed(name)) {
      const group = rest.child(place);
      if (!(group instanceof NodeSpec)) throw unknownOption(filter.name, place, filter.parseName !== undefined);
      list.push(resolveAll(schema, group.own([]), filter.name, filter.parseName !== undefined));
      rest = NodeSpec.of(rest.own([place]));
    }
    groups[name] = list;
  }
  return { plainOptions: rest.own([]), groups };
}
