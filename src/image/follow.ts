/** From an image to the files it names: the caller's policy, the files the caller has put in their place, loops and depth.
 *  Invariants: this is the one way from an image to another file; a name that an image records is a file's name or a known protocol's, never
 *  the description of a graph; a file that is already part of the path from the top is never opened a second time. */
import { BlockError, isBlockError } from '../base/errors.ts';
import type { FormatDriver, ImageEvent, Reference, ReferenceStatus } from '../core/format.ts';
import type { MappedNode } from '../core/mapped-node.ts';
import type { BlockNode } from '../core/node.ts';
import type { ProtocolDriver } from '../core/protocol.ts';
import type { Claims } from './claims.ts';
import { NodeSpec } from './graph.ts';
import { type GraphNodes, type Inherited, isFormat, type OpenedNode } from './graph-nodes.ts';
import { keyOf, type Layer, requireNew } from './layer.ts';
import type { OpenImageOptions, OpenOptionsInput } from './open-options.ts';
import { probeFormat, requireFormat } from './probe.ts';
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
import { UnopenedNode } from './unopened-node.ts';

const DEFAULT_DEPTH = 256;

export interface FollowHost {
  readonly options: OpenImageOptions;
  readonly nodes: GraphNodes;
  readonly claims: Claims;
  /** Opens the image in a file that was reached. */
  openLayer(layer: Layer, driver: FormatDriver, options: OpenOptionsInput): Promise<MappedNode>;
  adopt(node: BlockNode): void;
  report(event: ImageEvent): void;
}

/** What options call the children that images name. */
const CHILD_NAMES: Readonly<Record<Reference['role'], readonly string[]>> = {
  backing: ['backing'],
  data: ['data-file', 'image-file'],
  header: ['header'],
  extent: [],
};

/** The caller's file in place of the recorded one. */
interface Override {
  readonly reference: Reference;
  readonly target: ReferenceTarget;
}

export class Follower {
  readonly #host: FollowHost;
  readonly #policy: ReferencePolicy;
  #backing: { readonly name: string | undefined; readonly format: string | undefined } | undefined;
  /** Names that the image records, for which the caller's choice of a file stands. Those met once the image is open are new ones. */
  readonly #overridden = { backing: new Set<string>(), data: new Set<string>() };
  #isOpen = false;
  /** What the top layer has asked for, and got. */
  readonly #references: (Reference & { readonly file: BlockNode })[] = [];
  /** Which of it serves again at present. */
  reuses: 'none' | 'backing' | 'all' = 'none';

  constructor(host: FollowHost) {
    this.#host = host;
    this.#policy = host.options.references ?? 'deny';
  }

  /** The backing file of the top as it was found last. */
  get backing(): { readonly name: string | undefined; readonly format: string | undefined } | undefined {
    return this.#backing;
  }

  /** The image is open: what it names from now on is new.
   *  @throws {@link BlockError} INVALID_ARGUMENT, reasons `image.backing-override`, `image.data-file-override`, for choices that stand for nothing. */
  opened(name: string): void {
    requireOverridesUsed(this.#host.options, this.#overridden, name);
    this.#isOpen = true;
  }

  /** Forgets files that are part of the image no longer. */
  keep(used: ReadonlySet<BlockNode>): void {
    this.#references.splice(0, this.#references.length, ...this.#references.filter(({ file }) => used.has(file)));
  }

  /** The file that an image asks for. */
  async follow(recorded: Reference, from: Layer): Promise<BlockNode> {
    if (from.depth > 1) return await this.#followAnew(recorded, from);
    const { role, name, format } = recorded;
    const readOnly = role === 'backing' || recorded.readOnly || from.inherited.readOnly;
    const known = this.#references.find(
      (one) => one.role === role && one.name === name && one.format === format && one.readOnly === readOnly,
    );
    const serves = this.reuses === 'all' || (this.reuses === 'backing' && role === 'backing');
    if (known !== undefined && serves) {
      this.#host.claims.takeBack(known.file);
      return known.file;
    }
    const file = await this.#followAnew(recorded, from);
    this.#references.push({ role, name, format, readOnly, file });
    return file;
  }

  /** Looks at a file without opening it. */
  async lookAt(recorded: Reference, from: Layer): Promise<ReferenceStatus | undefined> {
    const override = this.#overrideOf(recorded, from);
    const { protocols, lookAt } = this.#host.options;
    const described = override === undefined ? describedChild(from, recorded.role) : undefined;
    if (described instanceof NodeSpec && this.#namesFile(described)) {
      const name = described.fileName;
      return name === undefined ? undefined : await statusOf(protocolOf(name, protocols), name);
    }
    const { protocol, resolved } = override?.target ?? resolveReference(recorded, locationOf(from), protocols);
    const asked = { ...recorded, resolved, from: from.name };
    if (override === undefined && !allowsReference(lookAt ?? this.#policy, asked)) return undefined;
    return await statusOf(protocol, resolved);
  }

  async #followAnew(recorded: Reference, from: Layer): Promise<BlockNode> {
    const override = this.#overrideOf(recorded, from);
    const described = override === undefined ? describedChild(from, recorded.role) : undefined;
    if (described !== undefined && this.#standsAlone(described, recorded, from)) {
      return await this.#followDescribed(recorded, described, from);
    }
    return await this.#followRecorded(recorded, override, described, from);
  }

  async #followRecorded(
    recorded: Reference,
    override: Override | undefined,
    described: DescribedChild | undefined,
    from: Layer,
  ): Promise<BlockNode> {
    const spec = described instanceof NodeSpec ? described : undefined;
    const reference = override?.reference ?? withDriver(recorded, spec);
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
      return await this.#open(reference, target, spec, from);
    } catch (error) {
      throw referenceError(error, reference, target.resolved, from);
    }
  }

  /** A node that the caller has put in the place of whatever the image records. */
  async #followDescribed(recorded: Reference, described: DescribedChild, from: Layer): Promise<BlockNode> {
    const { role } = recorded;
    const label = described instanceof NodeSpec ? (described.fileName ?? recorded.name) : described.node;
    const reference = { ...recorded, name: label };
    const isLayer = role === 'backing';
    const stays = isLayer ? !this.#opensBelow(from.depth) : this.#host.options.metadataOnly === true && role === 'data';
    if (stays) {
      this.#noteBacking(reference, label, from);
      const asked = { ...reference, resolved: label, from: from.name };
      return new UnopenedNode(label, () => deniedReference(asked, 'openBacking: false'));
    }
    try {
      const opened = await this.#openDescribed(recorded, described, from);
      // Where it is an image, that one has claimed its file by itself.
      const readOnly = isLayer || from.inherited.readOnly;
      this.#host.claims.take(placeOf(role, '', from), opened.node, this.#host.claims.below(role, from, readOnly));
      const name = opened.location ?? label;
      // Under one parent the same file twice is no loop, but a disk over itself is.
      requireNew(from, keyOf('', name), opened.identity, label);
      from.overrides.set(
        CHILD_NAMES[role].find((child) => from.spec?.child(child) !== undefined) ?? role,
        opened.title,
      );
      this.#noteBacking({ ...reference, format: opened.node.driver }, opened.title.plain ?? label, from);
      return opened.node;
    } catch (error) {
      throw referenceError(error, reference, label, from);
    }
  }

  async #openDescribed({ role, format }: Reference, described: DescribedChild, from: Layer): Promise<OpenedNode> {
    const { nodes } = this.#host;
    if (!(described instanceof NodeSpec)) return nodes.reference(described.node);
    const isLayer = role === 'backing';
    const readOnly = isLayer || from.inherited.readOnly;
    // What the image records of its format holds for another file, too.
    const isRecorded = isLayer && described.driver === undefined && format !== undefined && format !== '';
    const spec = isRecorded ? described.with('driver', format) : described;
    return await nodes.open(spec, { ...from.inherited, readOnly }, isLayer, { above: from, isLayer });
  }

  #targetOf(reference: Reference, from: Layer): ReferenceTarget {
    const { name, chosen } = reference;
    const { protocols } = this.#host.options;
    if (chosen === true) return { protocol: protocolOf(name, protocols), resolved: name };
    return resolveReference(reference, locationOf(from), protocols);
  }

  /** @throws as opening what is described. */
  #standsAlone(described: DescribedChild, recorded: Reference, from: Layer): boolean {
    if (!(described instanceof NodeSpec)) return true;
    try {
      return this.#namesFile(described);
    } catch (error) {
      throw referenceError(error, recorded, recorded.name, from);
    }
  }

  /** Whether a description says where the bytes are, instead of how the recorded file is to be opened. */
  #namesFile(spec: NodeSpec): boolean {
    const driver = this.#host.nodes.driverOf(spec);
    if (driver !== undefined && !isFormat(driver)) return true;
    const file = spec.child('file');
    if (file instanceof NodeSpec) return file.has('filename') || file.driver !== undefined;
    return file !== undefined || spec.has('filename');
  }

  /** Whether the backing file of the layer at `depth` is to be opened. */
  #opensBelow(depth: number): boolean {
    const { openBacking = true } = this.#host.options;
    return typeof openBacking === 'number' ? depth <= openBacking : openBacking;
  }

  #noteBacking(reference: Reference, resolved: string | undefined, from: Layer): void {
    if (reference.role !== 'backing' || from.depth !== 1) return;
    this.#backing = { name: resolved, format: reference.format === '' ? undefined : reference.format };
  }

  #overrideOf(recorded: Reference, from: Layer): Override | undefined {
    const { backing, dataFile, metadataOnly, protocols } = this.#host.options;
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

  /** The name may be anything, even one that could never be opened: nobody asks for it. */
  #leaveBacking(reference: Reference, target: ReferenceTarget | undefined, from: Layer): BlockNode {
    let resolved: string | undefined;
    try {
      resolved = (target ?? resolveReference(reference, locationOf(from), this.#host.options.protocols)).resolved;
    } catch (error) {
      if (!isBlockError(error)) throw error;
    }
    this.#noteBacking(reference, resolved, from);
    const asked = { ...reference, resolved: resolved ?? reference.name, from: from.name };
    return new UnopenedNode(asked.resolved, () => deniedReference(asked, 'openBacking: false'));
  }

  async #open(
    reference: Reference,
    target: ReferenceTarget,
    described: NodeSpec | undefined,
    from: Layer,
  ): Promise<BlockNode> {
    const { protocol, resolved } = target;
    const isLayer = reference.role === 'backing';
    const depth = isLayer ? from.depth + 1 : from.depth;
    this.requireDepth(depth, resolved, from);
    const key = keyOf(protocol.name, resolved);
    requireNew(from, key, (await protocol.status?.(resolved))?.identity, resolved);
    const readOnly = isLayer || reference.readOnly || from.inherited.readOnly;
    const inherited = { ...from.inherited, readOnly, unsafe: from.inherited.unsafe && !isLayer };
    const file = await this.#fileOf(protocol, resolved, described, inherited);
    requireNew(from, key, file.identity, resolved);
    const place = placeOf(reference.role, key, from);
    const claim = this.#host.claims.below(reference.role, from, readOnly);
    if (!isLayer && reference.format === undefined) {
      this.#host.claims.take(place, file.node, claim);
      return file.node;
    }
    const layer: Layer = {
      name: resolved,
      location: resolved,
      key,
      file,
      spec: described,
      inherited,
      depth,
      above: from,
      place,
      claim,
      overrides: new Map(),
    };
    const options = (isLayer ? this.#host.options.backingOptions?.[depth - 2] : undefined) ?? {};
    const node = await this.#host.openLayer(layer, await this.#formatOf(reference, layer), options);
    this.#host.adopt(node);
    return node;
  }

  /** The recorded file, with what is said of how it is to be opened. */
  async #fileOf(
    protocol: ProtocolDriver,
    name: string,
    described: NodeSpec | undefined,
    inherited: Inherited,
  ): Promise<OpenedNode> {
    const file = described?.child('file');
    if (!(file instanceof NodeSpec)) return await this.#host.nodes.file(protocol, name, inherited);
    return await this.#host.nodes.open(file.with('filename', name), inherited, false);
  }

  /** @throws {@link BlockError} CHAIN, reason `chain.depth`. */
  requireDepth(depth: number, name: string, from: Layer): void {
    const limit = this.#host.options.maxDepth ?? DEFAULT_DEPTH;
    if (depth <= limit) return;
    throw new BlockError(
      'CHAIN',
      `"${from.name}": the backing chain is deeper than ${limit} layers (option maxDepth)`,
      { reason: 'chain.depth', details: { depth, maxDepth: limit, name } },
    );
  }

  async #formatOf(reference: Reference, layer: Layer): Promise<FormatDriver> {
    const { formats, probed, probeBacking } = this.#host.options;
    if (reference.format !== undefined && reference.format !== '') {
      return requireFormat(reference.format, layer.name, formats);
    }
    if (probeBacking === true) {
      const { driver, guessed } = await probeFormat(layer.file.node, layer.name, probed ?? formats);
      if (guessed) this.#warnGuessed(layer.name, driver.name);
      return driver;
    }
    throw new BlockError(
      'REFERENCE_DENIED',
      `"${layer.name}": the image above it does not record its format, and probing a backing file is unsafe; pass probeBacking: true to allow it`,
      { reason: 'reference.unprobed', details: { name: layer.name } },
    );
  }

  #warnGuessed(name: string, format: string): void {
    this.#host.report({
      type: 'warning',
      node: name,
      reason: 'image.guessed',
      message: `"${name}": the image above it does not record its format, and nothing but ${format} matches: it is read as ${format}`,
    });
  }
}

/** A node, or the name of one. */
type DescribedChild = NodeSpec | { readonly node: string };

/** Where a file stands in the image. @param key tells files of one role apart */
function placeOf(role: Reference['role'], key: string, from: Layer): string {
  return `${from.place}${role}\0${key}\0`;
}

/** What the caller says of the file that an image asks for in this role; of a backing file that there is not to be no image asks. */
function describedChild(from: Layer, role: Reference['role']): DescribedChild | undefined {
  for (const name of CHILD_NAMES[role]) {
    const child = from.spec?.child(name);
    if (child !== undefined && child !== 'none') return child;
  }
  return undefined;
}

function withDriver(recorded: Reference, described: NodeSpec | undefined): Reference {
  return described?.driver === undefined ? recorded : { ...recorded, format: described.driver };
}

/** @throws {@link BlockError} INVALID_ARGUMENT, reason `reference.no-location`. */
function locationOf(layer: Layer): string {
  if (layer.location !== undefined) return layer.location;
  throw new BlockError(
    'INVALID_ARGUMENT',
    `"${layer.name}": has no place of its own that names in it could start from`,
    {
      reason: 'reference.no-location',
      details: { name: layer.name },
    },
  );
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

const ROLE_WORDS = {
  backing: { reason: 'image.backing', words: 'backing file' },
  data: { reason: 'image.data-file', words: 'data file' },
  extent: { reason: 'image.extent-file', words: 'extent file' },
  header: { reason: 'image.header-file', words: 'header file' },
} as const;

/** Says which image wanted the file; refusals and loops speak for themselves. */
function referenceError(error: unknown, reference: Reference, resolved: string, from: Layer): unknown {
  if (!isBlockError(error)) return error;
  if (error.code === 'REFERENCE_DENIED' || error.code === 'CHAIN' || error.code === 'ABORTED') return error;
  const { reason, words } = ROLE_WORDS[reference.role];
  return new BlockError(error.code, `"${from.name}": could not open ${words} "${reference.name}": ${error.message}`, {
    reason,
    details: { name: reference.name, resolved, file: from.name, errno: error.details.errno },
    cause: error,
  });
}
