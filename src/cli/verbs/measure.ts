/** `measure` as data. */
import { FORCE_SHARE, HELP, IMAGE_OPTS, JSON_OUTPUT, OBJECT, OUTPUT, REFERENCES, type VerbSpec } from './common.ts';

export const measure: VerbSpec = {
  name: 'measure',
  summary: 'tell how much space a new image would need',
  operands: '(--size SIZE | FILE)',
  description: [
    'Computes the size of the file that a new image would have: as it is converted from FILE (or empty, of SIZE bytes), ' +
      'and when every byte of the disk has been written.',
  ],
  options: [
    HELP,
    {
      key: 'target-format',
      short: 'O',
      moreLong: ['target-format'],
      value: 'FMT',
      names: 'format',
      help: 'format of the new image; raw when not given',
      support: 'acts',
    },
    {
      key: 'options',
      short: 'o',
      moreLong: ['target-format-options', 'options'],
      value: 'NAME=VALUE,...',
      help: 'options of its format',
      support: 'acts',
    },
    {
      key: 'size',
      long: 'size',
      moreShort: ['s'],
      value: 'SIZE',
      help: 'virtual size of the new image',
      support: 'acts',
    },
    {
      key: 'format',
      short: 'f',
      moreLong: ['source-format', 'format'],
      value: 'FMT',
      names: 'format',
      help: 'format of FILE',
      support: 'acts',
    },
    {
      key: 'snapshot',
      short: 'l',
      moreLong: ['snapshot'],
      value: 'SNAPSHOT',
      help: 'measure this internal snapshot',
      support: { refused: 'internal snapshots cannot be read yet' },
    },
    OUTPUT,
    JSON_OUTPUT,
    FORCE_SHARE,
    OBJECT,
    { ...IMAGE_OPTS, moreLong: ['source-image-opts'] },
    REFERENCES,
  ],
  exitStatus: [],
  examples: [['cowdisk measure -O qcow2 --size 20G', 'from empty to full']],
  completes: 'file',
};
