/** blkdebug: errors on demand. Rules, armed by the events of the format above, fail requests to the file below; breakpoints hold them.
 *  Owns the driver: options, names, the limits it imposes. */
import { BlockError, isBlockError } from '../base/errors.ts';
import { defineOptions, size, text } from '../base/options.ts';
import { isPowerOfTwo } from '../bytes/align.ts';
import { defineFilter } from '../core/filter.ts';
import type { BlockNode } from '../core/node.ts';
import type { Requirements } from './aligned-node.ts';
import { RuleMachine } from './blkdebug-machine.ts';
import { BlkdebugNode } from './blkdebug-node.ts';
import {
  injectErrorOptions,
  injectErrorRule,
  parseRulesFile,
  setStateOptions,
  setStateRule,
} from './blkdebug-rules.ts';

const PERMISSIONS = 'refused by name: there are no permissions between nodes here';

const openOptions = defineOptions({
  config: text({ help: 'A file of rules, as the options inject-error and set-state have them' }),
  align: size({ help: 'Requests to the image are multiples of this', default: 0 }),
  maxTransfer: size({ help: 'Reads and writes of the image are no longer than this', default: 0, cli: 'max-transfer' }),
  optWriteZero: size({
    help: 'Zero requests to the image are multiples of this; less is written',
    default: 0,
    cli: 'opt-write-zero',
  }),
  maxWriteZero: size({
    help: 'Zero requests to the image are no longer than this',
    default: 0,
    cli: 'max-write-zero',
  }),
  optDiscard: size({ help: 'Discards are cut at multiples of this', default: 0, cli: 'opt-discard' }),
  maxDiscard: size({ help: 'Discards are no longer than this', default: 0, cli: 'max-discard' }),
  takeChildPerms: text({ help: PERMISSIONS, cli: 'take-child-perms' }),
  unshareChildPerms: text({ help: PERMISSIONS, cli: 'unshare-child-perms' }),
});

type Given = Readonly<Record<keyof typeof openOptions, unknown>>;

/** QEMU's INT_MAX: no limit reaches it. */
const TOO_LARGE = 2 ** 31 - 1;

/** The limits that options ask for.
 *  @throws {@link BlockError} OPTION, reason `blkdebug.limit`. */
export function requirementsOf(options: {
  readonly align: number;
  readonly maxTransfer: number;
  readonly optWriteZero: number;
  readonly maxWriteZero: number;
  readonly optDiscard: number;
  readonly maxDiscard: number;
}): Requirements {
  const { align, maxTransfer, optWriteZero, maxWriteZero, optDiscard, maxDiscard } = options;
  const unit = Math.max(align, 1);
  const limits: [name: string, value: number, of: number][] = [
    ['max-transfer', maxTransfer, unit],
    ['opt-write-zero', optWriteZero, unit],
    ['max-write-zero', maxWriteZero, Math.max(optWriteZero, unit)],
    ['opt-discard', optDiscard, unit],
    ['max-discard', maxDiscard, Math.max(optDiscard, unit)],
  ];
  if (align !== 0 && (align >= TOO_LARGE || !isPowerOfTwo(align))) throw badLimit('align', align, 'a power of two');
  for (const [name, value, of] of limits) {
    if (value >= TOO_LARGE || value % of !== 0) throw badLimit(name, value, `a multiple of ${of}`);
  }
  return {
    requestAlign: unit,
    maxTransfer,
    zeroAlign: optWriteZero,
    maxZero: maxWriteZero,
    discardAlign: optDiscard,
    maxDiscard,
  };
}

function badLimit(name: string, value: number, wanted: string): BlockError {
  return new BlockError('OPTION', `blkdebug: ${name} ${value} is not possible: it must be ${wanted} below 2 GiB`, {
    reason: 'blkdebug.limit',
    details: { name, value, limit: `${name} ${value}` },
  });
}

function refusePermissions(options: Given): void {
  for (const [key, name] of [
    ['takeChildPerms', 'take-child-perms'],
    ['unshareChildPerms', 'unshare-child-perms'],
  ] as const) {
    if (options[key] === undefined) continue;
    throw new BlockError(
      'UNSUPPORTED',
      `blkdebug: ${name} has no meaning here: nodes take no permissions of each other, only files are locked`,
      { reason: 'blkdebug.permissions', details: { name } },
    );
  }
}

export const blkdebug = defineFilter({
  name: 'blkdebug',
  summary: 'fails and holds requests where rules say so, for tests',
  children: [{ name: 'image', role: 'file', probed: 'as-filter' }],
  openOptions,
  listOptions: { 'inject-error': injectErrorOptions, 'set-state': setStateOptions },

  parseName(rest) {
    const colon = rest.indexOf(':');
    if (colon < 0) {
      throw new BlockError('INVALID_ARGUMENT', `"blkdebug:${rest}": write blkdebug:RULES:IMAGE, or blkdebug::IMAGE`, {
        reason: 'blkdebug.name',
        details: { name: rest },
      });
    }
    return {
      ...(colon === 0 ? {} : { config: rest.slice(0, colon) }),
      'image.filename': rest.slice(colon + 1),
    };
  },

  shortName(options, child) {
    const config = options.get('config') ?? '';
    const image = child('image');
    const others = [...options.keys()].some((name) => name !== 'config');
    return others || image === undefined || config.includes(':') ? undefined : `blkdebug:${config}:${image}`;
  },

  async open(context, options, groups) {
    refusePermissions(options);
    const rules = options.config === undefined ? [] : await rulesOf(options.config, context.readFile);
    rules.push(...groups['inject-error'].map(injectErrorRule), ...groups['set-state'].map(setStateRule));
    const machine = new RuleMachine(context.name, rules);
    const [image] = context.children('image') as [BlockNode];
    const node = new BlkdebugNode(context.name, image, requirementsOf(options), machine);
    await machine.announce('none');
    return node;
  },
});

async function rulesOf(name: string, readFile: (name: string) => Promise<Uint8Array>) {
  let content: Uint8Array;
  try {
    content = await readFile(name);
  } catch (error) {
    if (!isBlockError(error) || error.code === 'ABORTED' || error.code === 'INTERNAL') throw error;
    throw new BlockError(error.code, `blkdebug: could not read the rules file "${name}": ${error.message}`, {
      reason: 'blkdebug.config',
      details: { name },
      cause: error,
    });
  }
  return parseRulesFile(new TextDecoder().decode(content), name);
}
