/** Makes plain JavaScript of the library and of this room, for child processes: Node 20 cannot run TypeScript, and a child that compiles
 *  at run time would count the compiler's memory as its own. Types are stripped, nothing else is changed. */
import { mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import ts from 'typescript';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const PARTS = [
  'src/base',
  'src/bytes',
  'src/codec',
  'src/core',
  'src/crypto',
  'src/formats',
  'src/image',
  'src/platform',
  'src/storage',
];
const MORE = ['src/tools', 'src/testing/random.ts', 'test/hostile'];

/** @param into an empty directory; gets `src/…` and `test/hostile/…` */
export function compileInto(into: string): void {
  for (const part of [...PARTS, ...MORE]) {
    for (const name of sourcesOf(part)) {
      const { outputText } = ts.transpileModule(readFileSync(join(ROOT, name), 'utf8'), {
        fileName: name,
        compilerOptions: {
          module: ts.ModuleKind.ESNext,
          target: ts.ScriptTarget.ES2022,
          verbatimModuleSyntax: true,
          rewriteRelativeImportExtensions: true,
        },
      });
      const target = join(into, name.replace(/\.ts$/, '.js'));
      mkdirSync(dirname(target), { recursive: true });
      writeFileSync(target, outputText);
    }
  }
  const platform = { '#platform': './src/platform/node/index.js' };
  writeFileSync(join(into, 'package.json'), JSON.stringify({ type: 'module', imports: platform }));
  symlinkSync(join(ROOT, 'node_modules'), join(into, 'node_modules'));
}

function sourcesOf(part: string): string[] {
  if (part.endsWith('.ts')) return [part];
  return readdirSync(join(ROOT, part), { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.ts') && !name.endsWith('.test.ts'))
    .map((name) => join(part, name));
}
