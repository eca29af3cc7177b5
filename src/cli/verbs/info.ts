/** `info` as data. */
import {
  FORCE_SHARE,
  FORMAT_OLD_LONG,
  HELP,
  IMAGE_OPTS,
  JSON_OUTPUT,
  OBJECT,
  OUTPUT,
  openingOptions,
  REFERENCES,
  type VerbSpec,
} from './common.ts';

export const info: VerbSpec = {
  name: 'info',
  summary: 'show what an image is: format, sizes, backing file, snapshots',
  operands: 'FILE',
  description: [
    'Shows the facts of an image. Nothing that the image names is opened, so that information about a damaged chain can be had; ' +
      'with --backing-chain every layer is shown.',
  ],
  options: [
    HELP,
    FORMAT_OLD_LONG,
    OUTPUT,
    JSON_OUTPUT,
    {
      key: 'backing-chain',
      long: 'backing-chain',
      help: 'show the backing files too, top first',
      support: 'acts',
    },
    FORCE_SHARE,
    OBJECT,
    IMAGE_OPTS,
    REFERENCES,
    ...openingOptions(),
    {
      key: 'limits',
      moreLong: ['limits'],
      help: 'show the block limits of the image (QEMU 10.2)',
      support: { refused: 'the limits that QEMU detects (of its own I/O engine) do not exist here' },
    },
    {
      key: 'cache',
      short: 't',
      moreLong: ['cache'],
      value: 'CACHE',
      names: 'cache',
      help: 'cache mode the limits are shown for (QEMU 10.2)',
      support: { refused: 'it is of use with --limits only, which is not supported' },
    },
  ],
  exitStatus: [],
  examples: [
    ['cowdisk info disk.qcow2', 'format, virtual size, size on disk, backing file'],
    ['cowdisk info --backing-chain --json disk.qcow2', 'every layer, for programs'],
  ],
  completes: 'file',
};
