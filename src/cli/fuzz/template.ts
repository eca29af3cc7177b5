/** Commands that are run on images, as users write them: words with placeholders. Owns quoting and filling in; no shell is involved, so a name
 *  with a space or a star in it is one word.
 *  Invariant: a placeholder that nobody knows is told before anything is run. */
import { Failure } from '../failure.ts';

/** What can stand for something, and what it is. */
export const PLACEHOLDERS = {
  image: 'the damaged image',
  format: 'its format',
  open: 'options that open it, for --image-opts; for encrypted images with the key, whose object must be defined',
  object: 'the object with the key, for --object; harmless where nothing is encrypted',
  key: 'a file with the key',
  size: 'of the disk, bytes, before it was damaged',
  offset: 'of a range of the disk, bytes; another one for each seed',
  length: 'of that range, bytes',
  output: 'a file that is not there yet',
  cowdisk: 'this program itself',
} as const;

export type PlaceholderName = keyof typeof PLACEHOLDERS;

export interface CommandTemplate {
  /** As it was given. */
  readonly text: string;
  readonly words: readonly string[];
}

export type Filling = Readonly<Record<Exclude<PlaceholderName, 'cowdisk'>, string>> & {
  /** The words that start it. */
  readonly cowdisk: readonly string[];
};

const PLACEHOLDER = /\$(\$|\w+|\{\w+\})/g;
const ITSELF = /^\$(cowdisk|\{cowdisk\})$/;

/** @throws {@link Failure} for quotes that do not end, unknown placeholders, and commands without a word. */
export function parseCommand(text: string): CommandTemplate {
  return checked(text, splitWords(text));
}

/** A list of commands: each a text, or a list of words. @throws {@link Failure} */
export function parseCommandList(json: string, file: string): CommandTemplate[] {
  let list: unknown;
  try {
    list = JSON.parse(json);
  } catch (error) {
    throw new Failure(`${file}: ${(error as Error).message}`, { cause: error });
  }
  if (!Array.isArray(list) || list.length === 0) throw new Failure(`${file}: expected a list of commands`);
  return list.map((entry: unknown) => {
    if (typeof entry === 'string') return parseCommand(entry);
    if (Array.isArray(entry) && entry.every((word) => typeof word === 'string')) {
      return checked(entry.map(quoted).join(' '), entry);
    }
    throw new Failure(`${file}: a command is a text or a list of texts, not ${JSON.stringify(entry)}`);
  });
}

function checked(text: string, words: readonly string[]): CommandTemplate {
  if (words.length === 0) throw new Failure('a command has one word at least');
  for (const word of words) {
    for (const [all, name = ''] of word.matchAll(PLACEHOLDER)) {
      const bare = name.replaceAll(/[{}]/g, '');
      if (bare === '$' || Object.hasOwn(PLACEHOLDERS, bare)) continue;
      const known = Object.keys(PLACEHOLDERS).map((known) => `$${known}`);
      throw new Failure(`'${text}': there is no ${all}; there are ${known.join(', ')}, and $$ for a dollar sign`);
    }
  }
  return { text, words };
}

/** Words as a shell splits them: spaces, both kinds of quotes, a backslash before one character. */
function splitWords(text: string): string[] {
  const words: string[] = [];
  let word: string | undefined;
  let quote: string | undefined;
  for (let i = 0; i < text.length; i++) {
    const character = text[i] as string;
    if (quote !== undefined && character === quote) quote = undefined;
    else if (quote === undefined && (character === '"' || character === "'")) {
      quote = character;
      word ??= '';
    } else if (quote !== "'" && character === '\\' && i + 1 < text.length) word = (word ?? '') + text[++i];
    else if (quote === undefined && /\s/.test(character)) {
      if (word !== undefined) words.push(word);
      word = undefined;
    } else word = (word ?? '') + character;
  }
  if (quote !== undefined) throw new Failure(`'${text}': a ${quote} without its end`);
  return word === undefined ? words : [...words, word];
}

/** The words to run. A word that is nothing but `$cowdisk` becomes several. */
export function fill({ words }: CommandTemplate, filling: Filling): string[] {
  return words.flatMap((word) => {
    if (ITSELF.test(word)) return filling.cowdisk;
    return word.replaceAll(PLACEHOLDER, (_all, name: string) => {
      const bare = name.replaceAll(/[{}]/g, '');
      if (bare === '$') return '$';
      const value = filling[bare as PlaceholderName];
      return typeof value === 'string' ? value : value.join(' ');
    });
  });
}

/** A word as a shell would take it. */
export function quoted(word: string): string {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}

/** A value inside a list of options. */
export function optionValue(text: string): string {
  return text.replaceAll(',', ',,');
}
