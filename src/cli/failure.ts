/** What a verb throws when it cannot go on: the lines to print and the exit status. Text is ready for people here; nothing below changes it. */

export interface FailureOptions {
  /** Exit status; 1 where it is not given. */
  readonly status?: number;
  /** Text after the message, printed as it is: no program name before it, no line end after it. */
  readonly trailer?: string;
  /** `help`: point at the help text. */
  readonly hint?: 'help';
  readonly cause?: unknown;
}

/** Each line of `lines` gets the program's name in front. */
export class Failure extends Error {
  readonly lines: readonly string[];
  readonly status: number;
  readonly trailer: string | undefined;
  readonly hint: 'help' | undefined;

  constructor(lines: string | readonly string[], options: FailureOptions = {}) {
    const all = typeof lines === 'string' ? [lines] : lines;
    super(all.join('\n'), options.cause === undefined ? undefined : { cause: options.cause });
    this.lines = all;
    this.status = options.status ?? 1;
    this.trailer = options.trailer;
    this.hint = options.hint;
  }
}
