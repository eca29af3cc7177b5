/** docs/reference/api.md: what `import … from 'cowdisk'` gives, as the declarations that the compiler makes of it. */
import ts from 'typescript';
import { GENERATED } from './program.mjs';

const GROUPS = [
  [
    'Images',
    [
      'openImage',
      'createImage',
      'planCreate',
      'Image',
      'OpenImageOptions',
      'CreateImageOptions',
      'CreatePlan',
      'BackingChoice',
      'ImageDrivers',
      'Preset',
      'FileName',
      'ReferencePolicy',
    ],
  ],
  ['Jobs', ['convertImage', 'compareImages', 'checkImage', 'mapImage', 'measureImage', 'imageInfo', 'chainInfo']],
  ['Errors', ['BlockError', 'isBlockError', 'ErrorCode']],
];

export function apiPage(program, root) {
  const checker = program.getTypeChecker();
  const declarations = declarationTexts(program);
  const face =
    program.getSourceFile(`${root}/src/node.ts`) ??
    program.getSourceFiles().find((file) => file.fileName.endsWith('/src/node.ts'));
  const names = new Map();
  for (const symbol of checker.getExportsOfModule(checker.getSymbolAtLocation(face))) {
    const target = symbol.flags & ts.SymbolFlags.Alias ? checker.getAliasedSymbol(symbol) : symbol;
    const declaration = target.declarations?.[0];
    if (declaration === undefined) continue;
    const file = declaration.getSourceFile().fileName;
    names.set(symbol.name, declarations.get(file)?.get(target.name) ?? '');
  }
  const missing = [...names].filter(([, text]) => text === '').map(([name]) => name);
  if (missing.length > 0) throw new Error(`no declaration found for ${missing.join(', ')}`);

  const grouped = new Set(GROUPS.flatMap(([, members]) => members));
  const rest = [...names.keys()].filter((name) => !grouped.has(name)).sort((a, b) => (a < b ? -1 : 1));
  const isValue = (name) =>
    /^(?:\/\*[\s\S]*?\*\/\s*)?export declare (?:const|function|class|abstract class)/.test(names.get(name));
  const groups = [
    ...GROUPS,
    ['Other values', rest.filter(isValue)],
    ['Other types', rest.filter((name) => !isValue(name))],
  ];
  const lines = [
    '# Library',
    '',
    GENERATED,
    '',
    "What `import … from 'cowdisk'` gives: the Node face, with formats, the file protocol and compression on worker threads preset. `cowdisk/testing`",
    'has the conformance suites and the stores that go with them. Offsets and sizes are numbers of bytes.',
    '',
    ...groups.flatMap(([title, members]) => [
      `## ${title}`,
      '',
      ...members.flatMap((name) => {
        if (!names.has(name)) throw new Error(`'${name}' is no longer exported`);
        return [`### ${name}`, '', '```ts', tidy(names.get(name)), '```', ''];
      }),
    ]),
  ];
  return `${lines.join('\n').trimEnd()}\n`;
}

/** For each source file, the text of the declarations of its top-level names. */
function declarationTexts(program) {
  const files = new Map();
  for (const source of program.getSourceFiles()) {
    if (source.isDeclarationFile) continue;
    program.emit(
      source,
      (name, text) => {
        if (name.endsWith('.d.ts')) files.set(source.fileName, namesOf(name, text));
      },
      undefined,
      true,
    );
  }
  return files;
}

function namesOf(fileName, text) {
  const source = ts.createSourceFile(fileName, text, ts.ScriptTarget.ES2022, true);
  const names = new Map();
  for (const statement of source.statements) {
    const name = ts.isVariableStatement(statement)
      ? statement.declarationList.declarations[0].name.getText()
      : statement.name?.getText();
    if (name === undefined) continue;
    const ranges = ts.getLeadingCommentRanges(text, statement.getFullStart()) ?? [];
    const start = ranges.at(-1)?.pos ?? statement.getStart();
    // The comment of the file is not that of its first name.
    const own = ranges.length > 0 && start === 0 && ranges.length === 1 ? statement.getStart() : start;
    const before = names.get(name);
    const whole = text.slice(own, statement.getEnd());
    names.set(name, before === undefined ? whole : `${before}\n${whole}`);
  }
  return names;
}

function tidy(text) {
  return (
    text
      .replaceAll(/^ {4}#private;\n/gm, '')
      .replaceAll(/^ {4}private [^\n]*\n/gm, '')
      .replaceAll(/^( {4})+/gm, (spaces) => ' '.repeat(spaces.length / 2))
      .replaceAll(/\b(open|create|check|compare|convert|info|map|measure)\.(?=[A-Z])/g, '')
      // A driver's own type repeats its options, which have a page of their own.
      .replace(
        /^((?:\/\*\*[\s\S]*?\*\/\s*)?)export declare const (\w+): (?:import\("[^"]+"\)\.)?FormatDriver<[\s\S]*$/,
        '$1export declare const $2: FormatDriver;',
      )
      .replaceAll(/\bexport declare /g, '')
      .replaceAll(/\bexport (?=interface|type|abstract|class)/g, '')
      .trim()
  );
}
