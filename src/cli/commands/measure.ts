/** `measure`: how much space a new image would need. */
import { isBlockError } from '../../base/errors.ts';
import type { FormatDriver, Measurement, SnapshotSelector } from '../../core/format.ts';
import type { ImageDrivers } from '../../image/open.ts';
import { type MeasureOptions, measureImage } from '../../tools/measure.ts';
import type { Cli } from '../console.ts';
import {
  type CreateValue,
  createOptionsOf,
  driverOptions,
  readCreateOptions,
  requireMeasureSecret,
} from '../create-options.ts';
import { formatNamed, loadDrivers } from '../drivers.ts';
import { Failure } from '../failure.ts';
import { sizeArgument } from '../numbers.ts';
import { openSource, using } from '../open.ts';
import { appendOptionList, parseOptionList } from '../option-list.ts';
import { describeError } from '../render/describe.ts';
import { prettyJson } from '../render/json.ts';
import { parseSnapshotParam, throwSnapshotFailure } from '../snapshot-param.ts';
import type { Command } from '../verbs/index.ts';
import { openChoices, outputForm, ownUsage, type Scanned, scan, sourceOf } from './common.ts';

export const runMeasure: Command = async (cli, args, spec) => {
  let options: string | undefined;
  let size: bigint | undefined;
  let snapshot: SnapshotSelector | undefined;
  const given = await scan(cli, spec, args, {
    onOption: ({ spec: { key }, value }) => {
      if (key === 'options') options = appendOptionList(options, value as string);
      if (key === 'snapshot') snapshot = parseSnapshotParam(value as string);
      if (key === 'size') size = sizeArgument('image size', value as string, cli);
      if (key === 'output' && value !== 'human' && value !== 'json') {
        throw new Failure('--output must be used with human or json as argument.');
      }
    },
  });
  const form = outputForm(given);
  const operand = checkInputs(cli, given, size);
  const drivers = await loadDrivers(cli.personality, false, given.objects);
  const measurement = await measured(cli, drivers, given, operand, snapshot, async (source) => {
    const driver = targetDriver(drivers, given.value('target-format') ?? 'raw');
    const values = readOptions(cli, driver, options, given);
    const bytes = size === undefined ? undefined : safeSize(size);
    return measure(cli, driver, {
      formats: drivers.formats,
      format: driver.name,
      options: values,
      ...source,
      size: bytes,
      signal: cli.signal,
    });
  });
  cli.out.write(
    form === 'human'
      ? human(measurement)
      : prettyJson({
          required: measurement.required,
          'fully-allocated': measurement.fullyAllocated,
          bitmaps: measurement.bitmaps,
        }),
  );
  return 0;
};

function checkInputs(cli: Cli, given: Scanned, size: bigint | undefined): string | undefined {
  const [operand] = given.operands;
  if (given.operands.length > 1) throw new Failure('At most one filename argument is allowed.');
  if (operand === undefined) {
    if (given.has('image-opts') || given.has('format') || given.has('snapshot')) {
      throw new Failure('--image-opts, -f, and -l require a filename argument.');
    }
    if (size === undefined) throw ownUsage(cli, 'Either --size N or one filename must be specified.');
  } else if (size !== undefined) throw new Failure('--size N cannot be used together with a filename.');
  return operand;
}

async function measured(
  cli: Cli,
  drivers: ImageDrivers,
  given: Scanned,
  operand: string | undefined,
  snapshot: SnapshotSelector | undefined,
  body: (source: Pick<MeasureOptions, 'source'>) => Promise<Measurement>,
): Promise<Measurement> {
  if (operand === undefined) return body({});
  const choices = { ...openChoices(given), snapshot };
  const opening = openSource(cli, drivers, sourceOf(given, operand), choices);
  const image = await opening.catch((error: unknown) => throwSnapshotFailure(error, cli.personality));
  return using(image, () => body({ source: image }));
}

function targetDriver(drivers: ImageDrivers, format: string): FormatDriver {
  const driver = formatNamed(drivers, format);
  if (driver === undefined) throw new Failure(`Unknown file format '${format}'`);
  if (driver.create === undefined) throw new Failure(`Format driver '${format}' does not support image creation`);
  return driver;
}

function readOptions(
  cli: Cli,
  driver: FormatDriver,
  list: string | undefined,
  given: Scanned,
): Record<string, unknown> {
  if (list === undefined) return {};
  const values = readValues(cli, driver, list);
  requireMeasureSecret(values, given.objects.secrets);
  return driverOptions(driver, values);
}

function readValues(cli: Cli, driver: FormatDriver, list: string): ReadonlyMap<string, CreateValue> {
  try {
    return readCreateOptions(parseOptionList(list), createOptionsOf(driver, true), cli, !cli.personality.qemu);
  } catch (error) {
    if (!(error instanceof Failure) || !cli.personality.qemu) throw error;
    throw new Failure([...error.lines, `Invalid options for file format '${driver.name}'`], { cause: error });
  }
}

function safeSize(size: bigint): number {
  if (size <= BigInt(Number.MAX_SAFE_INTEGER)) return Number(size);
  throw new Failure('The image size is too large (try using a larger cluster size)');
}

async function measure(cli: Cli, driver: FormatDriver, options: MeasureOptions): Promise<Measurement> {
  try {
    return await measureImage(options);
  } catch (error) {
    if (!isBlockError(error) || error.code === 'ABORTED' || error.code === 'INTERNAL') throw error;
    throw new Failure(measureText(cli, driver, error), { cause: error });
  }
}

/** `measure` reads some options by other code than `create`, with other sentences. */
function measureText(cli: Cli, driver: FormatDriver, error: Parameters<typeof describeError>[0]): string {
  const { value } = error.details;
  if (cli.personality.qemu && driver.name === 'qcow2') {
    if (error.reason === 'qcow2.compat') return `Invalid compatibility level: '${value}'`;
    if (error.reason === 'qcow2.preallocation') return `invalid parameter value: ${value}`;
  }
  return describeError(error, cli.personality).text;
}

function human(measurement: Measurement): string {
  const bitmaps = measurement.bitmaps === undefined ? '' : `bitmaps size: ${measurement.bitmaps}\n`;
  return `required size: ${measurement.required}\nfully allocated size: ${measurement.fullyAllocated}\n${bitmaps}`;
}
