/** The commands that are run when none are given: what people do with images. Data only. */
import { type CommandTemplate, parseCommand, quoted } from './template.ts';

const OPENED = '--object $object --image-opts';

/** Of qemu-img, and of whoever stands for it. */
const COMMON = [
  'info -f $format --output json $image',
  'check -f $format $image',
  'check -r all -f $format $image',
  `map ${OPENED} --output json $open`,
  `convert ${OPENED} -O raw $open $output`,
  `convert ${OPENED} -c -O qcow2 $open $output`,
  `measure ${OPENED} -O qcow2 $open`,
  `snapshot ${OPENED} -c new $open`,
  `resize ${OPENED} $open +1M`,
  'bitmap -f $format --add $image new',
  'amend -f $format -o compat=v3 $image',
  'commit -f $format $image',
  "rebase -u -f $format -b '' $image",
  `bench ${OPENED} -w -c 20 -s 4096 -o $offset $open`,
];

/** `cowdisk` only. */
const OWN = [
  `io ${OPENED} -c 'read $offset $length' -c 'write -P 7 $offset $length' -c 'write -z $offset $length' -c 'discard $offset $length' -c flush $open`,
  `checksum ${OPENED} $open`,
  'audit -f $format $image',
  'recover -f $format $image $output',
];

/** @param program whose commands they are to be; this program when not given */
export function ownCommands(program: string | undefined): CommandTemplate[] {
  if (program === undefined) return [...COMMON, ...OWN].map((text) => parseCommand(`$cowdisk ${text}`));
  const escaped = program.replaceAll('$', '$$$$');
  return COMMON.map((text) => ({ text: `${quoted(program)} ${text}`, words: [escaped, ...parseCommand(text).words] }));
}
