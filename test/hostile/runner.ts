/** Runs hostile cases in child processes, and watches them: a child that says nothing for too long is ended, its case is a failure, and
 *  another child goes on behind it. A child takes a few hundred cases. */
import { fork } from 'node:child_process';
import { join } from 'node:path';
import type { Order, Report } from './child.ts';
import type { Recipe } from './mutate.ts';

/** Wall clock: only for cases that never end. */
const SILENCE_MS = 60_000;
const CASES_PER_CHILD = 125;

export interface CaseFailure {
  readonly index: number;
  readonly recipe: Recipe | undefined;
  readonly what: string;
}

export interface RunResult {
  readonly cases: number;
  /** Cases by the kind of damage. */
  readonly hits: ReadonlyMap<string, number>;
  /** How often a step ended how. */
  readonly endings: ReadonlyMap<string, number>;
  readonly failures: readonly CaseFailure[];
  readonly slowest: { readonly index: number; readonly milliseconds: number };
  readonly peakBytes: number;
  /** Processor time of all cases. */
  readonly milliseconds: number;
}

export interface RunOptions {
  /** Where `compileInto` put the code. */
  readonly code: string;
  /** Where the bases are. */
  readonly directory: string;
  readonly seed: number;
  readonly cases: number;
  /** These and no others; `cases` is their number then. */
  readonly recipes?: readonly Recipe[];
  readonly children: number;
  readonly suite?: Order['suite'];
  /** Processor time that one case may take. */
  readonly limitMs: number;
}

export async function runCases(options: RunOptions): Promise<RunResult> {
  const tally = new Tally(options.limitMs);
  let begun = 0;
  const next = (): number => CASES_PER_CHILD * begun++;
  const lanes = Array.from({ length: options.children }, () => runLane(options, next, tally));
  await Promise.all(lanes);
  return tally;
}

class Tally implements RunResult {
  cases = 0;
  readonly hits = new Map<string, number>();
  readonly endings = new Map<string, number>();
  readonly failures: CaseFailure[] = [];
  slowest = { index: -1, milliseconds: 0 };
  peakBytes = 0;
  milliseconds = 0;
  readonly #limitMs: number;

  constructor(limitMs: number) {
    this.#limitMs = limitMs;
  }

  add(report: Extract<Report, { type: 'end' }>): void {
    const { index, recipe, steps, failures, milliseconds } = report;
    this.cases++;
    this.milliseconds += milliseconds;
    count(this.hits, recipe.kind);
    for (const [step, ending] of Object.entries(steps)) count(this.endings, `${step}: ${ending}`);
    for (const what of failures) this.failures.push({ index, recipe, what });
    if (milliseconds > this.slowest.milliseconds) this.slowest = { index, milliseconds };
    if (milliseconds > this.#limitMs) {
      this.failures.push({ index, recipe, what: `took ${Math.round(milliseconds)} ms of processor time` });
    }
  }
}

function count(map: Map<string, number>, key: string): void {
  map.set(key, (map.get(key) ?? 0) + 1);
}

/** Takes one stretch of cases after the other, each with a child of its own. */
async function runLane(options: RunOptions, next: () => number, tally: Tally): Promise<void> {
  for (let from = next(); from < options.cases; from = next()) {
    const to = Math.min(from + CASES_PER_CHILD, options.cases);
    for (let at = from; at < to; ) {
      const stopped = await runChild(options, at, to, tally);
      if (stopped !== undefined) {
        const recipe = options.recipes?.[stopped.index];
        tally.failures.push({ index: stopped.index, recipe, what: stopped.what });
      }
      at = stopped === undefined ? to : stopped.index + 1;
    }
  }
}

/** @returns the case that ended the child, `undefined` when all went through. */
function runChild(
  { code, directory, seed, recipes, suite = 'whole' }: RunOptions,
  from: number,
  to: number,
  tally: Tally,
): Promise<{ readonly index: number; readonly what: string } | undefined> {
  return new Promise((resolve) => {
    let index = from;
    let done = false;
    let output = '';
    const child = fork(join(code, 'test/hostile/child.js'), {
      stdio: ['ignore', 'ignore', 'pipe', 'ipc'],
      execArgv: ['--expose-gc'],
    });
    const watch = (): NodeJS.Timeout => setTimeout(() => child.kill('SIGKILL'), SILENCE_MS);
    let timer = watch();
    child.stderr?.on('data', (text: Buffer) => {
      output = (output + text.toString()).slice(-4000);
    });
    child.on('message', (report: Report) => {
      clearTimeout(timer);
      timer = watch();
      if (report.type === 'begin') index = report.index;
      else if (report.type === 'end') tally.add(report);
      else {
        done = true;
        tally.peakBytes = Math.max(tally.peakBytes, report.peakBytes);
      }
    });
    child.on('exit', (status, signal) => {
      clearTimeout(timer);
      resolve(done ? undefined : { index, what: `the child ended with ${signal ?? status}: ${output}` });
    });
    child.send({ directory, seed, from, to, recipes, suite } satisfies Order);
  });
}
