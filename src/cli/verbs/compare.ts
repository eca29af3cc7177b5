/** `compare` as data. */
import {
  cacheOption,
  FORCE_SHARE,
  HELP,
  IMAGE_OPTS,
  OBJECT,
  OWN_PROGRESS,
  PROGRESS,
  QUIET,
  REFERENCES,
  SOURCE_CACHE_REASON,
  type VerbSpec,
} from './common.ts';

export const compare: VerbSpec = {
  name: 'compare',
  summary: 'tell whether two images have the same content',
  operands: 'FILE1 FILE2',
  description: [
    'Compares what the guest would read. Images of different size are the same when the rest of the larger one is zero; ' +
      'with -s sizes and allocation must be the same too.',
  ],
  options: [
    HELP,
    {
      key: 'format',
      short: 'f',
      moreLong: ['a-format'],
      value: 'FMT',
      names: 'format',
      help: 'format of the first image',
      support: 'acts',
    },
    {
      key: 'format2',
      short: 'F',
      moreLong: ['b-format'],
      value: 'FMT',
      names: 'format',
      help: 'format of the second image',
      support: 'acts',
    },
    { key: 'strict', short: 's', moreLong: ['strict'], help: 'sizes and allocation must agree too', support: 'acts' },
    { ...cacheOption('source-cache', 'T', ['cache'], 'both images'), support: { inert: SOURCE_CACHE_REASON } },
    FORCE_SHARE,
    PROGRESS,
    OWN_PROGRESS,
    QUIET,
    OBJECT,
    IMAGE_OPTS,
    REFERENCES,
  ],
  exitStatus: [
    [0, 'the images are the same'],
    [1, 'they differ; also after a mistake in the command line'],
    [2, 'an image could not be opened'],
    [3, 'the allocation of an image could not be found out'],
    [4, 'an image could not be read'],
  ],
  examples: [['cowdisk compare disk.qcow2 disk.raw', 'the same content?']],
  completes: 'file',
};
