/** The program: which personality it has, which verb runs, signals, and how failures are told and end.
 *  Invariants: exactly one message for one failure; never a stack trace unless COWDISK_DEBUG is set; nothing heavy is imported
 *  before it is known what is to be done. */
import { isBlockError } from '../base/errors.ts';
import { type Cli, DescriptorSink, Interruption, makeCli, type Personality, type Sink } from './console.ts';
import { Failure } from './failure.ts';

const EXIT_FAILURE = 1;
/** A second Ctrl-C, or this long after the first, ends the program however busy it is. */
const GRACE_MS = 10_000;

export interface Invocation {
  /** The path the program was called by. */
  readonly calledAs: string;
  readonly args: readonly string[];
  readonly out: Sink;
  readonly err: Sink;
  readonly env: Readonly<Record<string, string | undefined>>;
  readonly signal: AbortSignal;
  /** Stands for standard input, where it is given. */
  readonly input?: AsyncIterable<Uint8Array>;
}

/** Runs this process as the program and ends it. */
export async function start(): Promise<void> {
  const controller = new AbortController();
  const release = listenForSignals(controller);
  const out = new DescriptorSink(1);
  const err = new DescriptorSink(2);
  const { env } = process;
  const [, calledAs = 'cowdisk', ...args] = process.argv;
  const status = await run({ calledAs, args, out, err, env, signal: controller.signal });
  release();
  process.exit(status);
}

function listenForSignals(controller: AbortController): () => void {
  const stop = (name: 'SIGINT' | 'SIGTERM' | 'SIGHUP'): void => {
    const interruption = new Interruption(name);
    if (controller.signal.aborted) process.exit(interruption.status);
    controller.abort(interruption);
    setTimeout(() => {
      process.stderr.write(`${name}: giving up waiting; the target may be incomplete\n`);
      process.exit(interruption.status);
    }, GRACE_MS).unref();
  };
  const names = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;
  for (const name of names) process.on(name, stop);
  // Without a listener Node would start its debugger; with one, jobs can show their progress.
  const ignore = (): void => {};
  if (process.platform !== 'win32') process.on('SIGUSR1', ignore);
  return () => {
    for (const name of names) process.off(name, stop);
  };
}

/** Runs one command line.
 *  @returns the exit status. */
export async function run(invocation: Invocation): Promise<number> {
  const personality = personalityOf(invocation.calledAs);
  const { out, err, env, signal, input } = invocation;
  let cli = makeCli(personality, personality.program, { out, err }, env, signal, input);
  const cliFor = (verb: string): Cli => {
    cli = makeCli(personality, verb, { out, err }, env, signal, input);
    return cli;
  };
  try {
    if (personality.program === 'qemu-nbd') {
      throw new Failure(`this program is not part of cowdisk yet; cowdisk, qemu-img and qemu-io are`);
    }
    const { dispatch, dispatchIo } = await import('./dispatch.ts');
    if (personality.program === 'qemu-io') return await dispatchIo(invocation.args, cli);
    return await dispatch(personality, invocation.args, cliFor);
  } catch (error) {
    return report(cli, error);
  }
}

/** @param calledAs a path; only its last part counts, without an extension. */
export function personalityOf(calledAs: string): Personality {
  const base = /([^/\\]*?)(\.(exe|cmd|js|mjs))?$/.exec(calledAs)?.[1] ?? '';
  for (const program of ['qemu-img', 'qemu-io', 'qemu-nbd'] as const) {
    if (base === program) return { program, qemu: true };
  }
  return { program: 'cowdisk', qemu: false };
}

/** Tells a failure.
 *  @returns the exit status it means. */
export function report(cli: Cli, error: unknown): number {
  if (cli.env['COWDISK_DEBUG'] === '1') cli.err.write(`${debugText(error)}\n`);
  if (error instanceof Failure) {
    for (const line of error.lines) cli.error(line);
    if (error.hint === 'help') cli.err.write(helpHint(cli));
    if (error.trailer !== undefined) cli.err.write(error.trailer);
    return error.status;
  }
  if (cli.signal.aborted && (!isBlockError(error) || error.code === 'ABORTED')) {
    cli.error('interrupted');
    return cli.signal.reason instanceof Interruption ? cli.signal.reason.status : EXIT_FAILURE;
  }
  if (isBlockError(error) && error.code !== 'INTERNAL') {
    cli.error(error.message);
    return EXIT_FAILURE;
  }
  const text = error instanceof Error ? error.message : String(error);
  cli.error(`internal error: ${text.replace(/^internal error: /, '')}`);
  cli.error('this is a mistake in cowdisk; please report it, with the command line and what COWDISK_DEBUG=1 prints');
  return EXIT_FAILURE;
}

function helpHint({ personality: { program, qemu }, verb }: Cli): string {
  if (qemu) return `Try '${program} --help' for more information\n`;
  return `Try '${program} help${verb === program ? '' : ` ${verb}`}' for more information\n`;
}

function debugText(error: unknown): string {
  const lines: string[] = [];
  for (let at: unknown = error, depth = 0; at !== undefined && depth < 8; depth++) {
    lines.push(at instanceof Error ? (at.stack ?? at.message) : String(at));
    if (isBlockError(at))
      lines.push(`    ${JSON.stringify({ code: at.code, reason: at.reason, details: at.details }, bigintText)}`);
    at = at instanceof Error ? at.cause : undefined;
  }
  return lines.join('\ncaused by: ');
}

function bigintText(_key: string, value: unknown): unknown {
  return typeof value === 'bigint' ? String(value) : value;
}
