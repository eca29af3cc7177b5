/** `convert`: copies images into a new one. Owns the order of the checks, which is qemu-img's. */
import { isBlockError } from '../../base/errors.ts';
import type { FormatDriver, SnapshotSelector } from '../../core/format.ts';
import { fileNameIn } from '../../image/graph.ts';
import { Image } from '../../image/image.ts';
import { type ImageDrivers, openImage } from '../../image/open.ts';
import type { ForwardTarget } from '../../storage/forward-sink.ts';
import { type ConvertOptions, type ConvertTarget, convertImage } from '../../tools/convert.ts';
import { bitmapsToCopy } from '../../tools/convert-bitmaps.ts';
import type { ConvertStream } from '../../tools/convert-stream.ts';
import type { Cli } from '../console.ts';
import { type CreateValue, createOptionsOf, driverOptions, readCreateOptions } from '../create-options.ts';
import { loadDrivers } from '../drivers.ts';
import { Failure } from '../failure.ts';
import { parseImageSource } from '../image-source.ts';
import {
  cacheMode,
  openFailure,
  openOptionsOf,
  openSource,
  reportEvent,
  requireSourceCache,
  warnProbed,
} from '../open.ts';
import { asksForHelp, parseOptionList } from '../option-list.ts';
import { ProgressDisplay, progressForm } from '../progress.ts';
import { throwSnapshotFailure } from '../snapshot-param.ts';
import {
  INPUT_NAME,
  isStandardStream,
  OUTPUT_NAME,
  standardInput,
  standardOutput,
  tellSpool,
  temporaryIn,
} from '../standard-streams.ts';
import type { Command } from '../verbs/index.ts';
import { openChoices, ownUsage, referencePolicy, type Scanned, scan } from './common.ts';
import { progressAsked } from './compare.ts';
import { ConvertErrors } from './convert-errors.ts';
import { type Numbers, readNumber, requireSense } from './convert-options.ts';
import { addBackingOptions, creatable, optionHelp } from './create.ts';

/** Percent between two prints of `-p`. */
const STEP = 1;

export const runConvert: Command = async (cli, args, spec) => {
  const numbers: Numbers = {};
  const given = await scan(cli, spec, args, {
    onOption: (option) => readNumber(cli, option, numbers),
  });
  requireSense(given, numbers);
  const sources = given.operands.slice(0, -1);
  const target = sources.length > 0 ? given.operands.at(-1) : undefined;
  const drivers = await loadDrivers(cli.personality, true, given.objects);
  const format = given.value('target-format') ?? (given.has('target-image-opts') ? undefined : 'raw');
  if (numbers.list !== undefined && asksForHelp(numbers.list)) {
    cli.out.write(optionHelp(drivers, format ?? 'raw', target, cli.personality.qemu));
    return 0;
  }
  if (target === undefined) throw ownUsage(cli, 'Must specify image file name');
  requireSourceCache(given.value('source-cache'));
  const toOutput = isStandardStream(cli, target) && !given.has('target-image-opts');
  if (toOutput && given.has('no-create')) {
    throw new Failure("-n writes into an image that is there already; standard output ('-') holds none");
  }
  const form = progressForm(cli, progressAsked(given), given.has('quiet'));
  const output = toOutput ? standardOutput() : undefined;
  const display = new ProgressDisplay(cli, form, STEP, toOutput ? cli.err : cli.out);
  let outcome: 'done' | 'failed' = 'failed';
  try {
    await new Conversion(cli, drivers, given, numbers, display, output).run(sources, target, format);
    display.complete();
    outcome = 'done';
    return 0;
  } finally {
    display.end(outcome);
    await drivers.codecs?.close();
  }
};

/** What is converted: an open image, or what comes through a pipe. */
type Source = Image | ConvertStream;

class Conversion {
  readonly #cli: Cli;
  readonly #drivers: ImageDrivers;
  readonly #given: Scanned;
  readonly #numbers: Numbers;
  readonly #display: ProgressDisplay;
  readonly #errors: ConvertErrors;
  /** Standard output, where it is the target. */
  readonly #output: ForwardTarget | undefined;

  constructor(
    cli: Cli,
    drivers: ImageDrivers,
    given: Scanned,
    numbers: Numbers,
    display: ProgressDisplay,
    output: ForwardTarget | undefined,
  ) {
    this.#output = output;
    this.#cli = cli;
    this.#drivers = drivers;
    this.#given = given;
    this.#numbers = numbers;
    this.#display = display;
    this.#errors = new ConvertErrors(cli, drivers);
  }

  async run(sources: readonly string[], target: string, format: string | undefined): Promise<void> {
    const images: Source[] = [];
    this.#requireOneInput(sources);
    try {
      // Of several sources qemu-img opens each before it refuses.
      const snapshot = sources.length === 1 ? this.#numbers.snapshot : undefined;
      for (const source of sources) images.push(await this.#open(source, snapshot));
      if (this.#numbers.snapshot !== undefined && snapshot === undefined) {
        throw new Failure('No support for concatenating multiple snapshot');
      }
      if (this.#given.has('no-create')) await this.#intoExisting(images, target, format);
      else await this.#intoNew(images, target, format ?? 'raw');
    } finally {
      for (const image of images) if (image instanceof Image) await image.close();
    }
  }

  #isInput(operand: string): boolean {
    return isStandardStream(this.#cli, operand) && !this.#given.has('image-opts');
  }

  #requireOneInput(sources: readonly string[]): void {
    const count = sources.filter((operand) => this.#isInput(operand)).length;
    if (count > 1) throw new Failure("standard input ('-') can be one of the sources, not two");
    if (count === 0 && this.#numbers.inputSize !== undefined) {
      throw new Failure("--input-size is for standard input: give '-' as a source");
    }
  }

  /** @returns an image where standard input is a file, else what will be opened as it comes. */
  async #openInput(snapshot: SnapshotSelector | undefined): Promise<Source> {
    const source = parseImageSource(INPUT_NAME, { imageOpts: false, format: this.#given.value('format') });
    const choices = { ...openChoices(this.#given), snapshot };
    const input = standardInput(this.#cli, this.#given.has('force-share'));
    const opening = { ...openOptionsOf(this.#cli, this.#drivers, source, choices), name: INPUT_NAME };
    if ('stream' in input) return { ...opening, stream: input.stream, size: this.#numbers.inputSize };
    if (this.#numbers.inputSize !== undefined && this.#numbers.inputSize !== input.file.size) {
      throw new Failure(
        `--input-size ${this.#numbers.inputSize}: standard input is a file of ${input.file.size} bytes`,
      );
    }
    try {
      const image = await openImage(input.file, opening);
      if (image.probedRaw) warnProbed(this.#cli, INPUT_NAME, image.format, { quiet: this.#given.has('quiet') });
      return image;
    } catch (error) {
      throw openFailure(this.#cli, INPUT_NAME, error);
    }
  }

  async #open(operand: string, snapshot: SnapshotSelector | undefined): Promise<Source> {
    if (this.#isInput(operand)) {
      if (this.#given.has('salvage')) {
        throw new Failure('--salvage is for files: what a pipe cannot give cannot be read again');
      }
      return await this.#openInput(snapshot);
    }
    const source = parseImageSource(operand, {
      imageOpts: this.#given.has('image-opts'),
      format: this.#given.value('format'),
    });
    try {
      return await openSource(this.#cli, this.#drivers, source, {
        ...openChoices(this.#given),
        shareWrites: false,
        snapshot,
      });
    } catch (error) {
      throwSnapshotFailure(error, this.#cli.personality);
    }
  }

  async #intoNew(images: readonly Source[], operand: string, format: string): Promise<void> {
    const output = this.#output;
    const name = output === undefined ? operand : OUTPUT_NAME;
    const driver = creatable(this.#drivers, format, name);
    const values = this.#readOptions(driver);
    const backing = values.get('backing_file')?.text;
    const backingFormat = values.get('backing_fmt')?.text;
    if (backing !== undefined && backingFormat === undefined) {
      throw new Failure('Use of backing file requires explicit backing format');
    }
    if (backing !== undefined && images.length > 1) {
      throw new Failure('Having a backing file for the target makes no sense when concatenating multiple input images');
    }
    this.#requireCompressible(driver, values);
    await this.#requireBitmaps(images, driver, values);
    if (backing === undefined && backingFormat !== undefined) {
      const known = this.#drivers.formats.some((candidate) => candidate.name === backingFormat);
      throw this.#errors.framed(
        name,
        format,
        known
          ? 'Backing format cannot be used without backing file'
          : `Parameter 'backing-fmt' does not accept value '${backingFormat}'`,
      );
    }
    if (name === '') throw this.#errors.framed(name, format, "Could not create '': No such file or directory");
    const target: ConvertTarget = {
      name,
      ...(output === undefined ? {} : { stream: output }),
      format,
      options: driverOptions(driver, values),
      ...(backing === undefined ? {} : { backing: { name: backing, format: backingFormat } }),
    };
    const size = values.get('size')?.value;
    await this.#convert(images, target, {
      // qemu-img takes the sources' size whatever -o says.
      ...(typeof size === 'bigint' && !this.#cli.personality.qemu ? { size: Number(size) } : {}),
      onPlan: () => this.#requireCache(),
      failure: (error) => this.#errors.createFailure(name, driver, error),
    });
  }

  #readOptions(driver: FormatDriver): Map<string, CreateValue> {
    const table = createOptionsOf(driver, true);
    const listed = parseOptionList(this.#numbers.list ?? '');
    const values = readCreateOptions(listed, table, this.#cli, !this.#cli.personality.qemu);
    addBackingOptions(driver, values, this.#given.value('backing'), this.#given.value('backing-format'));
    return values;
  }

  #requireCompressible(driver: FormatDriver, values: ReadonlyMap<string, CreateValue>): void {
    if (!this.#given.has('compress')) return;
    if (!driver.capabilities.compress) throw new Failure('Compression not supported for this file format');
    if (values.get('encryption')?.value === true || values.has('encrypt.format')) {
      throw new Failure('Compression and encryption not supported at the same time');
    }
    const preallocation = values.get('preallocation')?.text;
    if (preallocation !== undefined && preallocation !== 'off') {
      throw new Failure('Compression and preallocation not supported at the same time');
    }
  }

  /** Before the target is created. What it takes to copy them is looked at again by the conversion. */
  async #requireBitmaps(
    images: readonly Source[],
    driver: FormatDriver,
    values: ReadonlyMap<string, CreateValue>,
  ): Promise<void> {
    if (!this.#given.has('bitmaps')) return;
    const opened = images.filter((image) => image instanceof Image);
    const windows = opened.map((image) => ({ image, offset: 0, length: image.virtualSize }));
    try {
      // Of a stream the conversion itself finds out.
      if (opened.length === images.length) await bitmapsToCopy(windows, { ...this.#drivers, ...this.#bitmapChoice });
    } catch (error) {
      if (!isBlockError(error) || error.reason?.startsWith('convert.') !== true) throw error;
      throw this.#errors.told(error);
    }
    this.#requireCache();
    const compat = values.get('compat')?.text;
    if (driver.capabilities.bitmaps !== true || compat === 'v2' || compat === '0.10') {
      throw new Failure(`Format driver '${driver.name}' does not support bitmaps`);
    }
  }

  get #bitmapChoice(): Pick<ConvertOptions, 'bitmaps'> {
    if (!this.#given.has('bitmaps')) return {};
    return { bitmaps: this.#given.has('skip-broken-bitmaps') ? 'usable' : 'all' };
  }

  /** @throws {@link Failure} */
  #requireCache(): void {
    const name = this.#given.value('cache');
    if (name !== undefined && cacheMode(name) === undefined) throw new Failure(`Invalid cache option: ${name}`);
  }

  async #intoExisting(images: readonly Source[], operand: string, format: string | undefined): Promise<void> {
    const source = parseImageSource(operand, { imageOpts: this.#given.has('target-image-opts'), format });
    const driver = this.#drivers.formats.find((candidate) => candidate.name === source.format);
    if (this.#given.has('compress') && driver?.capabilities.compress === false) {
      throw new Failure('Compression not supported for this file format');
    }
    this.#requireCache();
    const backing = this.#given.value('backing');
    const { options } = openOptionsOf(this.#cli, this.#drivers, source);
    const target: ConvertTarget = {
      name: source.name,
      format: source.format,
      existing: true,
      ...(backing === undefined ? {} : { backing: { name: backing, format: this.#given.value('backing-format') } }),
      ...(options === undefined ? {} : { openOptions: options }),
    };
    await this.#convert(images, target, {
      targetIsZero: this.#given.has('target-is-zero'),
      failure: (error) => this.#errors.existingFailure(source, error),
    });
  }

  async #convert(
    images: readonly Source[],
    target: ConvertTarget,
    how: Partial<ConvertOptions> & { readonly failure: (error: unknown) => unknown },
  ): Promise<void> {
    const { failure, ...more } = how;
    const cli = this.#cli;
    const mode = this.#given.value('cache');
    try {
      const result = await convertImage([...images], target, {
        ...this.#drivers,
        references: referencePolicy(this.#given),
        probeBacking: true,
        compressed: this.#given.has('compress'),
        sparseSize: this.#numbers.sparseSize,
        parallel: this.#numbers.parallel,
        rateLimit: this.#numbers.rateLimit === 0 ? undefined : this.#numbers.rateLimit,
        outOfOrder: this.#given.has('out-of-order'),
        salvage: this.#given.has('salvage'),
        ...this.#bitmapChoice,
        onBitmapSkipped: (name) => cli.warn(`Skipping inconsistent bitmap '${name}'`),
        cache: mode === undefined ? undefined : cacheMode(mode),
        signal: cli.signal,
        temporary: temporaryIn(this.#given.value('temporary-directory')),
        onSpool: (event) => tellSpool(cli, event),
        onEvent: (event) => reportEvent(cli, event, this.#given.has('quiet')),
        onProgress: this.#display.update,
        onSalvage: (offset, length, error) => this.#errors.salvaged(offset, length, error),
        ...more,
      });
      if (
        result.probedRaw.includes(INPUT_NAME) &&
        !images.some((image) => image instanceof Image && image.name === INPUT_NAME)
      ) {
        warnProbed(cli, INPUT_NAME, 'raw', { quiet: this.#given.has('quiet') });
      }
      const file = fileNameIn(target.name) ?? target.name;
      if (target.existing === true && result.probedRaw.includes(file)) {
        warnProbed(cli, file, 'raw', { readOnly: false, quiet: this.#given.has('quiet') });
      }
    } catch (error) {
      throw (await this.#errors.jobFailure(target, error)) ?? failure(error);
    }
  }
}
