/** Options of drivers and tools: one schema value yields types, validation, command-line parsing, `-o help` and docs.
 *  Invariant: a schema is data; nothing here knows what an option means.
 *  Names are camelCase in TypeScript and snake_case on the command line (`cli` overrides). */

import { isPowerOfTwo } from '../bytes/align.ts';
import { BlockError } from './errors.ts';
import { parseSize } from './sizes.ts';

export type OptionKind = 'size' | 'choice' | 'text' | 'bool' | 'int';

export interface OptionDef<T> {
  readonly kind: OptionKind;
  /** One line, as `-o help` prints it. */
  readonly help: string;
  readonly default?: T;
  /** Name on the command line, where it is not the snake_case of the key. */
  readonly cli?: string;
  /** Other spellings that are accepted and mean `[option, value]`: QEMU's deprecated aliases. */
  readonly choices?: readonly string[];
  /** Accepted spellings of a choice's values, to their canonical value (`0.10` → `v2`). */
  readonly synonyms?: Readonly<Record<string, string>>;
  readonly min?: number;
  readonly max?: number;
  readonly powerOfTwo?: boolean;
  /** The reason id an invalid value is reported under; `option.value` where it is not given. */
  readonly reason?: string;
  /** What is read depends on it: it is part of the name that an opened image is shown by. */
  readonly content?: boolean;
  /** QEMU 7.2 does not know it: where its list is to be shown, it is left out. */
  readonly newer?: boolean;
}

type Rest<T> = Omit<OptionDef<T>, 'kind' | 'choices'>;
type WithDefault<T, D> = D extends { readonly default: T } ? OptionDef<T> & { readonly default: T } : OptionDef<T>;

export function size<const D extends Rest<number>>(def: D): WithDefault<number, D> {
  return { kind: 'size', ...def } as unknown as WithDefault<number, D>;
}
export function int<const D extends Rest<number>>(def: D): WithDefault<number, D> {
  return { kind: 'int', ...def } as unknown as WithDefault<number, D>;
}
export function bool<const D extends Rest<boolean>>(def: D): WithDefault<boolean, D> {
  return { kind: 'bool', ...def } as unknown as WithDefault<boolean, D>;
}
export function text<const D extends Rest<string>>(def: D): WithDefault<string, D> {
  return { kind: 'text', ...def } as unknown as WithDefault<string, D>;
}
export function choice<const C extends readonly string[], const D extends Rest<C[number]>>(
  choices: C,
  def: D,
): WithDefault<C[number], D> {
  return { kind: 'choice', choices, ...def } as unknown as WithDefault<C[number], D>;
}

// biome-ignore lint/suspicious/noExplicitAny: a schema is heterogeneous; OptionsOf recovers each type
export type OptionSchema = Readonly<Record<string, OptionDef<any>>>;

/** The resolved value type of a schema: options with a default are always there. */
export type OptionsOf<S extends OptionSchema> = {
  readonly [K in keyof S]: S[K] extends { readonly default: infer T }
    ? Widen<T>
    : S[K] extends OptionDef<infer T>
      ? T | undefined
      : never;
};
type Widen<T> = T extends number ? number : T extends boolean ? boolean : T;

/** What a caller passes: any subset. */
export type OptionsInput<S extends OptionSchema> = {
  readonly [K in keyof S]?: (S[K] extends OptionDef<infer T> ? T : never) | undefined;
};

export function defineOptions<const S extends OptionSchema>(schema: S): S {
  return schema;
}

/** `clusterSize` → `cluster_size`, unless the definition says otherwise. */
export function cliName(key: string, def: OptionDef<unknown>): string {
  return def.cli ?? key.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
}

/** Validates `input` and fills in the defaults.
 *  @throws {@link BlockError} OPTION for unknown names and unacceptable values; `details.name` is the command-line name. */
export function resolveOptions<S extends OptionSchema>(schema: S, input: OptionsInput<S>): OptionsOf<S> {
  const result: Record<string, unknown> = {};
  for (const key of Object.keys(input)) if (!(key in schema)) throw unknownOption(schema, key);
  for (const [key, def] of Object.entries(schema)) {
    const value = (input as Record<string, unknown>)[key];
    result[key] = value === undefined ? def.default : validate(cliName(key, def), def, value);
  }
  return result as OptionsOf<S>;
}

/** Validates `input` as {@link resolveOptions} does, without filling in defaults: what is not given stays so. */
export function checkOptions<S extends OptionSchema>(schema: S, input: OptionsInput<S>): OptionsInput<S> {
  const result: Record<string, unknown> = {};
  for (const [key, value] of Object.entries(input)) {
    const def = schema[key];
    if (def === undefined) throw unknownOption(schema, key);
    if (value !== undefined) result[key] = validate(cliName(key, def), def, value);
  }
  return result as OptionsInput<S>;
}

function validate(name: string, def: OptionDef<unknown>, value: unknown): unknown {
  switch (def.kind) {
    case 'size':
    case 'int': {
      if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < 0) {
        throw badValue(name, def, value, 'a non-negative number');
      }
      if (def.min !== undefined && value < def.min) throw badValue(name, def, value, `at least ${def.min}`);
      if (def.max !== undefined && value > def.max) throw badValue(name, def, value, `at most ${def.max}`);
      if (def.powerOfTwo === true && !isPowerOfTwo(value)) throw badValue(name, def, value, 'a power of two');
      return value;
    }
    case 'bool':
      if (typeof value !== 'boolean') throw badValue(name, def, value, "'on' or 'off'");
      return value;
    case 'text':
      if (typeof value !== 'string') throw badValue(name, def, value, 'a text');
      return value;
    case 'choice': {
      const canonical = typeof value === 'string' ? (def.synonyms?.[value] ?? value) : undefined;
      if (canonical === undefined || def.choices?.includes(canonical) !== true) {
        throw badValue(name, def, value, `one of ${def.choices?.join(', ')}`);
      }
      return canonical;
    }
  }
}

function badValue(name: string, def: OptionDef<unknown>, value: unknown, wanted: string): BlockError {
  return new BlockError('OPTION', `option ${name}: expected ${wanted}, not '${String(value)}'`, {
    reason: def.reason ?? `option.${def.kind}`,
    details: { name, value },
  });
}

function unknownOption(schema: OptionSchema, given: string): BlockError {
  const names = Object.entries(schema).map(([key, def]) => cliName(key, def));
  const nearest = nearestName(given, names);
  return new BlockError(
    'OPTION',
    `unknown option '${given}'${nearest === undefined ? '' : `; did you mean '${nearest}'?`}`,
    {
      reason: 'option.unknown',
      details: { name: given, nearest },
    },
  );
}

/** The name within a few edits of `given`, for "did you mean". */
export function nearestName(given: string, names: readonly string[]): string | undefined {
  let best: string | undefined;
  let bestDistance = Math.max(2, Math.floor(given.length / 3)) + 1;
  for (const name of names) {
    const distance = editDistance(given, name);
    if (distance < bestDistance) {
      best = name;
      bestDistance = distance;
    }
  }
  return best;
}

function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, i) => i);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      const substitute = (row[j - 1] as number) + (a[i - 1] === b[j - 1] ? 0 : 1);
      next.push(Math.min((row[j] as number) + 1, (next[j - 1] as number) + 1, substitute));
    }
    row = next;
  }
  return row[b.length] as number;
}

/** Splits `a=1,b=x,,y` into pairs; a doubled comma is a comma. A key without `=` has the value `on`, `noKEY` the value `off`. */
export function splitOptionString(textual: string): [key: string, value: string][] {
  const parts: string[] = [];
  let current = '';
  for (let i = 0; i < textual.length; i++) {
    if (textual[i] !== ',') current += textual[i];
    else if (textual[i + 1] === ',') {
      current += ',';
      i++;
    } else {
      parts.push(current);
      current = '';
    }
  }
  parts.push(current);
  return parts
    .filter((part) => part !== '')
    .map((part) => {
      const equals = part.indexOf('=');
      if (equals >= 0) return [part.slice(0, equals), part.slice(equals + 1)];
      return part.startsWith('no') && part.length > 2 ? [part.slice(2), 'off'] : [part, 'on'];
    });
}

/** Parses command-line pairs by the schema, without filling in defaults; the last of equal keys wins.
 *  @throws {@link BlockError} OPTION, reasons `option.unknown`, `option.size`, `option.choice`, … */
export function parseOptions<S extends OptionSchema>(
  schema: S,
  pairs: readonly (readonly [key: string, value: string])[],
): OptionsInput<S> {
  const byCliName = new Map(Object.entries(schema).map(([key, def]) => [cliName(key, def), [key, def] as const]));
  const result: Record<string, unknown> = {};
  for (const [name, value] of pairs) {
    const found = byCliName.get(name);
    if (found === undefined) throw unknownOption(schema, name);
    const [key, def] = found;
    result[key] = validate(name, def, parseValue(name, def, value));
  }
  return result as OptionsInput<S>;
}

function parseValue(name: string, def: OptionDef<unknown>, value: string): unknown {
  switch (def.kind) {
    case 'size': {
      const parsed = parseSize(value);
      if (typeof parsed === 'number') return parsed;
      throw new BlockError('OPTION', `option ${name}: '${value}' is not a size (${parsed}); write 64K, 1.5G or bytes`, {
        reason: parsed === 'malformed' ? 'option.size-text' : 'option.size-range',
        details: { name, value },
      });
    }
    case 'int':
      if (!/^(0[xX][0-9a-fA-F]+|\d+)$/.test(value)) {
        throw new BlockError('OPTION', `option ${name}: '${value}' is not a number`, {
          reason: 'option.int-text',
          details: { name, value },
        });
      }
      return Number(value);
    case 'bool':
      return value === 'on' ? true : value === 'off' ? false : value;
    default:
      return value;
  }
}

const TYPE_NAMES: Readonly<Record<OptionKind, string>> = {
  size: 'size',
  choice: 'str',
  text: 'str',
  bool: 'bool (on/off)',
  int: 'num',
};

/** The lines of `-o help`: alphabetical, `  name=<type>  - help`. */
export function formatOptionHelp(schema: OptionSchema): string[] {
  return Object.entries(schema)
    .map(([key, def]) => `  ${cliName(key, def)}=<${TYPE_NAMES[def.kind]}>  - ${def.help}`)
    .sort();
}
