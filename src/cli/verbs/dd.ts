/** `dd` as data. */
import {
  FORCE_SHARE,
  FORMAT,
  HELP,
  IMAGE_OPTS,
  OBJECT,
  OWN_PROGRESS,
  openingOptions,
  REFERENCES,
  type VerbSpec,
} from './common.ts';

export const dd: VerbSpec = {
  name: 'dd',
  summary: 'copy a part of an image into a new one, counted in blocks',
  operands: '[bs=SIZE] [count=BLOCKS] [skip=BLOCKS] if=FILE of=FILE',
  description: [
    'Copies the disk of one image from block `skip` on into a new image, which replaces a file of that name when it is complete. Blocks have 512 bytes, or `bs`.',
    '`count` counts from the beginning of the disk, as in qemu-img: with skip=2 count=5 there are three blocks in the new image. ' +
      'A `skip` past the end makes an empty image, with a message. Zeros become holes.',
  ],
  options: [
    HELP,
    FORMAT,
    {
      key: 'target-format',
      short: 'O',
      moreLong: ['target-format', 'output-format'],
      value: 'FMT',
      names: 'format',
      help: 'format of the new image; raw when not given',
      support: 'acts',
    },
    FORCE_SHARE,
    OBJECT,
    IMAGE_OPTS,
    OWN_PROGRESS,
    REFERENCES,
    ...openingOptions(),
  ],
  exitStatus: [
    [130, 'interrupted by Ctrl-C'],
    [143, 'terminated'],
  ],
  withoutJson: 'prints nothing but progress, which `--progress=json` gives as JSON; `info --json` shows the target',
  examples: [
    ['cowdisk dd -f qcow2 -O raw bs=1M count=1 if=disk.qcow2 of=first-megabyte.raw', 'the first megabyte'],
    [
      'cowdisk dd -f raw -O qcow2 bs=512 skip=2048 if=disk.raw of=partition.qcow2',
      'what lies behind the first 2,048 sectors',
    ],
  ],
  completes: 'file',
};
