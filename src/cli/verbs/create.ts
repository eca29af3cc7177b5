/** `create` as data. */
import { HELP, OBJECT, QUIET, type VerbSpec } from './common.ts';

export const create: VerbSpec = {
  name: 'create',
  summary: 'create a new, empty image, or an overlay over another one',
  operands: 'FILE [SIZE]',
  description: [
    'Creates an image of SIZE bytes; k, M, G, T, P and E multiply by powers of 1024. With -b the new image shows the content of ' +
      'another one until it is written to; SIZE may then be left out.',
    "The options of a format are listed by '-o help'. A file that is already there is replaced when the new one is complete.",
  ],
  options: [
    HELP,
    QUIET,
    {
      key: 'format',
      short: 'f',
      moreLong: ['format'],
      value: 'FMT',
      names: 'format',
      help: 'format of the new image; raw when not given',
      support: 'acts',
    },
    {
      key: 'options',
      short: 'o',
      moreLong: ['options'],
      value: 'NAME=VALUE,...',
      help: "options of the format; 'help' lists them; may be given several times",
      support: 'acts',
    },
    {
      key: 'backing',
      short: 'b',
      moreLong: ['backing'],
      value: 'FILE',
      names: 'file',
      help: 'backing file of the new image; relative names are seen from its directory',
      support: 'acts',
    },
    {
      key: 'backing-format',
      short: 'F',
      moreShort: ['B'],
      moreLong: ['backing-format'],
      value: 'FMT',
      names: 'format',
      help: 'format of the backing file; needed with -b',
      support: 'acts',
    },
    {
      key: 'backing-unsafe',
      short: 'u',
      moreLong: ['backing-unsafe'],
      help: 'record the backing file without opening it; SIZE is needed then',
      support: 'acts',
    },
    OBJECT,
  ],
  exitStatus: [],
  withoutJson: 'prints what it makes in one line, nothing with -q; `info --json` shows the image',
  examples: [
    ['cowdisk create -f qcow2 disk.qcow2 20G', 'a disk of 20 GiB that grows as it is filled'],
    ['cowdisk create -f qcow2 -b base.qcow2 -F qcow2 overlay.qcow2', 'an overlay that leaves the base untouched'],
    ['cowdisk create -f qcow2 -o help', 'the options of qcow2'],
  ],
  completes: 'file',
};
