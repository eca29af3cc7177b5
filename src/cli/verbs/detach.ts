/** `detach` as data. */
import {
  cacheOption,
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

export const detach: VerbSpec = {
  name: 'detach',
  summary: 'make the data file of an image a disk of its own',
  operands: 'FILE',
  only: 'cowdisk',
  description: [
    'For formats that keep the data in a file of its own (add-cow): when FILE holds everything, its data file needs neither FILE nor a backing ' +
      'file any more. Says which file stands alone then, or how much is missing.',
  ],
  options: [
    HELP,
    QUIET,
    FORMAT,
    { key: 'fill', moreLong: ['fill'], help: 'copy what is missing from the backing file first', support: 'acts' },
    { key: 'remove', moreLong: ['remove'], help: 'remove FILE when it is needed no longer', support: 'acts' },
    cacheOption('cache', 't', ['cache'], 'the files that are written; writeback when not given'),
    OUTPUT,
    JSON_OUTPUT,
    OWN_PROGRESS,
    OBJECT,
    IMAGE_OPTS,
    REFERENCES,
    ...openingOptions(),
  ],
  exitStatus: [
    [0, 'the data file stands alone'],
    [1, 'it does not: FILE does not hold everything, or something failed'],
    [130, 'interrupted by Ctrl-C'],
    [143, 'terminated'],
  ],
  examples: [
    ['cowdisk detach disk.add-cow', 'if everything is there'],
    ['cowdisk detach --fill --remove disk.add-cow', 'copy the rest, and be rid of the metadata'],
  ],
  completes: 'file',
};
