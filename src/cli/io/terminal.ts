/** The shell's input: a file or a pipe, or a user at a terminal, with line editing, history and completion.
 *  Invariant: an interruption ends the waiting for input at once. */
import { readdirSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { clearLine, createInterface, cursorTo, type Interface } from 'node:readline';
import { isPromise } from '../../base/async.ts';
import { CACHE_MODES } from '../verbs/common.ts';
import { wordsOf } from './getopt.ts';
import type { Aside, Session } from './session.ts';
import { execute } from './shell.ts';
import { COMMANDS, findCommand, type Names } from './table.ts';

/** Standard input, chunk by chunk, until it ends or the user interrupts. */
export async function* standardInput(signal: AbortSignal): AsyncGenerator<Uint8Array> {
  const { stdin } = process;
  const stop = (): void => void stdin.destroy();
  signal.addEventListener('abort', stop);
  try {
    for await (const chunk of stdin) yield chunk as Uint8Array;
  } catch (error) {
    if (!signal.aborted) throw error;
  } finally {
    signal.removeEventListener('abort', stop);
  }
}

/** A user at a terminal. */
export class Terminal {
  readonly #prompt: string;
  readonly #output: NodeJS.WritableStream;
  readonly #lines: Interface;
  #isAsking = false;

  /** @param streams those of this process when not given. */
  constructor(
    prompt: string,
    streams: { readonly input: NodeJS.ReadableStream; readonly output: NodeJS.WritableStream } = {
      input: process.stdin,
      output: process.stdout,
    },
  ) {
    this.#prompt = prompt;
    this.#output = streams.output;
    this.#lines = createInterface({
      ...streams,
      prompt,
      terminal: true,
      completer: (line: string) => complete(line),
      historySize: 500,
      removeHistoryDuplicates: true,
    });
    // While lines are edited the terminal sends no signal for Ctrl-C.
    this.#lines.on('SIGINT', () => process.kill(process.pid, 'SIGINT'));
  }

  /** Moves the line that is being typed below what is printed. */
  readonly aside: Aside = async (write) => {
    if (this.#isAsking) {
      cursorTo(this.#output, 0);
      clearLine(this.#output, 0);
    }
    await write();
    if (this.#isAsking) this.#lines.prompt(true);
  };

  /** Runs lines until the user ends. */
  async run(session: Session): Promise<void> {
    const { signal } = session.cli;
    const stop = (): void => this.#lines.close();
    signal.addEventListener('abort', stop);
    try {
      this.#ask();
      for await (const line of this.#lines) {
        this.#isAsking = false;
        const running = execute(session, line);
        if ((isPromise(running) ? await running : running) === 'quit' || signal.aborted) return;
        this.#ask();
      }
      // Ctrl-D leaves the cursor behind the prompt.
      session.cli.out.write('\n');
    } finally {
      this.#isAsking = false;
      signal.removeEventListener('abort', stop);
      this.#lines.close();
    }
  }

  #ask(): void {
    this.#isAsking = true;
    this.#lines.setPrompt(this.#prompt);
    this.#lines.prompt();
  }
}

/** What the last word of a line can become.
 *  @returns the candidates, and the word. */
export function complete(line: string): [candidates: string[], word: string] {
  const before = wordsOf(line);
  const word = line === '' || line.endsWith(' ') ? '' : (before.pop() ?? '');
  return [candidatesFor(before, word).filter((candidate) => candidate.startsWith(word)), word];
}

function candidatesFor(before: readonly string[], word: string): string[] {
  const [name, ...given] = before;
  if (name === undefined) return COMMANDS.map((spec) => `${spec.name} `);
  const spec = findCommand(name);
  if (spec === undefined) return [];
  const last = given.at(-1) ?? '';
  const valued = last.startsWith('-') ? spec.options.find(([letter]) => last.endsWith(letter)) : undefined;
  const takesValue = valued !== undefined && spec.letters.includes(`${valued[0]}:`);
  if (takesValue) return valued[2] === undefined ? [] : namesOf(valued[2], word);
  if (word.startsWith('-')) return spec.options.map(([letter]) => `-${letter} `);
  return spec.operand === undefined ? [] : namesOf(spec.operand, word);
}

/** Events of the format that tests stop at most. */
const EVENTS = [
  'read_aio',
  'write_aio',
  'l1_update',
  'l2_load',
  'l2_update',
  'cow_read',
  'cow_write',
  'cluster_alloc',
  'flush_to_os',
  'flush_to_disk',
  'pwritev_zero',
  'none',
];

function namesOf(names: Names, word: string): string[] {
  switch (names) {
    case 'file':
      return filesAt(word);
    case 'cache':
      return CACHE_MODES.map((mode) => `${mode} `);
    case 'command':
      return COMMANDS.map(({ name }) => name);
    case 'discard':
      return ['unmap ', 'ignore '];
    case 'preallocation':
      return ['off ', 'metadata ', 'falloc ', 'full '];
    case 'event':
      return EVENTS.map((event) => `${event} `);
  }
}

/** Files whose names begin with the word; directories end with a slash. */
function filesAt(word: string): string[] {
  const directory = word.endsWith('/') ? word : dirname(word);
  const start = word.endsWith('/') ? '' : basename(word);
  const prefix = word.includes('/') ? (directory.endsWith('/') ? directory : `${directory}/`) : '';
  try {
    return readdirSync(directory === '' ? '.' : directory, { withFileTypes: true })
      .filter(({ name }) => name.startsWith(start) && !name.includes(' ') && (start !== '' || !name.startsWith('.')))
      .map(
        (entry) =>
          `${prefix === './' && !word.startsWith('./') ? '' : prefix}${entry.isDirectory() ? join(entry.name, '/') : entry.name}`,
      );
  } catch {
    // No directory: no names.
    return [];
  }
}
