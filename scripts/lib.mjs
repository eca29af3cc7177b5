/** What the scripts share: child processes, phases with their times, and the state of dependencies and build.
 *  Runs on every supported Node without anything installed: no imports but Node's own. */
import { spawn, spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
// Not by name: an older Node, which has no `styleText`, must come as far as the message that it is too old.
import * as util from 'node:util';

export const ROOT = fileURLToPath(new URL('..', import.meta.url));
export const PROGRAM = join(ROOT, 'bin', 'cowdisk.js');

/** First Node that everything runs on. */
const OLDEST_NODE = [20, 19];

/** Ends the process with a clear message when Node is too old. */
export function requireNode() {
  const [major = 0, minor = 0] = process.versions.node.split('.').map(Number);
  const [oldestMajor, oldestMinor] = OLDEST_NODE;
  if (major > oldestMajor || (major === oldestMajor && minor >= oldestMinor)) return;
  console.error(`cowdisk needs Node ${OLDEST_NODE.join('.')} or newer; this is Node ${process.versions.node}`);
  process.exit(1);
}

/** The environment for programs of ours. With NODE_EXTRA_CA_CERTS set, Node parses certificates at every start, for nothing. */
export function childEnvironment(more = {}) {
  const { NODE_EXTRA_CA_CERTS: _, ...env } = process.env;
  return { ...env, ...more };
}

/** Runs a program with our streams.
 *  @returns its exit status; 127 when it cannot be started, 128 and more when a signal ended it. */
export function run(command, args, options = {}) {
  return new Promise((resolve) => {
    const child = spawn(command, args, { cwd: ROOT, stdio: 'inherit', env: childEnvironment(), ...options });
    child.on('error', () => resolve(127));
    child.on('close', (status, signal) => resolve(status ?? (signal === 'SIGINT' ? 130 : 143)));
  });
}

/** Runs a program and keeps what it says. */
export function capture(command, args, options = {}) {
  const result = spawnSync(command, args, { cwd: ROOT, encoding: 'utf8', env: childEnvironment(), ...options });
  return { status: result.status ?? 127, out: result.stdout ?? '', err: result.stderr ?? '' };
}

export function hasProgram(name) {
  return capture('sh', ['-c', `command -v ${name}`]).status === 0;
}

/** npm as it was called, or as it is found. The registry may need extra certificates: the environment stays as it is.
 *  @returns its exit status and what it said. */
function npm(args) {
  const cli = process.env.npm_execpath;
  const isScript = cli !== undefined && /\.c?js$/.test(cli);
  const [command, all] = isScript ? [process.execPath, [cli, ...args]] : ['npm', args];
  return capture(command, all, { env: process.env });
}

export function readJson(path) {
  return JSON.parse(readFileSync(join(ROOT, path), 'utf8'));
}

/** Whether node_modules holds what package-lock.json asks for. */
export function dependenciesAreThere() {
  const installed = 'node_modules/.package-lock.json';
  if (!existsSync(join(ROOT, installed))) return false;
  const wanted = readJson('package-lock.json').packages;
  const present = readJson(installed).packages;
  return Object.entries(wanted).every(([path, entry]) => {
    if (path === '' || entry.optional === true) return true;
    return present[path]?.version === entry.version && existsSync(join(ROOT, path));
  });
}

/** Installs the dependencies where they are missing, at the versions of package-lock.json; ends the process when that fails.
 *  @returns what was done, in words. */
export function ensureDependencies() {
  if (dependenciesAreThere()) return 'there already';
  const common = ['--ignore-scripts', '--include=dev', '--no-audit', '--no-fund', '--loglevel=error'];
  const clean = npm(['ci', ...common]);
  if (clean.status === 0) return 'installed';
  // Some registries lack packages for other platforms, which `ci` does not forgive; `install` takes the locked versions of the rest.
  const lenient = npm(['install', '--no-save', ...common]);
  if (lenient.status === 0 && dependenciesAreThere()) return 'installed';
  console.error(`the dependencies could not be installed:\n${clean.err}${lenient.err}`);
  process.exit(1);
}

/** Whether dist/ is younger than every source. */
export function isBuilt() {
  const stamp = statSync(join(ROOT, 'dist/.tsbuildinfo'), { throwIfNoEntry: false });
  const program = statSync(join(ROOT, 'dist/program/main.cjs'), { throwIfNoEntry: false });
  if (stamp === undefined || program === undefined || !existsSync(join(ROOT, 'dist/node.js'))) return false;
  const inputs = [...sources('src'), 'package-lock.json', 'tsconfig.json', 'tsconfig.build.json', 'scripts/bundle.mjs'];
  return Math.max(...inputs.map(modified)) < Math.min(stamp.mtimeMs, program.mtimeMs);
}

function modified(path) {
  return statSync(join(ROOT, path)).mtimeMs;
}

function sources(directory) {
  return readdirSync(join(ROOT, directory), { withFileTypes: true }).flatMap((entry) => {
    const path = `${directory}/${entry.name}`;
    return entry.isDirectory() ? sources(path) : [path];
  });
}

/** Compiles src/ to dist/ and bundles the program. @returns 0, or the status of what failed. */
export async function build() {
  const compiled = await run(process.execPath, ['node_modules/typescript/bin/tsc', '-p', 'tsconfig.build.json']);
  return compiled === 0 ? run(process.execPath, ['scripts/bundle.mjs']) : compiled;
}

// The reader went away, `| head` for one: nobody is left to talk to.
process.stdout.on('error', (error) => {
  if (error.code === 'EPIPE') process.exit(0);
  throw error;
});

const coloured = process.stdout.isTTY === true && process.env.NO_COLOR === undefined;

/** Text in a style of `util.styleText`, on terminals. */
export function style(format, text) {
  return coloured ? util.styleText(format, text) : text;
}

export function seconds(milliseconds) {
  return `${(milliseconds / 1000).toFixed(milliseconds < 9950 ? 1 : 0)} s`;
}

/** Phases of a script: a heading each, and their times at the end. */
export class Phases {
  #times = [];

  async run(name, body) {
    const began = performance.now();
    console.log(style('bold', `── ${name}`));
    try {
      return await body();
    } finally {
      this.#times.push([name, performance.now() - began]);
    }
  }

  /** `build 3.4 s · lint 1.2 s · …` */
  summary() {
    return this.#times.map(([name, time]) => `${name} ${seconds(time)}`).join(' · ');
  }
}
