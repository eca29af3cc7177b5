/** `diff`: where two disks differ, range by range. Owns the forms of the list, and the exit status, which is that of cmp and diff. */
import { isBlockError } from '../../base/errors.ts';
import { type DiffSummary, diffImages } from '../../tools/diff.ts';
import type { DiffRange } from '../../tools/difference.ts';
import { usage } from '../args.ts';
import type { Cli } from '../console.ts';
import { loadDrivers } from '../drivers.ts';
import { Failure } from '../failure.ts';
import { ProgressDisplay, progressForm } from '../progress.ts';
import { humanSize } from '../render/human.ts';
import type { Command } from '../verbs/index.ts';
import { type Scanned, scan } from './common.ts';
import { progressAsked } from './compare.ts';
import { PairChoices } from './pairs.ts';

const STATUS = { different: 1, trouble: 2 } as const;
/** Percent between two prints. */
const STEP = 2;
/** Characters collected before they are written. */
const CHUNK = 32 * 1024;

type Form = 'human' | 'json' | 'jsonl';

export const runDiff: Command = async (cli, args, spec) => {
  try {
    const choices = new PairChoices();
    const given = await scan(cli, spec, args, { onOption: choices.note });
    return await compare(cli, given, choices);
  } catch (error) {
    throw trouble(error);
  }
};

async function compare(cli: Cli, given: Scanned, choices: PairChoices): Promise<number> {
  const [first, second] = given.operands;
  if (first === undefined || second === undefined || given.operands.length > 2)
    throw usage('Expecting two image file names');
  const form = formOf(given);
  const isQuiet = given.has('quiet');
  const display = new ProgressDisplay(cli, progressForm(cli, progressAsked(given), isQuiet), STEP);
  let outcome: 'done' | 'failed' = 'failed';
  const drivers = await loadDrivers(cli.personality, true, given.objects);
  try {
    const list = new List(cli, form, given.has('summary'), isQuiet && form === 'human');
    const isEqual = await choices.using(cli, drivers, given, [first, second], async (a, b) => {
      const { block } = choices;
      const ranges = diffImages(a, b, { block, signal: cli.signal, onProgress: display.update });
      list.begin(first, second);
      try {
        for (let next = await ranges.next(); ; next = await ranges.next()) {
          if (next.done === true) {
            list.end(next.value);
            return next.value.equal;
          }
          list.add(next.value);
          // Nobody reads any more.
          if (cli.out.broken) return false;
        }
      } finally {
        list.flush();
        await ranges.return(undefined as never);
      }
    });
    display.complete();
    outcome = 'done';
    return isEqual ? 0 : STATUS.different;
  } finally {
    display.end(outcome);
    await drivers.codecs?.close();
  }
}

/** @throws {@link Failure} */
function formOf(given: Scanned): Form {
  const form = given.has('json') ? 'json' : (given.value('output') ?? 'human');
  if (form === 'human' || form === 'json' || form === 'jsonl') return form;
  throw new Failure(`--output: expected human, json or jsonl, not '${form}'`);
}

/** Everything that goes wrong is told apart from a difference. */
function trouble(error: unknown): unknown {
  if (error instanceof Failure) {
    return error.status === 1
      ? new Failure(error.lines, {
          status: STATUS.trouble,
          cause: error,
          ...(error.hint === undefined ? {} : { hint: error.hint }),
          ...(error.trailer === undefined ? {} : { trailer: error.trailer }),
        })
      : error;
  }
  if (!isBlockError(error) || error.code === 'ABORTED' || error.code === 'INTERNAL') return error;
  return new Failure(error.message, { status: STATUS.trouble, cause: error });
}

/** The list as it is printed, a piece at a time. */
class List {
  readonly #cli: Cli;
  readonly #form: Form;
  readonly #onlySummary: boolean;
  readonly #isSilent: boolean;
  #text = '';
  #count = 0;

  constructor(cli: Cli, form: Form, onlySummary: boolean, isSilent: boolean) {
    this.#cli = cli;
    this.#form = form;
    this.#onlySummary = onlySummary;
    this.#isSilent = isSilent;
  }

  begin(first: string, second: string): void {
    if (this.#form !== 'json') return;
    const names = `"filename": ${JSON.stringify(first)}, "filename2": ${JSON.stringify(second)}`;
    this.#put(`{${names}${this.#onlySummary ? '' : ', "ranges": ['}`);
  }

  add({ offset, length, kind }: DiffRange): void {
    const isFirst = this.#count++ === 0;
    if (this.#onlySummary) return;
    if (this.#form === 'human') {
      if (isFirst) this.#put(row('Offset', 'Length', 'What'));
      this.#put(row(`0x${offset.toString(16)}`, `0x${length.toString(16)}`, kind));
      return;
    }
    const object = `{"start": ${offset}, "length": ${length}, "kind": "${kind}"}`;
    this.#put(this.#form === 'jsonl' ? `${object}\n` : `${isFirst ? '\n' : ',\n'}  ${object}`);
  }

  end(summary: DiffSummary): void {
    if (this.#form === 'human') this.#put(humanSummary(summary));
    else if (this.#form === 'jsonl') this.#put(`{"summary": ${jsonSummary(summary)}}\n`);
    else {
      const close = this.#onlySummary ? '' : `${this.#count > 0 ? '\n' : ''}]`;
      this.#put(`${close}, "summary": ${jsonSummary(summary)}}\n`);
    }
  }

  flush(): void {
    if (this.#text !== '') this.#cli.out.write(this.#text);
    this.#text = '';
  }

  #put(text: string): void {
    if (this.#isSilent) return;
    this.#text += text;
    if (this.#text.length >= CHUNK) this.flush();
  }
}

function row(offset: string, length: string, what: string): string {
  return `${offset.padEnd(16)}${length.padEnd(16)}${what}\n`;
}

function humanSummary({ equal, sizes, block, ranges, bytes, changed, filled, cleared }: DiffSummary): string {
  if (equal) return 'The disks are the same.\n';
  const [first, second] = sizes;
  const differ = first === second ? '' : `The disks have different sizes: ${first} and ${second} bytes.\n`;
  if (ranges === 0) return `${differ}What the smaller one holds is the same, and the rest is zeros.\n`;
  const kinds = [
    [changed, 'changed'],
    [filled, 'filled'],
    [cleared, 'cleared'],
  ] as const;
  const parts = kinds.filter(([count]) => count > 0).map(([count, kind]) => `${humanSize(count)} ${kind}`);
  const many = ranges === 1 ? '1 range' : `${ranges} ranges`;
  const unit = block === 1 ? 'exact to the byte' : `in blocks of ${humanSize(block)}`;
  return `${differ}${many}, ${bytes} bytes (${parts.join(', ')}), ${unit}.\n`;
}

function jsonSummary({ equal, sizes, block, ranges, bytes, changed, filled, cleared, read }: DiffSummary): string {
  return JSON.stringify({
    equal,
    'virtual-size': sizes[0],
    'virtual-size2': sizes[1],
    block,
    ranges,
    bytes,
    changed,
    filled,
    cleared,
    'bytes-read': read,
  });
}
