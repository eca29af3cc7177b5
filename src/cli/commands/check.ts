/** `check`: looks for errors, and repairs them. */
import { isBlockError } from '../../base/errors.ts';
import type { CheckFinding, CheckFix, CheckResult } from '../../core/format.ts';
import { type CheckReport, checkImage } from '../../tools/check.ts';
import { usage } from '../args.ts';
import type { Cli } from '../console.ts';
import { loadDrivers } from '../drivers.ts';
import { Failure } from '../failure.ts';
import type { ImageSource } from '../image-source.ts';
import {
  type OpenChoices,
  openFailure,
  openOptionsOf,
  requireShareable,
  requireSourceCache,
  warnProbed,
} from '../open.ts';
import { type CheckView, humanCheck, humanRepaired, jsonCheck } from '../render/human.ts';
import { prettyJson } from '../render/json.ts';
import { ioError } from '../render/qemu-text.ts';
import type { Command } from '../verbs/index.ts';
import { oneImage, openChoices, outputForm, scan, sourceOf } from './common.ts';

const STATUS = { corrupt: 2, leaks: 3, unsupported: 63 } as const;

export const runCheck: Command = async (cli, args, spec) => {
  let fix: CheckFix = 'none';
  const given = await scan(cli, spec, args, {
    onOption: ({ spec: { key }, value }) => {
      if (key !== 'repair') return;
      if (value !== 'leaks' && value !== 'all') {
        throw usage(`Unknown option value for -r (expecting 'leaks' or 'all'): ${value}`);
      }
      fix = value;
    },
  });
  const operand = oneImage(given);
  const form = outputForm(given);
  requireSourceCache(given.value('source-cache'));
  const source = sourceOf(given, operand);
  const quiet = given.has('quiet');
  const choices = { ...openChoices(given), readOnly: fix === 'none' };
  requireShareable(source, choices);
  const { readOnly: _, ...options } = openOptionsOf(
    cli,
    await loadDrivers(cli.personality, false, given.objects),
    source,
    choices,
  );
  let begun = false;
  let report: CheckReport;
  try {
    report = await checkImage(source.name, {
      ...options,
      signal: cli.signal,
      fix,
      onFinding: (finding) => {
        begun = true;
        tell(cli, finding);
      },
      onRecheck: (first: CheckResult) => {
        if (form === 'human' && !quiet) cli.out.write(humanRepaired(first.leaksFixed, first.corruptionsFixed));
      },
    });
  } catch (error) {
    throw checkFailure(cli, source, choices, begun, error);
  }
  const view = viewOf(report, source);
  if (!quiet) cli.out.write(form === 'human' ? humanCheck(view) : prettyJson(jsonCheck(view)));
  if (view.checkErrors > 0) throw new Failure('Check failed');
  return view.corruptions > 0 ? STATUS.corrupt : view.leaks > 0 ? STATUS.leaks : 0;
};

/** Most lines are printed as they are; some of QEMU's come with its name, and some findings it only counts. */
function tell(cli: Cli, { message, details }: CheckFinding): void {
  if (details?.['silent'] === true && cli.personality.qemu) return;
  if (details?.['reported'] === true) cli.error(message);
  else cli.err.write(`${message}\n`);
}

function checkFailure(cli: Cli, source: ImageSource, choices: OpenChoices, begun: boolean, error: unknown): unknown {
  if (!isBlockError(error)) return error;
  if (error.reason === 'check.unsupported') {
    if (source.format === undefined) warnProbed(cli, source.name, String(error.details['format']), choices);
    return new Failure('This image format does not support checks', { status: STATUS.unsupported, cause: error });
  }
  if (error.code === 'ABORTED' || error.code === 'INTERNAL') return error;
  if (begun || error.reason?.endsWith('check-failed') === true) {
    return new Failure(`Check failed: ${cli.personality.qemu ? ioError(error) : error.message}`, { cause: error });
  }
  return openFailure(cli, source.label, error);
}

function viewOf(report: CheckReport, source: ImageSource): CheckView {
  const { result } = report;
  return {
    filename: source.label,
    format: report.format,
    checkErrors: result.checkErrors,
    corruptions: result.corruptions,
    leaks: result.leaks,
    corruptionsFixed: result.corruptionsFixed,
    leaksFixed: result.leaksFixed,
    imageEndOffset: result.imageEndOffset ?? 0,
    totalClusters: result.totalClusters ?? 0,
    allocatedClusters: result.allocatedClusters ?? 0,
    fragmentedClusters: result.fragmentedClusters ?? 0,
    compressedClusters: result.compressedClusters ?? 0,
  };
}
