/** docs/reference/options.md: create and open options of every format, from the schemas that parse them. */
import { cell, GENERATED } from './program.mjs';

const KINDS = { size: 'size', choice: 'one of', text: 'text', bool: 'on or off', int: 'number' };

/** @param library `formats`: drivers; `cliName`: of the option module; `formatSize`. */
export function optionsPage({ formats, cliName }) {
  const lines = [
    '# Options of formats',
    '',
    GENERATED,
    '',
    'The first name is that of the command line (`-o name=value`), the second that of the library. Sizes take the suffixes k, M, G, T, P and E,',
    'which multiply by powers of 1024; in the library they are numbers of bytes.',
    '',
  ];
  for (const format of [...formats].sort((a, b) => (a.name < b.name ? -1 : 1))) {
    lines.push(`## ${format.name}`, '', `${format.summary[0].toUpperCase()}${format.summary.slice(1)}.`, '');
    lines.push('### Create', '', ...table(format.createOptions, cliName), '');
    if (format.amendOptions !== undefined) {
      lines.push('### Amend', '', '`amend` changes these of an image that is there.', '');
      lines.push(...table(format.amendOptions, cliName), '');
    }
    lines.push('### Open', '', "With `--image-opts` on the command line, `options` in the library's `openImage`.", '');
    lines.push(...table(format.openOptions, cliName), '');
  }
  return `${lines.join('\n').trimEnd()}\n`;
}

function table(schema, cliName) {
  const rows = Object.entries(schema).map(
    ([key, def]) =>
      `| \`${cliName(key, def)}\` | \`${key}\` | ${cell(values(def))} | ${standard(def)} | ${cell(def.help)} |`,
  );
  return ['| option | in the library | value | default | meaning |', '|---|---|---|---|---|', ...rows];
}

function values(def) {
  if (def.kind === 'choice') {
    const synonyms = Object.entries(def.synonyms ?? {}).map(([other, value]) => `\`${other}\` for \`${value}\``);
    const list = def.choices.map((choice) => `\`${choice}\``).join(', ');
    return synonyms.length === 0 ? list : `${list}; also ${synonyms.join(', ')}`;
  }
  const bounds = [
    def.min === undefined ? undefined : `at least ${def.min}`,
    def.max === undefined ? undefined : `at most ${def.max}`,
    def.powerOfTwo === true ? 'a power of two' : undefined,
  ].filter((bound) => bound !== undefined);
  return [KINDS[def.kind], ...bounds].join(', ');
}

function standard(def) {
  if (def.default === undefined) return '';
  if (def.kind === 'bool') return def.default ? 'on' : 'off';
  return `\`${def.default}\``;
}
