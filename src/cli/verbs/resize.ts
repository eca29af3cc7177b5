/** `resize` as data. */
import { FORMAT, HELP, IMAGE_OPTS, OBJECT, openingOptions, QUIET, REFERENCES, type VerbSpec } from './common.ts';

export const PREALLOCATION_MODES = ['off', 'metadata', 'falloc', 'full'] as const;

export const resize: VerbSpec = {
  name: 'resize',
  summary: 'make the disk of an image larger or smaller',
  operands: 'FILE [+|-]SIZE',
  description: [
    'Gives the disk another size; with + or - in front, SIZE is the difference. SIZE is the last argument, whatever it looks like. What is new ' +
      'reads as zeros. Partitions and file systems on the disk are not changed: make them smaller before the disk, and larger after it.',
  ],
  options: [
    HELP,
    {
      key: 'shrink',
      long: 'shrink',
      help: 'allow the disk to become smaller; what lies behind its new end is lost',
      support: 'acts',
    },
    {
      key: 'preallocation',
      long: 'preallocation',
      value: 'MODE',
      choices: PREALLOCATION_MODES,
      help: 'space for what is new: off, only the tables (metadata), reserved (falloc), or written (full)',
      support: 'acts',
    },
    QUIET,
    FORMAT,
    OBJECT,
    IMAGE_OPTS,
    REFERENCES,
    ...openingOptions(),
  ],
  exitStatus: [
    [130, 'interrupted by Ctrl-C'],
    [143, 'terminated'],
  ],
  withoutJson: 'prints that it is done, nothing with -q; `info --json` shows the size afterwards',
  examples: [
    ['cowdisk resize disk.qcow2 +10G', 'larger by 10 GiB'],
    ['cowdisk resize --shrink disk.qcow2 20G', 'smaller; what lies behind is lost'],
  ],
  completes: 'file',
};
