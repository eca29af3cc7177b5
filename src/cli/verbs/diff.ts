/** `diff` as data. */
import {
  FORCE_SHARE,
  HELP,
  IMAGE_OPTS,
  JSON_OUTPUT,
  OBJECT,
  OWN_PROGRESS,
  openingOptions,
  QUIET,
  REFERENCES,
  type VerbSpec,
} from './common.ts';
import { blockOption, pairOptions } from './pairs.ts';

export const diff: VerbSpec = {
  name: 'diff',
  summary: 'list the ranges in which two images differ',
  operands: 'FILE1 FILE2',
  only: 'cowdisk',
  description: [
    'Compares what the guest would read of both images, and prints where they differ: `changed` where both hold something, `filled` where only FILE2 does, ' +
      '`cleared` where only FILE1 does. Formats, compression and layers make no difference. A smaller disk is compared as if it went on with zeros; ' +
      'disks of different sizes are different in any case.',
    'What both know to be zero is not read, nor what both take from the same place of the same file: of an overlay and its backing file, only what the ' +
      'overlay holds.',
  ],
  options: [
    HELP,
    ...pairOptions('FILE1', 'FILE2'),
    blockOption('differences are told in blocks of this size'),
    {
      key: 'summary',
      short: 's',
      moreLong: ['summary'],
      help: 'print what the differences come to, not each of them',
      support: 'acts',
    },
    QUIET,
    {
      key: 'output',
      long: 'output',
      value: 'human|json|jsonl',
      choices: ['human', 'json', 'jsonl'],
      help: 'form of the output; human is the default; jsonl is one JSON object a line: each range, then the summary',
      support: 'acts',
    },
    JSON_OUTPUT,
    OWN_PROGRESS,
    FORCE_SHARE,
    OBJECT,
    IMAGE_OPTS,
    REFERENCES,
    ...openingOptions('FILE1'),
  ],
  exitStatus: [
    [0, 'the disks are the same'],
    [1, 'they differ'],
    [2, 'a mistake in the command line, or an image could not be opened or read'],
    [130, 'interrupted by Ctrl-C'],
    [143, 'terminated'],
  ],
  examples: [
    ['cowdisk diff overlay.qcow2 base.qcow2', 'what does the overlay change?'],
    ['cowdisk diff -l before-upgrade disk.qcow2 disk.qcow2', 'what was changed since the snapshot?'],
    ['cowdisk diff --output=jsonl --block 64k monday.raw tuesday.qcow2', 'for programs'],
  ],
  completes: 'file',
};
