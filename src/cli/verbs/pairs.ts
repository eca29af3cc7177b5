/** Options of verbs that take two images, beside those of every verb. Data only. */
import type { OptionSpec } from '../args.ts';

/** Formats and snapshots of both. @param first and @param second what messages and help call them. */
export function pairOptions(first: string, second: string): readonly OptionSpec[] {
  return [
    {
      key: 'format',
      short: 'f',
      moreLong: ['format'],
      value: 'FMT',
      names: 'format',
      help: `format of ${first}; found out by its first bytes when not given`,
      support: 'acts',
    },
    {
      key: 'format2',
      short: 'F',
      moreLong: ['format2'],
      value: 'FMT',
      names: 'format',
      help: `format of ${second}`,
      support: 'acts',
    },
    {
      key: 'snapshot',
      short: 'l',
      moreLong: ['snapshot'],
      value: 'SNAPSHOT',
      help: `of ${first}, take what this snapshot holds instead of the disk: its name or id, or snapshot.id=ID,snapshot.name=NAME`,
      support: 'acts',
    },
    {
      key: 'snapshot2',
      short: 'L',
      moreLong: ['snapshot2'],
      value: 'SNAPSHOT',
      help: `the same of ${second}`,
      support: 'acts',
    },
  ];
}

/** @param what is told in blocks. */
export function blockOption(what: string): OptionSpec {
  return {
    key: 'block',
    moreLong: ['block'],
    value: 'SIZE',
    help: `${what}: a power of two from 1, for exact bytes, to 1M; 4k when not given`,
    support: 'acts',
  };
}
