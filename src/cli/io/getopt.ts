/** Words and options of a shell command: what C's getopt makes of them. Pure.
 *  Invariants: options come one by one, so that a command answers mistakes in the order they were made; operands may stand before options;
 *  a lone `-` is an operand and `--` ends the options. */
import { Refusal } from './refusal.ts';

/** One letter, and its value where the letter takes one. */
export interface Letter {
  readonly letter: string;
  readonly value: string;
}

/** The words of a line. Only blanks separate, and nothing quotes. */
export function wordsOf(line: string): string[] {
  return line.split(' ').filter((word) => word !== '');
}

/** Walks over the words of a command; after the last option `operands` holds the rest. */
export class Letters {
  readonly #words: readonly string[];
  readonly #accepted: string;
  readonly #usage: string;
  readonly operands: string[] = [];

  /** @param words the command's name first
   *  @param accepted letters; a colon follows those that take a value
   *  @param usage shown to those who give others. */
  constructor(words: readonly string[], accepted: string, usage: string) {
    this.#words = words;
    this.#accepted = accepted;
    this.#usage = usage;
  }

  /** @throws {@link Refusal} for letters that the command does not have, and for values that are missing. */
  *[Symbol.iterator](): Iterator<Letter> {
    for (let i = 1; i < this.#words.length; i++) {
      const word = this.#words[i] as string;
      if (word === '--') {
        this.operands.push(...this.#words.slice(i + 1));
        return;
      }
      if (!word.startsWith('-') || word === '-') {
        this.operands.push(word);
        continue;
      }
      for (let at = 1; at < word.length; at++) {
        const letter = word[at] as string;
        const known = letter === ':' ? -1 : this.#accepted.indexOf(letter);
        if (known < 0) throw this.#mistake(`invalid option -- '${letter}'`);
        if (this.#accepted[known + 1] !== ':') {
          yield { letter, value: '' };
          continue;
        }
        const value = at + 1 < word.length ? word.slice(at + 1) : this.#words[++i];
        if (value === undefined) throw this.#mistake(`option requires an argument -- '${letter}'`);
        yield { letter, value };
        break;
      }
    }
  }

  /** The command is not to be used like this. */
  misused(): Refusal {
    return new Refusal({ out: `${this.#usage}\n` });
  }

  #mistake(what: string): Refusal {
    return new Refusal({ out: `${this.#usage}\n`, err: `${this.#words[0]}: ${what}\n` });
  }
}
