/** How a shell command says no: texts for the two streams, each complete with its line end. The shell goes on with the next command. */

export class Refusal extends Error {
  /** For standard output. */
  readonly out: string;
  /** For standard error. */
  readonly err: string;

  constructor(texts: { readonly out?: string; readonly err?: string }, cause?: unknown) {
    super(texts.out ?? texts.err ?? '', cause === undefined ? undefined : { cause });
    this.out = texts.out ?? '';
    this.err = texts.err ?? '';
  }
}

/** @param line for standard output. */
export function refuse(line: string, cause?: unknown): Refusal {
  return new Refusal({ out: `${line}\n` }, cause);
}
