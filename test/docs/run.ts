/** Runs what the documentation shows: TypeScript against the built package, commands with the program on the PATH, each in a scratch directory
 *  that has the samples. Owns the scratch directory and the marks that say what is run.
 *  A fenced block is run when its first line ends in ` run` (```ts run, ```sh run). In `sh` blocks, lines that begin with `$ ` are commands and the
 *  lines after them what they print (both streams); `…` stands for any text. Blocks of one page share a directory. */
import { spawnSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import ts from 'typescript';

export const ROOT = fileURLToPath(new URL('../..', import.meta.url)).replace(/[\\/]$/, '');

export function requireBuild(): void {
  if (existsSync(join(ROOT, 'dist/node.js')) && existsSync(join(ROOT, 'dist/program/main.cjs'))) return;
  throw new Error('the documentation is run against the built package, which is not there; run: npm run build');
}

/** A directory with the samples, where `cowdisk` is both a command and a package. */
export class Scratch implements Disposable {
  readonly path: string;

  constructor() {
    this.path = mkdtempSync(join(tmpdir(), 'cowdisk-docs-'));
    cpSync(join(ROOT, 'samples'), join(this.path, 'samples'), { recursive: true });
    mkdirSync(join(this.path, 'node_modules', '.bin'), { recursive: true });
    symlinkSync(ROOT, join(this.path, 'node_modules', 'cowdisk'), 'dir');
    symlinkSync(join(ROOT, 'bin', 'cowdisk.js'), join(this.path, 'node_modules', '.bin', 'cowdisk'));
    writeFileSync(join(this.path, 'package.json'), '{ "type": "module" }\n');
  }

  /** What a shell says, both streams in order. */
  shell(command: string): { readonly status: number; readonly text: string } {
    const { status, stdout } = spawnSync('sh', ['-c', `{ ${command}\n} 2>&1`], {
      cwd: this.path,
      encoding: 'utf8',
      env: this.#environment(),
    });
    return { status: status ?? 128, text: stdout };
  }

  /** Compiles and runs a module; what it prints. */
  module(source: string): string {
    const file = join(this.path, 'module.mjs');
    const { outputText } = ts.transpileModule(source, {
      compilerOptions: { target: ts.ScriptTarget.ES2022, module: ts.ModuleKind.ESNext },
    });
    writeFileSync(file, outputText);
    const { status, stdout, stderr } = spawnSync(process.execPath, [file], {
      cwd: this.path,
      encoding: 'utf8',
      env: this.#environment(),
    });
    if (status !== 0) throw new Error(`ended with status ${status}:\n${stdout}${stderr}`);
    return stdout;
  }

  #environment(): NodeJS.ProcessEnv {
    const { NODE_EXTRA_CA_CERTS: _, ...env } = process.env;
    return { ...env, PATH: [join(this.path, 'node_modules', '.bin'), env['PATH']].join(delimiter), LC_ALL: 'C' };
  }

  [Symbol.dispose](): void {
    rmSync(this.path, { recursive: true, force: true });
  }
}

/** The lines below `// Prints:` at the end of an example. */
export function expectedOutput(source: string): string {
  const lines = source.split('\n');
  const start = lines.lastIndexOf('// Prints:');
  if (start < 0) throw new Error('an example ends with what it prints, below a line `// Prints:`');
  return `${lines
    .slice(start + 1)
    .filter((line) => line.startsWith('//'))
    .map((line) => line.replace(/^\/\/ ?/, ''))
    .join('\n')}\n`;
}

export interface Block {
  readonly line: number;
  readonly language: string;
  readonly run: boolean;
  readonly text: string;
}

/** The fenced blocks of a page. */
export function fencedBlocks(page: string): Block[] {
  const lines = readFileSync(page, 'utf8').split('\n');
  const blocks: Block[] = [];
  for (let i = 0; i < lines.length; i++) {
    const opening = /^```(\w*) ?(\w*)$/.exec(lines[i] as string);
    if (opening === null) continue;
    const end = lines.indexOf('```', i + 1);
    if (end < 0) throw new Error(`${page}:${i + 1}: the block does not end`);
    const [, language = '', mark = ''] = opening;
    blocks.push({ line: i + 1, language, run: mark === 'run', text: lines.slice(i + 1, end).join('\n') });
    i = end;
  }
  return blocks;
}

/** One command of a block and what it is shown to print. */
export interface Shown {
  readonly command: string;
  readonly prints: string;
}

export function shownCommands(block: string): Shown[] {
  const shown: { command: string; prints: string[] }[] = [];
  for (const line of block.split('\n')) {
    if (line.startsWith('$ ')) shown.push({ command: line.slice(2), prints: [] });
    else if (shown.length === 0) throw new Error(`a block of commands begins with one, not with '${line}'`);
    else shown.at(-1)?.prints.push(line);
  }
  return shown.map(({ command, prints }) => ({ command, prints: prints.join('\n').trimEnd() }));
}

/** Sizes on disk differ between file systems. */
function comparable(text: string): string {
  return text
    .trimEnd()
    .replaceAll(/disk size: .*/g, 'disk size: …')
    .replaceAll(/"actual-size": \d+/g, '"actual-size": …');
}

/** Whether `text` is what `shown` says: `…` stands for the rest of a line, alone on a line for any lines. */
export function matches(text: string, shown: string): boolean {
  const escaped = (part: string): string => part.replaceAll(/[.*+?^${}()|[\]\\]/g, '\\$&');
  const lines = comparable(shown)
    .split('\n')
    .map((line) => (line === '…' ? '[\\s\\S]*' : line.split('…').map(escaped).join('[^\\n]*')));
  return new RegExp(`^${lines.join('\\n')}$`).test(comparable(text));
}
