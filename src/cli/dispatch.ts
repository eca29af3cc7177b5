/** From the first words of a command line to a verb: program options, help, version, completion, and verbs by name. */
import { Arguments, type OptionSpec, usage } from './args.ts';
import { Finished } from './commands/common.ts';
import type { Cli, Personality } from './console.ts';
import { Failure } from './failure.ts';
import { findVerb, nearestVerb, type VerbEntry } from './verbs/index.ts';

/** Options before the verb. */
export const PROGRAM_OPTIONS: readonly OptionSpec[] = [
  { key: 'help', short: 'h', long: 'help', help: 'print help and exit', support: 'acts' },
  { key: 'version', short: 'V', long: 'version', help: 'print the version and exit', support: 'acts' },
  {
    key: 'trace',
    short: 'T',
    long: 'trace',
    value: 'PATTERN',
    help: "QEMU's trace points",
    support: { refused: "there are no trace points like QEMU's; COWDISK_DEBUG=1 shows where an error comes from" },
  },
];

/** Runs the command line `args`.
 *  @returns the exit status. */
export async function dispatch(
  personality: Personality,
  args: readonly string[],
  cliFor: (verb: string) => Cli,
): Promise<number> {
  const cli = cliFor(personality.program);
  const words = new Arguments(PROGRAM_OPTIONS, args, personality.program, false);
  for (const { spec } of words) {
    if (spec.key === 'trace') throw new Failure(`-T: ${(spec.support as { refused: string }).refused}`);
    const { programHelp, versionText } = await import('./help.ts');
    cli.out.write(spec.key === 'help' ? programHelp(personality) : versionText(personality));
    return 0;
  }
  const [verb, ...rest] = words.operands;
  if (verb === undefined) {
    if (personality.qemu) throw usage('Not enough arguments');
    const { programHelp } = await import('./help.ts');
    cli.err.write(programHelp(personality));
    return 1;
  }
  if (!personality.qemu && verb === 'help') return help(cli, personality, rest[0]);
  if (!personality.qemu && verb === 'completion') return completion(cli, rest);
  const entry = findVerb(verb, personality);
  if (entry === undefined) throw unknownVerb(personality, verb);
  return runVerb(entry, rest, cliFor(verb));
}

/** Runs the command line of qemu-io, which has no verbs.
 *  @returns the exit status. */
export function dispatchIo(args: readonly string[], cli: Cli): Promise<number> {
  return runVerb(findVerb('io') as VerbEntry, args, cli);
}

async function runVerb(entry: VerbEntry, args: readonly string[], cli: Cli): Promise<number> {
  const [spec, command] = await Promise.all([entry.spec(), entry.command()]);
  try {
    return await command(cli, args, spec);
  } catch (error) {
    if (!(error instanceof Finished)) throw error;
    cli.out.write(error.text);
    return 0;
  }
}

function unknownVerb(personality: Personality, verb: string): Failure {
  if (personality.qemu) return usage(`Command not found: ${verb}`);
  const nearest = nearestVerb(verb);
  return usage(`there is no command '${verb}'${nearest === undefined ? '' : `; did you mean '${nearest}'?`}`);
}

async function help(cli: Cli, personality: Personality, verb: string | undefined): Promise<number> {
  const { programHelp, verbManual } = await import('./help.ts');
  if (verb === undefined) {
    cli.out.write(programHelp(personality));
    return 0;
  }
  const entry = findVerb(verb);
  if (entry === undefined) throw unknownVerb(personality, verb);
  cli.out.write(verbManual(await entry.spec(), personality));
  return 0;
}

async function completion(cli: Cli, args: readonly string[]): Promise<number> {
  const { completionScript, SHELLS } = await import('./completion.ts');
  const shell = SHELLS.find((candidate) => candidate === args[0]);
  if (shell === undefined || args.length > 1) throw usage(`completion: name one shell: ${SHELLS.join(', ')}`);
  cli.out.write(await completionScript(shell));
  return 0;
}
