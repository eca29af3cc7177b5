/** `bitmap` as data. */
import { FORMAT, HELP, IMAGE_OPTS, JSON_OUTPUT, OBJECT, openingOptions, REFERENCES, type VerbSpec } from './common.ts';

export const bitmap: VerbSpec = {
  name: 'bitmap',
  summary: 'make, change and show records of what was written',
  operands: 'FILE [BITMAP]',
  description: [
    'A dirty bitmap says which parts of a disk were written to, zeroed or discarded since it was made or cleared. It is kept inside FILE, and records ' +
      'whatever program writes to it, as long as that program knows bitmaps.',
    'Several actions on one BITMAP are done in the order given; the first that fails ends it. Without an action the bitmaps of FILE are listed. (cowdisk only, ' +
      'as --dirty.)',
    'A bitmap that is in-use was not stored when FILE was last written to, after a crash for example. It cannot be used, only removed.',
  ],
  options: [
    HELP,
    { key: 'add', long: 'add', help: 'make BITMAP; it records from now on', support: 'acts' },
    { key: 'remove', long: 'remove', help: 'remove BITMAP', support: 'acts' },
    { key: 'clear', long: 'clear', help: 'forget what BITMAP has recorded', support: 'acts' },
    { key: 'enable', long: 'enable', help: 'record from now on', support: 'acts' },
    { key: 'disable', long: 'disable', help: 'record no more', support: 'acts' },
    {
      key: 'merge',
      long: 'merge',
      value: 'SOURCE',
      help: 'add what the bitmap SOURCE has recorded, of FILE or of the image of -b',
      support: 'acts',
    },
    {
      key: 'dirty',
      moreLong: ['dirty'],
      help: 'show the parts of the disk that BITMAP has recorded',
      support: 'acts',
      only: 'cowdisk',
    },
    {
      key: 'source-file',
      short: 'b',
      long: 'source-file',
      value: 'FILE',
      names: 'file',
      help: 'image of the bitmap of --merge',
      support: 'acts',
    },
    {
      key: 'source-format',
      short: 'F',
      long: 'source-format',
      value: 'FMT',
      names: 'format',
      help: 'format of the image of -b',
      support: 'acts',
    },
    {
      key: 'granularity',
      short: 'g',
      long: 'granularity',
      value: 'SIZE',
      help: 'what one bit stands for, with --add: a power of two from 512 to 2G; without it a cluster, but 4k to 64k',
      support: 'acts',
    },
    FORMAT,
    JSON_OUTPUT,
    OBJECT,
    IMAGE_OPTS,
    REFERENCES,
    ...openingOptions(),
  ],
  exitStatus: [
    [130, 'interrupted by Ctrl-C'],
    [143, 'terminated'],
  ],
  examples: [
    ['cowdisk bitmap --add disk.qcow2 since-backup', 'begin to record'],
    ['cowdisk bitmap --dirty disk.qcow2 since-backup', 'what was written since'],
    ['cowdisk bitmap --clear disk.qcow2 since-backup', 'begin again, after the next backup'],
    ['cowdisk bitmap disk.qcow2', 'which bitmaps there are'],
  ],
  completes: 'file',
};
