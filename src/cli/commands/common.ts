/** What the commands share: reading the options of a verb in the order given, and the choices many verbs have. */

import type { ReferencePolicy } from '../../image/references.ts';
import { Arguments, type Given, type Mistake, type OptionSpec, usage } from '../args.ts';
import type { Cli } from '../console.ts';
import { Failure } from '../failure.ts';
import { type ImageSource, parseImageSource } from '../image-source.ts';
import { Objects } from '../objects.ts';
import type { OpenChoices } from '../open.ts';
import type { ListedOption } from '../option-list.ts';
import type { VerbSpec } from '../verbs/common.ts';
import { optionsFor } from '../verbs/index.ts';

/** Thrown when there is nothing more to do: help was asked for. `text` goes to standard output. */
export class Finished extends Error {
  readonly text: string;

  constructor(text: string) {
    super('finished');
    this.text = text;
  }
}

/** The options of one command line. */
export interface Scanned {
  has(key: string): boolean;
  /** The last value given. */
  value(key: string): string | undefined;
  /** Every value given, in order. */
  all(key: string): readonly string[];
  readonly operands: readonly string[];
  readonly objects: Objects;
}

export interface ScanHooks {
  /** Called for each option as it is met; may throw. */
  readonly onOption?: (given: Given) => void;
  /** Keys of refused options that the command answers itself, after the mistakes that qemu-img tells first. */
  readonly later?: readonly string[];
  /** What is printed when help is asked for. */
  readonly help?: () => Promise<string>;
  /** Words for mistakes; qemu-img's when not given. */
  readonly mistake?: (mistake: Mistake) => Failure;
}

/** Reads the options of a verb.
 *  @throws {@link Failure} for mistakes and for refused options; {@link Finished} for help. */
export async function scan(cli: Cli, spec: VerbSpec, args: readonly string[], hooks: ScanHooks = {}): Promise<Scanned> {
  const words = new Arguments(optionsFor(spec, cli.personality), args, cli.verb, true, hooks.mistake);
  const values = new Map<string, string | undefined>();
  const all: { readonly key: string; readonly value: string }[] = [];
  const objects = new Objects();
  for (const given of words) {
    const { key } = given.spec;
    if (key === 'help') throw new Finished(await (hooks.help?.() ?? helpText(cli, spec)));
    if (key === 'object') {
      const text = objects.add(given.value as string);
      if (text !== undefined) throw new Finished(text);
    }
    if (!cli.personality.qemu) requireChoice(given);
    hooks.onOption?.(given);
    if (
      typeof given.spec.support === 'object' &&
      'refused' in given.spec.support &&
      hooks.later?.includes(key) !== true
    ) {
      throw refusal(spec, key);
    }
    values.set(key, given.value);
    if (given.value !== undefined) all.push({ key, value: given.value });
  }
  return {
    has: (key) => values.has(key),
    value: (key) => values.get(key),
    all: (key) => all.filter((one) => one.key === key).map(({ value }) => value),
    operands: words.operands,
    objects,
  };
}

/** @throws {@link Failure} for a value that is none of those there are. As qemu-img, each verb says so in QEMU's words. */
function requireChoice({ spec: option, value }: Given): void {
  const { choices, support, names } = option;
  if (choices === undefined || value === undefined || support !== 'acts' || choices.includes(value)) return;
  if (names === 'cache' && value === 'off') return;
  const list = choices.length === 1 ? choices[0] : `${choices.slice(0, -1).join(', ')} or ${choices.at(-1)}`;
  throw new Failure(`${nameOf(option)}: expected ${list}, not '${value}'`);
}

function nameOf({ long, moreLong, short }: OptionSpec): string {
  const name = long ?? moreLong?.[0];
  return name === undefined ? `-${short}` : `--${name}`;
}

/** A mistake in the command line for which qemu-img does not point at its help. */
export function ownUsage(cli: Cli, message: string): Failure {
  return cli.personality.qemu ? new Failure(message) : usage(message);
}

/** Why an option is refused. */
export function refusal(spec: VerbSpec, key: string): Failure {
  const option = spec.options.find((candidate) => candidate.key === key);
  const support = option?.support;
  const reason = typeof support === 'object' && 'refused' in support ? support.refused : 'not supported';
  return new Failure(`${option === undefined ? key : nameOf(option)}: ${reason}`);
}

async function helpText(cli: Cli, spec: VerbSpec): Promise<string> {
  const { programHelp, verbHelp } = await import('../help.ts');
  return cli.personality.qemu ? programHelp(cli.personality) : verbHelp(spec, cli.personality);
}

/** @throws {@link Failure} */
export function outputForm(given: Scanned): 'human' | 'json' {
  const form = given.has('json') ? 'json' : (given.value('output') ?? 'human');
  if (form === 'human' || form === 'json') return form;
  throw new Failure('--output must be used with human or json as argument.');
}

/** The one operand. @throws {@link Failure} */
export function oneImage(given: Scanned): string {
  if (given.operands.length !== 1) throw usage('Expecting one image file name');
  return given.operands[0] as string;
}

/** The source that an operand names, by `-f` and `--image-opts`. */
export function sourceOf(given: Scanned, operand: string, formatKey = 'format', status = 1): ImageSource {
  try {
    return parseImageSource(operand, { imageOpts: given.has('image-opts'), format: given.value(formatKey) });
  } catch (error) {
    if (error instanceof Failure && error.status !== status) throw new Failure(error.lines, { status, cause: error });
    throw error;
  }
}

/** What the options say that are about every image of a verb: `--references`, `-U`, `-q`. @throws {@link Failure} */
export function commonChoices(given: Scanned): OpenChoices {
  return { references: referencePolicy(given), forceShare: given.has('force-share'), quiet: given.has('quiet') };
}

/** {@link commonChoices} and what is said of one image: `--with-backing`, `--with-data-file`, `--open-option`, `--cow-layout`. @throws {@link Failure} */
export function openChoices(given: Scanned): OpenChoices {
  const backing = given.value('with-backing');
  if (backing === undefined && given.has('with-backing-format')) {
    throw new Failure('--with-backing-format: there is no --with-backing whose format it could be');
  }
  return {
    ...commonChoices(given),
    openOptions: given.all('open-option').map(nameAndValue),
    layout: given.value('cow-layout'),
    dataFile: given.value('with-data-file'),
    backing: backing === undefined ? undefined : { name: backing, format: given.value('with-backing-format') ?? 'raw' },
  };
}

/** `NAME=VALUE`; a name alone means `on`. */
function nameAndValue(text: string): ListedOption {
  const equals = text.indexOf('=');
  return equals < 0 ? { name: text, value: 'on' } : { name: text.slice(0, equals), value: text.slice(equals + 1) };
}

/** `--references`. @throws {@link Failure} */
export function referencePolicy(given: Scanned): ReferencePolicy {
  const policy = given.value('references') ?? 'allow';
  if (policy === 'allow' || policy === 'same-directory' || policy === 'deny') return policy;
  throw new Failure(`--references: expected allow, same-directory or deny, not '${policy}'`);
}
