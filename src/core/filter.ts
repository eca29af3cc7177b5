/** The contract of filters: nodes that stand between a parent and what it reads, and change how requests travel, never what a format means.
 *  A filter is a value the caller passes; nothing registers itself. Types and one helper.
 *  Invariant: a filter opens nothing and closes none of its children; whoever built the graph does both. */
import type { OptionSchema, OptionsOf } from '../base/options.ts';
import type { ImageEvent } from './format.ts';
import type { BlockNode, ChildRole } from './node.ts';

/** A child, or a numbered list of children, that a filter takes. */
export interface FilterChild {
  /** As options name it: `file`, `image`, `children` (of a list: `children.0`, `children.1`, …). */
  readonly name: string;
  readonly role: ChildRole;
  /** Several, numbered from 0. */
  readonly list?: boolean;
  /** Whether a child of which only a file name is given is probed for its format: as the filter itself is where it stands (`as-filter`),
   *  whatever stands above (`always`), or taken as bytes (`never`). */
  readonly probed: 'as-filter' | 'always' | 'never';
  readonly optional?: boolean;
  /** Opened for reading although the filter is written to. */
  readonly readOnly?: boolean;
}

/** Something several nodes share by its id (`--object`): a throttle group. */
export interface GraphObject {
  /** QEMU's name of its type: `throttle-group`. */
  readonly type: string;
}

/** What a filter is opened with. */
export interface FilterContext {
  /** What messages call it. */
  readonly name: string;
  readonly readOnly: boolean;
  /** The children of this name, in order; empty where an optional one is not given. */
  children(name: string): readonly BlockNode[];
  /** The bytes of a small file that an option names, at most 1 MiB. @throws {@link BlockError} as opening it, TOO_LARGE. */
  readFile(name: string): Promise<Uint8Array>;
  /** The node that was given this name (`node-name`), among those opened for the children. */
  nodeNamed(name: string): BlockNode | undefined;
  /** By id. */
  readonly objects: ReadonlyMap<string, GraphObject>;
  report(event: ImageEvent): void;
  readonly signal: AbortSignal | undefined;
}

/** Resolved groups of options, by the name of the list: `inject-error.0.event` is `event` of the first one of `inject-error`. */
export type OptionGroups<L extends Readonly<Record<string, OptionSchema>>> = {
  readonly [K in keyof L]: readonly OptionsOf<L[K]>[];
};

export interface FilterDriver<
  O extends OptionSchema = OptionSchema,
  L extends Readonly<Record<string, OptionSchema>> = Readonly<Record<string, OptionSchema>>,
> {
  readonly kind: 'filter';
  /** `blkdebug`, `throttle`, … */
  readonly name: string;
  /** One line. */
  readonly summary: string;
  /** The first one is what the filter shows: its size, its status. */
  readonly children: readonly FilterChild[];
  readonly openOptions: O;
  /** Numbered groups of options. */
  readonly listOptions: L;
  /** Options by QEMU's names that `name:rest` stands for (children as `image.filename`); not there where the filter has no such form.
   *  @throws {@link BlockError} INVALID_ARGUMENT. */
  parseName?(rest: string): Readonly<Record<string, string>>;
  /** The form that {@link parseName} reads, where nothing but these options is given.
   *  @param child the name of a child that has a plain one */
  shortName?(options: ReadonlyMap<string, string>, child: (name: string) => string | undefined): string | undefined;
  open(context: FilterContext, options: OptionsOf<O>, groups: OptionGroups<L>): Promise<BlockNode>;
}

/** Infers the types of a driver's options. */
export function defineFilter<const O extends OptionSchema, const L extends Readonly<Record<string, OptionSchema>>>(
  driver: Omit<FilterDriver<O, L>, 'kind'>,
): FilterDriver {
  return { kind: 'filter', ...driver } as unknown as FilterDriver;
}
