/** What an image argument means: a file name, options (`--image-opts`) or `json:{…}`. Only the simple forms: one format over one
 *  file; everything else of QEMU's graph by options is refused by name. Opens nothing.
 *  Invariants: messages name the argument as given; output shows the plain file name unless an option changes what is read. */
import type { DiscardMode } from '../core/format.ts';
import { Failure } from './failure.ts';
import { parseOptionList } from './option-list.ts';
import { compactJson, type JsonValue } from './render/json.ts';
import { jsonProblem } from './render/json-problem.ts';

export interface ImageSource {
  /** The argument, for messages. */
  readonly label: string;
  /** The file to open. */
  readonly name: string;
  /** What output calls the image, when that is not `name`. */
  readonly shown: string | undefined;
  /** The driver that was asked for. */
  readonly format: string | undefined;
  /** Open options of the format as given, by QEMU's names. */
  readonly options: ReadonlyMap<string, string>;
  /** `discard=…`. */
  readonly discard?: DiscardMode | undefined;
  /** `data-file.filename=…`: the data file, whatever the image records. */
  readonly dataFile?: string | undefined;
  /** Open options of the layers below, the backing file's first: `backing.NAME`, `backing.backing.NAME`. */
  readonly backingOptions?: readonly ReadonlyMap<string, string>[] | undefined;
  /** What stands for the recorded backing file: `backing.driver` and `backing.file.filename`. */
  readonly backing?: { readonly name: string; readonly format: string } | undefined;
}

/** @param format `-f`.
 *  @throws {@link Failure}, its text beginning with `Could not open`. */
export function parseImageSource(
  argument: string,
  choice: { readonly imageOpts: boolean; readonly format: string | undefined },
): ImageSource {
  if (choice.imageOpts) {
    if (choice.format !== undefined) throw new Failure('--image-opts and --format are mutually exclusive');
    return fromOptions(argument, optionsOfList(argument));
  }
  if (argument.startsWith('json:')) {
    const options = optionsOfJson(argument, argument.slice(5));
    if (choice.format !== undefined) options.set('driver', choice.format);
    return fromOptions(argument, options);
  }
  return {
    label: argument,
    name: withoutFilePrefix(argument),
    shown: undefined,
    format: choice.format,
    options: new Map(),
  };
}

/** The source that options describe, by QEMU's names.
 *  @param label what messages call it
 *  @throws as {@link parseImageSource}. */
export function sourceOfOptions(label: string, options: ReadonlyMap<string, string>): ImageSource {
  return fromOptions(label, options);
}

/** `file:x` is `x`, unless that would read as another protocol's name. */
function withoutFilePrefix(name: string): string {
  const rest = name.startsWith('file:') ? name.slice(5) : name;
  return /^[^/]*:/.test(rest) ? name : rest;
}

function refuse(label: string, why: string): Failure {
  return new Failure(`Could not open '${label}': ${why}`);
}

function optionsOfList(argument: string): Map<string, string> {
  const options = new Map<string, string>();
  parseOptionList(argument).forEach(({ name, value }, i) => {
    // A first word alone names a node of the graph.
    if (i === 0 && !argument.split(',', 1)[0]?.includes('=')) options.set('file', argument.split(',', 1)[0] as string);
    else options.set(name, value);
  });
  return options;
}

function optionsOfJson(argument: string, text: string): Map<string, string> {
  if (text.trim() === '') throw refuse(argument, 'Could not parse the JSON options: Expecting a JSON value');
  let parsed: unknown;
  try {
    parsed = JSON.parse(text);
  } catch {
    throw refuse(argument, `Could not parse the JSON options: JSON parse error, ${jsonProblem(text)}`);
  }
  if (typeof parsed !== 'object' || parsed === null || Array.isArray(parsed)) {
    throw refuse(argument, 'Invalid JSON object given');
  }
  const options = new Map<string, string>();
  flatten('', parsed as Record<string, unknown>, options);
  return options;
}

function flatten(prefix: string, object: Readonly<Record<string, unknown>>, into: Map<string, string>): void {
  for (const [key, value] of Object.entries(object)) {
    const name = prefix + key;
    if (typeof value === 'object' && value !== null) flatten(`${name}.`, value as Record<string, unknown>, into);
    else if (typeof value === 'boolean') into.set(name, value ? 'on' : 'off');
    else into.set(name, String(value));
  }
}

/** Options of the file that change nothing here: there are no locks yet, and one way of doing I/O. */
const INERT_FILE_OPTIONS = ['locking', 'aio'];

function fromOptions(label: string, options: ReadonlyMap<string, string>): ImageSource {
  const driver = options.get('driver');
  const node = options.get('file');
  if (node !== undefined) throw refuse(label, `Cannot find device='${node}' nor node-name='${node}'`);
  const ofFile = [...options].filter(([name]) => name.startsWith('file.'));
  if (driver === 'file')
    throw refuse(label, "driver 'file' without a format above it is not supported; use driver=raw");
  if (ofFile.length === 0) {
    throw refuse(
      label,
      driver === undefined ? 'Must specify either driver or file' : 'A block device must be specified for "file"',
    );
  }
  const name = fileOf(label, options, ofFile);
  const rest = [...options].filter(([key]) => !isOfGraph(key));
  const header = childFileOf(label, options, 'header');
  if (header !== undefined) rest.push(['header', header]);
  return {
    label,
    name,
    shown: shownName(driver, name, rest),
    format: driver,
    options: new Map(rest),
    discard: discardOf(label, options),
    dataFile: childFileOf(label, options, 'data-file'),
    ...backingOf(label, options),
  };
}

const BELOW = 'backing.';

/** The options of the layers below; of the first one also which file it is. */
function backingOf(
  label: string,
  options: ReadonlyMap<string, string>,
): Pick<ImageSource, 'backing' | 'backingOptions'> {
  const layers: ReadonlyMap<string, string>[] = [];
  let backing: ImageSource['backing'];
  for (let below = optionsBelow(options); below.size > 0; below = optionsBelow(below)) {
    const ofFile = [...below].filter(([name]) => name.startsWith('file.'));
    const driver = below.get('driver');
    if (ofFile.length > 0 || driver !== undefined) {
      if (layers.length > 0 || ofFile.length === 0 || driver === undefined) {
        throw refuse(label, "another backing file takes both 'backing.driver' and 'backing.file.filename'");
      }
      backing = { name: fileOf(label, below, ofFile), format: driver };
    }
    layers.push(new Map([...below].filter(([name]) => !/^(driver$|file\.|backing\.)/.test(name))));
  }
  return layers.length === 0 ? {} : { backingOptions: layers, backing };
}

function optionsBelow(options: ReadonlyMap<string, string>): Map<string, string> {
  const below = [...options].filter(([name]) => name.startsWith(BELOW));
  return new Map(below.map(([name, value]) => [name.slice(BELOW.length), value]));
}

/** Not options of the format. */
function isOfGraph(key: string): boolean {
  return key === 'driver' || key === 'discard' || /^(file|data-file|header|backing)\./.test(key);
}

function discardOf(label: string, options: ReadonlyMap<string, string>): DiscardMode | undefined {
  const mode = options.get('discard');
  if (mode === undefined) return undefined;
  if (mode === 'unmap' || mode === 'on') return 'unmap';
  if (mode === 'ignore' || mode === 'off') return 'ignore';
  throw refuse(label, 'Invalid discard option');
}

/** The file that options like `data-file.filename=…` name. */
function childFileOf(
  label: string,
  options: ReadonlyMap<string, string>,
  child: 'data-file' | 'header',
): string | undefined {
  const given = [...options].filter(([key]) => key.startsWith(`${child}.`));
  if (given.length === 0) return undefined;
  return fileOf(label, options, given, child);
}

function fileOf(
  label: string,
  options: ReadonlyMap<string, string>,
  ofFile: readonly [string, string][],
  child = 'file',
): string {
  const fileDriver = options.get(`${child}.driver`) ?? 'file';
  if (fileDriver !== 'file') throw refuse(label, `driver '${fileDriver}' below a format is not supported yet`);
  for (const [key] of ofFile) {
    const option = key.slice(child.length + 1);
    if (option === 'driver' || option === 'filename' || INERT_FILE_OPTIONS.includes(option)) continue;
    throw refuse(label, `Block protocol 'file' doesn't support the option '${option}'`);
  }
  const name = options.get(`${child}.filename`);
  if (name === undefined || name === '') throw refuse(label, "The 'file' block driver requires a file name");
  return name;
}

/** Options that change the content that is read show in the name. */
const CONTENT_OPTIONS: Readonly<Record<string, readonly string[]>> = {
  raw: ['offset', 'size'],
  cow: ['layout', 'bitmap-offset', 'data-offset', 'tail'],
  luks: ['key-secret', 'header'],
  qcow2: ['encrypt.key-secret'],
};

function shownName(driver: string | undefined, name: string, options: readonly [string, string][]): string | undefined {
  const shown = options.filter(([key]) => CONTENT_OPTIONS[driver ?? '']?.includes(key) === true);
  if (shown.length === 0) return undefined;
  const value: Record<string, JsonValue> = { driver: driver as string };
  for (const [key, text] of shown) value[key] = key === 'header' ? { driver: 'file', filename: text } : text;
  return `json:${compactJson({ ...value, file: { driver: 'file', filename: name } })}`;
}
