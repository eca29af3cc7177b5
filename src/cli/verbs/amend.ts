/** `amend` as data. */
import {
  cacheOption,
  FORMAT,
  HELP,
  IMAGE_OPTS,
  OBJECT,
  OWN_PROGRESS,
  openingOptions,
  PROGRESS,
  QUIET,
  REFERENCES,
  type VerbSpec,
} from './common.ts';

export const amend: VerbSpec = {
  name: 'amend',
  summary: 'change what an image was created with',
  operands: 'FILE',
  description: [
    'Changes what -o names and leaves everything else: `-o help` lists what can be changed. What the disk holds stays the same, and so it ' +
      'does when amending is interrupted.',
  ],
  options: [
    HELP,
    {
      key: 'options',
      short: 'o',
      moreLong: ['options'],
      value: 'OPTIONS',
      help: 'what to change, NAME=VALUE,…; `help` lists what there is; may be given several times',
      support: 'acts',
    },
    {
      key: 'force',
      long: 'force',
      help: 'change even what cannot be undone: erase the last key of an encrypted image',
      support: 'acts',
    },
    QUIET,
    FORMAT,
    cacheOption('cache', 't', ['cache'], 'the image; writeback when not given'),
    PROGRESS,
    OWN_PROGRESS,
    OBJECT,
    IMAGE_OPTS,
    REFERENCES,
    ...openingOptions(),
  ],
  exitStatus: [
    [130, 'interrupted by Ctrl-C'],
    [143, 'terminated'],
  ],
  withoutJson: 'prints nothing; `info --json` shows what the image is afterwards',
  examples: [
    ['cowdisk amend -f qcow2 -o help', 'what can be changed'],
    ['cowdisk amend -o compat=1.1,lazy_refcounts=on disk.qcow2', 'a newer version of the format'],
  ],
  completes: 'file',
};
