/** What `convert` says when it fails: qemu-img's frames around each error, and what became of the target. */
import { type BlockError, isBlockError } from '../../base/errors.ts';
import type { FormatDriver } from '../../core/format.ts';
import { fileNameIn } from '../../image/graph.ts';
import type { ImageDrivers } from '../../image/open.ts';
import { protocolOf } from '../../image/references.ts';
import type { ConvertTarget } from '../../tools/convert.ts';
import { type Cli, Interruption } from '../console.ts';
import { Failure } from '../failure.ts';
import type { ImageSource } from '../image-source.ts';
import { openFailure } from '../open.ts';
import { describeError } from '../render/describe.ts';
import { ioError, qemuText } from '../render/qemu-text.ts';
import { describeCreation, tooLarge } from './create.ts';

/** Bytes. */
const SECTOR = 512;

function isBrokenPipe({ details, cause }: BlockError): boolean {
  return details['errno'] === 'EPIPE' || (isBlockError(cause) && isBrokenPipe(cause));
}

/** Words for what goes wrong in one conversion. */
export class ConvertErrors {
  readonly #cli: Cli;
  readonly #drivers: ImageDrivers;

  constructor(cli: Cli, drivers: ImageDrivers) {
    this.#cli = cli;
    this.#drivers = drivers;
  }

  /** Warns of what could not be read and became zeros. Bytes. */
  salvaged(offset: number, length: number, error: unknown): void {
    const why = this.#cli.personality.qemu ? ioError(error) : error instanceof Error ? error.message : String(error);
    // qemu-img reads again sector by sector and tells of each one.
    if (this.#cli.personality.qemu) {
      for (let at = offset; at < offset + length; at += SECTOR)
        this.#cli.warn(`error while reading offset ${at}: ${why}`);
    } else this.#cli.warn(`${length} bytes at ${offset} could not be read and became zeros: ${why}`);
  }

  /** What happened while copying; `undefined` for everything before. */
  async jobFailure(target: ConvertTarget, error: unknown): Promise<unknown> {
    if (!isBlockError(error)) return error;
    const qemu = this.#cli.personality.qemu;
    if (error.code === 'ABORTED') return this.#interrupted(target, error.details['incomplete'] === true, error);
    if (error.code === 'INTERNAL') return error;
    const { offset } = error.details;
    if (target.stream !== undefined && isBrokenPipe(error)) {
      return new Failure(`${target.name}: the program that reads it has ended before the image did (broken pipe)`, {
        cause: error,
      });
    }
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
        return this.told(error);
    }
  }

  /** An error that speaks for itself. */
  told(error: BlockError): Failure {
    const { text, hint } = describeError(error, this.#cli.personality);
    return new Failure(text, { cause: error, ...(hint === undefined ? {} : { trailer: hint }) });
  }

  async #interrupted(target: ConvertTarget, incomplete: boolean, error: unknown): Promise<unknown> {
    const { reason } = this.#cli.signal;
    if (!(reason instanceof Interruption)) return error;
    if (target.stream !== undefined) {
      return new Failure(`interrupted: what went to ${target.name} is incomplete`, {
        status: reason.status,
        cause: error,
      });
    }
    const file = fileNameIn(target.name);
    const protocol = file === undefined ? undefined : protocolOf(file, this.#drivers.protocols);
    const there = file === undefined || (await protocol?.status?.(file)) !== undefined;
    const rest = there ? `'${target.name}' is as it was before` : `'${target.name}' does not exist`;
    const what = incomplete ? `'${target.name}' is incomplete` : `the unfinished copy was removed, ${rest}`;
    return new Failure(`interrupted: ${what}`, { status: reason.status, cause: error });
  }

  /** The failure of creating the target. */
  createFailure(name: string, driver: FormatDriver, error: unknown): unknown {
    if (!isBlockError(error)) return error;
    if (!this.#cli.personality.qemu) return new Failure(error.message, { cause: error });
    if (error.reason === 'create.backing-open') {
      const cause = isBlockError(error.cause) ? error.cause : error;
      if (cause.reason === 'image.unknown-format') {
        return this.framed(
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
      return this.framed(name, driver.name, tooLarge(driver), error);
    return this.framed(name, driver.name, describeCreation(this.#cli, name, error).text, error, lockHint(error));
  }

  /** The failure of creating the target of `dd`. */
  creating(name: string, driver: FormatDriver, error: unknown): unknown {
    if (!isBlockError(error) || error.code === 'INTERNAL') return error;
    if (!this.#cli.personality.qemu) return new Failure(error.message, { cause: error });
    const tooBig = error.code === 'TOO_LARGE' && error.reason !== 'raw.device-small';
    const text = tooBig ? tooLarge(driver) : describeCreation(this.#cli, name, error).text;
    return this.creatingText(name, text, error, lockHint(error));
  }

  creatingText(name: string, text: string, cause?: unknown, trailer?: string): Failure {
    const line = this.#cli.personality.qemu
      ? `${name}: error while creating output image: ${text}`
      : `${name}: ${text}`;
    return new Failure(line, { cause, ...(trailer === undefined ? {} : { trailer }) });
  }

  /** QEMU's frame of such failures. */
  framed(name: string, format: string, text: string, cause?: unknown, trailer?: string): Failure {
    const line = this.#cli.personality.qemu ? `${name}: error while converting ${format}: ${text}` : `${name}: ${text}`;
    return new Failure(line, { cause, ...(trailer === undefined ? {} : { trailer }) });
  }

  /** The failure of opening a target that should be there. */
  existingFailure(target: ImageSource, error: unknown): unknown {
    // Without O_CREAT a directory is refused by the system, not by the format layer.
    if (this.#cli.personality.qemu && isBlockError(error) && error.details['kind'] === 'directory') {
      return new Failure(`Could not open '${target.label}': Could not open '${target.name}': Is a directory`, {
        cause: error,
      });
    }
    return openFailure(this.#cli, target.label, error);
  }
}

/** Who may be using it, where that is what is wrong. */
function lockHint(error: BlockError): string | undefined {
  return error.code === 'LOCKED' ? qemuText(error).hint : undefined;
}
