/** `rebase`: another backing file. Owns the order of the checks, which is qemu-img's. */
import { rebaseImage } from '../../tools/rebase.ts';
import { usage } from '../args.ts';
import { loadDrivers } from '../drivers.ts';
import { openOptionsOf, requireSourceCache, warnProbed } from '../open.ts';
import { ProgressDisplay, progressForm } from '../progress.ts';
import type { Command } from '../verbs/index.ts';
import { oneImage, openChoices, scan, sourceOf } from './common.ts';
import { progressAsked } from './compare.ts';
import { jobFailure, targetCache } from './jobs.ts';

/** Percent between two prints of `-p`. */
const STEP = 1;

export const runRebase: Command = async (cli, args, spec) => {
  const given = await scan(cli, spec, args);
  const operand = oneImage(given);
  const recordOnly = given.has('backing-unsafe');
  const name = given.value('backing');
  if (!recordOnly && name === undefined) throw usage('Must specify backing file (-b) or use unsafe mode (-u)');
  if (recordOnly && given.has('compress')) throw usage('--compress has no effect with -u: nothing is copied');
  const display = new ProgressDisplay(cli, progressForm(cli, progressAsked(given), given.has('quiet')), STEP);
  let outcome: 'done' | 'failed' = 'failed';
  try {
    const cache = targetCache(given);
    requireSourceCache(given.value('source-cache'));
    const source = sourceOf(given, operand);
    const choices = { ...openChoices(given), readOnly: false };
    const drivers = await loadDrivers(cli.personality, true, given.objects);
    const { readOnly: _, ...options } = openOptionsOf(cli, drivers, source, choices);
    const format = given.value('backing-format');
    try {
      await rebaseImage(source.name, {
        ...options,
        to: name === undefined || name === '' ? undefined : { name, format },
        recordOnly,
        compressed: given.has('compress'),
        cache,
        onOpened: (image) => {
          if (image.probedRaw) warnProbed(cli, source.name, image.format, choices);
        },
        onProgress: display.update,
      });
    } catch (error) {
      const left = `'${source.label}' reads as before, over its old backing file; rebase it again to bring it to its end`;
      throw jobFailure(cli, 'rebase', source.label, left, error);
    } finally {
      await drivers.codecs?.close();
    }
    display.complete();
    outcome = 'done';
    return 0;
  } finally {
    display.end(outcome);
  }
};
