/** Runs command lines through the real qemu-img and through ours, each in its own copy of a directory of images, and gives back
 *  what they said and left behind. Images of the fixture directory are made once by the real tools. */
import { type ChildProcess, execFile, execFileSync, fork } from 'node:child_process';
import {
  closeSync,
  existsSync,
  ftruncateSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const TIMEOUT_MS = 60_000;
/** Bytes. */
const SMALL = 4 * 1024 * 1024;
const BLOCK = 4096;

export interface Outcome {
  /** Standard output, standard error and exit status of each command, as one text. */
  readonly transcript: string;
  readonly directory: string;
}

/** Splits a command line as a shell would: blanks separate, single quotes hold together. */
export function splitCommand(line: string): string[] {
  return [...line.matchAll(/'([^']*)'|(\S+)/g)].map((match) => match[1] ?? (match[2] as string));
}

export function hasQemuImg(): boolean {
  try {
    execFileSync('qemu-img', ['--version'], { stdio: 'ignore' });
    return true;
  } catch {
    return false;
  }
}

/** The compiled program must be that of the sources at hand; its bundle is written anew by every build. */
export function requireBuild(): void {
  const built = join(ROOT, 'dist/program/main.cjs');
  if (!existsSync(built)) throw new Error('the program is not built; run: npm run build');
  const newest = Math.max(
    ...readdirSync(join(ROOT, 'src'), { recursive: true, encoding: 'utf8' })
      .filter((name) => name.endsWith('.ts'))
      .map((name) => statSync(join(ROOT, 'src', name)).mtimeMs),
  );
  if (statSync(built).mtimeMs < newest) throw new Error('the program is older than its sources; run: npm run build');
}

/** A temporary place for one run of the suite. */
export class Workshop {
  readonly root = mkdtempSync(join(tmpdir(), 'cowdisk-transcripts-'));
  readonly fixtures = join(this.root, 'fixtures');
  /** Links to our program, under the names of QEMU's. */
  readonly ours: string;
  readonly oursIo: string;
  #count = 0;
  readonly #sparse = new Map<string, SparseFile>();

  /** @param program where the program is; the one of this project when not given. */
  constructor(program = process.env['COWDISK_PROGRAM'] ?? join(ROOT, 'bin/cowdisk.js')) {
    mkdirSync(this.fixtures);
    mkdirSync(join(this.root, 'bin'));
    this.ours = join(this.root, 'bin/qemu-img');
    this.oursIo = join(this.root, 'bin/qemu-io');
    symlinkSync(program, this.ours);
    symlinkSync(program, this.oursIo);
  }

  dispose(): void {
    rmSync(this.root, { recursive: true, force: true });
  }

  /** Runs the real tools in the fixture directory, one after the other. */
  prepare(commands: readonly string[]): void {
    for (const line of commands) {
      const [program, ...args] = splitCommand(line) as [string, ...string[]];
      this.#prepareOne(program, args);
    }
  }

  /** Creating a LUKS image measures the machine, and now and then QEMU is not content with what it measured. */
  #prepareOne(program: string, args: readonly string[]): void {
    for (let attempt = 1; ; attempt++) {
      try {
        execFileSync(program, args, { cwd: this.fixtures, stdio: ['ignore', 'ignore', 'pipe'] });
        return;
      } catch (error) {
        if (attempt === 20 || !String(error).includes('Unable to get accurate CPU usage')) throw error;
      }
    }
  }

  write(name: string, bytes: Uint8Array | string): void {
    writeFileSync(join(this.fixtures, name), bytes);
  }

  read(name: string): Uint8Array {
    return readFileSync(join(this.fixtures, name));
  }

  /** A new directory with copies of these fixtures, every block of zeros a hole. */
  directory(names: readonly string[]): string {
    const directory = join(this.root, `case${++this.#count}`);
    mkdirSync(join(directory, 'dir'), { recursive: true });
    for (const name of names) {
      const sparse = this.#sparse.get(name) ?? readSparse(join(this.fixtures, name));
      this.#sparse.set(name, sparse);
      writeSparse(join(directory, name), sparse);
    }
    return directory;
  }

  /** Runs the commands in turn, in a directory of their own. */
  async run(commands: readonly string[], program: Program, fixtures: readonly string[]): Promise<Outcome> {
    const directory = this.directory(fixtures);
    let transcript = '';
    for (const line of commands) {
      const { stdout, stderr, status } = await program(splitCommand(line), directory);
      transcript += `$ ${line}\n${mark('  ', stdout)}${mark('! ', stderr)}[${status}]\n`;
    }
    return { transcript: transcript.replaceAll(directory, '<dir>'), directory };
  }
}

interface SparseFile {
  readonly size: number;
  readonly blocks: readonly (readonly [offset: number, bytes: Uint8Array])[];
}

function readSparse(path: string): SparseFile {
  const content = readFileSync(path);
  const zeros = Buffer.alloc(BLOCK);
  const blocks: [number, Uint8Array][] = [];
  for (let at = 0; at < content.length; at += BLOCK) {
    const block = content.subarray(at, at + BLOCK);
    if (!block.equals(zeros.subarray(0, block.length))) blocks.push([at, block]);
  }
  return { size: content.length, blocks };
}

function writeSparse(path: string, { size, blocks }: SparseFile): void {
  const fd = openSync(path, 'w');
  for (const [offset, bytes] of blocks) writeSync(fd, bytes, 0, bytes.length, offset);
  ftruncateSync(fd, size);
  closeSync(fd);
}

function mark(prefix: string, text: string): string {
  if (text === '') return '';
  const lines = normalise(text).split('\n');
  const rest = lines.pop();
  return lines.map((line) => `${prefix}${line}\n`).join('') + (rest === '' ? '' : `${prefix}${rest}\\\n`);
}

/** Takes out what may differ from run to run: space on disk, when a snapshot was made, and how often progress was shown. */
function normalise(text: string): string {
  return text
    .replace(/^Run completed in \d+\.\d{3} seconds\.$/gm, 'Run completed in <time> seconds.')
    .replace(/^disk size: .*$/gm, 'disk size: <size>')
    .replace(/^( *"actual-size": )\d+/gm, '$1<size>')
    .replace(/\b\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\b/g, '<date>')
    .replace(/^( *"date-n?sec": )\d+/gm, '$1<date>')
    .replace(/( {4}\(0\.00\/100%\)\r)( {4}\(\d+\.\d\d\/100%\)\r)*( {4}\(100\.00\/100%\)\r)/g, '<0%><100%>')
    .replace(/( {4}\(0\.00\/100%\)\r)( {4}\(\d+\.\d\d\/100%\)\r)*/g, '<0%>');
}

export interface Said {
  readonly stdout: string;
  readonly stderr: string;
  readonly status: number | string;
}

/** Something that runs a command line in a directory. */
export type Program = (args: readonly string[], directory: string, input?: string) => Promise<Said>;

/** A program that is started anew for each command. */
export function started(program: string): Program {
  return (args, directory, input) => spawn(program, args, directory, input);
}

/** Our program in a process that stays. One command at a time. */
export class Resident {
  readonly #child: ChildProcess;
  readonly #calledAs: string;
  readonly #ready: Promise<unknown>;

  constructor(program: string) {
    const runner = fileURLToPath(new URL('transcript-runner.mjs', import.meta.url));
    this.#calledAs = program;
    this.#child = fork(runner, [program], { env: environment(), execArgv: [] });
    this.#ready = this.#next();
  }

  readonly run: Program = async (args, directory, input) => {
    await this.#ready;
    const said = this.#next();
    this.#child.send({ calledAs: this.#calledAs, args, directory, input });
    return (await said) as Said;
  };

  stop(): void {
    this.#child.kill();
  }

  #next(): Promise<unknown> {
    return new Promise((resolve, reject) => {
      const onExit = (code: number | null): void => reject(new Error(`the program ended by itself, status ${code}`));
      this.#child.once('exit', onExit);
      this.#child.once('message', (message) => {
        this.#child.off('exit', onExit);
        resolve(message);
      });
    });
  }
}

function environment(): NodeJS.ProcessEnv {
  const { NODE_EXTRA_CA_CERTS: _, COWDISK_DEBUG: __, ...env } = process.env;
  return { ...env, LC_ALL: 'C.UTF-8', TZ: 'UTC' };
}

export function spawn(program: string, args: readonly string[], cwd: string, input = ''): Promise<Said> {
  return new Promise((resolve) => {
    const options = { cwd, env: environment(), timeout: TIMEOUT_MS, maxBuffer: 1 << 26 };
    const child = execFile(program, [...args], options, (error, stdout, stderr) => {
      resolve({ stdout, stderr, status: error === null ? 0 : (error.code ?? error.signal ?? 'failed') });
    });
    child.stdin?.on('error', () => undefined).end(input);
  });
}

/** What differs between the files that both left behind; empty when nothing does. */
export async function compareDirectories(theirs: string, ours: string): Promise<string[]> {
  const names = [...new Set([...filesOf(theirs), ...filesOf(ours)])].sort(byText);
  const differences: string[] = [];
  for (const name of names) {
    const [a, b] = [join(theirs, name), join(ours, name)];
    if (!existsSync(a)) differences.push(`${name}: only ours`);
    else if (!existsSync(b)) differences.push(`${name}: missing`);
    else if (!sameBytes(a, b)) {
      const { stdout, stderr, status } = await spawn('qemu-img', ['compare', a, b], ours);
      if (status !== 0) differences.push(`${name}: ${stdout.trim()}${stderr.trim()}`);
    }
  }
  return differences;
}

/** Whether two small files are equal; the content of others is compared as that of images. */
function sameBytes(a: string, b: string): boolean {
  const size = statSync(a).size;
  return size < SMALL && statSync(b).size === size && readFileSync(a).equals(readFileSync(b));
}

function byText(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

function filesOf(directory: string): string[] {
  return readdirSync(directory, { recursive: true, encoding: 'utf8' }).filter((name) =>
    statSync(join(directory, name), { throwIfNoEntry: false })?.isFile(),
  );
}

/** Calls `body` for each item, as many at a time as there are workers. */
export async function inParallel<T, W>(
  items: readonly T[],
  workers: readonly W[],
  body: (item: T, worker: W) => Promise<void>,
): Promise<void> {
  let next = 0;
  const work = async (worker: W): Promise<void> => {
    for (let i = next++; i < items.length; i = next++) await body(items[i] as T, worker);
  };
  await Promise.all(workers.map(work));
}
