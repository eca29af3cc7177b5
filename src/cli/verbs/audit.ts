/** `audit` as data. */
import { AUDIT_SEVERITIES } from '../../core/audit.ts';
import { FORMAT, HELP, JSON_OUTPUT, OUTPUT, QUIET, type VerbSpec } from './common.ts';

export const audit: VerbSpec = {
  name: 'audit',
  summary: 'tell what an image could do to whoever opens it',
  operands: 'FILE...',
  only: 'cowdisk',
  description: [
    'For images from strangers. Tells which files and hosts an image names, which sizes and tables would hurt a reader, where structures overlap or refer to themselves, what is ' +
      'not known, and what the file holds that neither guests nor tools show. Each FILE is read, whether it could be opened as an image or not; nothing that it names is opened, resolved or looked at.',
    'Each finding has an id that does not change, a severity (info, low, medium, high) and a remedy. The guide lists them all.',
  ],
  options: [
    HELP,
    {
      ...FORMAT,
      help: 'audit FILE as an image of this format; found out by its first bytes when not given',
    },
    {
      key: 'fail-on',
      moreLong: ['fail-on'],
      value: `${AUDIT_SEVERITIES.join('|')}|none`,
      choices: [...AUDIT_SEVERITIES, 'none'],
      help: 'end with status 2 where there is a finding of this severity or a higher one; medium when not given',
      support: 'acts',
    },
    { ...QUIET, help: 'print no findings: the exit status is the answer' },
    OUTPUT,
    JSON_OUTPUT,
  ],
  exitStatus: [
    [0, 'nothing of the severity of --fail-on, or above it, was found'],
    [1, 'some FILE could not be read'],
    [2, 'something of that severity was found'],
    [130, 'interrupted by Ctrl-C'],
    [143, 'terminated'],
  ],
  examples: [
    ['cowdisk audit upload.qcow2', 'may it be opened?'],
    ['cowdisk audit --json --fail-on=high upload.qcow2', 'for a gate that lets images in'],
    ['cowdisk audit -f raw disk.img', 'does the guest want its disk to be taken for something else?'],
  ],
  completes: 'file',
};
