/** What blkdebug's rules are made of: options and the rules file. Owns the option schemas of one rule and the reading of the file.
 *  The file is QEMU's: sections `[inject-error]` and `[set-state]`, lines `name = "value"`, `#` comments.
 *  Invariant: a rule that is not understood in full is refused; none is half used. */
import { BlockError } from '../base/errors.ts';
import { bool, defineOptions, int, type OptionsOf, parseOptions, resolveOptions, text } from '../base/options.ts';
import { BLOCK_EVENTS, DEFAULT_IO_TYPES, ERRNO_NAMES, IO_TYPES, type IoType } from './blkdebug-events.ts';

const SECTOR = 512;
const EIO = 5;

export const injectErrorOptions = defineOptions({
  event: text({ help: 'The event that arms the rule' }),
  state: int({ help: 'Only in this state; 0: in any', default: 0 }),
  iotype: text({ help: 'Only requests of this kind: read, write, write-zeroes, discard, flush, block-status' }),
  errno: int({ help: 'Error number; 0: no error', default: EIO }),
  sector: int({ help: 'Only requests that touch this sector of 512 bytes' }),
  once: bool({ help: 'One request only', default: false }),
  immediately: bool({ help: 'Fail before the event loop has its turn', default: false }),
});

export const setStateOptions = defineOptions({
  event: text({ help: 'The event that changes the state' }),
  state: int({ help: 'Only in this state; 0: in any', default: 0 }),
  newState: int({ help: 'The state from then on', default: 0, cli: 'new_state' }),
});

export type InjectErrorOptions = OptionsOf<typeof injectErrorOptions>;
export type SetStateOptions = OptionsOf<typeof setStateOptions>;

export interface InjectError {
  readonly action: 'inject-error';
  readonly event: string;
  /** 0: any. */
  readonly state: number;
  /** Name of the error; `undefined`: requests succeed, whatever other rules say. */
  readonly errno: string | undefined;
  readonly ioTypes: ReadonlySet<IoType>;
  /** The byte that a request must touch; -1: any request. */
  readonly offset: number;
  readonly once: boolean;
  readonly immediately: boolean;
}

export interface SetState {
  readonly action: 'set-state';
  readonly event: string;
  /** 0: any. */
  readonly state: number;
  readonly newState: number;
}

export type Rule = InjectError | SetState;

const EVENTS: ReadonlySet<string> = new Set(BLOCK_EVENTS);
const KINDS: ReadonlySet<string> = new Set(IO_TYPES);

/** @throws {@link BlockError} OPTION. */
export function injectErrorRule(options: InjectErrorOptions): InjectError {
  const { iotype, errno, sector } = options;
  if (iotype !== undefined && !KINDS.has(iotype)) throw badValue('iotype', iotype, IO_TYPES);
  const name = ERRNO_NAMES.get(errno);
  if (errno !== 0 && name === undefined) {
    throw new BlockError('OPTION', `blkdebug: errno ${errno} is no error number of Linux`, {
      reason: 'blkdebug.errno',
      details: { errno },
    });
  }
  const offset = sector === undefined ? -1 : sector * SECTOR;
  if (!Number.isSafeInteger(offset)) {
    throw new BlockError('OPTION', `blkdebug: sector ${sector} is past everything that can be addressed`, {
      reason: 'blkdebug.sector',
      details: { sector },
    });
  }
  return {
    action: 'inject-error',
    event: eventOf(options.event),
    state: options.state,
    errno: name,
    ioTypes: new Set(iotype === undefined ? DEFAULT_IO_TYPES : [iotype as IoType]),
    offset,
    once: options.once,
    immediately: options.immediately,
  };
}

/** @throws {@link BlockError} OPTION. */
export function setStateRule(options: SetStateOptions): SetState {
  return {
    action: 'set-state',
    event: eventOf(options.event),
    state: options.state,
    newState: options.newState,
  };
}

function eventOf(name: string | undefined): string {
  if (name === undefined) {
    throw new BlockError('OPTION', 'blkdebug: a rule names no event', { reason: 'blkdebug.event-missing' });
  }
  if (!EVENTS.has(name)) throw badValue('event', name, BLOCK_EVENTS);
  return name;
}

function badValue(what: string, value: string, known: readonly string[]): BlockError {
  return new BlockError('OPTION', `blkdebug: '${value}' is no ${what}; there are ${known.join(', ')}`, {
    reason: 'blkdebug.value',
    details: { name: what, value },
  });
}

// ── the rules file ─────────────────────────────────────────────────────────────────────────────

interface Section {
  readonly name: string;
  readonly pairs: [name: string, value: string][];
}

/** QEMU reads lines in pieces of this many bytes; longer ones would fall apart. */
const LONGEST_LINE = 1022;

/** The rules of a file, first those that inject errors, in the order of the file each.
 *  @param file what messages call it
 *  @throws {@link BlockError} OPTION, reasons `blkdebug.rules-…`. */
export function parseRulesFile(content: string, file: string): Rule[] {
  const errors: Rule[] = [];
  const states: Rule[] = [];
  for (const section of sectionsOf(content, file)) {
    if (section.name === 'inject-error') {
      const given = parseOptions(injectErrorOptions, checked(section, injectErrorOptions, file));
      errors.push(injectErrorRule(resolveOptions(injectErrorOptions, given)));
    } else {
      const given = parseOptions(setStateOptions, checked(section, setStateOptions, file));
      states.push(setStateRule(resolveOptions(setStateOptions, given)));
    }
  }
  return [...errors, ...states];
}

function sectionsOf(content: string, file: string): Section[] {
  const sections: Section[] = [];
  const ids = new Set<string>();
  for (const [index, line] of content.split('\n').entries()) {
    if (line === '' || line.startsWith('#')) continue;
    const where = { file, line: index + 1 };
    if (line.length > LONGEST_LINE) throw malformed('blkdebug.rules-line', 'is longer than 1022 characters', where);
    if (line.startsWith('[')) {
      sections.push(sectionOf(line, ids, where));
      continue;
    }
    const [, name, value] = /^\s*(\S{1,63})(?:\s*=\s*"([^"]*)"?)?/.exec(line) ?? [];
    const section = sections.at(-1);
    if (name === undefined) throw malformed('blkdebug.rules-syntax', 'is no line of a rule', where);
    if (section === undefined) throw malformed('blkdebug.rules-no-section', `has '${name}' before any section`, where);
    // As QEMU has it: what is not quoted is no value.
    section.pairs.push([name, value ?? '']);
  }
  return sections;
}

interface Where {
  readonly file: string;
  readonly line: number;
}

function sectionOf(line: string, ids: Set<string>, where: Where): Section {
  const withId = /^\[(\S{1,63})\s*"([^"]{1,63})"\]/.exec(line);
  // Without its bracket a name goes on to the end of the line, which is part of it.
  const name = withId?.[1] ?? /^\[([^\]]{1,63})(?=\])/.exec(line)?.[1] ?? /^\[([^\]]+)$/.exec(`${line}\n`)?.[1];
  if (name === undefined) throw malformed('blkdebug.rules-no-section', 'begins a section without a name', where);
  if (name !== 'inject-error' && name !== 'set-state') {
    throw malformed(
      'blkdebug.rules-section',
      `begins a section '${name.trim()}'; there are inject-error and set-state`,
      where,
      {
        section: name,
      },
    );
  }
  const id = withId?.[2];
  if (id !== undefined) {
    if (!/^[A-Za-z][A-Za-z0-9._-]*$/.test(id))
      throw malformed('blkdebug.rules-id', `has the malformed id '${id}'`, where);
    if (ids.has(`${name} ${id}`)) {
      throw malformed('blkdebug.rules-id-twice', `has the id '${id}' of another ${name}`, where, { id, section: name });
    }
    ids.add(`${name} ${id}`);
  }
  return { name, pairs: [] };
}

/** QEMU's numbers may be octal. */
function checked(
  section: Section,
  schema: typeof injectErrorOptions | typeof setStateOptions,
  file: string,
): [name: string, value: string][] {
  const kinds = new Map<string, string>(
    Object.entries(schema).map(([key, { kind }]) => [key === 'newState' ? 'new_state' : key, kind]),
  );
  return section.pairs.map(([name, value]) => {
    const kind = kinds.get(name);
    const details = { file, name, value };
    if (kind === undefined) {
      throw new BlockError('OPTION', `blkdebug: "${file}": ${section.name} has no '${name}'`, {
        reason: 'blkdebug.rules-name',
        details,
      });
    }
    if (kind === 'int') {
      const octal = /^0[0-7]+$/.test(value);
      if (!octal && !/^(0[xX][0-9a-fA-F]+|0|[1-9]\d*)$/.test(value)) {
        throw new BlockError('OPTION', `blkdebug: "${file}": ${name} is '${value}', which is no number`, {
          reason: 'blkdebug.rules-number',
          details,
        });
      }
      const number = octal ? Number.parseInt(value, 8) : Number(value);
      if (!Number.isSafeInteger(number)) {
        throw new BlockError('OPTION', `blkdebug: "${file}": ${name} ${value} is too large`, {
          reason: 'blkdebug.rules-large',
          details,
        });
      }
      return [name, String(number)];
    }
    if (kind === 'bool' && value !== 'on' && value !== 'off') {
      throw new BlockError('OPTION', `blkdebug: "${file}": ${name} is '${value}'; it can be on or off`, {
        reason: 'blkdebug.rules-bool',
        details,
      });
    }
    return [name, value];
  });
}

function malformed(reason: string, what: string, where: Where, details: Record<string, unknown> = {}): BlockError {
  return new BlockError('OPTION', `blkdebug: "${where.file}": line ${where.line} ${what}`, {
    reason,
    details: { ...where, ...details },
  });
}
