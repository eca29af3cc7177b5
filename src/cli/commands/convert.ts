/** `convert`: copies images into a new one. Owns the order of the checks, which is qemu-img's, the frames of its errors, and what is
 *  said about the target when the work was interrupted. */
import { isBlockError } from '../../base/errors.ts';
import type { FormatDriver } from '../../core/format.ts';
import type { Image } from '../../image/image.ts';
import type { ImageDrivers } from '../../image/open.ts';
import { protocolOf } from '../../image/references.ts';
import { type ConvertOptions, type ConvertTarget, convertImage } from '../../tools/convert.ts';
import type { Given } from '../args.ts';
import { type Cli, Interruption } from '../console.ts';
import {
  type CreateValue,
  createOptionsOf,
  driverOptions,
  encryptionProblem,
  readCreateOptions,
} from '../create-options.ts';
import { loadDrivers } from '../drivers.ts';
import { Failure } from '../failure.ts';
import { type ImageSource, parseImageSource } from '../image-source.ts';
import { parseInteger, safeSizeArgument } from '../numbers.ts';
import {
  cacheMode,
  openFailure,
  openOptionsOf,
  openSource,
  reportEvent,
  requireSourceCache,
  warnProbed,
} from '../open.ts';
import { appendOptionList, asksForHelp, parseOptionList } from '../option-list.ts';
import { ProgressDisplay, progressForm } from '../progress.ts';
import { describeError } from '../render/describe.ts';
import { ioError, qemuText } from '../render/qemu-text.ts';
import { parseSnapshotParam, refuseSnapshot, type SnapshotParam } from '../snapshot-param.ts';
import type { VerbSpec } from '../verbs/common.ts';
import type { Command } from '../verbs/index.ts';
import { referencePolicy, refusal, type Scanned, scan } from './common.ts';
import { progressAsked } from './compare.ts';
import { addBackingOptions, creatable, describeCreation, optionHelp, tooLarge } from './create.ts';

const SECTOR = 512;
const MAX_SPARSE = 16 * 1024 * 1024;
const MAX_PARALLEL = 16;
const STEP = 1;

/** What the options say that must be read in their order. */
interface Numbers {
  list?: string;
  snapshot?: SnapshotParam;
  sparseSize?: number;
  parallel?: number;
  rateLimit?: number;
}

export const runConvert: Command = async (cli, args, spec) => {
  const numbers: Numbers = {};
  const given = await scan(cli, spec, args, {
    later: ['snapshot', 'bitmaps', 'skip-broken-bitmaps'],
    onOption: (option) => readNumber(cli, option, numbers),
  });
  requireSense(given, numbers);
  const sources = given.operands.slice(0, -1);
  const target = sources.length > 0 ? given.operands.at(-1) : undefined;
  const drivers = await loadDrivers(true);
  const format = given.value('target-format') ?? (given.has('target-image-opts') ? undefined : 'raw');
  if (numbers.list !== undefined && asksForHelp(numbers.list)) {
    cli.out.write(optionHelp(drivers, format ?? 'raw', target));
    return 0;
  }
  if (target === undefined) throw new Failure('Must specify image file name');
  requireSourceCache(given.value('source-cache'));
  const display = new ProgressDisplay(cli, progressForm(cli, progressAsked(given), given.has('quiet')), STEP);
  let outcome: 'done' | 'failed' = 'failed';
  try {
    await new Conversion(cli, spec, drivers, given, numbers, display).run(sources, target, format);
    display.complete();
    outcome = 'done';
    return 0;
  } finally {
    display.end(outcome);
    await drivers.codecs?.close();
  }
};

function readNumber(cli: Cli, { spec: { key }, value }: Given, into: Numbers): void {
  const text = value ?? '';
  switch (key) {
    case 'options':
      into.list = appendOptionList(into.list, text);
      return;
    case 'snapshot':
      into.snapshot = parseSnapshotParam(text);
      return;
    case 'sparse-size': {
      const size = safeSizeArgument('buffer size for sparse output', text, cli);
      if (size % SECTOR !== 0 || size > MAX_SPARSE) {
        throw new Failure(
          `Invalid buffer size for sparse output specified. Valid sizes are multiples of ${SECTOR} up to ${MAX_SPARSE}. ` +
            'Select 0 to disable sparse detection (fully allocates output).',
        );
      }
      into.sparseSize = size;
      return;
    }
    case 'parallel': {
      const count = parseInteger(text);
      if (count === undefined || count < 1n || count > BigInt(MAX_PARALLEL)) {
        throw new Failure(
          `Invalid number of coroutines. Allowed number of coroutines is between 1 and ${MAX_PARALLEL}`,
        );
      }
      into.parallel = Number(count);
      return;
    }
    case 'rate-limit':
      into.rateLimit = safeSizeArgument('rate limit', text, cli);
      return;
  }
}

/** Options that contradict each other, in qemu-img's order. */
function requireSense(given: Scanned, numbers: Numbers): void {
  const existing = given.has('no-create');
  if (given.has('skip-broken-bitmaps') && !given.has('bitmaps')) {
    throw new Failure('Use of --skip-broken-bitmaps requires --bitmaps');
  }
  if (given.has('target-image-opts') && !existing) throw new Failure('--target-image-opts requires use of -n flag');
  if (given.has('copy-offloading')) {
    if (numbers.sparseSize !== undefined) throw new Failure('Cannot enable copy offloading when -S is used');
    if (given.has('compress')) throw new Failure('Cannot enable copy offloading when -c is used');
  }
  if (existing && numbers.list !== undefined) throw new Failure('-o has no effect when skipping image creation');
  if (given.has('target-is-zero') && !existing) throw new Failure('--target-is-zero requires use of -n flag');
}

class Conversion {
  readonly #cli: Cli;
  readonly #spec: VerbSpec;
  readonly #drivers: ImageDrivers;
  readonly #given: Scanned;
  readonly #numbers: Numbers;
  readonly #display: ProgressDisplay;

  constructor(
    cli: Cli,
    spec: VerbSpec,
    drivers: ImageDrivers,
    given: Scanned,
    numbers: Numbers,
    display: ProgressDisplay,
  ) {
    this.#cli = cli;
    this.#spec = spec;
    this.#drivers = drivers;
    this.#given = given;
    this.#numbers = numbers;
    this.#display = display;
  }

  async run(sources: readonly string[], target: string, format: string | undefined): Promise<void> {
    const images: Image[] = [];
    try {
      for (const source of sources) images.push(await this.#open(source));
      await this.#refuseSnapshot(images);
      if (this.#given.has('no-create')) await this.#intoExisting(images, target, format);
      else await this.#intoNew(images, target, format ?? 'raw');
    } finally {
      for (const image of images) await image.close();
    }
  }

  #open(operand: string): Promise<Image> {
    const source = parseImageSource(operand, {
      imageOpts: this.#given.has('image-opts'),
      format: this.#given.value('format'),
    });
    return openSource(this.#cli, this.#drivers, source, {
      references: referencePolicy(this.#given),
      forceShare: this.#given.has('force-share'),
    });
  }

  async #refuseSnapshot(images: readonly Image[]): Promise<void> {
    const { snapshot } = this.#numbers;
    if (snapshot === undefined) return;
    if (images.length > 1) throw new Failure('No support for concatenating multiple snapshot');
    await refuseSnapshot(images[0] as Image, snapshot, refusal(this.#spec, 'snapshot'));
  }

  async #intoNew(images: readonly Image[], name: string, format: string): Promise<void> {
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
    const encryption = encryptionProblem(values, (id) => this.#given.objects.secret(id));
    if (encryption !== undefined) throw this.#framed(name, format, encryption);
    if (backing === undefined && backingFormat !== undefined) {
      const known = this.#drivers.formats.some((candidate) => candidate.name === backingFormat);
      throw this.#framed(
        name,
        format,
        known
          ? 'Backing format cannot be used without backing file'
          : `Parameter 'backing-fmt' does not accept value '${backingFormat}'`,
      );
    }
    if (name === '') throw this.#framed(name, format, "Could not create '': No such file or directory");
    const target: ConvertTarget = {
      name,
      format,
      options: driverOptions(driver, values),
      ...(backing === undefined ? {} : { backing: { name: backing, format: backingFormat } }),
    };
    const size = values.get('size')?.value;
    await this.#convert(images, target, {
      // qemu-img takes the sources' size whatever -o says.
      ...(typeof size === 'bigint' && !this.#cli.personality.qemu ? { size: Number(size) } : {}),
      onPlan: () => this.#requireCache(),
      failure: (error) => this.#createFailure(name, driver, error),
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

  /** Copying no bitmaps is possible already. */
  async #requireBitmaps(
    images: readonly Image[],
    driver: FormatDriver,
    values: ReadonlyMap<string, CreateValue>,
  ): Promise<void> {
    if (!this.#given.has('bitmaps')) return;
    const [source] = images as [Image];
    const { specific } = await source.info();
    if (specific?.type !== 'qcow2' || specific.data['compat'] === '0.10')
      throw new Failure('Source lacks bitmap support');
    this.#requireCache();
    const compat = values.get('compat')?.text;
    if (driver.name !== 'qcow2' || compat === 'v2' || compat === '0.10') {
      throw new Failure(`Format driver '${driver.name}' does not support bitmaps`);
    }
    const bitmaps = specific.data['bitmaps'];
    if (Array.isArray(bitmaps) && bitmaps.length > 0) throw refusal(this.#spec, 'bitmaps');
  }

  /** @throws {@link Failure} */
  #requireCache(): void {
    const name = this.#given.value('cache');
    if (name !== undefined && cacheMode(name) === undefined) throw new Failure(`Invalid cache option: ${name}`);
  }

  async #intoExisting(images: readonly Image[], operand: string, format: string | undefined): Promise<void> {
    const source = parseImageSource(operand, { imageOpts: this.#given.has('target-image-opts'), format });
    const driver = this.#drivers.formats.find((candidate) => candidate.name === source.format);
    if (this.#given.has('compress') && driver?.capabilities.compress === false) {
      throw new Failure('Compression not supported for this file format');
    }
    this.#requireCache();
    const { options } = openOptionsOf(this.#cli, this.#drivers, source);
    const target: ConvertTarget = {
      name: source.name,
      format: source.format,
      existing: true,
      ...(options === undefined ? {} : { openOptions: options }),
    };
    await this.#convert(images, target, {
      targetIsZero: this.#given.has('target-is-zero'),
      failure: (error) => this.#existingFailure(source, error),
    });
  }

  async #convert(
    images: readonly Image[],
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
        cache: mode === undefined ? undefined : cacheMode(mode),
        signal: cli.signal,
        onEvent: (event) => reportEvent(cli, event),
        onProgress: this.#display.update,
        onSalvage: (offset, length, error) => this.#salvaged(offset, length, error),
        ...more,
      });
      if (target.existing === true) {
        for (const name of result.probedRaw) if (name === target.name) warnProbed(cli, name);
      }
    } catch (error) {
      throw (await this.#jobFailure(target, error)) ?? failure(error);
    }
  }

  #salvaged(offset: number, length: number, error: unknown): void {
    const why = this.#cli.personality.qemu ? ioError(error) : error instanceof Error ? error.message : String(error);
    // qemu-img reads again sector by sector and tells of each one.
    if (this.#cli.personality.qemu) {
      for (let at = offset; at < offset + length; at += SECTOR)
        this.#cli.warn(`error while reading offset ${at}: ${why}`);
    } else this.#cli.warn(`${length} bytes at ${offset} could not be read and became zeros: ${why}`);
  }

  /** What happened while copying; `undefined` for everything before. */
  async #jobFailure(target: ConvertTarget, error: unknown): Promise<unknown> {
    if (!isBlockError(error)) return error;
    const qemu = this.#cli.personality.qemu;
    if (error.code === 'ABORTED') return this.#interrupted(target, error.details['incomplete'] === true, error);
    if (error.code === 'INTERNAL') return error;
    const { offset } = error.details;
    const jobError = (text: string): Failure => new Failure(qemu ? text : error.message, { cause: error });
    switch (error.reason) {
      case 'convert.read':
        return jobError(`error while reading at byte ${offset}: ${ioError(error)}`);
      case 'convert.status':
        return jobError(`error while reading block status at offset ${offset}: ${ioError(error)}`);
      case 'convert.write':
        return jobError(`error while writing at byte ${offset}: ${ioError(error)}`);
      case 'convert.target-is-input': {
        if (!qemu) return new Failure(error.message, { cause: error });
        const text =
          target.existing === true
            ? `Could not open '${target.name}'`
            : `${target.name}: error while converting ${target.format}`;
        return new Failure(`${text}: Failed to get "write" lock`, {
          trailer: `Is another process using the image [${target.name}]?\n`,
          cause: error,
        });
      }
      default:
        if (error.reason?.startsWith('convert.') !== true) return undefined;
        return new Failure(describeError(error, this.#cli.personality).text, { cause: error });
    }
  }

  async #interrupted(target: ConvertTarget, incomplete: boolean, error: unknown): Promise<unknown> {
    const { reason } = this.#cli.signal;
    if (!(reason instanceof Interruption)) return error;
    const there = (await protocolOf(target.name, this.#drivers.protocols).status?.(target.name)) !== undefined;
    const rest = there ? `'${target.name}' is as it was before` : `'${target.name}' does not exist`;
    const what = incomplete ? `'${target.name}' is incomplete` : `the unfinished copy was removed, ${rest}`;
    return new Failure(`interrupted: ${what}`, { status: reason.status, cause: error });
  }

  #createFailure(name: string, driver: FormatDriver, error: unknown): unknown {
    if (!isBlockError(error)) return error;
    if (!this.#cli.personality.qemu) return new Failure(error.message, { cause: error });
    if (error.reason === 'create.backing-open') {
      const cause = isBlockError(error.cause) ? error.cause : error;
      if (cause.reason === 'image.unknown-format') {
        return this.#framed(
          name,
          driver.name,
          `Parameter 'backing-fmt' does not accept value '${cause.details['format']}'`,
        );
      }
      return new Failure(`Could not open '${name}': Could not open backing file: ${qemuText(cause).text}`, {
        cause: error,
      });
    }
    if (error.code === 'TOO_LARGE' && error.reason !== 'raw.device-small')
      return this.#framed(name, driver.name, tooLarge(driver), error);
    return this.#framed(name, driver.name, describeCreation(this.#cli, name, error).text, error);
  }

  #framed(name: string, format: string, text: string, cause?: unknown): Failure {
    const line = this.#cli.personality.qemu ? `${name}: error while converting ${format}: ${text}` : `${name}: ${text}`;
    return new Failure(line, { cause });
  }

  #existingFailure(target: ImageSource, error: unknown): unknown {
    // Without O_CREAT a directory is refused by the system, not by the format layer.
    if (this.#cli.personality.qemu && isBlockError(error) && error.details['kind'] === 'directory') {
      return new Failure(`Could not open '${target.label}': Could not open '${target.name}': Is a directory`, {
        cause: error,
      });
    }
    return openFailure(this.#cli, target.label, error);
  }
}
