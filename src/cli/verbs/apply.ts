/** `apply` as data. */
import {
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

export const apply: VerbSpec = {
  name: 'apply',
  summary: 'make an image what a delta file leads to',
  operands: 'IMAGE FILE',
  only: 'cowdisk',
  description: [
    'Changes the disk of IMAGE as FILE, written by `delta`, says. IMAGE may be of any format that can be written; an overlay takes the changes, and its ' +
      'backing file stays as it is. FILE may be `-`, standard input, or a pipe.',
    'First the whole FILE is checked (in a pipe, each part when it comes), then whether IMAGE holds the disk that the delta was made from, and in the end whether it holds the ' +
      'one that the delta leads to. Another disk is refused and stays as it is; one that is up to date already is left alone.',
    'When it is interrupted, IMAGE holds a part of the changes. With --resume the delta is applied again, whatever part that is.',
  ],
  options: [
    HELP,
    FORMAT,
    {
      key: 'resume',
      moreLong: ['resume'],
      help: 'an earlier run was interrupted: do not ask what IMAGE holds before, only afterwards',
      support: 'acts',
    },
    {
      key: 'no-verify',
      moreLong: ['no-verify'],
      help: 'compute no checksum of the disk, neither before nor afterwards; FILE is still checked',
      support: 'acts',
    },
    QUIET,
    OUTPUT,
    JSON_OUTPUT,
    OWN_PROGRESS,
    OBJECT,
    IMAGE_OPTS,
    REFERENCES,
    ...openingOptions('IMAGE'),
  ],
  exitStatus: [
    [0, 'IMAGE holds the new disk'],
    [1, 'it does not; the message says whether it was changed'],
    [130, 'interrupted by Ctrl-C'],
    [143, 'terminated'],
  ],
  examples: [
    ['cowdisk apply copy.qcow2 tuesday.delta', 'bring a copy up to date'],
    ['ssh host cowdisk delta old.raw new.raw - | cowdisk apply copy.qcow2 -', 'from elsewhere'],
    ['cowdisk apply --resume copy.qcow2 tuesday.delta', 'after an interruption'],
  ],
  completes: 'file',
};
