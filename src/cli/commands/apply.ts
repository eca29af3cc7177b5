/** `apply`: a delta, from a file or a pipe, into an image. Owns what is said of an image that is changed in part. */
import { createReadStream } from 'node:fs';
import { isBlockError } from '../../base/errors.ts';
import type { ImageDrivers } from '../../image/open.ts';
import { protocolOf } from '../../image/references.ts';
import { type ApplyResult, applyDelta } from '../../tools/apply.ts';
import type { ByteSource } from '../../tools/byte-feed.ts';
import { usage } from '../args.ts';
import { type Cli, Interruption } from '../console.ts';
import { loadDrivers } from '../drivers.ts';
import { Failure } from '../failure.ts';
import { openSource, using } from '../open.ts';
import { ProgressDisplay, progressForm } from '../progress.ts';
import { humanSize } from '../render/human.ts';
import { prettyJson } from '../render/json.ts';
import type { Command } from '../verbs/index.ts';
import { openChoices, outputForm, scan, sourceOf } from './common.ts';
import { progressAsked } from './compare.ts';

/** Percent between two prints. */
const STEP = 1;
const STREAM = '-';

export const runApply: Command = async (cli, args, spec) => {
  const given = await scan(cli, spec, args);
  const [operand, file] = given.operands;
  if (operand === undefined || file === undefined || given.operands.length > 2) {
    throw usage('Expecting one image file name and the name of the delta file');
  }
  const form = outputForm(given);
  const source = sourceOf(given, operand);
  const progress = progressForm(cli, progressAsked(given), given.has('quiet'));
  const drivers = await loadDrivers(cli.personality, true, given.objects);
  const display = new ProgressDisplay(cli, progress, STEP);
  let outcome: 'done' | 'failed' = 'failed';
  let result: ApplyResult;
  try {
    const delta = await openDelta(cli, drivers, file);
    try {
      const image = await openSource(cli, drivers, source, { ...openChoices(given), readOnly: false });
      result = await using(image, () =>
        applyDelta(image, delta.source, {
          name: delta.name,
          resume: given.has('resume'),
          verify: !given.has('no-verify'),
          codecs: drivers.codecs,
          signal: cli.signal,
          onProgress: display.update,
        }),
      );
    } finally {
      await delta.close();
    }
    display.complete();
    outcome = 'done';
  } catch (error) {
    throw failure(cli, source.label, error);
  } finally {
    display.end(outcome);
    await drivers.codecs?.close();
  }
  if (form === 'json') cli.out.write(prettyJson({ filename: operand, delta: file, ...facts(result) }));
  else if (!given.has('quiet')) cli.out.write(human(source.label, result));
  return 0;
};

interface OpenedDelta {
  readonly source: ByteSource;
  /** What messages call it. */
  readonly name: string;
  close(): Promise<void>;
}

/** Regular files are read twice, so that they are known to be whole before anything is changed; pipes once. */
async function openDelta(cli: Cli, { protocols }: ImageDrivers, file: string): Promise<OpenedDelta> {
  const name = file === STREAM ? 'standard input' : file;
  if (file === STREAM) return { source: cli.input ?? process.stdin, name, close: async () => undefined };
  const protocol = protocolOf(file, protocols);
  const kind = (await protocol.status?.(file))?.kind;
  if (kind === 'pipe' || kind === 'other') {
    const stream = createReadStream(file.replace(/^file:/, ''));
    return { source: stream, name, close: async () => void stream.destroy() };
  }
  const store = await protocol.open(file, { readOnly: true, signal: cli.signal });
  return { source: store, name, close: () => store.close() };
}

function human(label: string, { outcome, verified, records, dataBytes, zeroBytes }: ApplyResult): string {
  if (outcome === 'already') return `${label}: is up to date already; nothing was written.\n`;
  const what =
    records === 0
      ? 'nothing but perhaps the size'
      : `${humanSize(dataBytes)} of data and ${humanSize(zeroBytes)} of zeros`;
  return `${label}: ${what} changed; ${verified ? 'the disk is verified' : 'the disk was not verified'}.\n`;
}

function facts(result: ApplyResult) {
  return {
    outcome: result.outcome,
    verified: result.verified,
    'old-size': result.oldSize,
    'new-size': result.newSize,
    records: result.records,
    'data-bytes': result.dataBytes,
    'zero-bytes': result.zeroBytes,
  };
}

function failure(cli: Cli, label: string, error: unknown): unknown {
  if (!isBlockError(error) || error.code === 'INTERNAL') return error;
  const isPart = error.reason === 'delta.incomplete';
  const left = isPart
    ? `'${label}' holds a part of the delta; apply it again with --resume`
    : `'${label}' is as it was`;
  if (error.code === 'ABORTED') {
    const { reason } = cli.signal;
    return reason instanceof Interruption
      ? new Failure(`interrupted: ${left}`, { status: reason.status, cause: error })
      : error;
  }
  if (error.reason === 'delta.target') {
    const { checksum, expected } = error.details;
    const text = `'${label}' does not hold the disk that the delta was made from: its checksum is ${checksum}, not ${expected}; to finish an interrupted run, add --resume`;
    return new Failure(text, { cause: error });
  }
  if (!isPart) return new Failure(error.message, { cause: error });
  const why = isBlockError(error.cause) ? error.cause.message : error.message;
  return new Failure(`${why}; ${left}`, { cause: error });
}
