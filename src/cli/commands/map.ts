/** `map`: where the ranges of a disk lie. */
import { isBlockError } from '../../base/errors.ts';
import { mapImage, mapReferences } from '../../tools/map.ts';
import type { Cli } from '../console.ts';
import { loadDrivers } from '../drivers.ts';
import { Failure } from '../failure.ts';
import type { ImageSource } from '../image-source.ts';
import { INT64_MAX, sizeArgument } from '../numbers.ts';
import { type OpenChoices, openSource, using } from '../open.ts';
import {
  humanMapRow,
  humanReferenceRow,
  jsonMapRow,
  jsonReferenceRow,
  MAP_HEADER,
  type MapRow,
  REFERENCES_HEADER,
} from '../render/human.ts';
import { ioError } from '../render/qemu-text.ts';
import type { Command } from '../verbs/index.ts';
import { oneImage, openChoices, outputForm, type Scanned, scan, sourceOf } from './common.ts';

/** Characters collected before they are written. */
const CHUNK = 32 * 1024;

export const runMap: Command = async (cli, args, spec) => {
  let start = 0n;
  let length = INT64_MAX;
  const given = await scan(cli, spec, args, {
    onOption: ({ spec: { key }, value }) => {
      if (key === 'start-offset') start = sizeArgument('start offset', value as string, cli);
      if (key === 'max-length') length = sizeArgument('max length', value as string, cli);
    },
  });
  const operand = oneImage(given);
  const form = outputForm(given);
  const source = sourceOf(given, operand);
  if (given.has('refcounts')) return await printReferences(cli, given, source, form);
  const image = await openSource(
    cli,
    await loadDrivers(cli.personality, false, given.objects),
    source,
    openChoices(given),
  );
  return using(image, async () => {
    const rows = mapImage(image, { start: toNumber(start), length: toNumber(length), signal: cli.signal });
    try {
      if (form === 'human') await printHuman(cli, rows);
      else {
        const end = Math.min(image.virtualSize, toNumber(start) + toNumber(length));
        await printJson(cli, rows, { start, end }, given.has('compressed'));
      }
    } catch (error) {
      throw failure(cli, error);
    }
    return 0;
  });
};

/** `--refcounts`: of the file alone; what it names stays unopened. */
async function printReferences(cli: Cli, given: Scanned, source: ImageSource, form: 'human' | 'json'): Promise<number> {
  for (const key of ['start-offset', 'max-length', 'compressed']) {
    if (given.has(key)) throw new Failure(`--refcounts: --${key} is about the disk, and refcounts are about the file`);
  }
  const choices: OpenChoices = { ...openChoices(given), references: 'layer-only' };
  const image = await openSource(cli, await loadDrivers(cli.personality, false, given.objects), source, choices);
  return using(image, async () => {
    const json = form === 'json';
    const end = json ? ']\n' : '';
    let text = json ? '[' : REFERENCES_HEADER;
    let between = '';
    try {
      for await (const run of mapReferences(image, { signal: cli.signal })) {
        text += json ? `${between}${jsonReferenceRow(run)}` : humanReferenceRow(run);
        between = ',\n';
        if (text.length < CHUNK) continue;
        cli.out.write(text);
        text = '';
        if (cli.out.broken) return 0;
      }
    } catch (error) {
      throw failure(cli, error);
    } finally {
      cli.out.write(text + end);
    }
    return 0;
  });
}

function failure(cli: Cli, error: unknown): unknown {
  if (!isBlockError(error) || error.code === 'ABORTED' || error.code === 'INTERNAL') return error;
  const why = cli.personality.qemu ? ioError(error) : error.message;
  return new Failure(`Could not read file metadata: ${why}`, { cause: error });
}

/** Past every image's end is past it, whatever the number. */
function toNumber(value: bigint): number {
  return value > BigInt(Number.MAX_SAFE_INTEGER) ? Number.MAX_SAFE_INTEGER : Number(value);
}

async function printHuman(cli: Cli, rows: AsyncIterable<MapRow>): Promise<void> {
  let text = MAP_HEADER;
  try {
    for await (const row of rows) {
      if (row.data && row.hostOffset === undefined) {
        throw new Failure('File contains external, encrypted or compressed clusters.');
      }
      text += humanMapRow(row);
      if (text.length < CHUNK) continue;
      cli.out.write(text);
      text = '';
      if (cli.out.broken) return;
    }
  } finally {
    cli.out.write(text);
  }
}

/** A row that is not the last is known not to be: the comma comes with it, and stands there when the next one cannot be found out. */
async function printJson(
  cli: Cli,
  rows: AsyncIterable<MapRow>,
  range: { readonly start: bigint; readonly end: number },
  compressed: boolean,
): Promise<void> {
  let text = '[';
  let empty = true;
  try {
    for await (const row of rows) {
      text += `${jsonMapRow(row, compressed)}${Number(row.start) + row.length < range.end ? ',\n' : ''}`;
      empty = false;
      if (text.length < CHUNK) continue;
      cli.out.write(text);
      text = '';
      if (cli.out.broken) return;
    }
    if (empty) text += jsonMapRow(emptyRow(range.start), compressed);
    text += ']\n';
  } finally {
    cli.out.write(text);
  }
}

/** QEMU's one entry for a range that holds nothing. */
function emptyRow(start: bigint): MapRow {
  return {
    start,
    length: 0,
    depth: 0,
    present: false,
    zero: false,
    data: false,
    compressed: false,
    hostOffset: undefined,
    node: undefined,
  };
}
