/** `map` as data. */
import {
  FORCE_SHARE,
  FORMAT_OLD_LONG,
  HELP,
  IMAGE_OPTS,
  JSON_OUTPUT,
  OBJECT,
  OUTPUT,
  openingOptions,
  REFERENCES,
  type VerbSpec,
} from './common.ts';

export const map: VerbSpec = {
  name: 'map',
  summary: 'show where the data of an image lies, in which layer and file',
  operands: 'FILE',
  description: [
    'Lists the ranges of the disk. For people: those that hold data, with the file and the offset they are at. ' +
      'As JSON: every range, with its layer (depth) and whether it is present, zero or data.',
  ],
  options: [
    HELP,
    FORMAT_OLD_LONG,
    {
      key: 'start-offset',
      short: 's',
      long: 'start-offset',
      value: 'OFFSET',
      help: 'begin here',
      support: 'acts',
    },
    { key: 'max-length', short: 'l', long: 'max-length', value: 'LENGTH', help: 'bytes at most', support: 'acts' },
    OUTPUT,
    JSON_OUTPUT,
    {
      key: 'compressed',
      moreLong: ['compressed'],
      help: "add 'compressed' to each JSON entry, as QEMU 8.2 and later do; 7.2 has no such member",
      support: 'acts',
      only: 'cowdisk',
    },
    {
      key: 'refcounts',
      moreLong: ['refcounts'],
      help:
        'instead: how often each part of FILE is referred to, as runs of equal counts; 0 is free, more than 1 is shared with snapshots ' +
        'or by compressed clusters',
      support: 'acts',
      only: 'cowdisk',
    },
    FORCE_SHARE,
    OBJECT,
    IMAGE_OPTS,
    REFERENCES,
    ...openingOptions(),
  ],
  exitStatus: [],
  examples: [
    ['cowdisk map disk.qcow2', 'what is where'],
    ['cowdisk map --refcounts disk.qcow2', 'what of the file is used, and by how many'],
    ['cowdisk map --json -s 1G -l 64M disk.qcow2', 'a part of it, for programs'],
  ],
  completes: 'file',
};
