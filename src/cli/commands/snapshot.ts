/** `snapshot`: lists, makes, applies or deletes. Owns the order of the checks, which is qemu-img's. */
import { constants } from 'node:os';
import { ERRNO_TEXT, errnoOf, isBlockError } from '../../base/errors.ts';
import type { SnapshotSelector } from '../../core/format.ts';
import type { Image } from '../../image/image.ts';
import { type ImageDrivers, openImage } from '../../image/open.ts';
import { usage } from '../args.ts';
import type { Cli } from '../console.ts';
import { loadDrivers } from '../drivers.ts';
import { Failure } from '../failure.ts';
import type { ImageSource } from '../image-source.ts';
import { type OpenChoices, openOptionsOf, requireShareable, using, warnProbed } from '../open.ts';
import { describeError } from '../render/describe.ts';
import { jsonSnapshot, snapshotTable } from '../render/human.ts';
import { prettyJson } from '../render/json.ts';
import type { Command } from '../verbs/index.ts';
import { oneImage, openChoices, type Scanned, scan, sourceOf } from './common.ts';
import { jobFailure } from './jobs.ts';

type Action = 'list' | 'apply' | 'create' | 'delete';

const ACTIONS: ReadonlySet<string> = new Set<Action>(['list', 'apply', 'create', 'delete']);
/** What QEMU tells apart of a name, bytes. */
const MAX_NAME = 255;

export const runSnapshot: Command = async (cli, args, spec) => {
  let action: Action | undefined;
  const given = await scan(cli, spec, args, {
    onOption: ({ spec: { key } }) => {
      if (!ACTIONS.has(key)) return;
      if (action !== undefined) throw usage("Cannot mix '-l', '-a', '-c', '-d'");
      action = key as Action;
    },
  });
  const operand = oneImage(given);
  const chosen = action ?? (cli.personality.qemu ? undefined : 'list');
  const source = sourceOf(given, operand);
  const name = chosen === undefined ? '' : (given.value(chosen) ?? '');
  if (chosen === 'create') requireName(cli, name);
  if (chosen !== 'list' && given.has('json')) throw new Failure('--json: only a list can be printed');
  const choices = { ...openChoices(given), readOnly: chosen === 'list' };
  const image = await open(cli, await loadDrivers(cli.personality, false, given.objects), source, choices);
  await using(image, async () => {
    if (chosen === 'list') list(cli, given, image);
    else if (chosen !== undefined) await new Change(cli, image, source.label, name).make(chosen);
  });
  return 0;
};

async function open(cli: Cli, drivers: ImageDrivers, source: ImageSource, choices: OpenChoices): Promise<Image> {
  requireShareable(source, choices);
  try {
    const image = await openImage(source.name, openOptionsOf(cli, drivers, source, choices));
    if (image.probedRaw) warnProbed(cli, source.name, image.format, choices);
    return image;
  } catch (error) {
    throw jobFailure(cli, 'snapshot', source.label, asItWas(source.label), error);
  }
}

/** What an interruption leaves. */
function asItWas(label: string): string {
  return `'${label}' is as it was`;
}

function list(cli: Cli, given: Scanned, { snapshots }: Image): void {
  if (given.has('json')) cli.out.write(prettyJson(snapshots.map(jsonSnapshot)));
  else if (snapshots.length > 0) cli.out.write(`${['Snapshot list:', ...snapshotTable(snapshots)].join('\n')}\n`);
}

/** @throws {@link Failure} */
function requireName(cli: Cli, name: string): void {
  const bytes = new TextEncoder().encode(name).length;
  if (cli.personality.qemu || bytes <= MAX_NAME) return;
  throw new Failure(`the name of the snapshot has ${bytes} bytes; QEMU tells names apart by their first ${MAX_NAME}`);
}

/** qemu-img takes no more of a name. A character that would be cut in two is left out. */
function cutName(name: string): string {
  const encoder = new TextEncoder();
  let cut = '';
  let bytes = 0;
  for (const character of name) {
    bytes += encoder.encode(character).length;
    if (bytes > MAX_NAME) break;
    cut += character;
  }
  return cut;
}

class Change {
  readonly #cli: Cli;
  readonly #image: Image;
  readonly #label: string;
  readonly #name: string;

  constructor(cli: Cli, image: Image, label: string, name: string) {
    this.#cli = cli;
    this.#image = image;
    this.#label = label;
    this.#name = name;
  }

  async make(action: Exclude<Action, 'list'>): Promise<void> {
    const { signal } = this.#cli;
    try {
      if (action === 'create') {
        // The instruction count that qemu-img records.
        await this.#image.createSnapshot(
          { name: cutName(this.#name), date: dateOfNow(this.#cli), icount: 0n },
          { signal },
        );
      } else if (action === 'apply') await this.#image.applySnapshot(this.#name, { signal });
      else await this.#image.deleteSnapshot(this.#meant(), { signal });
    } catch (error) {
      throw this.#failure(action, error);
    }
  }

  /** qemu-img deletes by name only: the first one of that name. */
  #meant(): SnapshotSelector {
    const { snapshots } = this.#image;
    const named = snapshots.find(({ name }) => name === this.#name);
    const found = named ?? (this.#cli.personality.qemu ? undefined : snapshots.find(({ id }) => id === this.#name));
    if (found !== undefined) return { id: found.id, name: found.name };
    throw new Failure(`Could not delete snapshot '${this.#name}': snapshot not found`);
  }

  #failure(action: Exclude<Action, 'list'>, error: unknown): unknown {
    if (!isBlockError(error) || error.code === 'ABORTED' || error.code === 'INTERNAL') {
      return jobFailure(this.#cli, 'snapshot', this.#label, asItWas(this.#label), error);
    }
    const frame = `Could not ${action} snapshot '${this.#name}'`;
    const { personality } = this.#cli;
    if (!personality.qemu) return new Failure(`${frame}: ${describeError(error, personality).text}`, { cause: error });
    const errno = errnoOf(error);
    const text = ERRNO_TEXT[errno];
    if (action === 'create') {
      const number = (constants.errno as Readonly<Record<string, number>>)[errno] ?? 0;
      return new Failure(`${frame}: -${number} (${text})`, { cause: error });
    }
    if (action === 'delete')
      return new Failure(`${frame}: ${describeError(error, personality).text}`, { cause: error });
    if (error.reason === 'engine.snapshots') {
      return new Failure(`${frame}: Block driver does not support snapshots`, { cause: error });
    }
    if (error.reason === 'qcow2.snapshot-bitmaps') {
      return new Failure(`${frame}: ${describeError(error, personality).text}`, { cause: error });
    }
    const said = SAID_BEFORE[error.reason ?? ''];
    return new Failure([...(said === undefined ? [] : [said]), `${frame}: Failed to load snapshot: ${text}`], {
      cause: error,
    });
  }
}

/** What QEMU prints in a line of its own first. */
const SAID_BEFORE: Readonly<Record<string, string>> = {
  'qcow2.resize-v2-snapshots': "Can't resize a v2 image which has snapshots",
  'qcow2.snapshot-l1-size': 'Snapshot L1 table too large',
  'qcow2.snapshot-l1-offset': 'Snapshot L1 table offset invalid',
  'qcow2.snapshot-disk-size': 'The new size must be a multiple of 512',
};

/** What the system's clock says, or, for output that can be made again, SOURCE_DATE_EPOCH; QEMU does not look at that.
 *  @throws {@link Failure} */
function dateOfNow({ env, personality }: Cli): Date {
  const text = personality.qemu ? undefined : env['SOURCE_DATE_EPOCH'];
  if (text === undefined || text === '') return new Date();
  const seconds = /^\d{1,11}$/.test(text) ? Number(text) : Number.NaN;
  if (seconds <= 0xffff_ffff) return new Date(seconds * 1000);
  throw new Failure(`SOURCE_DATE_EPOCH: expected seconds since 1970, not '${text}'`);
}
