/** `checksum` as data. */
import {
  FORCE_SHARE,
  FORMAT,
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

export const checksum: VerbSpec = {
  name: 'checksum',
  summary: 'hash what a guest would read, the same for every format',
  operands: 'FILE...',
  only: 'cowdisk',
  description: [
    'Prints a hash of the disk in each image: equal for equal disks, whatever their format, compression, allocation or backing files, and different for disks of different sizes. ' +
      'What is known to be zero is not read.',
    'The hash is no sha256sum of the raw disk: it is the root of a tree of SHA-256 hashes over blocks of 1 MiB, which all cores work on. The guide has its definition.',
  ],
  options: [
    HELP,
    FORMAT,
    {
      key: 'snapshot',
      short: 'l',
      moreLong: ['snapshot'],
      value: 'SNAPSHOT',
      help: 'hash what this snapshot holds instead of the disk: its name or id, or snapshot.id=ID,snapshot.name=NAME',
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
    ...openingOptions(),
  ],
  exitStatus: [
    [130, 'interrupted by Ctrl-C'],
    [143, 'terminated'],
  ],
  examples: [
    ['cowdisk checksum disk.qcow2 disk.raw', 'are they the same disk?'],
    ['cowdisk checksum --json -l before-upgrade disk.qcow2', 'of a snapshot, for programs'],
  ],
  completes: 'file',
};
