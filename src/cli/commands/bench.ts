/** `bench`: a load of requests, and the time that it took. */
import { isBlockError } from '../../base/errors.ts';
import { type BenchOptions, benchImage, MOST_DEPTH } from '../../tools/bench.ts';
import type { Given } from '../args.ts';
import { type Cli, Interruption } from '../console.ts';
import { loadDrivers } from '../drivers.ts';
import { Failure } from '../failure.ts';
import { hexSuffixWarning, parseInteger, parseQemuSize, safeSizeArgument, sizeArgument } from '../numbers.ts';
import { cacheMode, openSource, using } from '../open.ts';
import { ioError } from '../render/qemu-text.ts';
import type { Command } from '../verbs/index.ts';
import { oneImage, openChoices, type Scanned, scan, sourceOf } from './common.ts';

const MOST_INT = 2 ** 31 - 1;

/** The numbers of the command line, by the keys of their options. */
type Numbers = Map<string, number>;

export const runBench: Command = async (cli, args, spec) => {
  const numbers: Numbers = new Map();
  const given = await scan(cli, spec, args, { onOption: (option) => readNumber(cli, option, numbers) });
  const operand = oneImage(given);
  const options = loadOf(given, numbers);
  const source = sourceOf(given, operand);
  requireAio(given, source.label);
  const choices = { ...openChoices(given), readOnly: options.kind === 'read' };
  const drivers = await loadDrivers(cli.personality, true, given.objects);
  const image = await openSource(cli, drivers, source, choices);
  return using(image, async () => {
    try {
      const json = given.has('json');
      if (!json) cli.out.write(announcement(options));
      const begun = performance.now();
      await benchImage(image, { ...options, signal: cli.signal });
      const seconds = (performance.now() - begun) / 1000;
      cli.out.write(
        json ? `${JSON.stringify(report(options, seconds))}\n` : `Run completed in ${seconds.toFixed(3)} seconds.\n`,
      );
      return 0;
    } catch (error) {
      throw failure(cli, error);
    } finally {
      await drivers.codecs?.close();
    }
  });
};

/** Read in the order given, because the first mistake is the one to tell. @throws {@link Failure} in QEMU's words. */
function readNumber(cli: Cli, { spec: { key }, value = '' }: Given, into: Numbers): void {
  switch (key) {
    case 'count':
      into.set(key, whole(cli, value, 'request count', 0, MOST_INT));
      break;
    case 'depth':
      into.set(key, whole(cli, value, 'queue depth', 1, MOST_DEPTH));
      break;
    case 'flush-interval':
      into.set(key, whole(cli, value, 'flush interval', 0, MOST_INT));
      break;
    case 'pattern':
      into.set(key, whole(cli, value, 'pattern byte', 0, 255));
      break;
    case 'offset':
      into.set(key, safeSizeArgument('offset', value, cli));
      break;
    case 'buffer-size':
      into.set(key, length(cli, 'buffer size', value));
      break;
    case 'step-size':
      into.set(key, length(cli, 'step_size', value));
      break;
    case 'cache':
      if (cacheMode(value) === undefined) throw new Failure('Invalid cache mode');
      break;
    case 'aio':
      if (!['threads', 'native', 'io_uring'].includes(value)) throw new Failure(`Invalid aio option: ${value}`);
      break;
  }
}

function whole(cli: Cli, text: string, what: string, least: number, most: number): number {
  const value = parseInteger(text);
  if (value !== undefined && value >= BigInt(least) && value <= BigInt(most)) return Number(value);
  if (cli.personality.qemu) throw new Failure(`Invalid ${what} specified`);
  throw new Failure(`invalid ${what} '${text}': expected a whole number from ${least} to ${most}`);
}

function length(cli: Cli, what: string, text: string): number {
  const parsed = parseQemuSize(text);
  if (typeof parsed === 'string') return Number(sizeArgument(what, text, cli));
  if (parsed.value > BigInt(MOST_INT))
    throw new Failure(`Invalid ${what} specified. Must be between 0 and ${MOST_INT}.`);
  if (parsed.suffixedHex) cli.warn(hexSuffixWarning(text));
  return Number(parsed.value);
}

/** @throws {@link Failure} */
function loadOf(given: Scanned, numbers: Numbers): BenchOptions {
  const kind = given.has('write') ? 'write' : 'read';
  const depth = numbers.get('depth') ?? 64;
  const flushEvery = numbers.get('flush-interval') ?? 0;
  if (flushEvery > 0 && kind === 'read') throw new Failure('--flush-interval is only available in write tests');
  if (flushEvery > 0 && flushEvery < depth) throw new Failure("Flush interval can't be smaller than depth");
  const size = numbers.get('buffer-size') ?? 4096;
  if (size === 0) throw new Failure('Invalid buffer size specified. A request has at least one byte.');
  const mode = given.value('cache');
  const step = numbers.get('step-size') ?? 0;
  return {
    kind,
    count: numbers.get('count') ?? 75_000,
    depth,
    length: size,
    step: step === 0 ? size : step,
    offset: numbers.get('offset') ?? 0,
    pattern: numbers.get('pattern') ?? 0,
    flushEvery: flushEvery === 0 ? undefined : flushEvery,
    drain: !given.has('no-drain'),
    writeThrough: mode === 'writethrough' || mode === 'directsync',
  };
}

/** QEMU's asynchronous system calls need files opened past the page cache. @throws {@link Failure} */
function requireAio(given: Scanned, label: string): void {
  const native = given.has('native') || given.value('aio') === 'native';
  const mode = cacheMode(given.value('cache') ?? 'writeback');
  if (!native || mode === 'none' || mode === 'directsync') return;
  throw new Failure(
    `Could not open '${label}': aio=native was specified, but it requires cache.direct=on, which was not specified.`,
  );
}

function announcement(options: BenchOptions): string {
  const { kind, count, depth, length: size, offset, step, flushEvery } = options;
  const requests = `${count} ${kind} requests, ${size} bytes each, ${depth} in parallel`;
  const lines = [`Sending ${requests} (starting at offset ${offset}, step size ${step})`];
  // qemu-img has a word for --no-drain and forgets to say it.
  if (flushEvery !== undefined) lines.push(`Sending flush every ${flushEvery} requests`);
  return `${lines.join('\n')}\n`;
}

function report(options: BenchOptions, seconds: number): Readonly<Record<string, unknown>> {
  const { kind, count, depth, length: size, step, offset } = options;
  return {
    kind,
    requests: count,
    depth,
    'request-size': size,
    step,
    offset,
    seconds,
    'requests-per-second': count / seconds,
    'bytes-per-second': (count * size) / seconds,
  };
}

function failure(cli: Cli, error: unknown): unknown {
  if (!isBlockError(error) || error.code === 'INTERNAL') return error;
  if (error.code === 'ABORTED') {
    const { reason } = cli.signal;
    return reason instanceof Interruption ? new Failure('interrupted', { status: reason.status, cause: error }) : error;
  }
  return new Failure(cli.personality.qemu ? `Failed request: ${ioError(error)}` : error.message, { cause: error });
}
