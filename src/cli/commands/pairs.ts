/** What verbs of two images share: opening both, with their snapshots, and the size of blocks. */
import type { SnapshotSelector } from '../../core/format.ts';
import type { Image } from '../../image/image.ts';
import type { ImageDrivers } from '../../image/open.ts';
import type { Given } from '../args.ts';
import type { Cli } from '../console.ts';
import { Failure } from '../failure.ts';
import { parseQemuSize } from '../numbers.ts';
import { openSource, using } from '../open.ts';
import { parseSnapshotParam, throwSnapshotFailure } from '../snapshot-param.ts';
import { commonChoices, openChoices, type Scanned, sourceOf } from './common.ts';

/** What is read while options are met. */
export class PairChoices {
  #first: SnapshotSelector | undefined;
  #second: SnapshotSelector | undefined;
  /** Bytes; whether they make sense the library says. */
  block: number | undefined;

  /** For `scan`. @throws {@link Failure} */
  readonly note = ({ spec: { key }, value }: Given): void => {
    if (key === 'snapshot') this.#first = parseSnapshotParam(value as string);
    if (key === 'snapshot2') this.#second = parseSnapshotParam(value as string);
    if (key === 'block') this.block = blockSize(value as string);
  };

  /** Opens both for reading, and closes them. @throws {@link Failure} */
  async using<T>(
    cli: Cli,
    drivers: ImageDrivers,
    given: Scanned,
    [first, second]: readonly [string, string],
    body: (first: Image, second: Image) => Promise<T>,
  ): Promise<T> {
    const a = await this.#open(cli, drivers, given, first, 'format', this.#first);
    return await using(a, async () => {
      const b = await this.#open(cli, drivers, given, second, 'format2', this.#second);
      return await using(b, () => body(a, b));
    });
  }

  async #open(
    cli: Cli,
    drivers: ImageDrivers,
    given: Scanned,
    operand: string,
    formatKey: 'format' | 'format2',
    snapshot: SnapshotSelector | undefined,
  ): Promise<Image> {
    const choices = formatKey === 'format' ? openChoices(given) : commonChoices(given);
    try {
      return await openSource(cli, drivers, sourceOf(given, operand, formatKey), { ...choices, snapshot });
    } catch (error) {
      throwSnapshotFailure(error, cli.personality);
    }
  }
}

function blockSize(text: string): number {
  const parsed = parseQemuSize(text);
  const value = typeof parsed === 'object' ? Number(parsed.value) : 0;
  if (value >= 1 && value <= 2 ** 20 && Number.isInteger(Math.log2(value))) return value;
  throw new Failure(`--block: expected a power of two from 1 to 1M, not '${text}'`);
}
