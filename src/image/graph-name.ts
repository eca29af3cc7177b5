/** What an opened node is called: a plain name where that leads back to the same graph, else `json:{…}` with all that matters.
 *  Pure. The rules are QEMU's (`bdrv_refresh_filename`): a format over a file has the file's name unless an option changes what is read, or its
 *  backing file is another than the recorded one; a filter never has its child's name. */
import { compactJson, type JsonValue } from '../base/json-text.ts';
import { cliName, type OptionSchema } from '../base/options.ts';
import type { GraphValue } from './graph.ts';

type Full = Readonly<Record<string, JsonValue>>;

export interface NodeTitle {
  /** The name that leads back to the node; `undefined` where only the whole description does. */
  readonly plain: string | undefined;
  /** The node's options, its children's included. */
  readonly full: Full;
  /** A protocol's node, or a filter that names can call for: what stands directly on it has its name. */
  readonly isFile: boolean;
}

/** The name that people see. */
export function shownName(title: NodeTitle): string {
  return title.plain ?? `json:${compactJson(title.full)}`;
}

/** A protocol's node. */
export function fileTitle(
  driver: string,
  plain: string | undefined,
  options: ReadonlyMap<string, GraphValue>,
): NodeTitle {
  return { plain, full: { ...Object.fromEntries(options), driver }, isFile: true };
}

/** A filter's node, with its children by their places. */
export function filterTitle(
  driver: string,
  plain: string | undefined,
  options: ReadonlyMap<string, GraphValue>,
  children: readonly (readonly [place: string, title: NodeTitle])[],
): NodeTitle {
  return { plain, full: { ...Object.fromEntries(options), ...nested(children), driver }, isFile: plain !== undefined };
}

/** A format's node.
 *  @param options its own, as they were given
 *  @param overrides the children that stand for recorded ones, by their names */
export function formatTitle(
  driver: { readonly name: string; readonly openOptions: OptionSchema },
  options: ReadonlyMap<string, GraphValue>,
  file: NodeTitle,
  overrides: readonly (readonly [name: string, title: NodeTitle | null])[],
): NodeTitle {
  const content = Object.entries(driver.openOptions)
    .filter(([, def]) => def.content === true)
    .map(([key, def]) => cliName(key, def));
  const shaping = [...options].filter(([key]) => content.includes(key));
  const children: Record<string, JsonValue> = {};
  for (const [name, title] of overrides) children[name] = title === null ? null : { ...title.full };
  // An override of the data file alone shows only where the rest is written out anyway.
  const changed = shaping.length > 0 || overrides.some(([name]) => name === 'backing' || name === 'header');
  const own = shaping.filter(([key]) => !(key in children));
  return {
    plain: file.isFile && !changed ? file.plain : undefined,
    full: { ...Object.fromEntries(own), driver: driver.name, ...children, file: { ...file.full } },
    isFile: false,
  };
}

/** `children.0`, `children.1` become a list. */
function nested(children: readonly (readonly [place: string, title: NodeTitle])[]): Record<string, JsonValue> {
  const result: Record<string, JsonValue> = {};
  const lists = new Map<string, JsonValue[]>();
  for (const [place, title] of children) {
    const dot = place.lastIndexOf('.');
    if (dot < 0) result[place] = { ...title.full };
    else {
      const name = place.slice(0, dot);
      const list = lists.get(name) ?? [];
      list.push({ ...title.full });
      lists.set(name, list);
    }
  }
  for (const [name, list] of lists) result[name] = list;
  return result;
}
