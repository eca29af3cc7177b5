/** `snapshot` as data. */
import {
  FORCE_SHARE,
  FORMAT,
  HELP,
  IMAGE_OPTS,
  JSON_OUTPUT,
  OBJECT,
  openingOptions,
  QUIET,
  REFERENCES,
  type VerbSpec,
} from './common.ts';

export const snapshot: VerbSpec = {
  name: 'snapshot',
  summary: 'list, make, apply and delete snapshots inside an image',
  operands: 'FILE',
  description: [
    'A snapshot keeps the content that FILE has now, inside FILE; it costs no space until FILE is written to. Without -a, -c and -d the ' +
      'snapshots are listed.',
    'Every change is made at once or not at all: after a crash the image and all its snapshots are as before or as after. Making and ' +
      "deleting need room for new tables, about 1/6000 of the disk's data with clusters of 64 KiB.",
  ],
  options: [
    HELP,
    { key: 'list', short: 'l', moreLong: ['list'], help: 'list the snapshots', support: 'acts' },
    {
      key: 'apply',
      short: 'a',
      moreLong: ['apply'],
      value: 'SNAPSHOT',
      help: 'make the disk what it was, its size included; SNAPSHOT is an id or else a name. What the disk holds now is lost',
      support: 'acts',
    },
    { key: 'create', short: 'c', moreLong: ['create'], value: 'NAME', help: 'make a snapshot', support: 'acts' },
    {
      key: 'delete',
      short: 'd',
      moreLong: ['delete'],
      value: 'SNAPSHOT',
      help: 'delete a snapshot; SNAPSHOT is a name (the first of that name) or, as cowdisk only, else an id',
      support: 'acts',
    },
    QUIET,
    JSON_OUTPUT,
    FORMAT,
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
    ['cowdisk snapshot -c before-upgrade disk.qcow2', 'keep the present content'],
    ['cowdisk snapshot -l disk.qcow2', 'what there is'],
    ['cowdisk snapshot -a before-upgrade disk.qcow2', 'back to it'],
    ['cowdisk snapshot -d before-upgrade disk.qcow2', 'drop it'],
  ],
  completes: 'file',
};
