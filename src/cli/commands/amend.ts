/** `amend`: changes what an image was created with. Owns the order of the checks, which is qemu-img's. */
import { isBlockError } from '../../base/errors.ts';
import type { FormatDriver } from '../../core/format.ts';
import type { Image } from '../../image/image.ts';
import { type ImageDrivers, openImage } from '../../image/open.ts';
import type { Cli } from '../console.ts';
import { amendments, amendOptionHelp, readAmendOptions } from '../create-options.ts';
import { formatNamed, loadDrivers } from '../drivers.ts';
import { Failure } from '../failure.ts';
import { type OpenChoices, openOptionsOf, requireShareable, using, warnProbed } from '../open.ts';
import { appendOptionList, asksForHelp, parseOptionList } from '../option-list.ts';
import { ProgressDisplay, progressForm } from '../progress.ts';
import { describeError } from '../render/describe.ts';
import { progressLine } from '../render/human.ts';
import type { Command } from '../verbs/index.ts';
import { openChoices, type Scanned, scan, sourceOf } from './common.ts';
import { progressAsked } from './compare.ts';
import { jobFailure, targetCache } from './jobs.ts';

/** Percent between two prints of `-p`. */
const STEP = 1;

export const runAmend: Command = async (cli, args, spec) => {
  let list: string | undefined;
  const given = await scan(cli, spec, args, {
    onOption: ({ spec: { key }, value }) => {
      if (key === 'options') list = appendOptionList(list, value as string);
    },
  });
  if (list === undefined) throw new Failure('Must specify options (-o)', { hint: 'help' });
  await new Amendment(cli, given, list).run();
  return 0;
};

class Amendment {
  readonly #cli: Cli;
  readonly #given: Scanned;
  readonly #list: string;
  readonly #quiet: boolean;
  #display: ProgressDisplay | undefined;

  constructor(cli: Cli, given: Scanned, list: string) {
    this.#cli = cli;
    this.#given = given;
    this.#list = list;
    this.#quiet = given.has('quiet');
  }

  async run(): Promise<void> {
    const form = progressForm(this.#cli, progressAsked(this.#given), this.#quiet);
    const drivers = await loadDrivers(this.#cli.personality, true, this.#given.objects);
    let outcome: 'done' | 'failed' = 'failed';
    try {
      const format = this.#given.value('format');
      if (format !== undefined && asksForHelp(this.#list)) this.#help(drivers, format);
      else
        await this.#amend(drivers, () => {
          this.#display = new ProgressDisplay(this.#cli, form, STEP);
          return this.#display;
        });
      outcome = 'done';
    } finally {
      await drivers.codecs?.close();
      if (this.#display !== undefined) this.#display.end(outcome);
      // qemu-img ends its line of progress even where it has not begun.
      else if (form === 'qemu' && this.#cli.personality.qemu) this.#cli.out.write('\n');
    }
  }

  #help(drivers: ImageDrivers, format: string): void {
    const driver = formatNamed(drivers, format);
    if (driver === undefined) throw new Failure(`Unknown file format '${format}'`);
    requireAmendable(driver);
    this.#cli.out.write(amendOptionHelp(driver));
  }

  async #amend(drivers: ImageDrivers, show: () => ProgressDisplay): Promise<void> {
    const [operand, ...more] = this.#given.operands;
    if (operand === undefined || more.length > 0) throw new Failure('Expecting one image file name');
    const source = sourceOf(this.#given, operand);
    const unsafe = targetCache(this.#given) === 'unsafe';
    const choices: OpenChoices = { ...openChoices(this.#given), readOnly: false };
    requireShareable(source, choices);
    const left = `'${source.label}' holds what it held; amend it again to bring it to its end`;
    try {
      const image = await openImage(source.name, {
        ...openOptionsOf(this.#cli, drivers, source, choices),
        unsafe,
      });
      await using(image, async () => {
        if (image.probedRaw) warnProbed(this.#cli, source.name, image.format, choices);
        await this.#change(image, requireDriver(drivers, image), show);
      });
    } catch (error) {
      throw jobFailure(this.#cli, 'amend', source.label, left, error);
    }
  }

  async #change(image: Image, driver: FormatDriver, show: () => ProgressDisplay): Promise<void> {
    const { personality, signal } = this.#cli;
    requireAmendable(driver);
    if (asksForHelp(this.#list)) {
      this.#cli.out.write(amendOptionHelp(driver));
      return;
    }
    const values = readAmendOptions(parseOptionList(this.#list), driver, this.#cli, !personality.qemu);
    const display = show();
    try {
      await image.amend(amendments(driver, values), {
        force: this.#given.has('force'),
        signal,
        onProgress: (progress) => {
          // qemu-img prints every zero that it is told.
          if (personality.qemu && this.#given.has('progress') && !this.#quiet && progress.done === 0) {
            this.#cli.out.write(progressLine(0));
          }
          display.update(progress);
        },
      });
      display.complete();
    } catch (error) {
      if (personality.qemu) display.complete();
      throw this.#failure(error);
    }
  }

  /** What is wrong is said as it is: the image was opened already. */
  #failure(error: unknown): unknown {
    if (!isBlockError(error) || error.code === 'ABORTED' || error.code === 'INTERNAL') return error;
    const { text, hint } = describeError(error, this.#cli.personality);
    return new Failure(text, { cause: error, ...(hint === undefined ? {} : { trailer: hint }) });
  }
}

/** @throws {@link Failure} */
function requireAmendable(driver: FormatDriver): void {
  if (driver.amendOptions !== undefined) return;
  throw new Failure(`Format driver '${driver.name}' does not support option amendment`);
}

function requireDriver(drivers: ImageDrivers, image: Image): FormatDriver {
  return formatNamed(drivers, image.format) as FormatDriver;
}
