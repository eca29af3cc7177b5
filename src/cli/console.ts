/** Where a command speaks: standard output and standard error of this process, written at once and in order, and the name in
 *  front of messages. Synchronous on purpose: nothing is lost at exit, and the two streams keep their order.
 *  Invariant: a reader that went away (EPIPE) is no error; `broken` says so and further text is dropped. */
import { fstatSync, statSync, writeSync } from 'node:fs';

/** A text stream. */
export interface Sink {
  write(text: string): void;
  /** The reader is gone. */
  readonly broken: boolean;
  readonly isTerminal: boolean;
  /** Width of the terminal in columns; 80 where it is not known. */
  readonly columns: number;
}

const ENCODER = new TextEncoder();
const PAUSE_MS = 2;
const DEFAULT_COLUMNS = 80;

/** A sink over a file descriptor. */
export class DescriptorSink implements Sink {
  readonly #fd: number;
  #broken = false;

  constructor(fd: number) {
    this.#fd = fd;
  }

  get broken(): boolean {
    return this.#broken;
  }

  get isTerminal(): boolean {
    return isTerminal(this.#fd);
  }

  get columns(): number {
    const columns = this.#fd === 2 && this.isTerminal ? process.stderr.columns : 0;
    return columns > 0 ? columns : DEFAULT_COLUMNS;
  }

  write(text: string): void {
    if (this.#broken) return;
    let bytes = ENCODER.encode(text);
    while (bytes.length > 0) {
      try {
        bytes = bytes.subarray(writeSync(this.#fd, bytes));
      } catch (error) {
        const code = (error as { code?: unknown }).code;
        if (code === 'EAGAIN') pause();
        else if (code === 'EPIPE' || code === 'EBADF') {
          this.#broken = true;
          return;
        } else throw error;
      }
    }
  }
}

/** Whether a user sits at this file descriptor. */
export function isTerminal(fd: number): boolean {
  return mayBeTerminal(fd) && process.getBuiltinModule('node:tty').isatty(fd);
}

/** Whether it is worth asking: the module that knows loads all of networking, milliseconds of every start. Files, pipes and the null device
 *  are no terminals. */
function mayBeTerminal(fd: number): boolean {
  if (process.platform === 'win32') return true;
  try {
    const status = fstatSync(fd);
    return status.isCharacterDevice() && status.rdev !== statSync('/dev/null').rdev;
  } catch {
    // Closed, or nothing that can be looked at: then nobody sits before it.
    return false;
  }
}

/** A pipe in non-blocking mode is full: its reader needs a moment. */
function pause(): void {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, PAUSE_MS);
}

/** Which program we are. `qemu`: called by QEMU's name, so that texts are QEMU's own. */
export interface Personality {
  readonly program: 'cowdisk' | 'qemu-img' | 'qemu-io' | 'qemu-nbd';
  readonly qemu: boolean;
}

/** What every verb gets. */
export interface Cli {
  readonly personality: Personality;
  /** The verb, as given. */
  readonly verb: string;
  readonly out: Sink;
  readonly err: Sink;
  readonly env: Readonly<Record<string, string | undefined>>;
  /** Fires on Ctrl-C and on termination; its reason is a {@link Interruption}. */
  readonly signal: AbortSignal;
  /** Stands for standard input, where it is given. */
  readonly input?: AsyncIterable<Uint8Array> | undefined;
  /** One message on standard error, the program's name in front. */
  error(message: string): void;
  warn(message: string): void;
}

/** Why {@link Cli.signal} fired. */
export class Interruption extends Error {
  readonly signalName: 'SIGINT' | 'SIGTERM' | 'SIGHUP';
  /** 128 plus the number of the signal. */
  readonly status: number;

  constructor(signalName: 'SIGINT' | 'SIGTERM' | 'SIGHUP') {
    super(`interrupted by ${signalName}`);
    this.signalName = signalName;
    this.status = 128 + { SIGHUP: 1, SIGINT: 2, SIGTERM: 15 }[signalName];
  }
}

/** @param signal fires when the user interrupts. */
export function makeCli(
  personality: Personality,
  verb: string,
  streams: { readonly out: Sink; readonly err: Sink },
  env: Readonly<Record<string, string | undefined>>,
  signal: AbortSignal,
  input?: AsyncIterable<Uint8Array>,
): Cli {
  const { out, err } = streams;
  return {
    personality,
    verb,
    out,
    err,
    env,
    signal,
    input,
    error(message) {
      err.write(`${personality.program}: ${message}\n`);
    },
    warn(message) {
      err.write(`${personality.program}: warning: ${message}\n`);
    },
  };
}

/** A sink into memory, for tests and for rendering to a string. */
export class MemorySink implements Sink {
  text = '';
  readonly broken = false;
  readonly isTerminal: boolean;
  readonly columns = DEFAULT_COLUMNS;

  constructor(isTerminal = false) {
    this.isTerminal = isTerminal;
  }

  write(text: string): void {
    this.text += text;
  }
}
