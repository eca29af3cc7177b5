/** Help texts, made from the tables of verbs: overview, short help and manual page of a verb, version. */
import { readFileSync } from 'node:fs';
import type { OptionSpec } from './args.ts';
import type { Personality } from './console.ts';
import { FORMAT_NAMES, type VerbSpec } from './verbs/common.ts';
import { findVerb, optionsFor, verbNames } from './verbs/index.ts';

/** The qemu-img whose behaviour is reproduced; programs read it from `--version`. */
const QEMU_VERSION = '7.2.22';
const WIDTH = 80;
const COLUMN = 30;

/** The version of this package. */
export function packageVersion(): string {
  const text = readFileSync(new URL('../../package.json', import.meta.url), 'utf8');
  return String((JSON.parse(text) as { version?: unknown }).version);
}

export function versionText(personality: Personality): string {
  const own = `cowdisk ${packageVersion()}`;
  return personality.qemu ? `${personality.program} version ${QEMU_VERSION} (${own})\n` : `${own}\n`;
}

/** What the program can do. As qemu-img the formats stand on one line, where programs look for them. */
export function programHelp(personality: Personality): string {
  const { program, qemu } = personality;
  const verbs = verbNames(personality).map((name) => `  ${name.padEnd(12)}${findVerb(name)?.summary ?? ''}`);
  const lines = [
    versionText(personality).trimEnd(),
    `usage: ${program} [-h | -V] COMMAND [OPTIONS] ...`,
    '',
    'Commands:',
    ...verbs,
    ...(qemu
      ? []
      : [
          '  help        show the manual of a command',
          '  completion  print a completion script for bash, zsh or fish',
        ]),
    '',
    qemu ? `'cowdisk help COMMAND' describes the options.` : `'${program} help COMMAND' describes the options.`,
    '',
    `Supported formats: ${FORMAT_NAMES.join(' ')}`,
  ];
  return `${lines.join('\n')}\n`;
}

/** Synopsis and options. */
export function verbHelp(spec: VerbSpec, personality: Personality): string {
  const lines = [
    `usage: ${personality.program} ${spec.name} [OPTIONS] ${spec.operands}`,
    '',
    ...wrap(`${capital(spec.summary)}.`, 0),
    '',
    'Options:',
    ...optionsFor(spec, personality).flatMap(optionLines),
  ];
  return `${lines.join('\n')}\n`;
}

/** What qemu-io can do. */
export function ioHelp(spec: VerbSpec, personality: Personality): string {
  const lines = [
    versionText(personality).trimEnd(),
    `usage: ${personality.program} [OPTIONS] [-c STRING]... ${spec.operands}`,
    '',
    ...spec.description.flatMap((text) => [...wrap(text, 0), '']),
    'Options:',
    ...optionsFor(spec, personality).flatMap(optionLines),
    '',
    `'${personality.program} -c help' lists the commands.`,
  ];
  return `${lines.join('\n')}\n`;
}

/** The manual page of a verb. */
export function verbManual(spec: VerbSpec, personality: Personality): string {
  const section = (title: string, body: readonly string[]): string[] => (body.length === 0 ? [] : [title, ...body, '']);
  const lines = [
    ...section('NAME', [`    ${personality.program} ${spec.name} - ${spec.summary}`]),
    ...section('SYNOPSIS', [`    ${personality.program} ${spec.name} [OPTIONS] ${spec.operands}`]),
    ...section(
      'DESCRIPTION',
      spec.description.flatMap((text, i) => [...(i === 0 ? [] : ['']), ...wrap(text, 4)]),
    ),
    ...section('OPTIONS', optionsFor(spec, personality).flatMap(manualOption)),
    ...section(
      'EXIT STATUS',
      [
        ...(spec.exitStatus.some(([status]) => status === 0)
          ? []
          : ([
              [0, 'success'],
              [1, 'failure'],
            ] as const)),
        ...spec.exitStatus,
      ].map(([status, meaning]) => `    ${String(status).padEnd(5)}${meaning}`),
    ),
    ...section(
      'JSON',
      spec.withoutJson === undefined ? [] : wrap(`None: ${spec.withoutJson.replaceAll('`', "'")}.`, 4),
    ),
    ...section(
      'EXAMPLES',
      spec.examples.flatMap(([command, does]) => [`    ${command}`, `        ${does}`]),
    ),
  ];
  return `${lines.join('\n').trimEnd()}\n`;
}

/** `-f, --format FMT`. */
export function optionNames(option: OptionSpec): string {
  const names = [
    ...[option.short, ...(option.moreShort ?? [])].filter((name) => name !== undefined).map((name) => `-${name}`),
    ...[option.long, ...(option.moreLong ?? [])].filter((name) => name !== undefined).map((name) => `--${name}`),
  ];
  const value =
    option.value === undefined ? '' : option.optionalValue === true ? `[=${option.value}]` : ` ${option.value}`;
  return names.join(', ') + value;
}

/** What does not act, in a word or two. */
export function supportNote(option: OptionSpec): string | undefined {
  if (option.support === 'acts') return undefined;
  return 'inert' in option.support ? `no effect: ${option.support.inert}` : `refused: ${option.support.refused}`;
}

function optionLines(option: OptionSpec): string[] {
  const names = `  ${optionNames(option)}`;
  const note = option.support === 'acts' ? '' : 'inert' in option.support ? ' (no effect here)' : ' (not supported)';
  const text = wrap(option.help + note, COLUMN);
  if (names.length >= COLUMN - 1) return [names, ...text];
  const [first = '', ...rest] = text;
  return [names.padEnd(COLUMN) + first.trimStart(), ...rest];
}

function manualOption(option: OptionSpec): string[] {
  const note = supportNote(option);
  return [`    ${optionNames(option)}`, ...wrap(option.help, 8), ...(note === undefined ? [] : wrap(`(${note})`, 8))];
}

function wrap(text: string, indent: number): string[] {
  const lines: string[] = [];
  let line = '';
  for (const word of text.split(' ')) {
    if (line !== '' && indent + line.length + 1 + word.length > WIDTH) {
      lines.push(' '.repeat(indent) + line);
      line = word;
    } else line = line === '' ? word : `${line} ${word}`;
  }
  return [...lines, ' '.repeat(indent) + line];
}

function capital(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
