/** The reference of the command line as Markdown, made from the tables: what the docs generator writes to docs/reference. Pure. */
import type { OptionSpec } from './args.ts';
import { INERT_CREATE_OPTIONS } from './create-options.ts';
import { PROGRAM_OPTIONS } from './dispatch.ts';
import { optionNames } from './help.ts';
import { COMMANDS, usageOf } from './io/table.ts';
import type { VerbSpec } from './verbs/common.ts';
import { allVerbSpecs } from './verbs/index.ts';

/** Every verb, every option, and of each that does not act the reason. */
export async function commandLineReference(): Promise<string> {
  const specs = await allVerbSpecs();
  const lines = [
    '# Command line',
    '',
    'Made from the option tables of the program; do not edit.',
    '',
    'Called `cowdisk`, the program has the options marked *cowdisk only* too; called `qemu-img` (through a link of that name), it has ' +
      "those marked *qemu-img only* instead, QEMU's messages, and everything else unchanged.",
    '',
    ...specs.flatMap(verbSection),
    ...ioCommands(),
    '## Options before the command',
    '',
    ...table(PROGRAM_OPTIONS),
    '',
    '## Create options without effect',
    '',
    '| option | reason |',
    '|---|---|',
    ...Object.entries(INERT_CREATE_OPTIONS).map(([name, reason]) => `| \`${name}\` | ${cell(reason)} |`),
    '',
    '## Not there yet',
    '',
    'The program name `qemu-nbd` is refused with a message.',
  ];
  return `${lines.join('\n')}\n`;
}

/** The commands of the shell. */
function ioCommands(): string[] {
  const sections = COMMANDS.flatMap((spec) => [
    `\`${usageOf(spec)}\`${spec.alias === undefined ? '' : ` (\`${spec.alias}\`)`}`,
    '',
    ...spec.details.flatMap((text) => [text, '']),
    ...(spec.options.length === 0
      ? []
      : [
          '| option | meaning |',
          '|---|---|',
          ...spec.options.map(([letter, does]) => `| \`-${letter}\` | ${cell(does)} |`),
          '',
        ]),
  ]);
  return ['## Commands of `io`', '', 'Also those of the program qemu-io.', '', ...sections];
}

function verbSection(spec: VerbSpec): string[] {
  return [
    `## ${spec.name}`,
    '',
    `\`cowdisk ${spec.name} [OPTIONS] ${spec.operands}\`${spec.only === undefined ? '' : ' (not as qemu-img)'}`,
    '',
    ...spec.description.flatMap((text) => [text, '']),
    ...table(spec.options),
    '',
    ...(spec.exitStatus.length === 0
      ? []
      : [
          '| exit status | meaning |',
          '|---|---|',
          ...spec.exitStatus.map(([status, meaning]) => `| ${status} | ${cell(meaning)} |`),
          '',
        ]),
    ...(spec.withoutJson === undefined ? [] : [`No JSON: ${spec.withoutJson}.`, '']),
    ...(spec.examples.length === 0
      ? []
      : ['```sh', ...spec.examples.map(([command, does]) => `${command}  # ${does}`), '```', '']),
  ];
}

function table(options: readonly OptionSpec[]): string[] {
  return [
    '| option | meaning | here |',
    '|---|---|---|',
    ...options.map((option) => `| \`${cell(optionNames(option))}\` | ${cell(option.help)} | ${cell(state(option))} |`),
  ];
}

function state(option: OptionSpec): string {
  const only = option.only === undefined ? '' : option.only === 'cowdisk' ? 'cowdisk only; ' : 'qemu-img only; ';
  if (option.support === 'acts') return `${only}acts`;
  return (
    only + ('inert' in option.support ? `no effect: ${option.support.inert}` : `refused: ${option.support.refused}`)
  );
}

function cell(text: string): string {
  return text.replaceAll('|', '\\|');
}
