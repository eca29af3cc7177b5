/** A node of a graph as the caller describes it: options by QEMU's names, flat with dots (`file.driver`), from a `json:{…}` name, from
 *  `name=value` lists, or from objects. Owns what the description says; opens nothing and knows no driver.
 *  Invariants: a description comes from the caller only, never out of an image; what a node does not ask for is told as a mistake. */
import { BlockError } from '../base/errors.ts';
import { compactJson, type JsonValue } from '../base/json-text.ts';
import type { DiscardMode } from '../core/format.ts';

export type GraphValue = string | number | boolean | null;

/** Options by QEMU's names, nested as JSON has them. */
export interface GraphOptions {
  readonly [key: string]: GraphValue | GraphOptions | readonly (GraphValue | GraphOptions)[];
}

const JSON_PREFIX = 'json:';

/** Deeper objects are nobody's graph. */
const MAX_NESTING = 1024;

/** Options that every node takes, whatever its driver. */
const GENERAL = new Set([
  'driver',
  'node-name',
  'read-only',
  'auto-read-only',
  'force-share',
  'discard',
  'detect-zeroes',
  'cache.direct',
  'cache.no-flush',
]);

export type DetectZeroes = 'off' | 'on' | 'unmap';

/** What {@link NodeSpec.general} says. What is not given comes from the node above. */
export interface GeneralOptions {
  readonly nodeName: string | undefined;
  readonly readOnly: boolean | undefined;
  readonly autoReadOnly: boolean;
  readonly forceShare: boolean | undefined;
  readonly discard: DiscardMode | undefined;
  readonly detectZeroes: DetectZeroes;
  readonly direct: boolean | undefined;
  readonly noFlush: boolean | undefined;
}

/** The `json:` name of a graph. */
export function graphName(options: GraphOptions): string {
  return JSON_PREFIX + compactJson(options as JsonValue);
}

export function isGraphName(name: string): boolean {
  return name.startsWith(JSON_PREFIX);
}

/** The file name at the bottom of what a name describes, as far as that goes by first children; the name itself where it describes nothing. */
export function fileNameIn(name: string): string | undefined {
  return isGraphName(name) ? NodeSpec.parse(name).fileName : name;
}

export class NodeSpec {
  readonly #options: ReadonlyMap<string, GraphValue>;
  /** Where this node stands in the whole, with a dot at its end: empty at the top. */
  readonly #path: string;

  private constructor(options: ReadonlyMap<string, GraphValue>, path: string) {
    this.#options = options;
    this.#path = path;
  }

  /** A node of which only a file name is known. */
  static named(name: string): NodeSpec {
    return new NodeSpec(new Map([['file.filename', name]]), '');
  }

  static of(options: ReadonlyMap<string, GraphValue>): NodeSpec {
    return new NodeSpec(options, '');
  }

  /** @param name `json:{…}`
   *  @throws {@link BlockError} INVALID_ARGUMENT, reasons `graph.json`, `graph.json-empty`, `graph.json-object`. */
  static parse(name: string): NodeSpec {
    const text = name.slice(JSON_PREFIX.length);
    if (text.trim() === '') throw mistake('json-empty', `"${name}": no JSON object follows`, { name });
    let parsed: unknown;
    try {
      parsed = JSON.parse(text);
    } catch (error) {
      throw mistake('json', `"${name}": what follows json: is not JSON: ${(error as Error).message}`, { name, text });
    }
    if (typeof parsed !== 'object' || parsed === null || Array.isArray(parsed)) {
      throw mistake('json-object', `"${name}": what follows json: is not an object`, { name });
    }
    const options = new Map<string, GraphValue>();
    flatten('', parsed as GraphOptions, options, 0);
    return new NodeSpec(options, '');
  }

  /** The `json:` name of the description. */
  get name(): string {
    return graphName(Object.fromEntries(this.#options));
  }

  has(key: string): boolean {
    return this.#options.has(key);
  }

  /** The file name at the bottom. */
  get fileName(): string | undefined {
    const file = this.child('file');
    return this.text('filename') ?? (file instanceof NodeSpec ? file.fileName : undefined);
  }

  isNull(key: string): boolean {
    return this.#options.get(key) === null;
  }

  /** The value as lists have it: booleans are `on` and `off`. */
  text(key: string): string | undefined {
    const value = this.#options.get(key);
    return value === undefined ? undefined : textOf(value);
  }

  get driver(): string | undefined {
    return this.text('driver');
  }

  /** The same with another value, or without one. */
  with(key: string, value: GraphValue | undefined): NodeSpec {
    const options = new Map(this.#options);
    if (value === undefined) options.delete(key);
    else options.set(key, value);
    return new NodeSpec(options, this.#path);
  }

  /** The same options with those of `other` where it has any. */
  merged(other: NodeSpec): NodeSpec {
    return new NodeSpec(new Map([...this.#options, ...other.#options]), this.#path);
  }

  /** What a child's place holds: its own options, the name of a node, or `none` for a child that there is not to be. */
  child(name: string): NodeSpec | { readonly node: string } | 'none' | undefined {
    if (this.#options.has(name)) {
      const value = this.#options.get(name);
      return value === null || value === '' ? 'none' : { node: textOf(value as GraphValue) };
    }
    const prefix = `${name}.`;
    const below = [...this.#options].filter(([key]) => key.startsWith(prefix));
    if (below.length === 0) return undefined;
    return new NodeSpec(new Map(below.map(([key, value]) => [key.slice(prefix.length), value])), this.#path + prefix);
  }

  /** The places of a numbered list of children or groups: `children.0`, `children.1`, … without a gap. */
  listed(name: string): string[] {
    const places: string[] = [];
    for (let place = `${name}.0`; this.child(place) !== undefined; place = `${name}.${places.length}`) {
      places.push(place);
    }
    return places;
  }

  /** The options that are the driver's own: not general, and of none of these children. */
  own(children: readonly string[]): Map<string, GraphValue> {
    const isChilds = (key: string): boolean => children.some((child) => key === child || key.startsWith(`${child}.`));
    return new Map([...this.#options].filter(([key]) => !GENERAL.has(key) && !isChilds(key)));
  }

  /** @throws {@link BlockError} OPTION, reasons `graph.switch`, `graph.discard`, `graph.detect-zeroes`; INVALID_ARGUMENT, reason `graph.node-name`. */
  general(): GeneralOptions {
    const nodeName = this.text('node-name');
    if (nodeName !== undefined && !/^[a-zA-Z][-._a-zA-Z0-9]{0,30}$/.test(nodeName)) {
      throw mistake('node-name', `'${nodeName}' is no name for a node`, { name: nodeName });
    }
    const discard = this.#discard();
    const detectZeroes = this.text('detect-zeroes') ?? 'off';
    if (detectZeroes !== 'off' && detectZeroes !== 'on' && detectZeroes !== 'unmap') {
      throw optionMistake(
        'detect-zeroes',
        `${this.#path}detect-zeroes: expected off, on or unmap, not '${detectZeroes}'`,
        {
          value: detectZeroes,
        },
      );
    }
    if (detectZeroes === 'unmap' && discard !== 'unmap') {
      throw optionMistake('detect-zeroes-unmap', `${this.#path}detect-zeroes=unmap needs discard=unmap`, {});
    }
    return {
      nodeName,
      readOnly: this.#switch('read-only'),
      autoReadOnly: this.#switch('auto-read-only') ?? false,
      forceShare: this.#switch('force-share'),
      discard,
      detectZeroes,
      direct: this.#switch('cache.direct'),
      noFlush: this.#switch('cache.no-flush'),
    };
  }

  #discard(): DiscardMode | undefined {
    const mode = this.text('discard');
    if (mode === undefined) return undefined;
    if (mode === 'unmap' || mode === 'on') return 'unmap';
    if (mode === 'ignore' || mode === 'off') return 'ignore';
    throw optionMistake('discard', `${this.#path}discard: expected ignore or unmap, not '${mode}'`, { value: mode });
  }

  #switch(name: string): boolean | undefined {
    const value = this.text(name);
    if (value === undefined) return undefined;
    if (value === 'on' || value === 'off') return value === 'on';
    throw optionMistake('switch', `${this.#path}${name}: expected on or off, not '${value}'`, { name, value });
  }
}

function flatten(prefix: string, object: GraphOptions, into: Map<string, GraphValue>, depth: number): void {
  if (depth > MAX_NESTING) throw mistake('json-depth', `the description of the graph is nested too deeply`, {});
  for (const [key, value] of Object.entries(object)) {
    const name = prefix + key;
    if (typeof value === 'object' && value !== null) flatten(`${name}.`, value as GraphOptions, into, depth + 1);
    else into.set(name, value);
  }
}

/** A scalar as lists have it. */
export function textOf(value: GraphValue): string {
  if (typeof value === 'boolean') return value ? 'on' : 'off';
  return value === null ? '' : String(value);
}

/** What is wrong with a description. */
export function mistake(reason: string, message: string, details: Readonly<Record<string, unknown>>): BlockError {
  return new BlockError('INVALID_ARGUMENT', message, { reason: `graph.${reason}`, details });
}

function optionMistake(reason: string, message: string, details: Readonly<Record<string, unknown>>): BlockError {
  return new BlockError('OPTION', `option ${message}`, { reason: `graph.${reason}`, details });
}
