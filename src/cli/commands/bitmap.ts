/** `bitmap`: makes, changes and shows dirty bitmaps. Owns the order of the checks, which is qemu-img's. */
import { isBlockError } from '../../base/errors.ts';
import type { BitmapInfo } from '../../core/format.ts';
import type { Image } from '../../image/image.ts';
import { openImage } from '../../image/open.ts';
import { applyBitmapAction, type BitmapAction } from '../../tools/bitmap.ts';
import { usage } from '../args.ts';
import type { Cli } from '../console.ts';
import { loadDrivers } from '../drivers.ts';
import { Failure } from '../failure.ts';
import { parseImageSource } from '../image-source.ts';
import { safeSizeArgument } from '../numbers.ts';
import { openOptionsOf, openSource, using, warnProbed } from '../open.ts';
import { describeError } from '../render/describe.ts';
import { prettyJson } from '../render/json.ts';
import type { Command } from '../verbs/index.ts';
import { commonChoices, oneImage, openChoices, type Scanned, scan, sourceOf } from './common.ts';
import { jobFailure } from './jobs.ts';

/** An action as it was given. */
interface Asked {
  readonly action: BitmapAction['action'];
  /** Of `merge`: the bitmap. */
  readonly from: string | undefined;
}

const ACTIONS: ReadonlySet<string> = new Set<BitmapAction['action']>([
  'add',
  'remove',
  'clear',
  'enable',
  'disable',
  'merge',
]);

/** Characters collected before they are written. */
const CHUNK = 32 * 1024;

export const runBitmap: Command = async (cli, args, spec) => {
  const asked: Asked[] = [];
  let granularity: number | undefined;
  const given = await scan(cli, spec, args, {
    onOption: ({ spec: { key }, value }) => {
      if (ACTIONS.has(key)) asked.push({ action: key as Asked['action'], from: value });
      if (key === 'granularity') granularity = safeSizeArgument('granularity', value as string, cli);
    },
  });
  if (asked.length === 0 && !cli.personality.qemu) {
    await show(cli, given);
    return 0;
  }
  requireSense(given, asked, granularity);
  if (given.has('json') || given.has('dirty')) {
    throw new Failure(
      `--${given.has('json') ? 'json' : 'dirty'}: only what is shown can be, and nothing is changed then`,
    );
  }
  const [operand, name] = given.operands as [string, string];
  await change(cli, given, operand, async (image, source) => {
    for (const { action, from } of asked) {
      const full = complete(action, { from, image: source, granularity });
      try {
        await applyBitmapAction(image, name, full);
      } catch (error) {
        throw failure(cli, action, name, error);
      }
    }
  });
  return 0;
};

/** @throws {@link Failure} in qemu-img's words and order */
function requireSense(given: Scanned, asked: readonly Asked[], granularity = 0): void {
  const has = (action: string): boolean => asked.some((one) => one.action === action);
  if (asked.length === 0) {
    throw new Failure('Need at least one of --add, --remove, --clear, --enable, --disable, or --merge');
  }
  if (granularity !== 0 && !has('add')) {
    throw new Failure('granularity only supported with --add');
  }
  if (given.has('source-format') && !given.has('source-file')) throw new Failure('-F only supported with -b');
  if (given.has('source-file') && !has('merge')) {
    throw new Failure('Merge bitmap source file only supported with --merge');
  }
  if (given.operands.length !== 2) throw new Failure('Expecting filename and bitmap name');
}

function complete(
  action: BitmapAction['action'],
  { from, image, granularity }: { from: string | undefined; image: Image | undefined; granularity: number | undefined },
): BitmapAction {
  // 0 is what is meant when nothing is said.
  if (action === 'add') return { action, granularity: granularity === 0 ? undefined : granularity };
  return action === 'merge' ? { action, from: from ?? '', image } : { action };
}

/** Opens the image for writing, and the one of `-b`, for `act`. */
async function change(
  cli: Cli,
  given: Scanned,
  operand: string,
  act: (image: Image, source: Image | undefined) => Promise<void>,
): Promise<void> {
  const source = sourceOf(given, operand);
  const drivers = await loadDrivers(cli.personality, false, given.objects);
  const choices = { ...openChoices(given), readOnly: false };
  let image: Image;
  try {
    image = await openImage(source.name, openOptionsOf(cli, drivers, source, choices));
  } catch (error) {
    throw jobFailure(cli, 'bitmap', source.label, `'${source.label}' is as it was`, error);
  }
  await using(image, async () => {
    if (image.probedRaw) warnProbed(cli, source.name, image.format, choices);
    const name = given.value('source-file');
    if (name === undefined) {
      await act(image, undefined);
      return;
    }
    const other = parseImageSource(name, { imageOpts: false, format: given.value('source-format') });
    const opened = await openSource(cli, drivers, other, commonChoices(given));
    await using(opened, () => act(image, opened));
  });
}

function failure(cli: Cli, action: string, name: string, error: unknown): unknown {
  if (!isBlockError(error) || error.code === 'ABORTED' || error.code === 'INTERNAL') return error;
  const { text, hint } = describeError(error, cli.personality);
  // A format without bitmaps has none of that name.
  const said =
    cli.personality.qemu && error.reason === 'engine.bitmaps' && action !== 'add'
      ? `Dirty bitmap '${name}' not found`
      : text;
  return new Failure(`Operation ${action} on bitmap ${name} failed: ${said}`, {
    cause: error,
    ...(hint === undefined ? {} : { trailer: hint }),
  });
}

// ── showing, which qemu-img does not ───────────────────────────────────────────────────────────

async function show(cli: Cli, given: Scanned): Promise<void> {
  for (const key of ['source-file', 'source-format', 'granularity']) {
    if (given.has(key)) throw new Failure(`--${key}: is of use with an action only`);
  }
  const isDirty = given.has('dirty');
  if (isDirty && given.operands.length !== 2) throw usage('Expecting filename and bitmap name');
  const operand = isDirty ? (given.operands[0] as string) : oneImage(given);
  const source = sourceOf(given, operand);
  const drivers = await loadDrivers(cli.personality, false, given.objects);
  const image = await openSource(cli, drivers, source, openChoices(given));
  await using(image, async () => {
    try {
      if (isDirty) await showDirty(cli, given, image, given.operands[1] as string);
      else await showList(cli, given, image);
    } catch (error) {
      if (!isBlockError(error) || error.code === 'ABORTED' || error.code === 'INTERNAL') throw error;
      throw new Failure(describeError(error, cli.personality).text, { cause: error });
    }
  });
}

interface Row extends BitmapInfo {
  /** Bytes; `undefined` where nobody can tell. */
  readonly dirty: number | undefined;
}

async function showList(cli: Cli, given: Scanned, image: Image): Promise<void> {
  const rows: Row[] = [];
  for (const bitmap of await image.bitmaps()) {
    rows.push({ ...bitmap, dirty: bitmap.inconsistent ? undefined : await dirtyBytes(image, bitmap.name) });
  }
  if (given.has('json')) {
    const list = rows.map(({ name, granularity, enabled, inconsistent, dirty }) => ({
      name,
      granularity,
      recording: enabled && !inconsistent,
      'in-use': inconsistent,
      ...(dirty === undefined ? {} : { 'dirty-bytes': dirty }),
    }));
    cli.out.write(prettyJson(list));
    return;
  }
  if (rows.length === 0) return;
  const lines = rows.map(({ name, granularity, enabled, inconsistent, dirty }) => [
    String(granularity),
    inconsistent ? 'in-use' : enabled ? 'recording' : 'disabled',
    dirty === undefined ? '-' : String(dirty),
    name,
  ]);
  const text = [['GRANULARITY', 'STATE', 'DIRTY BYTES', 'NAME'], ...lines].map(
    ([granularity = '', state = '', dirty = '', name = '']) =>
      `${granularity.padStart(11)}  ${state.padEnd(9)}  ${dirty.padStart(15)}  ${name}\n`,
  );
  cli.out.write(text.join(''));
}

async function dirtyBytes(image: Image, name: string): Promise<number> {
  let bytes = 0;
  for await (const { length } of image.dirtyExtents(name)) bytes += length;
  return bytes;
}

async function showDirty(cli: Cli, given: Scanned, image: Image, name: string): Promise<void> {
  const isJson = given.has('json');
  let text = isJson ? '[' : '';
  let isFirst = true;
  for await (const { offset, length } of image.dirtyExtents(name)) {
    if (isJson) text += `${isFirst ? '' : ',\n'}{ "start": ${offset}, "length": ${length} }`;
    else text += `${isFirst ? 'Offset          Length\n' : ''}${hexColumn(offset)}${hexColumn(length).trimEnd()}\n`;
    isFirst = false;
    if (text.length < CHUNK) continue;
    cli.out.write(text);
    text = '';
    if (cli.out.broken) return;
  }
  cli.out.write(isJson ? `${text}]\n` : text);
}

function hexColumn(value: number): string {
  return `0x${value.toString(16)}`.padEnd(16);
}
