/** `check` as data. */
import {
  cacheOption,
  FORCE_SHARE,
  FORMAT_OLD_LONG,
  HELP,
  IMAGE_OPTS,
  JSON_OUTPUT,
  OBJECT,
  OUTPUT,
  openingOptions,
  QUIET,
  REFERENCES,
  SOURCE_CACHE_REASON,
  type VerbSpec,
} from './common.ts';

export const check: VerbSpec = {
  name: 'check',
  summary: 'look for errors in an image, and repair them',
  operands: 'FILE',
  description: [
    'Checks the structure of an image. Each finding is printed on standard error as it is made, the sums on standard output. ' +
      'With -r the image is repaired, then checked again.',
  ],
  options: [
    HELP,
    FORMAT_OLD_LONG,
    {
      key: 'repair',
      short: 'r',
      long: 'repair',
      value: 'leaks|all',
      choices: ['leaks', 'all'],
      help: 'repair leaks only, or everything',
      support: 'acts',
    },
    OUTPUT,
    JSON_OUTPUT,
    QUIET,
    FORCE_SHARE,
    { ...cacheOption('source-cache', 'T', ['cache'], 'the image'), support: { inert: SOURCE_CACHE_REASON } },
    OBJECT,
    IMAGE_OPTS,
    REFERENCES,
    ...openingOptions(),
  ],
  exitStatus: [
    [0, 'no errors, or all of them repaired'],
    [1, 'the check itself failed'],
    [2, 'the image is corrupt'],
    [3, 'clusters have leaked: space is wasted, no harm is done'],
    [63, 'the format of the image has no checks'],
  ],
  examples: [
    ['cowdisk check disk.qcow2', 'look'],
    ['cowdisk check -r leaks disk.qcow2', 'give lost space back'],
  ],
  completes: 'file',
};
