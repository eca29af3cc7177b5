/** What the tables of verbs share: the shape of a verb, and options that many verbs have. Data only. */
import type { OptionSpec } from '../args.ts';

/** A verb as data: parsing, help, completion and the reference are made from it. */
export interface VerbSpec {
  readonly name: string;
  /** One line. */
  readonly summary: string;
  /** Not there when called qemu-img. */
  readonly only?: 'cowdisk';
  /** The operands, as the synopsis shows them. */
  readonly operands: string;
  /** Paragraphs of the manual page. */
  readonly description: readonly string[];
  readonly options: readonly OptionSpec[];
  /** Status and what it means, besides 0 and 1. */
  readonly exitStatus: readonly (readonly [status: number, meaning: string])[];
  /** Why there is no JSON, where there is none: what the verb says instead, and where its result can be had. */
  readonly withoutJson?: string;
  readonly examples: readonly (readonly [command: string, does: string])[];
  /** What operands are, for completion. */
  readonly completes: 'file' | 'none';
}

export const CACHE_MODES = ['none', 'writeback', 'writethrough', 'directsync', 'unsafe'] as const;
export type CacheModeName = (typeof CACHE_MODES)[number];

/** The formats of this release, in probe order. */
export const FORMAT_NAMES = ['qcow2', 'luks', 'add-cow', 'cow', 'raw'] as const;

export const HELP: OptionSpec = {
  key: 'help',
  short: 'h',
  long: 'help',
  help: 'print help and exit',
  support: 'acts',
};

export const OBJECT: OptionSpec = {
  key: 'object',
  long: 'object',
  value: 'OBJDEF',
  help: "define an object that options refer to: 'secret,id=ID,data=TEXT' or 'secret,id=ID,file=NAME', with format=base64, and keyid=ID and iv=BASE64 where it is encrypted itself",
  support: 'acts',
};

export const IMAGE_OPTS: OptionSpec = {
  key: 'image-opts',
  long: 'image-opts',
  help: "take the image as options, 'driver=qcow2,file.filename=NAME', instead of a file name",
  support: 'acts',
};

export const FORMAT: OptionSpec = {
  key: 'format',
  short: 'f',
  moreLong: ['format'],
  value: 'FMT',
  names: 'format',
  help: 'format of the image; found out by its first bytes when not given',
  support: 'acts',
};

/** {@link FORMAT} where QEMU 7.2 has the long name. */
export const FORMAT_OLD_LONG: OptionSpec = {
  key: 'format',
  short: 'f',
  long: 'format',
  value: 'FMT',
  names: 'format',
  help: FORMAT.help,
  support: 'acts',
};

export const FORCE_SHARE: OptionSpec = {
  key: 'force-share',
  short: 'U',
  long: 'force-share',
  help: 'read the image although another process may be writing to it; what is read may then be old, new, or half of each',
  support: 'acts',
};

export const QUIET: OptionSpec = {
  key: 'quiet',
  short: 'q',
  moreLong: ['quiet'],
  help: 'print errors only',
  support: 'acts',
};

export const OUTPUT: OptionSpec = {
  key: 'output',
  long: 'output',
  value: 'human|json',
  choices: ['human', 'json'],
  help: 'form of the output; human is the default',
  support: 'acts',
};

export const JSON_OUTPUT: OptionSpec = {
  key: 'json',
  moreLong: ['json'],
  help: 'the same as --output=json',
  support: 'acts',
  only: 'cowdisk',
};

/** `-p` as QEMU has it; newer QEMU calls it `--progress`. */
export const PROGRESS: OptionSpec = {
  key: 'progress',
  short: 'p',
  moreLong: ['progress'],
  help: 'show how far the work is, on standard output',
  support: 'acts',
  only: 'qemu',
};

/** The `cowdisk` program's own spelling, with a form. */
export const OWN_PROGRESS: OptionSpec = {
  key: 'progress-form',
  short: 'p',
  moreLong: ['progress'],
  value: 'auto|bar|json|qemu|none',
  optionalValue: true,
  choices: ['auto', 'bar', 'json', 'qemu', 'none'],
  help:
    'how to show progress: a bar on standard error (the default on a terminal), one JSON object per line on standard error, ' +
    "qemu-img's percentage on standard output, or nothing",
  support: 'acts',
  only: 'cowdisk',
};

export const REFERENCES: OptionSpec = {
  key: 'references',
  moreLong: ['references'],
  value: 'allow|same-directory|deny',
  choices: ['allow', 'same-directory', 'deny'],
  help: 'which files an image may name (backing files, data files); allow is the default, as in qemu-img',
  support: 'acts',
  only: 'cowdisk',
};

/** How one image is opened, beyond its format; `cowdisk` only.
 *  @param which the image they are about, where a verb has several. */
export function openingOptions(which = 'the image'): readonly OptionSpec[] {
  return [
    {
      key: 'with-backing',
      moreLong: ['with-backing'],
      value: 'FILE',
      names: 'file',
      help: `read ${which} over this backing file, whatever it records: the recorded name is often that of another machine`,
      support: 'acts',
      only: 'cowdisk',
    },
    {
      key: 'with-backing-format',
      moreLong: ['with-backing-format'],
      value: 'FMT',
      names: 'format',
      help: 'format of the file of --with-backing; raw when not given',
      support: 'acts',
      only: 'cowdisk',
    },
    {
      key: 'with-data-file',
      moreLong: ['with-data-file'],
      value: 'FILE',
      names: 'file',
      help: `the external data file of ${which}, whatever it records`,
      support: 'acts',
      only: 'cowdisk',
    },
    {
      key: 'open-option',
      moreLong: ['open-option'],
      value: 'NAME=VALUE',
      help: `an open option of the format of ${which}; may be given several times`,
      support: 'acts',
      only: 'cowdisk',
    },
    {
      key: 'cow-layout',
      moreLong: ['cow-layout'],
      value: 'ID',
      help: `layout of ${which}, for formats that have several; the same as --open-option layout=ID`,
      support: 'acts',
      only: 'cowdisk',
    },
  ];
}

/** @param key `source-cache` or `cache`. */
export function cacheOption(key: string, short: string, moreLong: readonly string[], what: string): OptionSpec {
  return {
    key,
    short,
    moreLong,
    value: 'CACHE',
    choices: CACHE_MODES,
    names: 'cache',
    help: `cache mode of ${what}: ${CACHE_MODES.join(', ')}`,
    support: 'acts',
  };
}

/** Why source cache modes change nothing. */
export const SOURCE_CACHE_REASON =
  'the name is checked; reading goes through the page cache of the system in every mode, so the modes do not differ here';
