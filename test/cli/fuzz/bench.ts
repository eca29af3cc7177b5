/** Runs of the fuzzer inside this process: commands that are functions of the image, and this program without a process for each command. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { MemorySink } from '../../../src/cli/console.ts';
import type { Execute, Outcome } from '../../../src/cli/fuzz/execute.ts';
import { USUAL_PATTERNS, USUAL_STATUSES } from '../../../src/cli/fuzz/judge.ts';
import { ownCommands } from '../../../src/cli/fuzz/own-commands.ts';
import { type Finding, type FuzzPlan, runFuzz } from '../../../src/cli/fuzz/session.ts';
import { parseCommand } from '../../../src/cli/fuzz/template.ts';
import { run } from '../../../src/cli/main.ts';
import { ALL_FORMATS } from '../../../src/formats/all.ts';
import { ALL_FUZZ_FORMATS } from '../../../src/formats/all-fuzz.ts';
import { IMAGE_NAME } from '../../../src/tools/fuzz/specimen.ts';

export const FINE: Outcome = { status: 0, signal: undefined, stderr: '' };
export const CRASH: Outcome = { status: undefined, signal: 'SIGSEGV', stderr: '' };

/** A reader that is a function of the image's bytes. */
export function reader(read: (image: Buffer) => Outcome): Execute {
  return async (_argv, directory) => read(readFileSync(join(directory, IMAGE_NAME)));
}

/** This program, in this process. */
export const inProcess: Execute = async (argv, _directory, _limits, signal) => {
  const out = new MemorySink();
  const err = new MemorySink();
  const strays: string[] = [];
  const note = (error: unknown): void => void strays.push(`Unhandled ${error}`);
  process.on('unhandledRejection', note);
  try {
    const status = await run({ calledAs: 'cowdisk', args: argv.slice(1), out, err, env: {}, signal });
    await new Promise((resolve) => setImmediate(resolve));
    return { status, signal: undefined, stderr: [err.text, ...strays].join('\n') };
  } finally {
    process.off('unhandledRejection', note);
  }
};

export interface Ran {
  readonly findings: readonly Finding[];
  readonly images: number;
  readonly runs: number;
  readonly interrupted: boolean;
}

/** @param scratch a directory that is there */
export async function fuzz(
  scratch: string,
  { format, ...changes }: Partial<FuzzPlan> & { readonly format?: string },
): Promise<Ran> {
  const findings: Finding[] = [];
  const formats = ALL_FUZZ_FORMATS.filter(({ driver }) => format === undefined || driver.name === format);
  const { images, runs, interrupted } = await runFuzz({
    formats,
    drivers: ALL_FORMATS,
    execute: inProcess,
    limits: { seconds: 60, memory: 2 ** 30, growth: 2 ** 28 },
    rules: { statuses: new Set(USUAL_STATUSES), patterns: USUAL_PATTERNS },
    scratch,
    cowdisk: ['cowdisk'],
    signal: new AbortController().signal,
    firstSeed: 1,
    count: 200,
    density: 1,
    commands: changes.execute === undefined ? ownCommands(undefined) : [parseCommand('reader $image')],
    picked: undefined,
    lanes: 1,
    shrink: true,
    enough: Number.POSITIVE_INFINITY,
    timeIsUp: () => false,
    onFinding: (finding) => findings.push(finding),
    onProgress: () => undefined,
    ...changes,
  });
  return { findings, images, runs, interrupted };
}
