/** `create`: a new, empty image. Owns the order of the checks, which is qemu-img's: what is refused before the `Formatting` line is
 *  printed, and what after it. */
import { type BlockError, isBlockError } from '../../base/errors.ts';
import type { FormatDriver } from '../../core/format.ts';
import { planCreate } from '../../image/create.ts';
import { type ImageDrivers, openImage } from '../../image/open.ts';
import { protocolOf, resolveReference } from '../../image/references.ts';
import { usage } from '../args.ts';
import type { Cli } from '../console.ts';
import {
  type CreateValue,
  createOptionHelp,
  createOptionsOf,
  describeCreateOptions,
  driverOptions,
  readCreateOptions,
} from '../create-options.ts';
import { formatNamed, loadDrivers } from '../drivers.ts';
import { Failure } from '../failure.ts';
import { sizeArgument } from '../numbers.ts';
import { appendOptionList, asksForHelp, parseOptionList } from '../option-list.ts';
import { type Description, describeError } from '../render/describe.ts';
import type { Command } from '../verbs/index.ts';
import { type Scanned, scan } from './common.ts';

export const runCreate: Command = async (cli, args, spec) => {
  let list: string | undefined;
  const given = await scan(cli, spec, args, {
    onOption: ({ spec: { key }, value }) => {
      if (key === 'options') list = appendOptionList(list, value as string);
    },
  });
  const [file, sizeText, surplus] = given.operands;
  const format = given.value('format') ?? 'raw';
  if (list !== undefined && asksForHelp(list)) {
    cli.out.write(
      optionHelp(await loadDrivers(cli.personality, false, given.objects), format, file, cli.personality.qemu),
    );
    return 0;
  }
  if (file === undefined) throw usage('Expecting image file name');
  const size = sizeText === undefined ? undefined : sizeArgument('image size', sizeText, cli);
  if (surplus !== undefined) throw usage(`Unexpected argument: ${surplus}`);
  try {
    await new Creation(cli, await loadDrivers(cli.personality, false, given.objects), given, file).run(
      format,
      list,
      size,
    );
  } catch (error) {
    throw named(file, error);
  }
  return 0;
};

/** The file's name goes in front of every message about it. */
function named(file: string, error: unknown): unknown {
  if (!(error instanceof Failure)) return error;
  const [first, ...rest] = error.lines;
  return new Failure([`${file}: ${first}`, ...rest], {
    cause: error,
    status: error.status,
    ...(error.trailer === undefined ? {} : { trailer: error.trailer }),
  });
}

/** The text of `-o help` for a format.
 *  @throws {@link Failure} */
export function optionHelp(drivers: ImageDrivers, format: string, target: string | undefined, qemu: boolean): string {
  const driver = creatable(drivers, format);
  if (target !== undefined) requireProtocol(drivers, target);
  return createOptionHelp(driver, target !== undefined, qemu);
}

/** The driver, if it can create images. @throws {@link Failure} */
export function creatable(drivers: ImageDrivers, format: string, target?: string): FormatDriver {
  const driver = formatNamed(drivers, format);
  if (driver === undefined) throw new Failure(`Unknown file format '${format}'`);
  if (target !== undefined) requireProtocol(drivers, target);
  if (driver.create === undefined) throw new Failure(`Format driver '${format}' does not support image creation`);
  return driver;
}

/** @throws {@link Failure} for the empty name, which would become that of the directory. */
export function requireName(target: string): void {
  if (target === '') throw new Failure("Could not create '': No such file or directory");
}

function requireProtocol(drivers: ImageDrivers, target: string): void {
  try {
    protocolOf(target, drivers.protocols);
  } catch (error) {
    if (!isBlockError(error)) throw error;
    throw new Failure(`Unknown protocol '${String(error.details['protocol'])}'`, { cause: error });
  }
}

/** Backing file options of the old style, in the list's terms.
 *  @throws {@link Failure} where the format has none. */
export function addBackingOptions(
  driver: FormatDriver,
  values: Map<string, CreateValue>,
  backing: string | undefined,
  backingFormat: string | undefined,
): void {
  const names = new Set(createOptionsOf(driver, true).map((option) => option.name));
  if (backing !== undefined) {
    if (!names.has('backing_file')) throw new Failure(`Backing file not supported for file format '${driver.name}'`);
    values.set('backing_file', { text: backing, value: backing });
  }
  if (backingFormat !== undefined) {
    if (!names.has('backing_fmt')) {
      throw new Failure(`Backing file format not supported for file format '${driver.name}'`);
    }
    values.set('backing_fmt', { text: backingFormat, value: backingFormat });
  }
}

/** Words for an error of creating `target`. QEMU creates in one step where we look and open first. */
export function describeCreation(cli: Cli, target: string, error: BlockError): Description {
  const { text, hint } = describeError(error, cli.personality);
  const own = cli.personality.qemu && error.details['name'] === target;
  return { text: own ? text.replace(/^Could not open /, 'Could not create ') : text, hint };
}

/** QEMU's message when a size cannot be had.
 *  @param table the options of the format tell whether larger clusters would help. */
export function tooLarge(driver: FormatDriver): string {
  const clusters = createOptionsOf(driver, false).some((option) => option.name === 'cluster_size');
  return `The image size is too large for file format '${driver.name}'${clusters ? ' (try using a larger cluster size)' : ''}`;
}

class Creation {
  readonly #cli: Cli;
  readonly #drivers: ImageDrivers;
  readonly #given: Scanned;
  readonly #file: string;

  constructor(cli: Cli, drivers: ImageDrivers, given: Scanned, file: string) {
    this.#cli = cli;
    this.#drivers = drivers;
    this.#given = given;
    this.#file = file;
  }

  async run(format: string, list: string | undefined, operandSize: bigint | undefined): Promise<void> {
    const driver = creatable(this.#drivers, format, this.#file);
    const table = createOptionsOf(driver, true);
    const suggest = !this.#cli.personality.qemu;
    const values = readCreateOptions(parseOptionList(list ?? ''), table, this.#cli, suggest);
    if (values.has('size') && operandSize !== undefined)
      throw new Failure('The image size must be specified only once');
    addBackingOptions(driver, values, this.#given.value('backing'), this.#given.value('backing-format'));
    const optionSize = values.get('size')?.value as bigint | undefined;
    const size = operandSize ?? optionSize ?? (await this.#backingSize(values));
    if (operandSize !== undefined || optionSize !== undefined) await this.#backingSize(values);
    if (size === undefined) throw new Failure('Image creation needs a size parameter');
    values.set('size', { text: String(size), value: size });
    if (!this.#given.has('quiet')) {
      const shown = describeCreateOptions(table, values);
      this.#cli.out.write(`Formatting '${this.#file}', fmt=${driver.name} ${shown}\n`);
    }
    await this.#create(driver, values, size);
  }

  /** Looks at the backing file, if there is one to be looked at.
   *  @returns its size in bytes
   *  @throws {@link Failure} */
  async #backingSize(values: ReadonlyMap<string, CreateValue>): Promise<bigint | undefined> {
    const backing = values.get('backing_file')?.text;
    const format = values.get('backing_fmt')?.text;
    if (backing === undefined) return undefined;
    if (backing === this.#file) {
      throw new Failure('Error: Trying to create an image with the same filename as the backing file');
    }
    if (backing === '') throw new Failure('Expected backing file name, got empty string');
    if (this.#given.has('backing-unsafe')) {
      if (format === undefined) throw new Failure('Backing file specified without backing format');
      return undefined;
    }
    const facts = await this.#lookAt(backing, format);
    if (format === undefined) {
      throw new Failure('Backing file specified without backing format', {
        trailer: `Detected format of ${facts.format}.`,
      });
    }
    return BigInt(facts.size);
  }

  async #lookAt(
    backing: string,
    format: string | undefined,
  ): Promise<{ readonly size: number; readonly format: string }> {
    try {
      const reference = { role: 'backing', name: backing, format, readOnly: true } as const;
      const { resolved } = resolveReference(reference, this.#file, this.#drivers.protocols);
      const image = await openImage(resolved, {
        ...this.#drivers,
        format,
        metadataOnly: true,
        // whoever writes to it does not change them
        forceShare: true,
        references: 'allow',
        probeBacking: true,
        signal: this.#cli.signal,
      });
      const facts = { size: image.virtualSize, format: image.format };
      await image.close();
      return facts;
    } catch (error) {
      if (!isBlockError(error) || error.code === 'ABORTED' || error.code === 'INTERNAL') throw error;
      const { text } = describeError(error, this.#cli.personality);
      throw new Failure(text, {
        cause: error,
        ...(this.#cli.personality.qemu ? { trailer: 'Could not open backing image.\n' } : {}),
      });
    }
  }

  async #create(driver: FormatDriver, values: ReadonlyMap<string, CreateValue>, size: bigint): Promise<void> {
    if (size > BigInt(Number.MAX_SAFE_INTEGER)) throw new Failure(tooLarge(driver));
    const backing = values.get('backing_file')?.text;
    const backingFormat = values.get('backing_fmt')?.text;
    if (backingFormat !== undefined && formatNamed(this.#drivers, backingFormat) === undefined) {
      throw new Failure(`Parameter 'backing-fmt' does not accept value '${backingFormat}'`);
    }
    if (backing === undefined && backingFormat !== undefined) {
      throw new Failure('Backing format cannot be used without backing file');
    }
    requireName(this.#file);
    try {
      const plan = await planCreate(this.#file, {
        ...this.#drivers,
        format: driver,
        size: Number(size),
        options: driverOptions(driver, values),
        // It has been looked at already.
        backingUnchecked: true,
        signal: this.#cli.signal,
        ...(backing === undefined ? {} : { backing: { name: backing, format: backingFormat } }),
      });
      await plan.execute();
    } catch (error) {
      throw this.#failure(driver, error);
    }
  }

  #failure(driver: FormatDriver, error: unknown): unknown {
    if (!isBlockError(error) || error.code === 'ABORTED' || error.code === 'INTERNAL') return error;
    if (this.#cli.personality.qemu && error.code === 'TOO_LARGE')
      return new Failure(tooLarge(driver), { cause: error });
    const { text, hint } = describeCreation(this.#cli, this.#file, error);
    return new Failure(text, { cause: error, ...(hint === undefined ? {} : { trailer: hint }) });
  }
}
