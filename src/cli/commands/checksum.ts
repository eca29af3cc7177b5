/** `checksum`: hashes of disks, one line or one JSON member for each image. */
import type { SnapshotSelector } from '../../core/format.ts';
import { type Checksum, checksumImage } from '../../tools/checksum.ts';
import { usage } from '../args.ts';
import { loadDrivers } from '../drivers.ts';
import { openSource, using } from '../open.ts';
import { ProgressDisplay, progressForm } from '../progress.ts';
import { parseSnapshotParam, throwSnapshotFailure } from '../snapshot-param.ts';
import type { Command } from '../verbs/index.ts';
import { openChoices, outputForm, scan, sourceOf } from './common.ts';
import { progressAsked } from './compare.ts';

/** Percent between two prints. */
const STEP = 1;

export const runChecksum: Command = async (cli, args, spec) => {
  let snapshot: SnapshotSelector | undefined;
  const given = await scan(cli, spec, args, {
    onOption: ({ spec: { key }, value }) => {
      if (key === 'snapshot') snapshot = parseSnapshotParam(value as string);
    },
  });
  if (given.operands.length === 0) throw usage('Expecting one or more image file names');
  const form = outputForm(given);
  const progress = progressForm(cli, progressAsked(given), given.has('quiet'));
  const drivers = await loadDrivers(cli.personality, true, given.objects);
  const found: { readonly filename: string; readonly checksum: Checksum }[] = [];
  try {
    for (const operand of given.operands) {
      const choices = { ...openChoices(given), snapshot };
      const opening = openSource(cli, drivers, sourceOf(given, operand), choices);
      const image = await opening.catch((error) => throwSnapshotFailure(error, cli.personality));
      const display = new ProgressDisplay(cli, progress, STEP);
      let outcome: 'done' | 'failed' = 'failed';
      try {
        const checksum = await using(image, () =>
          checksumImage(image, { codecs: drivers.codecs, signal: cli.signal, onProgress: display.update }),
        );
        display.complete();
        outcome = 'done';
        found.push({ filename: operand, checksum });
      } finally {
        display.end(outcome);
      }
      if (form === 'human') cli.out.write(`${found.at(-1)?.checksum.hash}  ${operand}\n`);
    }
  } finally {
    await drivers.codecs?.close();
  }
  if (form === 'json') cli.out.write(`${JSON.stringify(found.map(described), undefined, 2)}\n`);
  return 0;
};

function described({ filename, checksum }: { readonly filename: string; readonly checksum: Checksum }) {
  const { algorithm, hash, virtualSize, read } = checksum;
  return { filename, algorithm, checksum: hash, 'virtual-size': virtualSize, 'bytes-read': read };
}
