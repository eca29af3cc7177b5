/** The argument grammar: GNU getopt_long as qemu-img uses it (clusters, attached and separate values, permutation,
 *  `--name=value`, unambiguous prefixes, `--`), over tables of options that also yield help, completion and the reference.
 *  Invariants: options are delivered one by one, so that a verb acts on them in the order given, as qemu-img does;
 *  a message names the argument that qemu-img would name, which in a cluster is the one before. No I/O. */
import { Failure } from './failure.ts';

/** What becomes of an option here. */
export type Support =
  | 'acts'
  /** Accepted without effect, and why that is no loss. */
  | { readonly inert: string }
  /** Not accepted, and why. */
  | { readonly refused: string };

export interface OptionSpec {
  /** What the verb calls it. */
  readonly key: string;
  readonly short?: string;
  /** Letters that newer QEMU, or this program, accepts beside `short`. */
  readonly moreShort?: readonly string[];
  /** The long name of QEMU 7.2. */
  readonly long?: string;
  /** Long names of newer QEMU, and ours. */
  readonly moreLong?: readonly string[];
  /** Placeholder of the value; without it the option takes none. */
  readonly value?: string;
  /** The value may be left out, and is attached (`--name=value`) where it is given. */
  readonly optionalValue?: boolean;
  /** Values there are, for completion. */
  readonly choices?: readonly string[];
  /** What the value names, for completion. */
  readonly names?: 'file' | 'format' | 'cache';
  readonly help: string;
  readonly support: Support;
  /** Known to one of the programs only. */
  readonly only?: 'cowdisk' | 'qemu';
}

export interface Given {
  readonly spec: OptionSpec;
  /** `undefined` for options without a value. */
  readonly value: string | undefined;
}

/** What is wrong with a command line, for programs that say it in other words than qemu-img. Names are without dashes. */
export interface Mistake {
  /** An unknown option, one whose value is missing, or one with a value that it does not take. */
  readonly kind: 'short' | 'long' | 'ambiguous' | 'short-value' | 'long-value' | 'surplus';
  readonly name: string;
  /** Long names that it could be. */
  readonly among?: readonly string[];
}

interface LongName {
  readonly name: string;
  readonly spec: OptionSpec;
  /** QEMU 7.2 knows it: prefixes are tried on these names first, so that no newer name makes an old prefix ambiguous. */
  readonly old: boolean;
}

/** Walks over `argv`; after the last option `operands` holds the rest. */
export class Arguments {
  readonly #argv: string[];
  readonly #longs: readonly LongName[];
  readonly #shorts: ReadonlyMap<string, OptionSpec>;
  readonly #permute: boolean;
  #index = 0;
  /** What is left of a cluster of short options. */
  #cluster = '';
  /** The skipped operands lie at [first, last) of `argv`. */
  #firstOperand = 0;
  #lastOperand = 0;
  readonly #self: string;
  readonly #mistake: ((mistake: Mistake) => Failure) | undefined;

  /** @param self what stands before the first argument: the verb or the program.
   *  @param permute operands may stand before options; otherwise the first operand ends the options.
   *  @param mistake words for mistakes; qemu-img's when not given. */
  constructor(
    specs: readonly OptionSpec[],
    argv: readonly string[],
    self: string,
    permute = true,
    mistake?: (mistake: Mistake) => Failure,
  ) {
    this.#mistake = mistake;
    this.#argv = [...argv];
    this.#self = self;
    this.#permute = permute;
    this.#longs = specs.flatMap((spec) => [
      ...(spec.long === undefined ? [] : [{ name: spec.long, spec, old: true }]),
      ...(spec.moreLong ?? []).map((name) => ({ name, spec, old: false })),
    ]);
    this.#shorts = new Map(
      specs.flatMap((spec) =>
        [...(spec.short === undefined ? [] : [spec.short]), ...(spec.moreShort ?? [])].map(
          (letter) => [letter, spec] as const,
        ),
      ),
    );
  }

  /** The arguments that are no options; complete when the walk has ended. */
  get operands(): readonly string[] {
    return this.#argv.slice(this.#index);
  }

  *[Symbol.iterator](): Iterator<Given> {
    for (let given = this.#next(); given !== undefined; given = this.#next()) yield given;
  }

  #next(): Given | undefined {
    if (this.#cluster === '') {
      if (!this.#findOption()) return undefined;
      const word = this.#argv[this.#index] as string;
      if (word.startsWith('--')) {
        this.#index++;
        return this.#long(word);
      }
      this.#cluster = word.slice(1);
    }
    return this.#short();
  }

  /** Moves the operands met on the way behind the options; false when there is no further option. */
  #findOption(): boolean {
    const argv = this.#argv;
    if (this.#lastOperand > this.#index) this.#lastOperand = this.#index;
    if (this.#firstOperand > this.#index) this.#firstOperand = this.#index;
    if (this.#permute) {
      if (this.#firstOperand !== this.#lastOperand && this.#lastOperand !== this.#index) this.#exchange();
      else if (this.#lastOperand !== this.#index) this.#firstOperand = this.#index;
      while (this.#index < argv.length && isOperand(argv[this.#index] as string)) this.#index++;
      this.#lastOperand = this.#index;
    }
    if (argv[this.#index] === '--') {
      this.#index++;
      if (this.#firstOperand !== this.#lastOperand && this.#lastOperand !== this.#index) this.#exchange();
      else if (this.#firstOperand === this.#lastOperand) this.#firstOperand = this.#index;
      this.#lastOperand = argv.length;
      this.#index = argv.length;
    }
    if (this.#index >= argv.length) {
      if (this.#firstOperand !== this.#lastOperand) this.#index = this.#firstOperand;
      return false;
    }
    return !isOperand(argv[this.#index] as string);
  }

  #exchange(): void {
    const operands = this.#argv.splice(this.#firstOperand, this.#lastOperand - this.#firstOperand);
    const moved = this.#index - this.#lastOperand;
    this.#argv.splice(this.#firstOperand + moved, 0, ...operands);
    this.#firstOperand += moved;
    this.#lastOperand = this.#index;
  }

  #short(): Given {
    const letter = this.#cluster[0] as string;
    this.#cluster = this.#cluster.slice(1);
    if (this.#cluster === '') this.#index++;
    const spec = this.#shorts.get(letter);
    if (spec === undefined) throw this.#unrecognized({ kind: 'short', name: letter });
    if (spec.value === undefined || spec.optionalValue === true) return { spec, value: undefined };
    if (this.#cluster !== '') {
      const value = this.#cluster;
      this.#cluster = '';
      this.#index++;
      return { spec, value };
    }
    return { spec, value: this.#following({ kind: 'short-value', name: letter }) };
  }

  #long(word: string): Given {
    const equals = word.indexOf('=');
    const name = word.slice(2, equals < 0 ? undefined : equals);
    const spec = this.#find(name);
    if (spec === undefined) throw this.#unrecognized(this.#unknown(name));
    if (equals >= 0) {
      if (spec.value === undefined) throw this.#unrecognized({ kind: 'surplus', name: spec.long ?? name });
      return { spec, value: word.slice(equals + 1) };
    }
    if (spec.value === undefined || spec.optionalValue === true) return { spec, value: undefined };
    return { spec, value: this.#following({ kind: 'long-value', name: spec.long ?? name }) };
  }

  #unknown(name: string): Mistake {
    const among = this.#longs.filter((long) => long.name.startsWith(name)).map((long) => long.name);
    return among.length > 1 ? { kind: 'ambiguous', name, among } : { kind: 'long', name };
  }

  #find(name: string): OptionSpec | undefined {
    const exact = this.#longs.find((long) => long.name === name);
    if (exact !== undefined) return exact.spec;
    for (const names of [this.#longs.filter((long) => long.old), this.#longs]) {
      const specs = new Set(names.filter((long) => long.name.startsWith(name)).map((long) => long.spec));
      if (specs.size === 1) return [...specs][0];
      if (specs.size > 1) return undefined;
    }
    return undefined;
  }

  /** The next argument as a value, whatever it looks like. */
  #following(mistake: Mistake): string {
    const value = this.#argv[this.#index];
    if (value === undefined) throw this.#mistake?.(mistake) ?? usage(`missing argument for option '${this.#before()}'`);
    this.#index++;
    return value;
  }

  #unrecognized(mistake: Mistake): Failure {
    return this.#mistake?.(mistake) ?? usage(`unrecognized option '${this.#before()}'`);
  }

  #before(): string {
    return this.#index === 0 ? this.#self : (this.#argv[this.#index - 1] as string);
  }
}

function isOperand(word: string): boolean {
  return !word.startsWith('-') || word === '-';
}

/** A mistake in the command line: the message is followed by the hint where help is to be had. */
export function usage(message: string): Failure {
  return new Failure(message, { hint: 'help' });
}
