/** `resize`: another size for the disk. Owns the order of the checks, which is qemu-img's. */
import { isBlockError } from '../../base/errors.ts';
import type { Image } from '../../image/image.ts';
import { openImage } from '../../image/open.ts';
import { usage } from '../args.ts';
import type { Cli } from '../console.ts';
import { loadDrivers } from '../drivers.ts';
import { Failure } from '../failure.ts';
import { hexSuffixWarning, parseQemuSize } from '../numbers.ts';
import { type OpenChoices, openOptionsOf, requireShareable, using, warnProbed } from '../open.ts';
import { describeError } from '../render/describe.ts';
import type { Command } from '../verbs/index.ts';
import { PREALLOCATION_MODES } from '../verbs/resize.ts';
import { openChoices, scan, sourceOf } from './common.ts';
import { jobFailure } from './jobs.ts';

type Mode = (typeof PREALLOCATION_MODES)[number];

/** What is asked of the size. */
interface Asked {
  /** -1, 0 or 1: smaller or larger by `bytes`, or `bytes` itself. */
  readonly relative: bigint;
  readonly bytes: bigint;
}

export const runResize: Command = async (cli, args, spec) => {
  if (args.length < 2) {
    // There is no size that could be taken from them; help may be asked for.
    if (!cli.personality.qemu) await scan(cli, spec, args);
    throw usage('Not enough arguments');
  }
  let mode: Mode = 'off';
  const given = await scan(cli, spec, args.slice(0, -1), {
    onOption: ({ spec: { key }, value }) => {
      if (key === 'preallocation') mode = preallocationMode(value as string);
    },
  });
  const [operand, ...more] = given.operands;
  if (operand === undefined || more.length > 0) throw usage('Expecting image file name and size');
  const asked = sizeAsked(cli, args.at(-1) as string);
  const source = sourceOf(given, operand);
  const choices: OpenChoices = { ...openChoices(given), readOnly: false, resizes: true };
  const drivers = await loadDrivers(cli.personality, true, given.objects);
  requireShareable(source, choices);
  try {
    const image = await openImage(source.name, openOptionsOf(cli, drivers, source, choices));
    await using(image, async () => {
      if (image.probedRaw) warnProbed(cli, source.name, image.format, choices);
      const size = newSize(image, asked, mode, given.has('shrink'));
      try {
        await image.resize(size, { shrink: true, preallocation: mode });
      } catch (error) {
        throw failure(cli, error);
      }
      if (!given.has('quiet')) cli.out.write('Image resized.\n');
    });
  } catch (error) {
    throw jobFailure(cli, 'resize', source.label, `'${source.label}' has the old size or the new one`, error);
  } finally {
    await drivers.codecs?.close();
  }
  return 0;
};

/** @throws {@link Failure} */
function preallocationMode(text: string): Mode {
  const mode = PREALLOCATION_MODES.find((known) => known === text);
  if (mode === undefined) throw new Failure(`Invalid preallocation mode '${text}'`);
  return mode;
}

/** @throws {@link Failure} in QEMU's words. */
function sizeAsked(cli: Cli, text: string): Asked {
  const relative = text.startsWith('+') ? 1n : text.startsWith('-') ? -1n : 0n;
  const number = relative === 0n ? text : text.slice(1);
  const parsed = parseQemuSize(number);
  if (parsed === 'malformed' && !cli.personality.qemu) {
    throw new Failure(
      `invalid size '${text}': expected a number of bytes, or one with k, M, G, T, P or E behind it; + or - before it adds or takes away`,
    );
  }
  if (parsed === 'malformed') {
    throw new Failure("Parameter 'size' expects a non-negative number below 2^64", {
      trailer:
        'Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\nand exabytes, respectively.\n',
    });
  }
  if (parsed === 'range') throw new Failure(`Value '${number}' is out of range for parameter 'size'`);
  if (parsed.suffixedHex) cli.warn(hexSuffixWarning(number));
  return { relative, bytes: parsed.value };
}

/** @throws {@link Failure} in QEMU's words. */
function newSize(image: Image, { relative, bytes }: Asked, mode: Mode, shrink: boolean): number {
  const present = BigInt(image.virtualSize);
  const size = BigInt.asIntN(64, relative === 0n ? bytes : present + relative * bytes);
  if (size <= 0n) throw new Failure('New image size must be positive');
  if (size <= present && mode !== 'off') throw new Failure('Preallocation can only be used for growing images');
  if (size < present && !shrink) {
    throw new Failure([
      'Use the --shrink option to perform a shrink operation.',
      "warning: Shrinking an image will delete all data beyond the shrunken image's end. Before performing such an operation, make sure there is no important data there.",
    ]);
  }
  if (size > BigInt(Number.MAX_SAFE_INTEGER)) {
    throw new Failure(`a disk of ${size} bytes is not supported; the largest has ${Number.MAX_SAFE_INTEGER}`);
  }
  return Number(size);
}

/** What is wrong is said as it is: the image was opened already. */
function failure(cli: Cli, error: unknown): unknown {
  if (!isBlockError(error) || error.code === 'ABORTED' || error.code === 'INTERNAL') return error;
  const { text, hint } = describeError(error, cli.personality);
  return new Failure(text, { cause: error, ...(hint === undefined ? {} : { trailer: hint }) });
}
