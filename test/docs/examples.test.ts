/** Everything that the documentation shows as done is done here: examples/*.ts and the marked blocks of README and docs. */
import { readdirSync, readFileSync } from 'node:fs';
import { join, relative } from 'node:path';
import ts from 'typescript';
import { beforeAll, describe, expect, it } from 'vitest';
import { expectedOutput, fencedBlocks, matches, ROOT, requireBuild, Scratch, shownCommands } from './run.ts';

beforeAll(requireBuild);

function pages(): string[] {
  const below = readdirSync(join(ROOT, 'docs'), { withFileTypes: true, recursive: true })
    .filter((entry) => entry.isFile() && entry.name.endsWith('.md'))
    .map((entry) => join(entry.parentPath, entry.name));
  return [join(ROOT, 'README.md'), join(ROOT, 'CHANGELOG.md'), ...below];
}

describe('examples/', () => {
  const files = readdirSync(join(ROOT, 'examples')).filter((name) => name.endsWith('.ts'));

  it('are there', () => expect(files.length).toBeGreaterThan(4));

  for (const name of files) {
    it(`${name} prints what it says`, () => {
      const source = readFileSync(join(ROOT, 'examples', name), 'utf8');
      using scratch = new Scratch();
      expect(scratch.module(source)).toBe(expectedOutput(source));
    });
  }
});

describe('the pages', () => {
  const marked = pages()
    .map((page) => ({ page, blocks: fencedBlocks(page).filter((block) => block.run) }))
    .filter(({ blocks }) => blocks.length > 0);

  it('have commands and programs that are run', () => {
    const languages = new Set(marked.flatMap(({ blocks }) => blocks.map((block) => block.language)));
    expect([...languages].sort((a, b) => a.localeCompare(b))).toEqual(['sh', 'ts']);
  });

  for (const { page, blocks } of marked) {
    it(`${relative(ROOT, page)} shows what happens`, () => {
      using scratch = new Scratch();
      for (const { line, language, text } of blocks) {
        if (language === 'ts') scratch.module(text);
        else for (const shown of shownCommands(text)) expectShown(`${page}:${line}`, shown, scratch);
      }
    });
  }

  it('have TypeScript that compiles', () => {
    const sources = new Map<string, string>();
    for (const { page, blocks } of marked) {
      for (const block of blocks) {
        if (block.language !== 'ts') continue;
        sources.set(
          join(ROOT, 'examples', `${relative(ROOT, page).replaceAll(/[\\/]/g, '-')}-${block.line}.ts`),
          block.text,
        );
      }
    }
    expect(sources.size).toBeGreaterThan(0);
    expect(diagnostics(sources)).toEqual([]);
  });
});

function expectShown(where: string, shown: { command: string; prints: string }, scratch: Scratch): void {
  const { text } = scratch.shell(shown.command);
  if (!matches(text, shown.prints)) expect(text.trimEnd(), `${where}: ${shown.command}`).toBe(shown.prints);
}

/** What the compiler says to sources that exist in memory only. */
function diagnostics(sources: ReadonlyMap<string, string>): string[] {
  const options: ts.CompilerOptions = {
    target: ts.ScriptTarget.ES2022,
    lib: ['lib.es2023.d.ts', 'lib.esnext.disposable.d.ts', 'lib.dom.d.ts', 'lib.dom.asynciterable.d.ts'],
    module: ts.ModuleKind.NodeNext,
    moduleResolution: ts.ModuleResolutionKind.NodeNext,
    types: ['node'],
    strict: true,
    noEmit: true,
    skipLibCheck: true,
  };
  const host = ts.createCompilerHost(options);
  const { readFile, fileExists, getSourceFile } = host;
  host.fileExists = (name) => sources.has(name) || fileExists(name);
  host.readFile = (name) => sources.get(name) ?? readFile(name);
  host.getSourceFile = (name, version, ...rest) => {
    const text = sources.get(name);
    return text === undefined ? getSourceFile(name, version, ...rest) : ts.createSourceFile(name, text, version);
  };
  host.getCurrentDirectory = () => ROOT;
  const program = ts.createProgram([...sources.keys()], options, host);
  return ts.getPreEmitDiagnostics(program).map((diagnostic) => {
    const text = ts.flattenDiagnosticMessageText(diagnostic.messageText, '\n');
    return `${diagnostic.file?.fileName ?? ''}: ${text}`;
  });
}
