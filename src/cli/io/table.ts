/** The commands of the shell as data: parsing, `help`, completion and the reference are made from it.
 *  Names, aliases, letters and the first line of each are QEMU's, which programs read; the longer texts are ours. */

/** What a word of a command names, for completion. */
export type Names = 'file' | 'cache' | 'command' | 'discard' | 'preallocation' | 'event';

export interface CommandSpec {
  readonly name: string;
  readonly alias?: string;
  /** As `help` shows them after the name. */
  readonly args: string;
  /** One line. */
  readonly summary: string;
  /** Words after the name; without `most` any number. */
  readonly least: number;
  readonly most?: number;
  /** Letters for {@link Letters}. */
  readonly letters: string;
  /** Works without an open image. */
  readonly anytime?: boolean;
  /** Refused on an image that is open for reading only. */
  readonly writes?: boolean;
  /** Further paragraphs of `help NAME`, and of the reference. */
  readonly details: readonly string[];
  /** What letters do, and what an operand or a letter's value names. */
  readonly options: readonly (readonly [letter: string, does: string, names?: Names])[];
  readonly operand?: Names;
}

const BRIEF = ['C', 'report on one line, for programs'] as const;
const QUIET = ['q', 'no report'] as const;
const IGNORED = ['p', 'accepted and ignored, as scripts of old still give it'] as const;
const SHOW = ['v', 'print what was read, as numbers and as characters'] as const;
const COMPARE = ['P', 'compare what was read with this byte, 0 to 255'] as const;
const FILL = ['P', 'write this byte, 0 to 255, instead of 0xcd'] as const;
const DURABLE = ['f', 'durable before the command ends'] as const;
const ZEROES = ['z', 'write zeroes, without transferring them where the format can'] as const;
const UNMAP = ['u', 'with -z: space may be given back'] as const;
const INVALID = ['i', 'count it as an invalid request and do nothing'] as const;
const PARTS = 'Several lengths make one request out of several buffers that lie end to end.';
const LATER =
  'The command is over when the request has begun. Its report comes when it ends, and its failure changes no exit status; aio_flush waits for all.';

/** In the order of `help`. */
export const COMMANDS: readonly CommandSpec[] = [
  {
    name: 'abort',
    args: '',
    summary: 'simulate a program crash using abort(3)',
    least: 0,
    most: 0,
    letters: '',
    anytime: true,
    details: ['Ends the program on the spot by the signal ABRT; nothing is flushed and nothing closed.'],
    options: [],
  },
  {
    name: 'aio_flush',
    args: '',
    summary: 'completes all outstanding aio requests',
    least: 0,
    most: 0,
    letters: '',
    details: ['Waits until every request of aio_read and aio_write has ended and was reported.'],
    options: [],
  },
  {
    name: 'aio_read',
    args: '[-Ciqv] [-P pattern] off len [len..]',
    summary: 'asynchronously reads a number of bytes',
    least: 2,
    letters: 'CP:iqv',
    details: [PARTS, LATER],
    options: [BRIEF, INVALID, COMPARE, QUIET, SHOW],
  },
  {
    name: 'aio_write',
    args: '[-Cfiquz] [-P pattern] off len [len..]',
    summary: 'asynchronously writes a number of bytes',
    least: 2,
    letters: 'CfiP:quz',
    writes: true,
    details: [PARTS, LATER],
    options: [BRIEF, DURABLE, INVALID, FILL, QUIET, UNMAP, ZEROES],
  },
  {
    name: 'alloc',
    alias: 'a',
    args: 'offset [count]',
    summary: 'checks if offset is allocated in the file',
    least: 1,
    most: 2,
    letters: '',
    details: ['Counts the bytes of the range that this layer holds itself. Without a count: of 512 bytes.'],
    options: [],
  },
  {
    name: 'break',
    args: 'event tag',
    summary: 'sets a breakpoint on event and tags the stopped request as tag',
    least: 2,
    most: 2,
    letters: '',
    details: [
      'Needs a filter below the format that can hold requests. The tag is any word, for resume and wait_break.',
    ],
    options: [],
    operand: 'event',
  },
  {
    name: 'close',
    alias: 'c',
    args: '',
    summary: 'close the current open file',
    least: 0,
    most: 0,
    letters: '',
    details: ['Waits for outstanding requests, flushes and closes.'],
    options: [],
  },
  {
    name: 'discard',
    alias: 'd',
    args: '[-Cq] off len',
    summary: 'discards a number of bytes at a specified offset',
    least: 2,
    letters: 'Cq',
    writes: true,
    details: ['Gives back the space of whole clusters in the range; they read as zeroes afterwards.'],
    options: [BRIEF, QUIET],
  },
  {
    name: 'flush',
    alias: 'f',
    args: '',
    summary: 'flush all in-core file state to disk',
    least: 0,
    most: 0,
    letters: '',
    details: ['What was written before is durable afterwards.'],
    options: [],
  },
  {
    name: 'help',
    alias: '?',
    args: '[command]',
    summary: 'help for one or all commands',
    least: 0,
    most: 1,
    letters: '',
    anytime: true,
    details: [],
    options: [],
    operand: 'command',
  },
  {
    name: 'info',
    alias: 'i',
    args: '',
    summary: 'prints information about the current file',
    least: 0,
    most: 0,
    letters: '',
    details: ['Format, cluster size, where the state of a machine begins, and what the format knows besides.'],
    options: [],
  },
  {
    name: 'length',
    alias: 'l',
    args: '',
    summary: 'gets the length of the current file',
    least: 0,
    most: 0,
    letters: '',
    details: ['The size of the disk.'],
    options: [],
  },
  {
    name: 'map',
    args: '',
    summary: 'prints the allocated areas of a file',
    least: 0,
    most: 0,
    letters: '',
    details: ['Which ranges this layer holds itself, and which it leaves to its backing file or to zeroes.'],
    options: [],
  },
  {
    name: 'open',
    alias: 'o',
    args: '[-rsCnkU] [-t cache] [-d discard] [-o options] [path]',
    summary: 'open the file specified by path',
    least: 1,
    letters: 'snCro:ki:t:d:U',
    anytime: true,
    details: ['One image is open at a time.', 'Example: open -o driver=raw,offset=1M disk.raw'],
    options: [
      ['r', 'for reading only'],
      ['s', 'writes go to a temporary overlay, which is gone afterwards'],
      ['C', 'what is read from backing files is kept in the image'],
      ['n', 'the same as -t none'],
      ['k', 'the same as -i native'],
      ['i', 'how the system is asked: threads, native or io_uring; all are the same here'],
      ['t', 'cache mode; writethrough where it is not given', 'cache'],
      ['d', 'what discards do: unmap or ignore', 'discard'],
      ['o', 'options of the image, as for --image-opts; the path may be one of them'],
      ['U', 'although another process may be writing to it; with -r only'],
    ],
    operand: 'file',
  },
  {
    name: 'quit',
    alias: 'q',
    args: '',
    summary: 'exit the program',
    least: 0,
    letters: '',
    anytime: true,
    details: ['Outstanding requests are waited for, and the image is closed.'],
    options: [],
  },
  {
    name: 'read',
    alias: 'r',
    args: '[-abCqv] [-P pattern [-s off] [-l len]] off len',
    summary: 'reads a number of bytes at a specified offset',
    least: 2,
    letters: 'bCl:pP:qs:v',
    details: ['Example: read -v 512 1k'],
    options: [
      ['b', 'the state of a machine instead of the disk'],
      BRIEF,
      COMPARE,
      ['l', 'with -P: compare so many bytes only'],
      ['s', 'with -P: compare from so many bytes on'],
      IGNORED,
      QUIET,
      SHOW,
    ],
  },
  {
    name: 'readv',
    args: '[-Cqv] [-P pattern] off len [len..]',
    summary: 'reads a number of bytes at a specified offset',
    least: 2,
    letters: 'CP:qv',
    details: [PARTS, 'Example: readv -v 512 1k 1k'],
    options: [BRIEF, COMPARE, QUIET, SHOW],
  },
  {
    name: 'remove_break',
    args: 'tag',
    summary: 'remove a breakpoint by tag',
    least: 1,
    most: 1,
    letters: '',
    details: ['Requests that are held under the tag go on.'],
    options: [],
  },
  {
    name: 'reopen',
    args: '[(-r|-w)] [-c cache] [-o options]',
    summary: 'reopens an image with new options',
    least: 0,
    letters: 'c:o:rw',
    details: ['What is not named stays as it is.', 'Example: reopen -r -c none'],
    options: [
      ['r', 'for reading only'],
      ['w', 'for reading and writing'],
      ['c', 'cache mode', 'cache'],
      ['o', 'options of the image, as for open'],
    ],
  },
  {
    name: 'resume',
    args: 'tag',
    summary: 'resumes the request tagged as tag',
    least: 1,
    most: 1,
    letters: '',
    details: [],
    options: [],
  },
  {
    name: 'sigraise',
    args: 'signal',
    summary: 'raises a signal',
    least: 1,
    most: 1,
    letters: '',
    anytime: true,
    details: ['Sends the signal of this number to the program itself, which has no handler for it: 9 is a crash.'],
    options: [],
  },
  {
    name: 'sleep',
    args: '',
    summary: 'waits for the given value in milliseconds',
    least: 1,
    most: 1,
    letters: '',
    anytime: true,
    details: ['Outstanding requests go on meanwhile.'],
    options: [],
  },
  {
    name: 'truncate',
    alias: 't',
    args: '[-m prealloc_mode] off',
    summary: 'truncates the current file at the given offset',
    least: 1,
    most: 3,
    letters: 'm:',
    writes: true,
    details: ['Makes the disk smaller or larger.'],
    options: [['m', 'where the space of a larger disk comes from: off, metadata, falloc, full', 'preallocation']],
  },
  {
    name: 'wait_break',
    args: 'tag',
    summary: 'waits for the suspension of a request',
    least: 1,
    most: 1,
    letters: '',
    details: ['Waits until a request is held under the tag; fails when there is none that could be.'],
    options: [],
  },
  {
    name: 'write',
    alias: 'w',
    args: '[-bcCfnquz] [-P pattern | -s source_file] off len',
    summary: 'writes a number of bytes at a specified offset',
    least: 2,
    letters: 'bcCfnpP:qs:uz',
    writes: true,
    details: ['Example: write -P 0x5a 512 1k'],
    options: [
      ['b', 'to the state of a machine instead of the disk; whole sectors'],
      ['c', 'compressed; whole clusters'],
      BRIEF,
      DURABLE,
      ['n', 'with -z: fail where the zeroes would have to be written one by one'],
      FILL,
      ['s', 'write what this file holds, again and again where it is shorter', 'file'],
      IGNORED,
      QUIET,
      UNMAP,
      ZEROES,
    ],
  },
  {
    name: 'writev',
    args: '[-Cfq] [-P pattern] off len [len..]',
    summary: 'writes a number of bytes at a specified offset',
    least: 2,
    letters: 'CfqP:',
    writes: true,
    details: [PARTS, 'Example: writev 512 1k 1k'],
    options: [BRIEF, DURABLE, FILL, QUIET],
  },
];

/** The command of that name or alias. */
export function findCommand(word: string): CommandSpec | undefined {
  return COMMANDS.find(({ name, alias }) => name === word || alias === word);
}

/** The first line of a command's help, which is also its usage. */
export function usageOf({ name, args, summary }: CommandSpec): string {
  // One of the commands of QEMU has an empty list of arguments and not none.
  return `${name}${args === '' && name !== 'map' ? '' : ` ${args}`} -- ${summary}`;
}

/** What `help` prints. */
export function helpOfAll(): string {
  return `${COMMANDS.map(usageOf).join('\n')}\n\nUse 'help commandname' for extended help.\n`;
}

/** What `help NAME` prints. */
export function helpOf(spec: CommandSpec): string {
  const lines = [usageOf(spec)];
  if (spec.alias !== undefined) lines.push('', ` ${spec.alias} is the same.`);
  if (spec.details.length > 0) lines.push('', ...spec.details.map((text) => ` ${text}`));
  if (spec.options.length > 0) lines.push('', ...spec.options.map(([letter, does]) => ` -${letter}  ${does}`));
  return `${lines.join('\n')}\n`;
}

/** Words after the name that this command cannot have: QEMU's sentence, or `undefined`. */
export function countProblem(spec: CommandSpec, words: readonly string[]): string | undefined {
  const count = words.length - 1;
  const { least, most } = spec;
  if (count >= least && (most === undefined || count <= most)) return undefined;
  const expected =
    most === undefined ? `at least ${least}` : most === least ? String(least) : `between ${least} and ${most}`;
  return `bad argument count ${count} to ${words[0]}, expected ${expected} arguments`;
}
