/** Filters opened over nodes, without a graph around them, and a clock that goes when the test says so. */
import type { Clock } from '../../src/base/job.ts';
import { type OptionSchema, type OptionsInput, resolveOptions } from '../../src/base/options.ts';
import { firstDifference } from '../../src/bytes/equal.ts';
import { ExtentList } from '../../src/core/extent.ts';
import type { FilterContext, FilterDriver, GraphObject } from '../../src/core/filter.ts';
import type { ImageEvent } from '../../src/core/format.ts';
import type { BlockNode } from '../../src/core/node.ts';

export interface Around {
  readonly readOnly?: boolean;
  readonly objects?: Readonly<Record<string, GraphObject>>;
  readonly nodes?: Readonly<Record<string, BlockNode>>;
  readonly events?: ImageEvent[];
}

/** @param children by the names of the driver; those of a list as an array
 *  @param options by their TypeScript names */
export async function openFilter(
  driver: FilterDriver,
  children: Readonly<Record<string, BlockNode | readonly BlockNode[]>>,
  options: Readonly<Record<string, unknown>> = {},
  around: Around = {},
): Promise<BlockNode> {
  const context: FilterContext = {
    name: 'top',
    readOnly: around.readOnly ?? false,
    children: (name) => {
      const found = children[name];
      return found === undefined ? [] : Array.isArray(found) ? found : [found as BlockNode];
    },
    readFile: () => Promise.reject(new Error('no files here')),
    nodeNamed: (name) => around.nodes?.[name],
    objects: new Map(Object.entries(around.objects ?? {})),
    report: (event) => around.events?.push(event),
    signal: undefined,
  };
  return await driver.open(context, resolveOptions(driver.openOptions, options as OptionsInput<OptionSchema>), {});
}

/** Time that passes by `pass` alone. */
export class FakeClock implements Clock {
  #now = 0;
  #alarms: { readonly at: number; readonly task: () => void }[] = [];

  now(): number {
    return this.#now;
  }

  get alarms(): number {
    return this.#alarms.length;
  }

  after(ms: number, task: () => void): () => void {
    const alarm = { at: this.#now + ms, task };
    this.#alarms.push(alarm);
    return () => {
      this.#alarms = this.#alarms.filter((other) => other !== alarm);
    };
  }

  /** Lets time pass, alarm by alarm. */
  async pass(ms: number): Promise<void> {
    const until = this.#now + ms;
    for (;;) {
      await settled();
      const [first] = this.#alarms.filter(({ at }) => at <= until).sort((a, b) => a.at - b.at);
      if (first === undefined) break;
      this.#alarms = this.#alarms.filter((other) => other !== first);
      this.#now = Math.max(this.#now, first.at);
      first.task();
    }
    this.#now = until;
    await settled();
  }
}

/** Lets everything run that waits for nothing from outside. */
export async function settled(): Promise<void> {
  for (let i = 0; i < 50; i++) await Promise.resolve();
}

/** The status of a node, a word and a length for each extent. */
export async function statusText(node: BlockNode, offset = 0, length = node.size - offset): Promise<string> {
  const words: string[] = [];
  const list = new ExtentList();
  for (let at = offset; at < offset + length; at = list.end) {
    list.reset(at);
    await node.extents(at, offset + length - at, list);
    for (const extent of list) {
      const word = extent.data ? 'data' : extent.zero ? 'zero' : 'unknown';
      words.push(
        `${extent.depth > 0 ? `${extent.depth}:` : ''}${extent.present ? word : `no ${word}`} ${extent.start}+${extent.length}`,
      );
    }
  }
  return words.join(', ');
}

export async function bytesOf(node: BlockNode, offset = 0, length = node.size - offset): Promise<Uint8Array> {
  const bytes = new Uint8Array(length).fill(0x5a);
  await node.read(offset, bytes);
  return bytes;
}

export function filled(byte: number, length: number): Uint8Array {
  return new Uint8Array(length).fill(byte);
}

/** The error that `body` fails with. */
export async function failureOf(body: () => unknown): Promise<unknown> {
  try {
    await body();
  } catch (error) {
    return error;
  }
  throw new Error('it did not fail');
}

/** Throws where two arrays differ, and says where: a diff of long ones takes minutes. */
export function expectSame(actual: Uint8Array, expected: Uint8Array): void {
  if (actual.length !== expected.length) throw new Error(`${actual.length} bytes instead of ${expected.length}`);
  const at = firstDifference(actual, expected);
  if (at >= 0) throw new Error(`byte ${at} is ${actual[at]} instead of ${expected[at]}`);
}
