/** Runs one command on one image, within limits. Owns the processes: each command has a process group of its own, and whatever ends it ends all
 *  of the group, the end of this process included.
 *  Invariants: when the promise ends, nothing of the group is left that has not moved to another one; what is measured is only looked at so often
 *  ({@link TICK_MS}), so a command that is faster may use more than its limit for a moment. */
import { type ChildProcess, spawn } from 'node:child_process';
import { lstatSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

export interface Limits {
  /** Seconds by the clock. */
  readonly seconds: number;
  /** Resident memory of the whole group, bytes. Linux only. */
  readonly memory: number;
  /** Bytes that the files may grow by, as far as they take up space, and bytes of output. */
  readonly growth: number;
}

export type Limit = 'time' | 'memory' | 'growth';

/** How a command ended. */
export interface Outcome {
  readonly status: number | undefined;
  readonly signal: string | undefined;
  /** The limit for which it was killed. */
  readonly limit?: Limit | undefined;
  /** The end of what it printed to standard error. */
  readonly stderr: string;
  /** It was not run: there is no such program, or it may not be run. */
  readonly notRun?: string | undefined;
}

/** @param directory where it runs; its files are those that may not grow
 *  @param signal ends it at once; the outcome says nothing then */
export type Execute = (
  argv: readonly string[],
  directory: string,
  limits: Limits,
  signal: AbortSignal,
) => Promise<Outcome>;

const TICK_MS = 50;
const PATIENCE_MS = 1000;
const KEPT = 16 * 1024;

/** Groups that are running. */
const running = new Set<number>();
let guarded = false;

/** However this process ends, they end with it; a signal that nothing can catch excepted. */
function guard(): void {
  if (guarded) return;
  guarded = true;
  process.on('exit', () => {
    for (const group of running) killGroup(group);
  });
}

export const execute: Execute = (argv, directory, limits, signal) => {
  guard();
  const [program = '', ...args] = argv;
  return new Promise((resolve) => {
    if (signal.aborted) {
      resolve({ status: undefined, signal: undefined, stderr: '' });
      return;
    }
    const child = spawn(program, args, {
      cwd: directory,
      detached: process.platform !== 'win32',
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    const watch = new Watch(child, directory, limits, signal);
    child.on('error', (error) => {
      watch.end();
      resolve({ status: undefined, signal: undefined, stderr: '', notRun: error.message });
    });
    child.on('exit', () => {
      watch.end();
      // what has left the group may hold the pipes for ever
      setTimeout(() => {
        child.stdout?.destroy();
        child.stderr?.destroy();
      }, PATIENCE_MS).unref();
    });
    child.on('close', (status, by) => {
      resolve({ status: status ?? undefined, signal: by ?? undefined, limit: watch.limit, stderr: watch.stderr });
    });
  });
};

class Watch {
  limit: Limit | undefined;
  readonly #child: ChildProcess;
  readonly #directory: string;
  readonly #limits: Limits;
  readonly #signal: AbortSignal;
  readonly #before: number;
  readonly #timers: readonly NodeJS.Timeout[];
  readonly #kill = (): void => this.#end(undefined);
  #output = 0;
  #errors = '';

  constructor(child: ChildProcess, directory: string, limits: Limits, signal: AbortSignal) {
    this.#child = child;
    this.#directory = directory;
    this.#limits = limits;
    this.#signal = signal;
    this.#before = spaceOf(directory);
    if (child.pid !== undefined) running.add(child.pid);
    signal.addEventListener('abort', this.#kill);
    this.#timers = [
      setTimeout(() => this.#end('time'), limits.seconds * 1000),
      setInterval(() => this.#look(), TICK_MS),
    ];
    child.stdout?.on('data', (bytes: Buffer) => this.#count(bytes));
    child.stderr?.on('data', (bytes: Buffer) => {
      this.#count(bytes);
      this.#errors = (this.#errors + bytes.toString('latin1')).slice(-KEPT);
    });
  }

  get stderr(): string {
    return Buffer.from(this.#errors, 'latin1').toString('utf8');
  }

  /** The command has ended, and with it all that it started. */
  end(): void {
    for (const timer of this.#timers) clearTimeout(timer);
    this.#signal.removeEventListener('abort', this.#kill);
    const { pid } = this.#child;
    if (pid === undefined) return;
    killGroup(pid);
    running.delete(pid);
    if (this.limit === undefined && this.#grown() > this.#limits.growth) this.limit = 'growth';
  }

  #count({ length }: Buffer): void {
    this.#output += length;
    if (this.#output > this.#limits.growth) this.#end('growth');
  }

  #look(): void {
    const { pid } = this.#child;
    if (pid === undefined) return;
    if (memoryOf(pid) > this.#limits.memory) this.#end('memory');
    else if (this.#grown() > this.#limits.growth) this.#end('growth');
  }

  #grown(): number {
    return spaceOf(this.#directory) - this.#before;
  }

  #end(limit: Limit | undefined): void {
    this.limit ??= limit;
    if (this.#child.pid !== undefined) killGroup(this.#child.pid);
  }
}

function killGroup(leader: number): void {
  try {
    process.kill(process.platform === 'win32' ? leader : -leader, 'SIGKILL');
  } catch (error) {
    // the group has ended by itself
    if ((error as { code?: unknown }).code !== 'ESRCH') throw error;
  }
}

/** Bytes that the files of a directory take up. */
function spaceOf(directory: string): number {
  let bytes = 0;
  for (const name of readdirSync(directory, { recursive: true, encoding: 'utf8' })) {
    try {
      const { blocks } = lstatSync(join(directory, name));
      bytes += blocks * 512;
    } catch {
      // removed since
    }
  }
  return bytes;
}

const KIB = 1024;
/** Fields of /proc/PID/stat behind the name, which may hold spaces and parentheses: the process group is the third. */
const GROUP_FIELD = 2;

/** Resident memory of a process group in bytes, the largest so far for its leader; 0 where the system does not tell. */
function memoryOf(leader: number): number {
  if (process.platform !== 'linux') return 0;
  let bytes = 0;
  for (const name of readdirSync('/proc')) {
    if (!/^\d+$/.test(name)) continue;
    const stat = contentOf(`/proc/${name}/stat`);
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    if (Number(fields[GROUP_FIELD]) !== leader) continue;
    const key = Number(name) === leader ? 'VmHWM' : 'VmRSS';
    const size = new RegExp(`^${key}:\\s*(\\d+) kB`, 'm').exec(contentOf(`/proc/${name}/status`))?.[1];
    bytes += Number(size ?? 0) * KIB;
  }
  return bytes;
}

/** `''` for a process that has ended. */
function contentOf(file: string): string {
  try {
    return readFileSync(file, 'latin1');
  } catch {
    return '';
  }
}
