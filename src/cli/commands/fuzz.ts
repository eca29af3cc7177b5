/** `fuzz`: reads the options, and runs, replays or makes. Owns the scratch directory and the exit status.
 *  Invariants: statuses are those of the table whatever fails; the scratch directory is gone in the end. */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { availableParallelism, tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import type { FuzzFormat } from '../../core/fuzz.ts';
import { makeSpecimen } from '../../tools/fuzz/specimen.ts';
import type { Cli } from '../console.ts';
import { Interruption } from '../console.ts';
import { loadDrivers } from '../drivers.ts';
import { Failure } from '../failure.ts';
import { execute, type Limits } from '../fuzz/execute.ts';
import { type Rules, USUAL_PATTERNS, USUAL_STATUSES } from '../fuzz/judge.ts';
import { drawFor, type Kept, keepFinding, keepSpecimen, readKept } from '../fuzz/keep.ts';
import { ownCommands } from '../fuzz/own-commands.ts';
import { findingLine, findingText, line, summaryLine, summaryText } from '../fuzz/report.ts';
import { type FuzzPlan, runFuzz, runOnce, type Workbench } from '../fuzz/session.ts';
import { type CommandTemplate, parseCommand, parseCommandList } from '../fuzz/template.ts';
import { safeSizeArgument } from '../numbers.ts';
import { ProgressDisplay, type ProgressForm, progressForm } from '../progress.ts';
import { fuzz } from '../verbs/fuzz.ts';
import type { Command } from '../verbs/index.ts';
import { outputForm, type Scanned, scan } from './common.ts';
import { progressAsked } from './compare.ts';

/** Seeds of a run that only time ends. */
const ENDLESS = 2 ** 40;
const STATUS = { found: 1, error: 2 } as const;
const DEFAULTS = { count: 100, density: 1, seconds: 30, memory: '1G', growth: '256M', pick: 4 } as const;
/** Percent between two prints. */
const STEP = 1;

export const runFuzzVerb: Command = async (cli, args, spec) => {
  try {
    const given = await scan(cli, spec, args);
    const [surplus] = given.operands;
    if (surplus !== undefined) throw new Failure(`Unexpected argument: ${surplus}`, { hint: 'help' });
    const settings = await settingsOf(cli, given);
    for (const mode of MODES) if (given.has(mode)) requireMeaning(given, mode);
    if (given.has('make')) return await make(cli, given, settings);
    return await inScratch((scratch) => {
      const bench = benchOf(cli, settings, scratch);
      return given.has('replay') ? replay(cli, given, bench, settings) : search(cli, given, bench, settings);
    });
  } catch (error) {
    if (!(error instanceof Failure) || error.status === STATUS.error) throw error;
    const { lines, trailer, hint } = error;
    throw new Failure(lines, {
      status: STATUS.error,
      cause: error,
      ...(trailer === undefined ? {} : { trailer }),
      ...(hint === undefined ? {} : { hint }),
    });
  }
};

async function inScratch(body: (scratch: string) => Promise<number>): Promise<number> {
  const scratch = mkdtempSync(join(tmpdir(), 'cowdisk-fuzz-'));
  const remove = (): void => rmSync(scratch, { recursive: true, force: true });
  // a second Ctrl-C ends the process at once
  process.on('exit', remove);
  try {
    return await body(scratch);
  } finally {
    process.off('exit', remove);
    remove();
  }
}

// ── options ──────────────────────────────────────────────────────────────────────────────────

/** Modes that run no search, and the options that mean something to each of them. */
const MODES = ['make', 'replay'] as const;
const MEANT: Readonly<Record<(typeof MODES)[number], readonly string[]>> = {
  make: ['make', 'format', 'seed', 'count', 'density', 'quiet', 'output', 'json'],
  replay: [
    ...['replay', 'command', 'commands', 'program', 'timeout', 'max-memory', 'max-growth', 'allow-status', 'match'],
    ...['quiet', 'output', 'json'],
  ],
};

/** @throws {@link Failure} */
function requireMeaning(given: Scanned, mode: (typeof MODES)[number]): void {
  for (const { key } of fuzz.options) {
    if (!given.has(key) || MEANT[mode].includes(key)) continue;
    throw new Failure(`--${key === 'progress-form' ? 'progress' : key} has no meaning with --${mode}`);
  }
}

/** What the options say, all of it checked. */
interface Settings {
  readonly form: 'human' | 'json';
  readonly quiet: boolean;
  readonly progress: ProgressForm;
  readonly formats: readonly FuzzFormat[];
  readonly firstSeed: number;
  readonly count: number;
  readonly density: number;
  /** `undefined` when none were given. */
  readonly commands: readonly CommandTemplate[] | undefined;
  readonly picked: number | undefined;
  readonly lanes: number;
  readonly enough: number;
  /** Seconds; infinite when not given. */
  readonly duration: number;
  readonly limits: Limits;
  readonly rules: Rules;
}

async function settingsOf(cli: Cli, given: Scanned): Promise<Settings> {
  const form = outputForm(given);
  const quiet = given.has('quiet');
  const commands = commandsGiven(given);
  const duration = given.has('duration') ? number(given, 'duration', 1e9) : Number.POSITIVE_INFINITY;
  return {
    form,
    quiet,
    progress: progressForm(cli, progressAsked(given), quiet || form === 'json'),
    formats: await formatsOf(given),
    firstSeed: whole(given, 'seed', 0, 1),
    count: whole(given, 'count', 1, given.has('duration') ? ENDLESS : DEFAULTS.count),
    density: given.has('density') ? number(given, 'density', 100) : DEFAULTS.density,
    commands,
    picked: given.has('pick') ? whole(given, 'pick', 1, 1) : commands === undefined ? DEFAULTS.pick : undefined,
    lanes: whole(given, 'jobs', 1, availableParallelism()),
    enough: whole(given, 'enough', 1, Number.POSITIVE_INFINITY),
    duration,
    limits: limitsOf(cli, given, undefined),
    rules: rulesOf(given),
  };
}

function benchOf(cli: Cli, { limits, rules }: Settings, scratch: string): Workbench {
  const [, script] = process.argv;
  const cowdisk = script === undefined ? [process.execPath] : [process.execPath, script];
  return { execute, limits, rules, scratch, cowdisk, signal: cli.signal };
}

/** @param kept those of a finding, where nothing else is said */
function limitsOf(cli: Cli, given: Scanned, kept: Limits | undefined): Limits {
  const size = (key: string, usual: string, before: number | undefined): number => {
    const text = given.value(key);
    if (text === undefined && before !== undefined) return before;
    return safeSizeArgument(key, text ?? usual, cli);
  };
  return {
    seconds: given.has('timeout') ? number(given, 'timeout', 1e6) : (kept?.seconds ?? DEFAULTS.seconds),
    memory: size('max-memory', DEFAULTS.memory, kept?.memory),
    growth: size('max-growth', DEFAULTS.growth, kept?.growth),
  };
}

function rulesOf(given: Scanned): Rules {
  const statuses = given.value('allow-status')?.split(',').map(Number) ?? USUAL_STATUSES;
  if (statuses.some((status) => !Number.isInteger(status) || status < 0 || status > 255)) {
    throw new Failure(`--allow-status: expected numbers from 0 to 255, not '${given.value('allow-status')}'`);
  }
  const patterns = given.all('match').map((text) => {
    try {
      return new RegExp(text);
    } catch (error) {
      throw new Failure(`--match: ${(error as Error).message}`, { cause: error });
    }
  });
  return { statuses: new Set(statuses), patterns: [...USUAL_PATTERNS, ...patterns] };
}

/** Any number from 0 on; of time, 0 is too little. */
function number(given: Scanned, key: string, most: number): number {
  const text = given.value(key) ?? '';
  const value = text.trim() === '' ? Number.NaN : Number(text);
  if (value >= 0 && value <= most && (value > 0 || key === 'density')) return value;
  throw new Failure(`--${key}: expected a number up to ${most}, not '${text}'`);
}

function whole(given: Scanned, key: string, least: number, usual: number): number {
  const text = given.value(key);
  if (text === undefined) return usual;
  const value = /^\d+$/.test(text) ? Number(text) : Number.NaN;
  if (value >= least && value <= Number.MAX_SAFE_INTEGER) return value;
  throw new Failure(`--${key}: expected a whole number from ${least} on, not '${text}'`);
}

async function formatsOf(given: Scanned): Promise<readonly FuzzFormat[]> {
  const { ALL_FUZZ_FORMATS } = await import('../../formats/all-fuzz.ts');
  const text = given.value('format');
  if (text === undefined) return ALL_FUZZ_FORMATS;
  return [...new Set(text.split(','))].map((name) => {
    const format = ALL_FUZZ_FORMATS.find(({ driver }) => driver.name === name);
    if (format !== undefined) return format;
    const known = ALL_FUZZ_FORMATS.map(({ driver }) => driver.name).join(', ');
    throw new Failure(`cannot make images of format '${name}'; there are ${known}`);
  });
}

/** The commands given; `undefined` when there are none. */
function commandsGiven(given: Scanned): CommandTemplate[] | undefined {
  const file = given.value('commands');
  const commands = [...given.all('command').map(parseCommand), ...(file === undefined ? [] : listIn(file))];
  const program = given.value('program');
  if (program !== undefined) commands.push(...ownCommands(program));
  return commands.length === 0 ? undefined : commands.map(fromHere);
}

function listIn(file: string): CommandTemplate[] {
  try {
    return parseCommandList(readFileSync(file, 'utf8'), file);
  } catch (error) {
    if (error instanceof Failure) throw error;
    throw new Failure(`--commands: ${(error as Error).message}`, { cause: error });
  }
}

/** Commands run elsewhere: a program that is named by a path is meant from here. */
function fromHere({ text, words }: CommandTemplate): CommandTemplate {
  const [program = '', ...rest] = words;
  const isPath = program.includes('/') && !program.includes('$');
  return { text, words: [isPath ? resolve(program) : program, ...rest] };
}

// ── what it does ─────────────────────────────────────────────────────────────────────────────

async function search(cli: Cli, given: Scanned, bench: Workbench, settings: Settings): Promise<number> {
  const { form, quiet, commands, duration } = settings;
  const keep = given.value('keep');
  const end = performance.now() + 1000 * duration;
  const { formats: drivers } = await loadDrivers(cli.personality, false, given.objects);
  const display = new ProgressDisplay(cli, settings.progress, STEP);
  const plan: FuzzPlan = {
    ...settings,
    ...bench,
    drivers,
    commands: commands ?? ownCommands(undefined),
    shrink: given.has('shrink'),
    timeIsUp: () => performance.now() >= end,
    onFinding: (finding) => {
      const kept = keep === undefined ? undefined : keepFinding(keep, finding);
      cli.out.write(form === 'json' ? findingLine(finding, kept) : findingText(finding, kept));
    },
    onProgress: (done, total) => display.update({ phase: 'images', done, total }),
  };
  let outcome: 'done' | 'failed' = 'failed';
  try {
    const result = await runFuzz(plan);
    if (!result.interrupted) display.complete();
    outcome = 'done';
    display.end(outcome);
    if (form === 'json') cli.out.write(summaryLine(result));
    else if (!quiet) cli.out.write(summaryText(result));
    if (result.findings.size > 0) return STATUS.found;
    return result.interrupted ? interruptedStatus(cli) : 0;
  } finally {
    if (outcome === 'failed') display.end(outcome);
  }
}

function interruptedStatus({ signal }: Cli): number {
  return signal.reason instanceof Interruption ? signal.reason.status : STATUS.error;
}

/** Runs the command of a finding, or those given, on its image. */
async function replay(cli: Cli, given: Scanned, bench: Workbench, settings: Settings): Promise<number> {
  const { form, quiet } = settings;
  const kept: Kept = readKept(given.value('replay') as string);
  const commands = settings.commands ?? (kept.command === undefined ? ownCommands(undefined) : [kept.command]);
  const limits = limitsOf(cli, given, kept.limits);
  let found = false;
  for (const command of commands) {
    const directory = join(bench.scratch, 'replay');
    const verdict = await runOnce({ ...bench, limits }, directory, command, kept.subject);
    if (cli.signal.aborted) return interruptedStatus(cli);
    found ||= verdict !== undefined;
    if (form === 'json') cli.out.write(line({ event: 'replay', command: command.words, ...verdict }));
    else {
      const told = verdict === undefined ? 'nothing found' : `${verdict.kind}: ${verdict.reason}`;
      cli.out.write(`${command.text}\n  ${told}\n`);
    }
  }
  if (form === 'human' && !quiet) for (const damage of kept.damages) cli.out.write(`  damage: ${damage}\n`);
  return found ? STATUS.found : 0;
}

async function make(cli: Cli, given: Scanned, settings: Settings): Promise<number> {
  const { formats, firstSeed, count, density, form, quiet } = settings;
  const into = given.value('make') as string;
  const { formats: drivers } = await loadDrivers(cli.personality, false, given.objects);
  for (let seed = firstSeed; seed < firstSeed + count; seed++) {
    for (const format of formats) {
      if (cli.signal.aborted) return interruptedStatus(cli);
      const specimen = await makeSpecimen(format, seed, drivers);
      const damages = drawFor(specimen, format, density);
      const directory = keepSpecimen(into, specimen, damages);
      const { format: name, features } = specimen;
      if (form === 'json') cli.out.write(line({ event: 'made', directory, format: name, seed, features, damages }));
      else if (!quiet) cli.out.write(`${directory}: ${features.join(', ')}\n`);
    }
  }
  return 0;
}
