/** How the shell opens images: what the program's options, `open` and `reopen` ask for, and what is said when it fails.
 *  Invariant: after a failure nothing that was opened here stays open. */
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { isBlockError } from '../../base/errors.ts';
import { cliName, type OptionSchema } from '../../base/options.ts';
import type { DiscardMode } from '../../core/format.ts';
import { createImage } from '../../image/create.ts';
import type { Image } from '../../image/image.ts';
import { type ImageDrivers, openImage } from '../../image/open.ts';
import type { Cli } from '../console.ts';
import { formatNamed, loadDrivers } from '../drivers.ts';
import { Failure } from '../failure.ts';
import type { ImageSource } from '../image-source.ts';
import type { Objects } from '../objects.ts';
import { cacheMode, type OpenChoices, openOptionsOf, requireShareable, warnProbed } from '../open.ts';
import { describeError } from '../render/describe.ts';
import type { CacheModeName } from '../verbs/common.ts';

/** How the host is asked for data. All are the same here, but not every combination is allowed. */
export type AioMode = 'threads' | 'native' | 'io_uring';

export interface OpenRequest {
  readonly source: ImageSource;
  /** The name that messages have; `undefined` where there are options only. */
  readonly label: string | undefined;
  readonly readOnly: boolean;
  readonly cache: CacheModeName;
  readonly aio: AioMode;
  readonly discard: DiscardMode;
  /** `-s`. */
  readonly overlay: boolean;
  /** `-C`. */
  readonly copyOnRead: boolean;
  readonly forceShare: boolean;
}

/** An open image, and how it was asked for. */
export interface Opened {
  readonly request: OpenRequest;
  readonly image: Image;
  readonly writethrough: boolean;
  readonly copyOnRead: boolean;
  close(): Promise<void>;
}

/** @throws {@link Failure} */
export function cacheArgument(name: string): CacheModeName {
  const mode = cacheMode(name);
  if (mode === undefined) throw new Failure(`Invalid cache option: ${name}`);
  return mode;
}

/** @throws {@link Failure} */
export function discardArgument(name: string): DiscardMode {
  if (name === 'unmap' || name === 'on') return 'unmap';
  if (name === 'ignore' || name === 'off') return 'ignore';
  throw new Failure(`Invalid discard option: ${name}`);
}

/** @throws {@link Failure} */
export function aioArgument(name: string): AioMode {
  if (name === 'threads' || name === 'native' || name === 'io_uring') return name;
  throw new Failure(`Invalid aio option: ${name}`);
}

export class Opener {
  readonly #cli: Cli;
  readonly #objects: Objects;
  readonly #choices: OpenChoices;
  #drivers: Promise<ImageDrivers> | undefined;

  /** @param choices what is the same for every image of the run. */
  constructor(cli: Cli, objects: Objects, choices: OpenChoices) {
    this.#cli = cli;
    this.#objects = objects;
    this.#choices = choices;
  }

  /** @throws {@link Failure} */
  async open(request: OpenRequest): Promise<Opened> {
    try {
      return await this.#open(request);
    } catch (error) {
      throw this.failure(request.label, error);
    }
  }

  /** Opens an image that was open a moment ago. What fails is told by the caller. */
  openAgain(request: OpenRequest): Promise<Opened> {
    return this.#open(request);
  }

  /** The open options of a format, as the command line has them. */
  async openOptionNames(format: string): Promise<ReadonlySet<string>> {
    const driver = formatNamed(await this.#loaded(), format);
    return new Set(Object.entries((driver?.openOptions ?? {}) as OptionSchema).map(([key, def]) => cliName(key, def)));
  }

  #loaded(): Promise<ImageDrivers> {
    this.#drivers ??= loadDrivers(this.#cli.personality, false, this.#objects);
    return this.#drivers;
  }

  /** What is said when an image cannot be opened, or does not take its new options.
   *  @param label `null` where the frame is the caller's. */
  failure(label: string | undefined | null, error: unknown): unknown {
    const { personality } = this.#cli;
    const frame = label === null ? '' : label === undefined ? "can't open: " : `can't open device ${label}: `;
    if (error instanceof Failure) {
      if (!personality.qemu) return error;
      const lines = error.lines.map((line) => frame + line.replace(/^Could not open '.*?': /s, ''));
      return new Failure(lines, { cause: error, ...(error.trailer === undefined ? {} : { trailer: error.trailer }) });
    }
    if (!isBlockError(error) || error.code === 'ABORTED' || error.code === 'INTERNAL') return error;
    const { text, hint } = describeError(error, personality);
    const options = { cause: error, ...(hint === undefined ? {} : { trailer: hint }) };
    return new Failure(personality.qemu ? frame + text : text, options);
  }

  async #open(request: OpenRequest): Promise<Opened> {
    const { source, readOnly, cache, aio, copyOnRead, overlay } = request;
    const choices: OpenChoices = { ...this.#choices, readOnly: readOnly || overlay, forceShare: request.forceShare };
    requireShareable(source, { ...choices, readOnly });
    if (aio === 'native' && cache !== 'none' && cache !== 'directsync') {
      throw new Failure('aio=native was specified, but it requires cache.direct=on, which was not specified.');
    }
    const drivers = await this.#loaded();
    const image = await openImage(source.name, {
      ...openOptionsOf(this.#cli, drivers, source, choices),
      discard: request.discard,
      unsafe: cache === 'unsafe',
    });
    let over: Image | undefined;
    try {
      if (image.probedRaw) warnProbed(this.#cli, source.name, image.format, choices);
      if (copyOnRead && readOnly) throw new Failure("Can't use copy-on-read on read-only device");
      if (overlay) over = await temporaryOverlay(image, drivers, request.discard);
    } catch (error) {
      await image.close();
      throw error;
    }
    return {
      request,
      image: over ?? image,
      writethrough: (cache === 'writethrough' || cache === 'directsync') && over === undefined,
      copyOnRead,
      close: async () => {
        try {
          await over?.close();
        } finally {
          await image.close();
        }
      },
    };
  }
}

/** The format of temporary overlays. */
const OVERLAY_FORMAT = 'qcow2';
/** The name the overlay has for what is below it. */
const BELOW = 'disk';

/** An empty image over `below` in a file that has no name any more, or is removed at the end where a file must have one. */
async function temporaryOverlay(below: Image, drivers: ImageDrivers, discard: DiscardMode): Promise<Image> {
  const [protocol] = drivers.protocols;
  if (protocol?.create === undefined) throw new Failure('no temporary file can be made here');
  const name = join(tmpdir(), `cowdisk-${process.pid}-${crypto.randomUUID()}.${OVERLAY_FORMAT}`);
  const file = await protocol.create(name, { exclusive: true, unsafe: true });
  try {
    await protocol.remove?.(name);
    const own = {
      ...drivers,
      protocols: [{ name: BELOW, schemes: [], open: async () => below.node, resolve: () => BELOW }],
    };
    await createImage(file, {
      ...own,
      format: OVERLAY_FORMAT,
      size: below.virtualSize,
      backing: { name: BELOW, format: 'raw' },
      backingUnchecked: true,
      unsafe: true,
    });
    return await openImage(file, {
      ...own,
      name: below.name,
      format: OVERLAY_FORMAT,
      readOnly: false,
      references: 'allow',
      discard,
      unsafe: true,
    });
  } catch (error) {
    await file.close();
    throw error;
  }
}
