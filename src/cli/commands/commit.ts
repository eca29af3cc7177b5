/** `commit`: what an overlay holds goes into its backing file. */
import { type CommitResult, commitImage } from '../../tools/commit.ts';
import { loadDrivers } from '../drivers.ts';
import { safeSizeArgument } from '../numbers.ts';
import { openOptionsOf, warnProbed } from '../open.ts';
import { ProgressDisplay, progressForm } from '../progress.ts';
import type { Command } from '../verbs/index.ts';
import { oneImage, openChoices, scan, sourceOf } from './common.ts';
import { progressAsked } from './compare.ts';
import { jobFailure, targetCache } from './jobs.ts';

/** Percent between two prints of `-p`. */
const STEP = 1;

export const runCommit: Command = async (cli, args, spec) => {
  let rateLimit = 0;
  const given = await scan(cli, spec, args, {
    onOption: ({ spec: { key }, value }) => {
      if (key === 'rate-limit') rateLimit = safeSizeArgument('rate limit', value as string, cli);
    },
  });
  const operand = oneImage(given);
  const quiet = given.has('quiet');
  const form = progressForm(cli, progressAsked(given), quiet);
  const cache = targetCache(given);
  const source = sourceOf(given, operand);
  const choices = { ...openChoices(given), readOnly: false };
  const drivers = await loadDrivers(cli.personality, true, given.objects);
  const { readOnly: _, ...options } = openOptionsOf(cli, drivers, source, choices);
  // qemu-img shows no progress before the image is open.
  let display: ProgressDisplay | undefined;
  let outcome: 'done' | 'failed' = 'failed';
  let result: CommitResult;
  try {
    result = await commitImage(source.name, {
      ...options,
      base: given.value('base'),
      keep: given.has('drop'),
      rateLimit: rateLimit === 0 ? undefined : rateLimit,
      cache,
      onOpened: ({ format, probedRaw }) => {
        if (probedRaw) warnProbed(cli, source.name, format, choices);
        display = new ProgressDisplay(cli, form, STEP);
      },
      onProgress: (progress) => display?.update(progress),
    });
    display?.complete();
    outcome = 'done';
  } catch (error) {
    const left = `'${source.label}' reads as before; commit it again to bring it to its end`;
    throw jobFailure(cli, 'commit', source.label, left, error);
  } finally {
    display?.end(outcome);
    await drivers.codecs?.close();
  }
  const kept = given.has('drop') || given.has('base');
  if (!result.emptied && !kept && !cli.personality.qemu) {
    cli.warn(`'${source.label}' could not be emptied: its format cannot drop what it holds`);
  }
  if (!quiet) cli.out.write('Image committed.\n');
  return 0;
};
