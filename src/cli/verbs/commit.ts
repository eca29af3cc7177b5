/** `commit` as data. */
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

export const commit: VerbSpec = {
  name: 'commit',
  summary: 'write what an overlay holds into its backing file',
  operands: 'FILE',
  description: [
    'Copies what FILE holds into its backing file, which grows where it is smaller, and then empties FILE. The backing file is durable before ' +
      'FILE is touched: after an interruption FILE reads the same, and commit can be run again.',
    'With -b the layers between FILE and BASE are committed too. They show the new content of BASE then and are of no use any more; ' +
      'FILE is left as it is.',
  ],
  options: [
    HELP,
    QUIET,
    FORMAT,
    cacheOption('cache', 't', ['cache'], 'the files that are written; writeback when not given'),
    {
      key: 'base',
      short: 'b',
      moreLong: ['base'],
      value: 'BASE',
      names: 'file',
      help: 'commit into this layer of the chain; implies -d',
      support: 'acts',
    },
    { key: 'drop', short: 'd', moreLong: ['drop'], help: 'do not empty FILE afterwards', support: 'acts' },
    {
      key: 'rate-limit',
      short: 'r',
      moreLong: ['rate-limit'],
      value: 'RATE',
      help: 'bytes per second at most',
      support: 'acts',
    },
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
  withoutJson: 'prints that it is done, nothing with -q; `info --json` and `map --json` show the two images afterwards',
  examples: [
    ['cowdisk commit overlay.qcow2', 'into its backing file'],
    ['cowdisk commit -b base.qcow2 top.qcow2', 'all layers down to base.qcow2'],
  ],
  completes: 'file',
};
