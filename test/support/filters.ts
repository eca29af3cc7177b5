/** Filters opened over stores in memory, from options written as on the command line. */

import { BlockError } from '../../src/base/errors.ts';
import { type OptionSchema, parseOptions, resolveOptions } from '../../src/base/options.ts';
import type { FilterDriver } from '../../src/core/filter.ts';
import type { ImageEvent } from '../../src/core/format.ts';
import type { BlockNode } from '../../src/core/node.ts';

export interface OpenFilter {
  readonly children: Readonly<Record<string, BlockNode | readonly BlockNode[]>>;
  /** By QEMU's names; of groups `inject-error.0.event`. */
  readonly options?: Readonly<Record<string, string>>;
  readonly files?: Readonly<Record<string, string>>;
  readonly events?: ImageEvent[];
}

export async function openFilter(driver: FilterDriver, given: OpenFilter): Promise<BlockNode> {
  const plain: [string, string][] = [];
  const groups: Record<string, [string, string][][]> = {};
  for (const name of Object.keys(driver.listOptions)) groups[name] = [];
  for (const [name, value] of Object.entries(given.options ?? {})) {
    const [, group, index, rest] = /^([^.]+)\.(\d+)\.(.+)$/.exec(name) ?? [];
    if (group === undefined) plain.push([name, value]);
    else {
      const list = groups[group] as [string, string][][];
      while (list.length <= Number(index)) list.push([]);
      list[Number(index)]?.push([rest as string, value]);
    }
  }
  const resolved = <O extends OptionSchema>(schema: O, pairs: [string, string][]) =>
    resolveOptions(schema, parseOptions(schema, pairs));
  return await driver.open(
    {
      name: driver.name,
      readOnly: false,
      children: (name) => {
        const found = given.children[name] ?? [];
        return Array.isArray(found) ? found : [found as BlockNode];
      },
      readFile: (name) => {
        const content = given.files?.[name];
        if (content !== undefined) return Promise.resolve(new TextEncoder().encode(content));
        return Promise.reject(
          new BlockError('NOT_FOUND', `could not open "${name}": no such file or directory`, {
            details: { errno: 'ENOENT' },
          }),
        );
      },
      objects: new Map(),
      nodeNamed: () => undefined,
      report: (event) => void given.events?.push(event),
      signal: undefined,
    },
    resolved(driver.openOptions, plain),
    Object.fromEntries(
      Object.entries(groups).map(([name, list]) => [
        name,
        list.map((pairs) => resolved(driver.listOptions[name] as OptionSchema, pairs)),
      ]),
    ),
  );
}
