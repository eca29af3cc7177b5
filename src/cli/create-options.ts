/** The create options of `-o` under QEMU's names: reading, printing (`Formatting …`), help, and what the driver gets of them.
 *  Owns QEMU's order of options and the ones that no driver here has. What an option means is the driver's business.
 *  Invariant: an option is taken by the driver, by the caller (size, backing file), listed as having no effect, or refused. */
import { cliName, nearestName, type OptionDef, type OptionSchema } from '../base/options.ts';
import type { FormatDriver } from '../core/format.ts';
import { Failure } from './failure.ts';
import { hexSuffixWarning, parseInteger, parseQemuSize } from './numbers.ts';
import { escapeCommas, type ListedOption } from './option-list.ts';

type ValueKind = 'str' | 'size' | 'bool' | 'num';

/** An option of a format's file, as QEMU lists it. */
export interface CreateOption {
  readonly name: string;
  readonly kind: ValueKind;
  readonly help: string;
  /** Printed and used when the option is not given. */
  readonly standard?: string;
  /** It belongs to the file below the format. */
  readonly protocol?: boolean;
}

/** A value as given and as understood. */
export interface CreateValue {
  readonly text: string;
  readonly value: string | bigint | boolean;
}

const KINDS: Readonly<Record<OptionDef<unknown>['kind'], ValueKind>> = {
  size: 'size',
  int: 'num',
  bool: 'bool',
  text: 'str',
  choice: 'str',
};

/** QEMU's order, which is that of the `Formatting` line; options of the schema that are not here come last. */
const ORDER: Readonly<Record<string, readonly string[]>> = {
  qcow2: [
    'encryption',
    'encrypt.format',
    'encrypt.key-secret',
    'encrypt.cipher-alg',
    'encrypt.cipher-mode',
    'encrypt.ivgen-alg',
    'encrypt.ivgen-hash-alg',
    'encrypt.hash-alg',
    'encrypt.iter-time',
    'cluster_size',
    'extended_l2',
    'preallocation',
    'compression_type',
    'size',
    'compat',
    'backing_file',
    'backing_fmt',
    'data_file',
    'data_file_raw',
    'keep_data_file',
    'lazy_refcounts',
    'refcount_bits',
  ],
  luks: [
    'size',
    'key-secret',
    'cipher-alg',
    'cipher-mode',
    'ivgen-alg',
    'ivgen-hash-alg',
    'hash-alg',
    'iter-time',
    'detached-header',
  ],
};

/** Defaults that QEMU prints; others exist and stay unsaid. */
const SHOWN_DEFAULTS: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  qcow2: {
    cluster_size: '65536',
    extended_l2: 'off',
    compression_type: 'zlib',
    lazy_refcounts: 'off',
    refcount_bits: '16',
  },
};

/** Options of a plain file in QEMU's order, added to those of the format when the file's name is known. A format's schema may
 *  hold one of them (raw: preallocation); where the format has no option of that name in QEMU, it counts as the file's. */
const FILE_OPTIONS: readonly CreateOption[] = [
  { name: 'nocow', kind: 'bool', help: 'Turn off copy-on-write (valid only on btrfs)' },
  { name: 'preallocation', kind: 'str', help: 'Preallocation mode (allowed values: off, falloc, full)' },
  { name: 'extent_size_hint', kind: 'size', help: 'Extent size hint for the image file, 0 to disable' },
];

/** Formats that leave preallocation to the file. */
const FILE_PREALLOCATES = ['raw', 'luks'];

/** Options that are accepted without effect, for the reference. */
export const INERT_CREATE_OPTIONS: Readonly<Record<string, string>> = {
  nocow: 'it switches off copy-on-write of the file on btrfs only; files are created without that flag here',
  extent_size_hint: 'a hint to XFS about the space of the file; the file system chooses by itself here',
};

/** The options of a format in QEMU's order.
 *  @param withFile the options of a plain file too. */
export function createOptionsOf(driver: FormatDriver, withFile: boolean): CreateOption[] {
  const order = ORDER[driver.name] ?? [];
  const rank = (name: string): number => (order.includes(name) ? order.indexOf(name) : order.length);
  const shown = SHOWN_DEFAULTS[driver.name] ?? {};
  const own = tableOf(driver.createOptions)
    .map((option): CreateOption => {
      const standard = shown[option.name];
      return standard === undefined ? option : { ...option, standard };
    })
    .filter((option) => option.name !== 'preallocation' || !FILE_PREALLOCATES.includes(driver.name))
    .sort((a, b) => rank(a.name) - rank(b.name));
  const names = new Set(own.map((option) => option.name));
  return withFile ? [...own, ...FILE_OPTIONS.filter((option) => !names.has(option.name))] : own;
}

function tableOf(schema: OptionSchema): CreateOption[] {
  return Object.entries(schema).map(([key, def]) => ({
    name: cliName(key, def),
    kind: KINDS[def.kind],
    help: def.help,
  }));
}

/** What `amend` can change of images of a format. */
export function amendOptionsOf(driver: FormatDriver): CreateOption[] {
  return tableOf(driver.amendOptions ?? {});
}

/** Reads the options of `amend`.
 *  @throws {@link Failure} as {@link readCreateOptions}, with a word about options that only creating has. */
export function readAmendOptions(
  listed: readonly ListedOption[],
  driver: FormatDriver,
  context: { warn(message: string): void },
  suggest: boolean,
): Map<string, CreateValue> {
  const table = amendOptionsOf(driver);
  try {
    return readCreateOptions(listed, table, context, suggest);
  } catch (error) {
    if (!(error instanceof Failure) || !isReadable(listed, [...table, ...createOptionsOf(driver, false)])) throw error;
    const name = listed.find((option) => !table.some((known) => known.name === option.name))?.name;
    const trailer = 'This option is only supported for image creation\n';
    throw new Failure(`Invalid parameter '${name}'`, { trailer, cause: error });
  }
}

function isReadable(listed: readonly ListedOption[], table: readonly CreateOption[]): boolean {
  try {
    readCreateOptions(listed, table, { warn: () => undefined }, false);
    return true;
  } catch (error) {
    if (error instanceof Failure) return false;
    throw error;
  }
}

/** Reads the values of a list by the table; the last of equal names counts.
 *  @throws {@link Failure} in QEMU's words for unknown names and malformed values. */
export function readCreateOptions(
  listed: readonly ListedOption[],
  table: readonly CreateOption[],
  context: { warn(message: string): void },
  suggest: boolean,
): Map<string, CreateValue> {
  const values = new Map<string, CreateValue>();
  for (const { name, value } of listed) {
    const option = table.find((candidate) => candidate.name === name);
    if (option === undefined) throw unknown(name, suggest ? table : []);
    values.set(name, { text: value, value: readValue(option, value, context) });
  }
  return values;
}

function unknown(name: string, table: readonly CreateOption[]): Failure {
  const nearest = nearestName(
    name,
    table.map((option) => option.name),
  );
  return new Failure(`Invalid parameter '${name}'${nearest === undefined ? '' : `; did you mean '${nearest}'?`}`);
}

const SIZE_HINT =
  'Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\nand exabytes, respectively.\n';

function readValue(
  option: CreateOption,
  text: string,
  context: { warn(message: string): void },
): string | bigint | boolean {
  switch (option.kind) {
    case 'str':
      return text;
    case 'bool':
      if (['on', 'yes', 'true', 'y'].includes(text)) return true;
      if (['off', 'no', 'false', 'n'].includes(text)) return false;
      throw new Failure(`Parameter '${option.name}' expects 'on' or 'off'`);
    case 'num': {
      const value = parseInteger(text);
      if (value === undefined) throw new Failure(`Parameter '${option.name}' expects a number`);
      if (value >= 2n ** 64n || value < -(2n ** 63n)) {
        throw new Failure(`Value '${text}' is too large for parameter '${option.name}'`);
      }
      return value;
    }
    case 'size': {
      const parsed = parseQemuSize(text);
      if (parsed === 'malformed') {
        throw new Failure(`Parameter '${option.name}' expects a non-negative number below 2^64`, {
          trailer: SIZE_HINT,
        });
      }
      if (parsed === 'range') throw new Failure(`Value '${text}' is out of range for parameter '${option.name}'`);
      if (parsed.suffixedHex) context.warn(hexSuffixWarning(text));
      return parsed.value;
    }
  }
}

/** What `Formatting 'NAME', fmt=…` shows: the options given and those with a standard value, in QEMU's order. */
export function describeCreateOptions(
  table: readonly CreateOption[],
  values: ReadonlyMap<string, { readonly text: string; readonly value: string | bigint | boolean }>,
): string {
  return table
    .flatMap((option) => {
      const given = values.get(option.name);
      if (given === undefined) return option.standard === undefined ? [] : [`${option.name}=${option.standard}`];
      if (typeof given.value === 'bigint') return [`${option.name}=${BigInt.asIntN(64, given.value)}`];
      return [`${option.name}=${option.kind === 'str' ? escapeCommas(given.text) : given.text}`];
    })
    .join(' ');
}

/** The text of `-o help`.
 *  @param hasTarget the file is known, so that its options are listed too
 *  @param qemu only what QEMU 7.2 lists. */
export function createOptionHelp(driver: FormatDriver, hasTarget: boolean, qemu = false): string {
  const newer = new Set(
    Object.entries(driver.createOptions as OptionSchema).map(([key, def]) =>
      def.newer === true ? cliName(key, def) : '',
    ),
  );
  const lines = helpLines(createOptionsOf(driver, hasTarget).filter(({ name }) => !qemu || !newer.has(name)));
  const head = hasTarget ? 'Supported options:' : `Supported ${driver.name} options:`;
  const tail = hasTarget
    ? ''
    : '\nThe protocol level may support further options.\nSpecify the target filename to include those options.\n';
  return `${head}\n${lines.join('\n')}\n${tail}`;
}

/** The text of `amend -o help`. */
export function amendOptionHelp(driver: FormatDriver): string {
  return `Amend options for '${driver.name}':\n${helpLines(amendOptionsOf(driver)).join('\n')}\n`;
}

function helpLines(table: readonly CreateOption[]): string[] {
  const types = { str: 'str', size: 'size', bool: 'bool (on/off)', num: 'num' };
  return table
    .map((option) => `  ${`${option.name}=<${types[option.kind]}>`.padEnd(22)} - ${option.help}`)
    .sort((a, b) => (a < b ? -1 : 1));
}

/** Names that the caller gives the driver in another way. */
const CALLERS_OPTIONS = ['size', 'backing_file', 'backing_fmt'];

/** The values for the driver, by the names of its schema. Size, backing file and the file's own options are not among them.
 *  Unacceptable values are passed on: the driver says what is wrong with them. */
export function driverOptions(driver: FormatDriver, values: ReadonlyMap<string, CreateValue>): Record<string, unknown> {
  const own = new Map([...values].filter(([name]) => !CALLERS_OPTIONS.includes(name)));
  return bySchema(driver.createOptions, own);
}

/** The values for `Image.amend`. */
export function amendments(driver: FormatDriver, values: ReadonlyMap<string, CreateValue>): Record<string, unknown> {
  return bySchema(driver.amendOptions ?? {}, values);
}

function bySchema(schema: OptionSchema, values: ReadonlyMap<string, CreateValue>): Record<string, unknown> {
  const result: Record<string, unknown> = {};
  for (const [key, def] of Object.entries(schema)) {
    const given = values.get(cliName(key, def));
    if (given === undefined) continue;
    result[key] = typeof given.value === 'bigint' ? toNumber(given.value) : given.value;
  }
  return result;
}

/** Numbers no option can have become one that every option refuses. */
function toNumber(value: bigint): number {
  return value < 0n || value > BigInt(Number.MAX_SAFE_INTEGER) ? Number.MAX_SAFE_INTEGER : Number(value);
}

/** qemu-img measures a LUKS header by making one, for which it wants the key. @throws {@link Failure} */
export function requireMeasureSecret(
  values: ReadonlyMap<string, CreateValue>,
  secrets: Readonly<Record<string, unknown>>,
): void {
  if (values.get('encrypt.format')?.text !== 'luks') return;
  const id = values.get('encrypt.key-secret')?.text;
  if (id === undefined) throw new Failure("Parameter 'encrypt.key-secret' is required for cipher");
  if (!Object.hasOwn(secrets, id)) throw new Failure(`No secret with id '${id}'`);
}
