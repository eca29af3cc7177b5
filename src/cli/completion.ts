/** Completion scripts for bash, zsh and fish, made from the tables of verbs. Pure text work. */
import type { OptionSpec } from './args.ts';
import { CACHE_MODES, FORMAT_NAMES, type VerbSpec } from './verbs/common.ts';
import { allVerbSpecs, optionsFor } from './verbs/index.ts';

export const SHELLS = ['bash', 'zsh', 'fish'] as const;
export type Shell = (typeof SHELLS)[number];

const OWN = { program: 'cowdisk', qemu: false } as const;
const META_VERBS: readonly (readonly [string, string])[] = [
  ['help', 'show the manual of a command'],
  ['completion', 'print a completion script'],
];

export async function completionScript(shell: Shell): Promise<string> {
  const specs = await allVerbSpecs();
  switch (shell) {
    case 'bash':
      return bash(specs);
    case 'zsh':
      return zsh(specs);
    case 'fish':
      return fish(specs);
  }
}

function longNames(option: OptionSpec): string[] {
  return [option.long, ...(option.moreLong ?? [])].filter((name) => name !== undefined);
}

function shortNames(option: OptionSpec): string[] {
  return [option.short, ...(option.moreShort ?? [])].filter((name) => name !== undefined);
}

/** Words that can follow an option; `undefined`: a file name. */
function valuesOf(option: OptionSpec): readonly string[] | undefined {
  if (option.choices !== undefined) return option.choices;
  if (option.names === 'format') return FORMAT_NAMES;
  return option.names === 'cache' ? CACHE_MODES : undefined;
}

function offered(spec: VerbSpec): OptionSpec[] {
  return optionsFor(spec, OWN).filter((option) => option.support === 'acts' || 'inert' in option.support);
}

function bash(specs: readonly VerbSpec[]): string {
  const verbs = [...specs.map((spec) => spec.name), ...META_VERBS.map(([name]) => name)].join(' ');
  const cases = specs.map((spec) => {
    const options = offered(spec);
    const words = options.flatMap((option) => [
      ...shortNames(option).map((name) => `-${name}`),
      ...longNames(option).map((name) => `--${name}`),
    ]);
    return `    ${spec.name}) options="${words.join(' ')}" ;;`;
  });
  const values = new Map<string, readonly string[]>();
  for (const option of specs.flatMap(offered)) {
    const words = valuesOf(option);
    if (option.value === undefined || option.optionalValue === true || words === undefined) continue;
    for (const name of longNames(option)) values.set(`--${name}`, words);
  }
  const afterOption = [...values].map(
    ([name, words]) => `    ${name}) COMPREPLY=($(compgen -W "${words.join(' ')}" -- "$word")); return ;;`,
  );
  return `# bash completion for cowdisk: source it, or put it into bash_completion.d
_cowdisk() {
  local word=\${COMP_WORDS[COMP_CWORD]} before=\${COMP_WORDS[COMP_CWORD-1]} verb=\${COMP_WORDS[1]} options=
  if ((COMP_CWORD == 1)); then
    COMPREPLY=($(compgen -W "${verbs}" -- "$word"))
    return
  fi
  case $before in
${afterOption.join('\n')}
    -f|-F|-O) COMPREPLY=($(compgen -W "${FORMAT_NAMES.join(' ')}" -- "$word")); return ;;
    -t|-T) COMPREPLY=($(compgen -W "${CACHE_MODES.join(' ')}" -- "$word")); return ;;
  esac
  case $verb in
${cases.join('\n')}
    help) COMPREPLY=($(compgen -W "${specs.map((spec) => spec.name).join(' ')}" -- "$word")); return ;;
    completion) COMPREPLY=($(compgen -W "${SHELLS.join(' ')}" -- "$word")); return ;;
  esac
  if [[ $word == -* ]]; then COMPREPLY=($(compgen -W "$options" -- "$word")); else COMPREPLY=($(compgen -f -- "$word")); fi
}
complete -o filenames -F _cowdisk cowdisk
`;
}

function zsh(specs: readonly VerbSpec[]): string {
  const verbs = [...specs.map((spec) => [spec.name, spec.summary] as const), ...META_VERBS];
  const cases = specs.map((spec) => {
    const options = offered(spec).map((option) => `      ${zshOption(option)} \\`);
    return `    ${spec.name})\n      _arguments -s \\\n${options.join('\n')}\n      '*:file:_files' ;;`;
  });
  return `#compdef cowdisk
# zsh completion for cowdisk: put it as _cowdisk into a directory of $fpath
_cowdisk() {
  local -a verbs
  verbs=(
${verbs.map(([name, summary]) => `    '${name}:${zshText(summary)}'`).join('\n')}
  )
  if ((CURRENT == 2)); then
    _describe command verbs
    return
  fi
  local verb=$words[2]
  shift words
  ((CURRENT--))
  case $verb in
${cases.join('\n')}
    help) _describe command verbs ;;
    completion) _values shell ${SHELLS.join(' ')} ;;
  esac
}
if [[ $funcstack[1] == _cowdisk ]]; then _cowdisk "$@"; else compdef _cowdisk cowdisk; fi
`;
}

function zshOption(option: OptionSpec): string {
  const names = [...shortNames(option).map((name) => `-${name}`), ...longNames(option).map((name) => `--${name}`)];
  const words = valuesOf(option);
  const action = words === undefined ? '_files' : `(${words.join(' ')})`;
  const attached = option.optionalValue === true ? '=-' : option.value === undefined ? '' : '+';
  const spec = names.map((name) =>
    name.startsWith('--') && option.value !== undefined ? `${name}=` : `${name}${attached === '=-' ? '' : attached}`,
  );
  const value = option.value === undefined ? '' : `:${zshText(option.value).replaceAll(':', ' ')}:${action}`;
  const text = `[${zshText(option.help).replace(/[[\]]/g, ' ')}]${value}`;
  const braces = spec.length > 1 ? `{${spec.join(',')}}` : (spec[0] ?? '');
  return `${braces}'${text}'`;
}

function zshText(text: string): string {
  return text.replaceAll("'", '’').replaceAll(':', ' -');
}

function fish(specs: readonly VerbSpec[]): string {
  const verbs = [...specs.map((spec) => [spec.name, spec.summary] as const), ...META_VERBS];
  const lines = [
    '# fish completion for cowdisk: put it as cowdisk.fish into ~/.config/fish/completions',
    ...verbs.map(
      ([name, summary]) => `complete -c cowdisk -n __fish_use_subcommand -f -a ${name} -d ${fishText(summary)}`,
    ),
    `complete -c cowdisk -n '__fish_seen_subcommand_from help' -f -a '${specs.map((spec) => spec.name).join(' ')}'`,
    `complete -c cowdisk -n '__fish_seen_subcommand_from completion' -f -a '${SHELLS.join(' ')}'`,
  ];
  for (const spec of specs) {
    for (const option of offered(spec)) {
      const names = [
        ...shortNames(option).map((name) => `-s ${name}`),
        ...longNames(option).map((name) => `-l ${name}`),
      ];
      const words = valuesOf(option);
      const needs = option.value === undefined ? '' : option.optionalValue === true ? '' : ' -r';
      const values = words === undefined ? '' : ` -f -a '${words.join(' ')}'`;
      lines.push(
        `complete -c cowdisk -n '__fish_seen_subcommand_from ${spec.name}' ${names.join(' ')}${needs}${values} -d ${fishText(option.help)}`,
      );
    }
  }
  return `${lines.join('\n')}\n`;
}

function fishText(text: string): string {
  return `'${text.replaceAll('\\', '\\\\').replaceAll("'", "\\'")}'`;
}
