/** Which L2 table belongs to which slot, where the L1 table does not say: from snapshots, from other L1 tables, from the order in the file.
 *  Spec: none. Everything decided here is doubtful; nothing here touches what the L1 table says.
 *  Invariant: no table gets two slots, no slot two tables. */
import type { Geometry } from './geometry.ts';
import type { Books } from './recover-books.ts';
import { type Evidence, UNKNOWN } from './recover-refcounts.ts';
import { BAD_TABLE, type Tree } from './recover-trees.ts';

/** How a slot got its table. */
export const BY_L1 = 0;
export const BY_SNAPSHOT = 1;
export const BY_OTHER_L1 = 2;
export const BY_ORDER = 3;
export const BY_CONTENT = 4;

export interface Slots {
  /** Host offset of each slot's L2 table; 0: none; {@link BAD_TABLE}: the L1 entry is destroyed. */
  readonly tables: Float64Array;
  readonly how: Uint8Array;
}

export interface Surroundings {
  readonly geometry: Geometry;
  readonly books: Books;
  readonly evidence: Evidence;
  /** Clusters of the file, up to the last that holds something. */
  readonly clusters: number;
}

export interface Material {
  readonly own: Tree | undefined;
  readonly others: readonly Tree[];
  /** L1 tables that nothing names. */
  readonly hints: readonly Tree[];
  /** Tables that no tree names and that seem to be in use, ascending. */
  readonly orphans: readonly number[];
  /** Slots of orphans, as far as they share clusters with tables of other trees. */
  readonly matches: ReadonlyMap<number, number>;
  /** Slots for which the L1 table says "none" may have lost their table; otherwise those with destroyed entries only. */
  readonly fillsGaps: boolean;
}

/** @param slots of the disk; `Infinity` when its size is not known */
export function assign(material: Material, slots: number, around: Surroundings): Slots {
  const { own, others, hints, orphans, matches, fillsGaps } = material;
  const size = Number.isFinite(slots)
    ? slots
    : (own?.tables.length ?? 0) + orphans.length + missingAmong(orphans, around);
  const tables = new Float64Array(size);
  const how = new Uint8Array(size);
  if (own !== undefined) tables.set(own.tables.subarray(0, size));
  const isOpen = (slot: number): boolean =>
    slot < size && ((tables[slot] === 0 && fillsGaps) || tables[slot] === BAD_TABLE);
  const give = (slot: number, table: number, by: number): void => {
    tables[slot] = table;
    how[slot] = by;
  };
  for (const { tables: theirs } of others) {
    for (let slot = 0; slot < Math.min(size, theirs.length); slot++) {
      const table = theirs[slot] as number;
      if (table > 0 && isOpen(slot) && isShared(table, around)) give(slot, table, BY_SNAPSHOT);
    }
  }
  const left = new Set(orphans);
  for (const { tables: theirs } of hints) {
    for (let slot = 0; slot < Math.min(size, theirs.length); slot++) {
      const table = theirs[slot] as number;
      if (isOpen(slot) && left.delete(table)) give(slot, table, BY_OTHER_L1);
    }
  }
  for (const [table, slot] of matches) {
    if (isOpen(slot) && left.delete(table)) give(slot, table, BY_CONTENT);
  }
  if (left.size > 0)
    assignByOrder(
      [...left].sort((a, b) => a - b),
      tables,
      isOpen,
      give,
      around,
    );
  return { tables, how };
}

/** A table that is counted once more than it is named: the disk shares it with a snapshot. */
function isShared(table: number, { evidence, books, geometry }: Surroundings): boolean {
  const count = evidence.of(table / geometry.clusterSize);
  return count !== UNKNOWN && count > books.claims.get(table / geometry.clusterSize);
}

type Give = (slot: number, table: number, by: number) => void;

/** Writers that go through the disk from front to back make its tables in that order. Between two tables whose slots are known, the orphans that lie
 *  there get the open slots there, as long as the known tables are in order, too. */
function assignByOrder(
  orphans: readonly number[],
  tables: Float64Array,
  isOpen: (slot: number) => boolean,
  give: Give,
  around: Surroundings,
): void {
  const known: { slot: number; table: number }[] = [];
  for (let slot = 0; slot < tables.length; slot++) {
    const table = tables[slot] as number;
    if (table > 0) known.push({ slot, table });
  }
  const open: number[] = [];
  for (let slot = 0; slot < tables.length; slot++) if (isOpen(slot)) open.push(slot);
  if (open.length === 1 && orphans.length === 1) {
    give(open[0] as number, orphans[0] as number, BY_ORDER);
    return;
  }
  if (!isAscending(known)) return;
  known.push({ slot: tables.length, table: Number.POSITIVE_INFINITY });
  let from = 0;
  let next = 0;
  let before = { slot: -1, table: 0 };
  for (const after of known) {
    const here: number[] = [];
    while (next < orphans.length && (orphans[next] as number) < after.table) here.push(orphans[next++] as number);
    const free: number[] = [];
    while (from < open.length && (open[from] as number) < after.slot) free.push(open[from++] as number);
    if (here.length > 0) fillSegment(here, free, before.table, after.table, give, around);
    before = after;
  }
}

function isAscending(known: readonly { readonly slot: number; readonly table: number }[]): boolean {
  let ascents = 0;
  for (let i = 1; i < known.length; i++) {
    if ((known[i] as { table: number }).table > (known[i - 1] as { table: number }).table) ascents++;
  }
  return known.length < 3 || ascents >= 0.9 * (known.length - 1);
}

function fillSegment(
  orphans: readonly number[],
  free: readonly number[],
  start: number,
  end: number,
  give: Give,
  around: Surroundings,
): void {
  const bounds = [start, ...orphans, Math.min(end, around.clusters * around.geometry.clusterSize)];
  const gaps = bounds.slice(1).map((to, i) => lostTables(bounds[i] as number, to, around));
  // Where more tables seem to be lost than there are slots for, those that left the most clusters behind are.
  const room = Math.max(0, free.length - orphans.length);
  const likeliest = new Set(
    gaps
      .flat()
      .sort((a, b) => b.clusters - a.clusters)
      .slice(0, room),
  );
  let at = 0;
  for (let i = 0; i <= orphans.length; i++) {
    for (const lost of gaps[i] as LostTable[]) {
      if (likeliest.has(lost)) give(free[at++] as number, lost.place, BY_ORDER);
    }
    const slot = free[at];
    if (i === orphans.length || slot === undefined) continue;
    give(slot, orphans[i] as number, BY_ORDER);
    at++;
  }
}

interface LostTable {
  /** Where it was, bytes. */
  readonly place: number;
  /** Left-over clusters that may have been its own, its place among them. */
  clusters: number;
}

/** Destroyed tables between two others: the first of the left-over clusters, and again after as many as one table maps. */
function lostTables(start: number, end: number, { geometry, books }: Surroundings): LostTable[] {
  const { clusterSize, l2Entries } = geometry;
  const lost: LostTable[] = [];
  for (let cluster = start / clusterSize + 1; cluster < end / clusterSize; cluster++) {
    if (books.metadata.get(cluster) > 0 || books.claims.get(cluster) > 0 || !books.isLeftOver(cluster)) continue;
    const last = lost.at(-1);
    if (last === undefined || last.clusters > l2Entries) lost.push({ place: cluster * clusterSize, clusters: 1 });
    else last.clusters++;
  }
  return lost;
}

function missingAmong(orphans: readonly number[], around: Surroundings): number {
  const bounds = [0, ...orphans, around.clusters * around.geometry.clusterSize];
  return bounds.slice(1).reduce((sum, to, i) => sum + lostTables(bounds[i] as number, to, around).length, 0);
}
