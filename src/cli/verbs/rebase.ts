/** `rebase` as data. */
import {
  cacheOption,
  FORCE_SHARE,
  FORMAT,
  HELP,
  IMAGE_OPTS,
  OBJECT,
  OWN_PROGRESS,
  openingOptions,
  PROGRESS,
  QUIET,
  REFERENCES,
  SOURCE_CACHE_REASON,
  type VerbSpec,
} from './common.ts';

export const rebase: VerbSpec = {
  name: 'rebase',
  summary: 'give an overlay another backing file, or none',
  operands: 'FILE',
  description: [
    'Makes BACKING the backing file of FILE. What FILE reads stays the same: where the old and the new backing file differ, the old content is ' +
      'copied into FILE first. An empty name (-b "") leaves FILE without a backing file.',
    'With -u only the record is changed, and neither backing file is opened: for a file that has been moved or renamed. If the content is not ' +
      'the same, what FILE reads is damaged.',
  ],
  options: [
    HELP,
    QUIET,
    FORMAT,
    cacheOption('cache', 't', ['cache'], 'FILE; writeback when not given'),
    {
      ...cacheOption('source-cache', 'T', ['backing-cache'], 'the backing files'),
      support: { inert: SOURCE_CACHE_REASON },
    },
    {
      key: 'backing',
      short: 'b',
      moreLong: ['backing'],
      value: 'BACKING',
      names: 'file',
      help: 'the new backing file, as FILE is to record it; relative names are seen from the directory of FILE',
      support: 'acts',
    },
    {
      key: 'backing-format',
      short: 'F',
      moreShort: ['B'],
      moreLong: ['backing-format'],
      value: 'FMT',
      names: 'format',
      help: 'its format; needed with -b, unless the format of FILE records none',
      support: 'acts',
    },
    {
      key: 'backing-unsafe',
      short: 'u',
      moreLong: ['backing-unsafe'],
      help: 'change the record only',
      support: 'acts',
    },
    {
      key: 'compress',
      short: 'c',
      moreLong: ['compress'],
      help: 'compress what is copied, as far as it fills whole clusters (QEMU 8.2)',
      support: 'acts',
    },
    FORCE_SHARE,
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
  withoutJson: 'prints nothing; `info --json` shows the image afterwards',
  examples: [
    ['cowdisk rebase -b newer.qcow2 -F qcow2 overlay.qcow2', 'over another base'],
    ['cowdisk rebase -b "" overlay.qcow2', 'a disk of its own'],
    ['cowdisk rebase -u -b moved/base.qcow2 -F qcow2 overlay.qcow2', 'the base has been moved'],
  ],
  completes: 'file',
};
