/** `delta` as data. */
import {
  FORCE_SHARE,
  HELP,
  IMAGE_OPTS,
  JSON_OUTPUT,
  OBJECT,
  OUTPUT,
  OWN_PROGRESS,
  openingOptions,
  QUIET,
  REFERENCES,
  type VerbSpec,
} from './common.ts';
import { blockOption, pairOptions } from './pairs.ts';

export const delta: VerbSpec = {
  name: 'delta',
  summary: 'write what makes one disk of another to a file',
  operands: 'OLD NEW FILE',
  only: 'cowdisk',
  description: [
    'Writes to FILE what `apply` needs to make the disk of NEW out of any image with the disk of OLD: the data that differs, compressed, and where there are ' +
      'zeros now. FILE may be `-`, standard output; it is written from front to back, so any pipe will do.',
    'FILE records the checksums of both disks, so that `apply` finds out whether it has the right disk, and whether it made the right one of it. For that all ' +
      'data of both disks is read; with --no-checksum only what `diff` reads.',
  ],
  options: [
    HELP,
    ...pairOptions('OLD', 'NEW'),
    blockOption('data is taken in blocks of this size'),
    {
      key: 'compression',
      short: 'c',
      moreLong: ['compression'],
      value: 'zstd|deflate|none',
      choices: ['zstd', 'deflate', 'none'],
      help: 'how data is compressed; zstd when not given',
      support: 'acts',
    },
    {
      key: 'no-checksum',
      moreLong: ['no-checksum'],
      help: 'record no checksums of the disks: nothing can be verified when the delta is applied, but the delta itself',
      support: 'acts',
    },
    QUIET,
    OUTPUT,
    JSON_OUTPUT,
    OWN_PROGRESS,
    FORCE_SHARE,
    OBJECT,
    IMAGE_OPTS,
    REFERENCES,
    ...openingOptions('OLD'),
  ],
  exitStatus: [
    [130, 'interrupted by Ctrl-C'],
    [143, 'terminated'],
  ],
  examples: [
    ['cowdisk delta monday.qcow2 tuesday.qcow2 tuesday.delta', 'what tuesday has that monday has not'],
    ['cowdisk delta -l before-upgrade disk.qcow2 disk.qcow2 upgrade.delta', 'what was changed since the snapshot'],
    ['cowdisk delta old.raw new.raw - | ssh host cowdisk apply copy.qcow2 -', 'bring a copy elsewhere up to date'],
  ],
  completes: 'file',
};
