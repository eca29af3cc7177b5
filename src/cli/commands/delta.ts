/** `delta`: the difference of two disks as a file, or on standard output. */
import { isBlockError } from '../../base/errors.ts';
import { ForwardSink, writableTarget } from '../../storage/forward-sink.ts';
import { type DeltaResult, writeDelta } from '../../tools/delta.ts';
import { usage } from '../args.ts';
import type { Cli } from '../console.ts';
import { loadDrivers } from '../drivers.ts';
import { Failure } from '../failure.ts';
import { ProgressDisplay, progressForm } from '../progress.ts';
import { humanSize } from '../render/human.ts';
import { prettyJson } from '../render/json.ts';
import type { Command } from '../verbs/index.ts';
import { outputForm, type Scanned, scan } from './common.ts';
import { progressAsked } from './compare.ts';
import { jobFailure } from './jobs.ts';
import { PairChoices } from './pairs.ts';

/** Percent between two prints. */
const STEP = 1;
const STREAM = '-';

export const runDelta: Command = async (cli, args, spec) => {
  const choices = new PairChoices();
  const given = await scan(cli, spec, args, { onOption: choices.note });
  const [first, second, file] = given.operands;
  if (first === undefined || second === undefined || file === undefined || given.operands.length > 3) {
    throw usage('Expecting two image file names and the name of the delta file');
  }
  const form = outputForm(given);
  const compression = compressionOf(given);
  if (file === STREAM) requireStream(cli, form);
  // What goes to standard output is the delta then.
  const asked = file === STREAM && progressAsked(given) === '' ? 'auto' : progressAsked(given);
  const progress = progressForm(cli, asked, given.has('quiet'));
  if (file === STREAM && progress === 'qemu') throw new Failure('--progress=qemu: standard output takes the delta');
  const display = new ProgressDisplay(cli, progress, STEP);
  let outcome: 'done' | 'failed' = 'failed';
  const drivers = await loadDrivers(cli.personality, true, given.objects);
  let result: DeltaResult;
  try {
    result = await choices.using(cli, drivers, given, [first, second], async (a, b) => {
      const target = file === STREAM ? standardOutput() : file;
      return await writeDelta(a, b, target, {
        protocols: drivers.protocols,
        codecs: drivers.codecs,
        block: choices.block,
        compression,
        checksums: !given.has('no-checksum'),
        signal: cli.signal,
        onProgress: display.update,
      });
    });
    display.complete();
    outcome = 'done';
  } catch (error) {
    throw isBlockError(error) ? jobFailure(cli, 'delta', file, left(file), error) : error;
  } finally {
    display.end(outcome);
    await drivers.codecs?.close();
  }
  if (file === STREAM) return 0;
  if (form === 'json') cli.out.write(prettyJson({ filename: file, ...facts(result) }));
  else if (!given.has('quiet')) cli.out.write(human(file, result));
  return 0;
};

/** @throws {@link Failure} */
function compressionOf(given: Scanned): 'zstd' | 'deflate' | 'none' {
  const name = given.value('compression') ?? 'zstd';
  if (name === 'zstd' || name === 'deflate' || name === 'none') return name;
  throw new Failure(`--compression: expected zstd, deflate or none, not '${name}'`);
}

/** @throws {@link Failure} */
function requireStream(cli: Cli, form: 'human' | 'json'): void {
  if (form === 'json') throw new Failure('--json: standard output takes the delta; name a file for it');
  if (cli.out.isTerminal) throw new Failure('-: standard output is a terminal; name a file, or send it into a pipe');
}

function standardOutput(): ForwardSink {
  return new ForwardSink(writableTarget(process.stdout, true), { name: 'standard output' });
}

/** What an interruption leaves. */
function left(file: string): string {
  return file === STREAM ? 'what came out so far is no whole delta' : `'${file}' is as it was`;
}

function human(file: string, { records, dataBytes, zeroBytes, fileSize }: DeltaResult): string {
  if (records === 0) return `${file}: nothing differs but perhaps the size; ${humanSize(fileSize)}.\n`;
  return `${file}: ${humanSize(dataBytes)} of data and ${humanSize(zeroBytes)} of zeros in ${humanSize(fileSize)}.\n`;
}

function facts(result: DeltaResult) {
  return {
    'old-size': result.oldSize,
    'new-size': result.newSize,
    'old-checksum': result.oldChecksum,
    'new-checksum': result.newChecksum,
    records: result.records,
    'data-bytes': result.dataBytes,
    'zero-bytes': result.zeroBytes,
    'file-size': result.fileSize,
  };
}
