/** Opens the images that a command line names: source, policy, cache modes and what is said when it fails.
 *  Owns the frame of open errors (`Could not open 'NAME': …`) and the warnings that opening brings. */
import { isBlockError } from '../base/errors.ts';
import { cliName, type OptionSchema, parseOptions } from '../base/options.ts';
import type { FormatDriver, ImageEvent, SnapshotSelector } from '../core/format.ts';
import { fileNameIn } from '../image/graph.ts';
import type { Image } from '../image/image.ts';
import { type ImageDrivers, type OpenImageOptions, openImage } from '../image/open.ts';
import type { ReferencePolicy } from '../image/references.ts';
import type { Cli } from './console.ts';
import { Failure } from './failure.ts';
import type { ImageSource } from './image-source.ts';
import type { ListedOption } from './option-list.ts';
import { describeError } from './render/describe.ts';
import { CACHE_MODES, type CacheModeName } from './verbs/common.ts';

export interface OpenChoices {
  readonly readOnly?: boolean;
  /** `-U`. */
  readonly forceShare?: boolean;
  /** Whether others may write to what is read, where its format does not mind. */
  readonly shareWrites?: boolean;
  /** The disk gets another size. */
  readonly resizes?: boolean;
  readonly references?: ReferencePolicy;
  /** Which files may be looked at without opening them; as `references` when not given. */
  readonly lookAt?: ReferencePolicy;
  /** `--with-backing`: stands for the backing file that the image records. */
  readonly backing?: { readonly name: string; readonly format: string } | undefined;
  /** `--with-data-file`: stands for the data file that the image records. */
  readonly dataFile?: string | undefined;
  /** `--open-option`. */
  readonly openOptions?: readonly ListedOption[];
  /** `--cow-layout`. */
  readonly layout?: string | undefined;
  /** `-l`: what this snapshot holds instead of the disk. */
  readonly snapshot?: SnapshotSelector | undefined;
  /** `-q`: a guessed format is not worth a word. */
  readonly quiet?: boolean;
  /** Exit status when it fails. */
  readonly status?: number;
}

/** Opens an image for a verb.
 *  @throws {@link Failure} that names the argument. */
export async function openSource(
  cli: Cli,
  drivers: ImageDrivers,
  source: ImageSource,
  choices: OpenChoices = {},
): Promise<Image> {
  requireShareable(source, choices);
  try {
    const image = await openImage(source.name, openOptionsOf(cli, drivers, source, choices));
    if (image.probedRaw) warnProbed(cli, source.name, image.format, choices);
    return image;
  } catch (error) {
    throw openFailure(cli, source.label, error, choices.status);
  }
}

/** What `openImage` and the tools need for this source. Open options are read when the format is known; those that it does not have make
 *  opening fail with a {@link Failure} or OPTION. */
export function openOptionsOf(
  cli: Cli,
  drivers: ImageDrivers,
  source: ImageSource,
  choices: OpenChoices = {},
): OpenImageOptions {
  return {
    ...drivers,
    format: source.format,
    readOnly: choices.readOnly ?? true,
    options: (driver) => ownOptions(driver, source, choices),
    backing: choices.backing,
    dataFile: named(choices.dataFile),
    forceShare: choices.forceShare,
    shareWrites: choices.shareWrites,
    resizes: choices.resizes,
    snapshot: choices.snapshot,
    references: choices.references ?? 'allow',
    lookAt: choices.lookAt,
    probeBacking: true,
    signal: cli.signal,
    onEvent: (event) => reportEvent(cli, event, choices.quiet),
  };
}

function named(name: string | undefined): { readonly name: string } | undefined {
  return name === undefined ? undefined : { name };
}

/** Reading without locks next to a writer makes sense; writing so does not.
 *  @throws {@link Failure} */
export function requireShareable(source: ImageSource, choices: OpenChoices): void {
  if (choices.forceShare !== true || choices.readOnly !== false) return;
  throw new Failure(`Could not open '${source.label}': force-share=on can only be used with read-only images`);
}

/** The failure of opening `label`. */
export function openFailure(cli: Cli, label: string, error: unknown, status = 1): unknown {
  if (error instanceof Failure) return withStatus(error, status);
  if (!isBlockError(error) || error.code === 'ABORTED' || error.code === 'INTERNAL') return error;
  const { text, hint } = describeError(error, cli.personality);
  const line = cli.personality.qemu ? `Could not open '${label}': ${text}` : text;
  return new Failure(line, { status, cause: error, ...(hint === undefined ? {} : { trailer: hint }) });
}

function withStatus(failure: Failure, status: number): Failure {
  if (failure.status === status) return failure;
  return new Failure(failure.lines, {
    status,
    cause: failure,
    ...(failure.trailer === undefined ? {} : { trailer: failure.trailer }),
  });
}

/** The open option that `--cow-layout` stands for. */
const LAYOUT_OPTION = 'layout';

/** @throws {@link BlockError} OPTION; {@link Failure} */
function ownOptions(
  driver: FormatDriver,
  source: ImageSource,
  { layout, openOptions = [] }: OpenChoices,
): Readonly<Record<string, unknown>> {
  const pairs = openOptions.map(({ name, value }) => [name, value] as const);
  if (layout === undefined) return parseOptions(driver.openOptions, pairs);
  const names = Object.entries(driver.openOptions as OptionSchema).map(([key, def]) => cliName(key, def));
  if (!names.includes(LAYOUT_OPTION)) {
    throw new Failure(`--cow-layout: '${source.label}' is ${driver.name}, which has no layouts to choose from`);
  }
  return parseOptions(driver.openOptions, [[LAYOUT_OPTION, layout], ...pairs]);
}

const LEAKS_REMEDY = "Some clusters may be leaked, run 'qemu-img check -r' on the image file to fix.";

/** QEMU's own words for a warning; its last line has no end. */
const SAID_BY_QEMU: Readonly<Record<string, string>> = {
  'graph.backing-empty': 'Use of "backing": "" is deprecated; use "backing": null instead\n',
  'qcow2.bitmaps-stale': `a program lacking bitmap support modified this file, so all bitmaps are now considered inconsistent\n${LEAKS_REMEDY}`,
  'qcow2.bitmaps-stale-v2': `This qcow2 v2 image contains bitmaps, but they may have been modified by a program without persistent bitmap support; so now they must all be considered inconsistent\n${LEAKS_REMEDY}`,
};

const FOR_QMP: ReadonlySet<string> = new Set(['quorum.child', 'quorum.failure', 'preallocate.failed']);

/** What happens to an image while it is open, as far as people must know it. */
export function reportEvent(cli: Cli, event: ImageEvent, quiet = false): void {
  // What filters tell beside errors is for QMP there.
  if (event.type === 'warning' && cli.personality.qemu && FOR_QMP.has(event.reason)) return;
  // QEMU says nothing of backing files whose format it guesses.
  if (event.type === 'warning' && event.reason === 'image.guessed' && (quiet || cli.personality.qemu)) return;
  if (event.type === 'corrupted') {
    if (!cli.personality.qemu) cli.error(`${event.node}: ${event.message}`);
    else if (event.fatal) {
      cli.err.write(
        `qcow2: Marking image as corrupt: ${event.message}; further corruption events will be suppressed\n`,
      );
    } else {
      cli.err.write(
        `qcow2: Image is corrupt: ${event.message}; further non-fatal corruption events will be suppressed\n`,
      );
    }
  } else if (event.type === 'warning') {
    const said = cli.personality.qemu ? SAID_BY_QEMU[event.reason] : undefined;
    if (said === undefined) cli.warn(event.message);
    else cli.err.write(`${cli.personality.program}: warning: ${said}`);
  } else if (!cli.personality.qemu) cli.warn(event.message);
}

/** Warns of an image whose format was guessed to be raw. QEMU does so only when it is going to be written. */
export function warnProbed(cli: Cli, source: string, format: string, choices: OpenChoices): void {
  const name = fileNameIn(source) ?? source;
  if (!cli.personality.qemu) {
    if (choices.quiet !== true) {
      cli.warn(`'${name}' is taken for ${format}, because nothing else matches; name the format to say so`);
    }
    return;
  }
  if (choices.readOnly !== false) return;
  cli.err.write(
    `WARNING: Image format was not specified for '${name}' and probing guessed raw.\n` +
      '         Automatically detecting the format is dangerous for raw images, write operations on block 0 will be restricted.\n' +
      "         Specify the 'raw' format explicitly to remove the restrictions.\n",
  );
}

/** @returns the mode, when there is one of that name. */
export function cacheMode(name: string): CacheModeName | undefined {
  const found = CACHE_MODES.find((mode) => mode === name);
  return found ?? (name === 'off' ? 'none' : undefined);
}

/** @throws {@link Failure} for names that are no cache mode. */
export function requireSourceCache(name: string | undefined, status = 1): void {
  if (name !== undefined && cacheMode(name) === undefined) {
    throw new Failure(`Invalid source cache option: ${name}`, { status });
  }
}

/** Runs `body` with an image and closes it. */
export async function using<T>(image: Image, body: (image: Image) => Promise<T>): Promise<T> {
  try {
    return await body(image);
  } finally {
    await image.close();
  }
}
