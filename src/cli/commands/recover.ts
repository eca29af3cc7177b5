/** `recover`: rebuilds what is left of a damaged image, and reports. Owns the two forms of the report and its file.
 *  Invariant: nothing that exists is written to: target and report are new files, and both are gone after a failure. */
import { closeSync, openSync, unlinkSync, writeSync } from 'node:fs';
import { isBlockError } from '../../base/errors.ts';
import { parseOptions } from '../../base/options.ts';
import type { FormatDriver } from '../../core/format.ts';
import type { RecoveredRange } from '../../core/recovery.ts';
import type { ImageDrivers } from '../../image/open.ts';
import { type RecoverResult, recoverImage } from '../../tools/recover.ts';
import { usage } from '../args.ts';
import type { Cli } from '../console.ts';
import { createOptionsOf, driverOptions, readCreateOptions } from '../create-options.ts';
import { formatNamed, loadDrivers } from '../drivers.ts';
import { Failure } from '../failure.ts';
import { safeSizeArgument } from '../numbers.ts';
import { reportEvent } from '../open.ts';
import { appendOptionList, parseOptionList } from '../option-list.ts';
import { ProgressDisplay, progressForm } from '../progress.ts';
import { humanSize } from '../render/human.ts';
import { parseSnapshotParam } from '../snapshot-param.ts';
import type { Command } from '../verbs/index.ts';
import { KNOWN_OPTIONS } from '../verbs/recover.ts';
import { openChoices, outputForm, referencePolicy, type Scanned, scan } from './common.ts';
import { progressAsked } from './compare.ts';
import { jobFailure, targetCache } from './jobs.ts';

const STATUS = { doubtful: 2, lost: 3, unsupported: 63 } as const;
/** Ranges that people are shown. */
const SHOWN = 20;
/** Percent between two prints of the qemu form. */
const STEP = 1;

export const runRecover: Command = async (cli, args, spec) => {
  let list: string | undefined;
  const given = await scan(cli, spec, args, {
    onOption: ({ spec: { key }, value }) => {
      if (key === 'options') list = appendOptionList(list, value as string);
    },
  });
  const [source, target, surplus] = given.operands;
  if (source === undefined || target === undefined) throw usage('Expecting the damaged image and the new one');
  if (surplus !== undefined) throw usage(`Unexpected argument: ${surplus}`);
  const form = outputForm(given);
  const drivers = await loadDrivers(cli.personality, true, given.objects);
  const display = new ProgressDisplay(cli, progressForm(cli, progressAsked(given), given.has('quiet')), STEP);
  const file = given.value('report');
  const sheet = file === undefined ? undefined : new Sheet(file);
  const shown: RecoveredRange[] = [];
  let more = 0;
  let first = true;
  let outcome: 'done' | 'failed' = 'failed';
  let result: RecoverResult;
  const json = new JsonRanges(form === 'json' ? (text) => cli.out.write(text) : () => undefined);
  const inFile = new JsonRanges((text) => sheet?.write(text));
  try {
    result = await recover(cli, drivers, given, { source, target, list }, display, (range) => {
      if (first) {
        json.begin(source, target);
        inFile.begin(source, target);
        first = false;
      }
      json.add(range);
      inFile.add(range);
      if (range.state === 'certain') return;
      if (shown.length < SHOWN) shown.push(range);
      else more++;
    });
    if (first) {
      json.begin(source, target);
      inFile.begin(source, target);
    }
    json.end(result);
    inFile.end(result);
    sheet?.finish();
    display.complete();
    outcome = 'done';
  } catch (error) {
    sheet?.discard();
    throw error;
  } finally {
    display.end(outcome);
    await drivers.codecs?.close();
  }
  if (form === 'human' && !given.has('quiet')) cli.out.write(human(source, target, result, shown, more));
  return result.lost > 0 ? STATUS.lost : result.doubtful > 0 ? STATUS.doubtful : 0;
};

async function recover(
  cli: Cli,
  drivers: ImageDrivers,
  given: Scanned,
  { source, target, list }: { readonly source: string; readonly target: string; readonly list: string | undefined },
  display: ProgressDisplay,
  onRange: (range: RecoveredRange) => void,
): Promise<RecoverResult> {
  const format = given.value('target-format');
  const backing = given.value('backing');
  const snapshot = given.value('snapshot');
  const lost = given.value('lost');
  if (lost !== undefined && lost !== 'zero' && lost !== 'backing') {
    throw new Failure(`--lost: expected zero or backing, not '${lost}'`);
  }
  if (backing !== undefined && !given.has('backing-format')) {
    throw new Failure('Use of backing file requires explicit backing format');
  }
  if (given.has('without-backing') && given.has('with-backing')) {
    throw new Failure('--without-backing: there is a --with-backing');
  }
  const created = list === undefined ? undefined : targetOptions(cli, drivers, format, list);
  try {
    return await recoverImage(
      source,
      {
        name: target,
        format,
        ...(created === undefined ? {} : { options: created }),
        ...(backing === undefined ? {} : { backing: { name: backing, format: given.value('backing-format') } }),
      },
      {
        ...drivers,
        format: given.value('format'),
        snapshot: snapshot === undefined ? undefined : parseSnapshotParam(snapshot),
        options: (driver) => knownOptions(cli, given, driver),
        doubtful: given.has('leave-out-doubtful') ? 'leave-out' : 'include',
        lost,
        withoutBacking: given.has('without-backing'),
        backing: openChoices(given).backing,
        references: referencePolicy(given),
        probeBacking: true,
        compressed: given.has('compress'),
        cache: targetCache(given),
        signal: cli.signal,
        onEvent: (event) => reportEvent(cli, event, given.has('quiet')),
        onProgress: display.update,
        onRange,
      },
    );
  } catch (error) {
    if (isBlockError(error) && error.reason === 'image.recover') {
      throw new Failure(error.message, { status: STATUS.unsupported, cause: error });
    }
    throw jobFailure(cli, 'recover', source, `'${target}' was not made`, error);
  }
}

/** @throws {@link Failure} */
function targetOptions(
  cli: Cli,
  drivers: ImageDrivers,
  format: string | undefined,
  list: string,
): Record<string, unknown> {
  if (format === undefined) throw new Failure('-o: name the format of the target (-O), whose options these are');
  const driver = formatNamed(drivers, format);
  if (driver === undefined) throw new Failure(`Unknown file format '${format}'`);
  return driverOptions(driver, readCreateOptions(parseOptionList(list), createOptionsOf(driver, true), cli, true));
}

/** @throws {@link BlockError} OPTION for what the format does not have. */
function knownOptions(cli: Cli, given: Scanned, driver: FormatDriver): Readonly<Record<string, unknown>> {
  const pairs: [string, string][] = [];
  for (const { key } of KNOWN_OPTIONS) {
    const value = given.value(key);
    if (value === undefined) continue;
    const isSize = key === 'cluster_size' || key === 'size';
    pairs.push([key, isSize ? String(safeSizeArgument(key.replace('_', ' '), value, cli)) : value]);
  }
  if (given.has('ignore-header')) pairs.push(['ignore_header', 'on']);
  return parseOptions(driver.recoverOptions ?? {}, pairs);
}

/** A new file, or none. */
class Sheet {
  readonly #name: string;
  readonly #fd: number;

  /** @throws {@link Failure} when it cannot be made, or is there already. */
  constructor(name: string) {
    this.#name = name;
    try {
      this.#fd = openSync(name, 'wx');
    } catch (error) {
      throw new Failure(`--report: ${(error as Error).message}`, { cause: error });
    }
  }

  write(text: string): void {
    writeSync(this.#fd, text);
  }

  finish(): void {
    closeSync(this.#fd);
  }

  discard(): void {
    closeSync(this.#fd);
    unlinkSync(this.#name);
  }
}

/** The report as JSON, written as it comes: it may have more ranges than memory has room for. */
class JsonRanges {
  readonly #write: (text: string) => void;
  #held = '';
  #any = false;

  constructor(write: (text: string) => void) {
    this.#write = write;
  }

  begin(source: string, target: string): void {
    this.#put(`{\n"image": ${JSON.stringify(source)},\n"target": ${JSON.stringify(target)},\n"ranges": [`);
  }

  add({ start, length, state, content, why }: RecoveredRange): void {
    this.#put(`${this.#any ? ',' : ''}\n${JSON.stringify({ start, length, state, content, why })}`);
    this.#any = true;
  }

  end({ format, virtualSize, certain, doubtful, lost, notes }: RecoverResult): void {
    const rest = { format, 'virtual-size': virtualSize, certain, doubtful, lost, notes };
    this.#put(`\n],\n${JSON.stringify(rest).slice(1)}\n`);
    this.#flush();
  }

  #put(text: string): void {
    this.#held += text;
    if (this.#held.length > 65_536) this.#flush();
  }

  #flush(): void {
    this.#write(this.#held);
    this.#held = '';
  }
}

function human(
  source: string,
  target: string,
  { format, virtualSize, certain, doubtful, lost, notes }: RecoverResult,
  shown: readonly RecoveredRange[],
  more: number,
): string {
  const part = (name: string, bytes: number): string =>
    `${name.padEnd(10)}${humanSize(bytes).padStart(10)}  ${(virtualSize === 0 ? 0 : (100 * bytes) / virtualSize).toFixed(2).padStart(6)}%\n`;
  const lines = shown.map(
    ({ start, length, state, content, why }) =>
      `${`0x${start.toString(16)}`.padEnd(16)}${`0x${length.toString(16)}`.padEnd(16)}${state.padEnd(10)}${content.padEnd(12)}${why}\n`,
  );
  const table =
    lines.length === 0
      ? ''
      : `\n${'Offset'.padEnd(16)}${'Length'.padEnd(16)}${'State'.padEnd(10)}${'Content'.padEnd(12)}Why\n${lines.join('')}`;
  return (
    `${target}: recovered from ${source} (${format}), ${humanSize(virtualSize)}\n` +
    part('certain', certain) +
    part('doubtful', doubtful) +
    part('lost', lost) +
    notes.map((note) => `- ${note}\n`).join('') +
    table +
    (more === 0 ? '' : `... and ${more} more ranges; --report FILE has all of them\n`)
  );
}
