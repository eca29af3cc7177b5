/** Metadata contexts: what a client can learn of ranges besides their bytes. Owns their names and what their status bits mean.
 *  `base:allocation`: holes and zeros. `qemu:allocation-depth`: the layer that decides, from 1; 0 where none does. `qemu:dirty-bitmap:NAME`: 1
 *  where the bitmap marks.
 *  Invariants: a reply has at most 2048 extents and tells of 16 GiB at most, whatever was asked, so that none takes long;
 *  a bitmap that records is read anew for each request, others once for each client. */
import type { MaybePromise } from '../base/async.ts';
import { BlockError } from '../base/errors.ts';
import { DirtyBitmap } from '../core/dirty-bitmap.ts';
import { EXTENT, ExtentList } from '../core/extent.ts';
import type { BitmapFacet } from '../core/format.ts';
import { formatBelow } from '../core/node.ts';
import { ALLOCATION } from '../nbd/constants.ts';
import type { StatusExtent } from '../nbd/replies.ts';
import type { Export } from './export.ts';

const BASE_ALLOCATION = 'base:allocation';
const ALLOCATION_DEPTH = 'qemu:allocation-depth';
const DIRTY_BITMAP = 'qemu:dirty-bitmap:';

const MOST_EXTENTS = 2048;
const LONGEST_STATUS = 16 * 2 ** 30;

/** A context that a client has chosen. */
export interface Context {
  readonly id: number;
  readonly name: string;
  /** From `offset` on, `length` bytes at most, one extent at least. */
  status(offset: number, length: number, most: number): MaybePromise<readonly StatusExtent[]>;
}

/** The names of all contexts of an export. */
export async function contextNames(of: Export): Promise<readonly string[]> {
  const bitmaps = await of.bitmaps();
  return [BASE_ALLOCATION, ALLOCATION_DEPTH, ...bitmaps.map(({ name }) => `${DIRTY_BITMAP}${name}`)];
}

/** Whether a query of a list means this context: its name, or a beginning that ends with a colon. */
export function isAsked(query: string, name: string): boolean {
  return query === name || (/^(base|qemu):$|^qemu:dirty-bitmap:$/.test(query) && name.startsWith(query));
}

/** The contexts that a client chooses: those whose names are given exactly, each once. */
export async function chooseContexts(of: Export, queries: readonly string[]): Promise<readonly Context[]> {
  const names = await contextNames(of);
  const chosen = names.filter((name) => queries.includes(name));
  return await Promise.all(chosen.map((name) => openContext(of, name, names.indexOf(name))));
}

async function openContext(of: Export, name: string, id: number): Promise<Context> {
  if (name.startsWith(DIRTY_BITMAP)) {
    return { id, name, status: await bitmapStatus(of, name.slice(DIRTY_BITMAP.length)) };
  }
  const flagsOf = name === BASE_ALLOCATION ? allocationFlags : depthFlags;
  return { id, name, status: (offset, length, most) => extentStatus(of, offset, length, most, flagsOf) };
}

function allocationFlags(extents: ExtentList, index: number): number {
  const flags = extents.flagsAt(index);
  const isData = Math.floor(flags / EXTENT.data) % 2 === 1;
  const isZero = Math.floor(flags / EXTENT.zero) % 2 === 1;
  return (isData ? 0 : ALLOCATION.hole) + (isZero ? ALLOCATION.zero : 0);
}

function depthFlags(extents: ExtentList, index: number): number {
  return extents.flagsAt(index) % 2 === EXTENT.present ? extents.depthAt(index) + 1 : 0;
}

function extentStatus(
  of: Export,
  offset: number,
  length: number,
  most: number,
  flagsOf: (extents: ExtentList, index: number) => number,
): MaybePromise<readonly StatusExtent[]> {
  const extents = new ExtentList(MOST_EXTENTS);
  extents.reset(offset);
  const told = (): readonly StatusExtent[] => {
    if (extents.end <= offset) throw new BlockError('INTERNAL', `internal error: "${of.name}" has no status`);
    const list = new StatusList(length, most);
    for (let i = 0; i < extents.count; i++) if (!list.add(extents.lengthAt(i), flagsOf(extents, i))) break;
    return list.extents;
  };
  const pending = of.node.extents(offset, Math.min(length, LONGEST_STATUS), extents);
  return pending === undefined ? told() : pending.then(told);
}

type Status = Context['status'];

async function bitmapStatus(of: Export, name: string): Promise<Status> {
  const facet = formatBelow(of.node)?.bitmaps as BitmapFacet;
  const info = (await facet.list()).find((bitmap) => bitmap.name === name);
  if (info?.enabled === true && of.node.supports.write) {
    return async (offset, length, most) => {
      const list = new StatusList(length, most);
      let at = offset;
      for await (const range of facet.dirty(name)) {
        if (range.offset >= offset + length) break;
        if (range.offset + range.length <= at) continue;
        if (range.offset > at && !list.add(range.offset - at, 0)) return list.extents;
        if (!list.add(range.offset + range.length - Math.max(at, range.offset), 1)) return list.extents;
        at = range.offset + range.length;
      }
      if (at < offset + length) list.add(offset + length - at, 0);
      return list.extents;
    };
  }
  const frozen = new DirtyBitmap(of.size, info?.granularity ?? 65_536);
  for await (const { offset, length } of facet.dirty(name)) frozen.set(offset, length);
  return (offset, length, most) => {
    const list = new StatusList(length, most);
    const end = offset + length;
    for (let at = offset; at < end; ) {
      const isDirty = frozen.isDirty(at);
      const next = (isDirty ? frozen.nextClean(at, end) : frozen.nextDirty(at, end)) ?? end;
      if (!list.add(next - at, isDirty ? 1 : 0)) break;
      at = next;
    }
    return list.extents;
  };
}

/** Joins neighbours that say the same, up to a length and a number. */
class StatusList {
  readonly extents: { length: number; flags: number }[] = [];
  #left: number;
  readonly #most: number;

  constructor(length: number, most: number) {
    this.#left = length;
    this.#most = Math.min(most, MOST_EXTENTS);
  }

  /** @returns whether there is room for more */
  add(length: number, flags: number): boolean {
    const last = this.extents.at(-1);
    const some = Math.min(length, this.#left);
    if (last !== undefined && last.flags === flags) last.length += some;
    else if (this.extents.length < this.#most) this.extents.push({ length: some, flags });
    else return false;
    this.#left -= some;
    return this.#left > 0;
  }
}
