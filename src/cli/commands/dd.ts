/** `dd`: a part of a disk, counted in blocks, becomes an image of its own. */
import type { ImageDrivers } from '../../image/open.ts';
import { convertImage } from '../../tools/convert.ts';
import type { Cli } from '../console.ts';
import { formatNamed, loadDrivers } from '../drivers.ts';
import { Failure } from '../failure.ts';
import { INT64_MAX, parseQemuSize, sizeArgument } from '../numbers.ts';
import { openSource, reportEvent, using } from '../open.ts';
import { ProgressDisplay, progressForm } from '../progress.ts';
import type { Command } from '../verbs/index.ts';
import { openChoices, ownUsage, referencePolicy, scan, sourceOf } from './common.ts';
import { progressAsked } from './compare.ts';
import { ConvertErrors } from './convert-errors.ts';
import { creatable } from './create.ts';

const BLOCK = 512n;
const MOST_BLOCK = 2n ** 31n - 1n;
/** Percent between two prints. */
const STEP = 1;

interface Operands {
  readonly input: string;
  readonly output: string;
  /** Bytes. */
  readonly block: bigint;
  /** Blocks. */
  readonly count: bigint | undefined;
  readonly skip: bigint;
}

export const runDd: Command = async (cli, args, spec) => {
  const given = await scan(cli, spec, args);
  const operands = readOperands(cli, given.operands);
  const source = sourceOf(given, operands.input);
  const format = given.value('target-format') ?? 'raw';
  const drivers = await loadDrivers(cli.personality, true, given.objects);
  const image = await openSource(cli, drivers, source, openChoices(given));
  return using(image, async () => {
    const driver = creatableHere(cli, drivers, format, operands.output);
    const errors = new ConvertErrors(cli, drivers);
    if (operands.output === '') throw errors.creatingText('', "Could not create '': No such file or directory");
    const { offset, length, isPast } = rangeOf(operands, image.virtualSize);
    const display = new ProgressDisplay(cli, progressForm(cli, progressAsked(given), false), STEP);
    const target = { name: operands.output, format };
    let outcome: 'done' | 'failed' = 'failed';
    try {
      await convertImage([{ image, offset, length }], target, {
        ...drivers,
        references: referencePolicy(given),
        signal: cli.signal,
        onEvent: (event) => reportEvent(cli, event),
        onProgress: display.update,
      });
      if (isPast) cli.error(`${operands.input}: cannot skip to specified offset`);
      display.complete();
      outcome = 'done';
    } catch (error) {
      throw (await errors.jobFailure(target, error)) ?? errors.creating(target.name, driver, error);
    } finally {
      display.end(outcome);
      await drivers.codecs?.close();
    }
    return 0;
  });
};

/** qemu-img does not say which format. @throws {@link Failure} */
function creatableHere(cli: Cli, drivers: ImageDrivers, format: string, target: string) {
  if (cli.personality.qemu && formatNamed(drivers, format) === undefined) throw new Failure('Unknown file format');
  return creatable(drivers, format, target);
}

/** Reads the operands in their order; the last of equal ones counts.
 *  @throws {@link Failure} in QEMU's words. */
function readOperands(cli: Cli, words: readonly string[]): Operands {
  let input: string | undefined;
  let output: string | undefined;
  let block = BLOCK;
  let count: bigint | undefined;
  let skip = 0n;
  for (const word of words) {
    const equals = word.indexOf('=');
    const name = equals < 0 ? word : word.slice(0, equals);
    const value = equals < 0 ? '' : word.slice(equals + 1);
    if (equals >= 0 && name === 'if') input = value;
    else if (equals >= 0 && name === 'of') output = value;
    else if (equals >= 0 && name === 'bs') block = blockSize(cli, value);
    else if (equals >= 0 && name === 'count') count = sizeArgument('count', value, cli);
    else if (equals >= 0 && name === 'skip') skip = sizeArgument('skip', value, cli);
    else throw ownUsage(cli, `unrecognized operand ${name}`);
  }
  if (input === undefined || output === undefined) throw ownUsage(cli, 'Must specify both input and output files');
  return { input, output, block, count, skip };
}

function blockSize(cli: Cli, text: string): bigint {
  const parsed = parseQemuSize(text);
  if (typeof parsed === 'object' && (parsed.value < 1n || parsed.value > MOST_BLOCK)) {
    throw new Failure(`Invalid bs specified. Must be between 1 and ${MOST_BLOCK}.`);
  }
  return sizeArgument('bs', text, cli);
}

/** The part of a disk that is meant, bytes. */
function rangeOf(
  { block, count, skip }: Operands,
  size: number,
): { readonly offset: number; readonly length: number; readonly isPast: boolean } {
  const counted = count === undefined || count > INT64_MAX / block ? BigInt(size) : count * block;
  const end = counted < BigInt(size) ? counted : BigInt(size);
  const start = skip * block;
  if (start > end) return { offset: 0, length: 0, isPast: true };
  return { offset: Number(start), length: Number(end - start), isPast: false };
}
