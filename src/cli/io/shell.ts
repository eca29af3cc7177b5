/** The loop of the shell: lines come in, commands run one after the other.
 *  Invariants: a command begins when the one before it has ended, and at once where that needed no waiting; however the run ends, the image is
 *  closed. */
import { isPromise, type MaybePromise } from '../../base/async.ts';
import {
  abort,
  aioFlush,
  close,
  flush,
  open,
  removeBreak,
  reopen,
  resume,
  setBreak,
  sigraise,
  sleep,
  truncate,
  waitBreak,
} from './control.ts';
import { wordsOf } from './getopt.ts';
import { alloc, help, info, length, map } from './inspect.ts';
import { aioRead, aioWrite, discard, read, readv, write, writev } from './read-write.ts';
import type { Session } from './session.ts';
import { countProblem, findCommand } from './table.ts';

type Action = (session: Session, words: readonly string[]) => MaybePromise<void>;

const ACTIONS: Readonly<Record<string, Action>> = {
  abort,
  aio_flush: aioFlush,
  aio_read: aioRead,
  aio_write: aioWrite,
  alloc,
  break: setBreak,
  close,
  discard,
  flush,
  help,
  info,
  length,
  map,
  open,
  quit: () => undefined,
  read,
  readv,
  remove_break: removeBreak,
  reopen,
  resume,
  sigraise,
  sleep,
  truncate,
  wait_break: waitBreak,
  write,
  writev,
};

/** Whether the shell goes on. */
type After = 'next' | 'quit';

/** Runs one line. What fails is told, and the shell goes on. */
export function execute(session: Session, line: string): MaybePromise<After> {
  const words = wordsOf(line);
  const [word] = words;
  if (word === undefined) return 'next';
  const spec = findCommand(word);
  const problem = spec === undefined ? `command "${word}" not found` : commandProblem(session, words);
  if (spec === undefined || problem !== undefined) {
    session.failed = true;
    session.cli.err.write(`${problem}\n`);
    return 'next';
  }
  if (spec.writes === true && session.image.readOnly) {
    session.failed = true;
    session.cli.error('Block node is read-only');
    return 'next';
  }
  const after = spec.name === 'quit' ? 'quit' : 'next';
  try {
    const running = (ACTIONS[spec.name] as Action)(session, words);
    return isPromise(running) ? finished(session, running, after) : after;
  } catch (error) {
    session.tell(error);
    return after;
  }
}

function commandProblem(session: Session, words: readonly string[]): string | undefined {
  const spec = findCommand(words[0] as string);
  if (spec === undefined) return undefined;
  if (session.opened === undefined && spec.anytime !== true) return "no file open, try 'help open'";
  return countProblem(spec, words);
}

async function finished(session: Session, running: Promise<void>, after: After): Promise<After> {
  try {
    await running;
  } catch (error) {
    session.tell(error);
  }
  return after;
}

/** Runs the commands of the command line. Between commands that need no waiting nothing else gets its turn. */
export async function runCommands(session: Session, lines: readonly string[]): Promise<void> {
  for (const line of lines) {
    if (session.cli.signal.aborted) return;
    const running = execute(session, line);
    if ((isPromise(running) ? await running : running) === 'quit') return;
  }
}

/** Runs lines from a file or a pipe, and shows the prompt before each, as programs that talk to QEMU's shell expect. */
export async function runInput(session: Session, input: AsyncIterable<Uint8Array>, prompt: string): Promise<void> {
  const { out, signal } = session.cli;
  const decoder = new TextDecoder();
  let rest = '';
  out.write(prompt);
  const run = async (line: string): Promise<boolean> => {
    const running = execute(session, line);
    if ((isPromise(running) ? await running : running) === 'quit' || signal.aborted) return false;
    out.write(prompt);
    return true;
  };
  for await (const chunk of input) {
    rest += decoder.decode(chunk, { stream: true });
    for (let end = rest.indexOf('\n'); end >= 0; end = rest.indexOf('\n')) {
      const line = rest.slice(0, end);
      rest = rest.slice(end + 1);
      if (!(await run(line))) return;
    }
    if (signal.aborted) return;
  }
  if (rest !== '') await run(rest);
}
