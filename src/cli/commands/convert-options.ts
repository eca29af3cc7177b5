/** The options of `convert` that are read in their order, and those that contradict each other. */
import type { SnapshotSelector } from '../../core/format.ts';
import type { Given } from '../args.ts';
import type { Cli } from '../console.ts';
import { Failure } from '../failure.ts';
import { parseInteger, safeSizeArgument } from '../numbers.ts';
import { appendOptionList } from '../option-list.ts';
import { parseSnapshotParam } from '../snapshot-param.ts';
import type { Scanned } from './common.ts';

/** Bytes. */
const SECTOR = 512;
const MAX_SPARSE = 16 * 1024 * 1024;
const MAX_PARALLEL = 16;

/** What the options say that must be read in their order. */
export interface Numbers {
  list?: string;
  snapshot?: SnapshotSelector;
  sparseSize?: number;
  parallel?: number;
  rateLimit?: number;
  inputSize?: number;
}

/** Reads the value of one option, if it is one of those.
 *  @throws {@link Failure} in QEMU's words. */
export function readNumber(cli: Cli, { spec: { key }, value }: Given, into: Numbers): void {
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
        if (!cli.personality.qemu) {
          throw new Failure(`invalid number of requests '${text}': expected a whole number from 1 to ${MAX_PARALLEL}`);
        }
        throw new Failure(
          `Invalid number of coroutines. Allowed number of coroutines is between 1 and ${MAX_PARALLEL}`,
        );
      }
      into.parallel = Number(count);
      return;
    }
    case 'input-size':
      into.inputSize = safeSizeArgument('input size', text, cli);
      return;
    case 'rate-limit':
      into.rateLimit = safeSizeArgument('rate limit', text, cli);
      return;
  }
}

/** Refuses options that contradict each other, in qemu-img's order.
 *  @throws {@link Failure} */
export function requireSense(given: Scanned, numbers: Numbers): void {
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
