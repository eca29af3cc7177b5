/** Commands by chance, through the real qemu-io and ours: the same said, and disks of the same content left behind. */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { below, seededRandom } from '../../src/testing/random.ts';
import { everySeed, SEED_TIMEOUT } from '../support/seeds.ts';
import { compareDirectories, hasQemuImg, Resident, requireBuild, started, Workshop } from './transcript-harness.ts';

const OFFSETS = [
  '0',
  '1',
  '100',
  '512',
  '4k',
  '10000',
  '64k',
  '65k',
  '127k',
  '300k',
  '900k',
  '1023k',
  '1M',
  '1.5k',
  '0x10000',
];
const LENGTHS = ['0', '1', '3', '511', '512', '513', '4k', '5000', '60k', '64k', '65537', '128k', '200k', '512k', '1M'];
const IMAGES = ['plain.qcow2', 'v2.qcow2', 'ext.qcow2', 'small.qcow2', 'over.qcow2', 'plain.raw'];
const COMMANDS = 12;

/** One command, with what it waits for. What qcow2 images allocate is not compared here: see the differences in the guide. */
function command(random: () => number): string[] {
  const one = (list: readonly string[]): string => list[below(random, list.length)] as string;
  const place = (): string => `${one(OFFSETS)} ${one(LENGTHS)}`;
  const pattern = (): string => one(['', `-P ${below(random, 4)} `]);
  switch (below(random, 9)) {
    case 0:
      return [`read ${pattern()}${place()}`];
    case 1:
    case 2:
      return [`write ${pattern()}${one(['', '-f ', '-q '])}${place()}`];
    case 3:
      return [`write -z ${one(['', '-u ', '-f '])}${place()}`];
    case 4:
      // Of clusters in part, ours drops the subclusters where there are some.
      return [`discard ${one(['0', '64k', '320k', '960k', '1M'])} ${one(['0', '64k', '128k', '1M'])}`];
    case 5:
      return [
        `${one(['read -b', 'write -b'])} ${pattern()}${one(['0', '512', '64k', '1M'])} ${one(['512', '4k', '100k'])}`,
      ];
    case 6:
      return [`${one(['readv', 'writev'])} ${pattern()}${place()} ${one(LENGTHS)}`];
    case 7:
      return [`${one(['aio_write ', 'aio_read ', 'aio_write -z '])}${place()}`, 'aio_flush'];
    default:
      return [one(['length', 'flush', 'reopen', 'reopen -c none', 'reopen -r', 'reopen -w', 'read -v 65500 50'])];
  }
}

describe.skipIf(!hasQemuImg() && process.env['CI'] === undefined)('called qemu-io, the program', () => {
  let workshop: Workshop;
  let resident: Resident;

  beforeAll(() => {
    if (process.env['COWDISK_PROGRAM'] === undefined) requireBuild();
    workshop = new Workshop();
    workshop.prepare([
      'qemu-img create -q -f qcow2 plain.qcow2 1M',
      'qemu-img create -q -f qcow2 -o compat=0.10 v2.qcow2 1M',
      'qemu-img create -q -f qcow2 -o extended_l2=on ext.qcow2 1M',
      'qemu-img create -q -f qcow2 -o cluster_size=4k small.qcow2 1M',
      'qemu-img create -q -f qcow2 base.qcow2 700k',
      "qemu-io -c 'write -P 2 0 300k' -c 'write -P 3 600k 100k' base.qcow2",
      'qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 over.qcow2 1M',
      'qemu-img create -q -f raw plain.raw 1M',
    ]);
    resident = new Resident(workshop.oursIo);
  });

  afterAll(() => {
    resident?.stop();
    workshop?.dispose();
  });

  it(
    'does with an image what qemu-io does',
    () =>
      everySeed(16, async (seed) => {
        const random = seededRandom(seed);
        const image = IMAGES[below(random, IMAGES.length)] as string;
        const lines = Array.from({ length: COMMANDS }, () => command(random)).flat();
        const args = [...(below(random, 3) === 0 ? ['-t', 'writeback'] : []), '-f', image.split('.')[1] as string];
        const line = [...args, ...lines.flatMap((text) => ['-c', text]), image];
        const fixtures = image === 'over.qcow2' ? ['base.qcow2', image] : [image];
        const [real, own] = [workshop.directory(fixtures), workshop.directory(fixtures)];
        const theirs = await started('qemu-io')(line, real);
        const ours = await resident.run(line, own);
        expect(withoutTimes(ours), line.join(' ')).toEqual(withoutTimes(theirs));
        expect(await compareDirectories(real, own), line.join(' ')).toEqual([]);
      }),
    SEED_TIMEOUT,
  );
});

function withoutTimes(said: { readonly stdout: string }): object {
  return { ...said, stdout: said.stdout.replaceAll(/^(\S+ \S+, 1 ops; ).*$/gm, '$1<time>') };
}
