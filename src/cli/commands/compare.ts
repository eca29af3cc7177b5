/** `compare`: do two images read the same? */
import { isBlockError } from '../../base/errors.ts';
import { type CompareResult, compareImages } from '../../tools/compare.ts';
import { usage } from '../args.ts';
import type { Cli } from '../console.ts';
import { loadDrivers } from '../drivers.ts';
import { Failure } from '../failure.ts';
import { openSource, requireSourceCache, using } from '../open.ts';
import { ProgressDisplay, progressForm } from '../progress.ts';
import { ioError } from '../render/qemu-text.ts';
import type { Command } from '../verbs/index.ts';
import { commonChoices, openChoices, outputForm, scan, sourceOf } from './common.ts';

const STATUS = { different: 1, open: 2, allocation: 3, read: 4 } as const;
/** Percent between two prints of `-p`. */
const STEP = 2;

export const runCompare: Command = async (cli, args, spec) => {
  const given = await scan(cli, spec, args);
  const [fileA, fileB] = given.operands;
  if (fileA === undefined || fileB === undefined || given.operands.length > 2)
    throw usage('Expecting two image file names');
  const quiet = given.has('quiet');
  const shape = outputForm(given);
  const form = progressForm(cli, progressAsked(given), quiet);
  requireSourceCache(given.value('source-cache'), STATUS.open);
  const first = { ...openChoices(given), status: STATUS.open };
  const second = { ...commonChoices(given), status: STATUS.open };
  const drivers = await loadDrivers(cli.personality, true, given.objects);
  const display = new ProgressDisplay(cli, form, STEP);
  let outcome: 'done' | 'failed' = 'failed';
  try {
    const a = await openSource(cli, drivers, sourceOf(given, fileA, 'format', STATUS.open), first);
    return await using(a, async () => {
      const b = await openSource(cli, drivers, sourceOf(given, fileB, 'format2', STATUS.open), second);
      return using(b, async () => {
        const options = { strict: given.has('strict'), signal: cli.signal, onProgress: display.update };
        const result = await compareImages(a, b, options);
        if (result.result === 'identical') display.complete();
        outcome = 'done';
        if (!quiet) cli.out.write(shape === 'json' ? asJson(result) : describe(result));
        return result.result === 'identical' ? 0 : STATUS.different;
      });
    });
  } catch (error) {
    throw failure(cli, error);
  } finally {
    display.end(outcome);
  }
};

/** The value of `-p` in either program's spelling. */
export function progressAsked(given: {
  has(key: string): boolean;
  value(key: string): string | undefined;
}): string | undefined {
  if (given.has('progress')) return '';
  return given.has('progress-form') ? (given.value('progress-form') ?? '') : undefined;
}

function describe(result: CompareResult): string {
  const warning = result.sizeMismatch ? 'Warning: Image size mismatch!\n' : '';
  if (result.result === 'identical') return `${warning}Images are identical.\n`;
  switch (result.kind) {
    case 'size':
      return 'Strict mode: Image size mismatch!\n';
    case 'status':
      return `Strict mode: Offset ${result.offset} block status mismatch!\n`;
    case 'content':
      return `${warning}Content mismatch at offset ${result.offset}!\n`;
  }
}

function asJson(result: CompareResult): string {
  const identical = result.result === 'identical';
  const where = identical
    ? {}
    : { kind: result.kind, ...(result.offset === undefined ? {} : { offset: result.offset }) };
  return `${JSON.stringify({ identical, 'size-mismatch': result.sizeMismatch, ...where }, undefined, 4)}\n`;
}

function failure(cli: Cli, error: unknown): unknown {
  if (!isBlockError(error) || error.code === 'ABORTED' || error.code === 'INTERNAL') return error;
  const { name, offset } = error.details;
  if (error.reason === 'compare.read') {
    const line = `Error while reading offset ${offset} of ${name}: ${ioError(error)}`;
    return new Failure(cli.personality.qemu ? line : error.message, { status: STATUS.read, cause: error });
  }
  if (error.reason === 'compare.extents') {
    const line = `Sector allocation test failed for ${name}`;
    return new Failure(cli.personality.qemu ? line : error.message, { status: STATUS.allocation, cause: error });
  }
  return error;
}
