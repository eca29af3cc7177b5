/** `detach`: a data file becomes a disk of its own. */
import { isBlockError } from '../../base/errors.ts';
import { type DetachResult, detachImage } from '../../tools/detach.ts';
import type { Cli } from '../console.ts';
import { loadDrivers } from '../drivers.ts';
import { Failure } from '../failure.ts';
import { openOptionsOf, warnProbed } from '../open.ts';
import { ProgressDisplay, progressForm } from '../progress.ts';
import { humanSize } from '../render/human.ts';
import { prettyJson } from '../render/json.ts';
import type { Command } from '../verbs/index.ts';
import { oneImage, openChoices, outputForm, scan, sourceOf } from './common.ts';
import { progressAsked } from './compare.ts';
import { jobFailure, targetCache } from './jobs.ts';

/** Percent between two prints of the qemu form. */
const STEP = 1;

export const runDetach: Command = async (cli, args, spec) => {
  const given = await scan(cli, spec, args);
  const operand = oneImage(given);
  const form = outputForm(given);
  const cache = targetCache(given);
  const source = sourceOf(given, operand);
  const choices = { ...openChoices(given), readOnly: false };
  const drivers = await loadDrivers(cli.personality, true, given.objects);
  const { readOnly: _, ...options } = openOptionsOf(cli, drivers, source, choices);
  const display = new ProgressDisplay(cli, progressForm(cli, progressAsked(given), given.has('quiet')), STEP);
  let outcome: 'done' | 'failed' = 'failed';
  let result: DetachResult;
  try {
    result = await detachImage(source.name, {
      ...options,
      fill: given.has('fill'),
      remove: given.has('remove'),
      cache,
      onOpened: ({ format, probedRaw }) => {
        if (probedRaw) warnProbed(cli, source.name, format, choices);
      },
      onProgress: display.update,
    });
    display.complete();
    outcome = 'done';
  } catch (error) {
    throw failure(cli, source.label, error);
  } finally {
    display.end(outcome);
    await drivers.codecs?.close();
  }
  const { standalone, filled, removed } = result;
  if (form === 'json') {
    cli.out.write(prettyJson({ filename: standalone.name, format: standalone.format, filled, removed }));
  } else if (!given.has('quiet')) cli.out.write(human(source.label, result));
  return 0;
};

function human(label: string, { standalone, filled, removed }: DetachResult): string {
  return (
    `${standalone.name} stands alone now, as ${standalone.format}.\n` +
    (filled > 0 ? `${humanSize(filled)} were copied from the backing file.\n` : '') +
    (removed ? `${label} was removed.\n` : '')
  );
}

function failure(cli: Cli, label: string, error: unknown): unknown {
  if (isBlockError(error) && error.reason === 'detach.incomplete') {
    const missing = Number(error.details['missing']);
    const text = `'${label}' does not hold ${missing} bytes (${humanSize(missing)}) of its disk; --fill copies them from the backing file`;
    return new Failure(text, { cause: error });
  }
  return jobFailure(
    cli,
    'detach',
    label,
    `'${label}' is as useful as it was; detach it again to bring it to its end`,
    error,
  );
}
